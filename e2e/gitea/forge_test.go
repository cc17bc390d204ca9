// Package gitea_test tests the forge of registrar/forge/gitea against a real Gitea,
// which takes minutes to compile: so it is a module of its own.
package gitea_test

import (
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/forgetest"
	"github.com/kokoa-proxy/kokoa/registrar/forge/gitea"
)

const base = "main"

func TestForge(t *testing.T) {
	forgetest.Run(t, func(t *testing.T) forgetest.Place { return newRepo(t).place(t) })
}

// repo is a repo of its own at the server.
type repo struct {
	*server
	name   string // without the owner, who is admin
	path   string // in the API
	token  string // guest's
	person forgetest.Person
}

var repos atomic.Int32

func newRepo(t *testing.T) *repo {
	t.Helper()
	r := &repo{server: shared, name: fmt.Sprintf("fleet-%d", repos.Add(1))}
	r.path = "/repos/" + admin + "/" + r.name
	r.ask(t, admin, http.MethodPost, "/user/repos", map[string]any{
		"name": r.name, "auto_init": true, "default_branch": base, "private": true,
	}, nil, http.StatusCreated)
	r.ask(t, admin, http.MethodPut, r.path+"/collaborators/"+guest, map[string]string{"permission": "write"}, nil, http.StatusNoContent)
	r.token = r.newToken(t, guest, "write:repository", "write:issue")
	remote := url.URL{Scheme: "http", User: url.UserPassword(admin, password), Host: fmt.Sprintf("127.0.0.1:%d", r.port), Path: "/" + admin + "/" + r.name + ".git"}
	r.person = forgetest.Person{Remote: remote.String(), Base: base}
	return r
}

func (r *repo) newToken(t *testing.T, user string, scopes ...string) string {
	t.Helper()
	var token struct {
		Text string `json:"sha1"`
	}
	name := fmt.Sprintf("%s-%d", r.name, repos.Add(1))
	r.ask(t, user, http.MethodPost, "/users/"+user+"/tokens", map[string]any{"name": name, "scopes": scopes}, &token, http.StatusCreated)
	return token.Text
}

// open is a forge that asks with a token.
func (r *repo) open(t *testing.T, token string) *gitea.Forge {
	t.Helper()
	return r.openHTTP(t, token, http.DefaultTransport.RoundTrip)
}

// openHTTP is open with another way to the server.
func (r *repo) openHTTP(t *testing.T, token string, trip transport) *gitea.Forge {
	t.Helper()
	f, err := gitea.Open(gitea.Config{
		URL: r.url, Owner: admin, Repo: r.name, Branch: base, Token: gitea.Token(token),
		HTTP: &http.Client{Transport: trip},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

func (r *repo) place(t *testing.T) forgetest.Place {
	return forgetest.Place{
		Forge:    r.open(t, r.token),
		Again:    func(t *testing.T) forge.Forge { return r.open(t, r.token) },
		Base:     base,
		Commit:   r.person.Commit,
		Read:     r.person.Read,
		Descends: r.person.Descends,
		Merge:    r.merge,
		Close: func(t *testing.T, p forge.Pull) {
			r.edit(t, p, map[string]string{"state": "closed"})
		},
		Requests: r.requests,
		Protect:  r.protect,
		Deny:     r.deny,
		Stop: func(t *testing.T) func() {
			r.kill()
			return func() {
				if err := r.start(); err != nil {
					t.Fatal(err)
				}
			}
		},
		Secret: r.token,
	}
}

// merge merges as admin does, and leaves the branch.
func (r *repo) merge(t *testing.T, p forge.Pull) {
	t.Helper()
	path := fmt.Sprintf("%s/pulls/%d/merge", r.path, p.Number)
	eventually(t, func() error {
		// It may still be looking for conflicts.
		if status, raw := r.try(t, admin, http.MethodPost, path, map[string]string{"Do": "merge"}); status != http.StatusOK {
			return fmt.Errorf("merge: %d %s", status, raw)
		}
		return nil
	})
}

// edit changes a pull request as admin.
func (r *repo) edit(t *testing.T, p forge.Pull, change map[string]string) {
	t.Helper()
	r.ask(t, admin, http.MethodPatch, fmt.Sprintf("%s/pulls/%d", r.path, p.Number), change, nil, http.StatusCreated)
}

func (r *repo) requests(t *testing.T) []forgetest.Request {
	t.Helper()
	var open []struct {
		Number      int
		Title, Body string
		Head        struct{ Ref string }
	}
	r.ask(t, admin, http.MethodGet, r.path+"/pulls?state=open", nil, &open, http.StatusOK)
	var found []forgetest.Request
	for _, p := range open {
		found = append(found, forgetest.Request{Number: p.Number, Branch: p.Head.Ref, Title: p.Title, Body: p.Body})
	}
	return found
}

// protect lets only admin merge to the base branch, and nobody push.
func (r *repo) protect(t *testing.T) {
	t.Helper()
	r.ask(t, admin, http.MethodPost, r.path+"/branch_protections", map[string]any{
		"rule_name": base, "enable_push": false, "enable_merge_whitelist": true, "merge_whitelist_usernames": []string{admin},
	}, nil, http.StatusCreated)
}

// deny takes guest's tokens away.
func (r *repo) deny(t *testing.T) {
	t.Helper()
	var tokens []struct{ ID int }
	r.ask(t, guest, http.MethodGet, "/users/"+guest+"/tokens?limit=50", nil, &tokens, http.StatusOK)
	for _, token := range tokens {
		r.ask(t, guest, http.MethodDelete, fmt.Sprintf("/users/%s/tokens/%d", guest, token.ID), nil, nil, http.StatusNoContent)
	}
}

// eventually tries again until it works, within half a minute.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	end := time.After(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-end:
			t.Fatal(err)
		case <-again.C:
		}
	}
}

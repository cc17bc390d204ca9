package registrar

import (
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github/githubtest"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

// On GitHub, as an App: the pull request is opened there, a person merges it there,
// and the control plane reads the repo from there over HTTP. What may be merged by
// itself is, unless the branch's rules want a person.
func TestOnGitHub(t *testing.T) {
	server := githubtest.New(t)
	w := newWorldAt(t, server.Dir,
		func() (forge.Forge, error) {
			return github.Open(github.Config{
				URL: server.URL, Owner: server.Owner, Repo: server.Repo, Branch: server.Branch, HTTP: server.Client(),
				App: github.App{ID: server.App.ID, Installation: server.App.Installation, PrivateKey: server.App.PrivateKey},
			})
		},
		func() (repo.Source, error) {
			return repo.Open(server.CloneURL, repo.Options{Branch: server.Branch, CacheDir: t.TempDir(), Auth: repo.Auth{Password: server.Token}})
		})
	h := w.host()
	if a := h.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "rpi-home"}); a.State != join.Accepted {
		t.Fatalf("%+v", a)
	}
	w.step()
	pulls := server.Pulls(t)
	if len(pulls) != 1 || !strings.Contains(pulls[0].Body, h.key.Public().String()) {
		t.Fatalf("%+v", pulls)
	}
	a := h.ask(join.Question{})
	if a.State != join.Proposed || !strings.Contains(a.Pull, "/pull/") {
		t.Fatalf("%+v", a)
	}
	// A new control plane finds the one that is open.
	w.restart()
	w.step()
	if pulls = server.Pulls(t); len(pulls) != 1 {
		t.Fatalf("%+v", pulls)
	}
	server.Merge(t, pulls[0].Number)
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Live {
		t.Fatalf("%+v", a)
	}

	scope := ledger.Scope{Automatic: true, Hosts: []string{"*.dev.kokoa.test"}}
	dev := w.host()
	dev.register(join.Registration{Token: w.token(scope), Name: "dev-a", Temporary: time.Hour})
	w.step()
	if a := dev.ask(join.Question{}); a.State != join.Live {
		t.Fatalf("%+v", a)
	}
	server.Protect("")
	held := w.host()
	held.register(join.Registration{Token: w.token(scope), Name: "dev-b", Temporary: time.Hour})
	w.step()
	if a := held.ask(join.Question{}); a.State != join.Proposed || !strings.Contains(a.Reason, "rules") {
		t.Fatalf("%+v", a)
	}

	// GitHub is down, and then has had enough.
	up := server.Down(503)
	late := w.host()
	late.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "late"})
	w.work(t.Context())
	if a := late.ask(join.Question{}); a.State != join.Accepted || !strings.Contains(a.Reason, "goes on trying") {
		t.Fatalf("%+v", a)
	}
	up()
	server.Budget(0, time.Now().Add(2*time.Second), 403)
	w.later(restMax)
	w.work(t.Context())
	if a := late.ask(join.Question{}); a.State != join.Accepted || !strings.Contains(a.Reason, "rate limit") {
		t.Fatalf("%+v", a)
	}
	server.Budget(5000, time.Now().Add(time.Hour), 403)
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		w.later(time.Hour) // the client of GitHub's API waits by the real clock
		w.step()
		if a = late.ask(join.Question{}); a.State == join.Proposed {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%+v", a)
		}
	}
}

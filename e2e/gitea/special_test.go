package gitea_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// proposal is the one that these tests are about.
func proposal(content string) forge.Proposal {
	return forge.Proposal{
		Branch: "kokoa/register/rpi-home",
		Title:  "Add origin rpi-home",
		Body:   "It asked to join.",
		Files:  []forge.File{{Path: "origins/rpi-home.cue", Content: []byte(content)}},
	}
}

func propose(t *testing.T, f forge.Forge, p forge.Proposal) forge.Pull {
	t.Helper()
	pull, err := f.Propose(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return pull
}

// Whatever rule forbids a merge, a person must merge, and the base branch stays.
func TestRules(t *testing.T) {
	protect := func(rule map[string]any) func(*testing.T, *repo, forge.Pull) {
		return func(t *testing.T, r *repo, _ forge.Pull) {
			rule["rule_name"] = base
			r.ask(t, admin, http.MethodPost, r.path+"/branch_protections", rule, nil, http.StatusCreated)
		}
	}
	set := func(change map[string]any) func(*testing.T, *repo, forge.Pull) {
		return func(t *testing.T, r *repo, _ forge.Pull) {
			r.ask(t, admin, http.MethodPatch, r.path, change, nil, http.StatusOK)
		}
	}
	for name, rule := range map[string]func(*testing.T, *repo, forge.Pull){
		"others may merge": protect(map[string]any{"enable_merge_whitelist": true, "merge_whitelist_usernames": []string{admin}}),
		"approvals":        protect(map[string]any{"required_approvals": 1}),
		"checks":           protect(map[string]any{"enable_status_check": true, "status_check_contexts": []string{"ci/vet"}}),
		"protected file":   protect(map[string]any{"protected_file_patterns": "origins/**"}),
		"signatures":       protect(map[string]any{"require_signed_commits": true}),
		"archived":         set(map[string]any{"archived": true}),
		"no style of merging": set(map[string]any{
			"has_pull_requests": true, "allow_manual_merge": true, "default_merge_style": "manually-merged",
			"allow_merge_commits": false, "allow_rebase": false, "allow_rebase_explicit": false,
			"allow_squash_merge": false, "allow_fast_forward_only_merge": false,
		}),
		"a draft": func(t *testing.T, r *repo, p forge.Pull) {
			r.edit(t, p, map[string]string{"title": "WIP: Add origin rpi-home"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			f := r.open(t, r.token)
			p := propose(t, f, proposal("first"))
			head, _ := r.person.Read(t, base)
			rule(t, r, p)
			err := f.Merge(t.Context(), p)
			if !errors.Is(err, forge.ErrProtected) || errors.Is(err, forge.ErrConflict) || errors.Is(err, forge.ErrDenied) {
				t.Errorf("merged: %v", err)
			}
			if got, _ := r.person.Read(t, base); got.Hash != head.Hash {
				t.Errorf("the base branch moved from %s to %s", head.Hash, got.Hash)
			}
		})
	}
}

// In whatever way a repo merges, the proposal is merged, also behind the base branch
// where that is allowed.
func TestStyles(t *testing.T) {
	styles := map[string]string{
		"merge": "allow_merge_commits", "rebase": "allow_rebase", "rebase-merge": "allow_rebase_explicit",
		"squash": "allow_squash_merge", "fast-forward-only": "allow_fast_forward_only_merge",
	}
	for style := range styles {
		t.Run(style, func(t *testing.T) {
			r := newRepo(t)
			change := map[string]any{"has_pull_requests": true, "default_merge_style": style}
			for other, allow := range styles {
				change[allow] = other == style
			}
			r.ask(t, admin, http.MethodPatch, r.path, change, nil, http.StatusOK)
			f := r.open(t, r.token)
			p := propose(t, f, proposal("first"))
			moved := r.person.Commit(t, base, "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
			err := f.Merge(t.Context(), p)
			if style == "fast-forward-only" {
				if !errors.Is(err, forge.ErrConflict) {
					t.Errorf("merged what is behind: %v", err)
				}
				err = f.Merge(t.Context(), propose(t, f, proposal("first")))
			}
			if err != nil {
				t.Fatal(err)
			}
			got, _ := r.person.Read(t, base)
			if got.Files["origins/rpi-home.cue"] != "first" || got.Files["moved.cue"] != "on" || !r.person.Descends(t, base, moved) {
				t.Errorf("the base branch is %+v", got)
			}
			if found, err := f.Find(t.Context(), p.Branch); err != nil || found.State != forge.Merged || found.Number != p.Number {
				t.Errorf("found %+v, %v", found, err)
			}
			if got := r.person.Branches(t); !slices.Equal(got, []string{base}) {
				t.Errorf("branches are left: %q", got)
			}
		})
	}
}

// Credentials that may not do this are told apart from everything else.
func TestDenied(t *testing.T) {
	r := newRepo(t)
	p := propose(t, r.open(t, r.token), proposal("first"))
	const stranger, reader = "stranger", "reader"
	for _, user := range []string{stranger, reader} {
		status, raw := r.try(t, admin, http.MethodPost, "/admin/users", map[string]any{
			"username": user, "email": user + "@example.com", "password": password, "must_change_password": false,
		})
		if status != http.StatusCreated && !strings.Contains(string(raw), "already exists") {
			t.Fatalf("create %s: %d %s", user, status, raw)
		}
	}
	r.ask(t, admin, http.MethodPut, r.path+"/collaborators/"+reader, map[string]string{"permission": "read"}, nil, http.StatusNoContent)
	for _, c := range []struct {
		name, token string
		// reads is whether the repo can be seen.
		reads bool
	}{
		{"no such token", strings.Repeat("0123456789", 4), false},
		{"a token to read with", r.newToken(t, guest, "read:repository", "read:issue"), true},
		{"a token for something else", r.newToken(t, guest, "write:user"), false},
		{"somebody who may only read", r.newToken(t, reader, "write:repository", "write:issue"), true},
		{"somebody who may not see the repo", r.newToken(t, stranger, "write:repository", "write:issue"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := r.open(t, c.token)
			found, err := f.Find(t.Context(), p.Branch)
			if c.reads && (err != nil || found != p) || !c.reads && !errors.Is(err, forge.ErrDenied) {
				t.Errorf("found %+v, %v", found, err)
			}
			if _, err := f.Find(t.Context(), "kokoa/register/nobody"); c.reads && !errors.Is(err, forge.ErrNoPull) || !c.reads && !errors.Is(err, forge.ErrDenied) {
				t.Errorf("found what is not there: %v", err)
			}
			other := proposal("second")
			other.Branch = "kokoa/register/other"
			for _, q := range []forge.Proposal{proposal("second"), other} {
				if _, err := f.Propose(t.Context(), q); !errors.Is(err, forge.ErrDenied) {
					t.Errorf("proposed %s: %v", q.Branch, err)
				}
			}
			if err := f.Merge(t.Context(), p); !errors.Is(err, forge.ErrDenied) && !(c.reads && errors.Is(err, forge.ErrProtected)) {
				t.Errorf("merged: %v", err)
			}
			if err := f.Close(t.Context(), p, "No."); !errors.Is(err, forge.ErrDenied) {
				t.Errorf("closed: %v", err)
			}
		})
	}
	if got, err := r.open(t, r.token).Find(t.Context(), p.Branch); err != nil || got != p {
		t.Errorf("it was %+v, and is %+v, %v", p, got, err)
	}
	if got := r.person.Branches(t); !slices.Equal(got, []string{p.Branch, base}) {
		t.Errorf("branches: %q", got)
	}
}

// What people write over a pull request's text stays until the proposal says
// something else.
func TestEditedText(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	p := propose(t, f, proposal("first"))
	r.edit(t, p, map[string]string{"title": "Add the Pi at home", "body": "Mika knows it."})
	people := func(title, body string) {
		t.Helper()
		if got := r.requests(t); len(got) != 1 || got[0].Number != p.Number || got[0].Title != title || got[0].Body != body {
			t.Errorf("people see %+v", got)
		}
	}
	if again := propose(t, f, proposal("first")); again != p {
		t.Errorf("proposed as %+v, and again as %+v", p, again)
	}
	people("Add the Pi at home", "Mika knows it.")

	r.person.Commit(t, base, "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
	propose(t, f, proposal("first"))
	propose(t, f, proposal("second"))
	people("Add the Pi at home", "Mika knows it.")

	flagged := proposal("second")
	flagged.Body = "Careful: the name has another key."
	propose(t, f, flagged)
	people(flagged.Title, flagged.Body)
}

// What an end halfway left is taken up, and nothing else stays.
func TestLeftovers(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	p := propose(t, f, proposal("first"))
	r.person.Commit(t, p.Branch+".next", "Half", forge.File{Path: "half.cue", Content: []byte("half")})
	r.person.Commit(t, base, "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
	again := propose(t, f, proposal("first"))
	got, _ := r.person.Read(t, p.Branch)
	head, _ := r.person.Read(t, base)
	want := maps.Clone(head.Files)
	want["origins/rpi-home.cue"] = "first"
	if again.Number != p.Number || got.Hash != again.Head || !slices.Equal(got.Parents, []string{head.Hash}) || !maps.Equal(got.Files, want) {
		t.Errorf("proposed again as %+v: %+v", again, got)
	}
	if got := r.person.Branches(t); !slices.Equal(got, []string{p.Branch, base}) {
		t.Errorf("branches: %q", got)
	}
}

// Every moment in which the control plane may end is one that it can go on from: the
// n-th call and all after it fail, for every n.
func TestEndHalfway(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	first := propose(t, f, proposal("first"))
	r.person.Commit(t, base, "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
	changed := proposal("second")
	changed.Title = "Add origin rpi-home, again"
	for calls := 0; ; calls++ {
		left := calls
		cut := r.openHTTP(t, r.token, func(req *http.Request) (*http.Response, error) {
			if left--; left < 0 {
				return nil, errors.New("the cable was cut")
			}
			return http.DefaultTransport.RoundTrip(req)
		})
		p, err := cut.Propose(t.Context(), changed)
		if err == nil {
			if p.Number != first.Number {
				t.Errorf("proposed as %+v, and in the end as %+v", first, p)
			}
			t.Logf("it takes %d calls", calls)
			break
		}
		if calls > 40 {
			t.Fatal(err)
		}
		// Nothing else was opened or closed.
		if got := r.requests(t); len(got) != 1 || got[0].Number != first.Number {
			t.Fatalf("after %d calls people see %+v", calls, got)
		}
	}
	got, _ := r.person.Read(t, first.Branch)
	if got.Files["origins/rpi-home.cue"] != "second" {
		t.Errorf("the branch has %q", got.Files)
	}
	if got := r.requests(t); len(got) != 1 || got[0].Title != changed.Title {
		t.Errorf("people see %+v", got)
	}
	if got := r.person.Branches(t); !slices.Equal(got, []string{first.Branch, base}) {
		t.Errorf("branches: %q", got)
	}
}

// What others do between any look and what follows from it costs nothing of theirs,
// and in the end the proposal stands on the base branch's head.
func TestRaces(t *testing.T) {
	const (
		write   = "POST /contents"
		push    = "POST .git/git-receive-pack"
		request = "POST /pulls"
	)
	commit := func(branch, path, content string) func(*testing.T, *repo) {
		return func(t *testing.T, r *repo) {
			r.person.Commit(t, branch, "Meanwhile", forge.File{Path: path, Content: []byte(content)})
		}
	}
	branch := proposal("").Branch
	for _, c := range []struct {
		name, before string
		// again is whether the proposal was there, and the base branch moved since.
		again bool
		do    func(*testing.T, *repo)
	}{
		{"the base branch moves", write, false, commit(base, "moved.cue", "on")},
		{"the base branch gets the file", write, false, commit(base, "origins/rpi-home.cue", "theirs")},
		{"the branch is made", write, false, commit(branch, "half.cue", "half")},
		{"another process proposes", write, false, func(t *testing.T, r *repo) { propose(t, r.open(t, r.token), proposal("second")) }},
		{"another process asks", request, false, func(t *testing.T, r *repo) { propose(t, r.open(t, r.token), proposal("second")) }},
		{"the branch goes", request, false, func(t *testing.T, r *repo) {
			r.person.Delete(t, forge.Pull{Branch: branch})
		}},
		{"the base branch moves again", write, true, commit(base, "moved.cue", "further")},
		{"others push", push, true, commit(branch, "more.cue", "theirs")},
		{"the base branch moves later", push, true, commit(base, "moved.cue", "further")},
		{"another process moves it", push, true, func(t *testing.T, r *repo) { propose(t, r.open(t, r.token), proposal("second")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRepo(t)
			if c.again {
				propose(t, r.open(t, r.token), proposal("first"))
				r.person.Commit(t, base, "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
			}
			done := false
			f := r.openHTTP(t, r.token, func(req *http.Request) (*http.Response, error) {
				_, at, _ := strings.Cut(req.URL.Path, "/"+r.name)
				if !done && req.Method+" "+at == c.before {
					done = true
					c.do(t, r)
				}
				return http.DefaultTransport.RoundTrip(req)
			})
			p := propose(t, f, proposal("second"))
			if !done {
				t.Fatalf("there was no %s", c.before)
			}
			if again := propose(t, f, proposal("second")); again.Number != p.Number {
				t.Errorf("proposed as %+v, and again as %+v", p, again)
			}
			head, _ := r.person.Read(t, base)
			got, _ := r.person.Read(t, branch)
			want := maps.Clone(head.Files)
			want["origins/rpi-home.cue"] = "second"
			if !slices.Equal(got.Parents, []string{head.Hash}) || !maps.Equal(got.Files, want) {
				t.Errorf("the branch is %+v on %s", got, head.Hash)
			}
			if open := r.requests(t); len(open) != 1 || open[0].Number != p.Number {
				t.Errorf("people see %+v", open)
			}
			if got := r.person.Branches(t); !slices.Equal(got, []string{branch, base}) {
				t.Errorf("branches: %q", got)
			}
		})
	}
}

// What is merged is what was looked at, to the last moment.
func TestMergeRaces(t *testing.T) {
	branch := proposal("").Branch
	for name, do := range map[string]func(*testing.T, *repo){
		"others push": func(t *testing.T, r *repo) {
			r.person.Commit(t, branch, "Slip in", forge.File{Path: "origins/evil.cue", Content: []byte("evil")})
		},
		"the base branch gets the file": func(t *testing.T, r *repo) {
			r.person.Commit(t, base, "Meanwhile", forge.File{Path: "origins/rpi-home.cue", Content: []byte("theirs")})
		},
		"it is closed": func(t *testing.T, r *repo) {
			for _, p := range r.requests(t) {
				r.edit(t, forge.Pull{Number: p.Number}, map[string]string{"state": "closed"})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			p := propose(t, r.open(t, r.token), proposal("first"))
			done := false
			f := r.openHTTP(t, r.token, func(req *http.Request) (*http.Response, error) {
				if !done && req.Method == http.MethodPost {
					done = true
					do(t, r)
				}
				return http.DefaultTransport.RoundTrip(req)
			})
			if err := f.Merge(t.Context(), p); !errors.Is(err, forge.ErrConflict) {
				t.Errorf("merged: %v", err)
			}
			if got, _ := r.person.Read(t, base); !done || got.Files["origins/evil.cue"] != "" || got.Files["origins/rpi-home.cue"] == "first" {
				t.Errorf("the base branch has %q", got.Files)
			}
		})
	}
}

// Files that were read at a commit that is no longer the head undo nobody's work.
func TestBase(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	p := proposal("first")
	head, _ := r.person.Read(t, base)
	p.Base = head.Hash
	first := propose(t, f, p)
	r.person.Commit(t, base, "Meanwhile", forge.File{Path: "origins/rpi-home.cue", Content: []byte("theirs")})
	if _, err := f.Propose(t.Context(), p); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("proposed what was read before: %v", err)
	}
	if got, _ := r.person.Read(t, p.Branch); got.Hash != first.Head {
		t.Errorf("the branch moved to %+v", got)
	}
}

// A rule for all branches forbids to propose.
func TestProtectedBranches(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	r.ask(t, admin, http.MethodPost, r.path+"/branch_protections", map[string]any{"rule_name": "kokoa/**", "enable_push": false}, nil, http.StatusCreated)
	if _, err := f.Propose(t.Context(), proposal("first")); !errors.Is(err, forge.ErrProtected) {
		t.Errorf("proposed: %v", err)
	}
}

// A branch of the same name in somebody's fork is not ours.
func TestFork(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	fork := *r
	r.ask(t, guest, http.MethodPost, r.path+"/forks", map[string]string{"name": r.name + "-fork"}, nil, http.StatusAccepted)
	fork.person.Remote = strings.ReplaceAll(r.person.Remote, admin+"/"+r.name, guest+"/"+r.name+"-fork")
	fork.person.Remote = strings.Replace(fork.person.Remote, "//"+admin+":", "//"+guest+":", 1)
	branch := proposal("").Branch
	fork.person.Commit(t, branch, "Slip in", forge.File{Path: "origins/evil.cue", Content: []byte("evil")})
	r.ask(t, guest, http.MethodPost, r.path+"/pulls", map[string]string{
		"base": base, "head": guest + ":" + branch, "title": "Add origin rpi-home", "body": "Please.",
	}, nil, http.StatusCreated)

	if found, err := f.Find(t.Context(), branch); !errors.Is(err, forge.ErrNoPull) {
		t.Errorf("found %+v, %v", found, err)
	}
	first := propose(t, f, proposal("first"))
	if err := f.Close(t.Context(), first, "No."); err != nil {
		t.Fatal(err)
	}
	if found, err := f.Find(t.Context(), branch); err != nil || found.Number != first.Number || found.State != forge.Closed {
		t.Errorf("found %+v, %v", found, err)
	}
	second := propose(t, f, proposal("second"))
	if found, err := f.Find(t.Context(), branch); err != nil || found != second {
		t.Errorf("found %+v, %v", found, err)
	}
	if err := f.Merge(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.person.Read(t, base); got.Files["origins/evil.cue"] != "" || got.Files["origins/rpi-home.cue"] != "second" {
		t.Errorf("the base branch has %q", got.Files)
	}
}

// The server closes a pull request some time after its branch was removed, and does not
// look whether that is there again. Such a mistake is undone, and what people closed
// stays closed.
func TestLateClosing(t *testing.T) {
	for _, c := range []struct {
		by   string
		want forge.State
	}{{guest, forge.Open}, {admin, forge.Closed}} {
		t.Run(c.by, func(t *testing.T) {
			r := newRepo(t)
			f := r.open(t, r.token)
			p := propose(t, f, proposal("first"))
			end := func() {
				t.Helper()
				r.ask(t, c.by, http.MethodDelete, r.path+"/branches/"+p.Branch, nil, nil, http.StatusNoContent)
				eventually(t, func() error {
					if open := r.requests(t); len(open) > 0 {
						return fmt.Errorf("people see %+v", open)
					}
					return nil
				})
				r.ask(t, c.by, http.MethodPost, r.path+"/branches", map[string]string{"new_branch_name": p.Branch, "old_ref_name": p.Head}, nil, http.StatusCreated)
			}
			end()
			if found, err := f.Find(t.Context(), p.Branch); err != nil || found.Number != p.Number || found.Head != p.Head || found.State != c.want {
				t.Errorf("found %+v, %v; want it %s", found, err, c.want)
			}
			if c.want == forge.Closed {
				return
			}
			end()
			if again := propose(t, f, proposal("first")); again != p {
				t.Errorf("proposed as %+v, and again as %+v", p, again)
			}
			r.edit(t, p, map[string]string{"state": "closed"})
			if found, err := f.Find(t.Context(), p.Branch); err != nil || found.State != forge.Closed {
				t.Errorf("a person closed it, and it is %+v, %v", found, err)
			}
			r.edit(t, p, map[string]string{"state": "open"})
			end()
			if err := f.Merge(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
}

// Why one was closed can be read there.
func TestComment(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	p := propose(t, f, proposal("first"))
	for range 2 {
		if err := f.Close(t.Context(), p, "The token was **revoked**."); err != nil {
			t.Fatal(err)
		}
	}
	var comments []struct{ Body string }
	r.ask(t, admin, http.MethodGet, fmt.Sprintf("%s/issues/%d/comments", r.path, p.Number), nil, &comments, http.StatusOK)
	if len(comments) != 1 || comments[0].Body != "The token was **revoked**." {
		t.Errorf("comments: %+v", comments)
	}
	merged := propose(t, f, proposal("first"))
	if err := f.Merge(t.Context(), merged); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(t.Context(), merged, "Too late."); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("closed what is merged: %v", err)
	}
}

// A repo whose pull requests are switched off says so, soon.
func TestNoPulls(t *testing.T) {
	r := newRepo(t)
	r.ask(t, admin, http.MethodPatch, r.path, map[string]any{"has_pull_requests": false}, nil, http.StatusOK)
	f := r.open(t, r.token)
	_, proposed := f.Propose(t.Context(), proposal("first"))
	_, found := f.Find(t.Context(), proposal("").Branch)
	for _, err := range []error{proposed, found} {
		if err == nil || errors.Is(err, forge.ErrNoPull) || !strings.Contains(err.Error(), "no pull requests: switch them on") {
			t.Errorf("without pull requests: %v", err)
		}
	}
}

// A server that is killed in the middle of something is trouble that passes, and what
// was there is found again.
func TestKilled(t *testing.T) {
	r := newRepo(t)
	f := r.open(t, r.token)
	p := propose(t, f, proposal("first"))
	r.kill()
	if err := f.Merge(context.WithoutCancel(t.Context()), p); err == nil || errors.Is(err, forge.ErrConflict) {
		t.Errorf("merged at a server that is gone: %v", err)
	}
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	if found, err := f.Find(t.Context(), p.Branch); err != nil || found != p {
		t.Errorf("found %+v, %v", found, err)
	}
	if err := f.Merge(t.Context(), p); err != nil {
		t.Error(err)
	}
}

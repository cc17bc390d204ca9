package github_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/forgetest"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github/githubtest"
)

const (
	repoPath  = "/repos/acme/fleet"
	pullsPath = repoPath + "/pulls"
)

func proposal(name, content string) forge.Proposal {
	return forge.Proposal{
		Branch: "kokoa/register/" + name, Title: "Add origin " + name, Body: "It asked to join.",
		Files: []forge.File{{Path: "origins/" + name + ".cue", Content: []byte(content)}},
	}
}

func propose(t *testing.T, f *github.Forge, p forge.Proposal) forge.Pull {
	t.Helper()
	pull, err := f.Propose(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return pull
}

// Every request counts against an hour's budget, which a fleet shares with whatever
// else its token is for.
func TestRequests(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	var pull forge.Pull
	ref := repoPath + "/git/refs/heads/kokoa/register/rpi-home"
	compare := "GET " + repoPath + "/compare/main...kokoa/register/rpi-home"
	write := []string{"POST " + repoPath + "/git/trees", "POST " + repoPath + "/git/commits"}
	for _, step := range []struct {
		name  string
		do    func() error
		calls []string
	}{
		{"propose", func() (err error) { pull, err = f.Propose(t.Context(), proposal("rpi-home", "first")); return err },
			slices.Concat([]string{"GET " + pullsPath, "GET " + repoPath + "/branches/main"}, write, []string{"POST " + repoPath + "/git/refs", "POST " + pullsPath})},
		{"propose again", func() error { _, err := f.Propose(t.Context(), proposal("rpi-home", "first")); return err },
			[]string{"GET " + pullsPath, compare}},
		{"find", func() error { _, err := f.Find(t.Context(), pull.Branch); return err },
			[]string{"GET " + pullsPath}},
		{"propose another content", func() error { _, err := f.Propose(t.Context(), proposal("rpi-home", "second")); return err },
			slices.Concat([]string{"GET " + pullsPath, compare}, write, []string{"PATCH " + ref})},
		{"propose on a base branch that moved", func() (err error) {
			person.Commit(t, "main", "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
			pull, err = f.Propose(t.Context(), proposal("rpi-home", "second"))
			return err
		}, slices.Concat([]string{"GET " + pullsPath, compare}, write, []string{"PATCH " + ref})},
		{"propose another text", func() (err error) {
			p := proposal("rpi-home", "second")
			p.Body = "Another."
			pull, err = f.Propose(t.Context(), p)
			return err
		}, slices.Concat([]string{"GET " + pullsPath, compare}, write, []string{"PATCH " + ref, "PATCH " + pullsPath + "/1"})},
		{"merge", func() error { return f.Merge(t.Context(), pull) },
			[]string{"GET " + pullsPath + "/1", "PUT " + pullsPath + "/1/merge", "DELETE " + ref}},
		{"merge again", func() error { return f.Merge(t.Context(), pull) },
			[]string{"GET " + pullsPath + "/1", "GET " + strings.Replace(ref, "refs", "ref", 1)}},
		{"propose after that", func() (err error) { pull, err = f.Propose(t.Context(), proposal("rpi-home", "third")); return err },
			slices.Concat([]string{"GET " + pullsPath, "GET " + repoPath + "/branches/main"}, write, []string{"POST " + repoPath + "/git/refs", "POST " + pullsPath})},
		{"close", func() error { return f.Close(t.Context(), pull, "It is over.") },
			[]string{"GET " + pullsPath + "/2", "POST " + repoPath + "/issues/2/comments", "PATCH " + pullsPath + "/2", "DELETE " + ref}},
	} {
		s.Calls()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if calls := s.Calls(); !slices.Equal(calls, step.calls) {
			t.Errorf("%s asked\n\t%s\nwant\n\t%s", step.name, strings.Join(calls, "\n\t"), strings.Join(step.calls, "\n\t"))
		}
	}
	if got := s.Pulls(t)[1].Comments; !slices.Equal(got, []string{"It is over."}) {
		t.Errorf("comments %q", got)
	}
}

// Looking again and again at what does not change costs nothing.
func TestFindCostsNothing(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("rpi-home", "first"))
	first, err := f.Find(t.Context(), pull.Branch)
	if err != nil || first != pull {
		t.Fatal(first, err)
	}
	spent := s.Spent()
	for range 20 {
		if again, err := f.Find(t.Context(), pull.Branch); err != nil || again != first {
			t.Fatal(again, err)
		}
	}
	if now := s.Spent(); now != spent {
		t.Errorf("20 looks cost %d requests", now-spent)
	}
	s.Merge(t, pull.Number)
	if merged, err := f.Find(t.Context(), pull.Branch); err != nil || merged.State != forge.Merged {
		t.Error(merged, err)
	}
}

// Lists lack for a moment what was just opened, and a new branch is not seen at
// once. There is one pull request all the same, and everybody is told of it.
func TestLate(t *testing.T) {
	s := githubtest.New(t)
	s.Lag(3, 2)
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("rpi-home", "first"))
	if found, err := f.Find(t.Context(), pull.Branch); err != nil || found != pull {
		t.Errorf("found %+v, %v", found, err)
	}
	for name, f := range map[string]*github.Forge{"the same": f, "another": open(t, byToken(s))} {
		if again := propose(t, f, proposal("rpi-home", "first")); again != pull {
			t.Errorf("%s process proposed %+v, then %+v", name, pull, again)
		}
	}
	if n := len(s.Pulls(t)); n != 1 {
		t.Errorf("there are %d pull requests", n)
	}
}

// A list that lags for good leaves an error, and not a second pull request.
func TestLateForGood(t *testing.T) {
	s := githubtest.New(t)
	s.Lag(1000, 0)
	pull := propose(t, open(t, byToken(s)), proposal("rpi-home", "first"))
	again, err := open(t, byToken(s)).Propose(t.Context(), proposal("rpi-home", "first"))
	if err == nil || !strings.Contains(err.Error(), "A pull request already exists for acme:kokoa/register/rpi-home") {
		t.Error(again, err)
	}
	if all := s.Pulls(t); len(all) != 1 || all[0].Head != pull.Head {
		t.Errorf("there are %+v", all)
	}
}

// Proposals of different branches may be made at once, and GitHub is asked for one
// after the other.
func TestAtOnce(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			p := proposal(fmt.Sprint("vm", i), "new")
			if pull, err := f.Propose(t.Context(), p); err != nil || pull.Branch != p.Branch {
				t.Error(pull, err)
			}
		})
	}
	all.Wait()
	if n := len(s.Pulls(t)); n != 8 {
		t.Errorf("there are %d pull requests", n)
	}
}

// A file that moves is one rename to GitHub, and what is no text takes a blob.
func TestOtherFiles(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	text := []byte(strings.Repeat("as it was\n", 50))
	person.Commit(t, "main", "Fill", forge.File{Path: "origins/old.cue", Content: text})
	for _, p := range []forge.Proposal{
		{Branch: "kokoa/move", Title: "Move", Body: "b", Files: []forge.File{{Path: "origins/old.cue"}, {Path: "origins/new.cue", Content: text}}},
		{Branch: "kokoa/binary", Title: "Binary", Body: "b", Files: []forge.File{{Path: "data", Content: []byte{0xff, 0x00, 0xfe, '\n'}}}},
		{Branch: "kokoa/nothing", Title: "Nothing", Body: "b"},
	} {
		pull := propose(t, f, p)
		s.Calls()
		if again := propose(t, f, p); again != pull {
			t.Errorf("%s: proposed %+v, then %+v", p.Title, pull, again)
		}
		if calls := s.Calls(); len(calls) != 2 {
			t.Errorf("%s: proposing again asked %q", p.Title, calls)
		}
		got, _ := person.Read(t, p.Branch)
		for _, file := range p.Files {
			if content, ok := got.Files[file.Path]; ok != (file.Content != nil) || content != string(file.Content) {
				t.Errorf("%s: %s holds %q", p.Title, file.Path, content)
			}
		}
	}
}

// What is no pull request of ours is passed over: that of a fork with the same
// name of its branch, and whatever GitHub lists when it does not take the question.
func TestNotOurs(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("rpi-home", "first"))
	other := func(number, ref, base string, repo int) string {
		return fmt.Sprintf(`{"number":%s,"state":"open","head":{"ref":%q,"sha":%q,"repo":{"id":%d}},"base":{"ref":%q,"repo":{"id":1}}}`,
			number, ref, strings.Repeat("a", 40), repo, base)
	}
	s.Next("GET", pullsPath, githubtest.Answer{
		Status: 200,
		Body:   "[" + other("11", pull.Branch, "main", 2) + "," + other("12", "else", "main", 1) + "," + other("13", pull.Branch, "else", 1) + "]",
		Header: map[string]string{"Link": "<" + s.URL + `repos/acme/fleet/pulls?page=2>; rel="next"`},
	})
	s.Next("GET", pullsPath, githubtest.Answer{Status: 200, Body: "[" + other("14", pull.Branch, "main", 1) + "]"})
	if found, err := f.Find(t.Context(), pull.Branch); err != nil || found.Number != 14 {
		t.Error(found, err)
	}
}

// The way to merge that a repo allows is found, and remembered.
func TestMethods(t *testing.T) {
	for _, method := range []string{"merge", "squash", "rebase"} {
		s := githubtest.New(t)
		s.Methods(method)
		s.DeleteMerged()
		f := open(t, byToken(s))
		for _, name := range []string{"vm1", "vm2"} {
			pull := propose(t, f, proposal(name, "new"))
			s.Calls()
			if err := f.Merge(t.Context(), pull); err != nil {
				t.Fatalf("%s: %v", method, err)
			}
			if calls := s.Calls(); name == "vm2" && len(calls) != 3 {
				t.Errorf("%s: merging asked %q", method, calls)
			}
		}
		base, _ := forgetest.Person{Remote: s.Dir, Base: s.Branch}.Read(t, "main")
		if base.Files["origins/vm1.cue"] != "new" || base.Files["origins/vm2.cue"] != "new" {
			t.Errorf("%s: the base branch has %q", method, base.Files)
		}
	}
	s := githubtest.New(t)
	s.Methods()
	f := open(t, byToken(s))
	if err := f.Merge(t.Context(), propose(t, f, proposal("vm1", "new"))); !errors.Is(err, forge.ErrProtected) {
		t.Errorf("with no way at all: %v", err)
	}
}

// Another's merge that comes between is waited for; one after the other is not.
func TestBaseModified(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	s.Modified(2)
	if err := f.Merge(t.Context(), propose(t, f, proposal("vm1", "new"))); err != nil {
		t.Errorf("merged after two others: %v", err)
	}
	pull := propose(t, f, proposal("vm2", "new"))
	s.Modified(100)
	if err := f.Merge(t.Context(), pull); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("merged after a hundred others: %v", err)
	}
	s.Modified(0)
	if err := f.Merge(t.Context(), propose(t, f, proposal("vm2", "new"))); err != nil {
		t.Error(err)
	}
}

// GitHub answers 405 to whatever hinders a merge; the pull request's state tells
// what proposing again can mend from what a person must do.
func TestRefusedMerges(t *testing.T) {
	for _, words := range []string{
		"At least 1 approving review is required by reviewers with write access.",
		"Required status check \"ci\" is expected.",
		"2 of 3 required status checks have not succeeded: 1 pending.",
		"Changes must be made through the merge queue",
		"Repository rule violations found\n\nWaiting on code owner review from acme/network.",
		"Pull Request is not mergeable", // as to drafts
	} {
		s := githubtest.New(t)
		s.Protect(words)
		f := open(t, byToken(s))
		err := f.Merge(t.Context(), propose(t, f, proposal("vm1", "new")))
		if !errors.Is(err, forge.ErrProtected) || !strings.Contains(err.Error(), strings.Fields(words)[0]) {
			t.Errorf("%q: %v", words, err)
		}
	}

	// Rules that ask for the newest base branch below it.
	s := githubtest.New(t)
	s.Strict()
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("vm1", "new"))
	forgetest.Person{Remote: s.Dir, Base: s.Branch}.Commit(t, "main", "Move on", forge.File{Path: "moved.cue", Content: []byte("on")})
	for range 2 { // GitHub says "unknown" to the first look
		if err := f.Merge(t.Context(), pull); errors.Is(err, forge.ErrConflict) {
			break
		} else if !errors.Is(err, forge.ErrProtected) {
			t.Fatal(err)
		}
	}
	if err := f.Merge(t.Context(), propose(t, f, proposal("vm1", "new"))); err != nil {
		t.Error(err)
	}
}

// A branch that holds another proposal by now is not taken away with the last one.
func TestSweep(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	first := propose(t, f, proposal("vm1", "first"))
	s.Merge(t, first.Number)
	if _, ok := person.Read(t, first.Branch); !ok {
		t.Fatal("the branch is gone when a person merged")
	}
	if err := f.Merge(t.Context(), first); err != nil {
		t.Error(err)
	}
	if _, ok := person.Read(t, first.Branch); ok {
		t.Error("the branch is still there")
	}
	second := propose(t, f, proposal("vm1", "second"))
	for _, err := range []error{f.Merge(t.Context(), first), f.Merge(t.Context(), second)} {
		if err != nil {
			t.Error(err)
		}
	}
	third := propose(t, f, proposal("vm1", "third"))
	if err := f.Close(t.Context(), first, "no"); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("close what is merged: %v", err)
	}
	if got, _ := person.Read(t, third.Branch); got.Hash != third.Head {
		t.Error("the branch of another proposal is gone")
	}
}

// A rule that keeps branches is no failure of what was asked for.
func TestBranchKept(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("vm1", "new"))
	s.Next("DELETE", repoPath+"/git/refs/heads/"+pull.Branch, githubtest.Answer{
		Status: 422, Body: `{"message":"Repository rule violations found\n\nCannot delete this branch\n\n","status":"422"}`})
	if err := f.Merge(t.Context(), pull); err != nil {
		t.Error(err)
	}
	if got := s.Pulls(t)[0].State; got != "merged" {
		t.Error(got)
	}
}

// Somebody made it a pull request to another branch: that is not what was proposed.
func TestRetargeted(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	person.Commit(t, "production", "Begin", forge.File{Path: "a", Content: []byte("a")})
	pull := propose(t, f, proposal("vm1", "new"))
	s.Retarget(t, pull.Number, "production")
	for _, err := range []error{f.Merge(t.Context(), pull), f.Close(t.Context(), pull, "no")} {
		if !errors.Is(err, forge.ErrConflict) {
			t.Error(err)
		}
	}
	if got, _ := person.Read(t, "production"); got.Files["origins/vm1.cue"] != "" {
		t.Error("it was merged")
	}
}

// stale is how GitHub shows an open pull request that may be no longer so.
func stale(p forge.Pull) string {
	return fmt.Sprintf(`{"number":%d,"state":"open","title":"Add origin vm1","body":"It asked to join.","mergeable":null,
		"head":{"ref":%q,"sha":%q,"repo":{"id":1}},"base":{"ref":"main","repo":{"id":1}}}`, p.Number, p.Branch, p.Head)
}

// Somebody is faster, or GitHub tells what was a moment ago.
func TestStale(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	show := func(p forge.Pull) {
		s.Next("GET", fmt.Sprintf("%s/%d", pullsPath, p.Number), githubtest.Answer{Status: 200, Body: stale(p)})
	}
	list := func(p forge.Pull) {
		s.Next("GET", pullsPath, githubtest.Answer{Status: 200, Body: "[" + stale(p) + "]"})
	}

	first := propose(t, f, proposal("vm1", "first"))
	s.Merge(t, first.Number)
	show(first)
	if err := f.Merge(t.Context(), first); err != nil {
		t.Errorf("merge what a person has just merged: %v", err)
	}
	if _, ok := person.Read(t, first.Branch); ok {
		t.Error("the branch is still there")
	}

	second := propose(t, f, proposal("vm1", "second"))
	s.Close(t, second.Number)
	show(second)
	if err := f.Merge(t.Context(), second); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("merge what a person has just closed: %v", err)
	}

	// GitHub has not looked whether it can be merged.
	third := propose(t, f, proposal("vm1", "third"))
	s.Next("PUT", fmt.Sprintf("%s/%d/merge", pullsPath, third.Number), githubtest.Answer{Status: 405, Body: `{"message":"Pull Request is not mergeable"}`})
	show(third)
	show(third)
	if err := f.Merge(t.Context(), third); err != nil {
		t.Errorf("merge what GitHub did not know: %v", err)
	}

	// What lists show as open is merged, and its branch is gone.
	list(third)
	fourth := propose(t, f, proposal("vm1", "fourth"))
	if fourth.Number != third.Number+1 {
		t.Errorf("proposed %+v, then %+v", third, fourth)
	}
	// It is closed, and its branch is there still: its new text says so.
	s.Close(t, fourth.Number)
	list(fourth)
	changed := proposal("vm1", "fifth")
	changed.Body = "It asked again."
	if fifth := propose(t, f, changed); fifth.Number != fourth.Number+1 {
		t.Errorf("proposed %+v, then %+v", fourth, fifth)
	}
}

// A proposal that was read at one commit is not put on another.
func TestBase(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	p := proposal("vm1", "new")
	was, _ := person.Read(t, "main")
	p.Base = person.Commit(t, "main", "Move on", forge.File{Path: "a", Content: []byte("a")})
	for _, base := range []string{was.Hash, p.Base, ""} {
		for _, opened := range []bool{false, true} {
			q := p
			q.Base, q.Branch = base, fmt.Sprintf("%s-%.4s", p.Branch, base)
			if opened {
				q.Base = ""
				propose(t, f, q)
				q.Base = base
			}
			if _, err := f.Propose(t.Context(), q); errors.Is(err, forge.ErrConflict) != (base == was.Hash) {
				t.Errorf("read at %.12s, opened before %v: %v", base, opened, err)
			}
		}
	}
}

// What changes all the time is left for another moment.
func TestRestless(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("vm1", "first"))
	for range 3 {
		s.Next("PATCH", repoPath+"/git/refs/heads/"+pull.Branch, githubtest.Answer{Status: 422, Body: `{"message":"Reference does not exist"}`})
	}
	if _, err := f.Propose(t.Context(), proposal("vm1", "second")); !errors.Is(err, forge.ErrConflict) {
		t.Error(err)
	}
	if again := propose(t, f, proposal("vm1", "second")); again.Number != pull.Number {
		t.Errorf("proposed %+v, then %+v", pull, again)
	}
	s.Next("POST", pullsPath, githubtest.Answer{Status: 422, Body: `{"message":"Validation Failed","errors":[{"resource":"PullRequest","code":"custom","message":"No commits between main and kokoa/register/vm2"}]}`})
	if _, err := f.Propose(t.Context(), proposal("vm2", "new")); !errors.Is(err, forge.ErrConflict) {
		t.Error(err)
	}
}

// A pull request without its head is not merged: GitHub would take any.
func TestMergeWithoutHead(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	pull := propose(t, f, proposal("vm1", "new"))
	pull.Head = ""
	if err := f.Merge(t.Context(), pull); !errors.Is(err, forge.ErrConflict) {
		t.Error(err)
	}
}

// What is merged reaches the control plane by Git, from the same place.
func TestFetchWhatIsMerged(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byApp(s))
	if err := f.Merge(t.Context(), propose(t, f, proposal("vm1", "new"))); err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]error{s.Token: nil, "wrong": repo.ErrDenied} {
		source, err := repo.Open(s.CloneURL, repo.Options{CacheDir: t.TempDir(), Auth: repo.Auth{Password: password}})
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		rev, err := source.Fetch(t.Context())
		if !errors.Is(err, want) {
			t.Fatal(err)
		}
		if err == nil {
			if text, err := rev.Read("origins/vm1.cue"); err != nil || string(text) != "new" {
				t.Errorf("read %q, %v", text, err)
			}
		}
	}
	person := s.Person() // pushes through HTTP
	pushed := person.Commit(t, "main", "By hand", forge.File{Path: "hand.cue", Content: []byte("hand")})
	if got, _ := person.Read(t, "main"); got.Hash != pushed {
		t.Errorf("pushed %s, and read %s", pushed, got.Hash)
	}
}

// A caller that does not want to wait any longer need not, and the next one begins
// where GitHub stands.
func TestSlow(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	s.Slow(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := f.Propose(ctx, proposal("vm1", "new")); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.Slow(0)
	propose(t, f, proposal("vm1", "new"))
}

// However far a proposal got before its end, the next one completes it.
func TestInterrupted(t *testing.T) {
	whole := []string{"GET " + pullsPath, "GET " + repoPath + "/branches/main", "POST " + repoPath + "/git/trees",
		"POST " + repoPath + "/git/commits", "POST " + repoPath + "/git/refs", "POST " + pullsPath}
	for _, step := range whole {
		method, path, _ := strings.Cut(step, " ")
		s := githubtest.New(t)
		f := open(t, byToken(s))
		s.Next(method, path, githubtest.Answer{Status: http.StatusBadGateway, Body: `"gone"`})
		if _, err := f.Propose(t.Context(), proposal("vm1", "new")); err == nil || !strings.Contains(err.Error(), "502") {
			t.Errorf("%s: %v", step, err)
		}
		pull := propose(t, f, proposal("vm1", "new"))
		if all := s.Pulls(t); len(all) != 1 || all[0].Head != pull.Head || pull.Number != 1 {
			t.Errorf("after an end at %s there are %+v", step, all)
		}
	}
}

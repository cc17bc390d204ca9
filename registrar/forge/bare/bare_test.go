package bare_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/bare"
	"github.com/kokoa-proxy/kokoa/registrar/forge/forgetest"
)

func TestSuite(t *testing.T) {
	forgetest.Run(t, func(t *testing.T) forgetest.Place { return place(t, forgetest.NewBare(t, "main")) })
}

// Git packs refs and objects when it likes, and a branch may have a slash.
func TestSuitePacked(t *testing.T) {
	forgetest.Run(t, func(t *testing.T) forgetest.Place {
		dir := forgetest.NewBare(t, "team/fleet")
		p := place(t, dir)
		pack := func() {
			git(t, dir, "pack-refs", "--all")
			git(t, dir, "repack", "-adq")
		}
		commit, again, requests := p.Commit, p.Again, p.Requests
		p.Commit = func(t *testing.T, branch, message string, files ...forge.File) string {
			defer pack()
			return commit(t, branch, message, files...)
		}
		p.Again = func(t *testing.T) forge.Forge {
			pack()
			return again(t)
		}
		p.Requests = func(t *testing.T) []forgetest.Request {
			pack()
			return requests(t)
		}
		return p
	})
}

func place(t *testing.T, dir string) forgetest.Place {
	person := forgetest.Person{Remote: dir, Base: strings.TrimSpace(git(t, dir, "symbolic-ref", "--short", "HEAD"))}
	// No two commits of one second: the same twice would be the same commit.
	var seconds atomic.Int64
	now := func() time.Time { return time.Unix(1_800_000_000+seconds.Add(1), 0) }
	open := func(t *testing.T) forge.Forge {
		f, err := bare.Open(dir, person.Base, bare.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	return forgetest.Place{
		Forge:    open(t),
		Again:    open,
		Base:     person.Base,
		Commit:   person.Commit,
		Read:     person.Read,
		Descends: person.Descends,
		Merge:    person.Merge,
		Close:    person.Delete,
		Requests: func(t *testing.T) []forgetest.Request { return requests(t, dir) },
		Stop: func(t *testing.T) func() {
			rename(t, dir, dir+".away")
			return func() { rename(t, dir+".away", dir) }
		},
	}
}

// requests are the branches with what the base branch does not have.
func requests(t *testing.T, dir string) []forgetest.Request {
	t.Helper()
	var all []forgetest.Request
	for ref := range strings.SplitSeq(git(t, dir, "for-each-ref", "--no-merged=HEAD", "--format=%(refname:strip=2)%00%(contents)%01", "refs/heads"), "\x01\n") {
		if branch, message, ok := strings.Cut(ref, "\x00"); ok {
			title, body, _ := strings.Cut(message, "\n\n")
			all = append(all, forgetest.Request{Branch: branch, Title: title, Body: body})
		}
	}
	return all
}

// While people push, and Git packs, and two control planes propose and merge,
// nothing that anybody did is lost, and the repository stays whole.
func TestPushesAtOnce(t *testing.T) {
	const people, each = 2, 5
	dir := forgetest.NewBare(t, "main")
	begin := git(t, dir, "rev-parse", "main")
	ctx := t.Context()
	var work, packing sync.WaitGroup
	done := make(chan struct{})
	for i := range people {
		clone := filepath.Join(t.TempDir(), "clone")
		git(t, "", "clone", "--quiet", dir, clone)
		work.Go(func() {
			for n := range each {
				if err := push(ctx, clone, fmt.Sprintf("people/%d-%d.cue", i, n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 2 {
		f := open(t, dir)
		work.Go(func() {
			for n := range each {
				if err := proposeAndMerge(ctx, f, proposal(fmt.Sprintf("rpi-%d-%d", i, n))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	packing.Go(func() {
		for packed := time.Now(); ; {
			select {
			case <-done:
				return
			default:
			}
			// Either may lose to those that it is to disturb.
			_, _ = run(ctx, dir, "repack", "-dq")
			// Git tells versions of packed-refs apart by their size, inode and second:
			// when it packs more often than that, it loses pushes by itself.
			if time.Since(packed) > 1100*time.Millisecond {
				_, _ = run(ctx, dir, "pack-refs", "--all")
				packed = time.Now()
			}
		}
	})
	work.Wait()
	close(done)
	packing.Wait()

	git(t, dir, "fsck", "--strict")
	git(t, dir, "merge-base", "--is-ancestor", strings.TrimSpace(begin), "main")
	files := git(t, dir, "ls-tree", "-r", "--name-only", "main")
	for n := range each {
		for i := range people {
			if want := fmt.Sprintf("people/%d-%d.cue\n", i, n); !strings.Contains(files, want) {
				t.Errorf("lost %s", want)
			}
		}
		for i := range 2 {
			if want := fmt.Sprintf("origins/rpi-%d-%d.cue\n", i, n); !strings.Contains(files, want) {
				t.Errorf("lost %s", want)
			}
		}
	}
	if got := git(t, dir, "for-each-ref", "--format=%(refname)", "refs/heads"); got != "refs/heads/main\n" {
		t.Errorf("branches left: %s", got)
	}
	if locks, _ := filepath.Glob(filepath.Join(dir, "*.lock")); locks != nil {
		t.Errorf("locks left: %s", locks)
	}
}

// push pushes a file to main, as often as others are faster.
func push(ctx context.Context, clone, path string) error {
	for {
		for _, args := range [][]string{
			{"fetch", "--quiet"},
			{"reset", "--quiet", "--hard", "origin/main"},
		} {
			if out, err := run(ctx, clone, args...); err != nil {
				return fmt.Errorf("git %v: %w\n%s", args, err, out)
			}
		}
		if err := os.MkdirAll(filepath.Join(clone, filepath.Dir(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(clone, path), []byte(path), 0o644); err != nil {
			return err
		}
		for _, args := range [][]string{{"add", path}, {"commit", "--quiet", "-m", "Add " + path}} {
			if out, err := run(ctx, clone, args...); err != nil {
				return fmt.Errorf("git %v: %w\n%s", args, err, out)
			}
		}
		out, err := run(ctx, clone, "push", "--quiet", "origin", "HEAD:refs/heads/main")
		if err == nil {
			return nil
		}
		if !strings.Contains(out, "rejected") {
			return fmt.Errorf("push: %w\n%s", err, out)
		}
	}
}

func proposeAndMerge(ctx context.Context, f *bare.Forge, p forge.Proposal) error {
	for {
		pull, err := f.Propose(ctx, p)
		if err != nil {
			return err
		}
		if err := f.Merge(ctx, pull); !errors.Is(err, forge.ErrConflict) {
			return err
		}
	}
}

// Whoever holds a ref's lock is waited for, and nobody for ever.
func TestLocked(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	f := open(t, dir)
	pull, err := f.Propose(t.Context(), proposal("rpi-home"))
	if err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(dir, "refs/heads/main.lock")
	write(t, lock, "")

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.Merge(ctx, pull); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("merged in time: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		if err := f.Merge(t.Context(), pull); err == nil || !strings.Contains(err.Error(), lock) {
			t.Errorf("merged past a lock that nobody ends: %v", err)
		}
	})
	merged := make(chan error)
	go func() { merged <- f.Merge(t.Context(), pull) }()
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := <-merged; err != nil {
		t.Errorf("merge when the lock has ended: %v", err)
	}
	if p, err := f.Find(t.Context(), pull.Branch); err != nil || p.State != forge.Merged {
		t.Errorf("found %+v, %v", p, err)
	}
}

// A control plane that was killed halfway has lost nothing.
func TestKilled(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	first, err := open(t, dir).Propose(t.Context(), proposal("rpi-home"))
	if err != nil {
		t.Fatal(err)
	}
	// Before the head was remembered.
	git(t, dir, "update-ref", "-d", "refs/kokoa/pulls/"+first.Branch)
	if p, err := open(t, dir).Find(t.Context(), first.Branch); err != nil || p != first {
		t.Errorf("found %+v, %v", p, err)
	}
	if p, err := open(t, dir).Propose(t.Context(), proposal("rpi-home")); err != nil || p != first {
		t.Errorf("proposed %+v, %v", p, err)
	}
	git(t, dir, "update-ref", "-d", "refs/heads/"+first.Branch)
	if p, err := open(t, dir).Find(t.Context(), first.Branch); err != nil || p.State != forge.Closed || p.Head != first.Head {
		t.Errorf("found %+v, %v", p, err)
	}

	// Before the merged branch was removed.
	second, err := open(t, dir).Propose(t.Context(), proposal("rpi-attic"))
	if err != nil {
		t.Fatal(err)
	}
	git(t, dir, "update-ref", "refs/heads/main", second.Head)
	if p, err := open(t, dir).Find(t.Context(), second.Branch); err != nil || p.State != forge.Merged {
		t.Errorf("found %+v, %v", p, err)
	}
	if err := open(t, dir).Merge(t.Context(), second); err != nil {
		t.Error(err)
	}
	if got := git(t, dir, "for-each-ref", "refs/heads/kokoa"); got != "" {
		t.Errorf("left: %s", got)
	}
}

// What people make by hand is a pull request as well: of several commits, with the
// base branch merged into it, or one that does not fit.
func TestBranchesOfPeople(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	f := open(t, dir)
	person := forgetest.Person{Remote: dir, Base: "main"}
	file := func(path, content string) forge.File { return forge.File{Path: path, Content: []byte(content)} }
	merge := func(branch string) error {
		p, err := f.Find(t.Context(), branch)
		if err != nil || p.State != forge.Open {
			t.Fatalf("found %+v, %v", p, err)
		}
		return f.Merge(t.Context(), p)
	}

	person.Commit(t, "several", "One", file("a/one.cue", "1"))
	person.Commit(t, "main", "Move on", file("moved.cue", "on"))
	person.Commit(t, "several", "Two", file("a/two.cue", "2"), file("fleet.cue", "changed"))
	if err := merge("several"); err != nil {
		t.Error(err)
	}
	c, _ := person.Read(t, "main")
	if len(c.Parents) != 2 || c.Message != "Merge branch 'several'" || c.Files["a/one.cue"]+c.Files["a/two.cue"]+c.Files["moved.cue"]+c.Files["fleet.cue"] != "12onchanged" {
		t.Errorf("merged to %+v", c)
	}

	clone := filepath.Join(t.TempDir(), "clone")
	person.Commit(t, "caught-up", "Three", file("three.cue", "3"))
	person.Commit(t, "main", "Move on", file("moved.cue", "further"))
	git(t, "", "clone", "--quiet", "--branch=caught-up", dir, clone)
	git(t, clone, "merge", "--quiet", "origin/main")
	git(t, clone, "push", "--quiet")
	head := git(t, clone, "rev-parse", "HEAD")
	if err := merge("caught-up"); err != nil {
		t.Error(err)
	}
	if got := git(t, dir, "rev-parse", "main"); got != head {
		t.Errorf("a branch that is ahead was merged as %s, not moved to: %s", got, head)
	}

	person.Commit(t, "folder", "A folder", file("thing/a.cue", "a"))
	person.Commit(t, "main", "A file", file("thing", "b"))
	if err := merge("folder"); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("merged a folder over a file: %v", err)
	}
	git(t, clone, "checkout", "--quiet", "--orphan", "unrelated")
	git(t, clone, "commit", "--quiet", "-m", "Begin anew")
	git(t, clone, "push", "--quiet", "origin", "unrelated")
	if err := merge("unrelated"); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("merged another history: %v", err)
	}

	// A branch at a commit of main asks for nothing.
	git(t, dir, "branch", "same", "main~1")
	if p, err := f.Find(t.Context(), "same"); !errors.Is(err, forge.ErrNoPull) {
		t.Errorf("found %+v, %v", p, err)
	}
	git(t, dir, "fsck", "--strict")
}

// What was merged into a history that is gone is no longer merged.
func TestRewritten(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	f := open(t, dir)
	p, err := f.Propose(t.Context(), proposal("rpi-home"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Merge(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to   string
		want forge.State
	}{{p.Head + "~1", forge.Closed}, {p.Head, forge.Merged}} {
		git(t, dir, "update-ref", "refs/heads/main", c.to)
		if got, err := f.Find(t.Context(), p.Branch); err != nil || got.State != c.want {
			t.Errorf("with main at %s found %+v, %v", c.to, got, err)
		}
	}
}

// Files keep their mode, and a link or a folder is not written through.
func TestModes(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	clone := filepath.Join(t.TempDir(), "clone")
	git(t, "", "clone", "--quiet", dir, clone)
	for path, mode := range map[string]os.FileMode{"run.sh": 0o755, "plain.cue": 0o644, "folder/in.cue": 0o644} {
		write(t, filepath.Join(clone, path), "old")
		if err := os.Chmod(filepath.Join(clone, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("plain.cue", filepath.Join(clone, "link.cue")); err != nil {
		t.Fatal(err)
	}
	git(t, clone, "add", ".")
	git(t, clone, "commit", "--quiet", "-m", "Fill")
	git(t, clone, "push", "--quiet")

	f := open(t, dir)
	p := proposal("rpi-home")
	for _, path := range []string{"run.sh", "plain.cue", "link.cue", "new.cue"} {
		p.Files = append(p.Files, forge.File{Path: path, Content: []byte("new")})
	}
	if _, err := f.Propose(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	got := git(t, dir, "ls-tree", "-r", "--format=%(objectmode) %(path)", p.Branch)
	want := "100644 fleet.cue\n100644 folder/in.cue\n100644 link.cue\n100644 new.cue\n100644 origins/rpi-home.cue\n100644 plain.cue\n100755 run.sh\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	for _, files := range [][]forge.File{
		{{Path: "folder", Content: []byte("a file")}},
		{{Path: "plain.cue/in.cue", Content: []byte("a file")}},
	} {
		if _, err := f.Propose(t.Context(), forge.Proposal{Branch: "kokoa/x", Title: "x", Files: files}); !errors.Is(err, forge.ErrConflict) {
			t.Errorf("proposed %s: %v", files[0].Path, err)
		}
	}
	// One may take the other's place when it says so; all files may go.
	swap := forge.Proposal{Branch: "kokoa/x", Title: "x", Files: []forge.File{
		{Path: "folder", Content: []byte("a file")}, {Path: "folder/in.cue"},
		{Path: "plain.cue/in.cue", Content: []byte("a file")}, {Path: "plain.cue"},
		{Path: "fleet.cue"}, {Path: "run.sh"}, {Path: "link.cue"},
	}}
	if _, err := f.Propose(t.Context(), swap); err != nil {
		t.Error(err)
	}
	if got := git(t, dir, "ls-tree", "-r", "--name-only", "kokoa/x"); got != "folder\nplain.cue/in.cue\n" {
		t.Errorf("got %s", got)
	}
	swap.Files = []forge.File{{Path: "fleet.cue"}, {Path: "run.sh"}, {Path: "link.cue"}, {Path: "plain.cue"}, {Path: "folder/in.cue"}}
	if _, err := f.Propose(t.Context(), swap); err != nil {
		t.Error(err)
	}
	if got := git(t, dir, "ls-tree", "-r", "--name-only", "kokoa/x"); got != "" {
		t.Errorf("got %s", got)
	}
	git(t, dir, "fsck", "--strict")
}

func TestOptions(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	at := time.Date(2027, 1, 31, 18, 0, 0, 0, time.UTC)
	f, err := bare.Open(dir, "main", bare.Options{
		Name: "Kokoa of demo", Email: "kokoa@demo.test", Now: func() time.Time { return at },
		Approve: func(branch string) string { return "approve " + branch },
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Propose(t.Context(), proposal("rpi-home"))
	if err != nil || p.URL != "approve kokoa/register/rpi-home" {
		t.Errorf("proposed %+v, %v", p, err)
	}
	got := git(t, dir, "log", "-1", "--format=%an %ae %cn %ce %cI", p.Branch)
	if want := "Kokoa of demo kokoa@demo.test Kokoa of demo kokoa@demo.test 2027-01-31T18:00:00+00:00\n"; got != want {
		t.Errorf("commit by %s", got)
	}
	if p, err := open(t, dir).Find(t.Context(), p.Branch); err != nil || p.URL != "kokoa origin approve rpi-home" {
		t.Errorf("found %+v, %v", p, err)
	}
	if f.String() != dir {
		t.Errorf("called %q", f)
	}
}

func TestRefuse(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	sha256 := filepath.Join(t.TempDir(), "sha256.git")
	git(t, "", "init", "--quiet", "--bare", "--object-format=sha256", sha256)
	for _, c := range []struct{ dir, branch string }{
		{filepath.Join(dir, "nowhere"), "main"},
		{t.TempDir(), "main"},
		{sha256, "main"},
		{dir, "master"},
		{dir, "../main"},
		{dir, ""},
	} {
		if f, err := bare.Open(c.dir, c.branch, bare.Options{}); err == nil {
			t.Errorf("opened %s at %q: %v", c.dir, c.branch, f)
		}
	}

	f := open(t, dir)
	before := git(t, dir, "for-each-ref")
	for _, path := range []string{"", ".", "/etc/passwd", "../x", "a/../x", "a//x", "a/", ".git/config", "a/.GIT/hooks/x"} {
		p := proposal("rpi-home")
		p.Files[0].Path = path
		if pull, err := f.Propose(t.Context(), p); err == nil {
			t.Errorf("proposed %q: %+v", path, pull)
		}
	}
	twice := proposal("rpi-home")
	twice.Files = append(twice.Files, twice.Files...)
	if pull, err := f.Propose(t.Context(), twice); err == nil {
		t.Errorf("proposed a file twice: %+v", pull)
	}
	for _, branch := range []string{"", "main", "a b", "../../objects", "a..b", "x.lock", "-x"} {
		p := proposal("rpi-home")
		p.Branch = branch
		_, proposed := f.Propose(t.Context(), p)
		_, found := f.Find(t.Context(), branch)
		merged := f.Merge(t.Context(), forge.Pull{Branch: branch, Head: strings.Repeat("1", 40)})
		if closed := f.Close(t.Context(), forge.Pull{Branch: branch}, ""); proposed == nil || found == nil || merged == nil || closed == nil {
			t.Errorf("branch %q: %v, %v, %v, %v", branch, proposed, found, merged, closed)
		}
	}
	if err := f.Merge(t.Context(), forge.Pull{Branch: "kokoa/x", Head: "main"}); !errors.Is(err, forge.ErrConflict) {
		t.Errorf("merged what is no commit: %v", err)
	}
	if after := git(t, dir, "for-each-ref"); after != before {
		t.Errorf("refs were\n%s\nand are\n%s", before, after)
	}
}

// Names of branches are files and folders to Git. What is in the way is said, and
// nothing of Kokoa's stays in the way.
func TestBranchInTheWay(t *testing.T) {
	for _, packed := range []bool{false, true} {
		dir := forgetest.NewBare(t, "main")
		git(t, dir, "config", "core.logAllRefUpdates", "true")
		git(t, dir, "branch", "kokoa", "main")
		if packed {
			git(t, dir, "pack-refs", "--all")
		}
		f := open(t, dir)
		if p, err := f.Propose(t.Context(), proposal("rpi-home")); err == nil {
			t.Errorf("proposed %+v beside a branch named kokoa", p)
		}
		if p, err := f.Find(t.Context(), "kokoa/register/rpi-home"); !errors.Is(err, forge.ErrNoPull) {
			t.Errorf("found %+v, %v", p, err)
		}
		git(t, dir, "branch", "-D", "kokoa")
		p, err := f.Propose(t.Context(), proposal("rpi-home"))
		if err != nil {
			t.Fatal(err)
		}
		git(t, dir, "update-ref", "--create-reflog", "refs/heads/"+p.Branch, p.Head+"~1")
		git(t, dir, "update-ref", "refs/heads/"+p.Branch, p.Head)
		if packed {
			git(t, dir, "pack-refs", "--all")
		}
		if err := f.Close(t.Context(), p, ""); err != nil {
			t.Fatal(err)
		}
		git(t, dir, "branch", "kokoa", "main")
	}
}

// What is not a commit's hash where a ref should be is trouble, not an absent ref.
func TestBrokenRefs(t *testing.T) {
	dir := forgetest.NewBare(t, "main")
	f := open(t, dir)
	p, err := f.Propose(t.Context(), proposal("rpi-home"))
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"", "ref: refs/heads/main\n", p.Head[:39]} {
		write(t, filepath.Join(dir, "refs/heads", p.Branch), content)
		_, proposed := f.Propose(t.Context(), proposal("rpi-home"))
		_, found := f.Find(t.Context(), p.Branch)
		for _, err := range []error{proposed, found, f.Merge(t.Context(), p), f.Close(t.Context(), p, "")} {
			if err == nil || errors.Is(err, forge.ErrNoPull) || errors.Is(err, forge.ErrConflict) {
				t.Errorf("with %q: %v", content, err)
			}
		}
	}
}

func proposal(name string) forge.Proposal {
	return forge.Proposal{
		Branch: "kokoa/register/" + name, Title: "Add origin " + name, Body: "It asked to join.",
		Files: []forge.File{{Path: "origins/" + name + ".cue", Content: []byte(name)}},
	}
}

func open(t *testing.T, dir string) *bare.Forge {
	t.Helper()
	f, err := bare.Open(dir, strings.TrimSpace(git(t, dir, "symbolic-ref", "--short", "HEAD")), bare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := run(t.Context(), dir, args...)
	if err != nil {
		t.Fatalf("git %s (this test needs Git 2.36 or newer): %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func run(ctx context.Context, dir string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_AUTHOR_NAME=Mika", "GIT_AUTHOR_EMAIL=mika@example.com",
		"GIT_COMMITTER_NAME=Mika", "GIT_COMMITTER_EMAIL=mika@example.com",
	)
	err := cmd.Run()
	return out.String(), err
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

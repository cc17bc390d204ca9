package repo_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
)

func TestPushIsFetched(t *testing.T) {
	o := newOrigin(t, map[string]string{
		"fleet.cue":               "package fleet\n",
		"routes/blog.cue":         "route: blog: {}\n",
		"routes/deep/er/x.cue":    "x",
		"README.md":               "not the fleet's",
		".hidden/x.cue":           "left out",
		"cue.mod/module.cue":      "CUE's own",
		"cue.mod/pkg/a.b/c.cue":   "CUE's own",
		"routes/_old/_parked.cue": "an ordinary name",
		"X.CUE":                   "another name",
	})
	s := open(t, o.bare, repo.Options{})
	first := fetch(t, s)
	wantContent(t, first, map[string]string{
		"fleet.cue":               "package fleet\n",
		"routes/blog.cue":         "route: blog: {}\n",
		"routes/deep/er/x.cue":    "x",
		"routes/_old/_parked.cue": "an ordinary name",
	})
	if first.Commit != git(t, o.clone, "rev-parse", "HEAD") || first.Subject != "first" || first.Author != "Ada" || time.Since(first.When) > time.Hour {
		t.Errorf("revision is %+v", first)
	}
	if fetch(t, s) != first {
		t.Error("a fetch with nothing new made a new revision")
	}
	commit := o.push(t, "Move blog\n\nbody", map[string]string{"routes/blog.cue": "-", "routes/b.cue": "moved"})
	second := fetch(t, s)
	wantContent(t, second, map[string]string{"fleet.cue": "package fleet\n", "routes/b.cue": "moved", "routes/deep/er/x.cue": "x", "routes/_old/_parked.cue": "an ordinary name"})
	if second.Commit != commit || second.Subject != "Move blog" {
		t.Errorf("revision is %s %q, want %s", second.Commit, second.Subject, commit)
	}
	wantContent(t, first, map[string]string{
		"fleet.cue": "package fleet\n", "routes/blog.cue": "route: blog: {}\n", "routes/deep/er/x.cue": "x", "routes/_old/_parked.cue": "an ordinary name",
	})
	again, err := s.At(t.Context(), first.Commit)
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, again, content(t, first))
	if _, err := first.Read("routes/b.cue"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading what is not there: %v", err)
	}
	if got := second.String(); got != "commit "+commit[:12] {
		t.Errorf("revision prints as %q", got)
	}
}

// What is left out is what schema would leave out.
func TestFilesAreWhatSchemaWants(t *testing.T) {
	files := map[string]string{"a.cue": ""}
	for _, name := range []string{"_a.cue", ".a.cue", "x.CUE", "a.cue.txt", ".x/a.cue", "_x/a.cue", "cue.mod/a.cue", "x/cue.mod/y/a.cue", "x/cue.mod.cue", "x.cue/a.cue"} {
		files[name] = ""
	}
	o := newOrigin(t, files)
	for _, options := range []repo.Options{{}, {Folder: true}} {
		got := content(t, fetch(t, open(t, o.clone, options)))
		for name := range files {
			if _, listed := got[name]; listed != schema.Wanted(name) {
				t.Errorf("folder=%t: %s is listed: %t, wanted: %t", options.Folder, name, listed, schema.Wanted(name))
			}
		}
	}
}

func TestSubjectIsSafeToPrint(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": ""})
	o.push(t, "\x1b[31mred\u202e\a "+strings.Repeat("long ", 100), nil)
	rev := fetch(t, open(t, o.bare, repo.Options{}))
	if !strings.HasPrefix(rev.Subject, "[31mred long") || len([]rune(rev.Subject)) > 100 {
		t.Errorf("subject is %q", rev.Subject)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": ""})
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sha256 := filepath.Join(dir, "sha256.git")
	git(t, dir, "init", "-q", "--bare", "--object-format=sha256", sha256)
	tests := []struct {
		spec string
		opts repo.Options
		is   error
		says string
	}{
		{dir + "/nowhere", repo.Options{}, repo.ErrNotRepository, "nowhere does not exist"},
		{file, repo.Options{}, repo.ErrNotRepository, "is a file"},
		{dir, repo.Options{}, repo.ErrNotRepository, "git init --bare --initial-branch=main " + dir},
		{sha256, repo.Options{}, repo.ErrNotRepository, "objectformat"},
		{o.bare, repo.Options{Branch: "refs/heads/main"}, nil, "short name"},
		{o.bare, repo.Options{Branch: "../../config"}, nil, "Git does not allow"},
		{o.bare, repo.Options{Branch: "a..b"}, nil, "Git does not allow"},
		{o.bare, repo.Options{Branch: "main\x00"}, nil, "Git does not allow"},
		{"git://example.com/fleet", repo.Options{}, nil, "cannot read git:// URLs"},
		{"https://example.com/fleet", repo.Options{}, nil, "needs a cache folder"},
		{"https:///fleet", repo.Options{CacheDir: dir}, nil, "has no host"},
		{"git@example.com:fleet.git", repo.Options{CacheDir: dir}, nil, "needs a private key"},
		{"ssh://git:canary-1@example.com/fleet.git", repo.Options{CacheDir: dir}, nil, "ssh takes a key"},
		{"ssh://example.com/fleet.git", repo.Options{CacheDir: dir, Auth: repo.Auth{SSHKey: "x"}}, nil, "known_hosts"},
		{"ssh://example.com/fleet.git", repo.Options{CacheDir: dir, Auth: repo.Auth{SSHKey: "canary-2", KnownHosts: file}}, nil, "no PEM"},
		{"https://user:canary-3@exa mple.com:port/", repo.Options{CacheDir: dir}, nil, "not a URL"},
	}
	for _, test := range tests {
		_, err := repo.Open(test.spec, test.opts)
		if err == nil || !strings.Contains(err.Error(), test.says) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("open %s: %v; want %q (%v)", test.spec, err, test.says, test.is)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("open %s tells a secret: %v", test.spec, err)
		}
	}
}

func TestCredentialsDoNotPrint(t *testing.T) {
	o := repo.Options{Auth: repo.Auth{Username: "canary", Password: "canary", SSHKey: "canary"}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, o); strings.Contains(text, "canary") {
			t.Errorf("%s prints %s", format, text)
		}
	}
	s := open(t, "https://canary:canary@example.com/fleet.git", repo.Options{CacheDir: t.TempDir()})
	if s.String() != "https://example.com/fleet.git" {
		t.Errorf("source prints as %s", s)
	}
}

func TestNoBranch(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": ""})
	git(t, o.clone, "push", "-q", "origin", "HEAD:trunk", "HEAD:old/one")
	git(t, o.bare, "symbolic-ref", "HEAD", "refs/heads/trunk")
	s := open(t, o.bare, repo.Options{})
	last := fetch(t, s)
	git(t, o.clone, "push", "-q", "origin", ":main")
	_, err := s.Fetch(t.Context())
	if !errors.Is(err, repo.ErrNoBranch) || !strings.Contains(err.Error(), `has no branch "main"; it has: old/one, trunk`) {
		t.Errorf("deleted branch: %v", err)
	}
	wantContent(t, last, map[string]string{"a.cue": ""})

	empty := filepath.Join(t.TempDir(), "empty.git")
	git(t, "", "init", "-q", "--bare", empty)
	_, err = open(t, empty, repo.Options{}).Fetch(t.Context())
	if !errors.Is(err, repo.ErrNoBranch) || !strings.Contains(err.Error(), "it has none at all: git push") {
		t.Errorf("empty repository: %v", err)
	}
}

func TestEmptied(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "", "README.md": ""})
	s := open(t, o.bare, repo.Options{})
	fetch(t, s)
	o.push(t, "gone", map[string]string{"a.cue": "-"})
	if _, err := s.Fetch(t.Context()); !errors.Is(err, repo.ErrEmpty) {
		t.Errorf("emptied repository: %v", err)
	}
	o.push(t, "moved", map[string]string{".hidden/a.cue": ""})
	if _, err := s.Fetch(t.Context()); !errors.Is(err, repo.ErrEmpty) {
		t.Errorf("hidden files: %v", err)
	}
	o.push(t, "back", map[string]string{"a.cue": ""})
	wantContent(t, fetch(t, s), map[string]string{"a.cue": ""})
}

func TestRewind(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	s := open(t, o.bare, repo.Options{})
	first := fetch(t, s)
	o.push(t, "second", map[string]string{"a.cue": "2"})
	git(t, o.clone, "checkout", "-q", "-b", "side", first.Commit)
	side := o.commit(t, "side", map[string]string{"b.cue": "1"})
	git(t, o.clone, "checkout", "-q", "main")
	git(t, o.clone, "merge", "-q", "--no-edit", "side")
	git(t, o.clone, "push", "-q", "origin", "main")
	merged := fetch(t, s)
	for _, base := range []string{first.Commit, side, merged.Commit} {
		if err := merged.Descends(t.Context(), base); err != nil {
			t.Errorf("merge does not descend from %s: %v", base, err)
		}
	}

	refused := func(what string, rev *repo.Revision) {
		t.Helper()
		err := rev.Descends(t.Context(), merged.Commit)
		if !errors.Is(err, repo.ErrRewind) {
			t.Fatalf("%s: %v", what, err)
		}
		for _, part := range []string{rev.Commit, merged.Commit, "kokoa serve --accept-history " + rev.Commit} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error lacks %q: %v", what, part, err)
			}
		}
	}
	git(t, o.clone, "push", "-q", "--force", "origin", first.Commit+":main")
	refused("older commit", fetch(t, s))
	git(t, o.clone, "reset", "-q", "--hard", first.Commit)
	git(t, o.clone, "commit", "-q", "--amend", "-m", "rewritten")
	git(t, o.clone, "push", "-q", "--force", "origin", "main")
	refused("amended commit", fetch(t, s))
	git(t, o.clone, "checkout", "-q", "--orphan", "unrelated")
	o.commit(t, "unrelated", map[string]string{"a.cue": "3"})
	git(t, o.clone, "push", "-q", "--force", "origin", "unrelated:main")
	refused("unrelated history", fetch(t, s))
	git(t, o.bare, "reflog", "expire", "--expire=now", "--all")
	git(t, o.bare, "gc", "-q", "--prune=now")
	gone := open(t, o.bare, repo.Options{})
	refused("base is gone", fetch(t, gone))
	if _, err := gone.At(t.Context(), merged.Commit); !errors.Is(err, repo.ErrUnknownCommit) {
		t.Errorf("commit that is gone: %v", err)
	}
	if _, err := gone.At(t.Context(), "main"); !errors.Is(err, repo.ErrUnknownCommit) {
		t.Errorf("a name for a commit: %v", err)
	}
	if err := fetch(t, gone).Descends(t.Context(), "--all"); !errors.Is(err, repo.ErrUnknownCommit) {
		t.Errorf("a word for a base: %v", err)
	}
}

func TestShallowHistoryIsARewind(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	first := git(t, o.clone, "rev-parse", "HEAD")
	o.push(t, "second", nil)
	o.push(t, "third", nil)
	shallow := filepath.Join(t.TempDir(), "shallow.git")
	git(t, "", "clone", "-q", "--bare", "--depth=1", "file://"+o.bare, shallow)
	if err := fetch(t, open(t, shallow, repo.Options{})).Descends(t.Context(), first); !errors.Is(err, repo.ErrRewind) {
		t.Errorf("history that is cut off: %v", err)
	}
}

func TestPackedRefsAndCollectedGarbage(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "0"})
	s := open(t, o.bare, repo.Options{})
	first := fetch(t, s)
	for i := range 4 {
		text := fmt.Sprint(i + 1)
		o.push(t, text, map[string]string{"a.cue": text, "dir/b.cue": text})
		if i%2 == 0 {
			git(t, o.bare, "pack-refs", "--all")
		} else {
			git(t, o.bare, "gc", "-q", "--prune=now")
		}
		rev := fetch(t, s)
		wantContent(t, rev, map[string]string{"a.cue": text, "dir/b.cue": text})
		wantContent(t, first, map[string]string{"a.cue": "0"})
		if err := rev.Descends(t.Context(), first.Commit); err != nil {
			t.Error(err)
		}
	}
}

// Deltas, in both of their makes, come out as Git wrote them.
func TestDeltas(t *testing.T) {
	files := make(map[string]string)
	for i := range 200 {
		files[fmt.Sprintf("routes/r%03d.cue", i)] = strings.Repeat(fmt.Sprintf("line of %d\n", i%7), 50) + fmt.Sprint(i)
	}
	o := newOrigin(t, files)
	for _, offsets := range []string{"true", "false"} {
		git(t, o.bare, "-c", "repack.usedeltabaseoffset="+offsets, "repack", "-a", "-d", "-q", "-f", "--depth=50", "--window=50")
		wantContent(t, fetch(t, open(t, o.bare, repo.Options{})), files)
	}
}

func TestBorrowedObjects(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	fork := filepath.Join(t.TempDir(), "fork.git")
	git(t, "", "clone", "-q", "--bare", "--shared", o.bare, fork)
	wantContent(t, fetch(t, open(t, fork, repo.Options{})), map[string]string{"a.cue": "1"})
}

func TestCloneStandsForItsRepository(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	o.write(t, "a.cue", "uncommitted")
	wantContent(t, fetch(t, open(t, o.clone, repo.Options{})), map[string]string{"a.cue": "1"})
	wantContent(t, fetch(t, open(t, "file://"+o.clone, repo.Options{})), map[string]string{"a.cue": "1"})
}

func TestFetchesAtOnceWhileGitWrites(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "0", "same/b.cue": "b"})
	s := open(t, o.bare, repo.Options{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	for range 4 {
		go func() {
			done <- func() error {
				for ctx.Err() == nil {
					rev, err := s.Fetch(t.Context())
					if err != nil {
						return err
					}
					a, err := rev.Read("a.cue")
					if err != nil {
						return err
					}
					if string(a) != strings.TrimPrefix(rev.Subject, "first") && rev.Subject != "first" {
						return fmt.Errorf("commit %q has a.cue %q", rev.Subject, a)
					}
				}
				return nil
			}()
		}()
	}
	for i := range 12 {
		text := fmt.Sprint(i)
		o.push(t, text, map[string]string{"a.cue": text})
		if i%3 == 2 {
			git(t, o.bare, "gc", "-q")
		}
	}
	stop()
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// watchCalls starts to watch and returns a channel with a value for every call.
func watchCalls(t *testing.T, s repo.Source) <-chan struct{} {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	calls, ended := make(chan struct{}, 100), make(chan error)
	go func() { ended <- s.Watch(ctx, func() { calls <- struct{}{} }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	wait(t, calls, "the first call")
	return calls
}

func wait(t *testing.T, calls <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-calls:
	case <-time.After(20 * time.Second):
		t.Fatalf("no call after %s", what)
	}
}

// until waits for calls until the newest revision is as wanted.
func until(t *testing.T, calls <-chan struct{}, s repo.Source, what string, ok func(*repo.Revision, error) bool) {
	t.Helper()
	for {
		wait(t, calls, what)
		if ok(s.Fetch(t.Context())) {
			return
		}
	}
}

func TestWatchRepository(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": ""})
	at := func(commit string) func(*repo.Revision, error) bool {
		return func(r *repo.Revision, err error) bool { return err == nil && r.Commit == commit }
	}
	main := open(t, o.bare, repo.Options{Poll: time.Hour})
	calls := watchCalls(t, main)
	for i := range 3 {
		commit := o.push(t, fmt.Sprint(i), nil)
		until(t, calls, main, "a push", at(commit))
	}
	git(t, o.bare, "pack-refs", "--all")
	wait(t, calls, "pack-refs")
	until(t, calls, main, "a push over packed refs", at(o.push(t, "packed", nil)))

	// A branch that does not exist yet, in folders that do not either.
	deep := open(t, o.bare, repo.Options{Branch: "team/fleet/live", Poll: time.Hour})
	calls = watchCalls(t, deep)
	commit := o.commit(t, "deep", nil)
	git(t, o.clone, "push", "-q", "origin", "HEAD:team/fleet/live")
	until(t, calls, deep, "the first push of a branch", at(commit))
	commit = o.commit(t, "deeper", nil)
	git(t, o.clone, "push", "-q", "origin", "HEAD:team/fleet/live")
	until(t, calls, deep, "the second push of a branch", at(commit))
	git(t, o.clone, "push", "-q", "origin", ":team/fleet/live")
	until(t, calls, deep, "the end of a branch", func(_ *repo.Revision, err error) bool { return errors.Is(err, repo.ErrNoBranch) })
	git(t, o.clone, "push", "-q", "origin", "HEAD:team/fleet/live")
	until(t, calls, deep, "the branch's return", at(commit))
}

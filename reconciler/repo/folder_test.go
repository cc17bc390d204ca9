package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

func TestFolder(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1", "routes/b.cue": "2", ".gitignore": "x"})
	s := open(t, o.clone, repo.Options{Folder: true})
	clean := fetch(t, s)
	commit := git(t, o.clone, "rev-parse", "HEAD")
	wantContent(t, clean, map[string]string{"a.cue": "1", "routes/b.cue": "2"})
	if clean.Commit != commit || clean.Uncommitted || clean.Subject != "first" || clean.String() != "commit "+commit[:12] {
		t.Errorf("clean clone: %s, %+v", clean, clean)
	}
	if fetch(t, s) != clean {
		t.Error("a fetch with nothing new made a new revision")
	}
	o.write(t, "README.md", "not the fleet's")
	if rev := fetch(t, s); rev != clean {
		t.Errorf("a file that is not the fleet's made %s", rev)
	}
	o.write(t, "a.cue", "one")
	o.write(t, "new/c.cue", "3")
	dirty := fetch(t, s)
	wantContent(t, dirty, map[string]string{"a.cue": "one", "routes/b.cue": "2", "new/c.cue": "3"})
	if dirty.Commit != commit || !dirty.Uncommitted || dirty.String() != "commit "+commit[:12]+" + uncommitted" {
		t.Errorf("changed clone: %s, %+v", dirty, dirty)
	}
	o.write(t, "a.cue", "1")
	os.RemoveAll(filepath.Join(o.clone, "new"))
	wantContent(t, dirty, map[string]string{"a.cue": "one", "routes/b.cue": "2", "new/c.cue": "3"})
	if rev := fetch(t, s); rev.Uncommitted {
		t.Errorf("changes taken back: %s", rev)
	}
	o.write(t, "routes/b.cue", "-")
	if rev := fetch(t, s); !rev.Uncommitted {
		t.Errorf("removed file: %s", rev)
	}
	before, err := s.At(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, before, map[string]string{"a.cue": "1", "routes/b.cue": "2"})
	if err := dirty.Descends(t.Context(), strings.Repeat("1", 40)); err != nil {
		t.Errorf("a folder was refused for its history: %v", err)
	}
}

func TestFolderWithinAClone(t *testing.T) {
	o := newOrigin(t, map[string]string{"fleet/a.cue": "1", "other/b.cue": "2"})
	s := open(t, filepath.Join(o.clone, "fleet"), repo.Options{Folder: true})
	rev := fetch(t, s)
	wantContent(t, rev, map[string]string{"a.cue": "1"})
	if rev.Uncommitted {
		t.Errorf("clean subfolder: %s", rev)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	git(t, o.clone, "worktree", "add", "-q", "-b", "side", tree)
	linked := fetch(t, open(t, filepath.Join(tree, "fleet"), repo.Options{Folder: true}))
	wantContent(t, linked, map[string]string{"a.cue": "1"})
	if linked.Uncommitted || linked.Commit != rev.Commit {
		t.Errorf("linked worktree: %s", linked)
	}
}

func TestFolderWithoutCommit(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, repo.Options{Folder: true})
	if _, err := s.Fetch(t.Context()); !errors.Is(err, repo.ErrEmpty) {
		t.Errorf("folder without files: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.cue"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	rev := fetch(t, s)
	wantContent(t, rev, map[string]string{"a.cue": "1"})
	if rev.Commit != "" || rev.String() != "uncommitted files" {
		t.Errorf("folder: %s", rev)
	}
	if _, err := s.At(t.Context(), strings.Repeat("1", 40)); !errors.Is(err, repo.ErrUnknownCommit) {
		t.Errorf("commit of a folder: %v", err)
	}
	git(t, dir, "init", "-q")
	unborn := fetch(t, open(t, dir, repo.Options{Folder: true}))
	if unborn.Commit != "" {
		t.Errorf("clone without a commit: %s", unborn)
	}
}

func TestFolderRefuses(t *testing.T) {
	tests := map[string]struct {
		make func(dir string) error
		opts repo.Limits
		is   error
		says string
	}{
		"link": {
			func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "b.cue")) },
			repo.Limits{}, repo.ErrPath, "b.cue is not an ordinary file",
		},
		"device without files": {
			func(dir string) error { return os.Mkdir(filepath.Join(dir, "con"), 0o700) },
			repo.Limits{}, nil, "",
		},
		"device": {
			func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "nul.cue"), nil, 0o600)
			},
			repo.Limits{}, repo.ErrPath, `"nul.cue"`,
		},
		"huge": {
			func(dir string) error { return os.Truncate(filepath.Join(dir, "a.cue"), 1<<20+1) },
			repo.Limits{}, repo.ErrLimit, "a.cue",
		},
		"in all": {
			func(dir string) error { return os.WriteFile(filepath.Join(dir, "b.cue"), make([]byte, 60), 0o600) },
			repo.Limits{Bytes: 50}, repo.ErrLimit, "more than 50 bytes",
		},
		"many": {
			func(dir string) error { return os.WriteFile(filepath.Join(dir, "b.cue"), nil, 0o600) },
			repo.Limits{Files: 1}, repo.ErrLimit, "more than 1 *.cue files",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "a.cue"), []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := test.make(dir); err != nil {
				t.Fatal(err)
			}
			_, err := open(t, dir, repo.Options{Folder: true, Limits: test.opts}).Fetch(t.Context())
			if test.is == nil && err != nil || test.is != nil && (!errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("%v, want %v %q", err, test.is, test.says)
			}
		})
	}
}

func TestFolderDoesNotFollowLinks(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	for _, name := range []string{outside + "/secret.cue", dir + "/a.cue"} {
		if err := os.WriteFile(name, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "more")); err != nil {
		t.Fatal(err)
	}
	rev := fetch(t, open(t, dir, repo.Options{Folder: true}))
	wantContent(t, rev, map[string]string{"a.cue": "1"})
	if rev.NotFollowed != 1 {
		t.Errorf("%d links not followed, want 1", rev.NotFollowed)
	}
}

func TestWatchFolder(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	s := open(t, o.clone, repo.Options{Folder: true, Poll: time.Hour})
	calls := watchCalls(t, s)
	has := func(path, text string) func(*repo.Revision, error) bool {
		return func(rev *repo.Revision, err error) bool {
			if err != nil {
				return false
			}
			got, err := rev.Read(path)
			return text == "-" && err != nil || err == nil && string(got) == text
		}
	}
	steps := []struct{ path, text string }{
		{"a.cue", "2"}, {"new/folder/b.cue", "1"}, {"new/folder/b.cue", "2"}, {"new.d/c.cue", "1"}, {"new.d/c.cue", "2"}, {"new/folder/b.cue", "-"},
	}
	for _, step := range steps {
		o.write(t, step.path, step.text)
		until(t, calls, s, step.path+" became "+step.text, has(step.path, step.text))
	}
}

package repo_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// git runs the real git in dir and returns what it prints, without the last
// newline. Nothing of the user's own settings counts.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	return gitInput(t, dir, "", args...)
}

func gitInput(t testing.TB, dir, input string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("these tests need git: apt-get install git")
	}
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME=/nonexistent", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
		"GIT_TERMINAL_PROMPT=0")
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// origin is a bare repository and a clone that pushes to it.
type origin struct {
	bare, clone string
}

// newOrigin has one commit, on main, with these files.
func newOrigin(t testing.TB, files map[string]string) *origin {
	t.Helper()
	dir := t.TempDir()
	o := &origin{filepath.Join(dir, "fleet.git"), filepath.Join(dir, "clone")}
	git(t, dir, "init", "-q", "--bare", "--initial-branch=main", o.bare)
	git(t, dir, "init", "-q", "--initial-branch=main", o.clone)
	git(t, o.clone, "remote", "add", "origin", o.bare)
	o.push(t, "first", files)
	return o
}

// push commits and pushes changed files; one with the text "-" is removed.
func (o *origin) push(t testing.TB, subject string, files map[string]string) (commit string) {
	t.Helper()
	commit = o.commit(t, subject, files)
	git(t, o.clone, "push", "-q", "origin", "HEAD:main")
	return commit
}

func (o *origin) commit(t testing.TB, subject string, files map[string]string) (commit string) {
	t.Helper()
	for name, text := range files {
		o.write(t, name, text)
	}
	git(t, o.clone, "add", "-A", "-f")
	git(t, o.clone, "commit", "-q", "--allow-empty", "-m", subject)
	return git(t, o.clone, "rev-parse", "HEAD")
}

func (o *origin) write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(o.clone, filepath.FromSlash(name))
	if text == "-" {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, spec string, o repo.Options) repo.Source {
	t.Helper()
	s, err := repo.Open(spec, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func fetch(t testing.TB, s repo.Source) *repo.Revision {
	t.Helper()
	rev, err := s.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// content is all files of a revision, and checks each against git's own hash.
func content(t testing.TB, rev *repo.Revision) map[string]string {
	t.Helper()
	got := make(map[string]string)
	for _, f := range rev.Files() {
		text, err := rev.Read(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		got[f.Path] = string(text)
		if want := gitInput(t, "", string(text), "hash-object", "--stdin"); f.Hash != want {
			t.Errorf("hash of %s is %s, git says %s", f.Path, f.Hash, want)
		}
	}
	return got
}

func wantContent(t testing.TB, rev *repo.Revision, want map[string]string) {
	t.Helper()
	if got := content(t, rev); !maps.Equal(got, want) {
		t.Errorf("%s has\n%v\nwant\n%v", rev, lines(got), lines(want))
	}
}

func lines(files map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "%s: %q\n", name, files[name])
	}
	return b.String()
}

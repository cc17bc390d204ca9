package forgetest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// NewBare makes a bare repository with one commit on its base branch, and returns
// its folder. It is gone after the test.
func NewBare(t *testing.T, base string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fleet.git")
	git(t, "", nil, "init", "--quiet", "--bare", "--initial-branch="+base, dir)
	p := Person{Remote: dir, Base: base}
	p.Commit(t, base, "Begin", forge.File{Path: "fleet.cue", Content: []byte("package fleet\n\nfleet: name: \"demo\"\n")})
	return dir
}

// Person works on a repo with the program git. Its methods have the shape of the
// functions in Place, and may be called at once.
type Person struct {
	// Remote is a folder, or an address with credentials, that Git can push to.
	Remote string
	// Base is the name of the base branch.
	Base string
}

// Commit pushes one commit to a branch. See Place.
func (p Person) Commit(t *testing.T, branch, message string, files ...forge.File) string {
	t.Helper()
	dir := p.clone(t)
	switch {
	case p.has(t, dir, branch):
		git(t, dir, nil, "checkout", "--quiet", branch)
	case p.has(t, dir, p.Base):
		git(t, dir, nil, "checkout", "--quiet", "-b", branch, "origin/"+p.Base)
	default:
		git(t, dir, nil, "checkout", "--quiet", "--orphan", branch)
	}
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		if f.Content == nil {
			git(t, dir, nil, "rm", "--quiet", "--", f.Path)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Content, 0o644); err != nil {
			t.Fatal(err)
		}
		git(t, dir, nil, "add", "--", f.Path)
	}
	git(t, dir, []byte(message), "commit", "--quiet", "--cleanup=verbatim", "--file=-")
	git(t, dir, nil, "push", "--quiet", "origin", "HEAD:refs/heads/"+branch)
	return strings.TrimSpace(git(t, dir, nil, "rev-parse", "HEAD"))
}

// Read reads a branch. See Place.
func (p Person) Read(t *testing.T, branch string) (Commit, bool) {
	t.Helper()
	dir := p.clone(t)
	if !p.has(t, dir, branch) {
		return Commit{}, false
	}
	head := "origin/" + branch
	names := strings.Fields(git(t, dir, nil, "rev-list", "--parents", "--max-count=1", head))
	c := Commit{
		Hash: names[0], Parents: names[1:], Files: map[string]string{},
		Message: strings.TrimSpace(git(t, dir, nil, "log", "--max-count=1", "--format=%B", head)),
	}
	for path := range strings.SplitSeq(git(t, dir, nil, "ls-tree", "-r", "-z", "--name-only", head), "\x00") {
		if path != "" {
			c.Files[path] = git(t, dir, nil, "cat-file", "blob", head+":"+path)
		}
	}
	return c, true
}

// Descends looks through a branch's history. See Place.
func (p Person) Descends(t *testing.T, branch, commit string) bool {
	t.Helper()
	dir := p.clone(t)
	for line := range strings.Lines(git(t, dir, nil, "rev-list", "origin/"+branch)) {
		if strings.TrimSpace(line) == commit {
			return true
		}
	}
	return false
}

// Merge merges a pull request's branch into the base branch by a merge commit, and
// leaves the branch, as people do without a forge. See Place.
func (p Person) Merge(t *testing.T, pull forge.Pull) {
	t.Helper()
	dir := p.clone(t)
	git(t, dir, nil, "checkout", "--quiet", p.Base)
	git(t, dir, nil, "merge", "--quiet", "--no-ff", "-m", "Merge "+pull.Branch, "origin/"+pull.Branch)
	git(t, dir, nil, "push", "--quiet", "origin", "HEAD:refs/heads/"+p.Base)
}

// Delete removes a pull request's branch: without a forge, that closes it. See
// Place.Close.
func (p Person) Delete(t *testing.T, pull forge.Pull) {
	t.Helper()
	git(t, p.clone(t), nil, "push", "--quiet", "origin", ":refs/heads/"+pull.Branch)
}

// Branches lists the names of all branches, sorted.
func (p Person) Branches(t *testing.T) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(git(t, "", nil, "ls-remote", "--heads", p.Remote)) {
		_, ref, _ := strings.Cut(strings.TrimSpace(line), "\t")
		names = append(names, strings.TrimPrefix(ref, "refs/heads/"))
	}
	return names
}

func (p Person) has(t *testing.T, dir, branch string) bool {
	t.Helper()
	return git(t, dir, nil, "for-each-ref", "refs/remotes/origin/"+branch) != ""
}

func (p Person) clone(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git(t, "", nil, "clone", "--quiet", "--no-checkout", p.Remote, dir)
	return dir
}

// git runs git in a folder, as the same person everywhere, and returns what it
// wrote.
func git(t *testing.T, dir string, in []byte, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, bytes.NewReader(in), &out, &errs
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Mika", "GIT_AUTHOR_EMAIL=mika@example.com",
		"GIT_COMMITTER_NAME=Mika", "GIT_COMMITTER_EMAIL=mika@example.com",
	)
	if err := cmd.Run(); err != nil {
		t.Fatalf("git %s (this test needs Git 2.28 or newer): %v\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out.String()
}

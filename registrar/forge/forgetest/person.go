package forgetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	dir := p.fetch(t)
	var in bytes.Buffer
	data := func(content []byte) { fmt.Fprintf(&in, "data %d\n%s\n", len(content), content) }
	fmt.Fprintf(&in, "commit refs/heads/%s\ncommitter Mika <mika@example.com> %d +0000\n", branch, time.Now().Unix())
	data([]byte(message))
	for _, begin := range []string{branch, p.Base} {
		if p.has(t, dir, begin) {
			fmt.Fprintf(&in, "from refs/heads/%s^0\n", begin)
			break
		}
	}
	for _, f := range files {
		if f.Content == nil {
			fmt.Fprintf(&in, "D %s\n", f.Path)
			continue
		}
		fmt.Fprintf(&in, "M 100644 inline %s\n", f.Path)
		data(f.Content)
	}
	git(t, dir, in.Bytes(), "fast-import", "--quiet")
	git(t, dir, nil, "push", "--quiet", p.Remote, "refs/heads/"+branch)
	return strings.TrimSpace(git(t, dir, nil, "rev-parse", "refs/heads/"+branch))
}

// Read reads a branch. See Place.
func (p Person) Read(t *testing.T, branch string) (Commit, bool) {
	t.Helper()
	dir := p.look(t)
	if !p.has(t, dir, branch) {
		return Commit{}, false
	}
	head := "refs/heads/" + branch
	parts := strings.SplitN(git(t, dir, nil, "log", "--max-count=1", "--format=%H%x00%P%x00%B", head), "\x00", 3)
	c := Commit{
		Hash: parts[0], Parents: strings.Fields(parts[1]), Files: map[string]string{},
		Message: strings.TrimSpace(parts[2]),
	}
	files := tar.NewReader(strings.NewReader(git(t, dir, nil, "archive", "--format=tar", head)))
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return c, true
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			c.Files[h.Name] = string(content)
		}
	}
}

// Descends looks through a branch's history. See Place.
func (p Person) Descends(t *testing.T, branch, commit string) bool {
	t.Helper()
	for line := range strings.Lines(git(t, p.look(t), nil, "rev-list", "refs/heads/"+branch)) {
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
	dir := t.TempDir()
	git(t, "", nil, "clone", "--quiet", "--branch="+p.Base, p.Remote, dir)
	git(t, dir, nil, "merge", "--quiet", "--no-ff", "-m", "Merge "+pull.Branch, "origin/"+pull.Branch)
	git(t, dir, nil, "push", "--quiet", "origin", "HEAD:refs/heads/"+p.Base)
}

// Delete removes a pull request's branch: without a forge, that closes it. See
// Place.Close.
func (p Person) Delete(t *testing.T, pull forge.Pull) {
	t.Helper()
	git(t, p.look(t), nil, "push", "--quiet", p.Remote, ":refs/heads/"+pull.Branch)
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
	return git(t, dir, nil, "for-each-ref", "refs/heads/"+branch) != ""
}

// look is a repository to read branches from: where they are on this host, there.
func (p Person) look(t *testing.T) string {
	t.Helper()
	if info, err := os.Stat(p.Remote); err == nil && info.IsDir() {
		return p.Remote
	}
	return p.fetch(t)
}

// fetch is a repository of the person's own, with all branches as they are now.
func (p Person) fetch(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git(t, "", nil, "init", "--quiet", "--bare", dir)
	git(t, dir, nil, "fetch", "--quiet", p.Remote, "+refs/heads/*:refs/heads/*")
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

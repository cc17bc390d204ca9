package githubtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// store is the bare repository, by the program git. It needs Git 2.38 or newer.
type store struct{ dir string }

func (s store) run(in []byte, env []string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.dir, bytes.NewReader(in), &out, &errs
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_AUTHOR_NAME=kokoa[bot]", "GIT_AUTHOR_EMAIL=kokoa@users.noreply.github.com",
		"GIT_COMMITTER_NAME=GitHub", "GIT_COMMITTER_EMAIL=noreply@github.com")
	cmd.Env = append(cmd.Env, env...)
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("git %s: %w: %s", args[0], err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// line is the only line that git prints.
func (s store) line(args ...string) (string, error) {
	out, err := s.run(nil, nil, args...)
	return strings.TrimSpace(out), err
}

// branches are all branches and their commits.
func (s store) branches() (map[string]string, error) {
	out, err := s.run(nil, nil, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads/")
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for line := range strings.Lines(out) {
		ref, hash, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[strings.TrimPrefix(ref, "refs/heads/")] = hash
	}
	return all, nil
}

// is reports whether an object is there and of this type.
func (s store) is(hash, kind string) bool {
	got, err := s.line("cat-file", "-t", hash)
	return err == nil && got == kind
}

type commit struct {
	hash, tree, message string
	parents             []string
}

func (s store) commit(hash string) (commit, error) {
	out, err := s.run(nil, nil, "cat-file", "commit", hash)
	if err != nil {
		return commit{}, err
	}
	c := commit{hash: hash}
	header, message, _ := strings.Cut(out, "\n\n")
	c.message = message
	for line := range strings.Lines(header) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "tree":
			c.tree = value
		case "parent":
			c.parents = append(c.parents, value)
		}
	}
	return c, nil
}

// list is the names of commits in a range, oldest first.
func (s store) list(revisions ...string) ([]string, error) {
	out, err := s.line(append([]string{"rev-list", "--reverse"}, revisions...)...)
	return strings.Fields(out), err
}

func (s store) contains(descendant, ancestor string) bool {
	_, err := s.line("merge-base", "--is-ancestor", ancestor, descendant)
	return err == nil
}

func (s store) blob(content []byte) (string, error) {
	out, err := s.run(content, nil, "hash-object", "-w", "--stdin")
	return strings.TrimSpace(out), err
}

// edit is a file of a new tree; one without a hash is removed.
type edit struct{ mode, hash, path string }

// errAbsent: a file is to be removed that is not there.
var errAbsent = errors.New("no such file")

func (s store) edit(tree string, edits []edit) (string, error) {
	scratch, err := os.MkdirTemp("", "githubtest-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(scratch, "index")}
	if _, err := s.run(nil, env, "read-tree", tree); err != nil {
		return "", err
	}
	var in bytes.Buffer
	for _, e := range edits {
		if e.hash == "" {
			if found, err := s.run(nil, env, "ls-files", "--", e.path); err != nil || found == "" {
				return "", errors.Join(errAbsent, err)
			}
			e.mode, e.hash = "0", strings.Repeat("0", 40)
		}
		fmt.Fprintf(&in, "%s %s\t%s\x00", e.mode, e.hash, e.path)
	}
	if _, err := s.run(in.Bytes(), env, "update-index", "-z", "--add", "--replace", "--index-info"); err != nil {
		return "", err
	}
	out, err := s.run(nil, env, "write-tree")
	return strings.TrimSpace(out), err
}

func (s store) commitTree(tree, message string, parents ...string) (string, error) {
	args := []string{"commit-tree", tree}
	for _, parent := range parents {
		args = append(args, "-p", parent)
	}
	out, err := s.run([]byte(message), nil, args...)
	return strings.TrimSpace(out), err
}

// merge is the tree of a merge; ok is false when there are conflicts.
func (s store) merge(ours, theirs string) (tree string, ok bool, err error) {
	out, err := s.run(nil, nil, "merge-tree", "--write-tree", ours, theirs)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return "", false, nil
	}
	tree, _, _ = strings.Cut(out, "\n")
	return tree, err == nil, err
}

// set makes a branch a commit. Old is what it must be before; "" is nothing.
func (s store) set(branch, hash, old string) error {
	if old == "" {
		old = strings.Repeat("0", 40)
	}
	_, err := s.run(nil, nil, "update-ref", "refs/heads/"+branch, hash, old)
	return err
}

func (s store) delete(branch string) error {
	_, err := s.run(nil, nil, "update-ref", "-d", "refs/heads/"+branch)
	return err
}

// change is a file in a difference. Hash is that of what was removed, too.
type change struct{ status, path, from, hash string }

func (s store) diff(from, to string) ([]change, error) {
	out, err := s.run(nil, nil, "diff-tree", "-r", "-z", "-M", "--raw", "--no-abbrev", from, to)
	if err != nil {
		return nil, err
	}
	var all []change
	fields := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	for i := 0; i+1 < len(fields); i += 2 {
		meta := strings.Fields(fields[i])
		c := change{path: fields[i+1], hash: meta[3]}
		switch meta[4][0] {
		case 'A':
			c.status = "added"
		case 'D':
			c.status, c.hash = "removed", meta[2]
		case 'R':
			c.status, c.from, c.path = "renamed", fields[i+1], fields[i+2]
			i++
		default:
			c.status = "modified"
		}
		all = append(all, c)
	}
	return all, nil
}

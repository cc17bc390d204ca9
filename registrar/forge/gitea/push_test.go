package gitea

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// lines are pkt-lines with a flush at the end.
func lines(all ...string) string {
	var b strings.Builder
	for _, line := range all {
		fmt.Fprintf(&b, "%04x%s", len(line)+4, line)
	}
	return b.String() + "0000"
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, raw string
		want      error // in every error that is expected
		ok        bool
	}{
		{"moved", lines("unpack ok\n", "ok refs/heads/a\n", "ok refs/heads/a.next\n"), nil, true},
		{"one left out", lines("unpack ok\n", "ok refs/heads/a\n"), nil, false},
		{"rules", lines("unpack ok\n", "ng refs/heads/a pre-receive hook declined\n", "ng refs/heads/a.next atomic push failure\n"), forge.ErrProtected, false},
		{"others were first", lines("unpack ok\n", "ng refs/heads/a failed to update ref\n", "ng refs/heads/a.next failed to update ref\n"), errMoved, false},
		{"no objects", lines("unpack index-pack abnormal exit\n", "ng refs/heads/a unpacker error\n"), nil, false},
		{"nothing", "", nil, false},
		{"no lines", "0000", nil, false},
		{"cut off", lines("unpack ok\n", "ok refs/heads/a\n")[:30], nil, false},
		{"short line", "0003", nil, false},
		{"a page", "<html>", nil, false},
	} {
		err := report([]byte(c.raw), 2)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, kind := range []error{forge.ErrProtected, errMoved} {
			if errors.Is(err, kind) != (kind == c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(lines("unpack ok\n", "ok refs/heads/a\n")), 1)
	f.Add([]byte(lines("unpack ok\n", "ng refs/heads/a pre-receive hook declined\n")), 1)
	f.Add([]byte("0000"), 0)
	f.Fuzz(func(t *testing.T, raw []byte, branches int) {
		err := report(raw, branches)
		if err == nil && strings.Count(string(raw), "ok ") < branches {
			t.Errorf("%q says that %d branches moved", raw, branches)
		}
		if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
			t.Errorf("an error for a terminal: %q", err)
		}
	})
}

// Git's own receive-pack takes the request: all of it or nothing, and only from where
// the branches are.
func TestPushGit(t *testing.T) {
	dir := t.TempDir()
	git := func(in string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(in)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull,
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %s (install git): %v", strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	git("", "init", "--quiet", "--bare", ".")
	tree := git("", "mktree")
	one, two := git("one", "commit-tree", tree), git("two", "commit-tree", tree)
	git("", "update-ref", "refs/heads/a", one)
	git("", "update-ref", "refs/heads/a.next", two)
	push := func(moves ...move) error {
		return report([]byte(git(string(ask(moves)), "receive-pack", "--stateless-rpc", ".")), len(moves))
	}
	at := func() string { return git("", "for-each-ref", "--format=%(refname:short) %(objectname)") }

	before := at()
	if err := push(move{"a", two, one}, move{"a.next", two, ""}); !errors.Is(err, errMoved) || at() != before {
		t.Errorf("moved what is elsewhere: %v, and it is\n%s", err, at())
	}
	if err := push(move{"a", one, two}, move{"a.next", two, ""}); err != nil || at() != "a "+two {
		t.Errorf("moved: %v, and it is\n%s", err, at())
	}
	if err := push(move{"a", two, ""}); err != nil || at() != "" {
		t.Errorf("removed: %v, and it is\n%s", err, at())
	}
	if err := push(move{"b", "", strings.Repeat("1", 40)}); err == nil || at() != "" {
		t.Errorf("moved to a commit that is not there: %v\n%s", err, at())
	}
}

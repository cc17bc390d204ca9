package ledger

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
)

var now = time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) {
	if dir := os.Getenv("LEDGER_HAMMER"); dir != "" {
		hammer(dir)
		return
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *Ledger {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func create(t *testing.T, l *Ledger, uses int) join.Token {
	t.Helper()
	token, _, err := l.CreateToken(keys.Public{1}, Scope{Names: []string{"*"}}, uses, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func host(i, j int) keys.Public { return keys.Public{byte(i), byte(i >> 8), byte(j), 1} }

// 200 tokens, each tried by 50 hosts at once, through two ledgers on one file.
func TestATokenMakesOneOrigin(t *testing.T) {
	dir := t.TempDir()
	both := []*Ledger{open(t, dir), open(t, dir)}
	var (
		tokens []join.Token
		wins   [200]atomic.Int32
		all    sync.WaitGroup
	)
	for range wins {
		tokens = append(tokens, create(t, both[0], 1))
	}
	for i, token := range tokens {
		for j := range 50 {
			all.Go(func() {
				_, err := both[j%2].Accept(token, Registration{Key: host(i, j), Name: fmt.Sprintf("h%d-%d", i, j)}, now)
				switch {
				case err == nil:
					wins[i].Add(1)
				case !errors.Is(err, ErrUsed):
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	for i := range wins {
		if n := wins[i].Load(); n != 1 {
			t.Errorf("token %d made %d origins", i, n)
		}
	}
	// And after a restart.
	again := open(t, dir)
	for i, token := range tokens {
		if _, err := again.Accept(token, Registration{Key: host(i, 99), Name: "late"}, now); !errors.Is(err, ErrUsed) {
			t.Errorf("token %d after a restart: %v", i, err)
		}
	}
	if kept, err := again.Registrations(); err != nil || len(kept) != len(tokens) {
		t.Errorf("%d registrations are kept, %v", len(kept), err)
	}
}

// hammer uses every token it reads, and says which it was told it has.
func hammer(dir string) {
	l, err := Open(dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	in := bufio.NewScanner(os.Stdin)
	for i := 0; in.Scan(); i++ {
		token, err := join.ParseToken(in.Text())
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		var key keys.Public
		copy(key[:], fmt.Sprintf("%d-%d", os.Getpid(), i))
		if _, err := l.Accept(token, Registration{Key: key, Name: "h"}, now); err == nil {
			fmt.Println("won", token.ID())
		}
	}
}

// Processes that use the same tokens are killed at any moment: no token is won
// twice, and what was won before a kill stays won.
func TestKilledMidway(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	var text strings.Builder
	ids := map[string]int{}
	for range 150 {
		token := create(t, l, 1)
		ids[token.ID()] = 0
		fmt.Fprintln(&text, token.Reveal())
	}
	kills := 0
	for round := 0; kills < 12; round++ {
		if round > 100 {
			t.Fatal("the processes end before they can be killed")
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LEDGER_HAMMER="+dir)
		cmd.Stdin = strings.NewReader(text.String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		killed := false
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			word, id, _ := strings.Cut(lines.Text(), " ")
			if word != "won" {
				t.Error(lines.Text())
				continue
			}
			ids[id]++
			if n == round%5 {
				killed = cmd.Process.Kill() == nil
			}
		}
		cmd.Wait()
		if !killed {
			break // all are won
		}
		kills++
	}
	if kills < 5 {
		t.Errorf("only %d processes were killed", kills)
	}
	kept, err := open(t, dir).Tokens()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]int{}
	for _, k := range kept {
		used[k.ID] = k.Used
	}
	for id, won := range ids {
		// A process that is killed between the write and the word has won unheard.
		if won > 1 || used[id] > 1 || won > used[id] {
			t.Errorf("token %s was won %d times, and is used %d times", id, won, used[id])
		}
	}
}

func TestAccept(t *testing.T) {
	l := open(t, t.TempDir())
	one, two := create(t, l, 1), create(t, l, 2)
	r := Registration{Key: host(1, 1), Name: "vm1"}
	first, err := l.Accept(one, r, now)
	if err != nil || first.State != join.Accepted || first.Token != one.ID() || !first.At.Equal(now) {
		t.Fatalf("%+v, %v", first, err)
	}
	// The host asks again, since the answer was lost, also with another token.
	for _, token := range []join.Token{one, two} {
		if again, err := l.Accept(token, r, now.Add(time.Minute)); err != nil || !again.At.Equal(now) {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
	if _, err := l.Accept(two, Registration{Key: r.Key, Name: "vm2"}, now); !errors.Is(err, ErrTwin) {
		t.Errorf("another name: %v", err)
	}
	tokens, err := l.Tokens()
	if err != nil || len(tokens) != 2 || tokens[0].Used+tokens[1].Used != 1 {
		t.Errorf("%+v, %v", tokens, err)
	}
	forged, err := join.NewToken(keys.Public{1})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Revoke(two.ID(), now); err != nil {
		t.Fatal(err)
	}
	late := create(t, l, 1)
	for name, test := range map[string]struct {
		token join.Token
		at    time.Time
		want  error
	}{
		"used":    {one, now, ErrUsed},
		"unknown": {forged, now, ErrUnknown},
		"revoked": {two, now, ErrRevoked},
		"expired": {late, now.Add(time.Hour), ErrExpired},
	} {
		if _, err := l.Accept(test.token, Registration{Key: host(2, 2), Name: "x"}, test.at); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := l.Revoke("nobody", now); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	// A host that was refused may try again, with another token.
	err = l.Update(now, func(r *Registration) bool {
		r.State = join.Refused
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Accept(late, Registration{Key: r.Key, Name: "other"}, now); err != nil || again.Name != "other" {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestForgets(t *testing.T) {
	l := open(t, t.TempDir())
	token := create(t, l, 1)
	if _, err := l.Accept(token, Registration{Key: host(1, 1), Name: "vm1"}, now); err != nil {
		t.Fatal(err)
	}
	later := now.Add(keepTokens + 2*time.Hour)
	if err := l.Rotate("vm1", later); err != nil {
		t.Fatal(err)
	}
	tokens, err := l.Tokens()
	waiting, rerr := l.Registrations()
	rotations, oerr := l.Rotations()
	if err := errors.Join(err, rerr, oerr); err != nil || len(tokens) != 0 || len(waiting) != 1 || !rotations["vm1"].Equal(later) {
		t.Errorf("%v, %v, %v, %v", tokens, waiting, rotations, err)
	}
	if _, err := l.Accept(token, Registration{Key: host(1, 2), Name: "vm2"}, now); !errors.Is(err, ErrUnknown) {
		t.Errorf("a forgotten token: %v", err)
	}
}

func TestTheFileIsPrivate(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	token := create(t, l, 1)
	path := filepath.Join(dir, "registrations.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), token.Reveal()) || strings.Contains(string(data), token.Reveal()[20:40]) {
		t.Error("the token is in the file")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, privatefile.ErrExposed) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("half a file: %v", err)
	}
}

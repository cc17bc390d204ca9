package certs_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/certs/certstest"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

func TestMain(m *testing.M) {
	if raw := os.Getenv("KOKOA_CERTS_CHILD"); raw != "" {
		os.Exit(child(raw))
	}
	// These tests wait for an issuer far more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// Every call to the store, one after the other, fails as on a full disk, or works
// and is then reported as failed. Whatever was servable before stays servable for
// the next process, and a later turn heals the rest.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	for _, route := range []fleet.TLS{fleet.TLSAuto, fleet.TLSInternal} {
		for _, renew := range []bool{false, true} {
			for _, late := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s renew=%t late=%t", route, renew, late), func(t *testing.T) {
					t.Parallel()
					issuer := certstest.Pebble(t, certstest.Options{AlwaysValid: true})
					for at := 1; ; at++ {
						if storeFails(t, issuer, route, renew, late, at) {
							continue
						}
						if at == 1 {
							t.Error("the store was never called")
						}
						return
					}
				})
			}
		}
	}
}

// storeFails reports whether the call it was to fail was made at all.
func storeFails(t *testing.T, issuer *certstest.Issuer, kind fleet.TLS, renew, late bool, at int) bool {
	t.Helper()
	s := &setup{Dir: filepath.Join(t.TempDir(), fmt.Sprint(at)), Directory: issuer.Directory, CA: issuer.CA, TLS: kind}
	clock := &clock{}
	old := s.prepare(t, renew, clock)
	full := &faulty{FileStorage: &certmagic.FileStorage{Path: s.Dir}, at: at, late: late, fail: func() error {
		return &fs.PathError{Op: "write", Path: "disk", Err: syscall.ENOSPC}
	}}
	m := s.open(t, full, clock)
	errs := s.apply(t.Context(), m)
	if !full.fired {
		if len(errs) != 0 {
			t.Fatalf("no fault and yet: %v", errs)
		}
		return false
	}
	for _, err := range errs {
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("call %d: error %v does not say that the disk is full", at, err)
		}
	}
	s.servable(t, fmt.Sprintf("call %d (%s)", at, full.what), old, clock)

	// The same process heals by itself, a few days on at most.
	for range 4 {
		if len(s.apply(t.Context(), m)) == 0 {
			break
		}
		clock.add(2 * 24 * time.Hour)
	}
	clock.add(-clock.off)
	if p := s.plan(t.Context(), m); !p.Empty() {
		t.Errorf("call %d (%s): not healed: %+v", at, full.what, p.Changes)
	}
	return true
}

// What was issued and could not be written is served from memory, is due in the
// plan for that reason, and is written without another order.
func TestFullDiskKeepsIssued(t *testing.T) {
	t.Parallel()
	issuer := certstest.Pebble(t, certstest.Options{AlwaysValid: true})
	s := &setup{Dir: t.TempDir(), Directory: issuer.Directory, CA: issuer.CA, TLS: fleet.TLSAuto}
	if err := os.Chmod(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	full := &faulty{FileStorage: &certmagic.FileStorage{Path: s.Dir}, only: "store certificates/", at: 1, fail: func() error { return syscall.ENOSPC }}
	m := s.open(t, full, &clock{})
	if errs := s.apply(t.Context(), m); len(errs) != 1 || !errors.Is(errs[0], syscall.ENOSPC) {
		t.Fatalf("errors: %v", errs)
	}
	first, _, err := m.Load(t.Context(), s.name())
	if err != nil {
		t.Fatal(err)
	}
	if p := s.plan(t.Context(), m); len(p.Changes) != 1 || !strings.Contains(p.Changes[0].Before.String(), "due: it could not be written to the store") {
		t.Errorf("plan: %+v", p.Changes)
	}
	if errs := s.apply(t.Context(), m); len(errs) != 0 {
		t.Fatal(errs)
	}
	second, _, err := s.open(t, nil, &clock{}).Load(t.Context(), s.name())
	if err != nil || string(first) != string(second) {
		t.Errorf("the store has another certificate than was served (%v)", err)
	}
	if n := len(issuer.Orders()); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

// The process is killed before, and then after, every call to the store.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, renew := range []bool{false, true} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("renew=%t late=%t", renew, late), func(t *testing.T) {
				t.Parallel()
				issuer := certstest.Pebble(t, certstest.Options{AlwaysValid: true})
				for at := 1; ; at++ {
					s := &setup{Dir: filepath.Join(t.TempDir(), fmt.Sprint(at)), Directory: issuer.Directory, CA: issuer.CA, TLS: fleet.TLSAuto, KillAt: at, Late: late}
					clock := &clock{}
					old := s.prepare(t, renew, clock)
					s.Clock = clock.off
					out, err := s.run(t)
					if err == nil {
						if at == 1 {
							t.Error("the store was never called")
						}
						return
					}
					var exit *exec.ExitError
					if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
						t.Fatalf("call %d: %v: %s", at, err, out)
					}
					s.servable(t, fmt.Sprintf("killed at call %d", at), old, clock)
				}
			})
		}
	}
}

// A killed process leaves its lock and its failure behind; a later one finishes.
func TestKilledThenFinished(t *testing.T) {
	t.Parallel()
	issuer := certstest.Pebble(t, certstest.Options{AlwaysValid: true})
	s := &setup{Dir: filepath.Join(t.TempDir(), "state"), Directory: issuer.Directory, CA: issuer.CA, TLS: fleet.TLSAuto, KillAt: 1, KillOnly: "store certificates/"}
	if out, err := s.run(t); err == nil {
		t.Fatalf("the child was not killed: %s", out)
	}
	s.KillAt = 0
	if out, err := s.run(t); err == nil || !strings.Contains(out, "after 1 failures; the last: the order did not end") {
		t.Fatalf("at once: %v: %s, want it to wait", err, out)
	}
	s.Clock = 2 * time.Minute
	if out, err := s.run(t); err != nil {
		t.Fatalf("two minutes later: %v: %s", err, out)
	}
	s.servable(t, "at the end", []byte{}, &clock{})
	if n := len(issuer.Orders()); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}

// The kernel refuses to let files grow past a limit: writes fail halfway.
func TestTornWrites(t *testing.T) {
	t.Parallel()
	issuer := certstest.Pebble(t, certstest.Options{AlwaysValid: true})
	for _, kind := range []fleet.TLS{fleet.TLSAuto, fleet.TLSInternal} {
		for _, limit := range []uint64{1, 100, 300, 600} {
			t.Run(fmt.Sprintf("%s %d bytes", kind, limit), func(t *testing.T) {
				t.Parallel()
				s := &setup{Dir: filepath.Join(t.TempDir(), "state"), Directory: issuer.Directory, CA: issuer.CA, TLS: kind, FileLimit: limit}
				clock := &clock{}
				old := s.prepare(t, true, clock)
				s.Clock = clock.off
				if out, err := s.run(t); err == nil || !strings.Contains(out, "file too large") {
					t.Fatalf("the child wrote its files: %v: %s", err, out)
				}
				s.servable(t, "after a torn write", old, clock)
			})
		}
	}
}

// setup is one certificate's store, and how the child process is to work on it.
type setup struct {
	Dir, Directory, CA string
	TLS                fleet.TLS
	Clock              time.Duration
	// KillAt is the call to the store at which the child kills itself; 0 for none.
	// Only calls whose name begins with KillOnly count.
	KillAt   int
	KillOnly string
	Late     bool
	// FileLimit is the child's RLIMIT_FSIZE in bytes; 0 for none.
	FileLimit uint64
}

func (s *setup) fleet() *fleet.Fleet {
	return &fleet.Fleet{
		Name: "test", Domains: []string{"example.com"}, Network: netip.MustParsePrefix("10.9.0.0/16"),
		ACME:   fleet.ACME{Directory: s.Directory, CA: s.CA, Challenge: fleet.ChallengeDNS01},
		Routes: map[string]fleet.Route{"r": route("r", "a.example.com", s.TLS, 1)},
	}
}

func (s *setup) name() string { return certs.Wants(s.fleet())[0].Name }

func (s *setup) open(t *testing.T, storage certmagic.Storage, c *clock) *certs.Manager {
	t.Helper()
	m, err := s.manager(storage, c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *setup) manager(storage certmagic.Storage, c *clock) (*certs.Manager, error) {
	return certs.Open(certs.Config{Dir: s.Dir, Storage: storage, CA: keys.Secret{1}.CA(), TXT: nobody{}, Now: c.now})
}

// prepare fills the store with a certificate that is due, when one is to be
// renewed, and returns its chain.
func (s *setup) prepare(t *testing.T, renew bool, c *clock) []byte {
	t.Helper()
	if !renew {
		return nil
	}
	m := s.open(t, nil, c)
	if errs := s.apply(t.Context(), m); len(errs) != 0 {
		t.Fatal(errs)
	}
	old, _, err := m.Load(t.Context(), s.name())
	if err != nil {
		t.Fatal(err)
	}
	c.add(21 * 24 * time.Hour)
	if s.TLS == fleet.TLSAuto {
		c.add(50 * 24 * time.Hour)
	}
	return old
}

func (s *setup) plan(ctx context.Context, m *certs.Manager) plan.Plan {
	seen, _ := m.Observe(ctx, s.fleet())
	var desired []plan.Object
	for _, want := range certs.Wants(s.fleet()) {
		desired = append(desired, plan.Object{Ref: plan.Ref{Kind: plan.Certificate, Name: want.Name}, Spec: want.Spec()})
	}
	p, err := plan.Compute(plan.Input{Desired: desired, Observed: seen.Objects, Unseen: seen.Unseen})
	if err != nil {
		panic(err)
	}
	return p
}

func (s *setup) apply(ctx context.Context, m *certs.Manager) []error {
	return slices.DeleteFunc(m.Apply(ctx, s.plan(ctx, m).Changes), func(err error) bool { return err == nil })
}

// servable checks that another process finds the old pair or a new one, and where
// there was none, none or a new one.
func (s *setup) servable(t *testing.T, when string, old []byte, c *clock) {
	t.Helper()
	chain, key, err := s.open(t, nil, c).Load(t.Context(), s.name())
	switch {
	case errors.Is(err, fs.ErrNotExist) && old == nil:
		return
	case err != nil:
		t.Errorf("%s: nothing can be served: %v", when, err)
		return
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil || pair.Leaf.VerifyHostname("a.example.com") != nil {
		t.Errorf("%s: what is stored serves nothing: %v", when, err)
	}
}

// run does one turn in a process of its own.
func (s *setup) run(t *testing.T) (string, error) {
	t.Helper()
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "KOKOA_CERTS_CHILD="+string(raw))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func child(raw string) int {
	var s setup
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if s.FileLimit > 0 {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: s.FileLimit, Max: s.FileLimit}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	m, err := s.manager(&faulty{FileStorage: &certmagic.FileStorage{Path: s.Dir}, at: s.KillAt, only: s.KillOnly, late: s.Late, fail: func() error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return err
		}
		select {}
	}}, &clock{off: s.Clock})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if errs := s.apply(context.Background(), m); len(errs) != 0 {
		fmt.Fprintln(os.Stderr, errs)
		return 1
	}
	return 0
}

// faulty is files whose call number at fails, before it does anything or, when
// late, after.
type faulty struct {
	*certmagic.FileStorage
	// only counts calls whose name begins so.
	only string
	late bool
	fail func() error

	mu    sync.Mutex
	at    int
	fired bool
	what  string
}

func (f *faulty) step(what string, do func() error) error {
	f.mu.Lock()
	hit := false
	if strings.HasPrefix(what, f.only) {
		f.at--
		if hit = f.at == 0; hit {
			f.fired, f.what = true, what
		}
	}
	f.mu.Unlock()
	if !hit {
		return do()
	}
	if f.late && !strings.HasPrefix(what, "lock ") {
		if err := do(); err != nil {
			return err
		}
	}
	return f.fail()
}

func (f *faulty) Store(ctx context.Context, key string, value []byte) error {
	return f.step("store "+key, func() error { return f.FileStorage.Store(ctx, key, value) })
}

func (f *faulty) Delete(ctx context.Context, key string) error {
	return f.step("delete "+key, func() error { return f.FileStorage.Delete(ctx, key) })
}

func (f *faulty) Lock(ctx context.Context, name string) error {
	return f.step("lock "+name, func() error { return f.FileStorage.Lock(ctx, name) })
}

// nobody takes TXT records for an issuer that does not look.
type nobody struct{}

func (nobody) Add(context.Context, string, string) error    { return nil }
func (nobody) Remove(context.Context, string, string) error { return nil }

package certs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/certs/certstest"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// A wildcard and its parent are one order with two TXT values at one name, and the
// plan is empty afterwards, in another process too.
func TestDNS01(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	f := w.fleet("example.com", "a.example.com", "b.example.com", "x.apps.example.com")
	w.converge(f)
	w.want("acme-_.example.com", "*.example.com", "example.com")
	w.want("acme-_.apps.example.com", "*.apps.example.com")
	w.settled(f)
	if now, most := w.zone.Records(); now != 0 || most != 2 {
		t.Errorf("TXT values: %d left, at most %d at one name; want 0 and 2", now, most)
	}
	w.reopen()
	w.settled(f)
	f = w.fleet("example.com", "a.example.com", "new.example.com")
	w.settled(f)
	if n := len(w.issuer.Orders()); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
	if n := w.issuer.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
}

func TestHTTP01(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeHTTP01)
	f := w.fleet("example.com", "a.example.com")
	w.converge(f)
	w.want("acme-example.com", "example.com")
	w.want("acme-a.example.com", "a.example.com")
	w.settled(f)
	if now, ever := w.http.Answers(); now != 0 || ever != 2 {
		t.Errorf("answers: %d left of %d; want 0 of 2", now, ever)
	}
	// The account outlives the process.
	w.reopen()
	f = w.fleet("example.com", "a.example.com", "b.example.com")
	w.converge(f)
	w.settled(f)
	if n := w.issuer.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	if n := len(w.issuer.Orders()); n != 3 {
		t.Errorf("%d orders, want 3", n)
	}

	f = w.fleet("*.example.com")
	if errs := w.apply(f); len(errs) != 1 || !strings.Contains(errs[0].Error(), "routes.cue:1:1: http-01 cannot prove the wildcard *.example.com") {
		t.Errorf("wildcard by HTTP-01: %v", errs)
	}
}

// Three of ten nonces are refused: every name is issued with one order all the
// same. (At one of two, acmez's ten tries of a request are too few now and then.)
func TestNonceReject(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{NonceReject: 30}, fleet.ChallengeHTTP01)
	var hosts []string
	for i := range 10 {
		hosts = append(hosts, fmt.Sprintf("h%d.example.com", i))
	}
	f := w.fleet(hosts...)
	w.converge(f)
	w.settled(f)
	seen := map[string]int{}
	for _, o := range w.issuer.Orders() {
		seen[o.Hosts[0]]++
	}
	for _, h := range hosts {
		if seen[h] != 1 {
			t.Errorf("%d orders for %s, want 1", seen[h], h)
		}
	}
}

// Renewal is a change in the plan that says why, comes with a third of the life
// left, and says to the issuer what it replaces.
func TestRenewal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		life   time.Duration
		before time.Duration
		after  time.Duration
	}{
		{"90 days", 90 * 24 * time.Hour, 59 * 24 * time.Hour, 60*24*time.Hour + time.Hour},
		{"160 hours", 160 * time.Hour, 79 * time.Hour, 81 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, certstest.Options{Lifetime: c.life}, fleet.ChallengeDNS01)
			f := w.fleet("a.example.com")
			w.converge(f)
			first := w.held(f)["acme-_.example.com"]
			chain, _, err := w.m.Load(t.Context(), first.Name)
			if err != nil {
				t.Fatal(err)
			}
			// The issuer wishes nothing: age alone decides.
			if err := os.RemoveAll(filepath.Join(w.dir, "renewals")); err != nil {
				t.Fatal(err)
			}
			w.clock.add(c.before)
			w.settled(f)
			w.clock.add(c.after - c.before)
			p := w.plan(f)
			if len(p.Changes) != 1 || p.Changes[0].Action != plan.Update {
				t.Fatalf("plan: %v, want one update", p.Changes)
			}
			if got := p.Changes[0].Before.String(); !strings.Contains(got, "due: it expires on ") {
				t.Errorf("reason: %s", got)
			}
			w.converge(f)
			second := w.held(f)["acme-_.example.com"]
			if first.Fingerprint == second.Fingerprint {
				t.Error("the certificate is still the first")
			}
			w.replaced(chain)
		})
	}
}

// An issuer that wishes a certificate replaced, since it will revoke it, is heard
// at the next poll.
func TestIssuerWishesRenewal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	f := w.fleet("a.example.com")
	w.converge(f)
	first := w.held(f)["acme-_.example.com"]
	chain, _, err := w.m.Load(t.Context(), first.Name)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	w.issuer.SetRenewal(t, chain, now.Add(-2*time.Hour), now.Add(-time.Hour), "https://issuer.example/incident")
	if err := w.m.PollRenewals(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	w.settled(f) // Asked not long ago: the issuer said when to ask again.
	w.clock.add(7 * time.Hour)
	if err := w.m.PollRenewals(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	p := w.plan(f)
	if len(p.Changes) != 1 || !strings.Contains(p.Changes[0].Before.String(), "its issuer asks for renewal from") || !strings.Contains(p.Changes[0].Before.String(), "https://issuer.example/incident") {
		t.Fatalf("plan: %v, want an update that the issuer asked for", p.Changes)
	}
	w.converge(f)
	w.settled(f)
	if second := w.held(f)["acme-_.example.com"]; second.Fingerprint == first.Fingerprint {
		t.Error("the certificate is still the first")
	}
	w.replaced(chain)
}

// A certificate that the issuer holds for replaced already is still renewed.
func TestAlreadyReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	f := w.fleet("a.example.com")
	w.converge(f)
	bundle := filepath.Join(w.dir, "certificates", "acme-_.example.com.json")
	old, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.add(61 * 24 * time.Hour)
	w.converge(f)
	// Renewed, and then the disk goes back to a backup.
	if err := os.WriteFile(bundle, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if errs := w.apply(f); len(errs) != 0 {
		t.Fatal(errs)
	}
	if now, err := os.ReadFile(bundle); err != nil || bytes.Equal(now, old) {
		t.Errorf("the certificate was not renewed (%v)", err)
	}
}

// Wrong DNS is told in words, leaves nothing behind, and is not tried again before
// its time, by another process either.
func TestWrongDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	w.resolvers = nil // Nobody here looks first: the issuer does.
	w.reopen()
	w.zone.SetDeaf(true)
	f := w.fleet("a.example.com")
	errs := w.apply(f)
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "certificate acme-_.example.com: order *.example.com from "+w.issuer.Directory) ||
		!strings.Contains(errs[0].Error(), "No TXT records found for DNS challenge") || !strings.Contains(errs[0].Error(), "tried next at ") {
		t.Fatalf("errors: %v", errs)
	}
	if now, _ := w.zone.Records(); now != 0 {
		t.Errorf("%d TXT values left", now)
	}
	w.reopen()
	var later *certs.LaterError
	if errs := w.apply(f); len(errs) != 1 || !errors.As(errs[0], &later) || later.Failures != 1 {
		t.Fatalf("second try: %v, want a LaterError", errs)
	}
	if n := len(w.issuer.Orders()); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if wait := later.At.Sub(w.clock.now()); wait <= 50*time.Second || wait > 72*time.Second {
		t.Errorf("next try in %s, want about a minute", wait)
	}

	// Each refusal makes the wait longer, up to a day.
	for i, want := range []time.Duration{10 * time.Minute, 100 * time.Minute, 24 * time.Hour, 24 * time.Hour} {
		w.clock.add(later.At.Sub(w.clock.now()))
		if errs := w.apply(f); len(errs) != 1 || errors.As(errs[0], new(*certs.LaterError)) {
			t.Fatalf("try %d: %v, want a refusal", i+2, errs)
		}
		errs := w.apply(f)
		if len(errs) != 1 || !errors.As(errs[0], &later) {
			t.Fatalf("after try %d: %v, want a LaterError", i+2, errs)
		}
		if wait := later.At.Sub(w.clock.now()); wait < want-time.Second || wait > want*6/5 {
			t.Errorf("after try %d: next in %s, want %s and at most a fifth more", i+2, wait, want)
		}
	}
	if n := len(w.issuer.Orders()); n != 5 {
		t.Errorf("%d orders, want 5", n)
	}

	w.zone.SetDeaf(false)
	w.clock.add(30 * time.Hour)
	w.converge(f)
	w.settled(f)
}

// A server that does not show the record is named, and the issuer is not asked to
// look, which would be a failed validation.
func TestNotPropagated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	w.propagation = 100 * time.Millisecond
	w.reopen()
	w.zone.SetDeaf(true)
	errs := w.apply(w.fleet("a.example.com"))
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "DNS server "+w.zone.Addr+" does not answer with it") {
		t.Fatalf("errors: %v", errs)
	}
	if now, _ := w.zone.Records(); now != 0 {
		t.Errorf("%d TXT values left", now)
	}
}

// With the issuer down what is held stays, and one certificate's failure is no
// other's: the internal one is issued.
func TestIssuerDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	f := w.fleet("a.example.com")
	w.converge(f)
	first := w.held(f)["acme-_.example.com"]
	w.clock.add(61 * 24 * time.Hour)
	w.issuer.SetDown(true)
	r := route("in", "in.example.com", fleet.TLSInternal, 9)
	f.Routes["in"] = r
	errs := w.apply(f)
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "acme-_.example.com") || !strings.Contains(errs[0].Error(), "503") {
		t.Fatalf("errors: %v", errs)
	}
	held := w.held(f)
	if held["acme-_.example.com"].Fingerprint != first.Fingerprint {
		t.Error("the old certificate is gone")
	}
	if _, ok := held["internal-_.example.com"]; !ok {
		t.Error("the internal certificate was not issued")
	}
	// An outage is not the certificate's fault: it is tried again within minutes.
	w.clock.add(15 * time.Minute)
	w.issuer.SetDown(false)
	w.converge(f)
	w.clock.add(-w.clock.off) // Pebble issues by the real clock.
	w.settled(f)
}

// An issuer that asks for peace gets it, for all certificates, as long as it said.
func TestRateLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeHTTP01)
	w.issuer.SetRateLimited(3 * time.Hour)
	f := w.fleet("a.example.com")
	if errs := w.apply(f); len(errs) != 1 || !strings.Contains(errs[0].Error(), "too many for the test") {
		t.Fatalf("errors: %v", errs)
	}
	w.issuer.SetRateLimited(0)
	f = w.fleet("a.example.com", "b.example.com")
	w.clock.add(2*time.Hour + 59*time.Minute)
	errs := w.apply(f)
	if len(errs) != 2 {
		t.Fatalf("errors: %v, want two", errs)
	}
	for _, err := range errs {
		if !errors.As(err, new(*certs.LaterError)) {
			t.Errorf("error: %v, want a LaterError", err)
		}
	}
	if n := len(w.issuer.Orders()); n != 0 {
		t.Errorf("%d orders, want none", n)
	}
	w.clock.add(2 * time.Minute)
	w.converge(f)
	w.settled(f)
}

// A private issuer that was set up afresh has forgotten the account.
func TestAccountForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	f := w.fleet("a.example.com")
	w.converge(f)
	accounts, err := filepath.Glob(filepath.Join(w.dir, "accounts", "*"))
	if err != nil || len(accounts) != 1 {
		t.Fatalf("accounts: %v %v", accounts, err)
	}
	raw, err := os.ReadFile(accounts[0])
	if err != nil {
		t.Fatal(err)
	}
	// The same directory, and an account it does not know under another key.
	other := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	raw = bytes.ReplaceAll(raw, []byte(w.issuer.Directory), []byte(other.issuer.Directory))
	raw = bytes.ReplaceAll(raw, []byte(strings.TrimSuffix(w.issuer.Directory, "/dir")), []byte(strings.TrimSuffix(other.issuer.Directory, "/dir")))
	sum := sha256.Sum256([]byte(other.issuer.Directory))
	if err := os.MkdirAll(filepath.Join(other.dir, "accounts"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other.dir, "accounts", hex.EncodeToString(sum[:8])+".json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	f = other.fleet("a.example.com")
	other.converge(f)
	other.settled(f)
	if n := other.issuer.Accounts(); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	// Another address is told to the issuer, not registered.
	f = other.fleet("a.example.com", "a.b.example.com")
	f.ACME.Email = "ops@example.com"
	other.converge(f)
	if n := other.issuer.Accounts(); n != 1 {
		t.Errorf("%d accounts after a change of address, want 1", n)
	}
}

// Several processes that start at once on one empty store share one account and
// one order.
func TestTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	f := w.fleet("a.example.com")
	var g sync.WaitGroup
	for range 4 {
		w.reopen()
		m := w.m
		g.Go(func() {
			for _, err := range m.Apply(t.Context(), w.planOf(m, f).Changes) {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	w.settled(f)
	if n, a := len(w.issuer.Orders()), w.issuer.Accounts(); n != 1 || a != 1 {
		t.Errorf("%d orders and %d accounts, want one of each", n, a)
	}
}

// Being stopped ends an order at once, cleans up, and is nobody's failure.
func TestCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	w.zone.SetDeaf(true) // The order waits for the record to show.
	f := w.fleet("a.example.com")
	ctx, cancel := context.WithCancel(t.Context())
	changes := w.plan(f).Changes
	done := make(chan []error)
	go func() { done <- w.m.Apply(ctx, changes) }()
	for now := 0; now == 0; now, _ = w.zone.Records() {
		select {
		case errs := <-done:
			t.Fatal(errs)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if errs := <-done; !errors.Is(errs[0], context.Canceled) {
		t.Errorf("errors: %v", errs)
	}
	if now, _ := w.zone.Records(); now != 0 {
		t.Errorf("%d TXT values left", now)
	}
	w.zone.SetDeaf(false)
	w.converge(f)
	w.settled(f)
}

// What is served is what was received, intermediates and all.
func TestLongChain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{ChainLength: 3}, fleet.ChallengeDNS01)
	w.converge(w.fleet("a.example.com"))
	w.want("acme-_.example.com", "*.example.com")
	chain, _, err := w.m.Load(t.Context(), "acme-_.example.com")
	if err != nil || bytes.Count(chain, []byte("BEGIN CERTIFICATE")) != 4 {
		t.Errorf("%v\n%s\nwant a leaf and three intermediates", err, chain)
	}
}

// What cannot work is told before anything is asked of anyone, and at once when
// it has been mended.
func TestUnanswerable(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	for _, c := range []struct {
		name string
		set  func(*fleet.Fleet)
		want string
	}{
		{"no DNS", func(f *fleet.Fleet) { f.ACME.Challenge = fleet.ChallengeDNS01 }, "fleet.cue:1:1: dns-01 needs DNS that Kokoa may change; set fleet.dns.provider"},
		{"no edges", func(f *fleet.Fleet) { f.ACME.Challenge = fleet.ChallengeHTTP01 }, "fleet.cue:1:1: http-01 needs an edge that answers"},
		{"another challenge", func(f *fleet.Fleet) { f.ACME.Challenge = "tls-alpn-01" }, `unknown challenge "tls-alpn-01"; write dns-01 or http-01`},
	} {
		m, err := certs.Open(certs.Config{Dir: w.dir, Now: w.clock.now})
		if err != nil {
			t.Fatal(err)
		}
		f := w.fleet("a.example.com")
		c.set(f)
		for range 2 {
			if errs := m.Apply(t.Context(), w.planOf(m, f).Changes); len(errs) != 1 || errs[0] == nil || !strings.Contains(errs[0].Error(), c.want) {
				t.Errorf("%s: %v, want %s", c.name, errs, c.want)
			}
		}
	}
	f := w.fleet("a.example.com")
	f.ACME.CA = filepath.Join(t.TempDir(), "none.pem")
	if errs := w.apply(f); len(errs) != 1 || !errors.Is(errs[0], fs.ErrNotExist) || !strings.Contains(errs[0].Error(), "fleet.cue:1:1: read acme.ca: ") {
		t.Errorf("no CA file: %v", errs)
	}
	w.converge(w.fleet("a.example.com"))
}

// The state folder's keys are the owner's alone.
func TestModes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, certstest.Options{}, fleet.ChallengeDNS01)
	w.converge(w.fleet("a.example.com"))
	files := 0
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if !d.IsDir() {
			files++
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("%d files, %v; want a certificate, an account and a renewal at least", files, err)
	}
	if err := os.Chmod(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := certs.Open(certs.Config{Dir: w.dir}); err == nil || !strings.Contains(err.Error(), "chmod 700 "+w.dir) {
		t.Errorf("open a folder that others can read: %v", err)
	}
	for _, name := range []string{"", "..", "../accounts/x", "a/b", `a\b`, "none"} {
		if _, _, err := w.m.Load(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("load %q: %v, want fs.ErrNotExist", name, err)
		}
	}
}

// world is a Manager with an issuer, a zone and an edge, and a clock to move.
type world struct {
	t           *testing.T
	dir         string
	issuer      *certstest.Issuer
	zone        *certstest.Zone
	http        *certstest.HTTP
	challenge   fleet.Challenge
	resolvers   func(string) []string
	propagation time.Duration
	clock       *clock
	secret      keys.Secret
	m           *certs.Manager
	// said is every log line and every error's text.
	said *logtest.Buffer
}

func newWorld(t *testing.T, o certstest.Options, challenge fleet.Challenge) *world {
	t.Helper()
	zone, http := certstest.DNS(t), certstest.Challenges(t)
	o.Resolver, o.HTTPPort = zone.Addr, http.Port
	w := &world{
		t: t, dir: filepath.Join(t.TempDir(), "state"), issuer: certstest.Pebble(t, o), zone: zone, http: http, challenge: challenge,
		resolvers: func(string) []string { return []string{zone.Addr} },
		clock:     &clock{}, secret: keys.Secret{1, 2, 3}, said: &logtest.Buffer{},
	}
	w.reopen()
	t.Cleanup(w.noKeys)
	return w
}

// reopen is another process on the same state folder.
func (w *world) reopen() {
	w.t.Helper()
	m, err := certs.Open(certs.Config{
		Dir: w.dir, CA: w.secret.CA(), TXT: w.zone, Resolvers: w.resolvers, Propagation: w.propagation, Challenges: w.http,
		Now: w.clock.now, Log: slog.New(slog.NewTextHandler(w.said, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
}

func (w *world) fleet(hosts ...string) *fleet.Fleet {
	f := &fleet.Fleet{
		Name: "test", Domains: []string{"example.com"}, Network: netip.MustParsePrefix("10.9.0.0/16"),
		ACME:   fleet.ACME{Directory: w.issuer.Directory, CA: w.issuer.CA, Challenge: w.challenge, Position: fleet.Position{File: "fleet.cue", Line: 1, Column: 1}},
		Routes: map[string]fleet.Route{},
	}
	for i, host := range hosts {
		name := fmt.Sprintf("r%d", i)
		f.Routes[name] = route(name, host, fleet.TLSAuto, i+1)
	}
	return f
}

func route(name, host string, tls fleet.TLS, line int) fleet.Route {
	return fleet.Route{Name: name, Host: host, Path: "/", TLS: tls, Active: true, Position: fleet.Position{File: "routes.cue", Line: line, Column: 1}}
}

func (w *world) plan(f *fleet.Fleet) plan.Plan {
	w.t.Helper()
	return w.planOf(w.m, f)
}

func (w *world) planOf(m *certs.Manager, f *fleet.Fleet) plan.Plan {
	w.t.Helper()
	seen, _ := m.Observe(w.t.Context(), f)
	var desired []plan.Object
	for _, want := range certs.Wants(f) {
		desired = append(desired, plan.Object{Ref: plan.Ref{Kind: plan.Certificate, Name: want.Name}, Spec: want.Spec(), From: want.From.String()})
	}
	p, err := plan.Compute(plan.Input{Desired: desired, Observed: seen.Objects, Unseen: seen.Unseen})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// apply makes what is planned and returns the errors.
func (w *world) apply(f *fleet.Fleet) []error {
	w.t.Helper()
	var errs []error
	for _, err := range w.m.Apply(w.t.Context(), w.plan(f).Changes) {
		if err != nil {
			fmt.Fprintln(w.said, err)
			errs = append(errs, err)
		}
	}
	return errs
}

func (w *world) converge(f *fleet.Fleet) {
	w.t.Helper()
	if errs := w.apply(f); len(errs) != 0 {
		w.t.Fatal(errs)
	}
}

func (w *world) settled(f *fleet.Fleet) {
	w.t.Helper()
	if p := w.plan(f); !p.Empty() {
		w.t.Fatalf("plan after apply: %+v", p.Changes)
	}
}

func (w *world) held(f *fleet.Fleet) map[string]certs.Held {
	_, held := w.m.Observe(w.t.Context(), f)
	return held
}

// want checks that a stored pair serves the hosts and chains to the issuer's root.
func (w *world) want(name string, hosts ...string) {
	w.t.Helper()
	chain, key, err := w.m.Load(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.issuer.RootPEM)
	serves(w.t, chain, key, roots, w.clock.now(), hosts...)
}

// replaced checks that the second of two orders said that it replaces a chain's
// leaf, which Pebble 2.10 does not know again when its serial's first bit is set.
func (w *world) replaced(chain []byte) {
	w.t.Helper()
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := acme.ARIUniqueIdentifier(leaf)
	if err != nil {
		w.t.Fatal(err)
	}
	if leaf.SerialNumber.BitLen()%8 == 0 {
		id = ""
	}
	orders := w.issuer.Orders()
	if len(orders) != 2 || orders[0].Replaces != "" || orders[1].Replaces != id {
		w.t.Errorf("orders %+v, want the second to replace %q", orders, id)
	}
}

func serves(t *testing.T, chain, key []byte, roots *x509.CertPool, now time.Time, hosts ...string) *x509.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	if len(pair.Leaf.DNSNames) != len(hosts) {
		t.Errorf("names %q, want %q", pair.Leaf.DNSNames, hosts)
	}
	for _, host := range hosts {
		name := strings.Replace(host, "*", "any", 1)
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	return pair.Leaf
}

// noKeys looks for every private key of the store in everything that was said.
func (w *world) noKeys() {
	var secrets []string
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, key, ok := bytes.Cut(raw, []byte(`-----BEGIN PRIVATE KEY-----\n`))
		if ok {
			secrets = append(secrets, string(key[:40]))
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
	d, err := w.secret.CA().Bytes()
	if err != nil {
		w.t.Fatal(err)
	}
	secrets = append(secrets, hex.EncodeToString(d), "PRIVATE KEY")
	said := w.said.String()
	for _, s := range secrets {
		if strings.Contains(said, s) {
			w.t.Errorf("a private key was said: %.8s…", s)
		}
	}
}

// clock is the real one, moved.
type clock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

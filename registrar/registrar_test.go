package registrar

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/bare"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
	"github.com/kokoa-proxy/kokoa/schema"
)

func TestMain(m *testing.M) {
	schema.RunIfWorker()
	m.Run()
}

// world is a control plane with a real fleet repo, a real bare forge and a clock.
type world struct {
	*testing.T
	*Registrar
	secret keys.Secret
	state  string
	dir    string // the bare repo
	clone  string
	loader *schema.Loader
	source repo.Source
	forge  *flaky
	server *httptest.Server
	ledger *ledger.Ledger

	mu  sync.Mutex
	now time.Time
}

// flaky is a forge with trouble on demand.
type flaky struct {
	forge.Forge
	mu      sync.Mutex
	trouble error
	// proposals and merges count calls.
	proposals, merges atomic.Int32
	// refused is the error for branches with a text in their name.
	refused   map[string]error
	protected atomic.Bool
}

func (f *flaky) fail(err error) {
	f.mu.Lock()
	f.trouble = err
	f.mu.Unlock()
}

func (f *flaky) refuse(part string, err error) { f.refused = map[string]error{part: err} }

func (f *flaky) ill() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trouble
}

func (f *flaky) Propose(ctx context.Context, p forge.Proposal) (forge.Pull, error) {
	f.proposals.Add(1)
	if err := f.ill(); err != nil {
		return forge.Pull{}, err
	}
	for part, err := range f.refused {
		if strings.Contains(p.Branch, part) {
			return forge.Pull{}, err
		}
	}
	return f.Forge.Propose(ctx, p)
}

func (f *flaky) Merge(ctx context.Context, p forge.Pull) error {
	f.merges.Add(1)
	if f.protected.Load() {
		return forge.ErrProtected
	}
	return f.Forge.Merge(ctx, p)
}

const fleetFile = `package fleet

fleet: {
	name: "home"
	domains: ["kokoa.test"]
	network: "10.86.0.0/16"
	registration: {
		automatic: {names: ["dev-*"], hosts: ["*.dev.kokoa.test"], temporary_only: true}
		refuse: ["control*"]
	}
}
edge: tokyo: {
	addresses: ["203.0.113.10"]
	endpoint:       "203.0.113.10:51820"
	tunnel_address: "10.86.0.16"
}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fleet.git")
	if out, err := exec.Command("git", "init", "-q", "--bare", "--initial-branch=main", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return newWorldAt(t, dir,
		func() (forge.Forge, error) { return bare.Open(dir, "main", bare.Options{}) },
		func() (repo.Source, error) { return repo.Open(dir, repo.Options{}) })
}

// newWorldAt is a world whose fleet repo is bare in a folder, and is reached by a forge
// and a source that are opened once it has a commit.
func newWorldAt(t *testing.T, bareDir string, at func() (forge.Forge, error), source func() (repo.Source, error)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		T: t, secret: keys.Secret{7}, state: filepath.Join(dir, "state"), dir: bareDir, clone: filepath.Join(dir, "clone"),
		loader: schema.NewLoader(schema.Options{}), now: time.Now().UTC().Truncate(time.Second),
	}
	t.Cleanup(func() {
		if err := w.loader.Close(); err != nil {
			t.Error(err)
		}
	})
	w.sh("git", "clone", "-q", w.dir, w.clone)
	w.write("fleet.cue", fleetFile)
	w.push("Start")
	opened, err := at()
	if err != nil {
		t.Fatal(err)
	}
	w.forge = &flaky{Forge: opened}
	if w.source, err = source(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.source.Close() })
	w.sh("mkdir", "-m", "700", w.state)
	w.restart()
	return w
}

// restart is a new control plane on the same disk.
func (w *world) restart() {
	w.Helper()
	var err error
	if w.ledger, err = ledger.Open(w.state); err != nil {
		w.Fatal(err)
	}
	if w.server != nil {
		w.server.Close()
	}
	w.Registrar = &Registrar{Secret: w.secret, Ledger: w.ledger, Forge: w.forge, Now: w.clock}
	w.server = httptest.NewServer(w.Handler())
	w.Cleanup(w.server.Close)
	w.turn()
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) later(d time.Duration) {
	w.mu.Lock()
	w.now = w.now.Add(d)
	w.mu.Unlock()
}

func (w *world) sh(name string, args ...string) string {
	w.Helper()
	cmd := exec.Command(name, args...)
	if name == "git" && args[0] != "init" && args[0] != "clone" {
		cmd.Dir = w.clone
	}
	cmd.Env = append(cmd.Environ(), "GIT_AUTHOR_NAME=p", "GIT_AUTHOR_EMAIL=p@x", "GIT_COMMITTER_NAME=p", "GIT_COMMITTER_EMAIL=p@x", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (w *world) write(name, text string) {
	w.Helper()
	w.sh("mkdir", "-p", filepath.Dir(filepath.Join(w.clone, name)))
	cmd := exec.Command("tee", filepath.Join(w.clone, name))
	cmd.Stdin = strings.NewReader(text)
	if err := cmd.Run(); err != nil {
		w.Fatal(err)
	}
}

func (w *world) push(message string) {
	w.Helper()
	w.sh("git", "add", "-A")
	w.sh("git", "commit", "-qm", message)
	w.sh("git", "push", "-q", "origin", "HEAD:main")
}

// load is the view that a turn of the reconciler would give.
func (w *world) load() View {
	w.Helper()
	revision, err := w.source.Fetch(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	f, _, err := w.loader.Load(w.Context(), revision)
	if err != nil {
		w.Fatalf("the fleet repo does not load: %v\n%s", err, w.sh("git", "--git-dir="+w.dir, "log", "-p", "-3", "main"))
	}
	return View{
		Fleet: f, Commit: revision.Commit, Read: revision.Read,
		Edges: []api.AgentEdge{{Name: "tokyo", PublicKey: keys.Public{9}, Endpoint: "203.0.113.10:51820", Address: netip.MustParseAddr("10.86.0.16")}},
	}
}

func (w *world) turn() { w.Helper(); w.See(w.load()) }

// step is the registrar's work and then a turn of the reconciler.
func (w *world) step() {
	w.Helper()
	w.work(w.Context())
	w.turn()
	w.work(w.Context())
}

func (w *world) token(s ledger.Scope) string {
	w.Helper()
	if s.Names == nil {
		s.Names = []string{"*"}
	}
	t, _, err := w.ledger.CreateToken(w.secret.Join().Public(), s, 1, time.Hour, w.clock())
	if err != nil {
		w.Fatal(err)
	}
	return t.Reveal()
}

// host is one that joins.
type host struct {
	w   *world
	key keys.Private
}

func (w *world) host() host {
	w.Helper()
	k, err := keys.NewPrivate()
	if err != nil {
		w.Fatal(err)
	}
	return host{w, k}
}

func (h host) ask(q join.Question) join.Answer {
	h.w.Helper()
	c := join.Client{URL: h.w.server.URL, Control: h.w.secret.Join().Public(), Key: h.key}
	a, err := c.Ask(h.w.Context(), q)
	if err != nil {
		h.w.Fatal(err)
	}
	return a
}

func (h host) register(r join.Registration) join.Answer {
	h.w.Helper()
	if r.Now.IsZero() {
		r.Now = h.w.clock()
	}
	r.Platform, r.Version, r.Hostname = "linux/arm64", "1.2.3", "box"
	return h.ask(join.Question{Register: &r})
}

func (w *world) message(branch string) string {
	w.Helper()
	return w.sh("git", "--git-dir="+w.dir, "log", "-1", "--format=%B", branch)
}

func (w *world) branches() []string {
	w.Helper()
	return strings.Fields(w.sh("git", "--git-dir="+w.dir, "for-each-ref", "--format=%(refname:short)", "refs/heads/kokoa"))
}

func TestAHostBecomesAnOrigin(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	if a := h.ask(join.Question{}); a.State != join.Unknown {
		t.Fatalf("%+v", a)
	}
	a := h.register(join.Registration{Token: w.token(ledger.Scope{Names: []string{"rpi-home"}, Hosts: []string{"*.home.kokoa.test"}}), Name: "rpi-home"})
	if a.State != join.Accepted {
		t.Fatalf("%+v", a)
	}
	w.step()
	a = h.ask(join.Question{})
	if a.State != join.Proposed || !strings.Contains(a.Pull, "kokoa origin approve") || len(a.Flags) > 0 {
		t.Fatalf("%+v", a)
	}
	branch := join.Branch("rpi-home", h.key.Public())
	if got := w.branches(); !slices.Equal(got, []string{branch}) {
		t.Fatalf("branches %v", got)
	}
	text := w.message(branch)
	for _, want := range []string{"Register origin rpi-home", h.key.Public().String(), "10.86.0.17", "*.home.kokoa.test", "origins/rpi-home.cue", "linux/arm64"} {
		if !strings.Contains(text, want) {
			t.Errorf("the proposal does not say %q:\n%s", want, text)
		}
	}
	// Asking again, and a control plane that starts anew, make nothing new.
	n := w.forge.proposals.Load()
	w.step()
	if w.forge.proposals.Load() != n {
		t.Error("it was proposed again for nothing")
	}
	w.restart()
	w.step()
	if got := w.branches(); len(got) != 1 {
		t.Fatalf("branches %v", got)
	}
	// A person merges; the host that waits is told.
	done := make(chan join.Answer, 1)
	go func() { done <- h.ask(join.Question{Seen: join.Proposed, Wait: join.MaxWait}) }()
	pull, err := w.forge.Find(t.Context(), branch)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.forge.Merge(t.Context(), pull); err != nil {
		t.Fatal(err)
	}
	w.step()
	a = <-done
	if a.State != join.Live || a.Fleet == nil || a.Fleet.Name != "home" || a.Fleet.Origin != "rpi-home" ||
		a.Fleet.TunnelAddress != netip.MustParseAddr("10.86.0.17") || len(a.Fleet.Edges) != 1 || len(a.Fleet.SigningKey) == 0 {
		t.Fatalf("%+v", a)
	}
	o := w.load().Fleet.Origins["rpi-home"]
	if o.PublicKey != h.key.Public() || !slices.Equal(o.Hosts, []string{"*.home.kokoa.test"}) || o.Position.File != "origins/rpi-home.cue" {
		t.Errorf("%+v", o)
	}
	// Registering again, even without a good token, is what it is.
	if a := h.register(join.Registration{Token: "kokoa_x", Name: "rpi-home"}); a.State != join.Live {
		t.Errorf("%+v", a)
	}
	// The origin is removed: the host is told, and may come back with another token.
	p, err := Remove(w.load(), "rpi-home", false)
	if err != nil {
		t.Fatal(err)
	}
	if pull, err = w.forge.Propose(t.Context(), p); err == nil {
		err = w.forge.Merge(t.Context(), pull)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Refused || !strings.Contains(a.Reason, "was removed") {
		t.Errorf("%+v", a)
	}
	if a := h.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "rpi-home"}); a.State != join.Accepted {
		t.Errorf("%+v", a)
	}
}

func TestWhatIsRefused(t *testing.T) {
	w := newWorld(t)
	good := w.token(ledger.Scope{Names: []string{"vm*"}})
	used := w.token(ledger.Scope{})
	if a := w.host().register(join.Registration{Token: used, Name: "first"}); a.State != join.Accepted {
		t.Fatalf("%+v", a)
	}
	revoked := w.token(ledger.Scope{})
	parsed, err := join.ParseToken(revoked)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ledger.Revoke(parsed.ID(), w.clock()); err != nil {
		t.Fatal(err)
	}
	foreign, err := join.NewToken(w.secret.Join().Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		r    join.Registration
		want string
	}{
		"no token":          {join.Registration{Name: "vm1"}, "not a join token"},
		"a cut token":       {join.Registration{Name: "vm1", Token: good[:30]}, "copy all of it"},
		"a foreign token":   {join.Registration{Name: "vm1", Token: foreign.Reveal()}, "does not know the token"},
		"a used token":      {join.Registration{Name: "vm1", Token: used}, "used up"},
		"a revoked token":   {join.Registration{Name: "vm1", Token: revoked}, "revoked"},
		"another's name":    {join.Registration{Name: "rpi", Token: good}, `the token is for the name vm*, not for "rpi"`},
		"a refused name":    {join.Registration{Name: "control1", Token: w.token(ledger.Scope{})}, "lets no host take"},
		"no label":          {join.Registration{Name: "vm_1", Token: good}, "a-z, 0-9"},
		"a path":            {join.Registration{Name: "../../x", Token: good}, "a-z, 0-9"},
		"CUE":               {join.Registration{Name: "vm1\"}", Token: good}, "a-z, 0-9"},
		"a long name":       {join.Registration{Name: strings.Repeat("a", 3000), Token: good}, "63"},
		"no host":           {join.Registration{Name: "vm1", Token: good, Hosts: []string{"a b"}}, "a b"},
		"a stranger's host": {join.Registration{Name: "vm1", Token: good, Hosts: []string{"google.com"}}, "none of the fleet's domains: kokoa.test"},
		"many hosts":        {join.Registration{Name: "vm1", Token: good, Hosts: make([]string, 101)}, "101 hosts"},
		"a clock behind":    {join.Registration{Name: "vm1", Token: good, Now: w.clock().Add(-time.Hour)}, "set the clock"},
		"a clock ahead":     {join.Registration{Name: "vm1", Token: good, Now: w.clock().Add(time.Hour)}, "set the clock"},
		"a negative life":   {join.Registration{Name: "vm1", Token: good, Temporary: -time.Hour}, "positive time"},
	} {
		a := w.host().register(test.r)
		if a.State != join.Refused || !strings.Contains(a.Reason, test.want) {
			t.Errorf("%s: %+v; want %q", name, a, test.want)
		}
	}
	// Nothing was taken, kept or proposed for any of them.
	all, err := w.ledger.Registrations()
	if err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	w.step()
	if got := w.branches(); len(got) != 1 {
		t.Errorf("branches %v", got)
	}
	if a := w.host().register(join.Registration{Token: good, Name: "vm1"}); a.State != join.Accepted {
		t.Errorf("the good token is no longer good: %+v", a)
	}
	late := w.token(ledger.Scope{})
	w.later(2 * time.Hour)
	if a := w.host().register(join.Registration{Token: late, Name: "vm2"}); a.State != join.Refused || !strings.Contains(a.Reason, "expired") {
		t.Errorf("%+v", a)
	}
}

// A token for one name is good for no other: every token against every name.
func TestScopesAreKept(t *testing.T) {
	w := newWorld(t)
	names := []string{"a", "ab", "b", "a-b", "aa"}
	for _, of := range names {
		token := w.token(ledger.Scope{Names: []string{of}})
		for _, name := range names {
			if name == of {
				continue
			}
			if a := w.host().register(join.Registration{Token: token, Name: name}); a.State != join.Refused {
				t.Errorf("the token of %s made %s: %+v", of, name, a)
			}
		}
	}
}

func TestWhatMergesByItself(t *testing.T) {
	w := newWorld(t)
	scope := ledger.Scope{Automatic: true, Hosts: []string{"*.dev.kokoa.test"}}
	for name, test := range map[string]struct {
		scope ledger.Scope
		r     join.Registration
		want  join.State
	}{
		"dev-good":    {scope, join.Registration{Temporary: time.Hour}, join.Live},
		"dev-asks":    {scope, join.Registration{Temporary: time.Hour, Hosts: []string{"a.dev.kokoa.test"}}, join.Live},
		"prod":        {scope, join.Registration{Temporary: time.Hour}, join.Proposed},
		"dev-forever": {scope, join.Registration{}, join.Proposed},
		"dev-manual":  {ledger.Scope{Hosts: scope.Hosts}, join.Registration{Temporary: time.Hour}, join.Proposed},
		"dev-any":     {ledger.Scope{Automatic: true}, join.Registration{Temporary: time.Hour}, join.Proposed},
		"dev-wide":    {ledger.Scope{Automatic: true}, join.Registration{Temporary: time.Hour, Hosts: []string{"*.kokoa.test"}}, join.Proposed},
		"dev-beyond":  {scope, join.Registration{Temporary: time.Hour, Hosts: []string{"shop.kokoa.test"}}, join.Proposed},
	} {
		h := w.host()
		test.r.Name, test.r.Token = name, w.token(test.scope)
		if a := h.register(test.r); a.State != join.Accepted {
			t.Fatalf("%s: %+v", name, a)
		}
		w.step()
		a := h.ask(join.Question{})
		if a.State != test.want {
			t.Errorf("%s: %+v", name, a)
		}
		if flagged := name == "dev-beyond"; flagged != (len(a.Flags) > 0) {
			t.Errorf("%s has flags %q", name, a.Flags)
		}
	}
	if text := w.message(w.branches()[1]); !strings.Contains(w.sh("git", "--git-dir="+w.dir, "log", "--format=%B", "--all"), "Look twice") {
		t.Errorf("no proposal says to look twice:\n%s", text)
	}
	o := w.load().Fleet.Origins["dev-good"]
	if o.Expires == nil || !o.Expires.Equal(w.clock().Add(time.Hour)) {
		t.Errorf("it ends at %v", o.Expires)
	}
}

// A name that exists with another key is shown to a person, and changes hands only
// when that one merges it.
func TestANameIsTaken(t *testing.T) {
	w := newWorld(t)
	w.write("origins/dev-box.cue", "package fleet\n\n// Where the shop runs.\norigin: \"dev-box\": {\n\tpublic_key:     \"rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg=\"\n\ttunnel_address: \"10.86.9.9\"\n}\n")
	w.push("dev-box")
	w.turn()
	h := w.host()
	a := h.register(join.Registration{Token: w.token(ledger.Scope{Automatic: true, Hosts: []string{"*.dev.kokoa.test"}}), Name: "dev-box", Temporary: time.Hour})
	if a.State != join.Accepted {
		t.Fatalf("%+v", a)
	}
	w.step()
	a = h.ask(join.Question{})
	if a.State != join.Proposed || len(a.Flags) != 1 || !strings.Contains(a.Flags[0], "exists with another key") || w.forge.merges.Load() != 0 {
		t.Fatalf("%+v, %d merges", a, w.forge.merges.Load())
	}
	branch := join.Branch("dev-box", h.key.Public())
	diff := w.sh("git", "--git-dir="+w.dir, "diff", "main", branch)
	if !strings.Contains(diff, "+\tpublic_key:     \""+h.key.Public().String()) || strings.Contains(diff, "-\ttunnel_address") || strings.Contains(diff, "-// Where") {
		t.Errorf("the proposal changes more than the key:\n%s", diff)
	}
	// Meanwhile a person edits the file: that is kept.
	w.write("origins/dev-box.cue", "package fleet\n\n// Where the shop runs, and the till.\norigin: \"dev-box\": {\n\tpublic_key:     \"rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg=\"\n\ttunnel_address: \"10.86.9.9\"\n}\n")
	w.push("Say more")
	w.turn()
	w.step()
	pull, err := w.forge.Find(t.Context(), branch)
	if err == nil {
		err = w.forge.Forge.Merge(t.Context(), pull)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Live || a.Fleet.TunnelAddress != netip.MustParseAddr("10.86.9.9") {
		t.Errorf("%+v", a)
	}
	if text, err := w.load().Read("origins/dev-box.cue"); err != nil || !strings.Contains(string(text), "and the till") {
		t.Errorf("%s, %v", text, err)
	}
}

// Many hosts at once get an address each, in few proposals; what somebody else takes
// meanwhile is given up, not fought over.
func TestManyHostsAtOnce(t *testing.T) {
	w := newWorld(t)
	token, _, err := w.ledger.CreateToken(w.secret.Join().Public(), ledger.Scope{Names: []string{"*"}}, 1000, time.Hour, w.clock())
	if err != nil {
		t.Fatal(err)
	}
	const n = 120
	hosts := make([]host, n)
	var all sync.WaitGroup
	for i := range hosts {
		hosts[i] = w.host()
		all.Go(func() {
			r := join.Registration{Token: token.Reveal(), Name: fmt.Sprintf("vm%d", i), Now: w.clock()}
			a, err := (&join.Client{URL: w.server.URL, Control: w.secret.Join().Public(), Key: hosts[i].key}).Ask(t.Context(), join.Question{Register: &r})
			if err != nil || a.State != join.Accepted {
				t.Errorf("vm%d: %+v, %v", i, a, err)
			}
		})
	}
	all.Wait()
	w.step()
	branches := w.branches()
	if len(branches) != 3 || w.forge.proposals.Load() > 6 {
		t.Fatalf("%d branches, %d proposals", len(branches), w.forge.proposals.Load())
	}
	// Somebody takes one of the addresses by hand.
	w.write("origins/thief.cue", "package fleet\n\norigin: thief: {\n\tpublic_key:     \"rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg=\"\n\ttunnel_address: \"10.86.0.20\"\n}\n")
	w.push("thief")
	w.turn()
	w.step()
	for _, branch := range branches {
		pull, err := w.forge.Find(t.Context(), branch)
		if err == nil {
			err = w.forge.Merge(t.Context(), pull)
		}
		if err != nil {
			t.Fatalf("%s: %v", branch, err)
		}
	}
	w.step()
	seen := map[netip.Addr]int{}
	for i, h := range hosts {
		a := h.ask(join.Question{})
		if a.State != join.Live {
			t.Fatalf("vm%d: %+v", i, a)
		}
		if other, twice := seen[a.Fleet.TunnelAddress]; twice {
			t.Errorf("vm%d and vm%d have %s", i, other, a.Fleet.TunnelAddress)
		}
		seen[a.Fleet.TunnelAddress] = i
	}
	if _, stolen := seen[netip.MustParseAddr("10.86.0.20")]; stolen {
		t.Error("an address was given twice")
	}
}

func TestTheForgeIsInTrouble(t *testing.T) {
	w := newWorld(t)
	w.forge.fail(errors.New("connection refused"))
	h := w.host()
	if a := h.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "vm1"}); a.State != join.Accepted {
		t.Fatalf("%+v", a)
	}
	w.step()
	a := h.ask(join.Question{})
	if a.State != join.Accepted || !strings.Contains(a.Reason, "connection refused") {
		t.Fatalf("%+v", a)
	}
	// It is left alone for longer and longer.
	for range 50 {
		w.step()
		w.later(time.Second)
	}
	if n := w.forge.proposals.Load(); n > 8 {
		t.Errorf("asked %d times in 50 s", n)
	}
	w.later(restMax)
	w.forge.fail(forge.LimitError{Until: w.clock().Add(10 * time.Minute)})
	w.step()
	n := w.forge.proposals.Load()
	w.later(9 * time.Minute)
	w.step()
	if w.forge.proposals.Load() != n {
		t.Error("asked before its limit was over")
	}
	w.forge.fail(nil)
	w.later(2 * time.Minute)
	w.step()
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Proposed || a.Reason != "" {
		t.Errorf("%+v", a)
	}
}

func TestTheRepoIsProtected(t *testing.T) {
	w := newWorld(t)
	w.forge.protected.Store(true)
	h := w.host()
	a := h.register(join.Registration{Token: w.token(ledger.Scope{Automatic: true, Hosts: []string{"*.dev.kokoa.test"}}), Name: "dev-x", Temporary: time.Hour})
	if a.State != join.Accepted {
		t.Fatalf("%+v", a)
	}
	w.step()
	if a = h.ask(join.Question{}); a.State != join.Proposed || !strings.Contains(a.Reason, "the repo's rules want one") {
		t.Errorf("%+v", a)
	}
}

func TestAPersonSaysNo(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	h.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "vm1"})
	w.step()
	pull, err := w.forge.Find(t.Context(), join.Branch("vm1", h.key.Public()))
	if err == nil {
		err = w.forge.Close(t.Context(), pull, "no")
	}
	if err != nil {
		t.Fatal(err)
	}
	w.later(2 * lookEvery)
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Refused || !strings.Contains(a.Reason, "closed") {
		t.Errorf("%+v", a)
	}
	if got := w.branches(); len(got) != 0 {
		t.Errorf("branches %v", got)
	}
}

// What a person made something else of while merging it ends, and says so.
func TestMergedAsSomethingElse(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	h.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "vm1"})
	w.step()
	pull, err := w.forge.Find(t.Context(), join.Branch("vm1", h.key.Public()))
	if err == nil {
		err = w.forge.Merge(t.Context(), pull)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.sh("git", "pull", "-q", "origin", "main")
	w.sh("git", "rm", "-q", "origins/vm1.cue")
	w.push("Take it back")
	w.later(2 * lookEvery)
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Merged {
		t.Fatalf("%+v", a)
	}
	w.later(2 * mergedLimit)
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Refused || !strings.Contains(a.Reason, "took it back") {
		t.Errorf("%+v", a)
	}
}

// One proposal that the forge does not take holds up neither other hosts nor keys.
func TestOneIsNotTaken(t *testing.T) {
	w := newWorld(t)
	h, next, stuck := w.host(), w.host(), w.host()
	scope := ledger.Scope{Automatic: true, Hosts: []string{"*.dev.kokoa.test"}}
	h.register(join.Registration{Token: w.token(scope), Name: "dev-a", Temporary: time.Hour})
	w.step()
	w.forge.refuse("dev-stuck", errors.New("422 Unprocessable Entity"))
	stuck.register(join.Registration{Token: w.token(scope), Name: "dev-stuck", Temporary: time.Hour})
	if err := w.ledger.Rotate("dev-a", w.clock()); err != nil {
		t.Fatal(err)
	}
	v := w.load()
	word, err := join.SealRotation("dev-a", w.Rotations(v.Fleet)["dev-a"], h.key, next.key, w.secret.Join().Public())
	if err != nil {
		t.Fatal(err)
	}
	v.Heartbeats = map[string]api.Heartbeat{"dev-a": {Rotation: word}}
	w.See(v)
	w.work(t.Context())
	if o := w.load().Fleet.Origins["dev-a"]; o.NextKey != next.key.Public() {
		t.Errorf("the key waits: %+v", o)
	}
	if a := stuck.ask(join.Question{}); a.State != join.Accepted || !strings.Contains(a.Reason, "422") {
		t.Errorf("%+v", a)
	}
}

// A host's file is not edited as it was at the last commit that loads, when there is
// a newer one.
func TestTheHeadIsBroken(t *testing.T) {
	w := newWorld(t)
	w.write("origins/vm1.cue", "package fleet\n\norigin: vm1: {\n\tpublic_key:     \"rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg=\"\n\ttunnel_address: \"10.86.9.9\"\n}\n")
	w.push("vm1")
	w.turn()
	h := w.host()
	h.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "vm1"})
	v := w.load()
	v.Trouble = "routes/x.cue:1:1: no"
	w.See(v)
	w.work(t.Context())
	if n := w.forge.proposals.Load(); n != 0 {
		t.Errorf("%d proposals", n)
	}
	w.turn()
	w.work(t.Context())
	if a := h.ask(join.Question{}); a.State != join.Proposed {
		t.Errorf("%+v", a)
	}
}

// Hosts that nobody knows wait in few places, and those that are known beside them.
func TestStrangersDoNotCrowd(t *testing.T) {
	w := newWorld(t)
	known := w.host()
	known.register(join.Registration{Token: w.token(ledger.Scope{}), Name: "vm1"})
	w.step()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	var crowded atomic.Int32
	for range heldUnknown + 20 {
		stranger := w.host()
		all.Go(func() {
			c := join.Client{URL: w.server.URL, Control: w.secret.Join().Public(), Key: stranger.key}
			for ctx.Err() == nil && crowded.Load() == 0 {
				if _, err := c.Ask(ctx, join.Question{Seen: join.Unknown, Wait: join.MaxWait}); errors.Is(err, join.ErrBusy) && strings.Contains(err.Error(), "wait at once") {
					crowded.Add(1)
				}
			}
		})
	}
	for began := time.Now(); crowded.Load() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("strangers take every place")
		}
	}
	if a := known.ask(join.Question{Seen: join.Proposed, Wait: time.Millisecond}); a.State != join.Proposed {
		t.Errorf("%+v", a)
	}
}

// A proposal budget keeps whoever has a token of many uses from using up the forge's.
func TestProposalsAreBounded(t *testing.T) {
	w := newWorld(t)
	token, _, err := w.ledger.CreateToken(w.secret.Join().Public(), ledger.Scope{Names: []string{"*"}}, 1000, time.Hour, w.clock())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		r := join.Registration{Token: token.Reveal(), Name: fmt.Sprintf("vm%d", i)}
		if a := w.host().register(r); a.State != join.Accepted {
			t.Fatalf("%+v", a)
		}
		w.work(t.Context())
	}
	if n := w.forge.proposals.Load(); n != perMinute {
		t.Errorf("%d proposals in a minute", n)
	}
	for range 30 {
		w.later(time.Minute / 4)
		w.work(t.Context())
	}
	if n := len(w.branches()); n != 40 {
		t.Errorf("%d branches", n)
	}
}

func TestKeysAreRotated(t *testing.T) {
	w := newWorld(t)
	h, next := w.host(), w.host()
	h.register(join.Registration{Token: w.token(ledger.Scope{Automatic: true, Hosts: []string{"*.dev.kokoa.test"}}), Name: "dev-a", Temporary: time.Hour})
	w.step()
	if a := h.ask(join.Question{}); a.State != join.Live {
		t.Fatalf("%+v", a)
	}
	see := func(beat api.Heartbeat, rotated bool) {
		t.Helper()
		v := w.load()
		v.Heartbeats, v.Rotated = map[string]api.Heartbeat{"dev-a": beat}, map[string]bool{"dev-a": rotated}
		w.See(v)
		w.work(t.Context())
	}
	// What another key signed is not taken.
	if err := w.ledger.Rotate("dev-a", w.clock()); err != nil {
		t.Fatal(err)
	}
	asked := w.Rotations(w.load().Fleet)["dev-a"]
	forged, err := join.SealRotation("dev-a", asked, next.key, next.key, w.secret.Join().Public())
	if err != nil {
		t.Fatal(err)
	}
	see(api.Heartbeat{Rotation: forged}, false)
	if o := w.load().Fleet.Origins["dev-a"]; !o.NextKey.IsZero() {
		t.Fatalf("%+v", o)
	}
	// Nor is what was signed when something else was asked for, which an edge kept.
	stale, err := join.SealRotation("dev-a", asked.Add(-time.Hour), h.key, w.host().key, w.secret.Join().Public())
	if err != nil {
		t.Fatal(err)
	}
	see(api.Heartbeat{Rotation: stale}, false)
	if o := w.load().Fleet.Origins["dev-a"]; !o.NextKey.IsZero() {
		t.Fatalf("%+v", o)
	}
	// A key that was begun with and is lost gives way to another.
	lost, err := join.SealRotation("dev-a", asked, h.key, w.host().key, w.secret.Join().Public())
	if err != nil {
		t.Fatal(err)
	}
	see(api.Heartbeat{Rotation: lost}, false)
	if o := w.load().Fleet.Origins["dev-a"]; o.NextKey.IsZero() {
		t.Fatalf("%+v", o)
	}
	word, err := join.SealRotation("dev-a", asked, h.key, next.key, w.secret.Join().Public())
	if err != nil {
		t.Fatal(err)
	}
	see(api.Heartbeat{Rotation: word}, false)
	o := w.load().Fleet.Origins["dev-a"]
	if o.PublicKey != h.key.Public() || o.NextKey != next.key.Public() {
		t.Fatalf("%+v", o)
	}
	see(api.Heartbeat{Rotation: word}, false)
	if o := w.load().Fleet.Origins["dev-a"]; o.NextKey.IsZero() {
		t.Fatalf("promoted before the edges saw it: %+v", o)
	}
	see(api.Heartbeat{Rotation: word}, true)
	if o = w.load().Fleet.Origins["dev-a"]; o.PublicKey != next.key.Public() || !o.NextKey.IsZero() || o.Expires == nil {
		t.Fatalf("%+v", o)
	}
	if asked := w.Rotations(w.load().Fleet); len(asked) > 0 {
		t.Errorf("still asked: %v", asked)
	}
	// The word of old is worth nothing now.
	commit := w.load().Commit
	see(api.Heartbeat{Rotation: word}, false)
	if w.load().Commit != commit {
		t.Error("the same rotation was begun again")
	}
	if a := h.ask(join.Question{}); a.State != join.Refused || !strings.Contains(a.Reason, "has another key by now") {
		t.Errorf("the old key: %+v", a)
	}
	if a := next.ask(join.Question{}); a.State != join.Live {
		t.Errorf("%+v", a)
	}
}

func TestRotationMoments(t *testing.T) {
	now := time.Date(2027, 5, 5, 5, 5, 5, 0, time.UTC)
	f := &fleet.Fleet{Origins: map[string]fleet.Origin{"a": {}, "b": {}, "c": {}}}
	asked := map[string]time.Time{"a": now.Add(-time.Minute), "gone": now}
	if got := rotations(f, asked, nil, now); len(got) != 1 || !got["a"].Equal(now.Add(-time.Minute)) {
		t.Errorf("%v", got)
	}
	f.Registration.RotateEvery = 24 * time.Hour
	first := rotations(f, nil, nil, now)
	if len(first) != 3 || first["a"].Equal(first["b"]) || first["b"].Equal(first["c"]) {
		t.Errorf("%v", first)
	}
	if young := rotations(f, nil, map[string]time.Time{"a": now}, now); len(young) != 2 || !young["a"].IsZero() {
		t.Errorf("a key that was made just now: %v", young)
	}
	changes := 0
	for i := range 10 * 24 * 60 {
		at := now.Add(time.Duration(i) * time.Minute)
		due := rotations(f, nil, nil, at)["a"]
		if age := at.Sub(due); age < 0 || age >= 24*time.Hour {
			t.Fatalf("at %s the moment is %s", at, due)
		}
		if !due.Equal(first["a"]) {
			changes++
			first["a"] = due
		}
	}
	if changes != 10 {
		t.Errorf("%d changes in 10 days", changes)
	}
}

func TestWhatEndedIsCleanedUp(t *testing.T) {
	w := newWorld(t)
	past, future := w.clock().Add(-2*time.Hour).Format(time.RFC3339), w.clock().Add(2*time.Hour).Format(time.RFC3339)
	origin := func(name, key, address, expires string) string {
		return fmt.Sprintf("package fleet\n\norigin: %q: {\n\tpublic_key:     %q\n\ttunnel_address: %q\n%s}\n", name, keys.Public([32]byte{1: key[0]}), address, expires)
	}
	w.write("origins/old.cue", origin("old", "a", "10.86.1.1", "\texpires: \""+past+"\"\n"))
	w.write("origins/needed.cue", origin("needed", "b", "10.86.1.2", "\texpires: \""+past+"\"\n"))
	w.write("origins/new.cue", origin("new", "c", "10.86.1.3", "\texpires: \""+future+"\"\n"))
	w.write("routes/all.cue", `package fleet

// Kept.
route: stays: {host: "stays.kokoa.test", origin: "needed", service: "http://localhost:1", tls: "internal", failover: {origin: "new", service: "http://localhost:1"}}
route: demo: {host: "demo.kokoa.test", origin: "old", service: "http://localhost:1", tls: "internal"}
route: brief: {host: "brief.kokoa.test", origin: "new", service: "http://localhost:1", tls: "internal", expires: "`+past+`"}
`)
	w.push("Temporary things")
	w.turn()
	w.step()
	if got := w.branches(); !slices.Equal(got, []string{cleanUp}) {
		t.Fatalf("branches %v", got)
	}
	n := w.forge.proposals.Load()
	w.step()
	if w.forge.proposals.Load() != n {
		t.Error("it was proposed again for nothing")
	}
	pull, err := w.forge.Find(t.Context(), cleanUp)
	if err == nil {
		err = w.forge.Merge(t.Context(), pull)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.step()
	v := w.load() // it loads
	if got := v.Fleet.OriginNames(); !slices.Equal(got, []string{"needed", "new"}) {
		t.Errorf("origins %v", got)
	}
	if got := v.Fleet.RouteNames(); !slices.Equal(got, []string{"stays"}) {
		t.Errorf("routes %v", got)
	}
	if text, err := v.Read("routes/all.cue"); err != nil || !strings.Contains(string(text), "// Kept.") {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := v.Read("origins/old.cue"); err == nil {
		t.Error("an empty file stays")
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	w.write("origins/a.cue", "package fleet\n\norigin: a: {\n\tpublic_key:     \"rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg=\"\n\ttunnel_address: \"10.86.1.1\"\n}\n")
	w.write("routes/r.cue", "package fleet\n\nroute: r: {host: \"r.kokoa.test\", origin: \"a\", service: \"http://localhost:1\", tls: \"internal\"}\n")
	w.push("a")
	w.turn()
	v := w.load()
	if _, err := Remove(v, "b", false); err == nil || !strings.Contains(err.Error(), "it has: a") {
		t.Error(err)
	}
	if _, err := Remove(v, "a", false); err == nil || !strings.Contains(err.Error(), "--with-routes") || !strings.Contains(err.Error(), "routes/r.cue:3") {
		t.Error(err)
	}
	p, err := Remove(v, "a", true)
	if err != nil || len(p.Files) != 2 || p.Files[0].Content != nil || p.Files[1].Content != nil || p.Base != v.Commit {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSuggest(t *testing.T) {
	w := newWorld(t)
	seen := map[netip.Addr]bool{}
	for range 50 {
		a := w.host().ask(join.Question{Suggest: true})
		s := a.Suggestion
		if s == nil || s.Folder != "origins" || !w.load().Fleet.Network.Contains(s.TunnelAddress) || s.TunnelAddress.Compare(netip.MustParseAddr("10.86.0.16")) <= 0 {
			t.Fatalf("%+v", s)
		}
		seen[s.TunnelAddress] = true
	}
	if len(seen) < 45 {
		t.Errorf("only %d different addresses of 50", len(seen))
	}
}

func TestFree(t *testing.T) {
	for _, test := range []struct{ network, want string }{
		{"10.86.0.0/16", "10.86.0.16"}, {"10.86.0.0/28", ""}, {"10.86.0.0/27", "10.86.0.16"}, {"fd00::/64", "fd00::10"},
	} {
		a, err := free(netip.MustParsePrefix(test.network), nil)
		if test.want == "" && !errors.Is(err, errFull) || test.want != "" && a.String() != test.want {
			t.Errorf("%s: %v, %v", test.network, a, err)
		}
	}
	used := map[netip.Addr]bool{}
	network := netip.MustParsePrefix("10.0.0.0/27")
	for {
		a, err := free(network, used)
		if err != nil {
			break
		}
		used[a] = true
	}
	if len(used) != 15 || used[netip.MustParseAddr("10.0.0.31")] {
		t.Errorf("%d addresses", len(used))
	}
}

package reconciler

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// tb is what *testing.T and *rapid.T have in common.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// world is a fleet's surroundings in memory: edges that speak the real API over
// pipes, a zone, a real certificate store, and a repo that holds fleets as they
// are.
type world struct {
	t      tb
	secret keys.Secret
	r      *Reconciler
	// zone is kokoa.test, oldZone old.test.
	zone    *dnstest.Memory
	oldZone *dnstest.Memory
	edges   map[string]*fakeEdge

	mu      sync.Mutex
	commits map[string]*fleet.Fleet
	// head is what Fetch gives, or the error.
	head       *repo.Revision
	unreadable error
	// wrong are the commits that do not load.
	wrong map[string]schema.Diagnostics
	moved chan struct{}
}

func newWorld(t tb, dir string, edgeNames ...string) *world {
	w := &world{t: t, secret: keys.Secret{7}, zone: &dnstest.Memory{}, oldZone: &dnstest.Memory{}, edges: map[string]*fakeEdge{}, commits: map[string]*fleet.Fleet{}, wrong: map[string]schema.Diagnostics{}, moved: make(chan struct{})}
	for i, name := range edgeNames {
		w.edges[name] = newFakeEdge(name, tunnelAddress(i))
	}
	history, err := OpenHistory("")
	if err != nil {
		t.Fatalf("history: %v", err)
	}
	log := slog.New(slog.DiscardHandler)
	driver := &edges.Driver{Secret: w.secret, Open: func(c tunnel.Config) (tunnel.Device, error) { return fakeDevice{w, c.Address}, nil }, Timeout: 30 * time.Second, Log: log}
	manager, err := certs.Open(certs.Config{Dir: filepath.Join(dir, "certificates"), CA: w.secret.CA(), Log: log})
	if err != nil {
		t.Fatalf("certificates: %v", err)
	}
	driver.Certificate = manager.Load
	w.r = &Reconciler{
		Source: fakeSource{w}, Loader: w, Secret: w.secret, Edges: driver, Certs: manager, History: history, Log: log,
		Zones: func(f *fleet.Fleet) (map[string]dns.Zone, error) {
			zones := map[string]dns.Zone{}
			for _, name := range f.Domains {
				zones[name] = map[string]dns.Zone{"kokoa.test": w.zone, "old.test": w.oldZone}[name]
			}
			return zones, nil
		},
	}
	return w
}

func newTestWorld(t *testing.T, edgeNames ...string) *world {
	w := newWorld(t, t.TempDir(), edgeNames...)
	t.Cleanup(w.close)
	return w
}

func (w *world) close() {
	if err := w.r.Edges.Close(); err != nil {
		w.t.Fatalf("close: %v", err)
	}
	for _, e := range w.edges {
		e.close()
	}
}

// commit puts a fleet into the repo.
func (w *world) commit(f *fleet.Fleet) Commit {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := fmt.Sprintf("%040x", len(w.commits)+1)
	w.commits[id] = f
	w.head = &repo.Revision{Commit: id, Subject: "change"}
	return Commit{Revision: w.head, Fleet: f}
}

// push commits, and tells who watches.
func (w *world) push(f *fleet.Fleet) Commit {
	c := w.commit(f)
	w.moved <- struct{}{}
	return c
}

// pushWrong commits something that does not load.
func (w *world) pushWrong() {
	c := w.commit(nil)
	w.mu.Lock()
	w.wrong[c.Revision.Commit] = schema.Diagnostics{{Code: schema.CodeSyntax, Severity: schema.SeverityError, Position: fleet.Position{File: "routes/blog.cue", Line: 4, Column: 2}, Message: "expected operand"}}
	w.mu.Unlock()
	w.moved <- struct{}{}
}

// Load implements Loader: a commit's fleet is kept as it is.
func (w *world) Load(_ context.Context, tree schema.Tree) (*fleet.Fleet, schema.Diagnostics, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := tree.(*repo.Revision).Commit
	if d, wrong := w.wrong[id]; wrong {
		return nil, nil, d
	}
	return w.commits[id], nil, nil
}

// converge applies a commit and insists on an empty plan afterwards.
func (w *world) converge(c Commit) Turn {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	t, err := w.r.Converge(ctx, c, func(Turn) {})
	if err != nil {
		w.t.Fatalf("converge: %v", err)
	}
	for _, f := range t.Failed() {
		w.t.Fatalf("converge: %s %s: %v", f.Change.Action, f.Change.Ref, f.Err)
	}
	if !t.Settled() {
		w.t.Fatalf("not settled: %v %v", t.Plan.Waiting, t.Pending)
	}
	w.quiet(c)
	return t
}

// quiet insists that there is nothing to do.
func (w *world) quiet(c Commit) {
	w.t.Helper()
	t, err := w.r.Plan(context.Background(), c)
	if err != nil || !t.Plan.Empty() {
		w.t.Fatalf("plan after apply: %v, %v, %v", err, describe(t.Plan.Changes), t.Plan.Waiting)
	}
}

// turn plans and applies once.
func (w *world) turn(c Commit) Turn {
	w.t.Helper()
	t, err := w.r.Plan(context.Background(), c)
	if err != nil {
		w.t.Fatalf("plan: %v", err)
	}
	if t, err = w.r.Apply(context.Background(), t); err != nil {
		w.t.Fatalf("apply: %v", err)
	}
	return t
}

func describe(changes []plan.Change) []string {
	out := []string{}
	for _, c := range changes {
		out = append(out, fmt.Sprintf("%s %s %s", c.Action, c.Ref, c.Cause))
	}
	return out
}

// answer is what the zone says for a host.
func (w *world) answer(host string) []string {
	w.t.Helper()
	sets, err := w.zone.RRsets(context.Background())
	if err != nil {
		w.t.Fatalf("zone: %v", err)
	}
	for _, s := range sets {
		if s.Name == host && s.Type == dns.A {
			return s.Values
		}
	}
	return nil
}

func tunnelAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 86, 0, byte(16 + i)}) }

// newFleet is a fleet of two edges, two origins and some routes of vm1.
func newFleet(routes ...string) *fleet.Fleet {
	f := &fleet.Fleet{
		Name: "demo", Domains: []string{"kokoa.test"}, Network: netip.MustParsePrefix("10.86.0.0/16"),
		DNS:    fleet.DNS{Provider: fleet.DNSBuiltin, TTL: 30 * time.Second},
		Guards: fleet.Guards{MaxDeletePercent: 30, MaxDeletes: 50},
		Edges:  map[string]fleet.Edge{}, Origins: map[string]fleet.Origin{}, Routes: map[string]fleet.Route{},
	}
	for i, name := range []string{"osaka", "tokyo"} {
		f.Edges[name] = fleet.Edge{Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)})}, Endpoint: fmt.Sprintf("203.0.113.%d:51820", 10+i), TunnelAddress: tunnelAddress(i), Generation: 1}
	}
	for i, name := range []string{"rpi-home", "vm1"} {
		f.Origins[name] = fleet.Origin{Name: name, PublicKey: keys.Private{8, byte(i + 1)}.Public(), TunnelAddress: netip.AddrFrom4([4]byte{10, 86, 1, byte(i + 1)}), Position: fleet.Position{File: "origins/" + name + ".cue", Line: 3, Column: 1}}
	}
	for _, name := range routes {
		addRoute(f, name)
	}
	return f
}

func addRoute(f *fleet.Fleet, name string) {
	f.Routes[name] = fleet.Route{
		Name: name, Host: name + ".kokoa.test", Path: "/", Upstreams: []fleet.Upstream{{Origin: "vm1", Service: "http://localhost:3000"}},
		PreserveHost: true, TLS: fleet.TLSInternal, Redirect: true, Active: true, Edges: []string{"osaka", "tokyo"},
		Health:   fleet.Health{Interval: 10 * time.Second, Timeout: 5 * time.Second, Failures: 3},
		Position: fleet.Position{File: "routes/" + name + ".cue", Line: 3, Column: 1},
	}
}

// without is a copy of f that lacks some routes.
func without(f *fleet.Fleet, routes ...string) *fleet.Fleet {
	c := *f
	c.Routes = maps.Clone(f.Routes)
	for _, r := range routes {
		delete(c.Routes, r)
	}
	return &c
}

type fakeSource struct{ w *world }

func (s fakeSource) Fetch(context.Context) (*repo.Revision, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.unreadable != nil {
		return nil, s.w.unreadable
	}
	return s.w.head, nil
}

func (s fakeSource) At(_ context.Context, commit string) (*repo.Revision, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if _, ok := s.w.commits[commit]; !ok {
		return nil, repo.ErrUnknownCommit
	}
	return &repo.Revision{Commit: commit}, nil
}
func (s fakeSource) Watch(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.w.moved:
			changed()
		}
	}
}
func (s fakeSource) String() string { return "test" }
func (s fakeSource) Close() error   { return nil }

// fakeDevice is a tunnel to the world's edges.
type fakeDevice struct {
	w    *world
	from netip.Addr
}

func (d fakeDevice) SetPeers(context.Context, []tunnel.Peer) error { return nil }
func (d fakeDevice) Stats() ([]tunnel.PeerStats, error)            { return nil, nil }
func (d fakeDevice) Listen(uint16) (net.Listener, error)           { return nil, errors.New("not used") }
func (d fakeDevice) Kind() tunnel.Kind                             { return tunnel.Userspace }
func (d fakeDevice) Reason() string                                { return "test" }
func (d fakeDevice) ListenPort() uint16                            { return 0 }
func (d fakeDevice) SetPrivateKey(keys.Private) error              { return errors.New("not used") }
func (d fakeDevice) Rebind() error                                 { return errors.New("not used") }
func (d fakeDevice) Renew(...keys.Public) error                    { return errors.New("not used") }
func (d fakeDevice) Close() error                                  { return nil }

func (d fakeDevice) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	for _, e := range d.w.edges {
		if e.address == to.Addr() && to.Port() == api.EdgePort {
			return e.dial(ctx, d.from)
		}
	}
	return nil, errors.New("no route to host")
}

// fakeEdge is an edge without visitors: it keeps what it is told, behind the real
// API, and can be down, refuse, or fail at a call.
type fakeEdge struct {
	name    string
	address netip.Addr
	listen  *pipes

	mu         sync.Mutex
	config     api.Config
	has        bool
	certs      map[string]api.CertificateState
	challenges map[string]string
	device     map[keys.Public]api.Peer
	// shaken is when a key of the device last shook hands, when that is not now.
	shaken   map[keys.Public]time.Time
	down     bool
	reject   error
	notReady []string
	agents   []api.AgentState
	// up says which services of the live routes the edge reaches; nil: unknown.
	up func(api.Upstream) *bool
	// fault, when set, decides about the n-th call that changes something.
	fault func(n int) dnstest.Fault
	calls int
	puts  int
	// skew is how far the edge's clock is off.
	skew time.Duration
}

func (e *fakeEdge) setSkew(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.skew = d
}

func newFakeEdge(name string, address netip.Addr) *fakeEdge {
	yes := true
	e := &fakeEdge{name: name, address: address, listen: newPipes(), certs: map[string]api.CertificateState{}, challenges: map[string]string{}, device: map[keys.Public]api.Peer{}}
	e.up = func(api.Upstream) *bool { return &yes }
	server := &http.Server{Handler: api.Handler(e)}
	go server.Serve(e.listen)
	return e
}

func (e *fakeEdge) close() { e.listen.Close() }

func (e *fakeEdge) dial(ctx context.Context, from netip.Addr) (net.Conn, error) {
	e.mu.Lock()
	down := e.down
	e.mu.Unlock()
	if down {
		return nil, errors.New("no handshake")
	}
	return e.listen.dial(ctx, from)
}

// setDown cuts the edge off, with the connections it had.
func (e *fakeEdge) setDown(down bool) {
	e.mu.Lock()
	e.down = down
	e.mu.Unlock()
	if down {
		e.listen.cut()
	}
}

var errInjected = errors.New("injected fault")

// change runs do as a call that a fault may befall.
func (e *fakeEdge) change(do func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls++
	if e.fault != nil {
		switch e.fault(e.calls) {
		case dnstest.Refused:
			return errInjected
		case dnstest.Lost:
			return errors.Join(errInjected, do())
		}
	}
	return do()
}

func (e *fakeEdge) Caller(a netip.Addr) api.Caller {
	return api.Caller{Control: a == fleet.ControlAddress(netip.MustParsePrefix("10.86.0.0/16"), 0)}
}

func (e *fakeEdge) Config() (api.Config, string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.has {
		return api.Config{}, "", api.ErrNoConfig
	}
	return e.config, e.config.Digest(), nil
}

func (e *fakeEdge) Apply(_ context.Context, current string, next api.Config) error {
	return e.change(func() error {
		if e.reject != nil {
			return fmt.Errorf("%w: %w", api.ErrRejected, e.reject)
		}
		if err := next.Validate(); err != nil {
			return fmt.Errorf("%w: %w", api.ErrRejected, err)
		}
		live := ""
		if e.has {
			live = e.config.Digest()
		}
		if live != current && live != next.Digest() {
			return api.ErrConflict
		}
		e.config, e.has = next, true
		e.puts++
		e.device = map[keys.Public]api.Peer{}
		for _, p := range next.Peers {
			e.device[p.PublicKey] = p
			if !p.NextKey.IsZero() {
				p.Address = netip.Addr{} // with the key that is used
				e.device[p.NextKey] = p
			}
		}
		return nil
	})
}

func (e *fakeEdge) State() (api.State, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := api.State{Fleet: "demo", Edge: e.name, Now: time.Now().Add(e.skew), Ready: e.has && len(e.notReady) == 0, NotReady: e.notReady, Agents: e.agents}
	if e.has {
		s.Digest, s.Revision = e.config.Digest(), e.config.Revision
	} else {
		s.NotReady = []string{"no config"}
	}
	names := map[keys.Public]string{}
	for _, p := range e.config.Peers {
		names[p.PublicKey] = p.Name
		if !p.NextKey.IsZero() {
			names[p.NextKey] = p.Name
		}
	}
	for key, p := range e.device {
		seen := api.PeerState{Name: names[key], PublicKey: key, Handshake: time.Now()}
		if p.Address.IsValid() {
			seen.AllowedIPs = []netip.Prefix{netip.PrefixFrom(p.Address, 32)}
		}
		if at, ok := e.shaken[key]; ok {
			seen.Handshake = at
		}
		s.Peers = append(s.Peers, seen)
	}
	seen := map[string]bool{}
	for _, r := range e.config.Routes {
		for _, u := range r.Upstreams {
			if !seen[u.Service] {
				seen[u.Service] = true
				s.Services = append(s.Services, api.ServiceState{Agent: u.Agent, Service: u.Service, URL: u.URL, Up: e.up(u)})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.certs)) {
		s.Certificates = append(s.Certificates, e.certs[name])
	}
	return s, nil
}

func (e *fakeEdge) PutCertificate(c api.Certificate) error {
	return e.change(func() error {
		block, _ := pem.Decode(c.Chain)
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(leaf.Raw)
		e.certs[c.Name] = api.CertificateState{Name: c.Name, Fingerprint: hex.EncodeToString(sum[:]), Hosts: leaf.DNSNames, NotAfter: leaf.NotAfter}
		return nil
	})
}

func (e *fakeEdge) DeleteCertificate(name string) error {
	return e.change(func() error { delete(e.certs, name); return nil })
}

func (e *fakeEdge) PutChallenge(token, keyAuthorization string) error {
	return e.change(func() error { e.challenges[token] = keyAuthorization; return nil })
}

func (e *fakeEdge) DeleteChallenge(token string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.challenges, token)
}

func (e *fakeEdge) AgentConfig(agent string) (api.Signed, <-chan struct{}, bool) {
	return api.Signed{}, nil, false
}

func (e *fakeEdge) Heartbeat(string, api.Heartbeat) {}

// pipes is a listener whose connections are in memory and come from any address.
type pipes struct {
	once   sync.Once
	mu     sync.Mutex
	closed chan struct{}
	accept chan net.Conn
	open   []net.Conn
}

func newPipes() *pipes { return &pipes{closed: make(chan struct{}), accept: make(chan net.Conn)} }

func (p *pipes) dial(ctx context.Context, from netip.Addr) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.accept <- remote{there, net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 1))}:
		p.mu.Lock()
		p.open = append(p.open, here)
		p.mu.Unlock()
		return here, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, io.EOF
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	p.cut()
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

type remote struct {
	net.Conn
	from net.Addr
}

func (r remote) RemoteAddr() net.Addr { return r.from }

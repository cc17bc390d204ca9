package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// world is the network between an agent and its edges, and its DNS, without a
// packet: who lives where, and which handshakes still hold. It is for use in a
// synctest bubble.
type world struct {
	mu    sync.Mutex
	edges map[keys.Public]*fakeEdge
	names map[string][]netip.Addr
	// mute name servers are asked in vain.
	mute bool
	// devices opened so far; the last is in use.
	devices []*fakeDevice
	unable  error
}

// fakeEdge answers agents while it is alive.
type fakeEdge struct {
	world *world
	is    api.AgentEdge
	// at is where it lives, and life counts its processes: a handshake with an
	// earlier one is worth nothing.
	at    netip.AddrPort
	alive bool
	// takes are the keys of agents that it knows; nil is any.
	takes   []keys.Public
	life    int
	signed  api.Signed
	tag     string
	changed chan struct{}
	beats   []beat
	// silent counts calls that were not answered.
	silent int
	polls  []time.Time
	// shakes are the handshakes begun with it while it was alive.
	shakes []time.Time
	// loaded edges take a handshake only when WireGuard repeats it, 5 s later.
	loaded bool
	// lost are ports of agents from which nothing arrives.
	lost map[uint16]bool
}

type beat struct {
	at time.Time
	api.Heartbeat
}

// fakeDevice is a WireGuard device that makes a handshake when a peer is added,
// and never again: what mends a tunnel must be the agent.
type fakeDevice struct {
	world *world
	key   keys.Private
	// taken are the keys that the device was given after it was opened.
	taken []keys.Private
	peers []tunnel.Peer
	lives map[keys.Public]int
	// shaken is when the handshake was.
	shaken map[keys.Public]time.Time
	// port counts the device's UDP ports, and stuck is why it gets no other.
	port  uint16
	stuck error
	// removed counts how often each peer was taken out.
	removed map[keys.Public]int
}

func newWorld() *world {
	return &world{edges: make(map[keys.Public]*fakeEdge), names: make(map[string][]netip.Addr)}
}

func (w *world) add(e api.AgentEdge, at string, signed api.Signed) *fakeEdge {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := &fakeEdge{world: w, is: e, at: netip.MustParseAddrPort(at), alive: true, life: 1, changed: make(chan struct{})}
	w.edges[e.PublicKey] = f
	f.relayLocked(signed)
	return f
}

// relay makes signed what the edge gives to the agent.
func (e *fakeEdge) relay(signed api.Signed) {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	e.relayLocked(signed)
}

func (e *fakeEdge) relayLocked(signed api.Signed) {
	e.signed, e.tag = signed, string(signed.Signature)
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *fakeEdge) die() {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	e.alive = false
}

// live brings the edge back as another process, at an address.
func (e *fakeEdge) live(at string) {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	e.alive, e.at = true, netip.MustParseAddrPort(at)
	e.life++
}

// lose has nothing arrive any more that agents send from the ports they have now.
func (e *fakeEdge) lose() {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	if e.lost == nil {
		e.lost = make(map[uint16]bool)
	}
	for _, d := range e.world.devices {
		e.lost[d.port] = true
	}
}

func (e *fakeEdge) heartbeats() []beat {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	return slices.Clone(e.beats)
}

// unanswered is how many calls to the edge have met silence.
func (e *fakeEdge) unanswered() int {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	return e.silent
}

// shake makes a handshake if the peer is where the device looks for it.
func (d *fakeDevice) shake(p tunnel.Peer) {
	e := d.world.edges[p.PublicKey]
	if e == nil || !e.alive || e.at.String() != p.Endpoint || e.lost[d.port] {
		return
	}
	e.shakes = append(e.shakes, time.Now())
	if !e.knows(d) {
		return
	}
	shaken := func() {
		d.lives[p.PublicKey] = e.life
		d.shaken[p.PublicKey] = time.Now()
	}
	if !e.loaded {
		shaken()
		return
	}
	removed := d.removed[p.PublicKey]
	time.AfterFunc(5*time.Second, func() {
		d.world.mu.Lock()
		defer d.world.mu.Unlock()
		if d.removed[p.PublicKey] == removed {
			shaken()
		}
	})
}

// knows reports whether the edge takes a device's key.
func (e *fakeEdge) knows(d *fakeDevice) bool {
	return e.takes == nil || slices.Contains(e.takes, d.key.Public())
}

// take makes the edge know these keys of agents, and no others.
func (e *fakeEdge) take(known ...keys.Public) {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	e.takes = known
}

// fakeClient calls one edge through one device.
type fakeClient struct {
	device *fakeDevice
	edge   api.AgentEdge
}

// reach blocks for as long as the network is silent.
func (c fakeClient) reach(ctx context.Context) (*fakeEdge, error) {
	w := c.device.world
	w.mu.Lock()
	e := w.edges[c.edge.PublicKey]
	there := e != nil && e.alive && !e.lost[c.device.port] && e.knows(c.device) && c.device.lives[c.edge.PublicKey] == e.life &&
		slices.ContainsFunc(c.device.peers, func(p tunnel.Peer) bool {
			return p.PublicKey == c.edge.PublicKey && p.Endpoint == e.at.String()
		})
	if !there && e != nil {
		e.silent++
	}
	w.mu.Unlock()
	if there {
		return e, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (c fakeClient) AgentConfig(ctx context.Context, tag string, wait time.Duration) (api.Signed, string, error) {
	e, err := c.reach(ctx)
	if err != nil {
		return api.Signed{}, "", err
	}
	w := c.device.world
	w.mu.Lock()
	e.polls = append(e.polls, time.Now())
	w.mu.Unlock()
	timeout := time.After(wait)
	for {
		w.mu.Lock()
		signed, have, changed := e.signed, e.tag, e.changed
		w.mu.Unlock()
		if have != tag {
			return signed, have, nil
		}
		select {
		case <-changed:
		case <-timeout:
			if _, err := c.reach(ctx); err != nil {
				return api.Signed{}, "", err
			}
			return api.Signed{}, tag, nil
		case <-ctx.Done():
			return api.Signed{}, "", ctx.Err()
		}
	}
}

func (c fakeClient) Heartbeat(ctx context.Context, hb api.Heartbeat) error {
	e, err := c.reach(ctx)
	if err != nil {
		return err
	}
	c.device.world.mu.Lock()
	defer c.device.world.mu.Unlock()
	e.beats = append(e.beats, beat{time.Now(), hb})
	return nil
}

func (fakeClient) Close() {}

func (d *fakeDevice) SetPeers(_ context.Context, peers []tunnel.Peer) error {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	seen := make(map[netip.Prefix]bool)
	for _, p := range peers {
		for _, a := range p.AllowedIPs {
			if seen[a] {
				return tunnel.ErrOverlap
			}
			seen[a] = true
		}
	}
	for _, old := range d.peers {
		if !slices.ContainsFunc(peers, func(p tunnel.Peer) bool { return p.PublicKey == old.PublicKey }) {
			delete(d.lives, old.PublicKey)
			delete(d.shaken, old.PublicKey)
			d.removed[old.PublicKey]++
		}
	}
	old := d.peers
	d.peers = slices.Clone(peers)
	for _, p := range peers {
		if !slices.ContainsFunc(old, func(o tunnel.Peer) bool { return o.PublicKey == p.PublicKey && o.Endpoint == p.Endpoint }) {
			d.shake(p)
		}
	}
	return nil
}

// SetPrivateKey makes a handshake with every peer that is there.
func (d *fakeDevice) SetPrivateKey(key keys.Private) error {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	d.key, d.taken = key, append(d.taken, key)
	for _, p := range d.peers {
		delete(d.lives, p.PublicKey)
		d.shake(p)
	}
	return nil
}

// Rebind makes the device's packets come from another place, to which nothing that
// an edge had sent before is under way.
func (d *fakeDevice) Rebind() error {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	if d.stuck != nil {
		return d.stuck
	}
	d.port++
	return nil
}

func (d *fakeDevice) Renew(...keys.Public) error { return errors.New("an agent's peers are edges") }

func (d *fakeDevice) Stats() ([]tunnel.PeerStats, error) {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	var stats []tunnel.PeerStats
	for _, p := range d.peers {
		stats = append(stats, tunnel.PeerStats{PublicKey: p.PublicKey, Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs, Handshake: d.shaken[p.PublicKey]})
	}
	return stats, nil
}

func (d *fakeDevice) Listen(uint16) (net.Listener, error) { return newFakeListener(), nil }
func (d *fakeDevice) Kind() tunnel.Kind                   { return tunnel.Userspace }
func (d *fakeDevice) Reason() string                      { return "userspace: a fake" }

func (d *fakeDevice) ListenPort() uint16 {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return 51820 + d.port
}

func (d *fakeDevice) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("nothing is dialled here")
}

func (d *fakeDevice) Close() error { return nil }

// fakeListener accepts nothing.
type fakeListener struct {
	closed chan struct{}
	once   sync.Once
}

func newFakeListener() *fakeListener { return &fakeListener{closed: make(chan struct{})} }

func (l *fakeListener) Accept() (net.Conn, error) {
	<-l.closed
	return nil, net.ErrClosed
}

func (l *fakeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (w *world) open(cfg tunnel.Config) (tunnel.Device, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unable != nil {
		return nil, w.unable
	}
	d := &fakeDevice{
		world: w, key: cfg.PrivateKey, lives: make(map[keys.Public]int),
		shaken: make(map[keys.Public]time.Time), removed: make(map[keys.Public]int),
	}
	w.devices = append(w.devices, d)
	return d, nil
}

func (w *world) connect(d tunnel.Device, e api.AgentEdge) edgeClient {
	return fakeClient{d.(*fakeDevice), e}
}

func (w *world) lookup(ctx context.Context, _, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mute {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return nil, ctx.Err()
	}
	if found := w.names[host]; found != nil {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (w *world) opened() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.devices)
}

// run starts an agent in the world until the test's end, which must be in the
// same bubble.
func (w *world) run(t *testing.T, b Bootstrap) (a *agent, stop func()) {
	t.Helper()
	a, err := newAgent(b, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	a.open, a.connect, a.lookup = w.open, w.connect, w.lookup
	stop = started(t, a)
	synctest.Wait()
	return a, stop
}

// until waits in the bubble's time until ok, and says how long it took; d is the
// most it may take.
func until(t *testing.T, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		synctest.Wait()
		took := time.Since(start)
		if ok() {
			return took
		}
		if took >= d {
			t.Fatalf("after %v not yet: %s", took, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// up reports whether the agent's link to an edge is.
func up(a *agent, edge string) bool {
	found := false
	if s := a.session.Load(); s != nil {
		s.each(func(l *link) { found = found || l.edge.Name == edge && l.isUp() })
	}
	return found
}

func edgeNames(a *agent) []string {
	var names []string
	a.session.Load().each(func(l *link) { names = append(names, l.edge.Name) })
	slices.Sort(names)
	return names
}

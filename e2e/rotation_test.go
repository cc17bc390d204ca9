package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/edge"
	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

var (
	rotations = flag.Int("rotations", 4, "how many keys in a row an agent gets under load")
	rate      = flag.Int("rps", 200, "requests per second meanwhile")
)

// rotated is a fleet of two edges and one agent in this process, on real tunnels: the
// control plane is a reconciler, and the fleet repo and its registrar are the test.
type rotated struct {
	t       *testing.T
	secret  keys.Secret
	r       *reconciler.Reconciler
	edges   []*rotatedEdge
	fleet   *fleet.Fleet
	service *httptest.Server
	commits map[string]*fleet.Fleet
	head    *repo.Revision
	asked   map[string]time.Time
	// born is the agent's bootstrap.
	born agent.Bootstrap
}

// rotatedEdge is one edge, and where visitors find it.
type rotatedEdge struct {
	edge  fleet.Edge
	https string
	data  string
	stop  func()
}

const visited = "app.example.com"

func newRotated(t *testing.T) *rotated {
	secret, err := keys.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	r := &rotated{t: t, secret: secret, commits: map[string]*fleet.Fleet{}, asked: map[string]time.Time{}}
	r.service = httptest.NewServer(http.HandlerFunc(rotatedService))
	t.Cleanup(r.service.Close)
	key, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.86.1.1")
	r.fleet = &fleet.Fleet{
		Name: "demo", Domains: []string{zone}, Network: network, DNS: fleet.DNS{Provider: fleet.DNSNone},
		Guards:  fleet.Guards{MaxDeletePercent: 50, MaxDeletes: 50},
		Edges:   map[string]fleet.Edge{},
		Origins: map[string]fleet.Origin{"vm1": {Name: "vm1", PublicKey: key.Public(), TunnelAddress: address}},
		Routes: map[string]fleet.Route{"app": {
			Name: "app", Host: visited, Path: "/", Upstreams: []fleet.Upstream{{Origin: "vm1", Service: r.service.URL}},
			WebSocket: true, TLS: fleet.TLSInternal, Active: true, Edges: []string{"osaka", "tokyo"},
			Health: fleet.Health{Interval: time.Second, Timeout: 5 * time.Second, Failures: 3},
		}},
	}
	for i, name := range []string{"osaka", "tokyo"} {
		e := &rotatedEdge{data: filepath.Join(t.TempDir(), name), edge: fleet.Edge{
			Name: name, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Generation: 1,
			TunnelAddress: netip.AddrFrom4([4]byte{10, 86, 0, byte(16 + i)}),
		}}
		e.edge.Endpoint = fmt.Sprintf("127.0.0.1:%d", r.startEdge(e, 0))
		r.fleet.Edges[name] = e.edge
		r.edges = append(r.edges, e)
	}
	r.startControl()
	r.converge(r.fleet)

	r.born = agent.Bootstrap{
		Fleet: "demo", Name: "vm1", PrivateKey: key, TunnelAddress: address, Network: network,
		SigningKey: secret.SigningPublic(), Tunnel: "userspace", Data: filepath.Join(t.TempDir(), "agent"),
	}
	for _, e := range r.edges {
		r.born.Edges = append(r.born.Edges, api.AgentEdge{Name: e.edge.Name, PublicKey: secret.Edge(e.edge.Name, 1).Public(), Endpoint: e.edge.Endpoint, Address: e.edge.TunnelAddress})
	}
	return r
}

// startEdge runs an edge until the test ends or its stop is called, with a UDP port for
// its tunnel, or any for 0.
func (r *rotated) startEdge(e *rotatedEdge, at uint16) (port uint16) {
	r.t.Helper()
	key := r.secret.Edge(e.edge.Name, e.edge.Generation)
	device, err := tunnel.Open(tunnel.Config{Kind: tunnel.Userspace, PrivateKey: key, Address: e.edge.TunnelAddress, Network: network, ListenPort: at})
	if err != nil {
		r.t.Fatal(err)
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			r.t.Fatal(err)
		}
	}
	server, err := edge.New(edge.Options{
		Bootstrap: edge.Bootstrap{
			Fleet: "demo", Name: e.edge.Name, PrivateKey: key, TunnelAddress: e.edge.TunnelAddress, Network: network,
			Control: []edge.ControlPeer{{PublicKey: r.secret.Control(0).Public(), Address: fleet.ControlAddress(network, 0)}},
			Data:    e.data,
		},
		Device: device, HTTP: listeners[0], HTTPS: listeners[1],
	})
	if err != nil {
		r.t.Fatal(err)
	}
	e.https = listeners[1].Addr().String()
	e.stop = r.during(func(ctx context.Context) error {
		return errors.Join(server.Serve(ctx), device.Close())
	})
	return device.ListenPort()
}

// restart ends an edge and starts it again, on what it has on disk.
func (r *rotated) restart(e *rotatedEdge) {
	r.t.Helper()
	port := netip.MustParseAddrPort(e.edge.Endpoint).Port()
	e.stop()
	r.startEdge(e, port)
}

// during runs something until the test ends or stop is called, which waits for it.
func (r *rotated) during(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// startAgent runs the agent until the test ends or stop is called.
func (r *rotated) startAgent() (stop func()) {
	begun := time.Now()
	stop = r.during(func(ctx context.Context) error { return agent.Run(ctx, r.born, nil) })
	r.wait("the agent serves through both edges", func(t reconciler.Turn) bool {
		up := 0
		for _, l := range t.World.Edges {
			if !slices.ContainsFunc(l.State.Agents, func(a api.AgentState) bool { return a.At.After(begun) }) {
				return false
			}
			for _, s := range l.State.Services {
				if s.Up != nil && *s.Up {
					up++
				}
			}
		}
		return up == len(r.edges)
	})
	return stop
}

func (r *rotated) startControl() {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	history, err := reconciler.OpenHistory("")
	if err != nil {
		r.t.Fatal(err)
	}
	manager, err := certs.Open(certs.Config{Dir: filepath.Join(r.t.TempDir(), "certificates"), CA: r.secret.CA(), Log: log})
	if err != nil {
		r.t.Fatal(err)
	}
	driver := &edges.Driver{Secret: r.secret, Open: tunnel.Open, Certificate: manager.Load, Log: log}
	r.t.Cleanup(func() { driver.Close() })
	r.r = &reconciler.Reconciler{
		Source: r, Loader: r, Secret: r.secret, Edges: driver, Certs: manager, History: history, Log: log,
		Zones:     func(*fleet.Fleet) (map[string]dns.Zone, error) { return nil, nil },
		Rotations: func(*fleet.Fleet) map[string]time.Time { return r.asked },
	}
}

// A fleet repo whose commits are fleets.

func (r *rotated) Fetch(context.Context) (*repo.Revision, error) { return r.head, nil }
func (r *rotated) Watch(context.Context, func()) error           { return nil }
func (r *rotated) String() string                                { return "test" }
func (r *rotated) Close() error                                  { return nil }
func (r *rotated) At(_ context.Context, commit string) (*repo.Revision, error) {
	if r.commits[commit] == nil {
		return nil, repo.ErrUnknownCommit
	}
	return &repo.Revision{Commit: commit}, nil
}
func (r *rotated) Load(_ context.Context, tree schema.Tree) (*fleet.Fleet, schema.Diagnostics, error) {
	return r.commits[tree.(*repo.Revision).Commit], nil, nil
}

// converge commits f and makes it so.
func (r *rotated) converge(f *fleet.Fleet) {
	r.t.Helper()
	id := fmt.Sprintf("%040x", len(r.commits)+1)
	r.commits[id], r.head, r.fleet = f, &repo.Revision{Commit: id}, f
	r.settle()
}

func (r *rotated) settle() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), limit)
	defer cancel()
	turn, err := r.r.Converge(ctx, reconciler.Commit{Revision: r.head, Fleet: r.fleet}, func(reconciler.Turn) {})
	if err != nil || len(turn.Failed()) > 0 || !turn.Plan.Empty() {
		r.t.Fatalf("converge: %v, %v, %v", err, turn.Failed(), turn.Plan.Changes)
	}
}

// wait looks at the world until ok. Whatever is seen, there is nothing to do.
func (r *rotated) wait(what string, ok func(reconciler.Turn) bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		turn, err := r.r.Plan(r.t.Context(), reconciler.Commit{Revision: r.head, Fleet: r.fleet})
		if err != nil || len(turn.Plan.Changes) > 0 {
			r.t.Fatalf("wait until %s: %v, %v", what, err, turn.Plan.Changes)
		}
		if ok(turn) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// withKeys is the fleet with other keys of the agent.
func (r *rotated) withKeys(public, next keys.Public) *fleet.Fleet {
	f := *r.fleet
	f.Origins = maps.Clone(f.Origins)
	o := f.Origins["vm1"]
	o.PublicKey, o.NextKey = public, next
	f.Origins["vm1"] = o
	return &f
}

// offered is the key that the agent's heartbeats offer for its next one, or zero.
func (r *rotated) offered(t reconciler.Turn) keys.Public {
	for _, l := range t.World.Edges {
		for _, a := range l.State.Agents {
			if a.Heartbeat.Rotation == nil {
				continue
			}
			next, _, err := join.OpenRotation("vm1", r.fleet.Origins["vm1"].PublicKey, r.secret.Join(), a.Heartbeat.Rotation)
			if err == nil {
				return next
			}
			r.t.Errorf("edge %s: %v", l.Edge.Name, err)
		}
	}
	return keys.Public{}
}

// begin has the agent make its next key, and the fleet know it.
func (r *rotated) begin(moment int) (next keys.Public) {
	r.t.Helper()
	r.asked["vm1"] = time.Unix(int64(moment), 0)
	r.settle()
	r.wait("a next key is offered", func(t reconciler.Turn) bool {
		next = r.offered(t)
		return !next.IsZero()
	})
	r.converge(r.withKeys(r.fleet.Origins["vm1"].PublicKey, next))
	return next
}

// finish waits until the agent uses its next key, and has the fleet forget the old one.
func (r *rotated) finish() {
	r.t.Helper()
	r.wait("the agent uses its next key on every edge", func(t reconciler.Turn) bool {
		done := reconciler.Rotations(r.fleet, t.World)["vm1"]
		return done.Done() && len(done.Next) == len(r.edges)
	})
	r.converge(r.withKeys(r.fleet.Origins["vm1"].NextKey, keys.Public{}))
	r.wait("only the new key is a peer", func(t reconciler.Turn) bool {
		for _, l := range t.World.Edges {
			if len(l.State.Peers) != 1 || l.State.Peers[0].PublicKey != r.fleet.Origins["vm1"].PublicKey {
				return false
			}
		}
		return true
	})
}

// rotatedService answers /stream with a line every 20 ms for as long as it is read,
// /ws with an echo, and everything else with what it was sent.
func rotatedService(w http.ResponseWriter, q *http.Request) {
	switch q.URL.Path {
	case "/stream":
		for i := 0; q.Context().Err() == nil; i++ {
			fmt.Fprintln(w, i)
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	case "/ws":
		c, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		// RFC 6455 section 1.3, for the key that the test sends.
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		io.Copy(c, in)
	default:
		io.Copy(w, q.Body)
	}
}

// through is a visitor's transport to one edge. Its certificate is of the fleet's own
// authority, which is not what is tested here.
func (e *rotatedEdge) through(http2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", e.https)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Protocols:       protocols, MaxIdleConnsPerHost: 100,
	}
}

// load is what visitors met: every request's duration, and every failure.
type load struct {
	mu     sync.Mutex
	took   []time.Duration
	failed []error
	done   sync.WaitGroup
}

func (l *load) note(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, took)
	if err != nil {
		l.failed = append(l.failed, err)
	}
}

// visit sends requests at the given rate, over HTTP/1.1 and HTTP/2 through both edges,
// none waiting for another, and keeps a stream and a WebSocket open through each,
// until stop is called.
func (r *rotated) visit() (l *load, stop func()) {
	l = &load{}
	ctx, cancel := context.WithCancel(context.Background())
	var transports []*http.Transport
	for _, e := range r.edges {
		transports = append(transports, e.through(false), e.through(true))
		l.done.Go(func() { l.note(0, follow(ctx, e)) })
		l.done.Go(func() { l.note(0, talk(ctx, e)) })
	}
	l.done.Go(func() {
		// A host that is too slow for the rate drops ticks.
		tick := time.NewTicker(time.Second / time.Duration(*rate))
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			l.done.Go(func() {
				begin := time.Now()
				err := post(transports[n%len(transports)], fmt.Sprint("request ", n))
				l.note(time.Since(begin), err)
			})
			<-tick.C
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		l.done.Wait()
		for _, t := range transports {
			t.CloseIdleConnections()
		}
	})
	r.t.Cleanup(stop)
	return l, stop
}

func post(t *http.Transport, text string) error {
	q, err := http.NewRequest("POST", "https://"+visited+"/echo", strings.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || string(body) != text) {
		err = fmt.Errorf("sent %q: %s, %q", text, resp.Status, body)
	}
	return err
}

// follow reads a stream over HTTP/2 until ctx ends: no line is missing.
func follow(ctx context.Context, e *rotatedEdge) error {
	t := e.through(true)
	defer t.CloseIdleConnections()
	q, err := http.NewRequestWithContext(ctx, "GET", "https://"+visited+"/stream", nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(q)
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := 0; lines.Scan(); i++ {
		if lines.Text() != fmt.Sprint(i) {
			return fmt.Errorf("stream: line %d is %q", i, lines.Text())
		}
	}
	if ctx.Err() == nil {
		return fmt.Errorf("stream: it ended, %v", lines.Err())
	}
	return nil
}

// talk has every word come back on a WebSocket until ctx ends.
func talk(ctx context.Context, e *rotatedEdge) error {
	c, err := tls.Dial("tcp", e.https, &tls.Config{InsecureSkipVerify: true, ServerName: visited})
	if err != nil {
		return fmt.Errorf("websocket: %w", err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", visited)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("websocket: %v, %v", resp, err)
	}
	for i := 0; ctx.Err() == nil; i++ {
		c.SetDeadline(time.Now().Add(limit))
		word := fmt.Sprintln("word", i)
		if _, err := io.WriteString(c, word); err != nil {
			return fmt.Errorf("websocket: %w", err)
		}
		if got, err := in.ReadString('\n'); err != nil || got != word {
			return fmt.Errorf("websocket: said %q, heard %q, %v", word, got, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// longest are the slowest requests, in milliseconds.
func (l *load) longest() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	sorted := slices.Sorted(slices.Values(l.took))
	at := func(share float64) int64 { return sorted[int(share*float64(len(sorted)-1))].Milliseconds() }
	late := 0
	for _, took := range sorted {
		if took > 300*time.Millisecond {
			late++
		}
	}
	return fmt.Sprintf("%d requests: p50 %d ms, p99 %d ms, p99.9 %d ms, longest %d ms, %d over 300 ms", len(sorted), at(.5), at(.99), at(.999), at(1), late)
}

// TestRotationUnderLoad: an agent gets one key after another while visitors come over
// HTTP/1.1 and HTTP/2 and hold streams and WebSockets open. None of them notices, and
// the first key opens nothing any more.
func TestRotationUnderLoad(t *testing.T) {
	r := newRotated(t)
	r.startAgent()
	l, stop := r.visit()
	for n := range *rotations {
		before := r.fleet.Origins["vm1"].PublicKey
		next := r.begin(n + 1)
		r.finish()
		if now := r.fleet.Origins["vm1"].PublicKey; now != next || now == before {
			t.Fatalf("rotation %d ends with key %s, begun with %s", n, now, before)
		}
	}
	stop()
	for i, err := range l.failed {
		if i == 10 {
			t.Errorf("and %d more", len(l.failed)-i)
			break
		}
		t.Error(err)
	}
	t.Logf("%d rotations, %s, %d failed", *rotations, l.longest(), len(l.failed))
	r.refused(r.born.PrivateKey)
	if now, err := agent.CurrentKey(r.born); err != nil || now.Public() != r.fleet.Origins["vm1"].PublicKey {
		t.Errorf("the agent's key is %v, %v", now.Public(), err)
	}
	onDisk, err := os.ReadFile(filepath.Join(r.born.Data, "keys.json"))
	if err != nil || strings.Contains(string(onDisk), r.born.PrivateKey.Reveal()) || strings.Contains(string(onDisk), `"next"`) {
		t.Errorf("on disk is more than the key in use, %v", err)
	}
}

// TestRotationAcrossRestarts: the agent ends before and after it takes its next key,
// or all edges do, and the rotation is finished all the same.
func TestRotationAcrossRestarts(t *testing.T) {
	r := newRotated(t)
	stop := r.startAgent()
	again := func() {
		stop()
		stop = r.startAgent()
	}
	// switched waits until one edge has seen the next key.
	switched := func() {
		r.wait("the next key is used", func(t reconciler.Turn) bool {
			return len(reconciler.Rotations(r.fleet, t.World)["vm1"].Next) > 0
		})
	}
	for n, step := range []func(){
		func() { r.begin(1); again() },
		func() { r.begin(2); switched(); again() },
		func() { r.begin(3); switched(); r.restart(r.edges[0]); r.restart(r.edges[1]) },
	} {
		step()
		r.finish()
		for _, e := range r.edges {
			transport := e.through(false)
			if err := post(transport, fmt.Sprint("after step ", n)); err != nil {
				t.Errorf("edge %s: %v", e.edge.Name, err)
			}
			transport.CloseIdleConnections()
		}
	}
	r.refused(r.born.PrivateKey)
}

// refused checks that no edge answers who has a key, from the agent's own address.
func (r *rotated) refused(key keys.Private) {
	r.t.Helper()
	device, err := tunnel.Open(tunnel.Config{Kind: tunnel.Userspace, PrivateKey: key, Address: r.born.TunnelAddress, Network: network})
	if err != nil {
		r.t.Fatal(err)
	}
	defer device.Close()
	var peers []tunnel.Peer
	for _, e := range r.born.Edges {
		peers = append(peers, tunnel.Peer{PublicKey: e.PublicKey, Endpoint: e.Endpoint, AllowedIPs: []netip.Prefix{netip.PrefixFrom(e.Address, 32)}, Keepalive: time.Second})
	}
	if err := device.SetPeers(r.t.Context(), peers); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
	defer cancel()
	for _, e := range r.born.Edges {
		if c, err := device.Dial(ctx, netip.AddrPortFrom(e.Address, api.EdgePort)); !errors.Is(err, context.DeadlineExceeded) {
			r.t.Errorf("edge %s answers the old key: %v, %v", e.Name, c, err)
		}
	}
	stats, err := device.Stats()
	if err != nil || slices.ContainsFunc(stats, func(p tunnel.PeerStats) bool { return !p.Handshake.IsZero() }) {
		r.t.Errorf("a handshake by the old key: %+v, %v", stats, err)
	}
}

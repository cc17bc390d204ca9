package tunnel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/internal/nettest"
	"github.com/kokoa-proxy/kokoa/keys"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// The tunnel network, and the edge's address in it.
var (
	network  = netip.MustParsePrefix("10.90.0.0/24")
	edgeAddr = netip.MustParseAddr("10.90.0.1")
)

// agentAddr is the tunnel address of agent n, from 1.
func agentAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 90, 0, byte(10 + n)}) }

// world is one edge and some agents, with devices of one make, on the hosts that
// the make needs.
type world struct {
	t      *testing.T
	kind   Kind
	edge   *nettest.Host // nil for a make that needs no host
	agents map[int]*nettest.Host
}

// end is one end of a tunnel.
type end struct {
	Device
	t    *testing.T
	host *nettest.Host
	key  keys.Private
	addr netip.Addr
}

// eachMake runs a test of behaviour with every make that can run here. The
// kernel's shares all but its opening with TUN's.
func eachMake(t *testing.T, test func(t *testing.T, w *world)) {
	makeEach(t, append(linkKinds(t), Userspace), test)
}

// linkKinds are the makes with a link of the host's that can run here.
func linkKinds(t *testing.T) []Kind {
	if kernelHasWireGuard(t) {
		return []Kind{TUN, Kernel}
	}
	return []Kind{TUN}
}

func makeEach(t *testing.T, kinds []Kind, test func(t *testing.T, w *world)) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			leaks(t)
			w := &world{t: t, kind: kind, agents: make(map[int]*nettest.Host)}
			if kind != Userspace {
				w.edge = nettest.NewHost(t, "edge")
			}
			test(t, w)
		})
	}
}

// leaks fails the test when it leaves goroutines behind.
func leaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
			}
			runtime.GC() // wireguard-go's queues end with their finalizers
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func (w *world) openEdge(change ...func(*Config)) *end {
	w.t.Helper()
	return w.open(w.edge, Config{Address: edgeAddr, Name: "kkedge"}, change)
}

func (w *world) openAgent(n int, change ...func(*Config)) *end {
	w.t.Helper()
	if w.kind != Userspace && w.agents[n] == nil {
		w.agents[n] = nettest.NewHost(w.t, fmt.Sprint("agent", n))
		nettest.Join(w.edge, netip.PrefixFrom(w.under(n), 24), w.agents[n], netip.PrefixFrom(w.under(n).Next(), 24))
	}
	return w.open(w.agents[n], Config{Address: agentAddr(n), Name: fmt.Sprint("kkagent", n)}, change)
}

// under is the edge's address outside of the tunnel, on its cable to agent n.
func (w *world) under(n int) netip.Addr {
	if w.kind == Userspace {
		return netip.MustParseAddr("127.0.0.1")
	}
	return netip.AddrFrom4([4]byte{192, 0, byte(n), 1})
}

func (w *world) open(host *nettest.Host, cfg Config, change []func(*Config)) *end {
	w.t.Helper()
	key, err := keys.NewPrivate()
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.Kind, cfg.PrivateKey, cfg.Network = w.kind, key, network
	for _, c := range change {
		c(&cfg)
	}
	e := &end{t: w.t, host: host, key: key, addr: cfg.Address}
	e.in(func() error {
		e.Device, err = Open(cfg)
		return err
	})
	w.t.Cleanup(func() {
		if err := e.Close(); err != nil {
			w.t.Errorf("close %s: %v", cfg.Name, err)
		}
	})
	return e
}

// relay is a bad line from agent n to the edge.
func (w *world) relay(n int, edge *end, shape nettest.Shape) *nettest.Relay {
	server := netip.AddrPortFrom(w.under(n), edge.ListenPort())
	if w.kind == Userspace {
		return nettest.NewRelay(w.t, server, shape)
	}
	return w.agents[n].NewRelay(server, shape)
}

// connect makes edge and agents peers of each other.
func (w *world) connect(edge *end, agents ...*end) {
	w.t.Helper()
	var peers []Peer
	for i, a := range agents {
		peers = append(peers, a.peer(""))
		a.set(edge.peer(netip.AddrPortFrom(w.under(i+1), edge.ListenPort()).String()))
	}
	edge.set(peers...)
}

// peer is e as a peer of others.
func (e *end) peer(endpoint string, allowed ...netip.Prefix) Peer {
	if allowed == nil {
		allowed = []netip.Prefix{netip.PrefixFrom(e.addr, e.addr.BitLen())}
	}
	return Peer{PublicKey: e.key.Public(), Endpoint: endpoint, AllowedIPs: allowed}
}

func (e *end) set(peers ...Peer) {
	e.t.Helper()
	if err := e.SetPeers(e.t.Context(), peers); err != nil {
		e.t.Fatal(err)
	}
}

// in runs f on the end's host.
func (e *end) in(f func() error) {
	e.t.Helper()
	if err := e.try(f); err != nil {
		e.t.Fatal(err)
	}
}

func (e *end) try(f func() error) error {
	if e.host == nil {
		return f()
	}
	return e.host.Try(f)
}

func (e *end) dial(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
	err = e.try(func() error {
		c, err = e.Dial(ctx, to)
		return err
	})
	return c, err
}

func (e *end) mustDial(to netip.AddrPort) net.Conn {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	c, err := e.dial(ctx, to)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	return c
}

// serve answers each connection at port with f.
func (e *end) serve(port uint16, f func(net.Conn)) netip.AddrPort {
	e.t.Helper()
	var l net.Listener
	e.in(func() (err error) {
		l, err = e.Listen(port)
		return err
	})
	e.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return netip.AddrPortFrom(e.addr, port)
}

func (e *end) stats(of *end) PeerStats {
	e.t.Helper()
	stats, err := e.Stats()
	if err != nil {
		e.t.Fatal(err)
	}
	for _, s := range stats {
		if s.PublicKey == of.key.Public() {
			return s
		}
	}
	e.t.Fatalf("%s is no peer", of.addr)
	return PeerStats{}
}

func echo(c net.Conn) { io.Copy(c, c) }

// ask sends a line and waits for it to come back.
func ask(c net.Conn, line string) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != line {
		return fmt.Errorf("sent %q, got %q", line, got)
	}
	return nil
}

// until polls for what must come to pass.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestOpenSaysWhatAndWhy(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge := w.openEdge()
		if edge.Kind() != w.kind || edge.Reason() != string(w.kind)+": as configured" {
			t.Errorf("kind %q, reason %q", edge.Kind(), edge.Reason())
		}
		if edge.ListenPort() == 0 {
			t.Error("no UDP port")
		}
		if stats, err := edge.Stats(); err != nil || len(stats) != 0 {
			t.Errorf("a new device has peers %v, %v", stats, err)
		}
	})
}

func TestTransferOnABadLine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mtu   int
		size  int
		shape nettest.Shape
	}{
		{"clean", DefaultMTU, 8 << 20, nettest.Shape{}},
		{"smallest MTU", 1280, 2 << 20, nettest.Shape{}},
		{"loss of 5 percent", DefaultMTU, 1 << 18, nettest.Shape{Delay: 5 * time.Millisecond, Loss: .05}},
		{"loss and reordering at the smallest MTU", 1280, 1 << 19, nettest.Shape{Delay: 2 * time.Millisecond, Loss: .02, Reorder: .05}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachMake(t, func(t *testing.T, w *world) {
				mtu := func(c *Config) { c.MTU = tt.mtu }
				edge, agent := w.openEdge(mtu), w.openAgent(1, mtu)
				edge.set(agent.peer(""))
				agent.set(edge.peer(w.relay(1, edge, tt.shape).Addr().String()))
				transfer(t, agent, edge, tt.size)
			})
		})
	}
}

func TestIPv6InTheTunnel(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(six), w.openAgent(1, six)
		w.connect(edge, agent)
		transfer(t, agent, edge, 2<<20)
		if _, err := agent.dial(t.Context(), netip.AddrPortFrom(edge.addr, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port where nothing listens: %v", err)
		}
	})
}

// six makes the addresses of a config IPv6.
func six(c *Config) {
	four := c.Address.As4()
	c.Address = netip.AddrFrom16([16]byte{0xfd, 0x90, 15: four[3]})
	c.Network = netip.PrefixFrom(c.Address, 64).Masked()
}

// transfer sends size bytes from one end to the other, and all of them back.
func transfer(t *testing.T, from, to *end, size int) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	want := sha256.Sum256(data)
	c := from.mustDial(to.serve(7, func(c net.Conn) {
		if got, err := io.ReadAll(c); err == nil && sha256.Sum256(got) == want {
			c.Write(got)
		}
	}))
	c.SetDeadline(time.Now().Add(6 * patience))
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != want {
		t.Fatalf("sent %d bytes, got %d back, %v", len(data), len(got), err)
	}
}

func TestSetPeersKeepsSessions(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent, other := w.openEdge(), w.openAgent(1), w.openAgent(2)
		w.connect(edge, agent, other)
		to := edge.serve(7, echo)
		kept, cut := agent.mustDial(to), other.mustDial(to)
		for _, c := range []net.Conn{kept, cut} {
			if err := ask(c, "hello"); err != nil {
				t.Fatal(err)
			}
		}
		handshake := edge.stats(agent).Handshake
		if handshake.IsZero() {
			t.Fatal("no handshake, but traffic")
		}

		traffic := make(chan error, 1)
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					traffic <- nil
					return
				default:
				}
				if err := ask(kept, "still here?"); err != nil {
					traffic <- err
					return
				}
			}
		}()
		extra := netip.MustParsePrefix("10.90.1.0/24")
		for i := range 100 {
			peer := agent.peer("")
			if i%2 == 0 {
				peer.AllowedIPs = append(peer.AllowedIPs, extra)
				peer.Keepalive = time.Duration(i) * time.Second
			}
			edge.set(peer, Peer{PublicKey: newKey(t).Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.90.2.0/24")}})
		}
		close(stop)
		if err := <-traffic; err != nil {
			t.Fatalf("traffic of a peer that stays: %v", err)
		}
		if got := edge.stats(agent).Handshake; !got.Equal(handshake) {
			t.Errorf("handshake at %v, then at %v: the session was lost", handshake, got)
		}
		if got := edge.stats(agent).AllowedIPs; len(got) != 1 {
			t.Errorf("allowed %v", got)
		}
		if err := shortly(cut); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a peer that was removed still gets through: %v", err)
		}

		other.set() // its session is one that the edge has forgotten
		w.connect(edge, agent, other)
		if err := ask(other.mustDial(to), "and back"); err != nil {
			t.Errorf("a peer that came back: %v", err)
		}
	})
}

func TestSetPeersMovesAnAddress(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, loser, winner := w.openEdge(), w.openAgent(1), w.openAgent(2)
		moving := netip.MustParsePrefix("10.90.3.3/32")
		edge.set(loser.peer("", append(loser.peer("").AllowedIPs, moving)...), winner.peer(""))
		edge.set(loser.peer(""), winner.peer("", append(winner.peer("").AllowedIPs, moving)...))
		if got := edge.stats(loser).AllowedIPs; !slices.Equal(got, loser.peer("").AllowedIPs) {
			t.Errorf("loser is allowed %v", got)
		}
		if got := edge.stats(winner).AllowedIPs; !slices.Contains(got, moving) || len(got) != 2 {
			t.Errorf("winner is allowed %v", got)
		}
		edge.set()
		if stats, err := edge.Stats(); err != nil || len(stats) != 0 {
			t.Errorf("no peers wanted, there are %v, %v", stats, err)
		}
	})
}

func TestSetPeersRefusesOverlap(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		edge.set(agent.peer(""))
		thief := Peer{PublicKey: newKey(t).Public(), AllowedIPs: []netip.Prefix{network}}
		if err := edge.SetPeers(t.Context(), []Peer{thief, agent.peer("")}); !errors.Is(err, ErrOverlap) {
			t.Fatalf("got %v", err)
		}
		if stats, err := edge.Stats(); err != nil || len(stats) != 1 || stats[0].PublicKey != agent.key.Public() {
			t.Errorf("peers are %v, %v", stats, err)
		}
	})
}

func TestDialErrors(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		if _, err := agent.dial(t.Context(), netip.AddrPortFrom(edgeAddr, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port where nothing listens: %v", err)
		}
		nobody := netip.AddrPortFrom(agentAddr(77), 9)
		// The kernel knows at once that no peer has the address; wireguard-go lets
		// packets for it go nowhere.
		wait, want := 50*time.Millisecond, error(context.DeadlineExceeded)
		if w.kind == Kernel {
			wait, want = patience, syscall.EHOSTUNREACH
		}
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		if _, err := agent.dial(ctx, nobody); !errors.Is(err, want) {
			t.Errorf("an address that no one has, with a deadline: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if _, err := agent.dial(ctx, nobody); !errors.Is(err, context.Canceled) {
			t.Errorf("an address that no one has, cancelled: %v", err)
		}
		if _, err := agent.dial(t.Context(), netip.MustParseAddrPort("[fd00::1]:9")); err == nil {
			t.Error("an IPv6 address in an IPv4 tunnel was reached")
		}
		edge.serve(7, echo)
		edge.in(func() error {
			if l, err := edge.Listen(7); !errors.Is(err, syscall.EADDRINUSE) {
				l.Close()
				return fmt.Errorf("port 7 twice: %v", err)
			}
			return nil
		})
	})
}

func TestRoaming(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		relay := w.relay(1, edge, nettest.Shape{})
		edge.set(agent.peer(""))
		agent.set(edge.peer(relay.Addr().String()))
		c := agent.mustDial(edge.serve(7, echo))
		if err := ask(c, "before"); err != nil {
			t.Fatal(err)
		}
		before := edge.stats(agent)
		relay.Rebind()
		if err := ask(c, "after"); err != nil {
			t.Fatal(err)
		}
		after := edge.stats(agent)
		if after.Endpoint == before.Endpoint {
			t.Errorf("the agent's port changed, and the edge still has %s", after.Endpoint)
		}
		if !after.Handshake.Equal(before.Handshake) {
			t.Error("the session was lost")
		}
	})
}

func TestEndpointIsLeftAloneUntilItsTextChanges(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		// The edge has been told an endpoint where the agent no longer is.
		const stale = "127.0.0.1:9"
		edge.set(agent.peer(stale))
		agent.set(edge.peer(netip.AddrPortFrom(w.under(1), edge.ListenPort()).String()))
		c := agent.mustDial(edge.serve(7, echo))
		if err := ask(c, "here I am"); err != nil {
			t.Fatal(err)
		}
		roamed := edge.stats(agent).Endpoint
		if roamed == stale {
			t.Fatal("the edge did not learn where the agent is")
		}
		edge.set(agent.peer(stale))
		if got := edge.stats(agent).Endpoint; got != roamed {
			t.Errorf("the same text set %s back to %s", roamed, got)
		}
		agent.set() // silent now: each packet tells the edge again
		port, other := 10, ""
		until(t, "a new text sets the endpoint, once no packet is under way", func() bool {
			other = fmt.Sprint("127.0.0.1:", port)
			port++
			edge.set(agent.peer(other))
			return edge.stats(agent).Endpoint == other
		})
		edge.set()
		edge.set(agent.peer(other))
		if got := edge.stats(agent).Endpoint; got != other {
			t.Errorf("a peer that was away has endpoint %q", got)
		}
	})
}

func TestEndpointNames(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, named, lost := w.openEdge(), w.openAgent(1), w.openAgent(2)
		names := map[string][]netip.Addr{"edge.example.com": {netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")}}
		edge.Device.(*device).lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			if a, ok := names[host]; ok {
				return a, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		expect := func(want string) {
			t.Helper()
			if got := edge.stats(named).Endpoint; got != want {
				t.Errorf("endpoint %s, want %s", got, want)
			}
		}
		peers := []Peer{named.peer("edge.example.com:51820"), lost.peer("nowhere.example.com:51820")}
		err := edge.SetPeers(t.Context(), peers)
		if err == nil || !strings.Contains(err.Error(), "nowhere.example.com:51820") || strings.Contains(err.Error(), "edge.example.com") {
			t.Errorf("error %v", err)
		}
		if got := edge.stats(lost); got.Endpoint != "" || len(got.AllowedIPs) != 1 {
			t.Errorf("the peer without a place is %+v", got)
		}
		expect("192.0.2.7:51820")

		slices.Reverse(names["edge.example.com"]) // as name servers do
		peers[1].Endpoint = ""
		edge.set(peers...)
		expect("192.0.2.7:51820")

		names["edge.example.com"] = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.9")}
		edge.set(peers...)
		expect("192.0.2.9:51820")
	})
}

func TestSlowNameServerDelaysNoRevocation(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, named, revoked := w.openEdge(), w.openAgent(1), w.openAgent(2)
		edge.set(revoked.peer(""))
		asked, ended := make(chan struct{}), make(chan error, 1)
		edge.Device.(*device).lookup = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			close(asked)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- edge.SetPeers(ctx, []Peer{named.peer("slow.example.com:1")}) }()
		<-asked
		if stats, err := edge.Stats(); err != nil || len(stats) != 1 || stats[0].PublicKey != named.key.Public() {
			t.Errorf("while a name is looked up the peers are %v, %v", stats, err)
		}
		edge.set(revoked.peer("")) // does not wait either
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if stats, err := edge.Stats(); err != nil || len(stats) != 1 || stats[0].PublicKey != revoked.key.Public() {
			t.Errorf("the later call's peers are gone: %v, %v", stats, err)
		}
	})
}

func TestCloseWhileInUse(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		to := edge.serve(7, echo)
		idle, busy := agent.mustDial(to), agent.mustDial(to)
		var listener net.Listener
		agent.in(func() (err error) {
			listener, err = agent.Listen(8)
			return err
		})
		ended := make(chan error, 4)
		go func() { _, err := idle.Read(make([]byte, 1)); ended <- err }()
		go func() {
			for { // nobody reads the echo: in the end this blocks
				if _, err := busy.Write(make([]byte, 1<<20)); err != nil {
					ended <- err
					return
				}
			}
		}()
		go func() { _, err := listener.Accept(); ended <- err }()
		go func() {
			_, err := agent.dial(context.Background(), netip.AddrPortFrom(agentAddr(77), 9))
			ended <- err
		}()
		until(t, "traffic", func() bool { return edge.stats(agent).Received > 1<<16 }) // less than the buffers hold
		if err := agent.Close(); err != nil {
			t.Fatal(err)
		}
		for range cap(ended) {
			err := <-ended
			if w.kind == Kernel && errors.Is(err, syscall.EHOSTUNREACH) {
				continue // the dial, which the kernel refused before (see TestDialErrors)
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("ended with %v", err)
			}
		}
		if err := agent.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		_, dialled := agent.dial(t.Context(), to)
		_, listened := agent.Listen(9)
		_, read := agent.Stats()
		for what, err := range map[string]error{"dial": dialled, "listen": listened, "stats": read, "set peers": agent.SetPeers(t.Context(), nil)} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after close: %v", what, err)
			}
		}
	})
}

func TestConnDeadlineAndClose(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		c := agent.mustDial(edge.serve(7, echo))
		if err := ask(c, "hello"); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now())
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past its deadline: %v", err)
		}
		c.SetReadDeadline(time.Time{})
		ended := make(chan error)
		go func() { _, err := c.Read(make([]byte, 1)); ended <- err }()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed connection: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write to a closed connection: %v", err)
		}
	})
}

// A peer may only use the address it was given.
func TestSpoofedSourceIsDropped(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1, func(c *Config) { c.Address = agentAddr(66) })
		honest := agent.peer("")
		honest.AllowedIPs = []netip.Prefix{netip.PrefixFrom(agentAddr(1), 32)}
		edge.set(honest)
		agent.set(edge.peer(netip.AddrPortFrom(w.under(1), edge.ListenPort()).String()))
		to := edge.serve(7, echo)
		until(t, "a tunnel, without which nothing is tested", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if c, err := agent.dial(ctx, to); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v, %v", c, err)
			}
			return !edge.stats(agent).Handshake.IsZero()
		})
	})
}

// shortly is ask, for an answer that may not come.
func shortly(c net.Conn) error {
	c.SetDeadline(time.Now().Add(time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, "?"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func TestOpenSaysThatThePortIsTaken(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		port := w.openEdge().ListenPort()
		host := w.edge
		second := &end{t: t, host: host}
		err := second.try(func() error {
			d, err := Open(Config{Kind: w.kind, PrivateKey: newKey(t), Address: agentAddr(1), Network: network, ListenPort: port, Name: "kksecond"})
			if err == nil {
				d.Close()
			}
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got %v", err)
		}
	})
}

// What is logged and returned never has a private key in it, in any form.
func TestNoPrivateKeyIsTold(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		log := &told{}
		key := newKey(t)
		spy := func(c *Config) {
			c.PrivateKey = key
			c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		edge := w.openEdge(spy)
		errs := []error{
			edge.SetPeers(t.Context(), []Peer{{PublicKey: key.Public()}}),
			edge.SetPeers(t.Context(), []Peer{{PublicKey: newKey(t).Public(), Endpoint: "no port"}}),
		}
		edge.set(Peer{PublicKey: newKey(t).Public(), Endpoint: "127.0.0.1:9", Keepalive: 1e9})
		edge.Close()
		all := log.String()
		for _, err := range errs {
			if err == nil {
				t.Fatal("no error")
			}
			all += err.Error()
		}
		for _, form := range []string{key.Reveal(), string(key[:]), hex.EncodeToString(key[:])} {
			if strings.Contains(all, form) {
				t.Errorf("the private key was told: %s", all)
			}
		}
	})
}

// told is a log that can be read while it is written.
type told struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *told) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *told) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

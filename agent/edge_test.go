package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

// testEdgeServer is an edge reduced to what an agent sees of it: a real tunnel,
// the real API for agents, and streams to services.
type testEdgeServer struct {
	api.Edge // what only the control plane asks for

	fleet   *testFleet
	private keys.Private
	is      api.AgentEdge

	mu      sync.Mutex
	device  tunnel.Device
	server  *http.Server
	signed  api.Signed
	changed chan struct{}
	beats   []api.Heartbeat
}

// newEdge starts an edge that lives until the test ends.
func (f *testFleet) newEdge(t testing.TB, name, address string) *testEdgeServer {
	t.Helper()
	private, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	e := &testEdgeServer{fleet: f, private: private, changed: make(chan struct{})}
	e.is = api.AgentEdge{Name: name, PublicKey: private.Public(), Address: netip.MustParseAddr(address)}
	e.start(t, 0)
	t.Cleanup(e.stop)
	return e
}

// start opens the edge's tunnel at a UDP port, or any for 0.
func (e *testEdgeServer) start(t testing.TB, port uint16) {
	t.Helper()
	device, err := tunnel.Open(tunnel.Config{
		Kind: tunnel.Userspace, PrivateKey: e.private, Address: e.is.Address, Network: testNetwork, ListenPort: port,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = device.SetPeers(t.Context(), []tunnel.Peer{{
		PublicKey:  e.fleet.bootstrap.PrivateKey.Public(),
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(e.fleet.bootstrap.TunnelAddress, 32)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := device.Listen(api.EdgePort)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api.Handler(e)}
	go server.Serve(listener)
	e.mu.Lock()
	e.device, e.server = device, server
	e.is.Endpoint = fmt.Sprintf("127.0.0.1:%d", device.ListenPort())
	e.mu.Unlock()
}

// stop ends the edge as a killed process ends: no one is told.
func (e *testEdgeServer) stop() {
	e.mu.Lock()
	device, server := e.device, e.server
	e.device, e.server = nil, nil
	e.mu.Unlock()
	if device != nil {
		device.Close()
		server.Close()
	}
}

func (e *testEdgeServer) port() uint16 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.device.ListenPort()
}

func (e *testEdgeServer) relay(s api.Signed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.signed = s
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *testEdgeServer) Caller(from netip.Addr) api.Caller {
	if from != e.fleet.bootstrap.TunnelAddress {
		return api.Caller{}
	}
	return api.Caller{Agent: e.fleet.bootstrap.Name}
}

func (e *testEdgeServer) AgentConfig(string) (api.Signed, <-chan struct{}, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.signed, e.changed, e.signed.Payload != nil
}

func (e *testEdgeServer) Heartbeat(_ string, h api.Heartbeat) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.beats = append(e.beats, h)
}

func (e *testEdgeServer) heartbeats() []api.Heartbeat {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.beats)
}

// last is the last heartbeat, or the zero one.
func (e *testEdgeServer) last() api.Heartbeat {
	b := e.heartbeats()
	if len(b) == 0 {
		return api.Heartbeat{}
	}
	return b[len(b)-1]
}

// dial opens a stream to a service of the agent. Whether it is served is known
// with the first byte read.
func (e *testEdgeServer) dial(ctx context.Context, service string) (net.Conn, error) {
	e.mu.Lock()
	device := e.device
	e.mu.Unlock()
	return stream.Dialer{Dial: device.Dial, Port: api.AgentPort}.Stream(ctx, stream.Target{
		Agent: e.fleet.bootstrap.TunnelAddress, Service: service, Client: visitor, Server: visited,
	})
}

// refusal is why a service is not served.
func (e *testEdgeServer) refusal(t *testing.T, service string) error {
	t.Helper()
	c, err := e.dial(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return err
}

// visitor is who the edge says is asking, and visited the edge's public side.
var visitor, visited = netip.MustParseAddrPort("203.0.113.77:4711"), netip.MustParseAddrPort("198.51.100.1:443")

// client asks a service through the edge, whatever the URL's host.
func (e *testEdgeServer) client(service string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dial(ctx, service) },
	}}
}

// listen is a service that does as it is told with every connection, until the
// test ends. It returns its address.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

// newEcho is a service that says what it is told.
func newEcho(t *testing.T) string {
	return listen(t, func(c net.Conn) { io.Copy(c, c) })
}

// echoStream is an open stream to an echo.
type echoStream struct{ conn net.Conn }

func (e *testEdgeServer) echoes(t *testing.T, service string) *echoStream {
	t.Helper()
	c, err := e.dial(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &echoStream{c}
}

func (s *echoStream) say(t *testing.T, text string) {
	t.Helper()
	s.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(s.conn, text); err != nil {
		t.Fatalf("say %q: %v", text, err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s.conn, got); err != nil || string(got) != text {
		t.Fatalf("said %q, heard %q, %v", text, got, err)
	}
}

// ended waits until the other side has closed the stream.
func (s *echoStream) ended(t *testing.T) {
	t.Helper()
	s.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if n, err := s.conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream goes on: %d, %v", n, err)
	}
}

// endpoint is where the edge sees the agent.
func (e *testEdgeServer) endpoint(t *testing.T) string {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	stats, err := e.device.Stats()
	if err != nil || len(stats) != 1 {
		t.Fatalf("peers %v, %v", stats, err)
	}
	return stats[0].Endpoint
}

// nat passes UDP on between whoever sends to its inside and one place outside,
// where it is seen at an address that can change.
type nat struct {
	inside net.PacketConn
	to     net.Addr

	mu      sync.Mutex
	outside net.PacketConn
	client  net.Addr
	done    sync.WaitGroup
}

func newNAT(t *testing.T, at, to string) *nat {
	t.Helper()
	inside, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	n := &nat{inside: inside, to: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))}
	n.rebind(t)
	n.done.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			size, from, err := inside.ReadFrom(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.client = from
			n.outside.WriteTo(buf[:size], n.to)
			n.mu.Unlock()
		}
	})
	t.Cleanup(n.stop)
	return n
}

// stop ends the nat, and with it the address at its inside.
func (n *nat) stop() {
	n.inside.Close()
	n.mu.Lock()
	n.outside.Close()
	n.mu.Unlock()
	n.done.Wait()
}

// rebind gives the nat another address outside; nothing comes back to the old one.
func (n *nat) rebind(t *testing.T) {
	t.Helper()
	outside, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	old := n.outside
	n.outside = outside
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	n.done.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			size, _, err := outside.ReadFrom(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			client := n.client
			n.mu.Unlock()
			if client != nil {
				n.inside.WriteTo(buf[:size], client)
			}
		}
	})
}

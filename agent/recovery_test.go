package agent

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/nettest"
)

// answers reports whether a new stream to the echo of the agent gets through now.
func (e *testEdgeServer) answers(t *testing.T) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := e.dial(ctx, "echo")
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	got := make([]byte, 4)
	if _, err := io.WriteString(c, "echo"); err != nil {
		return false
	}
	_, err = io.ReadFull(c, got)
	return err == nil
}

// names is a name server for tests.
type names struct {
	mu    sync.Mutex
	known map[string]string
}

func (n *names) set(host, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = map[string]string{host: addr}
}

func (n *names) lookup(ctx context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	addr, ok := n.known[host]
	n.mu.Unlock()
	if !ok {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []netip.Addr{netip.MustParseAddr(addr)}, nil
}

// TestInUseAgain keeps the promise on real tunnels at the real pace: whatever happens
// on the way to an edge, new streams through it reach the agent in time.
func TestInUseAgain(t *testing.T) {
	const host = "tokyo.example.com"
	for _, c := range []struct {
		name string
		// way is how the agent reaches the edge at first, and what happens to it.
		way func(t *testing.T, e *testEdgeServer, n *names) (endpoint string, happens func())
	}{
		{"a NAT gives another mapping", func(t *testing.T, e *testEdgeServer, _ *names) (string, func()) {
			relay := nettest.NewRelay(t, netip.MustParseAddrPort(e.is.Endpoint), nettest.Shape{})
			return relay.Addr().String(), relay.Rebind
		}},
		{"a NAT loses the mapping for good", func(t *testing.T, e *testEdgeServer, _ *names) (string, func()) {
			relay := nettest.NewRelay(t, netip.MustParseAddrPort(e.is.Endpoint), nettest.Shape{})
			return relay.Addr().String(), relay.Forsake
		}},
		{"the edge's address changes", func(t *testing.T, e *testEdgeServer, n *names) (string, func()) {
			old := newNAT(t, "127.0.0.1:0", e.is.Endpoint)
			_, port, err := net.SplitHostPort(old.inside.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			newNAT(t, net.JoinHostPort("127.0.0.2", port), e.is.Endpoint)
			n.set(host, "127.0.0.1")
			return net.JoinHostPort(host, port), func() {
				old.stop()
				n.set(host, "127.0.0.2")
			}
		}},
		{"the edge's address changes while DNS is out", func(t *testing.T, e *testEdgeServer, n *names) (string, func()) {
			old := newNAT(t, "127.0.0.1:0", e.is.Endpoint)
			_, port, err := net.SplitHostPort(old.inside.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			newNAT(t, net.JoinHostPort("127.0.0.2", port), e.is.Endpoint)
			n.set(host, "127.0.0.1")
			return net.JoinHostPort(host, port), func() {
				old.stop()
				n.set("another.example.com", "127.0.0.1")
				time.Sleep(12 * time.Second) // the time counts from when DNS is back
				n.set(host, "127.0.0.2")
			}
		}},
		{"the edge is rebooted", func(t *testing.T, e *testEdgeServer, _ *names) (string, func()) {
			return e.is.Endpoint, func() {
				port := e.port()
				e.stop()
				time.Sleep(5 * time.Second) // it is gone for so long
				e.start(t, port)
			}
		}},
		// As after a suspend: the agent's own clock stood still, and it believes in
		// a session that has ended.
		{"the edge has forgotten the session", func(t *testing.T, e *testEdgeServer, _ *names) (string, func()) {
			return e.is.Endpoint, func() {
				port := e.port()
				e.stop()
				e.start(t, port)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newTestFleet(t)
			edge, dns := f.newEdge(t, "tokyo", "10.77.0.10"), &names{}
			endpoint, happens := c.way(t, edge, dns)
			seen := edge.is
			seen.Endpoint = endpoint
			f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{seen}, []api.AgentEdge{seen}
			edge.relay(f.sign(t, services(map[string]string{"echo": "http://" + newEcho(t)})))
			a, _ := f.runAgent(t, func(a *agent) { a.pace, a.lookup = defaultPace, dns.lookup })
			eventually(t, "in use", func() bool { return edge.answers(t) })
			happens()
			back := time.Now()
			eventually(t, "in use again", func() bool { return edge.answers(t) })
			took := time.Since(back)
			t.Logf("in use again after %v", took)
			if took > promised {
				t.Errorf("in use again after %v, want at most %v", took, promised)
			}
			eventually(t, "the agent says so", func() bool { return a.report().Unhealthy() == nil })
		})
	}
}

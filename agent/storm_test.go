//go:build !race

// Two hundred devices in one process are more than the race detector bears.

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// crowdedEdge is an edge with many agents.
type crowdedEdge struct {
	api.Edge // what only the control plane asks for
	signed   map[string]api.Signed
	names    map[netip.Addr]string
	asked    atomic.Int64
}

func (e *crowdedEdge) Caller(from netip.Addr) api.Caller { return api.Caller{Agent: e.names[from]} }

func (e *crowdedEdge) AgentConfig(name string) (api.Signed, <-chan struct{}, bool) {
	e.asked.Add(1)
	return e.signed[name], make(chan struct{}), true
}

func (e *crowdedEdge) Heartbeat(string, api.Heartbeat) {}

// TestStormOnRealTunnels has two hundred agents, each with a tunnel of its own, lose
// an edge that is back a few seconds later: they are all back in time, and it is no
// storm.
func TestStormOnRealTunnels(t *testing.T) {
	const many = 200
	f := newTestFleet(t)
	private, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	is := api.AgentEdge{Name: "tokyo", PublicKey: private.Public(), Address: netip.MustParseAddr("10.77.0.10")}
	edge := &crowdedEdge{signed: map[string]api.Signed{}, names: map[netip.Addr]string{}}
	var peers []tunnel.Peer
	bootstraps := make([]Bootstrap, many)
	for i := range bootstraps {
		key, err := keys.NewPrivate()
		if err != nil {
			t.Fatal(err)
		}
		b := f.bootstrap
		b.Name, b.PrivateKey = fmt.Sprint("a", i), key
		b.TunnelAddress = netip.AddrFrom4([4]byte{10, 77, 2, byte(i)})
		b.Data = filepath.Join(t.TempDir(), b.Name)
		bootstraps[i] = b
		edge.names[b.TunnelAddress] = b.Name
		peers = append(peers, tunnel.Peer{PublicKey: key.Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(b.TunnelAddress, 32)}})
	}
	var port uint16
	start := func() (stop func()) {
		device, err := tunnel.Open(tunnel.Config{Kind: tunnel.Userspace, PrivateKey: private, Address: is.Address, Network: testNetwork, ListenPort: port})
		if err != nil {
			t.Fatal(err)
		}
		if err := device.SetPeers(t.Context(), peers); err != nil {
			t.Fatal(err)
		}
		l, err := device.Listen(api.EdgePort)
		if err != nil {
			t.Fatal(err)
		}
		port = device.ListenPort()
		server := &http.Server{Handler: api.Handler(edge)}
		go server.Serve(l)
		return sync.OnceFunc(func() { device.Close(); server.Close() })
	}
	stop := start()
	t.Cleanup(func() { stop() })
	is.Endpoint = fmt.Sprintf("127.0.0.1:%d", port)

	var handshakes atomic.Int64
	agents := make([]*agent, many)
	for i, b := range bootstraps {
		b.Edges = []api.AgentEdge{is}
		edge.signed[b.Name] = f.sign(t, func(c *api.AgentConfig) { c.Agent, c.Edges = b.Name, b.Edges })
		a, err := newAgent(b, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		a.open = func(c tunnel.Config) (tunnel.Device, error) {
			d, err := tunnel.Open(c)
			return counted{d, &handshakes}, err
		}
		agents[i] = a
	}
	for _, a := range agents {
		started(t, a)
	}
	back := func() int {
		n := 0
		for _, a := range agents {
			if up(a, "tokyo") {
				n++
			}
		}
		return n
	}
	eventually(t, "all reached", func() bool { return back() == many })
	stop()
	eventually(t, "all lost", func() bool { return back() == 0 })
	runtime.GC()
	before, asked, cpu := handshakes.Load(), edge.asked.Load(), used(t)
	began := time.Now()
	stop = start()
	eventually(t, "all back", func() bool { return back() == many })
	took, cpu := time.Since(began), used(t)-cpu
	t.Logf("all back after %v, with %d handshakes begun, %d questions and %v of CPU time for all %d agents and the edge",
		took, handshakes.Load()-before, edge.asked.Load()-asked, cpu, many)
	if share := cpu.Seconds() / took.Seconds() / float64(runtime.NumCPU()); share > .8 {
		t.Errorf("%.0f %% of the CPU were used", 100*share)
	}
	if took > promised {
		t.Errorf("all back after %v, want at most %v", took, promised)
	}
	if n := handshakes.Load() - before; n > 3*many {
		t.Errorf("%d handshakes for %d agents", n, many)
	}
}

// used is the CPU time of this process.
func used(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// counted counts how often a peer is set anew, which is what begins a handshake.
type counted struct {
	tunnel.Device
	n *atomic.Int64
}

func (c counted) SetPeers(ctx context.Context, peers []tunnel.Peer) error {
	if len(peers) > 0 {
		c.n.Add(1)
	}
	return c.Device.SetPeers(ctx, peers)
}

package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

// twoEdges are tokyo, which has a name, and osaka, which has an address.
func twoEdges(t *testing.T, w *world) (f *testFleet, tokyo, osaka *fakeEdge) {
	t.Helper()
	f = newTestFleet(t)
	w.names["tokyo.example.com"] = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	f.config.Edges = []api.AgentEdge{
		testEdge(t, "tokyo", "10.77.0.10", "tokyo.example.com:51820"),
		testEdge(t, "osaka", "10.77.0.11", "192.0.2.2:51820"),
	}
	f.bootstrap.Edges = f.config.Edges
	signed := f.sign(t, nil)
	tokyo = w.add(f.config.Edges[0], "192.0.2.1:51820", signed)
	osaka = w.add(f.config.Edges[1], "192.0.2.2:51820", signed)
	return f, tokyo, osaka
}

// TestLostWay: a NAT loses for good what comes from the port that the agent has, and
// only another port helps. The edge that is lost counts as down, and is up again, in
// time; the one that is not lost never notices.
func TestLostWay(t *testing.T) {
	for _, c := range []struct {
		name string
		// lose loses the ways of both edges, or of tokyo only.
		both bool
		// away is how long both edges are gone meanwhile.
		away time.Duration
		// mute has DNS not answer from then on.
		mute bool
	}{
		{name: "one way"},
		{name: "one way, and DNS", mute: true},
		{name: "all ways", both: true},
		{name: "all ways, and DNS", both: true, mute: true},
		{name: "all ways, during an outage", both: true, away: 100 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				f, tokyo, osaka := twoEdges(t, w)
				a, _ := w.run(t, f.bootstrap)
				until(t, time.Second, "both edges reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })
				time.Sleep(time.Minute)

				if c.away > 0 {
					tokyo.die()
					osaka.die()
					time.Sleep(c.away)
					tokyo.live("192.0.2.1:51820")
					osaka.live("192.0.2.2:51820")
				}
				w.mu.Lock()
				w.mute = c.mute
				w.mu.Unlock()
				tokyo.lose()
				if c.both {
					osaka.lose()
				}
				down := 0
				took := until(t, promised, "both edges in use again", func() bool {
					if i := slices.IndexFunc(a.report().Edges, func(e EdgeReport) bool { return e.Name == "tokyo" && !e.Up }); i >= 0 {
						down++
					}
					w.mu.Lock()
					defer w.mu.Unlock()
					port := w.devices[0].port
					there := func(e *fakeEdge) bool { return !e.lost[port] }
					return there(tokyo) && up(a, "tokyo") && there(osaka) && up(a, "osaka")
				})
				t.Logf("in use again after %v", took)
				if down == 0 && !c.both {
					t.Error("the edge that was lost was never down")
				}
				if n := osaka.unanswered(); n > 0 && !c.both {
					t.Errorf("%d calls to the other edge were not answered", n)
				}
				if n := w.opened(); n != 1 {
					t.Errorf("%d devices were opened", n)
				}
			})
		})
	}
}

// TestHealthFollowsTheTunnel: a tunnel that carries nothing any more is down in time,
// and an agent without a tunnel that does is not healthy.
func TestHealthFollowsTheTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, tokyo, osaka := twoEdges(t, w)
		a, _ := w.run(t, f.bootstrap)
		until(t, time.Second, "both edges reached", func() bool { return a.report().Up() == 2 })
		tokyo.die()
		took := until(t, promised, "tokyo is down", func() bool { return a.report().Up() == 1 })
		t.Logf("down after %v", took)
		if err := a.report().Unhealthy(); err != nil {
			t.Errorf("with one edge left: %v", err)
		}
		until(t, promised, "osaka is told", func() bool {
			b := osaka.heartbeats()
			return slices.ContainsFunc(b[len(b)-1].Edges, func(e api.AgentEdgeState) bool { return e.Name == "tokyo" && !e.Up })
		})
		osaka.die()
		until(t, promised, "osaka is down", func() bool { return a.report().Up() == 0 })
		if a.report().Unhealthy() == nil {
			t.Error("an agent without a tunnel is healthy")
		}
	})
}

// TestEdgeUnderLoad: an edge that wants its cookie back, and so the second handshake
// that WireGuard makes by itself, gets it.
func TestEdgeUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, tokyo, _ := twoEdges(t, w)
		a, _ := w.run(t, f.bootstrap)
		until(t, time.Second, "both edges reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })
		w.mu.Lock()
		tokyo.loaded = true
		w.mu.Unlock()
		tokyo.live("192.0.2.1:51820")
		until(t, promised, "lost", func() bool { return !up(a, "tokyo") })
		took := until(t, 2*promised, "in use again", func() bool { return up(a, "tokyo") })
		t.Logf("in use again %v after it was lost", took)
	})
}

// TestPortsForOneLostEdge: an edge that is gone for a day costs those that are there
// few ports.
func TestPortsForOneLostEdge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, tokyo, osaka := twoEdges(t, w)
		a, _ := w.run(t, f.bootstrap)
		until(t, time.Second, "both edges reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })
		tokyo.die()
		time.Sleep(24 * time.Hour)
		if n := w.devices[0].port; n < 2 || n > 16 {
			t.Errorf("%d ports in a day", n)
		}
		if n := osaka.unanswered(); n > 0 {
			t.Errorf("%d calls to the other edge were not answered", n)
		}
	})
}

// TestNoOtherPort: a device that cannot go on is opened anew at once, and not when
// patience ends.
func TestNoOtherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, tokyo, osaka := twoEdges(t, w)
		a, _ := w.run(t, f.bootstrap)
		until(t, time.Second, "both edges reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })
		w.mu.Lock()
		w.devices[0].stuck = errors.New("no such device")
		w.mu.Unlock()
		tokyo.lose()
		osaka.lose()
		until(t, promised, "a second device", func() bool { return w.opened() == 2 })
		w.mu.Lock()
		tokyo.lost, osaka.lost = nil, nil
		w.mu.Unlock()
		until(t, promised, "both edges in use again", func() bool { return up(a, "tokyo") && up(a, "osaka") })
	})
}

// TestStartWithoutDNS: an agent that starts while no name can be looked up finds its
// edges where they last answered, and goes elsewhere when DNS says so again.
func TestStartWithoutDNS(t *testing.T) {
	for _, c := range []struct {
		name string
		mute bool
	}{{"no such name", false}, {"no answer", true}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				f, tokyo, osaka := twoEdges(t, w)
				w.names["tokyo.example.com"] = []netip.Addr{netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("192.0.2.1")}
				a, stop := w.run(t, f.bootstrap)
				until(t, promised, "both edges reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })
				stop()

				names := w.names
				w.names, w.mute = nil, c.mute
				a, stop = w.run(t, f.bootstrap)
				took := until(t, promised, "reached without DNS", func() bool { return up(a, "tokyo") && up(a, "osaka") })
				t.Logf("reached without DNS after %v", took)
				w.mu.Lock()
				w.names, w.mute = names, false
				w.names["tokyo.example.com"] = []netip.Addr{netip.MustParseAddr("198.51.100.7")}
				w.mu.Unlock()
				tokyo.live("198.51.100.7:51820")
				told := len(tokyo.heartbeats())
				until(t, promised, "reached at its new place", func() bool { return len(tokyo.heartbeats()) > told && up(a, "tokyo") })
				osaka.die()
				stop()

				// A file that is spoilt is as good as none.
				path := filepath.Join(f.bootstrap.Data, placesName)
				if kept, err := os.ReadFile(path); err != nil || string(kept) != `{"tokyo.example.com:51820":"198.51.100.7:51820"}` {
					t.Errorf("kept %s, %v", kept, err)
				}
				if err := os.WriteFile(path, []byte(`{"tokyo.example.com:51820":`), 0o600); err != nil {
					t.Fatal(err)
				}
				a, _ = w.run(t, f.bootstrap)
				until(t, promised, "reached by DNS", func() bool { return up(a, "tokyo") })
			})
		})
	}
}

// TestPlacesForget: what is kept is of edges that are wanted.
func TestPlacesForget(t *testing.T) {
	f := newTestFleet(t)
	p := places{dir: t.TempDir()}
	at := netip.MustParseAddrPort("192.0.2.1:51820")
	tokyo := testEdge(t, "tokyo", "10.77.0.10", "tokyo.example.com:51820")
	osaka := testEdge(t, "osaka", "10.77.0.11", "osaka.example.com:51820")
	keep := func(e api.AgentEdge, at netip.AddrPort, wanted ...api.AgentEdge) {
		t.Helper()
		if err := p.keep(e.Endpoint, at, wanted); err != nil {
			t.Error(err)
		}
	}
	keep(tokyo, at, tokyo, osaka)
	keep(osaka, at, tokyo, osaka)
	keep(f.bootstrap.Edges[0], at, tokyo, osaka) // an address needs no remembering
	keep(tokyo, netip.AddrPort{}, tokyo, osaka)
	again := places{dir: p.dir}
	if err := again.load(); err != nil || again.find(tokyo.Endpoint) != at || again.find(osaka.Endpoint) != at {
		t.Errorf("found %v, %v", again.known, err)
	}
	keep(osaka, at, osaka)
	if err := again.load(); err != nil || again.find(tokyo.Endpoint).IsValid() || again.find(osaka.Endpoint) != at {
		t.Errorf("found %v, %v", again.known, err)
	}
	p.dir = filepath.Join(p.dir, "missing")
	if err := p.keep(osaka.Endpoint, netip.MustParseAddrPort("192.0.2.7:51820"), nil); err == nil {
		t.Error("nothing was said of a folder that is not there")
	}
	p.dir = again.dir
	keep(osaka, netip.MustParseAddrPort("192.0.2.7:51820"), osaka)
	if err := again.load(); err != nil || again.find(osaka.Endpoint).String() != "192.0.2.7:51820" {
		t.Errorf("found %v, %v", again.known, err)
	}
}

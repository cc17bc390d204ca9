package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// promised is how soon an edge that is back must be in use again.
const promised = 15 * time.Second

// TestRecovery: whatever happens to one edge, its link is up again in time, and
// the link to the other never noticed.
func TestRecovery(t *testing.T) {
	for _, c := range []struct {
		name string
		// away takes the edge away, and back returns it; gone is the time between.
		away func(*world, *fakeEdge)
		gone time.Duration
		back func(*world, *fakeEdge)
	}{
		{name: "a restart that nobody could see", back: func(_ *world, e *fakeEdge) { e.live("192.0.2.1:51820") }},
		{name: "a restart of a second", away: die, gone: time.Second, back: func(_ *world, e *fakeEdge) { e.live("192.0.2.1:51820") }},
		{name: "a while", away: die, gone: 40 * time.Second, back: func(_ *world, e *fakeEdge) { e.live("192.0.2.1:51820") }},
		{name: "hours", away: die, gone: 3 * time.Hour, back: func(_ *world, e *fakeEdge) { e.live("192.0.2.1:51820") }},
		{name: "its name leads elsewhere", away: die, gone: 10 * time.Second, back: func(w *world, e *fakeEdge) {
			e.live("198.51.100.7:51820")
			w.mu.Lock()
			w.names["tokyo.example.com"] = []netip.Addr{netip.MustParseAddr("198.51.100.7")}
			w.mu.Unlock()
		}},
		{name: "one of the addresses of its name", away: die, gone: 10 * time.Second, back: func(w *world, e *fakeEdge) {
			e.live("198.51.100.7:51820")
			w.mu.Lock()
			w.names["tokyo.example.com"] = []netip.Addr{netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("198.51.100.7")}
			w.mu.Unlock()
		}},
		{name: "a time without DNS", away: func(w *world, e *fakeEdge) {
			e.die()
			w.mu.Lock()
			delete(w.names, "tokyo.example.com")
			w.mu.Unlock()
		}, gone: time.Minute, back: func(_ *world, e *fakeEdge) { e.live("192.0.2.1:51820") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newTestFleet(t)
				w := newWorld()
				w.names["tokyo.example.com"] = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
				f.config.Edges = []api.AgentEdge{
					testEdge(t, "tokyo", "10.77.0.10", "tokyo.example.com:51820"),
					testEdge(t, "osaka", "10.77.0.11", "192.0.2.2:51820"),
				}
				f.bootstrap.Edges = f.config.Edges
				signed := f.sign(t, nil)
				tokyo := w.add(f.config.Edges[0], "192.0.2.1:51820", signed)
				osaka := w.add(f.config.Edges[1], "192.0.2.2:51820", signed)
				a, _ := w.run(t, f.bootstrap)
				until(t, time.Second, "both edges reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })

				if c.away != nil {
					c.away(w, tokyo)
				}
				time.Sleep(c.gone)
				if c.gone > 20*time.Second && up(a, "tokyo") {
					t.Error("an edge that is gone counts as up")
				}
				c.back(w, tokyo)
				back := time.Now()
				beats := len(tokyo.heartbeats())
				took := until(t, promised, "edge in use again", func() bool { return len(tokyo.heartbeats()) > beats && up(a, "tokyo") })
				t.Logf("in use again after %v", took)
				if took := time.Since(back); took > promised {
					t.Errorf("recovery took %v", took)
				}
				if n := osaka.unanswered(); n > 0 {
					t.Errorf("%d calls to the other edge were not answered", n)
				}
				if n := w.devices[0].removed[f.config.Edges[1].PublicKey]; n > 0 {
					t.Errorf("the other edge was taken out %d times", n)
				}
				if n := w.opened(); n != 1 {
					t.Errorf("%d devices were opened", n)
				}
			})
		})
	}
}

func die(_ *world, e *fakeEdge) { e.die() }

// TestEdgeMovesByConfig: the fleet says where an edge is now, and the agent goes
// there although the old place still answers.
func TestEdgeMovesByConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFleet(t)
		w := newWorld()
		osaka := testEdge(t, "osaka", "10.77.0.11", "192.0.2.2:51820")
		f.config.Edges = append(f.config.Edges, osaka)
		signed := f.sign(t, nil)
		old := w.add(f.config.Edges[0], "127.0.0.1:51820", signed)
		relay := w.add(osaka, "192.0.2.2:51820", signed)
		a, _ := w.run(t, f.bootstrap)
		until(t, 2*time.Second, "reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })

		moved := f.sign(t, func(c *api.AgentConfig) {
			c.Serial = 6
			c.Edges[0].Endpoint = "203.0.113.5:51820"
		})
		old.live("203.0.113.5:51820")
		relay.relay(moved)
		until(t, promised, "reached at its new place", func() bool {
			w.mu.Lock()
			at := w.devices[0].peers
			w.mu.Unlock()
			return slices.ContainsFunc(at, func(p tunnel.Peer) bool { return p.Endpoint == "203.0.113.5:51820" }) && up(a, "tokyo")
		})
	})
}

// TestMakeBeforeBreak: edges that are no longer wanted go when a wanted one has
// answered, or when their time is over.
func TestMakeBeforeBreak(t *testing.T) {
	for _, c := range []struct {
		name  string
		alive bool
		most  time.Duration
	}{
		{"the new edge answers", true, time.Second},
		{"the new edge is not there", false, defaultPace.linger + 2*defaultPace.tick},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newTestFleet(t)
				w := newWorld()
				old := w.add(f.config.Edges[0], "127.0.0.1:51820", f.sign(t, nil))
				a, _ := w.run(t, f.bootstrap)
				until(t, time.Second, "reached", func() bool { return up(a, "tokyo") })

				next := testEdge(t, "osaka", "10.77.0.11", "192.0.2.2:51820")
				signed := f.sign(t, func(c *api.AgentConfig) { c.Serial, c.Edges = 6, []api.AgentEdge{next} })
				fresh := w.add(next, "192.0.2.2:51820", signed)
				if !c.alive {
					fresh.die()
				}
				old.relay(signed)
				took := until(t, c.most, "old edge dropped", func() bool { return slices.Equal(edgeNames(a), []string{"osaka"}) })
				if up(a, "osaka") != c.alive {
					t.Errorf("new edge up: %v", !c.alive)
				}
				if !c.alive && took < defaultPace.linger {
					t.Errorf("the old edge was dropped after %v, and no other answered", took)
				}
				if !c.alive {
					fresh.live("192.0.2.2:51820")
					until(t, promised, "new edge reached", func() bool { return up(a, "osaka") })
				}
			})
		})
	}
}

// TestEdgeTakesOver: another edge with the same tunnel address cannot be a peer
// beside the old one, so it takes its place at once.
func TestEdgeTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFleet(t)
		w := newWorld()
		old := w.add(f.config.Edges[0], "127.0.0.1:51820", f.sign(t, nil))
		a, _ := w.run(t, f.bootstrap)
		until(t, time.Second, "reached", func() bool { return up(a, "tokyo") })
		next := testEdge(t, "tokyo", "10.77.0.10", "192.0.2.2:51820")
		signed := f.sign(t, func(c *api.AgentConfig) { c.Serial, c.Edges = 6, []api.AgentEdge{next} })
		w.add(next, "192.0.2.2:51820", signed)
		old.relay(signed)
		until(t, 2*time.Second, "the new key reached", func() bool {
			w.mu.Lock()
			peers := slices.Clone(w.devices[0].peers)
			w.mu.Unlock()
			return len(peers) == 1 && peers[0].PublicKey == next.PublicKey && up(a, "tokyo")
		})
	})
}

// TestAllEdgesDead: the device is opened anew after long silence, ever more
// rarely, and the agent comes back when an edge does.
func TestAllEdgesDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFleet(t)
		w := newWorld()
		edge := w.add(f.config.Edges[0], "127.0.0.1:51820", f.sign(t, nil))
		a, _ := w.run(t, f.bootstrap)
		until(t, time.Second, "reached", func() bool { return up(a, "tokyo") })
		edge.die()
		time.Sleep(defaultPace.patience - 10*time.Second)
		if n := w.opened(); n != 1 {
			t.Errorf("%d devices opened before patience ran out", n)
		}
		until(t, 30*time.Second, "a second device", func() bool { return w.opened() == 2 })
		// The host may be unable to open one for a while.
		w.mu.Lock()
		w.unable = errors.New("no device to be had")
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		w.mu.Lock()
		w.unable = nil
		w.mu.Unlock()
		until(t, 2*defaultPace.backoffMax, "a third device", func() bool { return w.opened() == 3 })
		time.Sleep(3 * time.Hour)
		if n := w.opened(); n > 3+2+int(3*time.Hour/defaultPace.patienceMax) {
			t.Errorf("%d devices opened in three hours", n)
		}
		edge.live("127.0.0.1:51820")
		until(t, promised, "reached again", func() bool { return up(a, "tokyo") })
	})
}

// TestStorm: two hundred agents lose an edge at once, and come back in time, but not
// in step, and none asks for more than it needs.
func TestStorm(t *testing.T) {
	const many = 200
	for _, c := range []struct {
		name string
		gone time.Duration
		// most is how many may come in one second.
		most int
	}{
		// The worst moment: all have just asked, and notice in the same second. Each
		// shakes hands once, asks, and asks again to wait for news.
		{"a restart that nobody could see", 0, 2 * many},
		{"a minute", time.Minute, many / 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				f := newTestFleet(t)
				edge := w.add(f.config.Edges[0], "127.0.0.1:51820", f.sign(t, nil))
				agents := make([]*agent, many)
				for i := range agents {
					b := f.bootstrap
					b.Data = t.TempDir() + "/data"
					agents[i], _ = w.run(t, b)
				}
				all := func() bool { return !slices.ContainsFunc(agents, func(a *agent) bool { return !up(a, "tokyo") }) }
				until(t, time.Second, "all reached", all)
				time.Sleep(time.Minute)
				edge.relay(f.sign(t, serial(6))) // all answers at once, and all questions after them
				time.Sleep(time.Second)
				if c.gone > 0 {
					edge.die()
					time.Sleep(c.gone / 2)
					before := edge.unanswered()
					time.Sleep(c.gone / 2)
					// Each asks, waits for an answer and rests.
					p := defaultPace
					if n, most := edge.unanswered()-before, int(c.gone/2/(p.answer+p.backoffMin/2))*many; n > most {
						t.Errorf("%d questions in %v to an edge that is gone, want at most %d", n, c.gone/2, most)
					}
				}
				back := time.Now()
				edge.live("127.0.0.1:51820")
				told := func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					asked := 0
					for _, at := range edge.shakes {
						if !at.Before(back) {
							asked++
						}
					}
					return asked >= many
				}
				took := until(t, promised, "all back", func() bool { return told() && all() })
				time.Sleep(promised)

				w.mu.Lock()
				defer w.mu.Unlock()
				for what, times := range map[string][]time.Time{"handshakes": edge.shakes, "questions": edge.polls} {
					perSecond, total, worst := make(map[time.Duration]int), 0, 0
					for _, at := range times {
						if at.Before(back) || at.After(back.Add(took)) {
							continue
						}
						total++
						second := at.Sub(back).Truncate(time.Second)
						perSecond[second]++
						worst = max(worst, perSecond[second])
					}
					t.Logf("all back after %v: %d %s, at most %d in a second", took, total, what, worst)
					if worst > c.most {
						t.Errorf("%d %s in one second, want at most %d", worst, what, c.most)
					}
					if what == "handshakes" && total > many*3/2 {
						t.Errorf("%d handshakes for %d agents", total, many)
					}
				}
			})
		})
	}
}

func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFleet(t)
		w := newWorld()
		edge := w.add(f.config.Edges[0], "127.0.0.1:51820", f.sign(t, nil))
		a, _ := w.run(t, f.bootstrap)
		until(t, 2*time.Second, "a heartbeat with the serial", func() bool {
			b := edge.heartbeats()
			return len(b) > 0 && b[len(b)-1].Serial == 5
		})
		time.Sleep(5 * time.Second)
		quiet := len(edge.heartbeats())
		time.Sleep(10 * time.Minute)
		beats := edge.heartbeats()[quiet:]
		if len(beats) < 18 || len(beats) > 22 {
			t.Errorf("%d heartbeats in ten minutes, want one in 30 s", len(beats))
		}
		last := beats[len(beats)-1]
		if last.Agent != "rpi" || last.Tunnel.Kind != "userspace" || len(last.Edges) != 1 || !last.Edges[0].Up || last.Platform == "" || last.Version == "" {
			t.Errorf("heartbeat %+v", last)
		}

		// News do not wait for the next turn, and do not come in a flood either.
		n := len(edge.heartbeats())
		for range 100 {
			a.news()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if got := len(edge.heartbeats()) - n; got < 1 || got > 4 {
			t.Errorf("%d heartbeats for a second of news", got)
		}
	})
}

// TestRefusedConfig: an edge that relays what must not be obeyed changes nothing,
// and every edge is told.
func TestRefusedConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFleet(t)
		w := newWorld()
		osaka := testEdge(t, "osaka", "10.77.0.11", "192.0.2.2:51820")
		f.config.Edges = append(f.config.Edges, osaka)
		f.bootstrap.Edges = f.config.Edges
		good := f.sign(t, nil)
		captured := w.add(f.config.Edges[0], "127.0.0.1:51820", good)
		honest := w.add(osaka, "192.0.2.2:51820", good)
		a, _ := w.run(t, f.bootstrap)
		until(t, 2*time.Second, "reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })

		captured.relay(f.sign(t, serial(4)))
		said := func(text string) func() bool {
			return func() bool {
				b := honest.heartbeats()
				return len(b) > 0 && strings.Contains(strings.Join(b[len(b)-1].Refused, "\n"), text)
			}
		}
		until(t, 5*time.Second, "a replay is reported", said("edge tokyo: config with serial 4: older than the config obeyed"))
		if n := a.orders.Load().config.Serial; n != 5 {
			t.Errorf("obeys serial %d", n)
		}
		captured.relay(f.sign(t, serial(6)))
		until(t, 5*time.Second, "the report ends", func() bool {
			b := honest.heartbeats()
			return b[len(b)-1].Serial == 6 && len(b[len(b)-1].Refused) == 0
		})
	})
}

// TestExpiry: the agent stops serving by its own clock, however that clock gets
// there, and serves again when it is set back or the fleet says so.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFleet(t)
		w := newWorld()
		end := time.Now().Add(time.Hour)
		edge := w.add(f.config.Edges[0], "127.0.0.1:51820", f.sign(t, func(c *api.AgentConfig) {
			c.Expires = &end
			c.Services = []api.AgentService{{ID: "blog", URL: "http://127.0.0.1:1", Interval: 24 * time.Hour}}
		}))
		a, _ := w.run(t, f.bootstrap)
		until(t, 2*time.Second, "reached", func() bool { return up(a, "tokyo") && a.orders.Load().obeyed() })
		claim := func() error {
			_, err := a.flows.claim(&flow{}, "blog")
			return err
		}
		if err := claim(); err != nil {
			t.Errorf("before the time: %v", err)
		}
		time.Sleep(time.Hour)
		if err := claim(); !errors.Is(err, errExpired) {
			t.Errorf("after the time: %v, want %v", err, errExpired)
		}
		until(t, 10*time.Second, "the expiry is reported", func() bool {
			b := edge.heartbeats()
			return strings.Contains(strings.Join(b[len(b)-1].Refused, "\n"), "expired at")
		})
		later := end.Add(time.Hour)
		edge.relay(f.sign(t, func(c *api.AgentConfig) { c.Serial, c.Expires = 6, &later }))
		until(t, 10*time.Second, "in force again", func() bool {
			b := edge.heartbeats()
			return b[len(b)-1].Serial == 6 && len(b[len(b)-1].Refused) == 0
		})
	})
}

func TestResolve(t *testing.T) {
	found := func(addrs ...string) func(context.Context, string, string) ([]netip.Addr, error) {
		return func(context.Context, string, string) ([]netip.Addr, error) {
			var list []netip.Addr
			for _, a := range addrs {
				list = append(list, netip.MustParseAddr(a))
			}
			return list, nil
		}
	}
	got, err := resolve(t.Context(), "edge.example.com:51820", found("::ffff:192.0.2.1", "2001:db8::1"))
	if err != nil || len(got) != 2 || got[0] != netip.MustParseAddrPort("192.0.2.1:51820") || got[1] != netip.MustParseAddrPort("[2001:db8::1]:51820") {
		t.Errorf("%v, %v", got, err)
	}
	if got, err = resolve(t.Context(), "[2001:db8::1]:7", nil); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err = resolve(t.Context(), "edge.example.com:51820", found()); err == nil {
		t.Error("a name without an address was resolved")
	}
}

// TestPaceKeepsThePromise: the worst case of finding a returned edge is an
// attempt that just began, then the longest rest, then a slow look-up.
func TestPaceKeepsThePromise(t *testing.T) {
	p := defaultPace
	if worst := p.answer + p.backoffMax + p.resolve; worst >= promised {
		t.Errorf("an edge that is back may be noticed after %v only", worst)
	}
	if worst := p.poll + p.answer + p.resolve + p.answer + p.backoffMin; worst >= promised {
		t.Errorf("a tunnel whose way was lost has another after %v only", worst)
	}
	if p.linger > time.Minute {
		t.Errorf("a revoked edge stays for %v", p.linger)
	}
	s := &session{agent: &agent{pace: p}}
	l := &link{session: s}
	for n := range 100 {
		d := l.backoff(n)
		if d < p.backoffMin/2 || d > p.backoffMax {
			t.Errorf("rest %d is %v", n, d)
		}
	}
}

package reconciler

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

var both = []string{"203.0.113.10", "203.0.113.11"}

func TestAFleetConverges(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.converge(w.commit(newFleet("blog", "shop")))
	for _, host := range []string{"blog.kokoa.test", "shop.kokoa.test"} {
		if got := w.answer(host); !slices.Equal(got, both) {
			t.Errorf("%s answers %v, want both edges", host, got)
		}
	}
	for name, e := range w.edges {
		if len(e.config.Routes) != 2 || len(e.config.Peers) != 2 || len(e.config.Agents) != 2 || len(e.certs) != 1 {
			t.Errorf("edge %s: %d routes, %d peers, %d agents, %d certificates", name, len(e.config.Routes), len(e.config.Peers), len(e.config.Agents), len(e.certs))
		}
		for _, s := range e.config.Agents {
			if _, err := s.Open(w.secret.SigningPublic()); err != nil {
				t.Errorf("edge %s relays to %s: %v", name, s.Agent, err)
			}
		}
	}
	if a, b := w.edges["osaka"].config.Agents, w.edges["tokyo"].config.Agents; !slices.Equal(a[0].Payload, b[0].Payload) {
		t.Error("two edges relay different bytes to one agent")
	}
}

// A route that appears on a fleet that runs is live in a single turn: edges, then
// DNS.
func TestARouteIsLiveInOneTurn(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.converge(w.commit(newFleet("blog")))
	puts := w.edges["osaka"].puts
	next := w.commit(newFleet("blog", "shop"))
	turn := w.turn(next)
	if failed := turn.Failed(); len(failed) > 0 {
		t.Fatalf("failed: %v", failed)
	}
	if got := w.answer("shop.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("answers %v after one turn, want both edges", got)
	}
	if n := w.edges["osaka"].puts - puts; n != 1 {
		t.Errorf("%d config swaps for one commit, want 1", n)
	}
	w.quiet(next)
}

func TestRemovingARouteRemovesTheExposure(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("blog", "shop")
	w.converge(w.commit(f))
	w.converge(w.commit(without(f, "shop")))
	if got := w.answer("shop.kokoa.test"); got != nil {
		t.Errorf("still answers %v", got)
	}
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("the other route answers %v", got)
	}
	for _, e := range w.edges {
		if len(e.config.Routes) != 1 {
			t.Errorf("edge %s has %d routes, want 1", e.name, len(e.config.Routes))
		}
	}
}

// What someone changes by hand is found, called drift, and put back.
func TestDriftIsPutBack(t *testing.T) {
	ctx := context.Background()
	stranger := keys.Private{8, 99}.Public()
	for name, meddle := range map[string]func(w *world) error{
		"record changed": func(w *world) error {
			return w.zone.Set(ctx, dns.RRset{Name: "blog.kokoa.test", Type: dns.A, TTL: 30 * time.Second, Values: []string{"192.0.2.66"}})
		},
		"record's ttl changed": func(w *world) error {
			return w.zone.Set(ctx, dns.RRset{Name: "blog.kokoa.test", Type: dns.A, TTL: 31 * time.Second, Values: both})
		},
		"record deleted": func(w *world) error { return w.zone.Delete(ctx, "blog.kokoa.test", dns.A) },
		"peer removed": func(w *world) error {
			clear(w.edges["tokyo"].device)
			return nil
		},
		"peer added": func(w *world) error {
			w.edges["tokyo"].device[stranger] = api.Peer{PublicKey: stranger, Address: tunnelAddress(200)}
			return nil
		},
		"peer's address changed": func(w *world) error {
			for k, p := range w.edges["tokyo"].device {
				p.Address = tunnelAddress(201)
				w.edges["tokyo"].device[k] = p
			}
			return nil
		},
		"route changed": func(w *world) error {
			e := w.edges["osaka"]
			e.config.Routes = slices.Clone(e.config.Routes)
			e.config.Routes[0].Upstreams = []api.Upstream{{Agent: "rpi-home", Service: "0123456789abcdef", URL: "http://nas:80"}}
			return nil
		},
		"route added": func(w *world) error {
			e := w.edges["osaka"]
			extra := e.config.Routes[0]
			extra.Name, extra.Host = "zzz", "evil.kokoa.test"
			e.config.Routes = append(slices.Clone(e.config.Routes), extra)
			return nil
		},
		"agent's config forged": func(w *world) error {
			e := w.edges["osaka"]
			e.config.Agents = slices.Clone(e.config.Agents)
			e.config.Agents[0].Signature = slices.Clone(e.config.Agents[0].Signature)
			e.config.Agents[0].Signature[0] ^= 1
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTestWorld(t, "osaka", "tokyo")
			c := w.commit(newFleet("blog"))
			w.converge(c)
			if err := meddle(w); err != nil {
				t.Fatal(err)
			}
			found, err := w.r.Plan(context.Background(), c)
			if err != nil {
				t.Fatal(err)
			}
			if len(found.Plan.Changes) == 0 {
				t.Fatal("not found")
			}
			for _, ch := range found.Plan.Changes {
				if ch.Cause != plan.Drift {
					t.Errorf("%s %s is called %s", ch.Action, ch.Ref, ch.Cause)
				}
			}
			w.converge(c)
			if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
				t.Errorf("answers %v", got)
			}
		})
	}
}

// An edge out of sight is not taken for an edge without routes, and leaves DNS only
// when it is known to be down; then the other stays.
func TestAnEdgeGoesDown(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	c := w.commit(newFleet("blog"))
	w.converge(c)
	w.edges["osaka"].setDown(true)

	turn := w.turn(c)
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("a visitor withdrew an edge that it could not see: %v", got)
	}
	if len(turn.Plan.Changes) > 0 || len(turn.Plan.Waiting) == 0 {
		t.Errorf("changes %v, waiting %v; want none, and what is on osaka", describe(turn.Plan.Changes), turn.Plan.Waiting)
	}

	w.r.Grace = time.Nanosecond
	// An agent that still reaches it knows better.
	w.edges["tokyo"].agents = []api.AgentState{{Name: "vm1", At: time.Now(), Heartbeat: api.Heartbeat{Edges: []api.AgentEdgeState{{Name: "osaka", Up: true}}}}}
	w.turn(c)
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("withdrawn although an agent reaches it: %v", got)
	}

	w.edges["tokyo"].agents = nil
	turn = w.turn(c)
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both[1:]) {
		t.Errorf("answers %v, want tokyo alone", got)
	}
	for _, ch := range turn.Plan.Changes {
		if ch.Cause != plan.Course {
			t.Errorf("%s %s is called %s", ch.Action, ch.Ref, ch.Cause)
		}
	}

	// With the last one gone too, it is this host that sees nothing.
	w.edges["tokyo"].setDown(true)
	w.turn(c)
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both[1:]) {
		t.Errorf("answers %v with no edge in sight, want what it was", got)
	}

	w.edges["osaka"].setDown(false)
	w.edges["tokyo"].setDown(false)
	w.converge(c)
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("answers %v after all is back", got)
	}
}

// A name points only at edges whose probes reach the service, where any does.
func TestReadiness(t *testing.T) {
	yes, no := true, false
	for name, tt := range map[string]struct {
		osaka, tokyo *bool
		notReady     []string
		want         []string
	}{
		"both reach it":             {&yes, &yes, nil, both},
		"one does not":              {&no, &yes, nil, both[1:]},
		"none does: nothing better": {&no, &no, nil, both},
		"not probed yet":            {nil, nil, nil, both},
		"an edge that is not ready": {&yes, &yes, []string{"no listener"}, both[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTestWorld(t, "osaka", "tokyo")
			w.edges["osaka"].up = func(api.Upstream) *bool { return tt.osaka }
			w.edges["tokyo"].up = func(api.Upstream) *bool { return tt.tokyo }
			c := w.commit(newFleet("blog"))
			for range 4 {
				w.turn(c)
				w.edges["osaka"].notReady = tt.notReady
			}
			if got := w.answer("blog.kokoa.test"); !slices.Equal(got, tt.want) {
				t.Errorf("answers %v, want %v", got, tt.want)
			}
		})
	}
}

// The edge that goes first and does not take a config is the only one that sees it.
func TestABadConfigReachesOneEdge(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("blog", "old")
	w.converge(w.commit(f))
	w.edges["osaka"].reject = errors.New("no such cipher")
	puts := w.edges["tokyo"].puts

	next := without(f, "old")
	addRoute(next, "shop")
	turn := w.turn(w.commit(next))
	if len(turn.Failed()) == 0 {
		t.Fatal("nothing failed")
	}
	held := false
	for _, r := range turn.Failed() {
		held = held || errors.Is(r.Err, edges.ErrHeldBack)
		if r.Change.Action == plan.Delete && !errors.Is(r.Err, ErrSkipped) {
			t.Errorf("%s: %v, want skipped", r.Change.Ref, r.Err)
		}
	}
	if !held || w.edges["tokyo"].puts != puts {
		t.Errorf("tokyo was put %d configs", w.edges["tokyo"].puts-puts)
	}
	if w.answer("shop.kokoa.test") != nil {
		t.Error("a name points at edges that do not have its route")
	}
	if w.answer("old.kokoa.test") == nil {
		t.Error("deleted in a turn in which something failed")
	}
	w.edges["osaka"].reject = nil
	w.converge(w.commit(next))
}

// An edge that is less ready with a config gets its old one back.
func TestAnUnwellEdgeGetsItsOldConfigBack(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.converge(w.commit(newFleet("blog")))
	before := w.edges["osaka"].config.Digest()
	w.edges["osaka"].fault = func(int) dnstest.Fault {
		// Called with the edge locked, just before the new config is taken.
		w.edges["osaka"].notReady = []string{"cannot listen"}
		return dnstest.None
	}
	turn := w.turn(w.commit(newFleet("blog", "shop")))
	if len(turn.Failed()) == 0 {
		t.Fatal("nothing failed")
	}
	if got := w.edges["osaka"].config.Digest(); got != before {
		t.Error("the edge keeps the config that made it unready")
	}
	if len(w.edges["tokyo"].config.Routes) != 1 {
		t.Error("the other edge got it too")
	}
}

// A turn that is cut short at any call is finished by the next ones.
func TestKilledAtAnyStep(t *testing.T) {
	for _, how := range []dnstest.Fault{dnstest.Refused, dnstest.Lost} {
		for _, target := range []string{"osaka", "tokyo", "zone"} {
			for n := 1; n <= 8; n++ {
				w := newTestWorld(t, "osaka", "tokyo")
				f := newFleet("blog", "old")
				w.converge(w.commit(f))
				next := without(f, "old")
				addRoute(next, "shop")
				fault := func(i int) dnstest.Fault {
					if i == n {
						return how
					}
					return dnstest.None
				}
				if target == "zone" {
					w.zone.Reset(fault)
				} else {
					w.edges[target].calls, w.edges[target].fault = 0, fault
				}
				c := w.commit(next)
				// The failed turn itself, whatever it says.
				if turn, err := w.r.Plan(context.Background(), c); err == nil {
					if _, err := w.r.Apply(context.Background(), turn); err != nil {
						t.Fatal(err)
					}
				}
				if w.answer("blog.kokoa.test") == nil {
					t.Fatalf("%s call %d: a live name has no answer", target, n)
				}
				w.zone.Reset(nil)
				w.edges["osaka"].fault, w.edges["tokyo"].fault = nil, nil
				w.converge(c)
				if w.answer("shop.kokoa.test") == nil || w.answer("old.kokoa.test") != nil {
					t.Fatalf("%s call %d: not finished", target, n)
				}
			}
		}
	}
}

// An edge that leaves Git is emptied, not forgotten.
func TestAnEdgeLeavesTheFleet(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("blog")
	w.converge(w.commit(f))
	next := *f
	next.Edges = maps.Clone(f.Edges)
	delete(next.Edges, "osaka")
	next.Routes = maps.Clone(f.Routes)
	r := next.Routes["blog"]
	r.Edges = []string{"tokyo"}
	next.Routes["blog"] = r
	w.converge(w.commit(&next))
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both[1:]) {
		t.Errorf("answers %v", got)
	}
	if e := w.edges["osaka"]; len(e.config.Routes)+len(e.config.Peers)+len(e.config.Agents)+len(e.certs) > 0 {
		t.Errorf("the edge that left still has %d routes, %d peers, %d agents, %d certificates", len(e.config.Routes), len(e.config.Peers), len(e.config.Agents), len(e.certs))
	}
}

// What ends by its own time goes without anybody's word, even as the last one.
func TestExpiry(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("demo")
	soon := time.Now().Add(time.Second)
	r := f.Routes["demo"]
	r.Expires = &soon
	f.Routes["demo"] = r
	o := f.Origins["vm1"]
	o.Expires = &soon
	f.Origins["vm1"] = o
	c := w.commit(f)
	w.converge(c)
	time.Sleep(time.Until(soon))
	w.converge(c)
	if got := w.answer("demo.kokoa.test"); got != nil {
		t.Errorf("answers %v after its end", got)
	}
	for _, e := range w.edges {
		if len(e.config.Routes) != 0 || len(e.config.Peers) != 1 {
			t.Errorf("edge %s has %d routes and %d peers", e.name, len(e.config.Routes), len(e.config.Peers))
		}
	}
}

func TestGuardsStopAMassDelete(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("a", "b")
	w.converge(w.commit(f))
	empty := w.commit(without(f, "a", "b"))
	turn, err := w.r.Plan(context.Background(), empty)
	if !errors.Is(err, plan.ErrTooManyDeletes) || !strings.Contains(err.Error(), "--approve-deletes 4") {
		t.Fatalf("got %v", err)
	}
	if _, err := w.r.Apply(context.Background(), turn); !errors.Is(err, plan.ErrTooManyDeletes) {
		t.Errorf("a blocked plan was applied: %v", err)
	}
	if got := w.answer("a.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("answers %v", got)
	}
	w.r.Approved = 4
	w.converge(empty)
	if got := w.answer("a.kokoa.test"); got != nil {
		t.Errorf("answers %v after approval", got)
	}
}

// A name that somebody else holds is left alone, and everything else goes on.
func TestAStrangersNameIsLeftAlone(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	theirs := dns.RRset{Name: "blog.kokoa.test", Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}}
	if err := w.zone.Set(context.Background(), theirs); err != nil {
		t.Fatal(err)
	}
	c := w.commit(newFleet("blog", "shop"))
	for range 3 {
		w.turn(c)
	}
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, theirs.Values) {
		t.Errorf("the stranger's record is now %v", got)
	}
	if got := w.answer("shop.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("the other route answers %v", got)
	}
}

// Serials rise with content and stay with it, whatever edges come and go.
func TestAgentSerials(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	serial := func() uint64 {
		c, err := w.edges["tokyo"].config.Agents[1].Open(w.secret.SigningPublic())
		if err != nil {
			t.Fatal(err)
		}
		return c.Serial
	}
	f := newFleet("blog")
	w.converge(w.commit(f))
	first := serial()
	if now := uint64(time.Now().Unix()); first < now-60 || first > now+60 {
		t.Errorf("a first serial of %d may be below what an agent has on its disk", first)
	}
	// A route without a new service changes nothing for the agent.
	w.converge(w.commit(newFleet("blog", "shop")))
	if got := serial(); got != first {
		t.Errorf("serial moved to %d without new content", got)
	}
	other := newFleet("blog")
	r := other.Routes["blog"]
	r.Upstreams = []fleet.Upstream{{Origin: "vm1", Service: "http://localhost:4000"}}
	other.Routes["blog"] = r
	w.converge(w.commit(other))
	second := serial()
	if second <= first {
		t.Errorf("serial %d after %d", second, first)
	}
	w.converge(w.commit(f))
	if got := serial(); got <= second {
		t.Errorf("serial %d after %d: an agent would refuse the way back", got, second)
	}
}

// Random fleets and random edits converge, never touch what is not owned, and end
// in an empty plan.
func TestRandomEditsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, mustTempDir(t), "osaka", "tokyo")
		defer w.close()
		theirs := []dns.RRset{
			{Name: "theirs.kokoa.test", Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}},
			{Name: "r0.kokoa.test", Type: dns.TXT, TTL: time.Minute, Values: []string{"v=spf1 -all"}},
		}
		for _, s := range theirs {
			if err := w.zone.Set(context.Background(), s); err != nil {
				t.Fatalf("%v", err)
			}
		}
		f := newFleet()
		for range rapid.IntRange(1, 4).Draw(t, "edits") {
			f = without(f)
			for range rapid.IntRange(1, 4).Draw(t, "size") {
				name := rapid.SampledFrom([]string{"r0", "r1", "r2", "r3"}).Draw(t, "route")
				if rapid.Bool().Draw(t, "remove") {
					delete(f.Routes, name)
					continue
				}
				addRoute(f, name)
				r := f.Routes[name]
				r.Edges = rapid.SampledFrom([][]string{{"osaka"}, {"tokyo"}, {"osaka", "tokyo"}}).Draw(t, "edges")
				r.StripPath = rapid.Bool().Draw(t, "strip")
				r.Active = rapid.IntRange(0, 3).Draw(t, "active") > 0
				r.TLS = rapid.SampledFrom([]fleet.TLS{fleet.TLSInternal, fleet.TLSOff}).Draw(t, "tls")
				r.Upstreams = []fleet.Upstream{{Origin: rapid.SampledFrom([]string{"vm1", "rpi-home"}).Draw(t, "origin"), Service: rapid.SampledFrom([]string{"http://localhost:1", "http://localhost:2"}).Draw(t, "service")}}
				f.Routes[name] = r
			}
			if rapid.Bool().Draw(t, "meddle") {
				clear(w.edges["osaka"].device)
			}
			c := w.commit(f)
			if _, err := w.r.Plan(context.Background(), c); errors.Is(err, plan.ErrTooManyDeletes) {
				w.r.Approved = approval(err)
			} else if err != nil {
				t.Fatalf("%v", err)
			}
			w.converge(c)
			for name, r := range f.Routes {
				var want []string
				if r.Active {
					for _, e := range r.Edges {
						want = append(want, f.Edges[e].Addresses[0].String())
					}
				}
				if got := w.answer(r.Host); !slices.Equal(got, want) {
					t.Fatalf("%s answers %v, want %v", name, got, want)
				}
			}
			sets, err := w.zone.RRsets(context.Background())
			if err != nil {
				t.Fatalf("%v", err)
			}
			for _, s := range theirs {
				if !slices.ContainsFunc(sets, func(o dns.RRset) bool {
					return o.Name == s.Name && o.Type == s.Type && slices.Equal(o.Values, s.Values)
				}) {
					t.Fatalf("%s %s is not what its owner left", s.Name, s.Type)
				}
			}
		}
	})
}

func mustTempDir(t *rapid.T) string {
	dir, err := os.MkdirTemp("", "kokoa-test-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// approval reads the number that a blocked plan asks to be typed.
func approval(err error) int {
	_, number, _ := strings.Cut(err.Error(), "--approve-deletes ")
	n := 0
	for _, r := range number {
		n = n*10 + int(r-'0')
	}
	return n
}

// A commit that comes before the last one has settled moved Git, too.
func TestTwoPushesInARowAreNoDrift(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.converge(w.commit(newFleet("blog")))
	w.turn(w.commit(newFleet("blog", "first")))
	turn := w.turn(w.commit(newFleet("blog", "second")))
	for _, ch := range turn.Plan.Changes {
		if ch.Cause == plan.Drift {
			t.Errorf("%s %s is called drift", ch.Action, ch.Ref)
		}
	}
}

// A host that is set up anew gets another name and key, and the address of the one
// before; two hosts may also swap theirs.
func TestAnAddressChangesHands(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("blog", "shop")
	r := f.Routes["shop"]
	r.Upstreams = []fleet.Upstream{{Origin: "rpi-home", Service: "http://localhost:3000"}}
	f.Routes["shop"] = r
	w.converge(w.commit(f))

	swapped := without(f)
	swapped.Origins = maps.Clone(f.Origins)
	a, b := f.Origins["rpi-home"], f.Origins["vm1"]
	a.TunnelAddress, b.TunnelAddress = b.TunnelAddress, a.TunnelAddress
	swapped.Origins["rpi-home"], swapped.Origins["vm1"] = a, b
	w.converge(w.commit(swapped))

	anew := without(f)
	anew.Origins = maps.Clone(f.Origins)
	delete(anew.Origins, "vm1")
	host := b
	host.Name, host.PublicKey, host.TunnelAddress = "vm2", keys.Private{8, 77}.Public(), f.Origins["vm1"].TunnelAddress
	anew.Origins["vm2"] = host
	r = anew.Routes["blog"]
	r.Upstreams = []fleet.Upstream{{Origin: "vm2", Service: "http://localhost:3000"}}
	anew.Routes["blog"] = r
	w.converge(w.commit(anew))
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("answers %v", got)
	}
}

// A domain that leaves the fleet leaves no name behind.
func TestADomainLeavesTheFleet(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	f := newFleet("blog")
	f.Domains = []string{"kokoa.test", "old.test"}
	addRoute(f, "shop")
	r := f.Routes["shop"]
	r.Host = "shop.old.test"
	f.Routes["shop"] = r
	w.converge(w.commit(f))
	if sets, err := w.oldZone.RRsets(t.Context()); err != nil || len(sets) == 0 {
		t.Fatalf("old.test has %v, %v", sets, err)
	}
	next := without(f, "shop")
	next.Domains = []string{"kokoa.test"}
	w.converge(w.commit(next))
	if sets, err := w.oldZone.RRsets(t.Context()); err != nil || len(sets) != 0 {
		t.Errorf("old.test still has %v, %v", sets, err)
	}
}

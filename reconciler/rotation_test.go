package reconciler

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

var (
	oldKey   = keys.Private{8, 2}.Public() // of vm1, in newFleet
	nextKey  = keys.Private{8, 77}.Public()
	thirdKey = keys.Private{8, 78}.Public()
)

// withKeys is f with other keys of vm1.
func withKeys(f *fleet.Fleet, public, next keys.Public) *fleet.Fleet {
	c := *f
	c.Origins = maps.Clone(f.Origins)
	o := c.Origins["vm1"]
	o.PublicKey, o.NextKey = public, next
	c.Origins["vm1"] = o
	return &c
}

// signed is what an edge relays to vm1.
func (w *world) signed(edge string) api.AgentConfig {
	w.t.Helper()
	e := w.edges[edge]
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.config.Agents[1].Open(w.secret.SigningPublic())
	if err != nil || c.Agent != "vm1" {
		w.t.Fatalf("config of %s: %v", c.Agent, err)
	}
	return c
}

// move has an edge's device give the address of vm1 to a key, as it does when the agent
// has come by it.
func (w *world) move(edge string, from, to keys.Public) {
	e := w.edges[edge]
	e.mu.Lock()
	defer e.mu.Unlock()
	loser, winner := e.device[from], e.device[to]
	winner.Address, loser.Address = loser.Address, netip.Addr{}
	e.device[from], e.device[to] = loser, winner
}

// A rotation is two commits. While it is under way the world is settled, whichever key
// the agent uses, and what meddles with either is put back.
func TestRotation(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	asked := map[string]time.Time{}
	w.r.Rotations = func(*fleet.Fleet) map[string]time.Time { return asked }
	f := newFleet("blog")
	c := w.commit(f)
	w.converge(c)
	if got := w.signed("tokyo"); got.PublicKey != oldKey || !got.NextKey.IsZero() || got.RotateBefore != nil || got.Control != w.secret.Join().Public() {
		t.Errorf("vm1 is told %+v", got)
	}

	// The question needs no commit.
	moment := time.Now()
	asked["vm1"] = moment
	w.converge(c)
	for _, edge := range []string{"osaka", "tokyo"} {
		if got := w.signed(edge); got.RotateBefore == nil || !got.RotateBefore.Equal(moment) {
			t.Errorf("%s tells vm1 %+v", edge, got)
		}
	}
	// Another turn, or another control plane's `kokoa plan`, asks nothing else.
	asked["vm1"] = moment.In(time.FixedZone("elsewhere", 3600))
	w.quiet(c)
	serve := w.r.Rotations
	w.r.Rotations = nil
	w.quiet(c)
	w.r.Rotations = serve

	c = w.commit(withKeys(f, oldKey, nextKey))
	w.converge(c)
	for _, edge := range []string{"osaka", "tokyo"} {
		if p := w.edges[edge].config.Peers[1]; p.PublicKey != oldKey || p.NextKey != nextKey {
			t.Errorf("%s has %+v", edge, p)
		}
		if got := w.signed(edge); got.PublicKey != oldKey || got.NextKey != nextKey {
			t.Errorf("%s tells vm1 %+v", edge, got)
		}
	}
	w.move("tokyo", oldKey, nextKey)
	w.quiet(c)

	for name, meddle := range map[string]func(device map[keys.Public]api.Peer){
		"the old key is gone":  func(d map[keys.Public]api.Peer) { delete(d, oldKey) },
		"the next key is gone": func(d map[keys.Public]api.Peer) { delete(d, nextKey) },
		"both are gone":        func(d map[keys.Public]api.Peer) { delete(d, oldKey); delete(d, nextKey) },
		"neither has the address": func(d map[keys.Public]api.Peer) {
			for k, p := range d {
				p.Address = netip.Addr{}
				d[k] = p
			}
		},
		"a third key": func(d map[keys.Public]api.Peer) { d[thirdKey] = api.Peer{PublicKey: thirdKey} },
	} {
		e := w.edges["tokyo"]
		e.mu.Lock()
		meddle(e.device)
		e.mu.Unlock()
		found, err := w.r.Plan(context.Background(), c)
		if err != nil || len(found.Plan.Changes) == 0 || slices.ContainsFunc(found.Plan.Changes, func(c plan.Change) bool { return c.Cause != plan.Drift }) {
			t.Errorf("%s: %v, %v; want drift", name, describe(found.Plan.Changes), err)
		}
		w.converge(c)
	}

	delete(asked, "vm1")
	c = w.commit(withKeys(f, nextKey, keys.Public{}))
	w.converge(c)
	if got := w.signed("osaka"); got.PublicKey != nextKey || !got.NextKey.IsZero() || got.RotateBefore != nil {
		t.Errorf("vm1 is told %+v", got)
	}
	if _, there := w.edges["osaka"].device[oldKey]; there {
		t.Error("the old key is still there")
	}
}

// How far a rotation has come, and when the old key can go.
func TestRotations(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	never := time.Time{}
	for name, tt := range map[string]struct {
		osaka, tokyo [2]time.Time // handshakes by the old key and the next
		unseen       bool         // tokyo
		want         Rotation
		done         bool
	}{
		"nobody has come":       {osaka: [2]time.Time{ago(time.Second), never}, tokyo: [2]time.Time{ago(time.Second), never}, want: Rotation{Old: []string{"osaka", "tokyo"}}},
		"one edge":              {osaka: [2]time.Time{ago(time.Minute), ago(time.Second)}, tokyo: [2]time.Time{ago(time.Minute), never}, want: Rotation{Next: []string{"osaka"}, Old: []string{"tokyo"}}},
		"both":                  {osaka: [2]time.Time{ago(time.Minute), ago(time.Second)}, tokyo: [2]time.Time{ago(time.Hour), ago(time.Second)}, want: Rotation{Next: []string{"osaka", "tokyo"}}, done: true},
		"it went back":          {osaka: [2]time.Time{ago(time.Second), ago(time.Minute)}, tokyo: [2]time.Time{ago(time.Second), ago(time.Minute)}, want: Rotation{Old: []string{"osaka", "tokyo"}}},
		"no tunnel to one":      {osaka: [2]time.Time{ago(time.Minute), ago(time.Second)}, tokyo: [2]time.Time{ago(time.Hour), never}, want: Rotation{Next: []string{"osaka"}, Away: []string{"tokyo"}}, done: true},
		"one is out of sight":   {osaka: [2]time.Time{ago(time.Minute), ago(time.Second)}, unseen: true, want: Rotation{Next: []string{"osaka"}, Away: []string{"tokyo"}}, done: true},
		"the agent is off":      {osaka: [2]time.Time{ago(time.Hour), never}, tokyo: [2]time.Time{never, never}, want: Rotation{Away: []string{"osaka", "tokyo"}}},
		"it is off by the next": {osaka: [2]time.Time{ago(2 * time.Hour), ago(time.Hour)}, tokyo: [2]time.Time{never, never}, want: Rotation{Next: []string{"osaka"}, Away: []string{"tokyo"}}, done: true},
	} {
		w := newTestWorld(t, "osaka", "tokyo")
		f := withKeys(newFleet("blog"), oldKey, nextKey)
		c := w.commit(f)
		w.converge(c)
		w.edges["osaka"].shaken = map[keys.Public]time.Time{oldKey: tt.osaka[0], nextKey: tt.osaka[1]}
		w.edges["tokyo"].shaken = map[keys.Public]time.Time{oldKey: tt.tokyo[0], nextKey: tt.tokyo[1]}
		w.edges["tokyo"].setDown(tt.unseen)
		w.edges["osaka"].agents = []api.AgentState{{Name: "vm1", At: now, Heartbeat: api.Heartbeat{Agent: "vm1", Rotation: []byte("sealed")}}}
		turn, err := w.r.Plan(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range []*[]string{&tt.want.Next, &tt.want.Old, &tt.want.Away} {
			*list = append([]string{}, *list...)
		}
		got := Rotations(f, turn.World)
		if r := got["vm1"]; len(got) != 1 || !reflect.DeepEqual(r, tt.want) || r.Done() != tt.done {
			t.Errorf("%s: %+v, done %v; want %+v, %v", name, got, r.Done(), tt.want, tt.done)
		}
		status := newStatus(turn, nil, nil, plan.Plan{})
		for _, o := range status.Origins {
			switch {
			case o.Name != "vm1":
				if o.Rotation != nil || !o.NextKey.IsZero() {
					t.Errorf("%s: %+v", name, o)
				}
			case o.PublicKey != oldKey || o.NextKey != nextKey || !reflect.DeepEqual(*o.Rotation, tt.want) || o.Heartbeat == nil || o.Heartbeat.Rotation != nil:
				t.Errorf("%s: %+v", name, o)
			case len(slices.Compact(slices.Clone(o.Edges))) != len(o.Edges):
				t.Errorf("%s: tunnels on %v", name, o.Edges)
			}
		}
		if turn.World.Edges["osaka"].State.Agents[0].Heartbeat.Rotation == nil {
			t.Errorf("%s: the status took the sealed word away from the world", name)
		}
	}
}

// A plan shows both keys, and what an agent is asked for.
func TestKeysShow(t *testing.T) {
	moment := time.Unix(1000, 0)
	base := edges.NewPeerSpec(api.Peer{PublicKey: oldKey, Address: tunnelAddress(9)})
	with := edges.NewPeerSpec(api.Peer{PublicKey: oldKey, NextKey: nextKey, Address: tunnelAddress(9)})
	if base.Equal(with) || slices.Equal(base.Fields(), with.Fields()) || base.String() == with.String() {
		t.Errorf("%v and %v", base, with)
	}
	was := edges.AgentSpec{Config: api.AgentConfig{Agent: "vm1"}}
	for _, next := range []api.AgentConfig{{Agent: "vm1", PublicKey: oldKey}, {Agent: "vm1", NextKey: nextKey}, {Agent: "vm1", RotateBefore: &moment}} {
		if slices.Equal(was.Fields(), edges.AgentSpec{Config: next}.Fields()) {
			t.Errorf("%+v does not show", next)
		}
	}
}

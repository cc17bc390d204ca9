package edges

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// Whatever makes a route another one shows in a plan, and what does not is no change.
func TestEveryFieldOfARouteCounts(t *testing.T) {
	soon, later := time.Unix(1, 0), time.Unix(2, 0)
	base := api.Route{
		Name: "blog", Host: "blog.kokoa.test", Path: "/", From: "routes/blog.cue:3:1", Expires: &soon,
		Upstreams: []api.Upstream{{Agent: "vm1", Service: "a", URL: "http://localhost:1"}, {Agent: "rpi", Service: "b", URL: "http://localhost:2"}},
		Health:    api.Health{Path: "/up", Interval: time.Second, Timeout: time.Second, Failures: 3},
	}
	change := map[string]func(*api.Route){
		"Name":         func(r *api.Route) { r.Name = "other" },
		"Host":         func(r *api.Route) { r.Host = "other.kokoa.test" },
		"Path":         func(r *api.Route) { r.Path = "/other" },
		"StripPath":    func(r *api.Route) { r.StripPath = true },
		"PreserveHost": func(r *api.Route) { r.PreserveHost = true },
		"WebSocket":    func(r *api.Route) { r.WebSocket = true },
		"TLS":          func(r *api.Route) { r.TLS = true },
		"Redirect":     func(r *api.Route) { r.Redirect = true },
		"Upstreams":    func(r *api.Route) { r.Upstreams = r.Upstreams[:1] },
		"Health":       func(r *api.Route) { r.Health.Failures = 4 },
		"Expires":      func(r *api.Route) { r.Expires = &later },
		"From":         func(r *api.Route) { r.From = "routes/blog.cue:9:1" },
	}
	for f := range reflect.TypeFor[api.Route]().Fields() {
		do, ok := change[f.Name]
		if !ok {
			t.Errorf("api.Route has a new field %s: does RouteSpec compare and show it?", f.Name)
			continue
		}
		other := base
		do(&other)
		a, b := RouteSpec{base}, RouteSpec{other}
		same := f.Name == "From"
		if a.Equal(b) != same {
			t.Errorf("%s: equal is %v", f.Name, !same)
		}
		// A plan names the route beside its fields.
		if shown := !slices.Equal(a.Fields(), b.Fields()); f.Name != "Name" && shown == same {
			t.Errorf("%s: a plan shows a difference: %v", f.Name, shown)
		}
	}
}

func TestNext(t *testing.T) {
	peer := func(name string, key byte, last byte) api.Peer {
		return api.Peer{Name: name, PublicKey: keys.Private{8, key}.Public(), Address: netip.AddrFrom4([4]byte{10, 86, 1, last})}
	}
	route := func(name, agent string) api.Route {
		return api.Route{Name: name, Host: name + ".kokoa.test", Path: "/", Upstreams: []api.Upstream{{Agent: agent, Service: agent, URL: "http://localhost:1"}}}
	}
	before := api.Config{
		Peers:  []api.Peer{peer("old", 1, 1), peer("vm1", 2, 2)},
		Routes: []api.Route{route("a", "old"), route("b", "vm1")},
		Agents: []api.Signed{{Agent: "old"}, {Agent: "vm1"}},
	}
	ref := func(k plan.Kind, name string) plan.Ref { return plan.Ref{Kind: k, Scope: "tokyo", Name: name} }
	for name, tt := range map[string]struct {
		changes []plan.Change
		peers   []string
		routes  []string
	}{
		"nothing":       {nil, []string{"old", "vm1"}, []string{"a", "b"}},
		"a route more":  {[]plan.Change{{Action: plan.Create, Ref: ref(plan.Route, "c"), After: RouteSpec{route("c", "vm1")}}}, []string{"old", "vm1"}, []string{"a", "b", "c"}},
		"a route less":  {[]plan.Change{{Action: plan.Delete, Ref: ref(plan.Route, "a")}}, []string{"old", "vm1"}, []string{"b"}},
		"what is gone":  {[]plan.Change{{Action: plan.Delete, Ref: ref(plan.Route, "zzz")}}, []string{"old", "vm1"}, []string{"a", "b"}},
		"another's key": {[]plan.Change{{Action: plan.Create, Ref: ref(plan.Peer, "new"), After: NewPeerSpec(peer("new", 1, 9))}}, []string{"new", "vm1"}, []string{"b"}},
		"another's address": {
			[]plan.Change{{Action: plan.Create, Ref: ref(plan.Peer, "new"), After: NewPeerSpec(peer("new", 9, 1))}},
			[]string{"new", "vm1"}, []string{"b"},
		},
		"two that swap": {
			[]plan.Change{
				{Action: plan.Update, Ref: ref(plan.Peer, "old"), After: NewPeerSpec(peer("old", 1, 2))},
				{Action: plan.Update, Ref: ref(plan.Peer, "vm1"), After: NewPeerSpec(peer("vm1", 2, 1))},
			},
			[]string{"old", "vm1"}, []string{"a", "b"},
		},
	} {
		next := Next(before, tt.changes)
		var peers, routes []string
		for _, p := range next.Peers {
			peers = append(peers, p.Name)
		}
		for _, r := range next.Routes {
			routes = append(routes, r.Name)
		}
		if !slices.Equal(peers, tt.peers) || !slices.Equal(routes, tt.routes) {
			t.Errorf("%s: peers %v, routes %v; want %v, %v", name, peers, routes, tt.peers, tt.routes)
		}
	}
	if len(before.Peers) != 2 || len(before.Routes) != 2 {
		t.Error("the config that changes were made to has changed")
	}
}

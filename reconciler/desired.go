package reconciler

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// World is what was seen in a turn, as far as what is desired depends on it.
type World struct {
	Now time.Time
	// Edges by name: every edge of the fleet, and those that have left Git and
	// are still to be emptied.
	Edges map[string]edges.Live
	// Down are the edges that are known not to serve, rather than just not seen
	// from here.
	Down map[string]bool
	// Certificates in the store, by name.
	Certificates map[string]certs.Held
	// Elsewhere are certificates whose keys another control plane has, as edges
	// serve them; empty for the fleet's own.
	Elsewhere map[string]certs.Held
	// Rotate is, by origin, the moment before which keys are to be replaced.
	Rotate map[string]time.Time
	// Observed is everything of ours, of every kind.
	Observed []plan.Object
	// Unseen are the scopes that could not be observed, and why.
	Unseen map[plan.Scope]string
}

// Desire is what should be, and what of it cannot be yet.
type Desire struct {
	Objects []plan.Object
	Waiting []plan.Waiting
	// Pending says what will change by itself soon, such as an edge that joins
	// DNS once its tunnels are up; there is reason to look again.
	Pending []string
}

// Current is the fleet without what has ended or is inactive at a moment: routes
// and origins past their time, and routes that no origin is left to serve. f is
// not changed, and is returned itself when nothing has ended.
func Current(f *fleet.Fleet, now time.Time) *fleet.Fleet {
	ended := func(t *time.Time) bool { return t != nil && !t.After(now) }
	gone := map[string]bool{}
	for name, o := range f.Origins {
		if ended(o.Expires) {
			gone[name] = true
		}
	}
	stays := func(r fleet.Route) bool { return r.Active && !ended(r.Expires) }
	touched := len(gone) > 0
	for _, r := range f.Routes {
		if !stays(r) {
			touched = true
			break
		}
	}
	if !touched {
		return f
	}
	c := *f
	c.Origins = maps.Clone(f.Origins)
	maps.DeleteFunc(c.Origins, func(name string, _ fleet.Origin) bool { return gone[name] })
	c.Routes = make(map[string]fleet.Route, len(f.Routes))
	for name, r := range f.Routes {
		if !stays(r) {
			continue
		}
		r.Upstreams = slices.DeleteFunc(slices.Clone(r.Upstreams), func(u fleet.Upstream) bool { return gone[u.Origin] })
		if len(r.Upstreams) > 0 {
			c.Routes[name] = r
		}
	}
	return &c
}

// Desired is everything that should exist for a fleet in a world. It is pure. f
// is already Current.
func Desired(f *fleet.Fleet, secret keys.Secret, w World) Desire {
	d := &desiring{fleet: f, secret: secret, world: w, observed: map[plan.Ref]plan.Object{}, names: f.RouteNames()}
	for _, o := range w.Observed {
		if o.Ref.Kind != plan.Route {
			d.observed[o.Ref] = o
		}
	}
	d.Objects = make([]plan.Object, 0, len(w.Observed)+len(f.Routes)/8+64)
	d.peers()
	d.agents()
	d.routes()
	d.certificates()
	d.records()
	d.probes()
	return d.Desire
}

// probes: an edge that has not tried a service yet will soon have.
func (d *desiring) probes() {
	for _, edge := range d.fleet.EdgeNames() {
		untried := func(s api.ServiceState) bool { return s.Up == nil }
		if slices.ContainsFunc(d.world.Edges[edge].State.Services, untried) {
			d.Pending = append(d.Pending, "edge "+edge+" is trying its services")
		}
	}
}

type desiring struct {
	Desire
	fleet    *fleet.Fleet
	secret   keys.Secret
	world    World
	observed map[plan.Ref]plan.Object

	names []string
}

func (d *desiring) add(o plan.Object) { d.Objects = append(d.Objects, o) }

func (d *desiring) wait(ref plan.Ref, from, format string, args ...any) {
	d.Waiting = append(d.Waiting, plan.Waiting{Ref: ref, Reason: fmt.Sprintf(format, args...), From: from})
}

// peers: every agent has a tunnel to every edge, whichever routes the edge carries
// today, so that a route's move needs no new tunnel.
func (d *desiring) peers() {
	for _, edge := range d.fleet.EdgeNames() {
		for _, name := range d.fleet.OriginNames() {
			o := d.fleet.Origins[name]
			d.add(plan.Object{
				Ref:  plan.Ref{Kind: plan.Peer, Scope: edge, Name: name},
				Spec: edges.NewPeerSpec(api.Peer{Name: name, PublicKey: o.PublicKey, NextKey: o.NextKey, Address: o.TunnelAddress, Expires: o.Expires}),
				From: o.Position.String(),
			})
		}
	}
}

// AgentEdges are a fleet's edges as its agents peer with them, by name.
func AgentEdges(f *fleet.Fleet, secret keys.Secret) (all []api.AgentEdge) {
	for _, name := range f.EdgeNames() {
		e := f.Edges[name]
		all = append(all, api.AgentEdge{Name: name, PublicKey: secret.Edge(name, e.Generation).Public(), Endpoint: e.Endpoint, Address: e.TunnelAddress})
	}
	return all
}

// agents: what each agent is to obey, the same bytes on every edge.
func (d *desiring) agents() {
	services := map[string]map[string]api.AgentService{}
	for _, name := range d.names {
		r := d.fleet.Routes[name]
		for _, u := range r.Upstreams {
			of := services[u.Origin]
			if of == nil {
				of = map[string]api.AgentService{}
				services[u.Origin] = of
			}
			id := u.ServiceID()
			if _, ok := of[id]; !ok {
				of[id] = api.AgentService{ID: id, URL: u.Service, Health: r.Health.Path, Interval: r.Health.Interval}
			}
		}
	}
	all := AgentEdges(d.fleet, d.secret)
	control := d.secret.Join().Public()
	for _, name := range d.fleet.OriginNames() {
		o := d.fleet.Origins[name]
		want := api.AgentConfig{
			Fleet: d.fleet.Name, Agent: name, Edges: all, Expires: o.Expires,
			PublicKey: o.PublicKey, NextKey: o.NextKey, Control: control,
		}
		if before, ok := d.world.Rotate[name]; ok {
			want.RotateBefore = &before
		}
		for _, id := range slices.Sorted(maps.Keys(services[name])) {
			want.Services = append(want.Services, services[name][id])
		}
		spec, err := d.sign(want)
		if err != nil {
			panic("reconciler: an agent's config always encodes: " + err.Error())
		}
		for _, edge := range d.fleet.EdgeNames() {
			d.add(plan.Object{
				Ref:  plan.Ref{Kind: plan.Agent, Scope: edge, Name: name},
				Spec: spec,
				From: o.Position.String(),
				// A route that moved changes its agent too, and an edge that was
				// away has an old serial to catch up.
				Course: func(seen plan.Spec) bool {
					s, ok := seen.(edges.AgentSpec)
					return ok && s.Config.Agent != ""
				},
			})
		}
	}
}

// sign gives a config its serial: the highest that any edge relays when its
// content is the same, else a higher one. The clock is the floor, so that a new
// control plane with new edges is not below what agents have on their disks.
func (d *desiring) sign(want api.AgentConfig) (edges.AgentSpec, error) {
	var best edges.AgentSpec
	for _, edge := range slices.Sorted(maps.Keys(d.world.Edges)) {
		o, ok := d.observed[plan.Ref{Kind: plan.Agent, Scope: edge, Name: want.Agent}]
		if !ok {
			continue
		}
		if s := o.Spec.(edges.AgentSpec); s.Config.Agent != "" && s.Config.Serial > best.Config.Serial {
			best = s
		}
	}
	key := d.secret.Signing()
	want.Serial = best.Config.Serial
	again, err := api.Sign(key, want)
	if err != nil {
		return edges.AgentSpec{}, err
	}
	if slices.Equal(again.Payload, best.Signed.Payload) {
		return best, nil
	}
	want.Serial = max(best.Config.Serial+1, uint64(d.world.Now.Unix()))
	signed, err := api.Sign(key, want)
	return edges.AgentSpec{Signed: signed, Config: want}, err
}

func (d *desiring) routes() {
	for _, name := range d.names {
		r := d.fleet.Routes[name]
		spec := edges.RouteSpec{Route: edgeRoute(r)}
		for _, e := range r.Edges {
			d.add(plan.Object{Ref: plan.Ref{Kind: plan.Route, Scope: e, Name: name}, Spec: spec, From: r.Position.String()})
		}
	}
}

// edgeRoute is a route as edges serve it.
func edgeRoute(r fleet.Route) api.Route {
	out := api.Route{
		Name: r.Name, Host: r.Host, Path: r.Path,
		StripPath: r.StripPath, PreserveHost: r.PreserveHost, WebSocket: r.WebSocket,
		TLS: r.TLS != fleet.TLSOff, Redirect: r.Redirect && r.TLS != fleet.TLSOff,
		Health:  api.Health{Path: r.Health.Path, Interval: r.Health.Interval, Timeout: r.Health.Timeout, Failures: r.Health.Failures},
		Expires: r.Expires, From: r.Position.String(),
	}
	for _, u := range r.Upstreams {
		out.Upstreams = append(out.Upstreams, api.Upstream{Agent: u.Origin, Service: u.ServiceID(), URL: u.Service})
	}
	return out
}

func (d *desiring) certificates() {
	needing := d.edgesNeeding()
	for _, want := range certs.Wants(d.fleet) {
		ref := plan.Ref{Kind: plan.Certificate, Name: want.Name}
		held, have := d.held(want.Name)
		_, inStore := d.world.Certificates[want.Name]
		if host, gone := d.unanswered(want); have && !inStore {
			// Issued already, by the control plane that has the key.
		} else if gone && !have {
			d.wait(ref, want.From.String(), "%s is not in DNS yet, where the issuer will ask for it", host)
		} else {
			d.add(plan.Object{Ref: ref, Spec: want.Spec(), From: want.From.String(), Course: func(plan.Spec) bool { return true }})
		}
		for _, edge := range needing[want.Name] {
			ref := plan.Ref{Kind: plan.Delivery, Scope: edge, Name: want.Name}
			if !have {
				d.wait(ref, want.From.String(), "certificate %s is not issued yet", want.Name)
				continue
			}
			if _, there := d.observed[ref]; !inStore && !there {
				d.wait(ref, want.From.String(), "its key is with `kokoa serve`, which will deliver it")
				continue
			}
			d.add(plan.Object{
				Ref:    ref,
				Spec:   edges.DeliverySpec{Hosts: held.Hosts, Fingerprint: held.Fingerprint, NotAfter: held.NotAfter},
				From:   want.From.String(),
				Course: func(plan.Spec) bool { return true },
			})
		}
	}
}

// held is a certificate that can be had by name.
func (d *desiring) held(name string) (certs.Held, bool) {
	if h, ok := d.world.Certificates[name]; ok {
		return h, true
	}
	h, ok := d.world.Elsewhere[name]
	return h, ok
}

// unanswered reports whether an HTTP-01 challenge for want would be asked of nobody,
// because Kokoa's DNS does not have a host of it yet.
func (d *desiring) unanswered(want certs.Want) (string, bool) {
	if want.Issuer != certs.ACME || d.fleet.ACME.Challenge != fleet.ChallengeHTTP01 || d.fleet.DNS.Provider == fleet.DNSNone {
		return "", false
	}
	for _, host := range want.Hosts {
		zone, _ := d.fleet.Zone(host)
		answered := false
		for _, t := range []dns.Type{dns.A, dns.AAAA} {
			s, ok := d.observed[dns.Ref(zone, host, t)].Spec.(dns.RecordSet)
			answered = answered || ok && len(s.Values) > 0
		}
		if !answered {
			return host, true
		}
	}
	return "", false
}

// edgesNeeding lists, by certificate, the edges with a route that it is for, sorted.
func (d *desiring) edgesNeeding() map[string][]string {
	out := map[string][]string{}
	for _, edge := range d.fleet.EdgeNames() {
		for _, name := range d.names {
			r := d.fleet.Routes[name]
			cert, ok := certs.NameFor(d.fleet, r)
			if !ok || !slices.Contains(r.Edges, edge) {
				continue
			}
			if have := out[cert]; len(have) == 0 || have[len(have)-1] != edge {
				out[cert] = append(have, edge)
			}
		}
	}
	return out
}

// records points each host at the edges that can serve it.
func (d *desiring) records() {
	if d.fleet.DNS.Provider == fleet.DNSNone {
		return
	}
	hosts := map[string][]fleet.Route{}
	var order []string
	for _, name := range d.names {
		r := d.fleet.Routes[name]
		if r.Host == "*" {
			continue
		}
		if _, ok := hosts[r.Host]; !ok {
			order = append(order, r.Host)
		}
		hosts[r.Host] = append(hosts[r.Host], r)
	}
	gate := newGate(d)
	for _, host := range order {
		d.record(gate, host, hosts[host])
	}
	d.Pending = append(d.Pending, gate.pending()...)
}

func (d *desiring) record(g *gate, host string, routes []fleet.Route) {
	zone, ok := d.fleet.Zone(host)
	if !ok {
		return
	}
	from := routes[0].Position.String()
	open, why := g.open(zone, host, routes)
	var addresses []netip.Addr
	for _, edge := range open {
		addresses = append(addresses, d.fleet.Edges[edge].Addresses...)
	}
	for _, t := range []dns.Type{dns.A, dns.AAAA} {
		ref := dns.Ref(zone, host, t)
		if len(open) == 0 {
			// Held as it is: a live name's answer is never emptied for want of an
			// edge. Names that were never answered wait for their first one.
			_, exists := d.observed[ref]
			if exists || t == dns.A {
				d.wait(ref, from, "%s", why)
			}
			continue
		}
		set := dns.NewRecordSet(t, d.fleet.DNS.TTL, addresses)
		if len(set.Values) == 0 {
			continue
		}
		needs := make([]plan.Ref, 0, 2*len(open)*len(routes))
		for _, edge := range open {
			for _, r := range routes {
				needs = append(needs, plan.Ref{Kind: plan.Route, Scope: edge, Name: r.Name})
				if name, ok := certs.NameFor(d.fleet, r); ok {
					needs = append(needs, plan.Ref{Kind: plan.Delivery, Scope: edge, Name: name})
				}
			}
		}
		d.add(plan.Object{
			Ref:    ref,
			Spec:   set,
			From:   from,
			Needs:  needs,
			Course: g.course,
		})
	}
}

// gate decides which edges a name may point at: those that serve it now.
type gate struct {
	d *desiring
	// services of each edge by agent and id, as probed through the tunnel.
	services map[string]map[[2]string]api.ServiceState
	// fresh is the agents with a live tunnel to each edge.
	fresh map[string]map[string]bool
	// later are edges that will join by themselves.
	later map[string]bool
	// addresses of every edge that is or was the fleet's.
	addresses map[string]bool
}

// freshHandshake is how old a WireGuard handshake is at most while the tunnel is
// used: sessions are renewed every two minutes (WireGuard's REKEY_AFTER_TIME) and
// refused after three.
const freshHandshake = 3 * time.Minute

func newGate(d *desiring) *gate {
	g := &gate{d: d, services: map[string]map[[2]string]api.ServiceState{}, fresh: map[string]map[string]bool{}, later: map[string]bool{}, addresses: map[string]bool{}}
	for name, l := range d.world.Edges {
		for _, a := range l.Edge.Addresses {
			g.addresses[a.String()] = true
		}
		services := make(map[[2]string]api.ServiceState, len(l.State.Services))
		for _, s := range l.State.Services {
			services[[2]string{s.Agent, s.Service}] = s
		}
		g.services[name] = services
		g.fresh[name] = map[string]bool{}
		for _, p := range l.State.Peers {
			if d.world.Now.Sub(p.Handshake) < freshHandshake {
				g.fresh[name][p.Name] = true
			}
		}
	}
	return g
}

// course reports whether an observed set differs from the desired one only by
// which of the fleet's edges it names: they come and go by their health.
func (g *gate) course(seen plan.Spec) bool {
	s, ok := seen.(dns.RecordSet)
	if !ok || s.TTL != g.d.fleet.DNS.TTL {
		return false
	}
	for _, v := range s.Values {
		if !g.addresses[v] {
			return false
		}
	}
	return true
}

// health of a route as one edge sees it.
type health int

const (
	bad health = iota
	unknown
	good
)

func (g *gate) health(edge string, r fleet.Route) health {
	h := bad
	for _, u := range r.Upstreams {
		s, ok := g.services[edge][[2]string{u.Origin, u.ServiceID()}]
		switch {
		case !ok || s.Up == nil:
			h = max(h, unknown)
		case *s.Up:
			return good
		}
	}
	return h
}

// open lists the edges that host may point at, sorted; when none may, why says so.
func (g *gate) open(zone, host string, routes []fleet.Route) (edges []string, why string) {
	carriers := g.carriers(routes)
	if len(carriers) == 0 {
		return nil, "no edge carries it"
	}
	for _, r := range routes {
		if name, needed := certs.NameFor(g.d.fleet, r); needed && g.d.fleet.ACME.Challenge == fleet.ChallengeHTTP01 && r.TLS == fleet.TLSAuto {
			// The name must be answered before its first certificate can be had.
			continue
		} else if needed {
			if _, held := g.d.held(name); !held {
				return nil, "certificate " + name + " is not issued yet"
			}
		}
	}
	named := sync.OnceValue(func() map[string]bool { return g.named(zone, host) })
	best := make([]health, len(routes))
	for i, r := range routes {
		for _, e := range carriers {
			best[i] = max(best[i], g.health(e, r))
		}
	}
	var reasons []string
	skip := func(edge, reason string) {
		reasons = append(reasons, "edge "+edge+" "+reason)
	}
next:
	for _, e := range carriers {
		l, seen := g.d.world.Edges[e]
		switch {
		case g.d.world.Down[e]:
			skip(e, "is down")
			continue
		case !seen || l.Err != nil:
			// Not seen from here is not down: a name that points there stays.
			if named()[e] {
				edges = append(edges, e)
			} else {
				skip(e, "cannot be reached")
			}
			continue
		case !l.State.Ready:
			g.later[e] = true
			skip(e, "is not ready: "+strings.Join(l.State.NotReady, "; "))
			continue
		}
		for i, r := range routes {
			h := g.health(e, r)
			switch {
			case h >= best[i]:
			case h == bad:
				skip(e, "does not reach "+r.Upstreams[0].Origin+", which another edge does")
				continue next
			case named()[e] || g.fresh[e][r.Upstreams[0].Origin]:
			default:
				g.later[e] = true
				skip(e, "has no tunnel to "+r.Upstreams[0].Origin+" yet")
				continue next
			}
		}
		edges = append(edges, e)
	}
	return edges, "no edge can serve it: " + strings.Join(reasons, ", ")
}

// carriers are the edges that carry every route of a host; when none does, those
// that carry any.
func (g *gate) carriers(routes []fleet.Route) []string {
	if len(routes) == 1 {
		return routes[0].Edges
	}
	count := map[string]int{}
	for _, r := range routes {
		for _, e := range r.Edges {
			count[e]++
		}
	}
	most := 0
	for _, n := range count {
		most = max(most, n)
	}
	var out []string
	for e, n := range count {
		if n == most {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}

// named are the edges that the live records of host point at.
func (g *gate) named(zone, host string) map[string]bool {
	live := map[string]bool{}
	for _, t := range []dns.Type{dns.A, dns.AAAA} {
		if s, ok := g.d.observed[dns.Ref(zone, host, t)].Spec.(dns.RecordSet); ok {
			for _, v := range s.Values {
				live[v] = true
			}
		}
	}
	out := map[string]bool{}
	for name, e := range g.d.fleet.Edges {
		for _, a := range e.Addresses {
			if live[a.String()] {
				out[name] = true
			}
		}
	}
	return out
}

func (g *gate) pending() []string {
	var out []string
	for _, e := range slices.Sorted(maps.Keys(g.later)) {
		out = append(out, "edge "+e+" joins DNS when it can serve")
	}
	return out
}

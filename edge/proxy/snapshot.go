package proxy

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/edge/route"
	"github.com/kokoa-proxy/kokoa/edge/services"
)

// Snapshot is one config, ready to answer requests from. It never changes; what
// must outlive it (connections and health of services, leases of open requests) it
// only points at.
type Snapshot struct {
	table  *route.Table
	routes []*compiled
	gate   *Gate
}

// compiled is a route with everything a request needs at hand.
type compiled struct {
	api.Route
	upstreams []*services.Upstream
	strip     int // segments taken off the path
	lease     *Lease
}

// Lease is the right of a route's requests to go on. A route that leads from the
// same host and path to the same services in a next config keeps its lease.
type Lease struct {
	ctx context.Context
	end context.CancelFunc
}

// End cuts the route's open requests and upgraded connections.
func (l *Lease) End() { l.end() }

// Compile makes a snapshot of a config that api.Config.Validate takes. Before is
// the snapshot it follows, or nil. The services it needs are added to change, and
// nothing else happens.
func Compile(c api.Config, before *Snapshot, change *services.Change) (*Snapshot, error) {
	peers := make(map[string]api.Peer, len(c.Peers))
	for _, p := range c.Peers {
		peers[p.Name] = p
	}
	leases := map[place]*compiled{}
	if before != nil {
		for _, r := range before.routes {
			if _, ok := leases[placeOf(r)]; !ok {
				leases[placeOf(r)] = r
			}
		}
	}
	s := &Snapshot{routes: make([]*compiled, 0, len(c.Routes)), gate: newGate()}
	rules := make([]route.Rule, 0, len(c.Routes))
	for _, r := range c.Routes {
		next := &compiled{Route: r, strip: segments(r)}
		for _, u := range r.Upstreams {
			parsed, err := u.ParseURL()
			if err != nil {
				return nil, fmt.Errorf("route %s: %w", r.Name, err)
			}
			peer, ok := peers[u.Agent]
			if !ok {
				return nil, fmt.Errorf("route %s: agent %s is no peer", r.Name, u.Agent)
			}
			next.upstreams = append(next.upstreams, change.Upstream(services.Service{
				Agent: u.Agent, Address: peer.Address, ID: u.Service, URL: u.URL,
			}, parsed, r.Health))
		}
		if old := leases[placeOf(next)]; old != nil && old.lease.ctx.Err() == nil && slices.Equal(old.upstreams, next.upstreams) {
			next.lease = old.lease
		} else {
			ctx, end := context.WithCancel(context.Background())
			next.lease = &Lease{ctx, end}
		}
		s.routes = append(s.routes, next)
		rules = append(rules, route.Rule{Host: r.Host, Path: r.Path})
	}
	var err error
	if s.table, err = route.New(rules); err != nil {
		return nil, fmt.Errorf("compile routes: %w", err)
	}
	return s, nil
}

// Gate counts the requests that are answered from the snapshot.
func (s *Snapshot) Gate() *Gate { return s.gate }

// Gone is the leases of s that after does not carry on.
func (s *Snapshot) Gone(after *Snapshot) []*Lease {
	kept := make(map[*Lease]bool, len(after.routes))
	for _, r := range after.routes {
		kept[r.lease] = true
	}
	var gone []*Lease
	for _, r := range s.routes {
		if !kept[r.lease] {
			gone = append(gone, r.lease)
		}
	}
	return gone
}

// EndExpired ends the leases of routes whose time has come.
func (s *Snapshot) EndExpired(now time.Time) {
	for _, r := range s.routes {
		if r.expired(now) {
			r.lease.End()
		}
	}
}

// EndAll ends all leases.
func (s *Snapshot) EndAll() {
	for _, r := range s.routes {
		r.lease.End()
	}
}

// place is what a route's visitors see of it.
type place struct{ host, path string }

func placeOf(r *compiled) place { return place{r.Host, r.Path} }

func (r *compiled) expired(now time.Time) bool { return r.Expires != nil && !now.Before(*r.Expires) }

// segments is how many the route takes off the path.
func segments(r api.Route) int {
	n := 0
	if r.StripPath {
		for i := 0; i+1 < len(r.Path); i++ {
			if r.Path[i] == '/' {
				n++
			}
		}
	}
	return n
}

// Gate counts requests in and out, and says when the last has left.
type Gate struct {
	inside  atomic.Int64
	closing atomic.Bool
	empty   chan struct{}
	said    atomic.Bool
}

func newGate() *Gate { return &Gate{empty: make(chan struct{})} }

// Close makes Empty's channel close once nobody is inside. Enter is still possible
// for those who were on their way.
func (g *Gate) Close() {
	g.closing.Store(true)
	g.check()
}

// Empty is closed when the gate was closed and the last has left.
func (g *Gate) Empty() <-chan struct{} { return g.empty }

func (g *Gate) enter() { g.inside.Add(1) }

func (g *Gate) leave() {
	g.inside.Add(-1)
	g.check()
}

func (g *Gate) check() {
	if g.closing.Load() && g.inside.Load() == 0 && g.said.CompareAndSwap(false, true) {
		close(g.empty)
	}
}

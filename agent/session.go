package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// errDead ends a session none of whose edges has answered for long: the device
// itself may be what is broken, so the next session opens a new one.
var errDead = errors.New("no edge answered for long")

// rebindGap is the least time between two ports of a device: handshakes that other
// links have begun need a moment to end.
const rebindGap = 3 * time.Second

// session is one life of the agent's device, with a link to every edge.
type session struct {
	agent  *agent
	device tunnel.Device
	log    *slog.Logger

	mu    sync.Mutex
	links []*link
	// answered is when any edge last did, or else when the session began.
	answered time.Time
	ever     bool
	// unset is why the device did not take its peers the last time, or nil.
	unset error
	// rebound is when the device last took another port.
	rebound time.Time
	// broken is why the device cannot go on, or nil.
	broken error
	done   sync.WaitGroup
}

func newSession(a *agent, device tunnel.Device) *session {
	return &session{agent: a, device: device, log: a.log, answered: time.Now()}
}

// run keeps links to the edges that the agent's orders name until ctx ends or
// patience has passed without an answer from any of them, which is errDead.
func (s *session) run(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.done.Wait()
	defer cancel()
	tick := time.NewTicker(s.agent.pace.tick)
	defer tick.Stop()
	s.reconcile(ctx, s.agent.edges())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.agent.reordered:
			s.reconcile(ctx, s.agent.edges())
		case <-tick.C:
			s.settle(ctx)
			s.mu.Lock()
			silent, broken := time.Since(s.answered), s.broken
			s.mu.Unlock()
			if broken != nil {
				return broken
			}
			if silent > patience {
				return errDead
			}
		}
	}
}

// reconcile makes edges the ones that are wanted: new ones become peers at once,
// and those no longer wanted stay until one that is wanted has answered, so that
// a config with wrong edges in it can still be mended through the old ones.
func (s *session) reconcile(ctx context.Context, edges []api.AgentEdge) {
	defer s.agent.news()
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept []*link
	for _, l := range s.links {
		i := slices.IndexFunc(edges, func(e api.AgentEdge) bool {
			return e.Name == l.edge.Name && e.PublicKey == l.edge.PublicKey && e.Address == l.edge.Address
		})
		// One that shares a key or an address with a wanted edge cannot be a
		// peer beside it.
		rival := i < 0 && slices.ContainsFunc(edges, func(e api.AgentEdge) bool {
			return e.PublicKey == l.edge.PublicKey || e.Address == l.edge.Address
		})
		switch {
		case rival:
			s.drop(l)
			continue
		case i >= 0:
			l.leaving = time.Time{}
			l.move(edges[i].Endpoint)
		case l.leaving.IsZero():
			l.leaving = time.Now().Add(s.agent.pace.linger)
		}
		kept = append(kept, l)
	}
	var added []*link
	for _, e := range edges {
		if !slices.ContainsFunc(kept, func(l *link) bool { return l.edge.PublicKey == e.PublicKey }) {
			added = append(added, newLink(s, e))
		}
	}
	s.links = append(kept, added...)
	s.setPeers(ctx, nil)
	for _, l := range added {
		l.start(ctx)
	}
	s.settleLocked(ctx)
}

// settle drops the edges that are no longer wanted, once that is safe or their
// time is over.
func (s *session) settle(ctx context.Context) {
	s.mu.Lock()
	settled := s.settleLocked(ctx)
	s.mu.Unlock()
	if settled {
		s.agent.news()
	}
}

// settleLocked is settle for a caller that holds s.mu. It reports whether it dropped
// any.
func (s *session) settleLocked(ctx context.Context) bool {
	safe := slices.ContainsFunc(s.links, func(l *link) bool { return l.leaving.IsZero() && l.isUp() })
	n := len(s.links)
	s.links = slices.DeleteFunc(s.links, func(l *link) bool {
		if l.leaving.IsZero() || !safe && time.Now().Before(l.leaving) {
			return false
		}
		s.drop(l)
		return true
	})
	if len(s.links) == n {
		return false
	}
	s.setPeers(ctx, nil)
	return true
}

// drop ends a link and the streams its edge had open.
func (s *session) drop(l *link) {
	l.stop()
	s.agent.flows.closeFrom(l.edge.Address)
	s.log.Info("edge dropped", "edge", l.edge.Name)
}

// rekey makes the tunnel to l new, at the given endpoint: without the peer and
// with it again, the handshake happens now and not when WireGuard's own timers
// find out. The sessions of all other peers go on.
func (s *session) rekey(ctx context.Context, l *link, endpoint netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.links, l) {
		return
	}
	l.endpoint = endpoint
	s.setPeers(ctx, l)
	s.setPeers(ctx, nil)
}

// rebind has the device go on from another UDP port, for a link that several
// attempts have not brought back. A NAT on the way may have lost what comes from the
// old one for good, for as long as anything is sent from there. All links share the
// port. Those that are up lose a moment, so for their sake it is done at attempts 2,
// 4, 8 and so on; when none is up, at every attempt, since the way may have been
// lost while the edges were not there.
func (s *session) rebind(attempt int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	alone := !slices.ContainsFunc(s.links, (*link).isUp)
	if !alone && attempt&(attempt-1) != 0 || time.Since(s.rebound) < rebindGap {
		return
	}
	switch err := s.device.Rebind(); {
	case err == nil:
		s.rebound = time.Now()
		s.log.Debug("port changed")
	case alone:
		s.broken = err
	default:
		s.log.Warn("port not changed", "err", err)
	}
}

// setPeers gives the device all links but one as its peers. The caller holds s.mu.
func (s *session) setPeers(ctx context.Context, but *link) {
	peers := make([]tunnel.Peer, 0, len(s.links))
	for _, l := range s.links {
		if l == but {
			continue
		}
		p := tunnel.Peer{
			PublicKey:  l.edge.PublicKey,
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(l.edge.Address, l.edge.Address.BitLen())},
			Keepalive:  keepalive,
		}
		if l.endpoint.IsValid() {
			p.Endpoint = l.endpoint.String()
		}
		peers = append(peers, p)
	}
	err := s.device.SetPeers(ctx, peers)
	if ctx.Err() != nil {
		return
	}
	if err != nil && s.unset == nil {
		s.log.Error("peers not set", "err", err)
	}
	s.unset = err
}

// isPeer reports whether addr is an edge's tunnel address now.
func (s *session) isPeer(addr netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.links, func(l *link) bool { return l.edge.Address == addr.Unmap() })
}

// heard notes that an edge answered.
func (s *session) heard() {
	s.mu.Lock()
	s.answered, s.ever = time.Now(), true
	s.mu.Unlock()
}

// lastAnswer is when any edge last answered; ever is false before the first time.
func (s *session) lastAnswer() (at time.Time, ever bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered, s.ever
}

// relayed reports whether every edge that is up has relayed what o says, and at least
// one is; with stale, whether any has.
func (s *session) relayed(o *orders, stale bool) bool {
	some, all := false, true
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		l.mu.Lock()
		has := l.up && l.obeyed == string(o.signed.Signature)
		some, all = some || has, all && (has || !l.up || !l.leaving.IsZero())
		l.mu.Unlock()
	}
	return some && (all || stale)
}

// everReached reports whether any edge ever answered.
func (s *session) everReached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ever
}

// each calls do for every link.
func (s *session) each(do func(*link)) {
	s.mu.Lock()
	links := slices.Clone(s.links)
	s.mu.Unlock()
	for _, l := range links {
		do(l)
	}
}

// handshakes is when the last one with each edge completed, by the edge's key.
func (s *session) handshakes() map[keys.Public]time.Time {
	handshakes := make(map[keys.Public]time.Time)
	stats, err := s.device.Stats()
	if err != nil {
		s.log.Debug("device not read", "err", err)
	}
	for _, p := range stats {
		handshakes[p.PublicKey] = p.Handshake
	}
	return handshakes
}

// edges is each tunnel's state, for heartbeats.
func (s *session) edges() []api.AgentEdgeState {
	handshakes := s.handshakes()
	list := []api.AgentEdgeState{}
	s.each(func(l *link) {
		list = append(list, api.AgentEdgeState{Name: l.edge.Name, Up: l.isUp(), Handshake: handshakes[l.edge.PublicKey]})
	})
	return list
}

package edge

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"runtime/debug"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/edge/proxy"
	"github.com/kokoa-proxy/kokoa/edge/services"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// Apply makes next the live config. Current is the digest the caller planned from,
// "" for none; if the edge serves something else, Apply returns api.ErrConflict. A
// config that this edge will not serve is api.ErrRejected. Nothing that a visitor
// can see changes before the swap, so a failed Apply leaves the edge as it was.
// Requests under way finish on the config they began with. Applying what is live
// sets the device's peers again. Next must pass Validate, and is kept: do not change
// it afterwards.
func (s *Server) Apply(ctx context.Context, current string, next api.Config) error {
	begin := time.Now()
	digest := next.Digest()
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.live.Load()
	switch {
	case old != nil && old.digest == digest:
		return s.again(ctx, old, next)
	case old == nil && current != "":
		return fmt.Errorf("%w: it has none", api.ErrConflict)
	case old != nil && old.digest != current:
		return fmt.Errorf("%w: %.12s, of revision %.12s; plan again", api.ErrConflict, old.digest, old.config.Revision)
	}
	fresh, change, err := s.build(next, digest, old)
	if err != nil {
		return err
	}
	// Make before break: the new peers beside the old ones.
	if err := s.setPeers(ctx, s.peersFor(next.Peers, old)); err != nil {
		return fmt.Errorf("set peers: %w", s.undo(ctx, err))
	}
	if err := s.save(next); err != nil {
		return fmt.Errorf("save config: %w", s.undo(ctx, err))
	}
	s.live.Store(fresh) // the one moment of change
	change.Commit()
	s.expiry = soonest(next, s.now())
	s.beats.keep(next.Peers)
	if old != nil {
		close(old.replaced)
		s.retire(old, fresh)
	}
	s.log.Info("config swapped", "revision", next.Revision, "count", len(next.Routes), "took", time.Since(begin))
	return nil
}

// again is Apply of what is live.
func (s *Server) again(ctx context.Context, old *live, next api.Config) error {
	if err := s.setPeers(ctx, s.peersFor(next.Peers, nil)); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	if old.config.Revision == next.Revision {
		return nil
	}
	if err := s.save(next); err != nil {
		return fmt.Errorf("save config: %w", err)
	}
	same := *old
	same.config = next
	s.live.Store(&same)
	return nil
}

// build prepares a config without doing anything that shows. A config that makes it
// panic is rejected like any other that is no good.
func (s *Server) build(next api.Config, digest string, old *live) (fresh *live, change *services.Change, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("config made the edge panic", "revision", next.Revision, "err", fmt.Sprint(p), "reason", string(debug.Stack()))
			err = fmt.Errorf("%w: it made the edge panic: %v", api.ErrRejected, p)
		}
	}()
	if next.Fleet != s.o.Bootstrap.Fleet || next.Edge != s.o.Bootstrap.Name {
		return nil, nil, fmt.Errorf("%w: it is for edge %q of fleet %q, and this is %q of %q", api.ErrRejected, next.Edge, next.Fleet, s.o.Bootstrap.Name, s.o.Bootstrap.Fleet)
	}
	fresh = &live{
		config: next, digest: digest,
		peers: make(map[netip.Addr]api.Peer, len(next.Peers)), signed: make(map[string]api.Signed, len(next.Agents)),
		replaced: make(chan struct{}),
	}
	for _, p := range next.Peers {
		if s.isControl(p.PublicKey, p.Address) || s.isControl(p.NextKey, p.Address) {
			return nil, nil, fmt.Errorf("%w: peer %s has the key or address of a control peer or of this edge", api.ErrRejected, p.Name)
		}
		fresh.peers[p.Address] = p
		fresh.rotating = fresh.rotating || !p.NextKey.IsZero()
	}
	for _, a := range next.Agents {
		fresh.signed[a.Agent] = a
	}
	var snapshot *proxy.Snapshot
	if old != nil {
		snapshot = old.snapshot
	}
	change = s.pool.Begin()
	if fresh.snapshot, err = proxy.Compile(next, snapshot, change); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", api.ErrRejected, err)
	}
	return fresh, change, nil
}

func (s *Server) isControl(key keys.Public, address netip.Addr) bool {
	if address == s.o.Bootstrap.TunnelAddress || key == s.o.Bootstrap.PrivateKey.Public() {
		return true
	}
	for _, c := range s.o.Bootstrap.Control {
		if c.PublicKey == key || c.Address == address {
			return true
		}
	}
	return false
}

// undo puts the live config's peers back after err, and returns it.
func (s *Server) undo(ctx context.Context, err error) error {
	var config api.Config
	if l := s.live.Load(); l != nil {
		config = l.config
	}
	if again := s.setPeers(context.WithoutCancel(ctx), s.peersFor(config.Peers, nil)); again != nil {
		return fmt.Errorf("%w; and put the peers back: %w", err, again)
	}
	return err
}

// drain is a config that was replaced and that requests may still run on.
type drain struct {
	config api.Config
	gate   *proxy.Gate
	gone   []*proxy.Lease
}

// retire lets the requests of old end: then the peers that no config names are
// dropped. DrainTimeout later all that old had alone is cut.
func (s *Server) retire(old, fresh *live) {
	d := &drain{old.config, old.snapshot.Gate(), old.snapshot.Gone(fresh.snapshot)}
	s.draining[d] = true
	d.gate.Close()
	late := time.NewTimer(s.drain)
	s.tasks.Go(func() {
		defer late.Stop()
		timeout := false
		select {
		case <-d.gate.Empty():
		case <-late.C:
			timeout = true
		case <-s.ended:
			timeout = true
		}
		s.forget(d)
		if len(d.gone) > 0 && !timeout {
			// Connections that an older config began may live on these leases.
			select {
			case <-late.C:
			case <-s.ended:
			}
		}
		for _, l := range d.gone {
			l.End()
		}
	})
}

// forget drops the peers that only d named.
func (s *Server) forget(d *drain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.draining, d)
	select {
	case <-s.ended:
		return // the device may be closed
	default:
	}
	s.followPeers()
}

// expire ends what has reached its time, by this edge's clock.
func (s *Server) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.expiry.IsZero() || now.Before(s.expiry) {
		return
	}
	l := s.live.Load()
	if l == nil {
		return
	}
	l.snapshot.EndExpired(now)
	s.followPeers()
	s.expiry = soonest(l.config, now)
	s.log.Info("expired routes and peers ended")
}

// followPeers makes the device's peers those of the live config, and of those
// before it that are not done.
func (s *Server) followPeers() {
	l := s.live.Load()
	if l == nil {
		return
	}
	wanted := s.peersFor(l.config.Peers, nil)
	if reflect.DeepEqual(wanted, s.peers) {
		return
	}
	if err := s.setPeers(context.Background(), wanted); err != nil {
		s.log.Error("peers not set", "err", err)
	}
}

func (s *Server) setPeers(ctx context.Context, peers []tunnel.Peer) error {
	if err := s.o.Device.SetPeers(ctx, peers); err != nil {
		return err
	}
	s.peers = peers
	return nil
}

// peersFor is the device's peers while a config's are live: the control plane's
// always, then the config's, then those of old and of the configs that drain, as
// far as they are in nobody's way. Expired ones are left out.
func (s *Server) peersFor(config []api.Peer, old *live) []tunnel.Peer {
	var peers []tunnel.Peer
	byKey, byAddress := map[keys.Public]bool{}, map[netip.Addr]bool{}
	// add takes one peer, with all keys it may use: the first gets the address.
	add := func(address netip.Addr, valid ...keys.Public) {
		if byAddress[address] {
			return
		}
		for _, key := range valid {
			if byKey[key] {
				continue
			}
			byKey[key] = true
			p := tunnel.Peer{PublicKey: key}
			if !byAddress[address] {
				byAddress[address] = true
				p.AllowedIPs = []netip.Prefix{netip.PrefixFrom(address, address.BitLen())}
			}
			peers = append(peers, p)
		}
	}
	for _, c := range s.o.Bootstrap.Control {
		add(c.Address, c.PublicKey)
	}
	now, newest := s.now(), s.newestFirst()
	addAll := func(list []api.Peer) {
		for _, p := range list {
			if p.Expires == nil || now.Before(*p.Expires) {
				add(p.Address, newest(p)...)
			}
		}
	}
	addAll(config)
	if old != nil {
		addAll(old.config.Peers)
	}
	for d := range s.draining {
		addAll(d.config.Peers)
	}
	return peers
}

// soonest is the next time after now at which something of c expires; zero is never.
func soonest(c api.Config, now time.Time) time.Time {
	var next time.Time
	consider := func(t *time.Time) {
		if t != nil && t.After(now) && (next.IsZero() || t.Before(next)) {
			next = *t
		}
	}
	for _, r := range c.Routes {
		consider(r.Expires)
	}
	for _, p := range c.Peers {
		consider(p.Expires)
	}
	return next
}

package edge

import (
	"slices"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// WireGuard refuses a handshake that is not later, by the other end's clock, than the
// one before. An agent whose clock was set back, or whose host has none that outlives
// a power cut, would be shut out for hours. So a peer that has fallen silent is made
// new: its session is of no use any more, and with it goes what was known of its
// clock. Who recorded an old handshake can then repeat it. That completes nothing
// without the peer's key, and is forgotten again the same way.

// In looks, of which there is one in a second. They are counted, and no clock is read,
// so that an edge that was stopped for a while does not take that for its peers'
// silence.
const (
	// agentSilence is as long as an agent waits for an answer before it begins anew.
	// Until then it asks for its config more often than that.
	agentSilence = 8
	// controlSilence is how long WireGuard's sessions live. The control plane asks
	// when it likes to.
	controlSilence = 180
)

// silence is what peers have sent so far, and for how long they have sent nothing. Its
// methods are for one goroutine.
type silence struct {
	peers map[keys.Public]quiet
}

// quiet is one peer of a silence.
type quiet struct {
	received uint64
	looks    int
	// fresh is received when the peer was last made new. Nothing is known of the
	// clock of one that has sent nothing since.
	fresh uint64
}

// look lists the peers to make new now.
func (s *silence) look(stats []tunnel.PeerStats, limit func(keys.Public) int) (due []keys.Public) {
	next := make(map[keys.Public]quiet, len(stats))
	for _, p := range stats {
		q := s.peers[p.PublicKey]
		if p.Received < q.received { // it was taken out and put back
			q = quiet{}
		}
		q.looks++
		if p.Received != q.received {
			q.received, q.looks = p.Received, 0
		}
		if q.received != q.fresh && q.looks >= limit(p.PublicKey) {
			q.fresh = q.received
			due = append(due, p.PublicKey)
		}
		next[p.PublicKey] = q
	}
	s.peers = next
	return due
}

// renewSilent looks at the device's peers. Only Serve calls it.
func (s *Server) renewSilent() {
	stats, err := s.o.Device.Stats()
	if err != nil {
		s.log.Debug("peers not read", "err", err)
		return
	}
	due := s.silence.look(stats, func(key keys.Public) int {
		if slices.ContainsFunc(s.o.Bootstrap.Control, func(c ControlPeer) bool { return c.PublicKey == key }) {
			return controlSilence
		}
		return agentSilence
	})
	if len(due) == 0 {
		return
	}
	if err := s.o.Device.Renew(due...); err != nil {
		s.log.Warn("silent peers not made new", "err", err)
		return
	}
	s.log.Debug("silent peers made new", "count", len(due))
}

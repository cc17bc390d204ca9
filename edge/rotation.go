package edge

import (
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
)

// An agent with two keys uses one of them, and WireGuard lets one peer have an
// address. So the address follows the agent: it goes with the key that had the
// newest handshake. What the agent sends between its handshake and the move is
// lost, and TCP sends it again: the sooner the move, the shorter the stall.
const (
	// watchEvery is between looks at the handshakes while a peer has two keys.
	watchEvery = 100 * time.Millisecond
	// watchClosely is the same for closeWatch after an agent has said that it is
	// about to take its next key.
	watchClosely = 2 * time.Millisecond
	closeWatch   = 3 * time.Second
)

// newestFirst reads the device's handshakes when the first peer with two keys asks,
// and gives every key that a peer may use now, the one it used last first. The
// caller holds s.mu.
func (s *Server) newestFirst() func(api.Peer) []keys.Public {
	read := false
	return func(p api.Peer) []keys.Public {
		if p.NextKey.IsZero() {
			return []keys.Public{p.PublicKey}
		}
		if !read {
			read = true
			s.readHandshakes()
		}
		if s.shaken[p.NextKey].After(s.shaken[p.PublicKey]) {
			return []keys.Public{p.NextKey, p.PublicKey}
		}
		return []keys.Public{p.PublicKey, p.NextKey}
	}
}

// readHandshakes keeps what it knew of a device that does not answer: an address
// must not go back because of that.
func (s *Server) readHandshakes() {
	stats, err := s.o.Device.Stats()
	if err != nil {
		s.log.Debug("handshakes not read", "err", err)
		return
	}
	s.shaken = make(map[keys.Public]time.Time, len(stats))
	for _, p := range stats {
		s.shaken[p.PublicKey] = p.Handshake
	}
}

// followKeys moves the addresses of agents that have taken another of their keys.
func (s *Server) followKeys() {
	if l := s.live.Load(); l == nil || !l.rotating {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.followPeers()
}

// expectKey wakes the watch when an agent says that key is, or is about to be, the
// one it uses.
func (s *Server) expectKey(agent string, key keys.Public) {
	l := s.live.Load()
	if l == nil || !l.rotating || key.IsZero() {
		return
	}
	for _, p := range l.config.Peers {
		if p.Name == agent && p.NextKey == key {
			select {
			case s.switching <- struct{}{}:
			default:
			}
		}
	}
}

// watch says when to look at the handshakes.
type watch struct {
	ticker *time.Ticker
	until  time.Time
}

func newWatch() *watch { return &watch{ticker: time.NewTicker(watchEvery)} }

func (w *watch) stop() { w.ticker.Stop() }

// closely looks more often for a while.
func (w *watch) closely() {
	w.until = time.Now().Add(closeWatch)
	w.ticker.Reset(watchClosely)
}

func (w *watch) tick() <-chan time.Time {
	if !w.until.IsZero() && time.Now().After(w.until) {
		w.until = time.Time{}
		w.ticker.Reset(watchEvery)
	}
	return w.ticker.C
}

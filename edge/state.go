package edge

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
)

// Caller implements api.Edge.
func (s *Server) Caller(a netip.Addr) api.Caller {
	for _, c := range s.o.Bootstrap.Control {
		if c.Address == a {
			return api.Caller{Control: true}
		}
	}
	if l := s.live.Load(); l != nil {
		if p, ok := l.peers[a]; ok && (p.Expires == nil || s.now().Before(*p.Expires)) {
			return api.Caller{Agent: p.Name}
		}
	}
	return api.Caller{}
}

// Config implements api.Edge.
func (s *Server) Config() (api.Config, string, error) {
	l := s.live.Load()
	if l == nil {
		return api.Config{}, "", api.ErrNoConfig
	}
	return l.config, l.digest, nil
}

// State implements api.Edge. The edge is ready when it serves on its listeners, a
// config is live and its tunnel device answers. Certificates are no part of it,
// since ACME's HTTP-01 needs the edge in DNS before the first one is there: which
// names it can serve over TLS is told by Certificates. Services are none either:
// they are the same behind every edge.
func (s *Server) State() (api.State, error) {
	b := s.o.Bootstrap
	state := api.State{
		Fleet: b.Fleet, Edge: b.Name, Version: s.o.Version,
		Now: s.now(), Started: s.started,
		Tunnel:       api.Tunnel{Kind: string(s.o.Device.Kind()), Reason: s.o.Device.Reason()},
		Peers:        []api.PeerState{},
		Certificates: s.certs.State(),
		Services:     s.pool.State(),
		Agents:       s.beats.list(),
	}
	names := map[keys.Public]string{}
	if l := s.live.Load(); l != nil {
		state.Digest, state.Revision = l.digest, l.config.Revision
		for _, p := range l.config.Peers {
			names[p.PublicKey] = p.Name
			if !p.NextKey.IsZero() {
				names[p.NextKey] = p.Name
			}
		}
	} else {
		state.NotReady = append(state.NotReady, "no config yet")
	}
	if !s.serving.Load() {
		state.NotReady = append(state.NotReady, "not serving on its listeners")
	}
	state.Ready = len(state.NotReady) == 0
	stats, err := s.o.Device.Stats()
	if err != nil {
		return api.State{}, fmt.Errorf("ask the tunnel for its peers: %w", err)
	}
	for _, p := range stats {
		if slices.ContainsFunc(b.Control, func(c ControlPeer) bool { return c.PublicKey == p.PublicKey }) {
			continue
		}
		state.Peers = append(state.Peers, api.PeerState{
			Name: names[p.PublicKey], PublicKey: p.PublicKey, AllowedIPs: p.AllowedIPs,
			Handshake: p.Handshake, Received: p.Received, Sent: p.Sent,
		})
	}
	slices.SortFunc(state.Peers, func(x, y api.PeerState) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), slices.Compare(x.PublicKey[:], y.PublicKey[:]))
	})
	return state, nil
}

// PutCertificate implements api.Edge.
func (s *Server) PutCertificate(c api.Certificate) error {
	if err := s.certs.Put(c); err != nil {
		return err
	}
	s.log.Info("certificate put", "certificate", c.Name)
	return nil
}

// DeleteCertificate implements api.Edge.
func (s *Server) DeleteCertificate(name string) error {
	if err := s.certs.Delete(name); err != nil {
		return err
	}
	s.log.Info("certificate deleted", "certificate", name)
	return nil
}

// PutChallenge implements api.Edge.
func (s *Server) PutChallenge(token, keyAuthorization string) error {
	return s.challenges.put(token, keyAuthorization, s.now())
}

// DeleteChallenge implements api.Edge.
func (s *Server) DeleteChallenge(token string) { s.challenges.delete(token) }

// AgentConfig implements api.Edge.
func (s *Server) AgentConfig(agent string) (api.Signed, <-chan struct{}, bool) {
	l := s.live.Load()
	if l == nil {
		return api.Signed{}, nil, false
	}
	signed, ok := l.signed[agent]
	return signed, l.replaced, ok
}

// Heartbeat implements api.Edge.
func (s *Server) Heartbeat(agent string, h api.Heartbeat) {
	s.beats.put(api.AgentState{Name: agent, At: s.now(), Heartbeat: h})
	s.expectKey(agent, h.PublicKey)
	if h.Draining {
		s.pool.Drain(agent)
	}
}

// challenges are ACME HTTP-01 answers by token.
type challenges struct {
	mu      sync.Mutex
	byToken map[string]challenge
}

type challenge struct {
	text string
	ends time.Time
}

// maxChallenges is far above what one order asks for.
const maxChallenges = 10_000

func (c *challenges) put(token, text string, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byToken == nil {
		c.byToken = map[string]challenge{}
	}
	for t, known := range c.byToken {
		if !now.Before(known.ends) {
			delete(c.byToken, t)
		}
	}
	if len(c.byToken) >= maxChallenges {
		return fmt.Errorf("%d challenges are open; delete some", len(c.byToken))
	}
	c.byToken[token] = challenge{text, now.Add(api.ChallengeLife)}
	return nil
}

func (c *challenges) get(token string, now time.Time) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.byToken[token]
	return known.text, ok && now.Before(known.ends)
}

func (c *challenges) delete(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byToken, token)
}

// heartbeats are the last of each agent.
type heartbeats struct {
	mu      sync.Mutex
	byAgent map[string]api.AgentState
}

func (h *heartbeats) put(s api.AgentState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byAgent == nil {
		h.byAgent = map[string]api.AgentState{}
	}
	h.byAgent[s.Name] = s
}

// keep forgets the agents that are no peers.
func (h *heartbeats) keep(peers []api.Peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := make(map[string]api.AgentState, len(h.byAgent))
	for _, p := range peers {
		if s, ok := h.byAgent[p.Name]; ok {
			kept[p.Name] = s
		}
	}
	h.byAgent = kept
}

func (h *heartbeats) list() []api.AgentState {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]api.AgentState, 0, len(h.byAgent))
	for _, s := range h.byAgent {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b api.AgentState) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

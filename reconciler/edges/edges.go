package edges

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// Edge is one edge's side of edge/api; *api.Client is one.
type Edge interface {
	// Config is the live config; api.ErrNoConfig when it has none.
	Config(ctx context.Context) (api.Config, error)
	PutConfig(ctx context.Context, current string, next api.Config) error
	State(ctx context.Context) (api.State, error)
	PutCertificate(ctx context.Context, c api.Certificate) error
	DeleteCertificate(ctx context.Context, name string) error
	PutChallenge(ctx context.Context, token, keyAuthorization string) error
	DeleteChallenge(ctx context.Context, token string) error
}

// Live is what was seen of one edge.
type Live struct {
	Edge fleet.Edge
	// Err is why the edge could not be seen; then all below it is empty.
	Err error
	// UnreachableSince is when it was first not seen, in an unbroken row.
	UnreachableSince time.Time
	// Config is the zero Config and Digest "" when the edge has none yet.
	Config api.Config
	Digest string
	State  api.State
}

// Driver observes and changes edges. Observe and Apply may not run at once;
// everything else may.
type Driver struct {
	Secret keys.Secret
	// Slot is which of the control plane's keys to use; see keys.Slots.
	Slot int
	// Open makes the device to reach edges through; tunnel.Open.
	Open func(tunnel.Config) (tunnel.Device, error)
	// Certificate loads a certificate to deliver.
	Certificate func(ctx context.Context, name string) (chain, key []byte, err error)
	// Timeout of one edge's observation; 0 is 3 s. An edge that was out of sight
	// gets a third of it: it must not slow down every turn of the others.
	Timeout time.Duration
	Log     *slog.Logger

	mu      sync.Mutex
	device  tunnel.Device
	network netip.Prefix
	edges   map[string]connected
	live    map[string]Live
}

// connected is an edge's client, and what it was made for.
type connected struct {
	edge   fleet.Edge
	client Edge
}

// Close ends the tunnels.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.edges = nil
	if d.device == nil {
		return nil
	}
	err := d.device.Close()
	d.device = nil
	return err
}

// connect makes the device's peers the given edges, and a client for each.
func (d *Driver) connect(ctx context.Context, network netip.Prefix, edges []fleet.Edge) (map[string]connected, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.device != nil && d.network != network {
		if err := d.device.Close(); err != nil {
			return nil, fmt.Errorf("close tunnel: %w", err)
		}
		d.device, d.edges = nil, nil
	}
	if d.device == nil {
		device, err := d.Open(tunnel.Config{
			// In user space always: `kokoa plan` needs no privilege, and beside a
			// `kokoa serve` of the same host no interface to share.
			Kind:       tunnel.Userspace,
			PrivateKey: d.Secret.Control(d.Slot),
			Address:    fleet.ControlAddress(network, d.Slot),
			Network:    network,
			Log:        d.Log,
		})
		if err != nil {
			return nil, fmt.Errorf("open tunnel to edges: %w", err)
		}
		d.device, d.network = device, network
	}
	same := len(d.edges) == len(edges)
	for _, e := range edges {
		c, ok := d.edges[e.Name]
		same = same && ok && reaches(c.edge, e) && d.live[e.Name].Err == nil
	}
	if same {
		return maps.Clone(d.edges), nil
	}
	next := make(map[string]connected, len(edges))
	var peers []tunnel.Peer
	for _, e := range edges {
		if c, ok := d.edges[e.Name]; ok && reaches(c.edge, e) {
			next[e.Name] = c
		} else {
			next[e.Name] = connected{e, api.NewClient(e.Name, netip.AddrPortFrom(e.TunnelAddress, api.EdgePort), d.device.Dial)}
		}
		peers = append(peers, tunnel.Peer{
			PublicKey:  d.Secret.Edge(e.Name, e.Generation).Public(),
			Endpoint:   e.Endpoint,
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(e.TunnelAddress, e.TunnelAddress.BitLen())},
			Keepalive:  25 * time.Second,
		})
	}
	d.edges = next
	// An endpoint whose name does not resolve shows as that edge being
	// unreachable; the others are set.
	if err := d.device.SetPeers(ctx, peers); err != nil {
		d.Log.Warn("some edges' endpoints not set", "err", err)
	}
	return maps.Clone(d.edges), nil
}

// reaches reports whether a connection made for a serves b.
func reaches(a, b fleet.Edge) bool {
	return a.Endpoint == b.Endpoint && a.TunnelAddress == b.TunnelAddress && a.Generation == b.Generation
}

// Observe asks every edge at once for its config and state. An edge that does not
// answer is in the result with Err set: that it cannot be seen is itself seen.
func (d *Driver) Observe(ctx context.Context, network netip.Prefix, edges []fleet.Edge) (map[string]Live, error) {
	clients, err := d.connect(ctx, network, edges)
	if err != nil {
		return nil, err
	}
	patience := d.Timeout
	if patience == 0 {
		patience = 3 * time.Second
	}
	d.mu.Lock()
	before := maps.Clone(d.live)
	d.mu.Unlock()
	began := time.Now()
	var wg sync.WaitGroup
	seen := make([]Live, len(edges))
	for i, e := range edges {
		timeout := patience
		if before[e.Name].Err != nil {
			timeout /= 3
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			seen[i] = observe(ctx, e, clients[e.Name].client)
			if errors.Is(seen[i].Err, context.DeadlineExceeded) {
				seen[i].Err = fmt.Errorf("%w within %s; is kokoa-edge running there, and UDP %s open to this host?", ErrSilent, timeout, e.Endpoint)
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("observe edges: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := make(map[string]Live, len(edges))
	for _, l := range seen {
		if l.Err != nil {
			l.UnreachableSince = began
			if was := d.live[l.Edge.Name]; was.Err != nil {
				l.UnreachableSince = was.UnreachableSince
			}
		}
		next[l.Edge.Name] = l
	}
	d.live = next
	return maps.Clone(next), nil
}

func observe(ctx context.Context, e fleet.Edge, c Edge) Live {
	live := Live{Edge: e}
	config, err := c.Config(ctx)
	switch {
	case errors.Is(err, api.ErrNoConfig):
	case err != nil:
		return Live{Edge: e, Err: err}
	default:
		live.Config = config
	}
	if live.State, err = c.State(ctx); err != nil {
		return Live{Edge: e, Err: err}
	}
	live.Digest = live.State.Digest
	return live
}

// Objects is what was seen of an edge as plan objects: the peers that the device
// really has, the routes and signed configs of the live config, the certificates
// that can be served. now decides which of them have ended.
func Objects(l Live, signing []byte, now time.Time) []plan.Object {
	edge := l.Edge.Name
	out := make([]plan.Object, 0, len(l.State.Peers)+len(l.Config.Peers)+len(l.Config.Agents)+len(l.Config.Routes)+len(l.State.Certificates))
	ended := func(t *time.Time) bool { return t != nil && !t.After(now) }
	named := map[keys.Public]api.Peer{}
	for _, p := range l.Config.Peers {
		named[p.PublicKey] = p
		if !p.NextKey.IsZero() {
			named[p.NextKey] = p
		}
	}
	onDevice := map[string]PeerSpec{}
	for _, p := range l.State.Peers {
		config, known := named[p.PublicKey]
		if !known {
			out = append(out, plan.Object{Ref: plan.Ref{Kind: plan.Peer, Scope: edge, Name: p.PublicKey.String()}, Spec: PeerSpec{PublicKey: p.PublicKey, Addresses: p.AllowedIPs}})
			continue
		}
		spec := onDevice[config.Name]
		if p.PublicKey == config.NextKey {
			spec.NextKey = p.PublicKey
		} else {
			spec.PublicKey = p.PublicKey
		}
		spec.Addresses = append(slices.Clip(spec.Addresses), p.AllowedIPs...)
		if config.Expires != nil {
			spec.Expires = *config.Expires
		}
		onDevice[config.Name] = spec
	}
	for _, p := range l.Config.Peers {
		spec, there := onDevice[p.Name]
		if !there && ended(p.Expires) {
			// The edge drops a peer at its time; the config still names it.
			spec, there = NewPeerSpec(p), true
		}
		if there {
			out = append(out, plan.Object{Ref: plan.Ref{Kind: plan.Peer, Scope: edge, Name: p.Name}, Spec: spec, Ended: ended(p.Expires)})
		}
	}
	for _, s := range l.Config.Agents {
		spec := OpenAgent(s, signing)
		out = append(out, plan.Object{Ref: plan.Ref{Kind: plan.Agent, Scope: edge, Name: s.Agent}, Spec: spec, Ended: ended(spec.Config.Expires)})
	}
	for _, r := range l.Config.Routes {
		out = append(out, plan.Object{Ref: plan.Ref{Kind: plan.Route, Scope: edge, Name: r.Name}, Spec: RouteSpec{r}, Ended: ended(r.Expires)})
	}
	for _, c := range l.State.Certificates {
		out = append(out, plan.Object{
			Ref:   plan.Ref{Kind: plan.Delivery, Scope: edge, Name: c.Name},
			Spec:  DeliverySpec{Hosts: c.Hosts, Fingerprint: c.Fingerprint, NotAfter: c.NotAfter},
			Ended: !c.NotAfter.After(now),
		})
	}
	return out
}

// NewPeerSpec is a config's peer as a spec.
func NewPeerSpec(p api.Peer) PeerSpec {
	s := PeerSpec{PublicKey: p.PublicKey, NextKey: p.NextKey, Addresses: []netip.Prefix{netip.PrefixFrom(p.Address, p.Address.BitLen())}}
	if p.Expires != nil {
		s.Expires = *p.Expires
	}
	return s
}

// ErrSilent is in Live.Err when nothing came back through the tunnel.
var ErrSilent = errors.New("no answer through the tunnel")

// Kinds are the plan kinds whose scope is an edge.
var Kinds = []plan.Kind{plan.Peer, plan.Agent, plan.Route, plan.Delivery}

// ErrHeldBack is in the error of changes that were not tried, because the edge
// that got them first did not take them well.
var ErrHeldBack = errors.New("held back")

// Apply implements plan.Applier for Peer, Agent, Route and Delivery, on what the
// last Observe saw. All changes of one edge's config are one swap. One edge goes
// first; the others follow, at once, when it is as ready as before.
func (d *Driver) Apply(ctx context.Context, revision string, changes []plan.Change) []error {
	d.mu.Lock()
	clients, live := maps.Clone(d.edges), maps.Clone(d.live)
	d.mu.Unlock()

	errs := make([]error, len(changes))
	byEdge := map[string][]int{}
	for i, c := range changes {
		byEdge[c.Ref.Scope] = append(byEdge[c.Ref.Scope], i)
	}
	apply := func(edge string) error {
		var mine []plan.Change
		for _, i := range byEdge[edge] {
			mine = append(mine, changes[i])
		}
		seen, ok := live[edge]
		if !ok || seen.Err != nil {
			return fmt.Errorf("edge %s: was not seen in this turn", edge)
		}
		results, err := d.applyTo(ctx, clients[edge].client, &seen, revision, mine)
		d.mu.Lock()
		d.live[edge] = seen
		d.mu.Unlock()
		for n, i := range byEdge[edge] {
			errs[i] = results[n]
		}
		return err
	}
	fill := func(edge string, err error) {
		for _, i := range byEdge[edge] {
			if errs[i] == nil {
				errs[i] = err
			}
		}
	}
	names := slices.Sorted(maps.Keys(byEdge))
	for len(names) > 0 {
		first := names[0]
		names = names[1:]
		err := apply(first)
		if err == nil {
			break
		}
		fill(first, err)
		if errors.Is(err, errUnwell) || errors.Is(err, api.ErrRejected) {
			for _, rest := range names {
				fill(rest, fmt.Errorf("edge %s: %w: edge %s went first and did not take it", rest, ErrHeldBack, first))
			}
			return errs
		}
	}
	var wg sync.WaitGroup
	for _, edge := range names {
		wg.Go(func() {
			if err := apply(edge); err != nil {
				d.mu.Lock()
				fill(edge, err)
				d.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errs
}

// errUnwell marks an edge that took a config and was less ready for it: the next
// edge would fare no better.
var errUnwell = errors.New("took the config ill")

// applyTo makes one edge's changes. The results are one error or nil for each; the
// error is set when the edge itself is the trouble.
func (d *Driver) applyTo(ctx context.Context, client Edge, seen *Live, revision string, changes []plan.Change) ([]error, error) {
	results := make([]error, len(changes))
	var inConfig []plan.Change
	for i, c := range changes {
		if c.Ref.Kind != plan.Delivery {
			inConfig = append(inConfig, c)
			continue
		}
		results[i] = d.deliver(ctx, client, c)
	}
	if len(inConfig) == 0 {
		return results, nil
	}
	next := Next(seen.Config, inConfig)
	next.Fleet, next.Edge, next.Revision = seen.State.Fleet, seen.State.Edge, revision
	err := d.swap(ctx, client, seen, next)
	for i, c := range changes {
		if c.Ref.Kind != plan.Delivery {
			results[i] = err
		}
	}
	return results, err
}

func (d *Driver) deliver(ctx context.Context, client Edge, c plan.Change) error {
	if c.Action == plan.Delete {
		return client.DeleteCertificate(ctx, c.Ref.Name)
	}
	chain, key, err := d.Certificate(ctx, c.Ref.Name)
	if err != nil {
		return fmt.Errorf("deliver certificate %s: %w", c.Ref.Name, err)
	}
	return client.PutCertificate(ctx, api.Certificate{Name: c.Ref.Name, Chain: chain, Key: key})
}

// swap puts next, watches the edge, and puts the old config back when the edge is
// less ready for the new one.
func (d *Driver) swap(ctx context.Context, client Edge, seen *Live, next api.Config) error {
	old, oldDigest, wasReady := seen.Config, seen.Digest, seen.State.Ready
	if err := client.PutConfig(ctx, oldDigest, next); err != nil {
		return err
	}
	seen.Config, seen.Digest = next, next.Digest()
	state, err := client.State(ctx)
	if err != nil {
		return fmt.Errorf("watch after the config was put: %w", err)
	}
	seen.State = state
	if state.Ready || !wasReady {
		return nil
	}
	reason := strings.Join(state.NotReady, "; ")
	if err := client.PutConfig(ctx, seen.Digest, old); err != nil {
		return fmt.Errorf("edge %s: %w: not ready with it (%s), and the old config could not be put back: %w", seen.Edge.Name, errUnwell, reason, err)
	}
	seen.Config, seen.Digest = old, oldDigest
	return fmt.Errorf("edge %s: %w: not ready with it (%s); the old config is back", seen.Edge.Name, errUnwell, reason)
}

// Next is a config with changes made to it. A peer that only the device had, or
// lost, leaves the config as it is: putting it makes the device follow.
func Next(c api.Config, changes []plan.Change) api.Config {
	peers, routes, agents := map[string]api.Peer{}, map[string]api.Route{}, map[string]api.Signed{}
	for _, p := range c.Peers {
		peers[p.Name] = p
	}
	for _, r := range c.Routes {
		routes[r.Name] = r
	}
	for _, a := range c.Agents {
		agents[a.Agent] = a
	}
	for _, ch := range changes {
		name := ch.Ref.Name
		if ch.Action == plan.Delete {
			switch ch.Ref.Kind {
			case plan.Peer:
				delete(peers, name)
			case plan.Route:
				delete(routes, name)
			case plan.Agent:
				delete(agents, name)
			}
			continue
		}
		switch spec := ch.After.(type) {
		case PeerSpec:
			p := api.Peer{Name: name, PublicKey: spec.PublicKey, NextKey: spec.NextKey, Address: spec.Addresses[0].Addr()}
			if !spec.Expires.IsZero() {
				p.Expires = &spec.Expires
			}
			peers[name] = p
		case RouteSpec:
			spec.From = ch.From
			routes[name] = spec.Route
		case AgentSpec:
			agents[name] = spec.Signed
		}
	}
	giveWay(peers, routes, agents, changes)
	next := api.Config{
		Peers:  slices.Collect(maps.Values(peers)),
		Routes: slices.Collect(maps.Values(routes)),
		Agents: slices.Collect(maps.Values(agents)),
	}
	next.Normalize()
	return next
}

// giveWay drops the peers whose address or a key of which a changed peer now has, with
// what hangs on them. Deletes come last in a turn, but two peers cannot share an
// address until then: the one that Git no longer wants loses it first.
func giveWay(peers map[string]api.Peer, routes map[string]api.Route, agents map[string]api.Signed, changes []plan.Change) {
	changed := map[string]bool{}
	for _, c := range changes {
		if c.Ref.Kind == plan.Peer && c.Action != plan.Delete {
			changed[c.Ref.Name] = true
		}
	}
	for winner := range changed {
		for name, p := range peers {
			w := peers[winner]
			same := p.Address == w.Address && p.PublicKey == w.PublicKey && p.NextKey == w.NextKey
			if changed[name] || same || p.Address != w.Address && !shareKey(p, w) {
				continue
			}
			delete(peers, name)
			delete(agents, name)
			maps.DeleteFunc(routes, func(_ string, r api.Route) bool {
				return slices.ContainsFunc(r.Upstreams, func(u api.Upstream) bool { return u.Agent == name })
			})
		}
	}
}

func shareKey(a, b api.Peer) bool {
	has := func(p api.Peer, k keys.Public) bool { return !k.IsZero() && (p.PublicKey == k || p.NextKey == k) }
	return has(a, b.PublicKey) || has(a, b.NextKey)
}

// Challenges answers ACME HTTP-01 challenges (RFC 8555 section 8.3) on every edge in
// sight: the issuer asks whichever one DNS gives it. It may be used while the
// driver applies.
type Challenges struct{ *Driver }

// Put returns once every edge answers.
func (c Challenges) Put(ctx context.Context, token, keyAuthorization string) error {
	return c.everywhere(func(e Edge) error { return e.PutChallenge(ctx, token, keyAuthorization) })
}

// Delete ends the answer; one that is not there is no error.
func (c Challenges) Delete(ctx context.Context, token string) error {
	return c.everywhere(func(e Edge) error { return e.DeleteChallenge(ctx, token) })
}

func (d *Driver) everywhere(do func(Edge) error) error {
	d.mu.Lock()
	clients, live := maps.Clone(d.edges), maps.Clone(d.live)
	d.mu.Unlock()
	errs := make(chan error, len(clients))
	for name, c := range clients {
		if live[name].Err != nil {
			errs <- nil
			continue
		}
		go func() { errs <- do(c.client) }()
	}
	var all error
	for range clients {
		all = errors.Join(all, <-errs)
	}
	return all
}

package reconciler

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
)

// Phase is where the fleet stands in one word.
type Phase string

// The phases.
const (
	// Settled: the world is as Git wants it.
	Settled Phase = "settled"
	// Converging: changes are being made, or waited for.
	Converging Phase = "converging"
	// Blocked: a plan deletes more than its guards allow, and asks.
	Blocked Phase = "blocked"
	// Invalid: the head of the repo does not load; the last good revision is live.
	Invalid Phase = "invalid"
	// Stalled: something else is wrong that time or a person must mend.
	Stalled Phase = "stalled"
)

// Status is everything that can be said of the fleet after a turn, as plain values
// for JSON. It holds no secret.
type Status struct {
	Phase Phase  `json:"phase"`
	Fleet string `json:"fleet"`
	// Head is the newest revision of the repo, Applied the one that is live.
	Head    RevisionStatus `json:"head"`
	Applied RevisionStatus `json:"applied"`
	// Error says what is wrong and what to do; empty when nothing is.
	Error       string             `json:"error,omitempty"`
	Diagnostics schema.Diagnostics `json:"diagnostics"`
	Warnings    schema.Diagnostics `json:"warnings"`
	// Plan is what was changed in the last turn, or would be once it is approved.
	Plan plan.Document `json:"plan"`
	// Failed says which changes could not be made.
	Failed  []FailedChange      `json:"failed"`
	Pending []string            `json:"pending"`
	Routes  []RouteStatus       `json:"routes"`
	Edges   []EdgeStatus        `json:"edges"`
	Origins []OriginStatus      `json:"origins"`
	Certs   []CertificateStatus `json:"certificates"`
	Records []RecordStatus      `json:"records"`
	Turn    time.Time           `json:"turn"`
	// TookMS is how long the turn's plan took, in milliseconds.
	TookMS int64 `json:"took_ms"`
}

// RevisionStatus is a commit.
type RevisionStatus struct {
	Commit  string    `json:"commit"`
	Subject string    `json:"subject"`
	Author  string    `json:"author,omitempty"`
	When    time.Time `json:"when,omitzero"`
}

// FailedChange is a change that was not made, and why.
type FailedChange struct {
	Address string `json:"address"`
	Error   string `json:"error"`
}

// RouteStatus is a route and how it stands on each edge.
type RouteStatus struct {
	Name string `json:"name"`
	Host string `json:"host"`
	Path string `json:"path"`
	URL  string `json:"url"`
	// State is "active", "inactive" or "ended" as Git says, or "error" when no
	// edge reaches a service of it.
	State string `json:"state"`
	// Edges that carry it, Up those from which a probe through the tunnel
	// reached a service.
	Edges     []string   `json:"edges"`
	Up        []string   `json:"up"`
	Upstreams []string   `json:"upstreams"`
	Expires   *time.Time `json:"expires,omitempty"`
	From      string     `json:"from"`
}

// EdgeStatus is an edge as the control plane sees it.
type EdgeStatus struct {
	Name      string    `json:"name"`
	Addresses []string  `json:"addresses"`
	Reachable bool      `json:"reachable"`
	Down      bool      `json:"down"`
	Error     string    `json:"error,omitempty"`
	Since     time.Time `json:"unreachable_since,omitzero"`
	Ready     bool      `json:"ready"`
	NotReady  []string  `json:"not_ready,omitempty"`
	Version   string    `json:"version,omitempty"`
	Digest    string    `json:"digest,omitempty"`
	Revision  string    `json:"revision,omitempty"`
	// ClockSkewMS is the edge's clock minus this one's, in milliseconds.
	ClockSkewMS int64      `json:"clock_skew_ms"`
	Tunnel      api.Tunnel `json:"tunnel"`
	// State is what the edge says of itself.
	Peers    []api.PeerState    `json:"peers"`
	Services []api.ServiceState `json:"services"`
}

// OriginStatus is an origin's agent.
type OriginStatus struct {
	Name      string      `json:"name"`
	Address   string      `json:"address"`
	PublicKey keys.Public `json:"public_key"`
	// NextKey is to replace PublicKey, and Rotation says how far that has come;
	// both are unset when no replacement is under way.
	NextKey  keys.Public `json:"next_key,omitzero"`
	Rotation *Rotation   `json:"rotation,omitempty"`
	// RotateBefore is what its agent is asked for; see api.AgentConfig.
	RotateBefore *time.Time `json:"rotate_before,omitempty"`
	// Edges with a live tunnel to it.
	Edges     []string       `json:"edges"`
	Heartbeat *api.Heartbeat `json:"heartbeat,omitempty"`
	Seen      time.Time      `json:"seen,omitzero"`
	Expires   *time.Time     `json:"expires,omitempty"`
	From      string         `json:"from"`
}

// CertificateStatus is a certificate in the store.
type CertificateStatus struct {
	Name     string    `json:"name"`
	Hosts    []string  `json:"hosts"`
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
}

// RecordStatus is a DNS record set of ours, as observed.
type RecordStatus struct {
	Zone  string `json:"zone"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

func newStatus(t Turn, head *repo.Revision, trouble error, blocked plan.Plan) *Status {
	s := &Status{
		Phase:       Settled,
		Head:        revisionStatus(head),
		Applied:     revisionStatus(t.Revision),
		Diagnostics: schema.Diagnostics{},
		Warnings:    append(schema.Diagnostics{}, t.Warnings...),
		Plan:        t.Plan.Document(),
		Failed:      []FailedChange{},
		Pending:     append([]string{}, t.Pending...),
		Routes:      []RouteStatus{},
		Edges:       []EdgeStatus{},
		Origins:     []OriginStatus{},
		Certs:       []CertificateStatus{},
		Records:     []RecordStatus{},
		Turn:        t.Began,
		TookMS:      t.Took.Milliseconds(),
	}
	if !t.Settled() {
		s.Phase = Converging
	}
	for _, f := range t.Failed() {
		s.Failed = append(s.Failed, FailedChange{f.Change.Ref.String(), f.Err.Error()})
		s.Phase = Stalled
	}
	if trouble != nil {
		s.Error = trouble.Error()
		s.Phase = Stalled
		var diagnostics schema.Diagnostics
		switch {
		case errors.As(trouble, &diagnostics):
			s.Phase, s.Diagnostics = Invalid, diagnostics
		case errors.Is(trouble, plan.ErrTooManyDeletes):
			s.Phase, s.Plan = Blocked, blocked.Document()
		}
	}
	if t.Fleet != nil {
		s.Fleet = t.Fleet.Name
		s.describe(t)
	}
	return s
}

func revisionStatus(r *repo.Revision) RevisionStatus {
	if r == nil {
		return RevisionStatus{}
	}
	return RevisionStatus{Commit: r.Commit, Subject: r.Subject, Author: r.Author, When: r.When}
}

func (s *Status) describe(t Turn) {
	up := map[[2]string][]string{} // agent and service: edges it is up from
	tunnels := map[string][]string{}
	beats := map[string]api.AgentState{}
	for _, name := range slices.Sorted(maps.Keys(t.World.Edges)) {
		l := t.World.Edges[name]
		e := EdgeStatus{
			Name: name, Reachable: l.Err == nil, Down: t.World.Down[name], Since: l.UnreachableSince,
			Ready: l.State.Ready, NotReady: l.State.NotReady, Version: l.State.Version, Digest: l.Digest, Revision: l.Config.Revision,
			Tunnel: l.State.Tunnel, Peers: append([]api.PeerState{}, l.State.Peers...), Services: append([]api.ServiceState{}, l.State.Services...),
		}
		for _, a := range l.Edge.Addresses {
			e.Addresses = append(e.Addresses, a.String())
		}
		if l.Err != nil {
			e.Error = l.Err.Error()
		} else {
			e.ClockSkewMS = l.State.Now.Sub(t.World.Now).Milliseconds()
		}
		s.Edges = append(s.Edges, e)
		for _, v := range l.State.Services {
			if v.Up != nil && *v.Up {
				key := [2]string{v.Agent, v.Service}
				up[key] = append(up[key], name)
			}
		}
		for _, p := range l.State.Peers {
			if p.Name != "" && t.World.Now.Sub(p.Handshake) < freshHandshake {
				tunnels[p.Name] = append(tunnels[p.Name], name)
			}
		}
		for _, a := range l.State.Agents {
			if a.At.After(beats[a.Name].At) {
				beats[a.Name] = a
			}
		}
	}
	current := Current(t.Fleet, t.World.Now)
	for _, name := range t.Fleet.RouteNames() {
		r := t.Fleet.Routes[name]
		out := RouteStatus{Name: name, Host: r.Host, Path: r.Path, URL: routeURL(r), State: "active", Edges: r.Edges, Up: []string{}, Expires: r.Expires, From: r.Position.String()}
		for _, u := range r.Upstreams {
			out.Upstreams = append(out.Upstreams, u.Origin+" "+u.Service)
			out.Up = append(out.Up, up[[2]string{u.Origin, u.ServiceID()}]...)
		}
		slices.Sort(out.Up)
		out.Up = slices.Compact(out.Up)
		out.Up = slices.DeleteFunc(out.Up, func(e string) bool { return !slices.Contains(r.Edges, e) })
		if _, live := current.Routes[name]; !r.Active {
			out.State = "inactive"
		} else if !live {
			out.State = "ended"
		} else if len(out.Up) == 0 {
			out.State = "error"
		}
		s.Routes = append(s.Routes, out)
	}
	rotations := Rotations(t.Fleet, t.World)
	for _, name := range t.Fleet.OriginNames() {
		o := t.Fleet.Origins[name]
		out := OriginStatus{
			Name: name, Address: o.TunnelAddress.String(), PublicKey: o.PublicKey, NextKey: o.NextKey,
			Edges: slices.Compact(append([]string{}, tunnels[name]...)), Expires: o.Expires, From: o.Position.String(),
		}
		if r, ok := rotations[name]; ok {
			out.Rotation = &r
		}
		if before, ok := t.World.Rotate[name]; ok {
			out.RotateBefore = &before
		}
		if a, ok := beats[name]; ok {
			a.Heartbeat.Rotation = nil // sealed, and of no use to people
			out.Heartbeat, out.Seen = &a.Heartbeat, a.At
		}
		s.Origins = append(s.Origins, out)
	}
	for _, name := range slices.Sorted(maps.Keys(t.World.Certificates)) {
		c := t.World.Certificates[name]
		s.Certs = append(s.Certs, CertificateStatus{name, c.Hosts, string(c.Issuer), c.NotAfter})
	}
	for _, o := range t.World.Observed {
		if o.Ref.Kind == plan.Record {
			s.Records = append(s.Records, RecordStatus{o.Ref.Scope, o.Ref.Name, o.Spec.String()})
		}
	}
	slices.SortFunc(s.Records, func(a, b RecordStatus) int { return strings.Compare(a.Zone+a.Name, b.Zone+b.Name) })
}

func routeURL(r fleet.Route) string {
	scheme := "https://"
	if r.TLS == fleet.TLSOff {
		scheme = "http://"
	}
	return scheme + r.Host + r.Path
}

// Package edges is the driver for what lives on edges: peers, what agents obey,
// routes and delivered certificates. It speaks edge/api through the tunnel.
package edges

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// PeerSpec is a plan.Peer: an origin's WireGuard peer on an edge.
type PeerSpec struct {
	PublicKey keys.Public
	// NextKey is valid beside PublicKey; zero for none.
	NextKey keys.Public
	// Addresses the peer may use inside the tunnel, with one key or the other;
	// desired is always one.
	Addresses []netip.Prefix
	// Expires is zero for never.
	Expires time.Time
}

// Equal implements plan.Spec.
func (s PeerSpec) Equal(o plan.Spec) bool {
	other, ok := o.(PeerSpec)
	return ok && s.PublicKey == other.PublicKey && s.NextKey == other.NextKey && slices.Equal(s.Addresses, other.Addresses) && s.Expires.Equal(other.Expires)
}

// String implements plan.Spec.
func (s PeerSpec) String() string {
	if s.NextKey.IsZero() {
		return fmt.Sprintf("%s key %.8s…", joined(s.Addresses), s.PublicKey)
	}
	return fmt.Sprintf("%s key %.8s… next %.8s…", joined(s.Addresses), s.PublicKey, s.NextKey)
}

// Fields implements plan.Spec.
func (s PeerSpec) Fields() []plan.Field {
	return []plan.Field{
		{Name: "address", Value: joined(s.Addresses)},
		{Name: "public_key", Value: keyText(s.PublicKey)},
		{Name: "next_key", Value: keyText(s.NextKey)},
		{Name: "expires", Value: when(s.Expires)},
	}
}

func keyText(k keys.Public) string {
	if k.IsZero() {
		return ""
	}
	return k.String()
}

// RouteSpec is a plan.Route: a route as an edge serves it.
type RouteSpec struct{ api.Route }

// Equal implements plan.Spec. Where the route is written in the repo does not
// matter: a comment above it changes no edge.
func (s RouteSpec) Equal(o plan.Spec) bool {
	other, ok := o.(RouteSpec)
	if !ok {
		return false
	}
	a, b := s.Route, other.Route
	return a.Name == b.Name && a.Host == b.Host && a.Path == b.Path &&
		a.StripPath == b.StripPath && a.PreserveHost == b.PreserveHost && a.WebSocket == b.WebSocket &&
		a.TLS == b.TLS && a.Redirect == b.Redirect && a.Health == b.Health &&
		slices.Equal(a.Upstreams, b.Upstreams) && sameTime(a.Expires, b.Expires)
}

// String implements plan.Spec.
func (s RouteSpec) String() string {
	var to []string
	for _, u := range s.Upstreams {
		to = append(to, u.Agent+" "+u.URL)
	}
	return s.Host + s.Path + " → " + strings.Join(to, ", else ")
}

// Fields implements plan.Spec.
func (s RouteSpec) Fields() []plan.Field {
	f := []plan.Field{{Name: "host", Value: s.Host}, {Name: "path", Value: s.Path}}
	for i, name := range []string{"upstream", "failover"} {
		v := ""
		if i < len(s.Upstreams) {
			v = s.Upstreams[i].Agent + " " + s.Upstreams[i].URL
		}
		f = append(f, plan.Field{Name: name, Value: v})
	}
	expires := ""
	if s.Expires != nil {
		expires = when(*s.Expires)
	}
	return append(f,
		plan.Field{Name: "strip_path", Value: strconv.FormatBool(s.StripPath)},
		plan.Field{Name: "preserve_host", Value: strconv.FormatBool(s.PreserveHost)},
		plan.Field{Name: "websocket", Value: strconv.FormatBool(s.WebSocket)},
		plan.Field{Name: "tls", Value: strconv.FormatBool(s.TLS)},
		plan.Field{Name: "redirect", Value: strconv.FormatBool(s.Redirect)},
		plan.Field{Name: "health", Value: fmt.Sprintf("GET %s every %s, timeout %s, %d failures", orSlash(s.Health.Path), s.Health.Interval, s.Health.Timeout, s.Health.Failures)},
		plan.Field{Name: "expires", Value: expires},
	)
}

// AgentSpec is a plan.Agent: what an edge relays to an agent.
type AgentSpec struct {
	Signed api.Signed
	// Config is what Signed says; zero when it was not signed by the fleet.
	Config api.AgentConfig
}

// OpenAgent reads a relayed config. One that the fleet's key did not sign is an
// AgentSpec that equals no desired one.
func OpenAgent(s api.Signed, key ed25519.PublicKey) AgentSpec {
	config, err := s.Open(key)
	if err != nil {
		return AgentSpec{Signed: s}
	}
	return AgentSpec{Signed: s, Config: config}
}

// Equal implements plan.Spec: every edge relays the very same bytes, since an
// agent refuses two configs of one serial.
func (s AgentSpec) Equal(o plan.Spec) bool {
	other, ok := o.(AgentSpec)
	return ok && s.Signed.Agent == other.Signed.Agent &&
		slices.Equal(s.Signed.Payload, other.Signed.Payload) && slices.Equal(s.Signed.Signature, other.Signed.Signature)
}

// String implements plan.Spec.
func (s AgentSpec) String() string {
	if s.Config.Agent == "" {
		return "not signed by this fleet"
	}
	return fmt.Sprintf("%d services, %d edges", len(s.Config.Services), len(s.Config.Edges))
}

// Fields implements plan.Spec.
func (s AgentSpec) Fields() []plan.Field {
	if s.Config.Agent == "" {
		return []plan.Field{{Name: "signature", Value: "not this fleet's"}}
	}
	var services, edges []string
	for _, v := range s.Config.Services {
		services = append(services, v.URL)
	}
	for _, e := range s.Config.Edges {
		edges = append(edges, e.Name+" "+e.Endpoint)
	}
	rotate := ""
	if s.Config.RotateBefore != nil {
		rotate = when(*s.Config.RotateBefore)
	}
	return []plan.Field{
		{Name: "signature", Value: "good"},
		{Name: "serial", Value: strconv.FormatUint(s.Config.Serial, 10)},
		{Name: "public_key", Value: keyText(s.Config.PublicKey)},
		{Name: "next_key", Value: keyText(s.Config.NextKey)},
		{Name: "rotate_before", Value: rotate},
		{Name: "services", Value: summary(services)},
		{Name: "edges", Value: summary(edges)},
	}
}

// DeliverySpec is a plan.Delivery: a certificate on an edge.
type DeliverySpec struct {
	Hosts       []string
	Fingerprint string
	NotAfter    time.Time
}

// Equal implements plan.Spec.
func (s DeliverySpec) Equal(o plan.Spec) bool {
	other, ok := o.(DeliverySpec)
	return ok && s.Fingerprint == other.Fingerprint
}

// String implements plan.Spec.
func (s DeliverySpec) String() string {
	return fmt.Sprintf("%s until %s (%.12s)", strings.Join(s.Hosts, " "), s.NotAfter.UTC().Format(time.DateOnly), s.Fingerprint)
}

// Fields implements plan.Spec.
func (s DeliverySpec) Fields() []plan.Field {
	return []plan.Field{{Name: "fingerprint", Value: fmt.Sprintf("%.12s", s.Fingerprint)}, {Name: "hosts", Value: strings.Join(s.Hosts, " ")}, {Name: "not_after", Value: when(s.NotAfter)}}
}

// summary keeps a plan's line short however many things it lists.
func summary(list []string) string {
	if len(list) > 8 {
		return fmt.Sprintf("%s … %d in all", strings.Join(list[:8], ", "), len(list))
	}
	return strings.Join(list, ", ")
}

func joined(prefixes []netip.Prefix) string {
	var out []string
	for _, p := range prefixes {
		if p.IsSingleIP() {
			out = append(out, p.Addr().String())
		} else {
			out = append(out, p.String())
		}
	}
	return strings.Join(out, ", ")
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func sameTime(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}

func orSlash(path string) string {
	if path == "" {
		return "/"
	}
	return path
}

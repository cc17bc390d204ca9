// Package fleet has the nouns: a fleet, its edges, origins and routes, as plain
// values. It knows nobody: only the standard library and package keys, which does
// the same.
package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Position is a place in a file of the fleet repo. Line and Column count from 1;
// the zero Position means "nowhere in the repo" (a default).
type Position struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
}

// String is "file:line:column", or "" for the zero Position.
func (p Position) String() string {
	if p.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Fleet is everything desired, checked: every reference resolves, every default
// is filled in. It is read-only once loaded and safe for concurrent use.
type Fleet struct {
	// Name is a DNS label; it marks what this fleet owns.
	Name string `json:"name"`
	// Domains are the zones whose names this fleet may serve, longest first.
	// Lower case, no trailing dot.
	Domains []string `json:"domains"`
	// Network is the fleet's tunnel network. Its first addresses after the
	// network's own are the control plane's (ControlAddress).
	Network netip.Prefix `json:"network"`
	DNS     DNS          `json:"dns"`
	ACME    ACME         `json:"acme"`
	Guards  Guards       `json:"guards"`
	// Registration says how hosts become origins by themselves.
	Registration Registration `json:"registration"`

	Edges   map[string]Edge   `json:"edges"`
	Origins map[string]Origin `json:"origins"`
	Routes  map[string]Route  `json:"routes"`

	Position Position `json:"-"`
}

// ControlAddress is the tunnel address of the control plane's peer in a slot
// (see keys.Slots): the network's address plus 1 plus slot.
func (f *Fleet) ControlAddress(slot int) netip.Addr {
	return ControlAddress(f.Network, slot)
}

// ControlAddress is the tunnel address of the control plane's peer in a slot.
func ControlAddress(network netip.Prefix, slot int) netip.Addr {
	a := network.Masked().Addr()
	for range slot + 1 {
		a = a.Next()
	}
	return a
}

// Zone is the longest of the fleet's domains that host is in; ok is false when
// none is. A wildcard host ("*.app.example.com") is in the zone of its suffix.
func (f *Fleet) Zone(host string) (zone string, ok bool) {
	host = strings.TrimPrefix(host, "*.")
	for _, d := range f.Domains {
		if host == d || strings.HasSuffix(host, "."+d) {
			return d, true
		}
	}
	return "", false
}

// RouteNames is the names of all routes, sorted.
func (f *Fleet) RouteNames() []string { return slices.Sorted(maps.Keys(f.Routes)) }

// EdgeNames is the names of all edges, sorted.
func (f *Fleet) EdgeNames() []string { return slices.Sorted(maps.Keys(f.Edges)) }

// OriginNames is the names of all origins, sorted.
func (f *Fleet) OriginNames() []string { return slices.Sorted(maps.Keys(f.Origins)) }

// DNSProvider names who hosts the fleet's zones.
type DNSProvider string

// The providers of DNS.
const (
	// DNSNone: Kokoa leaves DNS alone; names are pointed at edges by hand.
	DNSNone DNSProvider = "none"
	// DNSBuiltin: `kokoa serve` answers for the zones itself.
	DNSBuiltin DNSProvider = "builtin"
	// DNSRFC2136: a server that takes dynamic updates (RFC 2136) and zone
	// transfers signed with TSIG (RFC 8945): BIND, Knot, PowerDNS …
	DNSRFC2136 DNSProvider = "rfc2136"
)

// DNS says where the fleet's names live.
type DNS struct {
	Provider DNSProvider `json:"provider"`
	// TTL of address records. Whole seconds.
	TTL time.Duration `json:"ttl"`
	// Server is the host:port of the RFC 2136 primary.
	Server string `json:"server,omitempty"`
	// TSIG signs transfers and updates for RFC 2136.
	TSIG TSIG `json:"tsig,omitzero"`
	// Listen is the UDP and TCP address of the built-in server.
	Listen string `json:"listen,omitempty"`
	// Nameservers are the names in the built-in server's NS records.
	Nameservers []string `json:"nameservers,omitempty"`

	Position Position `json:"-"`
}

// TSIG is a transaction signature key (RFC 8945).
type TSIG struct {
	// Name of the key, as the server knows it.
	Name string `json:"name"`
	// Algorithm is "hmac-sha256" or "hmac-sha512".
	Algorithm string `json:"algorithm"`
	// Key is the shared secret in base64.
	Key SecretRef `json:"key"`
}

// SecretRef says where a secret is; the secret itself is never in the repo.
// Exactly one field is set.
type SecretRef struct {
	// Env is the name of an environment variable of the control plane.
	Env string `json:"env,omitempty"`
	// File is a path on the control plane's host.
	File string `json:"file,omitempty"`
}

// IsZero reports whether nothing is referred to.
func (s SecretRef) IsZero() bool { return s == SecretRef{} }

// String names the place, not the secret.
func (s SecretRef) String() string {
	if s.Env != "" {
		return "env " + s.Env
	}
	return "file " + s.File
}

// Challenge is how ACME checks that a name is ours (RFC 8555 section 8).
type Challenge string

// The challenges.
const (
	ChallengeDNS01  Challenge = "dns-01"
	ChallengeHTTP01 Challenge = "http-01"
)

// ACME says who issues certificates for routes with tls "auto".
type ACME struct {
	// Directory is the URL of the issuer's directory (RFC 8555 section 7.1.1).
	Directory string `json:"directory"`
	// Email is told to the issuer; may be empty.
	Email string `json:"email,omitempty"`
	// Challenge used; wildcards need DNS-01.
	Challenge Challenge `json:"challenge"`
	// CA is a file of PEM certificates that the directory's own TLS is checked
	// against, for a private issuer; empty means the system's roots.
	CA string `json:"ca,omitempty"`

	Position Position `json:"-"`
}

// Guards bound what a turn may delete without being asked. See plan.Limits.
type Guards struct {
	// MaxDeletePercent of the routes (or peers, or records) that exist, where
	// at least ten do.
	MaxDeletePercent int `json:"max_delete_percent"`
	// MaxDeletes of one kind, whatever the share.
	MaxDeletes int `json:"max_deletes"`
}

// Registration says how hosts become origins by themselves.
type Registration struct {
	// Folder of the repo for the files of new origins, like "origins".
	Folder string `json:"folder"`
	// Automatic says which registrations are merged without a person; nil none.
	Automatic *Automatic `json:"automatic,omitempty"`
	// Refuse are patterns of names that no host may take.
	Refuse []string `json:"refuse,omitempty"`
	// RotateEvery is the age at which agents get new keys; 0 means never.
	RotateEvery time.Duration `json:"rotate_every,omitempty"`
}

// Automatic is which registrations are merged without a person, when their token
// allows it as well. All of its limits hold at once.
type Automatic struct {
	// Names are patterns of the origin's name; empty means any.
	Names []string `json:"names,omitempty"`
	// Hosts the origin may ask for, as in Origin.Hosts; empty means any.
	Hosts []string `json:"hosts,omitempty"`
	// TemporaryOnly leaves out origins that never expire.
	TemporaryOnly bool `json:"temporary_only,omitempty"`
}

// MatchName reports whether any of the patterns matches a name. In a pattern "*"
// stands for any number of characters, and every other character for itself.
func MatchName(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// CoversHost reports whether any of the patterns, in the form of Origin.Hosts,
// covers a host, which may be a wildcard itself.
func CoversHost(patterns []string, host string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		suffix, wild := strings.CutPrefix(p, "*")
		return p == host || wild && strings.HasSuffix(host, suffix)
	})
}

// Edge is a public host that ends TLS and carries requests into the tunnels.
type Edge struct {
	Name string `json:"name"`
	// Addresses are its public addresses: what DNS answers for its routes.
	Addresses []netip.Addr `json:"addresses"`
	// Endpoint is the host:port where its WireGuard listens, for agents and the
	// control plane. The host may be a name.
	Endpoint string `json:"endpoint"`
	// TunnelAddress is its address in the fleet's network.
	TunnelAddress netip.Addr `json:"tunnel_address"`
	// Generation of its key: raising it replaces the key. From 1.
	Generation int `json:"generation"`

	Position Position `json:"-"`
}

// Origin is a host that runs an agent and the services behind it.
type Origin struct {
	Name string `json:"name"`
	// PublicKey of its WireGuard; the private half never leaves the host.
	PublicKey keys.Public `json:"public_key"`
	// NextKey is the key that replaces PublicKey; while it is set both are valid.
	// Zero means that no replacement is under way.
	NextKey keys.Public `json:"next_key,omitzero"`
	// TunnelAddress is its address in the fleet's network.
	TunnelAddress netip.Addr `json:"tunnel_address"`
	// Hosts it may serve: exact names or "*.suffix", which here covers every
	// depth. Empty means any host of the fleet's domains.
	Hosts []string `json:"hosts,omitempty"`
	// Expires ends the origin and its tunnels; nil means never.
	Expires *time.Time `json:"expires,omitempty"`

	Position Position `json:"-"`
}

// MayServe reports whether the origin may serve a route's host.
func (o Origin) MayServe(host string) bool {
	return len(o.Hosts) == 0 || CoversHost(o.Hosts, host)
}

// TLS is where a route's certificate comes from.
type TLS string

// The values of Route.TLS.
const (
	// TLSAuto: from the fleet's ACME issuer.
	TLSAuto TLS = "auto"
	// TLSInternal: from the fleet's own CA, for private hosts and tests.
	TLSInternal TLS = "internal"
	// TLSManual: given by Route.Certificate.
	TLSManual TLS = "manual"
	// TLSCloudflare: a Cloudflare origin certificate, given by Route.Certificate.
	TLSCloudflare TLS = "cloudflare"
	// TLSOff: plain HTTP on port 80 only.
	TLSOff TLS = "off"
)

// Route makes a service public under a host and path.
type Route struct {
	Name string `json:"name"`
	// Host is a lower-case name without trailing dot, "*.suffix" for every name
	// below suffix one label deep, or "*" for whatever no other route names.
	Host string `json:"host"`
	// Path prefix on segment borders; begins with "/".
	Path string `json:"path"`
	// Upstreams, first choice first: the origin and service, then failover.
	Upstreams []Upstream `json:"upstreams"`
	// StripPath removes Path from the request's path before it is forwarded.
	StripPath bool `json:"strip_path,omitempty"`
	// PreserveHost forwards the visitor's Host header; otherwise the service
	// URL's host is sent.
	PreserveHost bool `json:"preserve_host,omitempty"`
	// WebSocket lets connections be upgraded to WebSocket.
	WebSocket bool `json:"websocket,omitempty"`
	TLS       TLS  `json:"tls"`
	// Certificate for TLSManual and TLSCloudflare.
	Certificate ManualCertificate `json:"certificate,omitzero"`
	// Redirect answers plain HTTP with a redirect to HTTPS; else it is served.
	Redirect bool   `json:"redirect,omitempty"`
	Health   Health `json:"health"`
	// Edges that carry the route, sorted; all of the fleet's when the user
	// named none.
	Edges []string `json:"edges"`
	// Expires ends the route, at the edges and in DNS; nil means never.
	Expires *time.Time `json:"expires,omitempty"`
	// Active is false for a route that is kept in Git and not served.
	Active bool `json:"active"`

	Position Position `json:"-"`
}

// Upstream is one place that serves a route.
type Upstream struct {
	Origin string `json:"origin"`
	// Service is the URL the agent dials: "http://host:port" or "https://…",
	// no path.
	Service string `json:"service"`
}

// ServiceID names an upstream's service in the tunnel: 16 hexadecimal digits,
// the same for every route that names the same service of the same origin.
func (u Upstream) ServiceID() string {
	sum := sha256.Sum256([]byte(u.Origin + "\n" + u.Service))
	return hex.EncodeToString(sum[:8])
}

// ManualCertificate is a certificate that the user supplies.
type ManualCertificate struct {
	// Chain is a file of PEM certificates, leaf first, on the control plane's
	// host, or an environment variable with its text.
	Chain SecretRef `json:"chain"`
	// Key is the PEM private key.
	Key SecretRef `json:"key"`
}

// Health is the active check of a route's services, made by every edge through
// the tunnel.
type Health struct {
	// Path asked for with GET; "" means any answer at "/" counts as up.
	Path string `json:"path,omitempty"`
	// Interval between checks.
	Interval time.Duration `json:"interval"`
	// Timeout of one check.
	Timeout time.Duration `json:"timeout"`
	// Failures in a row that make a service down.
	Failures int `json:"failures"`
}

// Compare orders routes by name; for slices.SortFunc.
func Compare(a, b Route) int { return cmp.Compare(a.Name, b.Name) }

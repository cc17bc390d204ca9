package certs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// Issuer is who makes a certificate.
type Issuer string

// The issuers.
const (
	// ACME is the fleet's ACME issuer (RFC 8555).
	ACME Issuer = "acme"
	// Internal is the fleet's own CA.
	Internal Issuer = "internal"
	// Manual is the user, through a route's certificate references.
	Manual Issuer = "manual"
	// Cloudflare is Cloudflare's origin CA, through the same references.
	Cloudflare Issuer = "cloudflare"
)

// Want is a certificate that the fleet needs.
type Want struct {
	// Name is stable and fit to be a file name: "acme-_.example.com".
	Name string
	// Hosts it must cover, sorted; at most one wildcard and its parent.
	Hosts  []string
	Issuer Issuer
	// Authority is the ACME directory's URL, or where the user keeps a manual
	// certificate. Empty for Internal.
	Authority string
	// Manual says where a Manual or Cloudflare certificate is.
	Manual fleet.ManualCertificate
	// Route is the only route of a Manual or Cloudflare certificate.
	Route string
	// From is where the first route stands that needs the certificate.
	From fleet.Position

	fleet *fleet.Fleet
}

// Wants groups the hosts of f's active routes into certificates, sorted by name,
// and asks for no name that no route needs:
//
//   - tls auto with DNS-01, and tls internal: one certificate for the names one
//     label below a parent, as a wildcard, with the zone's own name when a route
//     has it ("*.example.com" and "example.com"), so that a new route needs no
//     new certificate and its name is not told to the public logs;
//   - tls auto with HTTP-01: one certificate for each host;
//   - tls manual and cloudflare: one certificate for each route.
//
// The host "*" and tls off need none. A route past its time is the caller's to
// leave out.
func Wants(f *fleet.Fleet) []Want {
	wants := map[string]*Want{}
	for _, routeName := range f.RouteNames() {
		r := f.Routes[routeName]
		host, name, ok := place(f, r)
		if !ok || !r.Active {
			continue
		}
		w := wants[name]
		if w == nil {
			w = &Want{Name: name, Issuer: issuerOf(r.TLS), From: r.Position, fleet: f}
			switch w.Issuer {
			case ACME:
				w.Authority = f.ACME.Directory
			case Manual, Cloudflare:
				w.Authority = r.Certificate.Chain.String() + ", " + r.Certificate.Key.String()
				w.Manual, w.Route = r.Certificate, r.Name
			}
			wants[name] = w
		}
		if !slices.Contains(w.Hosts, host) {
			w.Hosts = append(w.Hosts, host)
			slices.Sort(w.Hosts)
		}
	}
	out := make([]Want, 0, len(wants))
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		out = append(out, *wants[name])
	}
	return out
}

// NameFor is the name of the Want that covers a route of f; ok is false when the
// route needs no certificate. It costs the same however many routes there are.
func NameFor(f *fleet.Fleet, r fleet.Route) (name string, ok bool) {
	_, name, ok = place(f, r)
	return name, ok
}

// Covers reports whether the certificate is the one for r's host.
func (w Want) Covers(r fleet.Route) bool {
	_, name, ok := place(w.fleet, r)
	return ok && name == w.Name
}

// Spec is what the certificate is to be like: desired, it is never due.
func (w Want) Spec() plan.Spec {
	return Spec{Hosts: w.Hosts, Issuer: w.Issuer, Authority: w.Authority, want: w}
}

// place is the name that r adds to a certificate, and that certificate's name.
func place(f *fleet.Fleet, r fleet.Route) (host, name string, ok bool) {
	if r.Host == "*" || r.TLS == fleet.TLSOff || r.Host == "" {
		return "", "", false
	}
	issuer := issuerOf(r.TLS)
	switch {
	case issuer == Manual || issuer == Cloudflare:
		return r.Host, fileName(issuer, r.Name), true
	case issuer == ACME && f.ACME.Challenge == fleet.ChallengeHTTP01:
		return r.Host, fileName(issuer, r.Host), true
	}
	if zone, in := f.Zone(r.Host); in && zone == r.Host {
		return r.Host, fileName(issuer, "*."+r.Host), true
	}
	_, parent, _ := strings.Cut(r.Host, ".")
	return "*." + parent, fileName(issuer, "*."+parent), true
}

func issuerOf(t fleet.TLS) Issuer {
	switch t {
	case fleet.TLSInternal:
		return Internal
	case fleet.TLSManual:
		return Manual
	case fleet.TLSCloudflare:
		return Cloudflare
	}
	return ACME
}

// maxFileName leaves room below the 255 bytes of a file name for a suffix.
const maxFileName = 200

func fileName(issuer Issuer, subject string) string {
	name := string(issuer) + "-" + strings.ReplaceAll(subject, "*", "_")
	if len(name) > maxFileName {
		sum := sha256.Sum256([]byte(name))
		name = name[:maxFileName-17] + "-" + hex.EncodeToString(sum[:8])
	}
	return name
}

// Spec is a plan.Certificate: what a certificate in the store is like.
type Spec struct {
	// Hosts are the wanted names that the certificate covers, sorted; it may
	// cover more, left from a route that has gone.
	Hosts  []string
	Issuer Issuer
	// Authority is as in Want.
	Authority string
	// Due says why the certificate is to be issued anew though it covers what it
	// should; empty when it is not due.
	Due string

	want Want
}

// Equal implements plan.Spec.
func (s Spec) Equal(o plan.Spec) bool {
	other, ok := o.(Spec)
	return ok && slices.Equal(s.Hosts, other.Hosts) && s.Issuer == other.Issuer &&
		s.Authority == other.Authority && s.Due == other.Due
}

// String implements plan.Spec.
func (s Spec) String() string {
	line := strings.Join(s.Hosts, ", ") + " by " + s.by()
	if s.Due != "" {
		line += ", due: " + s.Due
	}
	return line
}

// Fields implements plan.Spec.
func (s Spec) Fields() []plan.Field {
	renewal := "not due"
	if s.Due != "" {
		renewal = "due: " + s.Due
	}
	return []plan.Field{
		{Name: "hosts", Value: strings.Join(s.Hosts, ", ")},
		{Name: "issuer", Value: s.by()},
		{Name: "renewal", Value: renewal},
	}
}

func (s Spec) by() string {
	if s.Authority == "" {
		return string(s.Issuer)
	}
	return fmt.Sprintf("%s (%s)", s.Issuer, s.Authority)
}

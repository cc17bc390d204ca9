package registrar

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

const (
	// maxHosts is how many hosts one registration may ask for.
	maxHosts = 100
	// maxSkew is how far a host's clock may be off: what ends, ends by it.
	maxSkew = 5 * time.Minute
	// longest is the longest life of a temporary origin.
	longest = 366 * 24 * time.Hour
)

// malformed says what is wrong with a registration in itself, or "".
func malformed(r join.Registration, now time.Time) string {
	if len(r.Name) > 63 {
		return "the name has more than 63 letters"
	}
	if err := join.CheckName(r.Name); err != nil {
		return err.Error()
	}
	switch {
	case len(r.Hosts) > maxHosts:
		return fmt.Sprintf("it asks for %d hosts; ask for at most %d, or for a wildcard", len(r.Hosts), maxHosts)
	case r.Temporary < 0 || r.Temporary > longest:
		return "an origin is temporary for a positive time, up to a year"
	}
	for _, h := range r.Hosts {
		if len(h) > 253 {
			return "it asks for a host of more than 253 letters"
		}
		if err := join.CheckHost(h); err != nil {
			return err.Error()
		}
	}
	if skew := r.Now.Sub(now).Round(time.Second); skew.Abs() > maxSkew {
		return fmt.Sprintf("this host's clock says %s, the control plane's %s: set the clock (timedatectl set-ntp true) and run it again",
			r.Now.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return ""
}

// verdict is what the fleet's policy and the token say of a registration.
type verdict struct {
	// refused says why it will not become an origin; "" when it may.
	refused string
	// flags are for the person who reviews it.
	flags []string
	// automatic is whether it is merged without a person.
	automatic bool
}

// judge is pure. r has the hosts and the end that it would have in the repo.
func judge(f *fleet.Fleet, r ledger.Registration) verdict {
	for name, o := range f.Origins {
		if name != r.Name && (o.PublicKey == r.Key || o.NextKey == r.Key) {
			return verdict{refused: fmt.Sprintf("this host's key is that of origin %q; remove that one first, or delete the key to join anew", name)}
		}
	}
	switch {
	case !fleet.MatchName(r.Scope.Names, r.Name):
		return verdict{refused: fmt.Sprintf("the token is for the name %s, not for %q", strings.Join(r.Scope.Names, ", "), r.Name)}
	case fleet.MatchName(f.Registration.Refuse, r.Name):
		return verdict{refused: fmt.Sprintf("the fleet lets no host take the name %q", r.Name)}
	}
	for _, h := range r.Hosts {
		if _, ok := f.Zone(h); !ok {
			return verdict{refused: fmt.Sprintf("%s is in none of the fleet's domains: %s", h, strings.Join(f.Domains, ", "))}
		}
	}
	var v verdict
	v.flags = flags(f, r)
	a := f.Registration.Automatic
	v.automatic = r.Scope.Automatic && a != nil && len(v.flags) == 0 &&
		(len(a.Names) == 0 || fleet.MatchName(a.Names, r.Name)) &&
		(len(a.Hosts) == 0 || len(r.Hosts) > 0 && covered(a.Hosts, r.Hosts)) &&
		(!a.TemporaryOnly || r.Expires != nil)
	return v
}

// flags are what a reviewer should look at twice.
func flags(f *fleet.Fleet, r ledger.Registration) []string {
	var flags []string
	if o, taken := f.Origins[r.Name]; taken && o.PublicKey != r.Key && o.NextKey != r.Key {
		flags = append(flags, fmt.Sprintf("origin %q exists with another key, %s, since %s: merging this gives its tunnel, its address and its routes to this host, and cuts the other off", r.Name, o.PublicKey, o.Position))
	}
	for _, h := range r.Hosts {
		if len(r.Scope.Hosts) > 0 && !fleet.CoversHost(r.Scope.Hosts, h) {
			flags = append(flags, fmt.Sprintf("it asks to serve %s, and its token is for %s", h, strings.Join(r.Scope.Hosts, ", ")))
		}
	}
	return flags
}

func covered(patterns, hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool { return !fleet.CoversHost(patterns, h) })
}

// shorten is the start of a stranger's text.
func shorten(text string) string {
	if len(text) > 80 {
		return text[:80] + "…"
	}
	return text
}

// plain is a stranger's text fit for a table in Markdown and for a terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" .-+/()", r) {
			return r
		}
		return '?'
	}, text[:min(len(text), 64)])
}

package certs_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
)

func TestWants(t *testing.T) {
	refs := fleet.ManualCertificate{Chain: fleet.SecretRef{File: "/etc/shop.pem"}, Key: fleet.SecretRef{Env: "SHOP_KEY"}}
	for _, c := range []struct {
		name      string
		challenge fleet.Challenge
		routes    []fleet.Route
		want      []string
	}{
		{"nothing", fleet.ChallengeDNS01, nil, nil},
		{"one label is a wildcard, without the zone's own name", fleet.ChallengeDNS01, []fleet.Route{
			route("a", "a.example.com", fleet.TLSAuto, 3), route("b", "b.example.com", fleet.TLSAuto, 2),
		}, []string{"acme-_.example.com: *.example.com by acme (https://acme.test/dir) routes.cue:3:1"}},
		{"the zone's own name alone is no wildcard", fleet.ChallengeDNS01, []fleet.Route{
			route("a", "example.com", fleet.TLSAuto, 1),
		}, []string{"acme-_.example.com: example.com by acme (https://acme.test/dir) routes.cue:1:1"}},
		{"deeper names, a wildcard route, and a zone below a zone", fleet.ChallengeDNS01, []fleet.Route{
			route("a", "example.com", fleet.TLSAuto, 1), route("b", "*.example.com", fleet.TLSAuto, 2), route("c", "x.apps.example.com", fleet.TLSAuto, 3),
			route("d", "sub.example.com", fleet.TLSAuto, 4), route("e", "x.sub.example.com", fleet.TLSAuto, 5), route("f", "apps.example.com", fleet.TLSAuto, 6),
		}, []string{
			"acme-_.apps.example.com: *.apps.example.com by acme (https://acme.test/dir) routes.cue:3:1",
			"acme-_.example.com: *.example.com, example.com by acme (https://acme.test/dir) routes.cue:1:1",
			"acme-_.sub.example.com: *.sub.example.com, sub.example.com by acme (https://acme.test/dir) routes.cue:4:1",
		}},
		{"HTTP-01 proves each host", fleet.ChallengeHTTP01, []fleet.Route{
			route("a", "a.example.com", fleet.TLSAuto, 1), route("a2", "a.example.com", fleet.TLSAuto, 2), route("b", "example.com", fleet.TLSAuto, 3),
			route("c", "b.example.com", fleet.TLSInternal, 4),
		}, []string{
			"acme-a.example.com: a.example.com by acme (https://acme.test/dir) routes.cue:1:1",
			"acme-example.com: example.com by acme (https://acme.test/dir) routes.cue:3:1",
			"internal-_.example.com: *.example.com by internal routes.cue:4:1",
		}},
		{"the user's own, and what needs none", fleet.ChallengeDNS01, []fleet.Route{
			{Name: "shop", Host: "shop.example.com", TLS: fleet.TLSManual, Certificate: refs, Active: true},
			{Name: "cf", Host: "cf.example.com", TLS: fleet.TLSCloudflare, Certificate: refs, Active: true},
			{Name: "off", Host: "off.example.com", TLS: fleet.TLSOff, Active: true},
			{Name: "any", Host: "*", TLS: fleet.TLSAuto, Active: true},
			{Name: "kept", Host: "kept.example.com", TLS: fleet.TLSAuto},
		}, []string{
			"cloudflare-cf: cf.example.com by cloudflare (file /etc/shop.pem, env SHOP_KEY) ",
			"manual-shop: shop.example.com by manual (file /etc/shop.pem, env SHOP_KEY) ",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fleet.Fleet{Domains: []string{"sub.example.com", "example.com"}, ACME: fleet.ACME{Directory: "https://acme.test/dir", Challenge: c.challenge}, Routes: map[string]fleet.Route{}}
			for _, r := range c.routes {
				f.Routes[r.Name] = r
			}
			var got []string
			for _, w := range certs.Wants(f) {
				got = append(got, fmt.Sprintf("%s: %s %s", w.Name, w.Spec(), w.From))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
			}
		})
	}
}

// Every route that needs a certificate has exactly one, which names its host; no
// certificate has a name that no route uses; names are fit for files.
func TestWantsProperty(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "apps", "x-1", strings.Repeat("l", 60)})
	rapid.Check(t, func(t *rapid.T) {
		f := &fleet.Fleet{
			Domains: []string{"apps.example.com", "example.com"},
			ACME:    fleet.ACME{Directory: "https://acme.test/dir", Challenge: rapid.SampledFrom([]fleet.Challenge{fleet.ChallengeDNS01, fleet.ChallengeHTTP01}).Draw(t, "challenge")},
			Routes:  map[string]fleet.Route{},
		}
		for i := range rapid.IntRange(0, 12).Draw(t, "routes") {
			host := strings.Join(append(rapid.SliceOfN(label, 0, 3).Draw(t, "labels"), "example.com"), ".")
			switch rapid.IntRange(0, 9).Draw(t, "special") {
			case 0:
				host = "*"
			case 1:
				host = "*." + host
			}
			r := fleet.Route{
				Name: fmt.Sprintf("r%d", i), Host: host, Active: rapid.Bool().Draw(t, "active"),
				TLS: rapid.SampledFrom([]fleet.TLS{fleet.TLSAuto, fleet.TLSInternal, fleet.TLSManual, fleet.TLSCloudflare, fleet.TLSOff}).Draw(t, "tls"),
			}
			f.Routes[r.Name] = r
		}
		wants := map[string]certs.Want{}
		used := map[string]map[string]bool{}
		for _, w := range certs.Wants(f) {
			if _, twice := wants[w.Name]; twice {
				t.Fatalf("%s twice", w.Name)
			}
			if len(w.Name) > 240 || strings.ContainsAny(w.Name, `/\*:`) || strings.HasPrefix(w.Name, ".") {
				t.Errorf("%q is not fit for a file", w.Name)
			}
			if !slices.IsSorted(w.Hosts) || len(w.Hosts) == 0 {
				t.Errorf("%s: hosts %q", w.Name, w.Hosts)
			}
			wants[w.Name], used[w.Name] = w, map[string]bool{}
		}
		for _, r := range f.Routes {
			name, needs := certs.NameFor(f, r)
			if needs == (r.Host == "*" || r.TLS == fleet.TLSOff) {
				t.Errorf("%s %s: needs a certificate: %t", r.Host, r.TLS, needs)
			}
			for _, w := range wants {
				if w.Covers(r) != (needs && w.Name == name) {
					t.Errorf("%s covers %s: %t, and NameFor says %s", w.Name, r.Host, w.Covers(r), name)
				}
			}
			if !needs || !r.Active {
				continue
			}
			w, ok := wants[name]
			if !ok {
				t.Fatalf("no certificate %s for %s", name, r.Host)
			}
			_, parent, _ := strings.Cut(r.Host, ".")
			switch {
			case slices.Contains(w.Hosts, r.Host):
				used[name][r.Host] = true
			case slices.Contains(w.Hosts, "*."+parent):
				used[name]["*."+parent] = true
			default:
				t.Errorf("%s with %q does not cover %s", name, w.Hosts, r.Host)
			}
		}
		for name, w := range wants {
			for _, h := range w.Hosts {
				if !used[name][h] {
					t.Errorf("%s has %s, which no route uses (uses %q)", name, h, slices.Collect(maps.Keys(used[name])))
				}
			}
		}
	})
}

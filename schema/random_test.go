package schema

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"pgregory.net/rapid"
)

// TestRandomFleets: any fleet, written as CUE with its defaults left out or
// spelt out and spread over files, loads as itself.
func TestRandomFleets(t *testing.T) {
	l := newLoader(t, Options{})
	rapid.Check(t, func(t *rapid.T) {
		want := randomFleet(t)
		tree := write(t, want)
		got, _, err := l.Load(context.Background(), tree)
		if err != nil {
			for p, text := range tree {
				t.Logf("-- %s --\n%s", p, text)
			}
			t.Fatalf("load: %v", err)
		}
		withoutPositions(got)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("loaded %+v\nwant   %+v", got, want)
		}
	})
}

func randomFleet(t *rapid.T) *fleet.Fleet {
	f := &fleet.Fleet{
		Name:    label(t, "name"),
		Network: netip.MustParsePrefix(rapid.SampledFrom([]string{"10.86.0.0/16", "192.168.0.0/20", "fd00:86::/64"}).Draw(t, "network")),
		Domains: []string{"long.kokoa.test", "kokoa.test", "kokoa.org"},
		DNS:     fleet.DNS{TTL: time.Duration(rapid.IntRange(1, 86400).Draw(t, "ttl")) * time.Second},
		ACME: fleet.ACME{
			Directory: rapid.SampledFrom([]string{defaultDirectory, "https://ca.kokoa.org/dir"}).Draw(t, "directory"),
			Email:     rapid.SampledFrom([]string{"", "ops@kokoa.org"}).Draw(t, "email"),
			Challenge: fleet.ChallengeDNS01,
			CA:        rapid.SampledFrom([]string{"", "/etc/ca.pem"}).Draw(t, "ca"),
		},
		Registration: fleet.Registration{
			Folder: rapid.SampledFrom([]string{defaultFolder, "hosts/small"}).Draw(t, "registration folder"),
			Refuse: rapid.SampledFrom([][]string{nil, {"control", "x-*"}}).Draw(t, "refuse"),
			Automatic: rapid.SampledFrom([]*fleet.Automatic{nil, {}, {
				Names: []string{"dev-*"}, Hosts: []string{"*.dev.kokoa.test"}, TemporaryOnly: true,
			}}).Draw(t, "automatic"),
			RotateEvery: rapid.SampledFrom([]time.Duration{0, time.Hour, 720 * time.Hour}).Draw(t, "rotate"),
		},
		Guards:  fleet.Guards{MaxDeletePercent: rapid.IntRange(0, 100).Draw(t, "percent"), MaxDeletes: rapid.IntRange(0, 1000).Draw(t, "deletes")},
		Edges:   map[string]fleet.Edge{},
		Origins: map[string]fleet.Origin{},
		Routes:  map[string]fleet.Route{},
	}
	switch f.DNS.Provider = rapid.SampledFrom([]fleet.DNSProvider{fleet.DNSBuiltin, fleet.DNSRFC2136}).Draw(t, "provider"); f.DNS.Provider {
	case fleet.DNSBuiltin:
		f.DNS.Listen = rapid.SampledFrom([]string{":53", "127.0.0.1:5353", "[::1]:53"}).Draw(t, "listen")
		f.DNS.Nameservers = []string{"ns1.kokoa.test", "ns2.kokoa.org"}
	case fleet.DNSRFC2136:
		f.DNS.Server = "192.0.2.1:53"
		f.DNS.TSIG = fleet.TSIG{Name: "key.", Algorithm: rapid.SampledFrom([]string{"hmac-sha256", "hmac-sha512"}).Draw(t, "algorithm"), Key: secretRef(t)}
	}
	next := fleet.ControlAddress(f.Network, keys.Slots)
	address := func() netip.Addr { next = next.Next(); return next }
	for i := range rapid.IntRange(1, 3).Draw(t, "edges") {
		name := fmt.Sprintf("edge-%d", i)
		f.Edges[name] = fleet.Edge{
			Name: name, TunnelAddress: address(), Generation: rapid.IntRange(1, 9).Draw(t, "generation"),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))},
			Endpoint:  fmt.Sprintf("203.0.113.%d:51820", i+1),
		}
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "origins") {
		name := fmt.Sprintf("origin-%d", i)
		key := keys.Public{31: byte(i + 1)}
		f.Origins[name] = fleet.Origin{
			Name: name, TunnelAddress: address(), PublicKey: key, NextKey: rapid.SampledFrom([]keys.Public{{}, {30: byte(i + 1)}}).Draw(t, "next_key"), Expires: moment(t),
			Hosts: rapid.SampledFrom([][]string{nil, {"*.kokoa.test", "kokoa.org", "*.kokoa.org", "kokoa.test"}}).Draw(t, "hosts"),
		}
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "routes") {
		name := fmt.Sprintf("route-%d", i)
		r := fleet.Route{
			Name: name,
			Host: rapid.SampledFrom([]string{"*.", ""}).Draw(t, "wild") + fmt.Sprintf("h%d.", i) + rapid.SampledFrom(f.Domains).Draw(t, "domain"),
			Path: rapid.SampledFrom([]string{"/", "/api", "/a/b.c/ü"}).Draw(t, "path"),
			TLS:  rapid.SampledFrom([]fleet.TLS{fleet.TLSAuto, fleet.TLSInternal, fleet.TLSManual, fleet.TLSCloudflare, fleet.TLSOff}).Draw(t, "tls"),

			StripPath:    rapid.Bool().Draw(t, "strip_path"),
			PreserveHost: rapid.Bool().Draw(t, "preserve_host"),
			WebSocket:    rapid.Bool().Draw(t, "websocket"),
			Active:       rapid.Bool().Draw(t, "active"),
			Expires:      moment(t),
			Edges:        f.EdgeNames(),
			Health: fleet.Health{
				Path:     rapid.SampledFrom([]string{"", "/healthz"}).Draw(t, "health"),
				Interval: time.Duration(rapid.IntRange(1000, 3_600_000).Draw(t, "interval")) * time.Millisecond,
				Failures: rapid.IntRange(1, 100).Draw(t, "failures"),
			},
		}
		r.Health.Timeout = time.Duration(rapid.IntRange(100, int(min(time.Minute, r.Health.Interval).Milliseconds())).Draw(t, "timeout")) * time.Millisecond
		r.Redirect = r.TLS != fleet.TLSOff && rapid.Bool().Draw(t, "redirect")
		if r.TLS == fleet.TLSManual || r.TLS == fleet.TLSCloudflare {
			r.Certificate = fleet.ManualCertificate{Chain: secretRef(t), Key: secretRef(t)}
		}
		if rapid.Bool().Draw(t, "some edges") {
			r.Edges = r.Edges[:1]
		}
		for n := range rapid.IntRange(1, 2).Draw(t, "upstreams") {
			r.Upstreams = append(r.Upstreams, fleet.Upstream{
				Origin:  rapid.SampledFrom(f.OriginNames()).Draw(t, "origin"),
				Service: rapid.SampledFrom([]string{"http", "https"}).Draw(t, "scheme") + "://localhost:" + strconv.Itoa(3000+n),
			})
		}
		f.Routes[name] = r
	}
	return f
}

// write renders a fleet as a user could have.
func write(t *rapid.T, f *fleet.Fleet) memory {
	tree := memory{}
	put := func(text string) {
		path := fmt.Sprintf("%d/%s.cue", rapid.IntRange(0, 2).Draw(t, "folder"), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "file"))
		if tree[path] == "" {
			tree[path] = "package fleet\n"
		}
		tree[path] += "\n" + text
	}
	w := writer{T: t}
	w.open("fleet")
	w.text("name", f.Name)
	w.texts("domains", []string{"kokoa.test", "long.kokoa.test", "kokoa.org"})
	w.text("network", f.Network.String())
	w.open("dns")
	w.text("provider", string(f.DNS.Provider))
	w.orDefault("ttl", strconv.Quote(f.DNS.TTL.String()), f.DNS.TTL == defaultTTL)
	if f.DNS.Provider == fleet.DNSBuiltin {
		w.orDefault("listen", strconv.Quote(f.DNS.Listen), f.DNS.Listen == defaultListen)
		w.texts("nameservers", f.DNS.Nameservers)
	} else {
		w.text("server", f.DNS.Server)
		w.open("tsig")
		w.text("name", f.DNS.TSIG.Name)
		w.orDefault("algorithm", strconv.Quote(f.DNS.TSIG.Algorithm), f.DNS.TSIG.Algorithm == defaultAlgorithm)
		w.secret("key", f.DNS.TSIG.Key)
		w.close()
	}
	w.close()
	w.open("acme")
	w.orDefault("directory", strconv.Quote(f.ACME.Directory), f.ACME.Directory == defaultDirectory)
	w.orDefault("challenge", `"dns-01"`, true)
	w.orDefault("email", strconv.Quote(f.ACME.Email), f.ACME.Email == "")
	w.orDefault("ca", strconv.Quote(f.ACME.CA), f.ACME.CA == "")
	w.close()
	w.line("guards: {max_delete_percent: %d, max_deletes: %d}", f.Guards.MaxDeletePercent, f.Guards.MaxDeletes)
	w.registration(f.Registration)
	w.close()
	put(w.String())
	for _, name := range f.EdgeNames() {
		e := f.Edges[name]
		w := writer{T: t}
		w.open("edge: " + strconv.Quote(name))
		w.texts("addresses", []string{e.Addresses[0].String(), e.Addresses[1].String()})
		w.text("endpoint", e.Endpoint)
		w.text("tunnel_address", e.TunnelAddress.String())
		w.orDefault("generation", strconv.Itoa(e.Generation), e.Generation == 1)
		w.close()
		put(w.String())
	}
	for _, name := range f.OriginNames() {
		o := f.Origins[name]
		w := writer{T: t}
		w.open("origin: " + strconv.Quote(name))
		w.text("public_key", o.PublicKey.String())
		if !o.NextKey.IsZero() {
			w.text("next_key", o.NextKey.String())
		}
		w.text("tunnel_address", o.TunnelAddress.String())
		if o.Hosts != nil {
			w.texts("hosts", o.Hosts)
		}
		w.moment("expires", o.Expires)
		w.close()
		put(w.String())
	}
	for _, name := range f.RouteNames() {
		r := f.Routes[name]
		w := writer{T: t}
		w.open("route: " + strconv.Quote(name))
		w.text("host", r.Host)
		w.orDefault("path", strconv.Quote(r.Path), r.Path == "/")
		w.text("origin", r.Upstreams[0].Origin)
		w.text("service", r.Upstreams[0].Service)
		if len(r.Upstreams) > 1 {
			w.line("failover: {origin: %q, service: %q}", r.Upstreams[1].Origin, r.Upstreams[1].Service)
		}
		w.orDefault("strip_path", strconv.FormatBool(r.StripPath), !r.StripPath)
		w.orDefault("preserve_host", strconv.FormatBool(r.PreserveHost), r.PreserveHost)
		w.orDefault("websocket", strconv.FormatBool(r.WebSocket), r.WebSocket)
		w.orDefault("tls", strconv.Quote(string(r.TLS)), r.TLS == fleet.TLSAuto)
		if !r.Certificate.Chain.IsZero() {
			w.open("certificate")
			w.secret("chain", r.Certificate.Chain)
			w.secret("key", r.Certificate.Key)
			w.close()
		}
		w.orDefault("redirect", strconv.FormatBool(r.Redirect), r.Redirect != (r.TLS == fleet.TLSOff))
		w.open("health")
		w.orDefault("path", strconv.Quote(r.Health.Path), r.Health.Path == "")
		w.line("interval: %q", r.Health.Interval)
		w.line("timeout: %q", r.Health.Timeout)
		w.orDefault("failures", strconv.Itoa(r.Health.Failures), r.Health.Failures == defaultFailures)
		w.close()
		if len(r.Edges) < len(f.Edges) {
			w.texts("edges", r.Edges)
		}
		w.moment("expires", r.Expires)
		status := map[bool]string{true: `"active"`, false: `"inactive"`}[r.Active]
		w.orDefault("status", status, r.Active)
		w.close()
		put(w.String())
	}
	return tree
}

// writer writes CUE, in one of several ways.
type writer struct {
	*rapid.T
	strings.Builder
}

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
func (w *writer) open(path string)                { w.line("%s: {", path) }
func (w *writer) close()                          { w.line("}") }

func (w *writer) text(name, value string) {
	if rapid.Bool().Draw(w.T, "raw") {
		w.line("%q: #\"%s\"#", name, value)
		return
	}
	w.line("%s: %q", name, value)
}

func (w *writer) texts(name string, values []string) {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = strconv.Quote(v)
	}
	w.line("%s: [%s]", name, strings.Join(quoted, ", "))
}

// orDefault leaves out what is the default, or does not.
func (w *writer) orDefault(name, value string, isDefault bool) {
	if isDefault && (value == `""` || rapid.Bool().Draw(w.T, "default left out")) {
		return
	}
	w.line("%s: %s", name, value)
}

func (w *writer) registration(r fleet.Registration) {
	w.open("registration")
	w.orDefault("folder", strconv.Quote(r.Folder), r.Folder == defaultFolder)
	if r.Refuse != nil {
		w.texts("refuse", r.Refuse)
	}
	if r.RotateEvery != 0 {
		w.text("rotate_every", r.RotateEvery.String())
	}
	if a := r.Automatic; a != nil {
		w.open("automatic")
		if a.Names != nil {
			w.texts("names", a.Names)
		}
		if a.Hosts != nil {
			w.texts("hosts", a.Hosts)
		}
		w.orDefault("temporary_only", strconv.FormatBool(a.TemporaryOnly), !a.TemporaryOnly)
		w.close()
	}
	w.close()
}

func (w *writer) secret(name string, s fleet.SecretRef) {
	if s.Env != "" {
		w.line("%s: env: %q", name, s.Env)
		return
	}
	w.line("%s: {file: %q}", name, s.File)
}

func (w *writer) moment(name string, at *time.Time) {
	if at != nil {
		zone := time.FixedZone("", rapid.IntRange(-12, 12).Draw(w.T, "zone")*3600)
		w.line("%s: %q", name, at.In(zone).Format(time.RFC3339))
	}
}

func label(t *rapid.T, what string) string {
	return rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?`).Draw(t, what)
}

func secretRef(t *rapid.T) fleet.SecretRef {
	return rapid.SampledFrom([]fleet.SecretRef{{Env: "KOKOA_X"}, {File: "/etc/kokoa/x y.pem"}}).Draw(t, "secret")
}

func moment(t *rapid.T) *time.Time {
	if rapid.Bool().Draw(t, "for ever") {
		return nil
	}
	at := today.Add(time.Duration(rapid.IntRange(-1000, 1000).Draw(t, "hours")) * time.Hour)
	return &at
}

func withoutPositions(f *fleet.Fleet) {
	f.Position, f.DNS.Position, f.ACME.Position = fleet.Position{}, fleet.Position{}, fleet.Position{}
	for name, e := range f.Edges {
		e.Position = fleet.Position{}
		f.Edges[name] = e
	}
	for name, o := range f.Origins {
		o.Position = fleet.Position{}
		f.Origins[name] = o
	}
	for name, r := range f.Routes {
		r.Position = fleet.Position{}
		r.Edges = slices.Clone(r.Edges)
		f.Routes[name] = r
	}
}

package schema

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
)

// loaded is a file and what it gave.
type loaded struct {
	path string
	*result
}

// assemble makes one fleet of all files and checks what one file cannot know.
// The fleet is only to be used when no diagnostic is an error. They begin with what
// is known of the repo as a whole. unread are the texts of files that could not be
// evaluated; nil stands for a text that could not be had. What they may define is
// not reported as missing.
func assemble(files []loaded, known Diagnostics, unread [][]byte, now time.Time) (*fleet.Fleet, Diagnostics) {
	a := assembly{
		out:    &fleet.Fleet{Edges: map[string]fleet.Edge{}, Origins: map[string]fleet.Origin{}},
		unread: unread,
		now:    now,
		hints:  map[string]string{},

		diagnostics: slices.Clone(known),
	}
	for _, f := range files {
		for _, x := range f.findings {
			a.report(f.path, x)
		}
	}
	a.collect(files)
	a.checkFleet()
	a.checkAddresses()
	a.checkRoutes()
	if len(a.diagnostics.Errors()) == 0 {
		a.checkWhole(files)
	}
	a.diagnostics.sort()
	return a.out, a.diagnostics
}

// checkWhole makes sure that nothing is left out of the fleet in silence: a part
// that could not be used has been reported, or is now.
func (a *assembly) checkWhole(files []loaded) {
	for _, f := range files {
		broken := slices.ContainsFunc(f.objects, func(o object) bool { return o.broken })
		if broken || f.unread {
			a.report(f.path, finding{
				code: CodeEvaluation, message: "the file could not be used", hint: "write it more simply",
			})
		}
	}
}

// placed is an object and the file it stands in.
type placed struct {
	file string
	*object
}

func (p placed) position() fleet.Position { return p.at.in(p.file) }

type assembly struct {
	out         *fleet.Fleet
	diagnostics Diagnostics
	unread      [][]byte
	now         time.Time
	// hints by what is missing: many routes may miss the same.
	hints map[string]string

	fleet placed
	ready bool // the fleet itself is there and sound
	// By kind, in the order of files: what comes later clashes with what was
	// there first.
	placed  [kinds][]placed
	edges   map[string]placed
	origins map[string]placed
}

// collect gives every name to the first file that has it.
func (a *assembly) collect(files []loaded) {
	routes := 0
	for _, f := range files {
		routes += len(f.objects)
	}
	byName := [kinds]map[string]placed{{}, {}, {}, make(map[string]placed, routes)}
	for _, f := range files {
		for i := range f.objects {
			p := placed{f.path, &f.objects[i]}
			first, taken := byName[p.kind][p.name]
			if !taken {
				byName[p.kind][p.name] = p
				a.placed[p.kind] = append(a.placed[p.kind], p)
				continue
			}
			what := fmt.Sprintf("%s %s", p.kind, quote(p.name))
			if p.kind == kindFleet {
				what = "fleet"
			}
			a.report(p.file, finding{
				code: CodeDuplicate, at: p.at,
				message: fmt.Sprintf("%s stands in two files", what),
				hint:    "keep one of them, or give it another name",
				related: []relation{{first.file, first.at, "first here"}},
			})
		}
	}
	a.edges, a.origins = byName[kindEdge], byName[kindOrigin]
	a.out.Routes = make(map[string]fleet.Route, routes)
	f, ok := byName[kindFleet][""]
	switch {
	case !ok && !a.mayDefine("fleet"):
		a.diagnostics = append(a.diagnostics, Diagnostic{
			Code: CodeNoFleet, Severity: SeverityError, Length: 1,
			Message: "no file fills in fleet",
			Hint:    `add fleet.cue with: fleet: {name: …, domains: […], network: …}`,
		})
	case ok && !f.broken:
		a.fleet, a.ready = f, true
	}
}

func (a *assembly) checkFleet() {
	if !a.ready {
		return
	}
	f := *a.fleet.fleet
	f.Edges, f.Origins, f.Routes = a.out.Edges, a.out.Origins, a.out.Routes
	f.Position = a.fleet.position()
	if a.fleet.has("dns") {
		f.DNS.Position = a.fleet.mark("dns").in(a.fleet.file)
	}
	if a.fleet.has("acme") {
		f.ACME.Position = a.fleet.mark("acme").in(a.fleet.file)
	}
	a.out = &f
}

// checkAddresses takes over edges and origins, and looks for addresses, keys and
// endpoints that two of them have.
func (a *assembly) checkAddresses() {
	control := map[netip.Addr]bool{}
	if a.ready {
		for slot := range keys.Slots {
			control[a.out.ControlAddress(slot)] = true
		}
	}
	type owner struct {
		placed
		path string
	}
	tunnels, public := map[netip.Addr]owner{}, map[netip.Addr]owner{}
	endpoints, publicKeys := map[string]owner{}, map[keys.Public]owner{}
	clash := func(p placed, path, what string, first owner) {
		a.report(p.file, finding{
			code: CodeClash, at: p.mark(path),
			message: fmt.Sprintf("%s of %s is that of %s", what, p.title(), first.title()),
			hint:    "give each its own",
			related: []relation{{first.file, first.mark(first.path), "first here"}},
		})
	}
	tunnel := func(p placed, address netip.Addr) {
		if p.bad("tunnel_address") {
			return
		}
		if first, taken := tunnels[address]; taken {
			clash(p, "tunnel_address", "tunnel_address "+address.String(), first)
			return
		}
		tunnels[address] = owner{p, "tunnel_address"}
		if !a.ready {
			return
		}
		f := finding{code: CodeOutside, at: p.mark("tunnel_address"), hint: a.freeAddress()}
		switch network := a.out.Network; {
		case !network.Contains(address), address == network.Addr(), address == last(network):
			f.message = fmt.Sprintf("tunnel_address %s of %s is no host address in the fleet's network %s", address, p.title(), network)
		case control[address]:
			f.code = CodeClash
			f.message = fmt.Sprintf("tunnel_address %s of %s is the control plane's", address, p.title())
		default:
			return
		}
		a.report(p.file, f)
	}
	for _, p := range a.placed[kindEdge] {
		if p.broken {
			continue
		}
		e := *p.edge
		e.Position = p.position()
		a.out.Edges[p.name] = e
		for i, address := range e.Addresses {
			path := element("addresses", i)
			if p.bad(path) {
				continue
			}
			if first, taken := public[address]; taken {
				// Edges on other ports of one host, as for a trial: DNS cannot tell
				// them apart.
				a.warn(p.file, finding{
					code: CodeShared, at: p.mark(path),
					message: fmt.Sprintf("address %s of %s is that of %s", address, p.title(), first.title()),
					hint:    "visitors reach one of the two there, and DNS keeps the address while either serves",
					related: []relation{{first.file, first.mark(first.path), "first here"}},
				})
				continue
			}
			public[address] = owner{p, path}
			if a.ready && a.out.Network.Contains(address) {
				a.report(p.file, finding{
					code: CodeOutside, at: p.mark(path),
					message: fmt.Sprintf("address %s of %s is in the fleet's own network %s", address, p.title(), a.out.Network),
					hint:    "addresses are public; the one in the tunnels is tunnel_address",
				})
			}
		}
		if first, taken := endpoints[e.Endpoint]; taken {
			clash(p, "endpoint", "endpoint "+e.Endpoint, first)
		} else if !p.bad("endpoint") {
			endpoints[e.Endpoint] = owner{p, "endpoint"}
		}
		tunnel(p, e.TunnelAddress)
	}
	for _, p := range a.placed[kindOrigin] {
		if p.broken {
			continue
		}
		o := *p.origin
		o.Position = p.position()
		a.out.Origins[p.name] = o
		if first, taken := publicKeys[o.PublicKey]; taken {
			clash(p, "public_key", "public_key", first)
		} else if !p.bad("public_key") {
			publicKeys[o.PublicKey] = owner{p, "public_key"}
		}
		if first, taken := publicKeys[o.NextKey]; taken && !o.NextKey.IsZero() {
			clash(p, "next_key", "next_key", first)
		} else if !o.NextKey.IsZero() && !p.bad("next_key") {
			publicKeys[o.NextKey] = owner{p, "next_key"}
		}
		tunnel(p, o.TunnelAddress)
		for i, host := range o.Hosts {
			a.inDomains(p, element("hosts", i), host)
		}
		a.expired(p, o.Expires)
	}
}

func (a *assembly) checkRoutes() {
	type address struct{ host, path string }
	active := make(map[address]placed, len(a.placed[kindRoute]))
	edgeNames := slices.Sorted(maps.Keys(a.edges))
	var unissued []placed // routes that want a certificate which nobody can issue
	for _, p := range a.placed[kindRoute] {
		if p.broken {
			continue
		}
		r := *p.route
		r.Position = p.position()
		for i, u := range r.Upstreams {
			field := "origin"
			if i > 0 {
				field = "failover.origin"
			}
			a.checkOrigin(p, field, u.Origin, r.Host)
		}
		for i, name := range r.Edges {
			if _, ok := a.edges[name]; !ok && name != "" {
				a.unknown(p, element("edges", i), kindEdge, name, edgeNames)
			}
		}
		if len(r.Edges) == 0 {
			r.Edges = edgeNames
		} else {
			r.Edges = slices.Sorted(slices.Values(r.Edges))
		}
		a.inDomains(p, "host", r.Host)
		a.expired(p, r.Expires)
		if r.Active && !p.bad("host") && !p.bad("path") {
			where := address{r.Host, r.Path}
			if first, taken := active[where]; taken {
				a.report(p.file, finding{
					code: CodeClash, at: p.mark("host"),
					message: fmt.Sprintf("%s has the host and path of %s: %s%s", p.title(), first.title(), r.Host, r.Path),
					hint:    `change one, or set status: "inactive"`,
					related: []relation{{first.file, first.mark("host"), "first here"}},
				})
			} else {
				active[where] = p
			}
		}
		if a.ready && r.TLS == fleet.TLSAuto && r.Host != "*" && !p.bad("tls") && !p.bad("host") {
			switch {
			case a.out.ACME.Challenge == fleet.ChallengeHTTP01 && strings.HasPrefix(r.Host, "*."):
				a.report(p.file, finding{
					code: CodeCombination, at: p.mark("host"),
					message: fmt.Sprintf("no certificate can be issued for the wildcard host %s by http-01", quote(r.Host)),
					hint:    `set acme.challenge: "dns-01" in fleet, or tls here`,
					related: []relation{{a.fleet.file, a.fleet.mark("acme.challenge"), "the challenge"}},
				})
			case a.out.ACME.Challenge == fleet.ChallengeDNS01 && a.out.DNS.Provider == fleet.DNSNone:
				unissued = append(unissued, p)
			}
		}
		a.out.Routes[r.Name] = r
	}
	a.checkIssuer(unissued)
	if routes := a.placed[kindRoute]; len(routes) > 0 && len(a.edges) == 0 && len(a.unread) == 0 {
		p := routes[0]
		a.warn(p.file, finding{
			code: CodeNoEdge, at: p.at,
			message: "there are routes, and no edge to serve them",
			hint:    "add edge: NAME: {addresses: […], endpoint: …, tunnel_address: …}",
		})
	}
}

// checkIssuer reports once what may concern thousands of routes.
func (a *assembly) checkIssuer(unissued []placed) {
	if len(unissued) == 0 {
		return
	}
	at := a.fleet.at
	for _, path := range []string{"dns.provider", "acme.challenge"} {
		if a.fleet.has(path) {
			at = a.fleet.mark(path)
		}
	}
	p := unissued[0]
	who := p.title() + " wants"
	if n := len(unissued) - 1; n > 0 {
		who = fmt.Sprintf("%s and %s want", p.title(), count(n, "other"))
	}
	a.report(a.fleet.file, finding{
		code: CodeCombination, at: at,
		message: fmt.Sprintf("%s a certificate by dns-01, and dns provider is \"none\"", who),
		hint:    `set dns.provider, or acme.challenge: "http-01", or tls of the routes`,
		related: []relation{{p.file, p.at, "such a route"}},
	})
}

func (a *assembly) checkOrigin(p placed, field, name, host string) {
	o, ok := a.origins[name]
	switch {
	case p.bad(field), name == "":
	case !ok:
		a.unknown(p, field, kindOrigin, name, nil)
	case !o.broken && !o.bad("hosts") && !p.bad("host") && !o.origin.MayServe(host):
		a.report(p.file, finding{
			code: CodeOutside, at: p.mark(field),
			message: fmt.Sprintf("origin %s may not serve %s", quote(name), quote(host)),
			hint:    fmt.Sprintf("add the host to hosts of origin %s", quote(name)),
			related: []relation{{o.file, o.mark("hosts"), "what it may serve"}},
		})
	}
}

// unknown reports a name that nothing has. Names of origins are only gathered
// when one is missing: there may be thousands.
func (a *assembly) unknown(p placed, field string, k kind, name string, known []string) {
	if a.mayDefine(name) {
		return
	}
	what := fmt.Sprintf("unknown %s %s", k, quote(name))
	hint, ok := a.hints[what]
	if !ok {
		if k == kindOrigin {
			known = slices.Sorted(maps.Keys(a.origins))
		}
		const few = 8
		switch hint = suggest(name, known); {
		case hint != "":
		case len(known) > 0 && len(known) <= few:
			hint = fmt.Sprintf("the fleet has %s", strings.Join(known, ", "))
		default:
			hint = fmt.Sprintf("add %s: %s: {…}", k, name)
		}
		a.hints[what] = hint
	}
	a.report(p.file, finding{code: CodeUnknownName, at: p.mark(field), message: what, hint: hint})
}

// mayDefine reports whether a file that could not be evaluated speaks of name.
func (a *assembly) mayDefine(name string) bool {
	return slices.ContainsFunc(a.unread, func(text []byte) bool {
		return text == nil || bytes.Contains(text, []byte(name))
	})
}

func (a *assembly) inDomains(p placed, field, host string) {
	if !a.ready || host == "" || host == "*" || p.bad(field) {
		return
	}
	if _, ok := a.out.Zone(host); ok {
		return
	}
	hint := "add its domain to fleet.domains"
	if len(a.out.Domains) <= 8 {
		hint = "the fleet's domains are " + strings.Join(a.out.Domains, ", ")
	}
	a.report(p.file, finding{
		code: CodeOutside, at: p.mark(field),
		message: fmt.Sprintf("host %s of %s is in none of the fleet's domains", quote(host), p.title()),
		hint:    hint,
		related: []relation{{a.fleet.file, a.fleet.mark("domains"), "the domains"}},
	})
}

// soon is how long before something ends a warning says so.
const soon = 24 * time.Hour

func (a *assembly) expired(p placed, at *time.Time) {
	if at == nil || at.After(a.now.Add(soon)) {
		return
	}
	if at.After(a.now) {
		left := at.Sub(a.now)
		a.warn(p.file, finding{
			code: CodeEnding, at: p.mark("expires"),
			message: fmt.Sprintf("%s ends at %s, in %d h %d min", p.title(), at.Format(time.RFC3339), int(left.Hours()), int(left.Minutes())%60),
			hint:    "move expires when it is to stay",
		})
		return
	}
	a.warn(p.file, finding{
		code: CodeExpired, at: p.mark("expires"),
		message: fmt.Sprintf("%s ended at %s", p.title(), at.Format(time.RFC3339)),
		hint:    "delete it, or move expires",
	})
}

// freeAddress suggests a tunnel address.
func (a *assembly) freeAddress() string {
	return fmt.Sprintf("want an address in %s from %s on", a.out.Network, a.out.ControlAddress(keys.Slots))
}

func (a *assembly) report(file string, f finding) {
	a.diagnostics = append(a.diagnostics, f.diagnostic(file, SeverityError))
}

func (a *assembly) warn(file string, f finding) {
	a.diagnostics = append(a.diagnostics, f.diagnostic(file, SeverityWarning))
}

func (f finding) diagnostic(file string, s Severity) Diagnostic {
	d := Diagnostic{
		Code: f.code, Severity: s, Position: f.at.in(file), Length: max(1, f.at.length),
		Message: f.message, Hint: f.hint, private: f.private,
	}
	for _, r := range f.related {
		d.Related = append(d.Related, Related{r.at.in(cmp.Or(r.file, file)), r.message})
	}
	return d
}

// title is how messages speak of the object: `route "blog"`.
func (p placed) title() string { return fmt.Sprintf("%s %s", p.kind, quote(p.name)) }

// last is the last address of a network: IPv4's broadcast address.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

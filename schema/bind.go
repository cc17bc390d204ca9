package schema

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
)

// result is an outcome bound to the fleet's nouns: defaults filled in, and
// everything checked that one object can be checked for alone. It does not know
// its path or the time.
type result struct {
	class    class
	size     int
	objects  []object
	findings []finding
	// unread files gave nothing because they are wrong: what they would define is
	// not known.
	unread bool
	// used is the last load that had this blob.
	used uint64
	// until is when a result that may be the host's fault is forgotten.
	until time.Time
}

// object is one entry of a file; the noun that its kind says is set.
type object struct {
	kind kind
	name string
	at   mark
	// broken objects are only names; a finding says why.
	broken bool
	// marks are where the fields are written that the user gave.
	marks []fieldMark

	fleet  *fleet.Fleet
	edge   *fleet.Edge
	origin *fleet.Origin
	route  *fleet.Route
}

type fieldMark struct {
	path string
	at   mark
	bad  bool
}

// mark is the place of a field, or else of the object.
func (o *object) mark(path string) mark {
	for _, m := range o.marks {
		if m.path == path {
			return m.at
		}
	}
	return o.at
}

// bad reports whether a field, what it is in or something in it is wrong, or
// missing where it must not be.
func (o *object) bad(path string) bool {
	return slices.ContainsFunc(o.marks, func(m fieldMark) bool {
		return m.bad && (m.path == path || within(m.path, path) || within(path, m.path))
	})
}

// within reports whether a path is below another.
func within(path, above string) bool {
	return len(path) > len(above) && path[len(above)] == '.' && path[:len(above)] == above
}

func (o *object) has(path string) bool {
	return slices.ContainsFunc(o.marks, func(m fieldMark) bool { return m.path == path })
}

// The defaults of the schema, which its comments state.
const (
	defaultTTL       = 30 * time.Second
	defaultListen    = ":53"
	defaultAlgorithm = "hmac-sha256"
	defaultDirectory = "https://acme-v02.api.letsencrypt.org/directory"
	defaultPercent   = 30
	defaultFolder    = "origins"
	defaultDeletes   = 50
	defaultInterval  = 10 * time.Second
	defaultTimeout   = 5 * time.Second
	defaultFailures  = 3
)

func bind(o outcome) *result {
	r := &result{
		class: o.class, size: o.size, findings: o.findings,
		unread: len(o.findings) > 0 && len(o.entries) == 0 && o.class != library,
	}
	for _, e := range o.entries {
		if len(r.findings) > maxFindings {
			e.broken = true // enough is said of this file
		}
		b := binder{object: object{kind: e.kind, name: e.name, at: e.at, broken: e.broken}}
		if !e.broken {
			b.entry(e)
		}
		r.objects = append(r.objects, b.object)
		r.findings = append(r.findings, b.findings...)
	}
	return r
}

// binder reads the leaves of one entry. The schema has checked their types and
// forms; the binder checks what a pattern cannot say.
type binder struct {
	object
	findings []finding
	leaves   []leaf
}

// maxList is how many elements a list may have. All lists are of names and
// addresses.
const maxList = 1000

func (b *binder) entry(e entry) {
	b.leaves = e.leaves
	b.marks = make([]fieldMark, len(e.leaves))
	for i, l := range e.leaves {
		b.marks[i] = fieldMark{l.path, l.at, l.typ == leafBad}
	}
	switch e.kind {
	case kindFleet:
		b.object.fleet = b.fleetEntry()
		b.broken = slices.ContainsFunc(b.marks, func(m fieldMark) bool { return m.bad }) || len(b.findings) > 0
	case kindEdge:
		b.object.edge = b.edgeEntry()
	case kindOrigin:
		b.object.origin = b.originEntry()
	case kindRoute:
		b.object.route = b.routeEntry()
	}
}

func (b *binder) fleetEntry() *fleet.Fleet {
	f := &fleet.Fleet{Name: b.text("name")}
	for i, d := range b.texts("domains") {
		if d == "" {
			continue
		}
		b.canonical(element("domains", i), d)
		if slices.Contains(f.Domains, d) {
			b.invalid(element("domains", i), "domain %s is listed twice", "take one out", quote(d))
		}
		f.Domains = append(f.Domains, d)
	}
	b.network(f)
	b.dns(f)
	b.acme(f)
	f.Guards = fleet.Guards{
		MaxDeletePercent: b.number("guards.max_delete_percent", defaultPercent),
		MaxDeletes:       b.number("guards.max_deletes", defaultDeletes),
	}
	b.registration(f)
	// Only now: the built-in server's default name takes the first as written.
	slices.SortFunc(f.Domains, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return f
}

func (b *binder) network(f *fleet.Fleet) {
	text := b.text("network")
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		b.invalid("network", "invalid network %s", `want an address and a length, like "10.86.0.0/16"`, quote(text))
	case p.Masked() != p:
		b.invalid("network", "network %s has bits set after its length", fmt.Sprintf("write %q", p.Masked()), quote(text))
	case p.Addr().Is4() && (p.Bits() < 8 || p.Bits() > 28), p.Addr().Is6() && (p.Bits() < 32 || p.Bits() > 120):
		b.invalid("network", "network %s is too large or too small", "want IPv4 /8 to /28 or IPv6 /32 to /120", quote(text))
	case p.Addr().Is4In6():
		b.invalid("network", "network %s is IPv4 written as IPv6", "write it as IPv4", quote(text))
	}
	f.Network = p
}

func (b *binder) dns(f *fleet.Fleet) {
	d := &f.DNS
	d.Provider = fleet.DNSProvider(b.textOr("dns.provider", string(fleet.DNSNone)))
	d.TTL = b.duration("dns.ttl", defaultTTL, time.Second, 24*time.Hour)
	if d.TTL%time.Second != 0 {
		b.invalid("dns.ttl", "ttl %s is not in whole seconds", fmt.Sprintf("write %q", d.TTL.Round(time.Second)), d.TTL)
	}
	owners := []struct {
		field    string
		provider fleet.DNSProvider
		required bool
	}{
		{"server", fleet.DNSRFC2136, true},
		{"tsig", fleet.DNSRFC2136, true},
		{"listen", fleet.DNSBuiltin, false},
		{"nameservers", fleet.DNSBuiltin, false},
	}
	for _, o := range owners {
		given := b.has("dns." + o.field)
		switch {
		case b.bad("dns.provider"):
		case given && d.Provider != o.provider:
			b.combination("dns."+o.field, "%s is for dns provider %q, and this is %q",
				"take it out, or change provider", o.field, o.provider, d.Provider)
		case !given && o.required && d.Provider == o.provider:
			b.combination("dns", "dns provider %q has no %s", "add "+o.field, d.Provider, o.field)
		}
	}
	if d.Server = b.text("dns.server"); d.Server != "" {
		b.problem("dns.server", hostPort(d.Server))
	}
	if b.has("dns.tsig") {
		d.TSIG = fleet.TSIG{
			Name:      b.text("dns.tsig.name"),
			Algorithm: b.textOr("dns.tsig.algorithm", defaultAlgorithm),
			Key:       b.secret("dns.tsig.key"),
		}
	}
	if d.Provider == fleet.DNSBuiltin {
		d.Listen = b.textOr("dns.listen", defaultListen)
		b.problem("dns.listen", hostPort(d.Listen))
		for i, n := range b.texts("dns.nameservers") {
			b.canonical(element("dns.nameservers", i), n)
			d.Nameservers = append(d.Nameservers, n)
		}
		if len(d.Nameservers) == 0 && len(f.Domains) > 0 {
			d.Nameservers = []string{"ns1." + f.Domains[0]}
		}
	}
}

func (b *binder) acme(f *fleet.Fleet) {
	f.ACME = fleet.ACME{
		Directory: b.textOr("acme.directory", defaultDirectory),
		Email:     b.text("acme.email"),
		Challenge: fleet.Challenge(b.textOr("acme.challenge", string(fleet.ChallengeDNS01))),
		CA:        b.text("acme.ca"),
	}
}

func (b *binder) registration(f *fleet.Fleet) {
	r := &f.Registration
	r.Folder = b.textOr("registration.folder", defaultFolder)
	r.Refuse = b.texts("registration.refuse")
	if b.has("registration.rotate_every") {
		r.RotateEvery = b.duration("registration.rotate_every", 0, time.Hour, 365*24*time.Hour)
	}
	if b.has("registration.automatic") {
		r.Automatic = &fleet.Automatic{
			Names:         b.texts("registration.automatic.names"),
			TemporaryOnly: b.flag("registration.automatic.temporary_only", false),
		}
		for i, h := range b.texts("registration.automatic.hosts") {
			b.canonical(element("registration.automatic.hosts", i), h)
			r.Automatic.Hosts = append(r.Automatic.Hosts, h)
		}
	}
}

func (b *binder) edgeEntry() *fleet.Edge {
	e := &fleet.Edge{Name: b.name}
	for i, text := range b.texts("addresses") {
		path := element("addresses", i)
		a := b.address(path, text)
		switch {
		case a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast():
			b.invalid(path, "visitors cannot reach %s", "want an address that DNS can answer", quote(text))
		case a.IsValid() && slices.Contains(e.Addresses, a):
			b.invalid(path, "address %s is listed twice", "take one out", quote(text))
		}
		e.Addresses = append(e.Addresses, a)
	}
	e.Endpoint = b.text("endpoint")
	b.problem("endpoint", hostPort(e.Endpoint))
	e.TunnelAddress = b.address("tunnel_address", b.text("tunnel_address"))
	e.Generation = b.number("generation", 1)
	return e
}

func (b *binder) originEntry() *fleet.Origin {
	o := &fleet.Origin{Name: b.name}
	o.PublicKey = b.publicKey("public_key")
	if b.has("next_key") {
		o.NextKey = b.publicKey("next_key")
	}
	o.TunnelAddress = b.address("tunnel_address", b.text("tunnel_address"))
	for i, h := range b.texts("hosts") {
		b.canonical(element("hosts", i), h)
		o.Hosts = append(o.Hosts, h)
	}
	o.Expires = b.time("expires")
	return o
}

func (b *binder) publicKey(field string) keys.Public {
	key, err := keys.ParsePublic(b.text(field))
	switch {
	case err != nil:
		b.invalid(field, "%s is %s", "paste it as kokoa-agent printed it", field, err)
	case key.IsZero():
		b.invalid(field, "%s is all zeros", "paste it as kokoa-agent printed it", field)
	}
	return key
}

func (b *binder) routeEntry() *fleet.Route {
	r := &fleet.Route{Name: b.name, Host: b.text("host")}
	b.canonical("host", r.Host)
	path, problem := canonicalPath(b.textOr("path", "/"))
	b.problem("path", problem)
	r.Path = path
	r.Upstreams = []fleet.Upstream{{Origin: b.text("origin"), Service: b.service()}}
	if b.has("failover") {
		service, problem := canonicalService(b.text("failover.service"))
		b.problem("failover.service", problem)
		u := fleet.Upstream{Origin: b.text("failover.origin"), Service: service}
		if u == r.Upstreams[0] && u.Service != "" {
			b.combination("failover", "failover of route %s is the same origin and service as the first", "name another, or take it out", quote(b.name))
		}
		r.Upstreams = append(r.Upstreams, u)
	}
	r.StripPath = b.flag("strip_path", false)
	r.PreserveHost = b.flag("preserve_host", true)
	r.WebSocket = b.flag("websocket", true)
	b.tls(r)
	b.health(&r.Health)
	for i, name := range b.texts("edges") {
		if name != "" && slices.Contains(r.Edges, name) {
			b.invalid(element("edges", i), "edge %s is listed twice", "take one out", quote(name))
		}
		r.Edges = append(r.Edges, name)
	}
	r.Expires = b.time("expires")
	r.Active = b.textOr("status", "active") == "active"
	return r
}

// service is the one service of the three ways to give it.
func (b *binder) service() string {
	var given []string
	for _, way := range []string{"service", "kubernetes", "docker"} {
		if b.has(way) {
			given = append(given, way)
		}
	}
	switch {
	case len(given) == 0:
		b.add(finding{
			code: CodeMissing, at: b.at,
			message: fmt.Sprintf("route %s has no service", quote(b.name)),
			hint:    `add service: "http://host:port", or kubernetes or docker`,
		})
		return ""
	case len(given) > 1:
		b.combination(given[1], "route %s has both %s and %s", "keep one of them", quote(b.name), given[0], given[1])
		return ""
	}
	switch given[0] {
	case "kubernetes":
		return fmt.Sprintf("http://%s.%s.svc:%d", b.text("kubernetes.name"), b.text("kubernetes.namespace"), b.number("kubernetes.port", 0))
	case "docker":
		service, problem := canonicalService(fmt.Sprintf("http://%s:%d", b.text("docker.name"), b.number("docker.port", 0)))
		b.problem("docker.name", problem)
		return service
	}
	service, problem := canonicalService(b.text("service"))
	b.problem("service", problem)
	return service
}

func (b *binder) tls(r *fleet.Route) {
	r.TLS = fleet.TLS(b.textOr("tls", string(fleet.TLSAuto)))
	own := r.TLS == fleet.TLSManual || r.TLS == fleet.TLSCloudflare
	switch {
	case b.bad("tls"):
	case own && !b.has("certificate"):
		b.combination("tls", "route %s with tls %q has no certificate", "add certificate: {chain: …, key: …}", quote(b.name), r.TLS)
	case !own && b.has("certificate"):
		b.combination("certificate", "certificate is for tls \"manual\" and \"cloudflare\", and this is %q", "take it out, or set tls", r.TLS)
	case own:
		r.Certificate = fleet.ManualCertificate{Chain: b.secret("certificate.chain"), Key: b.secret("certificate.key")}
	}
	r.Redirect = b.flag("redirect", r.TLS != fleet.TLSOff)
	if r.Redirect && r.TLS == fleet.TLSOff {
		b.combination("redirect", "redirect leads to HTTPS, which tls \"off\" has not", "take one of the two out")
	}
}

func (b *binder) health(h *fleet.Health) {
	h.Path = b.text("health.path")
	h.Interval = b.duration("health.interval", defaultInterval, time.Second, time.Hour)
	h.Timeout = b.duration("health.timeout", min(defaultTimeout, h.Interval), 100*time.Millisecond, time.Minute)
	if h.Timeout > h.Interval && !b.bad("health.interval") {
		b.combination("health.timeout", "timeout %s is longer than the interval %s", "make it shorter", h.Timeout, h.Interval)
	}
	h.Failures = b.number("health.failures", defaultFailures)
}

func (b *binder) find(path string) (leaf, bool) {
	for _, l := range b.leaves {
		if l.path == path && l.typ != leafBad {
			return l, true
		}
	}
	return leaf{}, false
}

func (b *binder) text(path string) string { return b.textOr(path, "") }

func (b *binder) textOr(path, otherwise string) string {
	if l, ok := b.find(path); ok {
		return l.text
	}
	return otherwise
}

// texts are the elements of a list, "" for those that are bad.
func (b *binder) texts(path string) []string {
	var out []string
	for _, l := range b.leaves {
		if !within(l.path, path) || l.typ == leafBad {
			continue
		}
		i, err := strconv.Atoi(l.path[len(path)+1:])
		if err != nil {
			continue
		}
		if i >= maxList {
			b.invalid(path, "%s has more than %d elements", "list fewer", lastLabel(path), maxList)
			break
		}
		for len(out) <= i {
			out = append(out, "")
		}
		out[i] = l.text
	}
	return out
}

func (b *binder) flag(path string, otherwise bool) bool {
	if l, ok := b.find(path); ok {
		return l.text == "true"
	}
	return otherwise
}

func (b *binder) number(path string, otherwise int) int {
	l, ok := b.find(path)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(l.text)
	if err != nil {
		b.invalid(path, "invalid number %s", "want digits", quote(l.text))
	}
	return n
}

func (b *binder) duration(path string, otherwise, least, most time.Duration) time.Duration {
	l, ok := b.find(path)
	if !ok {
		return otherwise
	}
	d, err := time.ParseDuration(l.text)
	if err != nil || d < least || d > most {
		b.invalid(path, "%s %s is out of range", fmt.Sprintf("want %q to %q", short(least), short(most)), lastLabel(path), quote(l.text))
		return otherwise
	}
	return d
}

func (b *binder) time(path string) *time.Time {
	l, ok := b.find(path)
	if !ok {
		return nil
	}
	t, err := time.Parse(time.RFC3339, l.text)
	if err != nil {
		b.invalid(path, "%s %s is no point in time", `want RFC 3339, like "2027-01-31T18:00:00Z"`, lastLabel(path), quote(l.text))
		return nil
	}
	t = t.UTC()
	return &t
}

// address is the zero Addr when it is bad.
func (b *binder) address(path, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		b.invalid(path, "invalid address %s", `want IPv4 or IPv6, like "203.0.113.10"`, quote(text))
	case a.Is4In6():
		b.invalid(path, "address %s is IPv4 written as IPv6", fmt.Sprintf("write %q", a.Unmap()), quote(text))
	}
	return a
}

func (b *binder) secret(path string) fleet.SecretRef {
	s := fleet.SecretRef{Env: b.text(path + ".env"), File: b.text(path + ".file")}
	if b.bad(path) {
		return s
	}
	if (s.Env == "") == (s.File == "") {
		b.add(finding{
			code: CodeCombination, at: b.mark(path), private: true,
			message: lastLabel(path) + " refers to no secret, or to two",
			hint:    `want {env: "NAME"} or {file: "/path"}`,
		})
	}
	return s
}

func (b *binder) canonical(path, host string) {
	if host != "*" && !isCanonical(host) {
		b.invalid(path, "%s has a label \"xn--…\" that stands for no name", "write the name itself, or its true ASCII form", quote(host))
	}
}

func (b *binder) problem(path, problem string) {
	if problem != "" {
		b.invalid(path, "invalid %s %s", problem, lastLabel(path), quote(b.text(path)))
	}
}

// invalid reports a field and makes it bad: the checks between objects leave it
// out. What is bad already is not reported again.
func (b *binder) invalid(path, format, hint string, args ...any) {
	if b.bad(path) {
		return
	}
	at := b.mark(path)
	b.marks = append(b.marks, fieldMark{path, at, true})
	b.add(finding{code: CodeInvalid, at: at, message: fmt.Sprintf(format, args...), hint: hint})
}

func (b *binder) combination(path, format, hint string, args ...any) {
	if b.bad(path) {
		return
	}
	b.add(finding{code: CodeCombination, at: b.mark(path), message: fmt.Sprintf(format, args...), hint: hint})
}

func (b *binder) add(f finding) { b.findings = append(b.findings, f) }

func element(path string, i int) string { return path + "." + strconv.Itoa(i) }

func lastLabel(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// short is a duration without the zeros of time.Duration's text: "24h".
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errPolicy is in every error about an address that this host's owner does not
// let the agent dial, whatever the fleet says.
var errPolicy = errors.New("refused by local policy")

// target is a place a service is at: a name or an address, and a port. Names are
// lower case without the trailing dot; addresses are in netip's form, and those
// that only wrap an IPv4 address (RFC 4291 section 2.5.5.2) are that address.
// Equal places are equal targets.
type target struct {
	host string
	port uint16
}

// String is "host:port", with brackets where IPv6 needs them.
func (t target) String() string {
	return net.JoinHostPort(t.host, strconv.Itoa(int(t.port)))
}

// parseTarget reads "host:port".
func parseTarget(text string) (target, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return target{}, fmt.Errorf("%q is not host:port", text)
	}
	t := target{}
	if t.host, err = parseHost(host); err != nil {
		return target{}, fmt.Errorf("%q: %w", text, err)
	}
	if t.port, err = parsePort(port); err != nil {
		return target{}, fmt.Errorf("%q: %w", text, err)
	}
	return t, nil
}

// serviceTarget reads a service's URL: http or https, host and port and nothing
// else. The port is the scheme's own when the URL names none.
func serviceTarget(text string) (target, error) {
	u, err := url.Parse(text)
	if err != nil {
		return target{}, fmt.Errorf("%q is not a URL", text)
	}
	port := u.Port()
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return target{}, fmt.Errorf("%q: the scheme is %q, want http or https", text, u.Scheme)
	case u.User != nil, u.Path != "" && u.Path != "/", u.RawQuery != "", u.ForceQuery, u.Fragment != "", u.Opaque != "":
		return target{}, fmt.Errorf("%q: want a scheme, host and port and nothing else", text)
	case port == "" && strings.HasSuffix(u.Host, ":"):
		return target{}, fmt.Errorf("%q: the port is missing", text)
	case port == "" && u.Scheme == "http":
		port = "80"
	case port == "":
		port = "443"
	}
	return parseTarget(net.JoinHostPort(u.Hostname(), port))
}

func parseHost(text string) (string, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.Unmap().String(), nil
	}
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || len(name) > 253 {
			return "", fmt.Errorf("%q is neither a name nor an address", text)
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", fmt.Errorf("%q is neither a name nor an address", text)
			}
		}
	}
	// Some resolvers read 127.1, 0x7f000001 and 2130706433 as addresses. No name
	// in use ends in a number, so nothing is lost by asking for the plain form.
	last := labels[len(labels)-1]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.Trim(last, "0123456789") == "" {
		return "", fmt.Errorf("%q is an address in a short or numeric form; write it in full", text)
	}
	return name, nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || strings.HasPrefix(text, "+") {
		return 0, fmt.Errorf("%q is not a port between 1 and 65535", text)
	}
	return uint16(n), nil
}

// policy is what the host's owner lets the agent dial. It is fixed while the
// agent runs, and no config can widen it. It is safe for concurrent use.
type policy struct {
	// allowed is empty when every declared service may be dialled.
	allowed map[target]bool
	// network is the tunnel's own: nothing behind it is a local service, and on
	// some makes of device the host itself routes there.
	network netip.Prefix
	dialer  net.Dialer
}

// newPolicy reads entries of the form "host:port".
func newPolicy(entries []string, network netip.Prefix) (*policy, error) {
	p := &policy{
		allowed: make(map[target]bool),
		network: network,
		dialer: net.Dialer{
			Timeout:         10 * time.Second,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true},
		},
	}
	for _, entry := range entries {
		t, err := parseTarget(entry)
		if err != nil {
			return nil, fmt.Errorf("allow %w; write an entry as 192.0.2.1:8080, [2001:db8::1]:8080 or name:8080", err)
		}
		p.allowed[t] = true
	}
	return p, nil
}

// check says whether t may be tried at all: nil, or an error that is errPolicy.
// A name that passes is checked again, as every address it stands for, when it
// is dialled.
func (p *policy) check(t target) error {
	if addr, err := netip.ParseAddr(t.host); err == nil {
		return p.admit(t, netip.AddrPortFrom(addr, t.port))
	}
	if len(p.allowed) == 0 || p.allowed[t] {
		return nil
	}
	for a := range p.allowed {
		if _, err := netip.ParseAddr(a.host); err == nil && a.port == t.port {
			return nil
		}
	}
	return fmt.Errorf("%w: %v is not on the allow-list", errPolicy, t)
}

// dial opens a TCP connection to t. The name is resolved here and now, and every
// address it gave is checked before a packet is sent there: a name that was
// harmless a moment ago may be something else now.
func (p *policy) dial(ctx context.Context, t target) (net.Conn, error) {
	if err := p.check(t); err != nil {
		return nil, err
	}
	d := p.dialer
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%w: %v resolved to %q", errPolicy, t, address)
		}
		return p.admit(t, to)
	}
	conn, err := d.DialContext(ctx, "tcp", t.String())
	if err != nil && errors.Is(err, errPolicy) {
		// The library puts the refused address in front of a message that says
		// it already.
		if op, ok := errors.AsType[*net.OpError](err); ok {
			return nil, op.Err
		}
	}
	return conn, err
}

// admit says whether the address that t resolved to may be dialled.
func (p *policy) admit(t target, to netip.AddrPort) error {
	addr := to.Addr().Unmap()
	literal := target{host: addr.String(), port: to.Port()}
	if p.allowed[literal] {
		return nil
	}
	if why := p.forbidden(addr); why != "" {
		if t == literal {
			return fmt.Errorf("%w: %v is %s; only --allow %v on this host permits it", errPolicy, t, why, literal)
		}
		return fmt.Errorf("%w: %v is at %v, which is %s; only --allow %v on this host permits it", errPolicy, t, addr, why, literal)
	}
	if len(p.allowed) > 0 && !p.allowed[t] {
		return fmt.Errorf("%w: %v is not on the allow-list", errPolicy, t)
	}
	return nil
}

// forbidden says what addr is when no service should be there, or "".
func (p *policy) forbidden(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if p.network.Contains(addr) {
		return "inside the tunnel's network"
	}
	for _, f := range forbidden {
		if f.prefix.Contains(addr) {
			return f.why
		}
	}
	if inner, form := embedded(addr); form != "" {
		if why := p.forbidden(inner); why != "" {
			return "the " + form + " form of " + inner.String() + ", " + why
		}
	}
	return ""
}

// forbidden are addresses that lead to the host's own surroundings, to many
// hosts, or to none. The most telling name comes first.
var forbidden = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("169.254.169.254/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("169.254.170.2/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("168.63.129.16/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("192.0.0.192/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("100.100.100.200/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("fd00:ec2::/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), "a cloud's metadata service"},
	{netip.MustParsePrefix("fd20:ce::254/128"), "a cloud's metadata service"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("fec0::/10"), "a site-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved or broadcast address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address"},
	{netip.MustParsePrefix("::/128"), "an unspecified address"},
	// These hide an IPv4 address in ways that cannot be undone with certainty.
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a local NAT64 address"},
	{netip.MustParsePrefix("2001::/32"), "a Teredo address"},
}

// embedded is the IPv4 address inside an IPv6 one, and the name of the form that
// holds it, or "".
func embedded(addr netip.Addr) (netip.Addr, string) {
	if !addr.Is6() {
		return netip.Addr{}, ""
	}
	b := addr.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	zero := func(part []byte) bool { return !slices.ContainsFunc(part, func(c byte) bool { return c != 0 }) }
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr):
		return at(12), "NAT64" // RFC 6052 section 2.1
	case b[0] == 0x20 && b[1] == 0x02:
		return at(2), "6to4" // RFC 3056 section 2
	case netip.MustParsePrefix("::ffff:0:0:0/96").Contains(addr):
		return at(12), "translated" // RFC 2765 section 2.1
	case zero(b[:12]) && !addr.IsLoopback():
		return at(12), "IPv4-compatible" // RFC 4291 section 2.5.5.1
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return at(12), "ISATAP" // RFC 5214 section 6.1
	}
	return netip.Addr{}, ""
}

package rfc2136

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// conn is one TCP connection. miekg/dns verifies a signature where there is one;
// here an answer without one is no answer.
type conn struct {
	ctx    context.Context
	stop   func() bool
	c      *mdns.Conn
	z      *Zone
	secret string
	mac    string // of the last message, which the next one's signature covers
}

func (z *Zone) connect(ctx context.Context) (*conn, error) {
	d := net.Dialer{Timeout: z.o.Timeout}
	c, err := d.DialContext(ctx, "tcp", z.o.Server)
	if err != nil {
		return nil, fmt.Errorf("connect to dns server: %w", err)
	}
	// A canceled context ends a read or write that is under way.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	return &conn{ctx: ctx, stop: stop, c: &mdns.Conn{Conn: c}, z: z, secret: wire.Secret(z.o.Key)}, nil
}

func (c *conn) close() {
	c.stop()
	c.c.Close()
}

// exchange sends m and reads its answer.
func (c *conn) exchange(m *mdns.Msg) (*mdns.Msg, error) {
	if err := c.ask(m); err != nil {
		return nil, err
	}
	return c.answer(m, false)
}

func (c *conn) ask(m *mdns.Msg) error {
	key := c.z.o.Key
	m.Compress = true
	m.SetTsig(wire.FQDN(key.Name), wire.FQDN(key.Algorithm), 300, time.Now().Unix())
	raw, mac, err := mdns.TsigGenerate(m, c.secret, "", false)
	if err != nil {
		return fmt.Errorf("sign request: %w", err)
	}
	c.mac = mac
	if err := c.deadline(); err != nil {
		return err
	}
	if _, err := c.c.Write(raw); err != nil {
		return fmt.Errorf("send: %w", c.cause(err))
	}
	return nil
}

// answer reads one answer to m; follow says that it is not the first of a transfer.
func (c *conn) answer(m *mdns.Msg, follow bool) (*mdns.Msg, error) {
	if err := c.deadline(); err != nil {
		return nil, err
	}
	raw, err := c.c.ReadMsgHeader(nil)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", c.cause(err))
	}
	a := new(mdns.Msg)
	if err := a.Unpack(raw); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	if a.Id != m.Id || !a.Response {
		return nil, errors.New("receive: that is no answer to the request")
	}
	sig := a.IsTsig()
	if a.Rcode != mdns.RcodeSuccess {
		return nil, c.refusal(m, a, sig)
	}
	if sig == nil {
		return nil, fmt.Errorf("%s does not sign its answer with the key %s", c.z.o.Server, c.z.o.Key.Name)
	}
	err = mdns.TsigVerify(slices.Clone(raw), c.secret, c.mac, follow)
	if key := c.z.o.Key; err == nil && (wire.Name(sig.Hdr.Name) != key.Name || wire.Name(sig.Algorithm) != key.Algorithm) {
		err = mdns.ErrKey
	}
	if err != nil {
		return nil, fmt.Errorf("the answer of %s is not signed with the key %s: %w", c.z.o.Server, c.z.o.Key.Name, err)
	}
	c.mac = sig.MAC
	return a, nil
}

// deadline gives the next read or write its time.
func (c *conn) deadline() error {
	c.c.SetDeadline(time.Now().Add(c.z.o.Timeout))
	return c.ctx.Err() // looked at last: AfterFunc's deadline must not be lost
}

// cause is the context's end where that is why the connection failed.
func (c *conn) cause(err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	return err
}

// refusal says what the server's error means and what to do.
func (c *conn) refusal(m, a *mdns.Msg, sig *mdns.TSIG) error {
	o := c.z.o
	rcode := mdns.RcodeToString[a.Rcode]
	say := func(format string, args ...any) error {
		return fmt.Errorf("%s answers %s: %w", o.Server, rcode, fmt.Errorf(format, args...))
	}
	allow := fmt.Sprintf("read zone %s; allow it (BIND: allow-transfer; Knot: an acl with action transfer)", o.Zone)
	if m.Opcode == mdns.OpcodeUpdate {
		allow = fmt.Sprintf("update zone %s; allow it (BIND: update-policy or allow-update; Knot: an acl with action update)", o.Zone)
	}
	switch a.Rcode {
	case mdns.RcodeYXDomain, mdns.RcodeYXRrset, mdns.RcodeNXRrset, mdns.RcodeNameError:
		return say("%w", dns.ErrConflict)
	case mdns.RcodeRefused:
		return say("the key %s may not %s", o.Key.Name, allow)
	case mdns.RcodeNotAuth:
		code := uint16(0)
		if sig != nil {
			code = sig.Error
		}
		switch code {
		case mdns.RcodeBadKey:
			return say("it knows no key %s with %s, or, if it is Knot, the key may not %s (BADKEY)", o.Key.Name, o.Key.Algorithm, allow)
		case mdns.RcodeBadSig:
			return say("the secret of key %s differs from the server's (BADSIG)", o.Key.Name)
		case mdns.RcodeBadTime:
			return say("the clocks differ by more than 5 minutes (BADTIME); set the time here and there with NTP")
		}
		return say("it is not the primary of zone %s, or does not accept the key %s; point at the primary", o.Zone, o.Key.Name)
	case mdns.RcodeNotZone:
		return say("a name is not in zone %s", o.Zone)
	case mdns.RcodeNotImplemented:
		return say("it takes no dynamic updates (RFC 2136)")
	case mdns.RcodeServerFailure:
		return say("the server could not do it; see its log (often: it may not write the zone's folder, or the zone is not loaded)")
	}
	return say("see the server's log")
}

// Package rfc2136 is a dns.Zone on any primary that takes dynamic updates (RFC 2136)
// and zone transfers (RFC 5936), both signed with TSIG (RFC 8945): BIND, Knot,
// PowerDNS and others.
package rfc2136

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// Options say which zone, and where it is.
type Options struct {
	// Zone is the zone's name.
	Zone string
	// Server is the primary's host:port.
	Server string
	// Key signs all requests, and every answer must be signed with it.
	Key dns.Key
	// Timeout of connecting and of each request; 0 is 10 seconds.
	Timeout time.Duration
}

// Zone is a zone at its primary. It keeps the last transfer and asks for another only
// when the serial of the SOA record has moved. It is a dns.Batcher and a dns.Adder.
//
// Everything goes over TCP, which every server must offer (RFC 7766): an update holds
// many changes, and one whose UDP answer is lost cannot be sent again without
// knowing whether it was made.
type Zone struct {
	o      Options
	origin string

	mu     sync.Mutex
	serial uint32
	sets   []dns.RRset // nil before the first transfer
}

var (
	_ dns.Batcher = (*Zone)(nil)
	_ dns.Adder   = (*Zone)(nil)
)

// New checks o. It asks the server nothing.
func New(o Options) (*Zone, error) {
	if _, ok := mdns.IsDomainName(o.Zone); !ok || o.Zone == "" || wire.Name(o.Zone) != o.Zone {
		return nil, fmt.Errorf("zone %q is no name in lower case without trailing dot", o.Zone)
	}
	if _, _, err := net.SplitHostPort(o.Server); err != nil {
		return nil, fmt.Errorf("dns server %q: want host:port: %w", o.Server, err)
	}
	if err := wire.CheckKey(o.Key); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	return &Zone{o: o, origin: wire.FQDN(o.Zone)}, nil
}

// RRsets is the whole zone, by AXFR unless the serial stands where it stood.
func (z *Zone) RRsets(ctx context.Context) ([]dns.RRset, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	c, err := z.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if z.sets != nil {
		serial, err := z.askSerial(c)
		if err != nil {
			return nil, err
		}
		if serial == z.serial {
			return slices.Clone(z.sets), nil
		}
	}
	rrs, serial, err := z.transfer(c)
	if err != nil {
		return nil, err
	}
	z.sets, z.serial = wire.Sets(rrs), serial
	return slices.Clone(z.sets), nil
}

// Set replaces one set, in one update.
func (z *Zone) Set(ctx context.Context, set dns.RRset) error {
	if len(set.Values) == 0 {
		return fmt.Errorf("set %s %s: %w", set.Name, set.Type, dns.ErrEmpty)
	}
	return z.Commit(ctx, []dns.Transaction{{Set: []dns.RRset{set}}})[0]
}

// Delete removes one set.
func (z *Zone) Delete(ctx context.Context, name string, typ dns.Type) error {
	return z.Commit(ctx, []dns.Transaction{{Set: []dns.RRset{{Name: name, Type: typ}}}})[0]
}

// Add adds one record (RFC 2136 section 2.5.1).
func (z *Zone) Add(ctx context.Context, name string, typ dns.Type, ttl time.Duration, value string) error {
	return z.single(ctx, dns.RRset{Name: name, Type: typ, TTL: ttl, Values: []string{value}}, (*mdns.Msg).Insert)
}

// Remove removes one record (RFC 2136 section 2.5.4).
func (z *Zone) Remove(ctx context.Context, name string, typ dns.Type, value string) error {
	return z.single(ctx, dns.RRset{Name: name, Type: typ, Values: []string{value}}, (*mdns.Msg).Remove)
}

// Commit packs as many transactions into each message as fit, since a message is
// atomic and one round trip. When a requirement in a message fails, the server does
// not say which: the message is halved until the transaction is found.
func (z *Zone) Commit(ctx context.Context, transactions []dns.Transaction) []error {
	errs := make([]error, len(transactions))
	ready := make([]update, 0, len(transactions))
	for i, t := range transactions {
		u, err := z.prepare(t)
		if u.index = i; err != nil {
			errs[i] = err
			continue
		}
		ready = append(ready, u)
	}
	b := &batch{z: z, errs: errs}
	defer b.close()
	for len(ready) > 0 {
		n := fit(ready)
		b.send(ctx, ready[:n])
		ready = ready[n:]
	}
	return errs
}

// update is a transaction as records.
type update struct {
	index   int
	require []mdns.RR
	change  []mdns.RR
	size    int
	touched []touch
}

type touch struct {
	name string
	typ  dns.Type
}

func (z *Zone) prepare(t dns.Transaction) (update, error) {
	var u update
	m := new(mdns.Msg)
	m.SetUpdate(z.origin)
	for i, set := range append(t.Require[:len(t.Require):len(t.Require)], t.Set...) {
		h, err := wire.Header(z.o.Zone, set)
		if err != nil {
			return u, err
		}
		rrs, err := wire.Records(z.o.Zone, set)
		if err != nil {
			return u, err
		}
		u.touched = append(u.touched, touch{set.Name, set.Type})
		none := []mdns.RR{&mdns.ANY{Hdr: h}}
		switch required := i < len(t.Require); {
		case required && len(rrs) == 0:
			m.RRsetNotUsed(none)
		case required:
			m.Used(rrs)
		default:
			m.RemoveRRset(none)
			m.Insert(rrs)
		}
	}
	u.require, u.change = m.Answer, m.Ns
	for _, rr := range m.Answer {
		u.size += mdns.Len(rr)
	}
	for _, rr := range m.Ns {
		u.size += mdns.Len(rr)
	}
	if u.size > maxUpdate {
		return u, fmt.Errorf("transaction of %d bytes does not fit into one message", u.size)
	}
	return u, nil
}

// maxUpdate leaves room for the header and the signature in a message of 64 KiB.
const maxUpdate = 60_000

// fit is how many of the updates one message takes. Requirements are checked before
// any change of a message is made, so two transactions that touch one set go in two.
func fit(updates []update) int {
	size, touched := 0, map[touch]bool{}
	for n, u := range updates {
		if size += u.size; size > maxUpdate {
			return n
		}
		for _, t := range u.touched {
			if touched[t] {
				return n
			}
		}
		for _, t := range u.touched {
			touched[t] = true
		}
	}
	return len(updates)
}

// batch sends updates over one connection.
type batch struct {
	z    *Zone
	c    *conn
	errs []error
}

func (b *batch) send(ctx context.Context, updates []update) {
	m := new(mdns.Msg)
	m.SetUpdate(b.z.origin)
	for _, u := range updates {
		m.Answer = append(m.Answer, u.require...)
		m.Ns = append(m.Ns, u.change...)
	}
	err := b.exchange(ctx, m)
	if errors.Is(err, dns.ErrConflict) && len(updates) > 1 {
		half := len(updates) / 2
		b.send(ctx, updates[:half])
		b.send(ctx, updates[half:])
		return
	}
	for _, u := range updates {
		b.errs[u.index] = err
	}
}

func (b *batch) exchange(ctx context.Context, m *mdns.Msg) error {
	if b.c == nil {
		c, err := b.z.connect(ctx)
		if err != nil {
			return err
		}
		b.c = c
	}
	if _, err := b.c.exchange(m); err != nil {
		// What the next answer on this connection would belong to is unknown.
		b.close()
		return fmt.Errorf("update zone %s: %w", b.z.o.Zone, err)
	}
	return nil
}

func (b *batch) close() {
	if b.c != nil {
		b.c.close()
		b.c = nil
	}
}

func (z *Zone) single(ctx context.Context, set dns.RRset, change func(*mdns.Msg, []mdns.RR)) error {
	rrs, err := wire.Records(z.o.Zone, set)
	if err != nil {
		return err
	}
	m := new(mdns.Msg)
	m.SetUpdate(z.origin)
	change(m, rrs)
	b := &batch{z: z}
	defer b.close()
	return b.exchange(ctx, m)
}

func (z *Zone) askSerial(c *conn) (uint32, error) {
	m := new(mdns.Msg)
	m.SetQuestion(z.origin, mdns.TypeSOA)
	m.RecursionDesired = false
	answer, err := c.exchange(m)
	if err != nil {
		return 0, fmt.Errorf("ask for the serial of zone %s: %w", z.o.Zone, err)
	}
	for _, rr := range answer.Answer {
		if soa, ok := rr.(*mdns.SOA); ok && wire.Name(soa.Hdr.Name) == z.o.Zone {
			return soa.Serial, nil
		}
	}
	return 0, fmt.Errorf("ask for the serial of zone %s: %s does not serve the zone", z.o.Zone, z.o.Server)
}

// transfer reads the zone between its two SOA records (RFC 5936 section 2.2); a
// transfer that ends before the second is an error.
func (z *Zone) transfer(c *conn) (rrs []mdns.RR, serial uint32, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("transfer zone %s: %w", z.o.Zone, err)
		}
	}()
	m := new(mdns.Msg)
	m.SetAxfr(z.origin)
	if err := c.ask(m); err != nil {
		return nil, 0, err
	}
	var first *mdns.SOA
	for {
		answer, err := c.answer(m, first != nil)
		if err != nil {
			return nil, 0, err
		}
		for i, rr := range answer.Answer {
			soa, isSOA := rr.(*mdns.SOA)
			switch {
			case first == nil && !isSOA:
				return nil, 0, errors.New("it does not begin with an SOA record")
			case first == nil:
				first = soa
			case isSOA && soa.Serial != first.Serial:
				return nil, 0, errors.New("the zone changed under the transfer")
			case isSOA && i != len(answer.Answer)-1:
				return nil, 0, errors.New("records follow its last SOA record")
			case isSOA:
				return rrs, first.Serial, nil
			default:
				rrs = append(rrs, rr)
			}
		}
		if first == nil {
			return nil, 0, errors.New("the answer is empty")
		}
	}
}

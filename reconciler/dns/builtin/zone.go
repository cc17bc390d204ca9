package builtin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// Zone is one zone of a Server.
type Zone struct {
	name    string
	key     dns.Key
	changed func()

	write sync.Mutex // one writer at a time; readers take none
	live  atomic.Pointer[snapshot]
}

var (
	_ dns.Batcher = (*Zone)(nil)
	_ dns.Adder   = (*Zone)(nil)
)

const (
	apexTTL = 5 * time.Minute
	// negativeTTL is how long "there is no such name" is kept (RFC 2308 section
	// 5): a name that someone asked for too early works this much later.
	negativeTTL = 30
)

func newZone(name string, nameservers []string, key dns.Key, changed func()) *Zone {
	if len(nameservers) == 0 {
		nameservers = []string{"ns." + name}
	}
	z := &Zone{name: name, key: key, changed: changed}
	apex := func(typ uint16) mdns.RR_Header {
		return mdns.RR_Header{Name: wire.FQDN(name), Rrtype: typ, Class: mdns.ClassINET, Ttl: uint32(apexTTL / time.Second)}
	}
	s := &snapshot{zone: name, serial: nextSerial(0), soa: mdns.SOA{
		Hdr: apex(mdns.TypeSOA), Ns: wire.FQDN(nameservers[0]), Mbox: wire.FQDN("hostmaster." + name),
		Refresh: 300, Retry: 60, Expire: 14 * 86400, Minttl: negativeTTL,
	}}
	values := make([]string, len(nameservers))
	for i, n := range nameservers {
		values[i] = wire.FQDN(n)
		s.ns.rrs = append(s.ns.rrs, &mdns.NS{Hdr: apex(mdns.TypeNS), Ns: values[i]})
	}
	slices.Sort(values)
	s.ns.RRset = dns.RRset{Name: name, Type: dns.NS, TTL: apexTTL, Values: slices.Compact(values)}
	z.live.Store(s)
	return z
}

// nextSerial rises with every change and also with time, so that a zone which lost
// its last changes in a crash does not use one serial for two contents.
func nextSerial(last uint32) uint32 {
	return max(last+1, uint32(time.Now().Unix()))
}

// Serial is the serial of the SOA record.
func (z *Zone) Serial() uint32 { return z.live.Load().serial }

// RRsets is the whole zone.
func (z *Zone) RRsets(ctx context.Context) ([]dns.RRset, error) {
	s := z.live.Load()
	sets := make([]dns.RRset, 0, 2*len(s.nodes)+1)
	sets = append(sets, s.ns.RRset)
	for _, n := range s.nodes {
		for _, set := range n.sets {
			sets = append(sets, set.RRset)
		}
	}
	return sets, ctx.Err()
}

// Set replaces one set.
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

// Commit makes the transactions visible all at once; those that fail are not among
// them.
func (z *Zone) Commit(ctx context.Context, transactions []dns.Transaction) []error {
	errs := make([]error, len(transactions))
	if err := ctx.Err(); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	z.edit(func(d *draft) {
		for i, t := range transactions {
			errs[i] = d.commit(t)
		}
	})
	return errs
}

// Add puts one value into a set.
func (z *Zone) Add(ctx context.Context, name string, typ dns.Type, ttl time.Duration, value string) error {
	return z.editSet(ctx, name, typ, func(set *dns.RRset) {
		set.TTL = ttl
		set.Values = append(slices.Clone(set.Values), value)
	})
}

// Remove takes one value out of a set.
func (z *Zone) Remove(ctx context.Context, name string, typ dns.Type, value string) error {
	return z.editSet(ctx, name, typ, func(set *dns.RRset) {
		set.Values = slices.DeleteFunc(slices.Clone(set.Values), func(v string) bool { return v == value })
	})
}

func (z *Zone) editSet(ctx context.Context, name string, typ dns.Type, change func(*dns.RRset)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var err error
	z.edit(func(d *draft) {
		set := d.get(name, typ)
		change(&set)
		var ready rrset
		if ready, err = d.check(set); err == nil {
			d.put(ready)
		}
	})
	return err
}

// edit makes changes and publishes them as one snapshot. It reports whether there
// was a change.
func (z *Zone) edit(change func(*draft)) bool {
	z.write.Lock()
	defer z.write.Unlock()
	d := &draft{base: z.live.Load(), nodes: map[string]*node{}}
	change(d)
	next, changed := d.publish()
	if changed {
		z.live.Store(next)
		z.changed()
	}
	return changed
}

func (z *Zone) allows(key dns.Key) bool {
	return !z.key.IsZero() && key.Name == z.key.Name && key.Algorithm == z.key.Algorithm
}

// transfer sends the whole zone (RFC 5936), to an IXFR too, which that allows (RFC
// 1995 section 4), or only the SOA record when the asker has this serial.
func (z *Zone) transfer(w mdns.ResponseWriter, r *mdns.Msg, key dns.Key) {
	s := z.live.Load()
	soa := s.soaRecord()
	var batch []mdns.RR
	size := 0
	send := func() error {
		a := new(mdns.Msg)
		a.SetReply(r)
		a.Authoritative, a.Compress, a.Answer = true, true, batch
		sign(a, key)
		err := w.WriteMsg(a)
		w.TsigTimersOnly(true)
		batch, size = nil, 0
		return err
	}
	add := func(rrs ...mdns.RR) error {
		for _, rr := range rrs {
			n := mdns.Len(rr)
			if size+n > maxTransfer {
				if err := send(); err != nil {
					return err
				}
			}
			batch, size = append(batch, rr), size+n
		}
		return nil
	}
	if r.Question[0].Qtype == mdns.TypeIXFR && len(r.Ns) == 1 {
		if have, ok := r.Ns[0].(*mdns.SOA); ok && have.Serial == s.serial {
			batch = []mdns.RR{soa}
			send()
			return
		}
	}
	// A write that fails means that the asker is gone: there is nobody to tell.
	if add(soa) != nil || add(s.ns.rrs...) != nil {
		return
	}
	for _, n := range s.nodes {
		for _, set := range n.sets {
			if add(set.rrs...) != nil {
				return
			}
		}
	}
	if add(soa) == nil {
		send()
	}
}

// maxTransfer of records per message, before compression.
const maxTransfer = 48 << 10

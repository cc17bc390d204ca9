package builtin

import (
	"slices"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// update makes a dynamic update (RFC 2136 section 3), whole or not at all, and
// reports whether it changed anything.
func (z *Zone) update(m *mdns.Msg) (rcode int, changed bool) {
	changed = z.edit(func(d *draft) {
		if rcode = d.prerequisites(m.Answer); rcode != mdns.RcodeSuccess {
			return
		}
		if rcode = d.prescan(m.Ns); rcode != mdns.RcodeSuccess {
			return
		}
		if rcode = d.updates(m.Ns); rcode != mdns.RcodeSuccess {
			clear(d.nodes)
		}
	})
	return rcode, changed
}

// prerequisites are RFC 2136 section 3.2.
func (d *draft) prerequisites(rrs []mdns.RR) int {
	var exact []mdns.RR
	for _, rr := range rrs {
		h := rr.Header()
		name, typ := wire.Name(h.Name), wire.Type(h.Rrtype)
		empty := h.Rdlength == 0
		switch {
		case h.Ttl != 0:
			return mdns.RcodeFormatError
		case !wire.InZone(d.base.zone, name):
			return mdns.RcodeNotZone
		case h.Class == mdns.ClassINET && h.Rrtype == mdns.TypeSOA && name == d.base.zone:
			if wire.Value(rr) != wire.Value(d.base.soaRecord()) {
				return mdns.RcodeNXRrset
			}
			continue
		case h.Class == mdns.ClassINET && !empty:
			exact = append(exact, rr)
			continue
		case h.Class != mdns.ClassANY && h.Class != mdns.ClassNONE || !empty:
			return mdns.RcodeFormatError
		}
		inUse := len(d.get(name, typ).Values) > 0 || name == d.base.zone && h.Rrtype == mdns.TypeSOA
		if h.Rrtype == mdns.TypeANY {
			inUse = len(d.at(name).sets) > 0 || name == d.base.zone
		}
		switch want := h.Class == mdns.ClassANY; {
		case inUse == want:
		case want && h.Rrtype == mdns.TypeANY:
			return mdns.RcodeNameError
		case want:
			return mdns.RcodeNXRrset
		case h.Rrtype == mdns.TypeANY:
			return mdns.RcodeYXDomain
		default:
			return mdns.RcodeYXRrset
		}
	}
	for _, set := range wire.Sets(exact) {
		if !slices.Equal(d.get(set.Name, set.Type).Values, set.Values) {
			return mdns.RcodeNXRrset
		}
	}
	return mdns.RcodeSuccess
}

// prescan is RFC 2136 section 3.4.1.
func (d *draft) prescan(rrs []mdns.RR) int {
	for _, rr := range rrs {
		h := rr.Header()
		empty := h.Rdlength == 0
		meta := h.Rrtype >= 128 && h.Rrtype <= 255 || h.Rrtype == mdns.TypeOPT
		switch {
		case !wire.InZone(d.base.zone, wire.Name(h.Name)):
			return mdns.RcodeNotZone
		case h.Class == mdns.ClassINET && !meta && !empty:
		case h.Class == mdns.ClassANY && h.Ttl == 0 && empty && (!meta || h.Rrtype == mdns.TypeANY):
		case h.Class == mdns.ClassNONE && h.Ttl == 0 && !meta:
		default:
			return mdns.RcodeFormatError
		}
	}
	return mdns.RcodeSuccess
}

// updates are RFC 2136 section 3.4.2. The SOA and NS records of the zone are the
// server's own: what would change them is passed over, as that section has it for
// records which must not go.
func (d *draft) updates(rrs []mdns.RR) int {
	for _, rr := range rrs {
		h := rr.Header()
		name, typ := wire.Name(h.Name), wire.Type(h.Rrtype)
		if h.Rrtype == mdns.TypeSOA || h.Rrtype == mdns.TypeNS && name == d.base.zone {
			continue
		}
		if h.Class == mdns.ClassANY && h.Rrtype == mdns.TypeANY {
			for _, set := range d.at(name).sets {
				d.put(rrset{RRset: dns.RRset{Name: name, Type: set.Type}})
			}
			continue
		}
		set := d.get(name, typ)
		switch h.Class {
		case mdns.ClassINET:
			set.TTL = time.Duration(h.Ttl) * time.Second
			set.Values = append(slices.Clone(set.Values), wire.Value(rr))
		case mdns.ClassANY:
			set.Values = nil
		case mdns.ClassNONE:
			gone := wire.Value(rr)
			set.Values = slices.DeleteFunc(slices.Clone(set.Values), func(v string) bool { return v == gone })
		}
		ready, err := d.check(set)
		if err != nil {
			return mdns.RcodeRefused
		}
		d.put(ready)
	}
	return mdns.RcodeSuccess
}

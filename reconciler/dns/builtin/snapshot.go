package builtin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// snapshot is a zone at one serial. It is immutable.
type snapshot struct {
	zone   string
	serial uint32
	soa    mdns.SOA
	ns     rrset
	// nodes with records, sorted by key: a name's whole subtree follows it, so
	// that an empty non-terminal is seen from the next node alone. Publishing a
	// batch copies this slice once, 8 bytes a name.
	nodes []*node
}

// node is a name and its sets, sorted by type.
type node struct {
	key  string
	name string
	sets []rrset
}

// rrset is a set, and the same as records.
type rrset struct {
	dns.RRset
	code uint16
	rrs  []mdns.RR
}

// key is the labels of name below the zone, from the zone down, each followed by a
// zero byte. (In text a zero byte in a label is written "\000".)
func key(zone, name string) string {
	if name == zone {
		return ""
	}
	labels := mdns.SplitDomainName(strings.TrimSuffix(name, "."+zone))
	var b strings.Builder
	b.Grow(len(name) + 1)
	for _, l := range slices.Backward(labels) {
		b.WriteString(l)
		b.WriteByte(0)
	}
	return b.String()
}

// find is where a key is or would be.
func (s *snapshot) find(key string) (i int, ok bool) {
	return slices.BinarySearchFunc(s.nodes, key, func(n *node, k string) int { return strings.Compare(n.key, k) })
}

// node is the node at a key, nil when it has no records; exists says that the name
// exists all the same, since names below it do.
func (s *snapshot) node(key string) (n *node, exists bool) {
	i, ok := s.find(key)
	if ok {
		return s.nodes[i], true
	}
	return nil, key == "" || i < len(s.nodes) && strings.HasPrefix(s.nodes[i].key, key)
}

func (s *snapshot) soaRecord() *mdns.SOA {
	soa := s.soa
	soa.Serial = s.serial
	return &soa
}

// answer fills a with the answer to q (RFC 1034 section 4.3.2, RFC 4592 section
// 3.3.1), the addresses rotated by turn.
func (s *snapshot) answer(a *mdns.Msg, q mdns.Question, turn int) {
	a.Authoritative = true
	k := key(s.zone, wire.Name(q.Name))
	n, exists := s.node(k)
	if !exists {
		n, exists = s.wildcard(k)
	}
	switch {
	case !exists:
		a.Rcode = mdns.RcodeNameError
	case k == "" && q.Qtype == mdns.TypeSOA:
		a.Answer = []mdns.RR{s.soaRecord()}
	case k == "" && q.Qtype == mdns.TypeNS:
		a.Answer = s.ns.rrs
	case q.Qtype == mdns.TypeANY && (n != nil || k == ""):
		a.Answer = []mdns.RR{&mdns.HINFO{
			Hdr: mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypeHINFO, Class: mdns.ClassINET, Ttl: negativeTTL}, Cpu: "RFC8482",
		}}
	default:
		a.Answer = n.records(q, turn)
	}
	if len(a.Answer) == 0 {
		a.Ns = []mdns.RR{s.negative()}
	}
}

// wildcard is the node that answers for a key that does not exist: the one right below
// the longest name above it that does exist, and no other.
func (s *snapshot) wildcard(key string) (n *node, exists bool) {
	for {
		key = key[:strings.LastIndexByte(key[:len(key)-1], 0)+1]
		if _, encloser := s.node(key); encloser {
			return s.node(key + "*\x00")
		}
	}
}

// negative is the SOA record of an answer that there is none (RFC 2308 section 3).
func (s *snapshot) negative() mdns.RR {
	soa := s.soaRecord()
	soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
	return soa
}

// records is the set that q asks for, under the name that q asks with: the same in
// its own mix of cases, or one that a wildcard answers for.
func (n *node) records(q mdns.Question, turn int) []mdns.RR {
	if n == nil {
		return nil
	}
	for _, set := range n.sets {
		if set.code != q.Qtype {
			continue
		}
		out := make([]mdns.RR, len(set.rrs))
		for i := range out {
			out[i] = mdns.Copy(set.rrs[(i+turn%len(out))%len(out)])
			out[i].Header().Name = q.Name
		}
		return out
	}
	return nil
}

// draft is changes on top of a snapshot.
type draft struct {
	base  *snapshot
	nodes map[string]*node // those touched, by key; the ones without sets are to go
}

func (d *draft) at(name string) *node {
	k := key(d.base.zone, name)
	if n, ok := d.nodes[k]; ok {
		return n
	}
	if n, _ := d.base.node(k); n != nil {
		return n
	}
	return &node{key: k, name: name}
}

// get is a set; without values when there is none.
func (d *draft) get(name string, typ dns.Type) dns.RRset {
	if name == d.base.zone && typ == dns.NS {
		return d.base.ns.RRset
	}
	if wire.InZone(d.base.zone, name) {
		for _, set := range d.at(name).sets {
			if set.Type == typ {
				return set.RRset
			}
		}
	}
	return dns.RRset{Name: name, Type: typ}
}

// check makes set ready for put.
func (d *draft) check(set dns.RRset) (rrset, error) {
	h, err := wire.Header(d.base.zone, set)
	if err != nil {
		return rrset{}, err
	}
	if len(set.Values) > 0 && !supported(set.Type) {
		return rrset{}, fmt.Errorf("%s: %w", set.Name, unsupported(set.Type))
	}
	rrs, err := wire.Records(d.base.zone, set)
	if err != nil {
		return rrset{}, err
	}
	// The values as a transfer would give them.
	byValue := make(map[string]mdns.RR, len(rrs))
	for _, rr := range rrs {
		byValue[wire.Value(rr)] = rr
	}
	ready := rrset{set, h.Rrtype, rrs[:0]}
	ready.Values = slices.Sorted(maps.Keys(byValue))
	for _, v := range ready.Values {
		ready.rrs = append(ready.rrs, byValue[v])
	}
	return ready, nil
}

// put replaces or, without values, removes a set.
func (d *draft) put(set rrset) {
	n := d.at(set.Name)
	i, found := slices.BinarySearchFunc(n.sets, set.Type, func(s rrset, t dns.Type) int { return strings.Compare(string(s.Type), string(t)) })
	if !found && len(set.Values) == 0 {
		return
	}
	end := i
	if found {
		end++
	}
	next := &node{key: n.key, name: n.name}
	next.sets = append(next.sets, n.sets[:i]...)
	if len(set.Values) > 0 {
		next.sets = append(next.sets, set)
	}
	next.sets = append(next.sets, n.sets[end:]...)
	d.nodes[n.key] = next
}

func (d *draft) commit(t dns.Transaction) error {
	for _, r := range t.Require {
		if !wire.InZone(d.base.zone, r.Name) {
			return fmt.Errorf("%s is not in zone %s", r.Name, d.base.zone)
		}
		if !slices.Equal(d.get(r.Name, r.Type).Values, r.Values) {
			return fmt.Errorf("%s %s is not as required: %w", r.Name, r.Type, dns.ErrConflict)
		}
	}
	ready := make([]rrset, len(t.Set))
	for i, set := range t.Set {
		var err error
		if ready[i], err = d.check(set); err != nil {
			return err
		}
	}
	for _, set := range ready {
		d.put(set)
	}
	return nil
}

// same reports whether the node says what the base says at its key.
func (d *draft) same(n *node) bool {
	old, _ := d.base.node(n.key)
	if old == nil {
		return len(n.sets) == 0
	}
	return slices.EqualFunc(old.sets, n.sets, func(a, b rrset) bool {
		return a.Type == b.Type && a.TTL == b.TTL && slices.Equal(a.Values, b.Values)
	})
}

// publish is the snapshot with the changes, or the base when there are none.
func (d *draft) publish() (s *snapshot, changed bool) {
	maps.DeleteFunc(d.nodes, func(_ string, n *node) bool { return d.same(n) })
	if len(d.nodes) == 0 {
		return d.base, false
	}
	next := *d.base
	next.serial = nextSerial(d.base.serial)
	next.nodes = make([]*node, 0, len(d.base.nodes)+len(d.nodes))
	from := 0
	for _, k := range slices.Sorted(maps.Keys(d.nodes)) {
		i, found := d.base.find(k)
		next.nodes = append(next.nodes, d.base.nodes[from:i]...)
		if from = i; found {
			from++
		}
		if n := d.nodes[k]; len(n.sets) > 0 {
			next.nodes = append(next.nodes, n)
		}
	}
	next.nodes = append(next.nodes, d.base.nodes[from:]...)
	return &next, true
}

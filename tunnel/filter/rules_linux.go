package filter

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// install replaces the table at one stroke.
func (f *Filter) install(used []uint16) error {
	c, table := f.conn, f.table()
	c.AddTable(table) // else there may be none to remove
	c.DelTable(table)
	c.AddTable(table)
	allowed := slices.Collect(maps.Keys(f.allowed))
	if err := f.addSet(f.allowedSet(), allowed); err != nil {
		return err
	}
	if err := f.addSet(f.usedSet(), append(used, allowed...)); err != nil {
		return err
	}

	input := c.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	family, daddr, icmp, tooBig := byte(unix.NFPROTO_IPV4), payload(ipHeader, 16, 4), byte(unix.IPPROTO_ICMP), []byte{3, 4} // RFC 1191
	if f.address.Is6() {
		family, daddr, icmp, tooBig = unix.NFPROTO_IPV6, payload(ipHeader, 24, 16), unix.IPPROTO_ICMPV6, []byte{2, 0} // RFC 4443 section 3.2
	}
	here := slices.Concat(
		meta(expr.MetaKeyNFPROTO), is(family),
		daddr, is(f.address.AsSlice()...),
	)
	tcp := slices.Concat(meta(expr.MetaKeyL4PROTO), is(unix.IPPROTO_TCP))
	first := slices.Concat(payload(nextHeader, 13, 1), masked(tcpSYN|tcpACK), is(tcpSYN))
	later := slices.Concat(payload(nextHeader, 13, 1), masked(tcpSYN|tcpACK), isNot(tcpSYN))
	from, to := payload(nextHeader, 0, 2), payload(nextHeader, 2, 2)
	for _, rule := range [][]expr.Any{
		slices.Concat(meta(expr.MetaKeyIIFNAME), isNot(name(f.link)...), accept),
		slices.Concat(here, tcp, later, to, in(f.usedSet()), accept),
		slices.Concat(here, tcp, first, to, in(f.allowedSet()), accept),
		slices.Concat(here, meta(expr.MetaKeyL4PROTO), is(icmp), payload(nextHeader, 0, 2), is(tooBig...), accept),
		slices.Concat(tcp, []expr.Any{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
		{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}},
	} {
		c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: rule})
	}

	output := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: slices.Concat(
		meta(expr.MetaKeyOIFNAME), is(name(f.link)...), tcp, first, from, addTo(f.usedSet()),
	)})
	return c.Flush()
}

func (f *Filter) table() *nftables.Table {
	return &nftables.Table{Name: "kokoa-" + f.link, Family: nftables.TableFamilyINet}
}

// allowedSet has the ports that connections may come to.
func (f *Filter) allowedSet() *nftables.Set {
	return &nftables.Set{Table: f.table(), Name: "allowed", ID: 1, KeyType: nftables.TypeInetService}
}

// usedSet has the ports that some connection was taken at or dialled from. There are
// as few as ports, so none has to leave.
func (f *Filter) usedSet() *nftables.Set {
	return &nftables.Set{Table: f.table(), Name: "used", ID: 2, KeyType: nftables.TypeInetService, Dynamic: true, Size: 1 << 16}
}

func (f *Filter) addSet(set *nftables.Set, ports []uint16) error {
	if err := f.conn.AddSet(set, nil); err != nil {
		return err
	}
	// The elements of one message must fit into one attribute.
	for some := range slices.Chunk(ports, 1024) {
		if err := f.conn.SetAddElements(set, elements(some...)); err != nil {
			return err
		}
	}
	return nil
}

func elements(ports ...uint16) []nftables.SetElement {
	all := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		all[i].Key = binary.BigEndian.AppendUint16(nil, p)
	}
	return all
}

// What rules are made of. Each loads register 1 or tests what is in it.

const (
	ipHeader   = expr.PayloadBaseNetworkHeader
	nextHeader = expr.PayloadBaseTransportHeader

	tcpSYN, tcpACK = 0x02, 0x10
)

var accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}

func meta(key expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: 1}} }

func payload(base expr.PayloadBase, offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}}
}

func masked(bits byte) []expr.Any {
	return []expr.Any{&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{bits}, Xor: []byte{0}}}
}

func is(value ...byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func isNot(value ...byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: value}}
}

func in(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

func addTo(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_ADD}}
}

// name is a link's name as the kernel compares it.
func name(link string) []byte { return append([]byte(link), make([]byte, unix.IFNAMSIZ-len(link))...) }

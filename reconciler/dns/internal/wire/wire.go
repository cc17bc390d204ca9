// Package wire turns record sets into the records of miekg/dns and back.
package wire

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// FQDN is a name with its trailing dot.
func FQDN(name string) string { return mdns.Fqdn(name) }

// Name is a name as package dns writes it.
func Name(fqdn string) string { return strings.TrimSuffix(mdns.CanonicalName(fqdn), ".") }

// Code is a type's number; ok is false when there is no such type.
func Code(t dns.Type) (code uint16, ok bool) {
	if code, ok = mdns.StringToType[string(t)]; ok {
		return code, true
	}
	_, err := fmt.Sscanf(string(t), "TYPE%d", &code)
	return code, err == nil
}

// Type is the type of a number.
func Type(code uint16) dns.Type { return dns.Type(mdns.Type(code).String()) }

// InZone reports whether name is zone or below it.
func InZone(zone, name string) bool {
	// By labels: "a\.b.c" is not in "b.c".
	return mdns.IsSubDomain(zone, name)
}

// Header checks that set can be in zone, and is the header of its records.
func Header(zone string, set dns.RRset) (mdns.RR_Header, error) {
	if _, ok := mdns.IsDomainName(set.Name); !ok || Name(set.Name) != set.Name {
		return mdns.RR_Header{}, fmt.Errorf("%q is no name in lower case without trailing dot", set.Name)
	}
	if !InZone(zone, set.Name) {
		return mdns.RR_Header{}, fmt.Errorf("%s is not in zone %s", set.Name, zone)
	}
	if set.TTL < 0 || set.TTL%time.Second != 0 || set.TTL/time.Second > 1<<31-1 {
		return mdns.RR_Header{}, fmt.Errorf("%s %s: ttl %s: want whole seconds below 2^31", set.Name, set.Type, set.TTL)
	}
	code, ok := Code(set.Type)
	if !ok {
		return mdns.RR_Header{}, fmt.Errorf("%q is no record type", set.Type)
	}
	return mdns.RR_Header{Name: FQDN(set.Name), Rrtype: code, Class: mdns.ClassINET, Ttl: uint32(set.TTL / time.Second)}, nil
}

// Records is a set of zone as records; none when it has no values.
func Records(zone string, set dns.RRset) ([]mdns.RR, error) {
	h, err := Header(zone, set)
	if err != nil {
		return nil, err
	}
	rrs := make([]mdns.RR, len(set.Values))
	for i, v := range set.Values {
		if rrs[i], err = record(h, set, v); err != nil {
			return nil, fmt.Errorf("%s %s: %q: %w", set.Name, set.Type, v, err)
		}
	}
	return rrs, nil
}

func record(h mdns.RR_Header, set dns.RRset, value string) (mdns.RR, error) {
	switch h.Rrtype {
	case mdns.TypeA, mdns.TypeAAAA:
		a, err := netip.ParseAddr(value)
		if err != nil || a.Is4() != (h.Rrtype == mdns.TypeA) || a.Zone() != "" {
			return nil, fmt.Errorf("not an %s address", set.Type)
		}
		if a.Is4() {
			return &mdns.A{Hdr: h, A: a.AsSlice()}, nil
		}
		return &mdns.AAAA{Hdr: h, AAAA: a.AsSlice()}, nil
	case mdns.TypeTXT:
		return &mdns.TXT{Hdr: h, Txt: escape(value)}, nil
	}
	if strings.ContainsAny(value, "\n\r;()") {
		return nil, fmt.Errorf("not one line of a zone file")
	}
	rr, err := mdns.NewRR(fmt.Sprintf("%s %d IN %s %s", h.Name, h.Ttl, set.Type, value))
	if err != nil {
		return nil, err
	}
	if rr == nil || rr.Header().Rrtype != h.Rrtype {
		return nil, fmt.Errorf("not the data of a record")
	}
	return rr, nil
}

// Value is a record's data as package dns writes it.
func Value(rr mdns.RR) string {
	switch rr := rr.(type) {
	case *mdns.A:
		return rr.A.String()
	case *mdns.AAAA:
		a, _ := netip.AddrFromSlice(rr.AAAA)
		return a.String()
	case *mdns.TXT:
		return unescape(rr.Txt)
	}
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}

// Sets groups records into sets, leaving out the SOA record and what a DNSSEC
// signer makes. Where the TTLs of a set differ the lowest counts (RFC 2181 section
// 5.2).
func Sets(rrs []mdns.RR) []dns.RRset {
	type key struct {
		name string
		code uint16
	}
	index := make(map[key]int, len(rrs))
	sets := make([]dns.RRset, 0, len(rrs))
	for _, rr := range rrs {
		h := rr.Header()
		switch h.Rrtype {
		case mdns.TypeSOA, mdns.TypeRRSIG, mdns.TypeNSEC, mdns.TypeNSEC3, mdns.TypeNSEC3PARAM, bindPrivate:
			continue
		}
		k := key{Name(h.Name), h.Rrtype}
		ttl := time.Duration(h.Ttl) * time.Second
		i, ok := index[k]
		if !ok {
			i = len(sets)
			index[k] = i
			sets = append(sets, dns.RRset{Name: k.name, Type: Type(k.code), TTL: ttl})
		}
		sets[i].Values = append(sets[i].Values, Value(rr))
		sets[i].TTL = min(sets[i].TTL, ttl)
	}
	for i := range sets {
		slices.Sort(sets[i].Values)
		sets[i].Values = slices.Compact(sets[i].Values)
	}
	return sets
}

// bindPrivate is the type in which BIND notes how far signing a zone has come.
const bindPrivate = 65534

// CheckKey reports what is wrong with a key.
func CheckKey(k dns.Key) error {
	if _, ok := mdns.IsDomainName(k.Name); !ok || k.Name == "" || Name(k.Name) != k.Name {
		return fmt.Errorf("tsig key name %q is no name in lower case without trailing dot", k.Name)
	}
	if k.Algorithm != "hmac-sha256" && k.Algorithm != "hmac-sha512" {
		return fmt.Errorf("tsig key %s: unknown algorithm %q; use hmac-sha256 or hmac-sha512", k.Name, k.Algorithm)
	}
	if len(k.Secret) == 0 {
		return fmt.Errorf("tsig key %s has no secret", k.Name)
	}
	return nil
}

// Secret is a key's secret as miekg/dns wants it.
func Secret(k dns.Key) string { return base64.StdEncoding.EncodeToString(k.Secret) }

// escape splits text into the strings of a TXT record, as miekg/dns keeps them.
func escape(text string) []string {
	var out []string
	for {
		n := min(len(text), 255)
		var b strings.Builder
		for i := range n {
			switch c := text[i]; {
			case c == '"' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c < ' ' || c > '~':
				fmt.Fprintf(&b, "\\%03d", c)
			default:
				b.WriteByte(c)
			}
		}
		out = append(out, b.String())
		if text = text[n:]; text == "" {
			return out
		}
	}
}

func unescape(txt []string) string {
	if len(txt) == 1 && !strings.Contains(txt[0], `\`) {
		return txt[0]
	}
	var b strings.Builder
	for _, s := range txt {
		for i := 0; i < len(s); i++ {
			if s[i] != '\\' || i+1 == len(s) {
				b.WriteByte(s[i])
				continue
			}
			i++
			if i+2 < len(s) && digit(s[i]) && digit(s[i+1]) && digit(s[i+2]) {
				b.WriteByte((s[i]-'0')*100 + (s[i+1]-'0')*10 + s[i+2] - '0')
				i += 2
				continue
			}
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

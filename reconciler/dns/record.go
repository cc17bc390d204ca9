package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// RecordSet is what a plan.Record is like: the addresses of one name and type.
type RecordSet struct {
	// Type is A or AAAA.
	Type Type
	// TTL is in whole seconds.
	TTL time.Duration
	// Values are addresses, sorted as text. Only an observed set may have none:
	// then the name is marked as the fleet's and no record is there, since
	// someone deleted it, or a turn was cut short.
	Values []string
	// Pending is set on an observed set whose owner record is not finished: a
	// turn was cut short after the record was made or before it was deleted.
	Pending bool
}

// NewRecordSet is the set of the addresses that fit typ, sorted, each once. It has
// no values when none fits: then nothing is to be desired.
func NewRecordSet(typ Type, ttl time.Duration, addresses []netip.Addr) RecordSet {
	s := RecordSet{Type: typ, TTL: ttl}
	for _, a := range addresses {
		if a = a.Unmap(); a.Is4() == (typ == A) {
			s.Values = append(s.Values, a.String())
		}
	}
	slices.Sort(s.Values)
	s.Values = slices.Compact(s.Values)
	return s
}

// Ref is the plan's name of a record set: scope is the zone, the name "host TYPE".
func Ref(zone, host string, typ Type) plan.Ref {
	return plan.Ref{Kind: plan.Record, Scope: zone, Name: host + " " + string(typ)}
}

// SplitRef is the host and type of a Ref.
func SplitRef(ref plan.Ref) (host string, typ Type, ok bool) {
	host, t, ok := strings.Cut(ref.Name, " ")
	typ = Type(t)
	return host, typ, ok && ref.Kind == plan.Record && (typ == A || typ == AAAA)
}

// Equal reports whether visitors get the same answer and the owner record says the
// same.
func (s RecordSet) Equal(other plan.Spec) bool {
	o, ok := other.(RecordSet)
	return ok && s.Pending == o.Pending && s.same(o)
}

func (s RecordSet) same(o RecordSet) bool {
	return s.Type == o.Type && s.TTL == o.TTL && slices.Equal(s.Values, o.Values)
}

// String is "203.0.113.9 ttl=60".
func (s RecordSet) String() string {
	if len(s.Values) == 0 {
		return "no record"
	}
	text := strings.Join(s.Values, " ") + " ttl=" + s.seconds()
	if s.Pending {
		text += " (owner record unfinished)"
	}
	return text
}

// Fields are values and ttl, and owner where the owner record is unfinished.
func (s RecordSet) Fields() []plan.Field {
	if len(s.Values) == 0 {
		return []plan.Field{{Name: "values", Value: "none"}}
	}
	f := []plan.Field{{Name: "values", Value: strings.Join(s.Values, " ")}, {Name: "ttl", Value: s.seconds()}}
	if s.Pending {
		f = append(f, plan.Field{Name: "owner", Value: "unfinished"})
	}
	return f
}

func (s RecordSet) seconds() string { return strconv.FormatInt(int64(s.TTL/time.Second), 10) }

// check reports what is wrong with a set that is to be written.
func (s RecordSet) check() error {
	if len(s.Values) == 0 {
		return fmt.Errorf("no %s address given: %w", s.Type, ErrEmpty)
	}
	if s.TTL < time.Second || s.TTL%time.Second != 0 || s.TTL > maxTTL {
		return fmt.Errorf("ttl %s: want whole seconds from 1s to %s", s.TTL, maxTTL)
	}
	for i, v := range s.Values {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Is4() != (s.Type == A) || a.String() != v || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("%q is no %s address", v, s.Type)
		}
		if i > 0 && s.Values[i-1] >= v {
			return fmt.Errorf("addresses are not sorted at %s", v)
		}
	}
	return nil
}

// maxTTL is RFC 2181 section 8's.
const maxTTL = (1<<31 - 1) * time.Second

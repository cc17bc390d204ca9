package dns

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Ownership is written in the zone itself, in one TXT record per owned name:
//
//	blog.example.com.          60  A    203.0.113.9
//	blog._kokoa.example.com.  300  TXT  "heritage=kokoa,fleet=demo,types=A"
//
// The owner records of a zone stand together below "_kokoa.<zone>", under the part
// of the name before the zone; the apex's own stands at "_kokoa.<zone>" and a
// wildcard's label "*" is written "_any", since "*" would make a wildcard of the
// owner record too. Not "_kokoa.<host>": that would make host exist (an empty
// non-terminal, RFC 4592 section 2.2.2), and a name that exists is not answered by
// a wildcard. Wherever an owner record stood without its address record, even for a
// moment, the host would have had no answer at all in place of the wildcard's.
// Below "_kokoa.<zone>" there is no host to shadow.
//
// A type stands in "types" when its record is the fleet's whatever it says, so that
// a change by hand is seen as one. Where the record and its owner record cannot be
// written at once, a type first stands in "pending" with a sum of the values that
// are about to be written (or deleted): the record is the fleet's only while it has
// those values. So a turn that is killed between two writes leaves neither a record
// of ours that looks like a stranger's, nor a claim on a record that a stranger puts
// there.
const (
	ownerLabel    = "_kokoa"
	wildcardLabel = "_any"
	ownerTTL      = 5 * time.Minute
)

// OwnerName is where the owner record of a host in zone stands.
func OwnerName(zone, host string) string {
	if host == zone {
		return ownerLabel + "." + zone
	}
	rel := strings.TrimSuffix(host, "."+zone)
	if rest, ok := strings.CutPrefix(rel, "*"); ok {
		rel = wildcardLabel + rest
	}
	return rel + "." + ownerLabel + "." + zone
}

// ownedHost is the host whose owner record stands at name.
func ownedHost(zone, name string) (host string, ok bool) {
	rel, ok := strings.CutSuffix(name, ownerLabel+"."+zone)
	switch {
	case !ok:
		return "", false
	case rel == "":
		return zone, true
	case rel[len(rel)-1] != '.', rel[0] == '*':
		return "", false
	}
	if rest, ok := strings.CutPrefix(rel, wildcardLabel+"."); ok {
		rel = "*." + rest
	}
	host = rel + zone
	return host, checkHost(zone, host) == nil
}

// checkHost reports why host cannot be a name of the fleet in zone. Names with an
// underscore are never: "_acme-challenge" and the owner records are not hosts.
func checkHost(zone, host string) error {
	if host == zone {
		return nil
	}
	rel, ok := strings.CutSuffix(host, "."+zone)
	if !ok {
		return fmt.Errorf("%q is not in zone %s", host, zone)
	}
	if len(host)+len(ownerLabel)+len(wildcardLabel)+1 > 253 {
		return fmt.Errorf("%q is too long: its owner record's name would exceed 253 characters", host)
	}
	if rel == "*" {
		return nil
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(rel, "*."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("%q is no host name", host)
		}
	}
	return nil
}

// owner is what an owner record says.
type owner struct {
	fleet string
	a     claim
	aaaa  claim
}

// claim is how a fleet owns a type: not at all, settled, or while its record has the
// values of this sum.
type claim string

const (
	unclaimed claim = ""
	settled   claim = "settled"
)

func (o *owner) claim(t Type) *claim {
	if t == A {
		return &o.a
	}
	return &o.aaaa
}

// covers reports whether set, which may be absent, is the fleet's.
func (c claim) covers(set RRset) bool {
	return len(set.Values) > 0 && (c == settled || c == pending(set.Values))
}

// pending is the claim on a record with values. It does not look at the TTL, which
// some hosts of DNS round.
func pending(values []string) claim {
	sum := sha256.Sum256([]byte(strings.Join(values, "\n")))
	return claim(hex.EncodeToString(sum[:8]))
}

// String is the owner record's text, or "" when nothing is claimed.
func (o owner) String() string {
	var types, pend []string
	for _, t := range []Type{A, AAAA} {
		switch c := *o.claim(t); c {
		case unclaimed:
		case settled:
			types = append(types, string(t))
		default:
			pend = append(pend, string(t)+":"+string(c))
		}
	}
	if types == nil && pend == nil {
		return ""
	}
	s := "heritage=kokoa,fleet=" + o.fleet
	if types != nil {
		s += ",types=" + strings.Join(types, " ")
	}
	if pend != nil {
		s += ",pending=" + strings.Join(pend, " ")
	}
	return s
}

// parseOwner reads what String wrote, and nothing else: text that a person or
// another program altered is not ours to interpret.
func parseOwner(text string) (owner, bool) {
	rest, ok := strings.CutPrefix(text, "heritage=kokoa,fleet=")
	if !ok {
		return owner{}, false
	}
	fleet, rest, _ := strings.Cut(rest, ",")
	o := owner{fleet: fleet}
	for field := range strings.SplitSeq(rest, ",") {
		key, list, _ := strings.Cut(field, "=")
		for word := range strings.SplitSeq(list, " ") {
			name, sum, hasSum := strings.Cut(word, ":")
			t, c := Type(name), settled
			if hasSum {
				c = claim(sum)
			}
			if t != A && t != AAAA || hasSum != (key == "pending") || hasSum && !isSum(sum) {
				return owner{}, false
			}
			*o.claim(t) = c
		}
	}
	return o, fleet != "" && o.String() == text
}

func isSum(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 8 && strings.ToLower(s) == s
}

// readOwner is the owner that set, which may be absent, names. It is not ok when
// something else stands there.
func readOwner(set RRset) (o owner, ok bool) {
	switch len(set.Values) {
	case 0:
		return owner{}, true
	case 1:
		return parseOwner(set.Values[0])
	}
	return owner{}, false
}

// above is the names from host up to, and with, zone.
func above(zone, host string) []string {
	names := []string{host}
	for host != zone {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			break
		}
		host = parent
		names = append(names, host)
	}
	return names
}

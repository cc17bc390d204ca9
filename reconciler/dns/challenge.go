package dns

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Challenges publishes DNS-01 challenges (RFC 8555 section 8.4) in the zones of a
// fleet. It is safe for concurrent use.
type Challenges struct {
	// Zones by name.
	Zones map[string]Zone
}

// challengeTTL is short: an issuer that asked too early soon asks again.
const challengeTTL = 30 * time.Second

// Add is AddTXT in the longest zone that name is in.
func (c Challenges) Add(ctx context.Context, name, value string) error {
	z, err := c.zone(name)
	if err != nil {
		return err
	}
	return AddTXT(ctx, z, name, challengeTTL, value)
}

// Remove is RemoveTXT in the longest zone that name is in.
func (c Challenges) Remove(ctx context.Context, name, value string) error {
	z, err := c.zone(name)
	if err != nil {
		return err
	}
	return RemoveTXT(ctx, z, name, value)
}

func (c Challenges) zone(name string) (Zone, error) {
	for rest, more := name, true; more; _, rest, more = strings.Cut(rest, ".") {
		if z, ok := c.Zones[rest]; ok {
			return z, nil
		}
	}
	return nil, fmt.Errorf("%s is in none of the fleet's zones", name)
}

// AddTXT adds a value to the TXT set of name, beside what stands there, and makes
// the set when there is none. It is how a DNS-01 challenge is published: several
// values at one "_acme-challenge" name are usual (RFC 8555 section 8.4). The set
// exists at the primary when AddTXT returns.
//
// The set makes the names above it exist, and a name that exists is not answered by a
// wildcard (RFC 4592 section 2.2.2): while "_acme-challenge.blog.example.com" stands,
// "*.example.com" does not answer for a blog.example.com without records. So the
// challenge for a host that only a wildcard answers for must be the wildcard's.
func AddTXT(ctx context.Context, z Zone, name string, ttl time.Duration, value string) error {
	if a, ok := z.(Adder); ok {
		return a.Add(ctx, name, TXT, ttl, value)
	}
	old, err := find(ctx, z, name, TXT)
	if err != nil || slices.Contains(old.Values, value) {
		return err
	}
	values := append(slices.Clone(old.Values), value)
	slices.Sort(values)
	return z.Set(ctx, RRset{name, TXT, ttl, values})
}

// RemoveTXT takes one value out of the TXT set of name and leaves the others. A
// value that is not there is success.
func RemoveTXT(ctx context.Context, z Zone, name, value string) error {
	if a, ok := z.(Adder); ok {
		return a.Remove(ctx, name, TXT, value)
	}
	old, err := find(ctx, z, name, TXT)
	if err != nil || !slices.Contains(old.Values, value) {
		return err
	}
	if len(old.Values) == 1 {
		return z.Delete(ctx, name, TXT)
	}
	old.Values = slices.DeleteFunc(slices.Clone(old.Values), func(v string) bool { return v == value })
	return z.Set(ctx, old)
}

func find(ctx context.Context, z Zone, name string, typ Type) (RRset, error) {
	sets, err := z.RRsets(ctx)
	for _, s := range sets {
		if s.Name == name && s.Type == typ {
			return s, err
		}
	}
	return RRset{}, err
}

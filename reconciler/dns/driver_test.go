package dns_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

const zoneName = "example.test"

func set(name string, typ dns.Type, values ...string) dns.RRset {
	return dns.RRset{Name: name, Type: typ, TTL: time.Minute, Values: values}
}

func record(typ dns.Type, values ...string) dns.RecordSet {
	return dns.RecordSet{Type: typ, TTL: time.Minute, Values: values}
}

// world is one zone and one fleet's driver; atomic says whether the zone is a Batcher.
type world struct {
	memory *dnstest.Memory
	driver dns.Driver
}

func newWorld(atomic bool) world {
	m := &dnstest.Memory{}
	var z dns.Zone = m
	if atomic {
		z = dnstest.Atomic{Memory: m}
	}
	return world{m, dns.Driver{Fleet: "demo", Zones: map[string]dns.Zone{zoneName: z}}}
}

// bothWays runs a test on a zone with transactions and on one without.
func bothWays(t *testing.T, test func(t *testing.T, w world)) {
	for name, atomic := range map[string]bool{"Atomic": true, "InOrder": false} {
		t.Run(name, func(t *testing.T) { test(t, newWorld(atomic)) })
	}
}

type desired map[string]dns.RecordSet // by "host TYPE"

// turn is what the reconciler does: observe, plan, apply creates and updates, then
// deletes if nothing failed.
func (w world) turn(want desired) (plan.Plan, error) {
	o := w.driver.Observe(context.Background())
	in := plan.Input{Observed: o.Objects, Unseen: o.Unseen}
	for name, spec := range want {
		in.Desired = append(in.Desired, plan.Object{Ref: plan.Ref{Kind: plan.Record, Scope: zoneName, Name: name}, Spec: spec})
	}
	p, err := plan.Compute(in)
	if err != nil && !errors.Is(err, plan.ErrTooManyDeletes) { // nobody to ask here
		return p, err
	}
	var make, remove []plan.Change
	for _, c := range p.Changes {
		if c.Action == plan.Delete {
			remove = append(remove, c)
		} else {
			make = append(make, c)
		}
	}
	if err := errors.Join(w.driver.Apply(context.Background(), make)...); err != nil {
		return p, err
	}
	return p, errors.Join(w.driver.Apply(context.Background(), remove)...)
}

// settle takes turns until one has nothing to do.
func (w world) settle(t interface{ Fatalf(string, ...any) }, want desired) {
	var err error
	var p plan.Plan
	for range 3 {
		if p, err = w.turn(want); err == nil && p.Empty() {
			return
		}
	}
	t.Fatalf("three turns did not settle: %v, %v", p.Changes, err)
}

// addresses are the zone's A, AAAA and CNAME sets, and marks its owner records.
func (w world) zone() (addresses, marks map[string]string) {
	addresses, marks = map[string]string{}, map[string]string{}
	w.memory.Reset(nil)
	sets, _ := w.memory.RRsets(context.Background())
	for _, s := range sets {
		if s.Type == dns.TXT && strings.Contains("."+s.Name, "._kokoa.") {
			marks[s.Name] = strings.Join(s.Values, "|")
		} else {
			addresses[s.Name+" "+string(s.Type)] = strings.Join(s.Values, " ")
		}
	}
	return addresses, marks
}

func (w world) expect(t *testing.T, addresses, marks map[string]string) {
	t.Helper()
	a, m := w.zone()
	if !maps.Equal(a, addresses) {
		t.Errorf("records: got %v, want %v", a, addresses)
	}
	if !maps.Equal(m, marks) {
		t.Errorf("owner records: got %v, want %v", m, marks)
	}
}

type names = map[string]string

func TestLifeOfARecord(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		w.memory.Put(set(zoneName, dns.NS, "ns.example.net."), set("mail.example.test", dns.A, "203.0.113.1"),
			set("www.example.test", dns.TXT, "v=spf1 -all"), set("_acme-challenge.www.example.test", dns.TXT, "token"))
		foreign := names{"example.test NS": "ns.example.net.", "mail.example.test A": "203.0.113.1",
			"www.example.test TXT": "v=spf1 -all", "_acme-challenge.www.example.test TXT": "token"}
		with := func(more names) names {
			all := maps.Clone(foreign)
			maps.Copy(all, more)
			return all
		}

		w.settle(t, desired{
			"www.example.test A":    record(dns.A, "192.0.2.1", "192.0.2.2"),
			"www.example.test AAAA": record(dns.AAAA, "2001:db8::1"),
			"example.test A":        record(dns.A, "192.0.2.1"),
			"*.app.example.test A":  record(dns.A, "192.0.2.1"),
		})
		w.expect(t, with(names{
			"www.example.test A": "192.0.2.1 192.0.2.2", "www.example.test AAAA": "2001:db8::1",
			"example.test A": "192.0.2.1", "*.app.example.test A": "192.0.2.1",
		}), names{
			"www._kokoa.example.test":      "heritage=kokoa,fleet=demo,types=A AAAA",
			"_kokoa.example.test":          "heritage=kokoa,fleet=demo,types=A",
			"_any.app._kokoa.example.test": "heritage=kokoa,fleet=demo,types=A",
		})

		// One type goes and the other stays, and so does what others have there.
		w.settle(t, desired{"www.example.test AAAA": record(dns.AAAA, "2001:db8::2")})
		w.expect(t, with(names{"www.example.test AAAA": "2001:db8::2"}),
			names{"www._kokoa.example.test": "heritage=kokoa,fleet=demo,types=AAAA"})
		w.settle(t, desired{})
		w.expect(t, foreign, names{})
	})
}

func TestDrift(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		want := desired{"www.example.test A": record(dns.A, "192.0.2.1"), "other.example.test A": record(dns.A, "192.0.2.1")}
		w.settle(t, want)
		marks := names{"www._kokoa.example.test": "heritage=kokoa,fleet=demo,types=A", "other._kokoa.example.test": "heritage=kokoa,fleet=demo,types=A"}
		good := names{"www.example.test A": "192.0.2.1", "other.example.test A": "192.0.2.1"}
		for name, byHand := range map[string]dns.RRset{
			"values": set("www.example.test", dns.A, "203.0.113.66"),
			"ttl":    {Name: "www.example.test", Type: dns.A, TTL: time.Hour, Values: []string{"192.0.2.1"}},
			"gone":   set("www.example.test", dns.A),
		} {
			w.memory.Put(byHand)
			p, err := w.turn(want)
			if err != nil || len(p.Changes) != 1 || p.Changes[0].Ref.Name != "www.example.test A" {
				t.Errorf("%s changed by hand: planned %v, %v", name, p.Changes, err)
			}
			w.settle(t, want)
			w.expect(t, good, marks)
		}
		// An owner record whose name nobody wants any more goes too, without
		// asking anyone.
		w.memory.Put(set("www.example.test", dns.A))
		o := w.driver.Observe(t.Context())
		i := slices.IndexFunc(o.Objects, func(o plan.Object) bool { return o.Ref.Name == "www.example.test A" })
		if i < 0 || !o.Objects[i].Ended || len(o.Objects[i].Spec.(dns.RecordSet).Values) != 0 {
			t.Errorf("an owner record alone is observed as %v", o.Objects)
		}
		delete(want, "www.example.test A")
		w.settle(t, want)
		w.expect(t, names{"other.example.test A": "192.0.2.1"}, names{"other._kokoa.example.test": "heritage=kokoa,fleet=demo,types=A"})
	})
}

func TestStrangers(t *testing.T) {
	for _, c := range []struct {
		name  string
		there []dns.RRset
		says  string
	}{
		{"same type", []dns.RRset{set("www.example.test", dns.A, "203.0.113.1")}, "A record (203.0.113.1) that Kokoa did not make; remove it"},
		{"the very same record", []dns.RRset{set("www.example.test", dns.A, "192.0.2.1")}, "that Kokoa did not make"},
		{"the other type", []dns.RRset{set("www.example.test", dns.AAAA, "2001:db8::1")}, "AAAA record (2001:db8::1)"},
		{"alias", []dns.RRset{set("www.example.test", dns.CNAME, "pages.example.net.")}, "CNAME record (pages.example.net.)"},
		{"another fleet", []dns.RRset{set("www.example.test", dns.A, "203.0.113.1"), set("www._kokoa.example.test", dns.TXT, "heritage=kokoa,fleet=other,types=A")}, `belongs to fleet "other"`},
		{"another fleet's owner record alone", []dns.RRset{set("www._kokoa.example.test", dns.TXT, "heritage=kokoa,fleet=other,types=A")}, `belongs to fleet "other"`},
		{"another text", []dns.RRset{set("www._kokoa.example.test", dns.TXT, "do not touch")}, "no owner record of Kokoa's"},
		{"ours and another text", []dns.RRset{set("www.example.test", dns.A, "203.0.113.1"), set("www._kokoa.example.test", dns.TXT, "do not touch", "heritage=kokoa,fleet=demo,types=A")}, "no owner record of Kokoa's"},
		{"pending for other values", []dns.RRset{set("www.example.test", dns.A, "203.0.113.1"), set("www._kokoa.example.test", dns.TXT, "heritage=kokoa,fleet=demo,pending=A:0011223344556677")}, "that Kokoa did not make"},
		{"delegated", []dns.RRset{set("www.example.test", dns.NS, "ns.example.net.")}, "delegated to ns.example.net."},
		{"owner records delegated", []dns.RRset{set("_kokoa.example.test", dns.NS, "ns.example.net.")}, "delegated"},
		{"zone redirected", []dns.RRset{set(zoneName, dns.DNAME, "example.net.")}, "DNAME to example.net."},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, w world) {
				w.memory.Put(c.there...)
				before, marks := w.zone()
				p, err := w.turn(desired{"www.example.test A": record(dns.A, "192.0.2.1")})
				if !errors.Is(err, dns.ErrHeld) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("planned %v, got %v", p.Changes, err)
				}
				w.expect(t, before, marks)
				// Nor is it deleted when nothing is desired.
				if _, err := w.turn(desired{}); err != nil {
					t.Error(err)
				}
				if c.name == "pending for other values" {
					marks = names{}
				}
				w.expect(t, before, marks)
			})
		})
	}
}

func TestLastCallRefuses(t *testing.T) {
	ref := func(name string) plan.Ref { return plan.Ref{Kind: plan.Record, Scope: zoneName, Name: name} }
	www := ref("www.example.test A")
	one, two, three := record(dns.A, "192.0.2.1"), record(dns.A, "192.0.2.2"), record(dns.A, "192.0.2.3")
	for _, c := range []struct {
		name   string
		change plan.Change
		want   error // nil: any
		says   string
	}{
		{"an empty answer", plan.Change{Action: plan.Update, Ref: www, Before: one, After: record(dns.A)}, dns.ErrEmpty, "empty"},
		{"an old plan's update", plan.Change{Action: plan.Update, Ref: www, Before: two, After: three}, dns.ErrConflict, "192.0.2.1 ttl=60 now"},
		{"an old plan's deletion", plan.Change{Action: plan.Delete, Ref: www, Before: two}, dns.ErrConflict, "not planned from"},
		{"an old plan's creation", plan.Change{Action: plan.Create, Ref: www, After: two}, dns.ErrConflict, "not planned from"},
		{"an address of the other type", plan.Change{Action: plan.Update, Ref: www, Before: one, After: record(dns.A, "2001:db8::1")}, nil, "no A address"},
		{"a set of the other type", plan.Change{Action: plan.Update, Ref: www, Before: one, After: record(dns.AAAA, "2001:db8::1")}, nil, "no A record set"},
		{"values not sorted", plan.Change{Action: plan.Update, Ref: www, Before: one, After: record(dns.A, "192.0.2.9", "192.0.2.1")}, nil, "not sorted"},
		{"no ttl", plan.Change{Action: plan.Update, Ref: www, Before: one, After: dns.RecordSet{Type: dns.A, Values: []string{"192.0.2.1"}}}, nil, "whole seconds"},
		{"a challenge", plan.Change{Action: plan.Create, Ref: ref("_acme-challenge.www.example.test A"), After: one}, nil, "no host name"},
		{"an owner record", plan.Change{Action: plan.Delete, Ref: ref("www._kokoa.example.test A"), Before: one}, nil, "no host name"},
		{"a type that is not covered", plan.Change{Action: plan.Delete, Ref: ref("www.example.test TXT")}, nil, "no address record"},
		{"a name outside of the zone", plan.Change{Action: plan.Create, Ref: ref("www.example.net A"), After: one}, nil, "not in zone"},
		{"a name that only ends like the zone", plan.Change{Action: plan.Create, Ref: ref("wwwexample.test A"), After: one}, nil, "not in zone"},
		{"a wildcard in the middle", plan.Change{Action: plan.Create, Ref: ref("a.*.example.test A"), After: one}, nil, "no host name"},
		{"upper case", plan.Change{Action: plan.Create, Ref: ref("WWW.example.test A"), After: one}, nil, "no host name"},
		{"a name too long", plan.Change{Action: plan.Create, Ref: ref(strings.Repeat("a.", 120) + "example.test A"), After: one}, nil, "too long"},
		{"an unknown zone", plan.Change{Action: plan.Create, Ref: plan.Ref{Kind: plan.Record, Scope: "example.net", Name: "a.example.net A"}, After: one}, nil, "none of the fleet's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, w world) {
				w.settle(t, desired{"www.example.test A": one})
				addresses, marks := w.zone()
				err := w.driver.Apply(t.Context(), []plan.Change{c.change})[0]
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v", err)
				}
				w.expect(t, addresses, marks)
			})
		})
	}
}

func TestRepeatedChangesAreDone(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		one, two := record(dns.A, "192.0.2.1"), record(dns.A, "192.0.2.2")
		www := dns.Ref(zoneName, "www.example.test", dns.A)
		for _, c := range []plan.Change{
			{Action: plan.Create, Ref: www, After: one},
			{Action: plan.Update, Ref: www, Before: one, After: two},
			{Action: plan.Delete, Ref: www, Before: two},
		} {
			for i := range 2 {
				w.memory.Reset(nil)
				if err := w.driver.Apply(t.Context(), []plan.Change{c})[0]; err != nil {
					t.Errorf("%s, time %d: %v", c.Action, i+1, err)
				}
				if writes := w.memory.Writes(); i == 1 && len(writes) > 0 {
					t.Errorf("%s was done and wrote %v", c.Action, writes)
				}
			}
		}
	})
}

// One bad change does not stop the others, and each error stands at its change.
func TestErrorsStandAtTheirChanges(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		w.memory.Put(set("taken.example.test", dns.A, "203.0.113.1"))
		one := record(dns.A, "192.0.2.1")
		errs := w.driver.Apply(t.Context(), []plan.Change{
			{Action: plan.Create, Ref: dns.Ref(zoneName, "a.example.test", dns.A), After: one},
			{Action: plan.Create, Ref: dns.Ref(zoneName, "taken.example.test", dns.A), After: one},
			{Action: plan.Create, Ref: dns.Ref("example.net", "b.example.net", dns.A), After: one},
			{Action: plan.Create, Ref: dns.Ref(zoneName, "c.example.test", dns.A), After: one},
		})
		if errs[0] != nil || !errors.Is(errs[1], dns.ErrHeld) || errs[2] == nil || errs[3] != nil {
			t.Errorf("got %v", errs)
		}
	})
}

// A zone that cannot be read is unseen: nothing in it is planned, least of all a
// deletion. The others are seen.
func TestUnreadableZone(t *testing.T) {
	w := newWorld(true)
	w.settle(t, desired{"www.example.test A": record(dns.A, "192.0.2.1")})
	addresses, marks := w.zone()
	broken := newWorld(true)
	broken.memory.Reset(func(int) dnstest.Fault { return dnstest.Refused })
	w.driver.Zones["example.net"] = dnstest.Atomic{Memory: broken.memory}
	o := w.driver.Observe(t.Context())
	if len(o.Objects) != 1 || len(o.Unseen) != 1 || !strings.Contains(o.Unseen[plan.Scope{Kind: plan.Record, Name: "example.net"}], "injected fault") {
		t.Errorf("observed %v", o)
	}

	w.memory.Reset(func(int) dnstest.Fault { return dnstest.Refused })
	p, err := w.turn(desired{})
	if err != nil || len(p.Changes) != 0 {
		t.Errorf("planned %v, %v", p.Changes, err)
	}
	// Unreadable at the last call: nothing is changed blindly.
	err = w.driver.Apply(t.Context(), []plan.Change{{Action: plan.Delete, Ref: dns.Ref(zoneName, "www.example.test", dns.A), Before: record(dns.A, "192.0.2.1")}})[0]
	if !errors.Is(err, dnstest.ErrFault) {
		t.Errorf("got %v", err)
	}
	w.expect(t, addresses, marks)
}

// slow never answers before its deadline.
type slow struct{ dns.Zone }

func (slow) RRsets(ctx context.Context) ([]dns.RRset, error) { <-ctx.Done(); return nil, ctx.Err() }

func TestSlowZone(t *testing.T) {
	w := newWorld(true)
	w.settle(t, desired{"www.example.test A": record(dns.A, "192.0.2.1")})
	w.driver.Zones["example.net"], w.driver.Timeout = slow{}, 50*time.Millisecond
	o := w.driver.Observe(t.Context())
	if len(o.Objects) != 1 || !strings.Contains(o.Unseen[plan.Scope{Kind: plan.Record, Name: "example.net"}], "deadline") {
		t.Errorf("observed %v", o)
	}
}

// A turn that is killed at any call, before or after the call took effect, is
// finished by the next, whatever that wants, and no stranger loses anything.
func TestKilledAtEveryCall(t *testing.T) {
	first := desired{"a.example.test A": record(dns.A, "192.0.2.1"), "b.example.test A": record(dns.A, "192.0.2.1"), "b.example.test AAAA": record(dns.AAAA, "2001:db8::1")}
	second := desired{"a.example.test A": record(dns.A, "192.0.2.2"), "a.example.test AAAA": record(dns.AAAA, "2001:db8::1"), "c.example.test A": record(dns.A, "192.0.2.3")}
	foreign := []dns.RRset{set("mail.example.test", dns.A, "203.0.113.1"), set("b.example.test", "MX", "10 mail.example.test.")}
	for _, fault := range []dnstest.Fault{dnstest.Refused, dnstest.Lost} {
		for _, then := range []desired{second, first, {}} {
			bothWays(t, func(t *testing.T, w world) {
				for n, finished := 1, false; !finished; n++ {
					for host := range first {
						w.memory.Put(set(strings.Fields(host)[0], dns.A), set(strings.Fields(host)[0], dns.AAAA))
					}
					w.memory.Put(foreign...)
					w.settle(t, first)
					w.memory.Reset(func(call int) dnstest.Fault {
						switch {
						case call == n:
							return fault
						case call > n:
							return dnstest.Refused // dead
						}
						return dnstest.None
					})
					w.turn(second)
					finished = w.memory.Calls() < n
					w.memory.Reset(nil)
					w.settle(t, then)
					addresses, marks := w.zone()
					want := names{"mail.example.test A": "203.0.113.1", "b.example.test MX": "10 mail.example.test."}
					types := map[string]map[string]bool{}
					for name, spec := range then {
						want[name] = strings.Join(spec.Values, " ")
						host := strings.Fields(name)[0]
						if types[host] == nil {
							types[host] = map[string]bool{}
						}
						types[host][string(spec.Type)] = true
					}
					wantMarks := names{}
					for host, t := range types {
						wantMarks[dns.OwnerName(zoneName, host)] = "heritage=kokoa,fleet=demo,types=" + strings.Join(slices.Sorted(maps.Keys(t)), " ")
					}
					if !maps.Equal(addresses, want) || !maps.Equal(marks, wantMarks) {
						t.Fatalf("killed at call %d (fault %d): got %v and %v, want %v and %v", n, fault, addresses, marks, want, wantMarks)
					}
				}
			})
		}
	}
}

// A stranger who takes a name while a killed turn has left its owner record there
// keeps it.
func TestStrangerTakesAHalfMadeName(t *testing.T) {
	theirs := set("www.example.test", dns.A, "203.0.113.1")
	for _, start := range []desired{{}, {"www.example.test A": record(dns.A, "192.0.2.1")}} {
		taken := 0
		next := desired{"www.example.test A": record(dns.A, "192.0.2.1")}
		if len(start) > 0 {
			next = desired{}
		}
		for n := 1; n <= 4; n++ {
			w := newWorld(false)
			w.settle(t, start)
			w.memory.Reset(func(call int) dnstest.Fault {
				if call > n {
					return dnstest.Refused
				}
				return dnstest.None
			})
			w.turn(next)
			w.memory.Reset(nil)
			if len(w.memory.Get("www.example.test", dns.A).Values) > 0 {
				continue // the record is there: the name is not free to take
			}
			if mark := w.memory.Get("www._kokoa.example.test", dns.TXT).Values; len(mark) == 0 || !strings.Contains(mark[0], "pending=A:") {
				continue
			}
			taken++
			w.memory.Put(theirs)
			if _, err := w.turn(desired{}); err != nil {
				t.Error(err)
			}
			w.expect(t, names{"www.example.test A": "203.0.113.1"}, names{})
		}
		if taken == 0 {
			t.Errorf("from %v no kill left a name to take", start)
		}
	}
}

// Random fleets, edits by hand, strangers and kills: turns converge, strangers keep
// what they have, and then nothing is left to do.
func TestConverges(t *testing.T) {
	hosts := []string{zoneName, "a.example.test", "b.example.test", "*.example.test", "x.a.example.test"}
	strangers := []string{"s1.example.test", "s2.example.test"}
	value := map[dns.Type]string{dns.A: "192.0.2.%d", dns.AAAA: "2001:db8::%d"}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.Bool().Draw(t, "atomic"))
		theirs := names{}
		for _, host := range strangers {
			for typ, format := range value {
				if rapid.Bool().Draw(t, "stranger") {
					v := fmt.Sprintf(format, 99)
					w.memory.Put(set(host, typ, v))
					theirs[host+" "+string(typ)] = v
				}
			}
		}
		draw := func() desired {
			want := desired{}
			for _, host := range hosts {
				for typ, format := range value {
					if n := rapid.IntRange(0, 3).Draw(t, host+" "+string(typ)); n > 0 {
						want[host+" "+string(typ)] = record(typ, fmt.Sprintf(format, n))
					}
				}
			}
			return want
		}
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			// By hand: owned records change or go.
			for range rapid.IntRange(0, 2).Draw(t, "edits") {
				typ := rapid.SampledFrom([]dns.Type{dns.A, dns.AAAA}).Draw(t, "type")
				host := rapid.SampledFrom(hosts).Draw(t, "host")
				if is := w.memory.Get(host, typ); len(is.Values) > 0 {
					is.Values = nil
					if rapid.Bool().Draw(t, "change") {
						is.Values = []string{fmt.Sprintf(value[typ], 77)}
						is.Name = host
					}
					w.memory.Put(is)
				}
			}
			n := rapid.IntRange(1, 40).Draw(t, "killed at")
			fault := rapid.SampledFrom([]dnstest.Fault{dnstest.Refused, dnstest.Lost}).Draw(t, "fault")
			w.memory.Reset(func(call int) dnstest.Fault {
				switch {
				case call == n:
					return fault
				case call > n:
					return dnstest.Refused
				}
				return dnstest.None
			})
			w.turn(draw())
			w.memory.Reset(nil)
			want := draw()
			w.settle(t, want)
			got, marks := w.zone()
			all := maps.Clone(theirs)
			marked := map[string]bool{}
			for name, spec := range want {
				all[name] = spec.Values[0]
				host, _, _ := strings.Cut(name, " ")
				marked[dns.OwnerName(zoneName, host)] = true
			}
			if !maps.Equal(got, all) || len(marks) != len(marked) {
				t.Fatalf("got %v and %v, want %v", got, marks, all)
			}
		}
	})
}

func TestNewRecordSet(t *testing.T) {
	addresses := []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.1")}
	a := dns.NewRecordSet(dns.A, time.Minute, addresses)
	if a.String() != "192.0.2.1 203.0.113.9 ttl=60" {
		t.Errorf("got %s", a)
	}
	if six := dns.NewRecordSet(dns.AAAA, time.Minute, addresses[:1]); len(six.Values) != 0 || six.String() != "no record" {
		t.Errorf("got %s", six)
	}
	same := dns.NewRecordSet(dns.A, time.Minute, addresses)
	longer := dns.NewRecordSet(dns.A, time.Hour, addresses)
	pending := a
	pending.Pending = true
	if !a.Equal(same) || a.Equal(longer) || a.Equal(pending) {
		t.Error("Equal does not tell sets apart")
	}
	for _, s := range []dns.RecordSet{longer, pending} {
		if slices.Equal(a.Fields(), s.Fields()) {
			t.Errorf("%v differs from %v and shows it nowhere", s, a)
		}
	}
}

func TestTXTWithoutAdder(t *testing.T) {
	m := &dnstest.Memory{}
	name := "_acme-challenge.example.test"
	for _, v := range []string{"two", "one", "two"} {
		if err := dns.AddTXT(t.Context(), m, name, time.Minute, v); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.Get(name, dns.TXT); !slices.Equal(got.Values, []string{"one", "two"}) || got.TTL != time.Minute {
		t.Errorf("got %v", got)
	}
	for _, v := range []string{"never", "one", "two", "two"} {
		if err := dns.RemoveTXT(t.Context(), m, name, v); err != nil {
			t.Fatal(err)
		}
		if v == "one" && !slices.Equal(m.Get(name, dns.TXT).Values, []string{"two"}) {
			t.Errorf("got %v", m.Get(name, dns.TXT))
		}
	}
	if got := m.Get(name, dns.TXT); len(got.Values) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestChallenges(t *testing.T) {
	outer, inner := &dnstest.Memory{}, &dnstest.Memory{}
	c := dns.Challenges{Zones: map[string]dns.Zone{zoneName: outer, "app.example.test": inner}}
	for name, zone := range map[string]*dnstest.Memory{
		"_acme-challenge.example.test": outer, "_acme-challenge.www.example.test": outer,
		"_acme-challenge.app.example.test": inner, "_acme-challenge.x.app.example.test": inner,
	} {
		for _, v := range []string{"one", "two"} {
			if err := c.Add(t.Context(), name, v); err != nil {
				t.Fatal(err)
			}
		}
		if got := zone.Get(name, dns.TXT).Values; !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("%s: got %v", name, got)
		}
		if err := c.Remove(t.Context(), name, "one"); err != nil {
			t.Fatal(err)
		}
		if got := zone.Get(name, dns.TXT).Values; !slices.Equal(got, []string{"two"}) {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if err := c.Add(t.Context(), "_acme-challenge.example.net", "one"); err == nil || !strings.Contains(err.Error(), "none of the fleet's zones") {
		t.Errorf("got %v", err)
	}
	if err := c.Remove(t.Context(), "_acme-challenge.example.net", "one"); err == nil {
		t.Error("a name of no zone was removed")
	}
}

func TestKeyHidesItsSecret(t *testing.T) {
	k := dns.Key{Name: "k", Algorithm: "hmac-sha256", Secret: []byte("very-secret")}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, k); strings.Contains(s, "very-secret") || strings.Contains(s, "0x76") || strings.Contains(s, "118 101") {
			t.Errorf("%s prints %s", format, s)
		}
	}
}

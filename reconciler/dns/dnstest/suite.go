// Package dnstest has what tests of DNS need: one suite that every dns.Zone passes, a
// zone in memory that can fail at any call, and real servers.
package dnstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// Run walks zone, whose name is given, through a list of states, then through them in
// random order, and checks that observing gives back what was set. It puts its
// records below "suite.<name>" and removes them; what else is in the zone must not
// change. Where the zone is a dns.Batcher or dns.Adder it checks that as well.
func Run(t *testing.T, name string, zone dns.Zone) {
	s := &suite{zone: zone, under: "suite." + name, outside: "suite." + name + ".invalid"}
	_, s.foreign = s.read(t)
	t.Cleanup(func() {
		if !t.Failed() {
			s.move(t, state{})
		}
	})
	t.Run("States", s.states)
	t.Run("Mistakes", s.mistakes)
	if b, ok := zone.(dns.Batcher); ok {
		t.Run("Transactions", func(t *testing.T) { s.transactions(t, b) })
		t.Run("ManyTransactions", func(t *testing.T) { s.many(t, b) })
	}
	if a, ok := zone.(dns.Adder); ok {
		t.Run("SingleValues", func(t *testing.T) { s.single(t, a) })
	}
}

// state is sets by name and type.
type state map[[2]string]dns.RRset

type suite struct {
	zone    dns.Zone
	under   string
	outside string
	foreign state
}

func (s *suite) set(host string, typ dns.Type, ttl int, values ...string) dns.RRset {
	name := s.under
	if host != "" {
		name = host + "." + s.under
	}
	slices.Sort(values)
	return dns.RRset{Name: name, Type: typ, TTL: time.Duration(ttl) * time.Second, Values: values}
}

func stateOf(sets ...dns.RRset) state {
	st := state{}
	for _, s := range sets {
		st[[2]string{s.Name, string(s.Type)}] = s
	}
	return st
}

func (s *suite) read(t *testing.T) (ours, others state) {
	t.Helper()
	sets, err := s.zone.RRsets(t.Context())
	if err != nil {
		t.Fatalf("RRsets: %v", err)
	}
	ours, others = state{}, state{}
	for _, set := range sets {
		k := [2]string{set.Name, string(set.Type)}
		if _, twice := ours[k]; twice {
			t.Errorf("RRsets returned %s %s twice", set.Name, set.Type)
		}
		if set.Name == s.under || strings.HasSuffix(set.Name, "."+s.under) {
			ours[k] = set
		} else {
			others[k] = set
		}
	}
	return ours, others
}

// check compares what is observed with want.
func (s *suite) check(t *testing.T, want state) {
	t.Helper()
	ours, others := s.read(t)
	diff(t, "in the zone", ours, want)
	diff(t, "of others", others, s.foreign)
}

func diff(t *testing.T, what string, got, want state) {
	t.Helper()
	for k, w := range want {
		if g, ok := got[k]; !ok {
			t.Errorf("%s: %v is missing", what, w)
		} else if g.TTL != w.TTL || !slices.Equal(g.Values, w.Values) {
			t.Errorf("%s: got %v, want %v", what, g, w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s: %v is too much", what, g)
		}
	}
}

// move makes the zone want by single calls, twice over: each is safe to repeat.
func (s *suite) move(t *testing.T, want state) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // in a cleanup it has ended
	sets, err := s.zone.RRsets(ctx)
	if err != nil {
		t.Fatalf("RRsets: %v", err)
	}
	for range 2 {
		for _, set := range sets {
			if _, keep := want[[2]string{set.Name, string(set.Type)}]; keep || set.Name != s.under && !strings.HasSuffix(set.Name, "."+s.under) {
				continue
			}
			if err := s.zone.Delete(ctx, set.Name, set.Type); err != nil {
				t.Fatalf("Delete %s %s: %v", set.Name, set.Type, err)
			}
		}
		for _, k := range slices.SortedFunc(maps.Keys(want), compareKeys) {
			if err := s.zone.Set(ctx, want[k]); err != nil {
				t.Fatalf("Set %v: %v", want[k], err)
			}
		}
	}
}

func compareKeys(a, b [2]string) int { return slices.Compare(a[:], b[:]) }

func (s *suite) states(t *testing.T) {
	states := []state{
		stateOf(s.set("a", dns.A, 60, "192.0.2.1")),
		stateOf(s.set("a", dns.A, 60, "192.0.2.1", "192.0.2.2", "198.51.100.3")),
		stateOf(s.set("a", dns.A, 300, "192.0.2.1", "192.0.2.2", "198.51.100.3")),
		stateOf(s.set("a", dns.A, 60, "198.51.100.3"), s.set("a", dns.AAAA, 60, "2001:db8::1", "2001:db8::2")),
		stateOf(s.set("a", dns.AAAA, 60, "2001:db8::2")),
		stateOf(),
		stateOf(s.set("", dns.A, 60, "192.0.2.9"), s.set("*", dns.A, 60, "192.0.2.1"), s.set("b.c.d", dns.A, 60, "192.0.2.1")),
		stateOf(s.set("*", dns.A, 61, "192.0.2.1"), s.set("*.c.d", dns.AAAA, 60, "2001:db8::7")),
		stateOf(s.set("_acme-challenge.a", dns.TXT, 60, "one", "two"), s.set("a", dns.TXT, 60, "v=spf1 -all")),
		stateOf(s.set("a", dns.TXT, 60, `with "quotes", back\slash; (and) `, "\x00\x7f\xff", "")),
		stateOf(s.set("a", dns.TXT, 60, strings.Repeat("long ", 120)), s.set("a", "MX", 60, "10 mail.example.com.", "20 mail2.example.com.")),
		stateOf(s.set("a", "CAA", 60, `0 issue "ca.example.net"`), s.set("xn--mnchen-3ya", dns.A, 2147483647, "192.0.2.1")),
	}
	all := state{}
	for i := range 50 {
		maps.Copy(all, stateOf(s.set(fmt.Sprintf("n%d", i), dns.A, 60, fmt.Sprintf("192.0.2.%d", i))))
	}
	states = append(states, all)
	for i, st := range states {
		s.move(t, st)
		s.check(t, st)
		if t.Failed() {
			t.Fatalf("in state %d", i)
		}
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		i := random.IntN(len(states))
		s.move(t, states[i])
		s.check(t, states[i])
		if t.Failed() {
			t.Fatalf("in state %d, random order of seed %d", i, seed)
		}
	}
	s.move(t, state{})
	s.check(t, state{})
}

func (s *suite) mistakes(t *testing.T) {
	ctx := t.Context()
	if err := s.zone.Delete(ctx, "never."+s.under, dns.A); err != nil {
		t.Errorf("Delete of an absent set: %v", err)
	}
	if err := s.zone.Set(ctx, s.set("a", dns.A, 60)); !errors.Is(err, dns.ErrEmpty) {
		t.Errorf("Set without values: %v, want ErrEmpty", err)
	}
	for _, bad := range []dns.RRset{
		{Name: s.outside, Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}},
		{Name: "A." + s.under, Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}},
		{Name: "a." + s.under + ".", Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}},
		{Name: "a." + s.under, Type: "NOSUCH", TTL: time.Minute, Values: []string{"192.0.2.1"}},
		{Name: "a." + s.under, Type: dns.A, TTL: time.Minute, Values: []string{"2001:db8::1"}},
		{Name: "a." + s.under, Type: "MX", TTL: time.Minute, Values: []string{"10 mail.example.com.\n@ A 192.0.2.1"}},
	} {
		if err := s.zone.Set(ctx, bad); err == nil {
			t.Errorf("Set %v was accepted", bad)
		}
	}
	s.check(t, state{})
}

func (s *suite) transactions(t *testing.T, b dns.Batcher) {
	ctx := t.Context()
	one, two := s.set("a", dns.A, 60, "192.0.2.1"), s.set("a", dns.A, 60, "192.0.2.2", "192.0.2.3")
	mark := s.set("mark", dns.TXT, 60, "mine")
	none := func(set dns.RRset) dns.RRset { set.Values = nil; return set }
	commit := func(want []bool, txs ...dns.Transaction) {
		t.Helper()
		for i, err := range b.Commit(ctx, txs) {
			if want[i] && err != nil {
				t.Errorf("transaction %d: %v", i, err)
			}
			if !want[i] && !errors.Is(err, dns.ErrConflict) {
				t.Errorf("transaction %d: %v, want ErrConflict", i, err)
			}
		}
	}
	pair := func(require, set []dns.RRset) dns.Transaction { return dns.Transaction{Require: require, Set: set} }
	type sets = []dns.RRset

	commit([]bool{true}, pair(sets{none(one), none(mark)}, sets{one, mark}))
	s.check(t, stateOf(one, mark))
	// A name that is there, values that differ, more values, fewer values: each
	// stops its own transaction, whole, and no other.
	other := s.set("other", dns.A, 60, "192.0.2.7")
	commit([]bool{false, false, true, false, false},
		pair(sets{none(one)}, sets{two, none(mark)}),
		pair(sets{s.set("mark", dns.TXT, 60, "theirs")}, sets{none(one), none(mark)}),
		pair(sets{none(other)}, sets{other}),
		pair(sets{s.set("a", dns.A, 60, "192.0.2.1", "192.0.2.2")}, sets{none(one)}),
		pair(sets{s.set("absent", dns.A, 60, "192.0.2.1")}, sets{none(one)}))
	s.check(t, stateOf(one, mark, other))
	// The TTL of a requirement is not looked at.
	was := one
	was.TTL = time.Hour
	commit([]bool{true}, pair(sets{was, mark}, sets{two}))
	s.check(t, stateOf(two, mark, other))
	// Transactions follow each other, also on one set.
	commit([]bool{true, true, false},
		pair(sets{two}, sets{one}), pair(sets{one}, sets{none(one), none(mark)}), pair(sets{two}, sets{none(other)}))
	s.check(t, stateOf(other))
	// Each sees what the one before it left: of two that want a free name one gets it.
	commit([]bool{true, false}, pair(sets{none(one)}, sets{one}), pair(sets{none(one)}, sets{two}))
	s.check(t, stateOf(one, other))
	commit([]bool{true}, pair(sets{one}, sets{none(one)}))
	// A broken transaction is its own trouble.
	errs := b.Commit(ctx, []dns.Transaction{
		{Set: sets{{Name: s.outside, Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}}}},
		{Set: sets{none(other)}},
	})
	if errs[0] == nil || errs[1] != nil {
		t.Errorf("a name outside of the zone, then a good change: %v", errs)
	}
	s.check(t, state{})
}

// many makes more changes than one message carries, with a few that conflict.
func (s *suite) many(t *testing.T, b dns.Batcher) {
	const count = 1500
	taken := s.set("n700", dns.A, 60, "203.0.113.1")
	if err := b.Set(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	var create, remove []dns.Transaction
	want := stateOf(taken)
	for i := range count {
		set := s.set(fmt.Sprintf("n%d", i), dns.A, 60, fmt.Sprintf("192.0.2.%d", i%250))
		mark := s.set(fmt.Sprintf("m%d", i), dns.TXT, 60, "heritage=kokoa,fleet=demo,types=A")
		create = append(create, dns.Transaction{
			Require: []dns.RRset{{Name: set.Name, Type: dns.A}, {Name: mark.Name, Type: dns.TXT}},
			Set:     []dns.RRset{set, mark},
		})
		remove = append(remove, dns.Transaction{
			Require: []dns.RRset{set, mark},
			Set:     []dns.RRset{{Name: set.Name, Type: dns.A}, {Name: mark.Name, Type: dns.TXT}},
		})
		if i != 700 {
			maps.Copy(want, stateOf(set, mark))
		}
	}
	expect := func(errs []error) {
		t.Helper()
		for i, err := range errs {
			if i == 700 && !errors.Is(err, dns.ErrConflict) || i != 700 && err != nil {
				t.Fatalf("transaction %d: %v", i, err)
			}
		}
	}
	expect(b.Commit(t.Context(), create))
	s.check(t, want)
	expect(b.Commit(t.Context(), remove))
	s.check(t, stateOf(taken))
	s.move(t, state{})
}

func (s *suite) single(t *testing.T, a dns.Adder) {
	ctx := t.Context()
	name := "_acme-challenge.a." + s.under
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		must(a.Add(ctx, name, dns.TXT, time.Minute, "first"))
		must(a.Add(ctx, name, dns.TXT, time.Minute, "second"))
	}
	s.check(t, stateOf(s.set("_acme-challenge.a", dns.TXT, 60, "first", "second")))
	must(a.Remove(ctx, name, dns.TXT, "never there"))
	for range 2 {
		must(a.Remove(ctx, name, dns.TXT, "first"))
	}
	s.check(t, stateOf(s.set("_acme-challenge.a", dns.TXT, 60, "second")))
	must(dns.RemoveTXT(ctx, a, name, "second"))
	must(dns.RemoveTXT(ctx, a, name, "second"))
	s.check(t, state{})
}

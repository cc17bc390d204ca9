package dns

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// Driver observes and changes the plan.Record objects of a fleet's zones: A and AAAA
// sets at host names and wildcards. It owns what an owner record beside the name
// says is the fleet's (see OwnerName), and changes nothing else. Its Specs are
// RecordSets. It is safe for concurrent use and remembers nothing.
type Driver struct {
	// Fleet is the name that owner records carry: a DNS label.
	Fleet string
	// Zones by name.
	Zones map[string]Zone
	// Timeout of reading one zone; 0 is 15 seconds.
	Timeout time.Duration
	// Log may be nil.
	Log *slog.Logger
}

var _ plan.Applier = (*Driver)(nil)

// Observe asks all zones at once. A zone that cannot be read to its end in time is
// in Unseen. A set that the fleet owns and that is not there any more is observed
// as a RecordSet without values that has Ended: desired, it is put back; not
// desired, deleting it removes what is left of its owner record.
func (d *Driver) Observe(ctx context.Context) plan.Observation {
	names := slices.Sorted(maps.Keys(d.Zones))
	objects, errs := make([][]plan.Object, len(names)), make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { objects[i], errs[i] = d.observeZone(ctx, name) })
	}
	wg.Wait()
	o := plan.Observation{Objects: slices.Concat(objects...), Unseen: map[plan.Scope]string{}}
	for i, name := range names {
		if errs[i] != nil {
			o.Unseen[plan.Scope{Kind: plan.Record, Name: name}] = errs[i].Error()
		}
	}
	return o
}

// Apply makes changes, the zones at once and in each zone in order. All changes of
// one host share their fate. A change that was planned from something else than now
// stands in the zone is ErrConflict; one to a name that someone else holds is
// ErrHeld; one that would leave a name without an answer is ErrEmpty.
func (d *Driver) Apply(ctx context.Context, changes []plan.Change) []error {
	errs := make([]error, len(changes))
	zones := map[string][]int{}
	for i, c := range changes {
		zones[c.Ref.Scope] = append(zones[c.Ref.Scope], i)
	}
	var wg sync.WaitGroup
	for name, indexes := range zones {
		wg.Go(func() {
			if err := d.applyZone(ctx, name, changes, indexes, errs); err != nil {
				for _, i := range indexes {
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// setKey names a set.
type setKey struct {
	name string
	typ  Type
}

func (d *Driver) read(ctx context.Context, name string) ([]RRset, error) {
	zone, ok := d.Zones[name]
	if !ok {
		return nil, fmt.Errorf("zone %s is none of the fleet's", name)
	}
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 15 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	sets, err := zone.RRsets(ctx)
	if err != nil {
		return nil, fmt.Errorf("read zone %s: %w", name, err)
	}
	if d.Log != nil {
		d.Log.Debug("zone read", "zone", name, "count", len(sets), "took", time.Since(start))
	}
	return sets, nil
}

func (d *Driver) observeZone(ctx context.Context, zone string) ([]plan.Object, error) {
	sets, err := d.read(ctx, zone)
	if err != nil {
		return nil, err
	}
	addresses := make(map[setKey]RRset, len(sets))
	for _, s := range sets {
		if s.Type == A || s.Type == AAAA {
			addresses[setKey{s.Name, s.Type}] = s
		}
	}
	objects := make([]plan.Object, 0, len(addresses))
	for _, s := range sets {
		if s.Type != TXT {
			continue
		}
		host, ok := ownedHost(zone, s.Name)
		if !ok {
			continue
		}
		o, ok := readOwner(s)
		if !ok || o.fleet != d.Fleet {
			continue
		}
		for _, t := range []Type{A, AAAA} {
			c := *o.claim(t)
			if c == unclaimed {
				continue
			}
			object := plan.Object{Ref: Ref(zone, host, t)}
			if set := addresses[setKey{host, t}]; c.covers(set) {
				object.Spec = RecordSet{t, set.TTL, set.Values, c != settled}
			} else {
				object.Spec, object.Ended = RecordSet{Type: t}, true
			}
			objects = append(objects, object)
		}
	}
	return objects, nil
}

// standing is what a zone has at and around one host.
type standing struct {
	zone, host string
	sets       map[setKey]RRset
	owner      owner
	// marker is the owner record as it stands; foreign when it is none of ours.
	marker  RRset
	foreign bool
}

// step is the changes of one host, to be made together.
type step struct {
	indexes []int
	before  owner
	after   owner
	marker  RRset
	// was and sets are the address sets that change, before and after, at the
	// same index; without values: no set.
	was, sets []RRset
}

func (d *Driver) applyZone(ctx context.Context, zone string, changes []plan.Change, indexes []int, errs []error) error {
	sets, err := d.read(ctx, zone)
	if err != nil {
		return err
	}
	byHost := map[string][]int{}
	var hosts []string
	for _, i := range indexes {
		host, _, ok := SplitRef(changes[i].Ref)
		if !ok {
			errs[i] = fmt.Errorf("%s is no address record", changes[i].Ref)
			continue
		}
		if err := checkHost(zone, host); err != nil {
			errs[i] = err
			continue
		}
		if byHost[host] == nil {
			hosts = append(hosts, host)
		}
		byHost[host] = append(byHost[host], i)
	}
	// Only the sets that matter to these hosts are looked at: a change to one of
	// ten thousand names does not index them all.
	matters := map[string]bool{}
	for _, host := range hosts {
		for _, n := range above(zone, host) {
			matters[n] = true
		}
		for _, n := range above(zone, OwnerName(zone, host)) {
			matters[n] = true
		}
	}
	near := make(map[setKey]RRset, len(matters))
	for _, s := range sets {
		if matters[s.Name] {
			near[setKey{s.Name, s.Type}] = s
		}
	}
	var steps []step
	for _, host := range hosts {
		at := stand(zone, host, near)
		s := step{before: at.owner, after: at.owner, marker: at.marker}
		for _, i := range byHost[host] {
			if errs[i] = d.decide(at, changes[i], &s); errs[i] == nil {
				s.indexes = append(s.indexes, i)
			}
		}
		if len(s.sets) > 0 || s.after.String() != s.before.String() {
			steps = append(steps, s)
		}
	}
	for i, err := range d.make(ctx, zone, steps) {
		for _, j := range steps[i].indexes {
			errs[j] = err
		}
	}
	return nil
}

func stand(zone, host string, sets map[setKey]RRset) standing {
	marker, ok := sets[setKey{OwnerName(zone, host), TXT}]
	if !ok {
		marker = RRset{Name: OwnerName(zone, host), Type: TXT}
	}
	o, ours := readOwner(marker)
	return standing{zone, host, sets, o, marker, !ours}
}

// set is the set of a type at the host; without values when there is none.
func (at standing) set(t Type) RRset {
	if s, ok := at.sets[setKey{at.host, t}]; ok {
		return s
	}
	return RRset{Name: at.host, Type: t}
}

// decide adds a change to the host's step, or says why it must not be made.
func (d *Driver) decide(at standing, c plan.Change, s *step) error {
	_, t, _ := SplitRef(c.Ref)
	var want RecordSet
	if c.Action != plan.Delete {
		var ok bool
		if want, ok = c.After.(RecordSet); !ok || want.Type != t {
			return fmt.Errorf("%s: %T is no %s record set", c.Ref, c.After, t)
		}
		if err := want.check(); err != nil {
			return fmt.Errorf("%s: %w", at.host, err)
		}
	}
	set := at.set(t)
	is := RecordSet{Type: t, TTL: set.TTL, Values: set.Values}
	mine := !at.foreign && at.owner.fleet == d.Fleet && at.owner.claim(t).covers(set)
	if mine && !is.same(want) {
		// The plan must have been made from what stands here now: an older plan
		// than the one last applied must not undo it.
		if before, _ := c.Before.(RecordSet); c.Action == plan.Create || !is.same(RecordSet{t, before.TTL, before.Values, false}) {
			return fmt.Errorf("%s %s is %s now, which this was not planned from: %w", at.host, t, is, ErrConflict)
		}
	}
	switch {
	case c.Action == plan.Delete:
		if at.foreign || at.owner.fleet != d.Fleet {
			return nil // nothing of ours is left here
		}
		*s.after.claim(t) = unclaimed
		if mine {
			s.change(set, nil, 0)
		}
		return nil
	case !mine:
		if err := d.held(at, t); err != nil {
			return err
		}
	}
	s.after.fleet = d.Fleet
	*s.after.claim(t) = settled
	if !is.same(want) {
		s.change(set, want.Values, want.TTL)
	}
	return nil
}

func (s *step) change(was RRset, values []string, ttl time.Duration) {
	s.was = append(s.was, was)
	s.sets = append(s.sets, RRset{was.Name, was.Type, ttl, values})
}

// held says who keeps the host from getting a record of type t.
func (d *Driver) held(at standing, t Type) error {
	const remedy = "; remove it, then Kokoa makes its own"
	if at.foreign {
		return fmt.Errorf("%s: the TXT record at %s is no owner record of Kokoa's (%q)%s: %w", at.host, at.marker.Name, strings.Join(at.marker.Values, " "), remedy, ErrHeld)
	}
	if f := at.owner.fleet; f != "" && f != d.Fleet {
		return fmt.Errorf("%s belongs to fleet %q, says the TXT record at %s; take it out of that fleet, or remove that record and the name's addresses, then Kokoa makes its own: %w", at.host, f, at.marker.Name, ErrHeld)
	}
	for _, name := range []string{at.host, at.marker.Name} {
		for _, n := range above(at.zone, name) {
			ns, dname := at.sets[setKey{n, NS}], at.sets[setKey{n, DNAME}]
			switch {
			case n != at.zone && len(ns.Values) > 0:
				return fmt.Errorf("%s lies below %s, which is delegated to %s%s: %w", name, n, strings.Join(ns.Values, " "), remedy, ErrHeld)
			case n != name && len(dname.Values) > 0:
				return fmt.Errorf("%s lies below %s, which is a DNAME to %s%s: %w", name, n, strings.Join(dname.Values, " "), remedy, ErrHeld)
			}
		}
	}
	for _, other := range []Type{t, CNAME, A, AAAA} {
		set := at.set(other)
		if len(set.Values) == 0 || (other == A || other == AAAA) && at.owner.claim(other).covers(set) {
			continue
		}
		return fmt.Errorf("%s has a %s record (%s) that Kokoa did not make%s: %w", at.host, other, strings.Join(set.Values, " "), remedy, ErrHeld)
	}
	return nil
}

// make makes steps in order, with one error or nil for each.
func (d *Driver) make(ctx context.Context, zone string, steps []step) []error {
	errs := make([]error, len(steps))
	batcher, ok := d.Zones[zone].(Batcher)
	if !ok {
		for i, s := range steps {
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = s.makeInOrder(ctx, zone, d.Zones[zone])
			}
		}
		return errs
	}
	txs := make([]Transaction, len(steps))
	for i, s := range steps {
		txs[i] = s.transaction(zone)
	}
	if len(txs) > 0 {
		copy(errs, batcher.Commit(ctx, txs))
	}
	return errs
}

// transaction is the step at once: the record and its owner record, if nothing that
// it was decided from has changed.
func (s step) transaction(zone string) Transaction {
	t := Transaction{Require: append([]RRset{s.marker}, s.was...), Set: s.sets}
	for i, set := range s.sets {
		if len(set.Values) > 0 && len(s.was[i].Values) == 0 {
			t.Require = append(t.Require, RRset{Name: set.Name, Type: CNAME})
		}
	}
	if s.after.String() != s.before.String() {
		t.Set = append(slices.Clip(t.Set), s.ownerSet(zone, s.after))
	}
	return t
}

// makeInOrder is the step in single writes, each of which leaves what the next turn
// understands: first the owner record says what is about to be written or deleted,
// then that is done, and only then is it settled.
func (s step) makeInOrder(ctx context.Context, zone string, z Zone) error {
	during := s.after
	for i, set := range s.sets {
		switch was := s.was[i]; {
		case len(set.Values) == 0:
			*during.claim(set.Type) = pending(was.Values)
		case len(was.Values) == 0:
			*during.claim(set.Type) = pending(set.Values)
		}
	}
	if err := s.writeOwner(ctx, zone, z, s.before, during); err != nil {
		return err
	}
	for _, set := range s.sets {
		if len(set.Values) == 0 {
			if err := z.Delete(ctx, set.Name, set.Type); err != nil {
				return fmt.Errorf("delete %s %s: %w", set.Name, set.Type, err)
			}
		} else if err := z.Set(ctx, set); err != nil {
			return fmt.Errorf("set %s %s: %w", set.Name, set.Type, err)
		}
	}
	return s.writeOwner(ctx, zone, z, during, s.after)
}

func (s step) writeOwner(ctx context.Context, zone string, z Zone, from, to owner) error {
	if from.String() == to.String() {
		return nil
	}
	set := s.ownerSet(zone, to)
	var err error
	if len(set.Values) == 0 {
		err = z.Delete(ctx, set.Name, set.Type)
	} else {
		err = z.Set(ctx, set)
	}
	if err != nil {
		return fmt.Errorf("write owner record %s: %w", set.Name, err)
	}
	return nil
}

func (s step) ownerSet(zone string, o owner) RRset {
	set := RRset{Name: s.marker.Name, Type: TXT, TTL: ownerTTL}
	if text := o.String(); text != "" {
		set.Values = []string{text}
	}
	return set
}

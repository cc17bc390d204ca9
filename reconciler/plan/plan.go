// Package plan compares what is desired with what was observed. It is pure: no
// clock, no network, no files; equal inputs give equal bytes.
package plan

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Kind is a kind of thing in the world. Kinds are declared in the order in which
// things must exist: plans create in this order and delete in reverse.
type Kind uint8

// The kinds.
const (
	// Peer is an origin's WireGuard peer on an edge; scope is the edge.
	Peer Kind = iota + 1
	// Agent is an agent's signed config as an edge relays it; scope is the edge.
	Agent
	// Route is a route on an edge; scope is the edge.
	Route
	// Certificate is a certificate in the control plane's store; no scope.
	Certificate
	// Delivery is a certificate on an edge; scope is the edge.
	Delivery
	// Record is a DNS record set; scope is the zone, the name "host TYPE".
	Record
)

var kindNames = map[Kind]string{
	Peer: "peer", Agent: "agent", Route: "route",
	Certificate: "certificate", Delivery: "delivery", Record: "record",
}

// String is the kind's name in plans.
func (k Kind) String() string { return kindNames[k] }

// MarshalText writes the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the kind's name.
func (k *Kind) UnmarshalText(text []byte) error {
	for kind, name := range kindNames {
		if name == string(text) {
			*k = kind
			return nil
		}
	}
	return fmt.Errorf("unknown kind %q", text)
}

// Scope is a part of the world that is seen or not seen as a whole: the routes of
// one edge, the records of one zone.
type Scope struct {
	Kind Kind
	Name string
}

// Ref names a thing.
type Ref struct {
	Kind  Kind   `json:"kind"`
	Scope string `json:"scope,omitempty"`
	Name  string `json:"name"`
}

// String is "route tokyo/blog".
func (r Ref) String() string {
	if r.Scope == "" {
		return r.Kind.String() + " " + r.Name
	}
	return r.Kind.String() + " " + r.Scope + "/" + r.Name
}

// Compare orders refs by kind, then name, then scope: the same thing in several
// scopes stands together.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Kind, o.Kind), cmp.Compare(r.Name, o.Name), cmp.Compare(r.Scope, o.Scope))
}

// Field is one field of a Spec as people read it. It holds no secret.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Spec is what a thing is like. Specs are immutable.
type Spec interface {
	// Equal reports whether the thing would be the same. The other Spec is of
	// the same Kind.
	Equal(Spec) bool
	// String is one stable line without secrets.
	String() string
	// Fields are all fields that Equal looks at, in a fixed order.
	Fields() []Field
}

// Object is a thing, desired or observed.
type Object struct {
	Ref  Ref
	Spec Spec
	// From is where it is written in the fleet repo, "file:line:column"; empty
	// for an observed thing.
	From string
	// Needs are things that must have been made before this one: when one of
	// them fails in a turn, this one waits for the next.
	Needs []Ref
	// Course, on a desired thing, reports whether an observed spec (nil for
	// absent) is one that the world's own course explains, so not drift; nil
	// means that none is.
	Course func(observed Spec) bool
	// Ended is set on an observed thing whose own time has run out: deleting
	// it needs nobody's approval.
	Ended bool
}

// Action is what a change does.
type Action byte

// The actions.
const (
	Create Action = '+'
	Update Action = '~'
	Delete Action = '-'
)

// String is "+", "~" or "-".
func (a Action) String() string { return string(rune(a)) }

// MarshalText writes create, update or delete.
func (a Action) MarshalText() ([]byte, error) {
	switch a {
	case Create:
		return []byte("create"), nil
	case Update:
		return []byte("update"), nil
	case Delete:
		return []byte("delete"), nil
	}
	return nil, fmt.Errorf("unknown action %q", byte(a))
}

// Cause is who moved.
type Cause string

// The causes.
const (
	// Git: the fleet repo asks for something else than it did.
	Git Cause = "git"
	// Drift: the live thing was changed by someone else, and is put back.
	Drift Cause = "drift"
	// Course: what is live has moved in its own course, so what is right has: an
	// edge went down, a certificate is due.
	Course Cause = "course"
)

// Change is one step from observed to desired.
type Change struct {
	Action Action
	Ref    Ref
	// Before is nil for Create, After for Delete.
	Before, After Spec
	From          string
	Cause         Cause
	Needs         []Ref
}

// Waiting is a desired thing that no change can make yet, and why.
type Waiting struct {
	Ref    Ref    `json:"ref"`
	Reason string `json:"reason"`
	From   string `json:"from,omitempty"`
}

// Limits bound what a plan may delete without a person's word.
type Limits struct {
	// MaxDeletePercent of the things of a kind, where there are at least ten;
	// 0 is no limit.
	MaxDeletePercent int
	// MaxDeletes of a kind; 0 is no limit.
	MaxDeletes int
	// Approved is how many deletions a person has agreed to: the plan passes
	// when it deletes just that many. 0 is none.
	Approved int
}

// Input is what Compute compares.
type Input struct {
	Desired  []Object
	Observed []Object
	// Applied is what the last applied revision desired; it tells drift from a
	// change in Git. Nil when it is not known: then all causes are Git.
	Applied []Object
	// Unseen are scopes that could not be observed, and why. "Could not see" is
	// not "not there": nothing in them changes, and what is desired waits.
	Unseen map[Scope]string
	// Waiting is desired and cannot be made yet; what is observed of it stays.
	Waiting []Waiting
	Limits  Limits
}

// Plan is every change, in the order in which it is to be made.
type Plan struct {
	Changes []Change
	Waiting []Waiting
	// Unchanged counts the desired things that are as they should be.
	Unchanged int
	// Blocked says why a person must agree first; empty when none must.
	Blocked []Block
}

// Block is one guard that stopped the plan.
type Block struct {
	Kind     Kind   `json:"kind"`
	Deletes  int    `json:"deletes"`
	Existing int    `json:"existing"`
	Rule     string `json:"rule"`
}

// ErrTooManyDeletes is returned with a plan that deletes more than its limits
// allow, so that it can be shown and a person can say yes.
var ErrTooManyDeletes = errors.New("too many deletes")

// guarded kinds are those whose deletion a visitor or a host would feel.
var guarded = []Kind{Peer, Route, Record}

// Compute is the plan from observed to desired. When the limits stop it, the whole
// plan is returned with ErrTooManyDeletes. Two desired or two observed objects of
// one Ref are an error.
func Compute(in Input) (Plan, error) {
	desired, err := index("desired", in.Desired)
	if err != nil {
		return Plan{}, err
	}
	observed, err := index("observed", in.Observed)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Waiting: slices.Clone(in.Waiting)}
	held := make(map[Ref]bool, len(in.Waiting))
	for _, w := range in.Waiting {
		held[w.Ref] = true
	}
	// A settled fleet has no change to explain, and most are settled.
	applied := sync.OnceValue(func() map[Ref]Object {
		m := make(map[Ref]Object, len(in.Applied))
		for _, o := range in.Applied {
			m[o.Ref] = o
		}
		return m
	})
	// Git did not move when the last applied revision wanted the same; then it
	// was the world that did.
	cause := func(want Object, seen Spec) Cause {
		was, known := applied()[want.Ref]
		switch moved := known != (want.Spec != nil) || known && !was.Spec.Equal(want.Spec); {
		case in.Applied == nil || moved:
			return Git
		case want.Ended, want.Course != nil && want.Course(seen):
			return Course
		}
		return Drift
	}
	for _, d := range in.Desired {
		if held[d.Ref] {
			continue
		}
		if why, unseen := in.Unseen[Scope{d.Ref.Kind, d.Ref.Scope}]; unseen {
			p.Waiting = append(p.Waiting, Waiting{d.Ref, why, d.From})
			continue
		}
		at, exists := observed[d.Ref]
		var o Object
		if exists {
			o = in.Observed[at]
		}
		switch {
		case !exists:
			p.Changes = append(p.Changes, Change{Create, d.Ref, nil, d.Spec, d.From, cause(d, nil), d.Needs})
		case !o.Spec.Equal(d.Spec):
			p.Changes = append(p.Changes, Change{Update, d.Ref, o.Spec, d.Spec, d.From, cause(d, o.Spec), d.Needs})
		default:
			p.Unchanged++
		}
	}
	for _, o := range in.Observed {
		_, wanted := desired[o.Ref]
		_, unseen := in.Unseen[Scope{o.Ref.Kind, o.Ref.Scope}]
		if wanted || unseen || held[o.Ref] {
			continue
		}
		p.Changes = append(p.Changes, Change{Delete, o.Ref, o.Spec, nil, applied()[o.Ref].From, cause(Object{Ref: o.Ref, Ended: o.Ended}, o.Spec), nil})
	}
	slices.SortFunc(p.Changes, func(a, b Change) int {
		if x, y := a.Action == Delete, b.Action == Delete; x != y {
			if x {
				return 1
			}
			return -1
		} else if x {
			return b.Ref.Compare(a.Ref)
		}
		return a.Ref.Compare(b.Ref)
	})
	slices.SortFunc(p.Waiting, func(a, b Waiting) int { return a.Ref.Compare(b.Ref) })
	return p, p.guard(in, desired, observed)
}

// guard fills Blocked. It counts names, not copies: a route on three edges is one.
func (p *Plan) guard(in Input, desired, observed map[Ref]int) error {
	total := 0
	for _, kind := range guarded {
		if !slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action == Delete && c.Ref.Kind == kind }) {
			continue
		}
		remain, existing, deleted := names{}, names{}, names{}
		for _, o := range in.Observed {
			if o.Ref.Kind == kind && !o.Ended {
				existing.add(o.Ref.Name)
			}
		}
		for ref := range desired {
			if ref.Kind == kind {
				remain.add(ref.Name)
			}
		}
		for _, w := range p.Waiting {
			if w.Ref.Kind == kind {
				remain.add(w.Ref.Name)
			}
		}
		for _, c := range p.Changes {
			if c.Action == Delete && c.Ref.Kind == kind && !in.Observed[observed[c.Ref]].Ended && !remain[c.Ref.Name] {
				deleted.add(c.Ref.Name)
			}
		}
		n, all := len(deleted), len(existing)
		total += n
		block := func(format string, args ...any) {
			p.Blocked = append(p.Blocked, Block{kind, n, all, fmt.Sprintf(format, args...)})
		}
		switch lim := in.Limits; {
		case n == 0:
		case n == all && len(remain) == 0:
			block("none would be left")
		case lim.MaxDeletePercent > 0 && all >= 10 && n*100 > all*lim.MaxDeletePercent:
			block("%d %% is over the limit of %d %%", n*100/all, lim.MaxDeletePercent)
		case lim.MaxDeletes > 0 && n > lim.MaxDeletes:
			block("over the limit of %d", lim.MaxDeletes)
		}
	}
	if len(p.Blocked) == 0 || total == in.Limits.Approved {
		p.Blocked = nil
		return nil
	}
	var why []string
	for _, b := range p.Blocked {
		why = append(why, fmt.Sprintf("%d of %d %ss (%s)", b.Deletes, b.Existing, b.Kind, b.Rule))
	}
	return fmt.Errorf("%w: %s; if this is meant: kokoa apply --approve-deletes %d", ErrTooManyDeletes, strings.Join(why, ", "), total)
}

type names map[string]bool

func (n names) add(name string) { n[name] = true }

// index finds objects by what they are; each may stand there once.
func index(what string, objects []Object) (map[Ref]int, error) {
	m := make(map[Ref]int, len(objects))
	for i, o := range objects {
		if first, twice := m[o.Ref]; twice {
			return nil, fmt.Errorf("%s twice: %s (%s and %s)", what, o.Ref, objects[first].From, o.From)
		}
		m[o.Ref] = i
	}
	return m, nil
}

// Empty reports whether there is nothing to do and nothing to wait for.
func (p Plan) Empty() bool { return len(p.Changes) == 0 && len(p.Waiting) == 0 }

// Package reconciler makes the world match the fleet repo, one turn at a time.
package reconciler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
)

// Reconciler has everything a turn needs. Turns run one at a time.
type Reconciler struct {
	Source repo.Source
	Loader Loader
	Secret keys.Secret
	Edges  *edges.Driver
	// Certs may be nil for a Visiting reconciler that only plans.
	Certs *certs.Manager
	// Visiting is a single run beside the fleet's own `kokoa serve`: it takes a
	// certificate that edges already have as held, since the key is with serve.
	Visiting bool
	// Zones opens the fleet's zones, by name; none for fleet.DNSNone.
	Zones func(*fleet.Fleet) (map[string]dns.Zone, error)
	// History remembers what was applied.
	History *History
	// Accept is a commit that is taken although it does not descend from what
	// was applied.
	Accept string
	// Approved is how many deletions a person has agreed to in the next Apply;
	// see plan.Limits.
	Approved int
	// Grace is how long an edge must be out of sight before it counts as down;
	// 0 means that it never does, as for a single run from who knows where.
	Grace time.Duration
	// Rotations says, by origin, before which moment a key must have been made to be
	// replaced; see api.AgentConfig.RotateBefore. It is called once per turn, and its
	// map is not changed; nil leaves what was asked for as it is.
	Rotations func(*fleet.Fleet) map[string]time.Time
	Log       *slog.Logger

	// at keeps the last few fleets that were read, newest first.
	at []Commit
	// records is the driver that the last observation was made with.
	records *dns.Driver
}

// Loader reads a fleet; *schema.Loader is one.
type Loader interface {
	Load(ctx context.Context, tree schema.Tree) (*fleet.Fleet, schema.Diagnostics, error)
}

// Commit is the fleet repo at a commit, read and checked.
type Commit struct {
	Revision *repo.Revision
	// Fleet has everything, what has ended or is inactive too.
	Fleet    *fleet.Fleet
	Warnings schema.Diagnostics
}

// Turn is what one turn saw, planned and did.
type Turn struct {
	Commit
	World World
	Plan  plan.Plan
	// Pending says what will change by itself soon.
	Pending []string
	// Results are what Apply did, in order.
	Results []Result
	Began   time.Time
	// desired is what the commit wants of the world.
	desired []plan.Object
	// Loaded is how long it took to read the commit, Took until the plan stood,
	// Applied until the last change was made; none includes another.
	Loaded, Took, Applied time.Duration
}

// Result is one change, made or not.
type Result struct {
	Change plan.Change
	// Err is nil for a change that was made.
	Err error
}

// ErrSkipped is in the error of a change that was not tried in a turn, because
// something it needs failed or, for a delete, because anything did.
var ErrSkipped = errors.New("not tried in this turn")

// Settled reports whether the world is as Git wants it and nothing is under way.
func (t Turn) Settled() bool {
	return t.Plan.Empty() && len(t.Pending) == 0
}

// Failed lists the results that have an error.
func (t Turn) Failed() []Result {
	return slices.DeleteFunc(slices.Clone(t.Results), func(r Result) bool { return r.Err == nil })
}

// Read fetches and loads the head of the fleet repo. A fleet that does not load is
// schema.Diagnostics.
func (r *Reconciler) Read(ctx context.Context) (Commit, error) {
	revision, err := r.Source.Fetch(ctx)
	if err != nil {
		return Commit{}, fmt.Errorf("fetch the fleet repo: %w", err)
	}
	return r.load(ctx, revision)
}

func (r *Reconciler) load(ctx context.Context, revision *repo.Revision) (Commit, error) {
	for _, c := range r.at {
		if c.Revision == revision || c.Revision.Commit == revision.Commit && !c.Revision.Uncommitted && !revision.Uncommitted && revision.Commit != "" {
			return c, nil
		}
	}
	f, warnings, err := r.Loader.Load(ctx, revision)
	if err != nil {
		return Commit{Revision: revision}, err
	}
	c := Commit{revision, f, warnings}
	r.at = append([]Commit{c}, r.at[:min(len(r.at), 2)]...)
	return c, nil
}

// Plan is a turn up to the point where it would change something. A plan that its
// guards stop is returned with plan.ErrTooManyDeletes; history that rewinds is
// repo.ErrRewind.
func (r *Reconciler) Plan(ctx context.Context, c Commit) (Turn, error) {
	t := Turn{Commit: c, Began: time.Now()}
	err := r.plan(ctx, &t)
	t.Took = time.Since(t.Began)
	return t, err
}

func (r *Reconciler) plan(ctx context.Context, t *Turn) error {
	var earlier []*fleet.Fleet
	for _, commit := range []string{r.History.Settled(), r.History.Attempted()} {
		c, err := r.applied(ctx, commit)
		if err != nil {
			return err
		}
		earlier = append(earlier, c.Fleet)
	}
	var err error
	if t.World, err = r.observe(ctx, t.Fleet, earlier...); err != nil {
		return err
	}
	if err := r.follows(ctx, t.Revision, t.World); err != nil {
		return err
	}
	before, err := r.before(ctx, t.Commit, t.World)
	if err != nil {
		return err
	}
	if r.History.Attempted() == "" && before.Fleet != nil {
		// On a new disk the edges have just told what was applied: there may be
		// edges and zones to empty that nobody knew of.
		if t.World, err = r.observe(ctx, t.Fleet, before.Fleet); err != nil {
			return err
		}
	}
	desire := Desired(Current(t.Fleet, t.World.Now), r.Secret, t.World)
	t.Pending, t.desired = desire.Pending, desire.Objects
	in := plan.Input{
		Desired:  desire.Objects,
		Observed: t.World.Observed,
		Unseen:   t.World.Unseen,
		Waiting:  desire.Waiting,
		Limits: plan.Limits{
			MaxDeletePercent: t.Fleet.Guards.MaxDeletePercent,
			MaxDeletes:       t.Fleet.Guards.MaxDeletes,
			Approved:         r.Approved,
		},
	}
	switch {
	case before.Fleet == nil:
	case before.Fleet == t.Fleet:
		in.Applied = desire.Objects
	default:
		in.Applied = Desired(Current(before.Fleet, t.World.Now), r.Secret, t.World).Objects
	}
	t.Plan, err = plan.Compute(in)
	return err
}

// before is the revision that was applied before c: it tells drift from a change in
// Git. While c itself is being applied, it is the last one that was applied whole.
// The zero Commit when none is known or the repo no longer has it.
func (r *Reconciler) before(ctx context.Context, c Commit, w World) (Commit, error) {
	base := r.History.Attempted()
	if labels := revisions(w.Edges); len(labels) == 1 && labels[0] != base {
		// Nothing here applied what the edges have. Another control plane did, if
		// its commit came later: a `kokoa apply` beside `kokoa serve`.
		other, err := r.applied(ctx, labels[0])
		if err != nil {
			return Commit{}, err
		}
		if other.Fleet != nil && (base == "" || other.Revision.Descends(ctx, base) == nil) {
			base = labels[0]
		}
	}
	if base == c.Revision.Commit {
		base = r.History.Settled()
	}
	return r.applied(ctx, base)
}

// applied is a commit that was applied at some time, by its hash; the zero Commit for
// none, or when the repo no longer has it.
func (r *Reconciler) applied(ctx context.Context, commit string) (Commit, error) {
	if commit == "" {
		return Commit{}, nil
	}
	revision, err := r.Source.At(ctx, commit)
	if errors.Is(err, repo.ErrUnknownCommit) {
		return Commit{}, nil
	} else if err != nil {
		return Commit{}, fmt.Errorf("read an applied revision: %w", err)
	}
	was, err := r.load(ctx, revision)
	var diagnostics schema.Diagnostics
	if errors.As(err, &diagnostics) {
		// It was good once; a newer kokoa may read it more strictly.
		r.Log.Debug("applied revision not loaded", "revision", commit, "err", err)
		return Commit{}, nil
	}
	return was, err
}

// follows refuses a revision that does not descend from what was applied: somebody
// rewound the branch, or this is another repo. On a new disk the edges themselves
// tell what was applied.
func (r *Reconciler) follows(ctx context.Context, next *repo.Revision, w World) error {
	if next.Commit == "" || r.Accept != "" && strings.HasPrefix(next.Commit, r.Accept) {
		return nil
	}
	applied := revisions(w.Edges)
	if a := r.History.Attempted(); a != "" {
		applied = []string{a}
	}
	for _, base := range applied {
		if err := next.Descends(ctx, base); err != nil {
			return err
		}
	}
	return nil
}

// revisions are the commits that live configs were made from, sorted.
func revisions(live map[string]edges.Live) []string {
	var out []string
	for _, l := range live {
		if l.Err == nil && l.Config.Revision != "" {
			out = append(out, l.Config.Revision)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// observe looks at everything at once: the edges of f, and those that were in an
// earlier fleet and are still to be emptied. What cannot be seen is in World.Unseen.
func (r *Reconciler) observe(ctx context.Context, f *fleet.Fleet, earlier ...*fleet.Fleet) (World, error) {
	w := World{Now: time.Now(), Unseen: map[plan.Scope]string{}, Down: map[string]bool{}}
	byName := maps.Clone(f.Edges)
	for _, was := range earlier {
		if was == nil || was.Network != f.Network {
			continue
		}
		for name, e := range was.Edges {
			if _, known := byName[name]; !known {
				byName[name] = e
			}
		}
	}
	all := slices.Collect(maps.Values(byName))
	zones, err := r.Zones(withZones(f, earlier))
	if err != nil {
		return w, err
	}
	r.records = &dns.Driver{Fleet: f.Name, Zones: zones, Log: r.Log}

	fromDNS := make(chan plan.Observation, 1)
	go func() { fromDNS <- r.records.Observe(ctx) }()
	live, err := r.Edges.Observe(ctx, f.Network, all)
	inDNS := <-fromDNS
	if err != nil {
		return w, err
	}
	w.Edges = live
	if r.Certs != nil {
		var inStore plan.Observation
		inStore, w.Certificates = r.Certs.Observe(ctx, Current(f, w.Now))
		w.Observed = append(w.Observed, inStore.Objects...)
		maps.Copy(w.Unseen, inStore.Unseen)
	}
	if r.Visiting {
		w.Elsewhere = elsewhere(live, w)
		for _, l := range live {
			if l.Err != nil {
				w.Unseen[plan.Scope{Kind: plan.Certificate}] = "it may be on edge " + l.Edge.Name + ", which cannot be reached"
			}
		}
	}
	signing := r.Secret.SigningPublic()
	for _, name := range slices.Sorted(maps.Keys(live)) {
		l := live[name]
		if l.Err == nil {
			w.Observed = append(w.Observed, edges.Objects(l, signing, w.Now)...)
			continue
		}
		for _, kind := range edges.Kinds {
			w.Unseen[plan.Scope{Kind: kind, Name: name}] = "edge " + name + " cannot be reached: " + l.Err.Error()
		}
	}
	w.Down = down(live, w.Now, r.Grace)
	w.Rotate = r.rotate(f, w.Observed)
	w.Observed = append(w.Observed, inDNS.Objects...)
	maps.Copy(w.Unseen, inDNS.Unseen)
	markEnded(w.Observed, f, w.Now)
	return w, nil
}

// withZones is f with the domains, too, that an earlier fleet had: their names are
// still to be taken away.
func withZones(f *fleet.Fleet, earlier []*fleet.Fleet) *fleet.Fleet {
	c := *f
	for _, was := range earlier {
		if was == nil || was.DNS.Provider != f.DNS.Provider || was.DNS.Server != f.DNS.Server {
			continue
		}
		for _, d := range was.Domains {
			if !slices.Contains(c.Domains, d) {
				c.Domains = append(slices.Clone(c.Domains), d)
			}
		}
	}
	return &c
}

// elsewhere are the certificates that edges can serve and the store does not have.
func elsewhere(live map[string]edges.Live, w World) map[string]certs.Held {
	out := map[string]certs.Held{}
	for _, l := range live {
		for _, c := range l.State.Certificates {
			if _, held := w.Certificates[c.Name]; !held && c.NotAfter.After(w.Now) && c.NotAfter.After(out[c.Name].NotAfter) {
				out[c.Name] = certs.Held{Name: c.Name, Hosts: c.Hosts, Fingerprint: c.Fingerprint, NotAfter: c.NotAfter}
			}
		}
	}
	return out
}

// down lists the edges that do not serve. Out of sight from here is not enough:
// another edge must be in sight, so that it is not this host that is cut off, and
// no agent may say there that it still reaches the edge.
func down(live map[string]edges.Live, now time.Time, grace time.Duration) map[string]bool {
	out := map[string]bool{}
	if grace == 0 {
		return out
	}
	inSight := false
	reached := map[string]bool{}
	for _, l := range live {
		if l.Err != nil {
			continue
		}
		inSight = true
		for _, a := range l.State.Agents {
			if now.Sub(a.At) > agentSilence {
				continue
			}
			for _, e := range a.Heartbeat.Edges {
				if e.Up {
					reached[e.Name] = true
				}
			}
		}
	}
	for name, l := range live {
		if l.Err != nil && inSight && !reached[name] && now.Sub(l.UnreachableSince) >= grace {
			out[name] = true
		}
	}
	return out
}

// agentSilence is after how long without a heartbeat an agent's word is no longer
// taken: three of its beats.
const agentSilence = 90 * time.Second

// markEnded marks the records and delivered certificates of routes that have ended,
// as far as no other route needs them.
func markEnded(observed []plan.Object, f *fleet.Fleet, now time.Time) {
	hosts, certificates := map[string]bool{}, map[string]bool{}
	for _, r := range f.Routes {
		if r.Expires != nil && !r.Expires.After(now) {
			hosts[r.Host] = true
			if name, ok := certs.NameFor(f, r); ok {
				certificates[name] = true
			}
		}
	}
	if len(hosts) == 0 {
		return
	}
	for _, r := range Current(f, now).Routes {
		delete(hosts, r.Host)
		if name, ok := certs.NameFor(f, r); ok {
			delete(certificates, name)
		}
	}
	for i, o := range observed {
		switch o.Ref.Kind {
		case plan.Record:
			host, _, _ := dns.SplitRef(o.Ref)
			observed[i].Ended = o.Ended || hosts[host]
		case plan.Delivery:
			observed[i].Ended = o.Ended || certificates[o.Ref.Name]
		}
	}
}

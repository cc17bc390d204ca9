package reconciler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// Apply makes a turn's changes: creates and updates in the order of their kinds,
// then deletes in reverse. A failure does not stop the rest, since each change was
// planned from what had been seen; but what needs the failed thing waits, and a
// turn in which anything failed deletes nothing. Apply is safe to kill at any
// point: the next turn finishes it.
func (r *Reconciler) Apply(ctx context.Context, t Turn) (Turn, error) {
	if len(t.Plan.Blocked) > 0 {
		return t, fmt.Errorf("apply: %w", plan.ErrTooManyDeletes)
	}
	began := time.Now()
	defer func() { r.Approved = 0 }()
	if len(t.Plan.Changes) > 0 {
		if err := r.History.Attempt(t.Revision.Commit); err != nil {
			return t, err
		}
	}
	failed, broke := map[plan.Ref]bool{}, false
	for _, phase := range phases(t.Plan.Changes) {
		var try []plan.Change
		for _, c := range phase {
			switch need, blocked := needs(c, failed); {
			case c.Action == plan.Delete && broke:
				t.Results = append(t.Results, Result{c, fmt.Errorf("%w: nothing is deleted while something fails", ErrSkipped)})
			case blocked:
				failed[c.Ref] = true
				t.Results = append(t.Results, Result{c, fmt.Errorf("%w: it needs %s", ErrSkipped, need)})
			default:
				try = append(try, c)
			}
		}
		for i, err := range r.apply(ctx, t.Revision.Commit, try) {
			if err != nil {
				failed[try[i].Ref] = true
				// What was not tried, because its time has not come, has not
				// failed: one stubborn certificate must not keep every removed
				// route public.
				var later *certs.LaterError
				broke = broke || !errors.As(err, &later)
			}
			t.Results = append(t.Results, Result{try[i], err})
		}
	}
	t.Applied = time.Since(began)
	return t, nil
}

// Settle records that a revision was applied whole, when it was.
func (r *Reconciler) Settle(t Turn) error {
	if !t.Settled() || t.Revision.Commit == "" || t.Revision.Uncommitted {
		return nil
	}
	return r.History.Settle(t.Revision.Commit)
}

func needs(c plan.Change, failed map[plan.Ref]bool) (plan.Ref, bool) {
	for _, ref := range c.Needs {
		if failed[ref] {
			return ref, true
		}
	}
	return plan.Ref{}, false
}

// applier tells apart the rounds of a turn: what one driver does in one go.
func applier(c plan.Change) int {
	switch c.Ref.Kind {
	case plan.Peer, plan.Agent, plan.Route:
		return 0
	case plan.Certificate:
		return 1
	case plan.Delivery:
		return 2
	default:
		return 3
	}
}

// phases cuts the plan's changes, which are in order, where the driver or the
// direction changes.
func phases(changes []plan.Change) [][]plan.Change {
	var out [][]plan.Change
	for i, c := range changes {
		if i == 0 || applier(c) != applier(changes[i-1]) || (c.Action == plan.Delete) != (changes[i-1].Action == plan.Delete) {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], c)
	}
	return out
}

func (r *Reconciler) apply(ctx context.Context, revision string, changes []plan.Change) []error {
	if len(changes) == 0 {
		return nil
	}
	switch applier(changes[0]) {
	case 1:
		return r.Certs.Apply(ctx, changes)
	case 3:
		return r.records.Apply(ctx, changes)
	default:
		return r.Edges.Apply(ctx, revision, changes)
	}
}

// Converge runs turns on a commit until the world has settled, no change can be
// made, or ctx ends. After each turn it calls report. The last turn is returned; it
// has failed results when something did, and waiting or pending things when ctx
// ended while there were some.
func (r *Reconciler) Converge(ctx context.Context, c Commit, report func(Turn)) (Turn, error) {
	const shortest, longest = 100 * time.Millisecond, 2 * time.Second
	pause := shortest
	for {
		t, err := r.Plan(ctx, c)
		if err != nil {
			return t, err
		}
		if t.Settled() {
			return t, r.Settle(t)
		}
		if t, err = r.Apply(ctx, t); err != nil {
			return t, err
		}
		report(t)
		if len(t.Failed()) > 0 {
			return t, nil
		}
		if len(t.Plan.Changes) > 0 {
			pause = shortest
			continue
		}
		select {
		case <-ctx.Done():
			return t, nil
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}

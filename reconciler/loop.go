package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// Loop is `kokoa serve`: turns without end, sooner when the repo moves.
type Loop struct {
	*Reconciler
	// Interval between looks at a world that has settled; 0 is 10 s.
	Interval time.Duration
	// Turn, when set, is called after every turn, from the loop.
	Turn func(Turn, *Status)

	status atomic.Pointer[Status]
}

// Pauses of a world that has not settled: at first because something is about to
// happen, then longer and longer, up to the interval, because it seems not to.
const (
	shortestPause = 100 * time.Millisecond
	failurePause  = time.Second
)

// Run makes turns until ctx ends. It returns only when the repo can no longer be
// watched or ctx has ended, and then nil: what is live stays live.
func (l *Loop) Run(ctx context.Context) error {
	if l.Interval == 0 {
		l.Interval = 10 * time.Second
	}
	moved := make(chan struct{}, 1)
	watching := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		watching <- l.Source.Watch(ctx, func() {
			select {
			case moved <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { <-watching }()
	defer cancel()

	var s serving
	pause := shortestPause
	for {
		progress, err := l.turn(ctx, &s)
		if ctx.Err() != nil {
			return nil
		}
		wait := l.Interval
		switch {
		case err != nil:
			pause = min(max(2*pause, failurePause), l.Interval)
			wait = pause
		case progress:
			pause, wait = shortestPause, 0
		case !s.turn.Settled():
			pause = min(2*pause, l.Interval)
			wait = pause
		default:
			pause = shortestPause
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-watching:
			watching <- nil
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the fleet repo: %w", err)
		case <-moved:
			pause = shortestPause
		case <-time.After(wait):
		}
	}
}

// serving is what the loop carries from turn to turn.
type serving struct {
	// good is the newest commit that loads and that no guard stops.
	good Commit
	// turn is the last whole one.
	turn Turn
	// said is the trouble that was last logged: each is logged when it begins.
	said string
	// clockOff are the edges whose clocks were last found off.
	clockOff map[string]bool
}

// turn makes one turn on the head of the repo or, where that cannot be applied, on
// the last good commit: a broken commit must not stop drift from being put back, or
// a dead edge from leaving DNS. progress is whether something was changed. The
// error is trouble that only time or a person mends.
func (l *Loop) turn(ctx context.Context, s *serving) (progress bool, err error) {
	began := time.Now()
	c, trouble := l.Read(ctx)
	loaded := time.Since(began)
	var t Turn
	if trouble == nil {
		t, trouble = l.Plan(ctx, c)
		t.Loaded = loaded
	}
	head, blocked := t, plan.Plan{}
	head.Commit = c
	if errors.Is(trouble, plan.ErrTooManyDeletes) {
		blocked = t.Plan
	}
	if trouble != nil && ctx.Err() == nil {
		t = l.lastGood(ctx, s, head)
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if t.Fleet != nil {
		if trouble == nil {
			s.good = t.Commit
		}
		if t, err = l.Apply(ctx, t); err != nil && trouble == nil {
			trouble = err
		}
		s.turn = t
		l.log(t)
		l.clocks(t, s)
		if trouble == nil {
			trouble = l.Settle(t)
		}
	}
	failed := t.Failed()
	status := newStatus(s.turn, c.Revision, trouble, blocked)
	l.status.Store(status)
	if l.Turn != nil && ctx.Err() == nil {
		l.Turn(t, status)
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	l.say(s, trouble, c.Revision)
	if trouble == nil && len(failed) > 0 {
		trouble = failed[0].Err
	}
	return len(t.Plan.Changes) > len(failed), trouble
}

// lastGood is a turn on the last commit that could be applied, for a head that cannot:
// its plan, or the zero Turn when there is none.
func (l *Loop) lastGood(ctx context.Context, s *serving, head Turn) Turn {
	if s.good.Fleet == nil {
		// This process has not applied any yet; another one has.
		s.good, _ = l.applied(ctx, l.History.Attempted())
	}
	if s.good.Fleet == nil || s.good.Fleet == head.Fleet {
		return Turn{}
	}
	t, err := l.Plan(ctx, s.good)
	if err != nil {
		return Turn{}
	}
	if len(head.Plan.Blocked) > 0 {
		// What the head does not want is not made anew while it waits for a
		// person: a person's `kokoa apply` may be taking it away right now.
		wanted := map[plan.Ref]bool{}
		for _, o := range head.desired {
			wanted[o.Ref] = true
		}
		t.Plan.Changes = slices.DeleteFunc(t.Plan.Changes, func(c plan.Change) bool {
			set, isSet := c.Before.(dns.RecordSet)
			gone := c.Action == plan.Create || isSet && len(set.Values) == 0
			return gone && !wanted[c.Ref]
		})
	}
	return t
}

// maxSkew is how far an edge's clock may be off: expiry and certificates go by it.
const maxSkew = 30 * time.Second

// clocks logs when an edge's clock goes off, and when it is right again.
func (l *Loop) clocks(t Turn, s *serving) {
	off := map[string]bool{}
	for name, live := range t.World.Edges {
		if live.Err != nil {
			off[name] = s.clockOff[name]
			continue
		}
		skew := live.State.Now.Sub(t.World.Now)
		off[name] = skew.Abs() > maxSkew
		switch {
		case off[name] && !s.clockOff[name]:
			l.Log.Warn("edge's clock found off: routes and certificates end by it", "edge", name, "skew", skew.Round(time.Second))
		case !off[name] && s.clockOff[name]:
			l.Log.Info("edge's clock found right again", "edge", name)
		}
	}
	s.clockOff = off
}

// short is a revision for a log line.
func short(r *repo.Revision) string {
	switch {
	case r == nil:
		return ""
	case len(r.Commit) > 12:
		return r.Commit[:12]
	}
	return r.Commit
}

// say logs trouble when it begins, and its end.
func (l *Loop) say(s *serving, trouble error, head *repo.Revision) {
	now := ""
	if trouble != nil {
		now = trouble.Error()
	}
	if now == s.said {
		return
	}
	s.said = now
	if trouble != nil {
		l.Log.Error("revision not applied, the last good one stays live", "revision", short(head), "err", trouble)
		return
	}
	l.Log.Info("trouble ended", "revision", short(head))
}

func (l *Loop) log(t Turn) {
	for _, r := range t.Results {
		attrs := []any{"action", r.Change.Action.String(), "object", r.Change.Ref.String(), "revision", short(t.Revision), "cause", string(r.Change.Cause)}
		if r.Err != nil {
			l.Log.Warn("change not made", append(attrs, "err", r.Err)...)
			continue
		}
		l.Log.Debug("change made", attrs...)
	}
	if n := len(t.Results) - len(t.Failed()); n > 0 {
		l.Log.Info("applied", "revision", short(t.Revision), "count", n, "took", t.Loaded+t.Took+t.Applied)
	}
	for _, w := range t.Warnings {
		l.Log.Debug("fleet repo warned", "err", w)
	}
}

// Status is the last turn as people and programs see it; nil before the first one.
func (l *Loop) Status() *Status { return l.status.Load() }

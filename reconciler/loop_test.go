package reconciler

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// serveWorld runs a loop on a world until the test ends.
func serveWorld(t *testing.T, w *world) *Loop {
	l := &Loop{Reconciler: w.r, Interval: 20 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("loop ended with %v", err)
		}
	})
	return l
}

func await(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func phase(l *Loop, want Phase) func() bool {
	return func() bool { s := l.Status(); return s != nil && s.Phase == want }
}

// What is pushed is live; what is wrong changes nothing, says where, and does not
// keep drift from being put back.
func TestLoopLivesWithWrongCommits(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.commit(newFleet("blog"))
	l := serveWorld(t, w)
	await(t, "settled", phase(l, Settled))

	w.pushWrong()
	await(t, "invalid", phase(l, Invalid))
	s := l.Status()
	if !strings.Contains(s.Error, "routes/blog.cue:4:2") || len(s.Diagnostics) != 1 {
		t.Errorf("error %q, %d diagnostics", s.Error, len(s.Diagnostics))
	}
	if s.Head.Commit == s.Applied.Commit {
		t.Error("the wrong commit is called applied")
	}
	if err := w.zone.Set(context.Background(), dns.RRset{Name: "blog.kokoa.test", Type: dns.A, TTL: 30 * time.Second, Values: []string{"192.0.2.66"}}); err != nil {
		t.Fatal(err)
	}
	await(t, "drift put back under a wrong commit", func() bool { return slices.Equal(w.answer("blog.kokoa.test"), both) })

	w.push(newFleet("blog", "shop"))
	await(t, "the next good commit is live", func() bool { return slices.Equal(w.answer("shop.kokoa.test"), both) })
	await(t, "settled again", phase(l, Settled))
	if s := l.Status(); s.Error != "" || len(s.Diagnostics) != 0 {
		t.Errorf("still says %q", s.Error)
	}
}

// A commit that its guards stop waits for a person; the one before stays at work.
func TestLoopBlocks(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.commit(newFleet("blog", "shop"))
	l := serveWorld(t, w)
	await(t, "settled", phase(l, Settled))
	w.push(newFleet())
	await(t, "blocked", phase(l, Blocked))
	if s := l.Status(); s.Plan.Summary.Delete == 0 || len(s.Plan.Blocked) == 0 {
		t.Errorf("the plan that asks is not shown: %+v", s.Plan.Summary)
	}
	if err := w.zone.Set(t.Context(), dns.RRset{Name: "blog.kokoa.test", Type: dns.A, TTL: 30 * time.Second, Values: []string{"192.0.2.66"}}); err != nil {
		t.Fatal(err)
	}
	await(t, "drift put back while blocked", func() bool { return slices.Equal(w.answer("blog.kokoa.test"), both) })

	// What a person is taking away meanwhile is not made anew.
	if err := w.zone.Delete(t.Context(), "shop.kokoa.test", dns.A); err != nil {
		t.Fatal(err)
	}
	turns := l.Status().Turn
	await(t, "another turn", func() bool { return l.Status().Turn.After(turns) })
	turns = l.Status().Turn
	await(t, "and another", func() bool { return l.Status().Turn.After(turns) })
	if got := w.answer("shop.kokoa.test"); got != nil {
		t.Errorf("what the head does not want is back: %v", got)
	}
}

// A repo that cannot be read is not an empty one.
func TestLoopWithoutRepo(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.commit(newFleet("blog"))
	l := serveWorld(t, w)
	await(t, "settled", phase(l, Settled))
	w.mu.Lock()
	w.unreadable = errors.New("connection refused")
	w.mu.Unlock()
	await(t, "stalled", phase(l, Stalled))
	w.edges["tokyo"].setDown(true)
	await(t, "the edge's absence is seen all the same", func() bool {
		s := l.Status()
		return len(s.Edges) == 2 && !s.Edges[1].Reachable
	})
	if got := w.answer("blog.kokoa.test"); !slices.Equal(got, both) {
		t.Errorf("answers %v", got)
	}
	w.edges["tokyo"].setDown(false)
	w.mu.Lock()
	w.unreadable = nil
	w.mu.Unlock()
	await(t, "settled again", phase(l, Settled))
}

// A clock that is off is said once, and once that it is right again.
func TestLoopTellsOfClocks(t *testing.T) {
	w := newTestWorld(t, "osaka", "tokyo")
	w.edges["osaka"].skew = 5 * time.Minute
	var log strings.Builder
	w.r.Log = slog.New(slog.NewTextHandler(&log, nil))
	w.commit(newFleet("blog"))
	l := &Loop{Reconciler: w.r}
	var s serving
	for range 5 {
		if _, err := l.turn(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "clock found off"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
	if got := l.Status().Edges[0].ClockSkewMS; got < 290_000 || got > 310_000 {
		t.Errorf("status says %d ms", got)
	}
	w.edges["osaka"].setSkew(0)
	if _, err := l.turn(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "clock found right again") {
		t.Errorf("not said:\n%s", log.String())
	}
}

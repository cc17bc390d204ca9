package reconciler

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkTurn is one turn of a fleet of 10,000 routes that has settled: what
// `kokoa serve` does at every interval, and what a push costs beyond its own change.
func BenchmarkTurn(b *testing.B) {
	var names []string
	for i := range 10_000 {
		names = append(names, fmt.Sprintf("r%05d", i))
	}
	w := newWorld(b, b.TempDir(), "osaka", "tokyo")
	defer w.close()
	c := w.commit(newFleet(names...))
	w.converge(c)
	b.ReportAllocs()
	for b.Loop() {
		t, err := w.r.Plan(context.Background(), c)
		if err != nil || !t.Plan.Empty() {
			b.Fatalf("%v: %d changes", err, len(t.Plan.Changes))
		}
	}
}

package dns_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/builtin"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

const many = 10_000

// fleetOf is a driver over a built-in server in which n names are the fleet's.
func fleetOf(b *testing.B, n int) *dns.Driver {
	b.Helper()
	s, err := builtin.New(builtin.Options{Zones: []string{zoneName}})
	if err != nil {
		b.Fatal(err)
	}
	d := &dns.Driver{Fleet: "demo", Zones: s.Zones()}
	for _, err := range d.Apply(context.Background(), creates(n)) {
		if err != nil {
			b.Fatal(err)
		}
	}
	return d
}

func creates(n int) []plan.Change {
	changes := make([]plan.Change, n)
	for i := range changes {
		changes[i] = plan.Change{Action: plan.Create, Ref: dns.Ref(zoneName, fmt.Sprintf("app-%d.example.test", i), dns.A), After: record(dns.A, "192.0.2.1", "192.0.2.2")}
	}
	return changes
}

func BenchmarkObserve10000(b *testing.B) {
	d := fleetOf(b, many)
	for b.Loop() {
		if o := d.Observe(context.Background()); len(o.Objects) != many {
			b.Fatalf("observed %d", len(o.Objects))
		}
	}
}

func BenchmarkApplyOneOf10000(b *testing.B) {
	d := fleetOf(b, many)
	ref := dns.Ref(zoneName, "app-7.example.test", dns.A)
	specs := []dns.RecordSet{record(dns.A, "192.0.2.1", "192.0.2.2"), record(dns.A, "192.0.2.1")}
	for i := 0; b.Loop(); i++ {
		c := plan.Change{Action: plan.Update, Ref: ref, Before: specs[i%2], After: specs[(i+1)%2]}
		if err := d.Apply(context.Background(), []plan.Change{c})[0]; err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreate10000(b *testing.B) {
	for b.Loop() {
		fleetOf(b, many)
	}
}

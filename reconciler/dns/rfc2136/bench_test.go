package rfc2136_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// What a turn pays after a change in a zone of 10,000 names with their owner records.
func BenchmarkReadChangedZone(b *testing.B) {
	for name, start := range servers {
		b.Run(name, func(b *testing.B) {
			s := start(b, zoneName)
			z := open(b, s.Addr, s.Key)
			txs := make([]dns.Transaction, 10_000)
			for i := range txs {
				host := fmt.Sprintf("app-%d", i)
				txs[i].Set = []dns.RRset{set(host+".kokoa.test", dns.A, "192.0.2.1"), set(host+"._kokoa.kokoa.test", dns.TXT, "heritage=kokoa,fleet=demo,types=A")}
			}
			if err := errors.Join(z.Commit(context.Background(), txs)...); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				if err := z.Set(context.Background(), set("change.kokoa.test", dns.TXT, fmt.Sprint(i))); err != nil {
					b.Fatal(err)
				}
				if sets, err := z.RRsets(context.Background()); err != nil || len(sets) != 20_003 {
					b.Fatal(len(sets), err)
				}
			}
		})
	}
}

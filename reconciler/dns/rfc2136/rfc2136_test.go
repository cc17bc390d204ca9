package rfc2136

import (
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
)

const zoneName = "kokoa.test"

func TestKnot(t *testing.T) { testServer(t, dnstest.Knot) }
func TestBIND(t *testing.T) { testServer(t, dnstest.BIND) }

func testServer(t *testing.T, start func(testing.TB, string) *dnstest.Server) {
	s := start(t, zoneName)
	z, err := New(Options{Zone: zoneName, Server: s.Addr, Key: s.Key})
	if err != nil {
		t.Fatal(err)
	}
	dnstest.Run(t, zoneName, z)
}

package fleet

import (
	"net/netip"
	"testing"
)

func TestZone(t *testing.T) {
	f := &Fleet{Domains: []string{"eu.example.com", "example.com"}}
	for host, want := range map[string]string{
		"example.com":         "example.com",
		"blog.example.com":    "example.com",
		"*.example.com":       "example.com",
		"blog.eu.example.com": "eu.example.com",
		"*.eu.example.com":    "eu.example.com",
		"notexample.com":      "",
		"example.org":         "",
		"*":                   "",
	} {
		if got, ok := f.Zone(host); got != want || ok != (want != "") {
			t.Errorf("Zone(%q) = %q, %v; want %q", host, got, ok, want)
		}
	}
}

func TestMayServe(t *testing.T) {
	o := Origin{Hosts: []string{"blog.example.com", "*.apps.example.com"}}
	for host, want := range map[string]bool{
		"blog.example.com":         true,
		"x.apps.example.com":       true,
		"x.y.apps.example.com":     true,
		"*.apps.example.com":       true,
		"apps.example.com":         false,
		"evilapps.example.com":     false,
		"blog.example.com.evil.io": false,
	} {
		if got := o.MayServe(host); got != want {
			t.Errorf("MayServe(%q) = %v, want %v", host, got, want)
		}
	}
	if !(Origin{}).MayServe("anything.example.com") {
		t.Error("an origin without a list may serve any host")
	}
}

func TestControlAddress(t *testing.T) {
	for network, want := range map[string]string{
		"10.86.0.0/16":  "10.86.0.1",
		"10.86.77.1/16": "10.86.0.1",
		"fd00:86::/64":  "fd00:86::1",
	} {
		if got := ControlAddress(netip.MustParsePrefix(network), 0); got.String() != want {
			t.Errorf("slot 0 of %s is %s, want %s", network, got, want)
		}
	}
	f := &Fleet{Network: netip.MustParsePrefix("10.86.0.0/16")}
	if got := f.ControlAddress(7); got.String() != "10.86.0.8" {
		t.Errorf("slot 7 is %s", got)
	}
}

// A service keeps its id whichever route names it, and shares it with nobody.
func TestServiceID(t *testing.T) {
	a := Upstream{Origin: "vm1", Service: "http://localhost:3000"}
	same := Upstream{Origin: "vm1", Service: "http://localhost:3000"}
	if a.ServiceID() != same.ServiceID() || len(a.ServiceID()) != 16 {
		t.Errorf("id %q", a.ServiceID())
	}
	for _, b := range []Upstream{
		{Origin: "vm2", Service: "http://localhost:3000"},
		{Origin: "vm1", Service: "http://localhost:3001"},
		{Origin: "vm1\nhttp:", Service: "//localhost:3000"},
	} {
		if a.ServiceID() == b.ServiceID() {
			t.Errorf("%v and %v have one id", a, b)
		}
	}
}

func TestPositionPrints(t *testing.T) {
	if got := (Position{"routes/blog.cue", 3, 1}).String(); got != "routes/blog.cue:3:1" {
		t.Errorf("got %q", got)
	}
	if got := (Position{}).String(); got != "" {
		t.Errorf("nowhere prints as %q", got)
	}
}

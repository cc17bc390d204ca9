package dns

import (
	"strings"
	"testing"
)

func TestOwnerNames(t *testing.T) {
	const zone = "example.test"
	for host, want := range map[string]string{
		"example.test":             "_kokoa.example.test",
		"blog.example.test":        "blog._kokoa.example.test",
		"a.b.example.test":         "a.b._kokoa.example.test",
		"*.example.test":           "_any._kokoa.example.test",
		"*.app.example.test":       "_any.app._kokoa.example.test",
		"xn--caf-dma.example.test": "xn--caf-dma._kokoa.example.test",
	} {
		got := OwnerName(zone, host)
		if got != want {
			t.Errorf("OwnerName(%s) = %s, want %s", host, got, want)
		}
		if back, ok := ownedHost(zone, got); !ok || back != host {
			t.Errorf("ownedHost(%s) = %s, %t", got, back, ok)
		}
	}
	for _, name := range []string{
		"example.test", "blog.example.test", "x_kokoa.example.test", "_acme-challenge._kokoa.example.test",
		"a.*._kokoa.example.test", "*._kokoa.example.test", "a..b._kokoa.example.test", "._kokoa.example.test",
		"_kokoa._kokoa.example.test", "_kokoa.example.test.invalid", "a.b_kokoa.example.test",
	} {
		if host, ok := ownedHost(zone, name); ok {
			t.Errorf("ownedHost(%s) = %s", name, host)
		}
	}
}

func TestParseOwner(t *testing.T) {
	for text, want := range map[string]owner{
		"heritage=kokoa,fleet=demo,types=A":                                          {"demo", settled, ""},
		"heritage=kokoa,fleet=demo,types=AAAA":                                       {"demo", "", settled},
		"heritage=kokoa,fleet=demo,types=A AAAA":                                     {"demo", settled, settled},
		"heritage=kokoa,fleet=demo,pending=A:0011223344556677":                       {"demo", "0011223344556677", ""},
		"heritage=kokoa,fleet=demo,types=AAAA,pending=A:0011223344556677":            {"demo", "0011223344556677", settled},
		"heritage=kokoa,fleet=demo,pending=A:0011223344556677 AAAA:8899aabbccddeeff": {"demo", "0011223344556677", "8899aabbccddeeff"},
	} {
		if got, ok := parseOwner(text); !ok || got != want {
			t.Errorf("parseOwner(%q) = %v, %t", text, got, ok)
		}
	}
	for _, text := range []string{
		"", "heritage=kokoa", "heritage=kokoa,fleet=demo", "heritage=kokoa,fleet=,types=A", "heritage=external-dns,fleet=demo,types=A",
		"heritage=kokoa,fleet=demo,types=", "heritage=kokoa,fleet=demo,types=MX", "heritage=kokoa,fleet=demo,types=AAAA A",
		"heritage=kokoa,fleet=demo,types=A A", "heritage=kokoa,fleet=demo,types=A,types=AAAA", "heritage=kokoa,fleet=demo,types=A ",
		"heritage=kokoa,fleet=demo,types=A,more=yes", " heritage=kokoa,fleet=demo,types=A", "heritage=kokoa,fleet=demo,types=A\n",
		"heritage=kokoa,fleet=demo,types=A:0011223344556677", "heritage=kokoa,fleet=demo,pending=A", "heritage=kokoa,fleet=demo,pending=A:00",
		"heritage=kokoa,fleet=demo,pending=A:00112233445566zz", "heritage=kokoa,fleet=demo,pending=A:00112233445566AA",
		"heritage=kokoa,fleet=demo,types=A,pending=A:0011223344556677", "heritage=kokoa,fleet=demo,pending=A:settled",
	} {
		if got, ok := parseOwner(text); ok {
			t.Errorf("parseOwner(%q) = %v", text, got)
		}
	}
}

// What is read is what would be written, so that nobody's words are lost when the
// owner record is written again.
func FuzzParseOwner(f *testing.F) {
	f.Add("heritage=kokoa,fleet=demo,types=A AAAA")
	f.Add("heritage=kokoa,fleet=demo,types=A,pending=AAAA:0011223344556677")
	f.Add("heritage=kokoa,fleet=,types=,pending=")
	f.Fuzz(func(t *testing.T, text string) {
		o, ok := parseOwner(text)
		if !ok {
			return
		}
		if o.String() != text || o.fleet == "" || strings.Contains(o.fleet, ",") || o.a == unclaimed && o.aaaa == unclaimed {
			t.Errorf("read %q as %#v", text, o)
		}
	})
}

func FuzzOwnedHost(f *testing.F) {
	f.Add("_any.app._kokoa.example.test")
	f.Add("_kokoa.example.test")
	f.Fuzz(func(t *testing.T, name string) {
		host, ok := ownedHost("example.test", name)
		if ok && OwnerName("example.test", host) != name {
			t.Errorf("%q is read as the owner record of %q, which is %q", name, host, OwnerName("example.test", host))
		}
	})
}

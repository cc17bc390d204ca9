package wire

import (
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// Whatever bytes a TXT value has, it comes back from the wire as it was, and what does
// not fit a type is refused.
func FuzzRecords(f *testing.F) {
	f.Add("TXT", `a "quoted" \ text`)
	f.Add("TXT", "\x00\xff\\065")
	f.Add("TXT", "")
	f.Add("A", "192.0.2.1")
	f.Add("AAAA", "::ffff:192.0.2.1")
	f.Add("MX", "10 mail.example.com.")
	f.Add("CAA", `0 issue "ca.example"`)
	f.Add("SRV", "$INCLUDE /etc/passwd")
	f.Fuzz(func(t *testing.T, typ, value string) {
		if len(value) > 4096 {
			return
		}
		set := dns.RRset{Name: "a.example.test", Type: dns.Type(typ), TTL: time.Minute, Values: []string{value}}
		rrs, err := Records("example.test", set)
		if err != nil {
			if typ == "TXT" {
				t.Fatalf("TXT %q: %v", value, err)
			}
			return
		}
		m := &mdns.Msg{Answer: rrs}
		raw, err := m.Pack()
		if err != nil {
			return
		}
		back := new(mdns.Msg)
		if err := back.Unpack(raw); err != nil {
			t.Fatalf("%s %q: %v", typ, value, err)
		}
		sets := Sets(back.Answer)
		if typ == "TXT" && (len(sets) != 1 || sets[0].Values[0] != value || sets[0].Name != set.Name || sets[0].TTL != set.TTL) {
			t.Fatalf("TXT %q came back as %v", value, sets)
		}
	})
}

func TestInZone(t *testing.T) {
	for name, want := range map[string]bool{
		"example.test": true, "a.example.test": true, "a.b.example.test": true, "*.example.test": true,
		"test": false, "aexample.test": false, `a\.example.test`: false, "example.test.invalid": false,
	} {
		if InZone("example.test", name) != want {
			t.Errorf("InZone(%q) is not %t", name, want)
		}
	}
}

func TestSetsTakeTheLowestTTL(t *testing.T) {
	var rrs []mdns.RR
	for _, text := range []string{
		"a.test. 300 A 192.0.2.2", "A.test. 60 A 192.0.2.1", "a.test. 300 RRSIG A 8 2 300 20300101000000 20200101000000 1 a.test. AA==", "a.test. 300 SOA a. b. 1 1 1 1 1",
	} {
		rr, err := mdns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	sets := Sets(rrs)
	if len(sets) != 1 || sets[0].TTL != time.Minute || len(sets[0].Values) != 2 || sets[0].Values[0] != "192.0.2.1" {
		t.Errorf("got %v", sets)
	}
}

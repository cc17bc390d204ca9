package builtin

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/rfc2136"
)

const zoneName = "example.test"

var testKey = dns.Key{Name: "kokoa.example.test", Algorithm: "hmac-sha256", Secret: []byte("0123456789abcdef0123456789abcdef")}

func options() Options {
	return Options{
		Zones: []string{zoneName, "app.example.test"}, Nameservers: []string{"ns1.example.net", "ns2.example.net"},
		Keys: map[string]dns.Key{zoneName: testKey},
	}
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs s on loopback until the test or the returned stop ends it.
func serve(t testing.TB, s *Server) (addr string, stop func()) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return tcp.Addr().String(), stop
}

func set(name string, typ dns.Type, ttl int, values ...string) dns.RRset {
	return dns.RRset{Name: name, Type: typ, TTL: time.Duration(ttl) * time.Second, Values: values}
}

func fill(t testing.TB, z *Zone, sets ...dns.RRset) {
	t.Helper()
	for i, err := range z.Commit(context.Background(), []dns.Transaction{{Set: sets}}) {
		if err != nil {
			t.Fatalf("set %v: %v", sets[i], err)
		}
	}
}

func ask(t testing.TB, network, addr string, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	c := &mdns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: 4096}
	a, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s over %s: %v", m.Question[0].Name, network, err)
	}
	return a
}

func query(name string, typ uint16) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(name), typ)
	return m
}

func TestSuite(t *testing.T) {
	s := newServer(t, options())
	fill(t, s.Zone(zoneName), set("foreign.example.test", dns.A, 60, "192.0.2.200"))
	dnstest.Run(t, zoneName, s.Zone(zoneName))
}

// The client of RFC 2136 takes the built-in server for any other.
func TestSuiteOverTheWire(t *testing.T) {
	s := newServer(t, options())
	addr, _ := serve(t, s)
	z, err := rfc2136.New(rfc2136.Options{Zone: zoneName, Server: addr, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	dnstest.Run(t, zoneName, z)
}

func TestAnswers(t *testing.T) {
	s := newServer(t, options())
	fill(t, s.Zone(zoneName),
		set("example.test", dns.A, 60, "192.0.2.1"),
		set("www.example.test", dns.A, 60, "192.0.2.1"),
		set("www.example.test", dns.AAAA, 60, "2001:db8::1"),
		set("*.example.test", dns.A, 60, "192.0.2.9"),
		set("a.b.c.example.test", dns.A, 60, "192.0.2.2"),
		set("*.w.example.test", dns.TXT, 60, "wild"),
		set("_acme-challenge.www.example.test", dns.TXT, 60, "one", "two"),
		set("x.*.star.example.test", dns.A, 60, "192.0.2.3"),
	)
	fill(t, s.Zone("app.example.test"), set("one.app.example.test", dns.A, 60, "192.0.2.4"))
	addr, _ := serve(t, s)
	const ok, nx, refused = mdns.RcodeSuccess, mdns.RcodeNameError, mdns.RcodeRefused
	for _, c := range []struct {
		name  string
		typ   uint16
		rcode int
		want  string // the answer's values, "" is NODATA
	}{
		{"example.test", mdns.TypeA, ok, "192.0.2.1"},
		{"www.example.test", mdns.TypeA, ok, "192.0.2.1"},
		{"WwW.eXample.TEST", mdns.TypeAAAA, ok, "2001:db8::1"},
		{"www.example.test", mdns.TypeMX, ok, ""},
		{"_acme-challenge.www.example.test", mdns.TypeTXT, ok, "one two"},
		{"example.test", mdns.TypeNS, ok, "ns1.example.net. ns2.example.net."},
		// Wildcards answer for names that do not exist, at any depth, in no
		// other name's tree, and not for what is an empty non-terminal.
		{"any.example.test", mdns.TypeA, ok, "192.0.2.9"},
		{"any.thing.example.test", mdns.TypeA, ok, "192.0.2.9"},
		{"*.example.test", mdns.TypeA, ok, "192.0.2.9"},
		{"any.example.test", mdns.TypeAAAA, ok, ""},
		{"below.www.example.test", mdns.TypeA, nx, ""},
		{"b.c.example.test", mdns.TypeA, ok, ""},
		{"c.example.test", mdns.TypeA, ok, ""},
		{"z.c.example.test", mdns.TypeA, nx, ""},
		{"any.w.example.test", mdns.TypeTXT, ok, "wild"},
		{"any.w.example.test", mdns.TypeA, ok, ""},
		{"w.example.test", mdns.TypeA, ok, ""},
		{"any.star.example.test", mdns.TypeA, ok, ""},
		{"x.any.star.example.test", mdns.TypeA, ok, ""},
		{"x.*.star.example.test", mdns.TypeA, ok, "192.0.2.3"},
		// The longer zone answers for its own names.
		{"one.app.example.test", mdns.TypeA, ok, "192.0.2.4"},
		{"two.app.example.test", mdns.TypeA, nx, ""},
		// What is not ours.
		{"example.org", mdns.TypeA, refused, ""},
		{".", mdns.TypeNS, refused, ""},
		{"test", mdns.TypeA, refused, ""},
		{`x\.example.test`, mdns.TypeA, refused, ""},
		{"notexample.test", mdns.TypeA, refused, ""},
		{"www.example.test", mdns.TypeANY, ok, `"RFC8482" ""`},
		{"none.www.example.test", mdns.TypeANY, nx, ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("%s/%s/%s", c.name, mdns.Type(c.typ), network), func(t *testing.T) {
				a := ask(t, network, addr, query(c.name, c.typ))
				var values []string
				for _, rr := range a.Answer {
					values = append(values, wire.Value(rr))
					if rr.Header().Name != mdns.Fqdn(c.name) && c.typ != mdns.TypeNS {
						t.Errorf("answer is for %s", rr.Header().Name)
					}
				}
				slices.Sort(values)
				if got := strings.Join(values, " "); a.Rcode != c.rcode || got != c.want {
					t.Errorf("got %s %q, want %s %q", mdns.RcodeToString[a.Rcode], got, mdns.RcodeToString[c.rcode], c.want)
				}
				if a.RecursionAvailable || a.Authoritative != (c.rcode != refused) {
					t.Errorf("recursion available %t, authoritative %t", a.RecursionAvailable, a.Authoritative)
				}
				if negative := c.want == "" && c.rcode != refused; negative != (len(a.Ns) == 1) {
					t.Errorf("authority section: %v", a.Ns)
				} else if negative && (a.Ns[0].Header().Rrtype != mdns.TypeSOA || a.Ns[0].Header().Ttl != negativeTTL) {
					t.Errorf("authority section: %v", a.Ns)
				}
			})
		}
	}
}

func TestSerialRises(t *testing.T) {
	s := newServer(t, options())
	z := s.Zone(zoneName)
	addr, _ := serve(t, s)
	serial := func() uint32 {
		return ask(t, "udp", addr, query(zoneName, mdns.TypeSOA)).Answer[0].(*mdns.SOA).Serial
	}
	before := serial()
	www := set("www.example.test", dns.A, 60, "192.0.2.1")
	fill(t, z, www)
	after := serial()
	if after <= before {
		t.Errorf("serial went from %d to %d", before, after)
	}
	fill(t, z, www)
	if err := z.Delete(t.Context(), "none.example.test", dns.A); err != nil {
		t.Fatal(err)
	}
	if serial() != after {
		t.Error("serial moved although nothing changed")
	}
}

func TestAddressesRotate(t *testing.T) {
	s := newServer(t, options())
	fill(t, s.Zone(zoneName), set("www.example.test", dns.A, 60, "192.0.2.1", "192.0.2.2", "192.0.2.3"))
	addr, _ := serve(t, s)
	first := map[string]bool{}
	for range 200 {
		a := ask(t, "udp", addr, query("www.example.test", mdns.TypeA))
		if len(a.Answer) != 3 {
			t.Fatalf("%d answers", len(a.Answer))
		}
		first[wire.Value(a.Answer[0])] = true
	}
	if len(first) != 3 {
		t.Errorf("only %v came first in 200 answers", first)
	}
}

func TestSizes(t *testing.T) {
	s := newServer(t, options())
	var values []string
	for i := range 60 {
		values = append(values, fmt.Sprintf("192.0.2.%d", i))
	}
	fill(t, s.Zone(zoneName), set("many.example.test", dns.A, 60, values...))
	addr, _ := serve(t, s)
	for _, c := range []struct {
		network   string
		edns      uint16
		size      int
		truncated bool
	}{
		{"udp", 0, 512, true},
		{"udp", 100, 512, true},
		{"udp", 900, 900, true},
		{"udp", 4096, 1232, false},
		{"tcp", 0, 65535, false},
		{"tcp", 512, 65535, false},
	} {
		m := query("many.example.test", mdns.TypeA)
		if c.edns > 0 {
			m.SetEdns0(c.edns, false)
		}
		a := ask(t, c.network, addr, m)
		a.Compress = true
		if a.Len() > c.size || a.Truncated != c.truncated || c.truncated == (len(a.Answer) == 60) {
			t.Errorf("%s, EDNS %d: %d bytes, %d answers, truncated %t", c.network, c.edns, a.Len(), len(a.Answer), a.Truncated)
		}
		if o := a.IsEdns0(); (o != nil) != (c.edns > 0) || o != nil && o.UDPSize() != maxAnswer {
			t.Errorf("%s, EDNS %d: %v", c.network, c.edns, o)
		}
	}
	m := query("many.example.test", mdns.TypeA)
	m.SetEdns0(1232, false)
	m.IsEdns0().SetVersion(1)
	if a := ask(t, "udp", addr, m); a.Rcode != mdns.RcodeBadVers || len(a.Answer) > 0 {
		t.Errorf("EDNS version 1: %v", a)
	}
}

func TestBadMessages(t *testing.T) {
	s := newServer(t, options())
	addr, _ := serve(t, s)
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	header := func(bits, questions uint16) []byte {
		b := make([]byte, 12)
		binary.BigEndian.PutUint16(b, 0xabcd)
		binary.BigEndian.PutUint16(b[2:], bits)
		binary.BigEndian.PutUint16(b[4:], questions)
		return b
	}
	for _, c2 := range []struct {
		name  string
		msg   []byte
		rcode int // -1 is no answer
	}{
		{"a bare header that promises a question", header(0, 1), mdns.RcodeFormatError},
		{"no question", header(0, 0), mdns.RcodeFormatError},
		{"a cut question", append(header(0, 1), 7, 'e'), mdns.RcodeFormatError},
		{"a response", append(header(1<<15, 1), 0, 0, 1, 0, 1), -1},
		{"notify", append(header(4<<11, 1), 0, 0, 6, 0, 1), mdns.RcodeNotImplemented},
		{"a bare update header", header(5<<11, 1), mdns.RcodeFormatError},
		{"shorter than a header", []byte{1, 2, 3}, -1},
		{"another class", append(header(0, 1), 0, 0, 1, 0, 3), mdns.RcodeRefused},
	} {
		if _, err := c.Write(c2.msg); err != nil {
			t.Fatal(err)
		}
		if c2.rcode < 0 {
			continue // whatever it were answered would be read in place of the next
		}
		buf := make([]byte, 4096)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%s: %v", c2.name, err)
		}
		if got := int(buf[3] & 15); n < 12 || got != c2.rcode || !bytes.Equal(buf[:2], c2.msg[:2]) {
			t.Errorf("%s: %s, want %s", c2.name, mdns.RcodeToString[got], mdns.RcodeToString[c2.rcode])
		}
	}
}

func TestSourcesAreLimited(t *testing.T) {
	var l limiter
	l.seed = newServer(t, options()).limit.seed
	now := time.Unix(1_800_000_000, 0)
	victim, neighbour, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.77"), netip.MustParseAddr("2001:db8::1")
	for i := range perSecond {
		if !l.allow(victim, now) {
			t.Fatalf("request %d was not allowed", i)
		}
	}
	if l.allow(victim, now) || l.allow(neighbour, now) {
		t.Error("one network had more than its share")
	}
	if !l.allow(other, now) {
		t.Error("another network had nothing")
	}
	if !l.allow(victim, now.Add(time.Second)) {
		t.Error("the next second had nothing")
	}

	// At the limit the answer is a truncated one, and TCP still answers.
	s := newServer(t, options())
	fill(t, s.Zone(zoneName), set("www.example.test", dns.A, 60, "192.0.2.1"))
	s.now = func() time.Time { return now } // one long second
	addr, _ := serve(t, s)
	seen := false
	for range perSecond + 1 {
		a := ask(t, "udp", addr, query("www.example.test", mdns.TypeA))
		if a.Truncated {
			seen = true
			if len(a.Answer)+len(a.Ns)+len(a.Extra) > 0 {
				t.Errorf("a limited answer is not empty: %v", a)
			}
			break
		}
	}
	if !seen {
		t.Error("no answer was limited")
	}
	if a := ask(t, "tcp", addr, query("www.example.test", mdns.TypeA)); len(a.Answer) != 1 {
		t.Errorf("over TCP: %v", a)
	}
}

func TestSignedAccess(t *testing.T) {
	s := newServer(t, options())
	addr, _ := serve(t, s)
	update := func() *mdns.Msg {
		m := new(mdns.Msg)
		m.SetUpdate("example.test.")
		rr, err := mdns.NewRR("hand.example.test. 60 IN A 192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		m.Insert([]mdns.RR{rr})
		return m
	}
	axfr := func() *mdns.Msg {
		m := new(mdns.Msg)
		m.SetAxfr("example.test.")
		return m
	}
	secret := wire.Secret(testKey)
	wrong := wire.Secret(dns.Key{Secret: []byte("wrong")})
	now := time.Now().Unix()
	for _, c := range []struct {
		name, key, algorithm, secret string
		when                         int64
		msg                          *mdns.Msg
		rcode                        int
		tsigError                    uint16
	}{
		{"update without a key", "", "", "", 0, update(), mdns.RcodeRefused, 0},
		{"transfer without a key", "", "", "", 0, axfr(), mdns.RcodeRefused, 0},
		{"unknown key", "other.", mdns.HmacSHA256, secret, now, update(), mdns.RcodeNotAuth, mdns.RcodeBadKey},
		{"another algorithm", "kokoa.example.test.", mdns.HmacSHA512, secret, now, update(), mdns.RcodeNotAuth, mdns.RcodeBadKey},
		{"another secret", "kokoa.example.test.", mdns.HmacSHA256, wrong, now, update(), mdns.RcodeNotAuth, mdns.RcodeBadSig},
		{"another time", "kokoa.example.test.", mdns.HmacSHA256, secret, now - 3600, update(), mdns.RcodeNotAuth, mdns.RcodeBadTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := c.msg.Pack()
			if c.key != "" {
				c.msg.SetTsig(c.key, c.algorithm, 300, c.when)
				raw, _, err = mdns.TsigGenerate(c.msg, c.secret, "", false)
			}
			if err != nil {
				t.Fatal(err)
			}
			a := exchangeRaw(t, addr, raw)
			if a.Rcode != c.rcode {
				t.Errorf("got %s, want %s", mdns.RcodeToString[a.Rcode], mdns.RcodeToString[c.rcode])
			}
			if sig := a.IsTsig(); (sig != nil) != (c.key != "") || sig != nil && sig.Error != c.tsigError {
				t.Errorf("signature: %v, want error %d", sig, c.tsigError)
			}
			if s.Zone(zoneName).live.Load().nodes != nil {
				t.Error("the zone has changed")
			}
		})
	}

	// Two signatures: the first is good and names a key of one zone, the second,
	// which nobody verified, names another's.
	m := update()
	m.SetTsig("kokoa.example.test.", mdns.HmacSHA256, 300, now)
	raw, _, err := mdns.TsigGenerate(m, secret, "", false)
	if err != nil {
		t.Fatal(err)
	}
	second := &mdns.TSIG{Hdr: mdns.RR_Header{Name: "kokoa.example.test.", Rrtype: mdns.TypeTSIG, Class: mdns.ClassANY}, Algorithm: mdns.HmacSHA256, TimeSigned: uint64(now), Fudge: 300}
	buf := make([]byte, 512)
	n, err := mdns.PackRR(second, buf, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, buf[:n]...)
	binary.BigEndian.PutUint16(raw[10:], 2)
	if a := exchangeRaw(t, addr, raw); a.Rcode != mdns.RcodeFormatError {
		t.Errorf("two signatures: %s", mdns.RcodeToString[a.Rcode])
	}
}

func exchangeRaw(t *testing.T, addr string, raw []byte) *mdns.Msg {
	t.Helper()
	c, err := mdns.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(raw); err != nil {
		t.Fatal(err)
	}
	reply, err := c.ReadMsgHeader(nil)
	if err != nil {
		t.Fatal(err)
	}
	a := new(mdns.Msg)
	if err := a.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	return a
}

// Zones outlive the server, with a serial that rises all the same.
func TestFile(t *testing.T) {
	o := options()
	o.File = filepath.Join(t.TempDir(), "zones")
	s := newServer(t, o)
	_, stop := serve(t, s)
	want := []dns.RRset{
		set("*.example.test", dns.AAAA, 61, "2001:db8::1", "2001:db8::2"),
		set("txt.example.test", dns.TXT, 60, "", `a "quoted" \ text; (x)`, "\x00\xff"+strings.Repeat("long", 100)),
		set("mx.example.test", "MX", 60, "10 mail.example.com."),
	}
	fill(t, s.Zone(zoneName), want...)
	fill(t, s.Zone("app.example.test"), set("app.example.test", dns.A, 60, "192.0.2.1"))
	before, _ := s.Zone(zoneName).RRsets(t.Context())
	serial := s.Zone(zoneName).Serial()
	stop()

	again := newServer(t, o)
	after, err := again.Zone(zoneName).RRsets(t.Context())
	if err != nil || !slices.EqualFunc(before, after, func(a, b dns.RRset) bool {
		return a.Compare(b) == 0 && a.TTL == b.TTL && slices.Equal(a.Values, b.Values)
	}) {
		t.Errorf("loaded %v, want %v (%v)", after, before, err)
	}
	if again.Zone(zoneName).Serial() <= serial {
		t.Error("the serial did not rise")
	}
	if entries, _ := os.ReadDir(filepath.Dir(o.File)); len(entries) != 1 {
		t.Errorf("files left: %v", entries)
	}
	if info, _ := os.Stat(o.File); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}

	if err := os.WriteFile(o.File, []byte("example.test. 60 IN A not-an-address\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "remove the file") || !strings.Contains(err.Error(), "line: 1") {
		t.Errorf("a broken file: %v", err)
	}
}

// A full or missing disk is logged, and the zones are served all the same.
func TestFileCannotBeWritten(t *testing.T) {
	o := options()
	o.File = filepath.Join(t.TempDir(), "gone", "zones")
	log := make(chan string, 10)
	o.Log = slog.New(slog.NewTextHandler(writer(func(b []byte) { log <- string(b) }), nil))
	s := newServer(t, o)
	addr, _ := serve(t, s)
	fill(t, s.Zone(zoneName), set("www.example.test", dns.A, 60, "192.0.2.1"))
	select {
	case line := <-log:
		if !strings.Contains(line, "level=ERROR") || !strings.Contains(line, "dns zones not saved") {
			t.Errorf("logged %s", line)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was logged")
	}
	if a := ask(t, "udp", addr, query("www.example.test", mdns.TypeA)); len(a.Answer) != 1 {
		t.Errorf("got %v", a)
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{
		{Zones: []string{"Example.test"}},
		{Zones: []string{"example.test."}},
		{Zones: []string{""}},
		{Zones: []string{zoneName}, Nameservers: []string{"ns1.example.net."}},
		{Zones: []string{zoneName}, Keys: map[string]dns.Key{zoneName: {Name: "k", Algorithm: "hmac-md5", Secret: []byte("x")}}},
		{Zones: []string{zoneName}, Keys: map[string]dns.Key{zoneName: {Name: "k", Algorithm: "hmac-sha256"}}},
		{Zones: []string{"a.test", "b.test"}, Keys: map[string]dns.Key{
			"a.test": {Name: "k", Algorithm: "hmac-sha256", Secret: []byte("x")}, "b.test": {Name: "k", Algorithm: "hmac-sha256", Secret: []byte("y")}}},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%v) was accepted", o)
		}
	}
}

// While zones change, every answer is from one whole snapshot.
func TestAnswersWhileChanging(t *testing.T) {
	s := newServer(t, options())
	z := s.Zone(zoneName)
	both := func(v string) []dns.RRset {
		return []dns.RRset{set("a.example.test", dns.A, 60, v), set("b.example.test", dns.A, 60, v)}
	}
	fill(t, z, both("192.0.2.0")...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 2000 {
			for _, err := range z.Commit(context.Background(), []dns.Transaction{{Set: both(fmt.Sprintf("192.0.2.%d", i%250))}}) {
				if err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		sets, err := z.RRsets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(sets) != 3 || sets[1].Values[0] != sets[2].Values[0] {
			t.Fatalf("half a change: %v", sets)
		}
	}
}

package rfc2136_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/builtin"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/rfc2136"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

const zoneName = "kokoa.test"

// servers are the real ones.
var servers = map[string]func(testing.TB, string) *dnstest.Server{"Knot": dnstest.Knot, "BIND": dnstest.BIND}

func open(t testing.TB, addr string, key dns.Key) *rfc2136.Zone {
	t.Helper()
	z, err := rfc2136.New(rfc2136.Options{Zone: zoneName, Server: addr, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func set(name string, typ dns.Type, values ...string) dns.RRset {
	return dns.RRset{Name: name, Type: typ, TTL: time.Minute, Values: values}
}

func TestSuite(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := start(t, zoneName)
			dnstest.Run(t, zoneName, open(t, s.Addr, s.Key))
		})
	}
}

// raced lets a stranger in between the driver's last look and its change.
type raced struct {
	dns.Batcher
	stranger func()
}

func (r raced) Commit(ctx context.Context, txs []dns.Transaction) []error {
	r.stranger()
	return r.Batcher.Commit(ctx, txs)
}

func TestDriver(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := start(t, zoneName)
			z := open(t, s.Addr, s.Key)
			d := dns.Driver{Fleet: "demo", Zones: map[string]dns.Zone{zoneName: z}}
			one := dns.RecordSet{Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}}
			two := dns.RecordSet{Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.2"}}
			hosts := []string{zoneName, "www.kokoa.test", "*.app.kokoa.test"}
			var changes []plan.Change
			for _, h := range hosts {
				changes = append(changes, plan.Change{Action: plan.Create, Ref: dns.Ref(zoneName, h, dns.A), After: one})
			}
			if err := errors.Join(d.Apply(t.Context(), changes)...); err != nil {
				t.Fatal(err)
			}
			o := d.Observe(t.Context())
			if len(o.Objects) != len(hosts) || len(o.Unseen) != 0 {
				t.Fatalf("observed %v", o)
			}
			for _, object := range o.Objects {
				if !object.Spec.Equal(one) {
					t.Errorf("%s is %s", object.Ref, object.Spec)
				}
			}

			// In the last moment a stranger takes a new name, aliases another,
			// and takes an owned one over.
			other := open(t, s.Addr, s.Key)
			d.Zones[zoneName] = raced{z, func() {
				for _, set := range []dns.RRset{set("new.kokoa.test", dns.A, "203.0.113.1"), set("alias.kokoa.test", dns.CNAME, "example.net."), set("www.kokoa.test", dns.A, "203.0.113.1")} {
					if err := other.Set(t.Context(), set); err != nil {
						t.Error(err)
					}
				}
			}}
			errs := d.Apply(t.Context(), []plan.Change{
				{Action: plan.Create, Ref: dns.Ref(zoneName, "new.kokoa.test", dns.A), After: one},
				{Action: plan.Create, Ref: dns.Ref(zoneName, "alias.kokoa.test", dns.A), After: one},
				{Action: plan.Update, Ref: dns.Ref(zoneName, "www.kokoa.test", dns.A), Before: one, After: two},
				{Action: plan.Update, Ref: dns.Ref(zoneName, zoneName, dns.A), Before: one, After: two},
			})
			for i, err := range errs[:3] {
				if !errors.Is(err, dns.ErrConflict) {
					t.Errorf("change %d: %v", i, err)
				}
			}
			if errs[3] != nil {
				t.Errorf("a change without a race: %v", errs[3])
			}
			sets, err := z.RRsets(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{"new.kokoa.test": "203.0.113.1", "www.kokoa.test": "203.0.113.1", zoneName: "192.0.2.2"} {
				i := slices.IndexFunc(sets, func(s dns.RRset) bool { return s.Name == name && s.Type == dns.A })
				if i < 0 || sets[i].Values[0] != want {
					t.Errorf("%s is not %s: %v", name, want, sets)
				}
			}
			if slices.ContainsFunc(sets, func(s dns.RRset) bool { return s.Name == "new._kokoa.kokoa.test" }) {
				t.Error("an owner record claims the stranger's name")
			}
		})
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := start(t, zoneName)
			www := set("www.kokoa.test", dns.A, "192.0.2.1")
			unknown, forged := s.Key, s.Key
			unknown.Name, forged.Secret = "unknown", []byte("another secret")

			if _, err := open(t, s.Addr, s.Reader).RRsets(t.Context()); err != nil {
				t.Errorf("a reader reads: %v", err)
			}
			expect := func(err error, says ...string) {
				t.Helper()
				for _, text := range says {
					if err == nil || !strings.Contains(err.Error(), text) {
						t.Errorf("got %v, want %q in it", err, text)
					}
				}
			}
			expect(open(t, s.Addr, s.Reader).Set(t.Context(), www), "reader", "may not update zone kokoa.test", "allow it")
			expect(open(t, s.Addr, unknown).Set(t.Context(), www), "NOTAUTH", "no key unknown", "BADKEY")
			_, err := open(t, s.Addr, unknown).RRsets(t.Context())
			expect(err, "NOTAUTH", "no key unknown", "BADKEY")
			expect(open(t, s.Addr, forged).Set(t.Context(), www), "NOTAUTH", "secret of key kokoa differs")
			z, err := rfc2136.New(rfc2136.Options{Zone: "elsewhere.test", Server: s.Addr, Key: s.Key})
			if err != nil {
				t.Fatal(err)
			}
			if _, err = z.RRsets(t.Context()); err == nil {
				t.Error("a zone that is not served was read")
			}
			if err := z.Set(t.Context(), set("www.elsewhere.test", dns.A, "192.0.2.1")); err == nil {
				t.Error("a zone that is not served was updated")
			}
		})
	}
}

// requests counts the requests of each kind that reach a server through it.
type requests struct {
	mu     sync.Mutex
	counts map[string]int
}

func (r *requests) take() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts
	r.counts = map[string]int{}
	return c
}

// proxy passes connections on to addr.
func proxy(t *testing.T, addr string) (string, *requests) {
	t.Helper()
	r := &requests{counts: map[string]int{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { r.pass(client, addr) })
		}
	})
	return l.Addr().String(), r
}

func (r *requests) pass(client net.Conn, addr string) {
	defer client.Close()
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	go io.Copy(client, server)
	for {
		var size uint16
		if binary.Read(client, binary.BigEndian, &size) != nil {
			return
		}
		raw := make([]byte, size)
		if _, err := io.ReadFull(client, raw); err != nil {
			return
		}
		m := new(mdns.Msg)
		if m.Unpack(raw) == nil {
			kind := mdns.OpcodeToString[m.Opcode]
			if m.Opcode == mdns.OpcodeQuery {
				kind = mdns.TypeToString[m.Question[0].Qtype]
			}
			r.mu.Lock()
			r.counts[kind]++
			r.mu.Unlock()
		}
		server.Write(append(binary.BigEndian.AppendUint16(nil, size), raw...))
	}
}

// An unchanged zone is not transferred again, and ten thousand creations are not ten
// thousand round trips.
func TestRoundTrips(t *testing.T) {
	key := dns.Key{Name: "kokoa", Algorithm: "hmac-sha512", Secret: []byte("0123456789abcdef")}
	s, err := builtin.New(builtin.Options{Zones: []string{zoneName}, Keys: map[string]dns.Key{zoneName: key}})
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	addr, requests := proxy(t, tcp.Addr().String())
	d := dns.Driver{Fleet: "demo", Zones: map[string]dns.Zone{zoneName: open(t, addr, key)}}

	const count = 10_000
	changes := make([]plan.Change, count)
	for i := range changes {
		changes[i] = plan.Change{Action: plan.Create, Ref: dns.Ref(zoneName, fmt.Sprintf("app-%d.kokoa.test", i), dns.A),
			After: dns.RecordSet{Type: dns.A, TTL: time.Minute, Values: []string{"192.0.2.1"}}}
	}
	if err := errors.Join(d.Apply(t.Context(), changes)...); err != nil {
		t.Fatal(err)
	}
	if got := requests.take(); got["UPDATE"] > 100 || got["AXFR"] != 1 {
		t.Errorf("creating %d names took %v", count, got)
	}
	for i := range 3 {
		if o := d.Observe(t.Context()); len(o.Objects) != count {
			t.Fatalf("observed %d, unseen %v", len(o.Objects), o.Unseen)
		}
		got := requests.take()
		if i > 0 && (got["SOA"] != 1 || len(got) != 1) {
			t.Errorf("observing an unchanged zone took %v", got)
		}
	}
	if err := s.Zone(zoneName).Set(t.Context(), set("by-hand.kokoa.test", dns.TXT, "hello")); err != nil {
		t.Fatal(err)
	}
	d.Observe(t.Context())
	if got := requests.take(); got["AXFR"] != 1 {
		t.Errorf("observing a changed zone took %v", got)
	}
}

func TestNewRefuses(t *testing.T) {
	good := rfc2136.Options{Zone: zoneName, Server: "127.0.0.1:53", Key: dns.Key{Name: "k", Algorithm: "hmac-sha256", Secret: []byte("x")}}
	for says, change := range map[string]func(*rfc2136.Options){
		"trailing dot":      func(o *rfc2136.Options) { o.Zone = "kokoa.test." },
		"host:port":         func(o *rfc2136.Options) { o.Server = "127.0.0.1" },
		"unknown algorithm": func(o *rfc2136.Options) { o.Key.Algorithm = "hmac-md5" },
		"no secret":         func(o *rfc2136.Options) { o.Key.Secret = nil },
		"tsig key name":     func(o *rfc2136.Options) { o.Key.Name = "" },
	} {
		o := good
		change(&o)
		if _, err := rfc2136.New(o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	if _, err := rfc2136.New(good); err != nil {
		t.Error(err)
	}
}

package agent

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"pgregory.net/rapid"
)

// testFleet is the control plane's side of an agent: it has the signing key.
type testFleet struct {
	key       ed25519.PrivateKey
	bootstrap Bootstrap
	config    api.AgentConfig
}

func newTestFleet(t testing.TB) *testFleet {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	private, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	edge := testEdge(t, "tokyo", "10.77.0.10", "127.0.0.1:51820")
	return &testFleet{
		key: key,
		bootstrap: Bootstrap{
			Fleet:         "home",
			Name:          "rpi",
			PrivateKey:    private,
			TunnelAddress: netip.MustParseAddr("10.77.1.1"),
			Network:       testNetwork,
			SigningKey:    key.Public().(ed25519.PublicKey),
			Edges:         []api.AgentEdge{edge},
			Tunnel:        "userspace",
			Data:          filepath.Join(t.TempDir(), "data"),
		},
		config: api.AgentConfig{Fleet: "home", Agent: "rpi", Serial: 5, Edges: []api.AgentEdge{edge}},
	}
}

func testEdge(t testing.TB, name, address, endpoint string) api.AgentEdge {
	t.Helper()
	private, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return api.AgentEdge{Name: name, PublicKey: private.Public(), Endpoint: endpoint, Address: netip.MustParseAddr(address)}
}

// sign signs the fleet's config after a change to a copy of it.
func (f *testFleet) sign(t testing.TB, change func(*api.AgentConfig)) api.Signed {
	t.Helper()
	c := f.config
	c.Edges = append([]api.AgentEdge(nil), c.Edges...)
	c.Services = append([]api.AgentService(nil), c.Services...)
	if change != nil {
		change(&c)
	}
	s, err := api.Sign(f.key, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func serial(n uint64) func(*api.AgentConfig) {
	return func(c *api.AgentConfig) { c.Serial = n }
}

// TestOrders is what an agent obeys after it has obeyed serial 5.
func TestOrders(t *testing.T) {
	f := newTestFleet(t)
	own := f.bootstrap.PrivateKey.Public()
	for _, c := range []struct {
		name   string
		change func(*api.AgentConfig)
		spoil  func(*api.Signed)
		is     error
		want   string // part of the error; "" is obeyed
		serial uint64 // obeyed in the end
	}{
		{name: "the same again", serial: 5},
		{name: "a higher serial", change: serial(6), serial: 6},
		{name: "much higher", change: serial(1 << 60), serial: 1 << 60},
		{name: "a replay of a lower one", change: serial(4), is: errOlder, want: "serial 4", serial: 5},
		{name: "the same serial with other words", change: func(c *api.AgentConfig) {
			c.Services = []api.AgentService{{ID: "nas", URL: "http://nas:80"}}
		}, is: errTwin, want: "serial 5", serial: 5},
		{name: "signed by another key", change: serial(6), spoil: func(s *api.Signed) {
			s.Signature = ed25519.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)), s.Payload)
		}, is: api.ErrSignature, want: "signature", serial: 5},
		{name: "changed on the way", change: serial(6), spoil: func(s *api.Signed) {
			s.Payload = bytes.Replace(s.Payload, []byte(`"serial":6`), []byte(`"serial":7`), 1)
		}, is: api.ErrSignature, want: "signature", serial: 5},
		{name: "no signature", change: serial(6), spoil: func(s *api.Signed) { s.Signature = nil }, is: api.ErrSignature, want: "signature", serial: 5},
		{name: "empty", spoil: func(s *api.Signed) { *s = api.Signed{} }, is: api.ErrSignature, want: "signature", serial: 5},
		{name: "for another agent", change: func(c *api.AgentConfig) { c.Agent, c.Serial = "nas", 6 }, want: `it is for agent "nas"`, serial: 5},
		{name: "for another agent, relabelled", change: func(c *api.AgentConfig) { c.Agent, c.Serial = "nas", 6 },
			spoil: func(s *api.Signed) { s.Agent = "rpi" }, is: api.ErrSignature, want: "it is for agent nas", serial: 5},
		{name: "of another fleet with the same key", change: func(c *api.AgentConfig) { c.Fleet, c.Serial = "work", 6 }, want: `fleet "work"`, serial: 5},
		{name: "without edges", change: func(c *api.AgentConfig) { c.Edges, c.Serial = nil, 6 }, want: "names no edge", serial: 5},
		{name: "an edge outside the network", change: func(c *api.AgentConfig) { c.Edges[0].Address, c.Serial = netip.MustParseAddr("8.8.8.8"), 6 }, want: "not in the tunnel's network", serial: 5},
		{name: "an edge at the agent's address", change: func(c *api.AgentConfig) { c.Edges[0].Address, c.Serial = f.bootstrap.TunnelAddress, 6 }, want: "this agent's own", serial: 5},
		{name: "an edge with the agent's key", change: func(c *api.AgentConfig) { c.Edges[0].PublicKey, c.Serial = own, 6 }, want: "this agent's own", serial: 5},
		{name: "an edge without a key", change: func(c *api.AgentConfig) { c.Edges[0].PublicKey, c.Serial = keys.Public{}, 6 }, want: "public key is missing", serial: 5},
		{name: "an edge without a port", change: func(c *api.AgentConfig) { c.Edges[0].Endpoint, c.Serial = "tokyo.example.com", 6 }, want: "not host:port", serial: 5},
		{name: "two edges at one address", change: func(c *api.AgentConfig) {
			c.Serial, c.Edges = 6, append(c.Edges, testEdge(t, "osaka", "10.77.0.10", "192.0.2.1:51820"))
		}, want: "another edge has address", serial: 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := (&orders{}).next(f.bootstrap, f.sign(t, nil))
			if err != nil {
				t.Fatal(err)
			}
			s := f.sign(t, c.change)
			if c.spoil != nil {
				c.spoil(&s)
			}
			next, err := o.next(f.bootstrap, s)
			if err == nil {
				o = next
			}
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want an error with %q", err, c.want)
			case c.is != nil && !errors.Is(err, c.is):
				t.Errorf("%v is not %v", err, c.is)
			}
			if o.config.Serial != c.serial {
				t.Errorf("obeys serial %d, want %d", o.config.Serial, c.serial)
			}
		})
	}
}

// TestUnfitServices: one service that makes no sense does not keep the others
// from being obeyed.
func TestUnfitServices(t *testing.T) {
	f := newTestFleet(t)
	o, err := newOrders(f.bootstrap, f.sign(t, func(c *api.AgentConfig) {
		c.Services = []api.AgentService{
			{ID: "good", URL: "http://localhost:80"},
			{ID: "path", URL: "http://localhost:80/admin"},
			{ID: "", URL: "http://localhost:80"},
			{ID: "good", URL: "http://localhost:81"},
			{ID: "health", URL: "http://localhost:80", Health: "ping"},
			{ID: "quick", URL: "https://localhost", Health: "/ping", Interval: time.Millisecond},
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if len(o.services) != 2 || o.services["good"].target.port != 80 || o.services["quick"].target.port != 443 {
		t.Errorf("services: %v", o.services)
	}
	if o.services["good"].interval != defaultInterval || o.services["quick"].interval != time.Second {
		t.Errorf("intervals: %v and %v", o.services["good"].interval, o.services["quick"].interval)
	}
	if len(o.unfit) != 4 {
		t.Errorf("unfit: %q", o.unfit)
	}
}

// TestSerialsNeverFall: whatever order configs come in, the serial obeyed only
// rises, and one serial never stands for two contents.
func TestSerialsNeverFall(t *testing.T) {
	f := newTestFleet(t)
	rapid.Check(t, func(rt *rapid.T) {
		o := &orders{}
		seen := make(map[uint64]string)
		for range rapid.IntRange(1, 20).Draw(rt, "count") {
			n := rapid.Uint64Range(0, 6).Draw(rt, "serial")
			id := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "content")
			before := o.config.Serial
			next, err := o.next(f.bootstrap, f.sign(t, func(c *api.AgentConfig) {
				c.Serial, c.Services = n, []api.AgentService{{ID: id, URL: "http://localhost:80"}}
			}))
			if err != nil {
				continue
			}
			o = next
			if o.config.Serial < before {
				rt.Fatalf("serial fell from %d to %d", before, o.config.Serial)
			}
			if was, ok := seen[n]; ok && was != id {
				rt.Fatalf("serial %d was %s, and is now %s", n, was, id)
			}
			seen[n] = id
		}
	})
}

func TestExpired(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	o := &orders{config: api.AgentConfig{Expires: &at}}
	if o.expired(at.Add(-time.Nanosecond)) || !o.expired(at) {
		t.Error("a config is in force until the moment it names")
	}
	if (&orders{}).expired(at) {
		t.Error("a config that names no moment does not expire")
	}
}

func TestStore(t *testing.T) {
	f := newTestFleet(t)
	s := store{dir: f.bootstrap.Data}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder: %v, want fs.ErrNotExist", err)
	}
	signed := f.sign(t, nil)
	for range 2 {
		if err := s.save(signed); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.load()
	if err != nil || !bytes.Equal(got.Payload, signed.Payload) {
		t.Errorf("loaded %v, %v", got, err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("folder holds %v, %v; want the config alone", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if info, err = os.Stat(s.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder mode %v, %v; want 0700", info.Mode(), err)
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.prepare(); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a folder open to others: %v", err)
	}
}

func FuzzDecodeStored(f *testing.F) {
	fleet := newTestFleet(f)
	good, err := json.Marshal(fleet.sign(f, nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"agent":"rpi","payload":"e30=","signature":"AA=="} x`))
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeStored(data)
		if err != nil {
			return
		}
		o, err := newOrders(fleet.bootstrap, s)
		if err == nil && o.config.Serial != fleet.config.Serial {
			t.Fatalf("obeyed serial %d, which the fleet never signed", o.config.Serial)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeStored(again); err != nil {
			t.Fatalf("what was decoded does not decode again: %v", err)
		}
	})
}

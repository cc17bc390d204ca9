package api

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

func sample() Config {
	expires := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	return Config{
		Fleet: "home", Edge: "fra1", Revision: "abc",
		Peers: []Peer{
			{Name: "nas", PublicKey: keys.Public{1}, Address: netip.MustParseAddr("10.86.1.1"), Expires: &expires},
			{Name: "rpi", PublicKey: keys.Public{2}, Address: netip.MustParseAddr("10.86.1.2")},
		},
		Routes: []Route{
			{Name: "any", Host: "*.app.example.com", Path: "/", Upstreams: []Upstream{{"nas", "id1", "http://localhost:80"}}, Health: Health{Interval: time.Second}},
			{Name: "blog", Host: "blog.example.com", Path: "/", TLS: true, Redirect: true, Upstreams: []Upstream{{"rpi", "id2", "https://localhost:443"}, {"nas", "id1", "http://localhost:80"}}, Expires: &expires},
			{Name: "rest", Host: "*", Path: "/a/b", Upstreams: []Upstream{{"rpi", "id2", "http://[::1]:3000/"}}},
		},
		Agents: []Signed{{Agent: "nas", Payload: []byte("p"), Signature: []byte("s")}},
	}
}

func TestDecodeConfig(t *testing.T) {
	want := sample()
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeConfig(data)
	if err != nil || got.Digest() != want.Digest() {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
	for name, text := range map[string]string{
		"empty":           "",
		"no object":       "[]",
		"unknown field":   `{"fleet":"a","colour":"red"}`,
		"two configs":     string(data) + string(data),
		"trailing data":   string(data) + "x",
		"half":            string(data[:len(data)/2]),
		"wrong type":      `{"routes":{}}`,
		"negative number": `{"routes":[{"health":{"interval":-1}}]}`,
	} {
		if _, err := DecodeConfig([]byte(text)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestValidate(t *testing.T) {
	if err := sample().Validate(); err != nil {
		t.Fatal(err)
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero config: %v", err)
	}
	tests := []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Peers[0], c.Peers[1] = c.Peers[1], c.Peers[0] }, `peer nas: it stands after "rpi"`},
		{func(c *Config) { c.Peers[1].Name = "nas" }, `peer nas: it stands after "nas"`},
		{func(c *Config) { c.Peers[0].Name = "" }, "its name"},
		{func(c *Config) { c.Peers[0].PublicKey = keys.Public{} }, "peer nas: it has no public key"},
		{func(c *Config) { c.Peers[0].Address = netip.Addr{} }, "is not a tunnel address"},
		{func(c *Config) { c.Peers[0].Address = netip.MustParseAddr("0.0.0.0") }, "is not a tunnel address"},
		{func(c *Config) { c.Peers[1].Address = c.Peers[0].Address }, "peer rpi: it has the address of peer nas"},
		{func(c *Config) { c.Peers[1].PublicKey = c.Peers[0].PublicKey }, "peer rpi: it has the public key of peer nas"},
		{func(c *Config) { c.Peers[0].NextKey = c.Peers[0].PublicKey }, "peer nas: its next key is the one it has"},
		{func(c *Config) { c.Peers[1].NextKey = c.Peers[0].PublicKey }, "peer rpi: its next key is a key of peer nas"},
		{func(c *Config) { c.Peers[0].NextKey = c.Peers[1].PublicKey }, "peer rpi: it has the public key of peer nas"},
		{func(c *Config) { c.Peers[0].NextKey, c.Peers[1].NextKey = keys.Public{9}, keys.Public{9} }, "peer rpi: its next key is a key of peer nas"},
		{func(c *Config) { c.Routes[0], c.Routes[1] = c.Routes[1], c.Routes[0] }, `route any: it stands after "blog"`},
		{func(c *Config) { c.Routes[0].Host = "Blog.example.com" }, "lower case"},
		{func(c *Config) { c.Routes[0].Host = "" }, "route any: host"},
		{func(c *Config) { c.Routes[0].Path = "x" }, "route any: path"},
		{func(c *Config) { c.Routes[0].Path = "/a/../b" }, "route any: path"},
		{func(c *Config) { c.Routes[0].Upstreams = nil }, "route any: it has no upstream"},
		{func(c *Config) { c.Routes[0].Upstreams[0].Agent = "vm9" }, `its agent "vm9" is no peer`},
		{func(c *Config) { c.Routes[0].Upstreams[0].Service = "" }, "service id"},
		{func(c *Config) { c.Routes[0].Upstreams[0].URL = "ftp://x" }, "want http://host:port"},
		{func(c *Config) { c.Routes[0].Upstreams[0].URL = "http://x/path" }, "leave out"},
		{func(c *Config) { c.Routes[0].Upstreams[0].URL = "http://u:p@x" }, "leave out"},
		{func(c *Config) { c.Routes[0].Upstreams[0].URL = "http://x:y" }, "service URL"},
		{func(c *Config) { c.Routes[0].Health.Path = "health" }, "health path"},
		{func(c *Config) { c.Routes[0].Health.Path = "/a b" }, "health path"},
		{func(c *Config) { c.Routes[0].Health.Failures = -1 }, "negative"},
		{func(c *Config) { c.Routes[0].Health.Interval = 1 }, "health interval"},
		{func(c *Config) { c.Agents[0].Signature = nil }, "config of agent nas: it is not signed"},
	}
	for _, test := range tests {
		c := sample()
		test.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v; want %q in it", err, test.want)
		}
	}
	// What a rename passes through.
	c := sample()
	c.Routes = append(c.Routes, c.Routes[2])
	c.Routes[3].Name = "rest2"
	c.Peers[1].NextKey = keys.Public{9}
	c.Peers = append(c.Peers, c.Peers[1])
	c.Peers[2].Name = "rpi2"
	if err := c.Validate(); err != nil {
		t.Errorf("a rename: %v", err)
	}
	c.Peers[2].NextKey = keys.Public{}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "peer rpi2: it has the address of peer rpi") {
		t.Errorf("a rename that drops the next key: %v", err)
	}
	c = sample()
	for i := range 50 {
		c.Routes = append(c.Routes, Route{Name: fmt.Sprintf("z%02d", i), Host: "-"})
	}
	if n := strings.Count(fmt.Sprint(c.Validate()), "\n") + 1; n != maxProblems {
		t.Errorf("%d mistakes are listed; want %d", n, maxProblems)
	}
}

func FuzzDecodeConfig(f *testing.F) {
	data, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"peers":[{"address":"::1%eth0"}],"routes":[{"host":"*.","path":"/","upstreams":[{"url":"http://[::"}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeConfig(data)
		if err != nil {
			return
		}
		// What is taken keeps its identity on disk and on its way.
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := DecodeConfig(again)
		if err != nil || d.Digest() != c.Digest() {
			t.Fatalf("%s became %s: %v", data, again, err)
		}
	})
}

func TestCompressIsGzip(t *testing.T) {
	want := bytes.Repeat([]byte("route "), 10_000)
	z, err := gzip.NewReader(bytes.NewReader(compress(want)))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(z); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Error("not what was compressed", err)
	}
}

func TestErrorsAreTold(t *testing.T) {
	err := refused{"text", ErrConflict}
	if !errors.Is(err, ErrConflict) || err.Error() != "text" {
		t.Error(err)
	}
}

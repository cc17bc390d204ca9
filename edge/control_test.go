package edge

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

func TestControl(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("ok"))
	ctx := t.Context()
	c := w.control()
	if _, err := c.Config(ctx); !errors.Is(err, api.ErrNoConfig) || !strings.Contains(err.Error(), "edge e1") {
		t.Errorf("before the first: %v; want ErrNoConfig with the edge's name", err)
	}
	first := config(to("h.example.com", "s", plainHTTP))
	if err := c.PutConfig(ctx, "", first); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Config(ctx); err != nil || got.Digest() != first.Digest() || got.Revision != "r1" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := w.control().Config(ctx); err != nil || got.Digest() != first.Digest() {
		t.Errorf("a client that has seen nothing: %+v, %v", got, err)
	}
	second := config(to("h.example.com", "s", plainHTTP), to("i.example.com", "s", plainHTTP))
	if err := c.PutConfig(ctx, "", second); !errors.Is(err, api.ErrConflict) {
		t.Errorf("as if there were none: %v", err)
	}
	if err := c.PutConfig(ctx, second.Digest(), second); !errors.Is(err, api.ErrConflict) {
		t.Errorf("planned from another: %v", err)
	}
	if err := c.PutConfig(ctx, first.Digest(), second); err != nil {
		t.Fatal(err)
	}
	if err := c.PutConfig(ctx, first.Digest(), second); err != nil {
		t.Errorf("what is live already: %v", err)
	}
	bad := config(to("h.example.com", "s", plainHTTP))
	bad.Routes[0].Host = "no host"
	if err := c.PutConfig(ctx, second.Digest(), bad); !errors.Is(err, api.ErrRejected) || !strings.Contains(err.Error(), "no host") {
		t.Errorf("a bad config: %v", err)
	}
	bad = config()
	bad.Edge = "e2"
	if err := c.PutConfig(ctx, second.Digest(), bad); !errors.Is(err, api.ErrRejected) {
		t.Errorf("another edge's config: %v", err)
	}
	s, err := c.State(ctx)
	if err != nil || !s.Ready || s.Digest != second.Digest() || s.Fleet != "test" || s.Edge != "e1" || s.Version != "test" || s.Tunnel.Kind != "userspace" || len(s.Peers) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, p := range s.Peers {
		if p.PublicKey == key(100) {
			t.Error("the state shows the control peer")
		}
	}
	cert := w.ca.issue("h", "h.example.com")
	must(t, c.PutCertificate(ctx, cert))
	for _, name := range []string{"../h", ".h", "a/b", "", "a\x00b"} {
		evil := cert
		evil.Name = name
		if err := c.PutCertificate(ctx, evil); err == nil {
			t.Errorf("took a certificate with the name %q", name)
		}
	}
	if s, _ := c.State(ctx); len(s.Certificates) != 1 || s.Certificates[0].Hosts[0] != "h.example.com" || len(s.Certificates[0].Fingerprint) != 64 {
		t.Errorf("%+v", s.Certificates)
	}
	must(t, c.DeleteCertificate(ctx, "h"))
	must(t, c.DeleteCertificate(ctx, "h"))
	if s, _ := c.State(ctx); len(s.Certificates) != 0 {
		t.Errorf("%+v", s.Certificates)
	}
	w.restart()
	if got, err := w.control().Config(ctx); err != nil || got.Digest() != second.Digest() {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
}

// TestLargeConfig goes compressed, and comes back as it went.
func TestLargeConfig(t *testing.T) {
	w := newWorld(t)
	var routes []api.Route
	for i := range 1000 {
		routes = append(routes, to(fmt.Sprintf("h%d.example.com", i), "s", plainHTTP, func(r *api.Route) { r.Health.Interval = time.Hour }))
	}
	c := config(routes...)
	must(t, w.control().PutConfig(t.Context(), "", c))
	if got, err := w.control().Config(t.Context()); err != nil || got.Digest() != c.Digest() {
		t.Errorf("%v", err)
	}
}

// TestWhoMayCall tries every call from every address.
func TestWhoMayCall(t *testing.T) {
	w := newWorld(t)
	c := config()
	c.Agents = []api.Signed{{Agent: "a1", Payload: []byte("p"), Signature: []byte("s")}}
	w.put(c)
	ctx := t.Context()
	calls := map[string]func(*api.Client) error{
		"config":              func(c *api.Client) error { _, err := c.Config(ctx); return err },
		"put config":          func(a *api.Client) error { return a.PutConfig(ctx, c.Digest(), c) },
		"state":               func(c *api.Client) error { _, err := c.State(ctx); return err },
		"put certificate":     func(c *api.Client) error { return c.PutCertificate(ctx, w.ca.issue("x", "x.example.com")) },
		"delete certificate":  func(c *api.Client) error { return c.DeleteCertificate(ctx, "x") },
		"put challenge":       func(c *api.Client) error { return c.PutChallenge(ctx, "t", "t.k") },
		"delete challenge":    func(c *api.Client) error { return c.DeleteChallenge(ctx, "t") },
		"agent config":        func(c *api.Client) error { _, _, err := c.AgentConfig(ctx, "", 0); return err },
		"heartbeat":           func(c *api.Client) error { return c.Heartbeat(ctx, api.Heartbeat{Agent: "a1"}) },
		"another's heartbeat": func(c *api.Client) error { return c.Heartbeat(ctx, api.Heartbeat{Agent: "a2"}) },
	}
	allowed := map[netip.Addr]map[string]bool{
		controlAddress:                   {"config": true, "put config": true, "state": true, "put certificate": true, "delete certificate": true, "put challenge": true, "delete challenge": true},
		agentAddress:                     {"agent config": true, "heartbeat": true},
		edgeAddress:                      {},
		netip.MustParseAddr("10.86.9.9"): {},
		netip.MustParseAddr("127.0.0.1"): {},
		netip.MustParseAddr("fd00::1"):   {},
		netip.MustParseAddr("10.86.0.2"): {},
	}
	for from, may := range allowed {
		for name, call := range calls {
			err := call(w.client(from))
			if may[name] && err != nil {
				t.Errorf("%s from %s: %v", name, from, err)
			}
			if !may[name] && !errors.Is(err, api.ErrForbidden) {
				t.Errorf("%s from %s: %v; want ErrForbidden", name, from, err)
			}
		}
	}
}

// TestAgentConfig: an agent that waits hears of a change at once, and of nothing
// when its own config stays.
func TestAgentConfig(t *testing.T) {
	w := newWorld(t)
	version := func(payload, revision string) api.Config {
		c := config()
		c.Revision = revision
		c.Agents = []api.Signed{{Agent: "a1", Payload: []byte(payload), Signature: []byte("s")}}
		return c
	}
	w.put(version("one", "r1"))
	agent := w.client(agentAddress)
	ctx := t.Context()
	got, tag, err := agent.AgentConfig(ctx, "", 0)
	if err != nil || string(got.Payload) != "one" {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, same, err := agent.AgentConfig(ctx, tag, 0); err != nil || same != tag || again.Payload != nil {
		t.Errorf("nothing new: %+v %s %v", again, same, err)
	}
	if again, same, err := agent.AgentConfig(ctx, tag, 10*time.Millisecond); err != nil || same != tag || again.Payload != nil {
		t.Errorf("nothing new in 10 ms: %+v %s %v", again, same, err)
	}
	type result struct {
		s   api.Signed
		err error
	}
	heard := make(chan result, 1)
	waits := func(from netip.Addr, tag string) {
		c := w.client(from)
		go func() {
			s, _, err := c.AgentConfig(ctx, tag, 30*time.Second)
			heard <- result{s, err}
		}()
	}
	waits(agentAddress, tag)
	other := version("one", "r2")
	other.Routes = append(other.Routes, to("h.example.com", "s", plainHTTP))
	w.put(other)
	select {
	case r := <-heard:
		t.Errorf("woken by a change that is not its own: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	w.put(version("two", "r3"))
	if r := <-heard; r.err != nil || string(r.s.Payload) != "two" {
		t.Errorf("%+v", r)
	}
	// An agent that has no config yet may wait for its first.
	waits(spareAddress, "")
	both := version("two", "r4")
	both.Agents = append(both.Agents, api.Signed{Agent: "a2", Payload: []byte("first"), Signature: []byte("s")})
	w.put(both)
	if r := <-heard; r.err != nil || string(r.s.Payload) != "first" {
		t.Errorf("%+v", r)
	}
	none := config()
	w.put(none)
	if _, _, err := w.client(spareAddress).AgentConfig(ctx, "", 0); !errors.Is(err, api.ErrNoConfig) {
		t.Errorf("an agent without a config: %v", err)
	}
	// One whose key was taken out while it waited hears that, and no more.
	waits(spareAddress, "")
	none.Peers = none.Peers[:1]
	none.Revision = "r6"
	w.put(none)
	if r := <-heard; !errors.Is(r.err, api.ErrForbidden) {
		t.Errorf("%+v; want ErrForbidden", r)
	}
}

func TestHeartbeats(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	beat := api.Heartbeat{Agent: "a1", Version: "v1", Serial: 7, Services: []api.LocalService{{ID: "s", Up: true, RTT: time.Millisecond}}}
	must(t, w.client(agentAddress).Heartbeat(t.Context(), beat))
	s, err := w.control().State(t.Context())
	if err != nil || len(s.Agents) != 1 || s.Agents[0].Name != "a1" || s.Agents[0].Heartbeat.Serial != 7 || !s.Agents[0].At.Equal(w.clock.Now()) {
		t.Errorf("%+v, %v", s.Agents, err)
	}
	gone := config()
	gone.Peers = gone.Peers[1:]
	w.put(gone)
	if s, _ := w.control().State(t.Context()); len(s.Agents) != 0 {
		t.Errorf("%+v of an agent that is no peer", s.Agents)
	}
}

// TestBadBodies: what is too large or broken is refused, and the edge is as it was.
func TestBadBodies(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	_, digest, _ := w.server.Config()
	dial := w.device.from(controlAddress)
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, netip.AddrPortFrom(edgeAddress, api.EdgePort))
	}}}
	t.Cleanup(c.CloseIdleConnections)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	zeros := make([]byte, 1<<20)
	for range 80 {
		z.Write(zeros)
	}
	z.Close()
	match := http.Header{"If-Match": {`"` + digest + `"`}}
	with := func(h http.Header, more ...string) http.Header {
		n := h.Clone()
		for i := 0; i < len(more); i += 2 {
			n.Set(more[i], more[i+1])
		}
		return n
	}
	tests := []struct {
		name, method, path string
		header             http.Header
		body               io.Reader
		status             int
	}{
		{"no precondition", "PUT", "/v1/config", http.Header{}, strings.NewReader("{}"), 428},
		{"If-Match without quotes", "PUT", "/v1/config", http.Header{"If-Match": {digest}}, strings.NewReader("{}"), 428},
		{"no JSON", "PUT", "/v1/config", match, strings.NewReader("hello"), 422},
		{"empty", "PUT", "/v1/config", match, strings.NewReader(""), 422},
		{"no gzip", "PUT", "/v1/config", with(match, "Content-Encoding", "gzip"), strings.NewReader("hello"), 400},
		{"half a gzip", "PUT", "/v1/config", with(match, "Content-Encoding", "gzip"), bytes.NewReader(bomb.Bytes()[:1000]), 400},
		{"a gzip of 80 MiB", "PUT", "/v1/config", with(match, "Content-Encoding", "gzip"), bytes.NewReader(bomb.Bytes()), 413},
		{"unknown encoding", "PUT", "/v1/config", with(match, "Content-Encoding", "br"), strings.NewReader("{}"), 415},
		{"65 MiB", "PUT", "/v1/config", match, io.LimitReader(endless{}, 65<<20), 413},
		{"a certificate of 2 MiB", "PUT", "/v1/certificates/x", nil, io.LimitReader(endless{}, 2<<20), 413},
		{"a certificate under another name", "PUT", "/v1/certificates/x", nil, strings.NewReader(`{"name":"y"}`), 400},
		{"unknown path", "GET", "/v2/config", nil, nil, 404},
		{"unknown method", "POST", "/v1/config", nil, nil, 405},
	}
	for _, test := range tests {
		r, err := http.NewRequest(test.method, "http://edge"+test.path, test.body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = test.header
		resp, err := c.Do(r)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != test.status {
			t.Errorf("%s: %d; want %d", test.name, resp.StatusCode, test.status)
		}
	}
	if _, now, _ := w.server.Config(); now != digest {
		t.Error("another config is live")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

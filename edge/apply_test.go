package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
)

// TestSwapsUnderLoad: 200 configs replace each other under 64 connections that are
// kept, and every request is answered, whole, by a config that was live.
func TestSwapsUnderLoad(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[http2], func(t *testing.T) {
			w := newWorld(t)
			w.serve("one", say(strings.Repeat("1", 1024)))
			w.serve("two", say(strings.Repeat("2", 1024)))
			w.secure("h.example.com")
			version := func(n int) api.Config {
				// Each takes another service, another path beside it, another peer.
				c := config(to("h.example.com", []string{"one", "two"}[n%2]), to("h.example.com", "one", path(fmt.Sprintf("/v%d", n))))
				c.Revision = fmt.Sprint(n)
				c.Peers = append(c.Peers, api.Peer{Name: fmt.Sprintf("p%04d", n), PublicKey: keys.Public{50, byte(n), byte(n >> 8)}, Address: spareAddress.Next().Next()})
				if n%3 == 0 {
					c.Peers[len(c.Peers)-1].Address = c.Peers[len(c.Peers)-1].Address.Next()
				}
				c.Normalize()
				return c
			}
			w.put(version(0))
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var requests atomic.Int64
			for range 64 {
				c := w.browser(http2)
				wg.Go(func() {
					for ctx.Err() == nil {
						resp, err := c.Get("https://h.example.com/x")
						if err != nil {
							t.Error(err)
							return
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if err != nil || resp.StatusCode != 200 || len(body) != 1024 || bytes.Count(body, body[:1]) != 1024 {
							t.Errorf("%d, %d bytes, %v: %.80q", resp.StatusCode, len(body), err, body)
							return
						}
						if resp.ProtoMajor == 2 != http2 {
							t.Errorf("answered over HTTP/%d", resp.ProtoMajor)
						}
						requests.Add(1)
					}
				})
			}
			for n := 1; n <= 200; n++ {
				before := requests.Load()
				w.put(version(n))
				// So that every config answers somebody.
				eventually(t, "requests go on", func() bool { return t.Failed() || requests.Load() > before })
			}
			stop()
			wg.Wait()
			if _, _, err := w.server.Config(); err != nil {
				t.Fatal(err)
			}
			want := version(200)
			eventually(t, "only the live config's peers remain", func() bool {
				s, err := w.server.State()
				return err == nil && len(s.Peers) == len(want.Peers) && s.Digest == want.Digest()
			})
			t.Logf("%d requests", requests.Load())
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("ok"))
	first := config(to("h.example.com", "s", plainHTTP))
	w.put(first)
	digest := first.Digest()
	disk := readAll(t, w.dir)
	peers, err := w.device.Stats()
	if err != nil {
		t.Fatal(err)
	}
	next := config(to("h.example.com", "s", plainHTTP), to("i.example.com", "s", plainHTTP))
	next.Peers = next.Peers[:1]
	change := func(f func(*api.Config)) api.Config {
		c := config(to("h.example.com", "s", plainHTTP), to("i.example.com", "s", plainHTTP))
		f(&c)
		return c
	}
	full := errors.New("no space left on device")
	tests := []struct {
		name    string
		current string
		config  api.Config
		prepare func()
		want    error
	}{
		{"stale digest", strings.Repeat("0", 64), next, nil, api.ErrConflict},
		{"no digest", "", next, nil, api.ErrConflict},
		{"another edge's", digest, change(func(c *api.Config) { c.Edge = "e2" }), nil, api.ErrRejected},
		{"another fleet's", digest, change(func(c *api.Config) { c.Fleet = "other" }), nil, api.ErrRejected},
		{"a peer with a control key", digest, change(func(c *api.Config) { c.Peers[0].PublicKey = key(100) }), nil, api.ErrRejected},
		{"a peer with the edge's address", digest, change(func(c *api.Config) { c.Peers[0].Address = edgeAddress }), nil, api.ErrRejected},
		{"an upstream without a peer", digest, change(func(c *api.Config) { c.Routes[1].Upstreams[0].Agent = "nobody" }), nil, api.ErrRejected},
		{"a bad host", digest, change(func(c *api.Config) { c.Routes[1].Host = "no host" }), nil, api.ErrRejected},
		{"peers cannot be set", digest, next, func() { w.device.fail = full }, full},
		{"cannot be saved", digest, next, func() {
			// A folder in the config's place cannot be replaced, whoever we are.
			must(t, os.Rename(filepath.Join(w.dir, configFile), filepath.Join(w.dir, "aside")))
			must(t, os.MkdirAll(filepath.Join(w.dir, configFile, "x"), 0o700))
		}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.prepare != nil {
				test.prepare()
			}
			err := w.server.Apply(t.Context(), test.current, test.config)
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("Apply: %v; want %v", err, test.want)
			}
			if test.name == "cannot be saved" {
				must(t, os.RemoveAll(filepath.Join(w.dir, configFile)))
				must(t, os.Rename(filepath.Join(w.dir, "aside"), filepath.Join(w.dir, configFile)))
			}
			if _, live, _ := w.server.Config(); live != digest {
				t.Error("another config is live")
			}
			if now := readAll(t, w.dir); now != disk {
				t.Errorf("the disk changed from\n%s\nto\n%s", disk, now)
			}
			if now, _ := w.device.Stats(); len(now) != len(peers) {
				t.Errorf("%d peers; want %d", len(now), len(peers))
			}
			if status, body := get(t, w.browser(false), "http://h.example.com/"); status != 200 || body != "ok" {
				t.Errorf("visitors get %d %q", status, body)
			}
			if status, _ := get(t, w.browser(false), "http://i.example.com/"); status != 404 {
				t.Errorf("visitors get %d from a config that was refused", status)
			}
		})
	}
	w.put(next)
	if status, _ := get(t, w.browser(false), "http://i.example.com/"); status != 200 {
		t.Errorf("after all that a good config gives %d", status)
	}
}

// TestApplyPanics: a config that makes the edge panic is refused like a bad one.
func TestApplyPanics(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("ok"))
	w.put(config(to("h.example.com", "s", plainHTTP)))
	_, digest, _ := w.server.Config()
	pool := w.server.pool
	w.server.mu.Lock()
	w.server.pool = nil // compiling needs it
	w.server.mu.Unlock()
	err := w.server.Apply(t.Context(), digest, config(to("i.example.com", "s", plainHTTP)))
	w.server.mu.Lock()
	w.server.pool = pool
	w.server.mu.Unlock()
	if !errors.Is(err, api.ErrRejected) || !strings.Contains(err.Error(), "panic") {
		t.Errorf("Apply: %v; want ErrRejected", err)
	}
	if status, _ := get(t, w.browser(false), "http://h.example.com/"); status != 200 {
		t.Errorf("visitors get %d", status)
	}
}

// TestMakeBeforeBreak: a request that is under way when its peer is taken out still
// has its tunnel, and the peer goes once it has ended.
func TestMakeBeforeBreak(t *testing.T) {
	w := newWorld(t)
	entered, release := w.serveWaiting("slow")
	w.serve("other", say("other"))
	w.put(config(to("h.example.com", "slow", plainHTTP)))
	type result struct {
		status int
		body   string
	}
	got := make(chan result, 1)
	go func() {
		status, body := get(t, w.browser(false), "http://h.example.com/wait")
		got <- result{status, body}
	}()
	<-entered
	next := config(to("h.example.com", "other", plainHTTP, func(r *api.Route) { r.Upstreams[0].Agent = "a2" }))
	next.Peers = []api.Peer{{Name: "a2", PublicKey: key(2), Address: spareAddress}, {Name: "a3", PublicKey: key(3), Address: spareAddress.Next()}}
	w.put(next)
	if !w.device.has(key(3)) || !w.device.has(key(1)) {
		t.Error("the new peer must be there, and the old one still")
	}
	if status, body := get(t, w.browser(false), "http://h.example.com/"); status != 200 || body != "other" {
		t.Errorf("a new request: %d %q", status, body)
	}
	if !w.device.has(key(1)) {
		t.Error("the old peer is gone while its request runs")
	}
	close(release)
	if r := <-got; r != (result{200, "done"}) {
		t.Errorf("the old request: %+v", r)
	}
	eventually(t, "the old peer goes", func() bool { return !w.device.has(key(1)) })
	if !w.device.has(key(100)) {
		t.Error("the control peer is gone")
	}
}

// TestPeersAreSetAgain: putting what is live repairs the device's peers.
func TestPeersAreSetAgain(t *testing.T) {
	w := newWorld(t)
	c := config()
	w.put(c)
	must(t, w.device.SetPeers(t.Context(), nil))
	again := c
	again.Revision = "r2"
	if err := w.server.Apply(t.Context(), "whatever was planned from", again); err != nil {
		t.Fatal(err)
	}
	if !w.device.has(key(1)) || !w.device.has(key(2)) || !w.device.has(key(100)) {
		t.Error("peers are missing")
	}
	w.restart()
	if live, _, _ := w.server.Config(); live.Revision != "r2" {
		t.Errorf("revision %q after a restart; want r2", live.Revision)
	}
}

// TestPeerKeyChange: a peer's address goes to its new key in one step.
func TestPeerKeyChange(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	next := config()
	next.Peers[0].PublicKey = key(9)
	w.put(next)
	if !w.device.has(key(9)) || w.device.has(key(1)) {
		t.Error("the new key must have the address, the old one cannot")
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("ok"))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s")))
	w.restart() // nobody puts anything
	if status, body := get(t, w.browser(true), "https://h.example.com/"); status != 200 || body != "ok" {
		t.Errorf("%d %q", status, body)
	}
	s, err := w.server.State()
	if err != nil || !s.Ready || s.Revision != "r1" || len(s.Peers) != 2 || len(s.Certificates) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, f := range []string{configFile, "certificates/h.example.com.pem"} {
		info, err := os.Stat(filepath.Join(w.dir, f))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", f, info.Mode(), err)
		}
	}
}

// TestDamagedConfig: the config before it is served, or none, and the log says so.
func TestDamagedConfig(t *testing.T) {
	damages := map[string]func(string) error{
		"truncated": func(p string) error { return os.Truncate(p, 100) },
		"empty":     func(p string) error { return os.Truncate(p, 0) },
		"a flipped bit": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(p, b, 0o600)
		},
		"absent": os.Remove,
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.serve("s", say("ok"))
			w.put(config(to("one.example.com", "s", plainHTTP)))
			w.put(config(to("two.example.com", "s", plainHTTP)))
			w.end()
			must(t, damage(filepath.Join(w.dir, configFile)))
			w.start()
			if status, _ := get(t, w.browser(false), "http://one.example.com/"); status != 200 {
				t.Errorf("the config before: %d", status)
			}
			if name != "absent" && !strings.Contains(w.log.String(), "saved config left out") {
				t.Error("the log says nothing")
			}
			w.end()
			must(t, damage(filepath.Join(w.dir, previousFile)))
			for _, f := range []string{configFile, previousFile} {
				if err := os.Truncate(filepath.Join(w.dir, f), 3); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			w.start()
			if status, _ := get(t, w.browser(false), "http://one.example.com/"); status != 503 {
				t.Errorf("no config: %d; want 503", status)
			}
			if s, err := w.server.State(); err != nil || s.Ready || !slices.Contains(s.NotReady, "no config yet") {
				t.Errorf("%+v, %v", s, err)
			}
			w.put(config(to("one.example.com", "s", plainHTTP)))
			if status, _ := get(t, w.browser(false), "http://one.example.com/"); status != 200 {
				t.Errorf("after a new config: %d", status)
			}
		})
	}
}

// TestKilledWhileSaving: whatever moment a crash picks, a whole config is found.
func TestKilledWhileSaving(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("ok"))
	w.put(config(to("one.example.com", "s", plainHTTP)))
	w.end()
	// As a crash between the fallback's link and its rename, or in the middle of the
	// new file, leaves it.
	must(t, os.Link(filepath.Join(w.dir, configFile), filepath.Join(w.dir, previousFile+".new")))
	must(t, os.WriteFile(filepath.Join(w.dir, ".config.123"), []byte("half"), 0o600))
	w.start()
	if status, _ := get(t, w.browser(false), "http://one.example.com/"); status != 200 {
		t.Errorf("%d", status)
	}
	w.put(config(to("two.example.com", "s", plainHTTP)))
	w.put(config(to("three.example.com", "s", plainHTTP)))
	w.restart()
	if status, _ := get(t, w.browser(false), "http://three.example.com/"); status != 200 {
		t.Errorf("%d", status)
	}
}

// TestOpenFolders: what other users can read may be known to them.
func TestOpenFolders(t *testing.T) {
	w := newWorld(t)
	w.secure("h.example.com")
	w.end()
	for path, mode := range map[string]os.FileMode{"": 0o755, "certificates": 0o750, "certificates/h.example.com.pem": 0o644} {
		full := filepath.Join(w.dir, path)
		info, err := os.Stat(full)
		if err != nil {
			t.Fatal(err)
		}
		must(t, os.Chmod(full, mode))
		_, err = New(Options{Bootstrap: Bootstrap{Name: "e1", Fleet: "test", Data: w.dir}, Device: newDevice(), Dial: w.dial})
		if err == nil || !strings.Contains(err.Error(), "chmod") || !strings.Contains(err.Error(), full) {
			t.Errorf("%s with mode %o: %v; want an error that says what to do", full, mode, err)
		}
		must(t, os.Chmod(full, info.Mode()))
	}
	w.start()
}

// TestExpiry: by the edge's own clock routes end, their open connections too, and
// peers lose their tunnel.
func TestExpiry(t *testing.T) {
	w := newWorld(t)
	streaming := make(chan struct{}, 1)
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			io.WriteString(rw, "begun")
			http.NewResponseController(rw).Flush()
			streaming <- struct{}{}
			<-r.Context().Done()
		}
	}))
	ends := w.clock.Now().Add(24 * time.Hour)
	c := config(to("h.example.com", "s", plainHTTP, func(r *api.Route) { r.Expires = &ends }), to("stays.example.com", "s", plainHTTP))
	c.Peers[1].Expires = &ends
	w.put(c)
	resp, err := w.browser(false).Get("http://h.example.com/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-streaming
	w.clock.advance(24*time.Hour - time.Second)
	w.server.expire()
	if status, _ := get(t, w.browser(false), "http://h.example.com/"); status != 200 {
		t.Errorf("before its time: %d", status)
	}
	if !w.device.has(key(2)) {
		t.Error("the peer is gone before its time")
	}
	w.clock.advance(time.Second)
	if status, _ := get(t, w.browser(false), "http://h.example.com/"); status != 404 {
		t.Errorf("at its time: %d; want 404", status)
	}
	// The edge looks every second.
	if body, err := io.ReadAll(resp.Body); err == nil || string(body) != "begun" {
		t.Errorf("the stream ended with %q, %v; want it cut", body, err)
	}
	eventually(t, "the peer goes", func() bool { return !w.device.has(key(2)) })
	if !w.device.has(key(1)) || !w.device.has(key(100)) {
		t.Error("peers that do not expire are gone")
	}
	if status, _ := get(t, w.browser(false), "http://stays.example.com/"); status != 200 {
		t.Errorf("the other route: %d", status)
	}
	w.restart()
	if w.device.has(key(2)) {
		t.Error("a restart brought the expired peer back")
	}
	if a := w.server.Caller(spareAddress); a != (api.Caller{}) {
		t.Errorf("the expired peer may call as %+v", a)
	}
	// A later end in a next config revives the route.
	later := ends.Add(time.Hour)
	c2 := config(to("h.example.com", "s", plainHTTP, func(r *api.Route) { r.Expires = &later }))
	w.put(c2)
	if status, _ := get(t, w.browser(false), "http://h.example.com/"); status != 200 {
		t.Errorf("with a later end: %d", status)
	}
}

func readAll(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %s\n", path, data)
		return err
	})
	must(t, err)
	return b.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

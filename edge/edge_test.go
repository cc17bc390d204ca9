package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/catest"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// device is a tunnel without WireGuard: it remembers its peers, and connections
// inside it come from whatever address a test says.
type device struct {
	mu      sync.Mutex
	peers   []tunnel.Peer
	history [][]tunnel.Peer
	fail    error // of the next SetPeers
	silent  error // of every Stats
	// shaken is when peers completed their last handshakes.
	shaken map[keys.Public]time.Time
	// received counts what came from peers, and renewed are those made new.
	received  map[keys.Public]uint64
	renewed   []keys.Public
	listeners map[uint16]*inner
}

func newDevice() *device { return &device{listeners: map[uint16]*inner{}} }

func (d *device) SetPeers(_ context.Context, peers []tunnel.Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fail; err != nil {
		d.fail = nil
		return err
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range peers {
		for _, a := range p.AllowedIPs {
			if seen[a] {
				return errors.New("overlapping allowed addresses")
			}
			seen[a] = true
		}
	}
	d.peers = slices.Clone(peers)
	d.history = append(d.history, d.peers)
	return nil
}

func (d *device) Stats() ([]tunnel.PeerStats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.silent != nil {
		return nil, d.silent
	}
	var stats []tunnel.PeerStats
	for _, p := range d.peers {
		stats = append(stats, tunnel.PeerStats{PublicKey: p.PublicKey, AllowedIPs: p.AllowedIPs, Handshake: d.shaken[p.PublicKey], Received: d.received[p.PublicKey]})
	}
	return stats, nil
}

func (d *device) has(key keys.Public) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.peers, func(p tunnel.Peer) bool { return p.PublicKey == key })
}

func (d *device) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("nobody is there")
}

func (d *device) Listen(port uint16) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := &inner{conns: make(chan net.Conn), closed: make(chan struct{})}
	d.listeners[port] = l
	return l, nil
}

func (d *device) Kind() tunnel.Kind  { return tunnel.Userspace }
func (d *device) Reason() string     { return "test" }
func (d *device) ListenPort() uint16 { return 51820 }
func (d *device) Close() error       { return nil }

func (d *device) SetPrivateKey(keys.Private) error { return errors.New("an edge keeps its key") }
func (d *device) Rebind() error                    { return errors.New("an edge keeps its port") }

func (d *device) Renew(peers ...keys.Public) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.renewed = append(d.renewed, peers...)
	return nil
}

// from dials the device's listeners from an address in the tunnel.
func (d *device) from(a netip.Addr) func(context.Context, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		d.mu.Lock()
		l := d.listeners[to.Port()]
		d.mu.Unlock()
		if l == nil {
			return nil, errors.New("connection refused")
		}
		here, there := net.Pipe()
		select {
		case l.conns <- from{there, net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 40000))}:
			return here, nil
		case <-l.closed:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

type inner struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *inner) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *inner) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *inner) Addr() net.Addr { return &net.TCPAddr{} }

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var (
	controlAddress = netip.MustParseAddr("10.86.0.1")
	edgeAddress    = netip.MustParseAddr("10.86.0.16")
	agentAddress   = netip.MustParseAddr("10.86.1.1")
	spareAddress   = netip.MustParseAddr("10.86.1.2")
)

func key(n byte) keys.Public { return keys.Public{n} }

// world is an edge with what it stands on.
type world struct {
	t      *testing.T
	server *Server
	device *device
	clock  *clock
	dir    string
	http   string // host:port
	https  string
	roots  *x509.CertPool
	ca     *authority
	log    *logtest.Buffer

	mu       sync.Mutex
	backends map[string]string // host:port by service id
	dials    map[string]int
	stop     context.CancelFunc
	done     chan error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, clock: &clock{now: time.Now()}, dir: filepath.Join(t.TempDir(), "data"),
		backends: map[string]string{}, dials: map[string]int{}, log: &logtest.Buffer{},
	}
	w.ca = newAuthority(t)
	w.roots = w.ca.Pool
	w.start()
	t.Cleanup(w.end)
	return w
}

// start runs the edge, again if it ran before, on the same data.
func (w *world) start() {
	w.t.Helper()
	w.device = newDevice()
	open := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.t.Fatal(err)
		}
		return l
	}
	plain, secure := open(), open()
	w.http, w.https = plain.Addr().String(), secure.Addr().String()
	server, err := New(Options{
		Bootstrap: Bootstrap{
			Fleet: "test", Name: "e1", TunnelAddress: edgeAddress, Network: netip.MustParsePrefix("10.86.0.0/16"),
			Control: []ControlPeer{{key(100), controlAddress}}, Data: w.dir,
		},
		Device: w.device, Dial: w.dial, HTTP: plain, HTTPS: secure, Roots: w.roots, Version: "test", Now: w.clock.Now,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = server
	ctx, stop := context.WithCancel(context.Background())
	w.stop, w.done = stop, make(chan error, 1)
	go func() { w.done <- server.Serve(ctx) }()
	eventually(w.t, "the edge serves", func() bool { return server.serving.Load() })
}

func (w *world) end() {
	w.t.Helper()
	if w.stop == nil {
		return
	}
	w.stop()
	w.stop = nil
	if err := <-w.done; err != nil {
		w.t.Error(err)
	}
}

func (w *world) restart() {
	w.t.Helper()
	w.end()
	w.start()
}

func (w *world) dial(ctx context.Context, _ netip.Addr, service string) (net.Conn, error) {
	w.mu.Lock()
	to := w.backends[service]
	w.dials[service]++
	w.mu.Unlock()
	if to == "" {
		return nil, errors.New("no such service")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to)
}

// serve makes h a service.
func (w *world) serve(service string, h http.Handler) *httptest.Server {
	w.t.Helper()
	s := httptest.NewServer(h)
	w.t.Cleanup(s.Close)
	w.listen(service, s.Listener.Addr().String())
	return s
}

// serveWaiting serves a service whose /wait closes entered and answers once release
// is closed.
func (w *world) serveWaiting(service string) (entered, release chan struct{}) {
	w.t.Helper()
	entered, release = make(chan struct{}), make(chan struct{})
	w.serve(service, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(entered)
			<-release
		}
		io.WriteString(rw, "done")
	}))
	return entered, release
}

// serveRaw serves a service that does what f does with each connection, HTTP or not,
// and then closes it.
func (w *world) serveRaw(service string, f func(net.Conn)) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	w.listen(service, l.Addr().String())
}

func (w *world) listen(service, at string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.backends[service] = at
}

func (w *world) control() *api.Client { return w.client(controlAddress) }

func (w *world) client(a netip.Addr) *api.Client {
	c := api.NewClient("e1", netip.AddrPortFrom(edgeAddress, api.EdgePort), w.device.from(a))
	w.t.Cleanup(c.Close)
	return c
}

// config is a config with the usual peers.
func config(routes ...api.Route) api.Config {
	c := api.Config{
		Fleet: "test", Edge: "e1", Revision: "r1",
		Peers:  []api.Peer{{Name: "a1", PublicKey: key(1), Address: agentAddress}, {Name: "a2", PublicKey: key(2), Address: spareAddress}},
		Routes: routes,
	}
	c.Normalize()
	return c
}

// to is a TLS route to one service of agent a1.
func to(host, service string, change ...func(*api.Route)) api.Route {
	r := api.Route{
		Name: strings.NewReplacer("*", "any", ".", "-").Replace(host), Host: host, Path: "/", TLS: true, Redirect: true, PreserveHost: true,
		Upstreams: []api.Upstream{{Agent: "a1", Service: service, URL: "http://localhost:3000"}},
		Health:    api.Health{Interval: 20 * time.Millisecond, Timeout: time.Second, Failures: 3},
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func path(p string) func(*api.Route) {
	return func(r *api.Route) { r.Name += strings.ReplaceAll(p, "/", "-"); r.Path = p }
}

func plainHTTP(r *api.Route) { r.TLS, r.Redirect = false, false }

// put makes c live, whatever was.
func (w *world) put(c api.Config) {
	w.t.Helper()
	_, digest, _ := w.server.Config()
	if err := w.server.Apply(w.t.Context(), digest, c); err != nil {
		w.t.Fatal(err)
	}
}

// secure puts certificates for names.
func (w *world) secure(names ...string) {
	w.t.Helper()
	for _, n := range names {
		if err := w.server.PutCertificate(w.ca.issue(strings.ReplaceAll(n, "*", "any"), n)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// browser is a client that finds every host at the edge.
func (w *world) browser(http2 bool) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			at := w.https
			if strings.HasSuffix(addr, ":80") {
				at = w.http
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", at)
		},
		TLSClientConfig: &tls.Config{RootCAs: w.roots}, Protocols: &protocols, ForceAttemptHTTP2: http2, MaxIdleConnsPerHost: 100,
		DisableCompression: true,
	}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get is a status and a body.
func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// say answers every request with a text.
func say(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
}

// authority issues certificates; of two for one host the later one serves.
type authority struct {
	*catest.CA
	n int
}

func newAuthority(t *testing.T) *authority { return &authority{CA: catest.New(t)} }

func (a *authority) issue(name string, hosts ...string) api.Certificate {
	a.n++
	chain, key := a.Issue(time.Hour+time.Duration(a.n)*time.Second, hosts...)
	return api.Certificate{Name: name, Chain: chain, Key: key}
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestServesRoutes(t *testing.T) {
	w := newWorld(t)
	w.serve("blog", say("blog"))
	w.serve("api", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "api "+r.RequestURI+" "+r.Host) }))
	w.serve("plain", say("plain"))
	w.secure("example.com", "*.example.com")
	strip := func(r *api.Route) { r.StripPath = true }
	w.put(config(
		to("example.com", "blog"),
		to("example.com", "api", path("/api"), strip, func(r *api.Route) { r.PreserveHost = false }),
		to("*.example.com", "api"),
		to("plain.example.com", "plain", plainHTTP),
		to("both.example.com", "plain", func(r *api.Route) { r.Redirect = false }),
	))
	_, port, _ := net.SplitHostPort(w.https)
	for _, http2 := range []bool{false, true} {
		c := w.browser(http2)
		for url, want := range map[string]string{
			"https://example.com/":                       "blog",
			"https://example.com/apix":                   "blog",
			"https://example.com/api":                    "api / localhost:3000",
			"https://example.com/api/users?a=1;b=2&c":    "api /users?a=1;b=2&c localhost:3000",
			"https://example.com/api/%C3%A9%7C?":         "api /%C3%A9%7C? localhost:3000",
			"https://example.com/api//evil.com":          "api /evil.com localhost:3000",
			"https://user1.example.com/api/x%2Fy?q=%zz":  "api /api/x%2Fy?q=%zz user1.example.com",
			"https://USER1.example.com:443/a%20b//c/../": "api /a%20b//c/../ user1.example.com:443",
			"https://both.example.com/":                  "plain",
		} {
			if status, body := get(t, c, url); status != 200 || body != want {
				t.Errorf("http2 %v: %s: %d %q; want %q", http2, url, status, body, want)
			}
		}
		for url, want := range map[string]int{
			"https://plain.example.com/":           404, // no TLS there
			"https://example.com/%2e%2e/api":       400,
			"https://example.com/api%2f..%2fadmin": 400,
		} {
			if status, _ := get(t, c, url); status != want {
				t.Errorf("http2 %v: %s: %d; want %d", http2, url, status, want)
			}
		}
	}
	c := w.browser(false)
	for url, want := range map[string]string{"http://plain.example.com/": "plain", "http://both.example.com/": "plain"} {
		if status, body := get(t, c, url); status != 200 || body != want {
			t.Errorf("%s: %d %q; want %q", url, status, body, want)
		}
	}
	// By the port that is listened on, to the one beside it; by any other, which
	// somebody maps here, to where their visitors' HTTPS is.
	_, plainPort, err := net.SplitHostPort(w.http)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"user1.example.com:" + plainPort: "https://user1.example.com:" + port + "/a%2Fb?c=d;e",
		"user1.example.com":              "https://user1.example.com/a%2Fb?c=d;e",
		"user1.example.com:8000":         "https://user1.example.com/a%2Fb?c=d;e",
	} {
		r, err := http.NewRequest("GET", "http://user1.example.com/a%2Fb?c=d;e", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 308 || resp.Header.Get("Location") != want {
			t.Errorf("redirect of %s: %d to %s; want %s", host, resp.StatusCode, resp.Header.Get("Location"), want)
		}
	}
	if status, _ := get(t, c, "http://unknown.org/"); status != 404 {
		t.Errorf("unknown host: %d; want 404", status)
	}
}

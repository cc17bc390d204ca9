package edge

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

const handshake = "GET /ws HTTP/1.1\r\nHost: h.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// echo is a service that speaks WebSocket as far as a proxy can tell: after the
// handshake it sends back what it gets.
func echo(rw http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		io.WriteString(rw, "no upgrade")
		return
	}
	c, in, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Hop\r\nUpgrade: websocket\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nAlt-Svc: h3=\":1\"\r\nX-Seen: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		r.Header.Get("X-Forwarded-For"), base64.StdEncoding.EncodeToString(sum[:]))
	io.Copy(c, in)
}

func webSocket(r *api.Route) { r.WebSocket = true }

func TestWebSocket(t *testing.T) {
	w := newWorld(t)
	w.serve("s", http.HandlerFunc(echo))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s", webSocket), to("closed.example.com", "s", plainHTTP), to("open.example.com", "s", plainHTTP, webSocket)))
	c := w.rawTLS(t, &tls.Config{ServerName: "h.example.com"})
	c.send(handshake)
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("X-Seen") != "127.0.0.1" {
		t.Fatalf("%v, %+v", err, resp)
	}
	for _, name := range []string{"X-Hop", "Keep-Alive", "Alt-Svc"} {
		if v := resp.Header.Get(name); v != "" {
			t.Errorf("the visitor saw %s: %s", name, v)
		}
	}
	if v := resp.Header["Connection"]; !slices.Equal(v, []string{"Upgrade"}) {
		t.Errorf("Connection: %q", v)
	}
	// Bytes that are no HTTP, both ways, longer than any buffer.
	sent := strings.Repeat("\x81\x00\r\n\n\xff", 20_000)
	go io.WriteString(c, sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c.in, got); err != nil || string(got) != sent {
		t.Fatalf("%v, %d bytes the same: %v", err, len(got), string(got) == sent)
	}

	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"route without WebSocket": {strings.Replace(handshake, "h.example.com", "closed.example.com", 1), 403},
		"unknown host":            {strings.Replace(handshake, "h.example.com", "nobody.example.com", 1), 404},
		"bad version":             {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "Version: 13", "Version: 8", 1), 426},
		"short key":               {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "dGhlIHNhbXBsZSBub25jZQ==", "dGhl", 1), 400},
		"no key":                  {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "Sec-WebSocket-Key", "X-Key", 1), 400},
		"POST":                    {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "GET", "POST", 1), 400},
		"with a body":             {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc", 1), 400},
		"no Connection":           {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "Connection: Upgrade\r\n", "", 1), 400},
		"two upgrades":            {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket", 1), 400},
		"HTTP/1.0":                {strings.Replace(strings.Replace(handshake, "h.example.com", "open.example.com", 1), "HTTP/1.1", "HTTP/1.0", 1), 400},
	} {
		c := w.raw(t)
		c.send(test.request + "GET /internal HTTP/1.1\r\nHost: open.example.com\r\n\r\n")
		status, _, _ := c.answer("GET")
		if status != test.status || !c.closed() {
			t.Errorf("%s: status %d; want %d and a closed connection", name, status, test.status)
		}
	}
}

// TestRefusedUpgrade: a service does not upgrade, and the visitor has sent on as if
// it had. What was sent must reach nobody.
func TestRefusedUpgrade(t *testing.T) {
	w := newWorld(t)
	var internal atomic.Int32
	answers := map[string]string{
		"426":              "HTTP/1.1 426 Upgrade Required\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nno",
		"200":              "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nno",
		"wrong accept":     "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
		"another protocol": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
	}
	w.serveRaw("s", func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if strings.HasPrefix(r.URL.Path, "/internal") {
				internal.Add(1)
			}
			answer, ok := answers[r.Header.Get("Case")]
			if !ok {
				answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
			}
			io.WriteString(c, answer)
		}
	})
	w.put(config(to("h.example.com", "s", plainHTTP, webSocket)))
	for name := range answers {
		want := map[string]int{"426": 426, "200": 200}[name]
		if want == 0 {
			want = 502
		}
		for range 50 {
			c := w.raw(t)
			c.send(strings.Replace(handshake, "\r\n\r\n", "\r\nCase: "+name+"\r\n\r\n", 1) + strings.Repeat("GET /internal HTTP/1.1\r\nHost: h.example.com\r\n\r\n", 3))
			if status, _, _ := c.answer("GET"); status != want || !c.closed() {
				t.Fatalf("%s: status %d; want %d and a closed connection", name, status, want)
			}
		}
	}
	// An unasked 101.
	c := w.raw(t)
	c.send("GET / HTTP/1.1\r\nHost: h.example.com\r\nCase: another protocol\r\n\r\n")
	if status, _, _ := c.answer("GET"); status != 502 {
		t.Errorf("a 101 nobody asked for: %d", status)
	}
	if n := internal.Load(); n != 0 {
		t.Errorf("the service got %d requests that were none", n)
	}
}

// TestWebSocketsOfRemovedRoutes end; those of routes that stay, or are renamed, do
// not.
func TestWebSocketsOfRemovedRoutes(t *testing.T) {
	w := newWorld(t)
	w.serve("s", http.HandlerFunc(echo))
	w.put(config(to("h.example.com", "s", plainHTTP, webSocket), to("i.example.com", "s", plainHTTP, webSocket)))
	open := func(host string) *raw {
		c := w.raw(t)
		c.send(strings.Replace(handshake, "h.example.com", host, 1))
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("%v, %+v", err, resp)
		}
		return c
	}
	alive := func(c *raw) bool {
		if _, err := io.WriteString(c, "ping"); err != nil {
			return false
		}
		_, err := io.ReadFull(c.in, make([]byte, 4))
		return err == nil
	}
	stays, goes := open("h.example.com"), open("i.example.com")
	next := func(revision string) api.Config {
		c := config(to("h.example.com", "s", plainHTTP, webSocket, func(r *api.Route) { r.Name = "renamed" }), to("j.example.com", "s", plainHTTP))
		c.Routes[0].From = revision
		return c
	}
	w.put(next("r2"))
	if !alive(stays) || !alive(goes) {
		t.Error("connections end at once; they have DrainTimeout")
	}
	again := open("h.example.com")
	w.put(config(to("h.example.com", "s", plainHTTP, webSocket), to("i.example.com", "s", plainHTTP, webSocket)))
	back := open("i.example.com")

	w.server.mu.Lock()
	w.server.drain = time.Millisecond
	w.server.mu.Unlock()
	w.put(next("r3"))
	if !back.closed() {
		t.Error("the connection of the removed route is open")
	}
	for range 5 {
		w.put(next(time.Now().String()))
	}
	if !alive(stays) || !alive(again) {
		t.Error("a connection of the route that stays is gone")
	}
}

// TestStreams: an answer reaches the visitor as the service sends it, trailers too.
func TestStreams(t *testing.T) {
	w := newWorld(t)
	next := make(chan struct{})
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "kokoa-edge") {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		rw.Header().Set("Trailer", "Sum")
		fmt.Fprintf(rw, "got %s", body)
		http.NewResponseController(rw).Flush()
		<-next
		io.WriteString(rw, ", end")
		rw.Header().Set("Sum", "sum"+r.Trailer.Get("X-Forwarded-For"))
	}))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s")))
	for _, h2 := range []bool{false, true} {
		r, err := http.NewRequest("POST", "https://h.example.com/", io.NopCloser(strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		r.Trailer = http.Header{"X-Forwarded-For": {"spoofed"}}
		resp, err := w.browser(h2).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len("got body"))
		if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "got body" {
			t.Fatalf("%q, %v", first, err)
		}
		next <- struct{}{}
		rest, err := io.ReadAll(resp.Body)
		if err != nil || string(rest) != ", end" || resp.Trailer.Get("Sum") != "sum" {
			t.Errorf("h2 %v: %q, %v, trailers %v", h2, rest, err, resp.Trailer)
		}
		resp.Body.Close()
	}
}

// TestFailover: the secondary serves when the primary is down, and the primary again
// when it is back, with nobody doing anything.
func TestFailover(t *testing.T) {
	w := newWorld(t)
	var sick atomic.Bool
	var checks atomic.Int32
	w.serve("one", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			checks.Add(1)
			if sick.Load() {
				rw.WriteHeader(500)
			}
			return
		}
		io.WriteString(rw, "one")
	}))
	w.serve("two", say("two"))
	both := func(r *api.Route) {
		plainHTTP(r)
		r.Upstreams = append(r.Upstreams, api.Upstream{Agent: "a2", Service: "two", URL: "http://localhost:3000"})
		r.Health.Path = "/health"
	}
	c := config(to("h.example.com", "one", both), to("i.example.com", "one", both))
	w.put(c)
	up := func(service string) *bool {
		s, err := w.server.State()
		if err != nil {
			t.Fatal(err)
		}
		for _, svc := range s.Services {
			if svc.Service == service {
				return svc.Up
			}
		}
		return nil
	}
	is := func(p *bool, want bool) bool { return p != nil && *p == want }
	eventually(t, "both are up", func() bool { return is(up("one"), true) && is(up("two"), true) })
	serves := func(want string) {
		t.Helper()
		if status, body := get(t, w.browser(false), "http://h.example.com/"); status != 200 || body != want {
			t.Errorf("%d %q; want %q", status, body, want)
		}
	}
	serves("one")
	sick.Store(true)
	eventually(t, "the primary is down", func() bool { return is(up("one"), false) })
	serves("two")
	// Health outlives configs: no visitor meets the sick one because of a swap.
	c.Routes[0].StripPath = true
	w.put(c)
	if !is(up("one"), false) {
		t.Error("a swap forgot that the primary is down")
	}
	serves("two")
	sick.Store(false)
	eventually(t, "the primary is back", func() bool { return is(up("one"), true) })
	serves("one")
	if s, _ := w.server.State(); len(s.Services) != 2 {
		t.Errorf("%d services are checked; want one check for each, not for each route", len(s.Services))
	}
}

// TestDialFailure: a service that cannot be reached before it was seen down costs no
// request, not even one with a body.
func TestDialFailure(t *testing.T) {
	w := newWorld(t)
	slow := func(r *api.Route) {
		plainHTTP(r)
		r.Upstreams = append(r.Upstreams, api.Upstream{Agent: "a2", Service: "two", URL: "http://localhost:3000"})
		r.Health.Interval = time.Hour
	}
	one := w.serve("one", say("one"))
	w.serve("two", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "two %s %v", body, err)
	}))
	w.put(config(to("h.example.com", "one", slow)))
	eventually(t, "both are up", func() bool {
		s := w.server.pool.State()
		return len(s) == 2 && s[0].Up != nil && s[1].Up != nil && *s[0].Up && *s[1].Up
	})
	one.Close()
	resp, err := w.browser(false).Post("http://h.example.com/", "text/plain", strings.NewReader("a body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "two a body <nil>" {
		t.Errorf("%q, %v", body, err)
	}
}

// TestAllDown: they are asked all the same, and then the visitor is told.
func TestAllDown(t *testing.T) {
	w := newWorld(t)
	s := w.serve("one", say("one"))
	w.put(config(to("h.example.com", "one", plainHTTP)))
	eventually(t, "up", func() bool { st := w.server.pool.State(); return len(st) == 1 && st[0].Up != nil && *st[0].Up })
	at := s.Listener.Addr().String()
	s.Close()
	eventually(t, "down", func() bool { return !*w.server.pool.State()[0].Up })
	if status, _ := get(t, w.browser(false), "http://h.example.com/"); status != 503 {
		t.Errorf("%d; want 503", status)
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	back := &httptest.Server{Listener: l, Config: &http.Server{Handler: say("back")}}
	back.Start()
	t.Cleanup(back.Close)
	if status, body := get(t, w.browser(false), "http://h.example.com/"); status != 200 || body != "back" {
		t.Errorf("%d %q; want 200 though it is not seen up yet", status, body)
	}
}

// TestBadAnswers of services are 502, and never the visitor's to read.
func TestBadAnswers(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	answer := ""
	w.serveRaw("s", func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			mu.Lock()
			text := answer
			mu.Unlock()
			io.WriteString(c, text)
		}
	})
	w.put(config(to("h.example.com", "s", plainHTTP)))
	for name, text := range map[string]string{
		"nothing":             "",
		"no HTTP":             "SSH-2.0-OpenSSH_9.6\r\n",
		"head of 80 KiB":      "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 80<<10) + "\r\n\r\n",
		"split header":        "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
		"never-ending 1xx":    strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 1000),
		"CL twice":            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\naa",
		"unknown encoding":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\naa",
		"a 101 nobody wanted": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		mu.Lock()
		answer = text
		mu.Unlock()
		c := w.raw(t)
		c.send("GET / HTTP/1.1\r\nHost: h.example.com\r\n\r\n")
		status := 0
		for n := 0; ; n++ {
			if status, _, _ = c.answer("GET"); status != 103 {
				break
			}
			if n > 10 {
				t.Fatalf("%s: more than 10 informational answers", name)
			}
		}
		if status != 502 {
			t.Errorf("%s: %d; want 502", name, status)
		}
	}
}

// TestServicesOverTLS: an https service is verified from the edge, under its own name.
func TestServicesOverTLS(t *testing.T) {
	w := newWorld(t)
	cert := w.ca.issue("svc", "svc.internal")
	pair, err := tls.X509KeyPair(cert.Chain, cert.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.TLS.ServerName+" "+r.Host) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	w.listen("s", s.Listener.Addr().String())
	url := func(u string) func(*api.Route) {
		return func(r *api.Route) { plainHTTP(r); r.Upstreams[0].URL = u; r.PreserveHost = false }
	}
	w.put(config(to("good.example.com", "s", url("https://svc.internal:8443")), to("bad.example.com", "s", url("https://other.internal:8443"))))
	if status, body := get(t, w.browser(false), "http://good.example.com/"); status != 200 || body != "svc.internal svc.internal:8443" {
		t.Errorf("%d %q", status, body)
	}
	if status, body := get(t, w.browser(false), "http://bad.example.com/"); status != 502 && status != 503 || strings.Contains(body, "internal") {
		t.Errorf("another name than the service's: %d %q", status, body)
	}
}

// TestTenantsShareNothing: two services with the same URL behind two agents never
// get each other's requests, whatever connections are kept.
func TestTenantsShareNothing(t *testing.T) {
	w := newWorld(t)
	w.serve("one", say("one"))
	w.serve("two", say("two"))
	w.put(config(to("one.example.com", "one", plainHTTP), to("two.example.com", "two", plainHTTP, func(r *api.Route) { r.Upstreams[0].Agent = "a2" })))
	var wg sync.WaitGroup
	for range 16 {
		c := w.browser(false)
		wg.Go(func() {
			for i := range 200 {
				want := []string{"one", "two"}[i%2]
				resp, err := c.Get("http://" + want + ".example.com/")
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(body) != want {
					t.Errorf("%s got %q, %v", want, body, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestChallenges are answered on the plain port, for hosts that redirect too, until
// they are taken away or their time is up.
func TestChallenges(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("the service's own"))
	w.put(config(to("h.example.com", "s"), to("i.example.com", "s", plainHTTP)))
	ctx := t.Context()
	must(t, w.control().PutChallenge(ctx, "tok-1", "tok-1.thumb"))
	must(t, w.control().PutChallenge(ctx, "tok-2", "tok-2.thumb"))
	at := func(host, token string) (int, string) {
		return get(t, w.browser(false), "http://"+host+"/.well-known/acme-challenge/"+token)
	}
	for _, host := range []string{"h.example.com", "not-yet.example.com"} {
		if status, body := at(host, "tok-1"); status != 200 || body != "tok-1.thumb" {
			t.Errorf("%s: %d %q", host, status, body)
		}
	}
	if status, _ := at("h.example.com", "tok-3"); status != 308 {
		t.Errorf("an unknown token: %d; want the usual redirect", status)
	}
	if status, body := at("i.example.com", "tok-3"); status != 200 || body != "the service's own" {
		t.Errorf("a service's own challenge: %d %q", status, body)
	}
	must(t, w.control().DeleteChallenge(ctx, "tok-1"))
	if status, _ := at("h.example.com", "tok-1"); status != 308 {
		t.Errorf("a deleted token: %d", status)
	}
	w.clock.advance(api.ChallengeLife)
	if status, _ := at("h.example.com", "tok-2"); status != 308 {
		t.Errorf("an old token: %d", status)
	}
	for _, bad := range [][2]string{{"tok", "other.thumb"}, {"a b", "a b.thumb"}, {"tok", "tok." + strings.Repeat("x", 600)}} {
		if err := w.control().PutChallenge(ctx, bad[0], bad[1]); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

// TestShutdown lets requests under way end.
func TestShutdown(t *testing.T) {
	w := newWorld(t)
	entered, release := w.serveWaiting("s")
	w.put(config(to("h.example.com", "s", plainHTTP)))
	got := make(chan string, 1)
	go func() {
		_, body := get(t, w.browser(false), "http://h.example.com/wait")
		got <- body
	}()
	<-entered
	w.stop()
	eventually(t, "no new connections", func() bool {
		c, err := new(net.Dialer).DialContext(context.Background(), "tcp", w.http)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(release)
	if body := <-got; body != "done" {
		t.Errorf("%q", body)
	}
	w.end()
}

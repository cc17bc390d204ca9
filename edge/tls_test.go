package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestUnknownNames: who asks for a name that is not here, or for none, is shown no
// certificate.
func TestUnknownNames(t *testing.T) {
	w := newWorld(t)
	w.secure("h.example.com", "*.wild.example.com")
	w.put(config())
	for _, name := range []string{"", "other.example.com", "wild.example.com", "a.b.wild.example.com", "example.com", "h.example.com.evil.org", "203.0.113.1"} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			shown := 0
			_, err := tls.Dial("tcp", w.https, &tls.Config{
				ServerName: name, InsecureSkipVerify: true, MaxVersion: version,
				VerifyConnection: func(s tls.ConnectionState) error { shown += len(s.PeerCertificates); return nil },
			})
			var alert tls.AlertError
			if !errors.As(err, &alert) && !strings.Contains(fmt.Sprint(err), "unrecognized name") || shown != 0 {
				t.Errorf("%q, version %x: %v, %d certificates shown; want unrecognized_name and none", name, version, err, shown)
			}
		}
	}
}

func TestTLSProfile(t *testing.T) {
	w := newWorld(t)
	w.secure("h.example.com")
	w.put(config())
	dial := func(c *tls.Config) (tls.ConnectionState, error) {
		c.ServerName, c.RootCAs = "h.example.com", w.roots
		conn, err := tls.Dial("tcp", w.https, c)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	if _, err := dial(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is taken")
	}
	if _, err := dial(&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}); err == nil {
		t.Error("a weak cipher suite is taken")
	}
	for _, group := range []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384} {
		if s, err := dial(&tls.Config{CurvePreferences: []tls.CurveID{group}}); err != nil || s.CurveID != group {
			t.Errorf("%v: %v, %v", group, s.CurveID, err)
		}
	}
	if _, err := dial(&tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP521}}); err == nil {
		t.Error("P-521 is taken")
	}
	for _, proto := range []string{"h2", "http/1.1"} {
		if s, err := dial(&tls.Config{NextProtos: []string{proto}}); err != nil || s.NegotiatedProtocol != proto {
			t.Errorf("%s: %q, %v", proto, s.NegotiatedProtocol, err)
		}
	}
}

// TestMisdirected asks for every host on a connection made for every other: only
// where one certificate covers both is there an answer.
func TestMisdirected(t *testing.T) {
	w := newWorld(t)
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.Host) }))
	groups := [][]string{{"a.example.com"}, {"b.example.com", "c.example.com"}, {"*.wild.example.com"}, {"d.example.org"}, {"e.example.net", "*.example.net"}}
	group := map[string]int{}
	var routes []api.Route
	for i, names := range groups {
		must(t, w.server.PutCertificate(w.ca.issue(fmt.Sprint("group", i), names...)))
		for _, n := range names {
			hosts := []string{n}
			if suffix, ok := strings.CutPrefix(n, "*."); ok {
				hosts = []string{"x." + suffix, "y." + suffix}
			}
			for _, h := range hosts {
				group[h] = i
			}
			routes = append(routes, to(n, "s"))
		}
	}
	w.put(config(routes...))
	cache := tls.NewLRUClientSessionCache(100)
	for name := range group {
		for _, h2 := range []bool{false, true} {
			for _, resumed := range []bool{false, true} {
				protocol := "http/1.1"
				if h2 {
					protocol = "h2"
				}
				dial := func() *tls.Conn {
					c, err := tls.Dial("tcp", w.https, &tls.Config{ServerName: name, RootCAs: w.roots, NextProtos: []string{protocol}, ClientSessionCache: cache})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
					return c
				}
				c := dial()
				ask := asker(t, c, h2)
				if status := ask(name); status != 200 {
					t.Fatalf("%s on its own connection: %d", name, status)
				}
				if resumed {
					c = dial()
					if !c.ConnectionState().DidResume {
						t.Fatalf("%s: the session was not resumed", name)
					}
					ask = asker(t, c, h2)
				}
				for host, g := range group {
					want := 421
					if g == group[name] {
						want = 200
					}
					if status := ask(host); status != want {
						t.Errorf("%s on a connection for %s (h2 %v, resumed %v): %d; want %d", host, name, h2, resumed, status, want)
					}
				}
				if status := ask("nobody.example.com"); status != 421 {
					t.Errorf("an unknown host on a connection for %s: %d", name, status)
				}
			}
		}
	}
}

// asker makes requests for hosts on one connection.
func asker(t *testing.T, c *tls.Conn, h2 bool) func(host string) int {
	if h2 {
		cc := overHTTP2(t, c)
		return func(host string) int {
			r, err := http.NewRequest("GET", "https://"+host+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := cc.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return resp.StatusCode
		}
	}
	r := newRaw(t, c)
	return func(host string) int {
		r.send("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		status, _, _ := r.answer("GET")
		return status
	}
}

// overHTTP2 takes requests for any host to one connection.
func overHTTP2(t *testing.T, c *tls.Conn) *http.ClientConn {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	tr := &http.Transport{Protocols: &protocols, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	cc, err := tr.NewClientConn(t.Context(), "https", c.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

// TestSessionsBelongToNames: a ticket for one name resumes nothing under another,
// nor once its name has no certificate.
func TestSessionsBelongToNames(t *testing.T) {
	w := newWorld(t)
	w.secure("a.example.com", "b.example.com")
	w.put(config(to("a.example.com", "s", plainHTTP)))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := &oneSession{}
		dial := func(name string) (bool, error) {
			c, err := tls.Dial("tcp", w.https, &tls.Config{ServerName: name, InsecureSkipVerify: true, ClientSessionCache: cache, MaxVersion: version, NextProtos: []string{"http/1.1"}})
			if err != nil {
				return false, err
			}
			defer c.Close()
			r := newRaw(t, c)
			r.send("GET / HTTP/1.1\r\nHost: " + name + "\r\n\r\n")
			r.answer("GET") // tickets of TLS 1.3 come before it
			return c.ConnectionState().DidResume, nil
		}
		if resumed, err := dial("a.example.com"); err != nil || resumed {
			t.Fatal(resumed, err)
		}
		if resumed, err := dial("a.example.com"); err != nil || !resumed {
			t.Errorf("version %x: under its own name: resumed %v, %v", version, resumed, err)
		}
		if resumed, err := dial("b.example.com"); err != nil || resumed {
			t.Errorf("version %x: under another name: resumed %v, %v", version, resumed, err)
		}
		if _, err := dial("a.example.com"); err != nil {
			t.Fatal(err)
		}
		must(t, w.server.DeleteCertificate("a.example.com"))
		if _, err := dial("a.example.com"); err == nil {
			t.Errorf("version %x: resumed without a certificate", version)
		}
		w.secure("a.example.com")
	}
}

// oneSession offers the last session it was given, under any name.
type oneSession struct{ last *tls.ClientSessionState }

func (s *oneSession) Get(string) (*tls.ClientSessionState, bool) { return s.last, s.last != nil }
func (s *oneSession) Put(_ string, c *tls.ClientSessionState) {
	if c != nil {
		s.last = c
	}
}

// TestRenewal: a renewed certificate is shown from the next connection on, and those
// that are open go on.
func TestRenewal(t *testing.T) {
	w := newWorld(t)
	w.serve("s", say("ok"))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s")))
	serial := func(c *tls.Conn) string { return c.ConnectionState().PeerCertificates[0].SerialNumber.String() }
	dial := func(proto string) *tls.Conn {
		c, err := tls.Dial("tcp", w.https, &tls.Config{ServerName: "h.example.com", RootCAs: w.roots, NextProtos: []string{proto}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	one, two := dial("http/1.1"), dial("h2")
	askOne, askTwo := asker(t, one, false), asker(t, two, true)
	first := serial(one)
	for i := range 5 {
		w.secure("h.example.com")
		if a, b := askOne("h.example.com"), askTwo("h.example.com"); a != 200 || b != 200 {
			t.Fatalf("renewal %d: the open connections answer %d and %d", i, a, b)
		}
		if now := serial(dial("http/1.1")); now == first {
			t.Errorf("renewal %d: the old certificate is shown", i)
		} else {
			first = now
		}
	}
	bad := w.ca.issue("h.example.com", "h.example.com")
	bad.Key = w.ca.issue("x", "x").Key
	if err := w.control().PutCertificate(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "private key does not match") {
		t.Errorf("a key of another certificate: %v", err)
	}
	if now := serial(dial("http/1.1")); now != first {
		t.Error("a bad certificate is shown")
	}
}

// TestHTTP2Requests sends over HTTP/2 what clients do not.
func TestHTTP2Requests(t *testing.T) {
	w := newWorld(t)
	var hits atomic.Int32
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.UserAgent(), "kokoa-edge") {
			hits.Add(1)
			io.Copy(io.Discard, r.Body)
			io.WriteString(rw, r.Method+" "+r.RequestURI)
		}
	}))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s"), to("h.example.com", "s", path("/admin"))))
	type f = hpack.HeaderField
	get := func(change map[string]string, more ...f) []f {
		pseudo := map[string]string{":method": "GET", ":scheme": "https", ":authority": "h.example.com", ":path": "/"}
		for k, v := range change {
			pseudo[k] = v
		}
		var fields []f
		for _, name := range []string{":method", ":scheme", ":authority", ":path"} {
			if v, ok := pseudo[name]; ok && v != "-" {
				fields = append(fields, f{Name: name, Value: v})
			}
		}
		return append(fields, more...)
	}
	many := func(n int) []f {
		var fields []f
		for i := range n {
			fields = append(fields, f{Name: fmt.Sprintf("a%d", i), Value: "b"})
		}
		return fields
	}
	// A status of 0 stands for a stream or connection that is reset.
	tests := []struct {
		name   string
		fields []f
		status int
	}{
		{"plain", get(nil), 200},
		{"no authority, but Host", get(map[string]string{":authority": "-"}, f{Name: "host", Value: "h.example.com"}), 200},
		{"no authority", get(map[string]string{":authority": "-"}), 400},
		{"authority empty", get(map[string]string{":authority": ""}), 400},
		{"authority with slash", get(map[string]string{":authority": "h.example.com/x"}), 400},
		{"authority with user", get(map[string]string{":authority": "u@h.example.com"}), 0},
		{"authority of another host", get(map[string]string{":authority": "other.example.com"}), 421},
		{"Host beside authority", get(nil, f{Name: "host", Value: "other.example.com"}), 400},
		{"path empty", get(map[string]string{":path": ""}), 0},
		{"path *", get(map[string]string{":method": "OPTIONS", ":path": "*"}), 400},
		{"path without slash", get(map[string]string{":path": "x"}), 0},
		{"path with encoded slash", get(map[string]string{":path": "/x%2fadmin"}), 400},
		{"path with dots", get(map[string]string{":path": "/x/../admin"}), 400},
		{"TRACE", get(map[string]string{":method": "TRACE"}), 405},
		{"CONNECT", []f{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "h.example.com"}}, 405},
		{"method in lower case", get(map[string]string{":method": "get"}), 400},
		{"transfer-encoding", get(nil, f{Name: "transfer-encoding", Value: "chunked"}), 0},
		{"connection", get(nil, f{Name: "connection", Value: "close"}), 0},
		{"te", get(nil, f{Name: "te", Value: "gzip"}), 0},
		{"upgrade", get(nil, f{Name: "upgrade", Value: "websocket"}), 0},
		{"name in upper case", get(nil, f{Name: "X-Upper", Value: "a"}), 0},
		{"CRLF in a value", get(nil, f{Name: "a", Value: "b\r\nc: d"}), 0},
		{"blank in a name", get(nil, f{Name: "a b", Value: "c"}), 0},
		{"colon in a name", get(nil, f{Name: "a:b", Value: "c"}), 0},
		{"content-length of more than comes", get(nil, f{Name: "content-length", Value: "5"}), 0},
		{"two content-lengths", get(nil, f{Name: "content-length", Value: "0"}, f{Name: "content-length", Value: "5"}), 0},
		{"300 fields", get(nil, many(300)...), 431},
		{"101 fields", get(nil, many(101)...), 431},
		{"17 KiB", get(nil, f{Name: "a", Value: strings.Repeat("b", 17<<10)}), 0},
		{"expect", get(nil, f{Name: "expect", Value: "y 100-continue"}), 417},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := hits.Load()
			status := http2Status(t, w, test.fields)
			if test.status == 0 && status >= 400 && status < 500 {
				status = 0 // refused one way or the other
			}
			if status != test.status {
				t.Errorf("status %d; want %d", status, test.status)
			}
			if n := hits.Load() - before; n != 0 && test.status != 200 {
				t.Errorf("the service got %d requests", n)
			}
		})
	}
}

// http2Status sends one request of the given fields; 0 is a reset.
func http2Status(t *testing.T, w *world, fields []hpack.HeaderField) int {
	t.Helper()
	c, err := tls.Dial("tcp", w.https, &tls.Config{ServerName: "h.example.com", RootCAs: w.roots, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewWriter(c)
	framer := http2.NewFramer(out, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.AllowIllegalWrites = true
	must(t, framer.WriteSettings())
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		must(t, enc.WriteField(f))
	}
	rest := block.String()
	first := min(len(rest), 16<<10)
	must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(rest[:first]), EndStream: true, EndHeaders: first == len(rest)}))
	for rest = rest[first:]; rest != ""; {
		n := min(len(rest), 16<<10)
		must(t, framer.WriteContinuation(1, n == len(rest), []byte(rest[:n])))
		rest = rest[n:]
	}
	must(t, out.Flush())
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return 0
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			status := 0
			fmt.Sscan(frame.PseudoValue("status"), &status)
			return status
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
	}
}

// TestResets: a client that gives up hundreds of requests is cut off.
func TestResets(t *testing.T) {
	w := newWorld(t)
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.UserAgent(), "kokoa-edge") {
			<-r.Context().Done()
		}
	}))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s")))
	c, err := tls.Dial("tcp", w.https, &tls.Config{ServerName: "h.example.com", RootCAs: w.roots, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cc := overHTTP2(t, c)
	for i := range 1000 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "GET", "https://h.example.com/", nil)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := cc.RoundTrip(r); err != nil && ctx.Err() == nil {
			if i < 200 {
				t.Errorf("cut off after %d", i)
			}
			cancel()
			return
		}
		cancel()
	}
	t.Error("1000 requests given up, and still connected")
}

// TestSlowHandshake and slow heads hold no connection for long.
func TestStalledClients(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	conns := map[string]net.Conn{}
	for name, at := range map[string]string{"handshake": w.https, "head": w.http} {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(15*time.Second)))
		conns[name] = c
	}
	io.WriteString(conns["head"], "GET / HTTP/1.1\r\nHost: h")
	io.WriteString(conns["handshake"], "\x16\x03\x01")
	for name, c := range conns {
		var timeout net.Error
		if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: still open after 15 s", name)
		}
	}
}

package edge

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

// raw is a connection on which a test writes what no client would.
type raw struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (w *world) raw(t *testing.T) *raw {
	t.Helper()
	c, err := net.Dial("tcp", w.http)
	if err != nil {
		t.Fatal(err)
	}
	return newRaw(t, c)
}

func (w *world) rawTLS(t *testing.T, config *tls.Config) *raw {
	t.Helper()
	config.RootCAs = w.roots
	c, err := tls.Dial("tcp", w.https, config)
	if err != nil {
		t.Fatal(err)
	}
	return newRaw(t, c)
}

func newRaw(t *testing.T, c net.Conn) *raw {
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &raw{t, c, bufio.NewReader(c)}
}

func (r *raw) send(bytes string) {
	r.t.Helper()
	if _, err := io.WriteString(r.Conn, bytes); err != nil {
		r.t.Fatal(err)
	}
}

// answer is a status, headers and a body; status 0 says that the connection ended.
func (r *raw) answer(method string) (int, http.Header, string) {
	r.t.Helper()
	resp, err := http.ReadResponse(r.in, &http.Request{Method: method})
	if err != nil {
		return 0, nil, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, ""
	}
	return resp.StatusCode, resp.Header, string(body)
}

// closed reports whether nothing more comes.
func (r *raw) closed() bool {
	_, err := r.in.ReadByte()
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// TestMalformedRequests sends what RFC 9112 does not allow, and what services read
// in several ways. The service must get nothing of it.
func TestMalformedRequests(t *testing.T) {
	for _, routes := range []int{1, 101, 5000} {
		t.Run(fmt.Sprintf("%d routes", routes), func(t *testing.T) { malformed(t, routes) })
	}
}

func malformed(t *testing.T, routes int) {
	w := newWorld(t)
	var hits, whole atomic.Int32
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			whole.Add(1)
		}
		io.WriteString(rw, "ok "+r.Header.Get("Canary"))
	}))
	// Checked once each: the service is to count what comes from visitors.
	slow := func(r *api.Route) { plainHTTP(r); r.Health.Interval = time.Hour }
	list := []api.Route{to("h.example.com", "s", slow)}
	for i := 1; i < routes; i++ {
		list = append(list, to(fmt.Sprintf("h%d.example.org", i), "s", slow))
	}
	w.put(config(list...))
	eventually(t, "the check has been made", func() bool {
		s := w.server.pool.State()
		return len(s) == 1 && s[0].Up != nil
	})
	const host = "Host: h.example.com\r\n"
	head := func(lines string) string { return "POST / HTTP/1.1\r\n" + host + lines + "\r\n" }
	get := func(lines string) string { return "GET / HTTP/1.1\r\n" + host + lines + "\r\n" }
	fields := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "A%d: b\r\n", i)
		}
		return b.String()
	}
	tests := []struct {
		name, request string
		status        int
		// forwarded is whether the service gets the head; its body must then not be
		// taken for whole.
		forwarded bool
	}{
		{"CL then TE", head("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE then CL", head("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n") + "0\r\n\r\n", 400, false},
		{"TE xchunked", head("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE twice", head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE chunked, identity", head("Transfer-Encoding: chunked, identity\r\n") + "0\r\n\r\n", 400, false},
		{"TE identity", head("Transfer-Encoding: identity\r\n") + "0\r\n\r\n", 400, false},
		{"TE gzip, chunked", head("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE with blank before colon", head("Transfer-Encoding : chunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE with vertical tab", head("Transfer-Encoding: \x0bchunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE folded", head("Transfer-Encoding:\r\n chunked\r\n") + "0\r\n\r\n", 400, false},
		{"TE empty", head("Transfer-Encoding:\r\n") + "0\r\n\r\n", 400, false},
		{"TE in HTTP/1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, false},
		{"folded line", get("A: b\r\n c\r\n"), 400, false},
		{"folded with tab", get("A: b\r\n\tc\r\n"), 400, false},
		{"folded first line", "GET / HTTP/1.1\r\n " + host + "\r\n", 400, false},
		{"CL differing", head("Content-Length: 5\r\nContent-Length: 6\r\n") + "aaaaaa", 400, false},
		{"CL list", head("Content-Length: 5, 5\r\n") + "aaaaa", 400, false},
		{"CL plus", head("Content-Length: +5\r\n") + "aaaaa", 400, false},
		{"CL hex", head("Content-Length: 0x5\r\n") + "aaaaa", 400, false},
		{"CL minus", head("Content-Length: -1\r\n"), 400, false},
		{"CL underscore", head("Content-Length: 5_0\r\n") + "aaaaa", 400, false},
		{"CL empty", head("Content-Length:\r\n"), 400, false},
		{"CL too long", head("Content-Length: 9999999999999999999999\r\n"), 400, false},
		{"chunk size 0x5", head("Transfer-Encoding: chunked\r\n") + "0x5\r\naaaaa\r\n0\r\n\r\n", 400, true},
		{"chunk size +5", head("Transfer-Encoding: chunked\r\n") + "+5\r\naaaaa\r\n0\r\n\r\n", 400, true},
		{"chunk size then blank", head("Transfer-Encoding: chunked\r\n") + "5 \r\naaaaa\r\n0\r\n\r\n", 400, true},
		{"chunk size with bare LF", head("Transfer-Encoding: chunked\r\n") + "5\naaaaa\r\n0\r\n\r\n", 400, true},
		{"chunk extension with bare LF", head("Transfer-Encoding: chunked\r\n") + "5;a=b\naaaaa\r\n0\r\n\r\n", 400, true},
		{"chunk without CRLF", head("Transfer-Encoding: chunked\r\n") + "5\r\naaaaa0\r\n\r\n", 400, true},
		{"chunk end with bare LF", head("Transfer-Encoding: chunked\r\n") + "5\r\naaaaa\n0\r\n\r\n", 400, true},
		{"chunk size too long", head("Transfer-Encoding: chunked\r\n") + "0000000000000005\r\naaaaa\r\n0\r\n\r\n", 400, true},
		{"trailer that frames", head("Transfer-Encoding: chunked\r\n") + "0\r\nContent-Length: 5\r\n\r\n", 400, true},
		{"trailer folded", head("Transfer-Encoding: chunked\r\n") + "0\r\nA: b\r\n c\r\n\r\n", 400, true},
		{"bare LF lines", "GET / HTTP/1.1\nHost: h.example.com\n\n", 400, false},
		{"bare LF after a field", "GET / HTTP/1.1\r\n" + host + "A: b\nC: d\r\n\r\n", 400, false},
		{"bare LF at the end", "GET / HTTP/1.1\r\n" + host + "\n", 400, false},
		{"bare CR in a value", get("A: b\rc\r\n"), 400, false},
		{"NUL in a value", get("A: b\x00c\r\n"), 400, false},
		{"NUL in the target", "GET /\x00 HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"blank in a name", get("A B: c\r\n"), 400, false},
		{"blank before the method", " GET / HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"empty line first", "\r\nGET / HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"two blanks", "GET  / HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"empty name", get(": b\r\n"), 400, false},
		{"no colon", get("Ab\r\n"), 400, false},
		{"fragment", "GET /#a HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"bad escape", "GET /%zz HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"version 1.2", "GET / HTTP/1.2\r\n" + host + "\r\n", 400, false},
		{"version 2.0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, false},
		{"version lower case", "GET / http/1.1\r\n" + host + "\r\n", 400, false},
		{"HTTP/0.9", "GET /\r\n", 400, false},
		{"TLS to the plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, false},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400, false},
		{"two Hosts", "GET / HTTP/1.1\r\n" + host + "Host: other.example.com\r\n\r\n", 400, false},
		{"Host a,b", "GET / HTTP/1.1\r\nHost: h.example.com,b\r\n\r\n", 400, false},
		{"Host a@b", "GET / HTTP/1.1\r\nHost: a@h.example.com\r\n\r\n", 400, false},
		{"Host a/x", "GET / HTTP/1.1\r\nHost: h.example.com/x\r\n\r\n", 400, false},
		{"Host empty", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, false},
		{"Host not ASCII", "GET / HTTP/1.1\r\nHost: h\xc3\xa9.example.com\r\n\r\n", 400, false},
		{"Host with bad port", "GET / HTTP/1.1\r\nHost: h.example.com:x\r\n\r\n", 400, false},
		{"Host with two dots", "GET / HTTP/1.1\r\nHost: h.example.com..\r\n\r\n", 400, false},
		{"absolute target with user", "GET http://u@h.example.com/ HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"absolute target elsewhere", "GET http://other.example.com/ HTTP/1.1\r\n" + host + "\r\n", 404, false},
		{"target *", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"TRACE", "TRACE / HTTP/1.1\r\n" + host + "\r\n", 405, false},
		{"TRACK", "TRACK / HTTP/1.1\r\n" + host + "\r\n", 405, false},
		{"CONNECT", "CONNECT h.example.com:80 HTTP/1.1\r\nHost: h.example.com:80\r\n\r\n", 405, false},
		{"method in lower case", "get / HTTP/1.1\r\n" + host + "\r\n", 400, false},
		{"Expect unknown", head("Expect: y 100-continue\r\nContent-Length: 1\r\n") + "a", 417, false},
		{"Expect other", head("Expect: 200-ok\r\nContent-Length: 1\r\n") + "a", 417, false},
		{"head of 17 KiB", get("A: " + strings.Repeat("b", 17<<10) + "\r\n"), 431, false},
		{"target of 17 KiB", "GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1\r\n" + host + "\r\n", 431, false},
		{"101 fields", get(fields(100)), 431, false},
		{"300 fields", get(fields(300)), 431, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before, wholeBefore := hits.Load(), whole.Load()
			c := w.raw(t)
			c.send(test.request)
			status, _, _ := c.answer("POST")
			// Where the head was forwarded already, the connection may be cut instead.
			if status != test.status && !(test.forwarded && status == 0) {
				t.Errorf("status %d; want %d", status, test.status)
			}
			if status == 400 && !strings.Contains(test.name, "Host") && !strings.Contains(test.name, "target") && !c.closed() {
				t.Error("the connection is still open")
			}
			if n := hits.Load() - before; n != 0 && !test.forwarded {
				t.Errorf("the service got %d requests", n)
			}
			if whole.Load() != wholeBefore {
				t.Error("the service took the body for whole")
			}
		})
	}
	// Whatever was sent, the pool is clean: every answer is to its own request.
	for i := range 100 {
		c := w.raw(t)
		for j := range 2 {
			canary := strconv.Itoa(i*10 + j)
			c.send(get("Canary: " + canary + "\r\n"))
			if status, _, body := c.answer("GET"); status != 200 || body != "ok "+canary {
				t.Fatalf("canary %s: %d %q", canary, status, body)
			}
		}
	}
	allowed := []struct{ name, request string }{
		{"CL twice the same", head("Content-Length: 2\r\nContent-Length: 2\r\n") + "aa"},
		{"chunks", head("Transfer-Encoding: Chunked\r\n") + "3\r\naaa\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nTrailer-Field: x\r\n\r\n"},
		{"100 fields", get(fields(99))},
		{"head just under 16 KiB", get("A: " + strings.Repeat("b", 16<<10-100) + "\r\n")},
		{"Expect", head("Expect: 100-continue\r\nContent-Length: 1\r\n") + "a"},
		{"Host with port, dot, capitals", "GET / HTTP/1.1\r\nHost: H.Example.COM.:80\r\n\r\n"},
		{"absolute target", "GET http://h.example.com/ HTTP/1.1\r\n" + host + "\r\n"},
		{"blanks around a value", get("A: \t b \t \r\n")},
		{"method with a dash", "M-SEARCH / HTTP/1.1\r\n" + host + "\r\n"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n" + host + "\r\n"},
		{"upgrade to h2c is no upgrade", get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")},
	}
	for _, test := range allowed {
		t.Run(test.name, func(t *testing.T) {
			c := w.raw(t)
			c.send(test.request)
			status, _, body := c.answer("POST")
			if status == 100 {
				status, _, body = c.answer("POST")
			}
			if status != 200 || body != "ok " {
				t.Fatalf("%d %q", status, body)
			}
			if test.name == "HTTP/1.0" {
				return
			}
			c.send(get("Canary: next\r\n"))
			if status, _, body := c.answer("GET"); status != 200 || body != "ok next" {
				t.Errorf("the next request: %d %q", status, body)
			}
		})
	}
}

// TestEarlyAnswer: a service answers before the request's body has come, and leaves
// it unread. Nobody else's request may meet what is left.
func TestEarlyAnswer(t *testing.T) {
	w := newWorld(t)
	w.serveRaw("s", func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			// The body stays on the connection.
			body := "early " + r.Header.Get("Canary")
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	w.put(config(to("h.example.com", "s", plainHTTP)))
	for i := range 40 {
		c := w.raw(t)
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: h.example.com\r\nCanary: p%d\r\nContent-Length: 100\r\n\r\n", i))
		if status, _, body := c.answer("POST"); status != 200 || body != fmt.Sprintf("early p%d", i) {
			t.Fatalf("answer %d: %d %q", i, status, body)
		}
		other := w.raw(t)
		other.send(fmt.Sprintf("GET / HTTP/1.1\r\nHost: h.example.com\r\nCanary: g%d\r\n\r\n", i))
		if status, _, body := other.answer("GET"); status != 200 || body != fmt.Sprintf("early g%d", i) {
			t.Fatalf("another's answer %d: %d %q", i, status, body)
		}
	}
}

// TestHeaders: services see what the edge says of a visitor, and nothing that the
// visitor says of itself.
func TestHeaders(t *testing.T) {
	w := newWorld(t)
	seen := make(chan *http.Request, 1)
	w.serve("s", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "kokoa-edge") {
			return
		}
		seen <- r
		h := rw.Header()
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "1")
		h.Set("Keep-Alive", "timeout=5")
		h.Set("Proxy-Authenticate", "Basic")
		h.Set("X-Stays", "1")
	}))
	w.secure("h.example.com")
	w.put(config(to("h.example.com", "s")))

	claims := []string{
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded-Ssl",
		"X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Original-URL", "X-Rewrite-URL", "Proxy",
		"X-Original-Host", "X-Request-Id", "Fastly-Client-IP", "Front-End-Https",
	}
	var spoofed strings.Builder
	for _, name := range claims {
		for _, form := range []string{name, strings.ToLower(name), strings.ReplaceAll(name, "-", "_"), strings.ReplaceAll(name, "-", ".")} {
			if form != name || strings.Contains(name, "-") {
				fmt.Fprintf(&spoofed, "%s: spoofed\r\n", form)
			}
		}
	}
	for _, part := range strings.SplitAfter(spoofed.String(), "\r\n") {
		if part == "" {
			continue
		}
		c := w.rawTLS(t, &tls.Config{ServerName: "h.example.com"})
		c.send("GET / HTTP/1.1\r\nHost: h.example.com\r\n" + part + part + "X-Auth: mine\r\nX-Drop: 1\r\nConnection: close, X-Drop, X-Forwarded-For\r\nKeep-Alive: 1\r\nTE: trailers\r\n\r\n")
		status, answer, _ := c.answer("GET")
		if status != 200 {
			t.Fatalf("%q: status %d", part, status)
		}
		r := <-seen
		for name, values := range r.Header {
			for _, v := range values {
				if strings.Contains(v, "spoofed") {
					t.Errorf("%q came through as %s: %s", part, name, v)
				}
			}
		}
		for name, want := range map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "h.example.com",
			"X-Auth": "mine", "X-Drop": "", "Keep-Alive": "", "Connection": "",
		} {
			if got := strings.Join(r.Header[http.CanonicalHeaderKey(name)], "|"); got != want {
				t.Errorf("%q: the service saw %s %q; want %q", part, name, got, want)
			}
		}
		if r.Header.Get("X-Request-Id") == "" {
			t.Error("the service saw no request id")
		}
		for _, name := range []string{"Alt-Svc", "X-Hop", "Keep-Alive", "Proxy-Authenticate"} {
			if v := answer.Get(name); v != "" {
				t.Errorf("the visitor saw %s: %s", name, v)
			}
		}
		if answer.Get("X-Stays") != "1" {
			t.Error("a header of the service's was lost")
		}
	}
}

// TestErrorPages are short, the same for the same status, and have an id under which
// the log has the cause.
func TestErrorPages(t *testing.T) {
	w := newWorld(t)
	w.listen("gone", "127.0.0.1:1")
	w.put(config(to("h.example.com", "gone", plainHTTP)))
	eventually(t, "the service is seen down", func() bool {
		s := w.server.pool.State()
		return len(s) == 1 && s[0].Up != nil && !*s[0].Up
	})
	c := w.raw(t)
	c.send("GET /secret-path HTTP/1.1\r\nHost: h.example.com\r\nAccept: text/html\r\n\r\n")
	status, h, body := c.answer("GET")
	id := h.Get("X-Request-Id")
	if status != 503 || id == "" || !strings.Contains(body, id) || !strings.Contains(body, "<html") || h.Get("Retry-After") == "" {
		t.Errorf("%d %v %q", status, h, body)
	}
	if strings.Contains(body, "refused") || strings.Contains(body, "127.0.0.1") || strings.Contains(body, "secret-path") || strings.Contains(body, "gone") {
		t.Errorf("the page tells too much: %q", body)
	}
	eventually(t, "the cause is in the log", func() bool {
		for line := range strings.Lines(w.log.String()) {
			if strings.Contains(line, id) && strings.Contains(line, "refused") && strings.Contains(line, "route=h-example-com") {
				return true
			}
		}
		return false
	})
	c.send("HEAD / HTTP/1.1\r\nHost: nobody.example.com\r\n\r\n")
	if status, _, body := c.answer("HEAD"); status != 404 || body != "" {
		t.Errorf("%d %q; want 404 and no body", status, body)
	}
}

// TestRefusedBody: who is refused is not waited for, though the body is still to come.
func TestRefusedBody(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	for range 3 {
		c := w.raw(t)
		c.send("POST / HTTP/1.1\r\nHost: nobody.example.com\r\nContent-Length: 1000\r\n\r\nhalf")
		if status, _, _ := c.answer("POST"); status != 404 {
			t.Errorf("%d; want 404", status)
		}
		if !c.closed() {
			t.Error("the connection is open")
		}
	}
}

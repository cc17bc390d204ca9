package front

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// stub is a connection that only has bytes to read.
type stub struct {
	net.Conn
	io.Reader
}

func (s stub) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// through is what a guard lets through, with what error.
func through(r io.Reader) (string, error) {
	b, err := io.ReadAll(newGuard(stub{Reader: r}, nil))
	return string(b), err
}

const good = "POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" +
	"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n1F\r\n0123456789012345678901234567890\r\n0\r\nA: b\r\n\r\n" +
	"GET / HTTP/1.0\r\n\r\n" +
	"GET /ws HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n\x81\x00 anything \n\r"

func TestGuardPasses(t *testing.T) {
	for name, r := range map[string]io.Reader{
		"at once":      strings.NewReader(good),
		"byte by byte": iotest.OneByteReader(strings.NewReader(good)),
		"in halves":    iotest.HalfReader(strings.NewReader(good)),
	} {
		if got, err := through(r); err != nil || got != good {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestGuardPoisons cuts a bad byte into every place of good requests: net/http must
// get a request that it refuses, or a body that ends in an error.
func TestGuardPoisons(t *testing.T) {
	requests := good[:strings.Index(good, "GET /ws")]
	for i := range requests {
		for _, bad := range []string{"\x00", "\n", "\r"} {
			in := requests[:i] + bad + requests[i:]
			// Inside of a body every byte is as good as another: there the request
			// after it begins at the wrong byte, and must be refused.
			if got, err := through(strings.NewReader(in)); err == nil && !strings.HasSuffix(got, poison) {
				t.Errorf("%q at %d passed", bad, i)
			}
		}
	}
}

// FuzzGuard: net/http reads from a guarded connection either what it reads from the
// bare one, or less. And what it reads, a strict reader reads in the same way.
func FuzzGuard(f *testing.F) {
	f.Add([]byte(good), 7)
	f.Add([]byte("GET / HTTP/1.1\nHost: h\n\n"), 1)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 3)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"), 100)
	f.Add([]byte("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n"), 5)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		passed, err := through(&stepReader{data, max(step, 1)})
		clean := strings.TrimSuffix(passed, poison)
		if !bytes.HasPrefix(data, []byte(clean)) {
			t.Fatalf("%q became %q", data, passed)
		}
		if err != nil && !errors.Is(err, errBody) {
			t.Fatal(err)
		}
		guarded, bare := requests(strings.NewReader(passed)), requests(bytes.NewReader(data))
		if len(guarded) > len(bare) {
			t.Fatalf("%d requests out of %d: %q", len(guarded), len(bare), data)
		}
		for i, r := range guarded {
			if r != bare[i] {
				t.Fatalf("request %d is %+v; without the guard %+v", i, r, bare[i])
			}
		}
	})
}

type stepReader struct {
	data []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.data[:min(r.step, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}

type request struct{ method, target, host, body string }

// requests are the whole requests that net/http reads, up to the first upgrade.
func requests(r io.Reader) []request {
	var list []request
	in := bufio.NewReader(r)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return list
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return list
		}
		list = append(list, request{req.Method, req.RequestURI, req.Host, string(body)})
		for _, v := range req.Header["Upgrade"] {
			if strings.EqualFold(v, "websocket") {
				return list
			}
		}
	}
}

// TestGuardKeepsDeadlines: an error of the connection's is passed on, and reading
// can go on after it.
func TestGuardKeepsDeadlines(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	g := newGuard(there, nil)
	if err := g.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := g.Read(make([]byte, 10)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v; want a timeout", err)
	}
	if err := g.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(here, "GET / HTTP/1.1\r\n")
	b := make([]byte, 100)
	if n, err := g.Read(b); err != nil || string(b[:n]) != "GET / HTTP/1.1\r\n" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func BenchmarkGuard(b *testing.B) {
	head := "GET /some/path?with=query HTTP/1.1\r\nHost: blog.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: text/html,application/xhtml+xml\r\nAccept-Encoding: gzip, deflate, br\r\nCookie: a=b; c=d\r\n\r\n"
	b.SetBytes(int64(len(head)))
	g := newGuard(nil, nil)
	data := []byte(head)
	for b.Loop() {
		if g.pass(data) != len(data) {
			b.Fatal("refused")
		}
	}
}

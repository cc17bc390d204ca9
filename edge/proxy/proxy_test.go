package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/edge/services"
)

func TestStripped(t *testing.T) {
	for _, test := range []struct {
		path string
		n    int
		want string
	}{
		{"/api/users", 1, "/users"}, {"/api", 1, "/"}, {"/api/", 1, "/"}, {"/api/v2/x", 2, "/x"}, {"/api/v2", 2, "/"},
		{"/api//evil.com", 1, "/evil.com"}, {"/%61pi/a%2Fb", 1, "/a%2Fb"}, {"/", 1, "/"}, {"/a/b/", 1, "/b/"},
	} {
		if got := stripped(test.path, test.n); got != test.want {
			t.Errorf("stripped(%q, %d) = %q; want %q", test.path, test.n, got, test.want)
		}
	}
}

func FuzzStripped(f *testing.F) {
	f.Add("/api//x", 1)
	f.Fuzz(func(t *testing.T, path string, n int) {
		if !strings.HasPrefix(path, "/") {
			return
		}
		got := stripped(path, n%5)
		if !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") {
			t.Errorf("stripped(%q, %d) = %q", path, n%5, got)
		}
	})
}

// TestFailure: what a visitor is told for what went wrong.
func TestFailure(t *testing.T) {
	gone, left := context.WithCancel(context.Background())
	left()
	for name, test := range map[string]struct {
		err    error
		change func(*exchange)
		status int
	}{
		"broken answer":       {io.ErrUnexpectedEOF, nil, 502},
		"late answer":         {os.ErrDeadlineExceeded, nil, 504},
		"late service":        {fmt.Errorf("%w: %w", services.ErrNotSent, context.DeadlineExceeded), func(x *exchange) { x.route.upstreams = up() }, 504},
		"not reached":         {services.ErrNotSent, func(x *exchange) { x.route.upstreams = up() }, 502},
		"all down":            {services.ErrNotSent, nil, 503},
		"none to ask":         {errAllDown, nil, 503},
		"route is gone":       {context.Canceled, func(x *exchange) { x.route.lease.End() }, 404},
		"visitor has left":    {context.Canceled, func(x *exchange) { x.in = x.in.WithContext(gone) }, 0},
		"answer has begun":    {io.ErrUnexpectedEOF, func(x *exchange) { x.w.begun = true }, 0},
		"body stood still":    {errors.New("x"), func(x *exchange) { x.body = &body{failed: os.ErrDeadlineExceeded} }, 408},
		"body was malformed":  {errors.New("x"), func(x *exchange) { x.body = &body{failed: io.ErrUnexpectedEOF} }, 400},
		"no end of the hints": {context.Canceled, func(x *exchange) { x.w.informational = maxInformational + 1 }, 502},
	} {
		ctx, end := context.WithCancel(context.Background())
		x := &exchange{
			in: httptest.NewRequest("GET", "/", nil), w: &response{ResponseWriter: httptest.NewRecorder()},
			route: &compiled{lease: &Lease{ctx, end}},
		}
		if test.change != nil {
			test.change(x)
		}
		if status, _ := x.failure(test.err); status != test.status {
			t.Errorf("%s: %d; want %d", name, status, test.status)
		}
		end()
	}
}

// up is a service that was not checked yet, and so is worth asking.
func up() []*services.Upstream {
	pool := services.New(nil, nil, nil)
	return []*services.Upstream{pool.Begin().Upstream(services.Service{}, httptest.NewRequest("GET", "http://h", nil).URL, api.Health{})}
}

// TestQuota: a service that is down fills no disk, and what was left out is counted.
func TestQuota(t *testing.T) {
	var q quota
	now := time.Unix(1000, 0)
	logged := 0
	for range 100 {
		if _, ok := q.allow(now); ok {
			logged++
		}
	}
	if logged != maxLogged {
		t.Errorf("%d lines in a second; want %d", logged, maxLogged)
	}
	if hidden, ok := q.allow(now.Add(time.Second)); !ok || hidden != 100-maxLogged {
		t.Errorf("the next second: %d, %v", hidden, ok)
	}
}

func TestGate(t *testing.T) {
	g := newGate()
	g.enter()
	g.enter()
	g.leave()
	g.Close()
	select {
	case <-g.Empty():
		t.Error("empty with one inside")
	default:
	}
	g.leave()
	<-g.Empty()
	g.enter() // one who was on the way
	g.leave()
}

func TestScrub(t *testing.T) {
	h := http.Header{}
	for _, name := range []string{"X-Forwarded-Anything", "Forwarded", "X-Real-IP", "A_B", "A.B", "Proxy", "X-Keep", "Authorization", "Cookie"} {
		h.Set(name, "v")
	}
	scrub(h)
	if len(h) != 3 || h.Get("X-Keep") == "" || h.Get("Authorization") == "" || h.Get("Cookie") == "" {
		t.Errorf("%v is left", h)
	}
}

// TestStalls runs with a clock of its own: a stream that takes nothing, or a body
// that does not come, ends in its time, and one that is merely slow does not.
func TestStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flow{pause: time.Hour}
		w := newResponse(f, &http.Request{ProtoMajor: 2}, nil)
		begin := time.Now()
		if _, err := w.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != streamTimeout {
			t.Errorf("a write that stands: %v after %v", err, time.Since(begin))
		}
		f = &flow{pause: streamTimeout - time.Second}
		w = newResponse(f, &http.Request{ProtoMajor: 2}, nil)
		for range 5 {
			if _, err := w.Write([]byte("x")); err != nil {
				t.Errorf("a slow write: %v", err)
			}
			time.Sleep(time.Hour) // the service says nothing, which it may
		}
		if f.deadline != (time.Time{}) {
			t.Error("a deadline was set on a stream that works")
		}

		f = &flow{pause: time.Hour}
		b := newBody(f, newResponse(f, &http.Request{ProtoMajor: 1}, nil))
		begin = time.Now()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) > bodyTimeout {
			t.Errorf("a body that stands: %v after %v", err, time.Since(begin))
		}
		if b.err() == nil || b.ends() {
			t.Error("the body is taken for whole")
		}
		f = &flow{pause: bodyTimeout / 3}
		b = newBody(f, newResponse(f, &http.Request{ProtoMajor: 1}, nil))
		for range 20 {
			if _, err := b.Read(make([]byte, 1)); err != nil {
				t.Errorf("a slow body: %v", err)
			}
		}
		f.end = true
		if _, err := b.Read(make([]byte, 1)); err != io.EOF || !b.ends() || !f.deadline.IsZero() {
			t.Errorf("%v, whole %v, deadline %v", err, b.ends(), f.deadline)
		}
		b.finish()
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Error("read after the request's end")
		}
	})
}

// flow is a slow way to or from a visitor, which heeds deadlines.
type flow struct {
	httptest.ResponseRecorder
	pause time.Duration
	end   bool

	mu       sync.Mutex
	deadline time.Time
	moved    chan struct{}
}

func (f *flow) SetWriteDeadline(at time.Time) error { return f.SetReadDeadline(at) }

func (f *flow) SetReadDeadline(at time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadline = at
	if f.moved != nil {
		close(f.moved)
		f.moved = nil
	}
	return nil
}

func (f *flow) wait() error {
	done := time.After(f.pause)
	for {
		f.mu.Lock()
		moved := make(chan struct{})
		f.moved = moved
		var late <-chan time.Time
		if !f.deadline.IsZero() {
			late = time.After(time.Until(f.deadline))
		}
		f.mu.Unlock()
		select {
		case <-done:
			return nil
		case <-late:
			return os.ErrDeadlineExceeded
		case <-moved:
		}
	}
}

func (f *flow) Write(p []byte) (int, error) { return len(p), f.wait() }

func (f *flow) Read(p []byte) (int, error) {
	if f.end {
		return 0, io.EOF
	}
	return len(p), f.wait()
}

func (f *flow) Close() error { return nil }

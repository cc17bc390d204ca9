package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

// TestChecks is what the local check makes of a service.
func TestChecks(t *testing.T) {
	mux := http.NewServeMux()
	answer := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
	}
	elsewhere := atomic.Int64{}
	mux.HandleFunc("/ok", answer(200))
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { elsewhere.Add(1) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	mux.HandleFunc("/broken", answer(503))
	mux.HandleFunc("/gone", answer(404))
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := fmt.Fprint(w, strings.Repeat("x", 64<<10)); err != nil {
				return
			}
		}
	})
	plain := httptest.NewServer(mux)
	defer plain.Close()
	private := httptest.NewTLSServer(mux)
	defer private.Close()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()

	for _, c := range []struct {
		name, url, health string
		want              string // "" is up, else a part of the error
	}{
		{"accepts", plain.URL, "", ""},
		{"answers", plain.URL, "/ok", ""},
		{"a redirect is an answer", plain.URL, "/moved", ""},
		{"a certificate of its own", private.URL, "/ok", ""},
		{"an endless answer", plain.URL, "/endless", ""},
		{"says it is broken", plain.URL, "/broken", "GET /broken answered 503 Service Unavailable"},
		{"does not know the path", plain.URL, "/gone", "GET /gone answered 404"},
		{"does not answer", plain.URL, "/hang", "deadline exceeded"},
		{"is not there", "http://" + nobody.Addr().String(), "", "connection refused"},
		{"is not there for HTTP", "http://" + nobody.Addr().String(), "/", "connection refused"},
		{"is not to be dialled", "http://169.254.169.254", "/", "refused by local policy: 169.254.169.254:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := newPolicy(nil, testNetwork)
			if err != nil {
				t.Fatal(err)
			}
			s, err := newService(api.AgentService{ID: "web", URL: c.url, Health: c.health, Interval: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			rtt, err := newChecker(p, slog.New(slog.DiscardHandler), func() {}).probe(t.Context(), s)
			switch {
			case c.want == "" && (err != nil || rtt <= 0):
				t.Errorf("%v after %v, want up", err, rtt)
			case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want) && !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want an error with %q", err, c.want)
			}
			if strings.Contains(c.want, "policy") != errors.Is(err, errPolicy) {
				t.Errorf("%v is errPolicy: %v", err, errors.Is(err, errPolicy))
			}
		})
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

// TestCheckerSees: a service that goes and comes is news each time, and one that
// is no longer declared is not checked any more.
func TestCheckerSees(t *testing.T) {
	var healthy atomic.Bool
	var asked atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if !healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	p, err := newPolicy(nil, testNetwork)
	if err != nil {
		t.Fatal(err)
	}
	news := make(chan struct{}, 100)
	c := newChecker(p, slog.New(slog.DiscardHandler), func() { news <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	defer c.wait()
	defer cancel()

	s := service{id: "web", url: web.URL, health: "/ok", interval: 20 * time.Millisecond}
	if s.target, err = serviceTarget(s.url); err != nil {
		t.Fatal(err)
	}
	if list := c.services(); len(list) != 0 {
		t.Errorf("before anything was declared: %v", list)
	}
	c.set(ctx, map[string]service{"web": s})
	for _, up := range []bool{false, true, false} {
		healthy.Store(up)
		deadline := time.After(10 * time.Second)
		for {
			if list := c.services(); len(list) == 1 && list[0].Up == up && list[0].Error != "not checked yet" {
				if up != (list[0].RTT > 0) || up != (list[0].Error == "") {
					t.Errorf("state %+v", list[0])
				}
				break
			}
			select {
			case <-news:
			case <-deadline:
				t.Fatalf("never up=%v: %+v", up, c.services())
			}
		}
	}
	kept := c.services()[0]
	c.set(ctx, map[string]service{"web": s})
	if got := c.services()[0]; got.Error != kept.Error {
		t.Errorf("a service that stays is %+v, was %+v", got, kept)
	}
	c.set(ctx, nil)
	if list := c.services(); len(list) != 0 {
		t.Errorf("still known: %v", list)
	}
	c.wait()
	before := asked.Load()
	c.set(ctx, nil)
	if after := asked.Load(); after != before {
		t.Error("still checked")
	}
}

// TestChecksAtOnce: a long list of slow services is not a burst.
func TestChecksAtOnce(t *testing.T) {
	var mu sync.Mutex
	now, most, seen := 0, 0, make(map[string]bool)
	all, gate := make(chan struct{}), make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	const count = 40
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		seen[r.URL.Path] = true
		if len(seen) == count {
			select {
			case <-all:
			default:
				close(all)
			}
		}
		if now == checksAtOnce {
			open()
		}
		mu.Unlock()
		// Whoever may come does, before the first leaves.
		<-gate
		mu.Lock()
		now--
		mu.Unlock()
	}))
	defer web.Close()
	p, err := newPolicy(nil, testNetwork)
	if err != nil {
		t.Fatal(err)
	}
	c := newChecker(p, slog.New(slog.DiscardHandler), func() {})
	ctx, cancel := context.WithCancel(t.Context())
	defer c.wait()
	defer cancel()
	services := make(map[string]service)
	for i := range count {
		s, err := newService(api.AgentService{ID: fmt.Sprint("s", i), URL: web.URL, Health: fmt.Sprint("/", i)})
		if err != nil {
			t.Fatal(err)
		}
		services[s.id] = s
	}
	c.set(ctx, services)
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Fatal("not every service was checked")
	}
	mu.Lock()
	defer mu.Unlock()
	if most > checksAtOnce {
		t.Errorf("%d checks at once, want at most %d", most, checksAtOnce)
	}
}

package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

var silent = slog.New(slog.DiscardHandler)

// TestHysteresis: three failures take a service down, two successes bring it back.
// The first check decides alone, but for a refusal: the agent may have yet to get the
// config, and has three seconds.
func TestHysteresis(t *testing.T) {
	down, refused := errors.New("down"), fmt.Errorf("check: %w", stream.ErrRefused)
	const interval = 10 * time.Second
	type step struct {
		err  error
		up   string // up, down or unknown
		next time.Duration
	}
	for name, steps := range map[string][]step{
		"up from the first": {{nil, "up", interval}, {nil, "up", interval}},
		"refused from the first": {
			{refused, "unknown", 50 * time.Millisecond}, {refused, "unknown", 100 * time.Millisecond}, {refused, "unknown", 200 * time.Millisecond},
			{refused, "unknown", 400 * time.Millisecond}, {refused, "unknown", 800 * time.Millisecond}, {refused, "unknown", 1600 * time.Millisecond},
			{refused, "down", time.Second}, {refused, "down", 2 * time.Second},
		},
		"down from the first":       {{down, "down", time.Second}, {down, "down", 2 * time.Second}, {down, "down", 4 * time.Second}, {down, "down", 8 * time.Second}, {down, "down", interval}, {nil, "up", interval}},
		"up once the agent knows":   {{refused, "unknown", 50 * time.Millisecond}, {nil, "up", interval}},
		"two failures are forgiven": {{nil, "up", interval}, {down, "up", interval}, {down, "up", interval}, {nil, "up", interval}, {down, "up", interval}, {down, "up", interval}},
		"three take it down":        {{nil, "up", interval}, {down, "up", interval}, {down, "up", interval}, {down, "down", interval}},
		"two bring it back":         {{nil, "up", interval}, {down, "up", interval}, {down, "up", interval}, {down, "down", interval}, {nil, "down", time.Second}, {nil, "up", interval}},
		"one is not enough":         {{nil, "up", interval}, {down, "up", interval}, {down, "up", interval}, {down, "down", interval}, {nil, "down", time.Second}, {down, "down", interval}, {nil, "down", time.Second}, {nil, "up", interval}},
	} {
		u := &Upstream{health: withDefaults(api.Health{})}
		u.usable.Store(true)
		for i, s := range steps {
			next := u.record(time.Millisecond, s.err, silent)
			state := u.State()
			got := "unknown"
			if state.Up != nil {
				got = map[bool]string{true: "up", false: "down"}[*state.Up]
			}
			if got != s.up || u.Usable() != (s.up != "down") || next != s.next {
				t.Errorf("%s, step %d: %s, usable %v, next in %v; want %s, %v", name, i, got, u.Usable(), next, s.up, s.next)
			}
			if (state.Error == "") != (s.err == nil) {
				t.Errorf("%s, step %d: error %q", name, i, state.Error)
			}
		}
	}
}

// fleet is services that answer with a status, or not at all.
type fleet struct {
	mu     sync.Mutex
	dials  map[string][]time.Time
	answer func(service string) (string, error)
}

func (f *fleet) dial(_ context.Context, _ netip.Addr, service string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials[service] = append(f.dials[service], time.Now())
	text, err := f.answer(service)
	if err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		if _, err := there.Read(make([]byte, 4096)); err == nil {
			io.WriteString(there, "HTTP/1.1 "+text+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	}()
	return here, nil
}

func (f *fleet) count(service string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dials[service])
}

func service(agent, id string) (Service, *url.URL) {
	return Service{Agent: agent, Address: netip.MustParseAddr("10.0.0.1"), ID: id, URL: "http://localhost:80"}, &url.URL{Scheme: "http", Host: "localhost:80"}
}

// TestChecks runs with a clock of its own: when services are checked, and when not
// any more.
func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string]string{"any": "500 Oops", "path": "500 Oops", "good": "200 OK"}
		f := &fleet{dials: map[string][]time.Time{}, answer: func(s string) (string, error) { return answers[s], nil }}
		p := New(f.dial, nil, silent)
		defer p.Close()
		change := p.Begin()
		add := func(agent, id string, h api.Health) *Upstream {
			s, u := service(agent, id)
			return change.Upstream(s, u, h)
		}
		anything := add("a", "any", api.Health{})
		path := add("a", "path", api.Health{Path: "/health"})
		good := add("a", "good", api.Health{Path: "/health", Interval: time.Minute})
		if again := add("a", "good", api.Health{Path: "/health", Interval: time.Minute}); again != good {
			t.Error("the same service, checked the same way, is there twice")
		}
		time.Sleep(time.Hour)
		if n := f.count("good"); n != 0 {
			t.Errorf("%d checks before the change was made", n)
		}
		change.Commit()
		time.Sleep(time.Second / 2)
		if !anything.Usable() || path.Usable() || !good.Usable() {
			t.Errorf("any answer %v, a bad status %v, a good one %v; want true, false, true", anything.Usable(), path.Usable(), good.Usable())
		}
		time.Sleep(time.Hour)
		if n := f.count("good"); n < 54 || n > 68 {
			t.Errorf("%d checks in an hour; want about 61", n)
		}
		// A suspicion is looked into soon, but not as often as it is had.
		before := f.count("good")
		for range 100 {
			good.Suspect()
			time.Sleep(20 * time.Millisecond)
		}
		if n := f.count("good") - before; n < 1 || n > 4 {
			t.Errorf("%d checks for 100 suspicions in 2 s", n)
		}
		if len(p.State()) != 3 {
			t.Errorf("%+v", p.State())
		}
		// The next config has one of them still, with its health.
		change = p.Begin()
		if kept := add("a", "path", api.Health{Path: "/health"}); kept != path || kept.Usable() {
			t.Error("the service was not kept as it was")
		}
		change.Commit()
		time.Sleep(time.Second)
		before = f.count("good")
		time.Sleep(time.Hour)
		if n := f.count("good") - before; n != 0 {
			t.Errorf("%d checks of a service that is gone", n)
		}
	})
}

// TestDeadAgent: checks of an agent that does not answer hold up nobody else's.
func TestDeadAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{dials: map[string][]time.Time{}}
		dial := func(ctx context.Context, a netip.Addr, id string) (net.Conn, error) {
			if id == "good" {
				return f.dial(ctx, a, id)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		f.answer = func(string) (string, error) { return "200 OK", nil }
		p := New(dial, nil, silent)
		defer p.Close()
		change := p.Begin()
		for i := range 1000 {
			s, u := service("dead", fmt.Sprint(i))
			change.Upstream(s, u, api.Health{})
		}
		s, u := service("alive", "good")
		good := change.Upstream(s, u, api.Health{})
		change.Commit()
		time.Sleep(time.Second)
		if state := good.State(); state.Up == nil || !*state.Up {
			t.Errorf("%+v; want it checked within a second", state)
		}
	})
}

// TestNotSent: what an agent refuses has reached nobody, and says so.
func TestNotSent(t *testing.T) {
	for _, refusal := range []error{stream.ErrRefused, stream.ErrServiceDown} {
		p := New(func(context.Context, netip.Addr, string) (net.Conn, error) {
			return refusing{refusal}, nil
		}, nil, silent)
		s, u := service("a", "x")
		up := p.Begin().Upstream(s, u, api.Health{})
		if _, err := up.check(t.Context()); !errors.Is(err, refusal) || !errors.Is(err, ErrNotSent) {
			t.Errorf("%v; want %v and ErrNotSent", err, refusal)
		}
		p.Close()
	}
}

// refusing is a stream that the agent has refused.
type refusing struct{ err error }

func (r refusing) Read([]byte) (int, error)         { return 0, r.err }
func (r refusing) Write(p []byte) (int, error)      { return len(p), nil }
func (r refusing) Close() error                     { return nil }
func (r refusing) LocalAddr() net.Addr              { return nil }
func (r refusing) RemoteAddr() net.Addr             { return nil }
func (r refusing) SetDeadline(time.Time) error      { return nil }
func (r refusing) SetReadDeadline(time.Time) error  { return nil }
func (r refusing) SetWriteDeadline(time.Time) error { return nil }

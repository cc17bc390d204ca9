package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

// Upstream is a service and its health.
type Upstream struct {
	Service
	// URL is Service.URL, parsed; read it only.
	URL *url.URL

	health    api.Health
	transport *http.Transport
	suspect   chan struct{}
	cancel    context.CancelFunc

	usable atomic.Bool // not known to be down

	mu    sync.Mutex
	state api.ServiceState
	// streak counts results in a row that contradict state.Up, beenUp is whether
	// the service was ever seen up, and misses how often it was not before;
	// refusals is how often the agent did not know it yet.
	streak, misses, refusals int
	beenUp                   bool
}

// RoundTrip sends one request to the service, whatever its health. The request's
// URL must have the scheme and host of u.URL. An error that is ErrNotSent says that
// the service got nothing of it.
func (u *Upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := u.transport.RoundTrip(r)
	if errors.Is(err, stream.ErrRefused) || errors.Is(err, stream.ErrServiceDown) {
		// The agent took the request and had nobody to give it to.
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	return resp, err
}

// Usable reports whether the service is up, or was not checked yet.
func (u *Upstream) Usable() bool { return u.usable.Load() }

// Suspect asks for a check soon, since a request could not be sent.
func (u *Upstream) Suspect() {
	select {
	case u.suspect <- struct{}{}:
	default:
	}
}

// State is the service as last checked.
func (u *Upstream) State() api.ServiceState {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.state
	s.Agent, s.Service, s.URL = u.Agent, u.ID, u.Service.URL
	return s
}

// What a config leaves out.
const (
	defaultInterval = 10 * time.Second
	defaultTimeout  = 5 * time.Second
	defaultFailures = 3
)

const (
	// comebacks is how many good checks in a row bring a service back that went
	// down, so that a flapping one does not take traffic with it each time.
	comebacks = 2
	// confirm is the time to the check that confirms a recovery. A service that was
	// never up is checked after this time, then twice, four times it and so on. The
	// interval is used where it is shorter.
	confirm = time.Second
	// settling is how many first checks in a row an agent may refuse before the
	// service is called down, firstRetry the time to the second; it doubles. Both
	// together are how long an agent may take to get the config that names the service:
	// 50 ms, 100 ms … 1.6 s, three seconds in all.
	settling   = 6
	firstRetry = 50 * time.Millisecond
	// checksAtOnce, per agent: a dead agent must not hold up the checks of another.
	checksAtOnce = 16
	// firstSpread, times their number, is the time over which first checks are
	// spread.
	firstSpread = 100 * time.Microsecond
	// maxDrain is how much of a check's answer is read to keep its connection.
	maxDrain = 64 << 10
)

func withDefaults(h api.Health) api.Health {
	if h.Interval == 0 {
		h.Interval = defaultInterval
	}
	if h.Timeout == 0 {
		h.Timeout = defaultTimeout
	}
	if h.Failures == 0 {
		h.Failures = defaultFailures
	}
	return h
}

// watch checks until ctx ends: for the first time within spread.
func (u *Upstream) watch(ctx context.Context, slots chan struct{}, spread time.Duration, log *slog.Logger) {
	next := time.NewTimer(rand.N(spread + 1))
	defer next.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		case <-u.suspect:
			if time.Since(last) < confirm {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		rtt, err := u.check(ctx)
		<-slots
		if ctx.Err() != nil {
			return
		}
		last = time.Now()
		wait := u.record(rtt, err, log)
		// Spread, so that services that were added together drift apart.
		next.Reset(wait - wait/10 + rand.N(wait/5+1))
	}
}

// check asks the service once: edge, tunnel, agent, service and back.
func (u *Upstream) check(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, u.health.Timeout)
	defer cancel()
	path := u.health.Path
	if path == "" {
		path = "/"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.URL.Scheme+"://"+u.URL.Host+path, nil)
	if err != nil {
		return 0, fmt.Errorf("check: %w", err)
	}
	r.Header.Set("User-Agent", "kokoa-edge health check")
	// Not kept: with thousands of services that would be thousands of connections
	// that nobody else uses.
	r.Close = true
	begin := time.Now()
	resp, err := u.RoundTrip(r)
	if err != nil {
		return 0, fmt.Errorf("check: %w", err)
	}
	rtt := time.Since(begin)
	io.CopyN(io.Discard, resp.Body, maxDrain)
	resp.Body.Close()
	if u.health.Path != "" && resp.StatusCode >= 400 {
		return 0, fmt.Errorf("check: GET %s answered %s", path, resp.Status)
	}
	return rtt, nil
}

// record takes one check's result and says when the next one is due.
func (u *Upstream) record(rtt time.Duration, err error, log *slog.Logger) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	ok := err == nil
	if ok {
		u.state.RTT, u.state.Error = rtt, ""
	} else {
		u.state.Error = err.Error()
	}
	known := u.state.Up != nil
	if !known && u.refusals < settling && errors.Is(err, stream.ErrRefused) {
		// A config has just named the service, and the agent may not have that
		// config yet. Nothing is concluded.
		u.refusals++
		return min(u.health.Interval, firstRetry<<(u.refusals-1))
	}
	if known && *u.state.Up == ok {
		u.streak = 0
	} else {
		u.streak++
	}
	need := 1
	switch {
	case known && !ok:
		need = u.health.Failures
	case known && u.beenUp:
		need = comebacks
	}
	if u.streak >= need {
		u.streak = 0
		u.beenUp = u.beenUp || ok
		u.state.Up, u.state.Since = &ok, time.Now()
		u.usable.Store(ok)
		if ok {
			log.Info("service came up", "agent", u.Agent, "service", u.ID, "took", rtt)
		} else {
			log.Warn("service went down", "agent", u.Agent, "service", u.ID, "err", err)
		}
	}
	switch {
	case *u.state.Up:
		return u.health.Interval
	case !u.beenUp:
		u.misses++
		return min(u.health.Interval, confirm<<min(u.misses-1, 10))
	case u.streak > 0:
		return min(u.health.Interval, confirm)
	}
	return u.health.Interval
}

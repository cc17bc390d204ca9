package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

const (
	// defaultInterval is between the checks of a service whose config names none.
	defaultInterval = 10 * time.Second
	// checkTimeout ends a check; a shorter interval ends it sooner.
	checkTimeout = 5 * time.Second
	// checksAtOnce keeps a long list of services from being a burst.
	checksAtOnce = 8
)

// checker checks the agent's services on this host, without a tunnel between,
// each at its own interval. It never touches forwarding. It is safe for
// concurrent use.
type checker struct {
	policy *policy
	log    *slog.Logger
	// changed is told when a service came up, went down, or gave another error.
	changed func()
	client  *http.Client
	slots   chan struct{}

	mu     sync.Mutex
	checks map[string]*check
	done   sync.WaitGroup
}

type check struct {
	service service
	stop    context.CancelFunc

	known bool
	up    bool
	rtt   time.Duration
	err   string
	// refused is whether err is the local policy's.
	refused bool
}

func newChecker(p *policy, log *slog.Logger, changed func()) *checker {
	c := &checker{policy: p, log: log, changed: changed, slots: make(chan struct{}, checksAtOnce), checks: make(map[string]*check)}
	c.client = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				t, err := parseTarget(address)
				if err != nil {
					return nil, err
				}
				return p.dial(ctx, t)
			},
			// Whether the service still accepts is part of the question.
			DisableKeepAlives: true,
			// Whose certificate it is, the edge verifies end to end; here only
			// an answer is wanted, and nothing secret is sent.
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
			MaxResponseHeaderBytes: 64 << 10,
		},
		// A redirect is an answer, and where it leads is not this service.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// set makes services the ones that are checked, until ctx ends. A service that
// stays keeps what is known of it.
func (c *checker) set(ctx context.Context, services map[string]service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, k := range c.checks {
		if services[id] != k.service {
			k.stop()
			delete(c.checks, id)
		}
	}
	for id, s := range services {
		if c.checks[id] != nil {
			continue
		}
		kctx, stop := context.WithCancel(ctx)
		k := &check{service: s, stop: stop}
		c.checks[id] = k
		c.done.Go(func() { c.watch(kctx, k) })
	}
}

// wait returns when the checks of an ended ctx have ended.
func (c *checker) wait() { c.done.Wait() }

// services lists what is known, by id.
func (c *checker) services() []api.LocalService {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]api.LocalService, 0, len(c.checks))
	for id, k := range c.checks {
		s := api.LocalService{ID: id, URL: k.service.url, Up: k.up, RTT: k.rtt, Error: k.err}
		if !k.known {
			s.Error = "not checked yet"
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b api.LocalService) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// refused lists the services that the local policy kept from being dialled.
func (c *checker) refused() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for id, k := range c.checks {
		if k.refused {
			list = append(list, "service "+id+": "+k.err)
		}
	}
	slices.Sort(list)
	return list
}

func (c *checker) watch(ctx context.Context, k *check) {
	defer k.stop()
	for {
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		rtt, err := c.probe(ctx, k.service)
		<-c.slots
		if ctx.Err() != nil {
			return
		}
		c.record(k, rtt, err)
		select {
		case <-time.After(jitter(k.service.interval)):
		case <-ctx.Done():
			return
		}
	}
}

func (c *checker) record(k *check, rtt time.Duration, err error) {
	text := ""
	if err != nil {
		text = shorten(err.Error())
	}
	c.mu.Lock()
	flipped := !k.known || k.up != (err == nil)
	news := flipped || k.err != text
	k.known, k.up, k.rtt, k.err, k.refused = true, err == nil, rtt, text, errors.Is(err, errPolicy)
	c.mu.Unlock()
	log := c.log.With("service", k.service.id, "addr", k.service.url)
	switch {
	case flipped && err != nil:
		log.Warn("service went down", "err", err)
	case flipped:
		log.Info("service came up", "took", rtt)
	}
	if news {
		c.changed()
	}
}

// probe asks the service once and says how long its answer took.
func (c *checker) probe(ctx context.Context, s service) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, min(checkTimeout, s.interval))
	defer cancel()
	start := time.Now()
	if s.health == "" {
		conn, err := c.policy.dial(ctx, s.target)
		if err != nil {
			return 0, err
		}
		took := time.Since(start)
		conn.Close()
		return took, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+s.health, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("User-Agent", "kokoa-agent health check")
	res, err := c.client.Do(req)
	if err != nil {
		return 0, plain(err)
	}
	took := time.Since(start)
	io.CopyN(io.Discard, res.Body, 64<<10)
	res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return 0, fmt.Errorf("GET %s answered %s", s.health, res.Status)
	}
	return took, nil
}

// plain is err without the HTTP client's request line around it.
func plain(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// jitter spreads d by a tenth to either side, so that many clocks started at one
// moment do not strike together for ever.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// shorten keeps one text from filling a heartbeat.
func shorten(text string) string {
	const limit = 300
	if len(text) > limit {
		return text[:limit] + "…"
	}
	return text
}

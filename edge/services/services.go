// Package services is what an edge knows of the services behind agents: how to
// reach each, and whether it is up. Both outlive configs.
package services

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

// Dial opens a stream to a service of the agent at a tunnel address.
type Dial func(ctx context.Context, agent netip.Addr, service string) (net.Conn, error)

// ErrNotSent is in the error of a request of which the service has got nothing, so
// that another one may be asked.
var ErrNotSent = errors.New("service not reached")

// Service is what makes two services the same. Nothing less may share connections:
// two tenants can use the same address and port behind their agents.
type Service struct {
	// Agent's name and tunnel address.
	Agent   string
	Address netip.Addr
	// ID in the agent's signed config.
	ID string
	// URL is "http://host:port" or "https://host:port".
	URL string
}

// Pool is the services of the live config. Make one with New.
type Pool struct {
	dial  Dial
	roots *x509.CertPool
	log   *slog.Logger

	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu         sync.Mutex
	upstreams  map[key]*Upstream
	transports map[Service]*http.Transport
	agents     map[string]chan struct{} // slots for checks under way
}

// key is a service as checked one way.
type key struct {
	service Service
	health  api.Health
}

// New makes an empty pool. Services with https URLs are verified against roots, or
// the system's where roots is nil.
func New(dial Dial, roots *x509.CertPool, log *slog.Logger) *Pool {
	ctx, stop := context.WithCancel(context.Background())
	return &Pool{
		dial: dial, roots: roots, log: log, ctx: ctx, stop: stop,
		upstreams:  map[key]*Upstream{},
		transports: map[Service]*http.Transport{},
		agents:     map[string]chan struct{}{},
	}
}

// Close ends all checks and idle connections.
func (p *Pool) Close() {
	p.stop()
	p.tasks.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}

// Change collects the services of a next config. Until Commit nothing has happened,
// and a Change that is dropped leaves nothing behind. Only one may be open at once.
type Change struct {
	pool       *Pool
	upstreams  map[key]*Upstream
	transports map[Service]*http.Transport
}

// Begin opens a change.
func (p *Pool) Begin() *Change {
	return &Change{p, map[key]*Upstream{}, map[Service]*http.Transport{}}
}

// Upstream is a service checked as h says. One that the pool has already comes with
// its connections and its health. parsed is s.URL.
func (c *Change) Upstream(s Service, parsed *url.URL, h api.Health) *Upstream {
	k := key{s, withDefaults(h)}
	if u := c.upstreams[k]; u != nil {
		return u
	}
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	u, transport := c.pool.upstreams[k], c.transports[s]
	if transport == nil {
		transport = c.pool.transports[s]
	}
	if transport == nil {
		transport = c.pool.transport(s, parsed)
	}
	if u == nil {
		u = &Upstream{Service: s, URL: parsed, health: k.health, transport: transport, suspect: make(chan struct{}, 1)}
		u.usable.Store(true)
	}
	c.upstreams[k], c.transports[s] = u, transport
	return u
}

// Commit begins to check what is new and ends the checks of what is gone. Requests
// under way to it end on their own.
func (c *Change) Commit() {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, u := range p.upstreams {
		if c.upstreams[k] == nil {
			u.cancel()
		}
	}
	for s, t := range p.transports {
		if c.transports[s] == nil {
			t.CloseIdleConnections()
		}
	}
	fresh := 0
	for k := range c.upstreams {
		if p.upstreams[k] == nil {
			fresh++
		}
	}
	agents := map[string]chan struct{}{}
	for k, u := range c.upstreams {
		slots := p.agents[k.service.Agent]
		if slots == nil {
			slots = agents[k.service.Agent]
		}
		if slots == nil {
			slots = make(chan struct{}, checksAtOnce)
		}
		agents[k.service.Agent] = slots
		if p.upstreams[k] == nil && p.ctx.Err() == nil {
			var ctx context.Context
			ctx, u.cancel = context.WithCancel(p.ctx)
			p.tasks.Go(func() { u.watch(ctx, slots, time.Duration(fresh)*firstSpread, p.log) })
		}
	}
	p.upstreams, p.transports, p.agents = c.upstreams, c.transports, agents
}

// Drain closes the connections to an agent's services that carry no request, since
// the agent is about to stop.
func (p *Pool) Drain(agent string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s, t := range p.transports {
		if s.Agent == agent {
			t.CloseIdleConnections()
		}
	}
}

// State lists the services as checked, by agent and service.
func (p *Pool) State() []api.ServiceState {
	p.mu.Lock()
	defer p.mu.Unlock()
	states := make([]api.ServiceState, 0, len(p.upstreams))
	for _, u := range p.upstreams {
		states = append(states, u.State())
	}
	slices.SortFunc(states, func(a, b api.ServiceState) int {
		return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Service, b.Service), cmp.Compare(a.URL, b.URL))
	})
	return states
}

const (
	// dialTimeout is how long a stream through the tunnel, and TLS on it, may take.
	dialTimeout = 5 * time.Second
	// keepIdle is shorter than the 5 s after which Node.js, the most impatient of
	// common servers, closes a kept connection: a request that is not repeatable
	// must not meet one that is just being closed.
	keepIdle = 4 * time.Second
	// answerTimeout is how long a service may take to begin its answer.
	answerTimeout = 2 * time.Minute
	maxAnswerHead = 64 << 10
)

func (p *Pool) transport(s Service, parsed *url.URL) *http.Transport {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		c, err := p.dial(ctx, s.Address, s.ID)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
		}
		return c, nil
	}
	config := &tls.Config{ServerName: parsed.Hostname(), RootCAs: p.roots, MinVersion: tls.VersionTLS12}
	return &http.Transport{
		DialContext: dial,
		// Done here and not by net/http, so that a failed handshake is known as one.
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			t := tls.Client(c, config)
			if err := t.HandshakeContext(ctx); err != nil {
				c.Close()
				return nil, fmt.Errorf("%w: TLS to %s: %w", ErrNotSent, parsed.Host, err)
			}
			return t, nil
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    256,
		IdleConnTimeout:        keepIdle,
		ResponseHeaderTimeout:  answerTimeout,
		MaxResponseHeaderBytes: maxAnswerHead,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         16 << 10,
	}
}

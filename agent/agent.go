// Package agent keeps WireGuard tunnels to every edge of a fleet and forwards
// what comes through them to the services of its host, and to nothing else: only
// those that config signed by the fleet declares and that the host's owner lets
// it dial. It needs no edge and no control plane to start, and it mends its
// tunnels by itself.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/program"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// Run is an agent's whole life. It opens one device, peers with every edge at
// once, obeys the config they relay when the fleet signed it, and forwards
// streams until ctx ends. Then it takes no new streams, lets those in flight go
// on for up to 10 s, and returns nil; without streams it returns at once.
//
// The error is not nil when b is incomplete, its data folder cannot be used, or
// the device cannot be opened at all. Everything that goes wrong later is logged
// and mended. A nil log discards.
func Run(ctx context.Context, b Bootstrap, log *slog.Logger) error {
	a, err := newAgent(b, log)
	if err != nil {
		return err
	}
	defer a.reports()()
	return a.run(ctx)
}

// agent is what outlives a device: the orders, the streams and what is known of
// the services.
type agent struct {
	bootstrap Bootstrap
	log       *slog.Logger
	pace      pace
	policy    *policy
	store     store
	places    places
	flows     *flows
	checks    *checker
	rotor     *rotor
	started   time.Time

	// What a test replaces.
	open    func(tunnel.Config) (tunnel.Device, error)
	connect func(tunnel.Device, api.AgentEdge) edgeClient
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	now     func() time.Time

	// orders are replaced whole, by obey only.
	orders atomic.Pointer[orders]
	// reordered wakes the session: the orders may name other edges.
	reordered chan struct{}
	session   atomic.Pointer[session]
	draining  atomic.Bool

	mu sync.Mutex
	// ctx ends the checks.
	ctx context.Context
	// unstored is why the last config was not saved, or nil; stale is why the
	// stored one was not used.
	unstored, stale error
	// tried is when the last attempt to save was made.
	tried   time.Time
	expired bool
}

func newAgent(b Bootstrap, log *slog.Logger) (*agent, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("start agent %s: %w", b.Name, err)
	}
	p, err := newPolicy(b.Allow, b.Network)
	if err != nil {
		return nil, fmt.Errorf("start agent %s: %w", b.Name, err)
	}
	a := &agent{
		bootstrap: b,
		log:       log.With("agent", b.Name),
		pace:      defaultPace,
		policy:    p,
		store:     store{dir: b.Data},
		places:    places{dir: b.Data},
		started:   time.Now(),
		open:      tunnel.Open,
		connect:   connect,
		lookup:    net.DefaultResolver.LookupNetIP,
		now:       time.Now,
		reordered: make(chan struct{}, 1),
	}
	a.orders.Store(&orders{})
	a.flows = newFlows(a)
	a.checks = newChecker(p, a.log, a.news)
	a.rotor = newRotor(a)
	return a, nil
}

func (a *agent) run(ctx context.Context) error {
	if err := a.store.prepare(); err != nil {
		return fmt.Errorf("start agent %s: %w", a.bootstrap.Name, err)
	}
	if err := a.rotor.load(); err != nil {
		return fmt.Errorf("start agent %s: %w", a.bootstrap.Name, err)
	}
	a.recall()
	if err := a.places.load(); err != nil {
		a.log.Warn("endpoints not remembered", "err", err)
	}
	// Stopping is done in steps, so ctx itself ends nothing: it begins the drain,
	// and the drain ends live.
	live, end := context.WithCancel(context.WithoutCancel(ctx))
	defer a.checks.wait()
	defer end()
	a.mu.Lock()
	a.ctx = live
	a.mu.Unlock()
	a.checks.set(live, a.orders.Load().services)

	// The first device is opened before Run is on its way, so that a host that
	// cannot have one says so at once.
	device, err := a.openDevice()
	if err != nil {
		return fmt.Errorf("start agent %s: %w", a.bootstrap.Name, err)
	}
	a.log.Info("agent started", "kind", device.Kind(), "reason", device.Reason(), "serial", a.orders.Load().config.Serial)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		defer end()
		select {
		case <-ctx.Done():
			a.drain(live)
		case <-live.Done():
		}
	}()
	defer func() { <-drained }()
	defer end()
	return a.keep(live, device)
}

// keep runs sessions until ctx ends, each on a device of its own. It closes the
// devices.
func (a *agent) keep(ctx context.Context, device tunnel.Device) error {
	patience := a.pace.patience
	for {
		answered, err := a.serve(ctx, device, patience)
		if cerr := device.Close(); cerr != nil {
			a.log.Warn("device not closed", "err", cerr)
		}
		if ctx.Err() != nil {
			break
		}
		a.log.Warn("device closed to open another", "err", err)
		// A network that is away for a day is no reason to open devices all day.
		patience = min(2*patience, a.pace.patienceMax)
		if answered {
			patience = a.pace.patience
		}
		if device = a.reopen(ctx); device == nil {
			break
		}
	}
	a.log.Info("agent stopped")
	return nil
}

// serve runs one session and the listener on its device, and says whether any
// edge ever answered.
func (a *agent) serve(ctx context.Context, device tunnel.Device, patience time.Duration) (answered bool, err error) {
	listener, err := device.Listen(api.AgentPort)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := newSession(a, device)
	a.session.Store(s)
	var around sync.WaitGroup
	around.Go(func() { cancel(a.flows.accept(listener, s.isPeer)) })
	around.Go(func() { a.watchClock(ctx) })
	around.Go(func() { a.rotor.run(ctx, s) })
	err = s.run(ctx, patience)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(err)
	listener.Close()
	a.flows.closeAll()
	around.Wait()
	return s.everReached(), err
}

// reopen opens a device, however often it takes. It returns nil when ctx ended.
func (a *agent) reopen(ctx context.Context) tunnel.Device {
	for said := false; ; said = true {
		device, err := a.openDevice()
		if err == nil {
			a.log.Info("device opened", "kind", device.Kind(), "reason", device.Reason())
			return device
		}
		if !said {
			a.log.Error("device not opened", "err", err)
		}
		select {
		case <-time.After(jitter(a.pace.backoffMax)):
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *agent) openDevice() (tunnel.Device, error) {
	b := a.bootstrap
	return a.open(tunnel.Config{
		Kind:       tunnel.Kind(b.Tunnel),
		PrivateKey: a.rotor.key(),
		Address:    b.TunnelAddress,
		Network:    b.Network,
		Log:        a.log,
	})
}

// recall obeys the config that was stored, so that the agent serves before any
// edge is reached.
func (a *agent) recall() {
	if err := atomicfile.Sweep(a.store.path()); err != nil {
		a.log.Warn("data folder not swept", "err", err)
	}
	signed, err := a.store.load()
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var o *orders
	if err == nil {
		o, err = newOrders(a.bootstrap, signed)
	}
	if err != nil {
		a.stale = fmt.Errorf("stored config not used, started from the bootstrap: %w", err)
		a.log.Warn("stored config refused", "err", err)
		return
	}
	a.orders.Store(o)
	a.log.Info("stored config obeyed", "serial", o.config.Serial, "count", len(o.services))
}

// obey replaces the orders with what s says, when the fleet signed it for this
// agent and it is not older than what is obeyed. The error says why not.
func (a *agent) obey(log *slog.Logger, s api.Signed) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.orders.Load()
	next, err := old.next(a.bootstrap, s)
	if err != nil {
		log.Warn("config refused", "err", err)
		return err
	}
	if next == old {
		return nil
	}
	// A service that was taken away must not go on being served because a disk is
	// full, so the orders count before they are saved.
	a.orders.Store(next)
	a.stale = nil
	a.save()
	a.flows.closeGone(next)
	a.checks.set(a.ctx, next.services)
	select {
	case a.reordered <- struct{}{}:
	default:
	}
	a.rotor.wake()
	log.Info("config obeyed", "serial", next.config.Serial, "count", len(next.services))
	for _, u := range next.unfit {
		log.Warn("service refused", "reason", u)
	}
	a.news()
	return nil
}

// save stores the orders. The caller holds a.mu.
func (a *agent) save() {
	was := a.unstored
	a.tried = time.Now()
	a.unstored = a.store.save(a.orders.Load().signed)
	switch {
	case a.unstored != nil && was == nil:
		a.log.Error("config not saved", "err", a.unstored)
	case a.unstored == nil && was != nil:
		a.log.Info("config saved")
	}
}

// watchClock ends what time ends: streams gone quiet, and what the fleet let this
// agent serve until a moment only. It compares clock readings and trusts no timer
// with the moment, so that a clock that was set, or a host that slept, is noticed
// at the next tick.
func (a *agent) watchClock(ctx context.Context) {
	tick := time.NewTicker(a.pace.tick)
	defer tick.Stop()
	for {
		a.expire()
		a.flows.closeQuiet()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *agent) expire() {
	a.mu.Lock()
	o := a.orders.Load()
	expired := o.expired(a.now())
	was := a.expired
	a.expired = expired
	if a.unstored != nil && time.Since(a.tried) > a.pace.beat {
		a.save()
	}
	a.mu.Unlock()
	if expired {
		a.flows.closeExpired()
	}
	switch {
	case expired && !was:
		a.log.Warn("config expired", "serial", o.config.Serial)
	case !expired && was:
		a.log.Info("config in force again", "serial", o.config.Serial)
	}
	if expired != was {
		a.news()
	}
}

// edges are those to keep tunnels to.
func (a *agent) edges() []api.AgentEdge {
	if o := a.orders.Load(); o.obeyed() {
		return o.config.Edges
	}
	return a.bootstrap.Edges
}

func (a *agent) resolve(ctx context.Context, hostport string) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, a.pace.resolve)
	defer cancel()
	return resolve(ctx, hostport, a.lookup)
}

// news has every edge told of a change soon.
func (a *agent) news() {
	if s := a.session.Load(); s != nil {
		s.each((*link).tell)
	}
}

// drain refuses new streams and returns when none is left or the grace is over.
// The edges are told, again and again, so that they give up the streams they only
// keep for later requests: from here those look like any other.
func (a *agent) drain(ctx context.Context) {
	a.draining.Store(true)
	n := a.flows.count()
	if n == 0 {
		return
	}
	a.log.Info("drain begun", "count", n)
	ctx, cancel := context.WithTimeout(ctx, a.pace.grace)
	defer cancel()
	for n > 0 && ctx.Err() == nil {
		a.news()
		step, done := context.WithTimeout(ctx, a.pace.beatGap)
		n = a.flows.drained(step)
		done()
	}
	if n > 0 {
		a.log.Warn("streams cut", "count", n)
	}
}

// heartbeat is what the agent says of itself.
func (a *agent) heartbeat(s *session) api.Heartbeat {
	o := a.orders.Load()
	h := api.Heartbeat{
		Agent:    a.bootstrap.Name,
		Version:  program.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Serial:   o.config.Serial,
		Started:  a.started,
		Now:      a.now(),
		Tunnel:   api.Tunnel{Kind: string(s.device.Kind()), Reason: s.device.Reason()},
		Services: a.checks.services(),
		Edges:    s.edges(),
		Refused:  a.refused(o, s),
		Draining: a.draining.Load(),
	}
	a.rotor.tell(o.config, &h)
	return h
}

// refusedLimit bounds the list in a heartbeat: it is for people.
const refusedLimit = 100

// refused lists what the agent was told and does not do.
func (a *agent) refused(o *orders, s *session) []string {
	var list []string
	a.mu.Lock()
	for _, err := range []error{a.stale, a.unstored} {
		if err != nil {
			list = append(list, shorten(err.Error()))
		}
	}
	if a.expired {
		list = append(list, fmt.Sprintf("config with serial %d expired at %s by this host's clock", o.config.Serial, o.config.Expires.Format(time.RFC3339)))
	}
	a.mu.Unlock()
	list = append(list, a.rotor.strange(o.config)...)
	s.each(func(l *link) {
		l.mu.Lock()
		if l.refusal != "" {
			list = append(list, "edge "+l.edge.Name+": "+l.refusal)
		}
		l.mu.Unlock()
	})
	for _, u := range o.unfit {
		list = append(list, shorten(u))
	}
	list = append(list, a.checks.refused()...)
	if len(list) > refusedLimit {
		more := len(list) - refusedLimit
		list = append(slices.Clip(list[:refusedLimit]), fmt.Sprintf("and %d more", more))
	}
	return list
}

package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// keepalive keeps a NAT's mapping towards an edge.
const keepalive = 25 * time.Second

// pollGap is the least rest after a question that was answered sooner.
const pollGap = 200 * time.Millisecond

// pace is how often and how long. Tests shorten it; defaultPace is what runs.
type pace struct {
	// poll is how long an edge may hold a question for new config; it is also
	// how long a silent edge goes unnoticed, so it is shorter than it could be.
	poll time.Duration
	// answer is how long after that the answer may take.
	answer time.Duration
	// resolve bounds one look-up of an edge's name.
	resolve time.Duration
	// backoffMin and backoffMax bound the rest between attempts to reach an edge.
	// answer + resolve + backoffMax must stay under 15 s: that is how soon an
	// edge that is back is in use again. So must poll + resolve + backoffMin and
	// twice answer: that is how soon a tunnel whose way was lost has another.
	backoffMin, backoffMax time.Duration
	// beat is between heartbeats without news, beatGap the least between two.
	beat, beatGap time.Duration
	// linger is how long an edge that is no longer wanted may stay when no
	// wanted one answers.
	linger time.Duration
	// patience is how long all edges may be silent before the device is opened
	// anew; it doubles each time, up to patienceMax.
	patience, patienceMax time.Duration
	// tick is between looks at what ends by the clock.
	tick time.Duration
	// grace is how long streams may go on after the agent was told to stop.
	grace time.Duration
}

var defaultPace = pace{
	poll:        5 * time.Second,
	answer:      3 * time.Second,
	resolve:     2 * time.Second,
	backoffMin:  time.Second,
	backoffMax:  8 * time.Second,
	beat:        30 * time.Second,
	beatGap:     time.Second,
	linger:      45 * time.Second,
	patience:    3 * time.Minute,
	patienceMax: 30 * time.Minute,
	tick:        time.Second,
	grace:       10 * time.Second,
}

// edgeClient is the part of an edge's API that is for agents; api.Client is one.
type edgeClient interface {
	AgentConfig(ctx context.Context, tag string, wait time.Duration) (api.Signed, string, error)
	Heartbeat(ctx context.Context, hb api.Heartbeat) error
	// Close lets go of idle connections.
	Close()
}

func connect(d tunnel.Device, e api.AgentEdge) edgeClient {
	return api.NewClient(e.Name, netip.AddrPortFrom(e.Address, api.EdgePort), d.Dial)
}

// link is the tunnel to one edge. It is up when a request through it was
// answered, and not because a socket or a session exists.
type link struct {
	session *session
	// edge is as the config had it first; its endpoint may have moved since.
	edge   api.AgentEdge
	client edgeClient
	log    *slog.Logger
	stop   context.CancelFunc
	// moved wakes a link at rest: the config names another endpoint, or the device
	// has another key. Asking the old endpoint is given up as well.
	moved chan struct{}
	// news wakes the heartbeat.
	news chan struct{}

	// endpoint is where the device sends to, and leaving, when set, when a link
	// that is no longer wanted ends. The session's mutex guards both.
	endpoint netip.AddrPort
	leaving  time.Time

	// found is what the look-up of asked gave; they are run's alone.
	asked string
	found []netip.AddrPort

	mu       sync.Mutex
	hostport string
	giveUp   context.CancelFunc
	up       bool
	// answered is when the edge last answered, and since when up is what it is;
	// zero means never.
	answered, since time.Time
	// obeyed is the signature of the config that this edge last relayed, if that
	// is obeyed.
	obeyed string
	// refusal is why the config this edge last relayed is not obeyed, or "".
	refusal string
}

func newLink(s *session, e api.AgentEdge) *link {
	l := &link{
		session:  s,
		edge:     e,
		client:   s.agent.connect(s.device, e),
		log:      s.log.With("edge", e.Name),
		stop:     func() {},
		moved:    make(chan struct{}, 1),
		news:     make(chan struct{}, 1),
		hostport: e.Endpoint,
		giveUp:   func() {},
	}
	// A name takes time; an address is ready at once.
	l.endpoint, _ = netip.ParseAddrPort(e.Endpoint)
	return l
}

// start runs the link until ctx or stop ends it.
func (l *link) start(ctx context.Context) {
	ctx, l.stop = context.WithCancel(ctx)
	l.session.done.Go(func() { l.run(ctx) })
	l.session.done.Go(func() { l.beat(ctx) })
}

// move makes the endpoint what the config says now.
func (l *link) move(hostport string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hostport == hostport {
		return
	}
	l.hostport = hostport
	l.giveUp()
	l.retry()
}

// retry ends a rest.
func (l *link) retry() {
	select {
	case l.moved <- struct{}{}:
	default:
	}
}

func (l *link) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

func (l *link) run(ctx context.Context) {
	defer l.client.Close()
	if !l.resolved() {
		l.reconnect(ctx, 0)
	}
	// Every answered question says that the edge is there; the first that is not
	// is asked again at once, on a new handshake, since a lost packet or an edge
	// that was restarted a moment ago look the same.
	tag, failures := "", 0
	for ctx.Err() == nil {
		asked, before := time.Now(), time.Time{}
		if failures > 0 {
			before = l.handshake()
		}
		next, err := l.poll(ctx, tag, failures == 0 && l.isUp())
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			l.remember()
			if failures > 0 {
				// It may be another process, which knows nothing of this agent.
				l.tell()
			}
			tag, failures = next, 0
			// An edge that answers at once, whatever is asked, must not make this
			// loop a busy one.
			if time.Since(asked) < pollGap {
				l.rest(ctx, jitter(pollGap))
			}
			continue
		}
		l.client.Close()
		if failures++; failures > 1 {
			l.lost(failures, err)
			if l.mended(ctx, before, l.backoff(failures-2)) {
				continue
			}
		}
		l.reconnect(ctx, failures)
	}
}

// poll asks the edge for another config than tag's, and obeys what it gets. The
// edge may hold its answer back until there is news when it is known to be there.
// An error means that it did not answer.
func (l *link) poll(ctx context.Context, tag string, known bool) (next string, err error) {
	wait := time.Duration(0)
	if known {
		// News for all agents would have them ask in step from then on.
		wait = l.session.agent.pace.poll
		wait -= rand.N(wait/5 + 1)
	}
	ctx, cancel := context.WithTimeout(ctx, wait+l.session.agent.pace.answer)
	defer cancel()
	l.mu.Lock()
	l.giveUp = cancel
	refusal, obeyed := l.refusal, l.obeyed
	l.mu.Unlock()
	signed, next, err := l.client.AgentConfig(ctx, tag, wait)
	switch {
	case errors.Is(err, api.ErrNoConfig), errors.Is(err, api.ErrForbidden):
		// An answer: the edge is there, and has not been told of this agent yet.
		l.log.Debug("edge has no config for this agent", "err", err)
		next, refusal, obeyed = "", "", ""
	case err != nil:
		return "", err
	case next != tag:
		refusal, obeyed = "", string(signed.Signature)
		if err := l.session.agent.obey(l.log, signed); err != nil {
			refusal, obeyed = shorten(err.Error()), ""
		}
	}
	l.reached(ctx, refusal, obeyed)
	return next, nil
}

// reached notes an answer.
func (l *link) reached(ctx context.Context, refusal, obeyed string) {
	l.session.heard()
	l.mu.Lock()
	was, said := l.up, l.refusal
	l.up, l.refusal, l.obeyed, l.answered = true, refusal, obeyed, time.Now()
	if !was {
		l.since = l.answered
	}
	l.mu.Unlock()
	if !was {
		l.log.Info("edge reached")
		l.session.settle(ctx)
	}
	if !was || said != refusal {
		l.session.agent.news()
	}
}

// handshake is when the last one with the edge completed; zero is never.
func (l *link) handshake() time.Time { return l.session.handshakes()[l.edge.PublicKey] }

// elsewhere reports whether the config names another endpoint than was last looked up.
func (l *link) elsewhere() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hostport != l.asked
}

// remember notes where the edge answered.
func (l *link) remember() {
	l.session.mu.Lock()
	at := l.endpoint
	l.session.mu.Unlock()
	l.mu.Lock()
	hostport := l.hostport
	l.mu.Unlock()
	a := l.session.agent
	if err := a.places.keep(hostport, at, a.edges()); err != nil {
		l.log.Warn("endpoint not remembered", "err", err)
	}
}

// lost notes that the edge does not answer.
func (l *link) lost(failures int, err error) {
	l.mu.Lock()
	was := l.up
	l.up = false
	if was {
		l.since = time.Now()
	}
	l.mu.Unlock()
	switch {
	case was:
		l.log.Warn("edge lost", "err", err)
		l.session.agent.news()
	case failures == 2:
		l.log.Warn("edge not reached", "err", err)
	}
}

func (l *link) resolved() bool {
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	return l.endpoint.IsValid()
}

// reconnect looks the edge's name up again and begins a new handshake there, from the
// second attempt on maybe from another port. A name with several addresses gives them
// in turn, so that one address family that leads nowhere does not keep an edge out of
// reach.
func (l *link) reconnect(ctx context.Context, attempt int) {
	l.mu.Lock()
	hostport := l.hostport
	l.mu.Unlock()
	// The second attempt follows the first so closely that DNS has nothing new to
	// say, and may take long to say it.
	if attempt != 2 || l.asked != hostport {
		found, err := l.session.agent.resolve(ctx, hostport)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			l.log.Debug("edge not resolved", "addr", hostport, "err", err)
		}
		l.asked, l.found = hostport, found
	}
	l.session.mu.Lock()
	endpoint := l.endpoint
	l.session.mu.Unlock()
	// Without DNS, where it was last is the best guess left.
	if len(l.found) > 0 {
		endpoint = l.found[max(attempt-1, 0)%len(l.found)]
	} else if !endpoint.IsValid() {
		endpoint = l.session.agent.places.find(hostport)
	}
	if attempt > 1 {
		l.session.rebind(attempt)
	}
	l.session.rekey(ctx, l, endpoint)
}

// backoff is the rest before another attempt: half of it fixed, half of it chance,
// so that a thousand agents do not come back in step.
func (l *link) backoff(n int) time.Duration {
	p := l.session.agent.pace
	d := p.backoffMax
	if n < 16 {
		d = min(p.backoffMin<<n, p.backoffMax)
	}
	return d/2 + rand.N(d/2+1)
}

// rest reports whether it lasted for all of d.
func (l *link) rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.moved:
	case <-ctx.Done():
	}
	return false
}

// mended rests for d at most, and reports whether WireGuard has mended the tunnel by
// itself: there was another handshake than before. It repeats a handshake after 5 s,
// and an edge under load takes no other than that, since it comes with the cookie that
// the first was answered with.
func (l *link) mended(ctx context.Context, before time.Time, d time.Duration) bool {
	for tick := l.session.agent.pace.tick; d > 0; d -= tick {
		whole := l.rest(ctx, min(d, tick))
		if now := l.handshake(); !now.IsZero() && !now.Equal(before) && !l.elsewhere() {
			return true
		}
		if !whole {
			return false
		}
	}
	return false
}

// beat sends heartbeats: at intervals, and soon after news. One that is not
// answered costs nothing but itself.
func (l *link) beat(ctx context.Context) {
	p := l.session.agent.pace
	for {
		t := time.NewTimer(jitter(p.beat))
		select {
		case <-t.C:
		case <-l.news:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
		// A link that comes up is news, so nothing is missed by waiting for it.
		if !l.isUp() {
			continue
		}
		if err := l.heartbeat(ctx); err != nil && ctx.Err() == nil {
			l.log.Debug("heartbeat not answered", "err", err)
		}
		select {
		case <-time.After(jitter(p.beatGap)):
		case <-ctx.Done():
			return
		}
	}
}

func (l *link) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.session.agent.pace.answer)
	defer cancel()
	return l.client.Heartbeat(ctx, l.session.agent.heartbeat(l.session))
}

// tell wakes the heartbeat.
func (l *link) tell() {
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// resolve looks up the addresses of a UDP host:port.
func resolve(ctx context.Context, hostport string, lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)) ([]netip.AddrPort, error) {
	host, text, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	port, err := parsePort(text)
	if err != nil {
		return nil, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(addr, port)}, nil
	}
	addrs, err := lookup(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	found := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		found = append(found, netip.AddrPortFrom(a.Unmap(), port))
	}
	if len(found) == 0 {
		return nil, errors.New("the name has no address")
	}
	return found, nil
}

package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

const (
	// streamsAtOnce bounds what all edges together can make this host hold open.
	streamsAtOnce = 4096
	// refusalsAtOnce bounds the streams beyond those that are told why they are
	// refused; more are closed without a word.
	refusalsAtOnce = 64
	// headerTimeout is how long an edge may take to name a service.
	headerTimeout = 5 * time.Second
	// dialTimeout is how long a service may take to accept.
	dialTimeout = 10 * time.Second
	// quietLimit ends a stream on which nothing has moved for as long.
	quietLimit = 2 * time.Hour
)

var (
	errUnknown  = errors.New("no such service in the config obeyed")
	errExpired  = errors.New("config expired")
	errTooMany  = errors.New("too many streams")
	errDraining = errors.New("agent is stopping")
	errRemoved  = errors.New("service was removed")
)

// flows are the connections that edges opened, and what they lead to.
type flows struct {
	agent *agent
	limit int

	mu   sync.Mutex
	open map[*flow]struct{}
	// ended is closed, and replaced, whenever a stream ends.
	ended chan struct{}
}

// flow is a stream: one connection from an edge to a service.
type flow struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	// edge is the tunnel address that opened it.
	edge netip.Addr
	conn net.Conn
	// spare is a stream beyond the limit, there to be refused.
	spare bool
	// moved is when bytes last did, in seconds since the agent started.
	moved atomic.Int64

	// service is empty until it is known; the mutex of flows guards it.
	service service
}

func newFlows(a *agent) *flows {
	return &flows{agent: a, limit: streamsAtOnce, open: make(map[*flow]struct{}), ended: make(chan struct{})}
}

// accept serves what comes to l from a peer until l is closed, and returns why it
// ended. It returns when every stream has.
func (s *flows) accept(l net.Listener, isPeer func(netip.Addr) bool) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	for rest := time.Duration(0); ; {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			// Out of files, most likely: streams that end give some back.
			if rest == 0 {
				s.agent.log.Warn("stream not accepted", "err", err)
			}
			rest = min(max(2*rest, 5*time.Millisecond), time.Second)
			time.Sleep(rest)
			continue
		}
		rest = 0
		// On some makes of device the host's own processes, and its neighbours,
		// can knock as well; only a peer's address is proven by WireGuard.
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err != nil || !isPeer(from.Addr()) {
			s.agent.log.Debug("stranger turned away", "addr", conn.RemoteAddr().String())
			conn.Close()
			continue
		}
		f := s.take(conn, from.Addr().Unmap())
		if f == nil {
			conn.Close()
			continue
		}
		serving.Go(func() {
			defer s.end(f)
			s.serve(f)
		})
	}
}

// take makes conn a stream, or returns nil when there are too many even to say so.
func (s *flows) take(conn net.Conn, edge netip.Addr) *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= s.limit+refusalsAtOnce {
		return nil
	}
	f := &flow{edge: edge, conn: conn, spare: len(s.open) >= s.limit}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.touch(s.agent.started)
	s.open[f] = struct{}{}
	return f
}

func (s *flows) end(f *flow) {
	f.conn.Close()
	f.cancel(nil)
	s.mu.Lock()
	delete(s.open, f)
	close(s.ended)
	s.ended = make(chan struct{})
	s.mu.Unlock()
}

// serve carries one stream from its first byte to its last.
func (s *flows) serve(f *flow) {
	// Whoever ends the stream ends what it waits for.
	defer context.AfterFunc(f.ctx, func() { f.conn.Close() })()
	log := s.agent.log
	in, err := stream.Read(f.conn, headerTimeout)
	if err != nil {
		log.Debug("stream not understood", "addr", f.edge, "err", err)
		return
	}
	service, err := s.reach(f, in.Service)
	if err != nil {
		log.Debug("stream refused", "service", in.Service, "addr", in.Client, "err", err)
		refuse(in, err)
		return
	}
	defer service.Close()
	defer context.AfterFunc(f.ctx, func() { service.Close() })()
	visitor, err := in.Accept()
	if err != nil {
		log.Debug("stream not answered", "service", in.Service, "addr", in.Client, "err", err)
		return
	}
	duplex(visitor, service, func() { f.touch(s.agent.started) })
	if cause := context.Cause(f.ctx); cause != nil {
		log.Debug("stream closed", "service", in.Service, "addr", in.Client, "reason", cause)
	}
}

// refuse says why there is no stream: whether asking again could help, and the
// reason for people. That the edge is gone by then changes nothing.
func refuse(in *stream.Inbound, why error) {
	if errors.Is(why, errUnknown) || errors.Is(why, errExpired) || errors.Is(why, errRemoved) || errors.Is(why, errPolicy) {
		in.Refuse(why.Error())
		return
	}
	in.Down(why.Error())
}

// reach opens a connection to the service of an id, if the orders and the local
// policy let it.
func (s *flows) reach(f *flow, id string) (net.Conn, error) {
	a := s.agent
	switch {
	case f.spare:
		return nil, errTooMany
	case a.draining.Load():
		return nil, errDraining
	}
	v, err := s.claim(f, id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	out, err := a.policy.dial(ctx, v.target)
	if err != nil && context.Cause(f.ctx) != nil {
		err = context.Cause(f.ctx)
	}
	return out, err
}

// claim notes which service a stream is for. The orders are read under the same
// mutex that closes the streams of replaced ones, so that none slips through.
func (s *flows) claim(f *flow, id string) (service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.agent.orders.Load()
	v, ok := o.services[id]
	switch {
	case !ok:
		return service{}, errUnknown
	case o.expired(s.agent.now()):
		return service{}, errExpired
	}
	f.service = v
	return v, nil
}

// closeGone ends the streams whose service o does not have, and no others.
func (s *flows) closeGone(o *orders) {
	s.close(errRemoved, func(f *flow) bool {
		return f.service.id != "" && o.services[f.service.id].url != f.service.url
	})
}

// closeExpired ends every stream to a service.
func (s *flows) closeExpired() {
	s.close(errExpired, func(f *flow) bool { return f.service.id != "" })
}

// closeFrom ends the streams that the edge at a tunnel address opened.
func (s *flows) closeFrom(edge netip.Addr) {
	s.close(errors.New("edge dropped"), func(f *flow) bool { return f.edge == edge })
}

// closeQuiet ends the streams on which nothing has moved for long: what was at
// their other end is gone.
func (s *flows) closeQuiet() {
	now := time.Since(s.agent.started)
	s.close(errors.New("nothing moved for long"), func(f *flow) bool {
		return now-time.Duration(f.moved.Load())*time.Second > quietLimit
	})
}

func (s *flows) closeAll() {
	s.close(errors.New("device closed"), func(*flow) bool { return true })
}

func (s *flows) close(why error, which func(*flow) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.open {
		if which(f) {
			f.cancel(why)
		}
	}
}

func (s *flows) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// drained returns when no stream is left or ctx has ended, and how many are left.
func (s *flows) drained(ctx context.Context) int {
	for {
		s.mu.Lock()
		n, ended := len(s.open), s.ended
		s.mu.Unlock()
		if n == 0 {
			return 0
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return n
		}
	}
}

func (f *flow) touch(started time.Time) {
	f.moved.Store(int64(time.Since(started) / time.Second))
}

// Package edge is the public end of a fleet: it answers requests from one immutable
// snapshot of its config at a time, and takes the next config through the tunnel.
//
// What outlives a config lives outside of it: listeners, the WireGuard device,
// certificates, the services' connections and health.
package edge

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/edge/certs"
	"github.com/kokoa-proxy/kokoa/edge/front"
	"github.com/kokoa-proxy/kokoa/edge/proxy"
	"github.com/kokoa-proxy/kokoa/edge/services"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

// DrainTimeout is how long what a config took away may go on: requests and upgraded
// connections of routes that are gone, tunnels of peers that are gone.
const DrainTimeout = 30 * time.Second

// ShutdownTimeout is how long requests may go on once the edge is told to end.
const ShutdownTimeout = 10 * time.Second

// Options are what a Server stands on.
type Options struct {
	Bootstrap Bootstrap
	// Device is the edge's open tunnel. It stays open when the server ends.
	Device tunnel.Device
	// Dial opens streams to services; nil means package stream's, through Device.
	Dial services.Dial
	// HTTP and HTTPS are the public listeners; Serve closes them.
	HTTP, HTTPS net.Listener
	// Roots verify services with https URLs; nil means the system's.
	Roots *x509.CertPool
	// Version of the program, for State.
	Version string
	// Now is the clock that routes and peers expire by; nil is time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Server is an edge. It implements api.Edge, and all its methods may be called at
// once.
type Server struct {
	o       Options
	log     *slog.Logger
	now     func() time.Time
	started time.Time
	certs   *certs.Store
	pool    *services.Pool
	handler *proxy.Handler

	live    atomic.Pointer[live]
	serving atomic.Bool
	// ended is closed when Serve is about to return; tasks are then waited for.
	ended chan struct{}
	tasks sync.WaitGroup

	// drain is DrainTimeout, but in tests.
	drain time.Duration

	// mu is held through every change of the config and the device's peers.
	mu       sync.Mutex
	draining map[*drain]bool
	peers    []tunnel.Peer // as last set
	expiry   time.Time     // the next one of a route or peer; zero is never
	// shaken is when the device's peers last shook hands, as last seen.
	shaken map[keys.Public]time.Time

	challenges challenges
	beats      heartbeats
	// switching wakes Serve: an agent is about to take its next key.
	switching chan struct{}
	silence   silence
}

// live is a config in use. It is never changed.
type live struct {
	config   api.Config
	digest   string
	snapshot *proxy.Snapshot
	peers    map[netip.Addr]api.Peer
	// rotating says that a peer has two keys.
	rotating bool
	signed   map[string]api.Signed
	// replaced is closed when this is not live any more.
	replaced chan struct{}
}

// New makes a server that will serve its last good config and certificates, read
// from the bootstrap's data folder. A folder or key file that other users can read
// is an error; a config that cannot be read is not: the one before it is taken, or
// none, and the log says so.
func New(o Options) (*Server, error) {
	s := &Server{
		o: o, log: o.Log, now: o.Now,
		ended: make(chan struct{}), drain: DrainTimeout, draining: map[*drain]bool{},
		switching: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("edge", o.Bootstrap.Name)
	if s.now == nil {
		s.now = time.Now
	}
	s.started = s.now()
	if err := privatefile.Folder(o.Bootstrap.Data); err != nil {
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	var damaged []error
	var err error
	if s.certs, damaged, err = certs.Open(filepath.Join(o.Bootstrap.Data, "certificates")); err != nil {
		return nil, err
	}
	for _, err := range damaged {
		s.log.Warn("certificate left out", "err", err)
	}
	if o.Dial == nil {
		d := stream.Dialer{Dial: o.Device.Dial, Port: api.AgentPort}
		o.Dial = func(ctx context.Context, agent netip.Addr, service string) (net.Conn, error) {
			return d.Stream(ctx, stream.Target{Agent: agent, Service: service})
		}
	}
	s.pool = services.New(o.Dial, o.Roots, s.log)
	s.handler = &proxy.Handler{
		Live: func() *proxy.Snapshot {
			if l := s.live.Load(); l != nil {
				return l.snapshot
			}
			return nil
		},
		Challenge: func(token string) (string, bool) { return s.challenges.get(token, s.now()) },
		HTTPPort:  portOf(o.HTTP),
		HTTPSPort: portOf(o.HTTPS),
		Log:       s.log,
		Now:       s.now,
	}
	s.handler.Init()
	if err := s.restore(); err != nil {
		s.pool.Close()
		return nil, err
	}
	return s, nil
}

// Serve answers visitors, the control plane and agents until ctx ends, and then
// takes nothing new and waits up to ShutdownTimeout for what is under way. It is
// called once.
func (s *Server) Serve(ctx context.Context) error {
	defer s.pool.Close()
	defer s.tasks.Wait()
	defer close(s.ended)
	tunnelled, err := s.o.Device.Listen(api.EdgePort)
	if err != nil {
		return errors.Join(fmt.Errorf("listen in the tunnel: %w", err), s.o.HTTP.Close(), s.o.HTTPS.Close())
	}
	door := front.New(s.certs, s.handler, s.log)
	inside, leave := context.WithCancel(context.Background())
	defer leave()
	control := &http.Server{
		Handler:           api.Handler(s),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       2 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// A request that waits for a change ends when the edge does.
		BaseContext: func(net.Listener) context.Context { return inside },
	}
	errs := make(chan error, 3)
	var listening sync.WaitGroup
	listen := func(what string, serve func(net.Listener) error, l net.Listener) {
		listening.Go(func() {
			if err := serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				errs <- fmt.Errorf("serve %s: %w", what, err)
			}
		})
	}
	listen("http", door.ServeHTTP, s.o.HTTP)
	listen("https", door.ServeHTTPS, s.o.HTTPS)
	listen("control", control.Serve, tunnelled)
	s.serving.Store(true)
	s.log.Info("edge started", "addr", s.o.HTTPS.Addr().String(), "kind", string(s.o.Device.Kind()), "reason", s.o.Device.Reason())

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	watch := newWatch()
	defer watch.stop()
	var failed error
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case failed = <-errs:
			done = true
		case <-tick.C:
			s.expire()
			s.renewSilent()
		case <-s.switching:
			watch.closely()
		case <-watch.tick():
			s.followKeys()
		}
	}
	s.serving.Store(false)
	drained, cancel := context.WithTimeout(context.Background(), ShutdownTimeout)
	defer cancel()
	if err := door.Shutdown(drained); err != nil {
		s.log.Warn("requests cut", "reason", "they outlasted the shutdown", "err", err)
	}
	leave()
	if err := control.Close(); err != nil {
		failed = errors.Join(failed, fmt.Errorf("close control: %w", err))
	}
	if l := s.live.Load(); l != nil {
		l.snapshot.EndAll()
	}
	listening.Wait()
	s.log.Info("edge stopped")
	return failed
}

// portOf is a listener's TCP port; 0 where it has none.
func portOf(l net.Listener) uint16 {
	if l == nil {
		return 0
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return uint16(a.Port)
	}
	return 0
}

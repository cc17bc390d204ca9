// Package front is an edge's public door: it takes connections, ends TLS with the
// certificate of the name that was asked for, and lets only strictly formed HTTP
// through to a handler.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/certs"
	"github.com/kokoa-proxy/kokoa/edge/route"
)

// Limits of a door. They are per edge unless they say otherwise.
const (
	// HandshakeTimeout is for TLS, from the first byte awaited to the last.
	HandshakeTimeout = 5 * time.Second
	// HeadTimeout is for a request's head.
	HeadTimeout = 5 * time.Second
	// IdleTimeout ends a kept connection that nothing is asked on.
	IdleTimeout = 2 * time.Minute
	// WriteTimeout ends a connection that takes no byte for so long.
	WriteTimeout = time.Minute
	// MaxHead is the size of a request's head in bytes.
	MaxHead = 16 << 10
	// MaxConns is how many connections may be open, MaxConnsPerAddress from one
	// IPv4 address or IPv6 /64.
	MaxConns           = 32768
	MaxConnsPerAddress = 1024
	// MaxStreams is how many requests an HTTP/2 connection may have under way.
	MaxStreams = 100
	// MaxResets is how many of them may be given up within ResetWindow.
	MaxResets   = 200
	ResetWindow = 10 * time.Second
)

// Door serves public listeners. Make one with New.
type Door struct {
	certs *certs.Store
	log   *slog.Logger
	tls   *tls.Config
	// HTTP/1 and HTTP/2 connections come to different servers, since their limits
	// on heads count different things.
	http1, http2 *http.Server
	feed1, feed2 *feed

	mu        sync.Mutex
	listeners map[net.Listener]bool
	closed    bool
	conns     map[*Conn]bool
	from      map[netip.Prefix]int
}

// New makes a door to handler.
func New(certificates *certs.Store, handler http.Handler, log *slog.Logger) *Door {
	d := &Door{
		certs: certificates, log: log,
		listeners: map[net.Listener]bool{}, conns: map[*Conn]bool{}, from: map[netip.Prefix]int{},
		feed1: newFeed(), feed2: newFeed(),
	}
	d.tls = d.tlsConfig()
	// What a hostile client makes net/http say is of no use to anyone.
	quiet := noLog()
	d.http1 = &http.Server{
		Handler: handler, ConnContext: withConn, ErrorLog: quiet,
		ReadHeaderTimeout: HeadTimeout, IdleTimeout: IdleTimeout,
		// net/http lets a head be 4 KiB larger than it is told.
		MaxHeaderBytes: MaxHead - 4<<10,
		Protocols:      protocols(false),
		// OPTIONS * is the handler's to refuse too.
		DisableGeneralOptionsHandler: true,
	}
	d.http2 = &http.Server{
		Handler: handler, ConnContext: withConn, ErrorLog: quiet,
		ReadHeaderTimeout: HeadTimeout, IdleTimeout: IdleTimeout,
		MaxHeaderBytes:               MaxHead,
		Protocols:                    protocols(true),
		DisableGeneralOptionsHandler: true,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: MaxStreams,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     WriteTimeout,
		},
	}
	go d.http1.Serve(d.feed1)
	go d.http2.Serve(d.feed2)
	return d
}

// ServeHTTP takes plain connections until the door or the listener is closed.
func (d *Door) ServeHTTP(l net.Listener) error {
	return d.accept(l, func(c *Conn) { d.feed1.give(newGuard(c, c)) })
}

// ServeHTTPS takes TLS connections until the door or the listener is closed.
func (d *Door) ServeHTTPS(l net.Listener) error {
	return d.accept(l, func(c *Conn) {
		c.secure = true
		t := tls.Server(c, d.tls)
		ctx, cancel := context.WithTimeout(context.Background(), HandshakeTimeout)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			d.log.Debug("handshake ended", "addr", c.RemoteAddr().String(), "err", err)
			c.Close()
			return
		}
		state := t.ConnectionState()
		if c.serverName, _ = route.Host(state.ServerName); c.serverName != "" {
			c.certificate = d.certs.Find(c.serverName)
		}
		if state.NegotiatedProtocol == "h2" {
			d.feed2.give(t)
		} else {
			d.feed1.give(newGuard(t, c))
		}
	})
}

// Shutdown takes no more connections and waits until all requests have ended, or
// ctx has. Then it closes what is left, upgraded connections too.
func (d *Door) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	d.closed = true
	for l := range d.listeners {
		l.Close()
	}
	d.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, s := range []*http.Server{d.http1, d.http2} {
		wg.Go(func() {
			if errs[i] = s.Shutdown(ctx); errs[i] != nil {
				s.Close()
			}
		})
	}
	wg.Wait()
	d.feed1.Close()
	d.feed2.Close()
	d.mu.Lock()
	left := make([]*Conn, 0, len(d.conns))
	for c := range d.conns {
		left = append(left, c)
	}
	d.mu.Unlock()
	for _, c := range left {
		c.Close()
	}
	return errors.Join(errs...)
}

func (d *Door) accept(l net.Listener, serve func(*Conn)) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return l.Close()
	}
	d.listeners[l] = true
	d.mu.Unlock()
	for wait := time.Duration(0); ; {
		raw, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			// Out of file descriptors, most likely: it passes.
			if wait = min(max(2*wait, 5*time.Millisecond), time.Second); wait == time.Second {
				d.log.Warn("connections not taken", "addr", l.Addr().String(), "err", err)
			}
			time.Sleep(wait)
			continue
		}
		wait = 0
		if c := d.admit(raw); c != nil {
			go serve(c)
		} else {
			raw.Close()
		}
	}
}

// admit counts a connection in, or returns nil when there are too many.
func (d *Door) admit(raw net.Conn) *Conn {
	c := &Conn{Conn: raw, door: d, from: network(raw.RemoteAddr())}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.conns) >= MaxConns || d.from[c.from] >= MaxConnsPerAddress {
		return nil
	}
	d.conns[c] = true
	d.from[c.from]++
	return c
}

func (d *Door) forget(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.conns[c] {
		return
	}
	delete(d.conns, c)
	if d.from[c.from]--; d.from[c.from] == 0 {
		delete(d.from, c.from)
	}
}

// network is what counts as one visitor: an IPv4 address, or the /64 that one
// IPv6 customer has.
func network(a net.Addr) netip.Prefix {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// Conn is a visitor's connection, as far as a handler needs to know it.
type Conn struct {
	net.Conn
	door *Door
	from netip.Prefix

	secure      bool
	serverName  string
	certificate *certs.Certificate

	resets      atomic.Int32
	windowStart atomic.Int64
}

// FromContext is the connection that a request came on; nil outside of a Door.
func FromContext(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// Secure reports whether the connection is TLS.
func (c *Conn) Secure() bool { return c.secure }

// Serves reports whether requests for a canonical host name may come on this
// connection: it is the name that TLS was made for, or the certificate shown
// covers it too (RFC 9110 section 15.5.20). All may where there is no TLS.
func (c *Conn) Serves(host string) bool {
	return !c.secure || host == c.serverName || c.certificate != nil && c.certificate.Covers(host)
}

// CountReset counts a request that ended before its answer did, and closes the
// connection when there are too many of them: the client makes work for sport.
func (c *Conn) CountReset() {
	now := time.Now().UnixNano()
	if start := c.windowStart.Load(); now-start > int64(ResetWindow) && c.windowStart.CompareAndSwap(start, now) {
		c.resets.Store(0)
	}
	if c.resets.Add(1) > MaxResets {
		c.Close()
	}
}

// Write implements io.Writer. A client that takes nothing for WriteTimeout is gone.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(WriteTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// CloseWrite says that nothing more is sent, so that the visitor reads what was
// before the connection is torn down.
func (c *Conn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close implements io.Closer.
func (c *Conn) Close() error {
	c.door.forget(c)
	return c.Conn.Close()
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	switch c := c.(type) {
	case *guard:
		return context.WithValue(ctx, connKey{}, c.meta)
	case *tls.Conn:
		return context.WithValue(ctx, connKey{}, c.NetConn())
	}
	return ctx
}

func protocols(h2 bool) *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(h2)
	return &p
}

// feed is a listener of connections that were accepted already.
type feed struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFeed() *feed { return &feed{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (f *feed) give(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.closed:
		c.Close()
	}
}

// Accept implements net.Listener.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// Addr implements net.Listener.
func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }

func noLog() *log.Logger { return log.New(io.Discard, "", 0) }

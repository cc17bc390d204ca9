// Package proxy answers a visitor's request from one snapshot of an edge's config:
// it finds the route, and carries the request to a service and the answer back.
package proxy

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/front"
	"github.com/kokoa-proxy/kokoa/edge/route"
	"github.com/kokoa-proxy/kokoa/edge/services"
)

// Handler answers visitors. All exported fields but Now are needed, and Init is
// called before the first request.
type Handler struct {
	// Live is the snapshot to answer from; nil when there is none.
	Live func() *Snapshot
	// Challenge is the key authorization of an ACME token, if it is known.
	Challenge func(token string) (string, bool)
	// HTTPSPort is where a plain request is redirected to that named HTTPPort, the
	// one that is listened on. One that came by another port came by somebody's
	// mapping, and goes to 443. 0 for none.
	HTTPPort, HTTPSPort uint16
	Log                 *slog.Logger
	// Now is the clock that routes expire by; nil is time.Now.
	Now func() time.Time

	ids      requestIDs
	failures quota
	forward  *httputil.ReverseProxy
}

// Init completes a handler.
func (h *Handler) Init() {
	if h.Now == nil {
		h.Now = time.Now
	}
	h.ids = newRequestIDs()
	h.forward = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      transport{},
		ModifyResponse: modifyResponse,
		ErrorHandler:   func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r).fail(err) },
		BufferPool:     &buffers{},
		ErrorLog:       log.New(io.Discard, "", 0), // every error comes to ErrorHandler or cuts the connection
	}
}

const (
	maxFields = 100
	// bodyTimeout ends a request whose body stands still, streamTimeout an HTTP/2
	// answer that the client does not take.
	bodyTimeout   = 30 * time.Second
	streamTimeout = 30 * time.Second
	// lingerTimeout is how long a body is still read that nobody wants, so that the
	// visitor gets to read the answer instead of a reset.
	lingerTimeout = time.Second
	// maxInformational is how many 1xx answers may come before the real one.
	maxInformational = 5

	challengePath = "/.well-known/acme-challenge/"
)

// exchange is one request on its way.
type exchange struct {
	h       *Handler
	w       *response
	in      *http.Request
	conn    *front.Conn
	route   *compiled
	visitor visitor
	// upgrade is whether this is an opening handshake of WebSocket.
	upgrade bool
	body    *body
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	snapshot := h.enter()
	if snapshot != nil {
		defer snapshot.gate.leave()
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x := &exchange{h: h, in: r, conn: front.FromContext(r.Context())}
	x.w = newResponse(w, r, cancel)
	defer x.w.finish()
	x.visitor = visitor{address: address(r.RemoteAddr), proto: "http", request: h.ids.next()}
	if x.conn != nil && x.conn.Secure() {
		x.visitor.proto = "https"
	}
	if wantsWebSocket(r) {
		// The bytes that follow on this connection are no requests, unless the
		// service says that it speaks WebSocket (RFC 9931).
		w.Header().Set("Connection", "close")
		x.upgrade = true
	}
	if r.ProtoMajor == 2 && x.conn != nil {
		defer func() {
			if r.Context().Err() != nil {
				x.conn.CountReset()
			}
		}()
	}
	if status, text := x.check(snapshot); status != 0 {
		x.refuse(status, text)
		return
	}
	if x.route == nil {
		return // answered
	}
	stop := context.AfterFunc(x.route.lease.ctx, cancel)
	defer stop()
	if r.Body != nil && r.Body != http.NoBody {
		x.body = newBody(r.Body, x.w)
		defer x.body.finish()
		r.Body = x.body
	}
	h.forward.ServeHTTP(x.w, r.WithContext(context.WithValue(ctx, exchangeKey{}, x)))
}

// enter pins the live snapshot.
func (h *Handler) enter() *Snapshot {
	for {
		s := h.Live()
		if s == nil {
			return nil
		}
		s.gate.enter()
		if h.Live() == s {
			return s
		}
		// Replaced just now: its gate may be closed and its peers gone already.
		s.gate.leave()
	}
}

// check decides what becomes of the request: a status to refuse it with, an answer
// given already (no route), or the route that carries it.
func (x *exchange) check(s *Snapshot) (status int, text string) {
	r := x.in
	if bytes, fields := size(r); bytes > front.MaxHead || fields > maxFields {
		return http.StatusRequestHeaderFieldsTooLarge, "the request's headers are too large"
	}
	switch r.Method {
	case http.MethodConnect, http.MethodTrace, "TRACK":
		return http.StatusMethodNotAllowed, "this method is not allowed"
	}
	if expect := r.Header["Expect"]; len(expect) > 1 || len(expect) == 1 && !strings.EqualFold(expect[0], "100-continue") {
		return http.StatusExpectationFailed, "this expectation cannot be met"
	}
	twin := r.Header["Host"] // beside :authority in HTTP/2
	if !isMethod(r.Method) || !strings.HasPrefix(r.URL.Path, "/") || r.URL.User != nil || len(twin) > 0 && (len(twin) > 1 || twin[0] != r.Host) {
		return http.StatusBadRequest, "the request is malformed"
	}
	host, err := route.Host(r.Host)
	if err != nil {
		return http.StatusBadRequest, "the request's host is not a host name"
	}
	x.visitor.host = host
	if i := strings.LastIndexByte(r.Host, ':'); i >= 0 {
		x.visitor.host += r.Host[i:]
	}
	secure := x.conn != nil && x.conn.Secure()
	if x.conn != nil && !x.conn.Serves(host) {
		return http.StatusMisdirectedRequest, "this connection was made for another host"
	}
	if token, ok := strings.CutPrefix(r.URL.Path, challengePath); ok && !secure {
		if text, ok := x.h.Challenge(token); ok {
			x.plain(text)
			return 0, ""
		}
	}
	if s == nil {
		return http.StatusServiceUnavailable, "this edge has no configuration yet"
	}
	i, err := s.table.Match(host, r.URL.Path, r.URL.RawPath)
	if err != nil {
		return http.StatusBadRequest, "the request's path can be read in more than one way"
	}
	if i < 0 {
		return http.StatusNotFound, notServed
	}
	found := s.routes[i]
	switch {
	case found.expired(x.h.Now()), secure && !found.TLS:
		return http.StatusNotFound, notServed
	case !secure && found.TLS && found.Redirect:
		x.redirect(host)
		return 0, ""
	}
	if x.upgrade {
		if !found.WebSocket {
			return http.StatusForbidden, "WebSocket is not enabled here"
		}
		if status := checkWebSocket(r); status != 0 {
			x.w.Header().Set("Sec-Websocket-Version", "13")
			return status, "the WebSocket handshake is malformed"
		}
	}
	x.route = found
	return 0, ""
}

const notServed = "nothing is served here"

// redirect sends a plain request to HTTPS (RFC 9110 section 15.4.9).
func (x *exchange) redirect(host string) {
	if _, asked, err := net.SplitHostPort(x.in.Host); err == nil && asked == port(x.h.HTTPPort) && x.h.HTTPSPort != 443 {
		host = net.JoinHostPort(host, port(x.h.HTTPSPort))
	}
	to := url.URL{Scheme: "https", Host: host, Path: x.in.URL.Path, RawPath: x.in.URL.RawPath, RawQuery: x.in.URL.RawQuery, ForceQuery: x.in.URL.ForceQuery}
	x.leaveBody()
	x.w.Header().Set("Location", to.String())
	x.w.Header().Set("Content-Length", "0")
	x.w.WriteHeader(http.StatusPermanentRedirect)
}

// rewrite makes the service's request out of the visitor's.
func rewrite(p *httputil.ProxyRequest) {
	x := exchangeOf(p.In)
	out := p.Out
	scrub(out.Header)
	out.Header.Del("Expect") // net/http asks the visitor for the body when it is read
	x.visitor.set(out.Header)
	if !x.upgrade {
		out.Header.Del("Connection")
		out.Header.Del("Upgrade")
	}
	if x.route.PreserveHost {
		out.Host = x.visitor.host
	}
	// A visitor's trailers come after scrub, and some services merge them into the
	// headers: they are left out, as RFC 9110 section 6.5.1 allows.
	out.Trailer = nil
	// As it came: net/http/httputil drops parameters that it cannot parse.
	out.URL.RawQuery = p.In.URL.RawQuery
	if x.route.strip > 0 {
		out.URL.Path = stripped(out.URL.Path, x.route.strip)
		if out.URL.RawPath != "" {
			out.URL.RawPath = stripped(out.URL.RawPath, x.route.strip)
		}
	} else if raw, _, _ := strings.Cut(p.In.RequestURI, "?"); strings.HasPrefix(raw, "/") && !strings.HasPrefix(raw, "//") && raw != out.URL.EscapedPath() {
		// Bytes that net/url would encode are forwarded as they came.
		out.URL.Opaque = raw
	}
}

// stripped is path without its first n segments. What follows never begins with
// "//", which some services would take for a host.
func stripped(path string, n int) string {
	for ; n > 0; n-- {
		i := strings.IndexByte(path[1:], '/')
		if i < 0 {
			return "/"
		}
		path = path[1+i:]
	}
	return "/" + strings.TrimLeft(path, "/")
}

// transport asks the route's services in turn: those that are up, in order, then
// the others. The next one is asked only when the one before got nothing.
type transport struct{}

// RoundTrip implements http.RoundTripper.
func (transport) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r)
	var failed error
	for _, usable := range []bool{true, false} {
		for _, u := range x.route.upstreams {
			if u.Usable() != usable {
				continue
			}
			if r.Context().Err() != nil {
				return nil, context.Cause(r.Context())
			}
			out, lent := x.to(u, r)
			resp, err := u.RoundTrip(out)
			if err == nil {
				return resp, nil
			}
			if r.Context().Err() == nil {
				u.Suspect()
			}
			failed = errors.Join(failed, &upstreamError{u, err})
			if whole := lent.takeBack(); !whole || !errors.Is(err, services.ErrNotSent) {
				return nil, failed
			}
		}
	}
	if failed == nil {
		// All turned from unusable to usable between the two looks.
		return nil, errAllDown
	}
	return nil, failed
}

// errAllDown is for a request that no service was asked for.
var errAllDown = errors.New("no service was up")

// upstreamError says which service an error is of.
type upstreamError struct {
	upstream *services.Upstream
	err      error
}

func (e *upstreamError) Error() string {
	return "service " + e.upstream.ID + " of agent " + e.upstream.Agent + ": " + e.err.Error()
}

func (e *upstreamError) Unwrap() error { return e.err }

// to is r as sent to u, with the body lent to it.
func (x *exchange) to(u *services.Upstream, r *http.Request) (*http.Request, *loan) {
	out := *r
	target := *r.URL
	target.Scheme, target.Host = u.URL.Scheme, u.URL.Host
	out.URL = &target
	if !x.route.PreserveHost {
		out.Host = u.URL.Host
	}
	lent := &loan{body: r.Body}
	if out.Body != nil {
		out.Body = lent
	}
	return &out, lent
}

// loan is a request's body in the hands of one service, as long as it is not taken
// back for the next one.
type loan struct {
	body io.Reader

	mu         sync.Mutex
	used, over bool
}

// Read implements io.Reader.
func (l *loan) Read(p []byte) (int, error) {
	l.mu.Lock()
	over := l.over
	l.used = true
	l.mu.Unlock()
	if over {
		return 0, http.ErrBodyReadAfterClose
	}
	return l.body.Read(p)
}

// Close implements io.Closer. The body itself is closed when the request ends.
func (l *loan) Close() error { return nil }

// takeBack ends the loan and reports whether nothing of the body was used.
func (l *loan) takeBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	return !l.used
}

func modifyResponse(resp *http.Response) error {
	x := exchangeOf(resp.Request)
	resp.Header.Del("Alt-Svc") // it names ports of a host that visitors do not see
	if resp.StatusCode != http.StatusSwitchingProtocols {
		if x.body != nil && !x.body.ends() && x.in.ProtoMajor == 1 {
			// The answer came before the request's end. What is still to come of it
			// must not be waited for, nor taken for another request.
			x.w.Header().Set("Connection", "close")
		}
		return nil
	}
	if !x.upgrade || !acceptsWebSocket(resp.Header, x.in.Header.Get("Sec-Websocket-Key")) {
		return errNotWebSocket
	}
	stripHopByHop(resp.Header, "websocket")
	x.w.Header().Del("Connection")
	return nil
}

var errNotWebSocket = errors.New("service switched to a protocol that was not asked for")

type exchangeKey struct{}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// address is the visitor's, without port, and without the IPv6 form of IPv4.
func address(remote string) string {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return ""
	}
	return a.Addr().Unmap().WithZone("").String()
}

// isMethod reports whether m is one in upper case.
func isMethod(m string) bool {
	for i := 0; i < len(m); i++ {
		if (m[i] < 'A' || m[i] > 'Z') && m[i] != '-' {
			return false
		}
	}
	return m != ""
}

// buffers is a pool for copying bodies.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

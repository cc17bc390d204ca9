package proxy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/services"
)

// refuse answers without asking a service.
func (x *exchange) refuse(status int, text string) {
	x.h.Log.Debug("request refused", "request", x.visitor.request, "addr", x.visitor.address, "kind", status, "reason", text)
	x.page(status, text)
}

// fail answers a request that a service should have answered.
func (x *exchange) fail(err error) {
	status, text := x.failure(err)
	if status == 0 {
		// The visitor left, or the answer has begun: there is nobody to tell.
		panic(http.ErrAbortHandler)
	}
	if left, ok := x.h.failures.allow(x.h.Now()); ok {
		x.h.Log.Warn("request failed", "request", x.visitor.request, "route", x.route.Name, "kind", status, "err", err, "count", left+1)
	}
	x.page(status, text)
}

// failure is the status and text for an error; 0 when nothing can be answered.
func (x *exchange) failure(err error) (status int, text string) {
	var timeout net.Error
	switch {
	case x.w.begun:
		return 0, ""
	case x.route.lease.ctx.Err() != nil:
		return http.StatusNotFound, notServed
	case x.body != nil && errors.Is(x.body.err(), os.ErrDeadlineExceeded):
		return http.StatusRequestTimeout, "the request's body did not come"
	case x.body != nil && x.body.err() != nil:
		return http.StatusBadRequest, "the request's body is malformed"
	case x.in.Context().Err() != nil:
		return 0, ""
	case x.w.informational > maxInformational:
		return http.StatusBadGateway, badGateway
	case errors.Is(err, errAllDown), errors.Is(err, services.ErrNotSent) && x.allDown():
		return http.StatusServiceUnavailable, "the service is down"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return http.StatusGatewayTimeout, "the service did not answer in time"
	}
	return http.StatusBadGateway, badGateway
}

const badGateway = "the service could not be reached"

func (x *exchange) allDown() bool {
	for _, u := range x.route.upstreams {
		if u.Usable() {
			return false
		}
	}
	return true
}

// page writes what a visitor sees when there is nothing else to see: short, the
// same for the same status, and with the id that the log has the cause under.
func (x *exchange) page(status int, text string) {
	x.leaveBody()
	h := x.w.Header()
	kind, body := "text/plain; charset=utf-8", fmt.Sprintf("%d %s: %s\nrequest %s\n", status, http.StatusText(status), text, x.visitor.request)
	if strings.Contains(x.in.Header.Get("Accept"), "text/html") {
		title := html.EscapeString(fmt.Sprintf("%d %s", status, http.StatusText(status)))
		kind, body = "text/html; charset=utf-8", fmt.Sprintf("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>%s</title><h1>%s</h1><p>%s</p><p><small>request %s</small></p></html>\n",
			title, title, html.EscapeString(text), x.visitor.request)
	}
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(requestID, x.visitor.request)
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "10")
	}
	x.w.WriteHeader(status)
	if x.in.Method != http.MethodHead {
		io.WriteString(x.w, body)
	}
}

// leaveBody is for answers that do not wait for the request's body: net/http would,
// for as long as a visitor likes.
func (x *exchange) leaveBody() {
	if x.in.ProtoMajor != 1 || x.in.ContentLength == 0 || x.body != nil && x.body.ends() {
		return
	}
	x.w.Header().Set("Connection", "close")
	x.w.control.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// plain answers a challenge.
func (x *exchange) plain(text string) {
	x.leaveBody()
	x.w.Header().Set("Content-Type", "application/octet-stream")
	x.w.Header().Set("X-Content-Type-Options", "nosniff")
	io.WriteString(x.w, text)
}

// response is the way back to the visitor.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	cancel  context.CancelFunc
	// begun is whether the final status was written.
	begun         bool
	informational int

	// stall ends an HTTP/2 stream whose visitor takes nothing; nil for HTTP/1, where
	// the connection does. It is for writes under way only, since a service may be
	// silent for as long as it likes.
	stall   *time.Timer
	mu      sync.Mutex
	writing bool
}

func newResponse(w http.ResponseWriter, r *http.Request, cancel context.CancelFunc) *response {
	n := &response{ResponseWriter: w, control: http.NewResponseController(w), cancel: cancel}
	if r.ProtoMajor == 2 {
		n.stall = time.AfterFunc(streamTimeout, n.stalled)
		n.stall.Stop()
	}
	return n
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		w.Header().Del("Alt-Svc")
		if w.informational++; w.informational > maxInformational {
			w.cancel()
			return
		}
	} else {
		w.begun = true
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (w *response) Write(p []byte) (int, error) {
	w.begun = true
	defer w.watch()()
	return w.ResponseWriter.Write(p)
}

// FlushError is for http.ResponseController.
func (w *response) FlushError() error {
	defer w.watch()()
	return w.control.Flush()
}

// finish lets the rest, which net/http writes after the handler, take streamTimeout.
func (w *response) finish() {
	if w.stall != nil && w.begun {
		w.control.SetWriteDeadline(time.Now().Add(streamTimeout))
	}
}

// watch begins to wait for a write, and what it returns ends that.
func (w *response) watch() (end func()) {
	if w.stall == nil {
		return func() {}
	}
	w.setWriting(true)
	w.stall.Reset(streamTimeout)
	return func() {
		w.stall.Stop()
		w.setWriting(false)
	}
}

func (w *response) setWriting(writing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = writing
}

func (w *response) stalled() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing {
		w.control.SetWriteDeadline(time.Now())
	}
}

// body is a request's, which must go on coming.
type body struct {
	io.ReadCloser
	control *http.ResponseController

	mu       sync.Mutex
	deadline time.Time
	reading  bool
	finished bool
	whole    bool // the end was read
	failed   error
}

func newBody(b io.ReadCloser, w *response) *body { return &body{ReadCloser: b, control: w.control} }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if now := time.Now(); !b.wait(now, now.Add(bodyTimeout)) {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(p)
	b.ended(err)
	return n, err
}

// Close implements io.Closer. A service that has answered needs no more of the body,
// so a read under way ends too: net/http would wait for it.
func (b *body) Close() error {
	b.mu.Lock()
	b.finished = true
	if b.reading {
		b.control.SetReadDeadline(time.Unix(1, 0))
	}
	b.mu.Unlock()
	return b.ReadCloser.Close()
}

// wait moves the deadline, unless the handler has returned: then a service's
// connection may still try to read, and the deadline is another request's.
func (b *body) wait(now, until time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.finished {
		return false
	}
	b.reading = true
	if b.deadline.Sub(now) < bodyTimeout/2 {
		b.deadline = until
		b.control.SetReadDeadline(until)
	}
	return true
}

func (b *body) ended(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	if err == nil || b.finished {
		return
	}
	// What comes next on the connection may take its time.
	b.control.SetReadDeadline(time.Time{})
	if err == io.EOF {
		b.whole = true
	} else if b.failed == nil {
		b.failed = err
	}
}

func (b *body) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finished = true
}

// ends reports whether all of the body was read.
func (b *body) ends() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole
}

// err is what reading ended with, if not with the body's end.
func (b *body) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// requestIDs are unique, and unlike those of other edges and other runs.
type requestIDs struct {
	run  string
	last *atomic.Uint64
}

func newRequestIDs() requestIDs {
	var b [4]byte
	rand.Read(b[:])
	return requestIDs{hex.EncodeToString(b[:]), new(atomic.Uint64)}
}

func (ids requestIDs) next() string {
	return ids.run + "-" + strconv.FormatUint(ids.last.Add(1), 36)
}

func port(p uint16) string { return strconv.Itoa(int(p)) }

// quota keeps a service that is down from filling the log: maxLogged lines a second.
type quota struct {
	mu           sync.Mutex
	second       int64
	used, hidden int
}

const maxLogged = 20

// allow reports whether to log, and how many times it said no before.
func (q *quota) allow(now time.Time) (hidden int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := now.Unix(); s != q.second {
		q.second, q.used = s, 0
	}
	if q.used++; q.used > maxLogged {
		q.hidden++
		return 0, false
	}
	hidden, q.hidden = q.hidden, 0
	return hidden, true
}

package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Edge is what a Handler speaks for. All methods may be called at once.
type Edge interface {
	// Caller says whose tunnel address this is.
	Caller(netip.Addr) Caller
	// Config is the live config and its digest; ErrNoConfig when there is none.
	Config() (Config, string, error)
	// Apply makes next the live config if the live one's digest is current ("" for
	// none), else it returns ErrConflict. A config the edge will not serve is
	// ErrRejected. After any error the edge is as it was.
	Apply(ctx context.Context, current string, next Config) error
	State() (State, error)
	PutCertificate(Certificate) error
	DeleteCertificate(name string) error
	// PutChallenge answers ACME HTTP-01 for token until ChallengeLife has passed.
	PutChallenge(token, keyAuthorization string) error
	DeleteChallenge(token string)
	// AgentConfig is the signed config for an agent, and a channel that is closed
	// when it may have changed. ok is false when there is none.
	AgentConfig(agent string) (s Signed, changed <-chan struct{}, ok bool)
	Heartbeat(agent string, h Heartbeat)
}

// Caller is who asks. The zero Caller is a stranger and may do nothing.
type Caller struct {
	// Control may do everything but speak for an agent.
	Control bool
	// Agent is a peer's name; it may fetch its config and send heartbeats.
	Agent string
}

// ChallengeLife is how long a challenge is answered.
const ChallengeLife = 10 * time.Minute

// Bounds of what is read from the wire, in bytes. They hold for the decoded body
// too when it comes compressed.
const (
	maxConfig    = 64 << 20
	maxSmall     = 1 << 20
	maxWait      = 60 * time.Second
	maxChallenge = 512
)

// Handler serves the API. The source address of a request is its authorization:
// inside the tunnel WireGuard has proven it, so a Handler must listen nowhere else.
func Handler(e Edge) http.Handler {
	h := handler{e}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/config", control(e, h.getConfig))
	mux.HandleFunc("PUT /v1/config", control(e, h.putConfig))
	mux.HandleFunc("GET /v1/state", control(e, h.getState))
	mux.HandleFunc("PUT /v1/certificates/{name}", control(e, h.putCertificate))
	mux.HandleFunc("DELETE /v1/certificates/{name}", control(e, h.deleteCertificate))
	mux.HandleFunc("PUT /v1/challenges/{token}", control(e, h.putChallenge))
	mux.HandleFunc("DELETE /v1/challenges/{token}", control(e, h.deleteChallenge))
	mux.HandleFunc("GET /v1/agent/config", agent(e, h.getAgentConfig))
	mux.HandleFunc("POST /v1/agent/heartbeat", agent(e, h.postHeartbeat))
	return mux
}

type handler struct{ edge Edge }

func control(e Edge, serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !caller(e, r).Control {
			fail(w, http.StatusForbidden, fmt.Errorf("%w: only the control plane may %s %s", ErrForbidden, r.Method, r.URL.Path))
			return
		}
		answer(w, serve(w, r))
	}
}

func agent(e Edge, serve func(http.ResponseWriter, *http.Request, string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := caller(e, r).Agent
		if name == "" {
			fail(w, http.StatusForbidden, fmt.Errorf("%w: only an agent of the live config may %s %s", ErrForbidden, r.Method, r.URL.Path))
			return
		}
		answer(w, serve(w, r, name))
	}
}

func caller(e Edge, r *http.Request) Caller {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return Caller{}
	}
	return e.Caller(from.Addr().Unmap())
}

func (h handler) getConfig(w http.ResponseWriter, r *http.Request) error {
	c, digest, err := h.edge.Config()
	if err != nil {
		return err
	}
	tag := quote(digest)
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeJSON(w, c)
}

func (h handler) putConfig(w http.ResponseWriter, r *http.Request) error {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	current, quoted := unquote(match)
	if !quoted && !(match == "" && none == "*") {
		return problem{http.StatusPreconditionRequired, errors.New(`say which config is to be replaced: If-Match: "digest", or If-None-Match: * when there is none`)}
	}
	body, err := readBody(w, r, maxConfig)
	if err != nil {
		return err
	}
	next, err := DecodeConfig(body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRejected, err)
	}
	if err := h.edge.Apply(r.Context(), current, next); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h handler) getState(w http.ResponseWriter, _ *http.Request) error {
	s, err := h.edge.State()
	if err != nil {
		return err
	}
	return writeJSON(w, s)
}

func (h handler) putCertificate(w http.ResponseWriter, r *http.Request) error {
	var c Certificate
	if err := readJSON(w, r, &c); err != nil {
		return err
	}
	if c.Name != r.PathValue("name") {
		return problem{http.StatusBadRequest, fmt.Errorf("certificate %q was put as %q", c.Name, r.PathValue("name"))}
	}
	if err := h.edge.PutCertificate(c); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h handler) deleteCertificate(w http.ResponseWriter, r *http.Request) error {
	if err := h.edge.DeleteCertificate(r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// challenge is the body of PUT /v1/challenges/{token}.
type challenge struct {
	KeyAuthorization string `json:"key_authorization"`
}

func (h handler) putChallenge(w http.ResponseWriter, r *http.Request) error {
	token := r.PathValue("token")
	var c challenge
	if err := readJSON(w, r, &c); err != nil {
		return err
	}
	// RFC 8555 section 8.1: base64url tokens, and the key authorization begins with
	// the token.
	if !isToken(token) || len(c.KeyAuthorization) > maxChallenge || !strings.HasPrefix(c.KeyAuthorization, token+".") {
		return problem{http.StatusBadRequest, errors.New("not an ACME token and its key authorization")}
	}
	if err := h.edge.PutChallenge(token, c.KeyAuthorization); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h handler) deleteChallenge(w http.ResponseWriter, r *http.Request) error {
	h.edge.DeleteChallenge(r.PathValue("token"))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h handler) getAgentConfig(w http.ResponseWriter, r *http.Request, name string) error {
	var timeout <-chan time.Time
	if text := r.URL.Query().Get("wait"); text != "" {
		wait, err := time.ParseDuration(text)
		if err != nil || wait < 0 {
			return problem{http.StatusBadRequest, fmt.Errorf("wait %q is no duration", text)}
		}
		t := time.NewTimer(min(wait, maxWait))
		defer t.Stop()
		timeout = t.C
	}
	have := r.Header.Get("If-None-Match")
	for {
		s, changed, ok := h.edge.AgentConfig(name)
		if ok && have != s.tag() {
			w.Header().Set("ETag", s.tag())
			return writeJSON(w, s)
		}
		if timeout == nil {
			return notChanged(w, have, name, ok)
		}
		select {
		case <-changed:
		case <-timeout:
			return notChanged(w, have, name, ok)
		case <-r.Context().Done():
			return nil
		}
		// The agent's key may have been taken out while it waited.
		if caller(h.edge, r).Agent != name {
			return problem{http.StatusForbidden, fmt.Errorf("%w: agent %s is no peer any more", ErrForbidden, name)}
		}
	}
}

func notChanged(w http.ResponseWriter, have, name string, ok bool) error {
	if !ok {
		return problem{http.StatusNotFound, fmt.Errorf("%w for agent %s", ErrNoConfig, name)}
	}
	w.Header().Set("ETag", have)
	w.WriteHeader(http.StatusNotModified)
	return nil
}

func (h handler) postHeartbeat(w http.ResponseWriter, r *http.Request, name string) error {
	var beat Heartbeat
	if err := readJSON(w, r, &beat); err != nil {
		return err
	}
	if beat.Agent != name {
		return problem{http.StatusForbidden, fmt.Errorf("%w: agent %s sent a heartbeat of agent %q", ErrForbidden, name, beat.Agent)}
	}
	h.edge.Heartbeat(name, beat)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// tag is the entity tag of a signed config.
func (s Signed) tag() string {
	h := sha256.New()
	h.Write(s.Signature)
	h.Write(s.Payload)
	return quote(hex.EncodeToString(h.Sum(nil)[:16]))
}

// problem is an error with the status that says it.
type problem struct {
	status int
	err    error
}

func (p problem) Error() string { return p.err.Error() }
func (p problem) Unwrap() error { return p.err }

// failure is the body of every answer that is an error.
type failure struct {
	Error string `json:"error"`
}

// answer says what went wrong, if anything did.
func answer(w http.ResponseWriter, err error) {
	var p problem
	switch {
	case err == nil:
	case errors.As(err, &p):
		fail(w, p.status, err)
	case errors.Is(err, ErrNoConfig):
		fail(w, http.StatusNotFound, err)
	case errors.Is(err, ErrConflict):
		fail(w, http.StatusPreconditionFailed, err)
	case errors.Is(err, ErrRejected):
		fail(w, http.StatusUnprocessableEntity, err)
	default:
		fail(w, http.StatusInternalServerError, err)
	}
}

func fail(w http.ResponseWriter, status int, err error) {
	w.Header().Del("ETag")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(failure{err.Error()})
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		// The status is on the wire, and with it part of the body: a cut connection
		// is the only way left to say that it is not whole.
		panic(http.ErrAbortHandler)
	}
	return nil
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := readBody(w, r, maxSmall)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return problem{http.StatusBadRequest, fmt.Errorf("decode body: %w", err)}
	}
	return nil
}

// readBody reads at most limit bytes, before and after decompression.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	var body io.Reader = http.MaxBytesReader(w, r.Body, limit)
	switch r.Header.Get("Content-Encoding") {
	case "":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, problem{http.StatusBadRequest, fmt.Errorf("read body: %w", err)}
		}
		body = io.LimitReader(z, limit+1)
	default:
		return nil, problem{http.StatusUnsupportedMediaType, fmt.Errorf("content encoding %q: want gzip or none", r.Header.Get("Content-Encoding"))}
	}
	var buf bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= limit {
		buf.Grow(int(n) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(body); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, problem{http.StatusRequestEntityTooLarge, fmt.Errorf("body is larger than %d bytes", limit)}
		}
		return nil, problem{http.StatusBadRequest, fmt.Errorf("read body: %w", err)}
	}
	if int64(buf.Len()) > limit {
		return nil, problem{http.StatusRequestEntityTooLarge, fmt.Errorf("body is larger than %d bytes", limit)}
	}
	return buf.Bytes(), nil
}

func quote(s string) string { return `"` + s + `"` }

// unquote is the inside of a strong entity tag (RFC 9110 section 8.8.3).
func unquote(tag string) (string, bool) {
	if len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return "", false
	}
	return tag[1 : len(tag)-1], true
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return 0 < len(s) && len(s) <= 256
}

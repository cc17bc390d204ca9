// Package certstest runs a real Pebble ACME server, and a DNS server that it can
// ask, inside a test.
package certstest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Options say how an Issuer behaves. The zero Options validate over the system's
// resolver and port 80, with none of Pebble's mischief.
type Options struct {
	// Resolver is the host:port of the DNS server that validation asks, over TCP.
	Resolver string
	// HTTPPort is where HTTP-01 is validated; 0 means 80.
	HTTPPort int
	// NonceReject is the share of good nonces that are refused, in percent.
	NonceReject int
	// Lifetime of issued certificates; 0 means 90 days.
	Lifetime time.Duration
	// ChainLength is how many intermediates a chain has; 0 means 1.
	ChainLength int
	// AlwaysValid leaves out validation.
	AlwaysValid bool
	// Log is where Pebble's own log goes; nil discards it.
	Log io.Writer
}

// Issuer is a running Pebble. It is safe for concurrent use.
type Issuer struct {
	// Directory is the directory's URL, for fleet.ACME.Directory.
	Directory string
	// CA is a file with the root of the directory's own HTTPS, for fleet.ACME.CA.
	CA string
	// RootPEM is the root that issued certificates chain to.
	RootPEM []byte

	management http.Handler

	mu      sync.Mutex
	down    bool
	limited time.Duration
	orders  []Order
	account int
}

// Order is what a client asked for in one newOrder request that was accepted.
type Order struct {
	// Hosts in the order's order.
	Hosts []string
	// Replaces is the certificate id of RFC 9773, empty for none.
	Replaces string
}

// environment is held while Pebble reads its settings, which it takes from the
// process's environment when it is made, and only then.
var environment sync.Mutex

// Pebble starts an Issuer on a loopback port; it is gone at the test's end. A
// goroutine of Pebble's validator stays, which has nothing to stop it with.
func Pebble(t testing.TB, o Options) *Issuer {
	t.Helper()
	if o.HTTPPort == 0 {
		o.HTTPPort = 80
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.ChainLength == 0 {
		o.ChainLength = 1
	}
	if o.Lifetime == 0 {
		o.Lifetime = 90 * 24 * time.Hour
	}
	logger := log.New(o.Log, "", log.LstdFlags)
	store := db.NewMemoryStore()
	authority := ca.New(logger, store, "", "ecdsa", 0, o.ChainLength, map[string]ca.Profile{
		"default": {Description: "default", ValidityPeriod: uint64(o.Lifetime / time.Second)},
	})
	front := configured(t, o, func() wfe.WebFrontEndImpl {
		validator := va.New(logger, o.HTTPPort, 0, false, o.Resolver, store)
		return wfe.New(logger, store, validator, authority, []string{"pebble.test"}, true, false, 0, 0)
	})
	p := &Issuer{management: front.ManagementHandler()}
	server := httptest.NewTLSServer(p.watch(front.Handler()))
	t.Cleanup(server.Close)
	p.Directory = server.URL + wfe.DirectoryPath
	p.RootPEM = authority.GetRootCert(0).PEM()
	p.CA = filepath.Join(t.TempDir(), "pebble-https.pem")
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(p.CA, root, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// configured calls build with Pebble's environment set, and puts it back. Not
// t.Setenv, which is for tests that are not parallel and lasts until their end.
func configured[T any](t testing.TB, o Options, build func() T) T {
	t.Helper()
	environment.Lock()
	defer environment.Unlock()
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_WFE_NONCEREJECT": strconv.Itoa(o.NonceReject),
		"PEBBLE_WFE_AUTHZREUSE":  "0",
		"PEBBLE_VA_ALWAYS_VALID": map[bool]string{true: "1", false: "0"}[o.AlwaysValid],
	} {
		before, had := os.LookupEnv(name)
		if err := os.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if had {
				os.Setenv(name, before)
			} else {
				os.Unsetenv(name)
			}
		}()
	}
	return build()
}

// SetDown makes every request fail with 503 (Service Unavailable), or ends that.
func (p *Issuer) SetDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

// SetRateLimited answers every newOrder with the problem rateLimited and that
// Retry-After, in whole seconds; 0 ends that.
func (p *Issuer) SetRateLimited(retryAfter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limited = retryAfter
}

// Orders are the orders accepted so far.
func (p *Issuer) Orders() []Order {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Order(nil), p.orders...)
}

// Accounts is how many accounts were registered.
func (p *Issuer) Accounts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.account
}

// SetRenewal sets the window in which the issuer wishes a certificate, the first
// in chain, to be renewed (RFC 9773).
func (p *Issuer) SetRenewal(t testing.TB, chain []byte, start, end time.Time, explanation string) {
	t.Helper()
	window := map[string]any{
		"suggestedWindow": map[string]time.Time{"start": start.UTC(), "end": end.UTC()},
		"explanationURL":  explanation,
	}
	info, err := json.Marshal(window)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"Certificate": string(chain), "ARIResponse": string(info)})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/set-renewal-info/", bytes.NewReader(body))
	r.Header.Set("User-Agent", "test")
	p.management.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("set renewal info: %d %s", w.Code, w.Body)
	}
}

func (p *Issuer) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		down, limited := p.down, p.limited
		p.mu.Unlock()
		switch {
		case down:
			http.Error(w, "down for the test", http.StatusServiceUnavailable)
		case r.URL.Path == "/order-plz" && limited > 0:
			w.Header().Set("Retry-After", strconv.Itoa(int(limited/time.Second)))
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusTooManyRequests)
			io.WriteString(w, `{"type":"urn:ietf:params:acme:error:rateLimited","status":429,"detail":"too many for the test"}`)
		case r.Method == http.MethodPost && (r.URL.Path == "/order-plz" || r.URL.Path == "/sign-me-up"):
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			status := &statusWriter{ResponseWriter: w}
			next.ServeHTTP(status, r)
			if status.code == http.StatusCreated {
				p.note(r.URL.Path, body)
			}
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// note reads what an accepted request asked for. The JWS was checked by Pebble.
func (p *Issuer) note(path string, jws []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path == "/sign-me-up" {
		p.account++
		return
	}
	var envelope struct{ Payload string }
	var order struct {
		Identifiers []struct{ Value string }
		Replaces    string
	}
	if json.Unmarshal(jws, &envelope) != nil {
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(envelope.Payload, "="))
	if err != nil || json.Unmarshal(payload, &order) != nil {
		return
	}
	o := Order{Replaces: order.Replaces}
	for _, id := range order.Identifiers {
		o.Hosts = append(o.Hosts, id.Value)
	}
	p.orders = append(p.orders, o)
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// HTTP is an edge's part in HTTP-01: it answers what was put, and nothing else.
// It is a certs.Challenges.
type HTTP struct {
	// Port is its loopback port, for Options.HTTPPort.
	Port int

	mu      sync.Mutex
	answers map[string]string
	puts    int
}

// Challenges starts an HTTP server on a loopback port; it is gone at the test's
// end.
func Challenges(t testing.TB) *HTTP {
	t.Helper()
	h := &HTTP{answers: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.URL.Path, "/.well-known/acme-challenge/")
		if answer := h.get(token); ok && answer != "" {
			io.WriteString(w, answer)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(server.Close)
	h.Port = server.Listener.Addr().(*net.TCPAddr).Port
	return h
}

// Put implements certs.Challenges.
func (h *HTTP) Put(_ context.Context, token, keyAuth string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers[token] = keyAuth
	h.puts++
	return nil
}

// Delete implements certs.Challenges.
func (h *HTTP) Delete(_ context.Context, token string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.answers, token)
	return nil
}

// Answers is how many answers stand, and how many were ever put.
func (h *HTTP) Answers() (now, ever int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.answers), h.puts
}

func (h *HTTP) get(token string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answers[token]
}

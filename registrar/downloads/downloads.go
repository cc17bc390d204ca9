// Package downloads offers the agent to the hosts of a fleet: a script that installs
// it, the agent for each platform, and a list of them that the control plane signs.
//
// The list is text that a shell can read, one line per file with its SHA-256, its size
// in bytes and its name:
//
//	kokoa agent manifest v1
//	version 1.2.3
//	expires 2027-01-31T00:00:00Z
//	2b4d…91 9437184 kokoa-agent-linux-arm64
//
// Its signature is ECDSA on P-256 over SHA-256 in ASN.1 DER, which any openssl checks.
// It expires, so that nobody can go on offering an old agent with known holes.
package downloads

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/packaging"
)

// Config says what is offered, and to whom it belongs.
type Config struct {
	// Dir is the folder with kokoa-agent-linux-amd64, -linux-arm64, -linux-armv7,
	// -darwin-amd64 and -darwin-arm64, or some of them. Files may be replaced at any
	// time. Empty offers nothing: the script then says so.
	Dir string
	// Key signs the list: keys.Secret.Downloads.
	Key *ecdsa.PrivateKey
	// URL is where hosts reach the control plane, like "https://control.example.com".
	// Only loopback addresses may be http. Empty offers nothing.
	URL string
	// Version of the files, for a Dir without a file VERSION that tells it.
	Version string
	// Log may be nil.
	Log *slog.Logger
}

// Handler answers GET and HEAD of what hosts download, below join.Prefix, and of
// /install.sh. It is safe for concurrent use.
type Handler struct {
	mux     http.ServeMux
	dir     string
	key     *ecdsa.PrivateKey
	version string
	log     *slog.Logger
	script  []byte
	// none says why nothing is offered; it is empty when something is.
	none string

	mu   sync.Mutex
	list *list
	lost string // the last error that was logged
}

// Lifetime is how long a list is good at least. It is signed anew every day.
const Lifetime = 7 * 24 * time.Hour

// Open reads the files and signs the list. A Dir without any file that can be offered
// is an error.
func Open(c Config) (*Handler, error) {
	h := &Handler{dir: c.Dir, key: c.Key, version: c.Version, log: c.Log}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.mux.HandleFunc("GET /install.sh", h.serveScript)
	h.mux.HandleFunc("GET "+join.Prefix+"install.sh", h.serveScript)
	h.mux.HandleFunc("GET "+join.Prefix+"manifest", h.serveList)
	h.mux.HandleFunc("GET "+join.Prefix+"manifest.sig", h.serveSignature)
	h.mux.HandleFunc("GET "+join.Prefix+"agent/{file}", h.serveFile)
	switch {
	case c.Dir == "":
		h.none = "this control plane offers no downloads: its operator can, with kokoa serve --agents; or bring kokoa-agent yourself, and run: kokoa-agent install --help"
	case c.URL == "":
		h.none = "this control plane offers no downloads, since it does not know its own address: its operator can tell it, with kokoa serve --join-url"
	}
	if h.none != "" {
		h.script = []byte("#!/bin/sh\n{ echo 'kokoa: " + h.none + "' >&2; exit 1; }\n")
		return h, nil
	}
	address := strings.TrimSuffix(c.URL, "/")
	if err := checkAddress(address); err != nil {
		return nil, fmt.Errorf("offer downloads: %w", err)
	}
	var err error
	if h.script, err = packaging.Install(address, &c.Key.PublicKey); err != nil {
		return nil, fmt.Errorf("offer downloads: %w", err)
	}
	if _, err := h.current(); err != nil {
		return nil, fmt.Errorf("offer downloads: %w", err)
	}
	return h, nil
}

// ServeHTTP answers, and with 404 and a sentence where there is nothing.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// What is cached elsewhere and not asked about again would fit no newer list.
	w.Header().Set("Cache-Control", "no-cache")
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) serveScript(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.script))
}

func (h *Handler) serveList(w http.ResponseWriter, r *http.Request) {
	if l := h.offered(w); l != nil {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.text))
	}
}

func (h *Handler) serveSignature(w http.ResponseWriter, r *http.Request) {
	if l := h.offered(w); l != nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.signature))
	}
}

func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	for range 3 { // the file may be replaced between a look and the next
		l := h.offered(w)
		if l == nil {
			return
		}
		f, ok := l.find(name)
		if !ok {
			http.Error(w, "there is no such download; there is "+strings.Join(l.names(), ", "), http.StatusNotFound)
			return
		}
		opened, err := f.open(h.dir)
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			h.unwell(w, err)
			return
		}
		defer opened.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%x", f.sum)))
		http.ServeContent(w, r, "", f.is.ModTime(), opened)
		return
	}
	h.unwell(w, fmt.Errorf("%s is being replaced", name))
}

// offered is the list as it is now; without one it has answered.
func (h *Handler) offered(w http.ResponseWriter) *list {
	if h.none != "" {
		http.Error(w, h.none, http.StatusNotFound)
		return nil
	}
	l, err := h.current()
	if err != nil {
		h.unwell(w, err)
		return nil
	}
	return l
}

// unwell answers that there is nothing for now. Anyone can ask as often as they like,
// so the same cause is logged once.
func (h *Handler) unwell(w http.ResponseWriter, err error) {
	h.mu.Lock()
	fresh := h.lost != err.Error()
	h.lost = err.Error()
	h.mu.Unlock()
	if fresh {
		h.log.Error("downloads not read", "err", err)
	}
	http.Error(w, "the downloads cannot be read now; try again later", http.StatusServiceUnavailable)
}

// checkAddress refuses an address whose downloads would not come over TLS.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("read address: %w", err)
	}
	ip, _ := netip.ParseAddr(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%q must begin with https://; only a loopback address may be without", address)
}

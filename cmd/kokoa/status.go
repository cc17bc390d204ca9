package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler"
)

// serveStatus answers GET /api/v1/status until ctx ends, and closes l. It can only
// be read, and only under an address or a name of this host, so that a page in
// somebody's browser cannot have it read by another name (DNS rebinding).
func serveStatus(ctx context.Context, l net.Listener, status func() *reconciler.Status) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, r *http.Request) {
		s := status()
		if s == nil {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "no turn has ended yet", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// A reader who went away is no trouble of ours.
		_ = printJSON(w, s)
	})
	return serveHTTP(ctx, l, &http.Server{
		Handler:           localOnly(mux),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
	})
}

// printJSON writes v for programs that people look at, too.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
			http.Error(w, "ask by address or as localhost", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// The services behind the agents, by the port that examples/fleet-repo names.
var services = []struct {
	port    uint16
	handler http.Handler
}{
	{2368, page("rpi-home", "Notes from a shelf", "This blog runs on a Raspberry Pi behind a home router. No port is open there.")},
	{3000, page("vm1", "The app", "One service for every tenant: it sees the Host that you asked for.")},
	{8080, http.HandlerFunc(echo)},
}

// startServices runs the small services that the agents forward to.
func (d *demo) startServices(context.Context) error {
	d.services = map[string]netip.AddrPort{}
	taken := map[string]bool{}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, s := range services {
		at, err := freeTCP(loopback, s.port, taken)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		server := &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second}
		done := make(chan struct{})
		go func() {
			defer close(done)
			// It ends when the demo does, and then says ErrServerClosed.
			server.Serve(l)
		}()
		d.closers = append(d.closers, func() { server.Close(); <-done })
		d.services[fmt.Sprintf("http://localhost:%d", s.port)] = at
	}
	return nil
}

var layout = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{.Title}}</title>
<style>
body{font:18px/1.6 Georgia,serif;max-width:34em;margin:12vh auto;padding:0 1em;color:#2b2320;background:#fbf7f2}
h1{font-weight:normal}dl{font:14px/1.7 ui-monospace,monospace;border-top:1px solid #d9cdc2;padding-top:1em}
dt{float:left;width:11em;color:#8a7668}dd{margin:0 0 0 11em;overflow-wrap:anywhere}
</style>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
<dl>{{range .Facts}}<dt>{{index . 0}}</dt><dd>{{index . 1}}</dd>{{end}}</dl>
`))

// page is a service that shows what reached it.
func page(origin, title, text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		facts := [][2]string{
			{"origin", origin},
			{"asked for", r.Method + " " + r.Host + r.URL.RequestURI()},
			{"you are", r.Header.Get("X-Real-IP")},
			{"edge spoke", r.Header.Get("X-Forwarded-Proto")},
			{"now", time.Now().Format(time.RFC3339)},
		}
		if !strings.Contains(r.Header.Get("Accept"), "text/html") {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintf(w, "%s\n%s\n", title, text)
			for _, f := range facts {
				fmt.Fprintf(w, "  %-10s %s\n", f[0], f[1])
			}
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		// A visitor who went away is no trouble of ours.
		_ = layout.Execute(w, map[string]any{"Title": title, "Text": text, "Facts": facts})
	})
}

// echo is a service that answers with what reached it, as JSON.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(map[string]string{
		"origin": "vm1", "method": r.Method, "host": r.Host, "path": r.URL.Path,
		"query": r.URL.RawQuery, "client": r.Header.Get("X-Real-IP"), "proto": r.Header.Get("X-Forwarded-Proto"),
	})
}

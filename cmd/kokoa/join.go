package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/program"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/registrar"
	"github.com/kokoa-proxy/kokoa/registrar/downloads"
)

// joining is what `kokoa serve` does for hosts that ask to become origins.
type joining struct {
	forging
	// listener is where hosts ask; nil is nowhere.
	listener net.Listener
	// url is where they reach it, and agents the folder of what they download.
	url, agents string
}

func (j *joining) flags(c *cobra.Command) {
	j.forging.flags(c)
	f := c.Flags()
	f.StringVar(&j.url, "join-url", "", "public address of the join API, like https://control.example.com, which a route of the fleet may publish (default that of --join-listen)")
	f.StringVar(&j.agents, "agents", "", "folder of the kokoa-agent files that hosts download, as a release has them")
}

// open makes the registrar and what answers hosts. Without a forge nothing can be
// proposed; hosts that open their pull requests themselves are still answered.
func (j *joining) open(o *control, secret keys.Secret, log *slog.Logger) (*registrar.Registrar, http.Handler, error) {
	l, err := o.ledger()
	if err != nil {
		return nil, nil, err
	}
	r := &registrar.Registrar{Secret: secret, Ledger: l, Log: log}
	switch at, err := o.forge(j.forging, log); {
	case errors.Is(err, errNoForge):
		log.Info("tokens not taken: pull requests cannot be opened", "reason", err.Error())
	case err != nil:
		return nil, nil, err
	default:
		r.Forge = at
	}
	if j.url == "" && j.listener != nil {
		j.url = "http://" + j.listener.Addr().String()
	}
	files, err := downloads.Open(downloads.Config{Dir: j.agents, Key: secret.Downloads(), URL: j.url, Version: program.Version(), Log: log})
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", files)
	mux.Handle(join.Path, r.Handler())
	return r, mux, nil
}

// run answers hosts and proposes what they ask until ctx ends. It closes the listener.
func (j *joining) run(ctx context.Context, r *registrar.Registrar, h http.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	defer func() {
		cancel() // also when hosts can no longer be answered
		<-done
	}()
	if j.listener == nil {
		<-ctx.Done()
		return nil
	}
	// A question may be held for a while, and a download take minutes.
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 10 * time.Minute, IdleTimeout: time.Minute}
	return serveHTTP(ctx, j.listener, server)
}

// view is what a turn says to the registrar.
func view(t reconciler.Turn, s *reconciler.Status, secret keys.Secret) registrar.View {
	v := registrar.View{
		Fleet: t.Fleet, Commit: t.Revision.Commit, Read: t.Revision.Read,
		Edges:      reconciler.AgentEdges(t.Fleet, secret),
		Heartbeats: map[string]api.Heartbeat{}, Rotated: map[string]bool{},
	}
	if s.Head.Commit != v.Commit {
		v.Trouble = s.Error
	}
	newest := map[string]time.Time{}
	for _, edge := range t.World.Edges {
		for _, a := range edge.State.Agents {
			if a.At.After(newest[a.Name]) {
				newest[a.Name], v.Heartbeats[a.Name] = a.At, a.Heartbeat
			}
		}
	}
	for name, rotation := range reconciler.Rotations(t.Fleet, t.World) {
		v.Rotated[name] = rotation.Done()
	}
	return v
}

// serveHTTP serves until ctx ends, and closes l.
func serveHTTP(ctx context.Context, l net.Listener, server *http.Server) error {
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			stopped <- server.Close()
			return
		}
		stopped <- nil
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", l.Addr(), err)
	}
	return <-stopped
}

// approval is the command that approves what a branch of a bare repo proposes.
func approval(branch string) string {
	name := branch
	if rest, ok := strings.CutPrefix(branch, path.Dir(join.Branch("x", keys.Public{}))+"/"); ok {
		if i := strings.LastIndexByte(rest, '-'); i > 0 {
			name = rest[:i]
		}
	}
	return "kokoa origin approve " + name
}

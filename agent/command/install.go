package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/agent/service"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

const installUsage = `usage: kokoa-agent install --control URL --name NAME [flags]

Install registers this host as an origin, waits until that is merged, installs the agent so
that it runs whenever the host is up, and waits until it is connected. The private key is
made here and never leaves. The same line again goes on where an install was stopped, and
repairs one that is damaged; it registers nothing twice.

  --prefix DIR        install below this folder, apart from any other agent, and run in the
                      background (default: as root the host's own agent; else the user's)
  --no-service        do not run the agent
` + joinFlags

const serviceUnitUsage = `usage: kokoa-agent service-unit [--user] [flags]

Service-unit prints the systemd unit that install would install.

  --user          the one for a user's own systemd
  --tunnel MAKE   for this make of tunnel; userspace needs no privilege (default auto)
  --binary FILE   where kokoa-agent is
  --config FILE   the agent's bootstrap file
  --data DIR      the agent's data folder
`

func (c *commands) install(ctx context.Context, args []string, stdout, _ io.Writer) error {
	j := c.newJoining("install", installUsage)
	prefix := j.flags.String("prefix", "", "")
	noService := j.flags.Bool("no-service", false, "")
	if err := j.parse(args, stdout); errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	below, err := absolute(*prefix)
	if err != nil {
		return err
	}
	at := c.place(below)
	if err := j.settle(at); err != nil {
		return err
	}
	at.config = j.config
	p := newProgress(stdout)
	defer p.clear()
	before, err := os.ReadFile(j.config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := j.register(ctx, p)
	if err != nil {
		return err
	}
	at.data = b.Data
	copied, err := copyBinary(at.binary)
	if err != nil {
		return err
	}
	if copied {
		p.done("Installed %s", at.binary)
	}
	if *noService {
		p.say("Run the agent: %s run --config %s", at.binary, at.config)
		return nil
	}
	after, err := os.ReadFile(j.config)
	if err != nil {
		return err
	}
	s := service.Find(ctx, at.where())
	a := service.Agent{Binary: at.binary, Config: at.config, Data: at.data, Tunnel: b.Tunnel}
	if err := s.Start(ctx, a, copied || !bytes.Equal(before, after)); err != nil {
		return fmt.Errorf("start the agent by %s: %w", s, err)
	}
	p.done("Started the agent (%s)", s)
	p.wait("Connecting the tunnels")
	r, err := connected(ctx, at.data, b.Name)
	if err != nil {
		return fmt.Errorf("the origin is registered, but %w; see what it says: %s", err, s.Logs())
	}
	p.done("Connecting tunnel to %s (%s)", strings.Join(upEdges(r), ", "), plain(r.Tunnel.Reason))
	p.say("\n✅ Origin %q is now registered!\n", b.Name)
	if notice := s.Notice(); notice != "" {
		p.say("%s\n", notice)
	}
	p.say("%s", nextSteps(b.Name, at, s))
	return nil
}

// where is the place as a service sees it.
func (p place) where() service.Where {
	return service.Where{System: p.system, Alone: p.prefix != "", Data: p.data, Again: p.line("install")}
}

// line is the command line of a command for the agent of the place.
func (p place) line(command string) string {
	if p.prefix != "" {
		return p.binary + " " + command + " --prefix " + p.prefix
	}
	return "kokoa-agent " + command
}

// copyBinary makes the program that runs the one at path, and reports whether that was
// another.
func copyBinary(path string) (bool, error) {
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("install program: %w", err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		return false, fmt.Errorf("install program: %w", err)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("install program: %w", err)
	}
	if err := atomicfile.Write(path, text, 0o755); err != nil {
		return false, fmt.Errorf("install program: %w", err)
	}
	return true, nil
}

const (
	// connectLimit is how long an agent may take until its first tunnel is up.
	connectLimit = 30 * time.Second
	connectLook  = 100 * time.Millisecond
)

// connected waits until the agent carries traffic.
func connected(ctx context.Context, data, name string) (agent.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	var r agent.Report
	why := errors.New("the agent does not run")
	for {
		next, err := agent.ReadReport(ctx, data)
		switch {
		case err == nil && next.Name == name:
			r = next
			if why = r.Unhealthy(); why == nil {
				return r, nil
			}
		case err == nil:
			why = fmt.Errorf("the agent of origin %q still runs", next.Name)
		case ctx.Err() == nil:
			why = err
		}
		select {
		case <-time.After(connectLook):
		case <-ctx.Done():
			return r, fmt.Errorf("after %v %w%s", connectLimit, why, silent(r))
		}
	}
}

// silent says which edges do not answer, and what that usually means.
func silent(r agent.Report) string {
	var places []string
	for _, e := range r.Edges {
		if !e.Up {
			places = append(places, fmt.Sprintf("%s at %s", e.Name, e.Endpoint))
		}
	}
	if len(places) == 0 {
		return ""
	}
	return ": no answer from " + strings.Join(places, ", ") + " (does this network let UDP out to there?)"
}

func upEdges(r agent.Report) []string {
	var names []string
	for _, e := range r.Edges {
		if e.Up {
			names = append(names, e.Name)
		}
	}
	return names
}

// nextSteps is what a person does with an origin.
func nextSteps(name string, at place, s service.Service) string {
	return fmt.Sprintf(`To publish a service of this host, add a route to the fleet repo, like routes/blog.cue:

	package fleet

	route: blog: {
		host:    "blog.example.com"
		origin:  %q
		service: "http://localhost:2368"
	}

How it is:       %s
Its log:         %s
To take it away: %s`, name, at.line("status"), s.Logs(), at.line("uninstall"))
}

func (c *commands) serviceUnit(_ context.Context, args []string, stdout, _ io.Writer) error {
	flags := newFlags("service-unit", serviceUnitUsage)
	user := flags.Bool("user", false, "")
	usual := system("/")
	if os.Geteuid() != 0 {
		usual = c.userPlace()
	}
	var a service.Agent
	flags.StringVar(&a.Tunnel, "tunnel", "auto", "")
	flags.StringVar(&a.Binary, "binary", "", "")
	flags.StringVar(&a.Config, "config", "", "")
	flags.StringVar(&a.Data, "data", "", "")
	if err := flags.parse(args, stdout); errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if !*user {
		usual = system("/")
	}
	for _, path := range []struct {
		to    *string
		usual string
	}{{&a.Binary, usual.binary}, {&a.Config, usual.config}, {&a.Data, usual.data}} {
		if *path.to == "" {
			*path.to = path.usual
		}
	}
	text, err := a.UserUnit(), error(nil)
	if !*user {
		text, err = a.Unit()
	}
	if err == nil {
		_, err = io.WriteString(stdout, text)
	}
	return err
}

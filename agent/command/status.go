package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/internal/program"
)

const whichAgent = `
  --config FILE   the agent with this bootstrap file (default: this user's agent)
  --data DIR      the agent with this data folder
  --prefix DIR    the agent that was installed below this folder
`

const statusUsage = `usage: kokoa-agent status [--json] [flags]

Status asks the running agent how it is. The exit code is 0 when all tunnels are up, 1 when
none is or no agent runs, and 3 when some are down.

  --json          print it as JSON
` + whichAgent

const healthUsage = `usage: kokoa-agent health [--json] [flags]

Health says in one line whether visitors can be served through the running agent: at least
one edge answered through its tunnel within the last 15 seconds, and the origin has not
expired. The exit code is 0 when they can, and else 1.

  --json          print it as JSON
` + whichAgent

func (c *commands) status(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := newFlags("status", statusUsage)
	asJSON, where := flags.Bool("json", false, ""), flags.place()
	if err := flags.parse(args, stdout); errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	at, err := where.place(c)
	if err != nil {
		return err
	}
	r, err := c.report(ctx, at)
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = printReport(stdout, r)
	}
	switch {
	case err != nil:
		return err
	case r.Unhealthy() != nil:
		return program.Exit{Code: codeError}
	case r.Up() < len(r.Edges):
		return program.Exit{Code: codePart}
	}
	return nil
}

func (c *commands) health(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := newFlags("health", healthUsage)
	asJSON, where := flags.Bool("json", false, ""), flags.place()
	if err := flags.parse(args, stdout); errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	at, err := where.place(c)
	if err != nil {
		return err
	}
	r, err := c.report(ctx, at)
	if err == nil {
		err = r.Unhealthy()
	}
	said := struct {
		Healthy bool   `json:"healthy"`
		Reason  string `json:"reason"`
	}{err == nil, ""}
	if err == nil {
		said.Reason = fmt.Sprintf("%d of %s up", r.Up(), plural(len(r.Edges), "tunnel"))
	} else {
		said.Reason = plain(err.Error())
	}
	switch {
	case *asJSON:
		err = json.NewEncoder(stdout).Encode(said)
	case said.Healthy:
		_, err = fmt.Fprintf(stdout, "healthy: %s\n", said.Reason)
	default:
		_, err = fmt.Fprintf(stdout, "unhealthy: %s\n", said.Reason)
	}
	if err == nil && !said.Healthy {
		err = program.Exit{Code: codeError}
	}
	return err
}

// report asks the agent of a place.
func (c *commands) report(ctx context.Context, at place) (agent.Report, error) {
	r, err := agent.ReadReport(ctx, at.data)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return r, fmt.Errorf("%w; the agent belongs to another user: ask as that user, or as root", err)
	case errors.Is(err, agent.ErrNotRunning) && os.Geteuid() != 0 && exists(system("/").config):
		return r, fmt.Errorf("%w; the agent in %s is root's: ask as root", err, system("/").config)
	}
	return r, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// printReport writes a report for people.
func printReport(w io.Writer, r agent.Report) error {
	fmt.Fprintf(w, "origin %s of fleet %s, up %s\n", r.Name, r.Fleet, span(r.Now.Sub(r.Started)))
	if r.Tunnel.Kind != "" {
		fmt.Fprintf(w, "tunnel %s\n", plain(r.Tunnel.Reason))
	}
	fmt.Fprintf(w, "address %s, key %s\n", r.Address, r.Key)
	switch {
	case r.Serial == 0:
		fmt.Fprintf(w, "no config yet: no edge has one for this origin\n")
	case r.Expires == nil:
		fmt.Fprintf(w, "config %d\n", r.Serial)
	case r.Now.Before(*r.Expires):
		fmt.Fprintf(w, "config %d, expires %s\n", r.Serial, until(*r.Expires, r.Now))
	default:
		fmt.Fprintf(w, "config %d, expired %s\n", r.Serial, until(*r.Expires, r.Now))
	}
	if r.Draining {
		fmt.Fprintln(w, "stopping: it takes no new visitors")
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "\nEDGE\tTUNNEL\tLAST ANSWER\tHANDSHAKE\tENDPOINT\n")
	for _, e := range r.Edges {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", e.Name, tunnelState(e, r.Now), ago(e.Answered, r.Now), ago(e.Handshake, r.Now), plain(e.Endpoint))
	}
	if len(r.Services) > 0 {
		fmt.Fprintf(t, "\nSERVICE\tURL\tHERE\tTIME\n")
	}
	for _, s := range r.Services {
		state, took := "up", milliseconds(s.RTT)
		if !s.Up {
			state, took = "down: "+plain(s.Error), ""
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", plain(s.ID), plain(s.URL), state, took)
	}
	err := t.Flush()
	if len(r.Refused) > 0 {
		fmt.Fprintf(w, "\nnot done:\n")
	}
	for _, text := range r.Refused {
		fmt.Fprintf(w, "  %s\n", plain(text))
	}
	return err
}

func tunnelState(e agent.EdgeReport, now time.Time) string {
	switch {
	case e.Up:
		return "up " + span(now.Sub(e.Since))
	case e.Since.IsZero():
		return "down"
	}
	return "down " + span(now.Sub(e.Since))
}

// milliseconds is a time like "3 ms".
func milliseconds(d time.Duration) string {
	if d < time.Millisecond {
		return "under 1 ms"
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
	"unicode/utf8"

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
func printReport(out io.Writer, r agent.Report) error {
	w := new(strings.Builder)
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
	edges := [][]string{{"EDGE", "TUNNEL", "LAST ANSWER", "HANDSHAKE", "ENDPOINT"}}
	for _, e := range r.Edges {
		edges = append(edges, []string{e.Name, tunnelState(e, r.Now), ago(e.Answered, r.Now), ago(e.Handshake, r.Now), e.Endpoint})
	}
	printTable(w, edges)
	services := [][]string{{"SERVICE", "URL", "HERE", "TIME"}}
	for _, s := range r.Services {
		state, took := "up", milliseconds(s.RTT)
		if !s.Up {
			state, took = "down: "+s.Error, ""
		}
		services = append(services, []string{s.ID, s.URL, state, took})
	}
	printTable(w, services)
	if len(r.Refused) > 0 {
		fmt.Fprintf(w, "\nnot done:\n")
	}
	for _, text := range r.Refused {
		fmt.Fprintf(w, "  %s\n", plain(text))
	}
	_, err := io.WriteString(out, w.String())
	return err
}

// printTable writes rows below a head, if there are any, in columns.
func printTable(w *strings.Builder, rows [][]string) {
	if len(rows) == 1 {
		return
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i := range row {
			row[i] = plain(row[i])
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	fmt.Fprintln(w)
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
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

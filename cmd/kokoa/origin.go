package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/registrar"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
	"github.com/kokoa-proxy/kokoa/schema"
)

func originCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "origin",
		Short: "List origins, and approve, remove or rotate one",
		Long: `Origins are what the fleet repo says they are; these commands propose changes to it,
or merge them. Run them where ` + "`kokoa serve`" + ` runs, as its user.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(originListCommand(), originApproveCommand(), originRemoveCommand(), originRotateCommand())
	return c
}

// look is the fleet repo at its head, as the commands about origins see it.
func (o *control) look(ctx context.Context, log *slog.Logger) (registrar.View, error) {
	kept := *o
	kept.repo = home(o.repo)
	source, err := kept.source(false, log)
	if err != nil {
		return registrar.View{}, err
	}
	defer source.Close()
	revision, err := source.Fetch(ctx)
	if err != nil {
		return registrar.View{}, err
	}
	loader := schema.NewLoader(schema.Options{CacheDir: cacheDir("schema"), Log: log})
	defer loader.Close()
	f, _, err := loader.Load(ctx, revision)
	if err != nil {
		return registrar.View{}, err
	}
	// The files that a change may need are read while the source is open.
	files := map[string][]byte{}
	for _, origin := range f.Origins {
		files[origin.Position.File] = nil
	}
	for _, route := range f.Routes {
		files[route.Position.File] = nil
	}
	for name := range files {
		if files[name], err = revision.Read(name); err != nil {
			return registrar.View{}, err
		}
	}
	read := func(name string) ([]byte, error) {
		text, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("%s is not in the fleet repo", name)
		}
		return text, nil
	}
	return registrar.View{Fleet: f, Commit: revision.Commit, Read: read}, nil
}

// originRow is an origin, or a host on its way to be one.
type originRow struct {
	Name     string     `json:"name"`
	State    string     `json:"state"`
	Address  string     `json:"address,omitempty"`
	Platform string     `json:"platform,omitempty"`
	Edges    []string   `json:"edges"`
	Services string     `json:"services,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
	// From is its place in the repo, or the pull request that proposes it.
	From  string   `json:"from"`
	Flags []string `json:"flags,omitempty"`
}

func originListCommand() *cobra.Command {
	var (
		o              control
		format, status string
	)
	c := &cobra.Command{
		Use:   "list",
		Short: "List origins and the hosts that ask to become one",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			v, err := o.look(c.Context(), log)
			if err != nil {
				return err
			}
			l, err := o.ledger()
			if err != nil {
				return err
			}
			asking, err := l.Registrations()
			if err != nil {
				return err
			}
			live, err := askStatus(c.Context(), status)
			if err != nil {
				fmt.Fprintf(c.ErrOrStderr(), "kokoa: how the origins are is not known, since kokoa serve does not answer: %v\n", err)
			}
			return listOrigins(c.OutOrStdout(), format, originRows(v, live, asking, time.Now()))
		},
	}
	o.flags(c)
	o.stateFlag(c)
	c.Flags().StringVar(&status, "status", "http://127.0.0.1:7080", "address of the status of kokoa serve")
	c.Flags().StringVar(&format, "format", "text", "text or json")
	return c
}

func askStatus(ctx context.Context, at string) (*reconciler.Status, error) {
	ctx, cancel := within(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(at, "/")+"/api/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", at, resp.Status)
	}
	var s reconciler.Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return &s, nil
}

// originRows joins what the repo, the edges and the ledger say. live may be nil.
func originRows(v registrar.View, live *reconciler.Status, asking []ledger.Registration, now time.Time) []originRow {
	seen := map[string]reconciler.OriginStatus{}
	if live != nil {
		for _, s := range live.Origins {
			seen[s.Name] = s
		}
	}
	rows := []originRow{}
	for _, name := range v.Fleet.OriginNames() {
		origin := v.Fleet.Origins[name]
		row := originRow{Name: name, State: "unknown", Address: origin.TunnelAddress.String(), Edges: []string{}, Expires: origin.Expires, From: origin.Position.String()}
		s, known := seen[name]
		switch {
		case origin.Expires != nil && !now.Before(*origin.Expires):
			row.State = "ended"
		case known && len(s.Edges) > 0:
			row.State, row.Edges = "up", s.Edges
		case live != nil:
			row.State = "down"
		}
		if b := s.Heartbeat; b != nil {
			up := 0
			for _, service := range b.Services {
				if service.Up {
					up++
				}
			}
			row.Platform, row.Services = b.Platform, fmt.Sprintf("%d of %d up", up, len(b.Services))
		}
		rows = append(rows, row)
	}
	for _, g := range asking {
		if g.State != join.Accepted && g.State != join.Proposed && g.State != join.Merged {
			continue
		}
		row := originRow{Name: g.Name, State: string(g.State), Platform: g.Platform, Edges: []string{}, Expires: g.Expires, From: g.Pull, Flags: g.Flags}
		if g.Address.IsValid() {
			row.Address = g.Address.String()
		}
		rows = append(rows, row)
	}
	return rows
}

func listOrigins(w io.Writer, format string, rows []originRow) error {
	switch format {
	case "json":
		return printJSON(w, rows)
	case "text":
	default:
		return fmt.Errorf("unknown --format %q; it is text or json", format)
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "no origins; let a host join with: kokoa token create --name NAME")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ORIGIN\tSTATE\tADDRESS\tPLATFORM\tEDGES\tSERVICES\tENDS\tFROM")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.State, orDash(r.Address), orDash(r.Platform),
			orDash(strings.Join(r.Edges, " ")), orDash(r.Services), ends(r.Expires, time.Now()), orDash(r.From))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		for _, flag := range r.Flags {
			if _, err := fmt.Fprintf(w, "\nlook twice at %s: %s\n", r.Name, flag); err != nil {
				return err
			}
		}
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// ends is how long something still has, in words.
func ends(at *time.Time, now time.Time) string {
	switch {
	case at == nil:
		return "never"
	case !now.Before(*at):
		return "ended"
	}
	left := at.Sub(now)
	if left < time.Hour {
		return fmt.Sprintf("in %d minutes", int(left.Minutes())+1)
	}
	if left < 48*time.Hour {
		return fmt.Sprintf("in %d hours", int(left.Hours()))
	}
	return at.Local().Format(time.DateOnly)
}

func originApproveCommand() *cobra.Command {
	var (
		o       control
		g       forging
		despite bool
	)
	c := &cobra.Command{
		Use:   "approve NAME",
		Short: "Merge the proposal that makes a host an origin",
		Long: `Approve merges the open proposal of a host that registers under NAME, as you would in
the web pages of a forge. Other proposals of Kokoa's are approved by their branch,
like kokoa/expired. One with something to look twice at is shown, and merged only
with --despite-flags.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			at, err := o.forge(g, log)
			if err != nil {
				return err
			}
			l, err := o.ledger()
			if err != nil {
				return err
			}
			branch, err := proposalOf(l, args[0])
			if err != nil {
				return err
			}
			if len(branch.flags) > 0 && !despite {
				for _, flag := range branch.flags {
					fmt.Fprintf(c.ErrOrStderr(), "look twice: %s\n", flag)
				}
				return fmt.Errorf("%s is not merged; when that is what you want, add --despite-flags", branch.name)
			}
			pull, err := at.Find(c.Context(), branch.name)
			if errors.Is(err, forge.ErrNoPull) {
				return fmt.Errorf("nothing is proposed as %s; see: kokoa origin list", args[0])
			}
			if err != nil {
				return err
			}
			if pull.State == forge.Closed {
				return fmt.Errorf("%s was closed without being merged; the host may ask again", pull.Branch)
			}
			if err := at.Merge(c.Context(), pull); err != nil {
				return fmt.Errorf("merge %s: %w", pull.Branch, err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "merged %s\n", pull.Branch)
			return err
		},
	}
	o.flags(c)
	o.stateFlag(c)
	g.flags(c)
	c.Flags().BoolVar(&despite, "despite-flags", false, "merge although there is something to look twice at")
	return c
}

type proposal struct {
	name  string
	flags []string
}

// proposalOf is the branch of what a person calls by an origin's name or by the branch.
func proposalOf(l *ledger.Ledger, name string) (proposal, error) {
	all, err := l.Registrations()
	if err != nil {
		return proposal{}, err
	}
	var found []proposal
	for _, g := range all {
		if g.State != join.Proposed && g.State != join.Accepted || g.Branch == "" {
			continue
		}
		switch {
		case g.Branch == name && len(found) > 0:
			found[0].flags = append(found[0].flags, g.Flags...)
		case g.Name == name, g.Branch == name:
			found = append(found, proposal{g.Branch, g.Flags})
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return proposal{}, fmt.Errorf("several hosts ask to be %q: approve one by its branch: %s", name, branchNames(found))
	case strings.HasPrefix(name, "kokoa/"):
		return proposal{name: name}, nil
	}
	return proposal{}, fmt.Errorf("no host asks to be %q; see: kokoa origin list", name)
}

func branchNames(all []proposal) string {
	var names []string
	for _, p := range all {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

func originRemoveCommand() *cobra.Command {
	var (
		o             control
		g             forging
		routes, merge bool
	)
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Propose to take an origin out of the fleet",
		Long: `Remove proposes to take an origin out of the fleet repo. Once that is merged every
edge cuts its tunnel, within seconds. In a bare repo on this host it is merged at
once; elsewhere a pull request is opened, and --merge merges it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			at, err := o.forge(g, log)
			if err != nil {
				return err
			}
			v, err := o.look(c.Context(), log)
			if err != nil {
				return err
			}
			p, err := registrar.Remove(v, args[0], routes)
			if err != nil {
				return err
			}
			pull, err := at.Propose(c.Context(), p)
			if err != nil {
				return fmt.Errorf("propose to remove %s: %w", args[0], err)
			}
			if !merge && pull.Number != 0 {
				_, err = fmt.Fprintf(c.OutOrStdout(), "proposed: %s\n", pull.URL)
				return err
			}
			if err := at.Merge(c.Context(), pull); err != nil {
				return fmt.Errorf("merge %s: %w", pull.Branch, err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "origin %s is removed; its tunnels end within seconds\n", args[0])
			return err
		},
	}
	o.flags(c)
	o.stateFlag(c)
	g.flags(c)
	c.Flags().BoolVar(&routes, "with-routes", false, "remove the routes that only it serves, too")
	c.Flags().BoolVar(&merge, "merge", false, "merge the pull request at once")
	return c
}

func originRotateCommand() *cobra.Command {
	var o control
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Have an origin's agent make itself a new key",
		Long: `Rotate asks an origin's agent to make itself a new WireGuard key. The agent signs it
with its old one, kokoa serve writes it into the fleet repo, and both keys are valid
until every edge has seen the new one. No request fails meanwhile.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			v, err := o.look(c.Context(), log)
			if err != nil {
				return err
			}
			origin, ok := v.Fleet.Origins[args[0]]
			switch {
			case !ok:
				return fmt.Errorf("the fleet has no origin %q; it has: %s", args[0], strings.Join(v.Fleet.OriginNames(), ", "))
			case !origin.NextKey.IsZero():
				return fmt.Errorf("%s: origin %q is changing its key already", origin.Position, args[0])
			}
			l, err := o.ledger()
			if err != nil {
				return err
			}
			if err := l.Rotate(args[0], time.Now()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "origin %s is asked for a new key; watch it with: kokoa origin list\n", args[0])
			return err
		},
	}
	o.flags(c)
	o.stateFlag(c)
	return c
}

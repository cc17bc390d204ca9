package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/demo"
	"github.com/kokoa-proxy/kokoa/edge"
)

func demoCommand() *cobra.Command {
	var (
		o      demo.Options
		listen string
	)
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole fleet on this machine",
		Long: `Demo starts a control plane, two edges, two agents with small services, DNS and a
CA on this machine, from examples/fleet-repo, and says what to try. It needs no
privilege. Ctrl-C ends it, and removes what it made.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("demo: find this program: %w", err)
			}
			if o.Listen, err = netip.ParseAddr(listen); err != nil {
				return fmt.Errorf("demo: --listen %q is not an IP address", listen)
			}
			o.Out, o.Self = c.OutOrStdout(), []string{self, "demo"}
			o.Control = func(ctx context.Context, d demo.Control) error {
				s := serving{
					control:  control{repo: d.Repo, branch: "main", secretFile: d.SecretFile, state: d.State},
					joining:  joining{forging: forging{kind: "bare"}, listener: d.Join, agents: d.Agents},
					listener: d.Status, interval: d.Interval, grace: d.Grace, turn: d.Turn, ca: d.CA,
				}
				return s.run(ctx, slog.New(slog.NewTextHandler(d.Log, nil)))
			}
			return demo.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", "", "folder for everything, kept at the end (default: a temporary one)")
	c.Flags().StringVar(&listen, "listen", "127.0.0.1", "address to listen on")
	c.Flags().BoolVar(&o.Once, "once", false, "end when everything serves")
	c.AddCommand(
		part("edge", func(ctx context.Context, b edge.Bootstrap, log *slog.Logger) error { return edge.Main(ctx, b, log) }),
		part("agent", agent.Run),
	)
	return c
}

// part is an edge or agent of the demo, as a process of its own.
func part[B any](role string, run func(context.Context, B, *slog.Logger) error) *cobra.Command {
	return &cobra.Command{
		Use:    role + " FILE",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			var b B
			if err := json.Unmarshal(data, &b); err != nil {
				return fmt.Errorf("read %s: %w", args[0], err)
			}
			ctx, cancel := demo.Lifeline(c.Context(), c.InOrStdin())
			defer cancel()
			return run(ctx, b, slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil)))
		},
	}
}

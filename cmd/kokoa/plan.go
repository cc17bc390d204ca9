package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// report is how a plan is shown.
type report struct {
	format   string
	all      bool
	jsonInto string
}

func (r *report) flags(c *cobra.Command) {
	c.Flags().StringVar(&r.format, "format", "text", "text, json or markdown")
	c.Flags().BoolVar(&r.all, "all", false, "list every change, however many")
	c.Flags().StringVar(&r.jsonInto, "json-into", "", "write the plan as JSON into a file, too")
}

func (r *report) check() error {
	switch r.format {
	case "text", "json", "markdown":
		return nil
	}
	return fmt.Errorf("unknown --format %q; it is text, json or markdown", r.format)
}

// document is a plan and where it came from, as JSON.
type document struct {
	plan.Document
	Source struct {
		Commit      string `json:"commit"`
		Subject     string `json:"subject"`
		Uncommitted bool   `json:"uncommitted"`
	} `json:"source"`
	TookMS int64 `json:"took_ms"`
}

// show writes a turn's plan.
func (r *report) show(w io.Writer, t reconciler.Turn) error {
	d := document{Document: t.Plan.Document(), TookMS: t.Took.Milliseconds()}
	d.Source.Commit, d.Source.Subject, d.Source.Uncommitted = t.Revision.Commit, t.Revision.Subject, t.Revision.Uncommitted
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if r.jsonInto != "" {
		if err := atomicfile.Write(r.jsonInto, data, 0o644); err != nil {
			return err
		}
	}
	switch r.format {
	case "json":
		_, err = w.Write(data)
	case "markdown":
		err = t.Plan.Markdown(w)
	default:
		subject := ""
		if t.Revision.Subject != "" {
			subject = fmt.Sprintf(" %q", t.Revision.Subject)
		}
		fmt.Fprintf(w, "Plan for fleet %s at %s%s\n\n", t.Fleet.Name, t.Revision, subject)
		err = t.Plan.Text(w, r.all)
	}
	return err
}

func planCommand() *cobra.Command {
	var (
		o        control
		r        report
		detailed bool
		timeout  time.Duration
	)
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what would change",
		Long: `Plan compares a fleet repo with the live fleet, and changes nothing. A folder is
taken as it lies, uncommitted files and all. It is a WireGuard peer of the edges,
in user space: it needs the fleet secret and no privilege.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := r.check(); err != nil {
				return err
			}
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			// A command that ends in a second need not collect much.
			debug.SetGCPercent(400)
			opened, err := o.open(false, true, log)
			if err != nil {
				return err
			}
			defer closing(opened, &err)
			ctx, cancel := within(c.Context(), timeout)
			defer cancel()
			commit, err := opened.Read(ctx)
			if err != nil {
				return err
			}
			if err := commit.Warnings.Text(c.ErrOrStderr()); err != nil {
				return err
			}
			t, planErr := opened.Plan(ctx, commit)
			if planErr != nil && !errors.Is(planErr, plan.ErrTooManyDeletes) {
				return planErr
			}
			if err := r.show(c.OutOrStdout(), t); err != nil {
				return err
			}
			if planErr != nil {
				return planErr
			}
			if detailed && len(t.Plan.Changes) > 0 {
				return exitCode(codeChanges)
			}
			return nil
		},
	}
	o.flags(c)
	r.flags(c)
	c.Flags().StringVar(&o.state, "state", "", "folder of the control plane's state, when this host has it")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 2 when there are changes")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up after this long")
	return c
}

func applyCommand() *cobra.Command {
	var (
		o       control
		r       report
		approve int
		timeout time.Duration
	)
	c := &cobra.Command{
		Use:   "apply",
		Short: "Make the live fleet as the repo wants it, once",
		Long: `Apply makes turns until nothing is left to change or to wait for. A folder must be
a Git clone; what is committed to its branch is applied. What it deletes beyond
the fleet's guards it asks for: --approve-deletes takes the number it shows.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := r.check(); err != nil {
				return err
			}
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			opened, err := o.open(false, false, log)
			if err != nil {
				return err
			}
			defer closing(opened, &err)
			opened.Approved = approve
			ctx, cancel := within(c.Context(), timeout)
			defer cancel()
			commit, err := opened.Read(ctx)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			var shown error
			last, err := opened.Converge(ctx, commit, func(t reconciler.Turn) {
				if len(t.Plan.Changes) > 0 {
					shown = errors.Join(shown, r.show(out, t))
				}
			})
			if errors.Is(err, plan.ErrTooManyDeletes) {
				shown = errors.Join(shown, r.show(out, last))
			}
			if err != nil {
				return errors.Join(err, shown)
			}
			if shown != nil {
				return shown
			}
			if failed := last.Failed(); len(failed) > 0 {
				var all error
				for _, f := range failed {
					all = errors.Join(all, fmt.Errorf("%s %s: %w", f.Change.Action, f.Change.Ref, f.Err))
				}
				return fmt.Errorf("%w; run it again:\n%w", errPartly, all)
			}
			if !last.Settled() {
				if err := r.show(out, last); err != nil {
					return err
				}
				return fmt.Errorf("%w: %d things were still waiting after %s", errPartly, len(last.Plan.Waiting)+len(last.Pending), timeout)
			}
			if r.format == "text" {
				fmt.Fprintf(out, "Done: %s is live, %d things are as Git wants them.\n", last.Revision, last.Plan.Unchanged)
			}
			return nil
		},
	}
	o.flags(c)
	r.flags(c)
	c.Flags().StringVar(&o.state, "state", stateDir(), "folder of the control plane's state: certificates, ACME account, history")
	c.Flags().IntVar(&approve, "approve-deletes", 0, "agree to just this many deletions")
	c.Flags().DurationVar(&timeout, "timeout", patience, "give up after this long")
	return c
}

// Kokoa is the command line and the control plane of a fleet: it shows what a
// commit would change (plan), makes it so (apply), keeps it so (serve), checks a
// fleet repo (vet), and runs a whole fleet on this machine (demo).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	agentcommand "github.com/kokoa-proxy/kokoa/agent/command"
	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/program"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
)

func main() {
	// The demo's hosts download this program as their agent: no Go is needed to make
	// another one.
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kokoa-agent") {
		agentcommand.Main()
		return
	}
	schema.RunIfWorker()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is a whole call of the command, and its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var exit exitCode
	if errors.As(err, &exit) {
		return int(exit)
	}
	if err != nil {
		var diagnostics schema.Diagnostics
		if errors.As(err, &diagnostics) {
			if werr := diagnostics.Text(stderr); werr != nil {
				return codeError
			}
		} else {
			fmt.Fprintf(stderr, "kokoa: %v\n", err)
		}
	}
	return codeOf(err)
}

// The exit codes.
const (
	codeOK        = 0
	codeError     = 1
	codeChanges   = 2
	codeBlocked   = 3
	codeStale     = 4
	codeInvalid   = 5
	codePartly    = 6
	codeDenied    = 8
	codeCancelled = 9
)

// exitCode ends the command with a code and nothing more to say.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// errPartly is in the error of an apply that made some changes and not others.
var errPartly = errors.New("not everything was applied")

func codeOf(err error) int {
	var diagnostics schema.Diagnostics
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &diagnostics):
		return codeInvalid
	case errors.Is(err, plan.ErrTooManyDeletes):
		return codeBlocked
	case errors.Is(err, api.ErrConflict), errors.Is(err, dns.ErrConflict):
		return codeStale
	case errors.Is(err, repo.ErrDenied):
		return codeDenied
	case errors.Is(err, errPartly):
		return codePartly
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return codeCancelled
	}
	return codeError
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "kokoa",
		Short: "A self-hosted tunnel whose desired state is CUE in Git",
		Long: `Kokoa makes services behind NAT public over HTTPS, through edges you own.
What is desired is CUE in a Git repo; kokoa converges edges, DNS and certificates.

Exit codes: 0 done or nothing to do, 1 error, 2 changes (with --detailed-exitcode),
3 blocked by a guard, 4 the world moved meanwhile, 5 the fleet repo is invalid,
6 applied partly, 8 the fleet repo's host refused the credentials, 9 cancelled or
timed out.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       program.Version(),
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetVersionTemplate("kokoa {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(vetCommand(), planCommand(), applyCommand(), serveCommand(), demoCommand(), secretCommand(), bootstrapCommand(), tokenCommand(), originCommand())
	return root
}

// logger writes for people, or JSON for machines.
func logger(w io.Writer, format string, verbose bool) (*slog.Logger, error) {
	options := &slog.HandlerOptions{}
	if verbose {
		options.Level = slog.LevelDebug
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("unknown --log %q; it is text or json", format)
}

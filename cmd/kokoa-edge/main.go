// Kokoa-edge is the public end of a fleet: it ends TLS, and carries requests to
// services behind agents, through WireGuard tunnels.
//
//	kokoa-edge run --config FILE [--log text|json]
//	kokoa-edge version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/kokoa-proxy/kokoa/edge"
)

const usage = `usage:
  kokoa-edge run --config FILE [--log text|json]
  kokoa-edge version

run serves the fleet's routes until it is told to end (SIGTERM), and then lets
requests under way finish for up to 10 s. A second signal ends it at once.
  --config FILE       bootstrap file, mode 0600: it holds a private key
  --log text|json     form of the log on standard error (default text)

version prints the version of this binary.
`

// Exit codes.
const (
	exitError = 1
	exitUsage = 2
)

// errUsage is in every error about the command line itself.
var errUsage = errors.New("run kokoa-edge --help for how to use it")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// From the first signal on a second one ends the process as it would any other.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "kokoa-edge: %v\n", err)
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitError)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command given; %w", errUsage)
	}
	switch command, rest := args[0], args[1:]; command {
	case "run":
		return serve(ctx, rest, stdout, stderr)
	case "version":
		if len(rest) > 0 {
			return fmt.Errorf("version: unexpected argument %q; %w", rest[0], errUsage)
		}
		_, err := fmt.Fprintf(stdout, "kokoa-edge %s %s %s/%s\n", edge.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return fmt.Errorf("unknown command %q; %w", command, errUsage)
	}
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var config, format string
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&config, "config", "", "")
	flags.StringVar(&format, "log", "text", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(stdout, usage)
		return err
	case err != nil:
		return fmt.Errorf("run: %w; %w", err, errUsage)
	case flags.NArg() > 0:
		return fmt.Errorf("run: unexpected argument %q; %w", flags.Arg(0), errUsage)
	case config == "":
		return fmt.Errorf("run: --config FILE is missing; %w", errUsage)
	}
	var handler slog.Handler
	switch format {
	case "text":
		handler = slog.NewTextHandler(stderr, nil)
	case "json":
		handler = slog.NewJSONHandler(stderr, nil)
	default:
		return fmt.Errorf("run: --log %q: want text or json; %w", format, errUsage)
	}
	b, err := edge.ReadBootstrap(config)
	if err != nil {
		return err
	}
	return edge.Main(ctx, b, slog.New(handler))
}

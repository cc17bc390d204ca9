// Kokoa-agent keeps tunnels to the edges of a fleet and forwards what comes
// through them to services of its host.
//
//	kokoa-agent run --config FILE [--allow HOST:PORT]... [--log text|json]
//	kokoa-agent version
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

	"github.com/kokoa-proxy/kokoa/agent"
)

const usage = `usage:
  kokoa-agent run --config FILE [--allow HOST:PORT]... [--log text|json]
  kokoa-agent version

run keeps tunnels to the fleet's edges and forwards to services of this host.
  --config FILE       bootstrap file, mode 0600: it holds a private key
  --allow HOST:PORT   dial this service and no others but those also allowed;
                      may be repeated, and adds to "allow" in the file
  --log text|json     form of the log on standard error (default text)

version prints the version of this binary.
`

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// errUsage is in every error about the command line itself.
var errUsage = errors.New("run kokoa-agent --help for how to use it")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal begins the drain; from then on a second one ends the
	// process as it would any other.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "kokoa-agent: %v\n", err)
		os.Exit(exitUsage)
	case err != nil:
		fmt.Fprintf(os.Stderr, "kokoa-agent: %v\n", err)
		os.Exit(exitError)
	}
	os.Exit(exitOK)
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
		_, err := fmt.Fprintf(stdout, "kokoa-agent %s %s %s/%s\n", agent.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return fmt.Errorf("unknown command %q; %w", command, errUsage)
	}
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var (
		config string
		format string
		allow  []string
	)
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&config, "config", "", "")
	flags.StringVar(&format, "log", "text", "")
	flags.Func("allow", "", func(entry string) error {
		allow = append(allow, entry)
		return nil
	})
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
	b, err := agent.ReadBootstrap(config)
	if err != nil {
		return err
	}
	b.Allow = append(b.Allow, allow...)
	return agent.Run(ctx, b, slog.New(handler))
}

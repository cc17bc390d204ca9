// Package program is the command line of a program that runs from one config file
// until it is told to end: kokoa-edge and kokoa-agent.
package program

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
	"runtime/debug"
	"syscall"
)

// release is set by packaging/release.sh: go build -ldflags "-X <package>.release=v1.2.3".
var release string

// Version is the version of Kokoa in this binary, as its build recorded it.
func Version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Program is what such a program is made of. Its commands are run, version, help and
// its own.
type Program struct {
	Name string
	// Usage is the whole help text.
	Usage string
	// Config is the file of run when --config is not given; nil means that it must be.
	Config func() string
	// Commands are the program's own, by name; may be nil. Their errors may be an Exit.
	Commands map[string]func(ctx context.Context, args []string, stdout, stderr io.Writer) error
	// Flags adds the flags of run beyond --config and --log; may be nil.
	Flags func(*flag.FlagSet)
	// Run runs until ctx ends.
	Run func(ctx context.Context, config string, log *slog.Logger) error
}

// The exit codes but 0.
const (
	exitError = 1
	exitUsage = 2
)

// ErrUsage is in every error about the command line itself.
var ErrUsage = errors.New("a mistake in the command line")

// Exit ends the program with a code of its own.
type Exit struct {
	Code int
	// Err is printed; nil means that all has been said.
	Err error
}

func (e Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap is Err.
func (e Exit) Unwrap() error { return e.Err }

// Main runs the program with this process's arguments and ends the process. The
// first interrupt or SIGTERM ends the context; a second one ends the process as it
// would any other.
func (p Program) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := p.Call(ctx, os.Args[1:], os.Stdout, os.Stderr)
	var exit Exit
	switch {
	case errors.As(err, &exit):
		if exit.Err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, exit.Err)
		}
		os.Exit(exit.Code)
	case errors.Is(err, ErrUsage):
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(exitUsage)
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(exitError)
	}
	os.Exit(0)
}

// Call is one call of the program.
func (p Program) Call(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return p.Misused("no command given")
	}
	switch command, rest := args[0], args[1:]; command {
	case "run":
		return p.run(ctx, rest, stdout, stderr)
	case "version":
		if len(rest) > 0 {
			return p.Misused("version: unexpected argument %q", rest[0])
		}
		_, err := fmt.Fprintf(stdout, "%s %s %s %s/%s\n", p.Name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(stdout, p.Usage)
		return err
	default:
		if own := p.Commands[command]; own != nil {
			return own(ctx, rest, stdout, stderr)
		}
		return p.Misused("unknown command %q", command)
	}
}

// Misused is an ErrUsage that says what is wrong with the command line.
func (p Program) Misused(format string, args ...any) error {
	return usage{fmt.Sprintf(format, args...) + "; run " + p.Name + " --help for how to use it"}
}

// usage is an error that is ErrUsage and says only what a user needs.
type usage struct{ text string }

func (u usage) Error() string        { return u.text }
func (u usage) Is(target error) bool { return target == ErrUsage }

func (p Program) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	config := flags.String("config", "", "")
	format := flags.String("log", "text", "")
	if p.Flags != nil {
		p.Flags(flags)
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(stdout, p.Usage)
		return err
	case err != nil:
		return p.Misused("run: %v", err)
	case flags.NArg() > 0:
		return p.Misused("run: unexpected argument %q", flags.Arg(0))
	}
	if *config == "" && p.Config != nil {
		*config = p.Config()
	}
	if *config == "" {
		return p.Misused("run: --config FILE is missing")
	}
	var handler slog.Handler
	switch *format {
	case "text":
		handler = slog.NewTextHandler(stderr, nil)
	case "json":
		handler = slog.NewJSONHandler(stderr, nil)
	default:
		return p.Misused("run: --log %q: want text or json", *format)
	}
	return p.Run(ctx, *config, slog.New(handler))
}

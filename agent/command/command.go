// Package command is the command line of kokoa-agent: it registers a host, installs
// the agent there, runs it, says how it is, and takes it away again.
package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/internal/program"
)

// Main is a whole call of kokoa-agent with this process's arguments. It ends the
// process. The exit codes are 0 when all is well, 1 when something went wrong, 2 for a
// mistake in the command line, and 3 of status when some tunnels are down.
func Main() { newCommands(os.Stdin, os.Stdout).program().Main() }

const (
	codeError = 1
	codePart  = 3
)

const usage = `usage:
  kokoa-agent install --control URL --name NAME [flags]   register this host, and run the agent
  kokoa-agent status [--json]                             say how the running agent is
  kokoa-agent health [--json]                             say whether visitors can be served
  kokoa-agent uninstall [--yes]                           take the agent off this host
  kokoa-agent join --control URL --name NAME [flags]      only register this host
  kokoa-agent run [--config FILE] [flags]                 run the agent in the foreground
  kokoa-agent service-unit [--user]                       print the systemd unit
  kokoa-agent version

Every command says more with --help.

The agent keeps tunnels to the edges of a fleet and forwards what comes through them to
services of this host. As root it lives in /usr/local/bin, /etc/kokoa-agent and
/var/lib/kokoa-agent; as another user in ~/.local/bin, ~/.config/kokoa-agent and
~/.local/state/kokoa-agent.
`

const runUsage = `usage: kokoa-agent run [--config FILE] [--allow HOST:PORT]... [--log text|json]

Run keeps tunnels to the fleet's edges and forwards to services of this host, until it is
told to end.

  --config FILE       bootstrap file, mode 0600, since it holds a private key (default
                      $KOKOA_CONFIG, or where join writes it)
  --allow HOST:PORT   dial this service and no others but those also allowed; may be
                      repeated, and adds to "allow" in the file
  --log text|json     form of the log on standard error (default text)

In a container there is no one to join first. When there is no such file yet, and these
are set, run registers the host before it begins:
  KOKOA_CONTROL_PLANE   URL of the control plane
  KOKOA_ORIGIN_NAME     name of the origin
  KOKOA_TOKEN           join token, or KOKOA_TOKEN_FILE, a file with it
  KOKOA_DATA            data folder (default /var/lib/kokoa-agent as root); the
                        bootstrap file is agent.json there
  KOKOA_CA              file with the PEM certificates to trust for the URL
`

// commands are the commands with what they read and write.
type commands struct {
	stdin  *os.File
	stdout io.Writer
	getenv func(string) string
}

func newCommands(stdin *os.File, stdout io.Writer) *commands {
	return &commands{stdin: stdin, stdout: stdout, getenv: os.Getenv}
}

func (c *commands) program() program.Program {
	var allow []string
	return program.Program{
		Name: "kokoa-agent", Usage: usage,
		Flags: func(flags *flag.FlagSet) {
			flags.Func("allow", "", func(entry string) error {
				allow = append(allow, entry)
				return nil
			})
		},
		Config: func() string { return c.place("").config },
		Run: func(ctx context.Context, config string, log *slog.Logger) error {
			return c.run(ctx, config, allow, log)
		},
		Commands: map[string]func(context.Context, []string, io.Writer, io.Writer) error{
			"join":         c.join,
			"install":      c.install,
			"status":       c.status,
			"health":       c.health,
			"uninstall":    c.uninstall,
			"service-unit": c.serviceUnit,
		},
	}
}

// run is the agent's life. A container's begins with joining.
func (c *commands) run(ctx context.Context, config string, allow []string, log *slog.Logger) error {
	b, err := agent.ReadBootstrap(config)
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.getenv(envControl) != "":
		b, err = c.joinFirst(ctx, config)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; to make that file, register this host: kokoa-agent join --help", err)
	}
	if err != nil {
		return err
	}
	b.Allow = append(b.Allow, allow...)
	return agent.Run(ctx, b, log)
}

// flagSet is a command's flags. Its help is the usage.
type flagSet struct {
	*flag.FlagSet
	usage string
}

func newFlags(name, usage string) flagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	return flagSet{flags, usage}
}

// errHelp says that help was asked for and given.
var errHelp = errors.New("help was given")

// parse reads the arguments: all of them are flags. The error is errHelp when help was
// asked for.
func (f flagSet) parse(args []string, stdout io.Writer) error {
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		if _, err := io.WriteString(stdout, f.usage); err != nil {
			return err
		}
		return errHelp
	case err != nil:
		return f.misused("%v", err)
	case f.NArg() > 0:
		return f.misused("unexpected argument %q", f.Arg(0))
	}
	return nil
}

// misused is an error about the command line of the command.
func (f flagSet) misused(format string, args ...any) error {
	own := program.Program{Name: "kokoa-agent " + f.Name()}
	return own.Misused("%s: %s", f.Name(), fmt.Sprintf(format, args...))
}

// given reports whether a flag was given.
func (f flagSet) given(name string) bool {
	found := false
	f.Visit(func(g *flag.Flag) { found = found || g.Name == name })
	return found
}

// list adds a flag that may be repeated.
func (f flagSet) list(name string) *[]string {
	var list []string
	f.Func(name, "", func(entry string) error {
		list = append(list, entry)
		return nil
	})
	return &list
}

// absolute is a path that stays the same wherever the agent runs.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// plain is a text from elsewhere, fit for a terminal and one line.
func plain(text string) string {
	const limit = 1000
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if runes := []rune(text); len(runes) > limit {
		text = string(runes[:limit]) + " …"
	}
	return strings.TrimSpace(text)
}

// Kokoa-agent keeps tunnels to the edges of a fleet and forwards what comes
// through them to services of its host.
package main

import (
	"context"
	"flag"
	"log/slog"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/internal/program"
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

func main() {
	var allow []string
	program.Program{
		Name: "kokoa-agent", Usage: usage,
		Flags: func(flags *flag.FlagSet) {
			flags.Func("allow", "", func(entry string) error {
				allow = append(allow, entry)
				return nil
			})
		},
		Run: func(ctx context.Context, config string, log *slog.Logger) error {
			b, err := agent.ReadBootstrap(config)
			if err != nil {
				return err
			}
			b.Allow = append(b.Allow, allow...)
			return agent.Run(ctx, b, log)
		},
	}.Main()
}

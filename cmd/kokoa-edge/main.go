// Kokoa-edge is the public end of a fleet: it ends TLS, and carries requests to
// services behind agents, through WireGuard tunnels.
package main

import (
	"context"
	"log/slog"

	"github.com/kokoa-proxy/kokoa/edge"
	"github.com/kokoa-proxy/kokoa/internal/program"
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

func main() {
	program.Program{Name: "kokoa-edge", Usage: usage, Run: run}.Main()
}

func run(ctx context.Context, config string, log *slog.Logger) error {
	b, err := edge.ReadBootstrap(config)
	if err != nil {
		return err
	}
	return edge.Main(ctx, b, log)
}

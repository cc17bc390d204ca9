package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/edge"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/schema"
)

func bootstrapCommand() *cobra.Command {
	var (
		o                         control
		out, data, plain, secured string
	)
	c := &cobra.Command{
		Use:   "bootstrap EDGE --out FILE",
		Short: "Write the file that an edge starts from",
		Long: `Bootstrap writes what kokoa-edge needs to start as an edge of the fleet repo: its key,
derived from the fleet secret, and who may configure it. Copy the file to the edge's
host, keep its mode 0600, and run there: kokoa-edge run --config FILE`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			secret, err := o.secret()
			if err != nil {
				return err
			}
			log, err := logger(c.ErrOrStderr(), o.logFormat, o.verbose)
			if err != nil {
				return err
			}
			source, err := o.source(true, log)
			if err != nil {
				return err
			}
			defer source.Close()
			revision, err := source.Fetch(c.Context())
			if err != nil {
				return err
			}
			loader := schema.NewLoader(schema.Options{CacheDir: cacheDir("schema"), Log: log})
			defer loader.Close()
			f, _, err := loader.Load(c.Context(), revision)
			if err != nil {
				return err
			}
			e, ok := f.Edges[args[0]]
			if !ok {
				return fmt.Errorf("the fleet has no edge %q; it has: %s", args[0], strings.Join(slices.Sorted(maps.Keys(f.Edges)), ", "))
			}
			b, err := newBootstrap(f, e, secret)
			if err != nil {
				return err
			}
			b.HTTP, b.HTTPS, b.Data = plain, secured, data
			text, err := json.MarshalIndent(b, "", "  ")
			if err != nil {
				return err
			}
			if err := atomicfile.Write(out, append(text, '\n'), 0o600); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "wrote %s; on the edge's host: kokoa-edge run --config FILE\n", out)
			return nil
		},
	}
	o.flags(c)
	c.Flags().StringVar(&out, "out", "", "file to write")
	c.Flags().StringVar(&data, "data", "/var/lib/kokoa-edge", "folder on the edge's host for its last good config and certificates")
	c.Flags().StringVar(&plain, "http", ":80", "address on the edge's host for plain HTTP")
	c.Flags().StringVar(&secured, "https", ":443", "address on the edge's host for HTTPS")
	if err := c.MarkFlagRequired("out"); err != nil {
		panic("bootstrap: " + err.Error())
	}
	return c
}

// newBootstrap is what the fleet and its secret say of an edge.
func newBootstrap(f *fleet.Fleet, e fleet.Edge, secret keys.Secret) (edge.Bootstrap, error) {
	_, text, err := net.SplitHostPort(e.Endpoint)
	if err != nil {
		return edge.Bootstrap{}, fmt.Errorf("%s: endpoint: %w", e.Position, err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return edge.Bootstrap{}, fmt.Errorf("%s: endpoint %s: %w", e.Position, e.Endpoint, err)
	}
	b := edge.Bootstrap{
		Fleet: f.Name, Name: e.Name, PrivateKey: secret.Edge(e.Name, e.Generation),
		TunnelAddress: e.TunnelAddress, Network: f.Network,
		WireGuard: uint16(port), Tunnel: "auto",
	}
	for slot := range keys.Slots {
		b.Control = append(b.Control, edge.ControlPeer{PublicKey: secret.Control(slot).Public(), Address: f.ControlAddress(slot)})
	}
	return b, nil
}

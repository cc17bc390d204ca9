package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/schema"
)

func vetCommand() *cobra.Command {
	format := "text"
	c := &cobra.Command{
		Use:   "vet [DIR]",
		Short: "Check a fleet repo, without asking anyone",
		Long: `Vet reads the *.cue files of a folder as they lie, committed or not, and says what
is wrong with each and where. It needs no network, no edge and no secret.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if format != "text" && format != "json" {
				return fmt.Errorf("unknown --format %q; it is text or json", format)
			}
			tree, err := schema.Dir(dir)
			if err != nil {
				return err
			}
			loader := schema.NewLoader(schema.Options{CacheDir: cacheDir("schema")})
			defer loader.Close()
			fleet, found, err := loader.Load(c.Context(), tree)
			var diagnostics schema.Diagnostics
			if err != nil && !errors.As(err, &diagnostics) {
				return err
			}
			all := append(diagnostics, found...)
			if format == "json" {
				if err := all.JSON(c.OutOrStdout()); err != nil {
					return err
				}
			} else if len(all) > 0 {
				if err := all.Text(c.ErrOrStderr()); err != nil {
					return err
				}
			}
			if err != nil {
				return exitCode(codeInvalid)
			}
			if format == "text" {
				fmt.Fprintf(c.OutOrStdout(), "fleet %q is good: %d edges, %d origins, %d routes\n", fleet.Name, len(fleet.Edges), len(fleet.Origins), len(fleet.Routes))
			}
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", format, "text or json")
	return c
}

package main

import (
	"fmt"
	"os"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/keys"
)

// configured is an option of the kokoa section in a repo's Git config or, where it
// has none, in that of its remote "origin" when that is a repo on this host. Only
// who can write to the repo's own folder can set it, not who can push.
func configured(repo, option string) string {
	r, err := git.PlainOpenWithOptions(repo, &git.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	if err != nil {
		return ""
	}
	c, err := r.ConfigScoped(config.LocalScope)
	if err != nil {
		return ""
	}
	if v := c.Raw.Section("kokoa").Option(option); v != "" {
		return v
	}
	remote, ok := c.Remotes[git.DefaultRemoteName]
	if !ok || len(remote.URLs) == 0 {
		return ""
	}
	if info, err := os.Stat(remote.URLs[0]); err != nil || !info.IsDir() {
		return ""
	}
	if r, err = git.PlainOpen(remote.URLs[0]); err != nil {
		return ""
	}
	if c, err = r.ConfigScoped(config.LocalScope); err != nil {
		return ""
	}
	return c.Raw.Section("kokoa").Option(option)
}

func secretCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "secret FILE",
		Short: "Make the secret of a new fleet",
		Long: `Secret writes a new fleet secret to FILE, with mode 0600. Git and this one secret
are the whole fleet: keep a copy where only you can read it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := keys.NewSecret()
			if err != nil {
				return err
			}
			if err := keys.WriteSecret(args[0], s); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "wrote %s; keep a copy where only you can read it\n", args[0])
			return nil
		},
	}
}

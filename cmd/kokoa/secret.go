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
	c := settings(repo)
	if c == nil {
		return ""
	}
	if v := c.Raw.Section("kokoa").Option(option); v != "" {
		return v
	}
	if info, err := os.Stat(origin(c)); err != nil || !info.IsDir() {
		return ""
	}
	if c = settings(origin(c)); c == nil {
		return ""
	}
	return c.Raw.Section("kokoa").Option(option)
}

// home is where the fleet repo is kept that repo is a clone of, its remote "origin";
// or repo itself, when it is none or has none.
func home(repo string) string {
	if c := settings(repo); c != nil && origin(c) != "" {
		return origin(c)
	}
	return repo
}

// settings is the Git config of a repo on this host, nil when it is none.
func settings(repo string) *config.Config {
	// What is not there would be looked for in the folders above this one.
	if _, err := os.Stat(repo); err != nil {
		return nil
	}
	r, err := git.PlainOpen(repo) // a bare one
	if err != nil {
		r, err = git.PlainOpenWithOptions(repo, &git.PlainOpenOptions{DetectDotGit: true, EnableDotGitCommonDir: true})
	}
	if err != nil {
		return nil
	}
	c, err := r.ConfigScoped(config.LocalScope)
	if err != nil {
		return nil
	}
	return c
}

// origin is where a clone is from, "" for none.
func origin(c *config.Config) string {
	remote, ok := c.Remotes[git.DefaultRemoteName]
	if !ok || len(remote.URLs) == 0 || c.Core.IsBare {
		return ""
	}
	return remote.URLs[0]
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

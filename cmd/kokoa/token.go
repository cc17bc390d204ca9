package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

func tokenCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Let hosts ask to become origins",
		Long: `A join token lets a host ask to become an origin of the fleet. Run these where
` + "`kokoa serve`" + ` runs, as its user: they share its state folder. Only a token's hash
is kept, so it is shown once.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(tokenCreateCommand(), tokenListCommand(), tokenRevokeCommand())
	return c
}

// The longest that tokens may be used. One for a single host is handed over by hand.
const (
	tokenLife    = 15 * time.Minute
	maxTokenLife = 90 * 24 * time.Hour
)

func tokenCreateCommand() *cobra.Command {
	var (
		o     control
		scope ledger.Scope
		uses  int
		life  time.Duration
		out   string
		url   string
	)
	c := &cobra.Command{
		Use:   "create --name NAME",
		Short: "Make a token and show it, once",
		Long: `Create makes a token for one origin of a name or, with a pattern and --uses, for
several, and prints it. Hand it over where nobody else reads along. What it may do
is told by the flags; whether a person must still merge the pull request is told by
fleet.registration and --automatic together.`,
		Example: `  kokoa token create --name rpi-home
  kokoa token create --name 'dev-*' --uses 20 --life 24h --host '*.dev.example.com' --temporary 24h --automatic`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkScope(scope, uses, life); err != nil {
				return err
			}
			secret, err := o.secret()
			if err != nil {
				return err
			}
			l, err := o.ledger()
			if err != nil {
				return err
			}
			token, kept, err := l.CreateToken(secret.Join().Public(), scope, uses, life, time.Now())
			if err != nil {
				return err
			}
			if out != "" {
				f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return fmt.Errorf("write token: %w", err)
				}
				_, err = f.WriteString(token.Reveal() + "\n")
				if err := errors.Join(err, f.Close()); err != nil {
					return fmt.Errorf("write token: %w", err)
				}
			} else {
				fmt.Fprintln(c.OutOrStdout(), token.Reveal())
			}
			w := c.ErrOrStderr()
			fmt.Fprintf(w, "\nToken %s is for %s, %s, until %s.\n", kept.ID, strings.Join(scope.Names, ", "), times(uses), kept.Expires.Local().Format(time.DateTime))
			if url == "" {
				url = configured(o.repo, "joinURL")
			}
			if url == "" {
				url = "https://control.example.com"
			}
			name := scope.Names[0]
			if strings.Contains(name, "*") {
				name = "NAME"
			}
			fmt.Fprintf(w, "On the host, this asks for the token, or takes it from KOKOA_TOKEN:\n\n  curl -fsSL %s/install.sh | bash -s -- --name %s\n\n", strings.TrimSuffix(url, "/"), name)
			return nil
		},
	}
	o.flags(c)
	o.stateFlag(c)
	f := c.Flags()
	f.StringArrayVar(&scope.Names, "name", nil, `name of the origin, or a pattern like "dev-*"; may be repeated`)
	f.StringArrayVar(&scope.Hosts, "host", nil, `host that the origin may serve, like blog.example.com or "*.dev.example.com"; may be repeated (default any of the fleet's domains)`)
	f.StringVar(&scope.Folder, "folder", "", "folder of the repo for the origin's file (default fleet.registration.folder)")
	f.BoolVar(&scope.Automatic, "automatic", false, "merge without a person, where fleet.registration.automatic allows it")
	f.DurationVar(&scope.Temporary, "temporary", 0, "let the origins live no longer than this")
	f.IntVar(&uses, "uses", 1, "how many origins it may make")
	f.DurationVar(&life, "life", tokenLife, "how long it may be used")
	f.StringVar(&out, "out", "", "write the token to this new file, with mode 0600, instead of showing it")
	f.StringVar(&url, "url", "", "public address of the control plane, for the line that is printed (default kokoa.joinURL in the Git config of the repo)")
	return c
}

var (
	tokenName   = regexp.MustCompile(`^[a-z0-9*]([a-z0-9*-]{0,61}[a-z0-9*])?$`)
	tokenFolder = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}(/[a-z0-9][a-z0-9_-]{0,62}){0,7}$`)
)

// checkScope finds slips before a token is made that nobody could use.
func checkScope(s ledger.Scope, uses int, life time.Duration) error {
	switch {
	case len(s.Names) == 0:
		return errors.New(`for which origin? give --name NAME, or a pattern like --name 'dev-*'`)
	case uses < 1 || uses > 10_000:
		return fmt.Errorf("--uses %d: want 1 to 10000", uses)
	case life <= 0 || life > maxTokenLife:
		return fmt.Errorf("--life %s: want more than nothing and at most %s", life, maxTokenLife)
	case s.Temporary < 0:
		return fmt.Errorf("--temporary %s: want a positive time", s.Temporary)
	case s.Folder != "" && (!tokenFolder.MatchString(s.Folder) || path.Clean(s.Folder) != s.Folder):
		return fmt.Errorf("--folder %q: want a folder of the repo, like origins/home", s.Folder)
	}
	for _, n := range s.Names {
		if !tokenName.MatchString(n) {
			return fmt.Errorf("--name %q: want a DNS label, like rpi-home, or a pattern of one, like dev-*", n)
		}
	}
	for _, h := range s.Hosts {
		if err := join.CheckHost(h); err != nil {
			return err
		}
	}
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func tokenListCommand() *cobra.Command {
	var (
		o      control
		format string
	)
	c := &cobra.Command{
		Use:   "list",
		Short: "List tokens: what they are for, and whether they can still be used",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := o.ledger()
			if err != nil {
				return err
			}
			tokens, err := l.Tokens()
			if err != nil {
				return err
			}
			return listTokens(c.OutOrStdout(), format, tokens, time.Now())
		},
	}
	o.stateFlag(c)
	c.Flags().StringVar(&format, "format", "text", "text or json")
	return c
}

func listTokens(w io.Writer, format string, tokens []ledger.Token, now time.Time) error {
	state := func(t ledger.Token) string {
		if err := t.State(now); err != nil {
			switch {
			case errors.Is(err, ledger.ErrUsed):
				return "used"
			case errors.Is(err, ledger.ErrRevoked):
				return "revoked"
			}
			return "expired"
		}
		return "good"
	}
	switch format {
	case "json":
		type row struct {
			ID        string    `json:"id"`
			State     string    `json:"state"`
			Names     []string  `json:"names"`
			Hosts     []string  `json:"hosts"`
			Folder    string    `json:"folder,omitempty"`
			Automatic bool      `json:"automatic"`
			Temporary string    `json:"temporary,omitempty"`
			Uses      int       `json:"uses"`
			Used      int       `json:"used"`
			Created   time.Time `json:"created"`
			Expires   time.Time `json:"expires"`
		}
		rows := []row{}
		for _, t := range tokens {
			r := row{t.ID, state(t), t.Names, append([]string{}, t.Hosts...), t.Folder, t.Automatic, "", t.Uses, t.Used, t.Created, t.Expires}
			if t.Temporary > 0 {
				r.Temporary = t.Temporary.String()
			}
			rows = append(rows, r)
		}
		return printJSON(w, rows)
	case "text":
	default:
		return fmt.Errorf("unknown --format %q; it is text or json", format)
	}
	if len(tokens) == 0 {
		_, err := fmt.Fprintln(w, "no tokens; make one with: kokoa token create --name NAME")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "TOKEN\tSTATE\tNAMES\tHOSTS\tUSED\tEXPIRES\tMERGED")
	for _, k := range tokens {
		hosts, merged := "any", "by a person"
		if len(k.Hosts) > 0 {
			hosts = strings.Join(k.Hosts, ", ")
		}
		if k.Automatic {
			merged = "by itself, where the fleet allows it"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d of %d\t%s\t%s\n", k.ID, state(k), strings.Join(k.Names, ", "), hosts, k.Used, k.Uses, k.Expires.Local().Format(time.DateTime), merged)
	}
	return t.Flush()
}

func tokenRevokeCommand() *cobra.Command {
	var o control
	c := &cobra.Command{
		Use:   "revoke ID",
		Short: "Take a token back; origins that it made stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := o.ledger()
			if err != nil {
				return err
			}
			if err := l.Revoke(args[0], time.Now()); err != nil {
				return fmt.Errorf("%w; see: kokoa token list", err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "token %s is revoked; what it made stays: see kokoa origin list\n", args[0])
			return err
		},
	}
	o.stateFlag(c)
	return c
}

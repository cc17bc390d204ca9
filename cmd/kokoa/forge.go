package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

// forging says which forge keeps the fleet repo, and who we are there.
type forging struct {
	kind, url, tokenFile string
	app, installation    int64
	appKey               string
}

func (g *forging) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&g.kind, "forge", "auto", "where pull requests are opened: github, gitea (Forgejo too), bare for branches of a repo on this host, none, or auto to go by the repo")
	f.StringVar(&g.url, "forge-url", "", "address of the forge (default that of the repo)")
	f.StringVar(&g.tokenFile, "forge-token-file", "", "file of the token to open pull requests with (default $KOKOA_FORGE_TOKEN, else the token to fetch with)")
	f.Int64Var(&g.app, "github-app", 0, "id of a GitHub App to be, instead of a token")
	f.Int64Var(&g.installation, "github-installation", 0, "id of the App's installation")
	f.StringVar(&g.appKey, "github-key", "", "file of the App's private key")
}

// forgeSetting is all that a make of forge is opened with.
type forgeSetting struct {
	// repo is where the fleet repo is kept; place its URL, nil for a repo on this
	// host.
	repo   string
	place  *url.URL
	owner  string
	name   string
	branch string
	// base is the forge's own address, "" for the usual one.
	base  string
	token string
	forging
	log *slog.Logger
}

// web is where the place's web pages are, which a repo that is fetched by ssh does not
// say.
func (s forgeSetting) web() string {
	if s.place.Scheme == "ssh" {
		return "https://" + s.place.Hostname()
	}
	return s.place.Scheme + "://" + s.place.Host
}

// errNoForge says that nothing can be proposed to the fleet repo.
var errNoForge = errors.New("no forge")

// forge opens the one that keeps the fleet repo. The error is errNoForge when there is
// none, or it cannot be told which.
func (o *control) forge(g forging, log *slog.Logger) (forge.Forge, error) {
	at := home(o.repo)
	s := forgeSetting{repo: strings.TrimPrefix(at, "file://"), branch: o.branch, base: g.url, forging: g, log: log}
	kind := g.kind
	var err error
	if s.place, err = repo.Remote(at); err != nil {
		return nil, err
	}
	if s.place != nil {
		parts := strings.Split(strings.Trim(strings.TrimSuffix(s.place.Path, ".git"), "/"), "/")
		if n := len(parts); n >= 2 {
			s.owner, s.name = parts[n-2], parts[n-1]
		}
	}
	if kind == "auto" {
		switch {
		case s.place == nil:
			kind = "bare"
		case s.place.Hostname() == "github.com":
			kind = "github"
		default:
			return nil, fmt.Errorf("%w: which forge is %s? give --forge github or --forge gitea", errNoForge, s.place.Host)
		}
	}
	if kind == "none" {
		return nil, fmt.Errorf("%w: --forge none", errNoForge)
	}
	open, ok := forges[kind]
	if !ok {
		return nil, fmt.Errorf("unknown --forge %q; it is github, gitea, bare, none or auto", kind)
	}
	switch {
	case kind == "bare" && s.place != nil:
		return nil, fmt.Errorf("--forge bare is for a repo on this host, and the fleet repo is at %s", s.place.Host)
	case kind != "bare" && (s.place == nil || s.owner == ""):
		return nil, fmt.Errorf("--forge %s needs the repo's URL in --repo, like https://host/owner/name", kind)
	}
	if s.token, err = o.forgeToken(g); err != nil {
		return nil, err
	}
	if kind != "bare" && s.token == "" && g.app == 0 {
		return nil, fmt.Errorf("%w: no token for %s; set KOKOA_FORGE_TOKEN, or give --forge-token-file", errNoForge, s.place.Host)
	}
	return open(s)
}

func (o *control) forgeToken(g forging) (string, error) {
	file := g.tokenFile
	if file == "" {
		if token := os.Getenv("KOKOA_FORGE_TOKEN"); token != "" {
			return token, nil
		}
		file = o.tokenFile
	}
	if file == "" {
		return os.Getenv("KOKOA_GIT_TOKEN"), nil
	}
	token, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return strings.TrimSpace(string(token)), nil
}

func (o *control) stateFlag(c *cobra.Command) {
	c.Flags().StringVar(&o.state, "state", "", "folder of the state of `kokoa serve` (default kokoa.state in the Git config of the repo, else that of this user)")
}

// ledger opens the control plane's. It makes the state folder, so that a token can be
// made before the first `kokoa serve`.
func (o *control) ledger() (*ledger.Ledger, error) {
	if o.state == "" {
		o.state = cmp.Or(configured(o.repo, "state"), stateDir())
	}
	if o.state == "" {
		return nil, errors.New("where is the state of kokoa serve? give --state FOLDER")
	}
	if err := os.MkdirAll(o.state, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	return ledger.Open(o.state)
}

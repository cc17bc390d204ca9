package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"github.com/kokoa-proxy/kokoa/schema"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// control is what plan, apply and serve have in common: where the fleet repo is,
// and who we are to its edges.
type control struct {
	repo       string
	branch     string
	secretFile string
	state      string
	tokenFile  string
	sshKey     string
	knownHosts string
	accept     string
	logFormat  string
	verbose    bool
}

func (o *control) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.repo, "repo", ".", "the fleet repo: a folder, a bare repo, an https:// or an ssh:// URL")
	f.StringVar(&o.branch, "branch", "main", "branch to follow")
	f.StringVar(&o.secretFile, "secret-file", "", "file of the fleet secret (default $KOKOA_SECRET_FILE, else kokoa.secretFile in the Git config of the repo or its local remote)")
	f.StringVar(&o.tokenFile, "token-file", "", "file of the token to fetch an https:// repo with (default $KOKOA_GIT_TOKEN)")
	f.StringVar(&o.sshKey, "ssh-key", "", "file of the private key to fetch an ssh:// repo with")
	f.StringVar(&o.knownHosts, "known-hosts", "", "file of known ssh hosts (default ~/.ssh/known_hosts)")
	f.StringVar(&o.accept, "accept-history", "", "commit to take although it does not descend from what was applied")
	f.StringVar(&o.logFormat, "log", "text", "text or json")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say more in the log")
}

// cacheDir is a folder for what may be lost; "" when this user has none.
func cacheDir(name string) string {
	base, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(base, "kokoa", name)
}

// source opens the fleet repo. folder takes uncommitted files too.
func (o *control) source(folder bool, log *slog.Logger) (repo.Source, error) {
	options := repo.Options{Branch: o.branch, Folder: folder, CacheDir: cacheDir("repos"), Log: log}
	if o.state != "" {
		options.CacheDir = filepath.Join(o.state, "repos")
	}
	options.Auth.Password = os.Getenv("KOKOA_GIT_TOKEN")
	if o.tokenFile != "" {
		token, err := os.ReadFile(o.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		options.Auth.Password = strings.TrimSpace(string(token))
	}
	if o.sshKey != "" {
		key, err := os.ReadFile(o.sshKey)
		if err != nil {
			return nil, fmt.Errorf("read ssh key: %w", err)
		}
		options.Auth.SSHKey = string(key)
	}
	if options.Auth.KnownHosts = o.knownHosts; o.knownHosts == "" {
		if home, err := os.UserHomeDir(); err == nil {
			options.Auth.KnownHosts = filepath.Join(home, ".ssh", "known_hosts")
		}
	}
	return repo.Open(o.repo, options)
}

// secret finds and reads the fleet secret.
func (o *control) secret() (keys.Secret, error) {
	path := o.secretFile
	if path == "" {
		path = os.Getenv("KOKOA_SECRET_FILE")
	}
	if path == "" {
		path = configured(o.repo, "secretFile")
	}
	if path == "" {
		return keys.Secret{}, errors.New("which fleet secret? give --secret-file FILE or set KOKOA_SECRET_FILE; a new fleet makes one with: kokoa secret FILE")
	}
	return keys.ReadSecret(path)
}

// opened is a reconciler and what it was made with.
type opened struct {
	*reconciler.Reconciler
	loader *schema.Loader
	zones  *zones
}

// Close ends tunnels, child processes and the built-in DNS server.
func (o *opened) Close() error {
	return errors.Join(o.Edges.Close(), o.Source.Close(), o.loader.Close(), o.zones.Close())
}

// closing adds what goes wrong at the end to a command's error.
func closing(o *opened, err *error) {
	*err = errors.Join(*err, o.Close())
}

// open makes the reconciler. serve is the fleet's own control plane; everybody else
// visits.
func (o *control) open(serve, folder bool, log *slog.Logger) (*opened, error) {
	secret, err := o.secret()
	if err != nil {
		return nil, err
	}
	var history string
	cache := cacheDir("schema")
	if o.state != "" {
		if err := os.MkdirAll(o.state, 0o700); err != nil {
			return nil, fmt.Errorf("state folder: %w", err)
		}
		history, cache = filepath.Join(o.state, "history.json"), filepath.Join(o.state, "schema")
	}
	h, err := reconciler.OpenHistory(history)
	if err != nil {
		return nil, err
	}
	source, err := o.source(folder, log)
	if err != nil {
		return nil, err
	}
	slot := 0
	if !serve {
		slot = 1 + rand.IntN(keys.Slots-1)
	}
	z := &zones{secret: secret, visiting: !serve, log: log}
	if o.state != "" {
		z.file = filepath.Join(o.state, "zones")
	}
	driver := &edges.Driver{Secret: secret, Slot: slot, Open: tunnel.Open, Log: log}
	loader := schema.NewLoader(schema.Options{CacheDir: cache, Log: log})
	r := &reconciler.Reconciler{
		Source: source, Loader: loader,
		Secret: secret, Edges: driver, Visiting: !serve, Zones: z.open, History: h, Accept: o.accept, Log: log,
	}
	made := &opened{r, loader, z}
	if o.state != "" {
		r.Certs, err = certs.Open(certs.Config{
			Dir: filepath.Join(o.state, "certificates"), CA: secret.CA(),
			TXT: z, Resolvers: z.resolvers, Challenges: edges.Challenges{Driver: driver}, Log: log,
		})
		if err != nil {
			return nil, errors.Join(err, made.Close())
		}
		driver.Certificate = r.Certs.Load
	}
	return made, nil
}

// stateDir is where a control plane of this user keeps its state.
func stateDir() string {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "kokoa")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "kokoa")
}

// patience is how long apply waits for what settles by itself.
const patience = 2 * time.Minute

// within bounds a command's context.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/builtin"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/rfc2136"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/bare"
	"github.com/kokoa-proxy/kokoa/registrar/forge/gitea"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github"
)

// providers are all the hosts of DNS that Kokoa knows.
var providers = map[fleet.DNSProvider]func(*zones, *fleet.Fleet) (map[string]dns.Zone, error){
	fleet.DNSNone:    func(*zones, *fleet.Fleet) (map[string]dns.Zone, error) { return nil, nil },
	fleet.DNSBuiltin: (*zones).builtin,
	fleet.DNSRFC2136: (*zones).rfc2136,
}

// forges are all the makes of forge that Kokoa knows.
var forges = map[string]func(forgeSetting) (forge.Forge, error){
	"bare": func(s forgeSetting) (forge.Forge, error) {
		return bare.Open(s.repo, s.branch, bare.Options{Approve: approval})
	},
	"gitea": func(s forgeSetting) (forge.Forge, error) {
		return gitea.Open(gitea.Config{
			URL: cmp.Or(s.base, s.web()), Owner: s.owner, Repo: s.name, Branch: s.branch,
			Token: gitea.Token(s.token), Log: s.log,
		})
	},
	"github": func(s forgeSetting) (forge.Forge, error) {
		c := github.Config{URL: s.base, Owner: s.owner, Repo: s.name, Branch: s.branch, Token: s.token, Log: s.log}
		if s.app != 0 {
			key, err := os.ReadFile(s.appKey)
			if err != nil {
				return nil, fmt.Errorf("read the App's key: %w", err)
			}
			c.Token, c.App = "", github.App{ID: s.app, Installation: s.installation, PrivateKey: string(key)}
		}
		return github.Open(c)
	},
}

// zones opens the fleet's zones, and keeps them open from turn to turn.
type zones struct {
	secret   keys.Secret
	visiting bool
	// file keeps the built-in server's zones; "" keeps them in memory.
	file string
	log  *slog.Logger

	mu sync.Mutex
	// settings are what the zones were opened with.
	settings string
	opened   map[string]dns.Zone
	stop     func() error
	// servers answer for the zones; asked before an issuer is.
	servers []string
}

// open is the fleet's zones by name.
func (z *zones) open(f *fleet.Fleet) (map[string]dns.Zone, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	// What a zone's opening depends on, and no more: a comment above it in the
	// repo must not restart a name server.
	settings := fmt.Sprint(f.DNS.Provider, f.DNS.Server, f.DNS.TSIG, f.DNS.Listen, f.DNS.Nameservers, f.Domains)
	if settings == z.settings {
		return z.opened, nil
	}
	if err := z.close(); err != nil {
		return nil, err
	}
	provide, ok := providers[f.DNS.Provider]
	if !ok {
		return nil, fmt.Errorf("%s: unknown DNS provider %q", f.DNS.Position, f.DNS.Provider)
	}
	opened, err := provide(z, f)
	if err != nil {
		return nil, fmt.Errorf("open DNS: %w", err)
	}
	z.opened, z.settings = opened, settings
	return opened, nil
}

// Close ends the built-in server, when it runs.
func (z *zones) Close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.close()
}

func (z *zones) close() error {
	stop := z.stop
	z.stop, z.opened, z.settings, z.servers = nil, nil, "", nil
	if stop == nil {
		return nil
	}
	return stop()
}

func (z *zones) key(zone string) dns.Key {
	secret := z.secret.TSIG(zone)
	return dns.Key{Name: zone, Algorithm: "hmac-sha256", Secret: secret[:]}
}

// builtin serves the zones in this process, or speaks to the `kokoa serve` that
// does.
func (z *zones) builtin(f *fleet.Fleet) (map[string]dns.Zone, error) {
	if z.visiting {
		server := f.DNS.Server
		if server == "" {
			server = f.DNS.Listen
		}
		out := map[string]dns.Zone{}
		for _, name := range f.Domains {
			zone, err := rfc2136.New(rfc2136.Options{Zone: name, Server: server, Key: z.key(name)})
			if err != nil {
				return nil, err
			}
			out[name] = zone
		}
		return out, nil
	}
	byZone := map[string]dns.Key{}
	for _, name := range f.Domains {
		byZone[name] = z.key(name)
	}
	server, err := builtin.New(builtin.Options{Zones: f.Domains, Nameservers: f.DNS.Nameservers, Keys: byZone, File: z.file, Log: z.log})
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenPacket("udp", f.DNS.Listen)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.DNS.Position, err)
	}
	tcp, err := net.Listen("tcp", f.DNS.Listen)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.DNS.Position, errors.Join(err, udp.Close()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, udp, tcp) }()
	z.stop = func() error { cancel(); return <-done }
	return server.Zones(), nil
}

func (z *zones) rfc2136(f *fleet.Fleet) (map[string]dns.Zone, error) {
	secret, err := certs.ReadSecret(f.DNS.TSIG.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: TSIG key: %w", f.DNS.Position, err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(secret)))
	if err != nil {
		return nil, fmt.Errorf("%s: TSIG key from %s is not base64", f.DNS.Position, f.DNS.TSIG.Key)
	}
	key := dns.Key{Name: f.DNS.TSIG.Name, Algorithm: f.DNS.TSIG.Algorithm, Secret: raw}
	out := map[string]dns.Zone{}
	for _, name := range f.Domains {
		zone, err := rfc2136.New(rfc2136.Options{Zone: name, Server: f.DNS.Server, Key: key})
		if err != nil {
			return nil, err
		}
		out[name] = zone
	}
	z.servers = []string{f.DNS.Server}
	return out, nil
}

// Add implements certs.TXT, on the zones that are open now.
func (z *zones) Add(ctx context.Context, fqdn, value string) error {
	return z.challenges().Add(ctx, fqdn, value)
}

// Remove implements certs.TXT.
func (z *zones) Remove(ctx context.Context, fqdn, value string) error {
	return z.challenges().Remove(ctx, fqdn, value)
}

func (z *zones) challenges() dns.Challenges {
	z.mu.Lock()
	defer z.mu.Unlock()
	return dns.Challenges{Zones: maps.Clone(z.opened)}
}

// resolvers are the servers that must answer with a challenge before the issuer is
// asked to look.
func (z *zones) resolvers(string) []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.servers)
}

// Package certs keeps the fleet's certificates: which ones the routes need, what
// the control plane's store has, and how they are issued and renewed.
//
// Orders go through acmez rather than certmagic's own issuer, which can answer
// HTTP-01 only by listening itself, orders one name per certificate, stores key
// and certificate as separate values, and without a second "test" directory sends
// every retry to the real one. What certmagic keeps here is its Storage, with its
// locks between processes.
package certs

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sync/errgroup"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// Config is what a Manager works with.
type Config struct {
	// Dir is the state folder; it is made with mode 0700 and refused when others
	// can look into it. Unused when Storage is given.
	Dir string
	// Storage keeps certificates, accounts and locks; nil means files in Dir.
	Storage certmagic.Storage
	// CA is the internal CA's key; nil when no route has tls "internal".
	CA *ecdsa.PrivateKey
	// Secrets reads references to manual certificates; nil means ReadSecret.
	Secrets func(fleet.SecretRef) ([]byte, error)
	// TXT answers DNS-01; nil when the fleet's DNS is not Kokoa's.
	TXT TXT
	// Resolvers lists servers, host:port, for the name of a TXT record just added.
	// All must answer with it before the issuer is asked to look. Nil, or no
	// servers, means that TXT.Add itself returns only then.
	Resolvers func(fqdn string) []string
	// Propagation is how long to wait for Resolvers; 0 means 2 minutes.
	Propagation time.Duration
	// Challenges answers HTTP-01; nil when no edge can.
	Challenges Challenges
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// Manager observes and applies plan.Certificate. It is safe for concurrent use,
// by several processes too: ACME orders are made under the storage's locks.
type Manager struct {
	shelf      *shelf
	ca         *ecdsa.PrivateKey
	secrets    func(fleet.SecretRef) ([]byte, error)
	txt        TXT
	resolvers  func(string) []string
	wait       time.Duration
	challenges Challenges
	now        func() time.Time
	log        *slog.Logger

	rootMu sync.Mutex

	pausedMu sync.Mutex
	// paused are directories that are left alone for now, and why.
	paused map[string]LaterError
}

var _ plan.Applier = (*Manager)(nil)

// Open checks the state folder and makes a Manager. There is nothing to close.
func Open(c Config) (*Manager, error) {
	if c.Storage == nil {
		// What is inside is shut off by the folder, so only this one is checked.
		if err := privatefile.Folder(c.Dir); err != nil {
			return nil, fmt.Errorf("open certificate store: %w", err)
		}
		c.Storage = &certmagic.FileStorage{Path: c.Dir}
	}
	if c.Secrets == nil {
		c.Secrets = ReadSecret
	}
	if c.Resolvers == nil {
		c.Resolvers = func(string) []string { return nil }
	}
	if c.Propagation == 0 {
		c.Propagation = 2 * time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{
		shelf:      &shelf{storage: c.Storage, parsed: map[string]parsed{}, unsaved: map[string]*bundle{}},
		ca:         c.CA,
		secrets:    c.Secrets,
		txt:        c.TXT,
		resolvers:  c.Resolvers,
		wait:       c.Propagation,
		challenges: c.Challenges,
		now:        c.Now,
		log:        c.Log,
		paused:     map[string]LaterError{},
	}, nil
}

// Observe looks at the store for f's certificates, and at the user's own where
// they are kept; nothing is asked over a network. The second result has what can
// be served, by name, however old it is. Certificates that no route needs are not
// among the objects: they stay in the store, since issuing them again would cost
// rate limit.
func (m *Manager) Observe(ctx context.Context, f *fleet.Fleet) (plan.Observation, map[string]Held) {
	var seen plan.Observation
	held := map[string]Held{}
	for _, want := range Wants(f) {
		spec, b, err := m.look(ctx, want)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil && !errors.Is(err, errUnreadable):
			seen.Unseen = map[plan.Scope]string{{Kind: plan.Certificate}: err.Error()}
			continue
		}
		if b != nil {
			held[want.Name] = b.held(want.Name)
		}
		seen.Objects = append(seen.Objects, plan.Object{
			Ref:  plan.Ref{Kind: plan.Certificate, Name: want.Name},
			Spec: spec,
		})
	}
	return seen, held
}

// look is the observed Spec of a wanted certificate. With errUnreadable the Spec
// is good and the bundle nil.
func (m *Manager) look(ctx context.Context, want Want) (Spec, *bundle, error) {
	b, saved, err := m.shelf.get(ctx, want.Name)
	if errors.Is(err, errUnreadable) {
		return Spec{Issuer: want.Issuer, Authority: want.Authority, Due: err.Error()}, nil, err
	}
	if err != nil {
		return Spec{}, nil, err
	}
	spec := Spec{Issuer: b.Issuer, Authority: b.Authority}
	for _, host := range want.Hosts {
		if covers(b.leaf, host) {
			spec.Hosts = append(spec.Hosts, host)
		}
	}
	switch b.Issuer {
	case Internal:
		spec.Authority = ""
		if b.Authority != m.internalAuthority() {
			spec.Due = "the fleet secret's internal CA is another one"
		}
	case Manual, Cloudflare:
		if b.Issuer == want.Issuer && b.Authority == want.Authority {
			spec.Due = m.changed(want, b)
		}
		return spec, b, nil
	}
	if spec.Due == "" {
		var wish renewal
		if b.Issuer == ACME {
			// A wish that cannot be read is none: age decides.
			if err := load(ctx, m.shelf.storage, renewalKey(want.Name), &wish); err != nil {
				wish = renewal{}
			}
		}
		spec.Due = due(b.leaf, wish, m.now())
	}
	if spec.Due == "" && !saved {
		spec.Due = "it could not be written to the store"
	}
	return spec, b, nil
}

// changed says how the user's certificate differs from the stored one.
func (m *Manager) changed(want Want, b *bundle) string {
	now, err := m.checkManual(want)
	switch {
	case err != nil:
		return err.Error()
	case now.Chain != b.Chain || now.Key != b.Key:
		return "it was changed where it is kept"
	}
	return ""
}

// parallel is how many certificates are issued at once.
const parallel = 4

// Apply obtains and renews certificates, several at once. Each change's After is a
// Want's Spec. A failed certificate is not tried at every call: until its time has
// come the error is a *LaterError. Deletes do nothing, since what was issued may
// be needed again and the store is not what makes a name public. Cancelling ctx
// ends orders that are under way.
func (m *Manager) Apply(ctx context.Context, changes []plan.Change) []error {
	errs := make([]error, len(changes))
	issuers := sessions{m: m, open: map[string]*session{}}
	defer issuers.close()
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, c := range changes {
		if c.Action == plan.Delete {
			continue
		}
		spec, ok := c.After.(Spec)
		if !ok || spec.want.fleet == nil {
			errs[i] = fmt.Errorf("%s: not a certificate that a route wants", c.Ref)
			continue
		}
		g.Go(func() error {
			if err := m.issue(ctx, &issuers, spec.want); err != nil {
				errs[i] = fmt.Errorf("certificate %s: %w", c.Ref.Name, err)
			}
			return nil
		})
	}
	g.Wait()
	return errs
}

func (m *Manager) issue(ctx context.Context, issuers *sessions, want Want) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	start := time.Now()
	if done, err := m.settled(ctx, want); done || err != nil {
		return err
	}
	var b *bundle
	var err error
	switch want.Issuer {
	case Internal:
		b, err = m.issueInternal(ctx, want)
	case Manual, Cloudflare:
		b, err = m.readManual(want)
	default:
		return m.order(ctx, issuers, want, start)
	}
	if err != nil {
		return err
	}
	return m.keep(ctx, want, b, start)
}

// settled reports whether want holds already, writing to the store what could not
// be written before.
func (m *Manager) settled(ctx context.Context, want Want) (bool, error) {
	if b, saved, err := m.shelf.get(ctx, want.Name); err == nil && !saved {
		if err := m.shelf.put(ctx, want.Name, b); err != nil {
			return false, err
		}
	}
	spec, _, err := m.look(ctx, want)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errUnreadable):
		return false, nil
	case err != nil:
		return false, err
	}
	return spec.Equal(want.Spec()), nil
}

func (m *Manager) keep(ctx context.Context, want Want, b *bundle, start time.Time) error {
	if err := m.shelf.put(context.WithoutCancel(ctx), want.Name, b); err != nil {
		return err
	}
	m.log.Info("certificate issued", "certificate", want.Name, "kind", want.Issuer, "serial", b.leaf.SerialNumber.Text(16), "took", time.Since(start))
	return nil
}

// Load returns a certificate as PEM, leaf first, with its PEM key, for delivery to
// an edge. One that is not in the store is fs.ErrNotExist.
func (m *Manager) Load(ctx context.Context, name string) (chain, key []byte, err error) {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, `/\`) {
		return nil, nil, fmt.Errorf("read certificate %q: %w", name, fs.ErrNotExist)
	}
	b, _, err := m.shelf.get(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return []byte(b.Chain), []byte(b.Key), nil
}

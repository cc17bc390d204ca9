package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// Held is a certificate in the store that can be served.
type Held struct {
	Name string
	// Hosts are the names in the certificate, sorted.
	Hosts []string
	// Fingerprint is SHA-256 of the leaf in hexadecimal.
	Fingerprint string
	NotAfter    time.Time
	Issuer      Issuer
}

// bundle is one certificate with its key: one value in the store, so that a crash
// leaves the old pair or the new one and never a key beside another's certificate.
type bundle struct {
	Issuer Issuer `json:"issuer"`
	// Authority is the Want's, and for Internal the CA key's fingerprint.
	Authority string `json:"authority"`
	Chain     string `json:"chain"`
	Key       string `json:"key"`

	leaf *x509.Certificate
}

// String keeps the key out of whatever prints a bundle.
func (b *bundle) String() string {
	if b.leaf == nil {
		return "bundle"
	}
	return "bundle " + fingerprint(b.leaf)
}

// GoString is String.
func (b *bundle) GoString() string { return b.String() }

// LogValue is String.
func (b *bundle) LogValue() slog.Value { return slog.StringValue(b.String()) }

// newBundle checks that chain and key belong together.
func newBundle(issuer Issuer, authority string, chain, key []byte) (*bundle, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	return &bundle{issuer, authority, string(chain), string(key), pair.Leaf}, nil
}

// errUnreadable is in errors about a value in the store that is no bundle.
var errUnreadable = errors.New("stored certificate is unreadable")

func decodeBundle(raw []byte) (*bundle, error) {
	var b bundle
	if err := json.Unmarshal(raw, &b); err != nil {
		// The text of a JSON error may quote what it read.
		return nil, fmt.Errorf("%w: not the JSON that was written", errUnreadable)
	}
	whole, err := newBundle(b.Issuer, b.Authority, []byte(b.Chain), []byte(b.Key))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return whole, nil
}

func (b *bundle) held(name string) Held {
	hosts := slices.Clone(b.leaf.DNSNames)
	slices.Sort(hosts)
	return Held{name, hosts, fingerprint(b.leaf), b.leaf.NotAfter, b.Issuer}
}

func fingerprint(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return hex.EncodeToString(sum[:])
}

// shelf keeps bundles in a certmagic.Storage, and what could not be written there
// in memory: a certificate that was issued has cost rate limit.
type shelf struct {
	storage certmagic.Storage

	mu      sync.Mutex
	parsed  map[string]parsed
	unsaved map[string]*bundle
}

// parsed saves parsing, at every look, what has not changed.
type parsed struct {
	raw    []byte
	bundle *bundle
}

func bundleKey(name string) string { return "certificates/" + name + ".json" }

// get returns a bundle and whether it is in the store, and not only in memory.
// None is fs.ErrNotExist, one that makes no pair is errUnreadable.
func (s *shelf) get(ctx context.Context, name string) (b *bundle, saved bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.unsaved[name]; b != nil {
		return b, false, nil
	}
	raw, err := s.storage.Load(ctx, bundleKey(name))
	if err != nil {
		return nil, false, fmt.Errorf("read certificate %s: %w", name, err)
	}
	if p, ok := s.parsed[name]; ok && bytes.Equal(p.raw, raw) {
		return p.bundle, true, nil
	}
	b, err = decodeBundle(raw)
	if err != nil {
		return nil, false, fmt.Errorf("read certificate %s: %w", name, err)
	}
	s.parsed[name] = parsed{raw, b}
	return b, true, nil
}

// put writes a bundle. On an error the bundle is kept in memory, and get returns
// it until put has written it or another.
func (s *shelf) put(ctx context.Context, name string, b *bundle) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("write certificate %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.storage.Store(ctx, bundleKey(name), raw); err != nil {
		s.unsaved[name] = b
		return fmt.Errorf("write certificate %s: it is kept in memory until it can be written: %w", name, err)
	}
	delete(s.unsaved, name)
	return nil
}

// load reads a JSON value; nothing there leaves v as it is.
func load(ctx context.Context, s certmagic.Storage, key string, v any) error {
	raw, err := s.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: not the JSON that was written", key)
	}
	return nil
}

func save(ctx context.Context, s certmagic.Storage, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	if err := s.Store(ctx, key, raw); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

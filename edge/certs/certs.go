// Package certs keeps the certificates that the control plane gave an edge: one
// file each, and a table that TLS handshakes look names up in.
package certs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
)

// Store is a folder of certificates. It is safe for concurrent use; a lookup takes
// no lock.
type Store struct {
	dir   string
	names atomic.Pointer[table]

	mu   sync.Mutex
	held map[string]*Certificate // by file name
}

// Certificate is one that can be served.
type Certificate struct {
	Name string
	// TLS has the chain, the key and the parsed leaf.
	TLS   *tls.Certificate
	state api.CertificateState
}

// Covers reports whether the certificate is valid for a canonical host name,
// whatever the date.
func (c *Certificate) Covers(host string) bool { return c.TLS.Leaf.VerifyHostname(host) == nil }

// ErrBad is in the error of Put for what is no certificate with its key.
var ErrBad = errors.New("not a certificate with its key")

// Open reads the certificates in dir, and makes dir when it is absent. A file or a
// folder that other users can read is privatefile.ErrExposed: the keys may be known. Files that
// hold no certificate are left out and returned as damaged.
func Open(dir string) (s *Store, damaged []error, err error) {
	if err := privatefile.Folder(dir); err != nil {
		return nil, nil, fmt.Errorf("open certificates: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open certificates: %w", err)
	}
	s = &Store{dir: dir, held: map[string]*Certificate{}}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || checkName(name) != nil {
			// A write that a crash cut off; its name never was a certificate's.
			if strings.HasPrefix(e.Name(), ".") {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return nil, nil, fmt.Errorf("open certificates: %w", err)
				}
			}
			continue
		}
		path := filepath.Join(dir, e.Name())
		if err := privatefile.Check(path, 0o600); err != nil {
			return nil, nil, fmt.Errorf("open certificates: %w", err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, fmt.Errorf("open certificates: %w", err)
		}
		c, err := parse(name, text, text)
		if err != nil {
			damaged = append(damaged, fmt.Errorf("certificate %s: %w", name, err))
			continue
		}
		s.held[name] = c
	}
	s.publish()
	return s, damaged, nil
}

// Put keeps a certificate under its name, on disk first, and serves it from the
// next handshake on. Connections that are open stay. What is no certificate with
// its key is ErrBad; after any error the store is as it was.
func (s *Store) Put(c api.Certificate) error {
	if err := checkName(c.Name); err != nil {
		return fmt.Errorf("put certificate %q: %w: %w", c.Name, ErrBad, err)
	}
	parsed, err := parse(c.Name, c.Chain, c.Key)
	if err != nil {
		return fmt.Errorf("put certificate %s: %w", c.Name, err)
	}
	// One file for both, so that no crash can leave a key beside another's chain.
	text := slices.Concat(bytes.TrimSpace(c.Chain), []byte("\n"), bytes.TrimSpace(c.Key), []byte("\n"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := atomicfile.Write(s.path(c.Name), text, 0o600); err != nil {
		return fmt.Errorf("put certificate: %w", err)
	}
	s.held[c.Name] = parsed
	s.publish()
	return nil
}

// Delete forgets a certificate. One that is not there is no error.
func (s *Store) Delete(name string) error {
	if checkName(name) != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete certificate: %w", err)
	}
	delete(s.held, name)
	s.publish()
	return nil
}

// Find is the certificate for a canonical host name: one with that very name, else
// one with the wildcard a label above, else nil.
func (s *Store) Find(host string) *Certificate {
	t := s.names.Load()
	if c := t.exact[host]; c != nil {
		return c
	}
	if _, above, ok := strings.Cut(host, "."); ok {
		return t.wildcard[above]
	}
	return nil
}

// State lists the certificates held, sorted by name.
func (s *Store) State() []api.CertificateState {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]api.CertificateState, 0, len(s.held))
	for _, c := range s.held {
		states = append(states, c.state)
	}
	slices.SortFunc(states, func(a, b api.CertificateState) int { return cmp.Compare(a.Name, b.Name) })
	return states
}

// suffix of a certificate's file: PEM, the chain and then the key.
const suffix = ".pem"

// table is the certificates by host name. It is never changed.
type table struct{ exact, wildcard map[string]*Certificate }

// publish makes s.held what handshakes see. Of two for one host the one that ends
// later serves.
func (s *Store) publish() {
	t := &table{exact: map[string]*Certificate{}, wildcard: map[string]*Certificate{}}
	for _, name := range slices.Sorted(maps.Keys(s.held)) {
		c := s.held[name]
		for _, host := range c.state.Hosts {
			names := t.exact
			if above, ok := strings.CutPrefix(host, "*."); ok {
				names, host = t.wildcard, above
			}
			if old := names[host]; old == nil || old.state.NotAfter.Before(c.state.NotAfter) {
				names[host] = c
			}
		}
	}
	s.names.Store(t)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name+suffix) }

func parse(name string, chain, key []byte) (*Certificate, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		// crypto/tls says which of the two is wrong, and never shows them.
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	hosts := make([]string, 0, len(pair.Leaf.DNSNames))
	for _, h := range pair.Leaf.DNSNames {
		hosts = append(hosts, strings.ToLower(strings.TrimSuffix(h, ".")))
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("%w: it names no host", ErrBad)
	}
	sum := sha256.Sum256(pair.Leaf.Raw)
	return &Certificate{name, &pair, api.CertificateState{
		Name:        name,
		Fingerprint: hex.EncodeToString(sum[:]),
		Hosts:       hosts,
		NotAfter:    pair.Leaf.NotAfter.UTC(),
	}}, nil
}

// checkName keeps names inside the folder.
func checkName(name string) error {
	if name == "" || len(name) > 200 || name[0] == '.' {
		return errors.New("a name has 1 to 200 characters and does not begin with a dot")
	}
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("._-+*@=", c) >= 0:
		default:
			return errors.New("a name has only letters, digits and ._-+*@=")
		}
	}
	return nil
}

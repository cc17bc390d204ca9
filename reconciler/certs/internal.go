package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// Lifetimes of the internal CA. A leaf is renewed with a third left; the root is
// made anew with a year left, under the same key and name, so that who trusts the
// old one trusts what follows until the old one ends.
const (
	rootLife    = 10 * 365 * 24 * time.Hour
	rootRenewal = 365 * 24 * time.Hour
	leafLife    = 30 * 24 * time.Hour
	// skew lets clients' clocks be behind ours.
	skew = time.Hour
)

const rootKey = "ca/root.pem"

// RootPEM is the certificate of f's internal CA, made when there is none: what
// clients of tls "internal" trust. It is constrained to the fleet's domains (RFC
// 5280 section 4.2.1.10), so trusting it trusts the fleet with nobody else's
// names; adding a domain makes another root, to be trusted again for that domain.
func (m *Manager) RootPEM(ctx context.Context, f *fleet.Fleet) ([]byte, error) {
	root, err := m.root(ctx, f)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), nil
}

func (m *Manager) root(ctx context.Context, f *fleet.Fleet) (*x509.Certificate, error) {
	if m.ca == nil {
		return nil, errors.New("internal CA: it has no key")
	}
	m.rootMu.Lock()
	defer m.rootMu.Unlock()
	want := rootTemplate(f, m.ca, m.now())
	raw, err := m.shelf.storage.Load(ctx, rootKey)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("internal CA: read root: %w", err)
	}
	if block, _ := pem.Decode(raw); block != nil {
		if have, err := x509.ParseCertificate(block.Bytes); err == nil && m.stands(have, want) {
			return have, nil
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, want, want, m.ca.Public(), m.ca)
	if err != nil {
		return nil, fmt.Errorf("internal CA: sign root: %w", err)
	}
	if err := m.shelf.storage.Store(ctx, rootKey, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		return nil, fmt.Errorf("internal CA: write root: %w", err)
	}
	m.log.Info("internal root made")
	return x509.ParseCertificate(der)
}

// stands reports whether a stored root is still the one to use.
func (m *Manager) stands(have, want *x509.Certificate) bool {
	return m.ca.PublicKey.Equal(have.PublicKey) &&
		have.Subject.String() == want.Subject.String() &&
		slices.Equal(have.PermittedDNSDomains, want.PermittedDNSDomains) &&
		have.NotAfter.Sub(m.now()) > rootRenewal && !have.NotBefore.After(m.now())
}

func rootTemplate(f *fleet.Fleet, key *ecdsa.PrivateKey, now time.Time) *x509.Certificate {
	domains := slices.Sorted(slices.Values(f.Domains))
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Kokoa"}, CommonName: "Kokoa internal CA of " + f.Name},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          keyID(key),
		// A name form without a constraint is unconstrained, so addresses are
		// excluded too.
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         domains,
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
}

// keyID names the CA's key: stated here, so that another Go version, which may
// compute its default otherwise, makes a root that old leaves still point to.
func keyID(key *ecdsa.PrivateKey) []byte {
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		panic("certs: a P-256 key has a public point: " + err.Error())
	}
	sum := sha256.Sum256(raw)
	return sum[:20]
}

// internalAuthority names the CA in bundles: leaves of another fleet secret's CA
// are of another authority.
func (m *Manager) internalAuthority() string {
	if m.ca == nil {
		return ""
	}
	return hex.EncodeToString(keyID(m.ca))
}

func (m *Manager) issueInternal(ctx context.Context, want Want) (*bundle, error) {
	root, err := m.root(ctx, want.fleet)
	if err != nil {
		return nil, err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	now := m.now()
	leaf := &x509.Certificate{
		NotBefore:   now.Add(-skew),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    want.Hosts,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), m.ca)
	if err != nil {
		return nil, fmt.Errorf("internal CA: sign: %w", err)
	}
	return newBundle(Internal, m.internalAuthority(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM)
}

// newKey makes a P-256 key and its PEM.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

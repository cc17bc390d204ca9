package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// maxSecret bounds what a reference may hold, in bytes.
const maxSecret = 1 << 20

// ReadSecret reads what a reference points to in this process's environment and
// files, at most 1 MiB. Its errors name the place, never what is there.
func ReadSecret(ref fleet.SecretRef) ([]byte, error) {
	switch {
	case ref.Env != "":
		v, ok := os.LookupEnv(ref.Env)
		if !ok {
			return nil, fmt.Errorf("%s is not set for the control plane", ref)
		}
		return []byte(v), nil
	case ref.File != "":
		f, err := os.Open(ref.File)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
		if err == nil && len(raw) > maxSecret {
			err = fmt.Errorf("%s is over %d bytes", ref, maxSecret)
		}
		return raw, err
	}
	return nil, errors.New("no env or file is named")
}

// readManual reads and checks the user's certificate. Errors say what to do, and
// where the route stands.
func (m *Manager) readManual(want Want) (*bundle, error) {
	b, err := m.checkManual(want)
	if err != nil {
		return nil, fmt.Errorf("%s: route %s: %w", want.From, want.Route, err)
	}
	return b, nil
}

func (m *Manager) checkManual(want Want) (*bundle, error) {
	at := want.Manual
	chain, err := m.secrets(at.Chain)
	if err != nil {
		return nil, fmt.Errorf("read certificate.chain: %w", err)
	}
	key, err := m.secrets(at.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate.key: %w", err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are no pair: give PEM certificates, leaf first, and the leaf's own PEM key without a passphrase: %w", at.Chain, at.Key, err)
	}
	if err := ordered(pair.Certificate); err != nil {
		return nil, fmt.Errorf("%s: %w", at.Chain, err)
	}
	now, day := m.now(), func(t time.Time) string { return t.UTC().Format(time.DateOnly) }
	switch leaf := pair.Leaf; {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("%s expired on %s; replace it with a renewed certificate", at.Chain, day(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("%s is not valid before %s; check the clock, or give the certificate that is in force", at.Chain, day(leaf.NotBefore))
	}
	for _, host := range want.Hosts {
		if !covers(pair.Leaf, host) {
			return nil, fmt.Errorf("%s is for %q and does not cover %s; give a certificate that names it", at.Chain, pair.Leaf.DNSNames, host)
		}
	}
	return newBundle(want.Issuer, want.Authority, chain, key)
}

// ordered checks that each certificate was signed by the next (RFC 5246 section
// 7.4.2): some clients do not put a chain in order themselves.
func ordered(chain [][]byte) error {
	var last *x509.Certificate
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i+1, err)
		}
		if last != nil {
			if err := last.CheckSignatureFrom(c); err != nil {
				return fmt.Errorf("certificate %d did not sign certificate %d; put the leaf first and each issuer after what it signed: %w", i+1, i, err)
			}
		}
		last = c
	}
	return nil
}

// covers reports whether leaf may be served for host, which may be a wildcard.
func covers(leaf *x509.Certificate, host string) bool {
	named := func(n string) bool { return strings.EqualFold(n, host) }
	return slices.ContainsFunc(leaf.DNSNames, named) || leaf.VerifyHostname(host) == nil
}

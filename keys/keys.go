// Package keys holds the key types of a fleet and derives every key the control
// plane owns from the one fleet secret. Every private type prints and logs as a
// short hash, never as itself.
package keys

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// Size is the length in bytes of a WireGuard key and of a fleet secret.
const Size = 32

// Private is a WireGuard (X25519) private key. Its text form, for files only, is
// Reveal; String and LogValue print a hash.
type Private [Size]byte

// Public is a WireGuard (X25519) public key. Its text form is standard base64.
type Public [Size]byte

// ErrKey is in every error about text that is no key.
var ErrKey = errors.New("not a key (want 32 bytes in base64)")

// NewPrivate makes a random private key.
func NewPrivate() (Private, error) {
	var k Private
	if _, err := rand.Read(k[:]); err != nil {
		return Private{}, fmt.Errorf("generate key: %w", err)
	}
	return k.clamp(), nil
}

// ParsePrivate reads what Reveal wrote.
func ParsePrivate(text string) (Private, error) {
	k, err := parse(text)
	return Private(k), err
}

// ParsePublic reads what Public.String wrote.
func ParsePublic(text string) (Public, error) {
	k, err := parse(text)
	return Public(k), err
}

// clamp makes the bits WireGuard fixes the same in every form of the key, so that
// a key read back from a device equals the one it was given (RFC 7748 section 5).
func (k Private) clamp() Private {
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// Public is the public half of k.
func (k Private) Public() Public {
	p, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic("keys: 32 bytes are always an X25519 key: " + err.Error())
	}
	return Public(p.PublicKey().Bytes())
}

// Reveal is the key itself in base64, for the file that keeps it.
func (k Private) Reveal() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String prints a hash of the key.
func (k Private) String() string { return "private:" + fingerprint(k[:]) }

// LogValue logs a hash of the key.
func (k Private) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText writes the key itself: a Private is marshalled only into the
// bootstrap files of edges and agents, which are written with mode 0600.
func (k Private) MarshalText() ([]byte, error) { return []byte(k.Reveal()), nil }

// UnmarshalText reads base64.
func (k *Private) UnmarshalText(text []byte) error {
	p, err := ParsePrivate(string(text))
	*k = p
	return err
}

// String is the key in base64, as WireGuard's tools print it.
func (k Public) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether no key was set.
func (k Public) IsZero() bool { return k == Public{} }

// MarshalText writes base64.
func (k Public) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads base64.
func (k *Public) UnmarshalText(text []byte) error {
	p, err := ParsePublic(string(text))
	*k = p
	return err
}

// Secret is the fleet secret: with the repo it is the whole fleet. It derives
// the control plane's WireGuard keys, the signing key, the internal CA's key and
// one WireGuard key per edge and generation.
type Secret [Size]byte

// NewSecret makes a random fleet secret.
func NewSecret() (Secret, error) {
	var s Secret
	if _, err := rand.Read(s[:]); err != nil {
		return Secret{}, fmt.Errorf("generate fleet secret: %w", err)
	}
	return s, nil
}

// ReadSecret reads a file that WriteSecret wrote. A file that others can read is
// refused: whoever has the secret has the fleet.
func ReadSecret(path string) (Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Secret{}, fmt.Errorf("read fleet secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Secret{}, fmt.Errorf("read fleet secret: %s has mode %#o, so others can read it; run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Secret{}, fmt.Errorf("read fleet secret: %w", err)
	}
	k, err := parse(strings.TrimSpace(string(text)))
	if err != nil {
		return Secret{}, fmt.Errorf("read fleet secret: %s: %w", path, err)
	}
	return Secret(k), nil
}

// WriteSecret writes s to a new file of mode 0600. A file that exists is an
// error that is fs.ErrExist.
func WriteSecret(path string, s Secret) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write fleet secret: %s exists, and replacing a fleet secret cuts every tunnel; move it away first: %w", path, fs.ErrExist)
		}
		return fmt.Errorf("write fleet secret: %w", err)
	}
	_, werr := f.WriteString(base64.StdEncoding.EncodeToString(s[:]) + "\n")
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write fleet secret: %w", err)
	}
	return nil
}

// Slots is how many control peers every edge knows: slot 0 is `kokoa serve`, the
// others are for `kokoa plan` and `kokoa apply` run beside it. A WireGuard key
// lives in one place at a time, so each needs its own.
const Slots = 8

// Control is the control plane's WireGuard key for a slot in [0, Slots).
func (s Secret) Control(slot int) Private {
	return Private(s.derive("wireguard/control/" + strconv.Itoa(slot))).clamp()
}

// Edge is an edge's WireGuard key. A higher generation is another key.
func (s Secret) Edge(name string, generation int) Private {
	return Private(s.derive("wireguard/edge/" + strconv.Itoa(generation) + "/" + name)).clamp()
}

// Signing is the key that signs what agents obey.
func (s Secret) Signing() ed25519.PrivateKey {
	seed := s.derive("sign/agent")
	return ed25519.NewKeyFromSeed(seed[:])
}

// SigningPublic is what agents check signatures with.
func (s Secret) SigningPublic() ed25519.PublicKey {
	private := s.Signing()
	return ed25519.PublicKey(private[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
}

// Join is the X25519 key that hosts seal their registration for, and the control
// plane its answers with. Its public half is in every token.
func (s Secret) Join() Private { return Private(s.derive("join")).clamp() }

// CA is the key of the fleet's internal certificate authority, on P-256.
func (s Secret) CA() *ecdsa.PrivateKey { return s.p256("ca/") }

// Downloads is the key that signs the agent that a fleet's hosts download, on P-256:
// every openssl can check that.
func (s Secret) Downloads() *ecdsa.PrivateKey { return s.p256("downloads/") }

func (s Secret) p256(purpose string) *ecdsa.PrivateKey {
	// A scalar is out of range with a chance of 2^-32: count until one fits.
	for i := 0; ; i++ {
		raw := s.derive(purpose + strconv.Itoa(i))
		if k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw[:]); err == nil {
			return k
		}
	}
}

// TSIG is the key of the built-in DNS server's zone transfers and updates
// (RFC 8945), for a zone.
func (s Secret) TSIG(zone string) [Size]byte { return s.derive("tsig/" + zone) }

// String prints a hash of the secret.
func (s Secret) String() string { return "secret:" + fingerprint(s[:]) }

// LogValue logs a hash of the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

func (s Secret) derive(purpose string) [Size]byte {
	out, err := hkdf.Key(sha256.New, s[:], []byte("kokoa fleet v1"), purpose, Size)
	if err != nil {
		panic("keys: HKDF of 32 bytes: " + err.Error())
	}
	return [Size]byte(out)
}

func parse(text string) ([Size]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != Size {
		return [Size]byte{}, ErrKey
	}
	return [Size]byte(raw), nil
}

func fingerprint(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:4])
}

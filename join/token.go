// Package join is how a host asks its fleet's control plane to become an origin:
// the token it was given, the sealed messages they exchange, and the client. The
// agent has it, so it knows neither CUE nor Git.
//
// A token holds the public half of the control plane's join key. The host seals its
// request with its own WireGuard key for that key (NaCl box), and the control plane
// seals the answer back. So whoever answers in the control plane's place learns no
// token and can make no answer, whatever TLS says, and a request that opens is proof
// that its sender holds the private half of the key that it registers.
package join

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"strings"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Token lets a host ask to become an origin. It prints and logs as its id; its text
// is Reveal.
type Token struct {
	id      [6]byte
	secret  [16]byte
	control keys.Public
}

// ErrToken is in every error about text that is no token.
var ErrToken = errors.New("not a join token")

// NewToken makes a token for the control plane with the public join key control.
func NewToken(control keys.Public) (Token, error) {
	t := Token{control: control}
	_, err := rand.Read(t.id[:])
	if err == nil {
		_, err = rand.Read(t.secret[:])
	}
	if err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	return t, nil
}

const tokenPrefix = "kokoa_"

// ParseToken reads what Reveal wrote. Errors are ErrToken, say what is wrong, and
// do not repeat the text.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("%w: it begins with %q", ErrToken, tokenPrefix)
	}
	raw, err := base64.RawURLEncoding.DecodeString(rest)
	var t Token
	const size = len(t.id) + len(t.secret) + len(t.control)
	if err != nil || len(raw) != size+crc32.Size {
		return Token{}, fmt.Errorf("%w: it was cut off or changed; copy all of it", ErrToken)
	}
	body, sum := raw[:size], raw[size:]
	if subtle.ConstantTimeCompare(checksum(body), sum) != 1 {
		return Token{}, fmt.Errorf("%w: it was changed; copy all of it", ErrToken)
	}
	n := copy(t.id[:], body)
	n += copy(t.secret[:], body[n:])
	copy(t.control[:], body[n:])
	if t.Reveal() != text { // base64 has several texts for the same bytes
		return Token{}, fmt.Errorf("%w: it was changed; copy all of it", ErrToken)
	}
	return t, nil
}

// Reveal is the token itself, one word.
func (t Token) Reveal() string {
	raw := make([]byte, 0, 64)
	raw = append(raw, t.id[:]...)
	raw = append(raw, t.secret[:]...)
	raw = append(raw, t.control[:]...)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(raw, checksum(raw)...))
}

// ID names the token; it is no secret. 12 hexadecimal digits.
func (t Token) ID() string { return hex.EncodeToString(t.id[:]) }

// Control is the join key of the control plane that made the token.
func (t Token) Control() keys.Public { return t.control }

// Hash is all of the token that the control plane keeps.
func (t Token) Hash() [sha256.Size]byte {
	return sha256.Sum256(append([]byte("kokoa join token v1\n"), t.secret[:]...))
}

// String prints the id.
func (t Token) String() string { return "token:" + t.ID() }

// GoString prints the id.
func (t Token) GoString() string { return t.String() }

// LogValue logs the id.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// checksum finds slips of the hand, no more.
func checksum(b []byte) []byte {
	sum := crc32.ChecksumIEEE(b)
	return []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

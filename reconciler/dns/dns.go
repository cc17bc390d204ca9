// Package dns keeps the fleet's names in DNS. A Zone is where records live, whoever
// hosts it; the Driver stands on top of any Zone and marks, observes and changes
// the address records that are the fleet's, and no others.
//
// Names are absolute, without the trailing dot, in lower case, and otherwise as
// RFC 1035 section 5.1 writes them. Values are a record's data as it stands in a
// zone file (names in them end with a dot), but for TXT, whose value is the text
// itself: the bytes of all its strings, without quotes or escapes.
package dns

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"
)

// Type is a record type as zone files write it: "A", "TXT", "TYPE65534".
type Type string

// The types that Kokoa itself deals with. A Zone may hold any other.
const (
	A     Type = "A"
	AAAA  Type = "AAAA"
	CNAME Type = "CNAME"
	DNAME Type = "DNAME"
	NS    Type = "NS"
	TXT   Type = "TXT"
)

// RRset is all records of one name and type: the unit of change (RFC 2181 section
// 5).
type RRset struct {
	Name string
	Type Type
	// TTL is in whole seconds.
	TTL time.Duration
	// Values are sorted, without duplicates. They are shared: a caller that
	// wants others makes a new slice.
	Values []string
}

// Compare orders sets by name, then type.
func (s RRset) Compare(o RRset) int {
	return cmp.Or(cmp.Compare(s.Name, o.Name), cmp.Compare(s.Type, o.Type))
}

// Zone is one DNS zone at its primary. All methods are safe for concurrent use and
// safe to repeat.
type Zone interface {
	// RRsets is every set of the zone, in no certain order, without the SOA
	// record and what a DNSSEC signer makes. A listing that could not be read
	// to its end is an error, never a shorter list.
	RRsets(ctx context.Context) ([]RRset, error)
	// Set makes rr the only records of its name and type. Other types at the
	// name are untouched. A set without values is an error: Delete deletes.
	Set(ctx context.Context, rr RRset) error
	// Delete removes the set; that there is none is success.
	Delete(ctx context.Context, name string, typ Type) error
}

// Transaction is changes that are made all together or not at all.
type Transaction struct {
	// Require is what must stand in the zone, compared by values and not by
	// TTL. A set without values must not exist.
	Require []RRset
	// Set replaces these sets. A set without values is deleted.
	Set []RRset
}

// Batcher is a Zone that makes many changes cheaply, each transaction atomically.
type Batcher interface {
	Zone
	// Commit makes the transactions in order and returns one error or nil for
	// each, at its own index. A requirement that does not hold is ErrConflict.
	// One transaction's failure does not stop the others. After an error other
	// than ErrConflict a transaction may have been made, when the answer was
	// lost.
	Commit(ctx context.Context, transactions []Transaction) []error
}

// Adder is a Zone that changes single values without reading the set first, so that
// two who share a set do not undo each other.
type Adder interface {
	Zone
	// Add puts value into a set, which it makes when there is none. The whole
	// set has ttl afterwards. A value that is there is success.
	Add(ctx context.Context, name string, typ Type, ttl time.Duration, value string) error
	// Remove takes value out of a set; the last one takes the set with it. A
	// value that is not there is success.
	Remove(ctx context.Context, name string, typ Type, value string) error
}

var (
	// ErrConflict is in the error of a change that was planned from something
	// else than now stands in the zone: observe and plan again.
	ErrConflict = errors.New("the zone has changed")
	// ErrHeld is in the error of a change to a name that someone else holds.
	ErrHeld = errors.New("held by someone else")
	// ErrEmpty is in the error of a change that would leave a live name
	// without an answer.
	ErrEmpty = errors.New("answer would be empty")
)

// Key is a transaction signature key (RFC 8945).
type Key struct {
	// Name of the key as the server knows it, as names in this package are.
	Name string
	// Algorithm is "hmac-sha256" or "hmac-sha512".
	Algorithm string
	// Secret is the shared secret's bytes.
	Secret []byte
}

// String names the key and prints a hash of the secret.
func (k Key) String() string {
	sum := sha256.Sum256(k.Secret)
	return k.Name + " " + k.Algorithm + " secret:" + hex.EncodeToString(sum[:4])
}

// GoString is String: no way of printing a key shows its secret.
func (k Key) GoString() string { return k.String() }

// LogValue logs what String prints.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// IsZero reports whether no key is set.
func (k Key) IsZero() bool { return k.Name == "" && k.Algorithm == "" && len(k.Secret) == 0 }

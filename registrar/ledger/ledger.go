// Package ledger is what a control plane remembers of its join tokens, of the hosts
// that used them, and of what a person asked for: one private file, replaced whole.
// `kokoa serve` and the commands beside it use it at the same time; each change is
// one step that the others see done or not at all, also after a crash.
package ledger

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
)

// The errors of Accept and Revoke that a caller may ask for with errors.Is.
var (
	// ErrUnknown: no such token was made here, or it is long forgotten.
	ErrUnknown = errors.New("no such token")
	// ErrUsed: all of the token's uses are taken.
	ErrUsed = errors.New("the token is used up")
	// ErrExpired: the token's time is over.
	ErrExpired = errors.New("the token has expired")
	// ErrRevoked: a person took the token back.
	ErrRevoked = errors.New("the token was revoked")
	// ErrTwin: the key has registered under another name.
	ErrTwin = errors.New("the key has registered under another name")
)

// Scope is what a token allows.
type Scope struct {
	// Names are patterns of the origin's name (fleet.MatchName); at least one.
	Names []string `json:"names"`
	// Hosts that the origin may serve, as in fleet.Origin.Hosts; empty means any
	// of the fleet's domains.
	Hosts []string `json:"hosts,omitempty"`
	// Folder of the repo for the origin's file; "" is the fleet's own.
	Folder string `json:"folder,omitempty"`
	// Automatic lets the registration be merged without a person, where the fleet's
	// policy allows that too.
	Automatic bool `json:"automatic,omitempty"`
	// Temporary is the longest that the origin may live; 0 means for good.
	Temporary time.Duration `json:"temporary,omitempty"`
}

// Token is what is kept of a join token.
type Token struct {
	// ID is join.Token.ID, Hash its Hash.
	ID   string `json:"id"`
	Hash []byte `json:"hash"`
	Scope
	// Uses is how many origins it may make, Used how many it has.
	Uses    int       `json:"uses"`
	Used    int       `json:"used"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// Revoked is when a person took it back; zero means not.
	Revoked time.Time `json:"revoked,omitzero"`
}

// State is why the token can no longer be used, or nil. It can be tested for
// ErrUsed, ErrExpired and ErrRevoked.
func (t Token) State(now time.Time) error {
	switch {
	case !t.Revoked.IsZero():
		return ErrRevoked
	case t.Used >= t.Uses:
		return ErrUsed
	case !now.Before(t.Expires):
		return ErrExpired
	}
	return nil
}

// Registration is a host that used a token.
type Registration struct {
	// Key is the host's public key, by which it is known here.
	Key   keys.Public `json:"key"`
	Name  string      `json:"name"`
	Hosts []string    `json:"hosts,omitempty"`
	// Folder of the repo for its file.
	Folder string `json:"folder"`
	// Address in the fleet's network; the zero Addr until one is chosen.
	Address netip.Addr `json:"address,omitzero"`
	// Expires ends the origin; nil means never.
	Expires *time.Time `json:"expires,omitempty"`
	// Token is the id of the token used, At when.
	Token string    `json:"token"`
	At    time.Time `json:"at"`
	// Scope is the token's.
	Scope Scope `json:"scope"`
	// Platform, Version and Hostname are the host's own words.
	Platform string `json:"platform,omitempty"`
	Version  string `json:"version,omitempty"`
	Hostname string `json:"hostname,omitempty"`

	// State is how far it has come, since Changed.
	State   join.State `json:"state"`
	Changed time.Time  `json:"changed"`
	// Reason and Pull are for the person at the host; see join.Answer.
	Reason string `json:"reason,omitempty"`
	Pull   string `json:"pull,omitempty"`
	// Branch proposes it; "" until it has one.
	Branch string `json:"branch,omitempty"`
	// Flags are for a reviewer; with any it is never merged without a person.
	Flags []string `json:"flags,omitempty"`
}

// content is the file.
type content struct {
	Tokens        map[string]Token        `json:"tokens"`
	Registrations map[string]Registration `json:"registrations"`
	// Rotations are the origins whose keys are to be newer than a moment.
	Rotations map[string]time.Time `json:"rotations"`
}

// Ledger is safe for concurrent use, also by several processes.
type Ledger struct {
	path string

	mu   sync.Mutex
	read os.FileInfo // of the file that kept is
	kept content
}

// Open opens the ledger of a control plane with a state folder, which exists. A
// folder of another user's is an error: a file that root leaves there would lock
// `kokoa serve` out.
func Open(state string) (*Ledger, error) {
	info, err := os.Stat(state)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("open ledger: %s belongs to user %d; run this as that user: sudo -u '#%d' kokoa …", state, owner.Uid, owner.Uid)
	}
	l := &Ledger{path: filepath.Join(state, "registrations.json")}
	return l, l.view(func(content) {})
}

// How long what is over is kept, for people to see.
const (
	keepTokens        = 7 * 24 * time.Hour
	keepRegistrations = 30 * 24 * time.Hour
)

// CreateToken makes a token for a control plane with a public join key. It may make
// as many origins as uses until now plus life.
func (l *Ledger) CreateToken(control keys.Public, s Scope, uses int, life time.Duration, now time.Time) (join.Token, Token, error) {
	t, err := join.NewToken(control)
	if err != nil {
		return join.Token{}, Token{}, err
	}
	hash := t.Hash()
	kept := Token{ID: t.ID(), Hash: hash[:], Scope: s, Uses: uses, Created: now.UTC(), Expires: now.Add(life).UTC()}
	err = l.change(now, func(c *content) error {
		c.Tokens[kept.ID] = kept
		return nil
	})
	if err != nil {
		return join.Token{}, Token{}, fmt.Errorf("create token: %w", err)
	}
	return t, kept, nil
}

// Tokens are all that are kept, oldest first.
func (l *Ledger) Tokens() (tokens []Token, err error) {
	err = l.view(func(c content) {
		tokens = slices.SortedFunc(maps.Values(c.Tokens), func(a, b Token) int {
			if n := a.Created.Compare(b.Created); n != 0 {
				return n
			}
			return strings.Compare(a.ID, b.ID)
		})
	})
	return tokens, err
}

// Token finds the one that a host presents. The error is ErrUnknown when there is
// none, or only its id is right.
func (l *Ledger) Token(t join.Token) (found Token, err error) {
	verr := l.view(func(c content) { found, err = c.token(t) })
	return found, errors.Join(verr, err)
}

// Revoke takes a token back. The origins it made stay.
func (l *Ledger) Revoke(id string, now time.Time) error {
	return l.change(now, func(c *content) error {
		t, ok := c.Tokens[id]
		if !ok {
			return fmt.Errorf("revoke token %s: %w", id, ErrUnknown)
		}
		if t.Revoked.IsZero() {
			t.Revoked = now.UTC()
		}
		c.Tokens[id] = t
		return nil
	})
}

// Accept takes one use of a token and keeps the registration, in one step: whatever
// happens afterwards, that use is gone and the registration is there. A key that is
// there under the same name takes no use; what is kept of it is returned. Errors
// can be tested for the token's and ErrTwin.
func (l *Ledger) Accept(t join.Token, r Registration, now time.Time) (accepted Registration, err error) {
	// A token that is over stays so: whoever hammers with one keeps nobody from
	// the lock.
	verr := l.view(func(c content) {
		if _, known, _ := c.twin(r); !known {
			_, err = c.usable(t, now)
		}
	})
	if err := errors.Join(verr, err); err != nil {
		return Registration{}, err
	}
	err = l.change(now, func(c *content) error {
		if twin, known, err := c.twin(r); known {
			accepted = twin
			return cmp.Or(err, errSame)
		}
		kept, err := c.usable(t, now)
		if err != nil {
			return err
		}
		kept.Used++
		c.Tokens[kept.ID] = kept
		r.Token, r.Scope, r.State = kept.ID, kept.Scope, join.Accepted
		r.At, r.Changed = now.UTC(), now.UTC()
		c.Registrations[r.Key.String()] = r
		accepted = r
		return nil
	})
	return accepted, err
}

// twin is what is kept of a host that asks again. Under another name it is ErrTwin.
func (c content) twin(r Registration) (kept Registration, known bool, err error) {
	kept, known = c.Registrations[r.Key.String()]
	switch {
	case !known || kept.State == join.Refused:
		return Registration{}, false, nil
	case kept.Name != r.Name:
		return Registration{}, true, fmt.Errorf("%w: %s", ErrTwin, kept.Name)
	}
	return kept, true, nil
}

// usable is the token when it has a use left.
func (c content) usable(t join.Token, now time.Time) (Token, error) {
	kept, err := c.token(t)
	if err == nil {
		err = kept.State(now)
	}
	return kept, err
}

// Registrations are all that are kept, oldest first.
func (l *Ledger) Registrations() (all []Registration, err error) {
	err = l.view(func(c content) {
		all = slices.SortedFunc(maps.Values(c.Registrations), func(a, b Registration) int {
			if n := a.At.Compare(b.At); n != 0 {
				return n
			}
			return strings.Compare(a.Name, b.Name)
		})
	})
	return all, err
}

// Registration is that of a key; ok is false when there is none.
func (l *Ledger) Registration(key keys.Public) (r Registration, ok bool, err error) {
	err = l.view(func(c content) { r, ok = c.Registrations[key.String()] })
	return r, ok, err
}

// Update changes registrations in one step: change is called with each that is
// kept, and says whether it changed it.
func (l *Ledger) Update(now time.Time, change func(*Registration) bool) error {
	return l.change(now, func(c *content) error {
		any := false
		for key, r := range c.Registrations {
			was := r.State
			if !change(&r) {
				continue
			}
			any = true
			if r.State != was {
				r.Changed = now.UTC()
			}
			c.Registrations[key] = r
		}
		if !any {
			return errSame
		}
		return nil
	})
}

// Rotate asks for a key newer than now for an origin.
func (l *Ledger) Rotate(origin string, now time.Time) error {
	return l.change(now, func(c *content) error {
		c.Rotations[origin] = now.UTC()
		return nil
	})
}

// Rotated forgets what Rotate asked for an origin: it has the new key, or is another
// host by now.
func (l *Ledger) Rotated(origin string, now time.Time) error {
	return l.change(now, func(c *content) error {
		if _, asked := c.Rotations[origin]; !asked {
			return errSame
		}
		delete(c.Rotations, origin)
		return nil
	})
}

// Rotations are the moments that origins' keys are to be newer than.
func (l *Ledger) Rotations() (all map[string]time.Time, err error) {
	err = l.view(func(c content) { all = maps.Clone(c.Rotations) })
	return all, err
}

// token finds the one whose secret is right, too.
func (c content) token(t join.Token) (Token, error) {
	kept, ok := c.Tokens[t.ID()]
	hash := t.Hash()
	// Equal hashes tell an attacker nothing that the id did not: what is compared
	// is a hash of what he sent.
	if !ok || string(kept.Hash) != string(hash[:]) {
		return Token{}, ErrUnknown
	}
	return kept, nil
}

// errSame ends a change without writing.
var errSame = errors.New("nothing to write")

// view reads the newest content, which see must not keep or change.
func (l *Ledger) view(see func(content)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A file is replaced whole, so reading needs no lock between processes.
	if err := l.load(); err != nil {
		return err
	}
	see(l.kept)
	return nil
}

// change makes one step. On error, errSame included, nothing was written.
func (l *Ledger) change(now time.Time, step func(*content) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock, err := os.OpenFile(l.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock ledger: %w", err)
	}
	defer lock.Close() // and with it the lock
	if err := flock(lock); err != nil {
		return fmt.Errorf("lock ledger: %w", err)
	}
	if err := l.load(); err != nil {
		return err
	}
	next := content{maps.Clone(l.kept.Tokens), maps.Clone(l.kept.Registrations), maps.Clone(l.kept.Rotations)}
	if err := step(&next); err != nil {
		if err == errSame {
			return nil
		}
		return err
	}
	next.forget(now)
	data, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = atomicfile.Write(l.path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	l.read = nil
	return nil
}

// flock waits for the lock.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// load reads the file when it is another than the one read before.
func (l *Ledger) load() error {
	info, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		l.read = nil
		l.kept = content{map[string]Token{}, map[string]Registration{}, map[string]time.Time{}}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	if l.read != nil && os.SameFile(info, l.read) && info.ModTime().Equal(l.read.ModTime()) && info.Size() == l.read.Size() {
		return nil
	}
	c := content{}
	data, err := os.ReadFile(l.path)
	if err == nil {
		err = privatefile.Check(l.path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("read ledger: %s: %w", l.path, err)
	}
	l.kept, l.read = content{orEmpty(c.Tokens), orEmpty(c.Registrations), orEmpty(c.Rotations)}, info
	return nil
}

func orEmpty[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// forget drops what has long been over. A token that is forgotten is ErrUnknown,
// and so is never of use again.
func (c *content) forget(now time.Time) {
	maps.DeleteFunc(c.Tokens, func(_ string, t Token) bool {
		return now.Sub(t.Expires) > keepTokens
	})
	maps.DeleteFunc(c.Registrations, func(_ string, r Registration) bool {
		over := r.State == join.Live || r.State == join.Refused
		return over && now.Sub(r.Changed) > keepRegistrations
	})
	maps.DeleteFunc(c.Rotations, func(_ string, at time.Time) bool { return now.Sub(at) > keepRegistrations })
}

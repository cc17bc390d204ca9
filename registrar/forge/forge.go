// Package forge is what the control plane does at the place where the fleet repo
// is kept: it proposes changes as pull requests, and merges them where it may. Each
// make of forge has a package below; a bare repository is one as well, with branches
// for pull requests. Package forgetest has the suite that all of them pass.
package forge

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// File is a file of the fleet repo as a proposal leaves it.
type File struct {
	// Path from the top of the repo, with slashes.
	Path string
	// Content is all of it; nil removes the file.
	Content []byte
}

// Proposal is a change for somebody to review.
type Proposal struct {
	// Branch is where the change lives, without "refs/heads/". The same change has
	// the same branch, however often it is proposed.
	Branch string
	// Title is one line, and the subject of the commit; Body is Markdown, and the
	// commit's text.
	Title, Body string
	// Files change in one commit. No path is named twice.
	Files []File
	// Base, when it is set, is the commit that the files were read at: proposing is
	// ErrConflict when the base branch's head is another by now, since what somebody
	// changed meanwhile would be undone.
	Base string
}

// State is where a pull request stands.
type State string

// The states.
const (
	Open   State = "open"
	Merged State = "merged"
	Closed State = "closed" // without being merged
)

// Pull is a pull request.
type Pull struct {
	// Number is the forge's; 0 where it has none.
	Number int
	Branch string
	State  State
	// Head is the branch's commit, 40 hexadecimal digits.
	Head string
	// URL is where people see it; for a bare repository, the command that approves
	// it.
	URL string
}

// Forge is where the fleet repo is kept. Its methods may be called at once from
// several goroutines, for different branches.
type Forge interface {
	// Propose makes the proposal's branch one commit on top of the base branch's
	// head, and sees that exactly one pull request of it is open. One that is open
	// is found and brought up to date, and nothing is written when it already says
	// the same and still applies. A pull request of the branch that was closed or
	// merged earlier does not count.
	Propose(ctx context.Context, p Proposal) (Pull, error)
	// Find is the branch's newest pull request, in whatever state, or ErrNoPull.
	Find(ctx context.Context, branch string) (Pull, error)
	// Merge merges a pull request whose head is still p.Head, and removes its
	// branch. Merging one that is merged already is no error. Errors can be tested
	// for ErrConflict and ErrProtected.
	Merge(ctx context.Context, p Pull) error
	// Close closes a pull request without merging it, says why in a comment where
	// there are comments, and removes its branch. One that is closed is no error.
	Close(ctx context.Context, p Pull, why string) error
	// String names the place, without credentials.
	String() string
}

// The errors that a caller may ask for with errors.Is. Everything else is the
// forge's trouble, and may be better later.
var (
	// ErrNoPull: there is no pull request of the branch.
	ErrNoPull = errors.New("no such pull request")
	// ErrConflict: the base branch has moved so that the change no longer applies,
	// or the pull request is not what it was; propose again.
	ErrConflict = errors.New("the pull request does not fit the branch it is for")
	// ErrProtected: the branch's rules forbid merging this way; a person must.
	ErrProtected = errors.New("the repo's rules do not let this be merged here")
	// ErrDenied: the forge refused the credentials, or they may not do this.
	ErrDenied = errors.New("the forge refused the credentials")
)

// LimitError says that the forge asks to come back later.
type LimitError struct {
	// Until is when; it may be past.
	Until time.Time
}

// Error says until when.
func (e LimitError) Error() string {
	return fmt.Sprintf("the forge's rate limit is used up until %s", e.Until.UTC().Format(time.RFC3339))
}

// Package registrar lets hosts become origins: it takes their registrations,
// proposes them to the fleet repo as the fleet's policy says, and tells each host
// when it is live. It also proposes what follows from time: new keys for agents, and
// the end of what has expired.
package registrar

import (
	"context"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Forge is where the fleet repo is kept. Its methods may be called at once from
// several goroutines, for different branches.
type Forge interface {
	// Propose makes the proposal's branch one commit on top of the base branch's
	// head, and sees that exactly one pull request of it is open. One that is open
	// is found and brought up to date, and nothing is written when it already says
	// the same and still applies. A pull request of the branch that was closed or
	// merged earlier does not count.
	Propose(ctx context.Context, p forge.Proposal) (forge.Pull, error)
	// Find is the branch's newest pull request, in whatever state, or ErrNoPull.
	Find(ctx context.Context, branch string) (forge.Pull, error)
	// Merge merges a pull request whose head is still p.Head, and removes its
	// branch. Merging one that is merged already is no error. Errors can be tested
	// for ErrConflict and ErrProtected.
	Merge(ctx context.Context, p forge.Pull) error
	// Close closes a pull request without merging it, says why in a comment where
	// there are comments, and removes its branch. One that is closed is no error.
	Close(ctx context.Context, p forge.Pull, why string) error
	// String names the place, without credentials.
	String() string
}

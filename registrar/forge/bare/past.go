package bare

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// past is the history of the base branch. It is remembered, so that only what is
// new is read.
type past struct {
	mu      sync.Mutex
	head    plumbing.Hash
	commits map[plumbing.Hash]bool
}

// has reports whether a commit is in the history of base.
func (p *past) has(ctx context.Context, o *objects, base, commit plumbing.Hash) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.read(ctx, o, base)
	return err == nil && p.commits[commit], err
}

// fork is the commit where head's branch left the history of base: base itself when
// head is a descendant. It is ErrConflict when there is not just one.
func (p *past) fork(ctx context.Context, o *objects, base, head plumbing.Hash) (plumbing.Hash, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.read(ctx, o, base); err != nil {
		return plumbing.ZeroHash, err
	}
	_, left, err := walk(ctx, o, head, p.commits)
	switch {
	case err != nil:
		return plumbing.ZeroHash, err
	case left[base]:
		return base, nil
	case len(left) != 1:
		return plumbing.ZeroHash, fmt.Errorf("%w: the branch left it at %d places, not at one", forge.ErrConflict, len(left))
	}
	return slices.Collect(maps.Keys(left))[0], nil
}

func (p *past) read(ctx context.Context, o *objects, base plumbing.Hash) error {
	if base == p.head {
		return nil
	}
	fresh, reached, err := walk(ctx, o, base, p.commits)
	if err != nil {
		return err
	}
	if !reached[p.head] {
		// The first time, or history was rewritten: what is known is not its past.
		if len(p.commits) > 0 {
			if fresh, _, err = walk(ctx, o, base, nil); err != nil {
				return err
			}
		}
		p.commits = map[plumbing.Hash]bool{}
	}
	maps.Copy(p.commits, fresh)
	p.head = base
	return nil
}

// walk reads the history of a commit as far as it is not known, and which known
// commits that leads to.
func walk(ctx context.Context, o *objects, from plumbing.Hash, known map[plumbing.Hash]bool) (fresh, reached map[plumbing.Hash]bool, err error) {
	fresh, reached = map[plumbing.Hash]bool{}, map[plumbing.Hash]bool{}
	for next := []plumbing.Hash{from}; len(next) > 0; {
		hash := next[len(next)-1]
		next = next[:len(next)-1]
		switch {
		case known[hash]:
			reached[hash] = true
			continue
		case fresh[hash]:
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		c, err := object.GetCommit(o.store, hash)
		if err != nil {
			return nil, nil, fmt.Errorf("read commit %s: %w", hash, err)
		}
		fresh[hash] = true
		next = append(next, c.ParentHashes...)
	}
	return fresh, reached, nil
}

// Package bare is a bare repository on this host as a forge, without any program
// around it.
//
// A pull request is a branch with commits that the base branch does not have. Its
// title and body are the message of the branch's commit; taking the branch away
// closes it. So that it can be told later what became of a branch, the ref
// refs/kokoa/pulls/BRANCH stays at the head of its newest pull request: if the base
// branch has that commit, it was merged. A person who merges without the commit
// itself, by a squash or a rebase, and then removes the branch, has closed it.
//
// Objects and refs are written as Git's programs do, so people may push at any
// moment. Hooks do not run, and reflogs are not written.
package bare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Options are how a Forge works; the zero value works.
type Options struct {
	// Name and Email are whom commits are by: "Kokoa" and "kokoa@localhost".
	Name, Email string
	// Approve is the command with which a person merges a branch's pull request. Nil
	// is `kokoa origin approve` with what follows the branch's last slash.
	Approve func(branch string) string
	// Now tells the time of commits; nil is time.Now.
	Now func() time.Time
}

// Forge is one bare repository and its base branch. It holds nothing open, and is
// safe for concurrent use, also with others in other processes.
type Forge struct {
	dir  string
	base plumbing.ReferenceName
	opts Options
	refs refs
	past past
}

// Open opens the bare repository in a folder, whose base branch is there.
func Open(dir, branch string, o Options) (*Forge, error) {
	o.Name, o.Email = cmp.Or(o.Name, "Kokoa"), cmp.Or(o.Email, "kokoa@localhost")
	if o.Approve == nil {
		o.Approve = func(branch string) string { return "kokoa origin approve " + path.Base(branch) }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	f := &Forge{dir: dir, base: plumbing.NewBranchReferenceName(branch), opts: o, refs: refs{dir}}
	if err := f.base.Validate(); err != nil {
		return nil, fmt.Errorf("open %s: branch %q: %w", dir, branch, err)
	}
	if err := supported(dir); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if _, err := f.head(); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return f, nil
}

// String is the repository's folder.
func (f *Forge) String() string { return f.dir }

// Propose makes the branch one commit on the base branch's head. See
// forge.Forge.
func (f *Forge) Propose(ctx context.Context, p forge.Proposal) (forge.Pull, error) {
	branch, err := f.branch(p.Branch)
	if err != nil {
		return forge.Pull{}, fmt.Errorf("propose: %w", err)
	}
	head, err := settle(ctx, func() (plumbing.Hash, error) { return f.propose(ctx, branch, p) })
	if err != nil {
		return forge.Pull{}, fmt.Errorf("propose %s: %w", p.Branch, err)
	}
	return f.pull(branch, forge.Open, head), nil
}

func (f *Forge) propose(ctx context.Context, branch plumbing.ReferenceName, p forge.Proposal) (plumbing.Hash, error) {
	objects := openObjects(f.dir)
	base, err := f.head()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if p.Base != "" && p.Base != base.String() {
		return plumbing.ZeroHash, fmt.Errorf("%w: %s is at %.12s and not at %.12s", forge.ErrConflict, f.base.Short(), base, p.Base)
	}
	head, err := f.refs.read(branch)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	c, err := objects.proposed(base, p)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	same, err := objects.same(head, c)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if same {
		return head, f.mark(ctx, branch, head)
	}
	next, err := f.write(objects, c)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	if err := f.refs.swap(ctx, branch, head, next); err != nil {
		return plumbing.ZeroHash, err
	}
	return next, f.mark(ctx, branch, next)
}

// Find finds the branch's newest pull request. See forge.Forge.
func (f *Forge) Find(ctx context.Context, branch string) (forge.Pull, error) {
	name, err := f.branch(branch)
	if err != nil {
		return forge.Pull{}, fmt.Errorf("find: %w", err)
	}
	p, err := settle(ctx, func() (forge.Pull, error) { return f.find(ctx, name) })
	if err != nil {
		return forge.Pull{}, fmt.Errorf("find %s: %w", branch, err)
	}
	return p, nil
}

func (f *Forge) find(ctx context.Context, branch plumbing.ReferenceName) (forge.Pull, error) {
	head, marked, err := f.heads(branch)
	if err != nil {
		return forge.Pull{}, err
	}
	// Read last: a branch is removed only after the base branch has moved.
	base, err := f.head()
	if err != nil {
		return forge.Pull{}, err
	}
	objects := openObjects(f.dir)
	if !head.IsZero() {
		merged, err := f.past.has(ctx, objects, base, head)
		if err != nil {
			return forge.Pull{}, err
		}
		if !merged {
			return f.pull(branch, forge.Open, head), nil
		}
	}
	if marked.IsZero() {
		return forge.Pull{}, forge.ErrNoPull
	}
	merged, err := f.past.has(ctx, objects, base, marked)
	if err != nil {
		return forge.Pull{}, err
	}
	state := forge.Closed
	if merged {
		state = forge.Merged
	}
	return f.pull(branch, state, marked), nil
}

// heads are the branch's head and the one that is remembered, of one moment.
func (f *Forge) heads(branch plumbing.ReferenceName) (head, marked plumbing.Hash, err error) {
	for {
		if marked, err = f.refs.read(mark(branch)); err != nil {
			return head, marked, err
		}
		if head, err = f.refs.read(branch); err != nil {
			return head, marked, err
		}
		if again, err := f.refs.read(mark(branch)); again == marked || err != nil {
			return head, marked, err
		}
	}
}

// Merge moves the base branch to the pull request's head, or to a merge commit when
// the base branch has moved elsewhere. See forge.Forge.
func (f *Forge) Merge(ctx context.Context, p forge.Pull) error {
	branch, err := f.branch(p.Branch)
	if err != nil {
		return fmt.Errorf("merge: %w", err)
	}
	head, err := settle(ctx, func() (plumbing.Hash, error) { return f.merge(ctx, branch, p.Head) })
	if err != nil {
		return fmt.Errorf("merge %s: %w", p.Branch, err)
	}
	// What somebody pushed since is another pull request, and stays.
	if err := f.refs.swap(ctx, branch, head, plumbing.ZeroHash); err != nil && !errors.Is(err, errMoved) {
		return fmt.Errorf("merge %s: remove the branch: %w", p.Branch, err)
	}
	return nil
}

// merge returns the head that is merged.
func (f *Forge) merge(ctx context.Context, branch plumbing.ReferenceName, want string) (plumbing.Hash, error) {
	if !plumbing.IsHash(want) {
		return plumbing.ZeroHash, fmt.Errorf("%w: no commit is named %q", forge.ErrConflict, want)
	}
	objects := openObjects(f.dir)
	base, err := f.head()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	head := plumbing.NewHash(want)
	if merged, err := f.past.has(ctx, objects, base, head); merged || err != nil {
		return head, err
	}
	now, err := f.refs.read(branch)
	switch {
	case err != nil:
		return plumbing.ZeroHash, err
	case now.IsZero():
		return plumbing.ZeroHash, fmt.Errorf("%w: it was closed", forge.ErrConflict)
	case now != head:
		return plumbing.ZeroHash, fmt.Errorf("%w: its head is %s now", forge.ErrConflict, now)
	}
	next, err := f.merged(ctx, objects, branch, base, head)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	// A branch that a person made is remembered as well.
	if err := f.mark(ctx, branch, head); err != nil {
		return plumbing.ZeroHash, err
	}
	return head, f.refs.swap(ctx, f.base, base, next)
}

// merged is the commit that has both branches: head itself, where that is enough.
func (f *Forge) merged(ctx context.Context, o *objects, branch plumbing.ReferenceName, base, head plumbing.Hash) (plumbing.Hash, error) {
	fork, err := f.past.fork(ctx, o, base, head)
	if err != nil || fork == base {
		return head, err
	}
	tree, err := o.rebased(ctx, fork, head, base)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return f.write(o, &object.Commit{
		TreeHash:     tree,
		ParentHashes: []plumbing.Hash{base, head},
		Message:      fmt.Sprintf("Merge branch '%s'\n", branch.Short()),
	})
}

// Close removes the branch; there are no comments to say why in. What others pushed
// to it can be found at the ref that the package names. See forge.Forge.
func (f *Forge) Close(ctx context.Context, p forge.Pull, why string) error {
	branch, err := f.branch(p.Branch)
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	_, err = settle(ctx, func() (plumbing.Hash, error) {
		head, err := f.refs.read(branch)
		if err != nil || head.IsZero() {
			return plumbing.ZeroHash, err
		}
		if err := f.mark(ctx, branch, head); err != nil {
			return plumbing.ZeroHash, err
		}
		return head, f.refs.swap(ctx, branch, head, plumbing.ZeroHash)
	})
	if err != nil {
		return fmt.Errorf("close %s: %w", p.Branch, err)
	}
	return nil
}

// settle repeats a step while others move the same refs. A step may also miss an
// object, or a folder for one, that Git moves at this moment to pack it.
func settle[T any](ctx context.Context, step func() (T, error)) (result T, err error) {
	for missed := 0; ; {
		if err := ctx.Err(); err != nil {
			return result, err
		}
		result, err = step()
		switch {
		case errors.Is(err, errMoved):
			// Somebody else has got ahead; it cannot be for ever.
		case missed < 5 && missing(err):
			missed++
		default:
			return result, err
		}
	}
}

// write writes a commit, by the Forge and now, and all that it needs.
func (f *Forge) write(o *objects, c *object.Commit) (plumbing.Hash, error) {
	by := object.Signature{Name: f.opts.Name, Email: f.opts.Email, When: f.opts.Now()}
	c.Author, c.Committer = by, by
	hash, err := o.add(c)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return hash, o.flush()
}

// head is the base branch's head.
func (f *Forge) head() (plumbing.Hash, error) {
	head, err := f.refs.read(f.base)
	if err == nil && head.IsZero() {
		err = fmt.Errorf("there is no branch %q", f.base.Short())
	}
	return head, err
}

func (f *Forge) branch(name string) (plumbing.ReferenceName, error) {
	ref := plumbing.NewBranchReferenceName(name)
	if err := ref.Validate(); err != nil {
		return "", fmt.Errorf("branch %q: %w", name, err)
	}
	if ref == f.base {
		return "", fmt.Errorf("branch %q is the one that pull requests are for", name)
	}
	return ref, nil
}

func (f *Forge) pull(branch plumbing.ReferenceName, s forge.State, head plumbing.Hash) forge.Pull {
	return forge.Pull{Branch: branch.Short(), State: s, Head: head.String(), URL: f.opts.Approve(branch.Short())}
}

// mark remembers the head of a branch's newest pull request.
func (f *Forge) mark(ctx context.Context, branch plumbing.ReferenceName, head plumbing.Hash) error {
	old, err := f.refs.read(mark(branch))
	if err != nil || old == head {
		return err
	}
	return f.refs.swap(ctx, mark(branch), old, head)
}

func mark(branch plumbing.ReferenceName) plumbing.ReferenceName {
	return plumbing.ReferenceName("refs/kokoa/pulls/" + strings.TrimPrefix(branch.String(), "refs/heads/"))
}

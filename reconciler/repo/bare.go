package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// bare is a repository on this host. It is only read.
type bare struct {
	dir    string
	branch string
	opts   Options
	refs   *filesystem.Storage
	reader reader

	mu   sync.Mutex
	last *Revision
}

func openBare(dir string, o Options) (*bare, error) {
	refs, err := openRefs(dir)
	if err != nil {
		return nil, err
	}
	reader, err := newReader(filepath.Join(dir, "objects"), o.Limits)
	if err != nil {
		return nil, err
	}
	return &bare{dir: dir, branch: o.Branch, opts: o, refs: refs, reader: reader}, nil
}

// openRefs opens a repository with go-git, which refuses the kinds that it cannot
// read (SHA-256, reftable).
func openRefs(dir string) (*filesystem.Storage, error) {
	refs := filesystem.NewStorage(newGitFiles(dir), cache.NewObjectLRU(0))
	if _, err := git.Open(refs, nil); err != nil {
		return nil, fmt.Errorf("%w that can be read: %s: %w", ErrNotRepository, dir, err)
	}
	return refs, nil
}

func (b *bare) Fetch(ctx context.Context) (*Revision, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reader.objects.rest()
	head, err := b.head()
	if err != nil {
		return nil, err
	}
	if b.last != nil && b.last.Commit == head.String() {
		return b.last, nil
	}
	rev, err := b.reader.revision(ctx, head, "", true)
	if err != nil {
		return nil, fmt.Errorf("read branch %q of %s: %w", b.branch, b.dir, err)
	}
	b.last = rev
	return rev, nil
}

func (b *bare) head() (plumbing.Hash, error) {
	name := plumbing.NewBranchReferenceName(b.branch)
	head, err := readRef(b.refs, b.dir, name.String())
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		// It may be in the list of packed references.
		var ref *plumbing.Reference
		if ref, err = storer.ResolveReference(b.refs, name); err == nil {
			return ref.Hash(), nil
		}
	}
	if err == nil {
		return head, nil
	}
	if !errors.Is(err, plumbing.ErrReferenceNotFound) {
		return plumbing.ZeroHash, fmt.Errorf("read branch %q of %s: %w", b.branch, b.dir, err)
	}
	// A repository that is gone, or may not be read, has no branches either.
	if _, err := os.ReadDir(filepath.Join(b.dir, "refs")); err != nil {
		return plumbing.ZeroHash, fmt.Errorf("read branches: %w", err)
	}
	all, err := b.refs.IterReferences()
	if err != nil {
		return plumbing.ZeroHash, fmt.Errorf("read branches of %s: %w", b.dir, err)
	}
	var names []string
	err = all.ForEach(func(r *plumbing.Reference) error {
		names = append(names, r.Name().String())
		return nil
	})
	if err != nil {
		return plumbing.ZeroHash, fmt.Errorf("read branches of %s: %w", b.dir, err)
	}
	return plumbing.ZeroHash, noBranch(b.dir, b.branch, names)
}

// readRef is what a reference with a file of its own stands for. go-git would take
// one that cannot be read for one that is not there, or give what the list of packed
// references had in its place.
func readRef(refs *filesystem.Storage, dir, name string) (plumbing.Hash, error) {
	text, err := readFile(dir, name)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	line := strings.TrimSpace(string(text))
	target, symbolic := strings.CutPrefix(line, "ref: ")
	if !symbolic {
		hash, ok := parseHash(line)
		if !ok {
			return plumbing.ZeroHash, fmt.Errorf("%w: %s is %.60q", ErrCorrupt, name, line)
		}
		return hash, nil
	}
	ref, err := storer.ResolveReference(refs, plumbing.ReferenceName(target))
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return ref.Hash(), nil
}

func (b *bare) At(ctx context.Context, commit string) (*Revision, error) {
	return b.reader.at(ctx, commit, "", nil)
}

func (b *bare) Watch(ctx context.Context, changed func()) error {
	// A push renames a lock file onto the branch's file; `git pack-refs` writes
	// packed-refs. The folders of a branch "team/main" come with its first push.
	ref := filepath.Join(b.dir, "refs", "heads", filepath.FromSlash(b.branch))
	var folders []string
	for dir := filepath.Dir(ref); len(dir) >= len(b.dir); dir = filepath.Dir(dir) {
		folders = append(folders, dir)
	}
	slices.Reverse(folders)
	return watch(ctx, watching{
		folders: func() []string { return folders },
		matters: func(path string) bool {
			return path == ref || path == filepath.Join(b.dir, "packed-refs") || slices.Contains(folders, path)
		},
		settle: refSettle,
		poll:   b.opts.Poll,
		log:    b.opts.Log,
	}, changed)
}

func (b *bare) String() string { return b.dir }

func (b *bare) Close() error { return b.reader.objects.close() }

// noBranch is ErrNoBranch with the branches that there are.
func noBranch(where, branch string, refs []string) error {
	var names []string
	for _, ref := range refs {
		if name, ok := strings.CutPrefix(ref, "refs/heads/"); ok {
			names = append(names, oneLine(name))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch n := len(names); {
	case n == 0:
		return fmt.Errorf("%w: %s has no branch %q; it has none at all: git push %s HEAD:%s", ErrNoBranch, where, branch, where, branch)
	case n > 10:
		names = append(names[:10], fmt.Sprintf("and %d more", n-10))
	}
	return fmt.Errorf("%w: %s has no branch %q; it has: %s", ErrNoBranch, where, branch, strings.Join(names, ", "))
}

// isGitDir reports whether dir is a repository's own folder
// (gitrepository-layout).
func isGitDir(dir string) bool {
	for _, name := range []string{"objects", "refs"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.IsDir() {
			return false
		}
	}
	_, err := os.Lstat(filepath.Join(dir, "HEAD"))
	return err == nil
}

// clone is a working tree and the repository behind it.
type clone struct {
	top    string // the working tree
	own    string // has HEAD
	common string // has refs and objects; differs from own in a linked worktree
}

// findClone looks for the clone that a folder is in.
func findClone(dir string) (clone, bool) {
	for top := dir; ; top = filepath.Dir(top) {
		if c, err := cloneAt(top); !errors.Is(err, os.ErrNotExist) {
			return c, err == nil
		}
		if top == filepath.Dir(top) {
			return clone{}, false
		}
	}
}

// cloneAt is the clone whose working tree is at top; os.ErrNotExist when there is
// none.
func cloneAt(top string) (clone, error) {
	own := filepath.Join(top, ".git")
	if text, err := readFile(top, ".git"); err == nil {
		link, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "gitdir: ")
		if !ok {
			return clone{}, fmt.Errorf("%w: %s says nothing of a repository", ErrNotRepository, own)
		}
		own = inside(top, link)
	}
	if _, err := os.Lstat(filepath.Join(own, "HEAD")); err != nil {
		return clone{}, os.ErrNotExist
	}
	common := own
	if text, err := readFile(own, "commondir"); err == nil {
		common = inside(own, strings.TrimSpace(string(text)))
	}
	if !isGitDir(common) {
		return clone{}, fmt.Errorf("%w: %s", ErrNotRepository, common)
	}
	return clone{top, own, common}, nil
}

// inside is path, taken from dir when it is relative.
func inside(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/kokoa-proxy/kokoa/schema"
)

// A Revision is what schema.Load reads.
var _ schema.Tree = (*Revision)(nil)

// Revision is the fleet repo at one commit. It does not change, and its methods
// may be called at once from several goroutines, until its Source is closed.
type Revision struct {
	// Commit is the commit's hash in 40 hexadecimal digits; empty for a folder
	// that is no clone, or a clone without a commit.
	Commit string
	// Uncommitted is set when the *.cue files of a folder differ from Commit's.
	Uncommitted bool
	// Subject is the first line of the commit's message, Author its author's
	// name: cut to a hundred letters and free of control characters.
	Subject, Author string
	// When the commit was made, by its committer's clock.
	When time.Time
	// NotFollowed counts symbolic links and submodules: Kokoa does not look
	// behind them.
	NotFollowed int

	files   []schema.File
	read    func(index int) ([]byte, error)
	history *objects // nil when there is none
}

// Files is every *.cue file, sorted by path. The caller must not change it.
func (r *Revision) Files() []schema.File { return r.files }

// Read is the content of a file of Files, checked against its hash. When it fails
// (ErrCorrupt, ErrPath, a disk) the revision must not be used in part. A path that
// is not in Files is fs.ErrNotExist. The caller must not change the bytes.
func (r *Revision) Read(path string) ([]byte, error) {
	i, ok := slices.BinarySearchFunc(r.files, path, func(f schema.File, path string) int {
		return strings.Compare(f.Path, path)
	})
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	text, err := r.read(i)
	if err != nil {
		return nil, err
	}
	// Large file storage of Git leaves a pointer where the file was.
	if bytes.HasPrefix(text, []byte("version https://git-lfs.github.com/spec/")) {
		return nil, fmt.Errorf("%w: %s is a pointer into Git LFS, which Kokoa does not read; take *.cue out of .gitattributes and commit the file itself", ErrPath, path)
	}
	return text, nil
}

// Descends is nil when the revision is base or a descendant of it. Otherwise, and
// when that cannot be shown because base or a commit between is gone, the error is
// ErrRewind. A folder is its owner's to change and always passes.
func (r *Revision) Descends(ctx context.Context, base string) error {
	if r.history == nil || r.Commit == base {
		return nil
	}
	from, ok := parseHash(base)
	if !ok {
		return fmt.Errorf("%w: %q is not a commit's hash", ErrUnknownCommit, base)
	}
	descends, err := r.history.descends(ctx, plumbing.NewHash(r.Commit), from)
	if err != nil {
		return fmt.Errorf("compare %.12s with %.12s: %w", r.Commit, base, err)
	}
	if !descends {
		return fmt.Errorf("%w: %s does not descend from %s, which was applied last; if this is meant: kokoa serve --accept-history %s",
			ErrRewind, r.Commit, base, r.Commit)
	}
	return nil
}

// String is "commit 0123456789ab", with " + uncommitted" where that is so.
func (r *Revision) String() string {
	if r.Commit == "" {
		return "uncommitted files"
	}
	s := "commit " + r.Commit[:12]
	if r.Uncommitted {
		s += " + uncommitted"
	}
	return s
}

// workPerByte is how many bytes may be unpacked for each that may be in a revision.
// Git makes chains of at most 50 deltas, each of about the file's size or less.
const workPerByte = 64

// reader makes revisions from objects, and remembers what two of them share.
type reader struct {
	objects *objects
	limits  Limits
	known   *known
}

// newReader reads below an objects folder.
func newReader(dir string, limits Limits) (reader, error) {
	objects, err := newObjects(dir, workPerByte*limits.Bytes)
	if err != nil {
		return reader{}, err
	}
	return reader{objects, limits, newKnown()}, nil
}

// revision is the whole of a commit: every folder read, every file known to be
// there. subfolder narrows it to a folder of the commit; "" is all of it.
func (r *reader) revision(ctx context.Context, commit plumbing.Hash, subfolder string, newest bool) (*Revision, error) {
	c, err := r.objects.commit(commit)
	if err != nil {
		return nil, err
	}
	tree, err := r.known.tree(ctx, r.objects, c.TreeHash, subfolder, r.limits, newest)
	if err != nil {
		return nil, fmt.Errorf("commit %.12s: %w", commit.String(), err)
	}
	return &Revision{
		Commit:      commit.String(),
		Subject:     oneLine(c.Message),
		Author:      oneLine(c.Author.Name),
		When:        c.Committer.When,
		NotFollowed: tree.notFollowed,
		files:       tree.files,
		history:     r.objects,
		read: func(i int) ([]byte, error) {
			text, err := r.objects.blob(tree.hashes[i], r.limits.File)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", tree.files[i].Path, err)
			}
			return text, nil
		},
	}, nil
}

// at is revision for a hash in text. gone is tried once when the commit is not
// there; nil gives up at once.
func (r *reader) at(ctx context.Context, commit, subfolder string, gone func() error) (*Revision, error) {
	hash, ok := parseHash(commit)
	if !ok {
		return nil, fmt.Errorf("%w: %q; give all 40 hexadecimal digits", ErrUnknownCommit, commit)
	}
	if !r.objects.has(hash) && gone != nil {
		if err := gone(); err != nil {
			return nil, err
		}
	}
	if !r.objects.has(hash) {
		return nil, fmt.Errorf("%w: %s", ErrUnknownCommit, commit)
	}
	return r.revision(ctx, hash, subfolder, false)
}

// commit reads a commit.
func (s *objects) commit(h plumbing.Hash) (*object.Commit, error) {
	text, err := s.get(h, plumbing.CommitObject, maxCommit)
	if err != nil {
		return nil, err
	}
	encoded := &plumbing.MemoryObject{}
	encoded.SetType(plumbing.CommitObject)
	if _, err := encoded.Write(text); err != nil {
		return nil, err
	}
	var c object.Commit
	if err := c.Decode(encoded); err != nil {
		return nil, fmt.Errorf("%w: commit %s: %w", ErrCorrupt, h, err)
	}
	return &c, nil
}

// descends reports whether base is head or among its ancestors. What is cut off
// or gone is no ancestor.
func (s *objects) descends(ctx context.Context, head, base plumbing.Hash) (bool, error) {
	seen := map[plumbing.Hash]bool{head: true}
	for queue := []plumbing.Hash{head}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == base {
			return s.has(base), nil
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		c, err := s.commit(queue[0])
		if errors.Is(err, errMissing) {
			continue
		}
		if err != nil {
			return false, err
		}
		for _, parent := range c.ParentHashes {
			if !seen[parent] {
				seen[parent] = true
				queue = append(queue, parent)
			}
		}
	}
	return false, nil
}

func parseHash(text string) (plumbing.Hash, bool) {
	return plumbing.NewHash(text), plumbing.IsHash(text)
}

// oneLine is a line that is safe in a log and on a page.
func oneLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimLeft(text, "\r\n"), "\n")
	line = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, line)
	if runes := []rune(line); len(runes) > 100 {
		line = string(runes[:99]) + "…"
	}
	return strings.TrimSpace(line)
}

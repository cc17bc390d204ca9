package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/kokoa-proxy/kokoa/schema"
)

// work is the files of a folder as they lie, committed or not.
type work struct {
	dir  string
	opts Options

	// Of the clone that the folder is in; clone is zero when it is in none.
	clone     clone
	subfolder string // of the folder within the clone
	refs      *filesystem.Storage
	reader    reader

	mu   sync.Mutex
	last *Revision
	seen map[string]seen // by path in the folder
}

// seen is what was read of a file, so that the next Fetch reads only what changed.
type seen struct {
	size    int64
	written time.Time
	read    time.Time
	hash    string
	text    []byte
}

func openFolder(dir string, o Options) (*work, error) {
	w := &work{dir: dir, opts: o}
	found, ok := findClone(dir)
	if !ok {
		return w, nil
	}
	var err error
	if w.subfolder, err = filepath.Rel(found.top, dir); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if w.subfolder = filepath.ToSlash(w.subfolder); w.subfolder == "." {
		w.subfolder = ""
	}
	if w.refs, err = openRefs(found.common); err != nil {
		return nil, err
	}
	if w.reader, err = newReader(filepath.Join(found.common, "objects"), o.Limits); err != nil {
		return nil, err
	}
	w.clone = found
	return w, nil
}

func (w *work) Fetch(ctx context.Context) (*Revision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rev, err := w.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", w.dir, err)
	}
	if err := w.compare(ctx, rev); err != nil {
		return nil, fmt.Errorf("read %s: %w", w.dir, err)
	}
	if w.last != nil && w.last.Commit == rev.Commit && w.last.Uncommitted == rev.Uncommitted && slices.Equal(w.last.files, rev.files) {
		return w.last, nil
	}
	w.last = rev
	return rev, nil
}

// read reads the folder. The revision keeps the texts, so it stays what it is
// when the files go on changing.
func (w *work) read(ctx context.Context) (*Revision, error) {
	rev := &Revision{}
	now := make(map[string]seen, len(w.seen))
	var total int64
	err := w.walk(ctx, func(path string, d fs.DirEntry) error {
		if d.Type()&fs.ModeSymlink != 0 {
			rev.NotFollowed++
		}
		if d.IsDir() || !isCUE(d.Name()) {
			return nil
		}
		if why := oddPath(path); why != "" {
			return fmt.Errorf("%w: %q: %s", ErrPath, path, why)
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%w: %s is not an ordinary file (%s); put the file itself there", ErrPath, path, d.Type())
		}
		if len(now) == w.opts.Limits.Files {
			return fmt.Errorf("%w: more than %d *.cue files", ErrLimit, w.opts.Limits.Files)
		}
		f, err := w.file(path, w.seen[path])
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if total += f.size; total > w.opts.Limits.Bytes {
			return fmt.Errorf("%w: more than %s of *.cue files", ErrLimit, bytesText(w.opts.Limits.Bytes))
		}
		now[path] = f
		rev.files = append(rev.files, schema.File{Path: path, Hash: f.hash})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(rev.files) == 0 {
		return nil, ErrEmpty
	}
	slices.SortFunc(rev.files, func(a, b schema.File) int { return strings.Compare(a.Path, b.Path) })
	files := rev.files
	rev.read = func(i int) ([]byte, error) { return now[files[i].Path].text, nil }
	w.seen = now
	return rev, nil
}

// walk calls visit for what may be the fleet's, with paths relative to the folder.
// Links are not followed, and other clones in the folder not gone into.
func (w *work) walk(ctx context.Context, visit func(path string, d fs.DirEntry) error) error {
	return filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == w.dir {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if unread(d.Name()) || d.Name() == ".git" {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		path, err = filepath.Rel(w.dir, path)
		if err != nil {
			return err
		}
		return visit(filepath.ToSlash(path), d)
	})
}

// file reads a file that a look at its time and size does not show to be unchanged.
func (w *work) file(path string, old seen) (seen, error) {
	path = filepath.Join(w.dir, filepath.FromSlash(path))
	f, err := os.Open(path)
	if err != nil {
		return seen{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return seen{}, err
	}
	if !info.Mode().IsRegular() {
		return seen{}, fmt.Errorf("%w: not an ordinary file any more", ErrPath)
	}
	// A file written just before it was read may have been written again in the
	// same tick of the file system's clock.
	if old.text != nil && old.size == info.Size() && old.written.Equal(info.ModTime()) && old.read.Sub(old.written) > 2*time.Second {
		return old, nil
	}
	limit := w.opts.Limits.File
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return seen{}, err
	}
	if err := within(int64(len(text)), limit); err != nil {
		return seen{}, fmt.Errorf("%w: over %s", ErrLimit, bytesText(limit))
	}
	return seen{
		size:    int64(len(text)),
		written: info.ModTime(),
		read:    time.Now(),
		hash:    plumbing.ComputeHash(plumbing.BlobObject, text).String(),
		text:    text,
	}, nil
}

// compare fills in the commit that is checked out, and whether the files differ.
func (w *work) compare(ctx context.Context, rev *Revision) error {
	if w.refs == nil {
		return nil
	}
	w.reader.objects.rest()
	head, err := w.head()
	if err != nil || head.IsZero() {
		return err
	}
	committed, err := w.reader.revision(ctx, head, w.subfolder, true)
	switch {
	case errors.Is(err, ErrEmpty), errors.Is(err, ErrPath), errors.Is(err, ErrLimit):
		// What is committed cannot be served, and the files differ from it.
		c, err := w.reader.objects.commit(head)
		if err != nil {
			return err
		}
		rev.Subject, rev.Author, rev.When = oneLine(c.Message), oneLine(c.Author.Name), c.Committer.When
	case err != nil:
		return err
	default:
		rev.Subject, rev.Author, rev.When = committed.Subject, committed.Author, committed.When
	}
	rev.Commit = head.String()
	rev.Uncommitted = committed == nil || !slices.Equal(committed.files, rev.files)
	return nil
}

// head is the commit checked out; zero in a clone that has none yet.
func (w *work) head() (plumbing.Hash, error) {
	head, err := readRef(w.refs, w.clone.own, "HEAD")
	if errors.Is(err, plumbing.ErrReferenceNotFound) {
		return plumbing.ZeroHash, nil
	}
	return head, err
}

func (w *work) At(ctx context.Context, commit string) (*Revision, error) {
	if w.refs == nil {
		return nil, fmt.Errorf("%w: %s; %s is not in a clone", ErrUnknownCommit, commit, w.dir)
	}
	rev, err := w.reader.at(ctx, commit, w.subfolder, nil)
	if err != nil {
		return nil, err
	}
	rev.history = nil
	return rev, nil
}

func (w *work) Watch(ctx context.Context, changed func()) error {
	folders := func() []string {
		dirs := []string{w.dir}
		// What cannot be read is for Fetch to report.
		_ = w.walk(ctx, func(path string, d fs.DirEntry) error {
			if d.IsDir() {
				dirs = append(dirs, filepath.Join(w.dir, filepath.FromSlash(path)))
			}
			return nil
		})
		return dirs
	}
	return watch(ctx, watching{
		folders: folders,
		matters: func(path string) bool {
			if isCUE(path) || filepath.Ext(path) == "" { // the latter may be a folder that went
				return true
			}
			info, err := os.Lstat(path)
			return err == nil && info.IsDir()
		},
		settle: folderSettle,
		poll:   w.opts.Poll,
		log:    w.opts.Log,
	}, changed)
}

func (w *work) String() string { return w.dir }

func (w *work) Close() error {
	if w.refs == nil {
		return nil
	}
	return w.reader.objects.close()
}

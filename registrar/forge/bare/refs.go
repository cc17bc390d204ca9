package bare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// errMoved says that a ref is not where it was said to be.
var errMoved = errors.New("the ref has moved")

// refs are a repository's refs in files, one each and in packed-refs. They are
// changed under the lock files that Git's own programs use: go-git locks the ref's
// file itself and writes it in place, which Git neither sees nor waits for.
type refs struct{ dir string }

// lockTimeout is how long others may hold a lock. They need milliseconds; for
// longer there is one that a program left when it was killed.
const lockTimeout = 3 * time.Second

// read is the hash of a ref; zero when there is none.
func (r refs) read(name plumbing.ReferenceName) (plumbing.Hash, error) {
	data, err := os.ReadFile(r.path(name))
	if err == nil {
		hash, ok := parseHash(strings.TrimSpace(string(data)))
		if !ok {
			return hash, fmt.Errorf("ref %s holds %.60q, not a commit", name, data)
		}
		return hash, nil
	}
	if !absent(err) {
		return plumbing.ZeroHash, fmt.Errorf("read ref: %w", err)
	}
	packed, err := r.packed()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	for line := range bytes.Lines(packed) {
		text, ref, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if ref != name.String() {
			continue
		}
		hash, ok := parseHash(text)
		if !ok {
			return hash, fmt.Errorf("packed-refs has %.60q for %s", text, name)
		}
		return hash, nil
	}
	// A repository that is gone, or may not be read, has no refs either.
	if _, err := os.ReadDir(filepath.Join(r.dir, "refs")); err != nil {
		return plumbing.ZeroHash, fmt.Errorf("read refs: %w", err)
	}
	return plumbing.ZeroHash, nil
}

// swap moves a ref from old to next. A zero old makes it, a zero next removes it.
// It is errMoved when the ref is not at old.
func (r refs) swap(ctx context.Context, name plumbing.ReferenceName, old, next plumbing.Hash) error {
	err := r.swapLocked(ctx, name, old, next)
	if err != nil && !errors.Is(err, errMoved) {
		return fmt.Errorf("move ref %s: %w", name, err)
	}
	if next.IsZero() && err == nil {
		r.tidy(name)
	}
	return err
}

func (r refs) swapLocked(ctx context.Context, name plumbing.ReferenceName, old, next plumbing.Hash) error {
	lock, err := acquire(ctx, r.path(name))
	if err != nil {
		return err
	}
	defer lock.release()
	now, err := r.read(name)
	switch {
	case err != nil:
		return err
	case now != old:
		return errMoved
	case next.IsZero():
		return r.remove(ctx, name)
	case old.IsZero():
		if err := r.clear(name); err != nil {
			return err
		}
	}
	return lock.commit([]byte(next.String() + "\n"))
}

// clear says which packed ref is in the way of a new one. Among files, the file
// system does.
func (r refs) clear(name plumbing.ReferenceName) error {
	packed, err := r.packed()
	if err != nil {
		return err
	}
	for line := range bytes.Lines(packed) {
		_, ref, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if strings.HasPrefix(name.String(), ref+"/") || strings.HasPrefix(ref, name.String()+"/") {
			return fmt.Errorf("%s is in the way", ref)
		}
	}
	return nil
}

// remove removes a ref that is locked: first where it is packed, since what is
// packed counts when the ref has no file.
func (r refs) remove(ctx context.Context, name plumbing.ReferenceName) error {
	lock, err := acquire(ctx, filepath.Join(r.dir, "packed-refs"))
	if err != nil {
		return err
	}
	defer lock.release()
	packed, err := r.packed()
	if err != nil {
		return err
	}
	if kept := without(packed, name); len(kept) < len(packed) {
		if err := lock.commit(kept); err != nil {
			return err
		}
	}
	// The ref's log would be in the way of a branch with the name of its folder.
	for _, file := range []string{filepath.Join(r.dir, "logs", filepath.FromSlash(name.String())), r.path(name)} {
		if err := os.Remove(file); err != nil && !absent(err) {
			return err
		}
	}
	return syncDisk(filepath.Dir(r.path(name)))
}

// tidy removes the folders that a ref has left empty, as Git does.
func (r refs) tidy(name plumbing.ReferenceName) {
	top := filepath.Join(r.dir, "refs")
	for dir := filepath.Dir(r.path(name)); filepath.Dir(dir) != top; dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			return
		}
	}
}

// packed is the content of packed-refs.
func (r refs) packed() ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, "packed-refs"))
	if err != nil && !absent(err) {
		return nil, fmt.Errorf("read refs: %w", err)
	}
	return data, nil
}

// without is packed-refs without a ref. A line that begins with "^" is about the
// line before it.
func without(packed []byte, name plumbing.ReferenceName) []byte {
	var kept bytes.Buffer
	dropped := false
	for line := range bytes.Lines(packed) {
		if !bytes.HasPrefix(line, []byte("^")) {
			_, ref, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
			dropped = ref == name.String()
		}
		if !dropped {
			kept.Write(line)
		}
	}
	return kept.Bytes()
}

func (r refs) path(name plumbing.ReferenceName) string {
	return filepath.Join(r.dir, filepath.FromSlash(name.String()))
}

// absent reports whether a file is not there. A folder of a ref's name has other
// refs, and a file where a folder would be is another ref.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ENOTDIR)
}

func parseHash(text string) (plumbing.Hash, bool) {
	return plumbing.NewHash(text), plumbing.IsHash(text)
}

// lock is Git's lock of a file: whoever makes FILE.lock may replace FILE, by
// renaming the one onto the other (lockfile.h in Git).
type lock struct {
	path string
	file *os.File
}

// acquire waits for a file's lock.
func acquire(ctx context.Context, path string) (*lock, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout, fmt.Errorf("%s.lock is there: another program is at it, or was killed, and then somebody must remove that file", path))
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := os.MkdirAll(filepath.Dir(path), 0o777)
		if err == nil {
			var file *os.File
			if file, err = os.OpenFile(path+".lock", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666); err == nil {
				return &lock{path, file}, nil
			}
		}
		// A folder may just have been removed, since it was empty.
		if !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// commit makes content the file's, on disk, and ends the lock.
func (l *lock) commit(content []byte) error {
	if _, err := l.file.Write(content); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(l.path+".lock", l.path); err != nil {
		return err
	}
	err := l.file.Close()
	l.file = nil
	return errors.Join(err, syncDisk(filepath.Dir(l.path)))
}

// release gives up a lock that was not committed; else it does nothing.
func (l *lock) release() {
	if l.file == nil {
		return
	}
	l.file.Close()
	os.Remove(l.path + ".lock")
	l.file = nil
}

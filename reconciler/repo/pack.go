package repo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/memory"
)

const (
	// maxObjects in one pack; each costs about 300 bytes of memory to index.
	maxObjects = 1 << 20
	// A pack of at most so many objects and bytes is stored loose, as Git does
	// (receive.unpackLimit): a pack for every push would slow each look-up down.
	looseObjects = 100
	looseBytes   = 4 << 20
)

// storePack takes a pack from a remote into an objects folder. Its objects can be
// found when it returns nil; else nothing is left but loose objects that nobody
// refers to.
func storePack(ctx context.Context, dir string, pack io.Reader, limit int64) (err error) {
	packs := filepath.Join(dir, "pack")
	if err := os.MkdirAll(packs, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(packs, "tmp_pack_")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if removeErr := os.Remove(f.Name()); !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}()
	if _, err := io.Copy(f, &limited{pack, limit, limit}); err != nil {
		return err
	}
	source := &cancellable{ctx, f}
	count, size, err := checkPack(source)
	if err != nil {
		return err
	}
	if count <= looseObjects && size <= looseBytes {
		return storeLoose(source, dir)
	}
	return storeIndexed(source, f, packs)
}

// checkPack reads a pack through, before anything is resolved: every object must
// be small, and say so, and every delta's result as well. It returns the count and
// the unpacked size of all.
func checkPack(source io.ReadSeeker) (count uint32, size int64, err error) {
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return 0, 0, err
	}
	scan := packfile.NewScanner(source)
	_, count, err = scan.Header()
	if err != nil {
		return 0, 0, fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
	}
	if count > maxObjects {
		return 0, 0, fmt.Errorf("%w: %d objects in one fetch, and at most %d are read", ErrLimit, count, maxObjects)
	}
	for i := range count {
		header, err := scan.NextObjectHeader()
		if err != nil {
			return 0, 0, fmt.Errorf("%w: pack: object %d: %w", ErrCorrupt, i, err)
		}
		length := header.Length
		var head prefix
		if err := within(length, maxObject); err != nil {
			return 0, 0, fmt.Errorf("object in a pack: %w", err)
		}
		n, _, err := scan.NextObject(&head)
		if err != nil {
			return 0, 0, fmt.Errorf("%w: pack: object %d: %w", ErrCorrupt, i, err)
		}
		if n != length {
			return 0, 0, fmt.Errorf("%w: pack: object %d is shorter than it says", ErrCorrupt, i)
		}
		if header.Type.IsDelta() {
			if _, length, err = deltaSizes(bufio.NewReader(&head)); err != nil {
				return 0, 0, err
			}
			if err := within(length, maxObject); err != nil {
				return 0, 0, fmt.Errorf("object in a pack: %w", err)
			}
		}
		size += length
	}
	if _, err := scan.Checksum(); err != nil {
		return 0, 0, fmt.Errorf("%w: pack: checksum: %w", ErrCorrupt, err)
	}
	return count, size, nil
}

// storeLoose writes every object of a small pack by itself.
func storeLoose(source io.ReadSeeker, dir string) error {
	small := memory.NewStorage()
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return err
	}
	parser, err := packfile.NewParserWithStorage(packfile.NewScanner(source), small)
	if err != nil {
		return err
	}
	if _, err := parser.Parse(); err != nil {
		return fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
	}
	store := filesystem.NewStorage(osfs.New(filepath.Dir(dir)), cache.NewObjectLRU(0))
	for _, object := range small.Objects {
		if _, err := store.SetEncodedObject(object); err != nil {
			return fmt.Errorf("write object: %w", err)
		}
	}
	return nil
}

// storeIndexed keeps a pack as it came, with an index beside it. The index gets
// its name last: it is what readers look for.
func storeIndexed(source io.ReadSeeker, f *os.File, packs string) error {
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var observed idxfile.Writer
	parser, err := packfile.NewParser(packfile.NewScanner(source), &observed)
	if err != nil {
		return err
	}
	sum, err := parser.Parse()
	if err != nil {
		return fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
	}
	index, err := observed.Index()
	if err != nil {
		return fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
	}
	out, err := os.CreateTemp(packs, "tmp_idx_")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	buffered := bufio.NewWriter(out)
	_, err = idxfile.NewEncoder(buffered).Encode(index)
	if err := errors.Join(err, buffered.Flush(), out.Sync(), out.Close(), f.Sync()); err != nil {
		return err
	}
	name := filepath.Join(packs, "pack-"+plumbing.Hash(sum).String())
	if err := os.Rename(f.Name(), name+".pack"); err != nil {
		return err
	}
	return os.Rename(out.Name(), name+".idx")
}

// limited is a reader that fails, rather than ends, at its limit.
type limited struct {
	io.Reader
	left, limit int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		if n, err := l.Reader.Read(make([]byte, 1)); n == 0 {
			return 0, err
		}
		return 0, fmt.Errorf("%w: more than %s from the remote", ErrLimit, bytesText(l.limit))
	}
	n, err := l.Reader.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// cancellable is a file whose reader stops when ctx ends: go-git's parser cannot
// be told to.
type cancellable struct {
	ctx context.Context
	*os.File
}

func (c *cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.File.Read(p)
}

// prefix keeps the first bytes written to it.
type prefix struct {
	buf  [32]byte
	used int
	read int
}

func (p *prefix) Write(b []byte) (int, error) {
	p.used += copy(p.buf[p.used:], b)
	return len(b), nil
}

func (p *prefix) Read(b []byte) (int, error) {
	if p.read == p.used {
		return 0, io.EOF
	}
	n := copy(b, p.buf[p.read:p.used])
	p.read += n
	return n, nil
}

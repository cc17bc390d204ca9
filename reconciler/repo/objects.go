package repo

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/go-git/go-git/v5/plumbing"
	githash "github.com/go-git/go-git/v5/plumbing/hash"
)

const (
	// maxObject is the largest object that is ever unpacked, needed or not: a
	// file, a folder, or the base of a delta.
	maxObject = 16 << 20
	maxCommit = 1 << 20
	// maxChain is the longest chain of deltas that Git itself makes.
	maxChain = 4095
	// maxBorrowed is the number of folders that objects are looked for in.
	maxBorrowed = 64
)

// errMissing is the kind of ErrCorrupt where an object is not there.
var errMissing = fmt.Errorf("%w: object is missing", ErrCorrupt)

// damage is an error of an object as it is stored, rather than of what is in it.
type damage struct {
	hash plumbing.Hash
	err  error
}

func (d damage) Error() string { return d.err.Error() }
func (d damage) Unwrap() error { return d.err }

// objects reads a repository's objects, loose and packed, while others write to it.
//
// go-git's own storage is not used for reading: it unpacks without a bound, does
// not compare what it read with the hash asked for, and has to index all packs
// again to see a new one. Its formats are.
type objects struct {
	dirs []string // objects/ of the repository, then of its alternates
	// A pack of a few MiB may hold files that each take many GiB of deltas to get
	// at. So much may be unpacked on the way to objects, between two calls of rest.
	maxWork int64

	mu    sync.Mutex
	packs map[string]*pack // by path without extension
	zlib  io.ReadCloser    // reused: it is large
	work  int64
}

// newObjects reads below an objects folder. It fails only when the folder cannot
// be read; objects are opened as they are asked for.
func newObjects(dir string, maxWork int64) (*objects, error) {
	s := &objects{packs: make(map[string]*pack), maxWork: maxWork}
	if err := s.add(dir, 5); err != nil {
		return nil, err
	}
	return s, nil
}

// add takes in a folder of objects, and those it borrows from (gitrepository-layout,
// objects/info/alternates).
func (s *objects) add(dir string, depth int) error {
	if slices.Contains(s.dirs, dir) {
		return nil
	}
	if len(s.dirs) == maxBorrowed {
		return fmt.Errorf("read objects: %w: they lie in more than %d folders", ErrLimit, maxBorrowed)
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = &os.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	if err == nil {
		_, err = os.ReadDir(dir)
	}
	if err != nil {
		return fmt.Errorf("read objects: %w", err)
	}
	s.dirs = append(s.dirs, dir)
	list, err := readFile(dir, "info/alternates")
	if errors.Is(err, os.ErrNotExist) || depth == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read objects: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(dir, line)
		}
		if err := s.add(filepath.Clean(line), depth-1); err != nil {
			return err
		}
	}
	return nil
}

// close frees the open packs.
func (s *objects) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for name, p := range s.packs {
		err = errors.Join(err, p.file.Close())
		delete(s.packs, name)
	}
	return err
}

// has reports whether the object is there; it may still be damaged.
func (s *objects) has(h plumbing.Hash) bool {
	_, err := s.size(h)
	return err == nil
}

// size is the size of an object in bytes, as its header claims it.
func (s *objects) size(h plumbing.Hash) (size int64, err error) {
	err = s.find(h, func(p *pack, offset int64) error {
		header, err := p.scan.SeekObjectHeader(offset)
		if err == nil {
			size, err = p.size(header)
		}
		return err
	}, func(r *bufio.Reader) error {
		_, size, err = looseHeader(r)
		return err
	})
	return size, err
}

// blob is the content of a file.
func (s *objects) blob(h plumbing.Hash, limit int64) ([]byte, error) {
	return s.get(h, plumbing.BlobObject, limit)
}

// get is the content of an object of a type, checked against its hash. An object
// over the limit is ErrLimit, one that is gone or damaged ErrCorrupt.
func (s *objects) get(h plumbing.Hash, want plumbing.ObjectType, limit int64) ([]byte, error) {
	var typ plumbing.ObjectType
	var text []byte
	err := s.find(h, func(p *pack, offset int64) error {
		header, err := p.scan.SeekObjectHeader(offset)
		if err != nil {
			return err
		}
		size, err := p.size(header)
		if err != nil {
			return err
		}
		if err := within(size, limit); err != nil {
			return err
		}
		typ, text, err = p.unpack(offset, s.spend)
		return err
	}, func(r *bufio.Reader) error {
		var size int64
		var err error
		if typ, size, err = looseHeader(r); err != nil {
			return err
		}
		if err := within(size, limit); err != nil {
			return err
		}
		text, err = exactly(r, size)
		return err
	})
	if err != nil {
		return nil, err
	}
	if typ != want {
		return nil, fmt.Errorf("%w: object %s is a %s, not a %s", ErrCorrupt, h, typ, want)
	}
	// A hasher that knows the known collisions of SHA-1.
	sum := githash.New(crypto.SHA1)
	fmt.Fprintf(sum, "%s %d\x00", typ, len(text))
	sum.Write(text)
	if !bytes.Equal(sum.Sum(nil), h[:]) {
		return nil, damage{h, fmt.Errorf("%w: the content of object %s does not match its hash", ErrCorrupt, h)}
	}
	return text, nil
}

// rest allows for as much work again.
func (s *objects) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.work = 0
}

func (s *objects) spend(bytes int64) error {
	if s.work += bytes; s.work > s.maxWork {
		return fmt.Errorf("%w: more than %s of deltas to unpack", ErrLimit, bytesText(s.maxWork))
	}
	return nil
}

// find hands an object to one of two functions: packed or loose. Objects move
// from loose to packed, and from pack to pack, while we look.
func (s *objects) find(h plumbing.Hash, packed func(*pack, int64) error, loose func(*bufio.Reader) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.findOnce(h, packed, loose)
	for range 3 {
		if !errors.Is(err, errMissing) {
			break
		}
		var fresh bool
		if fresh, err = s.rescan(); err != nil {
			break
		}
		if err = s.findOnce(h, packed, loose); !fresh {
			break
		}
	}
	switch {
	case err == nil, errors.Is(err, ErrLimit):
		return err
	case errors.Is(err, errMissing):
		return damage{h, fmt.Errorf("%w: %s", errMissing, h)}
	case errors.Is(err, ErrCorrupt):
		return damage{h, fmt.Errorf("object %s: %w", h, err)}
	case errors.As(err, new(*os.PathError)):
		return fmt.Errorf("read object %s: %w", h, err)
	}
	// go-git's formats and zlib have many words for broken.
	return damage{h, fmt.Errorf("%w: object %s: %w", ErrCorrupt, h, err)}
}

// discard deletes what is stored of an object, and the whole pack that it is in.
// It is for a copy that can be filled again.
func (s *objects) discard(h plumbing.Hash) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for path, p := range s.packs {
		if _, missing := p.offset(h); missing == nil {
			p.file.Close()
			delete(s.packs, path)
			err = errors.Join(err, remove(path+".idx"), remove(path+".pack"))
		}
	}
	name := h.String()
	for _, dir := range s.dirs {
		err = errors.Join(err, remove(filepath.Join(dir, name[:2], name[2:])))
	}
	return err
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (s *objects) findOnce(h plumbing.Hash, packed func(*pack, int64) error, loose func(*bufio.Reader) error) error {
	for _, p := range s.packs {
		offset, err := p.offset(h)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		return packed(p, offset)
	}
	name := h.String()
	for _, dir := range s.dirs {
		f, err := openFile(dir, name[:2]+"/"+name[2:])
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if s.zlib == nil {
			s.zlib, err = zlib.NewReader(f)
		} else {
			err = s.zlib.(zlib.Resetter).Reset(f, nil)
		}
		if err != nil {
			return err
		}
		return loose(bufio.NewReader(s.zlib))
	}
	return errMissing
}

// rescan opens packs that have come and lets go of those that went. It reports
// whether there are new ones.
func (s *objects) rescan() (fresh bool, err error) {
	there := make(map[string]bool)
	for _, dir := range s.dirs {
		entries, err := readFolder(dir, "pack")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read packs: %w", err)
		}
		for _, e := range entries {
			base, isIndex := strings.CutSuffix(e.Name(), ".idx")
			if !isIndex || !strings.HasPrefix(base, "pack-") {
				continue
			}
			path := filepath.Join(dir, "pack", base)
			if _, open := s.packs[path]; !open {
				p, err := openPack(dir, "pack/"+base)
				if errors.Is(err, os.ErrNotExist) {
					fresh = true // gone already: what replaced it is worth another look
					continue
				}
				if err != nil {
					return false, err
				}
				s.packs[path], fresh = p, true
			}
			there[path] = true
		}
	}
	for path, p := range s.packs {
		if !there[path] {
			p.file.Close()
			delete(s.packs, path)
		}
	}
	return fresh, nil
}

// looseHeader reads "blob 123\0" at the head of a loose object.
func looseHeader(r *bufio.Reader) (plumbing.ObjectType, int64, error) {
	head, err := r.ReadSlice(0)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: loose object has no header", ErrCorrupt)
	}
	name, digits, _ := strings.Cut(string(head[:len(head)-1]), " ")
	typ, err := plumbing.ParseObjectType(name)
	if err != nil {
		return 0, 0, err
	}
	size, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || size < 0 {
		return 0, 0, fmt.Errorf("%w: loose object of size %q", ErrCorrupt, digits)
	}
	return typ, size, nil
}

// exactly reads size bytes, and then the end.
func exactly(r io.Reader, size int64) ([]byte, error) {
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("%w: object is cut off: %w", ErrCorrupt, err)
	}
	if n, err := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return nil, fmt.Errorf("%w: object is longer than it says", ErrCorrupt)
	} else if err != io.EOF {
		return nil, err
	}
	return text, nil
}

func within(size, limit int64) error {
	if size > limit {
		return fmt.Errorf("%w: %s, and at most %s are read", ErrLimit, bytesText(size), bytesText(limit))
	}
	return nil
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}

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
	"strconv"
	"strings"
	"sync"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	githash "github.com/go-git/go-git/v5/plumbing/hash"
)

const (
	// maxObject is the largest object that is ever unpacked, needed or not: a
	// file, a folder, or the base of a delta.
	maxObject = 16 << 20
	maxCommit = 1 << 20
	// maxChain is the longest chain of deltas that Git itself makes.
	maxChain = 4095
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

	mu    sync.Mutex
	packs map[string]*pack // by path without extension
	zlib  io.ReadCloser    // reused: it is large
}

type pack struct {
	file  billy.File
	index *idxfile.MemoryIndex
	scan  *packfile.Scanner
	bases *cache.BufferLRU // unpacked objects by offset; deltas share bases
	types map[int64]plumbing.ObjectType
}

// newObjects reads below an objects folder. It fails only when the folder cannot
// be read; objects are opened as they are asked for.
func newObjects(dir string) (*objects, error) {
	s := &objects{packs: make(map[string]*pack)}
	if err := s.add(dir, 5); err != nil {
		return nil, err
	}
	return s, nil
}

// add takes in a folder of objects, and those it borrows from (gitrepository-layout,
// objects/info/alternates).
func (s *objects) add(dir string, depth int) error {
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("read objects: %w", err)
	}
	s.dirs = append(s.dirs, dir)
	list, err := os.ReadFile(filepath.Join(dir, "info", "alternates"))
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
		if err := s.add(line, depth-1); err != nil {
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
		typ, text, err = p.unpack(offset)
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
		if has, _ := p.index.Contains(h); has {
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
		offset, err := p.index.FindOffset(h)
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
		f, err := os.Open(filepath.Join(dir, name[:2], name[2:]))
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
		dir = filepath.Join(dir, "pack")
		entries, err := os.ReadDir(dir)
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
			path := filepath.Join(dir, base)
			if _, open := s.packs[path]; !open {
				p, err := openPack(dir, base)
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

func openPack(dir, base string) (*pack, error) {
	fs := osfs.New(dir)
	f, err := fs.Open(base + ".idx")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	index := idxfile.NewMemoryIndex()
	if err := idxfile.NewDecoder(bufio.NewReader(f)).Decode(index); err != nil {
		return nil, fmt.Errorf("%w: %s.idx: %w", ErrCorrupt, base, err)
	}
	file, err := fs.Open(base + ".pack")
	if err != nil {
		return nil, err
	}
	return &pack{
		file:  file,
		index: index,
		scan:  packfile.NewScanner(file),
		bases: cache.NewBufferLRU(8 << 20),
		types: make(map[int64]plumbing.ObjectType),
	}, nil
}

// size is the unpacked size of the object whose header was just read.
func (p *pack) size(h *packfile.ObjectHeader) (int64, error) {
	if !h.Type.IsDelta() {
		return h.Length, nil
	}
	delta, err := p.scan.ReadObject()
	if err != nil {
		return 0, err
	}
	defer delta.Close()
	_, target, err := deltaSizes(bufio.NewReaderSize(delta, 32))
	return target, err
}

// unpack is the object at an offset. Nothing on the way to it may be larger than
// maxObject, whatever its headers claim.
func (p *pack) unpack(offset int64) (plumbing.ObjectType, []byte, error) {
	type step struct {
		offset int64
		delta  []byte
	}
	var chain []step
	var typ plumbing.ObjectType
	var text []byte
	for text == nil {
		if cached, ok := p.bases.Get(offset); ok {
			typ, text = p.types[offset], cached
			break
		}
		if len(chain) > maxChain {
			return 0, nil, fmt.Errorf("%w: a chain of over %d deltas", ErrCorrupt, maxChain)
		}
		header, err := p.scan.SeekObjectHeader(offset)
		if err != nil {
			return 0, nil, err
		}
		if err := within(header.Length, maxObject); err != nil {
			return 0, nil, err
		}
		r, err := p.scan.ReadObject()
		if err != nil {
			return 0, nil, err
		}
		content, err := exactly(r, header.Length)
		r.Close()
		if err != nil {
			return 0, nil, err
		}
		switch header.Type {
		case plumbing.OFSDeltaObject:
			chain = append(chain, step{offset, content})
			offset = header.OffsetReference
		case plumbing.REFDeltaObject:
			chain = append(chain, step{offset, content})
			if offset, err = p.index.FindOffset(header.Reference); err != nil {
				return 0, nil, fmt.Errorf("%w: %s, the base of a delta", errMissing, header.Reference)
			}
		default:
			typ, text = header.Type, content
			p.keep(offset, typ, text)
		}
	}
	for i := len(chain) - 1; i >= 0; i-- {
		_, target, err := deltaSizes(bytes.NewReader(chain[i].delta))
		if err != nil {
			return 0, nil, err
		}
		if err := within(target, maxObject); err != nil {
			return 0, nil, err
		}
		if text, err = packfile.PatchDelta(text, chain[i].delta); err != nil {
			return 0, nil, err
		}
		p.keep(chain[i].offset, typ, text)
	}
	return typ, text, nil
}

func (p *pack) keep(offset int64, typ plumbing.ObjectType, text []byte) {
	p.bases.Put(offset, text)
	p.types[offset] = typ
}

// deltaSizes reads the head of a delta: the size of its base and of its result
// (gitformat-pack, "Deltified representation").
func deltaSizes(r io.ByteReader) (base, target int64, err error) {
	if base, err = deltaSize(r); err != nil {
		return 0, 0, err
	}
	target, err = deltaSize(r)
	return base, target, err
}

func deltaSize(r io.ByteReader) (size int64, err error) {
	for shift := 0; shift < 63; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, fmt.Errorf("%w: delta is cut off", ErrCorrupt)
		}
		size |= int64(b&0x7f) << shift
		if b&0x80 == 0 {
			return size, nil
		}
	}
	return 0, fmt.Errorf("%w: delta has no size", ErrCorrupt)
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

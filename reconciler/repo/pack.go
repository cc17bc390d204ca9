package repo

import (
	"bufio"
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	githash "github.com/go-git/go-git/v5/plumbing/hash"
	"github.com/go-git/go-git/v5/storage/filesystem"
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
func storePack(ctx context.Context, dir string, sent io.Reader, limit int64) (err error) {
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
	if _, err := io.Copy(f, &limited{sent, limit, limit}); err != nil {
		return err
	}
	source := &cancellable{ctx, f}
	objects, size, sum, err := scanPack(source)
	if err != nil {
		return err
	}
	// Only an object and its base need to be at hand.
	p := newPack(source, 2*maxObject)
	if len(objects) <= looseObjects && size <= looseBytes {
		return storeLoose(ctx, p, objects, dir)
	}
	if err := p.resolve(ctx, objects, nil); err != nil {
		return err
	}
	return storeIndexed(f, packs, objects, sum)
}

// placed is an object of a pack that has no index yet.
type placed struct {
	offset int64
	crc    uint32
	kind   plumbing.ObjectType // as it lies there
	base   int64               // the offset of an offset delta's base
	// hash is the object's own; of a delta it is found when it is resolved, and is
	// that of a reference delta's base until then.
	hash plumbing.Hash
}

// scanPack reads a pack through, before anything is resolved: every object must be
// small, and say so, and every delta's result as well. It returns the unpacked size
// of all, and the pack's checksum.
func scanPack(source io.ReadSeeker) (objects []placed, size int64, sum plumbing.Hash, err error) {
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return nil, 0, sum, err
	}
	scan := packfile.NewScanner(source)
	_, count, err := scan.Header()
	if err != nil {
		return nil, 0, sum, fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
	}
	if count > maxObjects {
		return nil, 0, sum, fmt.Errorf("%w: %d objects in one fetch, and at most %d are read", ErrLimit, count, maxObjects)
	}
	sha := githash.New(crypto.SHA1)
	for i := range count {
		header, err := scan.NextObjectHeader()
		if err != nil {
			return nil, 0, sum, fmt.Errorf("%w: pack: object %d: %w", ErrCorrupt, i, err)
		}
		o := placed{offset: header.Offset, kind: header.Type, base: header.OffsetReference, hash: header.Reference}
		length := header.Length
		if err := within(length, maxObject); err != nil {
			return nil, 0, sum, fmt.Errorf("object in a pack: %w", err)
		}
		var head prefix
		var n int64
		switch o.kind {
		case plumbing.OFSDeltaObject, plumbing.REFDeltaObject:
			n, o.crc, err = scan.NextObject(&head)
		case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject, plumbing.TagObject:
			sha.Reset()
			fmt.Fprintf(sha, "%s %d\x00", o.kind, length)
			n, o.crc, err = scan.NextObject(sha)
			sha.Sum(o.hash[:0])
		default:
			err = fmt.Errorf("of kind %d", o.kind)
		}
		if err != nil {
			return nil, 0, sum, fmt.Errorf("%w: pack: object %d: %w", ErrCorrupt, i, err)
		}
		if n != length {
			return nil, 0, sum, fmt.Errorf("%w: pack: object %d is shorter than it says", ErrCorrupt, i)
		}
		if o.kind.IsDelta() {
			if _, length, err = deltaSizes(bufio.NewReaderSize(&head, 32)); err != nil {
				return nil, 0, sum, err
			}
			if err := within(length, maxObject); err != nil {
				return nil, 0, sum, fmt.Errorf("object in a pack: %w", err)
			}
		}
		size += length
		objects = append(objects, o)
	}
	if sum, err = scan.Checksum(); err != nil {
		return nil, 0, sum, fmt.Errorf("%w: pack: checksum: %w", ErrCorrupt, err)
	}
	return objects, size, sum, nil
}

// resolve finds the hash of every delta, and calls visit, which may be nil, with
// every object. A delta comes right after what it is a delta of, so that little has
// to be kept. go-git's parser has no bound on what it keeps.
func (p *pack) resolve(ctx context.Context, objects []placed, visit func(plumbing.ObjectType, []byte) error) error {
	bases := make(map[plumbing.Hash]int64) // of reference deltas
	p.offset = func(h plumbing.Hash) (int64, error) {
		if offset, ok := bases[h]; ok {
			return offset, nil
		}
		return 0, plumbing.ErrObjectNotFound
	}
	deltas, err := sortDeltas(objects)
	if err != nil {
		return err
	}
	left := len(objects)
	var stack []int32
	for root := range objects {
		if objects[root].kind.IsDelta() {
			continue
		}
		for stack = append(stack, int32(root)); len(stack) > 0; left-- {
			i := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			o := &objects[i]
			if o.kind.IsDelta() || visit != nil {
				typ, text, err := p.unpack(o.offset, func(int64) error { return ctx.Err() })
				if err != nil {
					return fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
				}
				if o.kind.IsDelta() {
					o.hash = plumbing.ComputeHash(typ, text)
				}
				if visit != nil {
					if err := visit(typ, text); err != nil {
						return err
					}
				}
			}
			stack = deltas.list(stack, deltas.first[i])
			if i, ok := deltas.byHash[o.hash]; ok {
				bases[o.hash] = o.offset
				delete(deltas.byHash, o.hash)
				stack = deltas.list(stack, i)
			}
		}
	}
	if left > 0 {
		return fmt.Errorf("%w: pack: %d deltas have no base in it", ErrCorrupt, left)
	}
	return nil
}

// deltas are the deltas of each object of a pack, by index.
type deltas struct {
	first  []int32                 // of an object's offset deltas; none
	byHash map[plumbing.Hash]int32 // the first of its reference deltas
	next   []int32                 // of the same object; none
}

const none = -1

func sortDeltas(objects []placed) (deltas, error) {
	d := deltas{
		first:  slices.Repeat([]int32{none}, len(objects)),
		byHash: make(map[plumbing.Hash]int32),
		next:   slices.Repeat([]int32{none}, len(objects)),
	}
	for i, o := range objects {
		switch o.kind {
		case plumbing.OFSDeltaObject:
			base, ok := slices.BinarySearchFunc(objects, o.base, func(o placed, offset int64) int {
				return cmp.Compare(o.offset, offset)
			})
			if !ok {
				return d, fmt.Errorf("%w: pack: a delta of what is no object", ErrCorrupt)
			}
			d.first[base], d.next[i] = int32(i), d.first[base]
		case plumbing.REFDeltaObject:
			if other, ok := d.byHash[o.hash]; ok {
				d.next[i] = other
			}
			d.byHash[o.hash] = int32(i)
		}
	}
	return d, nil
}

// list appends a delta and those of the same object after it.
func (d deltas) list(to []int32, i int32) []int32 {
	for ; i != none; i = d.next[i] {
		to = append(to, i)
	}
	return to
}

// storeLoose writes every object of a small pack by itself.
func storeLoose(ctx context.Context, p *pack, objects []placed, dir string) error {
	store := filesystem.NewStorage(osfs.New(filepath.Dir(dir)), cache.NewObjectLRU(0))
	return p.resolve(ctx, objects, func(typ plumbing.ObjectType, text []byte) error {
		object := &plumbing.MemoryObject{}
		object.SetType(typ)
		if _, err := object.Write(text); err != nil {
			return err
		}
		if _, err := store.SetEncodedObject(object); err != nil {
			return fmt.Errorf("write object: %w", err)
		}
		return nil
	})
}

// storeIndexed keeps a pack as it came, with an index beside it. The index gets
// its name last: it is what readers look for.
func storeIndexed(f *os.File, packs string, objects []placed, sum plumbing.Hash) error {
	var contents idxfile.Writer
	if err := contents.OnHeader(uint32(len(objects))); err != nil {
		return err
	}
	for _, o := range objects {
		contents.Add(o.hash, uint64(o.offset), o.crc)
	}
	if err := contents.OnFooter(sum); err != nil {
		return err
	}
	index, err := contents.Index()
	if err != nil {
		return err
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
	name := filepath.Join(packs, "pack-"+sum.String())
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

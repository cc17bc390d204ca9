package repo

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

// pack reads one pack's objects (gitformat-pack).
type pack struct {
	file seekCloser
	// offset is where an object begins; plumbing.ErrObjectNotFound when it is in
	// another pack, or in none.
	offset func(plumbing.Hash) (int64, error)
	scan   *packfile.Scanner
	bases  *cache.BufferLRU // unpacked objects by offset; deltas share bases
	types  map[int64]plumbing.ObjectType
}

type seekCloser interface {
	io.ReadSeeker
	io.Closer
}

// openPack opens a pack and its index, whose names below an objects folder are
// name and an extension.
func openPack(dir, name string) (*pack, error) {
	f, err := openFile(dir, name+".idx")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	index := idxfile.NewMemoryIndex()
	// The decoder has to see that it is a file: it compares its size with the number
	// of objects before it makes room for them.
	if err := idxfile.NewDecoder(f).Decode(index); err != nil {
		return nil, fmt.Errorf("%w: %s.idx: %w", ErrCorrupt, name, err)
	}
	file, err := openFile(dir, name+".pack")
	if err != nil {
		return nil, err
	}
	p := newPack(file, 8<<20)
	p.offset = index.FindOffset
	return p, nil
}

// newPack keeps so many bytes of bases, each of at most maxObject.
func newPack(file seekCloser, bases cache.FileSize) *pack {
	return &pack{
		file:  file,
		scan:  packfile.NewScanner(file),
		bases: cache.NewBufferLRU(bases),
		types: make(map[int64]plumbing.ObjectType),
	}
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
// maxObject, whatever its headers claim, and spend is told of what it takes to
// apply each delta, in bytes, and may end it. However many they are, one delta is
// in memory at a time.
func (p *pack) unpack(offset int64, spend func(bytes int64) error) (plumbing.ObjectType, []byte, error) {
	var chain []int64 // of deltas, down to a base
	var typ plumbing.ObjectType
	var text []byte
	for {
		if kept, ok := p.bases.Get(offset); ok {
			typ, text = p.types[offset], kept
			break
		}
		if len(chain) > maxChain {
			return 0, nil, fmt.Errorf("%w: a chain of over %d deltas", ErrCorrupt, maxChain)
		}
		header, err := p.scan.SeekObjectHeader(offset)
		if err != nil {
			return 0, nil, err
		}
		if !header.Type.IsDelta() {
			typ = header.Type
			if text, err = p.content(header); err != nil {
				return 0, nil, err
			}
			p.keep(offset, typ, text)
			break
		}
		chain = append(chain, offset)
		offset = header.OffsetReference
		if header.Type == plumbing.REFDeltaObject {
			if offset, err = p.offset(header.Reference); err != nil {
				return 0, nil, fmt.Errorf("%w: %s, the base of a delta", errMissing, header.Reference)
			}
		}
	}
	for len(chain) > 0 {
		offset, chain = chain[len(chain)-1], chain[:len(chain)-1]
		header, err := p.scan.SeekObjectHeader(offset)
		if err != nil {
			return 0, nil, err
		}
		delta, err := p.content(header)
		if err != nil {
			return 0, nil, err
		}
		_, target, err := deltaSizes(bytes.NewReader(delta))
		if err != nil {
			return 0, nil, err
		}
		if err := within(target, maxObject); err != nil {
			return 0, nil, err
		}
		if err := spend(int64(len(delta)) + target); err != nil {
			return 0, nil, err
		}
		if text, err = packfile.PatchDelta(text, delta); err != nil {
			return 0, nil, err
		}
		p.keep(offset, typ, text)
	}
	return typ, text, nil
}

// content is what lies in the pack under the header that was just read.
func (p *pack) content(h *packfile.ObjectHeader) ([]byte, error) {
	if err := within(h.Length, maxObject); err != nil {
		return nil, err
	}
	r, err := p.scan.ReadObject()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return exactly(r, h.Length)
}

func (p *pack) keep(offset int64, typ plumbing.ObjectType, text []byte) {
	if len(p.types) == 1<<16 {
		p.bases.Clear()
		clear(p.types)
	}
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

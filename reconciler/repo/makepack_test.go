package repo

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"

	"github.com/go-git/go-git/v5/plumbing"
)

// Exported, as what follows is, for the tests outside of the package too.

// Packed is one object of a pack written by hand.
type Packed struct {
	Kind byte // 1 commit, 2 tree, 3 blob, 6 offset delta, 7 reference delta
	Base []byte
	Of   int // the index of an offset delta's base, when Base is nil
	Text string
	Size int // claimed; the text's own when 0
	// Deflated stands where the text would, compressed, when there is any.
	Deflated []byte
}

// MakePack writes a pack (gitformat-pack), and the offset of each object.
func MakePack(objects ...Packed) (pack []byte, offsets []int) {
	pack = binary.BigEndian.AppendUint32([]byte("PACK\x00\x00\x00\x02"), uint32(len(objects)))
	var z bytes.Buffer
	w, err := zlib.NewWriterLevel(&z, zlib.BestSpeed)
	if err != nil {
		panic(err)
	}
	for _, o := range objects {
		offsets = append(offsets, len(pack))
		size := o.Size
		if size == 0 {
			size = len(o.Text)
		}
		b := o.Kind<<4 | byte(size&15)
		for size >>= 4; size > 0; size >>= 7 {
			pack = append(pack, b|0x80)
			b = byte(size & 0x7f)
		}
		if o.Kind == 6 && o.Base == nil {
			o.Base = back(offsets[len(offsets)-1] - offsets[o.Of])
		}
		pack = append(append(pack, b), o.Base...)
		if o.Deflated == nil {
			z.Reset()
			w.Reset(&z)
			w.Write([]byte(o.Text))
			w.Close()
			o.Deflated = z.Bytes()
		}
		pack = append(pack, o.Deflated...)
	}
	sum := sha1.Sum(pack)
	return append(pack, sum[:]...), offsets
}

// Delta turns a base of a size into a result of a claimed size by commands.
func Delta(base, target int, commands string) string {
	return string(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(base)), uint64(target))) + commands
}

// CopyAll copies up to 16 MiB from the start of the base: three bytes of size.
func CopyAll(size int) string {
	return string([]byte{0x80 | 0x70, byte(size), byte(size >> 8), byte(size >> 16)})
}

// BlobHash is the hash of a file.
func BlobHash(text string) []byte {
	h := plumbing.ComputeHash(plumbing.BlobObject, []byte(text))
	return h[:]
}

// back says how far before an offset delta its base is.
func back(distance int) []byte {
	back := []byte{byte(distance & 0x7f)}
	for distance >>= 7; distance > 0; distance >>= 7 {
		distance--
		back = append([]byte{byte(distance&0x7f) | 0x80}, back...)
	}
	return back
}

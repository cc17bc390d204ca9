package schema

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

// key names an outcome: what was evaluated and with which library ("" for files
// that need none, and for the news that a file needs one).
type key struct {
	blob  string
	scope string
}

// store keeps outcomes on disk, for the next process: one file that is only
// appended to, and begun anew when it is too large, damaged or of another schema.
// Losing it costs time, never truth. Processes may share a folder.
//
// The file is a header (magic and fingerprint) and records of length, CRC-32C and
// body (blob, scope, outcome). Whatever follows the first bad record is cut off.
type store struct {
	path   string
	header []byte
	// limit is the size in bytes at which the file is begun anew.
	limit int64
	// loaded are outcomes from disk that no load has asked for yet.
	loaded map[key][]byte
	size   int64
	fresh  []byte // records to append
	whole  bool   // the file on disk is good to be appended to
}

const (
	storeName  = "schema-results"
	storeMagic = "kokoa results 1\n"
	storeLimit = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openStore reads what is in folder; the error is about the host, never about
// what the file holds.
func openStore(folder string, fingerprint [32]byte) (*store, error) {
	s := &store{
		path:   filepath.Join(folder, storeName),
		header: append([]byte(storeMagic), fingerprint[:]...),
		limit:  storeLimit,
		loaded: map[key][]byte{},
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("make cache folder: %w", err)
	}
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, s.limit+1))
	if err != nil {
		return nil, fmt.Errorf("read cache: %w", err)
	}
	s.read(text)
	return s, nil
}

func (s *store) read(text []byte) {
	records, ok := bytes.CutPrefix(text, s.header)
	if !ok || int64(len(text)) > s.limit {
		return
	}
	s.size = int64(len(text))
	for len(records) > 0 {
		k, raw, rest, ok := cutRecord(records)
		if !ok {
			return // not whole: the next flush begins it anew
		}
		s.loaded[k] = raw
		records = rest
	}
	s.whole = true
}

// get gives an outcome once; what cannot be decoded is not there.
func (s *store) get(k key) (outcome, bool) {
	raw, ok := s.loaded[k]
	if !ok {
		return outcome{}, false
	}
	o, err := decodeOutcome(raw)
	return o, err == nil
}

// add keeps an encoded outcome for the next flush.
func (s *store) add(k key, raw []byte) {
	s.fresh = appendRecord(s.fresh, k, raw)
}

// flush writes what was added. When the file is damaged or full it is replaced,
// with what was added and what was loaded as far as it fits.
func (s *store) flush() error {
	if len(s.fresh) == 0 {
		return nil
	}
	defer func() { s.fresh = nil }()
	if s.whole && s.size+int64(len(s.fresh)) <= s.limit {
		f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			// One write: another process's records land before or after, not inside.
			_, err = f.Write(s.fresh)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			s.whole = false
			return fmt.Errorf("append to cache: %w", err)
		}
		s.size += int64(len(s.fresh))
		return nil
	}
	text := append(bytes.Clone(s.header), s.fresh...)
	for k, raw := range s.loaded {
		if int64(len(text)+len(raw)) < s.limit/2 {
			text = appendRecord(text, k, raw)
		}
	}
	if int64(len(text)) > s.limit {
		return nil
	}
	if err := atomicfile.Write(s.path, text, 0o600); err != nil {
		return fmt.Errorf("replace cache: %w", err)
	}
	s.size, s.whole = int64(len(text)), true
	return nil
}

// forget drops what was loaded and not asked for by the first load.
func (s *store) forget() { s.loaded = nil }

func appendRecord(b []byte, k key, raw []byte) []byte {
	body := appendText(nil, k.blob)
	body = appendText(body, k.scope)
	body = append(body, raw...)
	b = binary.AppendUvarint(b, uint64(len(body)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	return append(b, body...)
}

// cutRecord takes the first record off; ok is false when it is damaged.
func cutRecord(b []byte) (k key, raw, rest []byte, ok bool) {
	n, used := binary.Uvarint(b)
	if used <= 0 || n > uint64(len(b)) || len(b)-used-4 < int(n) {
		return key{}, nil, nil, false
	}
	sum := binary.BigEndian.Uint32(b[used:])
	body, rest := b[used+4:used+4+int(n)], b[used+4+int(n):]
	if crc32.Checksum(body, castagnoli) != sum {
		return key{}, nil, nil, false
	}
	d := decoder{rest: body}
	k = key{blob: d.text(), scope: d.text()}
	return k, d.rest, rest, !d.bad
}

package repo_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// A fleet is a pack of a commit, its tree and what else is in it.
type fleet struct {
	head    string
	pack    []byte
	offsets map[string]int // of some of its objects by hash, as an index has them
}

// newFleet makes a pack of objects, and of a commit and a tree with these files. as
// is the hash that an index gives for an object, by its place among them.
func newFleet(t *testing.T, files []string, as map[int]string, objects ...repo.Packed) fleet {
	t.Helper()
	tree := treeText(t, files...)
	commit := commitText(plumbing.ComputeHash(plumbing.TreeObject, []byte(tree)).String())
	n := len(objects)
	objects = append(objects, repo.Packed{Kind: 2, Text: tree}, repo.Packed{Kind: 1, Text: commit})
	f := fleet{head: plumbing.ComputeHash(plumbing.CommitObject, []byte(commit)).String(), offsets: make(map[string]int)}
	var offsets []int
	f.pack, offsets = repo.MakePack(objects...)
	f.offsets[plumbing.ComputeHash(plumbing.TreeObject, []byte(tree)).String()] = offsets[n]
	f.offsets[f.head] = offsets[n+1]
	for i, hash := range as {
		f.offsets[hash] = offsets[i]
	}
	return f
}

// packs are attacks by packs and their indexes.
func packs() map[string]attack {
	hash := func(text string) string { return hex.EncodeToString(repo.BlobHash(text)) }
	okFile := []string{"100644 ok.cue " + hash("ok")}
	ok := repo.Packed{Kind: 3, Text: "ok"}
	one, two := strings.Repeat("01", 20), strings.Repeat("02", 20)
	ref := func(hash, text string) repo.Packed {
		base, _ := hex.DecodeString(hash)
		return repo.Packed{Kind: 7, Base: base, Text: text}
	}

	// A delta of 15 MiB that makes a file of as much; compressed it is small.
	const step = 127 * 120_000
	insert := string(append([]byte{127}, make([]byte, 127)...))
	long := repo.Delta(step, step, strings.Repeat(insert, step/127))
	deflated := deflate(long)
	// chain is a file "ok" behind many of them.
	chain := func(depth int) []repo.Packed {
		objects := []repo.Packed{{Kind: 3, Size: step, Deflated: zeros("", step)}}
		for i := range depth {
			objects = append(objects, repo.Packed{Kind: 6, Of: i, Size: len(long), Deflated: deflated})
		}
		return append(objects, repo.Packed{Kind: 6, Of: depth, Text: repo.Delta(step, 2, "\x02ok")})
	}

	all := make(map[string]attack)
	// One outcome in a repository on this host, where the index is the attacker's as
	// well, and one over HTTP.
	add := func(name string, local, http *outcome, limits repo.Limits, make func(t *testing.T) fleet) {
		var made fleet
		once := func(t *testing.T) fleet {
			if made.pack == nil {
				made = make(t)
			}
			return made
		}
		a := attack{local: local, http: http, limits: limits, pack: func(t *testing.T) (string, []byte) { return once(t).head, once(t).pack }}
		if local != nil {
			a.make = func(t *testing.T, r raw, _ string) {
				r.addPack(t, once(t).pack, once(t).offsets)
				r.point(t, once(t).head)
			}
		}
		all[name] = a
	}
	none := repo.Limits{}
	add("chain of huge deltas", fine, fine, none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{41: hash("ok")}, chain(40)...)
	})
	add("deltas that take long", nil, fails(context.DeadlineExceeded, "no end after 1s"), repo.Limits{Timeout: time.Second}, func(t *testing.T) fleet {
		return newFleet(t, okFile, nil, chain(500)...)
	})
	add("chain of huge deltas that branches early", nil, fine, none, func(t *testing.T) fleet {
		objects := chain(40)
		for i := range 4 {
			objects = append(objects, repo.Packed{Kind: 6, Of: 20, Text: repo.Delta(step, 2, fmt.Sprintf("\x02%02d", i))})
		}
		return newFleet(t, okFile, nil, objects...)
	})
	over := fails(repo.ErrLimit, "64 MiB of deltas to unpack")
	add("chain of more than may be unpacked", over, over, repo.Limits{Bytes: 1 << 20}, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{6: hash("ok")}, chain(5)...)
	})
	add("huge object", fails(repo.ErrLimit, "600 MiB"), fails(repo.ErrLimit, "600 MiB"), none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{0: hash("ok")}, repo.Packed{Kind: 3, Size: huge, Deflated: zeros("", huge)})
	})
	add("huge object that says it is small", fails(repo.ErrCorrupt, "exceeds declared size"), fails(repo.ErrCorrupt, "exceeds declared size"), none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{0: hash("ok")}, repo.Packed{Kind: 3, Size: 2, Deflated: zeros("", huge)})
	})
	add("delta that claims to be huge", fails(repo.ErrLimit, "600 MiB"), fails(repo.ErrLimit, "600 MiB"), none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{1: hash("ok")}, ok, repo.Packed{Kind: 6, Text: repo.Delta(2, huge, repo.CopyAll(2))})
	})
	add("delta that makes more than it claims", fails(repo.ErrCorrupt, "invalid delta"), fails(repo.ErrCorrupt, "invalid delta"), none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{1: hash("ok")}, ok, repo.Packed{Kind: 6, Text: repo.Delta(2, 2, strings.Repeat(repo.CopyAll(2), 1<<20))})
	})
	add("deltas in a ring", fails(repo.ErrCorrupt, "a chain of over 4095 deltas"), fails(repo.ErrCorrupt, "3 deltas have no base"), none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{0: one, 1: two, 2: hash("ok")},
			ref(two, repo.Delta(2, 2, repo.CopyAll(2))), ref(one, repo.Delta(2, 2, repo.CopyAll(2))), repo.Packed{Kind: 6, Of: 1, Text: repo.Delta(2, 2, repo.CopyAll(2))})
	})
	add("delta of itself", fails(repo.ErrCorrupt, "invalid OFS delta"), fails(repo.ErrCorrupt, "invalid OFS delta"), none, func(t *testing.T) fleet {
		return newFleet(t, okFile, map[int]string{0: hash("ok")}, repo.Packed{Kind: 6, Base: []byte{0}, Text: repo.Delta(2, 2, repo.CopyAll(2))})
	})
	add("pack that is cut off", fails(repo.ErrCorrupt, ""), fails(repo.ErrCorrupt, "EOF"), none, func(t *testing.T) fleet {
		f := newFleet(t, okFile, map[int]string{0: hash("ok")}, ok)
		f.pack = f.pack[:len(f.pack)/2]
		return f
	})
	add("four billion objects", fine, fails(repo.ErrLimit, "4294967295 objects"), none, func(t *testing.T) fleet {
		f := newFleet(t, okFile, map[int]string{0: hash("ok")}, ok)
		copy(f.pack[8:], "\xff\xff\xff\xff")
		return f
	})
	add("a million objects", nil, fine, none, func(t *testing.T) fleet {
		objects := make([]repo.Packed, 1<<20-2)
		for i := range objects {
			text := fmt.Sprintf("%06d", i)
			objects[i] = repo.Packed{Kind: 3, Text: text, Deflated: stored(text)}
		}
		objects[0] = ok
		return newFleet(t, okFile, nil, objects...)
	})

	// What a server lists.
	evil := strings.Repeat("ab", 20)
	listed := func(name string, o *outcome, refs func() []string) {
		add(name, nil, o, none, func(t *testing.T) fleet { return newFleet(t, okFile, nil, ok) })
		a := all[name]
		a.refs = refs
		all[name] = a
	}
	listed("hostile branches", fine, func() []string {
		return []string{evil + " refs/heads/../../outside/secret", evil + " /etc/passwd", evil + " ../HEAD", evil + " refs/heads/\x1b[2J", evil + " refs/heads/main.lock", evil + " refs/heads/main^{}"}
	})
	listed("hostile capabilities", fine, func() []string {
		return []string{evil + " HEAD\x00symref=HEAD:../../outside/secret agent=\x1b[2J session-id=\x07 ofs-delta"}
	})
	listed("branch that is no hash", fails(nil, "invalid hash"), func() []string { return []string{"../../outside/secret refs/heads/other"} })
	listed("a million branches", fine, func() []string {
		refs := make([]string, 1_000_000)
		for i := range refs {
			refs[i] = fmt.Sprintf("%040x refs/heads/%06d", i+1, i)
		}
		return refs
	})

	// Indexes exist on disk only.
	index := func(name string, o *outcome, mend func(index []byte) []byte) {
		add(name, o, nil, none, func(t *testing.T) fleet { return newFleet(t, okFile, map[int]string{0: hash("ok")}, ok) })
		a := all[name]
		plain := a.make
		a.make = func(t *testing.T, r raw, outside string) {
			plain(t, r, outside)
			paths, err := filepath.Glob(filepath.Join(string(r), "objects/pack/*.idx"))
			if err != nil || len(paths) != 1 {
				t.Fatal(paths, err)
			}
			text, err := os.ReadFile(paths[0])
			if err != nil {
				t.Fatal(err)
			}
			text = mend(text)
			sum := sha1.Sum(text[:len(text)-20])
			write(t, paths[0], string(append(text[:len(text)-20], sum[:]...)), 0o644)
		}
		all[name] = a
	}
	const fanout, crcs, offsets = 8, 8 + 4*256 + 3*20, 8 + 4*256 + 3*24 // for three objects
	index("index of four billion objects", fails(repo.ErrCorrupt, "object count"), func(index []byte) []byte {
		copy(index[fanout+4*255:], "\xff\xff\xff\xff")
		return index
	})
	index("index whose counts sink", fails(repo.ErrCorrupt, "fanout table"), func(index []byte) []byte {
		copy(index[fanout:], "\x00\x00\x00\x09")
		return index
	})
	index("index that is cut off", fails(repo.ErrCorrupt, ""), func(index []byte) []byte { return index[:crcs] })
	index("index of offsets beyond the pack", fails(repo.ErrCorrupt, ""), func(index []byte) []byte {
		copy(index[offsets:], strings.Repeat("\x7f\xff\xff\xff", 3))
		return index
	})
	index("index of offsets beyond itself", fails(repo.ErrCorrupt, ""), func(index []byte) []byte {
		copy(index[offsets:], strings.Repeat("\xff\xff\xff\xff", 3))
		return index
	})
	index("index that takes one object for another", fails(repo.ErrCorrupt, ""), func(index []byte) []byte {
		first, last := slices.Clone(index[offsets:offsets+4]), slices.Clone(index[offsets+8:offsets+12])
		copy(index[offsets:], last)
		copy(index[offsets+8:], first)
		return index
	})
	return all
}

// stored is a text as zlib would have it without compressing.
func stored(text string) []byte {
	n := uint16(len(text))
	out := binary.LittleEndian.AppendUint16([]byte{0x78, 1, 1}, n)
	out = append(binary.LittleEndian.AppendUint16(out, ^n), text...)
	a, b := uint32(1), uint32(0)
	for _, c := range []byte(text) {
		a = (a + uint32(c)) % 65521
		b = (b + a) % 65521
	}
	return binary.BigEndian.AppendUint32(out, b<<16|a)
}

// packServer sends a pack to whoever asks for anything (gitprotocol-http), and lists
// main after other references.
func packServer(refs []string, head string, pack []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lines := pktline.NewEncoder(w)
		if strings.HasSuffix(r.URL.Path, "/info/refs") {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			lines.EncodeString("# service=git-upload-pack\n")
			lines.Flush()
			for i, ref := range append(slices.Clip(refs), head+" refs/heads/main") {
				if i == 0 && !strings.Contains(ref, "\x00") {
					ref += "\x00ofs-delta"
				}
				lines.EncodeString(ref + "\n")
			}
			lines.Flush()
			return
		}
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		lines.EncodeString("NAK\n")
		w.Write(pack)
	})
}

// all is the head of main and a pack of all loose objects.
func (r raw) all(t *testing.T) (head string, pack []byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(string(r), "objects/??/*"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]byte{"commit": 1, "tree": 2, "blob": 3}
	var objects []repo.Packed
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := zlib.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		header, body, _ := strings.Cut(string(text), "\x00")
		typ, _, _ := strings.Cut(header, " ")
		objects = append(objects, repo.Packed{Kind: kinds[typ], Text: body})
	}
	point, err := os.ReadFile(filepath.Join(string(r), "refs/heads/main"))
	if err != nil {
		t.Fatal(err)
	}
	pack, _ = repo.MakePack(objects...)
	return strings.TrimSpace(string(point)), pack
}

// addPack puts a pack into a repository, with an index made by hand.
func (r raw) addPack(t *testing.T, pack []byte, offsets map[string]int) {
	t.Helper()
	var w idxfile.Writer
	w.OnHeader(uint32(len(offsets)))
	for hash, offset := range offsets {
		w.Add(plumbing.NewHash(hash), uint64(offset), 0)
	}
	sum := plumbing.Hash(pack[len(pack)-20:])
	w.OnFooter(sum)
	index, err := w.Index()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if _, err := idxfile.NewEncoder(&text).Encode(index); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(string(r), "objects/pack/pack-"+sum.String())
	write(t, base+".pack", string(pack), 0o644)
	write(t, base+".idx", text.String(), 0o644)
}

const huge = 600 << 20

// bombs are small files that unpack to huge ones.
func bombs() map[string]attack {
	hash := strings.Repeat("b0", 20)
	all := make(map[string]attack)
	for typ, put := range map[string]func(t *testing.T, r raw){
		"blob":   func(t *testing.T, r raw) { r.main(t, r.tree(t, "100644 a.cue "+hash)) },
		"tree":   func(t *testing.T, r raw) { r.main(t, hash) },
		"commit": func(t *testing.T, r raw) { r.point(t, hash) },
	} {
		all["huge "+typ] = attack{local: fails(repo.ErrLimit, "600 MiB"), make: func(t *testing.T, r raw, _ string) {
			r.loose(t, hash, zeros(fmt.Sprintf("%s %d\x00", typ, huge), huge))
			put(t, r)
		}}
		all["huge "+typ+" that says it is small"] = attack{local: fails(repo.ErrCorrupt, "longer than it says"), make: func(t *testing.T, r raw, _ string) {
			r.loose(t, hash, zeros(typ+" 40\x00", huge))
			put(t, r)
		}}
	}
	return all
}

// zeros is a head and then many zeros, as zlib would compress them; in next to no
// time.
func zeros(head string, count int) []byte {
	const chunk = 1 << 20
	var first, more bytes.Buffer
	w := zlib.NewWriter(&first)
	w.Write([]byte(head))
	w.Write(make([]byte, count%chunk))
	w.Flush()
	// What follows a flush says nothing of what came before, but for its window.
	m := zlib.NewWriter(&more)
	m.Flush()
	start := more.Len()
	m.Write(make([]byte, chunk))
	m.Flush()
	out := append(first.Bytes(), bytes.Repeat(more.Bytes()[start:], count/chunk)...)
	// The last block, empty, and the checksum (RFC 1950).
	const prime = 65521
	a, b := 1, 0
	for _, c := range []byte(head) {
		a = (a + int(c)) % prime
		b = (b + a) % prime
	}
	b = (b + a*(count%prime)) % prime
	return binary.BigEndian.AppendUint32(append(out, 1, 0, 0, 0xff, 0xff), uint32(b)<<16|uint32(a))
}

func TestZeros(t *testing.T) {
	z, err := zlib.NewReader(bytes.NewReader(zeros("head", 3<<20+5)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if want := "head" + strings.Repeat("\x00", 3<<20+5); err != nil || string(text) != want {
		t.Errorf("%d bytes, %v; want %d", len(text), err, len(want))
	}
}

package repo

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

func store(t testing.TB, pack []byte) (*objects, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "x.git", "objects")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := storePack(t.Context(), dir, bytes.NewReader(pack), 1<<20)
	left, globErr := filepath.Glob(filepath.Join(dir, "pack", "tmp_*"))
	if globErr != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, globErr)
	}
	s, openErr := newObjects(dir, 1<<30)
	if openErr != nil {
		t.Fatal(openErr)
	}
	t.Cleanup(func() { s.close() })
	return s, err
}

func TestStorePack(t *testing.T) {
	base := strings.Repeat("base ", 100)
	long := base + base + "end"
	longer, longest := long+"more", long+"moremost"
	// Deltas of deltas, and some before what they are of.
	good := []Packed{
		{Kind: 7, Base: BlobHash(long), Text: Delta(len(long), len(longer), CopyAll(len(long))+"\x04more")},
		{Kind: 6, Of: 0, Text: Delta(len(longer), len(longest), CopyAll(len(longer))+"\x04most")},
		{Kind: 3, Text: base},
		{Kind: 7, Base: BlobHash(base), Text: Delta(len(base), len(long), CopyAll(len(base))+CopyAll(len(base))+"\x03end")},
	}
	for _, count := range []int{0, 200} { // loose, and indexed
		many := slices.Clone(good)
		for i := range count {
			many = append(many, Packed{Kind: 3, Text: strings.Repeat("x", i+1)})
		}
		pack, _ := MakePack(many...)
		s, err := store(t, pack)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{base, long, longer, longest} {
			got, err := s.blob(plumbing.Hash(BlobHash(want)), 1<<20)
			if err != nil || string(got) != want {
				t.Errorf("read %q, %v; want %q", got, err, want)
			}
		}
		if indexes, _ := filepath.Glob(filepath.Join(s.dirs[0], "pack", "*.idx")); len(indexes) != min(count, 1) {
			t.Errorf("%d objects made %d indexes", len(many), len(indexes))
		}
	}
}

func TestHostilePacks(t *testing.T) {
	zeros := strings.Repeat("\x00", 1<<20)
	var growing []Packed // each sixteen times the one before
	hash, size := BlobHash(zeros), 1<<20
	growing = append(growing, Packed{Kind: 3, Text: zeros})
	for range 6 {
		growing = append(growing, Packed{Kind: 7, Base: hash, Text: Delta(size, 16*size, strings.Repeat(CopyAll(min(size, 1<<24-1)), 16))})
		size *= 16
		hash = bytes.Repeat([]byte{byte(size)}, 20)
	}
	pack := func(objects ...Packed) []byte { p, _ := MakePack(objects...); return p }
	plain := pack(Packed{Kind: 3, Text: "x"})
	cyclic := bytes.Repeat([]byte{7}, 20)
	tests := map[string]struct {
		pack []byte
		is   error
	}{
		"nothing":                {nil, ErrCorrupt},
		"no pack":                {[]byte("<html>"), ErrCorrupt},
		"cut off":                {plain[:len(plain)-21], ErrCorrupt},
		"no checksum":            {plain[:len(plain)-20], ErrCorrupt},
		"other checksum":         {append(slices.Clone(plain[:len(plain)-1]), ^plain[len(plain)-1]), ErrCorrupt},
		"fewer than said":        {append([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x05"), plain[12:]...), ErrCorrupt},
		"a billion said":         {append([]byte("PACK\x00\x00\x00\x02\x40\x00\x00\x00"), plain[12:]...), ErrLimit},
		"longer than it says":    {pack(Packed{Kind: 3, Text: zeros, Size: 10}), ErrCorrupt},
		"shorter than it says":   {pack(Packed{Kind: 3, Text: "x", Size: 10}), ErrCorrupt},
		"says it is huge":        {pack(Packed{Kind: 3, Text: "x", Size: 1 << 40}), ErrLimit},
		"unknown kind":           {pack(Packed{Kind: 5, Text: "x"}), ErrCorrupt},
		"deltas that grow":       {pack(growing...), ErrLimit},
		"delta of nothing here":  {pack(Packed{Kind: 7, Base: cyclic, Text: Delta(1, 1, "\x01x")}), ErrCorrupt},
		"delta of itself":        {pack(Packed{Kind: 6, Base: []byte{0}, Text: Delta(1, 1, "\x01x")}), ErrCorrupt},
		"delta of what is later": {pack(Packed{Kind: 6, Base: []byte{0x7f}, Text: Delta(1, 1, "\x01x")}), ErrCorrupt},
		"delta without sizes":    {pack(Packed{Kind: 3, Text: "x"}, Packed{Kind: 7, Base: BlobHash("x"), Text: "\xff"}), ErrCorrupt},
		"delta past its base":    {pack(Packed{Kind: 3, Text: "x"}, Packed{Kind: 7, Base: BlobHash("x"), Text: Delta(1, 1000, CopyAll(1000))}), ErrCorrupt},
		"delta of another size":  {pack(Packed{Kind: 3, Text: "x"}, Packed{Kind: 7, Base: BlobHash("x"), Text: Delta(9, 1, "\x01x")}), ErrCorrupt},
		"more than asked for":    {append(slices.Clone(plain), make([]byte, 1<<20)...), ErrLimit},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := store(t, test.pack); !errors.Is(err, test.is) {
				t.Errorf("%v, want %v", err, test.is)
			}
		})
	}
}

func TestStorePackCanBeCancelled(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	pack, _ := MakePack(Packed{Kind: 3, Text: "x"})
	if err := storePack(ctx, t.TempDir(), bytes.NewReader(pack), 1<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzStorePack(f *testing.F) {
	base := strings.Repeat("base ", 100)
	full, offsets := MakePack(Packed{Kind: 3, Text: base},
		Packed{Kind: 7, Base: BlobHash(base), Text: Delta(len(base), 3, "\x03end")},
		Packed{Kind: 2, Text: "100644 a.cue\x00" + string(BlobHash(base))})
	f.Add(full)
	f.Add(full[:offsets[1]])
	f.Fuzz(func(t *testing.T, pack []byte) {
		// Without the right checksum nearly nothing would be tried.
		if len(pack) > 20 {
			sum := sha1.Sum(pack[:len(pack)-20])
			pack = append(slices.Clone(pack[:len(pack)-20]), sum[:]...)
		}
		s, err := store(t, pack)
		if err != nil {
			return
		}
		loose, err := filepath.Glob(filepath.Join(s.dirs[0], "??", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range loose {
			h := plumbing.NewHash(filepath.Base(filepath.Dir(path)) + filepath.Base(path))
			if _, err := s.size(h); err != nil {
				t.Errorf("stored and not to be found: %v", err)
			}
		}
	})
}

func FuzzTree(f *testing.F) {
	f.Add("100644 a.cue\x00" + strings.Repeat("h", 20) + "40000 dir\x00" + strings.Repeat("i", 20))
	f.Fuzz(func(t *testing.T, text string) {
		n := 0
		for e, err := range entries(text) {
			if err != nil {
				return
			}
			if e.name == "" || strings.ContainsAny(e.name, "/\x00") {
				t.Errorf("name %q", e.name)
			}
			oddPath(e.name)
			n += len(e.name) + 2 + 20
		}
		if n > len(text) {
			t.Errorf("%d bytes of entries out of %d", n, len(text))
		}
	})
}

func FuzzUnpackLoose(f *testing.F) {
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	w.Write([]byte("blob 1\x00x"))
	w.Close()
	f.Add(z.Bytes())
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, file []byte) {
		h := plumbing.Hash(BlobHash("x"))
		path := filepath.Join(dir, h.String()[:2], h.String()[2:])
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, file, 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err := newObjects(dir, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := s.blob(h, 1<<20); err == nil && string(text) != "x" {
			t.Errorf("read %q", text)
		}
	})
}

func FuzzOpen(f *testing.F) {
	for _, spec := range []string{"https://user:canary@example.com/x.git", "git@example.com:x", "ssh://git@example.com:22/x", "file:///x", "https://canary@x/?a#b"} {
		f.Add(spec)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		if path, local := localPath(spec); local {
			if path == "" && spec != "" && spec != "file://" {
				t.Errorf("%q is the path %q", spec, path)
			}
			return
		}
		u, _, err := parseRemote(spec, Auth{})
		if err != nil {
			return
		}
		if u.Hostname() == "" {
			t.Errorf("%q has no host: %s", spec, u)
		}
		if u.User != nil && u.Scheme != "ssh" {
			t.Errorf("%q keeps its user in %s", spec, u)
		}
	})
}

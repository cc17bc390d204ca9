package schema

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// repo is a small fleet with a library.
func repo() memory {
	m := memory{
		"fleet.cue":   baseFleet,
		"library.cue": "package fleet\n#Web: {origin: \"vm1\", service: \"http://x:1\", ...}\n",
	}
	for i := range 20 {
		m[fmt.Sprintf("plain%d.cue", i)] = routeText(fmt.Sprintf("plain%d", i), "vm1")
		m[fmt.Sprintf("web%d.cue", i)] = fmt.Sprintf("package fleet\nroute: web%d: #Web & {host: \"web%d.kokoa.test\"}\n", i, i)
	}
	return m
}

func mustLoad(t testing.TB, l *Loader, tree Tree) *fleet.Fleet {
	t.Helper()
	f, _, err := l.Load(context.Background(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestMemoryCache: only what changed is evaluated, and what a changed library
// can touch.
func TestMemoryCache(t *testing.T) {
	l := newLoader(t, Options{})
	tree := repo()
	steps := []struct {
		name      string
		change    func()
		evaluated int
	}{
		{"first", func() {}, 22 + 20 + 20}, // files that use the library are looked at twice
		{"again", func() {}, 0},
		{"one file", func() { tree["plain3.cue"] = routeText("changed", "vm1") }, 1},
		{"one that uses the library", func() { tree["web3.cue"] += "// changed\n" }, 2},
		{"the library", func() { tree["library.cue"] += "#More: {...}\n" }, 1 + 20},
		{"moved", func() { tree["moved/plain4.cue"] = tree["plain4.cue"]; delete(tree, "plain4.cue") }, 0},
		{"deleted", func() { delete(tree, "plain5.cue") }, 0},
	}
	for _, s := range steps {
		s.change()
		f := mustLoad(t, l, tree)
		if l.stats.evaluated != s.evaluated {
			t.Errorf("%s: %d files were evaluated, want %d", s.name, l.stats.evaluated, s.evaluated)
		}
		if want := mustLoad(t, newLoader(t, Options{}), tree); !reflect.DeepEqual(f, want) {
			t.Errorf("%s: the fleet differs from one loaded anew", s.name)
		}
	}
}

// TestMemoryCacheIsBounded: results that nothing uses are dropped.
func TestMemoryCacheIsBounded(t *testing.T) {
	l := newLoader(t, Options{})
	for i := range 20 {
		mustLoad(t, l, memory{"fleet.cue": baseFleet, "r.cue": routeText(fmt.Sprintf("r%d", i), "vm1")})
	}
	if n := len(l.results); n > 8 {
		t.Errorf("%d results are kept for two files", n)
	}
}

// TestDiskCache: the next process evaluates nothing, and a damaged cache costs
// time, not truth.
func TestDiskCache(t *testing.T) {
	folder := t.TempDir()
	tree := repo()
	first := newLoader(t, Options{CacheDir: folder})
	want := mustLoad(t, first, tree)
	path := filepath.Join(folder, storeName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header := len(storeMagic) + 32
	cases := map[string]struct {
		text []byte
		all  bool // nothing needs to be evaluated
	}{
		"whole":           {whole, true},
		"empty":           {nil, false},
		"header alone":    {whole[:header], false},
		"cut":             {whole[:len(whole)-3], false},
		"garbage after":   {append(bytes.Clone(whole), "garbage"...), true},
		"other schema":    {flip(whole, len(storeMagic)), false},
		"no cache at all": {[]byte("something else"), false},
	}
	for i := header; i < len(whole); i += len(whole) / 40 {
		cases[fmt.Sprintf("byte %d", i)] = struct {
			text []byte
			all  bool
		}{flip(whole, i), false}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, c.text, 0o600); err != nil {
				t.Fatal(err)
			}
			l := newLoader(t, Options{CacheDir: folder})
			if f := mustLoad(t, l, tree); !reflect.DeepEqual(f, want) {
				t.Error("the fleet differs")
			}
			if (l.stats.evaluated == 0) != c.all {
				t.Errorf("%d files were evaluated", l.stats.evaluated)
			}
			// What was damaged is whole again.
			l = newLoader(t, Options{CacheDir: folder})
			mustLoad(t, l, tree)
			if l.stats.evaluated != 0 {
				t.Errorf("%d files were evaluated after the cache was rebuilt", l.stats.evaluated)
			}
		})
	}
	left, err := os.ReadDir(folder)
	if err != nil || len(left) != 1 {
		t.Errorf("the folder has %v, %v", left, err)
	}
}

// TestDiskCacheShared: two processes add to one cache.
func TestDiskCacheShared(t *testing.T) {
	folder := t.TempDir()
	mustLoad(t, newLoader(t, Options{CacheDir: folder}), memory{"fleet.cue": baseFleet})
	a, b := newLoader(t, Options{CacheDir: folder}), newLoader(t, Options{CacheDir: folder})
	mustLoad(t, a, memory{"fleet.cue": baseFleet, "a.cue": routeText("a", "vm1")})
	mustLoad(t, b, memory{"fleet.cue": baseFleet, "b.cue": routeText("b", "vm1")})
	c := newLoader(t, Options{CacheDir: folder})
	mustLoad(t, c, memory{"fleet.cue": baseFleet, "a.cue": routeText("a", "vm1"), "b.cue": routeText("b", "vm1")})
	if c.stats.evaluated != 0 {
		t.Errorf("%d files were evaluated, want none", c.stats.evaluated)
	}
}

// TestDiskCacheIsBounded: a full cache is begun anew.
func TestDiskCacheIsBounded(t *testing.T) {
	folder := t.TempDir()
	s, err := openStore(folder, fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	s.limit = 10_000
	raw := outcome{size: 1}.append(nil)
	for i := range 2000 {
		s.add(key{blob: fmt.Sprintf("%040d", i)}, raw)
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(s.path)
	if err != nil || info.Size() > s.limit {
		t.Fatalf("the cache has %d bytes, %v", info.Size(), err)
	}
	again, err := openStore(folder, fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := again.get(key{blob: fmt.Sprintf("%040d", 1999)}); !ok {
		t.Error("the last result is lost")
	}
}

// TestCacheFolderCannotBe: a load needs no cache.
func TestCacheFolderCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, newLoader(t, Options{CacheDir: file}), memory{"fleet.cue": baseFleet})
}

// TestDeterminism: equal trees give equal fleets and equal words, in whatever
// order files are listed and however many of them run at once.
func TestDeterminism(t *testing.T) {
	good, wrong := repo(), repo()
	for i := range 10 {
		wrong[fmt.Sprintf("plain%d.cue", i)] = routeText("twin", fmt.Sprintf("vm%d", i))
	}
	var fleets, texts []string
	for i := range 20 {
		before := runtime.GOMAXPROCS(1 + i%2)
		l := newLoader(t, Options{})
		text, err := json.Marshal(mustLoad(t, l, shuffled{good, i}))
		if err != nil {
			t.Fatal(err)
		}
		fleets = append(fleets, string(text))
		texts = append(texts, told(t, l, shuffled{wrong, i}))
		runtime.GOMAXPROCS(before)
	}
	if n := len(slices.Compact(fleets)); n != 1 {
		t.Errorf("%d different fleets", n)
	}
	if n := len(slices.Compact(texts)); n != 1 {
		t.Errorf("%d different texts", n)
	}
}

// shuffled lists files in an order of its own.
type shuffled struct {
	memory
	by int
}

func (s shuffled) Files() []File {
	files := s.memory.Files()
	slices.SortFunc(files, func(a, b File) int {
		return bytes.Compare([]byte(a.Hash[s.by:]), []byte(b.Hash[s.by:]))
	})
	return files
}

func flip(text []byte, at int) []byte {
	out := bytes.Clone(text)
	out[at] ^= 0x20
	return out
}

func FuzzStore(f *testing.F) {
	sum := fingerprint()
	good := append([]byte(storeMagic), sum[:]...)
	f.Add(good)
	f.Add(appendRecord(bytes.Clone(good), key{"blob", "scope"}, outcome{}.append(nil)))
	f.Fuzz(func(t *testing.T, text []byte) {
		folder := t.TempDir()
		s := &store{path: filepath.Join(folder, storeName), header: good, limit: storeLimit, loaded: map[key][]byte{}}
		s.read(text)
		before := maps.Clone(s.loaded)
		if !s.whole {
			text = nil
		}
		if err := os.WriteFile(s.path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		k := key{blob: "new"}
		raw := outcome{size: 7}.append(nil)
		before[k] = raw
		s.add(k, raw)
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
		again, err := openStore(folder, sum)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again.loaded, before) {
			t.Errorf("%d results were kept, want %d", len(again.loaded), len(before))
		}
	})
}

package repo_test

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// raw is a bare repository written by hand, where everything may be wrong.
type raw string

func newRaw(t testing.TB) raw {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "raw.git")
	git(t, "", "init", "-q", "--bare", dir)
	return raw(dir)
}

// object writes a loose object and returns its hash.
func (r raw) object(t testing.TB, typ, body string) string {
	t.Helper()
	whole := fmt.Sprintf("%s %d\x00%s", typ, len(body), body)
	sum := sha1.Sum([]byte(whole))
	r.loose(t, hex.EncodeToString(sum[:]), deflate(whole))
	return hex.EncodeToString(sum[:])
}

// loose writes any bytes where the object of a hash is looked for.
func (r raw) loose(t testing.TB, hash string, text []byte) {
	t.Helper()
	path := filepath.Join(string(r), "objects", hash[:2], hash[2:])
	os.Remove(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func (r raw) blob(t testing.TB, text string) string { return r.object(t, "blob", text) }

// tree writes a tree of lines "mode name hash", in the order given.
func (r raw) tree(t testing.TB, entries ...string) string {
	t.Helper()
	return r.object(t, "tree", treeText(t, entries...))
}

func treeText(t testing.TB, entries ...string) string {
	t.Helper()
	var body strings.Builder
	for _, e := range entries {
		mode, rest, _ := strings.Cut(e, " ")
		i := strings.LastIndex(rest, " ")
		hash, err := hex.DecodeString(rest[i+1:])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&body, "%s %s\x00%s", mode, rest[:i], hash)
	}
	return body.String()
}

// main makes a commit of a tree the head of main.
func (r raw) main(t testing.TB, tree string, parents ...string) string {
	t.Helper()
	commit := r.object(t, "commit", commitText(tree, parents...))
	r.point(t, commit)
	return commit
}

func commitText(tree string, parents ...string) string {
	body := "tree " + tree + "\n"
	for _, p := range parents {
		body += "parent " + p + "\n"
	}
	return body + "author A <a@example.com> 1700000000 +0000\ncommitter A <a@example.com> 1700000000 +0000\n\nraw\n"
}

func (r raw) point(t testing.TB, hash string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(string(r), "refs/heads/main"), []byte(hash+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func deflate(text string) []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, zlib.BestSpeed)
	if err != nil {
		panic(err)
	}
	w.Write([]byte(text))
	w.Close()
	return b.Bytes()
}

// refuses fetches and wants an error of a kind that says something.
func (r raw) refuses(t testing.TB, limits repo.Limits, is error, says string) {
	t.Helper()
	rev, err := open(t, string(r), repo.Options{Limits: limits}).Fetch(t.Context())
	if rev != nil || !errors.Is(err, is) || !strings.Contains(err.Error(), says) {
		t.Errorf("%v; want %v, saying %q", err, is, says)
	}
}

func TestOddPathsAreRefused(t *testing.T) {
	r := newRaw(t)
	blob := r.blob(t, "x")
	for _, path := range []string{
		"../a.cue", "a/../../b.cue", "./a.cue", "a/./b.cue",
		".git/a.cue", ".GIT/hooks/a.cue", "sub/.git/a.cue", ".git./a.cue", ".git /a.cue", "git~1/a.cue", "GIT~1/a.cue", ".git:x/a.cue",
		`a\b.cue`, `..\a.cue`, `C:\a.cue`,
		"a\rb.cue", "a\nb.cue", "a\x1b[2Jb.cue", "a\x7fb.cue", "dir\t/b.cue", "a\u0085b.cue",
		"nul.cue", "sub/CON.cue", "com1.cue", "lpt9.x.cue", "aux/a.cue", "Prn .cue",
		"dir./a.cue", "dir /a.cue", "a\u202eeuc.cue", "\ufeffa.cue", "a\xff.cue",
	} {
		// Nested from the inside out.
		parts := strings.Split(path, "/")
		slices.Reverse(parts)
		node := "100644 " + parts[0] + " " + blob
		for _, dir := range parts[1:] {
			node = "40000 " + dir + " " + r.tree(t, node)
		}
		r.main(t, r.tree(t, node))
		r.refuses(t, repo.Limits{}, repo.ErrPath, fmt.Sprintf("%q", path))
	}
}

func TestOddPathsOfOthersAreLeftAlone(t *testing.T) {
	r := newRaw(t)
	blob := r.blob(t, "x")
	below := r.tree(t, "100644 README "+blob)
	r.main(t, r.tree(t,
		"40000 .. "+below, "40000 .git "+below, `100644 a\b `+blob, "100644 ok.cue "+blob,
		"120000 link "+blob, "160000 module "+blob, "100755 run.cue "+blob, "100664 share.cue "+blob))
	rev := fetch(t, open(t, string(r), repo.Options{}))
	wantContent(t, rev, map[string]string{"ok.cue": "x", "run.cue": "x", "share.cue": "x"})
	if rev.NotFollowed != 2 {
		t.Errorf("%d not followed, want the link and the submodule", rev.NotFollowed)
	}
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	r := newRaw(t)
	blob := r.blob(t, "/etc/passwd")
	r.main(t, r.tree(t, "120000 a.cue "+blob))
	r.refuses(t, repo.Limits{}, repo.ErrPath, "a.cue is a symbolic link")
	r.main(t, r.tree(t, "160000 a.cue "+blob))
	r.refuses(t, repo.Limits{}, repo.ErrPath, "a.cue is a submodule")
}

func TestLargeFileStorageIsRefused(t *testing.T) {
	o := newOrigin(t, map[string]string{"big.cue": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"})
	rev := fetch(t, open(t, o.bare, repo.Options{}))
	if _, err := rev.Read("big.cue"); !errors.Is(err, repo.ErrPath) || !strings.Contains(err.Error(), "big.cue is a pointer into Git LFS") {
		t.Errorf("%v", err)
	}
}

func TestLimits(t *testing.T) {
	r := newRaw(t)
	small, big := r.blob(t, "0123456789"), r.blob(t, strings.Repeat("x", 1<<20+1))
	r.main(t, r.tree(t, "100644 a.cue "+small, "100644 video.mp4 "+big))
	wantContent(t, fetch(t, open(t, string(r), repo.Options{})), map[string]string{"a.cue": "0123456789"})
	r.refuses(t, repo.Limits{File: 9}, repo.ErrLimit, "a.cue: over the limit: 10 bytes, and at most 9 bytes")
	r.refuses(t, repo.Limits{Bytes: 50}, repo.ErrLimit, "more than 50 bytes")
	r.main(t, r.tree(t, "100644 a.cue "+big))
	r.refuses(t, repo.Limits{}, repo.ErrLimit, "at most 1 MiB")
	r.main(t, r.tree(t, "100644 a.cue "+small, "100644 b.cue "+small, "100644 c.cue "+small))
	r.refuses(t, repo.Limits{Files: 2}, repo.ErrLimit, "3 *.cue files, and at most 2")

	// Folders that multiply: ten entries on each of thirty levels.
	for _, leaf := range []string{"README", "a.cue"} {
		node := r.tree(t, "100644 "+leaf+" "+small)
		for range 30 {
			var entries []string
			for i := range 10 {
				entries = append(entries, fmt.Sprintf("40000 d%d %s", i, node))
			}
			node = r.tree(t, entries...)
		}
		r.main(t, r.tree(t, "40000 all "+node, "100644 z.cue "+small))
		if leaf == "README" {
			wantContent(t, fetch(t, open(t, string(r), repo.Options{})), map[string]string{"z.cue": "0123456789"})
		} else {
			r.refuses(t, repo.Limits{}, repo.ErrLimit, "files")
		}
	}
	node := r.tree(t, "100644 a.cue "+small)
	for range 100 {
		node = r.tree(t, "40000 d "+node)
	}
	r.main(t, node)
	r.refuses(t, repo.Limits{}, repo.ErrLimit, "64 deep")
	r.main(t, r.tree(t, "120000 l "+small, "100644 "+strings.Repeat("n", 17<<20)+" "+small))
	r.refuses(t, repo.Limits{}, repo.ErrLimit, "17.0 MiB")
}

func TestDamageIsNoAbsence(t *testing.T) {
	nowhere := strings.Repeat("ab", 20)
	tests := map[string]struct {
		make func(r raw, blob string)
		says string
	}{
		"no commit": {func(r raw, _ string) { r.point(t, nowhere) }, "missing: " + nowhere},
		"no tree":   {func(r raw, _ string) { r.main(t, nowhere) }, "missing: " + nowhere},
		"no folder": {func(r raw, blob string) {
			r.main(t, r.tree(t, "100644 a.cue "+blob, "40000 dir "+nowhere))
		}, "missing: " + nowhere},
		"no file": {func(r raw, blob string) {
			r.main(t, r.tree(t, "100644 a.cue "+blob, "100644 b.cue "+nowhere))
		}, "b.cue: "},
		"commit is a file":  {func(r raw, blob string) { r.point(t, blob) }, "is a blob, not a commit"},
		"commit is nothing": {func(r raw, blob string) { r.point(t, r.object(t, "commit", "")) }, ""},
		"tree is a file":    {func(r raw, blob string) { r.main(t, blob) }, "is a blob, not a tree"},
		"folder is a file": {func(r raw, blob string) {
			r.main(t, r.tree(t, "40000 dir "+blob))
		}, "is a blob, not a tree"},
		"twice": {func(r raw, blob string) {
			r.main(t, r.tree(t, "100644 a.cue "+blob, "100644 a.cue "+blob))
		}, "a.cue stands twice"},
		"out of order": {func(r raw, blob string) {
			r.main(t, r.tree(t, "100644 b.cue "+blob, "100644 a.cue "+blob))
		}, "out of order"},
		"slash": {func(r raw, blob string) {
			r.main(t, r.tree(t, "100644 a/../../b.cue "+blob))
		}, "no proper name"},
		"no name":    {func(r raw, blob string) { r.main(t, r.tree(t, "100644  "+blob)) }, "no proper name"},
		"mode":       {func(r raw, blob string) { r.main(t, r.tree(t, "777777 a.cue "+blob)) }, "mode"},
		"no mode":    {func(r raw, blob string) { r.main(t, r.tree(t, "x a.cue "+blob)) }, "mode"},
		"cut off":    {func(r raw, blob string) { r.main(t, r.object(t, "tree", "100644 a.cue\x00short")) }, "cut off"},
		"only text":  {func(r raw, blob string) { r.main(t, r.object(t, "tree", "hello")) }, "no mode"},
		"not zlib":   {func(r raw, blob string) { r.loose(t, blob, []byte("hello")) }, "a.cue"},
		"empty":      {func(r raw, blob string) { r.loose(t, blob, nil) }, "a.cue"},
		"no header":  {func(r raw, blob string) { r.loose(t, blob, deflate(strings.Repeat("x", 1<<20))) }, "no header"},
		"odd type":   {func(r raw, blob string) { r.loose(t, blob, deflate("blub 1\x00x")) }, "a.cue"},
		"odd size":   {func(r raw, blob string) { r.loose(t, blob, deflate("blob -1\x00x")) }, "size"},
		"other size": {func(r raw, blob string) { r.loose(t, blob, deflate("blob 99999999999999999999\x00x")) }, "size"},
		"head cut":   {func(r raw, blob string) { r.loose(t, blob, deflate("blob 1\x00x")[:5]) }, "a.cue"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRaw(t)
			blob := r.blob(t, "x")
			r.main(t, r.tree(t, "100644 a.cue "+blob))
			test.make(r, blob)
			r.refuses(t, repo.Limits{}, repo.ErrCorrupt, test.says)
		})
	}
}

func TestDamagedFileIsNotRead(t *testing.T) {
	r := newRaw(t)
	blob := r.blob(t, "right")
	r.main(t, r.tree(t, "100644 a.cue "+blob))
	for name, test := range map[string]struct {
		loose []byte
		says  string
	}{
		"other text": {deflate("blob 5\x00wrong"), "does not match its hash"},
		"longer":     {deflate("blob 5\x00right and more"), "longer than it says"},
		"shorter":    {deflate("blob 5\x00r"), "cut off"},
		"other type": {deflate("tree 5\x00right"), "is a tree, not a blob"},
		"bomb":       {deflate("blob 5\x00" + strings.Repeat("x", 100<<20)), "longer than it says"},
		"gone":       {nil, "missing"},
	} {
		rev := fetch(t, open(t, string(r), repo.Options{}))
		r.loose(t, blob, test.loose)
		if test.loose == nil {
			os.Remove(filepath.Join(string(r), "objects", blob[:2], blob[2:]))
		}
		text, err := rev.Read("a.cue")
		if text != nil || !errors.Is(err, repo.ErrCorrupt) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "a.cue: ") {
			t.Errorf("%s: read %q, %v; want %q", name, text, err, test.says)
		}
		r.blob(t, "right")
		if text, err := rev.Read("a.cue"); string(text) != "right" {
			t.Errorf("%s: mended, and still: %v", name, err)
		}
	}
}

func TestRepositoryThatIsGone(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": ""})
	s := open(t, o.bare, repo.Options{})
	fetch(t, s)
	if err := os.Rename(o.bare, o.bare+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context()); err == nil || errors.Is(err, repo.ErrNoBranch) || errors.Is(err, repo.ErrEmpty) {
		t.Errorf("a repository that is gone: %v", err)
	}
}

// A pack with any one byte changed gives what was committed, or an error.
func TestDamagedPacks(t *testing.T) {
	files := make(map[string]string)
	for i := range 30 {
		files[fmt.Sprintf("r%02d.cue", i)] = strings.Repeat(fmt.Sprintf("line of %d\n", i%3), 30) + fmt.Sprint(i)
	}
	o := newOrigin(t, files)
	git(t, o.bare, "gc", "-q", "--prune=now")
	paths, err := filepath.Glob(filepath.Join(o.bare, "objects/pack/pack-*.*"))
	if err != nil || len(paths) < 2 {
		t.Fatal(paths, err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	damaged, refused := 0, 0
	for _, path := range paths {
		if ext := filepath.Ext(path); ext != ".pack" && ext != ".idx" {
			continue
		}
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			bad := slices.Clone(good)
			switch {
			case i < 20:
				bad = bad[:random.IntN(len(bad))]
			default:
				bad[random.IntN(len(bad))] ^= byte(1 + random.IntN(255))
			}
			if err := os.WriteFile(path, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			damaged++
			err := func() error {
				s, err := repo.Open(o.bare, repo.Options{})
				if err != nil {
					return err
				}
				defer s.Close()
				rev, err := s.Fetch(t.Context())
				if err != nil {
					return err
				}
				if len(rev.Files()) != len(files) {
					t.Fatalf("%d files of %d", len(rev.Files()), len(files))
				}
				for _, f := range rev.Files() {
					text, err := rev.Read(f.Path)
					if err != nil {
						return err
					}
					if string(text) != files[f.Path] {
						t.Fatalf("%s is %q", f.Path, text)
					}
				}
				return nil
			}()
			if err != nil {
				refused++
			}
			if err != nil && !errors.Is(err, repo.ErrCorrupt) && !errors.Is(err, repo.ErrLimit) {
				t.Fatalf("damage %d of %s: %v", i, filepath.Ext(path), err)
			}
		}
		if err := os.WriteFile(path, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if refused < damaged/4 {
		t.Errorf("of %d damaged packs %d were refused", damaged, refused)
	}
}

// However much a small pack unpacks to, memory stays bounded.
func TestDeltaBomb(t *testing.T) {
	r := newRaw(t)
	// Git itself makes a small delta of a large file that was appended to.
	big := strings.Repeat("0123456789abcdef", 24<<20/16)
	one, two := r.blob(t, big), r.blob(t, big+"more")
	r.main(t, r.tree(t, "100644 a.cue "+one, "100644 b.cue "+two))
	git(t, string(r), "-c", "core.bigFileThreshold=1g", "-c", "pack.threads=1", "repack", "-a", "-d", "-q", "-f")
	git(t, string(r), "prune")
	if stats := git(t, string(r), "count-objects", "-v"); !strings.Contains(stats, "size-pack: ") || strings.Contains(stats, "count: 1") {
		t.Fatalf("not packed: %s", stats)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r.refuses(t, repo.Limits{File: 1 << 30, Bytes: 1 << 20}, repo.ErrLimit, "more than 1 MiB")
	rev := fetch(t, open(t, string(r), repo.Options{Limits: repo.Limits{File: 1 << 30, Bytes: 1 << 30}}))
	for _, f := range rev.Files() {
		if _, err := rev.Read(f.Path); !errors.Is(err, repo.ErrLimit) {
			t.Errorf("%s: %v", f.Path, err)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
		t.Errorf("%d MiB were allocated", used>>20)
	}
}

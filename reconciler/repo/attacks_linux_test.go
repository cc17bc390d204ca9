package repo_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// An attack is a repository made to harm who reads it.
type attack struct {
	// make turns a new repository into it. It may point at outside, a folder that
	// has secrets in it and is not the repository's.
	make func(t *testing.T, r raw, outside string)
	// pack is what a server sends; without it that is all of make's repository.
	pack func(t *testing.T) (head string, pack []byte)
	// refs are what a server lists before main; nil for nothing.
	refs func() []string
	// borrowed is a folder below outside that objects may be looked for in.
	borrowed string
	limits   repo.Limits
	// What becomes of the repository read here, and of the same over HTTP; nil when
	// the attack is none there.
	local, http *outcome
}

// An outcome is files by path, or an error.
type outcome struct {
	files map[string]string
	is    error
	says  string
}

func gives(files ...string) *outcome {
	o := &outcome{files: make(map[string]string)}
	for i := 0; i < len(files); i += 2 {
		o.files[files[i]] = files[i+1]
	}
	return o
}

func fails(is error, says string) *outcome { return &outcome{is: is, says: says} }

func (o *outcome) check(t *testing.T, got reading) {
	t.Helper()
	if strings.ContainsFunc(got.Error, unicode.IsControl) {
		t.Errorf("error is not one line: %q", got.Error)
	}
	if o.is == nil && o.says == "" {
		if got.Error != "" || !maps.Equal(got.Files, o.files) {
			t.Errorf("it has\n%serror %q; want\n%s", lines(got.Files), got.Error, lines(o.files))
		}
		return
	}
	if o.is != nil && !slices.Contains(got.Is, o.is.Error()) || !strings.Contains(got.Error, o.says) {
		t.Errorf("error %.300q is %q; want %q, saying %q", got.Error, got.Is, o.is, o.says)
	}
}

// both is an attack whose outcome is the same here and over HTTP.
func both(o *outcome, make func(t *testing.T, r raw, outside string)) attack {
	return attack{make: make, local: o, http: o}
}

// named is one file at a path that no file should have.
func named(path string, o *outcome) attack {
	return both(o, func(t *testing.T, r raw, _ string) {
		parts := strings.Split(path, "/")
		slices.Reverse(parts)
		node := "100644 " + parts[0] + " " + r.blob(t, "x")
		for _, dir := range parts[1:] {
			node = "40000 " + dir + " " + r.tree(t, node)
		}
		r.main(t, r.tree(t, node))
	})
}

// here is an attack by what lies in a repository's folder, and is not served.
func here(o *outcome, make func(t *testing.T, r raw, outside string)) attack {
	return attack{make: func(t *testing.T, r raw, outside string) {
		r.main(t, r.tree(t, "100644 ok.cue "+r.blob(t, "ok")))
		make(t, r, outside)
	}, local: o}
}

var fine = gives("ok.cue", "ok")

// What any repository may do to the process that reads it is bounded: it opens only
// files of the repository and of the cache, changes only the cache, runs nothing,
// reaches nobody else, stays small, ends soon, and can then read a good one.
func TestHostileReposAreHarmless(t *testing.T) {
	goodFiles := map[string]string{"good.cue": "good"}
	good := newOrigin(t, goodFiles)
	goodDir, err := filepath.EvalSymlinks(good.bare)
	if err != nil {
		t.Fatal(err)
	}
	sent := newFleet(t, []string{"100644 good.cue " + hex.EncodeToString(repo.BlobHash("good"))}, nil, repo.Packed{Kind: 3, Text: "good"})
	goodURL := serve(t, packServer(nil, sent.head, sent.pack))

	var mu sync.Mutex
	var most int64
	var longest time.Duration
	t.Cleanup(func() { t.Logf("at most %d MiB, and %s", most>>20, longest) })
	for name, a := range attacks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRaw(t)
			dir, err := filepath.EvalSymlinks(filepath.Dir(string(r)))
			if err != nil {
				t.Fatal(err)
			}
			r = raw(filepath.Join(dir, filepath.Base(string(r))))
			cache, outside := filepath.Join(dir, "cache"), filepath.Join(dir, "outside")
			secrets := []string{"secret", "secret.cue", "main", "HEAD", "objects/secret", "objects/ab/secret", "objects/info/secret", "objects/pack/secret"}
			for _, path := range secrets {
				write(t, filepath.Join(outside, path), canary+"\n", 0o644)
			}
			write(t, filepath.Join(dir, ".git"), "gitdir: "+canary+"\n", 0o644)

			do := task{CacheDir: cache, Limits: a.limits}
			f := fence{write: []string{cache}, read: []string{goodDir}, reach: []string{strings.TrimPrefix(goodURL, "http://")}}
			if a.borrowed != "" {
				f.borrow = filepath.Join(outside, a.borrowed)
			}
			var want []*outcome
			if a.make != nil {
				a.make(t, r, outside)
			}
			if a.local != nil {
				want, do.Sources = append(want, a.local), append(do.Sources, string(r))
				f.read = append(f.read, string(r))
			}
			if a.http != nil {
				url := serve(t, a.server(t, r))
				want, do.Sources = append(want, a.http), append(do.Sources, url+"/fleet.git")
				f.reach = append(f.reach, strings.TrimPrefix(url, "http://"))
			}
			do.Good = []string{goodDir, goodURL + "/good.git"}
			want = append(want, &outcome{files: goodFiles}, &outcome{files: goodFiles})

			got, left := traced(t, do, f)
			for _, why := range left {
				t.Errorf("the reader %s", why)
			}
			if len(got.Readings) != len(want) {
				t.Fatalf("%d readings of %d", len(got.Readings), len(want))
			}
			mu.Lock()
			defer mu.Unlock()
			for i, r := range got.Readings {
				want[i].check(t, r)
				if r.Took > time.Minute {
					t.Errorf("it took %s", r.Took)
				}
				longest = max(longest, r.Took)
			}
			if got.PeakRSS > 512<<20 {
				t.Errorf("it took %d MiB of memory", got.PeakRSS>>20)
			}
			most = max(most, got.PeakRSS)
			t.Logf("%d MiB, %s", got.PeakRSS>>20, got.Readings[0].Took)
			if _, err := os.Lstat(filepath.Join(outside, "ran")); err == nil {
				t.Error("a program was run")
			}
		})
	}
}

// server sends the attack over HTTP.
func (a attack) server(t *testing.T, r raw) http.Handler {
	var refs []string
	if a.refs != nil {
		refs = a.refs()
	}
	if a.pack != nil {
		head, pack := a.pack(t)
		return packServer(refs, head, pack)
	}
	head, pack := r.all(t)
	return packServer(refs, head, pack)
}

func attacks() map[string]attack {
	all := map[string]attack{
		"link to a file": both(fails(repo.ErrPath, "a.cue is a symbolic link"), func(t *testing.T, r raw, _ string) {
			r.main(t, r.tree(t, "120000 a.cue "+r.blob(t, "/etc/passwd")))
		}),
		"link out of the repository": both(fails(repo.ErrPath, "a.cue is a symbolic link"), func(t *testing.T, r raw, _ string) {
			r.main(t, r.tree(t, "120000 a.cue "+r.blob(t, "../outside/secret.cue")))
		}),
		"link to a folder": both(fine, func(t *testing.T, r raw, outside string) {
			r.main(t, r.tree(t, "120000 etc "+r.blob(t, "/etc"), "100644 ok.cue "+r.blob(t, "ok"), "120000 outside "+r.blob(t, outside)))
		}),
		"link and folder of one name": both(gives("dir/a.cue", "x"), func(t *testing.T, r raw, outside string) {
			r.main(t, r.tree(t, "120000 dir "+r.blob(t, outside), "40000 dir "+r.tree(t, "100644 a.cue "+r.blob(t, "x"))))
		}),
		"name ..":           named("../a.cue", fails(repo.ErrPath, `"../a.cue"`)),
		"name .":            named("./a.cue", fails(repo.ErrPath, `"./a.cue"`)),
		"name .git":         named(".git/hooks/a.cue", fails(repo.ErrPath, "goes through .git")),
		"name .GIT":         named(".GIT/a.cue", fails(repo.ErrPath, "goes through .git")),
		"name git~1":        named("git~1/a.cue", fails(repo.ErrPath, "goes through .git")),
		"name with /":       both(fails(repo.ErrCorrupt, "no proper name"), func(t *testing.T, r raw, _ string) { r.main(t, r.tree(t, "100644 ../../a.cue "+r.blob(t, "x"))) }),
		"name with \\":      named(`..\..\a.cue`, fails(repo.ErrPath, "backslash")),
		"device con":        named("CON/a.cue", fails(repo.ErrPath, "device")),
		"device nul":        named("NUL.cue", fails(repo.ErrPath, "device")),
		"device aux":        named("aux.cue", fails(repo.ErrPath, "device")),
		"name with CR":      named("a\r.cue", fails(repo.ErrPath, "control character")),
		"name with LF":      named("a\n.cue", fails(repo.ErrPath, "control character")),
		"name with escapes": named("\x1b[2J\x07\x7f.cue", fails(repo.ErrPath, "control character")),
		"name of 64 KiB":    named(strings.Repeat("n", 64<<10)+".cue", gives(strings.Repeat("n", 64<<10)+".cue", "x")),
		"submodules": both(fine, func(t *testing.T, r raw, outside string) {
			modules := "[submodule \"a\"]\n\tpath = a\n\turl = file://" + outside + "\n[submodule \"b\"]\n\tpath = b\n\turl = ext::touch " + outside + "/ran\n\tupdate = !touch " + outside + "/ran\n"
			r.main(t, r.tree(t, "100644 .gitmodules "+r.blob(t, modules), "160000 a "+strings.Repeat("ab", 20), "160000 b "+strings.Repeat("cd", 20), "100644 ok.cue "+r.blob(t, "ok")))
		}),
		"submodule for a file": both(fails(repo.ErrPath, "a.cue is a submodule"), func(t *testing.T, r raw, _ string) {
			r.main(t, r.tree(t, "160000 a.cue "+strings.Repeat("ab", 20)))
		}),
		"large file storage": both(fails(repo.ErrPath, "a.cue is a pointer into Git LFS"), func(t *testing.T, r raw, _ string) {
			r.main(t, r.tree(t, "100644 .lfsconfig "+r.blob(t, "[lfs]\n\turl = http://127.0.0.1:9/\n"),
				"100644 a.cue "+r.blob(t, "version https://git-lfs.github.com/spec/v1\noid sha256:"+strings.Repeat("0", 64)+"\nsize 5\n")))
		}),
		"filters and attributes": both(fine, func(t *testing.T, r raw, outside string) {
			evil := "touch " + outside + "/ran"
			git(t, string(r), "config", "filter.evil.smudge", evil)
			git(t, string(r), "config", "filter.evil.process", evil)
			r.main(t, r.tree(t, "100644 .gitattributes "+r.blob(t, "* filter=evil text eol=crlf ident working-tree-encoding=UTF-16\n"), "100644 ok.cue "+r.blob(t, "ok")))
		}),
		"settings that run and include": both(fine, func(t *testing.T, r raw, outside string) {
			evil := "touch " + outside + "/ran"
			for _, set := range [][2]string{
				{"core.fsmonitor", evil}, {"core.hooksPath", outside}, {"core.sshCommand", evil}, {"core.pager", evil}, {"core.askPass", evil},
				{"core.worktree", outside}, {"core.attributesFile", outside + "/secret"}, {"core.excludesFile", outside + "/secret"},
				{"include.path", outside + "/secret"}, {"includeIf.gitdir:/.path", outside + "/secret"},
				{"url.file://" + outside + "/.insteadOf", "http://"}, {"credential.helper", "!" + evil}, {"http.cookieFile", outside + "/secret"},
				{"uploadpack.packObjectsHook", evil}, {"gpg.program", evil}, {"diff.external", evil}, {"remote.origin.url", "ext::" + evil}, {"remote.origin.vcs", "evil"},
			} {
				git(t, string(r), "config", set[0], set[1])
			}
			r.main(t, r.tree(t, "100644 ok.cue "+r.blob(t, "ok")))
		}),
		"hooks": both(fine, func(t *testing.T, r raw, outside string) {
			for _, hook := range []string{"post-checkout", "post-merge", "fsmonitor-watchman", "pre-auto-gc", "post-index-change", "reference-transaction", "post-rewrite", "update"} {
				write(t, filepath.Join(string(r), "hooks", hook), "#!/bin/sh\ntouch "+outside+"/ran\n", 0o755)
			}
			r.main(t, r.tree(t, "100644 ok.cue "+r.blob(t, "ok")))
		}),
		"grafts, shallow and replaced": both(fine, func(t *testing.T, r raw, _ string) {
			other := r.main(t, r.tree(t, "100644 evil.cue "+r.blob(t, "evil")))
			good := r.main(t, r.tree(t, "100644 ok.cue "+r.blob(t, "ok")))
			write(t, filepath.Join(string(r), "refs/replace", good), other+"\n", 0o644)
			write(t, filepath.Join(string(r), "info/grafts"), good+" "+other+"\n", 0o644)
			write(t, filepath.Join(string(r), "shallow"), good+"\n", 0o644)
		}),
		"a million files": both(fails(repo.ErrLimit, "files"), func(t *testing.T, r raw, _ string) {
			r.main(t, wide(t, r, ".cue"))
		}),
		"a million other files": {local: fine, make: func(t *testing.T, r raw, _ string) {
			r.main(t, wide(t, r, ""))
		}},
		"folders of nothing but entries": both(fine, func(t *testing.T, r raw, _ string) {
			entry := treeText(t, "100644 a "+r.blob(t, "x"))
			var top []string
			for i := range 3 {
				top = append(top, fmt.Sprintf("40000 d%d %s", i, r.object(t, "tree", strings.Repeat(entry, (16<<20)/len(entry)-i))))
			}
			r.main(t, r.tree(t, append(top, "100644 ok.cue "+r.blob(t, "ok"))...))
		}),
		"folders of folders": both(fails(repo.ErrLimit, "files"), func(t *testing.T, r raw, _ string) {
			r.main(t, deep(t, r, "100644 a.cue"))
		}),
		"folders of folders of other files": both(fine, func(t *testing.T, r raw, _ string) {
			r.main(t, deep(t, r, "100644 README"))
		}),
		"links without end": both(fails(repo.ErrLimit, "files"), func(t *testing.T, r raw, _ string) {
			r.main(t, deep(t, r, "120000 link"))
		}),
	}
	maps.Copy(all, bombs())
	maps.Copy(all, folders())
	maps.Copy(all, packs())
	return all
}

// wide is a tree of ten folders with a hundred thousand files each, and of ok.cue.
func wide(t *testing.T, r raw, extension string) string {
	const digits = "000000"
	blob := r.blob(t, "x")
	entry := []byte(treeText(t, "100644 "+digits+extension+" "+blob))
	number := entry[len("100644 "):][:len(digits)]
	var top []string
	for i := range 10 {
		var text bytes.Buffer
		for range 100_000 {
			text.Write(entry)
			for k := len(number) - 1; k >= 0; k-- { // one more
				if number[k]++; number[k] <= '9' {
					break
				}
				number[k] = '0'
			}
		}
		top = append(top, fmt.Sprintf("40000 d%d %s", i, r.object(t, "tree", text.String())))
	}
	return r.tree(t, append(top, "100644 ok.cue "+r.blob(t, "ok"))...)
}

// deep is a tree of thirty levels, on each of which ten names stand for the same
// folder below, and of ok.cue.
func deep(t *testing.T, r raw, leaf string) string {
	node := r.tree(t, leaf+" "+r.blob(t, "x"))
	for range 30 {
		var entries []string
		for i := range 10 {
			entries = append(entries, fmt.Sprintf("40000 d%d %s", i, node))
		}
		node = r.tree(t, entries...)
	}
	return r.tree(t, "40000 all "+node, "100644 ok.cue "+r.blob(t, "ok"))
}

// folders are attacks by what may lie in a repository's own folder. Nobody can
// push this; who unpacks an archive has it.
func folders() map[string]attack {
	const escapes, crosses, gone = "path escapes", "boundary crossed", "repository does not exist"
	all := map[string]attack{
		"HEAD is a link out": here(fails(repo.ErrNotRepository, gone), func(t *testing.T, r raw, outside string) {
			link(t, outside+"/secret", filepath.Join(string(r), "HEAD"))
		}),
		"HEAD points out": here(fine, func(t *testing.T, r raw, _ string) {
			write(t, filepath.Join(string(r), "HEAD"), "ref: ../outside/secret\n", 0o644)
		}),
		"settings are a link out": here(fails(repo.ErrNotRepository, crosses), func(t *testing.T, r raw, outside string) {
			link(t, outside+"/secret", filepath.Join(string(r), "config"))
		}),
		"branch is a link out": here(fails(nil, escapes), func(t *testing.T, r raw, outside string) {
			link(t, outside+"/secret", filepath.Join(string(r), "refs/heads/main"))
		}),
		"branch points out": here(fails(nil, "outside/secret"), func(t *testing.T, r raw, _ string) {
			r.point(t, "ref: refs/../../outside/secret")
		}),
		"branches are a link out": here(fails(nil, escapes), func(t *testing.T, r raw, outside string) {
			link(t, outside, filepath.Join(string(r), "refs/heads"))
		}),
		"packed refs are a link out": here(fails(nil, crosses), func(t *testing.T, r raw, outside string) {
			os.Remove(filepath.Join(string(r), "refs/heads/main"))
			link(t, outside+"/secret", filepath.Join(string(r), "packed-refs"))
		}),
		// As good as borrowing: what is looked for there has the name of its content.
		"objects are a link out": {
			borrowed: "objects", local: fails(repo.ErrCorrupt, "missing"),
			make: func(t *testing.T, r raw, outside string) {
				r.point(t, strings.Repeat("ab", 20))
				link(t, outside+"/objects", filepath.Join(string(r), "objects"))
			},
		},
		"packs are a link out": here(fails(nil, escapes), func(t *testing.T, r raw, outside string) {
			r.point(t, strings.Repeat("ab", 20)) // looked for in packs
			link(t, outside+"/objects/pack", filepath.Join(string(r), "objects/pack"))
		}),
		"object is a link out": here(fails(nil, escapes), func(t *testing.T, r raw, outside string) {
			blob := r.blob(t, "ok")
			link(t, outside+"/secret", filepath.Join(string(r), "objects", blob[:2], blob[2:]))
		}),
		"borrows from outside": {
			borrowed: "objects", local: fails(repo.ErrCorrupt, "missing"),
			make: func(t *testing.T, r raw, outside string) {
				r.point(t, strings.Repeat("ab", 20))
				write(t, filepath.Join(string(r), "objects/info/alternates"), outside+"/objects\n", 0o644)
			},
		},
		"borrows from a file": {
			borrowed: "objects", local: fails(nil, "not a directory"),
			make: func(t *testing.T, r raw, outside string) {
				write(t, filepath.Join(string(r), "objects/info/alternates"), outside+"/objects/secret\n", 0o644)
			},
		},
		"borrows by a link out": here(fails(nil, escapes), func(t *testing.T, r raw, outside string) {
			link(t, outside+"/secret", filepath.Join(string(r), "objects/info/alternates"))
		}),
		"borrows from itself": here(fine, func(t *testing.T, r raw, _ string) {
			self := filepath.Join(string(r), "objects")
			write(t, filepath.Join(self, "info/alternates"), strings.Repeat(self+"\n../objects\n", 500), 0o644)
		}),
		"another repository's commondir": here(fine, func(t *testing.T, r raw, outside string) {
			write(t, filepath.Join(string(r), "commondir"), outside+"\n", 0o644)
			write(t, filepath.Join(string(r), "gitdir"), outside+"\n", 0o644)
		}),
		"no HEAD": here(fails(repo.ErrNotRepository, "has neither HEAD"), func(t *testing.T, r raw, _ string) {
			os.Remove(filepath.Join(string(r), "HEAD"))
		}),
		"a pipe for .git": here(fails(repo.ErrNotRepository, "has neither HEAD"), func(t *testing.T, r raw, _ string) {
			os.Remove(filepath.Join(string(r), "HEAD"))
			if err := syscall.Mkfifo(filepath.Join(string(r), ".git"), 0o600); err != nil {
				t.Fatal(err)
			}
		}),
		"hostile packed refs": here(fine, func(t *testing.T, r raw, _ string) {
			head := git(t, string(r), "rev-parse", "main")
			os.Remove(filepath.Join(string(r), "refs/heads/main"))
			evil := strings.Repeat("ab", 20)
			write(t, filepath.Join(string(r), "packed-refs"), "# pack-refs with: peeled fully-peeled sorted\n"+
				evil+" refs/heads/../../outside/secret\n"+evil+" refs/heads/\x1b[2J\n"+evil+" /etc/passwd\n"+evil+" refs/heads/main.lock\n"+
				head+" refs/heads/main\n^"+evil+"\n", 0o644)
		}),
		"damaged packed refs": here(fails(nil, "packed-ref"), func(t *testing.T, r raw, _ string) {
			os.Remove(filepath.Join(string(r), "refs/heads/main"))
			write(t, filepath.Join(string(r), "packed-refs"), "\x00\xff no refs at all\n"+strings.Repeat("x", 1<<20), 0o644)
		}),
		"an empty branch over a packed one": here(fails(repo.ErrCorrupt, "refs/heads/main is"), func(t *testing.T, r raw, _ string) {
			git(t, string(r), "pack-refs", "--all")
			write(t, filepath.Join(string(r), "refs/heads/main"), "", 0o644)
		}),
		"branches that hide": here(fails(repo.ErrNoBranch, "has no branch"), func(t *testing.T, r raw, _ string) {
			head := git(t, string(r), "rev-parse", "main")
			os.Remove(filepath.Join(string(r), "refs/heads/main"))
			for _, name := range []string{"main ", "\x1b[2Jmain", "ma\nin", "main\u202e", "..main", "MAIN"} {
				write(t, filepath.Join(string(r), "refs/heads", name), head+"\n", 0o644)
			}
		}),
	}
	for _, file := range []struct {
		name        string
		never, huge *outcome
	}{
		{"HEAD", fails(repo.ErrNotRepository, gone), fails(repo.ErrNotRepository, gone)},
		{"config", fails(nil, "not an ordinary file"), fails(repo.ErrLimit, "600 MiB")},
		{"refs/heads/main", fails(nil, "not an ordinary file"), fails(repo.ErrLimit, "600 MiB")},
		{"packed-refs", fails(nil, "not an ordinary file"), fails(repo.ErrLimit, "600 MiB")},
		{"objects/info/alternates", fails(nil, "not an ordinary file"), fails(repo.ErrLimit, "600 MiB")},
		{"object", fails(nil, "not an ordinary file"), fails(repo.ErrCorrupt, "zlib")},
	} {
		path := func(t *testing.T, r raw) string {
			path := filepath.Join(string(r), file.name)
			if file.name == "object" {
				blob := r.blob(t, "ok")
				path = filepath.Join(string(r), "objects", blob[:2], blob[2:])
			}
			os.Remove(path)
			if file.name == "packed-refs" {
				os.Remove(filepath.Join(string(r), "refs/heads/main"))
			}
			return path
		}
		all[file.name+" never ends"] = here(file.never, func(t *testing.T, r raw, _ string) {
			if err := syscall.Mkfifo(path(t, r), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		all[file.name+" is huge"] = here(file.huge, func(t *testing.T, r raw, _ string) {
			path := path(t, r)
			write(t, path, "", 0o644)
			if err := os.Truncate(path, huge); err != nil { // a hole
				t.Fatal(err)
			}
		})
	}
	return all
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
		t.Fatal(err)
	}
}

// link replaces a path by a link.
func link(t *testing.T, target, path string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
		t.Fatal(err)
	}
}

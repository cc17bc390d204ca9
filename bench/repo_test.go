package bench

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// BenchmarkFetch reads 10,000 files from a bare repository: all of them for the
// first time, and after a push that changed one.
func BenchmarkFetch(b *testing.B) {
	const files = 10_000
	layouts := map[string]func(i int) string{
		"flat": func(i int) string { return fmt.Sprintf("routes/r%05d.cue", i) },
		"deep": func(i int) string { return fmt.Sprintf("teams/t%02d/routes/s%02d/r%05d.cue", i%50, i/50%20, i) },
	}
	for name, path := range layouts {
		for _, packed := range []bool{false, true} {
			dir := filepath.Join(b.TempDir(), "fleet.git")
			gitFast(b, "", nil, "init", "-q", "--bare", "--initial-branch=main", dir)
			var stream bytes.Buffer
			stream.WriteString("commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 3\nall\n")
			for i := range files {
				fmt.Fprintf(&stream, "M 100644 inline %s\n", path(i))
				data(&stream, route(i, 0))
			}
			fastImport(b, dir, stream.Bytes())
			if packed {
				gitFast(b, dir, nil, "gc", "-q")
			}
			name := fmt.Sprintf("%s/packed=%t", name, packed)
			b.Run(name+"/first", func(b *testing.B) {
				for b.Loop() {
					source, err := repo.Open(dir, repo.Options{})
					if err != nil {
						b.Fatal(err)
					}
					rev, err := source.Fetch(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					for _, f := range rev.Files() {
						if _, err := rev.Read(f.Path); err != nil {
							b.Fatal(err)
						}
					}
					if len(rev.Files()) != files {
						b.Fatalf("%d files", len(rev.Files()))
					}
					source.Close()
				}
			})
			b.Run(name+"/one-changed", func(b *testing.B) {
				source, err := repo.Open(dir, repo.Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer source.Close()
				last, err := source.Fetch(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				version := 0
				for b.Loop() {
					b.StopTimer()
					version++
					var stream bytes.Buffer
					fmt.Fprintf(&stream, "commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 3\none\nfrom refs/heads/main^0\nM 100644 inline %s\n", path(1234))
					data(&stream, route(1234, version))
					fastImport(b, dir, stream.Bytes())
					b.StartTimer()
					rev, err := source.Fetch(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					if _, err := rev.Read(path(1234)); err != nil {
						b.Fatal(err)
					}
					if rev.Commit == last.Commit {
						b.Fatal("the change was not seen")
					}
					last = rev
				}
			})
		}
	}
}

func route(i, version int) string {
	return fmt.Sprintf("package fleet\n\nroute: r%05d: {\n\thost: \"r%05d.example.com\"\n\torigin: \"o%02d\"\n\tservice: \"http://localhost:%d\"\n}\n", i, i, i%20, 8000+version)
}

func data(b *bytes.Buffer, text string) { fmt.Fprintf(b, "data %d\n%s\n", len(text), text) }

// fastImport writes loose objects where it can, as a small push does.
func fastImport(b *testing.B, dir string, stream []byte) {
	b.Helper()
	gitFast(b, dir, stream, "-c", "fastimport.unpackLimit=100000", "fast-import", "--quiet", "--force")
}

func gitFast(b *testing.B, dir string, stdin []byte, args ...string) {
	b.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

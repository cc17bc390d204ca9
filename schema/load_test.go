package schema

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the wanted parts of testdata")

// memory is a Tree of path and text.
type memory map[string]string

func (m memory) Files() []File {
	var out []File
	for p, text := range m {
		out = append(out, File{Path: p, Hash: blobHash([]byte(text))})
	}
	return out
}

func (m memory) Read(p string) ([]byte, error) {
	text, ok := m[p]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(text), nil
}

// today is the clock of all tests.
var today = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func newLoader(t testing.TB, o Options) *Loader {
	t.Helper()
	o.Now = func() time.Time { return today }
	l := NewLoader(o)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// baseFleet is what a case has when it brings no fleet.cue of its own.
const baseFleet = `package fleet

fleet: {
	name:    "demo"
	domains: ["kokoa.test"]
	network: "10.86.0.0/16"
	dns: provider: "builtin"
}
edge: tokyo: {
	addresses:      ["203.0.113.10"]
	endpoint:       "203.0.113.10:51820"
	tunnel_address: "10.86.0.16"
}
edge: osaka: {
	addresses:      ["203.0.113.20"]
	endpoint:       "203.0.113.20:51820"
	tunnel_address: "10.86.0.17"
}
origin: vm1: {
	public_key:     "rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg="
	tunnel_address: "10.86.1.2"
}
`

// TestLoad loads each testdata/load/*.txtar and compares what a user is told
// with the part "want"; a repo without mistakes says only "loaded".
func TestLoad(t *testing.T) {
	cases, err := filepath.Glob("testdata/load/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("find cases: %v, %d found", err, len(cases))
	}
	l := newLoader(t, Options{})
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			tree := memory{"fleet.cue": baseFleet}
			want := -1
			for i, f := range archive.Files {
				if f.Name == "want" {
					want = i
					continue
				}
				tree[f.Name] = string(f.Data)
			}
			got := told(t, l, tree)
			if *update {
				if want < 0 {
					want = len(archive.Files)
					archive.Files = append(archive.Files, txtar.File{Name: "want"})
				}
				archive.Files[want].Data = []byte(got)
				replaceFile(t, path, txtar.Format(archive))
				return
			}
			if want < 0 {
				t.Fatal("the case has no part want; run: go test -update")
			}
			if text := string(archive.Files[want].Data); got != text {
				t.Errorf("told:\n%s\nwant:\n%s", got, text)
			}
		})
	}
}

// told is what a user reads after loading the tree.
func told(t *testing.T, l *Loader, tree Tree) string {
	t.Helper()
	f, diagnostics, err := l.Load(context.Background(), tree)
	var mistakes Diagnostics
	var out bytes.Buffer
	switch {
	case errors.As(err, &mistakes):
		if f != nil {
			t.Error("a fleet came with errors")
		}
		diagnostics = mistakes
	case err != nil:
		t.Fatal(err)
	default:
		out.WriteString("loaded\n")
	}
	if err := diagnostics.Text(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func replaceFile(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

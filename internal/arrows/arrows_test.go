// Package arrows guards which package may use which: read the tables below as the
// reasons why the programs are cut as they are.
package arrows_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kokoa-proxy/kokoa"

// ban is one arrow that must not be. Packages of this module are written without
// the module's path; "x/..." is x and all below it.
type ban struct {
	from string
	to   []string
	// but is what to covers and is allowed all the same.
	but []string
	why string
}

// links are packages that must not be in the program, however they would get there.
var links = []ban{
	{"cmd/kokoa-edge", heavy, nil, "the part that faces the internet stays small and runs alone"},
	{"cmd/kokoa-agent", heavy, nil, "the agent is small, and holds no credentials"},
	{"edge/...", heavy, nil, "the part that faces the internet stays small and runs alone"},
	{"edge/...", []string{"fleet", "agent/..."}, nil, "an edge knows its own config and not the fleet"},
	{"edge/api", []string{"edge/...", "golang.zx2c4.com/...", "github.com/pires/..."}, []string{"edge/api", "edge/route"}, "the reconciler and the agent import it"},
	{"agent/...", heavy, nil, "the agent is small, and holds no credentials"},
	{"agent/...", []string{"edge/...", "fleet"}, []string{"edge/api", "edge/route"}, "an agent obeys signed config; it is no edge"},
	{"join", []string{module + "/..."}, []string{"join", "keys", "edge/api", "edge/route"}, "both ends of a registration use it"},
	{"registrar/forge/...", []string{module + "/..."}, []string{"registrar/forge/...", "keys"}, "a forge knows of files and branches, not of what they mean"},
	{"registrar/...", []string{"edge/...", "agent/...", "tunnel/...", "reconciler/..."}, []string{"edge/api", "edge/route", "reconciler/repo"}, "registration is beside the reconciler, not in it"},
	{"tunnel/...", []string{"edge/...", "agent/...", "fleet", "reconciler/...", "schema/..."}, nil, "both ends use it"},
	{"fleet", []string{"..."}, []string{"fleet", "keys"}, "everyone imports it"},
	{"keys", []string{"..."}, []string{"keys"}, "everyone imports it"},
	{"schema", []string{module + "/..."}, []string{"schema/...", "fleet", "keys", "internal/atomicfile"}, "a validator must run anywhere, offline"},
	{"reconciler/plan", []string{"..."}, []string{"reconciler/plan"}, "the plan is pure: same input, same bytes"},
	{"reconciler/dns", []string{"reconciler/edges", "reconciler/certs", "reconciler/repo", "schema/..."}, nil, "drivers are independent of each other"},
	{"reconciler/edges", []string{"reconciler/dns/...", "reconciler/certs", "reconciler/repo", "schema/..."}, nil, "drivers are independent of each other"},
	{"reconciler/certs", []string{"reconciler/dns/...", "reconciler/edges", "reconciler/repo", "schema/..."}, nil, "drivers are independent of each other"},
	{"reconciler/repo", []string{module + "/..."}, []string{"reconciler/repo", "schema/...", "fleet", "keys", "internal/atomicfile"}, "the source knows of files, not of what they mean"},
	{"...", []string{"testing", "internal/nettest", "pgregory.net/...", "github.com/rogpeppe/...", "github.com/letsencrypt/pebble/..."}, nil, "the tools of tests stay out of the programs"},
}

// imports are packages that must not be named in another's import lines. What lies
// behind an interface may still be linked.
var imports = []ban{
	{"...", []string{"cmd/..."}, nil, "wiring is a leaf"},
	{"reconciler", []string{"github.com/go-git/...", "github.com/caddyserver/...", "github.com/miekg/...", "cuelang.org/...", "golang.zx2c4.com/..."}, nil, "vendors stay behind interfaces"},
	{"reconciler/plan", []string{"net/...", "os/...", "time"}, nil, "the plan is pure: same input, same bytes"},
	{"fleet", []string{"os/...", "net/http", "net"}, nil, "nouns do nothing"},
}

// heavy is the control plane's.
var heavy = []string{
	"reconciler/...", "schema/...", "registrar/...", "demo/...",
	"github.com/google/go-github/...", "code.gitea.io/...",
	"cuelang.org/...", "github.com/go-git/...", "github.com/caddyserver/...", "github.com/mholt/acmez/...",
	"github.com/libdns/...", "github.com/miekg/...", "github.com/spf13/...",
}

// pkg is a package as the go command lists it.
type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

func TestArrows(t *testing.T) {
	all := list(t)
	for _, b := range links {
		for _, from := range ours(t, all, b.from) {
			for _, path := range linked(all, from) {
				if to := path[len(path)-1]; b.covers(to, all[to].Standard) && !testTool(from) {
					t.Errorf("%s must not link %s: %s\n\tit does by %s", from, to, b.why, strings.Join(path, " → "))
				}
			}
		}
	}
	for _, b := range imports {
		for _, from := range ours(t, all, b.from) {
			for _, to := range all[from].Imports {
				if b.covers(to, all[to].Standard) {
					t.Errorf("%s must not import %s: %s", from, to, b.why)
				}
			}
		}
	}
}

// What the tables forbid elsewhere is seen where it is: else they would say nothing.
func TestArrowsSee(t *testing.T) {
	all := list(t)
	for from, to := range map[string]string{
		"cmd/kokoa":       "cuelang.org/go/cue",
		"reconciler":      "github.com/go-git/go-git/v5/plumbing",
		"cmd/kokoa-edge":  module + "/edge/proxy",
		"cmd/kokoa-agent": module + "/edge/api",
	} {
		seen := slices.ContainsFunc(linked(all, module+"/"+from), func(path []string) bool { return path[len(path)-1] == to })
		if !seen {
			t.Errorf("%s does not seem to link %s", from, to)
		}
	}
}

// testTool reports whether a package is there for tests only.
func testTool(path string) bool {
	return strings.HasSuffix(path, "test") || path == module+"/internal/warm"
}

func (b ban) covers(to string, standard bool) bool {
	in := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, to, standard) })
	}
	return in(b.to) && !in(b.but)
}

// matches reports whether a pattern covers a package. A bare "..." is all but the
// standard library.
func matches(pattern, path string, standard bool) bool {
	if pattern == "..." {
		return !standard
	}
	if first, _, _ := strings.Cut(pattern, "/"); !standard && !strings.Contains(first, ".") {
		pattern = module + "/" + pattern
	}
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return path == pattern
}

// ours is the packages of this module that a pattern covers; it covers some.
func ours(t *testing.T, all map[string]pkg, pattern string) (paths []string) {
	t.Helper()
	for path := range all {
		if strings.HasPrefix(path, module+"/") && matches(pattern, path, false) {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		t.Errorf("%s is in a table and not in the module", pattern)
	}
	slices.Sort(paths)
	return paths
}

// linked is the shortest way to every package that one package links.
func linked(all map[string]pkg, from string) (paths [][]string) {
	seen := map[string]bool{from: true}
	for queue := [][]string{{from}}; len(queue) > 0; queue = queue[1:] {
		path := queue[0]
		for _, to := range all[path[len(path)-1]].Imports {
			if !seen[to] {
				seen[to] = true
				next := append(slices.Clip(path), to)
				paths = append(paths, next)
				queue = append(queue, next)
			}
		}
	}
	return paths
}

// list is every package of the module and all that they link, tests left out.
func list(t *testing.T) map[string]pkg {
	t.Helper()
	// The go command keeps a test's result while the files that the test itself
	// looked at stay the same.
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == ".git" {
			return fs.SkipDir
		}
		if err == nil && strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file of another test that runs at the same time
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports", module+"/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all := make(map[string]pkg)
	for decoder := json.NewDecoder(out); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

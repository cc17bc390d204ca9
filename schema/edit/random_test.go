package edit_test

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"cuelang.org/go/cue/format"
	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/schema"
	"github.com/kokoa-proxy/kokoa/schema/edit"
)

// However a file is written: what is changed in it is changed in the fleet, and
// nothing else is, comments and layout among it.
func TestOthersStay(t *testing.T) {
	loader := schema.NewLoader(schema.Options{})
	t.Cleanup(func() { loader.Close() })
	rapid.Check(t, func(t *rapid.T) {
		w := &writer{T: t}
		w.file()
		src := []byte(w.String())
		if rapid.Bool().Draw(t, "formatted") {
			out, err := format.Source(src)
			if err != nil {
				t.Fatalf("%v\n%s", err, src)
			}
			src = out
		}
		name := rapid.SampledFrom(w.origins).Draw(t, "changed")
		key := keys.Public{9, 9}

		want := load(t, loader, src)
		o := want.Origins[name]
		o.NextKey = key
		want.Origins[name] = o
		withKey := must(t, src)(edit.SetField(src, "origin", name, "next_key", key.String()))
		w.check(load(t, loader, withKey), want, src, withKey)

		o.NextKey = keys.Public{}
		want.Origins[name] = o
		withoutKey := must(t, withKey)(edit.RemoveField(withKey, "origin", name, "next_key"))
		w.check(load(t, loader, withoutKey), want, src, withoutKey)

		delete(want.Origins, name)
		out, empty, err := edit.Remove(src, "origin", name)
		if err != nil || empty != (len(w.origins) == 1 && !w.more) {
			t.Fatalf("removed: empty %v, %v\n%s\n%s", empty, err, src, out)
		}
		w.check(load(t, loader, out), want, src, out)
	})
}

func (w *writer) check(got, want *fleet.Fleet, src, out []byte) {
	w.Helper()
	if text(w.T, got) != text(w.T, want) {
		w.Fatalf("got\n%s\nwant\n%s\nfrom\n%s\nto\n%s", text(w.T, got), text(w.T, want), src, out)
	}
	for i := range w.comments {
		if !strings.Contains(string(out), fmt.Sprintf("// kept %d\n", i)) {
			w.Fatalf("comment %d is gone, from\n%s\nto\n%s", i, src, out)
		}
	}
	if isFormatted(w.T, src) && !isFormatted(w.T, out) {
		w.Fatalf("no longer formatted:\n%s", out)
	}
}

// text is a fleet without positions.
func text(t *rapid.T, f *fleet.Fleet) string {
	out, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func isFormatted(t *rapid.T, text []byte) bool {
	out, err := format.Source(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return string(out) == string(text)
}

func must(t *rapid.T, src []byte) func(out []byte, err error) []byte {
	return func(out []byte, err error) []byte {
		if err != nil {
			t.Fatalf("%v\n%s", err, src)
		}
		return out
	}
}

func load(t *rapid.T, l *schema.Loader, src []byte) *fleet.Fleet {
	f, _, err := l.Load(t.Context(), tree{"fleet.cue": []byte(rest), "changed.cue": src})
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	return f
}

// rest is the fleet around the file that is changed.
const rest = `package fleet

fleet: {name: "demo", domains: ["kokoa.test"], network: "10.86.0.0/16"}
edge: tokyo: {addresses: ["203.0.113.10"], endpoint: "203.0.113.10:51820", tunnel_address: "10.86.0.16"}
origin: kept: {public_key: "` + keptKey + `", tunnel_address: "10.86.9.9"}
`

const keptKey = "rO6bmPIEf1sddaSyvdgZdI16ghHbYJJCMwQ/MHhA1hg="

// writer writes a file with origins in all the ways that a person may.
type writer struct {
	*rapid.T
	strings.Builder
	origins []string
	// more says that the file has other objects; comments counts those that are
	// nobody's.
	more     bool
	comments int
	late     []string
}

func (w *writer) file() {
	w.WriteString("package fleet\n\n")
	for i := range rapid.IntRange(1, 4).Draw(w.T, "origins") {
		name := rapid.SampledFrom([]string{"vm%d", "rpi-%d", "%d"}).Draw(w.T, "name")
		w.origins = append(w.origins, fmt.Sprintf(name, i))
		w.origin(i)
		w.between(i)
	}
	for _, line := range w.late {
		w.WriteString(line)
	}
}

// between writes what is no origin.
func (w *writer) between(i int) {
	switch rapid.IntRange(0, 3).Draw(w.T, "between") {
	case 1:
		fmt.Fprintf(w, "\n// kept %d\n\n", w.comments)
		w.comments++
	case 2:
		w.more = true
		fmt.Fprintf(w, "// kept %d\nroute: r%d: {host: \"h%d.kokoa.test\", origin: \"kept\", service: \"http://localhost:%d\", tls: \"internal\"}\n", w.comments, i, i, 3000+i)
		w.comments++
	case 3:
		w.WriteString("\n\n")
	}
}

func (w *writer) origin(i int) {
	label := w.origins[i]
	if !strings.HasPrefix(label, "vm") || rapid.Bool().Draw(w.T, "quoted") {
		label = `"` + label + `"`
	}
	fields := []string{
		fmt.Sprintf("public_key: %q", keys.Public{byte(i + 1)}),
		fmt.Sprintf("tunnel_address: %q", netip.AddrFrom4([4]byte{10, 86, 1, byte(i)})),
	}
	if rapid.Bool().Draw(w.T, "hosts") {
		fields = append(fields, "hosts: [\n\"a.kokoa.test\",\n\"*.b.kokoa.test\"]")
	}
	if rapid.Bool().Draw(w.T, "other order") {
		fields[0], fields[1] = fields[1], fields[0]
	}
	if rapid.Bool().Draw(w.T, "doc") {
		w.WriteString("// Its own.\n")
	}
	switch rapid.IntRange(0, 6).Draw(w.T, "form") {
	case 0:
		fmt.Fprintf(w, "origin: %s: {\n\t%s\n}\n", label, strings.Join(fields, "\n\t"))
	case 1:
		fmt.Fprintf(w, "origin: {\n\t// Its own.\n\t%s: {\n\t\t%s // its own\n\t}\n}\n", label, strings.Join(fields, "\n\n\t\t// Its own.\n\t\t"))
	case 2:
		fmt.Fprintf(w, "origin: %s: {%s}\n", label, strings.Join(fields, ", "))
	case 3:
		fmt.Fprintf(w, "\"origin\": {%s: {%s}, }\n", label, strings.Join(fields, ", "))
	case 4: // spread
		for _, f := range fields {
			fmt.Fprintf(w, "origin: %s: %s\n", label, f)
		}
	case 5: // spread, in two ways, the rest at the end of the file
		fmt.Fprintf(w, "origin: {%s: %s\n}\n", label, fields[0])
		for _, f := range fields[1:] {
			w.late = append(w.late, fmt.Sprintf("origin: %s: {\n%s}\n", label, f))
		}
	case 6: // beside another, which stays
		fmt.Fprintf(w, "origin: {%s: {%s}\n// kept %d\n%q: {public_key: %q, tunnel_address: \"10.86.2.%d\"}}\n",
			label, strings.Join(fields, ", "), w.comments, fmt.Sprintf("beside-%d", i), keys.Public{7, byte(i)}, i)
		w.more = true
		w.comments++
	}
}

// tree is files by path.
type tree map[string][]byte

func (m tree) Files() []schema.File {
	var files []schema.File
	for path, text := range m {
		files = append(files, schema.File{Path: path, Hash: blob(text)})
	}
	return files
}

func (m tree) Read(path string) ([]byte, error) { return m[path], nil }

func blob(text []byte) string {
	return fmt.Sprintf("%x", sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(text)), text...)))
}

package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the plan part of the goldens")

// pairs is a Spec for tests: "k=v k=v".
type pairs string

func (p pairs) Equal(o Spec) bool { return p == o.(pairs) }
func (p pairs) String() string    { return string(p) }
func (p pairs) Fields() []Field {
	var out []Field
	for f := range strings.FieldsSeq(string(p)) {
		k, v, _ := strings.Cut(f, "=")
		out = append(out, Field{k, v})
	}
	return out
}

// Each line is "kind scope/name k=v … [@from] [!needs kind scope/name] [ended] [course]".
func parseObjects(t *testing.T, text string) []Object {
	t.Helper()
	var out []Object
	for l := range strings.Lines(text) {
		fields := strings.Fields(l)
		if len(fields) == 0 {
			continue
		}
		o := Object{Ref: parseRef(t, fields[0], fields[1])}
		var spec []string
		for _, f := range fields[2:] {
			switch {
			case strings.HasPrefix(f, "@"):
				o.From = f[1:]
			case f == "ended":
				o.Ended = true
			case f == "course":
				o.Course = func(Spec) bool { return true }
			default:
				spec = append(spec, f)
			}
		}
		o.Spec = pairs(strings.Join(spec, " "))
		out = append(out, o)
	}
	return out
}

func parseRef(t *testing.T, kind, name string) Ref {
	t.Helper()
	var r Ref
	if err := r.Kind.UnmarshalText([]byte(kind)); err != nil {
		t.Fatal(err)
	}
	if scope, rest, ok := strings.Cut(name, "/"); ok {
		r.Scope, name = scope, rest
	}
	r.Name = name
	return r
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var in Input
			want := map[string]*txtar.File{}
			for i := range ar.Files {
				f := &ar.Files[i]
				text := string(f.Data)
				switch f.Name {
				case "desired":
					in.Desired = parseObjects(t, text)
				case "observed":
					in.Observed = parseObjects(t, text)
				case "applied":
					in.Applied = append([]Object{}, parseObjects(t, text)...)
				case "unseen":
					in.Unseen = map[Scope]string{}
					for l := range strings.Lines(text) {
						kind, rest, _ := strings.Cut(strings.TrimSpace(l), " ")
						name, why, _ := strings.Cut(rest, " ")
						in.Unseen[Scope{parseRef(t, kind, "x").Kind, name}] = why
					}
				case "waiting":
					for l := range strings.Lines(text) {
						fields := strings.SplitN(strings.TrimSpace(l), " ", 3)
						in.Waiting = append(in.Waiting, Waiting{Ref: parseRef(t, fields[0], fields[1]), Reason: fields[2]})
					}
				case "limits":
					if _, err := fmt.Sscanf(text, "percent=%d max=%d approved=%d", &in.Limits.MaxDeletePercent, &in.Limits.MaxDeletes, &in.Limits.Approved); err != nil {
						t.Fatal(err)
					}
				case "plan", "markdown", "json":
					want[f.Name] = f
				default:
					t.Fatalf("unknown part %q", f.Name)
				}
			}
			p, err := Compute(in)
			for name, f := range want {
				var got bytes.Buffer
				switch name {
				case "plan":
					if werr := p.Text(&got, false); werr != nil {
						t.Fatal(werr)
					}
					if err != nil {
						fmt.Fprintf(&got, "error: %v\n", err)
					}
				case "markdown":
					if werr := p.Markdown(&got); werr != nil {
						t.Fatal(werr)
					}
				case "json":
					enc := json.NewEncoder(&got)
					enc.SetIndent("", "  ")
					enc.SetEscapeHTML(false)
					if werr := enc.Encode(p.Document()); werr != nil {
						t.Fatal(werr)
					}
				}
				if *update {
					f.Data = got.Bytes()
				} else if got.String() != string(f.Data) {
					t.Errorf("%s:\n%s\nwant:\n%s", name, got.String(), f.Data)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Every plan, applied, leads to what was desired, and to an empty plan; it never
// touches what it could not see or what waits.
func TestApplyingThePlanSettles(t *testing.T) {
	objects := rapid.Custom(func(t *rapid.T) []Object {
		seen := map[Ref]bool{}
		var out []Object
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			o := Object{
				Ref:  Ref{rapid.SampledFrom([]Kind{Peer, Route, Record}).Draw(t, "kind"), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "scope"), rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "name")},
				Spec: pairs("v=" + rapid.SampledFrom([]string{"1", "2"}).Draw(t, "v")),
			}
			if !seen[o.Ref] {
				seen[o.Ref] = true
				out = append(out, o)
			}
		}
		return out
	})
	rapid.Check(t, func(t *rapid.T) {
		in := Input{Desired: objects.Draw(t, "desired"), Observed: objects.Draw(t, "observed"), Unseen: map[Scope]string{}}
		for _, kind := range []Kind{Peer, Route, Record} {
			if rapid.IntRange(0, 5).Draw(t, "unseen") == 0 {
				in.Unseen[Scope{kind, "a"}] = "unreachable"
			}
		}
		p, err := Compute(in)
		if err != nil && !errors.Is(err, ErrTooManyDeletes) {
			t.Fatal(err)
		}
		deleting := false
		world := map[Ref]Object{}
		for _, o := range in.Observed {
			world[o.Ref] = o
		}
		for i, c := range p.Changes {
			if _, unseen := in.Unseen[Scope{c.Ref.Kind, c.Ref.Scope}]; unseen {
				t.Fatalf("%s was not seen and is changed", c.Ref)
			}
			if deleting && c.Action != Delete {
				t.Fatalf("%s %s after a delete", c.Action, c.Ref)
			}
			deleting = c.Action == Delete
			if i > 0 && (p.Changes[i-1].Action == Delete) == deleting && (p.Changes[i-1].Ref.Kind > c.Ref.Kind) != deleting && p.Changes[i-1].Ref.Kind != c.Ref.Kind {
				t.Fatalf("%s before %s", p.Changes[i-1].Ref, c.Ref)
			}
			_, exists := world[c.Ref]
			switch c.Action {
			case Create:
				if exists {
					t.Fatalf("creates %s, which exists", c.Ref)
				}
				world[c.Ref] = Object{Ref: c.Ref, Spec: c.After}
			case Update:
				if !exists {
					t.Fatalf("updates %s, which does not exist", c.Ref)
				}
				world[c.Ref] = Object{Ref: c.Ref, Spec: c.After}
			case Delete:
				if !exists {
					t.Fatalf("deletes %s, which does not exist", c.Ref)
				}
				delete(world, c.Ref)
			}
		}
		in.Observed = nil
		for _, o := range world {
			in.Observed = append(in.Observed, o)
		}
		again, err := Compute(in)
		if err != nil || len(again.Changes) != 0 {
			t.Fatalf("plan after apply: %v %v", again.Changes, err)
		}
	})
}

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	var objects []Object
	for i := range 50 {
		objects = append(objects, Object{Ref: Ref{Route, fmt.Sprint("e", i%3), fmt.Sprint("r", i)}, Spec: pairs("v=1")})
	}
	render := func(in Input) string {
		p, err := Compute(in)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := p.Text(&b, true); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	first := render(Input{Desired: objects})
	slices.Reverse(objects)
	if second := render(Input{Desired: objects}); first != second {
		t.Errorf("order of the input shows:\n%s\n%s", first, second)
	}
}

func TestMarkdownFitsAComment(t *testing.T) {
	var in Input
	for i := range 5000 {
		in.Desired = append(in.Desired, Object{Ref: Ref{Route, "tokyo", fmt.Sprintf("new-%d", i)}, Spec: pairs("host=x")})
	}
	in.Observed = append(in.Observed, Object{Ref: Ref{Route, "tokyo", "the-one-that-goes"}, Spec: pairs("host=x")})
	p, err := Compute(in)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := p.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	if b.Len() > markdownLimit {
		t.Errorf("%d bytes, want at most %d", b.Len(), markdownLimit)
	}
	if !strings.Contains(b.String(), "the-one-that-goes") {
		t.Error("the delete was cut")
	}
}

func TestTwiceIsAnError(t *testing.T) {
	o := Object{Ref: Ref{Route, "tokyo", "blog"}, From: "routes/a.cue:1:1"}
	_, err := Compute(Input{Desired: []Object{o, o}})
	if err == nil || !strings.Contains(err.Error(), "route tokyo/blog") {
		t.Errorf("got %v", err)
	}
}

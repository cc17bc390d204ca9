package schema

import (
	"bytes"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/build"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/parser"
	"github.com/kokoa-proxy/kokoa/fleet"
)

// TestEveryFieldIsDocumented: the definitions are the reference that users read.
func TestEveryFieldIsDocumented(t *testing.T) {
	var walk func(s *shape)
	walk = func(s *shape) {
		for _, name := range s.names() {
			f := s.fields[name]
			if f.doc == "" || f.want == "" {
				t.Errorf("%s has no comment", f.rule)
			}
			if f.kids != nil {
				walk(f.kids)
			}
		}
	}
	for _, s := range testShapes(t) {
		walk(s)
	}
}

// TestFieldsAreNamedAsInGo: what a user writes is what JSON and the API say.
func TestFieldsAreNamedAsInGo(t *testing.T) {
	shapes := testShapes(t)
	for _, c := range []struct {
		noun   any
		shape  *shape
		except []string // of the noun only, or spelt another way for users
	}{
		{fleet.Fleet{}, shapes[kindFleet], []string{"edges", "origins", "routes"}},
		{fleet.DNS{}, shapes[kindFleet].fields["dns"].kids, nil},
		{fleet.TSIG{}, shapes[kindFleet].fields["dns"].kids.fields["tsig"].kids, nil},
		{fleet.ACME{}, shapes[kindFleet].fields["acme"].kids, nil},
		{fleet.Guards{}, shapes[kindFleet].fields["guards"].kids, nil},
		{fleet.Edge{}, shapes[kindEdge], []string{"name"}},
		{fleet.Origin{}, shapes[kindOrigin], []string{"name"}},
		{fleet.Route{}, shapes[kindRoute], []string{"name", "upstreams", "active"}},
		{fleet.Upstream{}, shapes[kindRoute].fields["failover"].kids, nil},
		{fleet.ManualCertificate{}, shapes[kindRoute].fields["certificate"].kids, nil},
		{fleet.Health{}, shapes[kindRoute].fields["health"].kids, nil},
		{fleet.SecretRef{}, shapes[kindRoute].fields["certificate"].kids.fields["key"].kids, nil},
	} {
		typ := reflect.TypeOf(c.noun)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name == "-" || slices.Contains(c.except, name) {
				continue
			}
			if c.shape.fields[name] == nil {
				t.Errorf("%s has no field %s, which %s has", c.shape.rule, name, typ)
			}
		}
	}
}

// TestRepoDefinition: #Repo is for users' own `cue vet`.
func TestRepoDefinition(t *testing.T) {
	ctx := cuecontext.New()
	inst := build.NewContext().NewInstance("", nil)
	files, err := parseDefinitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := inst.AddSyntax(f); err != nil {
			t.Fatal(err)
		}
	}
	def := ctx.BuildInstance(inst).LookupPath(cue.ParsePath("#Repo"))
	user := build.NewContext().NewInstance("", nil)
	for _, f := range exampleFiles(t) {
		parsed, err := parser.ParseFile(f.name, f.text)
		if err != nil {
			t.Fatal(err)
		}
		if err := user.AddSyntax(parsed); err != nil {
			t.Fatal(err)
		}
	}
	v := ctx.BuildInstance(user)
	if err := v.Unify(def).Validate(cue.Concrete(true)); err != nil {
		t.Errorf("the example does not fit: %v", err)
	}
	v = v.FillPath(cue.ParsePath("route.blog.hots"), "x")
	if err := v.Unify(def).Validate(); err == nil {
		t.Error("a misspelt field fits")
	}
}

// TestExample: what a user copies first is right, complete and in CUE's format.
func TestExample(t *testing.T) {
	tree, err := Dir("../examples/fleet-repo")
	if err != nil {
		t.Fatal(err)
	}
	l := newLoader(t, Options{})
	if got := told(t, l, tree); got != "loaded\n" {
		t.Error(got)
	}
	f := mustLoad(t, l, tree)
	if got, want := f.RouteNames(), []string{"api", "app", "blog", "shop", "tenants"}; !slices.Equal(got, want) {
		t.Errorf("its routes are %v, want %v", got, want)
	}
	for _, file := range append(exampleFiles(t), definitionFiles()...) {
		formatted, err := format.Source(file.text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(formatted, file.text) {
			t.Errorf("%s is not in the format of `cue fmt`:\n%s", file.name, formatted)
		}
	}
}

func exampleFiles(t *testing.T) []sourceFile {
	t.Helper()
	root := os.DirFS("../examples/fleet-repo")
	var files []sourceFile
	err := fs.WalkDir(root, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || !Wanted(p) || e.IsDir() {
			return err
		}
		text, err := fs.ReadFile(root, p)
		files = append(files, sourceFile{p, text})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func testShapes(t *testing.T) shapes {
	t.Helper()
	files, err := parseDefinitions()
	if err != nil {
		t.Fatal(err)
	}
	return newShapes(files)
}

package schema

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/literal"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"
)

// shapes is the schema as error messages need it: which fields there are and
// what each of them wants, in words taken from the definitions' comments.
type shapes [kinds]*shape

// shape is a struct of the schema.
type shape struct {
	// rule is the definition's name, "#Route".
	rule   string
	fields map[string]*field
}

// field is a field of a struct of the schema.
type field struct {
	name string
	// rule is where it is defined, "#Route.host".
	rule string
	// doc says what the field is: "name of the origin that runs the service".
	doc string
	// want says what the field takes: "true or false".
	want     string
	required bool
	// enum is its values, when it takes one of a few strings.
	enum []string
	// secret fields take a reference to a secret.
	secret bool
	// kids are its fields, when it takes a struct.
	kids *shape
	// element is what its elements are, when it takes a list.
	element *field
}

func newShapes(files []*ast.File) shapes {
	r := shapeReader{defs: map[string]*ast.Field{}}
	for _, f := range files {
		for _, d := range f.Decls {
			if def, ok := d.(*ast.Field); ok {
				name, _, _ := ast.LabelName(def.Label)
				r.defs[name] = def
			}
		}
	}
	return shapes{
		kindFleet:  r.shape("#Fleet", r.structOf("#Fleet")),
		kindEdge:   r.shape("#Edge", r.structOf("#Edge")),
		kindOrigin: r.shape("#Origin", r.structOf("#Origin")),
		kindRoute:  r.shape("#Route", r.structOf("#Route")),
	}
}

// field finds the field at a path of labels and list indices, nil when there is
// none.
func (s *shape) field(path []string) *field {
	var f *field
	for i, label := range path {
		switch {
		case i == 0:
			f = s.fields[label]
		case f.element != nil:
			f = f.element
		case f.kids != nil:
			f = f.kids.fields[label]
		default:
			return nil
		}
		if f == nil {
			return nil
		}
	}
	return f
}

func (s *shape) names() []string { return slices.Sorted(maps.Keys(s.fields)) }

// private reports whether a value at the path might be a secret: where the
// schema takes a reference to one.
func (s *shape) private(path []string) bool {
	for i := range path {
		if f := s.field(path[:i+1]); f == nil || f.secret {
			return true
		}
	}
	return false
}

type shapeReader struct {
	defs map[string]*ast.Field
}

func (r shapeReader) structOf(def string) *ast.StructLit {
	return r.defs[def].Value.(*ast.StructLit)
}

func (r shapeReader) shape(rule string, lit *ast.StructLit) *shape {
	s := &shape{rule: rule, fields: map[string]*field{}}
	for _, d := range lit.Elts {
		if f, ok := d.(*ast.Field); ok {
			name, _, _ := ast.LabelName(f.Label)
			s.fields[name] = r.field(name, rule+"."+name, firstSentence(comment(f)), f.Value)
			s.fields[name].required = f.Constraint == token.NOT
		}
	}
	return s
}

func (r shapeReader) field(name, rule, doc string, value ast.Expr) *field {
	f := &field{name: name, rule: rule, doc: doc, want: doc}
	switch v := value.(type) {
	case *ast.Ident:
		if v.Name == "bool" {
			f.want = "true or false"
		}
		def, ok := r.defs[v.Name]
		if !ok {
			break
		}
		f.want = firstSentence(comment(def))
		f.secret = v.Name == "#Secret"
		if lit, ok := def.Value.(*ast.StructLit); ok {
			f.kids = r.shape(v.Name, lit)
		}
	case *ast.StructLit:
		f.kids = r.shape(rule, v)
	case *ast.ListLit:
		for _, e := range v.Elts {
			if more, ok := e.(*ast.Ellipsis); ok {
				f.element = r.field(name, rule, doc, more.Type)
				f.want = "a list, each " + f.element.want
			}
		}
	case *ast.BinaryExpr:
		f.enum = enum(v)
		if f.enum != nil {
			f.want = "one of " + quoteAll(f.enum)
		}
	}
	switch {
	case f.secret:
		f.want = `{env: "NAME"} or {file: "/path"}: secrets themselves never stand in the repo`
	case f.kids != nil:
		f.want = "a struct with " + strings.Join(f.kids.names(), ", ")
	}
	return f
}

// enum is the strings of a disjunction of nothing but strings, in order.
func enum(e ast.Expr) []string {
	switch v := e.(type) {
	case *ast.BasicLit:
		if v.Kind == token.STRING {
			s, err := literal.Unquote(v.Value)
			if err != nil {
				panic("schema: string in definitions: " + err.Error())
			}
			return []string{s}
		}
	case *ast.BinaryExpr:
		left, right := enum(v.X), enum(v.Y)
		if v.Op == token.OR && left != nil && right != nil {
			return append(left, right...)
		}
	}
	return nil
}

func comment(n ast.Node) string {
	var lines []string
	for _, group := range ast.Comments(n) {
		if group.Doc {
			lines = append(lines, group.Text())
		}
	}
	return strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
}

// firstSentence is a comment up to its first full stop, made to stand inside
// another sentence.
func firstSentence(doc string) string {
	if i := strings.Index(doc, ". "); i >= 0 {
		doc = doc[:i]
	}
	doc = strings.TrimSuffix(doc, ".")
	if word, _, _ := strings.Cut(doc, " "); word != strings.ToUpper(word) || word == "A" {
		doc = strings.ToLower(doc[:1]) + doc[1:]
	}
	return doc
}

func quoteAll(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return strings.Join(quoted, ", ")
}

func parseDefinitions() ([]*ast.File, error) {
	var files []*ast.File
	for _, f := range definitionFiles() {
		parsed, err := parser.ParseFile("schema/"+f.name, f.text, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, parsed)
	}
	return files, nil
}

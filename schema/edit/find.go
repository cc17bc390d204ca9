package edit

import (
	"fmt"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/ast/astutil"
	"cuelang.org/go/cue/literal"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"
)

// file is a file of the fleet repo.
type file struct {
	src  []byte
	tree *ast.File
}

func parse(src []byte) (*file, error) {
	tree, err := parser.ParseFile("", src, parser.ParseComments)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return &file{src, tree}, nil
}

// place is a field as it is written.
type place struct {
	field *ast.Field
	// up are the fields it is written in, from the top of the file down.
	up []*ast.Field
}

// find is all places that give an object.
func (f *file) find(kind, name string) ([]place, error) {
	s := search{what: kind + " " + name}
	s.decls(f.tree.Decls, nil, []string{kind, name})
	return s.result(true)
}

// fields is all places that give a field of an object; none is no error.
func (f *file) fields(objects []place, kind, name, field string) ([]place, error) {
	s := search{what: fmt.Sprintf("%s of %s %s", field, kind, name)}
	for _, o := range objects {
		s.value(o.field.Value, append(o.up[:len(o.up):len(o.up)], o.field), []string{field})
	}
	return s.result(false)
}

// search looks for a path of labels. What stands in plain structs is found. What
// may come from somewhere else is remembered: sure, when the path is written there.
type search struct {
	what        string
	found       []place
	sure, maybe error
}

func (s *search) result(needed bool) ([]place, error) {
	switch {
	case s.sure != nil:
		return nil, s.sure
	case len(s.found) > 0:
		return s.found, nil
	case s.maybe != nil:
		return nil, s.maybe
	case needed:
		return nil, fmt.Errorf("%s is %w", s.what, ErrNotHere)
	}
	return nil, nil
}

func (s *search) decls(decls []ast.Decl, up []*ast.Field, path []string) {
	for _, d := range decls {
		switch d := d.(type) {
		case *ast.Field:
			s.field(d, up, path)
		case *ast.EmbedDecl:
			s.elsewhere(d.Expr, path, "comes from a value that is embedded here")
		case *ast.Comprehension:
			s.elsewhere(d.Value, path, "is made by a comprehension")
		case *ast.Alias:
			s.elsewhere(d.Expr, path, "has an alias")
		}
	}
}

func (s *search) field(f *ast.Field, up []*ast.Field, path []string) {
	name, isIdent, err := ast.LabelName(f.Label)
	_, pattern := f.Label.(*ast.ListLit)
	_, alias := f.Label.(*ast.Alias)
	switch {
	case pattern:
		// It says something of fields that others make.
	case err != nil:
		s.note(&s.maybe, f.Pos(), "may have the name that is computed here")
	case isIdent && (name[0] == '#' || name[0] == '_'):
		s.template(f.Value, path)
	case name != path[0]:
	case alias || f.Alias != nil:
		s.note(&s.sure, f.Pos(), "has an alias")
	case f.Constraint != token.ILLEGAL:
		s.note(&s.sure, f.Pos(), "is a constraint")
	case len(path) == 1:
		s.found = append(s.found, place{f, up})
	default:
		s.value(f.Value, append(up[:len(up):len(up)], f), path[1:])
	}
}

func (s *search) value(v ast.Expr, up []*ast.Field, path []string) {
	if lit, ok := v.(*ast.StructLit); ok {
		s.decls(lit.Elts, up, path)
		return
	}
	s.elsewhere(v, path, "is made by an expression")
}

// elsewhere looks through an expression that is not a plain struct.
func (s *search) elsewhere(v ast.Expr, path []string, why string) {
	s.note(&s.maybe, v.Pos(), why)
	if s.within(v, path) {
		s.note(&s.sure, v.Pos(), why)
	}
}

// template looks through a definition or a hidden field, which makes nothing by
// itself.
func (s *search) template(v ast.Expr, path []string) {
	if s.within(v, path) {
		s.note(&s.maybe, v.Pos(), "comes from a template")
	}
}

// within reports whether a struct in an expression gives the path.
func (s *search) within(v ast.Expr, path []string) bool {
	inner := search{what: s.what}
	ast.Walk(v, func(n ast.Node) bool {
		if lit, ok := n.(*ast.StructLit); ok {
			inner.decls(lit.Elts, nil, path)
		}
		return true
	}, nil)
	return len(inner.found) > 0 || inner.sure != nil
}

func (s *search) note(err *error, at token.Pos, why string) {
	if *err == nil {
		*err = byHand(at, "%s %s", s.what, why)
	}
}

// use is where the rest of the file refers to an object by its name.
func (f *file) use(kind, name string, objects []place) token.Pos {
	var at token.Pos
	ast.Walk(f.tree, func(n ast.Node) bool {
		for _, o := range objects {
			if n == o.field {
				return false
			}
		}
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if sel, _, err := ast.LabelName(n.Sel); err == nil && sel == name && named(n.X, kind) {
				at = n.Pos()
			}
		case *ast.IndexExpr:
			lit, ok := n.Index.(*ast.BasicLit)
			if ok && lit.Kind == token.STRING && named(n.X, kind) {
				if text, err := literal.Unquote(lit.Value); err == nil && text == name {
					at = n.Pos()
				}
			}
		}
		return true
	}, nil)
	return at
}

func named(x ast.Expr, name string) bool {
	ident, ok := x.(*ast.Ident)
	return ok && ident.Name == name
}

// unused is an import or a let that this file uses and another no longer does,
// which CUE does not take.
func (f *file) unused(left *file) (at token.Pos, what string) {
	before, after := f.names(), left.names()
	ast.Walk(f.tree, func(n ast.Node) bool {
		name := ""
		switch n := n.(type) {
		case *ast.ImportSpec:
			info, err := astutil.ParseImportSpec(n)
			if err != nil {
				return false
			}
			name = info.Ident
			if before[name] > 0 && after[name] == 0 {
				at, what = n.Pos(), "the import "+name
			}
		case *ast.LetClause:
			name = n.Ident.Name
			if before[name] > 1 && after[name] == 1 {
				at, what = n.Pos(), "let "+name
			}
		}
		return true
	}, nil)
	return at, what
}

// names counts identifiers outside imports.
func (f *file) names() map[string]int {
	count := map[string]int{}
	ast.Walk(f.tree, func(n ast.Node) bool {
		if _, ok := n.(*ast.ImportDecl); ok {
			return false
		}
		if ident, ok := n.(*ast.Ident); ok {
			count[ident.Name]++
		}
		return true
	}, nil)
	return count
}

func byHand(at token.Pos, format string, args ...any) error {
	return fmt.Errorf("%d:%d: %s: %w", at.Line(), at.Column(), fmt.Sprintf(format, args...), ErrByHand)
}

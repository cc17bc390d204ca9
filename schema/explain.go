package schema

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"
)

// explainer turns CUE's errors into findings: one for each mistake, at the user's
// own line, in the words of the schema.
type explainer struct {
	*evaluator
	// file is the name in positions of the file that is explained.
	file   string
	source *ast.File
	nodes  *node
	// holes are offsets in the file where a reference to nothing was replaced by
	// "anything".
	holes []int
}

// mended reports whether the entry at path may depend on a hole: then a value
// that is missing, or not known yet, is no mistake.
func (x *explainer) mended(path []string) bool {
	own := x.nodes.find(path)
	for _, at := range x.holes {
		if own == nil || own.spans(at) || !x.nodes.entrySpans(at) {
			return true
		}
	}
	return false
}

// The formats of CUE's messages, pinned with its version by the golden tests.
const (
	cueNotAllowed  = "field not allowed"
	cueRequired    = "field is required but not present"
	cueIncomplete  = "incomplete value %v"
	cueNoReference = "reference %q not found"
	cueUnusedLet   = "unreferenced alias or let clause %s"
	cueUnusedIn    = "imported and not used: %s"
	cueDisjunction = "%d errors in empty disjunction:"
	cueOutOfBound  = "invalid value %v (out of bound %s)"
	cueMismatch    = "conflicting values %s and %s (mismatched types %s and %s)"
	cueLength      = "incompatible list lengths (%d and %d)"
)

// entry explains why v, the user's value at path, does not unify with the
// definition of its kind. bad are the paths in v whose values are wrong or
// missing.
func (x *explainer) entry(k kind, name string, path []string, v cue.Value, err error) (findings []finding, bad [][]string) {
	sh := x.shapes[k]
	what := k.String()
	if k != kindFleet {
		what = fmt.Sprintf("%s %s", k, quote(name))
	}
	findings, bad = x.fields(sh, what, path, nil, v)

	// One mistake can give several errors at one path; the first that says
	// something stands for them.
	seen := map[string]bool{}
	for _, p := range bad {
		seen[strings.Join(p, "\x00")] = true
	}
	for _, e := range errors.Errors(err) {
		full := unquotePath(e.Path())
		if len(full) < len(path) || !slices.Equal(full[:len(path)], path) {
			if _, ok := kindOf(first(full)); ok && len(full) > 1 {
				continue // another entry's mistake, reported there
			}
			full = path
		}
		rel := full[len(path):]
		key := strings.Join(rel, "\x00")
		format, _ := e.Msg()
		if format == cueDisjunction || seen[key] {
			continue
		}
		f := x.explain(sh, what, path, rel, v, e)
		if f.code == "" {
			continue
		}
		seen[key] = true
		bad = append(bad, rel)
		findings = append(findings, f)
	}
	return findings, bad
}

// explain explains one error, at rel in the user's value v at path. The zero
// finding means that the mistake is reported already.
func (x *explainer) explain(sh *shape, what string, path, rel []string, v cue.Value, e errors.Error) finding {
	format, _ := e.Msg()
	full := slices.Concat(path, rel)
	f := finding{at: x.valueAt(full), private: sh.private(rel)}
	fd := sh.field(rel)
	name := dotted(rel)
	switch {
	case format == cueNotAllowed && fd == nil, format == cueRequired:
		return finding{} // fields found it, at every depth
	case format == cueNotAllowed:
		f.code, f.at = CodeForbidden, x.labelAt(full)
		f.message = fmt.Sprintf("%s of %s is not in the template it is made from", name, what)
		f.hint = `add "..." to the template`
		f.related = x.related(e)
		return f
	case format == cueIncomplete:
		if x.mended(path) {
			return finding{}
		}
		f.code = CodeIncomplete
		f.message = fmt.Sprintf("%s of %s has no value yet", orValue(name), what)
		f.hint = "give it one value"
		return f
	case x.conflict(e):
		f.code = CodeConflict
		f.message = fmt.Sprintf("%s of %s has two values", orValue(name), what)
		f.hint = "keep one of them"
		f.at, f.related = x.both(e, f.at)
		return f
	case len(rel) == 0 && (format == cueMismatch):
		f.code, f.private = CodeType, true
		f.message = fmt.Sprintf("%s is no struct", what)
		f.hint = "want " + "a struct with " + strings.Join(sh.names(), ", ")
		return f
	case fd == nil:
		return x.other(e, full)
	case format == cueLength:
		f.code = CodeInvalid
		f.message = fmt.Sprintf("%s of %s is empty", name, what)
		f.hint = "list at least one, or leave it out"
		if fd.rule == "#Edge.addresses" || fd.rule == "#Fleet.domains" {
			f.hint = "list at least one"
		}
		return f
	case format == cueMismatch && !slices.Contains(fd.enum, "") && typeDiffers(v, rel, fd):
		f.code = CodeType
		f.message = fmt.Sprintf("%s of %s is %s", name, what, describe(v, rel, f.private))
		f.hint = "want " + fd.want
	case format == cueOutOfBound || fd.enum != nil || format == cueMismatch:
		f.code = CodeInvalid
		f.message = fmt.Sprintf("invalid %s of %s", strings.TrimSpace(name+" "+shown(v, rel, f.private)), what)
		f.hint = "want " + fd.want
		if s, err := lookup(v, rel).String(); err == nil {
			if better := correction(fd, s); better != "" {
				f.hint = better
			}
		}
	default:
		return x.other(e, full)
	}
	f.related = x.related(e)
	return f
}

// correction says what was probably meant by a value that is not allowed.
func correction(f *field, s string) string {
	if near := nearest(strings.ToLower(s), f.enum); near != "" {
		return fmt.Sprintf("did you mean %q? Want %s", near, f.want)
	}
	switch f.rule {
	case "#Route.host", "#Origin.hosts", "#Fleet.domains", "#DNS.nameservers":
		if h := canonicalHost(s); h != s {
			return fmt.Sprintf("write %q", h)
		}
	}
	return ""
}

// fields finds, at every depth of v, the fields that the schema does not have and
// those that it must have. CUE finds most of them too, but not beside a field of
// the wrong type. bad are the paths of the latter.
func (x *explainer) fields(sh *shape, what string, path, rel []string, v cue.Value) (findings []finding, bad [][]string) {
	it, err := v.Fields()
	if err != nil {
		return nil, nil
	}
	meant := map[string]bool{} // by a field that is misspelt
	for it.Next() {
		name := it.Selector().Unquoted()
		below := append(slices.Clone(rel), name)
		f, ok := sh.fields[name]
		switch {
		case !ok:
			near := nearest(name, sh.names())
			meant[near] = true
			hint := suggest(name, sh.names())
			if hint == "" {
				hint = fmt.Sprintf("%s has %s", sh.rule, strings.Join(sh.names(), ", "))
			}
			findings = append(findings, finding{
				code: CodeUnknownField, at: x.labelAt(slices.Concat(path, below)), private: true,
				message: fmt.Sprintf("unknown field %s in %s", quote(name), what),
				hint:    hint,
			})
		case f.kids != nil && it.Value().IncompleteKind() == cue.StructKind:
			found, wrong := x.fields(f.kids, fmt.Sprintf("%s of %s", name, what), path, below, it.Value())
			findings, bad = append(findings, found...), append(bad, wrong...)
		}
		if len(findings) > maxFindings {
			break
		}
	}
	if x.mended(path) {
		return findings, bad
	}
	for _, name := range sh.names() {
		f := sh.fields[name]
		if !f.required || v.LookupPath(cue.MakePath(cue.Str(name))).Exists() {
			continue
		}
		bad = append(bad, append(slices.Clone(rel), name))
		if meant[name] {
			continue
		}
		findings = append(findings, finding{
			code: CodeMissing, at: x.labelAt(slices.Concat(path, rel)),
			message: fmt.Sprintf("%s has no %s", what, name),
			hint:    fmt.Sprintf("add %s: %s", name, f.doc),
		})
	}
	return findings, bad
}

// unknownTop finds the top-level fields that a fleet repo does not have.
func (x *explainer) unknownTop(v cue.Value) []finding {
	names := map[string]bool{}
	for name, n := range x.nodes.kids {
		if !isShared(name) || !isIdent(n.label) {
			names[name] = true
		}
	}
	if it, err := v.Fields(); err == nil {
		for it.Next() {
			names[it.Selector().Unquoted()] = true
		}
	}
	var findings []finding
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if _, ok := kindOf(name); ok {
			continue
		}
		hint := suggest(name, kindNames[:])
		if hint == "" {
			hint = "a file has fleet, edge, origin and route; what else it needs is a definition (#Name) or hidden (_name)"
		}
		findings = append(findings, finding{
			code: CodeUnknownField, at: x.labelAt([]string{name}), private: true,
			message: "unknown field " + quote(name), hint: hint,
		})
	}
	return findings
}

// own explains errors that the file has without the schema.
func (x *explainer) own(err error) []finding {
	var findings []finding
	seen := map[string]bool{}
	for _, e := range errors.Errors(err) {
		format, _ := e.Msg()
		path := unquotePath(e.Path())
		key := strings.Join(path, "\x00")
		if format == cueDisjunction || seen[key] {
			continue
		}
		if strings.HasPrefix(x.file, libraryPrefix) && !x.mentions(e) {
			continue
		}
		seen[key] = true
		switch k, ok := kindOf(first(path)); {
		case ok && k == kindFleet, ok && len(path) > 1:
			continue // entry explains it, with the schema at hand
		case format == cueNoReference:
			findings = append(findings, x.noReference(e))
		case x.conflict(e):
			f := finding{
				code: CodeConflict, at: x.valueAt(path), private: true,
				message: dotted(path) + " has two values", hint: "keep one of them",
			}
			f.at, f.related = x.both(e, f.at)
			findings = append(findings, f)
		default:
			findings = append(findings, x.other(e, path))
		}
	}
	return findings
}

// other passes on an error of CUE's in its own words.
func (x *explainer) other(e errors.Error, path []string) finding {
	format, args := e.Msg()
	f := finding{code: CodeEvaluation, at: x.valueAt(path), private: true, message: sentence(format, args), related: x.related(e)}
	for _, p := range positions(e) {
		if p.Filename() == x.file {
			f.at = x.markAt(p)
			break
		}
	}
	if len(path) > 0 {
		f.message = dotted(path) + ": " + f.message
	}
	return f
}

// dangling reports references to nothing and unused imports and lets, which keep
// CUE from building a file at all, and returns their offsets in the file.
func (x *explainer) dangling(err error) (findings []finding, at []int) {
	for _, e := range errors.Errors(err) {
		if e.Position().Filename() != x.file {
			continue
		}
		format, args := e.Msg()
		f := finding{code: CodeReference, at: x.markAt(e.Position()), hint: "take it out"}
		switch format {
		case cueNoReference:
			f = x.noReference(e)
		case cueUnusedLet:
			f.message = "nothing uses " + first(strs(args))
		case cueUnusedIn:
			f.message = "nothing uses the import of " + first(strs(args))
		default:
			continue
		}
		if at = append(at, e.Position().Offset()); f.code != "" {
			findings = append(findings, f)
		}
	}
	return findings, at
}

// mend parses a file anew and takes out what dangling found: imports and lets go,
// and a reference to nothing becomes "anything".
func mend(name string, text []byte, at []int) *ast.File {
	f, err := parser.ParseFile(name, text)
	if err != nil {
		panic("schema: file was parsed before: " + err.Error())
	}
	hit := func(n ast.Node) bool { return slices.Contains(at, n.Pos().Offset()) }
	unused := func(d ast.Decl) bool {
		_, isLet := d.(*ast.LetClause)
		return isLet && hit(d)
	}
	f.Decls = slices.DeleteFunc(f.Decls, func(d ast.Decl) bool {
		if imports, ok := d.(*ast.ImportDecl); ok {
			imports.Specs = slices.DeleteFunc(imports.Specs, func(s *ast.ImportSpec) bool { return hit(s) })
			return len(imports.Specs) == 0
		}
		return unused(d)
	})
	ast.Walk(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			if hit(n) {
				n.Name = "_"
			}
		case *ast.StructLit:
			n.Elts = slices.DeleteFunc(n.Elts, unused)
		}
		return true
	}, nil)
	return f
}

// noReference is the zero finding when the library's own errors explain it.
func (x *explainer) noReference(e errors.Error) finding {
	_, args := e.Msg()
	name := first(strs(args))
	if isShared(name) && x.libraryBroken {
		return finding{}
	}
	f := finding{
		code: CodeReference, at: x.markAt(e.Position()),
		message: fmt.Sprintf("nothing is called %s here", quote(name)),
		hint:    suggest(name, append(slices.Clone(x.names), x.topNames()...)),
	}
	if f.hint == "" {
		f.hint = fmt.Sprintf("text stands in quotes: %s", quote(name))
		if isShared(name) {
			f.hint = "definitions (#Name) and hidden fields (_name) come from this file, or from files that hold nothing else"
		}
		if _, ok := kindOf(name); ok {
			f.hint = "each file is read alone: write the value, or share it as a definition (#Name) in a file of its own"
		}
	}
	return f
}

func (x *explainer) topNames() []string {
	var names []string
	if x.source == nil {
		return nil
	}
	for _, d := range x.source.Decls {
		if f, ok := d.(*ast.Field); ok {
			if name, _, err := ast.LabelName(f.Label); err == nil {
				names = append(names, name)
			}
		}
	}
	return names
}

// conflict reports whether the error is between values the user wrote, and not
// with the schema.
func (x *explainer) conflict(e errors.Error) bool {
	format, _ := e.Msg()
	if !strings.HasPrefix(format, "conflicting values") {
		return false
	}
	n := 0
	for _, p := range positions(e) {
		if !x.isUsers(p) {
			return false
		}
		n++
	}
	return n > 1
}

// both is where a conflict's two values stand, the later one first.
func (x *explainer) both(e errors.Error, fallback mark) (mark, []relation) {
	var own []mark
	for _, p := range positions(e) {
		if p.Filename() == x.file {
			own = append(own, x.markAt(p))
		}
	}
	slices.SortFunc(own, func(a, b mark) int {
		return cmp.Or(cmp.Compare(b.line, a.line), cmp.Compare(b.column, a.column))
	})
	related := x.related(e)
	switch {
	case len(own) == 0:
		return fallback, related
	case len(related) > 0:
		return own[0], related
	case len(own) > 1:
		return own[0], []relation{{at: own[len(own)-1], message: "the other value"}}
	}
	return own[0], nil
}

// related are the places in library files that an error comes from.
func (x *explainer) related(e errors.Error) []relation {
	var out []relation
	for _, p := range positions(e) {
		file, ok := strings.CutPrefix(p.Filename(), libraryPrefix)
		if ok && p.Filename() != x.file {
			out = append(out, relation{file: file, at: markAt(p, 1), message: "from here"})
			break
		}
	}
	return out
}

func (x *explainer) isUsers(p token.Pos) bool {
	return p.Filename() == x.file || strings.HasPrefix(p.Filename(), libraryPrefix)
}

func (x *explainer) mentions(e errors.Error) bool {
	for _, p := range positions(e) {
		if p.Filename() == x.file {
			return true
		}
	}
	return false
}

func (x *explainer) valueAt(path []string) mark { return x.nodes.nearest(path).at() }

func (x *explainer) labelAt(path []string) mark { return x.nodes.nearest(path).labelAt() }

// markAt is the whole of what begins at p.
func (x *explainer) markAt(p token.Pos) mark { return markAt(p, x.nodes.lengthAt(p)) }

// node is a place in a file's syntax where a path is written down.
type node struct {
	label, value ast.Node
	kids         map[string]*node
	// places are all fields that are written for the path.
	places []*ast.Field
}

// index finds where paths are written in a file. Paths that are made by
// comprehensions, patterns or references have no place of their own.
func index(f *ast.File) *node {
	root := &node{label: f, value: f}
	root.decls(f.Decls)
	return root
}

func (n *node) decls(decls []ast.Decl) {
	for _, d := range decls {
		switch d := d.(type) {
		case *ast.Field:
			name, _, err := ast.LabelName(d.Label)
			if err != nil {
				continue
			}
			if n.kids == nil {
				n.kids = map[string]*node{}
			}
			kid := n.kids[name]
			if kid == nil {
				kid = &node{label: d.Label, value: d.Value}
				n.kids[name] = kid
			}
			kid.places = append(kid.places, d)
			kid.expr(d.Value)
		case *ast.EmbedDecl:
			n.expr(d.Expr)
		}
	}
}

func (n *node) expr(e ast.Expr) {
	switch e := e.(type) {
	case *ast.StructLit:
		n.decls(e.Elts)
	case *ast.BinaryExpr:
		if e.Op == token.AND {
			n.expr(e.X)
			n.expr(e.Y)
		}
	case *ast.ParenExpr:
		n.expr(e.X)
	case *ast.Alias:
		n.expr(e.Expr)
	case *ast.ListLit:
		for i, x := range e.Elts {
			if n.kids == nil {
				n.kids = map[string]*node{}
			}
			kid := &node{label: x, value: x}
			n.kids[strconv.Itoa(i)] = kid
			kid.expr(x)
		}
	}
}

func (n *node) kid(label string) *node {
	if n == nil {
		return nil
	}
	return n.kids[label]
}

func (n *node) find(path []string) *node {
	for _, label := range path {
		n = n.kid(label)
	}
	return n
}

// spans reports whether an offset is in what is written for the node.
func (n *node) spans(at int) bool {
	return slices.ContainsFunc(n.places, func(f *ast.Field) bool {
		return f.Pos().Offset() <= at && at < f.End().Offset()
	})
}

// entrySpans reports whether an offset is in an entry that is written out.
func (n *node) entrySpans(at int) bool {
	for k, name := range kindNames {
		top := n.kid(name)
		switch {
		case top == nil:
		case kind(k) == kindFleet && top.spans(at):
			return true
		default:
			for _, e := range top.kids {
				if e.spans(at) {
					return true
				}
			}
		}
	}
	return false
}

// nearest is the node at path, or else at the longest part of it.
func (n *node) nearest(path []string) *node {
	for _, label := range path {
		k := n.kid(label)
		if k == nil {
			break
		}
		n = k
	}
	return n
}

// at marks the value, or the label where the value is a struct or list.
func (n *node) at() mark {
	if n == nil {
		return mark{1, 1, 1}
	}
	switch n.value.(type) {
	case *ast.StructLit, *ast.ListLit, *ast.File, nil:
		return n.labelAt()
	}
	return markOf(n.value)
}

func (n *node) labelAt() mark {
	if n == nil {
		return mark{1, 1, 1}
	}
	if _, ok := n.label.(*ast.File); ok {
		return mark{1, 1, 1}
	}
	return markOf(n.label)
}

// lengthAt is the length of the label or value that begins at p.
func (n *node) lengthAt(p token.Pos) int {
	if n == nil {
		return 1
	}
	for _, x := range []ast.Node{n.value, n.label} {
		if x == nil {
			continue
		}
		if _, ok := x.(*ast.File); !ok && x.Pos().Offset() == p.Offset() {
			return markOf(x).length
		}
	}
	best := 1
	for _, k := range n.kids {
		best = max(best, k.lengthAt(p))
	}
	if _, ok := n.value.(*ast.File); ok && best == 1 {
		ast.Walk(n.value, func(x ast.Node) bool {
			switch x.(type) {
			case *ast.Ident, *ast.BasicLit:
				if x.Pos().Offset() == p.Offset() {
					best = max(best, markOf(x).length)
				}
			}
			return true
		}, nil)
	}
	return best
}

func markOf(n ast.Node) mark {
	from, to := n.Pos(), n.End()
	length := 1
	if to.IsValid() && to.Line() == from.Line() {
		length = max(1, to.Offset()-from.Offset())
	}
	return markAt(from, length)
}

func markAt(p token.Pos, length int) mark {
	if !p.IsValid() || p.File() == nil {
		return mark{1, 1, 1}
	}
	at := p.Position()
	return mark{at.Line, at.Column, max(1, length)}
}

func positions(e errors.Error) []token.Pos {
	var out []token.Pos
	for _, p := range append([]token.Pos{e.Position()}, e.InputPositions()...) {
		if p.IsValid() && p.File() != nil && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func lookup(v cue.Value, path []string) cue.Value {
	for _, label := range path {
		if v.IncompleteKind() == cue.ListKind {
			i, err := strconv.Atoi(label)
			if err != nil {
				return cue.Value{}
			}
			v = v.LookupPath(cue.MakePath(cue.Index(i)))
			continue
		}
		v = v.LookupPath(cue.MakePath(cue.Str(label)))
	}
	return v
}

// typeDiffers reports whether a mismatch of types is the user's mistake, and not
// CUE's way to say that no branch of a disjunction fits.
func typeDiffers(v cue.Value, path []string, f *field) bool {
	return f.enum == nil || lookup(v, path).IncompleteKind() != cue.StringKind
}

// describe says what kind of value stands somewhere: `"yes", a string`.
func describe(v cue.Value, path []string, private bool) string {
	x := lookup(v, path)
	names := map[cue.Kind]string{
		cue.StringKind: "a string", cue.BytesKind: "bytes", cue.BoolKind: "a boolean", cue.NullKind: "null",
		cue.IntKind: "a number", cue.FloatKind: "a number", cue.NumberKind: "a number",
		cue.StructKind: "a struct", cue.ListKind: "a list",
	}
	name, ok := names[x.IncompleteKind()]
	if !ok {
		return "of the wrong type"
	}
	if s := shown(v, path, private); s != "" {
		return s + ", " + name
	}
	return name
}

// shown is a scalar as the user wrote it, shortened; "" for anything else and
// for what might be a secret.
func shown(v cue.Value, path []string, private bool) string {
	if private {
		return ""
	}
	x := lookup(v, path)
	switch x.Kind() {
	case cue.StringKind:
		s, _ := x.String()
		return quote(s)
	case cue.BoolKind:
		b, _ := x.Bool()
		return strconv.FormatBool(b)
	case cue.IntKind:
		if n, err := x.Int64(); err == nil {
			return strconv.FormatInt(n, 10)
		}
	case cue.FloatKind:
		if n, err := x.Float64(); err == nil {
			return strconv.FormatFloat(n, 'g', -1, 64)
		}
	}
	return ""
}

// maxShown is how much of a text that others wrote a message repeats, in bytes.
const maxShown = 80

func quote(s string) string {
	if len(s) > maxShown {
		return strconv.Quote(strings.ToValidUTF8(s[:maxShown], "")) + "…"
	}
	return strconv.Quote(s)
}

var anyString = regexp.MustCompile(`"[^"]*"?`)

// sentence is CUE's own message, shortened and without what strings hold: it
// might be a secret.
func sentence(format string, args []any) string {
	s := fmt.Sprintf(format, args...)
	s, _, _ = strings.Cut(s, "\n")
	s = anyString.ReplaceAllString(s, `"…"`)
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

func syntaxHint(format string) string {
	switch {
	case strings.HasPrefix(format, "missing ','"):
		return "put a comma or a new line between two fields"
	case strings.Contains(format, "not terminated"):
		return hintUnterminated
	}
	return ""
}

const hintUnterminated = "close the string on the line it begins on"

// dedupe drops findings that say the same at the same place.
func dedupe(findings []finding) []finding {
	seen := map[string]bool{}
	return slices.DeleteFunc(findings, func(f finding) bool {
		key := fmt.Sprint(f.code, f.at, f.message)
		again := seen[key] || f.code == ""
		seen[key] = true
		return again
	})
}

func unquotePath(path []string) []string {
	out := make([]string, len(path))
	for i, label := range path {
		out[i] = label
		if s, err := strconv.Unquote(label); err == nil && strings.HasPrefix(label, `"`) {
			out[i] = s
		}
	}
	return out
}

// dotted is a path as people read it: "edges[1]", "failover.origin".
func dotted(path []string) string {
	var b strings.Builder
	for i, label := range path {
		_, err := strconv.Atoi(label)
		switch {
		case err == nil && i > 0:
			b.WriteString("[" + label + "]")
		case i > 0:
			b.WriteString("." + label)
		default:
			b.WriteString(label)
		}
	}
	return b.String()
}

func orValue(name string) string {
	if name == "" {
		return "the value"
	}
	return name
}

func article(k kind) string {
	if k == kindEdge || k == kindOrigin {
		return "an " + k.String()
	}
	return "a " + k.String()
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func strs(args []any) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = fmt.Sprint(a)
	}
	return out
}

func size(n int) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

package schema

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/build"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"
)

// userFile is the name of the file being evaluated in CUE's positions; library
// files have libraryPrefix before their path.
const (
	userFile      = "file"
	libraryPrefix = "library/"
)

// evaluator evaluates files, one at a time, in one CUE context. A context grows
// with everything it has seen, so an evaluator is thrown away after a batch.
type evaluator struct {
	ctx    *cue.Context
	shapes shapes
	defs   [kinds]cue.Value
	limits evaluationLimits
	// scope holds the library's definitions, once use was called.
	scope *cue.Value
	names []string // names that the library defines
	// libraryBroken: names may be missing because the library has errors.
	libraryBroken bool
}

// evaluationLimits bound what one file may give.
type evaluationLimits struct {
	// output bytes of one file's encoded outcome.
	output int
}

// maxFindings of one file are reported; a generated file can have any number.
const maxFindings = 100

func newEvaluator(limits evaluationLimits) (*evaluator, error) {
	files, err := parseDefinitions()
	if err != nil {
		return nil, fmt.Errorf("parse definitions: %w", err)
	}
	e := &evaluator{ctx: cuecontext.New(), shapes: newShapes(files), limits: limits}
	inst := build.NewContext().NewInstance("", nil)
	for _, f := range files {
		if err := inst.AddSyntax(f); err != nil {
			return nil, fmt.Errorf("build definitions: %w", err)
		}
	}
	v := e.ctx.BuildInstance(inst)
	if err := v.Err(); err != nil {
		return nil, fmt.Errorf("build definitions: %w", err)
	}
	for k := range kinds {
		e.defs[k] = v.LookupPath(cue.MakePath(cue.Def(e.shapes[k].rule)))
		if err := e.defs[k].Err(); err != nil {
			return nil, fmt.Errorf("find definition: %w", err)
		}
	}
	return e, nil
}

// use makes the library's definitions known to the files that come after it, and
// returns the findings in each library file.
func (e *evaluator) use(files []sourceFile) [][]finding {
	findings := make([][]finding, len(files))
	xs := make([]explainer, len(files))
	for i, f := range files {
		name := libraryPrefix + f.name
		file, found := parse(name, f.text)
		findings[i] = found
		if file == nil || len(found) > 0 {
			e.libraryBroken = true
			continue
		}
		xs[i] = explainer{evaluator: e, file: name, source: file, nodes: index(file)}
		e.names = append(e.names, xs[i].topNames()...)
	}
	v, err := e.buildLibrary(xs)
	for range maxMends {
		if err == nil {
			break
		}
		mended := false
		for i := range xs {
			x := &xs[i]
			if x.source == nil {
				continue
			}
			found, at := x.dangling(err)
			if len(at) > 0 {
				mended, e.libraryBroken = true, true
				findings[i] = append(findings[i], found...)
				x.holes = append(x.holes, at...)
			}
			// A file can be built once.
			x.source = mend(x.file, files[i].text, x.holes)
			x.nodes = index(x.source)
		}
		if !mended {
			break
		}
		v, err = e.buildLibrary(xs)
	}
	if err := v.Validate(); err != nil {
		e.libraryBroken = true
		for i := range xs {
			if xs[i].source != nil {
				findings[i] = append(findings[i], xs[i].own(err)...)
			}
		}
	}
	told := false
	for i := range findings {
		findings[i] = dedupe(findings[i])
		told = told || len(findings[i]) > 0
	}
	if v.Err() != nil && !told && len(files) > 0 {
		findings[0] = append(findings[0], finding{
			code: CodeEvaluation, message: "the library, which begins with this file, could not be evaluated",
		})
	}
	e.scope = &v
	return findings
}

// maxMends is how often a file is built anew without what keeps it from being
// built: what is taken out can leave something else unused.
const maxMends = 3

func (e *evaluator) buildLibrary(xs []explainer) (cue.Value, error) {
	inst := build.NewContext().NewInstance("", nil)
	for i := range xs {
		if xs[i].source == nil {
			continue
		}
		if err := inst.AddSyntax(xs[i].source); err != nil {
			return cue.Value{}, err
		}
	}
	v := e.ctx.BuildInstance(inst)
	return v, v.Err()
}

// file evaluates one file. The outcome is only the class user when the file
// needs the library and use was not called.
func (e *evaluator) file(text []byte) (o outcome) {
	o.size = len(text)
	defer func() {
		if p := recover(); p != nil {
			o.entries = nil
			o.findings = []finding{{
				code:    CodeEvaluation,
				message: "CUE's evaluator crashed on this file",
				hint:    "write it more simply",
			}}
		}
	}()
	f, findings := parse(userFile, text)
	if f == nil || len(findings) > 0 {
		o.findings = findings
		return o
	}
	o.class = classify(f)
	if o.class == library || o.class == user && e.scope == nil {
		return o
	}
	o.entries, o.findings = e.entries(f, text)
	if len(o.findings) > maxFindings {
		more := len(o.findings) - maxFindings
		o.findings = append(o.findings[:maxFindings], finding{
			code: CodeLimit, at: o.findings[maxFindings].at, private: true,
			message: fmt.Sprintf("%s in this file, from here on", count(more, "more error")),
		})
	}
	return o
}

func (e *evaluator) build(f *ast.File) cue.Value {
	if e.scope != nil && classify(f) == user {
		return e.ctx.BuildFile(f, cue.Scope(*e.scope))
	}
	return e.ctx.BuildFile(f)
}

func (e *evaluator) entries(f *ast.File, text []byte) ([]entry, []finding) {
	v := e.build(f)
	x := explainer{evaluator: e, file: userFile, nodes: index(f), source: f}
	var findings []finding
	// References to nothing keep CUE from building the file at all. Report them,
	// then look at the rest as if they were there.
	for range maxMends {
		found, at := x.dangling(v.Err())
		if len(at) == 0 {
			break
		}
		findings = append(findings, found...)
		x.holes = append(x.holes, at...)
		f = mend(userFile, text, x.holes)
		x.nodes = index(f)
		v = e.build(f)
	}
	if v.IncompleteKind() != cue.StructKind && v.Err() == nil {
		return nil, append(findings, finding{
			code: CodeSyntax, at: markOf(content(f)), private: true,
			message: "a file is a struct with route, origin, edge or fleet",
			hint:    "write: route: NAME: {…}",
		})
	}
	var out []entry
	var failed error
	if v.Err() != nil {
		failed = v.Validate()
		findings = append(findings, x.own(failed)...)
	}
	findings = append(findings, x.unknownTop(v)...)
	budget := e.limits.output
	add := func(k kind, name string, v cue.Value) bool {
		entry, found, err := e.entry(&x, k, name, v)
		out, findings = append(out, entry), append(findings, found...)
		failed = cmp.Or(err, failed)
		budget -= entry.weight()
		return budget > 0
	}
	tooLarge := []finding{(&fault{reason: tooMuchOutput}).finding(Limits{Output: e.limits.output}, "the file")}
	for k := range kinds {
		top := v.LookupPath(cue.MakePath(cue.Str(k.String())))
		if !top.Exists() {
			continue
		}
		if k == kindFleet {
			if !add(k, "", top) {
				return nil, tooLarge
			}
			continue
		}
		named, err := top.Fields()
		if err != nil {
			if top.Err() == nil {
				findings = append(findings, finding{
					code: CodeType, at: x.valueAt([]string{k.String()}), private: true,
					message: fmt.Sprintf("%s is no struct", k),
					hint:    fmt.Sprintf("write: %s: NAME: {…}", k),
				})
			}
			continue
		}
		for named.Next() {
			if !add(k, named.Selector().Unquoted(), named.Value()) {
				return nil, tooLarge
			}
		}
	}
	if findings = dedupe(findings); failed != nil && len(findings) == 0 && len(x.holes) == 0 {
		// Nothing that is wrong may pass for right, however CUE words it.
		for _, e := range errors.Errors(failed) {
			if format, _ := e.Msg(); format != cueDisjunction || len(findings) == 0 {
				findings = append(findings[:0], x.other(e, unquotePath(e.Path())))
			}
		}
	}
	return out, findings
}

// entry unifies one value with the definition of its kind and takes it apart. The
// error is CUE's, if it has one; findings explain it.
func (e *evaluator) entry(x *explainer, k kind, name string, v cue.Value) (entry, []finding, error) {
	path := []string{k.String()}
	if k != kindFleet {
		path = append(path, name)
	}
	out := entry{kind: k, name: name, at: x.labelAt(path)}
	if k != kindFleet && !isLabel(name) {
		out.broken = true
		return out, []finding{{
			code: CodeInvalid, at: out.at, message: fmt.Sprintf("invalid name %s of %s", quote(name), article(k)),
			hint: "want a DNS label: 1 to 63 of a-z, 0-9 and -, with no - at either end",
		}}, nil
	}
	u := v.Unify(e.defs[k])
	w := leafWriter{fallback: out.at, budget: e.limits.output}
	var findings []finding
	err := u.Validate(cue.Concrete(true), cue.Final())
	if err != nil {
		var bad [][]string
		findings, bad = x.entry(k, name, path, v, err)
		for _, p := range bad {
			if len(p) == 0 {
				out.broken = true
				return out, findings, err
			}
			w.add(leaf{path: strings.Join(p, "."), typ: leafBad, at: x.valueAt(slices.Concat(path, p))})
		}
	}
	if x.mended(path) || err != nil && len(findings) == 0 {
		out.broken = true
		return out, findings, err
	}
	w.fields(u, "", x.nodes.find(path))
	if w.unread != "" && err == nil {
		findings = append(findings, finding{
			code: CodeIncomplete, at: out.at, private: true,
			message: fmt.Sprintf("%s of %s has no value that can be read", w.unread, k), hint: "give it one value",
		})
	}
	out.leaves = w.leaves
	return out, findings, err
}

// weight is about how many bytes the entry takes.
func (e entry) weight() int {
	n := 16 + len(e.name)
	for _, l := range e.leaves {
		n += 8 + len(l.path) + len(l.text)
	}
	return n
}

// leafWriter takes a valid value apart. The schema bounds every list and string
// but not how many a generated value may have, so a budget does.
type leafWriter struct {
	fallback mark
	leaves   []leaf
	budget   int
	unread   string // path of a value that is none of the schema's types
}

func (w *leafWriter) fields(v cue.Value, prefix string, n *node) {
	it, err := v.Fields()
	if err != nil {
		return
	}
	for it.Next() {
		label := it.Selector().Unquoted()
		w.value(it.Value(), prefix+label, n.kid(label))
	}
}

func (w *leafWriter) value(v cue.Value, path string, n *node) {
	if w.budget < 0 {
		return
	}
	l := leaf{path: path, at: w.fallback}
	if n != nil {
		w.fallback = n.at()
		defer func(m mark) { w.fallback = m }(l.at)
		l.at = n.at()
	}
	if v.Kind() == cue.BottomKind {
		v, _ = v.Default()
	}
	switch v.Kind() {
	case cue.StructKind:
		l.typ = leafStruct
		w.add(l)
		w.fields(v, path+".", n)
	case cue.ListKind:
		l.typ = leafList
		w.add(l)
		it, err := v.List()
		if err != nil {
			return
		}
		for i := 0; it.Next(); i++ {
			index := strconv.Itoa(i)
			w.value(it.Value(), path+"."+index, n.kid(index))
		}
	case cue.StringKind:
		l.typ = leafString
		l.text, _ = v.String()
		w.add(l)
	case cue.BoolKind:
		l.typ = leafBool
		on, _ := v.Bool()
		l.text = strconv.FormatBool(on)
		w.add(l)
	case cue.IntKind:
		l.typ = leafNumber
		number, _ := v.Int64()
		l.text = strconv.FormatInt(number, 10)
		w.add(l)
	default:
		l.typ, w.unread = leafBad, path
		w.add(l)
	}
}

func (w *leafWriter) add(l leaf) {
	w.budget -= 8 + len(l.path) + len(l.text)
	w.leaves = append(w.leaves, l)
}

// allowedImports are pure: they read nothing but their arguments.
var allowedImports = []string{"list", "math", "net", "regexp", "strconv", "strings", "time"}

// parse reads a file and refuses what a fleet repo may not use. The file is nil
// when it cannot be parsed.
func parse(name string, text []byte) (*ast.File, []finding) {
	if found := findSecrets(text); found != nil {
		return nil, found
	}
	f, err := parser.ParseFile(name, text)
	if err != nil {
		var findings []finding
		for _, e := range errors.Errors(err) {
			if len(findings) > 0 && findings[len(findings)-1].hint == hintUnterminated {
				break // what follows is the inside of the string
			}
			format, args := e.Msg()
			if len(findings) > 0 && strings.Contains(sentence(format, args), "found 'EOF'") {
				break // it comes from the one before
			}
			findings = append(findings, finding{
				code: CodeSyntax, at: markAt(e.Position(), 1), private: true,
				message: sentence(format, args),
				hint:    syntaxHint(format),
			})
		}
		return nil, dedupe(findings)
	}
	var findings []finding
	forbid := func(n ast.Node, message, hint string) {
		findings = append(findings, finding{
			code: CodeForbidden, at: markOf(n), private: true, message: message, hint: hint,
		})
	}
	switch name := f.PackageName(); name {
	case "fleet":
	case "":
		forbid(f, "the file has no package clause", "begin it with: package fleet")
	default:
		forbid(packageClause(f), fmt.Sprintf("package %s is not read", quote(name)), "write: package fleet")
	}
	for spec := range f.ImportSpecs() {
		path, err := strconv.Unquote(spec.Path.Value)
		if err == nil && !slices.Contains(allowedImports, path) {
			forbid(spec.Path, fmt.Sprintf("import of %s is not allowed", quote(path)),
				"a fleet repo may import "+strings.Join(allowedImports, ", "))
		}
	}
	if bytes.IndexByte(text, '@') >= 0 {
		ast.Walk(f, func(n ast.Node) bool {
			if a, ok := n.(*ast.Attribute); ok {
				name, _ := a.Split()
				forbid(a, fmt.Sprintf("attribute @%s is not allowed", name), "nothing reads it; take it out")
			}
			return true
		}, nil)
	}
	return f, findings
}

// classify says what the file is to others, by its text alone.
func classify(f *ast.File) class {
	shared, data := false, false
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.Field:
			name, _, err := ast.LabelName(d.Label)
			if err == nil && isShared(name) && isIdent(d.Label) {
				shared = true
			} else {
				data = true
			}
		case *ast.EmbedDecl, *ast.Comprehension, *ast.Ellipsis:
			data = true
		}
	}
	if shared && !data {
		return library
	}
	for _, id := range f.Unresolved {
		if isShared(id.Name) {
			return user
		}
	}
	return plain
}

func isIdent(label ast.Node) bool {
	if a, ok := label.(*ast.Alias); ok {
		label = a.Expr
	}
	_, ok := label.(*ast.Ident)
	return ok
}

// isShared reports whether an identifier is a definition or hidden field.
func isShared(name string) bool {
	return strings.HasPrefix(name, "#") || strings.HasPrefix(name, "_") && name != "_" && !strings.HasPrefix(name, "__")
}

// content is the first of a file that is not its head.
func content(f *ast.File) ast.Node {
	for _, d := range f.Decls {
		switch d.(type) {
		case *ast.Package, *ast.ImportDecl, *ast.CommentGroup:
		default:
			return d
		}
	}
	return f
}

func packageClause(f *ast.File) ast.Node {
	for _, d := range f.Decls {
		if p, ok := d.(*ast.Package); ok {
			return p.Name
		}
	}
	return f
}

func kindOf(name string) (kind, bool) {
	for k, n := range kindNames {
		if n == name {
			return kind(k), true
		}
	}
	return 0, false
}

// isLabel reports whether s is what #Label in repo.cue allows.
func isLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

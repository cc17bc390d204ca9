// Package logkeys guards what is logged: keys that ARCHITECTURE.md lists, and
// messages that are always the same.
package logkeys_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

const root = "../.."

func TestLogKeys(t *testing.T) {
	listed := list(t)
	used := map[string]bool{}
	for _, e := range entries(t, root) {
		for _, wrong := range e.wrong {
			t.Errorf("%v: %s", e.at, wrong)
		}
		for _, key := range e.keys {
			used[key] = true
			if !slices.Contains(listed, key) {
				t.Errorf("%v: key %q is not listed in ARCHITECTURE.md; use one of %s, or add it there when none fits", e.at, key, strings.Join(listed, " "))
			}
		}
	}
	for _, key := range listed {
		if !used[key] {
			t.Errorf("ARCHITECTURE.md lists the key %q, which nothing logs", key)
		}
	}
}

// TestSees makes sure that the guard is not blind: else it would say nothing.
func TestSees(t *testing.T) {
	for _, c := range []struct {
		call  string
		keys  string
		wrong string
	}{
		{`s.log.Info("config swapped", "count", 1, "err", err)`, "[count err]", ""},
		{`log.With("edge", name).Warn("edge lost")`, "[edge]", ""},
		{`o.Log.DebugContext(ctx, "edge lost", "peer", p)`, "[peer]", ""},
		{`attrs := []any{"action", a}; l.Log.Warn("change not made", append(attrs, "err", err)...)`, "[action err]", ""},
		{`log.Info("edge " + name)`, "[]", "is not a constant"},
		{`log.Info("Edge lost")`, "[]", "is not a plain phrase in lower case"},
		{`log.Info("edge lost.")`, "[]", "is not a plain phrase in lower case"},
		{`log.Info("edge lost: %v", "err", err)`, "[err]", "is not a plain phrase in lower case"},
		{`log.Info("edge lost", key, 1)`, "[]", "is not written out"},
		{`log.Info("edge lost", all...)`, "[]", "cannot be told"},
		{`slog.Info("edge lost")`, "[]", "the logger is passed in"},
		{`http.Error(w, "No", 404); t.Error(err); e.Error()`, "[]", ""},
	} {
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, "x.go", "package x\nfunc f() {\n"+c.call+"\n}\n", 0)
		if err != nil {
			t.Fatal(err)
		}
		keys, wrong := []string{}, ""
		for _, e := range inFile(files, file) {
			keys = append(keys, e.keys...)
			wrong += strings.Join(e.wrong, "")
		}
		slices.Sort(keys)
		if fmt.Sprint(keys) != c.keys || !strings.Contains(wrong, c.wrong) || (c.wrong == "") != (wrong == "") {
			t.Errorf("%s: keys %v, %q; want %s, %q", c.call, keys, wrong, c.keys, c.wrong)
		}
	}
}

// list is the keys of ARCHITECTURE.md: the first quoted words under its heading.
func list(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)\n## Log keys\n[^`]*`([a-z \n]+)`").FindSubmatch(text)
	if found == nil {
		t.Fatal("ARCHITECTURE.md has no list of words in backquotes under \"## Log keys\"")
	}
	return strings.Fields(string(found[1]))
}

// entry is a call that logs, or that adds keys to a logger.
type entry struct {
	at    token.Position
	keys  []string
	wrong []string
}

// entries is what the code below dir logs, tests left out.
func entries(t *testing.T, dir string) (all []entry) {
	t.Helper()
	files := token.NewFileSet()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		all = append(all, inFile(files, file)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// messageAt is the place of the message among the arguments, by method; -1 is none.
var messageAt = map[string]int{
	"Debug": 0, "Info": 0, "Warn": 0, "Error": 0,
	"DebugContext": 1, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1,
	"Log": 2, "With": -1,
}

func inFile(files *token.FileSet, file *ast.File) (all []entry) {
	for _, decl := range file.Decls {
		ast.Inspect(decl, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			message, ok := messageAt[method.Sel.Name]
			if !ok {
				return true
			}
			e := entry{at: files.Position(call.Pos())}
			switch {
			case name(method.X) == "slog":
				e.wrong = append(e.wrong, "slog."+method.Sel.Name+" uses what is global: the logger is passed in")
			case !isLogger(method.X) || len(call.Args) <= message:
				return true
			default:
				if message >= 0 {
					e.checkMessage(call.Args[message])
				}
				e.checkKeys(decl, call.Args[message+1:], call.Ellipsis.IsValid())
			}
			all = append(all, e)
			return true
		})
	}
	return all
}

// isLogger goes by the name, as people do.
func isLogger(x ast.Expr) bool {
	if call, ok := x.(*ast.CallExpr); ok {
		with, ok := call.Fun.(*ast.SelectorExpr)
		return ok && with.Sel.Name == "With" && isLogger(with.X)
	}
	return strings.EqualFold(name(x), "log") || strings.EqualFold(name(x), "logger")
}

// name is an identifier's, or a selector's last.
func name(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	}
	return ""
}

func (e *entry) checkMessage(x ast.Expr) {
	text, ok := literal(x)
	if !ok {
		e.wrong = append(e.wrong, "the message is not a constant; what varies goes under a key")
		return
	}
	last := rune(text[len(text)-1])
	if unicode.IsUpper(rune(text[0])) || strings.ContainsAny(text, "%\n") || !unicode.IsLetter(last) {
		e.wrong = append(e.wrong, fmt.Sprintf("the message %q is not a plain phrase in lower case", text))
	}
}

// checkKeys reads keys and values in turn; with spread the last argument is a slice
// of them.
func (e *entry) checkKeys(in ast.Node, args []ast.Expr, spread bool) {
	if spread {
		e.checkSlice(in, args[len(args)-1])
		args = args[:len(args)-1]
	}
	for i := 0; i < len(args); i += 2 {
		if key, ok := literal(args[i]); ok {
			e.keys = append(e.keys, key)
		} else {
			e.wrong = append(e.wrong, "a key is not written out")
		}
	}
}

// checkSlice follows a slice to where it was made.
func (e *entry) checkSlice(in ast.Node, x ast.Expr) {
	switch x := x.(type) {
	case *ast.CompositeLit:
		e.checkKeys(in, x.Elts, false)
		return
	case *ast.CallExpr:
		if name(x.Fun) == "append" {
			e.checkSlice(in, x.Args[0])
			e.checkKeys(in, x.Args[1:], x.Ellipsis.IsValid())
			return
		}
	case *ast.Ident:
		found := false
		ast.Inspect(in, func(n ast.Node) bool {
			made, ok := n.(*ast.AssignStmt)
			if ok && len(made.Lhs) == 1 && made.Tok == token.DEFINE && name(made.Lhs[0]) == x.Name {
				found = true
				e.checkSlice(in, made.Rhs[0])
			}
			return true
		})
		if found {
			return
		}
	}
	e.wrong = append(e.wrong, "the keys cannot be told from the code around the call")
}

func literal(x ast.Expr) (string, bool) {
	lit, ok := x.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil && text != ""
}

// Package edit writes objects into files of a fleet repo, changes them there and
// takes them out, as a person would: comments, order and layout of everything else
// stay. A file that was formatted as `cue fmt` does stays so.
//
// It changes what is written out, and does not evaluate. An object, or a field,
// that a comprehension, a template or any other expression makes is ErrByHand.
// What it has written may still not be a fleet: schema.Loader knows.
package edit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/literal"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// The errors that a caller may ask for with errors.Is. Any other is of a file that
// is not CUE. Those that have a place begin with it, "line:column: …", so that the
// file's path and a colon can stand before.
var (
	// ErrNotHere: the file has no such object, or the object no such field.
	ErrNotHere = errors.New("not in this file")
	// ErrByHand: a person must make the change.
	ErrByHand = errors.New("edit it by hand")
)

// Origin is a new file with one origin. The origin's values are as the schema
// wants them; Expires is written in whole seconds.
func Origin(o fleet.Origin) []byte {
	var b strings.Builder
	label := o.Name
	if ast.StringLabelNeedsQuoting(label) {
		label = quote(label)
	}
	fmt.Fprintf(&b, "package fleet\n\norigin: %s: {\n", label)
	fmt.Fprintf(&b, "public_key: %s\n", quote(o.PublicKey.String()))
	if !o.NextKey.IsZero() {
		fmt.Fprintf(&b, "next_key: %s\n", quote(o.NextKey.String()))
	}
	fmt.Fprintf(&b, "tunnel_address: %s\n", quote(o.TunnelAddress.String()))
	if len(o.Hosts) > 0 {
		hosts := make([]string, len(o.Hosts))
		for i, h := range o.Hosts {
			hosts[i] = quote(h)
		}
		fmt.Fprintf(&b, "hosts: [%s]\n", strings.Join(hosts, ", "))
	}
	if o.Expires != nil {
		fmt.Fprintf(&b, "expires: %s\n", quote(o.Expires.UTC().Format(time.RFC3339)))
	}
	b.WriteString("}\n")
	text, err := format.Source([]byte(b.String()))
	if err != nil {
		panic(fmt.Sprintf("edit: an origin that cannot be written: %v\n%s", err, b.String()))
	}
	return text
}

// SetField makes a field of an object a string. A field that is not there yet is
// put where the schema has it, or last. Kind is "edge", "origin" or "route".
func SetField(src []byte, kind, name, field, value string) ([]byte, error) {
	f, err := parse(src)
	if err != nil {
		return nil, err
	}
	objects, err := f.find(kind, name)
	if err != nil {
		return nil, err
	}
	given, err := f.fields(objects, kind, name, field)
	if err != nil {
		return nil, err
	}
	switch len(given) {
	case 0:
		return f.insert(objects, kind, name, field, value)
	case 1:
		old, ok := given[0].field.Value.(*ast.BasicLit)
		if !ok {
			return nil, byHand(given[0].field.Value.Pos(), "%s of %s %s is an expression", field, kind, name)
		}
		return f.replaced(splice{old.Pos().Offset(), old.End().Offset(), quote(value)})
	}
	return nil, byHand(given[1].field.Pos(), "%s of %s %s is given twice", field, kind, name)
}

// RemoveField takes a field out of an object, wherever the file gives it.
func RemoveField(src []byte, kind, name, field string) ([]byte, error) {
	f, err := parse(src)
	if err != nil {
		return nil, err
	}
	objects, err := f.find(kind, name)
	if err != nil {
		return nil, err
	}
	given, err := f.fields(objects, kind, name, field)
	if err != nil {
		return nil, err
	}
	if len(given) == 0 {
		return nil, fmt.Errorf("%s of %s %s is %w", field, kind, name, ErrNotHere)
	}
	return f.without(given, false)
}

// Remove takes an object out, wherever the file gives it. A file of which nothing is
// left but its package clause, imports and comments is empty: nobody needs it.
func Remove(src []byte, kind, name string) (out []byte, empty bool, err error) {
	f, err := parse(src)
	if err != nil {
		return nil, false, err
	}
	objects, err := f.find(kind, name)
	if err != nil {
		return nil, false, err
	}
	if use := f.use(kind, name, objects); use.IsValid() {
		return nil, false, byHand(use, "%s %s is used here", kind, name)
	}
	out, err = f.without(objects, true)
	if err != nil {
		return nil, false, err
	}
	left, err := parse(out)
	if err != nil {
		return nil, false, err
	}
	empty = !slices.ContainsFunc(left.tree.Decls, func(d ast.Decl) bool {
		switch d.(type) {
		case *ast.Package, *ast.ImportDecl, *ast.CommentGroup, *ast.Attribute:
			return false
		}
		return true
	})
	if pos, what := f.unused(left); what != "" && !empty {
		return nil, false, byHand(pos, "nothing but %s %s uses %s", kind, name, what)
	}
	return out, empty, nil
}

// order is where the schema has a kind's fields that come and go.
var order = map[string][]string{
	"origin": {"public_key", "next_key", "tunnel_address", "hosts", "expires"},
}

func quote(s string) string { return literal.String.Quote(s) }

// formatted reports whether a file is as `cue fmt` leaves it.
func formatted(src []byte) bool {
	out, err := format.Source(src)
	return err == nil && bytes.Equal(out, src)
}

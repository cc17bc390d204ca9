package edit

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/format"
)

// splice puts a text in the place of the bytes from from to to.
type splice struct {
	from, to int
	text     string
}

// replaced is the file with splices, which do not overlap.
func (f *file) replaced(all ...splice) ([]byte, error) {
	slices.SortFunc(all, func(a, b splice) int { return cmp.Compare(b.from, a.from) })
	out := f.src
	for _, s := range all {
		out = slices.Concat(out[:s.from], []byte(s.text), out[s.to:])
	}
	if formatted(f.src) {
		return format.Source(out)
	}
	if _, err := parse(out); err != nil {
		return nil, err
	}
	return out, nil
}

// without is the file without some fields, and without the fields around them that
// hold nothing else. A field in braces stays, unless all is set.
func (f *file) without(places []place, all bool) ([]byte, error) {
	gone := map[*ast.Field]bool{}
	for _, p := range places {
		gone[p.field] = true
	}
	for _, p := range places {
		for _, up := range slices.Backward(p.up) {
			lit := up.Value.(*ast.StructLit)
			if lit.Lbrace.IsValid() && !all || !hasOnly(lit, gone) {
				break
			}
			gone[up] = true
		}
	}
	// Of fields in each other, the outermost.
	cut := map[*ast.Field]bool{}
	for _, p := range places {
		outermost := p.field
		for _, up := range slices.Backward(p.up) {
			if gone[up] {
				outermost = up
			}
		}
		cut[outermost] = true
	}
	var splices []splice
	for field := range cut {
		splices = append(splices, f.cut(field))
	}
	return f.replaced(joined(splices)...)
}

// joined makes one cut of those that overlap, since neighbours may both take the
// empty line between them.
func joined(cuts []splice) []splice {
	slices.SortFunc(cuts, func(a, b splice) int { return cmp.Compare(a.from, b.from) })
	var out []splice
	for _, c := range cuts {
		if last := len(out) - 1; last >= 0 && c.from < out[last].to {
			out[last].to = max(out[last].to, c.to)
			continue
		}
		out = append(out, c)
	}
	return out
}

func hasOnly(lit *ast.StructLit, fields map[*ast.Field]bool) bool {
	return !slices.ContainsFunc(lit.Elts, func(d ast.Decl) bool {
		field, ok := d.(*ast.Field)
		return !ok || !fields[field]
	})
}

// cut is what goes with a field: its comments, its comma, and the lines that are
// empty then.
func (f *file) cut(field *ast.Field) splice {
	from, to := field.Pos().Offset(), field.End().Offset()
	for _, c := range ast.Comments(field) {
		if c.Doc {
			from = min(from, c.Pos().Offset())
		}
	}
	comma, end := f.tail(to)
	start := from - len(f.src[:from]) + len(bytes.TrimRight(f.src[:from], " \t"))
	startsLine := start == 0 || f.src[start-1] == '\n'
	switch {
	case startsLine && end >= 0:
		return f.closeGap(splice{from: start, to: end})
	case end >= 0:
		return splice{from: from, to: len(bytes.TrimRight(f.src[:end], "\r\n"))}
	case comma >= 0:
		return splice{from: from, to: comma + 1 + blanks(f.src[comma+1:])}
	case start > 0 && f.src[start-1] == ',':
		return splice{from: start - 1, to: to}
	}
	return splice{from: from, to: to}
}

// tail looks at what follows a declaration on its line: where its comma is, and
// where the next line begins when nothing but a comment comes first; else -1.
func (f *file) tail(at int) (comma, next int) {
	comma = -1
	at += blanks(f.src[at:])
	if at < len(f.src) && f.src[at] == ',' {
		comma = at
		at += 1 + blanks(f.src[at+1:])
	}
	if at < len(f.src) && !bytes.HasPrefix(f.src[at:], []byte("//")) && f.src[at] != '\n' {
		return comma, -1
	}
	line := bytes.IndexByte(f.src[at:], '\n')
	if line < 0 {
		return comma, len(f.src)
	}
	return comma, at + line + 1
}

func blanks(text []byte) int { return len(text) - len(bytes.TrimLeft(text, " \t\r")) }

// closeGap widens a cut of whole lines, so that of the empty lines on its two sides
// only those on one stay, and none at the end of a block.
func (f *file) closeGap(s splice) splice {
	before, after := f.src[:s.from], f.src[s.to:]
	gap := len(before) - len(bytes.TrimRight(before, " \t\r\n"))
	if gap > 0 {
		gap -= bytes.IndexByte(before[len(before)-gap:], '\n') + 1
	}
	rest := bytes.TrimLeft(after, " \t\r\n")
	switch {
	case len(rest) == 0 || rest[0] == '}':
		s.from -= gap
	case gap > 0 || s.from == 0 || bytes.HasSuffix(bytes.TrimRight(before, "\r\n"), []byte("{")):
		indent := len(after) - len(rest)
		s.to += bytes.LastIndexByte(after[:indent], '\n') + 1
	}
	return s
}

// insert is the file with one field more in an object.
func (f *file) insert(objects []place, kind, name, field, value string) ([]byte, error) {
	line := field + ": " + quote(value)
	anchor, ok := anchorOf(objects, kind, field)
	if !ok {
		lit, ok := objects[0].field.Value.(*ast.StructLit)
		if !ok || !lit.Lbrace.IsValid() {
			return nil, byHand(objects[0].field.Pos(), "%s %s has no fields", kind, name)
		}
		at := lit.Lbrace.Offset() + 1
		return f.replaced(splice{at, at, line})
	}
	// The label, or labels, that begin the anchor's line.
	first := anchor.field
	for _, up := range slices.Backward(anchor.up) {
		if up.Value.(*ast.StructLit).Lbrace.IsValid() {
			break
		}
		first = up
	}
	labels := string(f.src[first.Pos().Offset():anchor.field.Pos().Offset()])
	begin := bytes.LastIndexByte(f.src[:first.Pos().Offset()], '\n') + 1
	indent := string(f.src[begin:first.Pos().Offset()])
	_, end := f.tail(anchor.field.End().Offset())
	switch {
	case strings.Contains(labels, "\n"):
		return nil, byHand(anchor.field.Pos(), "%s %s is written in an unusual way", kind, name)
	case end >= 0 && strings.TrimSpace(indent) == "":
		at := len(bytes.TrimRight(f.src[:end], "\r\n"))
		return f.replaced(splice{at, at, f.newline() + indent + labels + line})
	}
	at := anchor.field.End().Offset()
	return f.replaced(splice{at, at, ", " + labels + line})
}

func (f *file) newline() string {
	if bytes.Contains(f.src, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// anchorOf is the field of the object after which a new one belongs.
func anchorOf(objects []place, kind, field string) (anchor place, ok bool) {
	rank := func(name string) int {
		i := slices.Index(order[kind], name)
		if i < 0 {
			return len(order[kind])
		}
		return i
	}
	best := -1
	for _, o := range objects {
		lit, plain := o.field.Value.(*ast.StructLit)
		if !plain {
			continue
		}
		for _, d := range lit.Elts {
			f, isField := d.(*ast.Field)
			if !isField {
				continue
			}
			name, _, err := ast.LabelName(f.Label)
			if err != nil {
				continue
			}
			if r := rank(name); r <= rank(field) && r >= best {
				best = r
				anchor, ok = place{f, append(o.up[:len(o.up):len(o.up)], o.field)}, true
			}
		}
	}
	return anchor, ok
}

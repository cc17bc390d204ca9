package schema

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// Code names a kind of mistake. It never changes its meaning.
type Code string

// The codes. K10xx are found in one file alone, K11xx between files, K12xx are
// warnings.
const (
	// CodeSyntax: the file is not CUE.
	CodeSyntax Code = "K1001"
	// CodeUnknownField: a field that the schema does not have.
	CodeUnknownField Code = "K1002"
	// CodeInvalid: a value of the right type that is not allowed.
	CodeInvalid Code = "K1003"
	// CodeMissing: a field that must be given.
	CodeMissing Code = "K1004"
	// CodeType: a value of another type.
	CodeType Code = "K1005"
	// CodeIncomplete: a value that is not yet one value, such as `string`.
	CodeIncomplete Code = "K1006"
	// CodeReference: a CUE reference to nothing.
	CodeReference Code = "K1007"
	// CodeConflict: one field with two values.
	CodeConflict Code = "K1008"
	// CodeForbidden: CUE that a fleet repo may not use.
	CodeForbidden Code = "K1009"
	// CodeLimit: too slow, too large or too many.
	CodeLimit Code = "K1010"
	// CodeSecret: a secret in the repo.
	CodeSecret Code = "K1011"
	// CodeEvaluation: any other error of CUE's evaluator.
	CodeEvaluation Code = "K1012"

	// CodeUnknownName: an edge or origin that does not exist.
	CodeUnknownName Code = "K1101"
	// CodeDuplicate: one name in two files.
	CodeDuplicate Code = "K1102"
	// CodeClash: two things that cannot both have what they name.
	CodeClash Code = "K1103"
	// CodeOutside: a host or address that is not the fleet's, or not the
	// origin's, to use.
	CodeOutside Code = "K1104"
	// CodeCombination: fields that do not go together.
	CodeCombination Code = "K1105"
	// CodeNoFleet: no file fills in fleet.
	CodeNoFleet Code = "K1106"

	// CodeExpired: something that has already ended.
	CodeExpired Code = "K1201"
	// CodeNoEdge: routes, and no edge to serve them.
	CodeNoEdge Code = "K1202"
	// CodeShared: two edges with one public address.
	CodeShared Code = "K1203"
	// CodeEnding: something that ends within a day.
	CodeEnding Code = "K1204"
)

// Severity says whether a Diagnostic keeps the fleet from loading.
type Severity string

// The severities.
const (
	// SeverityError keeps the fleet from loading.
	SeverityError Severity = "error"
	// SeverityWarning does not.
	SeverityWarning Severity = "warning"
)

// Diagnostic is one mistake in the fleet repo.
type Diagnostic struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Position of the mistake; without a line when it is about a whole file, and
	// zero when it is about the whole repo. Columns count bytes.
	Position fleet.Position `json:"position"`
	// Length in bytes of what is marked, from Position; at least 1.
	Length int `json:"length"`
	// Message says what is wrong, in one line.
	Message string `json:"message"`
	// Hint says what to do; may be empty.
	Hint string `json:"hint,omitempty"`
	// Quote is the source line at Position, with the text of strings left out
	// where it might be a secret; may be empty.
	Quote string `json:"quote,omitempty"`
	// Related are other places that have to do with it.
	Related []Related `json:"related,omitempty"`

	// private lines may hold a secret.
	private bool
}

// Related is a place that has to do with a Diagnostic.
type Related struct {
	Position fleet.Position `json:"position"`
	// Message says what stands there: "first here".
	Message string `json:"message"`
}

// Diagnostics are the mistakes in a fleet repo, sorted by file, line and column.
// It is the error of Loader.Load when the repo is wrong.
type Diagnostics []Diagnostic

// Error is the first error's place and message, and the number of the others.
func (d Diagnostics) Error() string {
	errs := d.Errors()
	if len(errs) == 0 {
		return "no errors"
	}
	text := errs[0].Message
	if p := place(errs[0].Position); p != "" {
		text = p + ": " + text
	}
	if len(errs) > 1 {
		text += fmt.Sprintf(" (and %s)", count(len(errs)-1, "more error"))
	}
	return printable(text)
}

// Errors are those that keep the fleet from loading.
func (d Diagnostics) Errors() Diagnostics { return d.only(SeverityError) }

// Warnings are those that do not.
func (d Diagnostics) Warnings() Diagnostics { return d.only(SeverityWarning) }

// Text writes them for people: place, the line with a mark under the mistake,
// what to do, and a count at the end. It writes nothing when there are none.
// Control characters of the repo's files are not passed on.
func (d Diagnostics) Text(w io.Writer) error {
	var b bytes.Buffer
	for _, x := range d {
		x.text(&b)
	}
	if len(d) > 0 {
		b.WriteString(d.summary() + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

// JSON writes them as one document: {"format_version": "1.0", "errors": N,
// "warnings": N, "diagnostics": […]}.
func (d Diagnostics) JSON(w io.Writer) error {
	if d == nil {
		d = Diagnostics{}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		FormatVersion string      `json:"format_version"`
		Errors        int         `json:"errors"`
		Warnings      int         `json:"warnings"`
		Diagnostics   Diagnostics `json:"diagnostics"`
	}{"1.0", len(d.Errors()), len(d.Warnings()), d})
}

func (d Diagnostics) only(s Severity) Diagnostics {
	var out Diagnostics
	for _, x := range d {
		if x.Severity == s {
			out = append(out, x)
		}
	}
	return out
}

func (d Diagnostics) summary() string {
	var parts []string
	if n := len(d.Errors()); n > 0 {
		parts = append(parts, count(n, "error"))
	}
	if n := len(d.Warnings()); n > 0 {
		parts = append(parts, count(n, "warning"))
	}
	return strings.Join(parts, ", ")
}

func (d Diagnostics) sort() {
	slices.SortStableFunc(d, func(a, b Diagnostic) int {
		return cmp.Or(
			cmp.Compare(a.Position.File, b.Position.File),
			cmp.Compare(a.Position.Line, b.Position.Line),
			cmp.Compare(a.Position.Column, b.Position.Column),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Message, b.Message),
		)
	})
}

func (x Diagnostic) text(b *bytes.Buffer) {
	fmt.Fprintf(b, "%s %s: %s\n", x.Severity, x.Code, printable(x.Message))
	if p := place(x.Position); p != "" {
		fmt.Fprintf(b, "  %s\n", printable(p))
	}
	hint := printable(x.Hint)
	if x.Quote != "" && x.Position.Line > 0 {
		number := strconv.Itoa(x.Position.Line)
		margin := strings.Repeat(" ", len(number))
		before, marked := split(x.Quote, x.Position.Column-1, x.Length)
		fmt.Fprintf(b, "   %s | %s\n", number, printable(x.Quote))
		fmt.Fprintf(b, "   %s | %s%s", margin, blank(before), strings.Repeat("^", max(1, utf8.RuneCountInString(marked))))
		if hint != "" && len(hint) <= 60 {
			b.WriteString(" " + hint)
			hint = ""
		}
		b.WriteString("\n")
	}
	if hint != "" {
		fmt.Fprintf(b, "  %s\n", hint)
	}
	for _, r := range x.Related {
		fmt.Fprintf(b, "  %s: %s\n", printable(place(r.Position)), printable(r.Message))
	}
	b.WriteString("\n")
}

// place is a position as people read it: the file alone when there is no line.
func place(p fleet.Position) string {
	if p.Line == 0 {
		return p.File
	}
	return p.String()
}

// split cuts a line into what is before a mark and what is marked.
func split(line string, from, length int) (before, marked string) {
	from = min(max(from, 0), len(line))
	return line[:from], line[from:min(from+max(length, 0), len(line))]
}

// blank is as wide as s when printed: tabs stay tabs.
func blank(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, s)
}

// printable replaces what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// withoutStrings hides the text of a line's strings and comments, each byte behind
// a star, so that marks stay where they are.
func withoutStrings(line string) string {
	var out strings.Builder
	var within rune // the quote that ends the string, or '/' in a comment
	escaped := false
	for i, r := range line {
		switch {
		case within == 0:
			out.WriteRune(r)
			switch {
			case r == '"', r == '\'':
				within = r
			case r == '/' && strings.HasPrefix(line[i:], "//"):
				within = '/'
			}
		case r == within && r != '/' && !escaped:
			within = 0
			out.WriteRune(r)
		default:
			out.WriteString(strings.Repeat("*", utf8.RuneLen(r)))
		}
		escaped = within != 0 && r == '\\' && !escaped
	}
	return out.String()
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

package plan

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// line is one or more changes that read the same but for their scope.
type line struct {
	Change
	scopes []string
}

// lines groups the plan's changes for people: a route that changes in the same way
// on three edges is one line.
func (p Plan) lines() []line {
	type key struct {
		action        Action
		kind          Kind
		name          string
		cause         Cause
		before, after string
	}
	at := map[key]int{}
	var out []line
	for _, c := range p.Changes {
		k := key{c.Action, c.Ref.Kind, c.Ref.Name, c.Cause, text(c.Before), text(c.After)}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, line{Change: c})
		}
		if c.Ref.Scope != "" {
			out[i].scopes = append(out[i].scopes, c.Ref.Scope)
		}
	}
	for i := range out {
		slices.Sort(out[i].scopes)
	}
	return out
}

func text(s Spec) string {
	if s == nil {
		return ""
	}
	return s.String()
}

// delta is one field that differs.
type delta struct{ name, before, after string }

// deltas compares field by field, and counts the fields that are equal. A field
// that only one side has is compared with "".
func deltas(before, after Spec) (changed []delta, same int) {
	was := map[string]string{}
	for _, f := range before.Fields() {
		was[f.Name] = f.Value
	}
	for _, f := range after.Fields() {
		old := was[f.Name]
		delete(was, f.Name)
		if old == f.Value {
			same++
			continue
		}
		changed = append(changed, delta{f.Name, old, f.Value})
	}
	for _, f := range before.Fields() {
		if old, gone := was[f.Name]; gone && old != "" {
			changed = append(changed, delta{f.Name, old, ""})
		}
	}
	return changed, same
}

// collapse is how many creates of a kind are listed one by one before the rest
// are counted. Updates and deletes are always listed in full.
const collapse = 20

// Text writes the plan for a terminal, without colour. Creates beyond the first
// twenty of a kind are counted unless all is set; deletes never are.
func (p Plan) Text(w io.Writer, all bool) error {
	b := &strings.Builder{}
	lines := p.lines()
	for _, part := range []struct {
		cause Cause
		title string
	}{
		{Git, "Changes from Git"},
		{Course, "Changes that follow from what is live"},
		{Drift, "Drift: changed outside Git, to be put back"},
	} {
		var of []line
		for _, l := range lines {
			if l.Cause == part.cause {
				of = append(of, l)
			}
		}
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(b, "%s (%d)\n", part.title, len(of))
		writeLines(b, of, all)
		b.WriteByte('\n')
	}
	if len(p.Waiting) > 0 {
		fmt.Fprintf(b, "Waiting (%d)\n", len(p.Waiting))
		for i, wait := range p.Waiting {
			if i == collapse && !all {
				fmt.Fprintf(b, "  … and %d more\n", len(p.Waiting)-i)
				break
			}
			fmt.Fprintf(b, "  · %s: %s%s\n", wait.Ref, wait.Reason, from(wait.From))
		}
		b.WriteByte('\n')
	}
	for _, block := range p.Blocked {
		fmt.Fprintf(b, "BLOCKED  would delete %d of %d %ss: %s\n", block.Deletes, block.Existing, block.Kind, block.Rule)
	}
	fmt.Fprintln(b, p.Summary())
	_, err := io.WriteString(w, b.String())
	return err
}

func writeLines(b *strings.Builder, lines []line, all bool) {
	width := 0
	for _, l := range lines {
		width = max(width, len(l.Ref.Name))
	}
	width = min(width, 32)
	created := map[Kind]int{}
	for _, l := range lines {
		if l.Action == Create {
			created[l.Ref.Kind]++
			if created[l.Ref.Kind] > collapse && !all {
				continue
			}
		}
		fmt.Fprintf(b, "  %s %-11s %-*s", l.Action, l.Ref.Kind, width, l.Ref.Name)
		switch l.Action {
		case Create:
			fmt.Fprintf(b, "  %s", l.After)
		case Delete:
			fmt.Fprintf(b, "  %s", l.Before)
		}
		if len(l.scopes) > 0 {
			preposition := "on"
			if l.Ref.Kind == Record {
				preposition = "in"
			}
			fmt.Fprintf(b, "  %s %s", preposition, strings.Join(l.scopes, ", "))
		}
		b.WriteString(from(l.From))
		b.WriteByte('\n')
		if l.Action != Update {
			continue
		}
		changed, same := deltas(l.Before, l.After)
		for _, d := range changed {
			fmt.Fprintf(b, "      %-14s %s → %s\n", d.name, orNone(d.before), orNone(d.after))
		}
		if same > 0 {
			fmt.Fprintf(b, "      (%d unchanged)\n", same)
		}
	}
	for kind := Peer; kind <= Record; kind++ {
		if n := created[kind] - collapse; n > 0 && !all {
			fmt.Fprintf(b, "  + %-11s … and %d more (--all lists them)\n", kind, n)
		}
	}
}

func from(position string) string {
	if position == "" {
		return ""
	}
	return "  (" + position + ")"
}

func orNone(v string) string {
	if v == "" {
		return "(none)"
	}
	return v
}

// Counts is how many lines create, update and delete, as people see them.
func (p Plan) Counts() (create, update, remove int) {
	for _, l := range p.lines() {
		switch l.Action {
		case Create:
			create++
		case Update:
			update++
		case Delete:
			remove++
		}
	}
	return create, update, remove
}

// Summary is the plan in one sentence.
func (p Plan) Summary() string {
	create, update, remove := p.Counts()
	switch {
	case p.Empty():
		return fmt.Sprintf("Nothing to do: %d things are as Git wants them.", p.Unchanged)
	case create+update+remove == 0:
		return fmt.Sprintf("Nothing to do now: %d waiting.", len(p.Waiting))
	}
	s := fmt.Sprintf("Plan: %d to create, %d to change, %d to delete", create, update, remove)
	if n := len(p.Waiting); n > 0 {
		s += fmt.Sprintf(", %d waiting", n)
	}
	return s + "."
}

// markdownLimit keeps a plan within a forge's largest comment.
const markdownLimit = 60000

// Markdown writes the plan for a pull request: a table, then every field that
// changes. It stays under 60,000 bytes: creates are cut first, deletes never.
func (p Plan) Markdown(w io.Writer) error {
	b := &strings.Builder{}
	create, update, remove := p.Counts()
	fmt.Fprintf(b, "### kokoa plan: **%d create · %d change · %d delete**\n\n", create, update, remove)
	for _, block := range p.Blocked {
		fmt.Fprintf(b, "> **Blocked**: would delete %d of %d %ss: %s\n\n", block.Deletes, block.Existing, block.Kind, escape(block.Rule))
	}
	lines := p.lines()
	if len(lines) > 0 {
		b.WriteString("| | Object | Change | Where |\n|--|--|--|--|\n")
		// Deletes first into the budget, so that they are never what is cut.
		order := slices.Clone(lines)
		slices.SortStableFunc(order, func(x, y line) int { return deleteFirst(x) - deleteFirst(y) })
		cut := 0
		for _, l := range order {
			row := markdownRow(l)
			if l.Action != Delete && b.Len()+len(row) > markdownLimit/2 {
				cut++
				continue
			}
			b.WriteString(row)
		}
		if cut > 0 {
			fmt.Fprintf(b, "\n%d more, not shown here: `kokoa plan --all` lists them.\n", cut)
		}
	}
	if diff := markdownDiff(lines, markdownLimit-b.Len()-512); diff != "" {
		fmt.Fprintf(b, "\n<details><summary>Fields</summary>\n\n```diff\n%s```\n\n</details>\n", diff)
	}
	if len(p.Waiting) > 0 {
		fmt.Fprintf(b, "\n%d waiting:\n\n", len(p.Waiting))
		for i, wait := range p.Waiting {
			if i == collapse {
				fmt.Fprintf(b, "- … and %d more\n", len(p.Waiting)-i)
				break
			}
			fmt.Fprintf(b, "- `%s`: %s\n", wait.Ref, escape(wait.Reason))
		}
	}
	fmt.Fprintf(b, "\n%s\n", p.Summary())
	_, err := io.WriteString(w, b.String())
	return err
}

func deleteFirst(l line) int {
	if l.Action == Delete {
		return 0
	}
	return 1
}

func markdownRow(l line) string {
	icon := map[Action]string{Create: "➕", Update: "✏️", Delete: "🗑️"}[l.Action]
	what := text(l.After)
	switch l.Action {
	case Delete:
		what = text(l.Before)
	case Update:
		changed, _ := deltas(l.Before, l.After)
		var parts []string
		for _, d := range changed {
			parts = append(parts, fmt.Sprintf("%s %s→%s", d.name, orNone(d.before), orNone(d.after)))
		}
		what = strings.Join(parts, ", ")
	}
	if l.Cause == Drift {
		icon, what = "⚠️", "**drift** "+what
	}
	return fmt.Sprintf("| %s | `%s %s` | %s | %s |\n", icon, l.Ref.Kind, l.Ref.Name, escape(what), escape(l.From))
}

func markdownDiff(lines []line, limit int) string {
	b := &strings.Builder{}
	for _, l := range lines {
		if l.Action != Update {
			continue
		}
		part := fmt.Sprintf("! %s %s\n", l.Ref.Kind, l.Ref.Name)
		changed, _ := deltas(l.Before, l.After)
		for _, d := range changed {
			part += fmt.Sprintf("-   %s: %s\n+   %s: %s\n", d.name, orNone(d.before), d.name, orNone(d.after))
		}
		if b.Len()+len(part) > limit {
			fmt.Fprintf(b, "# more not shown\n")
			break
		}
		b.WriteString(strings.ReplaceAll(part, "```", "'''"))
	}
	return b.String()
}

// escape keeps a value from breaking out of a table cell or becoming markup.
var escape = strings.NewReplacer("|", `\|`, "\n", " ", "\r", " ", "<", "&lt;", ">", "&gt;", "`", "'").Replace

// Document is the plan as JSON. Readers ignore fields they do not know.
type Document struct {
	FormatVersion string           `json:"format_version"`
	Changes       []DocumentChange `json:"changes"`
	Waiting       []Waiting        `json:"waiting"`
	Blocked       []Block          `json:"blocked"`
	Summary       DocumentSummary  `json:"summary"`
}

// DocumentChange is a Change as JSON. Before and After map a field's name to its
// value; absent for a create or a delete.
type DocumentChange struct {
	Address string            `json:"address"`
	Ref     Ref               `json:"ref"`
	Action  Action            `json:"action"`
	Cause   Cause             `json:"cause"`
	Before  map[string]string `json:"before,omitempty"`
	After   map[string]string `json:"after,omitempty"`
	From    string            `json:"from,omitempty"`
}

// DocumentSummary counts the changes, each copy of a thing by itself.
type DocumentSummary struct {
	Create    int `json:"create"`
	Update    int `json:"update"`
	Delete    int `json:"delete"`
	Waiting   int `json:"waiting"`
	Unchanged int `json:"unchanged"`
}

// Document is the plan in the shape that is written as JSON.
func (p Plan) Document() Document {
	d := Document{
		FormatVersion: "1.0",
		Changes:       make([]DocumentChange, 0, len(p.Changes)),
		Waiting:       append([]Waiting{}, p.Waiting...),
		Blocked:       append([]Block{}, p.Blocked...),
		Summary:       DocumentSummary{Waiting: len(p.Waiting), Unchanged: p.Unchanged},
	}
	for _, c := range p.Changes {
		d.Changes = append(d.Changes, DocumentChange{c.Ref.String(), c.Ref, c.Action, c.Cause, fields(c.Before), fields(c.After), c.From})
		switch c.Action {
		case Create:
			d.Summary.Create++
		case Update:
			d.Summary.Update++
		case Delete:
			d.Summary.Delete++
		}
	}
	return d
}

func fields(s Spec) map[string]string {
	if s == nil {
		return nil
	}
	m := map[string]string{}
	for _, f := range s.Fields() {
		m[f.Name] = f.Value
	}
	return m
}

package schema

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unique"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// outcome is what evaluating one file gave, free of CUE: what the worker sends
// and the cache keeps. It does not know the file's path, since one blob may stand
// at two.
type outcome struct {
	class class
	// size of the source in bytes.
	size     int
	entries  []entry
	findings []finding
}

// class says what a file is to other files.
type class byte

const (
	// plain files need nothing but the schema.
	plain class = iota
	// user files refer to definitions of the library.
	user
	// library files hold only definitions and hidden fields.
	library
	classes // their number
)

// kind is a top-level field of a fleet repo.
type kind byte

const (
	kindFleet kind = iota
	kindEdge
	kindOrigin
	kindRoute
	kinds // their number
)

var kindNames = [kinds]string{"fleet", "edge", "origin", "route"}

func (k kind) String() string { return kindNames[k] }

// entry is one edge, origin or route, or the fleet, as flat leaves.
type entry struct {
	kind kind
	// name is empty for the fleet.
	name string
	at   mark
	// broken entries have findings, and no leaves that say something: only their
	// name counts.
	broken bool
	leaves []leaf
}

// leaf is a value in an entry, parents before children.
type leaf struct {
	// path from the entry, dotted: "failover.origin", "edges.0".
	path string
	typ  leafType
	// text of a scalar: a string itself, a number or boolean as CUE writes it.
	text string
	at   mark
}

type leafType byte

const (
	leafStruct leafType = iota
	leafList
	leafString
	leafNumber
	leafBool
	// leafBad stands for a value that is wrong, or missing where it must not be:
	// a finding says so, and nothing more needs to be said of it.
	leafBad
	leafTypes // their number
)

// mark is a place in the file that is evaluated. Columns count bytes from 1.
type mark struct {
	line, column, length int
}

func (m mark) in(file string) fleet.Position {
	if m.line == 0 {
		return fleet.Position{File: file}
	}
	return fleet.Position{File: file, Line: m.line, Column: m.column}
}

// finding is a mistake in one file.
type finding struct {
	code          Code
	message, hint string
	at            mark
	// private findings are quoted without the text of strings, which might be a
	// secret.
	private bool
	related []relation
}

// relation is a related place; an empty file is the finding's own.
type relation struct {
	file    string
	at      mark
	message string
}

var errOutcome = errors.New("not a result of an evaluation")

// Decoded numbers are held to what a file within Limits can have, so that a
// damaged count cannot ask for memory.
const (
	maxDecodedCount  = 1 << 20
	maxDecodedNumber = 1 << 30
)

func (o outcome) append(b []byte) []byte {
	b = append(b, byte(o.class))
	b = binary.AppendUvarint(b, uint64(o.size))
	b = binary.AppendUvarint(b, uint64(len(o.entries)))
	for _, e := range o.entries {
		b = append(b, byte(e.kind), bit(e.broken))
		b = appendText(b, e.name)
		b = e.at.append(b)
		b = binary.AppendUvarint(b, uint64(len(e.leaves)))
		for _, l := range e.leaves {
			b = append(b, byte(l.typ))
			b = appendText(b, l.path)
			b = appendText(b, l.text)
			b = l.at.append(b)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(o.findings)))
	for _, f := range o.findings {
		b = append(b, bit(f.private))
		b = appendText(b, string(f.code))
		b = appendText(b, f.message)
		b = appendText(b, f.hint)
		b = f.at.append(b)
		b = binary.AppendUvarint(b, uint64(len(f.related)))
		for _, r := range f.related {
			b = appendText(b, r.file)
			b = appendText(b, r.message)
			b = r.at.append(b)
		}
	}
	return b
}

// decodeOutcome reads what append wrote. Any other bytes give an error, never a
// panic and never more memory than a small multiple of their length.
func decodeOutcome(b []byte) (outcome, error) {
	d := decoder{rest: b}
	o := outcome{class: class(d.below(byte(classes))), size: d.number()}
	for range d.count() {
		e := entry{kind: kind(d.below(byte(kinds))), broken: d.below(2) == 1, name: d.text(), at: d.mark()}
		for range d.count() {
			e.leaves = append(e.leaves, leaf{typ: leafType(d.below(byte(leafTypes))), path: d.path(), text: d.text(), at: d.mark()})
		}
		o.entries = append(o.entries, e)
	}
	for range d.count() {
		f := finding{private: d.below(2) == 1, code: Code(d.text()), message: d.text(), hint: d.text(), at: d.mark()}
		for range d.count() {
			f.related = append(f.related, relation{file: d.text(), message: d.text(), at: d.mark()})
		}
		o.findings = append(o.findings, f)
	}
	if d.bad || len(d.rest) != 0 {
		return outcome{}, fmt.Errorf("decode %d bytes: %w", len(b), errOutcome)
	}
	return o, nil
}

func (m mark) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(m.line))
	b = binary.AppendUvarint(b, uint64(m.column))
	return binary.AppendUvarint(b, uint64(m.length))
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func bit(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// decoder reads values one after the other; once bad it only gives zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) fail() { d.bad, d.rest = true, nil }

func (d *decoder) below(n byte) byte {
	if len(d.rest) == 0 || d.rest[0] >= n {
		d.fail()
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) number() int {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 || v > maxDecodedNumber {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return int(v)
}

// count is a number of things that take at least a byte each.
func (d *decoder) count() int {
	n := d.number()
	if n > len(d.rest) || n > maxDecodedCount {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) text() string {
	n := d.number()
	if n > len(d.rest) {
		d.fail()
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

// path is a text of which few different ones are kept.
func (d *decoder) path() string { return unique.Make(d.text()).Value() }

func (d *decoder) mark() mark {
	return mark{line: d.number(), column: d.number(), length: d.number()}
}

package edit_test

import (
	"bytes"
	"errors"
	"testing"

	"cuelang.org/go/cue/parser"

	"github.com/kokoa-proxy/kokoa/schema/edit"
)

// Whatever a file holds, what comes out of it is CUE, and was done.
func FuzzEdit(f *testing.F) {
	for _, src := range []string{
		"package fleet\n\n// At home.\norigin: rpi: {\n\tpublic_key: \"a\" // its key\n}\n",
		"origin: {rpi: {public_key: \"a\"}, vm1: {}, rpi: next_key: \"b\"}",
		"origin: rpi: public_key: \"a\"\r\n\r\norigin: rpi: next_key: \"\"\"\n\tb\n\t\"\"\"\r\n",
		"package fleet\nlet x = 1\n@attr()\norigin: \"rpi\": #T & {a: x} @y()\n\n\n#T: {...}\n",
		"origin: rpi: {public_key: \"a\", if x {y: 1}, #Z, [string]: 1, ...}",
		"origin: rpi: {}, origin: X=rpi: {}\norigin: rpi: {},",
		"{origin: rpi: 1}\nfor x in y {origin: rpi: x}",
	} {
		f.Add([]byte(src))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		out, empty, err := edit.Remove(src, "origin", "rpi")
		if err == nil {
			parses(t, src, out)
			if _, _, err := edit.Remove(out, "origin", "rpi"); !errors.Is(err, edit.ErrNotHere) && !errors.Is(err, edit.ErrByHand) {
				t.Errorf("still there: %v, empty %v\n%q\n%q", err, empty, src, out)
			}
		}
		if out, err := edit.RemoveField(src, "origin", "rpi", "next_key"); err == nil {
			parses(t, src, out)
			if _, err := edit.RemoveField(out, "origin", "rpi", "next_key"); !errors.Is(err, edit.ErrNotHere) && !errors.Is(err, edit.ErrByHand) {
				t.Errorf("still there: %v\n%q\n%q", err, src, out)
			}
		}
		if out, err := edit.SetField(src, "origin", "rpi", "next_key", "b\"\n"); err == nil {
			parses(t, src, out)
			again, err := edit.SetField(out, "origin", "rpi", "next_key", "b\"\n")
			if err != nil || !bytes.Equal(again, out) {
				t.Errorf("set again: %v\n%q\n%q\n%q", err, src, out, again)
			}
		}
	})
}

func parses(t *testing.T, src, out []byte) {
	t.Helper()
	if _, err := parser.ParseFile("", out); err != nil {
		t.Fatalf("%v\n%q\n%q", err, src, out)
	}
}

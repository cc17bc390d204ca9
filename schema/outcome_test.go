package schema

import (
	"bytes"
	"reflect"
	"testing"
)

var sampleOutcome = outcome{
	class: user,
	size:  123,
	entries: []entry{
		{kind: kindRoute, name: "blog", at: mark{3, 8, 4}, leaves: []leaf{
			{path: "host", typ: leafString, text: "blog.kokoa.test", at: mark{4, 11, 17}},
			{path: "edges", typ: leafList, at: mark{5, 2, 5}},
			{path: "edges.0", typ: leafBad, at: mark{5, 10, 7}},
		}},
		{kind: kindFleet, broken: true},
	},
	findings: []finding{{
		code: CodeInvalid, message: "message", hint: "hint", at: mark{1, 2, 3}, private: true,
		related: []relation{{file: "x.cue", at: mark{4, 5, 6}, message: "here"}},
	}},
}

func TestOutcomeRoundTrip(t *testing.T) {
	got, err := decodeOutcome(sampleOutcome.append(nil))
	if err != nil || !reflect.DeepEqual(got, sampleOutcome) {
		t.Errorf("decoded %+v, %v", got, err)
	}
	text := sampleOutcome.append(nil)
	for n := range text {
		if _, err := decodeOutcome(text[:n]); err == nil {
			t.Errorf("%d of %d bytes were decoded", n, len(text))
		}
	}
	if _, err := decodeOutcome(append(text, 0)); err == nil {
		t.Error("a byte too many was decoded")
	}
}

func TestBatchRoundTrip(t *testing.T) {
	want := batch{scoped: true, library: []sourceFile{{"a.cue", []byte("a")}}, files: [][]byte{[]byte("b"), []byte("c")}}
	got, err := decodeBatch(want.append(nil))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

func FuzzDecodeOutcome(f *testing.F) {
	f.Add(sampleOutcome.append(nil))
	f.Add(outcome{}.append(nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := decodeOutcome(text)
		if err != nil {
			return
		}
		again, err := decodeOutcome(o.append(nil))
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("%+v was encoded and decoded to %+v, %v", o, again, err)
		}
		bind(o) // whatever it holds must not crash the process that serves
	})
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(batch{probe: true, files: [][]byte{[]byte("x")}}.append(nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := decodeBatch(text)
		if err != nil {
			return
		}
		again, err := decodeBatch(b.append(nil))
		if err != nil || !bytes.Equal(again.append(nil), b.append(nil)) {
			t.Errorf("%+v was encoded and decoded to %+v, %v", b, again, err)
		}
	})
}

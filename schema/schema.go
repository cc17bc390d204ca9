// Package schema is the CUE a user writes against, and Load, which turns a tree
// of it into a fleet.Fleet.
//
// The definitions are in the *.cue files beside this one. Each file of a fleet
// repo is evaluated alone, in a child process that can be killed, and unified with
// the definition for its kind; what one file cannot know (references, clashes) is
// checked in Go afterwards. A program that uses a Loader calls RunIfWorker first
// thing in main: the child is the same program, started again.
package schema

import (
	"crypto/sha256"
	"embed"
	"io/fs"
	"runtime/debug"
)

//go:embed *.cue
var definitions embed.FS

// Definitions are the schema's own CUE files, for people and for `cue vet`.
func Definitions() fs.FS { return definitions }

// resultFormat counts changes to how files are evaluated and results are written down,
// as the schema's text counts changes to what is allowed.
const resultFormat = "kokoa schema results 1"

// fingerprint is the hash of everything but its input that an evaluation
// depends on: schema, CUE's version and the format of results.
func fingerprint() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(resultFormat + "\n" + cueVersion() + "\n"))
	for _, f := range definitionFiles() {
		h.Write([]byte(f.name + "\n"))
		h.Write(f.text)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

type sourceFile struct {
	name string
	text []byte
}

// definitionFiles is the embedded schema, sorted by name.
func definitionFiles() []sourceFile {
	entries, err := definitions.ReadDir(".")
	if err != nil {
		panic("schema: read embedded definitions: " + err.Error())
	}
	files := make([]sourceFile, 0, len(entries))
	for _, e := range entries {
		text, err := definitions.ReadFile(e.Name())
		if err != nil {
			panic("schema: read embedded definitions: " + err.Error())
		}
		files = append(files, sourceFile{e.Name(), text})
	}
	return files
}

func cueVersion() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == "cuelang.org/go" {
			return m.Version
		}
	}
	return ""
}

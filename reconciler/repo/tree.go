package repo

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/kokoa-proxy/kokoa/schema"
)

// maxDepth of folders in folders.
const maxDepth = 64

// tree is every *.cue file below one folder of Git's.
type tree struct {
	files       []schema.File
	hashes      []plumbing.Hash // of files, by the same index
	notFollowed int
}

// known remembers folders and files by hash, so that reading the next revision
// costs what has changed.
type known struct {
	mu      sync.Mutex
	folders map[plumbing.Hash]*folder
	blobs   map[plumbing.Hash]blob
}

// folder is one Git tree object, without what is below it. Its entries are read
// from the text each time: by themselves they would take twice the memory.
type folder struct {
	text string
	// Counts of the *.cue files and not followed entries here and below.
	files, notFollowed int
}

type entry struct {
	name string
	mode mode
	hash plumbing.Hash
}

// mode is the type bits of an entry's mode; permissions mean nothing here.
type mode uint32

const (
	modeFolder    mode = 0o040000
	modeFile      mode = 0o100000
	modeLink      mode = 0o120000
	modeSubmodule mode = 0o160000
)

type blob struct {
	size int64
	hex  string
}

// walk is one reading of a tree.
type walk struct {
	ctx     context.Context
	objects *objects
	limits  Limits
	old     *known
	folders map[plumbing.Hash]*folder
	blobs   map[plumbing.Hash]blob
	bytes   int64
	out     *tree
}

// tree reads the tree with a hash, or the subfolder of it, whole. With newest set
// only what this tree uses is remembered, else that as well.
func (k *known) tree(ctx context.Context, objects *objects, root plumbing.Hash, subfolder string, limits Limits, newest bool) (*tree, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := &walk{
		ctx: ctx, objects: objects, limits: limits, old: k, out: &tree{},
		folders: make(map[plumbing.Hash]*folder, len(k.folders)),
		blobs:   make(map[plumbing.Hash]blob, len(k.blobs)),
	}
	root, err := w.find(root, subfolder)
	if err != nil {
		return nil, err
	}
	top, err := w.load(root, 0)
	if err != nil {
		return nil, err
	}
	if top.files > limits.Files {
		return nil, fmt.Errorf("%w: %d *.cue files, and at most %d are read", ErrLimit, top.files, limits.Files)
	}
	w.out.files = make([]schema.File, 0, top.files)
	w.out.hashes = make([]plumbing.Hash, 0, top.files)
	w.out.notFollowed = top.notFollowed
	if err := w.list(top, ""); err != nil {
		return nil, err
	}
	if len(w.out.files) == 0 {
		return nil, ErrEmpty
	}
	if newest {
		k.folders, k.blobs = w.folders, w.blobs
		return w.out, nil
	}
	for h, f := range w.folders {
		k.folders[h] = f
	}
	for h, b := range w.blobs {
		k.blobs[h] = b
	}
	return w.out, nil
}

func newKnown() *known {
	return &known{folders: make(map[plumbing.Hash]*folder), blobs: make(map[plumbing.Hash]blob)}
}

// find is the tree at a path below root. A folder that the commit does not have
// is as good as one without files.
func (w *walk) find(root plumbing.Hash, path string) (plumbing.Hash, error) {
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		text, err := w.objects.get(root, plumbing.TreeObject, maxObject)
		if err != nil {
			return root, err
		}
		found := false
		for e, err := range entries(string(text)) {
			if err != nil {
				return root, err
			}
			if found = e.name == name && e.mode == modeFolder; found {
				root = e.hash
				break
			}
		}
		if !found {
			return root, fmt.Errorf("%w below %s", ErrEmpty, path)
		}
	}
	return root, nil
}

// load reads a folder and all below it, each once however often it occurs: a tree
// that says the same folder a hundred times on each of ten levels stays small.
func (w *walk) load(h plumbing.Hash, depth int) (*folder, error) {
	if f, done := w.folders[h]; done {
		return f, nil
	}
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: folders more than %d deep", ErrLimit, maxDepth)
	}
	f, ok := w.old.folders[h]
	if !ok {
		text, err := w.objects.get(h, plumbing.TreeObject, maxObject)
		if err != nil {
			return nil, fmt.Errorf("folder %s: %w", h, err)
		}
		f = &folder{text: string(text)}
	}
	if err := w.count(int64(len(f.text))); err != nil {
		return nil, err
	}
	files, notFollowed := 0, 0
	for e, err := range entries(f.text) {
		if err != nil {
			return nil, fmt.Errorf("folder %s: %w", h, err)
		}
		if unread(e.name) {
			continue
		}
		switch e.mode {
		case modeFolder:
			below, err := w.load(e.hash, depth+1)
			if err != nil {
				return nil, err
			}
			files += below.files
			notFollowed += below.notFollowed
		case modeLink, modeSubmodule:
			notFollowed++
		}
		if e.mode != modeFolder && isCUE(e.name) {
			files++
		}
		// Counts only grow, and both may be made to grow without end.
		if files > 10*w.limits.Files || notFollowed > 10*w.limits.Files {
			return nil, fmt.Errorf("%w: more than %d files", ErrLimit, 10*w.limits.Files)
		}
	}
	f.files, f.notFollowed = files, notFollowed
	w.folders[h] = f
	return f, nil
}

// list appends the folder's files in the order of their paths, which is Git's own.
func (w *walk) list(f *folder, prefix string) error {
	for e, err := range entries(f.text) {
		if err != nil {
			return err
		}
		if unread(e.name) {
			continue
		}
		path := prefix + e.name
		if e.mode == modeFolder {
			// Only folders with files are gone into: the others may be many.
			if below := w.folders[e.hash]; below.files > 0 {
				if err := w.list(below, path+"/"); err != nil {
					return err
				}
			}
			continue
		}
		if !isCUE(e.name) {
			continue
		}
		if why := oddPath(path); why != "" {
			return fmt.Errorf("%w: %q: %s", ErrPath, path, why)
		}
		switch e.mode {
		case modeLink:
			return fmt.Errorf("%w: %s is a symbolic link; commit the file itself", ErrPath, path)
		case modeSubmodule:
			return fmt.Errorf("%w: %s is a submodule; its files must be in this repository", ErrPath, path)
		}
		b, err := w.blob(e.hash)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := within(b.size, w.limits.File); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := w.count(b.size); err != nil {
			return err
		}
		if n := len(w.out.files); n > 0 && w.out.files[n-1].Path >= path {
			return fmt.Errorf("%w: %s stands twice or out of order in its folder", ErrCorrupt, path)
		}
		w.out.files = append(w.out.files, schema.File{Path: path, Hash: b.hex})
		w.out.hashes = append(w.out.hashes, e.hash)
	}
	return nil
}

func (w *walk) blob(h plumbing.Hash) (blob, error) {
	if b, done := w.blobs[h]; done {
		return b, nil
	}
	b, ok := w.old.blobs[h]
	if !ok {
		if err := w.ctx.Err(); err != nil {
			return b, err
		}
		size, err := w.objects.size(h)
		if err != nil {
			return b, err
		}
		b = blob{size, h.String()}
	}
	w.blobs[h] = b
	return b, nil
}

func (w *walk) count(size int64) error {
	if w.bytes += size; w.bytes > w.limits.Bytes {
		return fmt.Errorf("%w: more than %s of files and folders", ErrLimit, bytesText(w.limits.Bytes))
	}
	return nil
}

// entries reads a tree object: "100644 name\0" and 20 bytes of hash, each
// (gitformat-tree). An error is the last. Order is checked where it matters, in list.
func entries(text string) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		for len(text) > 0 {
			e, rest, err := parseEntry(text)
			if !yield(e, err) || err != nil {
				return
			}
			text = rest
		}
	}
}

func parseEntry(text string) (e entry, rest string, err error) {
	octal, rest, ok := strings.Cut(text, " ")
	if !ok {
		return e, "", fmt.Errorf("%w: a tree's entry has no mode", ErrCorrupt)
	}
	e.name, rest, ok = strings.Cut(rest, "\x00")
	if !ok || e.name == "" || strings.Contains(e.name, "/") {
		return e, "", fmt.Errorf("%w: a tree's entry has no proper name", ErrCorrupt)
	}
	if len(rest) < len(e.hash) {
		return e, "", fmt.Errorf("%w: a tree is cut off", ErrCorrupt)
	}
	bits, err := strconv.ParseUint(octal, 8, 18)
	e.mode = mode(bits) & 0o170000
	if err != nil || !slices.Contains([]mode{modeFolder, modeFile, modeLink, modeSubmodule}, e.mode) {
		return e, "", fmt.Errorf("%w: a tree's entry has mode %.20q", ErrCorrupt, octal)
	}
	copy(e.hash[:], rest)
	return e, rest[len(e.hash):], nil
}

func isCUE(name string) bool { return strings.HasSuffix(name, ".cue") }

// unread reports whether a file or folder of this name is none of the fleet's. A
// name that only looks like .git is left for oddPath to refuse.
func unread(name string) bool {
	return (name[0] == '.' || name == "cue.mod") && oddPath(name) == ""
}

// oddPath says why a path is refused: it is one that some system would take for
// another, that hides in a terminal, or that reaches out of the folder.
func oddPath(path string) string {
	if !utf8.ValidString(path) {
		return "the path is not UTF-8"
	}
	for _, r := range path {
		switch {
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return "the path has a control character in it"
		case r == '\\':
			return "the path has a backslash in it; use / between folders"
		case strings.ContainsRune("\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u206a\u206b\u206c\u206d\u206e\u206f\ufeff", r):
			return "the path has an invisible character in it"
		}
	}
	for part := range strings.SplitSeq(path, "/") {
		switch plain := strings.ToLower(strings.TrimRight(part, ". ")); {
		case part == "":
			return "the path has an empty part"
		case part == ".." || part == ".":
			return `the path has "` + part + `" in it`
		case plain == ".git" || strings.HasPrefix(plain, ".git:") || plain == "git~1":
			return "the path goes through .git"
		case plain != strings.ToLower(part):
			return "a part of the path ends with a dot or a blank"
		case device(plain):
			return "a part of the path is the name of a device on Windows"
		}
	}
	return ""
}

func device(name string) bool {
	name, _, _ = strings.Cut(name, ".")
	switch name = strings.TrimRight(name, " "); name {
	case "con", "prn", "aux", "nul":
		return true
	}
	return len(name) == 4 && (name[:3] == "com" || name[:3] == "lpt") && name[3] >= '1' && name[3] <= '9'
}

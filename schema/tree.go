package schema

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// File is a file of a Tree.
type File struct {
	// Path from the tree's root, with slashes.
	Path string
	// Hash is the file's Git blob hash in hexadecimal: equal hashes mean equal
	// bytes.
	Hash string
}

// Tree is a fleet repo at one commit, or a folder. Load calls Files once and
// then Read, one call at a time.
type Tree interface {
	// Files lists regular files, in any order. Files that Load does not read
	// (see Wanted) may be left out.
	Files() []File
	// Read returns the bytes of a file that Files listed.
	Read(path string) ([]byte, error)
}

// Wanted reports whether Load reads a path: *.cue files, but for those in a folder
// named cue.mod or in or under a name that begins with a dot.
func Wanted(name string) bool {
	if !strings.HasSuffix(name, ".cue") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if skipped(part) {
			return false
		}
	}
	return true
}

func skipped(part string) bool { return part == "cue.mod" || strings.HasPrefix(part, ".") }

// Dir is a plain folder as a Tree, as it is now: later changes of a file are an
// error of Read, not a mix of old and new. Symbolic links are not followed, and
// nothing outside the folder can be read.
func Dir(name string) (Tree, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	defer root.Close()
	d := &dir{name: name, hashes: map[string]string{}}
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if p != "." && skipped(path.Base(p)) {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() || !Wanted(p) {
			return nil
		}
		text, err := readLimited(root, p)
		if err != nil {
			return err
		}
		d.hashes[p] = blobHash(text)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read folder %s: %w", name, err)
	}
	return d, nil
}

// ErrChanged is in the error of a Dir's Read when the file is no longer what it
// was when Dir listed it. Reading the folder again helps.
var ErrChanged = errors.New("file changed while it was read")

type dir struct {
	name   string
	hashes map[string]string // by path
}

func (d *dir) Files() []File {
	files := make([]File, 0, len(d.hashes))
	for _, p := range slices.Sorted(maps.Keys(d.hashes)) {
		files = append(files, File{Path: p, Hash: d.hashes[p]})
	}
	return files
}

func (d *dir) Read(p string) ([]byte, error) {
	root, err := os.OpenRoot(d.name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	text, err := readLimited(root, p)
	if err != nil {
		return nil, err
	}
	if d.hashes[p] != blobHash(text) {
		return nil, fmt.Errorf("read %s: %w", p, ErrChanged)
	}
	return text, nil
}

// readLimited reads a regular file, and no more of it than shows that it is too
// large for any Limits.
func readLimited(root *os.Root, p string) ([]byte, error) {
	f, err := root.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: %w", p, ErrChanged)
	}
	return io.ReadAll(io.LimitReader(f, maxAnyFile+1))
}

// maxAnyFile is the largest Limits.FileSize can be.
const maxAnyFile = 16 << 20

// blobHash is the name Git gives a blob.
func blobHash(text []byte) string {
	h := sha1.New()
	h.Write([]byte("blob " + strconv.Itoa(len(text)) + "\x00"))
	h.Write(text)
	return hex.EncodeToString(h.Sum(nil))
}

package downloads

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// platforms are those that install.sh asks for, in the order of the list.
var platforms = []string{"linux-amd64", "linux-arm64", "linux-armv7", "darwin-amd64", "darwin-arm64"}

const (
	program     = "kokoa-agent-"
	versionFile = "VERSION"
)

// list is what is offered, as it was read and signed.
type list struct {
	seen            map[string]fs.FileInfo
	day             time.Time
	files           []file
	text, signature []byte
}

// file is one that was read. Its bytes are those of sum as long as it is still is.
type file struct {
	name string
	is   fs.FileInfo
	sum  [sha256.Size]byte
}

// errChanged says that a file is not the one that was read.
var errChanged = errors.New("file changed")

// current is the list of the files as they are now, signed today. Only files that
// changed are read again.
func (h *Handler) current() (l *list, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for range 3 { // a file may be replaced while it is read
		if l, err = h.next(); !errors.Is(err, errChanged) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if h.list == nil || !maps.EqualFunc(h.list.seen, l.seen, same) {
		h.log.Info("downloads signed", "count", len(l.files))
	}
	h.list, h.lost = l, ""
	return l, nil
}

// next is what the list should be.
func (h *Handler) next() (*list, error) {
	seen, err := look(h.dir)
	if err != nil {
		return nil, err
	}
	l := &list{seen: seen, day: time.Now().UTC().Truncate(24 * time.Hour)}
	if h.list != nil && h.list.day.Equal(l.day) && maps.EqualFunc(h.list.seen, seen, same) {
		return h.list, nil
	}
	for _, name := range names() {
		is, ok := seen[name]
		if !ok {
			continue
		}
		f, known := h.list.find(name)
		if !known || !same(f.is, is) {
			if f, err = read(h.dir, name, is); err != nil {
				return nil, err
			}
		}
		l.files = append(l.files, f)
	}
	if len(l.files) == 0 {
		return nil, fmt.Errorf("%s has no file like %s%s", h.dir, program, platforms[0])
	}
	version, err := h.versionOf(seen)
	if err != nil {
		return nil, err
	}
	return l, l.sign(h.key, version)
}

// look finds the files that matter.
func look(dir string) (map[string]fs.FileInfo, error) {
	seen := make(map[string]fs.FileInfo)
	for _, name := range append([]string{versionFile}, names()...) {
		is, err := os.Stat(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case !is.Mode().IsRegular():
			return nil, fmt.Errorf("%s is not a file", filepath.Join(dir, name))
		default:
			seen[name] = is
		}
	}
	return seen, nil
}

// names are all files that a folder may offer.
func names() (names []string) {
	for _, platform := range platforms {
		names = append(names, program+platform)
	}
	return names
}

// same reports whether nothing was done to a file between two looks.
func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func read(dir, name string, is fs.FileInfo) (file, error) {
	f := file{name: name, is: is}
	opened, err := f.open(dir)
	if err != nil {
		return file{}, err
	}
	defer opened.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, opened); err != nil {
		return file{}, fmt.Errorf("read %s: %w", name, err)
	}
	return file{name: name, is: is, sum: [sha256.Size]byte(sum.Sum(nil))}, nil
}

// open opens the file that was read; another one in its place is errChanged.
func (f file) open(dir string) (*os.File, error) {
	opened, err := os.Open(filepath.Join(dir, f.name))
	if err != nil {
		return nil, err
	}
	is, err := opened.Stat()
	if err == nil && !same(is, f.is) {
		err = fmt.Errorf("open %s: %w", f.name, errChanged)
	}
	if err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	return opened, nil
}

// plainVersion is a version in the form in which a shell may read and print it.
var plainVersion = regexp.MustCompile(`^[0-9A-Za-z.+()-]+$`)

// versionOf is the version of the files, without the "v" that Git tags begin with.
func (h *Handler) versionOf(seen map[string]fs.FileInfo) (string, error) {
	version := h.version
	if _, ok := seen[versionFile]; ok {
		text, err := os.ReadFile(filepath.Join(h.dir, versionFile))
		if err != nil {
			return "", err
		}
		version = strings.TrimSpace(string(text))
	}
	version = strings.TrimPrefix(version, "v")
	if !plainVersion.MatchString(version) {
		return "", fmt.Errorf("version %q is not one like 1.2.3", version)
	}
	return version, nil
}

// sign writes the list and its signature. Equal lists of a day are equal bytes.
func (l *list) sign(key *ecdsa.PrivateKey, version string) (err error) {
	var text bytes.Buffer
	// From any time of the day there is a Lifetime left.
	expires := l.day.Add(24*time.Hour + Lifetime)
	fmt.Fprintf(&text, "kokoa agent manifest v1\nversion %s\nexpires %s\n", version, expires.Format(time.RFC3339))
	for _, f := range l.files {
		fmt.Fprintf(&text, "%x %d %s\n", f.sum, f.is.Size(), f.name)
	}
	l.text = text.Bytes()
	digest := sha256.Sum256(l.text)
	if l.signature, err = key.Sign(nil, digest[:], crypto.SHA256); err != nil {
		return fmt.Errorf("sign list: %w", err)
	}
	return nil
}

// find finds a file by its name. A list may be nil.
func (l *list) find(name string) (file, bool) {
	if l != nil {
		for _, f := range l.files {
			if f.name == name {
				return f, true
			}
		}
	}
	return file{}, false
}

// names are the files that there are.
func (l *list) names() (names []string) {
	for _, f := range l.files {
		names = append(names, f.name)
	}
	return names
}

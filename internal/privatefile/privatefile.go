// Package privatefile reads JSON files that hold a private key, and the folders
// that such files lie in.
package privatefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ErrExposed is in the error about a file or folder that other users can read.
var ErrExposed = errors.New("other users can read it")

// maxSize in bytes is far above any such file.
const maxSize = 1 << 20

// ReadJSON reads the file at path into v, strictly: unknown fields and trailing
// data are errors, and a mistake carries its place, "path:line:column". A file that
// users other than its owner can read, or that belongs to neither this user nor
// root, is ErrExposed, and the error says how to mend it. A credential of a systemd service
// is private, whatever its mode says.
func ReadJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	if err := check(path, info, 0o600); err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return err
	}
	if len(data) > maxSize {
		return fmt.Errorf("%s has more than %d bytes", path, maxSize)
	}
	return decode(path, data, v)
}

// Folder makes a folder that only this user can use, or checks that one that exists
// is; else the error is ErrExposed.
func Folder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return Check(path, 0o700)
}

// Check is nil when nobody but its owner, this user or root, can use the file or
// folder at path; else the error is ErrExposed, and advises to set mode.
func Check(path string, mode os.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return check(path, info, mode)
}

func check(path string, info os.FileInfo, want os.FileMode) error {
	if credential(path) {
		return nil
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %#o, so %w; run: chmod %o %s", path, mode, ErrExposed, want, path)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, so %w; run: chown %d %s", path, owner.Uid, ErrExposed, os.Geteuid(), path)
	}
	return nil
}

// credential reports whether systemd handed the file to this service (see
// systemd.exec(5), LoadCredential). Only the service can read it then: its owner may be
// root, and its mode shows the mask of an access list.
func credential(path string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	return filepath.IsAbs(dir) && filepath.Dir(path) == filepath.Clean(dir)
}

// decode decodes strictly; path is where data is said to stand.
func decode(path string, data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		at := d.InputOffset()
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			at = syntax.Offset
		case errors.As(err, &kind):
			at = kind.Offset
		}
		return fmt.Errorf("%s: %w", place(path, data, at), err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%s: something stands after the end", place(path, data, d.InputOffset()))
	}
	return nil
}

// place is "path:line:column" of the byte before offset.
func place(path string, data []byte, offset int64) string {
	before := data[:min(max(offset-1, 0), int64(len(data)))]
	return fmt.Sprintf("%s:%d:%d", path, bytes.Count(before, []byte("\n"))+1, len(before)-bytes.LastIndexByte(before, '\n'))
}

// Package atomicfile replaces a file so that a reader, or a crash at any moment,
// finds the old content or the new, whole.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Write makes data the content of path with the given mode. The data and the
// folder's entry are on disk when it returns. On an error, a full disk among them,
// the old file is as it was and nothing is left beside it. Two writers at once
// leave the content of one of them.
func Write(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, unfinished(path)+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, ignoreAbsent(os.Remove(f.Name()))))
	}
	return syncDir(dir)
}

// Sweep removes what a Write to path left beside it when the process was killed or
// the host lost power; a folder that is not there holds nothing. Nobody may be
// writing to path meanwhile.
func Sweep(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	err = ignoreAbsent(err)
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), unfinished(path))
		if ok && number != "" && strings.Trim(number, "0123456789") == "" {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}

// unfinished is what the name of a file begins with that is to become path; a
// number follows.
func unfinished(path string) string { return "." + filepath.Base(path) + "." }

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Rename gives a file that Write made another name in the same folder, in place of
// what had it. The folder's entry is on disk when it returns.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

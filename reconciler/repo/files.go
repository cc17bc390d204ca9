package repo

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
)

// maxGitFile bounds the files of a repository that are Git's own and read whole:
// HEAD, references, settings, lists of folders.
const maxGitFile = 16 << 20

var errNotOrdinary = errors.New("not an ordinary file")

// openFile opens a file below a folder of Git's. It follows no link out of the
// folder, and does not wait for what a pipe may bring.
func openFile(dir, name string) (*os.File, error) {
	f, err := openBelow(dir, name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = ordinary(info, name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readFolder lists a folder below a folder of Git's, like openFile.
func readFolder(dir, name string) ([]fs.DirEntry, error) {
	f, err := openBelow(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

func openBelow(dir, name string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// readFile is the content of one of Git's own files.
func readFile(dir, name string) ([]byte, error) {
	f, err := openFile(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := within(info.Size(), maxGitFile); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return io.ReadAll(io.LimitReader(f, maxGitFile))
}

func ordinary(info fs.FileInfo, name string) error {
	if info.IsDir() {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w (%s)", name, errNotOrdinary, info.Mode().Type())
	}
	return nil
}

// gitFiles is a repository's folder for go-git, which reads a file to its end
// whatever it is. It follows no link out of the folder either.
type gitFiles struct{ billy.Filesystem }

func newGitFiles(dir string) gitFiles { return gitFiles{osfs.New(dir)} }

func (g gitFiles) Open(name string) (billy.File, error) {
	info, err := g.Stat(name)
	if err != nil {
		return nil, err
	}
	if err := ordinary(info, name); err != nil {
		return nil, err
	}
	if err := within(info.Size(), maxGitFile); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return g.Filesystem.Open(name)
}

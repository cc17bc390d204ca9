package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func TestWriteReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	for _, content := range []string{"one", "two, longer", ""} {
		if err := Write(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v; want %q", got, err, content)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
		}
	}
}

// A write that cannot happen leaves the old file, and nothing else.
func TestWriteFailureLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "config.json")
	// A folder that is not empty cannot be renamed over, whoever we are.
	if err := os.MkdirAll(filepath.Join(target, "inside"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(target, []byte("new"), 0o600); err == nil {
		t.Fatal("wrote over a folder")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	if err := Write(filepath.Join(dir, "absent", "file"), nil, 0o600); err == nil {
		t.Error("wrote into a folder that does not exist")
	}
}

func TestSweepTakesOnlyWhatWriteLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config")
	keep := []string{".config", ".config.", ".config.old", ".config.previous.7", "config", "config.123"}
	for _, name := range append(slices.Clone(keep), ".config.0", ".config.2871930174") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(path); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, keep) {
		t.Errorf("left %q, want %q", left, keep)
	}
	if err := Sweep(filepath.Join(dir, "absent", "config")); err != nil {
		t.Errorf("a folder that does not exist: %v", err)
	}
	if err := Sweep(filepath.Join(path, "config")); err == nil {
		t.Error("swept a file as if it were a folder")
	}
	t.Chdir(dir)
	if err := os.WriteFile(".config.1", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep("config"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(".config.1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path without a folder was not swept: %v", err)
	}
}

func TestWritersAtOnceLeaveOneWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := Write(path, bytes.Repeat([]byte{byte('a' + i)}, 1<<16), fs.FileMode(0o600)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(path)
	if err != nil || len(got) != 1<<16 || bytes.Count(got, got[:1]) != len(got) {
		t.Errorf("torn: %d bytes, %v", len(got), err)
	}
}

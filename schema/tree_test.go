package schema

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestWanted(t *testing.T) {
	for path, want := range map[string]bool{
		"fleet.cue":              true,
		"routes/eu/blog.cue":     true,
		"routes/blog.cue.orig":   false,
		"README.md":              false,
		"cue.mod/module.cue":     false,
		"a/cue.mod/pkg/x.cue":    false,
		".git/x.cue":             false,
		"a/.hidden/x.cue":        false,
		"a/.x.cue":               false,
		"cue.modest/x.cue":       true,
		"routes/cue.mod.cue":     true,
		"routes/_drafts/new.cue": true,
	} {
		if got := Wanted(path); got != want {
			t.Errorf("Wanted(%q) is %t, want %t", path, got, want)
		}
	}
}

func TestDir(t *testing.T) {
	folder := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside.cue")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(outside, "package fleet\n")
	write(filepath.Join(folder, "fleet.cue"), "hello\n")
	write(filepath.Join(folder, "routes", "blog.cue"), "")
	write(filepath.Join(folder, ".git", "x.cue"), "x")
	write(filepath.Join(folder, "cue.mod", "module.cue"), "x")
	for link, target := range map[string]string{
		"link.cue": outside, "inside.cue": "fleet.cue", "folder": filepath.Dir(outside), "folder.cue": ".",
	} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := Dir(folder)
	if err != nil {
		t.Fatal(err)
	}
	want := []File{
		// As `git hash-object` says.
		{"fleet.cue", "ce013625030ba8dba906f756967f9e9ca394464a"},
		{"routes/blog.cue", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"},
	}
	if got := tree.Files(); !slices.Equal(got, want) {
		t.Errorf("the folder has %v, want %v", got, want)
	}
	if text, err := tree.Read("fleet.cue"); err != nil || string(text) != "hello\n" {
		t.Errorf("read %q, %v", text, err)
	}
	if _, err := tree.Read("../" + filepath.Base(filepath.Dir(outside)) + "/outside.cue"); err == nil {
		t.Error("a file outside was read")
	}
	write(filepath.Join(folder, "fleet.cue"), "changed\n")
	if _, err := tree.Read("fleet.cue"); !errors.Is(err, ErrChanged) {
		t.Errorf("reading a changed file gave %v, want ErrChanged", err)
	}
	if _, err := Dir(filepath.Join(folder, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent folder gave %v", err)
	}
	if _, err := Dir(filepath.Join(folder, "fleet.cue")); err == nil {
		t.Error("a file was taken for a folder")
	}
}

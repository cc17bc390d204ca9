package privatefile

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

type sample struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

func TestReadJSON(t *testing.T) {
	dir := t.TempDir()
	write := func(text string, mode os.FileMode) string {
		path := filepath.Join(dir, "f.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var v sample
	if err := ReadJSON(write("{\"name\": \"a\",\n \"n\": 1}\n", 0o600), &v); err != nil || v != (sample{"a", 1}) {
		t.Errorf("%+v, %v", v, err)
	}
	for _, test := range []struct {
		text string
		mode os.FileMode
		want string
	}{
		{"{}", 0o644, "chmod 600"},
		{"{}", 0o620, "chmod 600"},
		{"{\n\"name\": ]}", 0o600, "f.json:2:9: "},
		{"{\n\"n\": \"a\"}", 0o600, "f.json:2:"},
		{"{\"colour\": 1}", 0o600, "colour"},
		{"{}\n{}", 0o600, "f.json:2:1: something stands after the end"},
		{"", 0o600, "f.json:1:1: "},
		{strings.Repeat(" ", maxSize+1), 0o600, "more than"},
	} {
		err := ReadJSON(write(test.text, test.mode), &sample{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.20q with mode %o: %v; want %q in it", test.text, test.mode, err, test.want)
		}
		if errors.Is(err, ErrExposed) != (test.mode != 0o600) {
			t.Errorf("%.20q with mode %o: %v; ErrExposed %v", test.text, test.mode, err, !errors.Is(err, ErrExposed))
		}
	}
	if err := ReadJSON(dir, &v); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Error(err)
	}
	if err := ReadJSON(filepath.Join(dir, "absent"), &v); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Whatever a file holds, a mistake in it carries its place, and what is taken is
// taken again when it is written back.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{"{\"name\": \"a\",\n \"n\": 1}\n", "{\n\"n\": \"a\"}", "{}\n{}", "{\n\"name\": ", ""} {
		f.Add([]byte(seed))
	}
	at := regexp.MustCompile(`^f\.json:[1-9][0-9]*:[1-9][0-9]*: .`)
	f.Fuzz(func(t *testing.T, data []byte) {
		var v, again sample
		if err := decode("f.json", data, &v); err != nil {
			if !at.MatchString(err.Error()) {
				t.Fatalf("%q does not say where", err)
			}
			return
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode("f.json", text, &again); err != nil || again != v {
			t.Fatalf("%+v became %+v, %v", v, again, err)
		}
	})
}

// What systemd handed to a service is private whatever its mode says, and nothing else.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.json")
	if err := os.WriteFile(path, []byte("{}"), 0o440); err != nil {
		t.Fatal(err)
	}
	for given, exposed := range map[string]bool{dir: false, dir + "/": false, "": true, filepath.Dir(dir): true, ".": true} {
		t.Setenv("CREDENTIALS_DIRECTORY", given)
		if err := ReadJSON(path, &sample{}); errors.Is(err, ErrExposed) != exposed {
			t.Errorf("with $CREDENTIALS_DIRECTORY %q: %v", given, err)
		}
	}
}

func TestFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	if err := Folder(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := Folder(path); !errors.Is(err, ErrExposed) || !strings.Contains(err.Error(), "chmod 700 "+path) {
		t.Error(err)
	}
}

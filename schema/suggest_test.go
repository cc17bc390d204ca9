package schema

import (
	"slices"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"strip_path", "preserve_host", "host", "hosts", "vm1", "vm10", "tokyo"}
	for name, want := range map[string]string{
		"strip_paths":  "strip_path",
		"strippath":    "strip_path",
		"stirp_path":   "strip_path",
		"presrve_host": "preserve_host",
		"hsot":         "host",
		"vm2":          "vm1",
		"toyko":        "tokyo",
		"kyoto":        "",
		"x":            "",
		"":             "",
	} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
}

func FuzzNearest(f *testing.F) {
	f.Add("strip_paths", "strip_path", "host")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, name, a, b string) {
		if got := nearest(name, []string{a, b}); got != "" && !slices.Contains([]string{a, b}, got) {
			t.Errorf("nearest made %q up", got)
		}
		if len(a) > 200 || len(b) > 200 {
			return
		}
		d := distance(a, b)
		if d != distance(b, a) {
			t.Errorf("the distance of %q and %q depends on the direction", a, b)
		}
		if (d == 0) != (a == b) || d > max(len(a), len(b)) {
			t.Errorf("the distance of %q and %q is %d", a, b, d)
		}
	})
}

package certs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/catest"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
)

// issued is a certificate for hosts that ends after life.
func issued(t *testing.T, name string, life time.Duration, hosts ...string) api.Certificate {
	t.Helper()
	chain, key := catest.New(t).Issue(life, hosts...)
	return api.Certificate{Name: name, Chain: chain, Key: key}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, damaged, err := Open(dir)
	if err != nil || len(damaged) > 0 {
		t.Fatal(damaged, err)
	}
	return s
}

func TestFind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	s := open(t, dir)
	for _, c := range []api.Certificate{
		issued(t, "exact", time.Hour, "a.example.com", "B.example.com."),
		issued(t, "wild", time.Hour, "*.example.com"),
		issued(t, "old", time.Minute, "c.example.org"),
		issued(t, "new", time.Hour, "c.example.org"),
		issued(t, "z-old", time.Minute, "c.example.org"),
	} {
		if err := s.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	check := func(s *Store) {
		t.Helper()
		for host, want := range map[string]string{
			"a.example.com": "exact", "b.example.com": "exact", "x.example.com": "wild", "example.com": "", "x.y.example.com": "",
			"c.example.org": "new", "*.example.com": "wild", "": "", "com": "",
		} {
			got := ""
			if c := s.Find(host); c != nil {
				got = c.Name
			}
			if got != want {
				t.Errorf("Find(%q) is %q; want %q", host, got, want)
			}
		}
	}
	check(s)
	check(open(t, dir))
	if !s.Find("x.example.com").Covers("y.example.com") || s.Find("x.example.com").Covers("x.y.example.com") {
		t.Error("a wildcard covers one label")
	}
	if err := s.Delete("new"); err != nil {
		t.Fatal(err)
	}
	if c := s.Find("c.example.org"); c == nil || c.Name != "old" {
		t.Errorf("after the newer one went: %+v", c)
	}
	if n := len(s.State()); n != 4 {
		t.Errorf("%d certificates; want 4", n)
	}
}

func TestPutRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	s := open(t, dir)
	good := issued(t, "good", time.Hour, "a.example.com")
	if err := s.Put(good); err != nil {
		t.Fatal(err)
	}
	other := issued(t, "other", time.Hour, "b.example.com")
	for name, c := range map[string]api.Certificate{
		"no chain":            {Name: "good", Key: good.Key},
		"no key":              {Name: "good", Chain: good.Chain},
		"another's key":       {Name: "good", Chain: good.Chain, Key: other.Key},
		"no host":             issued(t, "good", time.Hour),
		"garbage":             {Name: "good", Chain: []byte("x"), Key: []byte("y")},
		"a path":              {Name: "../good", Chain: other.Chain, Key: other.Key},
		"a hidden file":       {Name: ".good", Chain: other.Chain, Key: other.Key},
		"no name":             {Name: "", Chain: other.Chain, Key: other.Key},
		"a name with NUL":     {Name: "a\x00", Chain: other.Chain, Key: other.Key},
		"a name of 201 bytes": {Name: strings.Repeat("a", 201), Chain: other.Chain, Key: other.Key},
	} {
		err := s.Put(c)
		if !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v; want ErrBad", name, err)
		}
		if strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if c := s.Find("a.example.com"); c == nil || s.Find("b.example.com") != nil {
		t.Error("what was refused changed what is served")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v; want the one file", entries, err)
	}
}

// TestOpenDamaged: a file that is no certificate, or half a write, costs nothing but
// itself.
func TestOpenDamaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	s := open(t, dir)
	for _, name := range []string{"good", "bad"} {
		if err := s.Put(issued(t, name, time.Hour, name+".example.com")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "bad.pem"), 300); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".good.pem.123", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, damaged, err := Open(dir)
	if err != nil || len(damaged) != 1 || !strings.Contains(damaged[0].Error(), "certificate bad") {
		t.Fatal(damaged, err)
	}
	if s.Find("good.example.com") == nil || s.Find("bad.example.com") != nil {
		t.Error("want the good one and not the bad one")
	}
	if _, err := os.Stat(filepath.Join(dir, ".good.pem.123")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a write is left: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "good.pem"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(dir); !errors.Is(err, privatefile.ErrExposed) {
		t.Errorf("%v; want ErrExposed", err)
	}
}

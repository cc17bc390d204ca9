package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestSecretDerives(t *testing.T) {
	a, b := Secret{1}, Secret{2}
	seen := map[Private]string{}
	for name, k := range map[string]Private{
		"control 0": a.Control(0), "control 1": a.Control(1), "other fleet": b.Control(0),
		"tokyo": a.Edge("tokyo", 1), "tokyo again": a.Edge("tokyo", 2), "osaka": a.Edge("osaka", 1),
		// The generation cannot be moved into the name.
		"edge 1/2": a.Edge("2", 1), "edge 12": a.Edge("", 12),
	} {
		if other, twice := seen[k]; twice {
			t.Errorf("%s and %s have one key", name, other)
		}
		seen[k] = name
	}
	if a.Control(0) != (Secret{1}).Control(0) || !a.Signing().Equal((Secret{1}).Signing()) || !a.CA().Equal((Secret{1}).CA()) {
		t.Error("the same secret gave other keys")
	}
	if a.CA().Equal(b.CA()) || a.Signing().Equal(b.Signing()) || a.TSIG("x") == b.TSIG("x") || a.TSIG("x") == a.TSIG("y") {
		t.Error("other secrets gave the same keys")
	}
}

// No way of printing a private key or a secret shows it.
func TestPrintingHides(t *testing.T) {
	k, err := NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "key", k, "secret", s)
	for _, printed := range []string{fmt.Sprint(k), fmt.Sprintf("%v %s %+v", s, k, k), fmt.Sprint(s), log.String()} {
		if strings.Contains(printed, k.Reveal()) || strings.Contains(printed, k.Reveal()[:12]) {
			t.Errorf("shows the key: %s", printed)
		}
	}
}

func TestKeysSurviveText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := Private(rapid.SliceOfN(rapid.Byte(), Size, Size).Draw(t, "key")).clamp()
		data, err := json.Marshal(struct {
			A Private
			B Public
		}{k, k.Public()})
		if err != nil {
			t.Fatal(err)
		}
		var back struct {
			A Private
			B Public
		}
		if err := json.Unmarshal(data, &back); err != nil || back.A != k || back.B != k.Public() {
			t.Fatalf("got %v %v, %v", back.A, back.B, err)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "x", "AAAA", strings.Repeat("A", 43), strings.Repeat("A", 45) + "=", "!" + strings.Repeat("A", 42) + "="} {
		if _, err := ParsePublic(text); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v, want ErrKey", text, err)
		}
	}
}

func TestSecretFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	s, err := NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSecret(path, s); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSecret(path); err != nil || got != s {
		t.Errorf("read %v, %v", got, err)
	}
	if err := WriteSecret(path, s); !errors.Is(err, fs.ErrExist) {
		t.Errorf("wrote over a secret: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecret(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a secret that others can read: %v", err)
	}
}

package certs

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

func TestDue(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	leaf := func(life time.Duration) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: start, NotAfter: start.Add(life)}
	}
	wish := func(serial string, after time.Duration) renewal {
		return renewal{Serial: serial, At: start.Add(after), Explanation: "https://why.test"}
	}
	for _, c := range []struct {
		name string
		leaf *x509.Certificate
		wish renewal
		at   time.Duration
		want string
	}{
		{"young", leaf(90 * day), renewal{}, day, ""},
		{"just before its last third", leaf(90 * day), renewal{}, 60*day - 1, ""},
		{"its last third", leaf(90 * day), renewal{}, 60 * day, "it expires on 2026-04-01"},
		{"short-lived, before half", leaf(6 * day), renewal{}, 3*day - 1, ""},
		{"short-lived, half", leaf(6 * day), renewal{}, 3 * day, "it expires on 2026-01-07"},
		{"expired", leaf(6 * day), renewal{}, 7 * day, "it expired on 2026-01-07"},
		{"the issuer wishes it early", leaf(90 * day), wish("7", 10*day), 10 * day, "its issuer asks for renewal from 2026-01-11 00:00, see https://why.test"},
		{"not yet", leaf(90 * day), wish("7", 10*day), 10*day - 1, ""},
		{"a wish for another certificate", leaf(90 * day), wish("8", 10*day), 10 * day, ""},
		{"the issuer wishes it a little late", leaf(90 * day), wish("7", 70*day), 65 * day, ""},
		{"the issuer wishes it too late", leaf(90 * day), wish("7", 89*day), 75 * day, "it expires on"},
		{"expired, whatever the wish", leaf(90 * day), wish("7", 99*day), 91 * day, "it expired on"},
	} {
		got := due(c.leaf, c.wish, start.Add(c.at))
		if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestPause(t *testing.T) {
	for n, want := range map[int]time.Duration{1: time.Minute, 2: 10 * time.Minute, 3: 100 * time.Minute, 4: 24 * time.Hour, 1000: 24 * time.Hour} {
		for range 100 {
			if got := pause(n); got < want || got >= want+want/5 {
				t.Errorf("pause %d: %s, want %s and less than a fifth more", n, got, want)
			}
		}
	}
}

// The moment drawn from the issuer's window does not move while the window stands.
func TestWishStays(t *testing.T) {
	m, err := Open(Config{Dir: t.TempDir() + "/state"})
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(7)}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	info := &acme.RenewalInfo{SelectedTime: at.Add(time.Minute)}
	info.SuggestedWindow.Start, info.SuggestedWindow.End = at, at.Add(time.Hour)
	first := m.wish(leaf, info, renewal{})
	if !first.At.Equal(at.Add(time.Minute)) {
		t.Errorf("at %s", first.At)
	}
	info.SelectedTime = at.Add(50 * time.Minute)
	if again := m.wish(leaf, info, first); !again.At.Equal(first.At) {
		t.Errorf("the same window: moved to %s", again.At)
	}
	info.SuggestedWindow.End = at.Add(2 * time.Hour)
	if moved := m.wish(leaf, info, first); !moved.At.Equal(info.SelectedTime) {
		t.Errorf("another window: stays at %s", moved.At)
	}
	if none := m.wish(leaf, nil, first); !none.At.IsZero() || !none.Again.After(time.Now()) {
		t.Errorf("no window: %+v", none)
	}
}

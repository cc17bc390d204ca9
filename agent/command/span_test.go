package command

import (
	"strings"
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		-time.Hour:                 "less than a second",
		0:                          "less than a second",
		400 * time.Millisecond:     "less than a second",
		600 * time.Millisecond:     "1 second",
		1400 * time.Millisecond:    "1 second",
		45 * time.Second:           "45 seconds",
		58 * time.Second:           "1 minute",
		90 * time.Second:           "90 seconds",
		2 * time.Minute:            "2 minutes",
		22*time.Hour - time.Second: "22 hours",
		day - time.Second:          "1 day",
		36 * time.Hour:             "36 hours",
		2*day - time.Minute:        "2 days",
		400 * day:                  "400 days",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	now := time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		until(now.Add(22*time.Hour), now): "in 22 hours (2026-11-24 18:00 UTC)",
		until(now.Add(-time.Hour), now):   "1 hour ago (2026-11-23 19:00 UTC)",
		ago(time.Time{}, now):             "never",
		ago(now, now):                     "just now",
		ago(now.Add(time.Second), now):    "just now",
		ago(now.Add(-3*time.Hour), now):   "3 hours ago",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// On a terminal what is waited for is replaced by what became of it, and stays below a
// warning; elsewhere each is a line.
func TestProgress(t *testing.T) {
	for terminal, want := range map[bool]string{
		true:  "✓ one\n· waiting\r\x1b[2K! careful\n· waiting\r\x1b[2K✓ two\n  more\n",
		false: "✓ one\n· waiting\n! careful\n✓ two\n  more\n",
	} {
		var out strings.Builder
		p := &progress{w: &out, terminal: terminal}
		p.done("%s", "one")
		p.wait("waiting")
		p.warn("careful")
		p.done("two")
		p.note("more")
		p.clear()
		if out.String() != want {
			t.Errorf("terminal %v: %q, want %q", terminal, out.String(), want)
		}
	}
}

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"a b":                     "a b",
		" a\x1b[31m\nb\u009b ":    "a [31m b",
		"é\xff":                   "é?",
		strings.Repeat("é", 1001): strings.Repeat("é", 1000) + " …",
	} {
		if got := plain(text); got != want {
			t.Errorf("%.20q: %.30q, want %.30q", text, got, want)
		}
	}
}

func TestPlaces(t *testing.T) {
	c := &commands{getenv: func(name string) string {
		return map[string]string{"KOKOA_DATA": "/state"}[name]
	}}
	if p := c.place(""); p.config != "/state/agent.json" || p.data != "/state" {
		t.Errorf("a container's: %+v", p)
	}
	if p := c.place("/opt/k"); p != (place{"/opt/k/usr/local/bin/kokoa-agent", "/opt/k/etc/kokoa-agent/agent.json", system("/opt/k").data, "/opt/k", false}) {
		t.Errorf("below a prefix: %+v", p)
	}
	c.getenv = func(name string) string {
		return map[string]string{"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "relative"}[name]
	}
	t.Setenv("HOME", "/home/ann")
	if p := c.userPlace(); p != (place{binary: "/home/ann/.local/bin/kokoa-agent", config: "/c/kokoa-agent/agent.json", data: "/home/ann/.local/state/kokoa-agent"}) {
		t.Errorf("a user's: %+v", p)
	}
	if p := system("/"); !p.system || p.config != "/etc/kokoa-agent/agent.json" {
		t.Errorf("the host's: %+v", p)
	}
}

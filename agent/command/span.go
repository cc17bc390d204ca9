package command

import (
	"fmt"
	"time"
)

// span is a time as people say it, a little rounded: "3 hours", "1 day", "36 hours".
func span(d time.Duration) string {
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		// From two on a unit is fine enough; and one is, when it is about one.
		slack := unit.size / 20
		if n := (d + unit.size/2) / unit.size; d >= 2*unit.size-slack || (d-unit.size).Abs() <= slack || unit.size == time.Second && n > 0 {
			return plural(int(n), unit.name)
		}
	}
	return "less than a second"
}

func plural(n int, name string) string {
	if n == 1 {
		return "1 " + name
	}
	return fmt.Sprintf("%d %ss", n, name)
}

// ago is how long a moment is past: "3 hours ago", or "never" for the zero time.
func ago(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case now.Sub(t) < time.Second:
		return "just now"
	}
	return span(now.Sub(t)) + " ago"
}

// until is a moment to come with its time: "in 22 hours (2026-11-24 18:00 UTC)".
func until(t, now time.Time) string {
	at := t.UTC().Format("2006-01-02 15:04 MST")
	if !now.Before(t) {
		return span(now.Sub(t)) + " ago (" + at + ")"
	}
	return "in " + span(t.Sub(now)) + " (" + at + ")"
}

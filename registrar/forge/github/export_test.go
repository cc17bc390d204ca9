package github

import "time"

// Hasten makes the pauses short, since the GitHub of tests settles at once.
func (f *Forge) Hasten() {
	f.pauses = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond}
}

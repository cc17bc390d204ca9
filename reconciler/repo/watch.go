package repo

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/fsnotify/fsnotify"
)

// How long a source must be quiet before a change is told. Git moves a branch in
// one step; an editor that saves, or a tool that writes many files, takes longer.
const (
	refSettle    = 5 * time.Millisecond
	folderSettle = 50 * time.Millisecond
	// fallback is the time between looks where the system cannot watch.
	fallback = 2 * time.Second
)

// watching says what to watch.
type watching struct {
	// folders are watched, each for its direct entries. Asked again after every
	// event that matters; those that do not exist are left out.
	folders func() []string
	// matters reports whether a changed path does.
	matters func(path string) bool
	settle  time.Duration
	poll    time.Duration
	log     *slog.Logger
}

// watch calls changed after events that matter, and every poll in any case: file
// systems over a network tell nothing.
func watch(ctx context.Context, w watching, changed func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("watch failed, polling", "err", err)
		return poll(ctx, fallback, changed)
	}
	defer watcher.Close()
	watched := make(map[string]bool)
	add := func() error {
		for _, dir := range w.folders() {
			if watched[dir] {
				continue
			}
			if err := watcher.Add(dir); err == nil {
				watched[dir] = true
			} else if len(watched) == 0 || !errors.Is(err, fs.ErrNotExist) {
				return err // most often: the system's limit of watches
			}
		}
		return nil
	}
	if err := add(); err != nil {
		w.log.Warn("watch failed, polling", "err", err)
		return poll(ctx, fallback, changed)
	}

	changed()
	var settled <-chan time.Time
	tick := time.NewTimer(jitter(w.poll))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-watcher.Events:
			if e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename) {
				delete(watched, e.Name)
			}
			if !w.matters(e.Name) || e.Op == fsnotify.Chmod {
				continue
			}
			// What was made in a new folder before it was watched makes no event;
			// the call that follows sees it.
			if err := add(); err != nil {
				w.log.Warn("watch failed, polling", "err", err)
				return poll(ctx, fallback, changed)
			}
			settled = time.After(w.settle)
		case <-watcher.Errors:
			// Too many events to keep: something surely happened.
			settled = time.After(w.settle)
		case <-settled:
			settled = nil
			changed()
		case <-tick.C:
			// A folder that was replaced as a whole tells nothing any more.
			if err := add(); err != nil {
				w.log.Warn("watch failed, polling", "err", err)
			}
			tick.Reset(jitter(w.poll))
			changed()
		}
	}
}

// poll calls changed at once and then about every interval, until ctx ends.
func poll(ctx context.Context, interval time.Duration, changed func()) error {
	changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(jitter(interval)):
			changed()
		}
	}
}

// jitter is d, give or take a tenth, so that many programs do not ask at once.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

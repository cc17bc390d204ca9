// Package service keeps an agent running on a host: by systemd, by launchd, or, where
// there is neither, in the background until the host goes down.
package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

// Agent is what is kept running. The paths are absolute.
type Agent struct {
	// Binary is kokoa-agent, Config the file that it starts from, Data its folder.
	Binary, Config, Data string
	// Tunnel is the make that it was told to use; "userspace" needs no privilege.
	Tunnel string
}

// Service keeps one agent running. Every method may be called again, also after one
// that was cut off.
type Service interface {
	// Start has the agent run, now and, where Notice does not say otherwise, whenever
	// the host is up. One that runs is left alone, unless fresh says that its binary or
	// config has changed.
	Start(ctx context.Context, a Agent, fresh bool) error
	// Stop ends the agent, and waits until it has ended. One that does not run is no
	// error.
	Stop(ctx context.Context) error
	// Remove stops the agent and removes whatever Start made but the data folder. What
	// is not there is no error.
	Remove(ctx context.Context) error
	// Notice is what the user has to know or do, "" when there is nothing.
	Notice() string
	// Logs is the command that shows the agent's log.
	Logs() string
	// String names it: "systemd".
	String() string
}

// Where is the kind of place that an agent is installed in.
type Where struct {
	// System is the host's own agent, for root.
	System bool
	// Alone keeps the agent away from the host's service manager: another one may be
	// installed there.
	Alone bool
	// Data is the agent's folder.
	Data string
	// Again is the command line that installs it again, for Notice.
	Again string
}

// Find is the service of this host for such a place.
func Find(ctx context.Context, w Where) Service {
	alone := func(why string) Service { return &background{data: w.Data, again: w.Again, why: why} }
	home, err := os.UserHomeDir()
	switch {
	case w.Alone:
		return alone("it was installed below a folder of its own")
	case err != nil && !w.System:
		return alone("this user has no home folder")
	case runtime.GOOS == "darwin":
		return newLaunchd(w.System, home)
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return alone("this host has no systemd")
	}
	s := newSystemd(w.System, home)
	if err := s.usable(ctx); err != nil {
		return alone(err.Error())
	}
	return s
}

// runner runs a command of the host and returns what it printed. The error has what
// it said is wrong.
type runner func(ctx context.Context, name string, args ...string) (string, error)

func run(ctx context.Context, name string, args ...string) (string, error) {
	var out, said bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.Join(strings.Fields(said.String()), " "))
	}
	return out.String(), nil
}

// replace makes text the content of the file, and reports whether it was not.
func replace(path, text string) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && string(old) == text {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, atomicfile.Write(path, []byte(text), 0o644)
}

// remove removes a file, and reports whether it was there.
func remove(path string) (was bool, err error) {
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// leadingNumber is the number that text begins with, or 0.
func leadingNumber(text string) int {
	end := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(text)
	}
	n, err := strconv.Atoi(text[:end])
	if err != nil {
		return 0
	}
	return n
}

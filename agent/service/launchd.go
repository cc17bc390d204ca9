package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const label = "io.kokoa.agent"

// PropertyList is the agent's job for launchd: it runs when the job is loaded, and
// again whenever it ends.
func (a Agent) PropertyList() string {
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")
	text := func(s string) string { return "<string>" + escape.Replace(s) + "</string>" }
	log := text(filepath.Join(a.Data, logName))
	return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	` + text(label) + `
	<key>ProgramArguments</key>
	<array>
		` + text(a.Binary) + `
		<string>run</string>
		<string>--config</string>
		` + text(a.Config) + `
	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>
	<key>ThrottleInterval</key>
	<integer>5</integer>
	<key>ExitTimeOut</key>
	<integer>20</integer>
	<key>ProcessType</key>
	<string>Background</string>
	<key>Umask</key>
	<integer>63</integer>
	<key>SoftResourceLimits</key>
	<dict>
		<key>NumberOfFiles</key>
		<integer>65536</integer>
	</dict>
	<key>StandardOutPath</key>
	` + log + `
	<key>StandardErrorPath</key>
	` + log + `
</dict>
</plist>
`
}

// launchd is the host's, or one user's.
type launchd struct {
	// domain is "system" or "gui/501".
	domain, path string
	run          runner
	// pause is between looks at a job that is ending.
	pause time.Duration
}

func newLaunchd(system bool, home string) *launchd {
	l := &launchd{domain: "system", path: filepath.Join("/Library/LaunchDaemons", label+".plist"), run: run, pause: 200 * time.Millisecond}
	if !system {
		l.domain = fmt.Sprintf("gui/%d", os.Getuid())
		l.path = filepath.Join(home, "Library/LaunchAgents", label+".plist")
	}
	return l
}

func (l *launchd) target() string { return l.domain + "/" + label }

// loaded reports whether launchd has the job.
func (l *launchd) loaded(ctx context.Context) bool {
	_, err := l.run(ctx, "launchctl", "print", l.target())
	return err == nil
}

func (l *launchd) Start(ctx context.Context, a Agent, fresh bool) error {
	// launchd does not make the folder that it writes the log to.
	if err := os.MkdirAll(a.Data, 0o700); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	changed, err := replace(l.path, a.PropertyList())
	if err != nil {
		return fmt.Errorf("install job: %w", err)
	}
	if !changed && !fresh && l.loaded(ctx) {
		return nil
	}
	if err := l.Stop(ctx); err != nil {
		return err
	}
	// A job that was disabled once would not be loaded.
	if _, err := l.run(ctx, "launchctl", "enable", l.target()); err != nil {
		return err
	}
	_, err = l.run(ctx, "launchctl", "bootstrap", l.domain, l.path)
	return err
}

func (l *launchd) Stop(ctx context.Context) error {
	if !l.loaded(ctx) {
		return nil
	}
	if _, err := l.run(ctx, "launchctl", "bootout", l.target()); err != nil && l.loaded(ctx) {
		return err
	}
	// bootout may return before the job has ended.
	for l.loaded(ctx) {
		select {
		case <-time.After(l.pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (l *launchd) Remove(ctx context.Context) error {
	if err := l.Stop(ctx); err != nil {
		return err
	}
	_, err := remove(l.path)
	return err
}

func (l *launchd) Notice() string {
	if l.domain == "system" {
		return ""
	}
	return "It runs while you are logged in."
}

func (l *launchd) Logs() string { return "launchctl print " + l.target() }

func (l *launchd) String() string { return "launchd" }

package service

import (
	"context"
	_ "embed"
	"fmt"
	"path/filepath"
	"strings"
)

// The units of an agent in its usual place: as they stand, they can be installed.
//
//go:embed kokoa-agent.service
var systemUnit string

//go:embed kokoa-agent.user.service
var userUnit string

// The usual place, as the units have it.
const (
	usualBinary = "/usr/local/bin/kokoa-agent"
	usualConfig = "/etc/kokoa-agent/agent.json"
	usualState  = "/var/lib/"
)

const unitName = "kokoa-agent.service"

// privileged is the part of the system's unit that only the makes "kernel" and "tun"
// need.
const privileged = `# For the tunnel makes kernel and tun. The make userspace needs none of this.
CapabilityBoundingSet=CAP_NET_ADMIN
AmbientCapabilities=CAP_NET_ADMIN
DeviceAllow=/dev/net/tun rw
`

// unprivileged stands in its place.
const unprivileged = `# The tunnel make userspace needs no privilege.
CapabilityBoundingSet=
PrivateDevices=yes
`

// Unit is the agent's unit for the host's systemd, version 247 or later. The agent
// runs there as a user of its own, and systemd makes its data folder, which must be one
// below /var/lib.
func (a Agent) Unit() (string, error) {
	state, ok := strings.CutPrefix(filepath.Clean(a.Data), usualState)
	if !ok || strings.ContainsAny(state, " \t\"'\\:%") {
		return "", fmt.Errorf("data folder %s: systemd makes it, so it must be a plain name below %s", a.Data, usualState)
	}
	text := systemUnit
	if a.Tunnel == "userspace" {
		text = strings.Replace(text, privileged, unprivileged, 1)
	}
	return substitute(text, [][2]string{
		{"LoadCredential=agent.json:" + usualConfig, "LoadCredential=agent.json:" + strings.ReplaceAll(a.Config, "%", "%%")},
		{"ExecStart=" + usualBinary, "ExecStart=" + quote(a.Binary)},
		{"StateDirectory=kokoa-agent", "StateDirectory=" + state},
	}), nil
}

// UserUnit is the agent's unit for the systemd of one user.
func (a Agent) UserUnit() string {
	return substitute(userUnit, [][2]string{
		{"ExecStart=" + usualBinary + " run --config " + usualConfig, "ExecStart=" + quote(a.Binary) + " run --config " + quote(a.Config)},
	})
}

func substitute(text string, pairs [][2]string) string {
	for _, p := range pairs {
		if !strings.Contains(text, p[0]+"\n") && !strings.Contains(text, p[0]+" ") {
			panic("service: the unit has no " + p[0])
		}
		text = strings.Replace(text, p[0], p[1], 1)
	}
	return text
}

// quote is a word of ExecStart.
func quote(word string) string {
	escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$", "\n", `\n`).Replace(word)
	if escaped == word && !strings.ContainsAny(word, " \t';") {
		return word
	}
	return `"` + escaped + `"`
}

// systemd is the host's, or one user's.
type systemd struct {
	system bool
	// path of the unit.
	path string
	run  runner
}

func newSystemd(system bool, home string) *systemd {
	s := &systemd{system: system, path: filepath.Join("/etc/systemd/system", unitName), run: run}
	if !system {
		s.path = filepath.Join(home, ".config/systemd/user", unitName)
	}
	return s
}

// oldest is the first version with LoadCredential.
const oldest = 247

// usable is why this systemd cannot keep an agent, or nil.
func (s *systemd) usable(ctx context.Context) error {
	out, err := s.run(ctx, "systemctl", "--version")
	if err != nil {
		return fmt.Errorf("systemd does not answer: %w", err)
	}
	_, version, _ := strings.Cut(out, " ")
	if n := leadingNumber(version); n < oldest {
		return fmt.Errorf("systemd %d is too old: version %d or later hands a service its secrets", n, oldest)
	}
	if _, err := s.ctl(ctx, "show-environment"); err != nil {
		return fmt.Errorf("systemd does not answer: %w", err)
	}
	return nil
}

func (s *systemd) ctl(ctx context.Context, args ...string) (string, error) {
	if !s.system {
		args = append([]string{"--user"}, args...)
	}
	return s.run(ctx, "systemctl", args...)
}

func (s *systemd) Start(ctx context.Context, a Agent, fresh bool) error {
	text, err := a.UserUnit(), error(nil)
	if s.system {
		text, err = a.Unit()
	}
	if err != nil {
		return err
	}
	changed, err := replace(s.path, text)
	if err != nil {
		return fmt.Errorf("install unit: %w", err)
	}
	start := "start"
	if changed || fresh {
		start = "restart"
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", unitName}, {start, unitName}} {
		if _, err := s.ctl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func (s *systemd) Stop(ctx context.Context) error {
	// A unit that systemd does not know is stopped.
	if out, err := s.ctl(ctx, "show", "--property=LoadState", "--value", unitName); err != nil || strings.TrimSpace(out) == "not-found" {
		return err
	}
	_, err := s.ctl(ctx, "stop", unitName)
	return err
}

func (s *systemd) Remove(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	s.ctl(ctx, "disable", unitName) // fails when the unit is not there
	was, err := remove(s.path)
	if err != nil || !was {
		return err
	}
	if _, err := s.ctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	s.ctl(ctx, "reset-failed", unitName) // only one that failed has a failure to forget
	return nil
}

func (s *systemd) Notice() string {
	if s.system {
		return ""
	}
	return "It runs while you are logged in. To have it run whenever the host is up: loginctl enable-linger"
}

func (s *systemd) Logs() string {
	if s.system {
		return "journalctl -u " + unitName
	}
	return "journalctl --user -u " + unitName
}

func (s *systemd) String() string { return "systemd" }

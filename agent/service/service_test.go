package service

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var usual = Agent{Binary: "/usr/local/bin/kokoa-agent", Config: "/etc/kokoa-agent/agent.json", Data: "/var/lib/kokoa-agent", Tunnel: "auto"}

// TestMain is the agent of these tests as well: it waits until it is told to end.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "--config") {
		fmt.Println("the agent runs")
		time.Sleep(time.Hour) // a signal ends it long before
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestUnits(t *testing.T) {
	if text, err := usual.Unit(); err != nil || text != systemUnit {
		t.Errorf("the usual place changes the unit: %v\n%s", err, text)
	}
	for _, c := range []struct {
		agent    Agent
		has, not []string
	}{
		{usual, []string{"CapabilityBoundingSet=CAP_NET_ADMIN\n", "DynamicUser=yes\n", "Restart=always\n"}, []string{"PrivateDevices"}},
		{
			Agent{"/opt/b c/kokoa-agent", "/opt/100%/agent.json", "/var/lib/kokoa/agent", "userspace"},
			[]string{`ExecStart="/opt/b c/kokoa-agent" run --config ${CREDENTIALS_DIRECTORY}/agent.json` + "\n", "LoadCredential=agent.json:/opt/100%%/agent.json\n", "StateDirectory=kokoa/agent\n", "CapabilityBoundingSet=\n", "PrivateDevices=yes\n"},
			[]string{"CAP_NET_ADMIN", "/dev/net/tun"},
		},
	} {
		text, err := c.agent.Unit()
		if err != nil {
			t.Errorf("%+v: %v", c.agent, err)
		}
		for _, want := range c.has {
			if !strings.Contains(text, want) {
				t.Errorf("%+v: no %q in\n%s", c.agent, want, text)
			}
		}
		for _, want := range c.not {
			if strings.Contains(text, want) {
				t.Errorf("%+v: %q in\n%s", c.agent, want, text)
			}
		}
	}
	for _, data := range []string{"/srv/agent", "/var/lib", "/var/lib/../x", "/var/lib/a b", ""} {
		a := usual
		a.Data = data
		if text, err := a.Unit(); err == nil || !strings.Contains(err.Error(), "below /var/lib/") {
			t.Errorf("data folder %q: %v\n%s", data, err, text)
		}
	}
	user := Agent{Binary: `/home/a"n$n\/kokoa-agent`, Config: "/home/ann/100%/agent.json"}.UserUnit()
	if want := `ExecStart="/home/a\"n$$n\\/kokoa-agent" run --config "/home/ann/100%%/agent.json"` + "\n"; !strings.Contains(user, want) {
		t.Errorf("no %s in\n%s", want, user)
	}
}

// The units are what systemd itself takes, without a complaint, and calls safe.
func TestSystemdTakesTheUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is not installed: apt-get install systemd")
	}
	for name, tunnel := range map[string]string{"privileged": "auto", "unprivileged": "userspace"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := usual
			a.Tunnel, a.Binary = tunnel, "/bin/true" // one that exists, or verify complains
			system, err := a.Unit()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, unitName)
			for _, text := range []string{system, a.UserUnit()} {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("verify: %v\n%s", err, out)
				}
			}
			if err := os.WriteFile(path, []byte(system), 0o644); err != nil {
				t.Fatal(err)
			}
			// Exposure is 0.0 (safe) to 10.0, here in tenths.
			if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", path).CombinedOutput(); err != nil {
				t.Errorf("security: %v\n%s", err, out)
			}
		})
	}
}

func TestPropertyList(t *testing.T) {
	text := Agent{Binary: "/Users/a&b/kokoa-agent", Config: "/Users/a<b/agent.json", Data: "/d"}.PropertyList()
	var words []string
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := token.(xml.CharData); ok && strings.TrimSpace(string(data)) != "" {
			words = append(words, string(data))
		}
	}
	want := []string{"Label", "io.kokoa.agent", "ProgramArguments", "/Users/a&b/kokoa-agent", "run", "--config", "/Users/a<b/agent.json", "RunAtLoad", "KeepAlive"}
	if len(words) < len(want) || !slices.Equal(words[:len(want)], want) || words[len(words)-1] != "/d/agent.log" {
		t.Errorf("%q", words)
	}
}

// fakeHost runs no command, and remembers which should have run.
type fakeHost struct {
	ran []string
	// says is what a command prints, and fails has its error, by its first words.
	says  map[string]string
	fails map[string]error
}

func (h *fakeHost) run(_ context.Context, name string, args ...string) (string, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	h.ran = append(h.ran, line)
	for start, err := range h.fails {
		if strings.HasPrefix(line, start) {
			return "", err
		}
	}
	for start, out := range h.says {
		if strings.HasPrefix(line, start) {
			return out, nil
		}
	}
	return "", nil
}

// did is what ran since it was asked last.
func (h *fakeHost) did() string {
	ran := strings.Join(h.ran, "\n")
	h.ran = nil
	return ran
}

func TestSystemd(t *testing.T) {
	h := &fakeHost{says: map[string]string{"systemctl --version": "systemd 252 (252.38-1~deb12u1)\n+PAM", "systemctl show": "loaded\n"}}
	s := &systemd{system: true, path: filepath.Join(t.TempDir(), "system", unitName), run: h.run}
	expect := func(what string, err error, want ...string) {
		t.Helper()
		if got := h.did(); err != nil || got != strings.Join(want, "\n") {
			t.Errorf("%s: %v, ran\n%s\nwant\n%s", what, err, got, strings.Join(want, "\n"))
		}
	}
	expect("usable", s.usable(t.Context()), "systemctl --version", "systemctl show-environment")
	const reload, enable = "systemctl daemon-reload", "systemctl enable kokoa-agent.service"
	expect("first start", s.Start(t.Context(), usual, false), reload, enable, "systemctl restart kokoa-agent.service")
	if text, err := os.ReadFile(s.path); err != nil || string(text) != systemUnit {
		t.Errorf("unit: %s, %v", text, err)
	}
	expect("again", s.Start(t.Context(), usual, false), reload, enable, "systemctl start kokoa-agent.service")
	expect("with another binary", s.Start(t.Context(), usual, true), reload, enable, "systemctl restart kokoa-agent.service")
	const show, stop = "systemctl show --property=LoadState --value kokoa-agent.service", "systemctl stop kokoa-agent.service"
	expect("stop", s.Stop(t.Context()), show, stop)
	const disable = "systemctl disable kokoa-agent.service"
	expect("remove", s.Remove(t.Context()), show, stop, disable, reload, "systemctl reset-failed kokoa-agent.service")
	if _, err := os.Stat(s.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unit is left: %v", err)
	}
	h.says["systemctl show"] = "not-found\n"
	expect("remove again", s.Remove(t.Context()), show, disable)

	h.says["systemctl --version"] = "systemd 245 (245.4)\n"
	if err := s.usable(t.Context()); err == nil || !strings.Contains(err.Error(), "systemd 245 is too old: version 247") {
		t.Errorf("an old one: %v", err)
	}
	h.did()
	user := newSystemd(false, t.TempDir())
	user.run = h.run
	expect("a user's", user.Start(t.Context(), usual, false), "systemctl --user daemon-reload", "systemctl --user enable kokoa-agent.service", "systemctl --user restart kokoa-agent.service")
	if !strings.Contains(user.Notice(), "loginctl enable-linger") || s.Notice() != "" || !strings.HasPrefix(user.Logs(), "journalctl --user") {
		t.Errorf("it says %q, %q and %q", user.Notice(), s.Notice(), user.Logs())
	}
	h.fails = map[string]error{"systemctl --user enable": errors.New("no bus")}
	if err := user.Start(t.Context(), usual, false); err == nil || !strings.Contains(err.Error(), "no bus") {
		t.Errorf("a failure: %v", err)
	}
}

func TestLaunchd(t *testing.T) {
	h := &fakeHost{fails: map[string]error{"launchctl print": errors.New("not loaded")}}
	l := newLaunchd(true, "")
	l.path, l.run, l.pause = filepath.Join(t.TempDir(), "job.plist"), h.run, 0
	a := usual
	a.Data = filepath.Join(t.TempDir(), "data")
	const show, enable, load = "launchctl print system/io.kokoa.agent", "launchctl enable system/io.kokoa.agent", "launchctl bootstrap system "
	if err := l.Start(t.Context(), a, false); err != nil || h.did() != strings.Join([]string{show, enable, load + l.path}, "\n") {
		t.Errorf("start: %v", err)
	}
	if _, err := os.Stat(a.Data); err != nil {
		t.Errorf("the folder of its log: %v", err)
	}
	h.fails = nil
	if err := l.Start(t.Context(), a, false); err != nil || h.did() != show {
		t.Errorf("again: %v", err)
	}
	// Bootout is over when launchd does not know the job any more.
	gone := h.run
	asked := 0
	l.run = func(ctx context.Context, name string, args ...string) (string, error) {
		if args[0] == "print" {
			if asked++; asked > 3 {
				return "", errors.New("not loaded")
			}
		}
		return gone(ctx, name, args...)
	}
	if err := l.Remove(t.Context()); err != nil || h.did() != strings.Join([]string{show, "launchctl bootout system/io.kokoa.agent", show, show}, "\n") {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(l.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the job is left: %v", err)
	}
	if err := l.Remove(t.Context()); err != nil {
		t.Errorf("remove again: %v", err)
	}
}

// A process in the background is started once, ended by a signal, and never mistaken
// for another that has its id by now.
func TestBackground(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	s := Find(t.Context(), Where{Alone: true, Data: data, Again: "again"})
	a := Agent{Binary: self, Config: "/config", Data: data}
	t.Cleanup(func() { s.Stop(context.Background()) })
	id := func() int {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(data, pidName))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// ended waits for the end of a process, which is this one's child, and reports
	// whether the signal to end did it.
	ended := func(id int) bool {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(id, &status, 0, nil)
		return err == nil && status.Signal() == syscall.SIGTERM
	}
	lives := func() bool {
		f, err := os.Open(filepath.Join(data, pidName))
		if err != nil {
			return false
		}
		defer f.Close()
		free, err := lock(f)
		return err == nil && !free
	}
	start := func(fresh bool) int {
		t.Helper()
		if err := s.Start(t.Context(), a, fresh); err != nil {
			t.Fatal(err)
		}
		return id()
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("stop before any start: %v", err)
	}
	first := start(false)
	if sid, err := unix.Getsid(first); err != nil || sid != first || !lives() {
		t.Errorf("session %d of process %d, %v, lives %v", sid, first, err, lives())
	}
	if again := start(false); again != first {
		t.Errorf("a second process %d beside %d", again, first)
	}
	second := start(true)
	if second == first || !ended(first) || !lives() {
		t.Errorf("restarted: %d, then %d, lives %v", first, second, lives())
	}
	eventually(t, "its log", func() bool {
		text, err := os.ReadFile(filepath.Join(data, logName))
		return err == nil && strings.Contains(string(text), "the agent runs")
	})
	if err := s.Stop(t.Context()); err != nil || !ended(second) || lives() {
		t.Errorf("stop: %v", err)
	}
	// The file now has the id of a process that is none of ours.
	if err := os.WriteFile(filepath.Join(data, pidName), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("stop when another has the id: %v", err)
	}
	if err := os.WriteFile(filepath.Join(data, logName), make([]byte, longLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	third := start(false)
	if info, err := os.Stat(filepath.Join(data, oldLogName)); err != nil || info.Size() != longLog+1 {
		t.Errorf("the long log: %v", err)
	}
	if notice := s.Notice(); !strings.Contains(notice, "will not survive a reboot") || !strings.Contains(notice, "again: again.") {
		t.Error(notice)
	}
	for range 2 {
		if err := s.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	}
	if !ended(third) {
		t.Error("the last process did not end by the signal")
	}
	a.Binary = filepath.Join(data, "absent")
	if err := s.Start(t.Context(), a, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("stop after that: %v", err)
	}
}

// Where there is no systemd an agent runs in the background all the same.
func TestFind(t *testing.T) {
	s := Find(t.Context(), Where{Alone: true, Data: t.TempDir()})
	if s.String() != "in the background" || !strings.HasPrefix(s.Logs(), "tail ") {
		t.Errorf("%s, %s", s, s.Logs())
	}
	if _, err := os.Stat("/run/systemd/system"); runtime.GOOS == "linux" && err != nil {
		s := Find(t.Context(), Where{System: true, Data: t.TempDir()})
		if s.String() != "in the background" || !strings.Contains(s.Notice(), "this host has no systemd") {
			t.Errorf("%s: %s", s, s.Notice())
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 30 s: %s", what)
		}
	}
}

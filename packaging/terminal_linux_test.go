package packaging_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where the token comes from: the agent gets it in its environment, and nobody else
// sees it.
func TestToken(t *testing.T) {
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c := newControl(t)
			script := filepath.Join(t.TempDir(), "install.sh")
			write(t, script, string(c.script))

			t.Run("on standard input", func(t *testing.T) {
				h := newHost(t, s, "Linux aarch64")
				r := h.run(t, strings.NewReader("kokoa_read\n"), script, "--name", "rpi")
				if r.code != 0 || !strings.HasSuffix(r.record, "\ntoken=kokoa_read\n") {
					t.Errorf("exit code %d, %q\n%s", r.code, r.record, r.stderr)
				}
			})
			t.Run("nowhere", func(t *testing.T) {
				h := newHost(t, s, "Linux aarch64")
				r := h.pipe(t, c.script)
				if r.code != 0 || !strings.HasSuffix(r.record, "\ntoken=none\n") {
					t.Errorf("exit code %d, %q\n%s", r.code, r.record, r.stderr)
				}
			})
			t.Run("asked for", func(t *testing.T) {
				h := newHost(t, s, "Linux aarch64")
				screen, r := h.terminal(t, c.script, "Join token", "kokoa_typed\n")
				if r.code != 0 || !strings.HasSuffix(r.record, "\ntoken=kokoa_typed\n") || strings.Contains(screen, "kokoa_typed") {
					t.Errorf("exit code %d, %q, and on the screen %q", r.code, r.record, screen)
				}
			})
			t.Run("interrupted", func(t *testing.T) {
				h := newHost(t, s, "Linux aarch64")
				before := h.tree(t)
				screen, r := h.terminal(t, c.script, "Join token", "kokoa_ty"+interrupt)
				if after := h.tree(t); r.code == 0 || after != before {
					t.Errorf("exit code %d, on the screen %q, before:\n%s\nafter:\n%s", r.code, screen, before, after)
				}
			})
			t.Run("in a file", func(t *testing.T) {
				h := newHost(t, s, "Linux aarch64")
				screen, r := h.terminal(t, c.script, "", "", "--token-file", "/root/token")
				if r.code != 0 || !strings.HasSuffix(r.record, "--token-file\n/root/token\ntoken=none\n") || strings.Contains(screen, "Join token") {
					t.Errorf("exit code %d, %q, and on the screen %q", r.code, r.record, screen)
				}
			})
		})
	}
}

// terminal pipes the script to a shell in a terminal of its own. There it types an
// answer when it sees the question, and checks at the end that what is typed shows again.
func (h *host) terminal(t *testing.T, script []byte, question, answer string, args ...string) (screen string, r result) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer keyboard.Close()
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()

	cmd := h.command(t, append([]string{"-s", "--"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(script), tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const end = "the screen ends here"
	var typist sync.WaitGroup
	defer typist.Wait()
	asking, ended := make(chan struct{}), make(chan struct{})
	typist.Go(func() {
		select {
		case <-asking:
			typing(keyboard, answer, ended)
		case <-ended:
		}
	})
	go func() {
		cmd.Wait()
		close(ended)
		typist.Wait() // an interrupt throws away what is still to be shown
		fmt.Fprint(tty, end)
	}()
	var seen strings.Builder
	asked := question == ""
	for buf := make([]byte, 4096); !strings.HasSuffix(seen.String(), end); {
		n, err := keyboard.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
		if !asked && strings.Contains(seen.String(), question) {
			asked = true
			if shows(t, tty) {
				t.Error("the token would show")
			}
			close(asking)
		}
	}
	if !shows(t, tty) {
		t.Error("the terminal does not show any more what is typed")
	}
	record, err := os.ReadFile(filepath.Join(h.dir, "record"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.TrimSuffix(seen.String(), end), result{code: cmd.ProcessState.ExitCode(), record: string(record)}
}

const interrupt = "\x03"

// typing types an answer. An interrupt is typed until it is heard: a shell does not hear
// one between its last look and its reading.
func typing(keyboard io.Writer, answer string, ended <-chan struct{}) {
	io.WriteString(keyboard, answer)
	for strings.HasSuffix(answer, interrupt) {
		select {
		case <-ended:
			return
		case <-time.After(50 * time.Millisecond):
			io.WriteString(keyboard, interrupt)
		}
	}
}

// shows reports whether a terminal shows what is typed.
func shows(t *testing.T, tty *os.File) bool {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return mode.Lflag&unix.ECHO != 0
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
)

// terminal is what a command prints, while it does.
type terminal struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *terminal) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *terminal) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// shows waits until the terminal shows a text.
func (s *terminal) shows(t *testing.T, text string) {
	t.Helper()
	demotest.Eventually(t, soon, func() error {
		if out := s.String(); !strings.Contains(out, text) {
			return fmt.Errorf("the terminal does not show %q:\n%s", text, out)
		}
		return nil
	})
}

// A third host joins the demo as its invitation says: one line, a pull request, a
// merge, a route.
func TestAHostJoinsTheDemo(t *testing.T) {
	dir := t.TempDir()
	d := demotest.Start(t, kokoa(t), dir)
	d.Ready()
	if !strings.Contains(d.Out.String(), "/install.sh | ") {
		t.Errorf("the invitation has no line to join with:\n%s", d.Out.String())
	}
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello from the laptop") }))
	t.Cleanup(page.Close)
	service := page.URL
	prefix := filepath.Join(t.TempDir(), "laptop")
	install := func(token string, args ...string) (*exec.Cmd, *terminal) {
		t.Helper()
		line := fmt.Sprintf("curl -fsSL %s/install.sh | bash -s -- --name laptop --prefix %s --tunnel userspace %s", d.File.Join, prefix, strings.Join(args, " "))
		cmd := exec.Command("bash", "-c", line)
		cmd.Env = append(os.Environ(), "KOKOA_TOKEN="+token)
		out := &terminal{}
		cmd.Stdout, cmd.Stderr = out, out
		return cmd, out
	}

	t.Run("bad tokens are told apart, and leave nothing", func(t *testing.T) {
		_, used := d.Kokoa(dir, "token", "create", "--repo", "fleet.git", "--name", "other")
		for want, token := range map[string]string{
			"not a join token":                             "hello",
			`the token is for the name other`:              token(t, used),
			"copy all of it":                               token(t, used)[:40],
			"is not the control plane that made the token": strangersToken(t),
		} {
			cmd, out := install(token)
			if err := cmd.Run(); err == nil || !strings.Contains(out.String(), want) {
				t.Errorf("%v; want %q in:\n%s", err, want, out)
			}
		}
		if code, out := d.Kokoa(dir, "origin", "list", "--repo", "fleet.git", "--status", d.File.Status); code != 0 || strings.Contains(out, "laptop") {
			t.Errorf("exit %d:\n%s", code, out)
		}
	})

	code, printed := d.Kokoa(dir, "token", "create", "--repo", "fleet.git", "--name", "laptop", "--host", "*.kokoa.test")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, printed)
	}
	cmd, out := install(token(t, printed))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	agent := filepath.Join(prefix, "usr", "local", "bin", "kokoa-agent")
	t.Cleanup(func() {
		cmd.Process.Kill()
		call(agent, "uninstall", "--yes", "--prefix", prefix)
	})
	out.shows(t, "kokoa origin approve laptop")
	for _, line := range strings.Split(allCommandLines(t), "\n") {
		if strings.Contains(line, token(t, printed)) {
			t.Errorf("the token is on a command line: %s", line)
		}
	}
	if code, list := d.Kokoa(dir, "origin", "list", "--repo", "fleet.git", "--status", d.File.Status); code != 0 || !strings.Contains(list, "proposed") {
		t.Errorf("exit %d:\n%s", code, list)
	}
	clone := filepath.Join(t.TempDir(), "clone")
	demotest.Git(t, "", "clone", "-q", d.File.Repo, clone)
	if code, said := d.Kokoa(clone, "origin", "approve", "laptop"); code != 0 || !strings.Contains(said, "merged") {
		t.Fatalf("exit %d: %s", code, said)
	}
	out.shows(t, `Origin "laptop" is now registered!`)
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	case <-time.After(soon):
		t.Fatalf("the installer does not end:\n%s", out)
	}

	t.Run("a route makes its service public", func(t *testing.T) {
		demotest.Git(t, clone, "pull", "-q")
		demotest.Write(t, filepath.Join(clone, "routes", "laptop.cue"), "package fleet\n\nroute: laptop: {host: \"laptop.kokoa.test\", origin: \"laptop\", service: \""+service+"\", tls: \"internal\"}\n")
		demotest.Git(t, clone, "add", ".")
		demotest.Git(t, clone, "commit", "-qm", "Publish the laptop")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error {
			return d.Everywhere("https://laptop.kokoa.test/", 200, "hello from the laptop")
		})
	})

	t.Run("status and health tell the truth", func(t *testing.T) {
		if said, err := call(agent, "health", "--prefix", prefix); err != nil {
			t.Errorf("%v: %s", err, said)
		}
		if said, err := call(agent, "status", "--prefix", prefix); err != nil || !strings.Contains(said, "tokyo") || !strings.Contains(said, "laptop") {
			t.Errorf("%v: %s", err, said)
		}
	})

	t.Run("the same line again changes nothing", func(t *testing.T) {
		before := demotest.Git(t, clone, "rev-parse", "HEAD")
		again, said := install(token(t, printed))
		if err := again.Run(); err != nil {
			t.Errorf("%v:\n%s", err, said)
		}
		demotest.Git(t, clone, "pull", "-q")
		if after := demotest.Git(t, clone, "rev-parse", "HEAD"); after != before {
			t.Errorf("the repo moved from %s to %s", before, after)
		}
	})

	t.Run("its key is replaced without anybody noticing", func(t *testing.T) {
		key := func() string {
			demotest.Git(t, clone, "pull", "-q")
			text, err := os.ReadFile(filepath.Join(clone, "origins", "laptop.cue"))
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		before := key()
		if code, said := d.Kokoa(clone, "origin", "rotate", "laptop"); code != 0 {
			t.Fatalf("exit %d: %s", code, said)
		}
		demotest.Eventually(t, 2*soon, func() error {
			if err := d.Everywhere("https://laptop.kokoa.test/", 200, "hello from the laptop"); err != nil {
				t.Errorf("a visitor: %v", err)
			}
			if now := key(); now == before || strings.Contains(now, "next_key") {
				return errors.New("not yet:\n" + now)
			}
			return nil
		})
		if err := d.Everywhere("https://laptop.kokoa.test/", 200, "hello from the laptop"); err != nil {
			t.Error(err)
		}
	})

	t.Run("removal cuts the tunnel", func(t *testing.T) {
		if code, said := d.Kokoa(clone, "origin", "remove", "laptop", "--with-routes"); code != 0 {
			t.Fatalf("exit %d: %s", code, said)
		}
		demotest.Eventually(t, soon, func() error {
			if said, err := call(agent, "health", "--prefix", prefix); err == nil {
				return fmt.Errorf("still healthy: %s", said)
			}
			return nil
		})
		if said, err := call(agent, "status", "--prefix", prefix); err == nil {
			t.Errorf("status is well: %s", said)
		}
	})

	t.Run("uninstall leaves nothing", func(t *testing.T) {
		if said, err := call(agent, "uninstall", "--yes", "--prefix", prefix); err != nil || !strings.Contains(said, "kokoa origin remove laptop") {
			t.Errorf("%v: %s", err, said)
		}
		err := filepath.WalkDir(prefix, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				t.Errorf("%s is left", path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if strings.Contains(allCommandLines(t), prefix) {
			t.Error("a process is left")
		}
	})
}

// call is a program's whole call.
func call(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// token is the one in what `kokoa token create` printed.
func token(t *testing.T, printed string) string {
	t.Helper()
	for _, word := range strings.Fields(printed) {
		if strings.HasPrefix(word, "kokoa_") {
			return word
		}
	}
	t.Fatalf("no token in:\n%s", printed)
	return ""
}

// strangersToken is of another control plane.
func strangersToken(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if said, err := call(kokoa(t), "secret", secret); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	said, err := call(kokoa(t), "token", "create", "--secret-file", secret, "--state", dir, "--name", "laptop")
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return token(t, said)
}

// allCommandLines is what every user of this host can see of its processes.
func allCommandLines(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatal("no processes are seen", err)
	}
	var all strings.Builder
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil {
			continue // it ended
		}
		all.Write(bytes.ReplaceAll(line, []byte{0}, []byte(" ")))
		all.WriteByte('\n')
	}
	return all.String()
}

// The join API says who it is, and nothing to those who do not ask rightly.
func TestStrangersAtTheJoinAPI(t *testing.T) {
	d := demotest.Start(t, kokoa(t), t.TempDir())
	d.Ready()
	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/join/v1", "", 200, `"fleet":"demo"`},
		{"POST", "/join/v1", "{}", 401, "another control plane"},
		{"POST", "/join/v1", "hello", 400, "not a question"},
		{"POST", "/join/v1", strings.Repeat("x", 100<<10), 400, "too long"},
		{"DELETE", "/join/v1", "", 405, ""},
		{"GET", "/join/agent/%2e%2e%2f%2e%2e%2fsecret", "", 404, ""},
		{"GET", "/api/v1/status", "", 404, ""},
	} {
		req, err := http.NewRequest(test.method, d.File.Join+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != test.status || !strings.Contains(string(text), test.want) {
			t.Errorf("%s %s: %s %s; want %d with %q", test.method, test.path, resp.Status, text, test.status, test.want)
		}
	}
}

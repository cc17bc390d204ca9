package gitea_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// KOKOA_GITEA may name another server's program to test against, such as one of
// Forgejo's releases. Otherwise it is built from the module in the folder server.
var program = os.Getenv("KOKOA_GITEA")

// admin owns all repos; guest may write to those it was asked to.
const (
	admin = "mika"
	guest = "kokoa"
	// password is both users'; the server is there for the tests only.
	password = "correct horse battery staple"
)

// server is a Gitea with data of its own on a loopback port.
type server struct {
	dir  string // all of it
	url  string
	port int
	// user is whom the server runs as; nil is whoever runs the tests.
	user *syscall.Credential
	cmd  *exec.Cmd
	over chan struct{} // closed when cmd has ended
}

// shared is the server that all tests share.
var shared *server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kokoa-gitea-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	s, err := newServer(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer s.kill()
	shared = s
	return m.Run()
}

// newServer builds Gitea, gives it a config and its users, and starts it.
func newServer(dir string) (*server, error) {
	s := &server{dir: dir}
	if err := os.Chmod(dir, 0o755); err != nil { // the server runs as another user
		return nil, err
	}
	began := time.Now()
	if err := s.build(); err != nil {
		return nil, fmt.Errorf("build gitea: %w", err)
	}
	fmt.Printf("built Gitea in %.1fs\n", time.Since(began).Seconds())
	began = time.Now()
	if err := s.configure(); err != nil {
		return nil, fmt.Errorf("configure gitea: %w", err)
	}
	if err := s.gitea("migrate"); err != nil {
		return nil, err
	}
	if err := s.gitea("admin", "user", "create", "--admin", "--username", admin, "--password", password,
		"--email", admin+"@example.com", "--must-change-password=false"); err != nil {
		return nil, err
	}
	if err := s.gitea("admin", "user", "create", "--username", guest, "--password", password,
		"--email", guest+"@example.com", "--must-change-password=false"); err != nil {
		return nil, err
	}
	if err := s.start(); err != nil {
		return nil, err
	}
	fmt.Printf("started Gitea in %.1fs\n", time.Since(began).Seconds())
	return s, nil
}

// build makes the program. What Go caches makes every build but the first quick. The
// files that a release has inside are read from Gitea's module.
func (s *server) build() error {
	const from = "server"
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "code.gitea.io/gitea")
	download := exec.Command("go", "mod", "download", "code.gitea.io/gitea")
	list.Dir, download.Dir = from, from
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("go mod download: %w\n%s", err, out)
	}
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	version, source, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok {
		return fmt.Errorf("go list printed %q", out)
	}
	program := program
	if program == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		program = filepath.Join(cache, "kokoa-e2e", "gitea")
		build := exec.Command("go", "build", "-o", program, "-tags", "sqlite sqlite_unlock_notify",
			"-ldflags", "-s -w -X main.version="+strings.TrimPrefix(version, "v"), ".")
		build.Dir, build.Env = from, append(os.Environ(), "CGO_ENABLED=1")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%w (SQLite wants a C compiler: install gcc and libc6-dev)\n%s", err, out)
		}
	}

	// The caches and the home folder may be closed to the server's user.
	raw, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "gitea"), raw, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"options", "templates", "public"} {
		if err := os.CopyFS(filepath.Join(s.dir, name), os.DirFS(filepath.Join(source, name))); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) configure() error {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = free.Addr().(*net.TCPAddr).Port
	if err := free.Close(); err != nil {
		return err
	}
	s.url = fmt.Sprintf("http://127.0.0.1:%d", s.port)

	work := filepath.Join(s.dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	if os.Geteuid() == 0 { // Gitea does not run as root
		const nobody = 65534
		s.user = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(work, nobody, nobody); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(`
RUN_MODE = prod
APP_NAME = Gitea
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %d
ROOT_URL = %s/
STATIC_ROOT_PATH = %s
OFFLINE_MODE = true
DISABLE_SSH = true
LFS_START_SERVER = false
[database]
DB_TYPE = sqlite3
PATH = %s
[security]
INSTALL_LOCK = true
PASSWORD_HASH_ALGO = pbkdf2$1$50
[service]
DISABLE_REGISTRATION = true
[cron]
ENABLED = false
[cron.update_checker]
ENABLED = false
[actions]
ENABLED = false
[indexer]
ISSUE_INDEXER_TYPE = db
[log]
MODE = console
LEVEL = Warn
`, s.port, s.url, s.dir, filepath.Join(work, "gitea.db"))
	path := filepath.Join(work, "app.ini")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return err
	}
	if s.user != nil { // it adds keys of its own
		return os.Chown(path, int(s.user.Uid), int(s.user.Gid))
	}
	return nil
}

func (s *server) command(args ...string) *exec.Cmd {
	work := filepath.Join(s.dir, "work")
	cmd := exec.Command(filepath.Join(s.dir, "gitea"), append([]string{"--work-path", work, "--config", filepath.Join(work, "app.ini")}, args...)...)
	cmd.Dir = work
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "USER=nobody", "TMPDIR=" + work}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user}
	return cmd
}

// gitea runs one of Gitea's commands that end.
func (s *server) gitea(args ...string) error {
	if out, err := s.command(args...).CombinedOutput(); err != nil {
		return fmt.Errorf("gitea %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// start starts the server and waits until it answers.
func (s *server) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("web")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = cmd.Wait()
	}()
	s.cmd, s.over = cmd, over
	end := time.NewTimer(2 * time.Minute)
	defer end.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		if answer, err := http.Get(s.url + "/api/v1/version"); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-over:
			return fmt.Errorf("gitea ended at its start:\n%s", s.tail())
		case <-end.C:
			s.kill()
			return fmt.Errorf("gitea did not answer:\n%s", s.tail())
		case <-again.C:
		}
	}
}

// kill ends the server as a power cut does.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.over
}

// tail is the end of what the server said.
func (s *server) tail() string {
	raw, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(raw[max(0, len(raw)-4000):])
}

// ask asks the API as a user, by password, and reads the answer into out. An answer
// with another status than want fails the test.
func (s *server) ask(t *testing.T, user, method, path string, in, out any, want int) {
	t.Helper()
	status, raw := s.try(t, user, method, path, in)
	if status != want {
		t.Fatalf("%s %s: %d %s", method, path, status, raw)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *server) try(t *testing.T, user, method, path string, in any) (int, []byte) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	// Not the test's context, which has ended when cleaning up.
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+"/api/v1"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	req.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, raw
}

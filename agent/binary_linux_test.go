package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kokoa-proxy/kokoa/edge/api"
)

const (
	// sizeGoal and memoryGoal are what a small board can spare, in bytes.
	sizeGoal   = 12_000_000
	memoryGoal = 25 << 20
)

// TestBinary runs the program itself, as it is shipped: with fifty services on two
// edges it forwards, stays small, and ends when it is told to.
func TestBinary(t *testing.T) {
	f := newTestFleet(t)
	tokyo, osaka := f.newEdge(t, "tokyo", "10.77.0.10"), f.newEdge(t, "osaka", "10.77.0.11")
	f.bootstrap.Edges = []api.AgentEdge{tokyo.is, osaka.is}
	f.config.Edges = f.bootstrap.Edges
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "page") }))
	defer web.Close()
	signed := f.sign(t, func(c *api.AgentConfig) {
		for i := range 50 {
			c.Services = append(c.Services, api.AgentService{ID: fmt.Sprintf("s%02d", i), URL: web.URL, Health: "/"})
		}
	})
	tokyo.relay(signed)
	osaka.relay(signed)

	dir := t.TempDir()
	program := filepath.Join(dir, "kokoa-agent")
	build := exec.Command("go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-ldflags", "-s -w", "-o", program, "github.com/kokoa-proxy/kokoa/cmd/kokoa-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > sizeGoal {
		t.Errorf("the program has %d bytes, want at most %d", info.Size(), sizeGoal)
	}
	bootstrap, err := json.Marshal(f.bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "rpi.json")
	if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	run := exec.Command(program, "run", "--config", file, "--allow", strings.TrimPrefix(web.URL, "http://"))
	run.Stderr = &log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- run.Wait() }()
	t.Cleanup(func() {
		run.Process.Kill()
		<-ended
	})

	eventually(t, "fifty services up", func() bool {
		n := 0
		for _, s := range tokyo.last().Services {
			if s.Up {
				n++
			}
		}
		return n == 50 && osaka.last().Serial == 5
	})
	for _, e := range []*testEdgeServer{tokyo, osaka} {
		c := e.client("s49")
		res, err := c.Get("http://blog.example.com/")
		if err != nil || res.StatusCode != 200 {
			t.Errorf("through %s: %v, %v", e.is.Name, res, err)
		}
		if err == nil {
			res.Body.Close()
		}
		c.CloseIdleConnections()
	}
	memory := resident(t, run.Process.Pid)
	t.Logf("%d bytes on disk, %d bytes resident", info.Size(), memory)
	if memory > memoryGoal {
		t.Errorf("%d bytes resident, want at most %d", memory, memoryGoal)
	}
	if err := run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = <-ended
	ended <- err
	if err != nil {
		t.Errorf("ended with %v", err)
	}
	if secret := f.bootstrap.PrivateKey.Reveal(); strings.Contains(log.String(), secret) {
		t.Error("the log has the private key in it")
	}
	t.Log(log.String())
}

// resident is a process's memory in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kilobytes, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatalf("no VmRSS in %s", status)
	return 0
}

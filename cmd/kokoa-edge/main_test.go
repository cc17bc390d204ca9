package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kokoa-edge": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"waitfile": waitFile, "terminate": terminate},
	})
}

// waitFile waits until each of the named files exists.
func waitFile(ts *testscript.TestScript, neg bool, names []string) {
	if neg {
		ts.Fatalf("waitfile cannot be negated")
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, name := range names {
		for {
			if _, err := os.Stat(ts.MkAbs(name)); err == nil {
				break
			}
			if time.Now().After(deadline) {
				ts.Fatalf("%s does not exist after 30 s", name)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// terminate sends SIGTERM to what runs in the background.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: terminate")
	}
	for _, background := range ts.BackgroundCmds() {
		ts.Check(background.Process.Signal(syscall.SIGTERM))
	}
}

// TestLinks says what the program that faces the internet must never link.
func TestLinks(t *testing.T) {
	never := map[string]string{
		"cuelang.org/go":                          "the edge reads JSON, not the fleet repo",
		"github.com/go-git/go-git":                "the edge never sees Git",
		"github.com/caddyserver":                  "certificates are the control plane's",
		"github.com/mholt/acmez":                  "certificates are the control plane's",
		"github.com/libdns":                       "DNS is the control plane's",
		"github.com/miekg/dns":                    "DNS is the control plane's",
		"github.com/fsnotify":                     "the edge watches nothing",
		"github.com/spf13":                        "the standard flag package is enough",
		"github.com/google/go-github":             "the edge holds no forge token",
		"github.com/linode":                       "the edge holds no cloud token",
		"github.com/letsencrypt":                  "test servers stay in tests",
		"github.com/rogpeppe":                     "test tools stay in tests",
		"pgregory.net/rapid":                      "test tools stay in tests",
		"testing":                                 "test tools stay in tests",
		"github.com/kokoa-proxy/kokoa/schema":     "the edge reads JSON, not the fleet repo",
		"github.com/kokoa-proxy/kokoa/fleet":      "what the edge needs to know is in edge/api",
		"github.com/kokoa-proxy/kokoa/reconciler": "the edge obeys, it does not reconcile",
		"github.com/kokoa-proxy/kokoa/agent":      "the edge is no agent",
	}
	list := exec.Command("go", "list", "-deps", ".", "github.com/kokoa-proxy/kokoa/edge/...")
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.Lines(string(out)) {
		path = strings.TrimSpace(path)
		for prefix, why := range never {
			if path == prefix || strings.HasPrefix(path, prefix+"/") {
				t.Errorf("kokoa-edge links %s, and %s", path, why)
			}
		}
	}
}

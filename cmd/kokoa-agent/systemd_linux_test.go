package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWithSystemd runs the sessions in testdata/systemd on a host of its own, in new
// namespaces, that was booted by a real systemd.
func TestWithSystemd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test boots systemd in namespaces of its own: run it as root")
	}
	for tool, from := range map[string]string{"/usr/lib/systemd/systemd": "systemd", "/usr/bin/unshare": "util-linux", "/usr/sbin/ip": "iproute2"} {
		if _, err := os.Stat(tool); err != nil {
			t.Fatalf("%s is missing: apt-get install %s", tool, from)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"root", "share"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sessions, err := filepath.Glob("testdata/systemd/*.txtar")
	if err != nil || len(sessions) == 0 {
		t.Fatalf("sessions %v, %v", sessions, err)
	}
	for _, from := range append(sessions, self) {
		to := filepath.Base(from)
		if from == self {
			to = "test"
		}
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	boot := exec.CommandContext(ctx, "/usr/bin/unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--kill-child",
		"/bin/sh", "testdata/systemd/boot.sh", dir)
	// How it ends says nothing: a host that was powered off was killed.
	said, _ := boot.CombinedOutput()
	output, err := os.ReadFile(filepath.Join(dir, "share", "output"))
	if err != nil || !strings.HasSuffix(string(output), "\nPASS\n") {
		t.Errorf("%v\n%s\n%s", err, said, output)
	}
}

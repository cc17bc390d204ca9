package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/internal/nettest"
)

// An edge whose disk is full keeps what it has, says why it takes nothing new, and
// takes it once there is room.
func TestADiskIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a small disk: run it as root")
	}
	l := newLoopback(t, func(l *lab) {
		osaka := l.edges[0]
		data := filepath.Join(l.dir, osaka.name)
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		here := nettest.Here(t)
		osaka.launch = func(cmd *exec.Cmd) error {
			return here.StartMounted(cmd, func() error {
				return unix.Mount("tmpfs", data, "tmpfs", 0, "size=256k,mode=0700")
			})
		}
	})
	osaka := l.edges[0]
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")
	l.settled()

	rest := filepath.Join("/proc", strconv.Itoa(osaka.cmd.Process.Pid), "root", l.dir, osaka.name, "rest")
	if err := fill(rest); err != nil {
		t.Fatal(err)
	}
	visitors := l.visit("https://blog.example.com/")
	// The edge frees the oldest config that it has for a new one, so this has to be
	// longer.
	l.route("shop", "/")
	for n := range 50 {
		l.route(fmt.Sprintf("app%d", n), "/")
	}
	l.push("Publish the shop and fifty apps")
	demotest.Eventually(t, limit, func() error {
		s, err := l.report()
		if err != nil {
			return err
		}
		for _, f := range s.Failed {
			if strings.Contains(f.Error, "edge osaka") && strings.Contains(f.Error, "no space left on device") {
				t.Logf("%s: %s", f.Address, f.Error)
				return nil
			}
		}
		return fmt.Errorf("status does not tell of the full disk: %s %q %v", s.Phase, s.Error, s.Failed)
	})
	visitors.more(10)
	if code, _, err := get(l.client(osaka), "https://shop.example.com/"); err != nil || code != 404 {
		t.Errorf("the shop on the full edge: %d %v, want 404", code, err)
	}

	if err := os.Remove(rest); err != nil {
		t.Fatal(err)
	}
	l.live("shop.example.com")
	l.settled()
	if n, err := visitors.leave(); err != nil {
		t.Errorf("%d answers with a full disk, and %v", n, err)
	}
}

// fill writes a file until its disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

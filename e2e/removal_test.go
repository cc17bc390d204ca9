package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/keys"
)

// says is what the agent on a node's host says of itself.
func (l *lab) says(n *node) (agent.Report, error) {
	cmd := exec.Command(filepath.Join(l.bin, "kokoa-agent"), "status", "--json")
	cmd.Env = append(os.Environ(), "KOKOA_DATA="+filepath.Join(l.dir, n.name))
	out, err := cmd.Output()
	var r agent.Report
	if jerr := json.Unmarshal(out, &r); jerr != nil {
		return r, fmt.Errorf("%w: %s", errors.Join(err, jerr), out)
	}
	return r, nil
}

// tunnels waits until exactly the named edges answer a node's agent.
func (l *lab) tunnels(n *node, want ...string) {
	l.t.Helper()
	demotest.Eventually(l.t, time.Minute, func() error {
		r, err := l.says(n)
		if err != nil {
			return err
		}
		up := []string{}
		for _, e := range r.Edges {
			if e.Up {
				up = append(up, e.Name)
			}
		}
		if fmt.Sprint(up) != fmt.Sprint(want) {
			return fmt.Errorf("%s has tunnels to %v, want %v", n.name, up, want)
		}
		return nil
	})
}

// guest adds an origin beside the first one.
func guest(t *testing.T) func(*lab) {
	key, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return func(l *lab) {
		l.agents = append(l.agents, &node{name: "guest", tunnel: netip.MustParseAddr("10.86.1.2"), key: key, launch: (*exec.Cmd).Start})
	}
}

// An origin that is taken out of Git is cut off at every edge within a minute: also
// at one that could not be reached meanwhile, and after edges start again from their
// disks without the control plane.
func TestARemovedOriginIsCutOff(t *testing.T) {
	l := newLoopback(t, guest(t))
	vm1, out := l.agents[0], l.agents[1]
	l.tunnels(vm1, "osaka", "tokyo")
	l.tunnels(out, "osaka", "tokyo")

	l.kill(l.edges[1])
	if err := os.Remove(filepath.Join(l.clone, "origins-guest.cue")); err != nil {
		t.Fatal(err)
	}
	l.push("Take guest out")
	l.tunnels(out)
	// The other edge comes back with the config that it had.
	l.start(l.edges[1])
	l.tunnels(vm1, "osaka", "tokyo")
	l.settled()
	l.tunnels(out)

	l.kill(l.control)
	for _, e := range l.edges {
		l.kill(e)
		l.start(e)
	}
	l.tunnels(vm1, "osaka", "tokyo")
	l.kill(out)
	l.start(out) // with new handshakes, as an attacker's would be
	for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(500 * time.Millisecond) {
		r, err := l.says(out)
		if err != nil {
			continue // it starts
		}
		if r.Up() > 0 {
			t.Fatalf("a removed origin has a tunnel again: %+v", r.Edges)
		}
	}
}

// A temporary origin ends at its time, and its route with it, although the control
// plane and the repo are gone; its agent ends it as well.
func TestATemporaryOriginEnds(t *testing.T) {
	l := newLoopback(t, guest(t))
	out := l.agents[1]
	l.tunnels(out, "osaka", "tokyo")
	ends := time.Now().Add(20 * time.Second).UTC()
	l.write("origins-guest.cue", fmt.Sprintf("package fleet\n\norigin: guest: {\n\tpublic_key: %q\n\ttunnel_address: %q\n\texpires: %q\n}\n", out.key.Public(), out.tunnel, ends.Format(time.RFC3339)))
	l.write("route-show.cue", fmt.Sprintf("package fleet\n\nroute: show: {\n\thost: \"show.example.com\"\n\torigin: \"guest\"\n\tservice: %q\n}\n", l.service))
	l.push("Show something for a while")
	l.live("show.example.com")
	l.kill(l.control)
	if err := os.RemoveAll(l.repo); err != nil {
		t.Fatal(err)
	}
	if time.Now().After(ends) {
		t.Fatal("it took too long to go live for the rest to say anything")
	}
	time.Sleep(time.Until(ends))
	demotest.Eventually(t, 10*time.Second, func() error {
		for _, e := range l.edges {
			c := l.client(e)
			code, body, err := get(c, "https://show.example.com/")
			c.CloseIdleConnections()
			if err == nil && code == 200 {
				return fmt.Errorf("edge %s still serves: %s", e.name, body)
			}
		}
		return nil
	})
	l.tunnels(out)
	r, err := l.says(out)
	if err != nil || r.Unhealthy() == nil {
		t.Errorf("%+v, %v", r, err)
	}
}

package e2e

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/tunnel/tunneltest"
)

// promised is how soon a tunnel carries pages again after what broke it is over.
const promised = 15 * time.Second

// Hosts are suspended and rebooted, and their clocks are set back: pages are there
// again in time, with nobody's doing and no control plane.
func TestTunnelsMend(t *testing.T) {
	l := newLoopback(t)
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")
	l.settled()
	l.kill(l.control)
	osaka, agent := l.edges[0], l.agents[0]

	t.Log("an edge is rebooted")
	l.kill(osaka)
	time.Sleep(5 * time.Second) // it is gone for so long
	l.start(osaka)
	l.mends("blog.example.com", osaka)

	t.Log("the agent's host is suspended")
	l.stopped(agent, func() { time.Sleep(20 * time.Second) })
	l.mends("blog.example.com", l.edges...)

	t.Log("the agent's host is suspended for longer than its sessions live")
	l.stopped(agent, func() {
		for _, e := range l.edges {
			l.kill(e)
			l.start(e)
		}
	})
	l.mends("blog.example.com", l.edges...)

	// What the edges last heard from the agent was an hour ahead of its clock, and of
	// what a host says that has no clock of its own when it boots.
	t.Log("the agent's host is rebooted with its clock set back by an hour")
	l.kill(agent)
	for _, e := range l.edges {
		at := netip.AddrPortFrom(e.address, e.wireguard)
		tunneltest.Initiate(t, agent.key, l.secret.Edge(e.name, 1).Public(), at, time.Now().Add(time.Hour))
	}
	l.start(agent)
	l.mends("blog.example.com", l.edges...)

	t.Log("an edge is suspended")
	l.stopped(osaka, func() { time.Sleep(20 * time.Second) })
	l.mends("blog.example.com", osaka)
}

// stopped does something while a node's program stands still.
func (l *lab) stopped(n *node, do func()) {
	l.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		l.t.Fatal(err)
	}
	do()
	if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		l.t.Fatal(err)
	}
}

// mends waits until a page comes through every one of some edges, for as long as was
// promised.
func (l *lab) mends(host string, edges ...*node) {
	l.t.Helper()
	began := time.Now()
	for _, e := range edges {
		demotest.Eventually(l.t, time.Until(began.Add(promised)), func() error {
			c := l.client(e)
			c.Timeout = time.Second
			defer c.CloseIdleConnections()
			code, _, err := get(c, "https://"+host+"/")
			if err == nil && code != 200 {
				err = errStatus(code)
			}
			return err
		})
		l.t.Logf("a page comes through %s after %s", e.name, time.Since(began))
	}
}

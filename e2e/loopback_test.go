package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/keys"
)

// newLoopback is a lab on this host: user-space tunnels, two edges on two addresses,
// one agent. Each change is made to it before anything starts.
func newLoopback(t *testing.T, changes ...func(*lab)) *lab {
	l := newLab(t, "userspace")
	service := httptest.NewServer(http.HandlerFunc(page))
	t.Cleanup(service.Close)
	l.service = service.URL
	for i, name := range []string{"osaka", "tokyo"} {
		l.edges = append(l.edges, &node{
			name: name, address: netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), tunnel: netip.AddrFrom4([4]byte{10, 86, 0, byte(16 + i)}),
			http: uint16(freePort(t)), https: uint16(freePort(t)), wireguard: uint16(freePort(t)), launch: (*exec.Cmd).Start,
		})
	}
	key, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	l.agents = []*node{{name: "vm1", tunnel: netip.MustParseAddr("10.86.1.1"), key: key, launch: (*exec.Cmd).Start}}
	for _, change := range changes {
		change(l)
	}
	l.startEdges()
	l.startControl()
	l.startAgents()
	return l
}

// A commit becomes a page, through a name server and an issuer that are not ours; a
// second commit goes live while visitors keep loading it, and nobody notices.
func TestACommitBecomesAPage(t *testing.T) {
	l := newLoopback(t)
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")

	visitors := l.visit("https://blog.example.com/")
	l.route("shop", "/")
	l.push("Publish the shop")
	l.live("shop.example.com")
	l.route("wiki", "/")
	l.push("Publish the wiki")
	l.live("wiki.example.com")
	visitors.more(10)
	n, err := visitors.leave()
	if err != nil || n == 0 {
		t.Errorf("%d answers during two commits, and %v", n, err)
	}
	t.Logf("%d answers during two commits, none failed", n)
	if orders := l.issuer.Orders(); len(orders) != 1 || len(orders[0].Hosts) != 1 || orders[0].Hosts[0] != "*.example.com" {
		t.Errorf("orders %v, want one for the wildcard", orders)
	}
	// What the edges hold opens nothing else.
	for _, e := range l.edges {
		out, err := exec.Command("grep", "-rlE", "ACME|acme_|"+l.tsig()[:12], filepath.Join(l.dir, e.name)).CombinedOutput()
		if err == nil {
			t.Errorf("edge %s has control plane secrets: %s", e.name, out)
		}
	}
}

// Without the control plane everything goes on, across restarts of edges and agents.
func TestTheControlPlaneIsGone(t *testing.T) {
	l := newLoopback(t)
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")

	visitors := l.visit("https://blog.example.com/")
	l.kill(l.control)
	visitors.more(100)
	if n, err := visitors.leave(); err != nil {
		t.Errorf("visible: %d answers, %v", n, err)
	}
	for _, n := range append(l.edges[:2:2], l.agents...) {
		l.kill(n)
		l.start(n)
		l.live("blog.example.com")
	}
	// All at once, as after a power cut.
	for _, n := range append(l.edges[:2:2], l.agents...) {
		l.kill(n)
	}
	for _, n := range append(l.edges[:2:2], l.agents...) {
		l.start(n)
	}
	l.live("blog.example.com")

	// A new one on an empty disk takes up the same fleet.
	l.control.args = l.serve("state-of-another-host")
	l.start(l.control)
	l.route("shop", "/")
	l.push("Publish the shop")
	l.live("shop.example.com")
}

// Killing an edge: the other serves every new connection, and DNS follows.
func TestAnEdgeIsGone(t *testing.T) {
	l := newLoopback(t)
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")
	l.kill(l.edges[0])
	for range 50 {
		c := l.client(l.edges[1])
		if code, body, err := get(c, "https://blog.example.com/"); err != nil || code != 200 {
			t.Fatalf("the other edge: %d %q %v", code, body, err)
		}
		c.CloseIdleConnections()
	}
	demotest.Eventually(t, limit, func() error { return l.answers("blog.example.com", []string{"127.0.0.2"}) })
	l.start(l.edges[0])
	l.live("blog.example.com")
}

// A name that is taken out of Git is gone from DNS and edges, and nothing else is.
func TestUnpublishing(t *testing.T) {
	l := newLoopback(t)
	l.route("blog", "/")
	l.route("shop", "/")
	l.push("Publish two")
	l.live("blog.example.com")
	l.live("shop.example.com")
	demotest.Git(t, l.clone, "rm", "-q", "route-shop.cue")
	l.push("Unpublish the shop")
	demotest.Eventually(t, limit, func() error { return l.answers("shop.example.com", nil) })
	for _, e := range l.edges {
		demotest.Eventually(t, limit, func() error {
			code, _, err := get(l.client(e), "https://shop.example.com/")
			if err == nil && code != 404 {
				return errStatus(code)
			}
			return nil
		})
	}
	l.live("blog.example.com")
	l.settled()
}

// A control plane that is killed at any moment of applying leaves nothing that the
// next one does not finish.
func TestTheControlPlaneIsKilledWhileItApplies(t *testing.T) {
	l := newLoopback(t)
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")

	visitors := l.visit("https://blog.example.com/")
	var hosts []string
	for round := range 6 {
		for n := range 30 {
			name := fmt.Sprintf("app%d-%d", round, n)
			l.route(name, "/")
			hosts = append(hosts, name+".example.com")
		}
		l.push(fmt.Sprintf("Publish thirty more apps, %d", round))
		// Moments at which a turn may stand anywhere: from its start on, and from when
		// the first edge has the new config and nothing else has.
		moment := rand.N(400 * time.Millisecond)
		if round%2 == 1 {
			l.reaches(l.edges[0])
			moment /= 10
		}
		time.Sleep(moment)
		l.kill(l.control)
		t.Logf("killed after %s, with %d of %d names in DNS", moment, l.inDNS(hosts), len(hosts))
		l.start(l.control)
	}
	l.settled()
	visitors.more(1)
	if n, err := visitors.leave(); err != nil {
		t.Errorf("visible: %d answers, %v", n, err)
	}
	plan := exec.Command(filepath.Join(l.bin, "kokoa"), "plan", "--detailed-exitcode", "--repo", l.clone, "--secret-file", filepath.Join(l.dir, "secret"))
	plan.Env = append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(l.dir, "cache"))
	if out, err := plan.CombinedOutput(); err != nil {
		t.Errorf("the plan is not empty: %v\n%s", err, out)
	}
	if n := l.inDNS(hosts); n != len(hosts) {
		t.Errorf("%d of %d names are in DNS", n, len(hosts))
	}
	l.live(hosts[len(hosts)-1])
}

// reaches waits until an edge has the head of the repo.
func (l *lab) reaches(e *node) {
	l.t.Helper()
	head := l.head()
	demotest.Eventually(l.t, limit, func() error {
		if !strings.Contains(e.log.String(), "revision="+head) {
			return fmt.Errorf("edge %s does not have %s", e.name, head)
		}
		return nil
	})
}

// inDNS counts the hosts that DNS knows.
func (l *lab) inDNS(hosts []string) (n int) {
	var want []string
	for _, e := range l.edges {
		want = append(want, e.address.String())
	}
	for _, host := range hosts {
		if l.answers(host, want) == nil {
			n++
		}
	}
	return n
}

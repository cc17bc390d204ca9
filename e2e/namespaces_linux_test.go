package e2e

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/nettest"
	"github.com/kokoa-proxy/kokoa/keys"
)

// The addresses of the hosts. The service's is in a home network, behind a router
// that lets nothing in.
var (
	visitorAddr = netip.MustParseAddr("198.51.100.10")
	osakaAddr   = netip.MustParseAddr("203.0.113.10")
	tokyoAddr   = netip.MustParseAddr("203.0.113.20")
	homeAddr    = netip.MustParseAddr("192.0.2.2")
	pieAddr     = netip.MustParseAddr("192.168.1.2")
	vpsAddr     = netip.MustParseAddr("192.0.2.130")
)

// servicePort is open on every address of the Raspberry Pi.
const servicePort = 8080

// internet is a lab whose every host is a network namespace. The test, Knot, Pebble,
// the control plane and the visitors are on one of them.
//
//	control ── core ── osaka
//	            │ └─── tokyo
//	            ├───── vps
//	            └───── home (NAT) ── pie
type internet struct {
	*lab
	hosts map[string]*nettest.Host
}

// onInternet runs a story on a new internet.
func onInternet(t *testing.T, story func(*internet)) {
	if os.Getenv(builtEnv) == "" {
		onAnotherHost(t)
		return
	}
	// The processes of this host are others than those that /proc was mounted for.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatalf("mount /proc: %v", err)
	}
	story(newInternet(t))
}

// onAnotherHost runs the test again, on a host that has no network yet. All that the
// test starts there ends with it, whichever way it ends.
func onAnotherHost(t *testing.T) {
	t.Parallel() // most of the time is waiting
	nettest.RequireRoot(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatalf("this test makes a NAT router: apt-get install nftables (%v)", err)
	}
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, in which the names of Unix sockets would get too long.
	temp, err := os.MkdirTemp("", "kokoa-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+(time.Until(deadline)*9/10).String()) // it tells more than ours
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), builtEnv+"="+bin, "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	// Pdeathsig is about the thread that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	t.Logf("on a host of its own:\n%s", out)
	if err != nil {
		t.Errorf("run on a host of its own: %v", err)
	}
}

func newInternet(t *testing.T) *internet {
	i := &internet{lab: newLab(t, "tun"), hosts: map[string]*nettest.Host{"control": nettest.Here(t)}}
	for _, name := range []string{"core", "osaka", "tokyo", "vps", "home", "pie"} {
		i.hosts[name] = nettest.NewHost(t, name)
	}
	i.join("core", "control", netip.PrefixFrom(visitorAddr, 24))
	i.join("core", "osaka", netip.PrefixFrom(osakaAddr, 29))
	i.join("core", "tokyo", netip.PrefixFrom(tokyoAddr, 29))
	i.join("core", "home", netip.PrefixFrom(homeAddr, 25))
	i.join("core", "vps", netip.PrefixFrom(vpsAddr, 25))
	i.join("home", "pie", netip.PrefixFrom(pieAddr, 24))
	// Edges are hosts that forward, for reasons of their own.
	for _, name := range []string{"core", "home", "osaka", "tokyo"} {
		i.hosts[name].Sysctl("net.ipv4.ip_forward", "1")
	}
	i.run("home", "nft", fmt.Sprintf(`
		table ip nat {
			chain out {
				type nat hook postrouting priority srcnat
				ip saddr %[1]s masquerade random
			}
			chain through {
				type filter hook forward priority filter; policy drop
				ct state established,related accept
				ip saddr %[1]s accept
			}
		}`, netip.PrefixFrom(pieAddr, 24).Masked()), "-f", "-")

	for n, addr := range []netip.Addr{osakaAddr, tokyoAddr} {
		name := []string{"osaka", "tokyo"}[n]
		i.edges = append(i.edges, &node{
			name: name, address: addr, tunnel: netip.AddrFrom4([4]byte{10, 86, 0, byte(16 + n)}),
			http: 80, https: 443, wireguard: 51820, launch: i.launch(name),
		})
	}
	for n, name := range []string{"pie", "vps"} {
		key, err := keys.NewPrivate()
		if err != nil {
			t.Fatal(err)
		}
		i.agents = append(i.agents, &node{name: name, tunnel: netip.AddrFrom4([4]byte{10, 86, 1, byte(1 + n)}), key: key, launch: i.launch(name)})
	}
	i.service = "http://127.0.0.1:" + strconv.Itoa(servicePort)
	service := httptest.NewUnstartedServer(http.HandlerFunc(page))
	service.Listener.Close()
	service.Listener = i.listen("pie", netip.AddrPortFrom(netip.IPv4Unspecified(), servicePort))
	service.Start()
	t.Cleanup(service.Close)
	i.startEdges()
	i.startControl()
	i.startAgents()
	return i
}

// join puts a cable between a router and a host, which gets the router for its way
// to everywhere.
func (i *internet) join(router, host string, address netip.Prefix) {
	gateway := address.Masked().Addr().Next()
	nettest.Join(i.hosts[router], netip.PrefixFrom(gateway, address.Bits()), i.hosts[host], address)
	i.hosts[host].Route(netip.MustParsePrefix("0.0.0.0/0"), gateway)
}

// launch starts processes on a host. Each host has a /run of its own, where the
// sockets of WireGuard devices are.
func (i *internet) launch(host string) func(*exec.Cmd) error {
	run := filepath.Join(i.dir, host+"-run")
	if err := os.Mkdir(run, 0o755); err != nil {
		i.t.Fatal(err)
	}
	return func(cmd *exec.Cmd) error {
		return i.hosts[host].StartMounted(cmd, func() error { return unix.Mount(run, "/run", "", unix.MS_BIND, "") })
	}
}

// run runs a program on a host, with that standard input.
func (i *internet) run(host, program, input string, args ...string) {
	i.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(input)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := i.hosts[host].Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		i.t.Fatalf("run %s on %s: %v\n%s", program, host, err, out.String())
	}
}

func (i *internet) listen(host string, at netip.AddrPort) (l net.Listener) {
	i.hosts[host].Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	return l
}

// dial opens a connection from a host, or says why there is none.
func (i *internet) dial(from string, to netip.AddrPort) error {
	return i.hosts[from].Try(func() error {
		c, err := net.DialTimeout("tcp", to.String(), time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// device reports whether a host has the tunnel's network interface.
func (i *internet) device(host string) (there bool) {
	i.hosts[host].Do(func() error {
		_, err := netlink.LinkByName("kokoa0")
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			return nil
		}
		there = err == nil
		return err
	})
	return there
}

// mappings are the home router's public ports for the tunnels to the edges.
func (i *internet) mappings() map[string]uint16 {
	i.t.Helper()
	ports := map[string]uint16{}
	i.hosts["home"].Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		for _, f := range flows {
			if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.SrcIP.String() == pieAddr.String() {
				ports[f.Forward.DstIP.String()] = f.Reverse.DstPort
			}
		}
		return err
	})
	return ports
}

// claim makes the WireGuard device of a node send an address to a peer, as the node's
// root can.
func (i *internet) claim(n *node, peer keys.Public, address netip.Addr) {
	i.t.Helper()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root/run/wireguard/kokoa0.sock", n.cmd.Process.Pid))
	if err != nil {
		i.t.Fatal(err)
	}
	defer c.Close()
	// https://www.wireguard.com/xplatform/
	fmt.Fprintf(c, "set=1\npublic_key=%s\nupdate_only=true\nallowed_ip=%s/32\n\n", hex.EncodeToString(peer[:]), address)
	if answer, err := bufio.NewReader(c).ReadString('\n'); err != nil || answer != "errno=0\n" {
		i.t.Fatalf("WireGuard on %s: %q %v", n.name, answer, err)
	}
}

// ask gets a page as a visitor does who has nothing but a URL and a name server.
func (i *internet) ask(url string) (int, string, error) {
	c := i.client(i.edges[0])
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, i.dns.Addr)
	}}
	c.Transport.(*http.Transport).DialContext = (&net.Dialer{Resolver: resolver}).DialContext
	defer c.CloseIdleConnections()
	return get(c, url)
}

// A commit becomes a page that a Raspberry Pi behind a NAT router serves; a second
// one goes live while visitors keep loading the first.
func TestACommitBecomesAPageBehindNAT(t *testing.T) {
	onInternet(t, func(i *internet) {
		i.route("blog", "/")
		i.push("Publish the blog")
		i.live("blog.example.com")
		code, body, err := i.ask("https://blog.example.com/hello")
		if want := fmt.Sprintf("GET blog.example.com/hello for %s\n", visitorAddr); err != nil || code != 200 || body != want {
			t.Errorf("got %d %q %v, want %q", code, body, err, want)
		}

		visitors := i.visit("https://blog.example.com/")
		i.route("shop", "/")
		i.push("Publish the shop")
		i.live("shop.example.com")
		visitors.more(10)
		n, err := visitors.leave()
		if err != nil {
			t.Errorf("%d answers during a commit, and %v", n, err)
		}
		t.Logf("%d answers during a commit, none failed", n)

		i.settled()
		s, err := i.report()
		if err != nil || len(s.Edges) != 2 || len(s.Origins) != 2 {
			t.Fatalf("status %+v, %v", s, err)
		}
		want := api.Tunnel{Kind: "tun", Reason: "tun: as configured"}
		for _, e := range s.Edges {
			if e.Tunnel != want {
				t.Errorf("the tunnel of edge %s is %+v, want %+v", e.Name, e.Tunnel, want)
			}
		}
		for _, o := range s.Origins {
			if o.Heartbeat == nil || o.Heartbeat.Tunnel != want {
				t.Errorf("the heartbeat of agent %s is %+v, want tunnel %+v", o.Name, o.Heartbeat, want)
			}
		}
	})
}

// The home router forgets its mappings and gives others: the page is back without
// anybody's doing.
func TestTheNATRouterForgets(t *testing.T) {
	onInternet(t, func(i *internet) {
		i.route("blog", "/")
		i.push("Publish the blog")
		i.live("blog.example.com")

		before := i.mappings()
		if len(before) != 2 {
			t.Fatalf("mappings %v, want one for each edge", before)
		}
		i.hosts["home"].Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
		began := time.Now()
		for _, e := range i.edges {
			c := i.client(e)
			c.Timeout = 2 * time.Second
			demotest.Eventually(t, time.Until(began.Add(15*time.Second)), func() error {
				if after := i.mappings(); after[e.address.String()] == before[e.address.String()] {
					return fmt.Errorf("the mapping for %s is still %v", e.name, after)
				}
				code, _, err := get(c, "https://blog.example.com/")
				if err == nil && code != 200 {
					err = errStatus(code)
				}
				return err
			})
			t.Logf("the page is back through %s after %s, on port %d instead of %d", e.name, time.Since(began), i.mappings()[e.address.String()], before[e.address.String()])
		}
	})
}

// Nobody reaches an agent's host but through what the agent forwards.
func TestAnAgentsHostIsClosed(t *testing.T) {
	onInternet(t, func(i *internet) {
		i.route("blog", "/")
		i.push("Publish the blog")
		i.live("blog.example.com")
		pie, vps, osaka := i.agents[0], i.agents[1], i.edges[0]
		// What is to be out of reach from elsewhere is there.
		if err := i.dial("home", netip.AddrPortFrom(pieAddr, servicePort)); err != nil {
			t.Fatalf("the service, from its own network: %v", err)
		}
		demotest.Eventually(t, limit, func() error { return i.dial(osaka.name, netip.AddrPortFrom(pie.tunnel, api.AgentPort)) })
		demotest.Eventually(t, limit, func() error { return i.dial(osaka.name, netip.AddrPortFrom(vps.tunnel, api.AgentPort)) })

		for _, from := range []string{"control", "osaka", "tokyo", "vps"} {
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(homeAddr, servicePort), netip.AddrPortFrom(homeAddr, api.AgentPort),
				netip.AddrPortFrom(pieAddr, servicePort), netip.AddrPortFrom(pieAddr, api.AgentPort),
			} {
				if i.dial(from, to) == nil {
					t.Errorf("%s is reached from %s", to, from)
				}
			}
		}
		// The tunnel leads to the agent, or to the edge, and not to whatever else listens.
		l := i.listen(osaka.name, netip.AddrPortFrom(netip.IPv4Unspecified(), servicePort))
		defer l.Close()
		for _, way := range []struct {
			from string
			to   *node
		}{{"osaka", pie}, {"tokyo", pie}, {"pie", osaka}, {"vps", osaka}} {
			if i.dial(way.from, netip.AddrPortFrom(way.to.tunnel, servicePort)) == nil {
				t.Errorf("what listens on host %s is reached through the tunnel from %s", way.to.name, way.from)
			}
		}

		// Somebody in the home network knows the agent's tunnel address.
		i.hosts["home"].Route(netip.PrefixFrom(pie.tunnel, 32), pieAddr)
		if i.dial("home", netip.AddrPortFrom(pie.tunnel, api.AgentPort)) == nil {
			t.Error("the agent is reached from beside the tunnel")
		}

		// Two agents whose hosts were taken over do all they can to meet through an edge.
		meet := func() error {
			i.claim(pie, i.secret.Edge(osaka.name, 1).Public(), vps.tunnel)
			i.claim(vps, i.secret.Edge(osaka.name, 1).Public(), pie.tunnel)
			return i.dial("pie", netip.AddrPortFrom(vps.tunnel, api.AgentPort))
		}
		if meet() == nil {
			t.Error("one agent reaches another")
		}
		// It is the edge that does not let them.
		i.run(osaka.name, "nft", "flush ruleset\n", "-f", "-")
		i.hosts[osaka.name].Do(func() error {
			rules, err := netlink.RuleList(netlink.FAMILY_V4)
			for _, r := range rules {
				if r.IifName == "kokoa0" {
					err = errors.Join(err, netlink.RuleDel(&r))
				}
			}
			return err
		})
		demotest.Eventually(t, limit, meet)
	})
}

// An edge that is killed takes its device along; the other serves. When it is back it
// serves what it had, though nobody tells it.
func TestAnEdgeDiesWithItsDevice(t *testing.T) {
	onInternet(t, func(i *internet) {
		i.route("blog", "/")
		i.push("Publish the blog")
		i.live("blog.example.com")
		osaka, tokyo := i.edges[0], i.edges[1]
		if !i.device(osaka.name) {
			t.Fatal("the edge has no device")
		}
		visitors := i.visitThrough("https://blog.example.com/", tokyo)
		i.kill(osaka)
		demotest.Eventually(t, limit, func() error {
			if i.device(osaka.name) {
				return errors.New("the device is still there")
			}
			return nil
		})
		visitors.more(10)
		demotest.Eventually(t, limit, func() error { return i.answers("blog.example.com", []string{tokyo.address.String()}) })
		if n, err := visitors.leave(); err != nil {
			t.Errorf("%d answers through the other edge, and %v", n, err)
		}

		i.kill(i.control)
		i.start(osaka)
		c := i.client(osaka)
		demotest.Eventually(t, limit, func() error {
			code, body, err := get(c, "https://blog.example.com/")
			if err == nil && (code != 200 || !strings.Contains(body, "blog.example.com")) {
				err = fmt.Errorf("%d %q", code, body)
			}
			return err
		})
		if !i.device(osaka.name) {
			t.Error("the edge has no device")
		}
		i.start(i.control)
		i.live("blog.example.com")
	})
}

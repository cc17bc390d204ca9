package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// inNamespace is set in the process that has a network of its own.
const inNamespace = "KOKOA_TEST_NAMESPACE"

// alone runs the calling test again in a process with a network of its own, where
// every address there is belongs to the loopback interface: whoever is dialled
// would be seen. It reports whether this is that process.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), inNamespace+"=1")
		c.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
			Pdeathsig:   syscall.SIGKILL,
		}
		out, err := c.CombinedOutput()
		t.Logf("in a namespace:\n%s", out)
		if err != nil {
			t.Fatalf("%v; this test needs user and network namespaces (sysctl kernel.unprivileged_userns_clone=1, or root)", err)
		}
		return false
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		if err == nil {
			_, dst, perr := net.ParseCIDR(all)
			if perr != nil {
				t.Fatal(perr)
			}
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: syscall.RTN_LOCAL, Table: 255, Scope: netlink.SCOPE_HOST})
		}
	}
	if err != nil {
		t.Fatalf("set up the namespace's loopback interface: %v", err)
	}
	return true
}

// sniffer sees the first packet of every TCP connection tried in the namespace.
type sniffer struct {
	fd int

	mu   sync.Mutex
	seen map[netip.AddrPort]int
}

func newSniffer(t *testing.T) *sniffer {
	t.Helper()
	const everything = 0x0300 // ETH_P_ALL in network order
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM, everything)
	if err != nil {
		t.Fatalf("open a packet socket: %v", err)
	}
	s := &sniffer{fd: fd, seen: make(map[netip.AddrPort]int)}
	// Only TCP is let through: the names that are looked up beside it would fill the
	// socket while a busy machine keeps its reader waiting.
	tcp, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 2},
		bpf.LoadAbsolute{Off: 9, Size: 1}, // IPv4's protocol
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: 6, Size: 1}, // IPv6's next header
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: syscall.IPPROTO_TCP, SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		t.Fatal(err)
	}
	program := make([]unix.SockFilter, len(tcp))
	for i, in := range tcp {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		t.Fatalf("filter the packet socket: %v", err)
	}
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 20_000}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := syscall.Recvfrom(fd, buf, 0)
			// The loopback interface shows every packet as sent, and again as
			// received. The second would be a marker of times gone by.
			if link, ok := from.(*syscall.SockaddrLinklayer); err == nil && ok && link.Pkttype != syscall.PACKET_OUTGOING {
				s.note(buf[:n])
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	t.Cleanup(func() {
		close(done)
		reading.Wait()
		syscall.Close(fd)
	})
	return s
}

// note counts p when it is a SYN that begins a connection.
func (s *sniffer) note(p []byte) {
	var addr netip.Addr
	var tcp []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && p[9] == syscall.IPPROTO_TCP:
		addr, tcp = netip.AddrFrom4([4]byte(p[16:20])), p[int(p[0]&15)*4:]
	case len(p) >= 40 && p[0]>>4 == 6 && p[6] == syscall.IPPROTO_TCP:
		addr, tcp = netip.AddrFrom16([16]byte(p[24:40])), p[40:]
	}
	const syn, ack = 0x02, 0x10
	if len(tcp) < 20 || tcp[13]&(syn|ack) != syn {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[netip.AddrPortFrom(addr, uint16(tcp[2])<<8|uint16(tcp[3]))]++
}

// after is what has been seen once a connection to marker has: packets on one
// interface are seen in order.
func (s *sniffer) after(t *testing.T, marker string) map[netip.AddrPort]int {
	t.Helper()
	if c, err := net.Dial("tcp", marker); err == nil {
		c.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		s.mu.Lock()
		if s.seen[netip.MustParseAddrPort(marker)] > 0 {
			delete(s.seen, netip.MustParseAddrPort(marker))
			seen := s.seen
			s.seen = make(map[netip.AddrPort]int)
			s.mu.Unlock()
			if stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 {
				t.Fatalf("the sniffer missed %+v packets, %v", stats, err)
			}
			return seen
		}
		s.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("the sniffer sees nothing")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// hostileDNS answers the names of the test, to whatever server a resolver asks.
func hostileDNS(t *testing.T) {
	t.Helper()
	var mu sync.Mutex
	asked := 0
	records := map[string][]string{
		"evil.test.":                {"evil.test. 0 A 169.254.169.254"},
		"metadata.google.internal.": {"metadata.google.internal. 0 A 169.254.169.254"},
		"alias.test.":               {"alias.test. 0 CNAME alias2.test.", "alias2.test. 0 CNAME evil.test.", "evil.test. 0 A 169.254.169.254"},
		"zero.test.":                {"zero.test. 0 A 0.0.0.0"},
		"mapped.test.":              {"mapped.test. 0 AAAA ::ffff:169.254.169.254"},
		"nat64.test.":               {"nat64.test. 0 AAAA 64:ff9b::a9fe:a9fe"},
		"linklocal.test.":           {"linklocal.test. 0 A 169.254.7.7"},
		"tunnel.test.":              {"tunnel.test. 0 A 10.77.0.10"},
		"xn--meta-0ra.test.":        {"xn--meta-0ra.test. 0 A 169.254.169.254"},
		"good.test.":                {"good.test. 0 A 192.168.7.7"},
		"mixed.test.":               {"mixed.test. 0 A 169.254.169.254", "mixed.test. 0 A 192.168.7.8"},
		"nas.test.":                 {"nas.test. 0 A 192.168.7.9"},
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
		list := records[name]
		if name == "rebind.test." && kind == dns.TypeA {
			mu.Lock()
			asked++
			list = []string{"rebind.test. 0 A 192.168.7.10"}
			if asked > 1 {
				list = []string{"rebind.test. 0 A 169.254.169.254"}
			}
			mu.Unlock()
		}
		if list == nil && name != "rebind.test." {
			m.Rcode = dns.RcodeNameError
		}
		for _, text := range list {
			rr, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			if rr.Header().Rrtype == kind || rr.Header().Rrtype == dns.TypeCNAME {
				m.Answer = append(m.Answer, rr)
			}
		}
		w.WriteMsg(m)
	})
	conn, err := net.ListenPacket("udp4", "0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: handler}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
}

// hostile is what a captured control plane would like the agent to dial.
var hostile = []string{
	"http://169.254.169.254", "http://169.254.169.254:8080", "https://169.254.169.254",
	"http://169.254.170.2", "http://169.254.0.1", "http://168.63.129.16", "http://192.0.0.192", "http://100.100.100.200",
	"http://0.0.0.0:2375", "http://0.0.0.1", "http://255.255.255.255", "http://240.0.0.1",
	"http://224.0.0.1", "http://239.255.255.250:1900",
	"http://[::]:2375", "http://[fe80::1]", "http://[fe80::1%25lo]", "http://[fec0::1]", "http://[ff02::1]", "http://[fd00:ec2::254]", "http://[fd20:ce::254]",
	"http://[::ffff:169.254.169.254]", "http://[::ffff:a9fe:a9fe]", "http://[::ffff:0.0.0.0]:2375", "http://[0:0:0:0:0:ffff:169.254.169.254]",
	"http://[::169.254.169.254]", "http://[::ffff:0:169.254.169.254]",
	"http://[64:ff9b::169.254.169.254]", "http://[64:ff9b::a9fe:a9fe]", "http://[64:ff9b:1::a9fe:a9fe]",
	"http://[2002:a9fe:a9fe::]", "http://[2001:0:a9fe:a9fe::1]", "http://[2001:db8::5efe:a9fe:a9fe]",
	"http://10.77.0.10:7070", "http://10.77.1.1:7071", "http://[::ffff:10.77.0.10]:7070", "http://[64:ff9b::10.77.0.10]:7070",
	"http://2852039166", "http://0xa9fea9fe", "http://0251.0376.0251.0376", "http://169.254.43518", "http://0xa9.0xfe.0xa9.0xfe", "http://017700000001:2375", "http://127.1:2375", "http://0",
	"http://evil.test", "http://EVIL.test.", "http://metadata.google.internal", "http://METADATA.GOOGLE.INTERNAL.",
	"http://alias.test", "http://zero.test:2375", "http://mapped.test", "http://nat64.test", "http://linklocal.test", "http://tunnel.test:7070", "http://xn--meta-0ra.test",
	"http://user@169.254.169.254", "http://good.test@169.254.169.254", "http://169.254.169.254/latest/meta-data", "http://169.254.169.254?x", "http://169.254.169.254#x",
	"gopher://169.254.169.254", "file:///etc/passwd", "unix:///var/run/docker.sock", "//169.254.169.254", "169.254.169.254",
	"http://[::ffff:169.254.169.254%25lo]", "http://ⓛocalhost:2375", "http://", "http://:80", "http://169.254.169.254:080", "http://169.254.169.254:99999",
}

// TestHostileConfig: a config that asks for sixty places it should not gets no
// packet sent to any of them, neither for a stream nor for a check, and what may
// be dialled is.
func TestHostileConfig(t *testing.T) {
	if !alone(t) {
		return
	}
	sniffer := newSniffer(t)
	hostileDNS(t)
	for _, c := range []struct {
		name  string
		allow []string
		urls  []string // beside the hostile ones
		dials []string // and no others
	}{
		{
			name:  "without a list",
			urls:  []string{"http://good.test", "http://192.168.7.7:8080", "http://[2001:db8::7]:80", "http://localhost:2368", "http://mixed.test"},
			dials: []string{"192.168.7.7:80", "192.168.7.7:8080", "[2001:db8::7]:80", "127.0.0.1:2368", "[::1]:2368", "192.168.7.8:80"},
		},
		{
			name:  "with a list",
			allow: []string{"good.test:80", "127.0.0.1:2368"},
			urls:  []string{"http://good.test", "http://127.0.0.1:2375", "http://127.0.0.1:2368", "http://nas.test", "http://192.168.7.9:5000", "http://192.168.7.7", "http://good.test:8080", "http://10.0.0.1"},
			dials: []string{"192.168.7.7:80", "127.0.0.1:2368"},
		},
		{
			name:  "with a bad address listed by its owner",
			allow: []string{"169.254.7.7:80"},
			dials: []string{"169.254.7.7:80"},
		},
		{
			name:  "a name that turns bad",
			urls:  []string{"http://rebind.test"},
			dials: []string{"192.168.7.10:80"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newTestFleet(t)
			f.bootstrap.Allow = c.allow
			a, err := newAgent(f.bootstrap, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			o, err := newOrders(f.bootstrap, f.sign(t, func(k *api.AgentConfig) {
				for i, u := range append(slices.Clone(c.urls), hostile...) {
					k.Services = append(k.Services, api.AgentService{ID: fmt.Sprintf("s%02d", i), URL: u})
					k.Services = append(k.Services, api.AgentService{ID: fmt.Sprintf("h%02d", i), URL: u, Health: "/"})
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			a.orders.Store(o)
			reported := len(o.unfit)
			for id := range o.services {
				for range 2 {
					conn, err := a.flows.reach(&flow{ctx: t.Context()}, id)
					if err == nil {
						conn.Close()
					}
					if _, perr := a.checks.probe(t.Context(), o.services[id]); errors.Is(perr, errPolicy) {
						err = perr
					}
					if errors.Is(err, errPolicy) {
						reported++
						break
					}
				}
			}
			if reported < 2*len(hostile)-2 {
				t.Errorf("%d of %d hostile services were reported", reported, 2*len(hostile))
			}
			seen := sniffer.after(t, "127.0.0.1:9")
			wanted := make(map[netip.AddrPort]bool)
			for _, text := range c.dials {
				wanted[netip.MustParseAddrPort(text)] = true
			}
			for to, n := range seen {
				if to.Port() == 53 {
					continue
				}
				if !wanted[to] {
					t.Errorf("%d packets began a connection to %v", n, to)
				}
			}
			for to := range wanted {
				if seen[to] == 0 && to.Addr() != netip.IPv6Loopback() {
					t.Errorf("nothing was sent to %v, which is fine to dial", to)
				}
			}
			t.Logf("%d services, %d reported as refused, dialled %v", len(o.services)+len(o.unfit), reported, seen)
		})
	}
}

package tunnel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/kokoa-proxy/kokoa/internal/nettest"
	"github.com/kokoa-proxy/kokoa/keys"
)

// kernelHasWireGuard reports whether the kernel's make can be tested.
func kernelHasWireGuard(t *testing.T) bool {
	t.Helper()
	var got bool
	nettest.NewHost(t, "probe").Do(func() error {
		d, err := Open(Config{Kind: Kernel, PrivateKey: newKey(t), Address: edgeAddr, Network: network})
		if errors.Is(err, ErrUnavailable) {
			return nil
		}
		if err != nil {
			return err
		}
		got = true
		return d.Close()
	})
	return got
}

func TestAutoAsRoot(t *testing.T) {
	kind, reason := TUN, "tun: the kernel has no WireGuard"
	if kernelHasWireGuard(t) {
		kind, reason = Kernel, "kernel: the best make, and this host allows it"
	}
	nettest.NewHost(t, "host").Do(func() error {
		d, err := Open(Config{PrivateKey: newKey(t), Address: edgeAddr, Network: network})
		if err != nil {
			return err
		}
		defer d.Close()
		if d.Kind() != kind || d.Reason() != reason {
			return fmt.Errorf("got %s, %q", d.Kind(), d.Reason())
		}
		return nil
	})
}

func TestAutoWithoutPrivilege(t *testing.T) {
	nettest.NewHost(t, "host").Do(func() error {
		// The capability is gone for this thread alone, which ends with the test.
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&head, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&head, &data[0]); err != nil {
			return err
		}
		d, err := Open(Config{PrivateKey: newKey(t), Address: edgeAddr, Network: network})
		if err != nil {
			return err
		}
		defer d.Close()
		if d.Kind() != Userspace || d.Reason() != "userspace: no CAP_NET_ADMIN" {
			return fmt.Errorf("got %s, %q", d.Kind(), d.Reason())
		}
		_, err = Open(Config{Kind: TUN, PrivateKey: newKey(t), Address: edgeAddr, Network: network})
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no CAP_NET_ADMIN") {
			return fmt.Errorf("tun without privilege: %v", err)
		}
		return nil
	})
}

// The link is what it was asked to be, and nothing of it is left after Close.
func TestLink(t *testing.T) {
	for _, tt := range []struct {
		name    string
		address netip.Addr
		network netip.Prefix
	}{
		{"IPv4", edgeAddr, network},
		{"IPv6", netip.MustParseAddr("fd90::1"), netip.MustParsePrefix("fd90::/64")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := nettest.NewHost(t, "host")
			cfg := Config{Kind: TUN, PrivateKey: newKey(t), Address: tt.address, Network: tt.network, MTU: 1300, Name: "kklink"}
			rules := func() (count int) {
				host.Do(func() error {
					all, err := netlink.RuleList(netlink.FAMILY_ALL)
					for _, r := range all {
						if r.IifName == "kklink" {
							count++
						}
					}
					return err
				})
				return count
			}
			host.Do(func() error {
				d, err := Open(cfg)
				if err != nil {
					return err
				}
				defer d.Close()
				link, err := netlink.LinkByName("kklink")
				if err != nil {
					return err
				}
				if a := link.Attrs(); a.MTU != 1300 || a.Flags&net.FlagUp == 0 {
					return fmt.Errorf("link is %+v", a)
				}
				addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
				if err != nil {
					return err
				}
				found := false
				for _, a := range addrs {
					found = found || a.IP.String() == tt.address.String()
				}
				routes, err := netlink.RouteGet(tt.address.Next().AsSlice())
				if err != nil {
					return err
				}
				if !found || len(routes) != 1 || routes[0].LinkIndex != link.Attrs().Index || routes[0].Src.String() != tt.address.String() {
					return fmt.Errorf("addresses %v, route %v", addrs, routes)
				}
				if n := rules(); n != 1 {
					return fmt.Errorf("%d rules against forwarding", n)
				}
				return d.Close()
			})
			host.Do(func() error {
				if _, err := netlink.LinkByName("kklink"); err == nil {
					return errors.New("the link is still there")
				}
				if n := rules(); n != 0 {
					return fmt.Errorf("%d rules are still there", n)
				}
				return nil
			})
			if _, err := os.Stat("/var/run/wireguard/kklink.sock"); err == nil {
				t.Error("the socket is still there")
			}
		})
	}
}

// A host takes packets for any of its addresses on any link. What listens in the
// tunnel must be out of reach all the same.
func TestListenerIsOutOfReachBesideTheTunnel(t *testing.T) {
	for _, kind := range []Kind{TUN, Userspace} {
		t.Run(string(kind), func(t *testing.T) {
			leaks(t)
			w := &world{t: t, kind: kind, edge: nettest.NewHost(t, "edge"), agents: make(map[int]*nettest.Host)}
			edge := w.openEdge()
			edge.serve(7, echo)
			neighbour := nettest.NewHost(t, "neighbour")
			nettest.Join(w.edge, netip.MustParsePrefix("192.0.2.1/24"), neighbour, netip.MustParsePrefix("192.0.2.2/24"))
			neighbour.Route(netip.PrefixFrom(edgeAddr, 32), netip.MustParseAddr("192.0.2.1"))
			w.edge.Do(func() error {
				l, err := net.Listen("tcp", "192.0.2.1:8")
				if err != nil {
					return err
				}
				t.Cleanup(func() { l.Close() })
				return nil
			})
			neighbour.Do(func() error {
				c, err := net.DialTimeout("tcp", "192.0.2.1:8", patience)
				if err != nil {
					return fmt.Errorf("the neighbour does not reach the host at all: %w", err)
				}
				c.Close()
				if c, err = net.DialTimeout("tcp", netip.AddrPortFrom(edgeAddr, 7).String(), time.Second); err == nil {
					c.Close()
					return errors.New("reached from beside the tunnel")
				}
				return nil
			})
		})
	}
}

// A dial stays in the tunnel, also when the host has another way to the address.
func TestDialStaysInTheTunnel(t *testing.T) {
	leaks(t)
	w := &world{t: t, kind: TUN, edge: nettest.NewHost(t, "edge"), agents: make(map[int]*nettest.Host)}
	edge := w.openEdge()
	neighbour := nettest.NewHost(t, "neighbour")
	nettest.Join(w.edge, netip.MustParsePrefix("192.0.2.1/24"), neighbour, netip.MustParsePrefix("192.0.2.2/24"))
	neighbour.Do(func() error {
		l, err := net.Listen("tcp", "192.0.2.2:7")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	w.edge.Do(func() error {
		c, err := net.DialTimeout("tcp", "192.0.2.2:7", patience)
		if err != nil {
			return fmt.Errorf("the host does not reach its neighbour at all: %w", err)
		}
		return c.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c, err := edge.dial(ctx, netip.MustParseAddrPort("192.0.2.2:7")); err == nil {
		c.Close()
		t.Error("the dial left the tunnel")
	}
}

// Closed connections are forgotten, though they are the caller's own.
func TestClosedConnectionsAreForgotten(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		to := edge.serve(7, echo)
		for range 300 {
			c := agent.mustDial(to)
			if _, spliced := c.(*net.TCPConn); spliced == (w.kind == Userspace) {
				t.Fatalf("the connection is a %T", c)
			}
			c.Close()
		}
		open := &agent.Device.(*device).open
		open.mu.Lock()
		defer open.mu.Unlock()
		if len(open.all) > 130 {
			t.Errorf("%d sockets are remembered, of none that is open", len(open.all))
		}
	})
}

// The socket that WireGuard uses has room for a burst.
func TestUDPBuffers(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge := w.openEdge()
		if w.kind == Kernel {
			return // the kernel's socket is not a file
		}
		var got int
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fds {
			fd, err := strconv.Atoi(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			sa, err := unix.Getsockname(fd)
			if kind, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
				continue
			}
			if v4, ok := sa.(*unix.SockaddrInet4); ok && v4.Port == int(edge.ListenPort()) {
				if got, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got < 7<<20 {
			t.Errorf("the receive buffer is of %d bytes", got)
		}
	})
}

// wgctrl cannot take one address from a peer: it replaces them by what is left.
func TestPeerConfigs(t *testing.T) {
	a, b := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::/64")
	seconds := 25 * time.Second
	got := peerConfigs([]change{
		{key: keys.Public{1}, remove: true},
		{key: keys.Public{2}, existing: true, lose: []netip.Prefix{a}, left: []netip.Prefix{b}},
		{key: keys.Public{3}, gain: []netip.Prefix{a}, endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), keepalive: &seconds},
	})
	want := []wgtypes.PeerConfig{
		{PublicKey: wgtypes.Key{1}, Remove: true},
		{PublicKey: wgtypes.Key{2}, UpdateOnly: true, ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{{IP: b.Addr().AsSlice(), Mask: net.CIDRMask(64, 128)}}},
		{PublicKey: wgtypes.Key{3}, AllowedIPs: []net.IPNet{{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}},
			Endpoint: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:51820")), PersistentKeepaliveInterval: &seconds},
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	for _, c := range got {
		if c.ReplaceAllowedIPs && !c.UpdateOnly {
			t.Errorf("peer %s could come back without its addresses", hex.EncodeToString(c.PublicKey[:4]))
		}
	}
}

// An edge passes nothing from one agent to another, though its host forwards.
func TestNothingIsForwardedBetweenPeers(t *testing.T) {
	for _, family := range []struct {
		name   string
		change func(*Config)
		sysctl string
	}{
		{"IPv4", func(*Config) {}, "net.ipv4.ip_forward"},
		{"IPv6", six, "net.ipv6.conf.all.forwarding"},
	} {
		t.Run(family.name, func(t *testing.T) {
			eachMake(t, func(t *testing.T, w *world) {
				edge, a, b := w.openEdge(family.change), w.openAgent(1, family.change), w.openAgent(2, family.change)
				edge.set(a.peer(""), b.peer(""))
				// Both agents do all they can: the whole network is behind the edge.
				for i, agent := range []*end{a, b} {
					endpoint := netip.AddrPortFrom(w.under(i+1), edge.ListenPort()).String()
					agent.set(edge.peer(endpoint, netip.PrefixFrom(edge.addr, edge.addr.BitLen()-8)))
				}
				if w.kind != Userspace {
					w.edge.Sysctl(family.sysctl, "1")
				}
				toEdge, toB := edge.serve(7, echo), b.serve(7, echo)
				for _, agent := range []*end{a, b} {
					if err := ask(agent.mustDial(toEdge), "hello"); err != nil {
						t.Fatal(err)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if c, err := a.dial(ctx, toB); err == nil {
					c.Close()
					t.Error("one agent reached the other")
				}
				if w.kind != Userspace {
					// It is the rule that does it, not something this test got wrong.
					w.edge.Do(func() error {
						routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
						if err != nil {
							return err
						}
						defer routes.Close()
						return allowForwarding(routes, Config{Address: edge.addr, Name: "kkedge"})
					})
					if err := ask(a.mustDial(toB), "hello"); err != nil {
						t.Errorf("without the rule: %v", err)
					}
				}
			})
		})
	}
}

package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a network namespace: it has interfaces, routes and sockets of its own,
// and at first nothing but loopback.
type Host struct {
	t      testing.TB
	name   string
	ns     netns.NsHandle
	cables int
}

// NewHost makes a host, which ends with the test, as far as no socket and no
// process keeps it. It needs root.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	RequireRoot(t)
	h := &Host{t: t, name: name}
	err := onThread(func() (err error) {
		h.ns, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	return h.ready()
}

// Here is the host that the test itself runs on. A test that joins it to others must
// have it for itself, as new.
func Here(t testing.TB) *Host {
	t.Helper()
	RequireRoot(t)
	h := &Host{t: t, name: "here"}
	err := onThread(func() (err error) {
		h.ns, err = netns.Get()
		return err
	})
	if err != nil {
		t.Fatalf("find network namespace: %v", err)
	}
	return h.ready()
}

func (h *Host) ready() *Host {
	h.t.Helper()
	h.t.Cleanup(func() { h.ns.Close() })
	h.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return h
}

// Do runs f in the host, on a thread of its own, and fails the test when f fails.
// Sockets that f opens belong to the host for good; goroutines that f starts do
// not. f must not end the test itself (t.Fatal): it returns an error.
func (h *Host) Do(f func() error) {
	h.t.Helper()
	if err := h.Try(f); err != nil {
		h.t.Fatalf("on host %s: %v", h.name, err)
	}
}

// Try is Do for an f that may fail.
func (h *Host) Try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// Start starts a process in the host. The process must not have Pdeathsig, since
// the thread that starts it ends at once.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Try(cmd.Start) }

// StartMounted is Start for a process that finds what mount mounts; nobody else
// does, and it is gone with the process and its children.
func (h *Host) StartMounted(cmd *exec.Cmd, mount func() error) error {
	return h.Try(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("keep mounts private: %w", err)
		}
		if err := mount(); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		return cmd.Start()
	})
}

// NewRelay starts a relay on the host to server, which the host can reach. It ends
// with the test.
func (h *Host) NewRelay(server netip.AddrPort, shape Shape) *Relay {
	h.t.Helper()
	return newRelay(h.t, server, shape, func() (c *net.UDPConn, err error) {
		err = h.Try(func() error {
			c, err = listenUDP(server)
			return err
		})
		return c, err
	})
}

// Sysctl sets one of the host's kernel parameters: "net.ipv4.ip_forward".
func (h *Host) Sysctl(name, value string) {
	h.t.Helper()
	h.Do(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0)
	})
}

// Route sends what is for to by way of via.
func (h *Host) Route(to netip.Prefix, via netip.Addr) {
	h.t.Helper()
	h.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()})
	})
}

// Join puts a cable between two hosts: a veth pair whose ends, both up, have
// addresses a and b.
func Join(hostA *Host, a netip.Prefix, hostB *Host, b netip.Prefix) {
	hostA.t.Helper()
	nameA, nameB := hostA.cable(), hostB.cable()
	hostA.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = nameA
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(hostB.ns)})
	})
	for _, end := range []struct {
		host    *Host
		name    string
		address netip.Prefix
	}{{hostA, nameA, a}, {hostB, nameB, b}} {
		end.host.Do(func() error {
			link, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			address := netlink.Addr{IPNet: ipNet(end.address), Flags: nodad}
			if err := netlink.AddrAdd(link, &address); err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		})
	}
}

// nodad (IFA_F_NODAD) makes an IPv6 address usable at once.
const nodad = 0x2

// cable names the next end of a cable that is put into h.
func (h *Host) cable() string {
	h.cables++
	return fmt.Sprintf("veth%d", h.cables)
}

// RequireRoot fails the test when it may not make namespaces and devices.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and TUN devices: run it as root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Fatalf("this test makes TUN devices: load the kernel's tun module (%v)", err)
	}
}

// onThread runs f on an operating system thread that ends with it, so that no
// other goroutine ever runs in a namespace that f entered.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := errors.New("ended the goroutine")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

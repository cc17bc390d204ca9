package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/kokoa-proxy/kokoa/internal/nettest"
	"github.com/kokoa-proxy/kokoa/tunnel/filter"
)

// eachLink is eachMake for the makes that have a link, in both families.
func eachLink(t *testing.T, test func(t *testing.T, w *world, family func(*Config))) {
	for name, family := range map[string]func(*Config){"IPv4": func(*Config) {}, "IPv6": six} {
		t.Run(name, func(t *testing.T) {
			makeEach(t, linkKinds(t), func(t *testing.T, w *world) { test(t, w, family) })
		})
	}
}

// adminPorts has a host listen at its TCP and UDP port 2222, on all addresses. Both echo.
func adminPorts(t *testing.T, host *nettest.Host) {
	t.Helper()
	// Connections too end with the test: a filter that is back keeps the end of one
	// from its host.
	open := &sockets{}
	t.Cleanup(open.close)
	host.Do(func() error {
		l, err := net.Listen("tcp", ":2222")
		if err != nil {
			return err
		}
		open.add(l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if !open.add(c) {
					continue
				}
				go func() {
					defer c.Close()
					echo(c)
				}()
			}
		}()
		u, err := net.ListenPacket("udp", ":2222")
		if err != nil {
			return err
		}
		open.add(u)
		go func() {
			datagram := make([]byte, 64)
			for {
				n, from, err := u.ReadFrom(datagram)
				if err != nil {
					return
				}
				u.WriteTo(datagram[:n], from)
			}
		}()
		return nil
	})
}

// knock asks port 2222 of a host, from another.
func knock(from *nettest.Host, network string, at netip.Addr, patience time.Duration) error {
	return from.Try(func() error {
		c, err := net.DialTimeout(network, netip.AddrPortFrom(at, 2222).String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "?"); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	})
}

// What a host serves on all its addresses is out of the peers' reach.
func TestHostIsOutOfReach(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world, family func(*Config)) {
		edge, agent := w.openEdge(family), w.openAgent(1, family)
		w.connect(edge, agent)
		if err := ask(agent.mustDial(edge.serve(7, echo)), "hello"); err != nil {
			t.Fatal(err)
		}
		for _, e := range []struct {
			from, to *end
			beside   netip.Addr
		}{{agent, edge, w.under(1)}, {edge, agent, w.under(1).Next()}} {
			adminPorts(t, e.to.host)
			for _, network := range []string{"tcp", "udp"} {
				if err := knock(e.from.host, network, e.beside, patience); err != nil {
					t.Fatalf("%s beside the tunnel: %v", network, err)
				}
			}
			rearmFrom := disarm(e.from) // which would drop an answer
			if err := knock(e.from.host, "tcp", e.to.addr, patience); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("TCP to %s: %v", e.to.addr, err)
			}
			if err := knock(e.from.host, "udp", e.to.addr, time.Second/2); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("UDP to %s: %v", e.to.addr, err)
			}
			// It is the filter that does it, not something this test got wrong.
			rearmTo := disarm(e.to)
			for _, network := range []string{"tcp", "udp"} {
				if err := knock(e.from.host, network, e.to.addr, patience); err != nil {
					t.Errorf("%s to %s without the filter: %v", network, e.to.addr, err)
				}
			}
			rearmFrom()
			rearmTo()
		}
	})
}

// disarm makes the filter of an end let everything through, until rearm.
func disarm(e *end) (rearm func()) {
	e.t.Helper()
	table := tableOf(e)
	on := func(do func(*nftables.Conn, *nftables.Chain) error) {
		e.t.Helper()
		e.in(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			chain, err := c.ListChain(table, "input")
			if err != nil {
				return err
			}
			return errors.Join(do(c, chain), c.Flush())
		})
	}
	on(func(c *nftables.Conn, chain *nftables.Chain) error {
		c.InsertRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		return nil
	})
	return func() {
		e.t.Helper()
		on(func(c *nftables.Conn, chain *nftables.Chain) error {
			rules, err := c.GetRules(table, chain)
			if err != nil {
				return err
			}
			return c.DelRule(rules[0])
		})
	}
}

func tableOf(e *end) *nftables.Table {
	return &nftables.Table{Name: "kokoa-" + e.Device.(*device).tcp.(*host).link, Family: nftables.TableFamilyINet}
}

// A port is open for as long as its listener; the connections stay.
func TestListenerOpensItsPortOnly(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world, family func(*Config)) {
		edge, agent := w.openEdge(family), w.openAgent(1, family)
		w.connect(edge, agent)
		var l net.Listener
		edge.in(func() (err error) {
			l, err = edge.Listen(0)
			return err
		})
		taken := make(chan net.Conn, 1)
		go func() {
			if c, err := l.Accept(); err == nil {
				taken <- c
				echo(c)
			}
		}()
		port := localPort(l.Addr())
		c := agent.mustDial(netip.AddrPortFrom(edge.addr, port))
		if err := ask(c, "open"); err != nil {
			t.Fatal(err)
		}
		defer (<-taken).Close()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		edge.in(func() error { // another's, now
			other, err := net.Listen("tcp", fmt.Sprint(":", port))
			if err == nil {
				t.Cleanup(func() { other.Close() })
			}
			return err
		})
		if c, err := agent.dial(t.Context(), netip.AddrPortFrom(edge.addr, port)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after the listener: %v, %v", c, err)
		}
		if err := ask(c, "still here"); err != nil {
			t.Errorf("a connection that was taken: %v", err)
		}
	})
}

// A reload of the host's firewall begins with the end of all filters.
func TestFilterComesBack(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world, family func(*Config)) {
		edge, agent := w.openEdge(family), w.openAgent(1, family)
		w.connect(edge, agent)
		adminPorts(t, w.edge)
		toAgent, toEdge := agent.serve(7, echo), edge.serve(7, echo)
		taken := agent.mustDial(toEdge) // first: the edge does not know where the agent is
		dialled := edge.mustDial(toAgent)
		for range 3 {
			edge.in(func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				c.FlushRuleset()
				return c.Flush()
			})
			until(t, "the filter comes back", func() bool {
				return errors.Is(knock(agent.host, "tcp", edge.addr, patience), syscall.ECONNREFUSED)
			})
			for name, c := range map[string]net.Conn{"dialled": dialled, "taken": taken, "new": agent.mustDial(toEdge)} {
				if err := ask(c, "still here"); err != nil {
					t.Errorf("a connection that is %s: %v", name, err)
				}
			}
		}
	})
}

// What got in while the filter was away is cut off when it is back.
func TestFilterCutsWhatSlippedIn(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world, family func(*Config)) {
		edge, agent := w.openEdge(family), w.openAgent(1, family)
		w.connect(edge, agent)
		adminPorts(t, w.edge)
		if err := ask(agent.mustDial(edge.serve(7, echo)), "hello"); err != nil {
			t.Fatal(err)
		}
		rearm := disarm(edge)
		var c net.Conn
		agent.in(func() (err error) {
			c, err = net.DialTimeout("tcp", netip.AddrPortFrom(edge.addr, 2222).String(), patience)
			return err
		})
		defer c.Close()
		if err := ask(c, "in"); err != nil {
			t.Fatal(err)
		}
		rearm()
		if err := ask(c, "still in?"); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("with the filter back: %v", err)
		}
	})
}

// A killed process leaves its filter, and the next has its own.
func TestFilterOfAKilledProcessIsReplaced(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world, family func(*Config)) {
		edge, agent := w.openEdge(family), w.openAgent(1, family)
		name := strings.TrimPrefix(tableOf(edge).Name, "kokoa-")
		if err := edge.Close(); err != nil {
			t.Fatal(err)
		}
		edge.in(func() error {
			// The next process knows nothing of this one; it is not closed.
			old, err := filter.New(name, edge.addr, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			return old.Allow(2222)
		})
		edge = w.openEdge(family)
		w.connect(edge, agent)
		adminPorts(t, w.edge)
		if err := ask(agent.mustDial(edge.serve(7, echo)), "hello"); err != nil {
			t.Error(err)
		}
		if err := knock(agent.host, "tcp", edge.addr, patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port that the killed process had opened: %v", err)
		}
	})
}

// A path of small packets is no black hole: the ICMP that tells of it passes.
func TestPathMTUIsLearned(t *testing.T) {
	eachLink(t, func(t *testing.T, w *world, family func(*Config)) {
		edge, agent := w.openEdge(family), w.openAgent(1, family)
		w.connect(edge, agent)
		var sent net.Conn
		edge.in(func() (err error) {
			sent, err = net.Dial("udp", netip.AddrPortFrom(agent.addr, 9).String())
			return err
		})
		defer sent.Close()
		local := sent.LocalAddr().(*net.UDPAddr).AddrPort()
		ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, local.Port()), 9)
		network, level, option := "ip4:icmp", unix.IPPROTO_IP, unix.IP_MTU
		tooBig := slices.Concat([]byte{3, 4, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff},
			[]byte{0x45, 0, 5, 0x78, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}, edge.addr.AsSlice(), agent.addr.AsSlice(), ports, []byte{0, 28, 0, 0})
		if edge.addr.Is6() {
			network, level, option = "ip6:ipv6-icmp", unix.IPPROTO_IPV6, unix.IPV6_MTU
			tooBig = slices.Concat([]byte{2, 0, 0, 0, 0, 0, 1300 >> 8, 1300 & 0xff},
				[]byte{0x60, 0, 0, 0, 5, 0x78, unix.IPPROTO_UDP, 64}, edge.addr.AsSlice(), agent.addr.AsSlice(), ports, []byte{0, 28, 0, 0})
		} else {
			binary.BigEndian.PutUint16(tooBig[2:], ^checksum.Checksum(tooBig, 0))
		}
		var raw net.PacketConn
		agent.in(func() (err error) {
			raw, err = net.ListenPacket(network, agent.addr.String())
			return err
		})
		defer raw.Close()
		until(t, "the host learns the path's MTU", func() bool {
			if _, err := raw.WriteTo(tooBig, &net.IPAddr{IP: edge.addr.AsSlice()}); err != nil {
				t.Fatal(err)
			}
			var mtu int
			c, err := sent.(*net.UDPConn).SyscallConn()
			if err == nil {
				err = c.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) })
			}
			if err != nil {
				t.Fatal(err)
			}
			return mtu == 1300
		})
		transfer(t, edge, agent, 4<<20)
	})
}

// A filter touches nothing but its own table, which is gone after Close.
func TestFilterLeavesOthersAlone(t *testing.T) {
	host := nettest.NewHost(t, "host")
	host.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		others := []string{"kokoa", "kokoa-kklink1", "filter"}
		for _, name := range others {
			c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
		}
		if err := c.Flush(); err != nil {
			return err
		}
		expect := func(want ...string) error {
			tables, err := c.ListTables()
			var got []string
			for _, table := range tables {
				got = append(got, table.Name)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				err = errors.Join(err, fmt.Errorf("tables %v, want %v", got, want))
			}
			return err
		}
		d, err := Open(Config{Kind: TUN, PrivateKey: newKey(t), Address: edgeAddr, Network: network, Name: "kklink"})
		if err != nil {
			return err
		}
		during := expect(append(others, "kokoa-kklink")...)
		return errors.Join(during, d.Close(), expect(others...))
	})
}

// A host that cannot filter gets no link.
func TestNoFilterNoLink(t *testing.T) {
	nettest.NewHost(t, "host").Do(func() error {
		// A table of this name that is another process' own (NFT_TABLE_F_OWNER).
		owner, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer owner.Close()
		table, err := nl.MarshalAttributes([]nl.Attribute{
			{Type: unix.NFTA_TABLE_NAME, Data: []byte("kokoa-kklink\x00")},
			{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, 2}},
		})
		if err != nil {
			return err
		}
		batch := []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
		if _, err := owner.SendMessages([]nl.Message{
			{Header: nl.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: nl.Request}, Data: batch},
			{Header: nl.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: nl.Request | nl.Create | nl.Acknowledge},
				Data: append([]byte{unix.NFPROTO_INET, 0, 0, 0}, table...)},
			{Header: nl.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: nl.Request}, Data: batch},
		}); err != nil {
			return err
		}
		if _, err := owner.Receive(); err != nil {
			return err
		}

		cfg := Config{PrivateKey: newKey(t), Address: edgeAddr, Network: network, Name: "kklink"}
		d, err := Open(cfg)
		if err != nil {
			return err
		}
		defer d.Close()
		const why = "no filter for what comes out of kklink (install nftables table kokoa-kklink: "
		if d.Kind() != Userspace || !strings.Contains(d.Reason(), why) {
			return fmt.Errorf("got %s, %q", d.Kind(), d.Reason())
		}
		cfg.Kind = TUN
		if _, err := Open(cfg); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), why) {
			return fmt.Errorf("asked for a link: %v", err)
		}
		if _, err := netlink.LinkByName("kklink"); err == nil {
			return errors.New("there is a link")
		}
		return nil
	})
}

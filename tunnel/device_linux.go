package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel/filter"
)

// makes are those of Linux, best first.
var makes = []maker{{Kernel, openKernel}, {TUN, openTUN}, {Userspace, openUserspace}}

// openKernel makes a device of the kernel's WireGuard. One of that name that is
// there already, left by a process that was killed, is taken over with its
// sessions.
func openKernel(cfg Config) (_ *device, err error) {
	if err := netAdmin(); err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = cfg.Name, cfg.MTU
	switch err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, unavailable("the kernel has no WireGuard")
	case errors.Is(err, unix.EPERM):
		return nil, unavailable("no CAP_NET_ADMIN")
	case err != nil && !errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("create interface %s: %w", cfg.Name, err)
	}
	link, err := netlink.LinkByName(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", cfg.Name, err)
	}
	if link.Type() != "wireguard" {
		return nil, fmt.Errorf("interface %s exists and is no WireGuard device; name another", cfg.Name)
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reach the routing tables: %w", err), netlink.LinkDel(link))
	}
	client, err := wgctrl.New()
	if err != nil {
		routes.Close()
		return nil, errors.Join(fmt.Errorf("reach WireGuard: %w", err), netlink.LinkDel(link))
	}
	var gate *filter.Filter
	release := func() error {
		defer routes.Close()
		return errors.Join(client.Close(), routes.LinkDel(link), allowForwarding(routes, cfg), gate.Close())
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	key, port := wgtypes.Key(cfg.PrivateKey), int(cfg.ListenPort)
	if err := client.ConfigureDevice(cfg.Name, wgtypes.Config{PrivateKey: &key, ListenPort: &port}); err != nil {
		return nil, fmt.Errorf("configure: %w", err)
	}
	if gate, err = newFilter(cfg); err != nil {
		return nil, err
	}
	if err := setUp(link, cfg); err != nil {
		return nil, err
	}
	state, err := client.Device(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("read port: %w", err)
	}
	d := newDevice(cfg, control{client, cfg.Name}, uint16(state.ListenPort), release)
	d.tcp = newHost(cfg, gate, &d.open)
	return d, nil
}

// openTUN makes a device of wireguard-go on a TUN device of the kernel's.
func openTUN(cfg Config) (_ *device, err error) {
	if err := netAdmin(); err != nil {
		return nil, err
	}
	file, err := ipc.UAPIOpen(cfg.Name)
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return nil, unavailable("/var/run/wireguard cannot be written")
	case err != nil:
		return nil, fmt.Errorf("open socket of %s in /var/run/wireguard: %w", cfg.Name, err)
	}
	defer file.Close()
	socket, err := ipc.UAPIListen(cfg.Name, file)
	if err != nil {
		return nil, fmt.Errorf("listen on socket of %s in /var/run/wireguard: %w", cfg.Name, err)
	}
	native, err := tun.CreateTUN(cfg.Name, cfg.MTU)
	if err != nil {
		socket.Close()
		if _, missing := os.Stat("/dev/net/tun"); missing != nil || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENODEV) {
			return nil, unavailable("no /dev/net/tun")
		}
		return nil, fmt.Errorf("create TUN device %s: %w", cfg.Name, err)
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reach the routing tables: %w", err), native.Close(), socket.Close())
	}
	wg := wgdevice.NewDevice(newFrugal(alwaysUp(native)), conn.NewStdNetBind(), wireguardLog(cfg.Log))
	admin := serve(socket, wg)
	var gate *filter.Filter
	release := func() error {
		admin.close()
		wg.Close()
		defer routes.Close()
		return errors.Join(allowForwarding(routes, cfg), gate.Close())
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	port, err := start(wg, cfg)
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", cfg.Name, err)
	}
	if gate, err = newFilter(cfg); err != nil {
		return nil, err
	}
	if err := setUp(link, cfg); err != nil {
		return nil, err
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("reach WireGuard: %w", err)
	}
	d := newDevice(cfg, ownTUN{control{client, cfg.Name}, uapi{wg}}, port, func() error { return errors.Join(client.Close(), release()) })
	d.tcp = newHost(cfg, gate, &d.open)
	return d, nil
}

// netAdmin reports whether this process may make network devices.
func netAdmin() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return unavailable("no CAP_NET_ADMIN")
	}
	return nil
}

// newFilter makes the filter of cfg's link. A host without one allows no link.
func newFilter(cfg Config) (*filter.Filter, error) {
	f, err := filter.New(cfg.Name, cfg.Address, cfg.Log)
	if err != nil {
		return nil, unavailable(fmt.Sprintf("no filter for what comes out of %s (%v)", cfg.Name, err))
	}
	return f, nil
}

// setUp gives the link its address and the route to the network, and sets it up.
func setUp(link netlink.Link, cfg Config) error {
	if err := denyForwarding(cfg); err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
		return fmt.Errorf("set MTU %d of %s: %w", cfg.MTU, cfg.Name, err)
	}
	address := netlink.Addr{IPNet: single(cfg.Address), Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(link, &address); err != nil {
		return fmt.Errorf("add address %s to %s: %w", cfg.Address, cfg.Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up %s: %w", cfg.Name, err)
	}
	network := ipNet(cfg.Network.Masked())
	if err := netlink.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &network,
		Src:       cfg.Address.AsSlice(),
		Scope:     unix.RT_SCOPE_LINK,
	}); err != nil {
		return fmt.Errorf("add route to %s through %s: %w", cfg.Network, cfg.Name, err)
	}
	return nil
}

// denyForwarding drops what comes out of the tunnel and is not for this host. The
// rule stands right behind the lookup of local addresses; it works for both
// families, with forwarding on for the host's own reasons, and needs neither a
// sysctl nor a firewall. It outlives the process, and so fails closed.
func denyForwarding(cfg Config) error {
	if err := netlink.RuleAdd(noForwarding(cfg)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("forbid forwarding from %s: %w", cfg.Name, err)
	}
	return nil
}

// allowForwarding takes the rule back, by a handle that was made where the link was:
// whoever closes a device may be in another network namespace by then.
func allowForwarding(routes *netlink.Handle, cfg Config) error {
	if err := routes.RuleDel(noForwarding(cfg)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove rule about %s: %w", cfg.Name, err)
	}
	return nil
}

func noForwarding(cfg Config) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family = unix.AF_INET
	if cfg.Address.Is6() {
		rule.Family = unix.AF_INET6
	}
	rule.IifName = cfg.Name
	rule.Priority = 100
	rule.Type = unix.FR_ACT_BLACKHOLE
	return rule
}

func single(a netip.Addr) *net.IPNet {
	n := ipNet(netip.PrefixFrom(a, a.BitLen()))
	return &n
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// control configures a device by wgctrl: the kernel's by netlink, wireguard-go's
// by its socket.
type control struct {
	client *wgctrl.Client
	name   string
}

func (c control) change(changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	return c.client.ConfigureDevice(c.name, wgtypes.Config{Peers: peerConfigs(changes)})
}

func (c control) setKey(key keys.Private) error {
	own := wgtypes.Key(key)
	return c.client.ConfigureDevice(c.name, wgtypes.Config{PrivateKey: &own})
}

func (c control) rebind() (uint16, error) {
	port := 0
	if err := c.client.ConfigureDevice(c.name, wgtypes.Config{ListenPort: &port}); err != nil {
		return 0, err
	}
	state, err := c.client.Device(c.name)
	if err != nil {
		return 0, err
	}
	return uint16(state.ListenPort), nil
}

func (c control) peers() ([]peerState, error) {
	state, err := c.client.Device(c.name)
	if err != nil {
		return nil, err
	}
	peers := make([]peerState, len(state.Peers))
	for i, p := range state.Peers {
		peers[i] = peerState{
			PeerStats: PeerStats{
				PublicKey: keys.Public(p.PublicKey),
				Handshake: p.LastHandshakeTime,
				Received:  uint64(p.ReceiveBytes),
				Sent:      uint64(p.TransmitBytes),
			},
			keepalive: p.PersistentKeepaliveInterval,
		}
		if p.LastHandshakeTime.Unix() <= 0 {
			peers[i].Handshake = handshakeTime(0, 0)
		}
		if p.Endpoint != nil {
			addr := p.Endpoint.AddrPort()
			peers[i].Endpoint = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()).String()
		}
		for _, n := range p.AllowedIPs {
			addr, ok := netip.AddrFromSlice(n.IP)
			ones, bits := n.Mask.Size()
			if bits == 32 {
				addr = addr.Unmap()
			}
			if !ok || addr.BitLen() != bits {
				return nil, fmt.Errorf("device reports %v as an allowed address", n)
			}
			peers[i].AllowedIPs = append(peers[i].AllowedIPs, netip.PrefixFrom(addr, ones))
		}
	}
	return peers, nil
}

// ownTUN is control of a wireguard-go device of this process. Its UDP socket is opened
// by whoever asks for another, and so in that one's network namespace.
type ownTUN struct {
	control
	own uapi
}

func (o ownTUN) rebind() (uint16, error) { return o.own.rebind() }

// peerConfigs are changes in wgctrl's terms, which can replace a peer's addresses
// but not take one away.
func peerConfigs(changes []change) []wgtypes.PeerConfig {
	configs := make([]wgtypes.PeerConfig, len(changes))
	for i, c := range changes {
		p := wgtypes.PeerConfig{
			PublicKey:                   wgtypes.Key(c.key),
			Remove:                      c.remove,
			UpdateOnly:                  c.existing,
			PersistentKeepaliveInterval: c.keepalive,
			ReplaceAllowedIPs:           len(c.lose) > 0,
		}
		if c.endpoint.IsValid() {
			p.Endpoint = net.UDPAddrFromAddrPort(c.endpoint)
		}
		allowed := c.gain
		if len(c.lose) > 0 {
			allowed = append(allowed, c.left...)
		}
		for _, prefix := range allowed {
			p.AllowedIPs = append(p.AllowedIPs, ipNet(prefix))
		}
		configs[i] = p
	}
	return configs
}

// admin serves a device's configuration on its socket, to this process and to the
// wg tool.
type admin struct {
	socket net.Listener
	open   sockets
	group  sync.WaitGroup
}

func serve(socket net.Listener, wg *wgdevice.Device) *admin {
	a := &admin{socket: socket}
	a.group.Go(func() {
		for {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			if !a.open.add(c) {
				continue
			}
			a.group.Go(func() {
				wg.IpcHandle(c)
				a.open.remove(c)
			})
		}
	})
	return a
}

func (a *admin) close() {
	a.socket.Close()
	a.open.close()
	a.group.Wait()
}

// steady is a TUN device that does not tell when its link goes down or up:
// wireguard-go would close and reopen its UDP socket, on a link that is down for a
// moment, as it is when it is new.
type steady struct {
	tun.Device
	events chan tun.Event
}

func alwaysUp(t tun.Device) steady {
	s := steady{t, make(chan tun.Event)}
	go func() {
		defer close(s.events)
		for e := range t.Events() {
			if e &^= tun.EventUp | tun.EventDown; e != 0 {
				s.events <- e
			}
		}
	}()
	return s
}

func (s steady) Events() <-chan tun.Event { return s.events }

// host is the host's TCP, kept to the tunnel's link. Without that a packet for
// the tunnel's address could come in on any link, and a dial could leave by the
// default route.
type host struct {
	local netip.Addr
	link  string
	gate  *filter.Filter
	open  *sockets
}

func newHost(cfg Config, gate *filter.Filter, open *sockets) *host {
	h := &host{local: cfg.Address, link: cfg.Name, gate: gate, open: open}
	gate.Watch(h.ports)
	return h
}

func (h *host) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.local, 0)), Control: h.bind}
	c, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return h.conn(c)
}

func (h *host) listen(port uint16) (net.Listener, error) {
	config := net.ListenConfig{Control: h.bind}
	l, err := config.Listen(context.Background(), "tcp", netip.AddrPortFrom(h.local, port).String())
	if err != nil {
		return nil, err
	}
	hl := &hostListener{Listener: l, host: h}
	if err := h.gate.Allow(localPort(l.Addr())); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if !h.open.add(hl) {
		return nil, net.ErrClosed
	}
	return hl, nil
}

// ports are the local ports of all sockets.
func (h *host) ports() (ports []uint16) {
	h.open.each(func(c io.Closer) {
		switch c := c.(type) {
		case net.Conn:
			ports = append(ports, localPort(c.LocalAddr()))
		case net.Listener:
			ports = append(ports, localPort(c.Addr()))
		}
	})
	return ports
}

func localPort(a net.Addr) uint16 { return uint16(a.(*net.TCPAddr).Port) }

func (h *host) bind(_, _ string, c syscall.RawConn) error {
	var bound error
	if err := c.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), h.link) }); err != nil {
		return err
	}
	if bound != nil {
		return fmt.Errorf("bind to %s: %w", h.link, bound)
	}
	return nil
}

// conn keeps c itself, and hands it out as it is: only two net.TCPConn can be
// spliced.
func (h *host) conn(c net.Conn) (net.Conn, error) {
	if !h.open.add(c) {
		return nil, net.ErrClosed
	}
	h.open.prune(func(c io.Closer) bool {
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return false
		}
		raw, err := tcp.SyscallConn()
		return err != nil || raw.Control(func(uintptr) {}) != nil
	})
	return c, nil
}

type hostListener struct {
	net.Listener
	host *host
	once sync.Once
}

func (l *hostListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.host.conn(c)
}

func (l *hostListener) Close() error {
	var err error
	l.once.Do(func() {
		l.host.open.remove(l)
		// While the port is still taken, so that it is not taken from the next one.
		err = l.host.gate.Forbid(localPort(l.Addr()))
	})
	return errors.Join(err, l.Listener.Close())
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Of TCP connections in the user-space stack.
const (
	// keepalive is what net.Dialer uses: a peer that vanished is noticed.
	keepalive      = 15 * time.Second
	keepaliveCount = 9
	// timeWait is short, since a tunnel between two known hosts does not hold a
	// packet back for a minute, and a minute's worth of short connections would
	// hold hundreds of MiB and use up the ports.
	timeWait = 5 * time.Second
	backlog  = 4096
)

// openUserspace makes a device that needs nothing from the host but a UDP socket.
func openUserspace(cfg Config) (*device, error) {
	border := newBorder(cfg.MTU)
	netstack, err := newNetstack(cfg, border)
	if err != nil {
		return nil, err
	}
	// The bind sizes its socket's buffers to 7 MiB, past the system's limit where
	// CAP_NET_ADMIN allows.
	wg := wgdevice.NewDevice(newFrugal(border), conn.NewStdNetBind(), wireguardLog(cfg.Log))
	release := func() error {
		netstack.Close()
		wg.Close()
		netstack.Wait()
		return nil
	}
	port, err := start(wg, cfg)
	if err != nil {
		release()
		return nil, err
	}
	d := newDevice(cfg, uapi{wg}, port, release)
	d.tcp = &userspace{stack: netstack, local: cfg.Address, open: &d.open}
	return d, nil
}

// start gives a wireguard-go device its key and opens its UDP port.
func start(wg *wgdevice.Device, cfg Config) (port uint16, err error) {
	if err := wg.IpcSet(renderDevice(cfg.PrivateKey, cfg.ListenPort)); err != nil {
		return 0, fmt.Errorf("configure: %w", err)
	}
	if err := wg.Up(); err != nil {
		return 0, fmt.Errorf("listen on UDP port %d: %w", cfg.ListenPort, err)
	}
	text, err := wg.IpcGet()
	if err != nil {
		return 0, fmt.Errorf("read port: %w", err)
	}
	state, err := parseState(text)
	if err != nil {
		return 0, err
	}
	if state.port == 0 {
		// wireguard-go forgets the port on a host without IPv6.
		return cfg.ListenPort, nil
	}
	return state.port, nil
}

// newNetstack makes a TCP/IP stack of one address whose every packet goes to the
// border. It forwards nothing, and takes nothing that is not for its address.
func newNetstack(cfg Config, border *border) (*stack.Stack, error) {
	protocol, factory, everywhere := ipProtocol(cfg.Address), ipv4.NewProtocol, header.IPv4EmptySubnet
	if cfg.Address.Is6() {
		factory, everywhere = ipv6.NewProtocol, header.IPv6EmptySubnet
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{factory},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
		HandleLocal:        true,
	})
	sack := tcpip.TCPSACKEnabled(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	// Measured: at 5 % loss cubic, in this gVisor, stalls for good now and then.
	control := tcpip.CongestionControlOption("reno")
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack,
		&wait,
		&control,
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 4 << 20},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 1 << 20, Max: 4 << 20},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return nil, fmt.Errorf("tune stack: %s", err)
		}
	}
	if err := s.CreateNIC(nic, border.link); err != nil {
		return nil, fmt.Errorf("create interface: %s", err)
	}
	address := tcpip.ProtocolAddress{
		Protocol:          protocol,
		AddressWithPrefix: tcpip.AddrFromSlice(cfg.Address.AsSlice()).WithPrefix(),
	}
	if err := s.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
		return nil, fmt.Errorf("add address %s: %s", cfg.Address, err)
	}
	s.AddRoute(tcpip.Route{Destination: everywhere, NIC: nic})
	return s, nil
}

const nic tcpip.NICID = 1

func ipProtocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is6() {
		return ipv6.ProtocolNumber
	}
	return ipv4.ProtocolNumber
}

// userspace is the TCP of a user-space stack, with the net package's errors.
type userspace struct {
	stack *stack.Stack
	local netip.Addr
	open  *sockets
}

func (u *userspace) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	addr := to.Addr().Unmap()
	if addr.Is6() != u.local.Is6() {
		return nil, syscall.EAFNOSUPPORT
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var queue waiter.Queue
	ep, err := u.endpoint(&queue)
	if err != nil {
		return nil, errno(err)
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	err = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(addr.AsSlice()), Port: to.Port()})
	if _, ok := err.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-connected:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return nil, ctx.Err()
		}
	}
	if err != nil {
		ep.Close()
		return nil, errno(err)
	}
	return u.conn(&queue, ep)
}

func (u *userspace) listen(port uint16) (net.Listener, error) {
	l := &userListener{userspace: u, done: make(chan struct{})}
	ep, err := u.endpoint(&l.queue)
	if err != nil {
		return nil, errno(err)
	}
	l.endpoint = ep
	if err := ep.Bind(tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(u.local.AsSlice()), Port: port}); err != nil {
		ep.Close()
		return nil, errno(err)
	}
	if err := ep.Listen(backlog); err != nil {
		ep.Close()
		return nil, errno(err)
	}
	if !u.open.add(l) {
		return nil, net.ErrClosed
	}
	return l, nil
}

func (u *userspace) endpoint(queue *waiter.Queue) (tcpip.Endpoint, tcpip.Error) {
	return u.stack.NewEndpoint(tcp.ProtocolNumber, ipProtocol(u.local), queue)
}

// conn makes a connection of a connected endpoint.
func (u *userspace) conn(queue *waiter.Queue, ep tcpip.Endpoint) (net.Conn, error) {
	idle, interval := tcpip.KeepaliveIdleOption(keepalive), tcpip.KeepaliveIntervalOption(keepalive)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
	c := &userConn{TCPConn: gonet.NewTCPConn(queue, ep), open: u.open}
	if !u.open.add(c) {
		return nil, net.ErrClosed
	}
	return c, nil
}

// userListener is gonet.TCPListener, but that its endpoints can be tuned and its
// errors tested for.
type userListener struct {
	*userspace
	endpoint tcpip.Endpoint
	queue    waiter.Queue
	done     chan struct{}
	once     sync.Once
}

func (l *userListener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.queue.EventRegister(&entry)
	defer l.queue.EventUnregister(&entry)
	for {
		select {
		case <-l.done:
			return nil, l.error(net.ErrClosed)
		default:
		}
		ep, queue, err := l.endpoint.Accept(nil)
		if err == nil {
			c, err := l.conn(queue, ep)
			if err != nil {
				return nil, l.error(err)
			}
			return c, nil
		}
		if _, ok := err.(*tcpip.ErrWouldBlock); !ok {
			return nil, l.error(errno(err))
		}
		select {
		case <-l.done:
		case <-ready:
		}
	}
}

func (l *userListener) Addr() net.Addr {
	a, err := l.endpoint.GetLocalAddress()
	if err != nil {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.local, 0))
	}
	return &net.TCPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
}

func (l *userListener) Close() error {
	err := l.error(net.ErrClosed)
	l.once.Do(func() {
		err = nil
		close(l.done)
		l.endpoint.Close()
		l.open.remove(l)
	})
	return err
}

func (l *userListener) error(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
}

// userConn is gonet.TCPConn with errors that can be tested for as those of
// net.TCPConn.
type userConn struct {
	*gonet.TCPConn
	open *sockets
	mu   sync.Mutex
	shut bool
}

func (c *userConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	return n, c.error(err)
}

func (c *userConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	return n, c.error(err)
}

func (c *userConn) CloseWrite() error { return c.error(c.TCPConn.CloseWrite()) }
func (c *userConn) CloseRead() error  { return c.error(c.TCPConn.CloseRead()) }

func (c *userConn) Close() error {
	c.mu.Lock()
	shut := c.shut
	c.shut = true
	c.mu.Unlock()
	if shut {
		return &net.OpError{Op: "close", Net: "tcp", Err: net.ErrClosed}
	}
	c.open.remove(c)
	return c.TCPConn.Close()
}

func (c *userConn) error(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	shut := c.shut
	c.mu.Unlock()
	var op *net.OpError
	if !errors.As(err, &op) {
		if !shut {
			return err // io.EOF, as it is
		}
		op = &net.OpError{Op: "read", Net: "tcp"}
	}
	var timeout net.Error
	switch {
	case shut:
		op.Err = net.ErrClosed
	case errors.As(op.Err, &timeout) && timeout.Timeout():
		op.Err = os.ErrDeadlineExceeded
	default:
		if e, ok := errnos[op.Err.Error()]; ok {
			op.Err = e
		}
	}
	return op
}

// errnos are the stack's errors that callers know by number from the net package,
// by their text, which is all that gonet leaves of them.
var errnos = map[string]syscall.Errno{
	(&tcpip.ErrConnectionRefused{}).String():  syscall.ECONNREFUSED,
	(&tcpip.ErrConnectionReset{}).String():    syscall.ECONNRESET,
	(&tcpip.ErrConnectionAborted{}).String():  syscall.ECONNABORTED,
	(&tcpip.ErrAborted{}).String():            syscall.EPIPE,
	(&tcpip.ErrClosedForSend{}).String():      syscall.EPIPE,
	(&tcpip.ErrTimeout{}).String():            syscall.ETIMEDOUT,
	(&tcpip.ErrHostUnreachable{}).String():    syscall.EHOSTUNREACH,
	(&tcpip.ErrNetworkUnreachable{}).String(): syscall.ENETUNREACH,
	(&tcpip.ErrPortInUse{}).String():          syscall.EADDRINUSE,
	(&tcpip.ErrNoPortAvailable{}).String():    syscall.EADDRNOTAVAIL,
	(&tcpip.ErrNotConnected{}).String():       syscall.ENOTCONN,
}

func errno(err tcpip.Error) error {
	if e, ok := errnos[err.String()]; ok {
		return e
	}
	return errors.New(err.String())
}

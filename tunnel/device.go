package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/kokoa-proxy/kokoa/keys"
)

// device is what all makes have in common: its two halves are WireGuard, which is
// told who the peers are, and a TCP stack, which dials and listens.
type device struct {
	wireguard wireguard
	tcp       tcpStack
	// release frees what the halves do not: the link, the process' sockets.
	release func() error

	kind   Kind
	reason string
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)

	open    sockets
	closing context.Context
	shut    context.CancelFunc
	once    sync.Once
	closed  error

	mu   sync.Mutex
	self keys.Public
	port uint16
	// turn counts the calls of SetPeers, so that one that waited for DNS does not
	// undo a later one.
	turn uint64
	// last is the endpoint that SetPeers set, for each peer it set one for.
	last map[keys.Public]endpoint
	// before is what was counted of peers until they were made new.
	before map[keys.Public]PeerStats
}

// wireguard configures one WireGuard device and reads it back.
type wireguard interface {
	// change applies changes in order.
	change(changes []change) error
	// setKey replaces the device's key, and keeps its peers.
	setKey(key keys.Private) error
	// rebind takes another UDP port, and says which.
	rebind() (port uint16, err error)
	peers() ([]peerState, error)
}

// tcpStack opens sockets whose traffic goes through the tunnel only.
type tcpStack interface {
	dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	listen(port uint16) (net.Listener, error)
}

// endpoint is a peer's endpoint as asked for, and the address that came of it.
type endpoint struct {
	text string
	addr netip.AddrPort
}

func newDevice(cfg Config, w wireguard, port uint16, release func() error) *device {
	closing, shut := context.WithCancel(context.Background())
	return &device{
		wireguard: w,
		release:   release,
		self:      cfg.PrivateKey.Public(),
		port:      port,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		closing: closing,
		shut:    shut,
		last:    make(map[keys.Public]endpoint),
		before:  make(map[keys.Public]PeerStats),
	}
}

func (d *device) Kind() Kind     { return d.kind }
func (d *device) Reason() string { return d.reason }

func (d *device) ListenPort() uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.port
}

func (d *device) Stats() ([]PeerStats, error) {
	if d.closing.Err() != nil {
		return nil, fmt.Errorf("read peers: %w", net.ErrClosed)
	}
	peers, err := d.wireguard.peers()
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := make([]PeerStats, len(peers))
	for i, p := range peers {
		stats[i] = p.PeerStats
		before := d.before[p.PublicKey]
		stats[i].Received += before.Received
		stats[i].Sent += before.Sent
		if p.Handshake.IsZero() {
			stats[i].Handshake = before.Handshake
		}
	}
	return stats, nil
}

func (d *device) SetPeers(ctx context.Context, peers []Peer) error {
	wanted, turn, err := d.setAtOnce(peers)
	if err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	if err := d.setNamed(ctx, turn, wanted); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

// setAtOnce sets everything that needs no DNS: a revoked peer must not stay for
// as long as some other peer's name server is slow.
func (d *device) setAtOnce(peers []Peer) (wanted []wantedPeer, turn uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if wanted, err = check(peers, d.self); err != nil {
		return nil, 0, err
	}
	d.turn++
	if d.closing.Err() != nil {
		return nil, 0, net.ErrClosed
	}
	have, err := d.wireguard.peers()
	if err != nil {
		return nil, 0, err
	}
	reached := make(map[keys.Public]bool, len(have))
	for _, p := range have {
		reached[p.PublicKey] = p.Endpoint != ""
	}
	last := make(map[keys.Public]endpoint, len(wanted))
	for i, w := range wanted {
		// A peer that is new to the device, or that somebody took the endpoint
		// from, has nothing to keep.
		if old, ok := d.last[w.key]; ok && reached[w.key] && old.text == w.endpoint {
			last[w.key] = old
			continue
		}
		if w.addr.IsValid() {
			wanted[i].set = w.addr
			last[w.key] = endpoint{w.endpoint, w.addr}
		}
	}
	if err := d.wireguard.change(diff(have, wanted)); err != nil {
		return nil, 0, err
	}
	d.last = last
	for key := range d.before {
		if !slices.ContainsFunc(wanted, func(w wantedPeer) bool { return w.key == key }) {
			delete(d.before, key)
		}
	}
	return wanted, d.turn, nil
}

func (d *device) SetPrivateKey(key keys.Private) error {
	if err := d.setKey(key); err != nil {
		return fmt.Errorf("set private key: %w", err)
	}
	return nil
}

func (d *device) setKey(key keys.Private) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Err() != nil {
		return net.ErrClosed
	}
	if key == (keys.Private{}) {
		return errors.New("no private key")
	}
	self := key.Public()
	have, err := d.wireguard.peers()
	if err != nil {
		return err
	}
	for _, p := range have {
		if p.PublicKey == self { // WireGuard would drop that peer
			return fmt.Errorf("it is the key of peer %s", self)
		}
	}
	if err := d.wireguard.setKey(key); err != nil {
		return err
	}
	d.self = self
	if err := d.wireguard.change(wake(have)); err != nil {
		return fmt.Errorf("begin handshakes: %w", err)
	}
	return nil
}

func (d *device) Rebind() error {
	if err := d.rebind(); err != nil {
		return fmt.Errorf("take another UDP port: %w", err)
	}
	return nil
}

func (d *device) rebind() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Err() != nil {
		return net.ErrClosed
	}
	port, err := d.wireguard.rebind()
	if err != nil {
		return err
	}
	d.port = port
	have, err := d.wireguard.peers()
	if err != nil {
		return err
	}
	return d.wireguard.change(wake(have))
}

func (d *device) Renew(peers ...keys.Public) error {
	if err := d.renew(peers); err != nil {
		return fmt.Errorf("renew peers: %w", err)
	}
	return nil
}

func (d *device) renew(peers []keys.Public) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing.Err() != nil {
		return net.ErrClosed
	}
	have, err := d.wireguard.peers()
	if err != nil {
		return err
	}
	have = slices.DeleteFunc(have, func(p peerState) bool { return !slices.Contains(peers, p.PublicKey) })
	changes, err := afresh(have)
	if err != nil {
		return err
	}
	if err := d.wireguard.change(changes); err != nil {
		return err
	}
	for _, p := range have {
		before := d.before[p.PublicKey]
		before.Received += p.Received
		before.Sent += p.Sent
		if !p.Handshake.IsZero() {
			before.Handshake = p.Handshake
		}
		d.before[p.PublicKey] = before
	}
	return nil
}

// setNamed looks up the endpoints that are names, and sets those that lead
// elsewhere than when they were set.
func (d *device) setNamed(ctx context.Context, turn uint64, wanted []wantedPeer) error {
	named := slices.DeleteFunc(slices.Clone(wanted), func(w wantedPeer) bool { return w.host == "" })
	if len(named) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.closing, cancel)()

	found := make([][]netip.Addr, len(named))
	errs := make([]error, len(named))
	var group sync.WaitGroup
	limit := make(chan struct{}, 16)
	for i, w := range named {
		limit <- struct{}{}
		group.Go(func() {
			defer func() { <-limit }()
			addrs, err := d.lookup(ctx, w.host)
			if err == nil && len(addrs) == 0 {
				err = errors.New("no address")
			}
			if err != nil {
				errs[i] = fmt.Errorf("resolve endpoint %q of peer %s: %w", w.endpoint, w.key, err)
				return
			}
			for _, a := range addrs {
				found[i] = append(found[i], a.Unmap().WithZone(""))
			}
		})
	}
	group.Wait()

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn != turn {
		return errors.Join(errs...)
	}
	var changes []change
	for i, w := range named {
		old, ok := d.last[w.key]
		if len(found[i]) == 0 || ok && slices.Contains(found[i], old.addr.Addr()) {
			continue
		}
		addr := netip.AddrPortFrom(found[i][0], w.port)
		changes = append(changes, change{key: w.key, existing: true, endpoint: addr})
		d.last[w.key] = endpoint{w.endpoint, addr}
	}
	if len(changes) > 0 {
		if d.closing.Err() != nil {
			return net.ErrClosed
		}
		errs = append(errs, d.wireguard.change(changes))
	}
	return errors.Join(errs...)
}

func (d *device) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if d.closing.Err() != nil {
		return nil, dialError(to, net.ErrClosed)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.closing, cancel)()
	c, err := d.tcp.dial(ctx, to)
	if err != nil {
		if d.closing.Err() != nil {
			err = net.ErrClosed
		}
		return nil, dialError(to, err)
	}
	return c, nil
}

func (d *device) Listen(port uint16) (net.Listener, error) {
	if d.closing.Err() != nil {
		return nil, fmt.Errorf("listen in tunnel at port %d: %w", port, net.ErrClosed)
	}
	l, err := d.tcp.listen(port)
	if err != nil {
		if d.closing.Err() != nil {
			err = net.ErrClosed
		}
		return nil, fmt.Errorf("listen in tunnel at port %d: %w", port, err)
	}
	return l, nil
}

func (d *device) Close() error {
	d.once.Do(func() {
		d.shut()
		d.open.close()
		d.mu.Lock() // a SetPeers at work ends first
		defer d.mu.Unlock()
		if err := d.release(); err != nil {
			d.closed = fmt.Errorf("close tunnel: %w", err)
		}
	})
	return d.closed
}

// dialError gives err the context of a dial, once.
func dialError(to netip.AddrPort, err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // the dialer's clock may be ahead of the context's
		err = context.DeadlineExceeded
	}
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
}

// sockets are the open connections and listeners of a device. The zero value is
// ready.
type sockets struct {
	mu     sync.Mutex
	closed bool
	all    map[io.Closer]struct{}
	// enough is how many there are before the next prune.
	enough int
}

// add remembers c until remove. When the device has been closed it closes c and
// reports false.
func (s *sockets) add(c io.Closer) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		c.Close() // which may call remove
		return false
	}
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[io.Closer]struct{})
	}
	s.all[c] = struct{}{}
	return true
}

func (s *sockets) remove(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
}

func (s *sockets) each(f func(io.Closer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		f(c)
	}
}

// prune forgets those that gone reports to be closed, for sockets that cannot say
// so themselves. It looks once their number has doubled.
func (s *sockets) prune(gone func(io.Closer) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) <= max(s.enough, 64) {
		return
	}
	for c := range s.all {
		if gone(c) {
			delete(s.all, c)
		}
	}
	s.enough = 2 * len(s.all)
}

func (s *sockets) close() {
	s.mu.Lock()
	all := s.all
	s.closed, s.all = true, nil
	s.mu.Unlock()
	for c := range all {
		c.Close()
	}
}

// wireguardLog hands on what wireguard-go has to say. All of it is for debugging:
// a peer that is away is an error there at every packet meant for it.
func wireguardLog(log *slog.Logger) *wgdevice.Logger {
	return &wgdevice.Logger{
		Verbosef: wgdevice.DiscardLogf,
		Errorf: func(format string, args ...any) {
			log.Debug("wireguard complained", "err", fmt.Sprintf(format, args...))
		},
	}
}

// Package tunnel is a WireGuard device that is told who its peers are, in three
// makes: the kernel's, wireguard-go on a TUN device, and wireguard-go on a
// user-space TCP/IP stack that needs no privilege at all.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Kind is a make of device.
type Kind string

// The makes, best first. Auto takes the first that this host allows.
const (
	Auto      Kind = "auto"
	Kernel    Kind = "kernel"
	TUN       Kind = "tun"
	Userspace Kind = "userspace"
)

// Config opens a device.
type Config struct {
	// Kind wanted; "" is Auto.
	Kind       Kind
	PrivateKey keys.Private
	// Address of this end inside the tunnel, and the network it is in.
	Address netip.Addr
	Network netip.Prefix
	// ListenPort is the UDP port; 0 takes a free one.
	ListenPort uint16
	// MTU inside the tunnel in bytes; 0 is DefaultMTU.
	MTU int
	// Name of the network interface for Kernel and TUN; "" is "kokoa0".
	Name string
	Log  *slog.Logger
}

// DefaultMTU fits a WireGuard packet over IPv6 into an Ethernet frame.
const DefaultMTU = 1420

// Peer is the other end of a tunnel.
type Peer struct {
	PublicKey keys.Public
	// Endpoint is the UDP host:port to reach it at; the host may be a name. ""
	// waits for the peer to come.
	Endpoint string
	// AllowedIPs it may send from and is sent for.
	AllowedIPs []netip.Prefix
	// Keepalive keeps a NAT's mapping alive; 0 is off. Whole seconds.
	Keepalive time.Duration
}

// PeerStats is a peer as the device has it.
type PeerStats struct {
	PublicKey  keys.Public
	Endpoint   string
	AllowedIPs []netip.Prefix
	// Handshake is when the last one completed; zero means never.
	Handshake      time.Time
	Received, Sent uint64
}

// Device is an open WireGuard device. All methods may be called at once.
type Device interface {
	// SetPeers makes peers the device's only peers. Sessions of peers that stay
	// are kept; a peer that loses an allowed address loses it before another
	// gains it. Overlapping allowed addresses are ErrOverlap and change nothing.
	//
	// Names are looked up again at every call, after all that needs no look-up
	// has been set: an endpoint whose name does not resolve is an error, and the
	// rest holds. A peer's endpoint is set when its text changes or its name
	// leads elsewhere, and left alone otherwise, since the peer may have roamed;
	// to force it, set the peers without that one first. Of calls at the same
	// time the last to start wins.
	SetPeers(ctx context.Context, peers []Peer) error
	// SetPrivateKey makes key the device's own, for peers that know it by that one.
	// Peers, connections and listeners stay: what is under way waits for new
	// handshakes, and those with peers that are kept alive begin at once. A key
	// that a peer has is an error and changes nothing.
	SetPrivateKey(key keys.Private) error
	// Rebind has the device send from, and listen on, another UDP port, one that
	// the system chooses. Sessions stay, and peers that are kept alive are sent
	// something at once, so that they learn the port; nobody else does before there
	// is something to send. After an error the device may be deaf until a Rebind
	// succeeds.
	Rebind() error
	// Renew makes peers new and leaves their settings, endpoints and Stats as they
	// are: their sessions are gone, and so is what was known of their clocks.
	// WireGuard refuses a handshake that is not later, by the other end's clock,
	// than the last one was, so a peer whose clock was set back is otherwise shut
	// out until that clock has caught up. Keys that no peer has are passed over.
	Renew(peers ...keys.Public) error
	// Stats lists the device's peers as they are, whoever set them.
	Stats() ([]PeerStats, error)
	// Dial opens a TCP connection through the tunnel, and never beside it. Errors
	// can be tested for as those of net.Dialer: syscall.ECONNREFUSED,
	// context.DeadlineExceeded, net.ErrClosed. The connection has CloseWrite; of
	// Kernel and TUN it is a *net.TCPConn, which can be spliced.
	Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Listen takes TCP connections at a port of the device's own address, from
	// the tunnel alone: whoever knocks has a peer's key. Its connections are as
	// Dial's.
	Listen(port uint16) (net.Listener, error)
	// Kind says which make this is, Reason why it was chosen, in one sentence:
	// "userspace: no CAP_NET_ADMIN".
	Kind() Kind
	Reason() string
	// ListenPort is the UDP port in use; Rebind changes it.
	ListenPort() uint16
	// Close ends every tunnel, connection and listener, and waits until they have
	// ended. Whatever is called afterwards returns net.ErrClosed.
	Close() error
}

// Errors that callers may test for.
var (
	// ErrUnavailable is in the error of a make that this host does not allow.
	ErrUnavailable = errors.New("not available on this host")
	// ErrOverlap is in the error about two peers that claim one address.
	ErrOverlap = errors.New("allowed addresses overlap")
)

// Open makes a device of cfg. Nothing is forwarded from one peer to another: not
// by the user-space stack, which does not forward, nor by the host, which is told
// to drop what comes out of the tunnel for anyone but itself, whatever
// net.ipv4.ip_forward says. Nor do peers reach anything of the host's but the ports
// of Listen: Kernel and TUN filter what comes out of their link (package filter).
//
// In Auto a make that this host does not allow (no CAP_NET_ADMIN, no kernel
// module, no /dev/net/tun, no nftables) gives way to the next. Any other error is
// final.
func Open(cfg Config) (Device, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("open tunnel: %w", err)
	}
	return open(cfg, makes)
}

// maker opens devices of one make. Its error is an unavailable when the host does
// not allow the make.
type maker struct {
	kind Kind
	open func(Config) (*device, error)
}

// unavailable is why a make cannot be had here.
type unavailable string

func (u unavailable) Error() string        { return ErrUnavailable.Error() + ": " + string(u) }
func (u unavailable) Is(target error) bool { return target == ErrUnavailable }

func open(cfg Config, makes []maker) (Device, error) {
	var missing []string
	for _, m := range makes {
		if cfg.Kind != Auto && cfg.Kind != m.kind {
			continue
		}
		d, err := m.open(cfg)
		var u unavailable
		if cfg.Kind == Auto && errors.As(err, &u) {
			missing = append(missing, string(u))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("open %s tunnel: %w", m.kind, err)
		}
		d.kind = m.kind
		switch {
		case cfg.Kind != Auto:
			d.reason = fmt.Sprintf("%s: as configured", m.kind)
		case len(missing) > 0:
			d.reason = fmt.Sprintf("%s: %s", m.kind, strings.Join(slices.Compact(missing), ", "))
		default:
			d.reason = fmt.Sprintf("%s: the best make, and this host allows it", m.kind)
		}
		return d, nil
	}
	return nil, fmt.Errorf("open %s tunnel: %w", cfg.Kind, ErrUnavailable)
}

// complete fills in defaults and checks the rest.
func (c *Config) complete() error {
	if c.Kind == "" {
		c.Kind = Auto
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Name == "" {
		c.Name = "kokoa0"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Address = c.Address.Unmap()
	least := 576 // RFC 791: what every IPv4 host takes
	if c.Address.Is6() {
		least = 1280 // RFC 8200 section 5
	}
	switch {
	case !slices.Contains([]Kind{Auto, Kernel, TUN, Userspace}, c.Kind):
		return fmt.Errorf("unknown kind %q (want auto, kernel, tun or userspace)", string(c.Kind))
	case c.PrivateKey == keys.Private{}:
		return errors.New("no private key")
	case !c.Address.IsValid() || c.Address.IsUnspecified() || c.Address.Zone() != "":
		return fmt.Errorf("%q is no address", c.Address)
	case !c.Network.IsValid() || !c.Network.Contains(c.Address):
		return fmt.Errorf("address %s is not in network %s", c.Address, c.Network)
	case c.MTU < least || c.MTU > maxMTU:
		return fmt.Errorf("MTU %d is not from %d to %d", c.MTU, least, maxMTU)
	case len(c.Name) > 15 || strings.ContainsAny(c.Name, "/: \t\n"):
		return fmt.Errorf("%q is no interface name (at most 15 bytes, no slash, colon or space)", c.Name)
	}
	return nil
}

// maxMTU leaves room for WireGuard's own header, and some, in a UDP datagram.
const maxMTU = 65000

// Package tunnel is a WireGuard device that is told who its peers are, in three
// makes: the kernel's, wireguard-go on a TUN device, and wireguard-go on a
// user-space TCP/IP stack that needs no privilege at all.
package tunnel

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
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
	// gains it. Overlapping allowed addresses are an error that changes nothing.
	// An endpoint whose name does not resolve is an error that is returned after
	// everything else was set.
	SetPeers(ctx context.Context, peers []Peer) error
	// Stats lists the device's peers as they are, whoever set them.
	Stats() ([]PeerStats, error)
	// Dial opens a TCP connection through the tunnel.
	Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Listen takes TCP connections at a port of the device's own address.
	Listen(port uint16) (net.Listener, error)
	// Kind says which make this is, Reason why it was chosen.
	Kind() Kind
	Reason() string
	// ListenPort is the UDP port in use.
	ListenPort() uint16
	// Close ends every tunnel, connection and listener.
	Close() error
}

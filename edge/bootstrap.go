package edge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// Bootstrap is what an edge is born with: a JSON file of mode 0600. Everything
// else comes through the tunnel.
type Bootstrap struct {
	Fleet string `json:"fleet"`
	Name  string `json:"name"`
	// PrivateKey of its WireGuard, derived from the fleet secret by the control
	// plane; the edge never has the secret.
	PrivateKey keys.Private `json:"private_key"`
	// TunnelAddress of the edge in Network.
	TunnelAddress netip.Addr   `json:"tunnel_address"`
	Network       netip.Prefix `json:"network"`
	// Control are the peers that may configure this edge.
	Control []ControlPeer `json:"control"`
	// WireGuard is the UDP port, HTTP and HTTPS the TCP addresses, listened on.
	WireGuard uint16 `json:"wireguard"`
	HTTP      string `json:"http"`
	HTTPS     string `json:"https"`
	// Tunnel is the make of the device: "auto", "kernel", "tun", "userspace".
	Tunnel string `json:"tunnel"`
	// Data is the folder of the last good config and certificates, mode 0700.
	Data string `json:"data"`
}

// ControlPeer is the control plane as a peer of an edge.
type ControlPeer struct {
	PublicKey keys.Public `json:"public_key"`
	Address   netip.Addr  `json:"address"`
}

// ReadBootstrap reads and checks a bootstrap file. One that other users can read is
// privatefile.ErrExposed, since it holds a private key. A mistake in the file
// carries its place, and all fields that are wrong are listed at once.
func ReadBootstrap(path string) (Bootstrap, error) {
	var b Bootstrap
	if err := privatefile.ReadJSON(path, &b); err != nil {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %w", err)
	}
	if err := b.check(); err != nil {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %s: %w", path, err)
	}
	return b, nil
}

// check lists every field that an edge cannot start with.
func (b Bootstrap) check() error {
	var wrong []error
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	for _, f := range [][2]string{{"fleet", b.Fleet}, {"name", b.Name}, {"data", b.Data}} {
		if f[1] == "" {
			say("%s is missing", f[0])
		}
	}
	if b.PrivateKey == (keys.Private{}) {
		say("private_key is missing")
	}
	if !b.Network.IsValid() {
		say("network is missing")
	} else if !b.Network.Contains(b.TunnelAddress) {
		say("tunnel_address %v is not in network %v", b.TunnelAddress, b.Network)
	}
	if len(b.Control) == 0 {
		say("control is empty, so nobody could configure this edge")
	}
	for i, c := range b.Control {
		if c.PublicKey.IsZero() {
			say("control[%d]: public_key is missing", i)
		}
		if b.Network.IsValid() && (!b.Network.Contains(c.Address) || c.Address == b.TunnelAddress) {
			say("control[%d]: address %v is not one of network %v beside the edge's own", i, c.Address, b.Network)
		}
	}
	for _, f := range [][2]string{{"http", b.HTTP}, {"https", b.HTTPS}} {
		if _, err := net.ResolveTCPAddr("tcp", f[1]); err != nil || f[1] == "" {
			say("%s %q is not an address to listen on; write \":80\" or \"192.0.2.1:80\"", f[0], f[1])
		}
	}
	switch tunnel.Kind(b.Tunnel) {
	case "", tunnel.Auto, tunnel.Kernel, tunnel.TUN, tunnel.Userspace:
	default:
		say("tunnel %q is not auto, kernel, tun or userspace", b.Tunnel)
	}
	return errors.Join(wrong...)
}

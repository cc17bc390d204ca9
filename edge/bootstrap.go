package edge

import (
	"net/netip"

	"github.com/kokoa-proxy/kokoa/keys"
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

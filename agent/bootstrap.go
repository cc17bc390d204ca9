package agent

import (
	"crypto/ed25519"
	"net/netip"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
)

// Bootstrap is what an agent starts from: a JSON file of mode 0600. Everything
// else comes signed, through the edges.
type Bootstrap struct {
	Fleet string `json:"fleet"`
	Name  string `json:"name"`
	// PrivateKey of its WireGuard; made on this host, and never leaves it.
	PrivateKey    keys.Private `json:"private_key"`
	TunnelAddress netip.Addr   `json:"tunnel_address"`
	Network       netip.Prefix `json:"network"`
	// SigningKey is the fleet's: only config signed by it is obeyed.
	SigningKey ed25519.PublicKey `json:"signing_key"`
	// Edges to try until the first signed config names the current ones.
	Edges []api.AgentEdge `json:"edges"`
	// Allow narrows which services may be dialled, "host:port" each, whatever
	// the fleet says; empty allows what the signed config names.
	Allow []string `json:"allow,omitempty"`
	// Tunnel is the make of the device: "auto", "kernel", "tun", "userspace".
	Tunnel string `json:"tunnel"`
	// Data is the folder of the last good config, mode 0700.
	Data string `json:"data"`
}

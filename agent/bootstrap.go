package agent

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
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
	// Control is the URL of the control plane that the agent joined by, and
	// ControlKey that one's public join key; empty for an agent that was given its
	// file by hand.
	Control    string      `json:"control,omitempty"`
	ControlKey keys.Public `json:"control_key,omitzero"`
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

// WriteBootstrap replaces the file at path, and makes its folder. What ReadBootstrap
// would refuse is not written.
func WriteBootstrap(path string, b Bootstrap) error {
	if err := b.check(); err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = atomicfile.Write(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write bootstrap: %w", err)
	}
	return nil
}

// RemoveData removes what an agent keeps in its data folder, and nothing else that is
// there. No agent may be running with it.
func RemoveData(dir string) error {
	var errs []error
	for _, name := range []string{storedName, keyringName, placesName, socketName} {
		path := filepath.Join(dir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		errs = append(errs, atomicfile.Sweep(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove data: %w", err)
	}
	return nil
}

// CheckAllow is why entries cannot be a Bootstrap's Allow, or nil.
func CheckAllow(entries []string) error {
	_, err := newPolicy(entries, netip.Prefix{})
	return err
}

// check lists every field that an agent cannot start with.
func (b Bootstrap) check() error {
	var wrong []error
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if b.Fleet == "" {
		say("fleet is missing")
	}
	if b.Name == "" {
		say("name is missing")
	}
	if b.PrivateKey == (keys.Private{}) {
		say("private_key is missing")
	}
	if !b.Network.IsValid() {
		say("network is missing")
	} else if !b.Network.Contains(b.TunnelAddress) {
		say("tunnel_address %v is not in network %v", b.TunnelAddress, b.Network)
	}
	if len(b.SigningKey) != ed25519.PublicKeySize {
		say("signing_key has %d bytes, want %d in base64", len(b.SigningKey), ed25519.PublicKeySize)
	}
	if b.PrivateKey != (keys.Private{}) && b.Network.IsValid() {
		if err := checkEdges(b, b.Edges); err != nil {
			say("edges: %w", err)
		}
	}
	if _, err := newPolicy(b.Allow, b.Network); err != nil {
		wrong = append(wrong, err)
	}
	switch tunnel.Kind(b.Tunnel) {
	case "", tunnel.Auto, tunnel.Kernel, tunnel.TUN, tunnel.Userspace:
	default:
		say("tunnel is %q, want %q, %q, %q or %q", b.Tunnel, tunnel.Auto, tunnel.Kernel, tunnel.TUN, tunnel.Userspace)
	}
	if b.Data == "" {
		say("data is missing: name the folder for the last good config")
	}
	return errors.Join(wrong...)
}

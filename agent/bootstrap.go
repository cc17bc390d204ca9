package agent

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"syscall"

	"github.com/kokoa-proxy/kokoa/edge/api"
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
}

// ErrExposed is in the error about a bootstrap file that others than its owner
// may read: it holds a private key.
var ErrExposed = errors.New("others can read it")

// bootstrapLimit in bytes is far above any bootstrap file.
const bootstrapLimit = 1 << 20

// ReadBootstrap reads and checks a bootstrap file. One that others can read, or
// that belongs to neither this user nor root, is ErrExposed. A mistake in the
// file carries its place, "file:line:column".
func ReadBootstrap(path string) (Bootstrap, error) {
	f, err := os.Open(path)
	if err != nil {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %s has mode %#o, so %w, and it holds a private key; run: chmod 600 %s", path, mode, ErrExposed, path)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %s belongs to user %d, so %w, and it holds a private key; run: chown %d %s", path, owner.Uid, ErrExposed, os.Geteuid(), path)
	}
	data, err := io.ReadAll(io.LimitReader(f, bootstrapLimit+1))
	if err != nil {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %w", err)
	}
	if len(data) > bootstrapLimit {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %s has more than %d bytes", path, bootstrapLimit)
	}
	b, err := decodeBootstrap(path, data)
	if err != nil {
		return Bootstrap{}, fmt.Errorf("read bootstrap: %w", err)
	}
	return b, nil
}

func decodeBootstrap(path string, data []byte) (Bootstrap, error) {
	var b Bootstrap
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode(&b)
	if err == nil {
		if _, terr := d.Token(); terr != io.EOF {
			return Bootstrap{}, fmt.Errorf("%s: data after the bootstrap", place(path, data, d.InputOffset()))
		}
		if err := b.check(); err != nil {
			return Bootstrap{}, fmt.Errorf("%s: %w", path, err)
		}
		return b, nil
	}
	at := d.InputOffset()
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		at = syntax.Offset
	} else if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		at = kind.Offset
	}
	return Bootstrap{}, fmt.Errorf("%s: %w", place(path, data, at), err)
}

// place is "path:line:column" of the byte before offset.
func place(path string, data []byte, offset int64) string {
	before := data[:min(max(offset-1, 0), int64(len(data)))]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Sprintf("%s:%d:%d", path, line, len(before)-bytes.LastIndexByte(before, '\n'))
}

// check reports every field that an agent cannot start with.
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

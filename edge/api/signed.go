package api

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// AgentConfig is what an agent obeys. It travels as Signed, so that the edge that
// relays it cannot change it.
type AgentConfig struct {
	Fleet string `json:"fleet"`
	Agent string `json:"agent"`
	// Serial rises with every change; an agent obeys none lower than its last.
	Serial uint64 `json:"serial"`
	// Edges the agent keeps tunnels to.
	Edges    []AgentEdge    `json:"edges"`
	Services []AgentService `json:"services"`
	// PublicKey and NextKey are the agent's in the fleet; see fleet.Origin. Zero
	// from a control plane that does not tell.
	PublicKey keys.Public `json:"public_key,omitzero"`
	NextKey   keys.Public `json:"next_key,omitzero"`
	// RotateBefore asks an agent whose key was made for no later moment than this
	// to make another; nil asks nothing.
	RotateBefore *time.Time `json:"rotate_before,omitempty"`
	// Control is the control plane's join key, which Heartbeat.Rotation is sealed
	// for.
	Control keys.Public `json:"control,omitzero"`
	// Expires is when the agent stops serving by its own clock.
	Expires *time.Time `json:"expires,omitempty"`
}

// AgentEdge is an edge as its agents peer with it.
type AgentEdge struct {
	Name      string      `json:"name"`
	PublicKey keys.Public `json:"public_key"`
	// Endpoint is host:port of the edge's WireGuard.
	Endpoint string     `json:"endpoint"`
	Address  netip.Addr `json:"address"`
}

// AgentService is a service the agent may dial, and no other.
type AgentService struct {
	ID string `json:"id"`
	// URL is "http://host:port" or "https://host:port".
	URL string `json:"url"`
	// Health path asked for by the local check; "" checks that it accepts.
	Health string `json:"health,omitempty"`
	// Interval between local checks.
	Interval time.Duration `json:"interval"`
}

// Signed is an AgentConfig as its exact bytes, with an Ed25519 signature (RFC 8032)
// over "kokoa agent config v1\n" and the bytes.
type Signed struct {
	Agent     string `json:"agent"`
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"`
}

// ErrSignature is returned for a config that the fleet's key did not sign.
var ErrSignature = errors.New("signature does not match the fleet's key")

const signedContext = "kokoa agent config v1\n"

// Sign makes c tamper-proof.
func Sign(key ed25519.PrivateKey, c AgentConfig) (Signed, error) {
	payload, err := json.Marshal(c)
	if err != nil {
		return Signed{}, fmt.Errorf("sign config of agent %s: %w", c.Agent, err)
	}
	return Signed{Agent: c.Agent, Payload: payload, Signature: ed25519.Sign(key, append([]byte(signedContext), payload...))}, nil
}

// Open checks the signature and reads the config; a signature by another key, or
// over another agent's config, is ErrSignature.
func (s Signed) Open(key ed25519.PublicKey) (AgentConfig, error) {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(signedContext), s.Payload...), s.Signature) {
		return AgentConfig{}, fmt.Errorf("config of agent %s: %w", s.Agent, ErrSignature)
	}
	var c AgentConfig
	d := json.NewDecoder(bytes.NewReader(s.Payload))
	if err := d.Decode(&c); err != nil {
		return AgentConfig{}, fmt.Errorf("config of agent %s: %w", s.Agent, err)
	}
	if c.Agent != s.Agent {
		return AgentConfig{}, fmt.Errorf("config of agent %s: it is for agent %s: %w", s.Agent, c.Agent, ErrSignature)
	}
	return c, nil
}

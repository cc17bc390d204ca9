// Package api is the contract between the control plane, edges and agents: the
// config an edge accepts, the state it reports, and what it relays to agents. It
// is spoken as plain HTTP with JSON inside the tunnel, where WireGuard has already
// said who is asking; the client and the handler are here, the edge is not.
package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Ports inside the tunnel, at an edge's and an agent's tunnel address. Nothing
// else listens there.
const (
	// EdgePort is where an edge answers the control plane and agents.
	EdgePort = 7070
	// AgentPort is where an agent takes streams for its services.
	AgentPort = 7071
)

// Config is all of an edge's desired state but its certificates. The zero Config
// serves nothing. Slices are sorted by name (Normalize); two configs are the same
// when their digests are.
type Config struct {
	Fleet string `json:"fleet"`
	Edge  string `json:"edge"`
	// Revision is the commit that made this config, for people and for finding
	// the last applied revision. It is not part of the digest.
	Revision string  `json:"revision"`
	Peers    []Peer  `json:"peers"`
	Routes   []Route `json:"routes"`
	// Agents are what each agent is to obey, signed; the edge relays them.
	Agents []Signed `json:"agents"`
}

// Peer is an origin's agent as a WireGuard peer of the edge.
type Peer struct {
	Name      string      `json:"name"`
	PublicKey keys.Public `json:"public_key"`
	// NextKey is the key that replaces PublicKey; while it is set both are valid,
	// and the address goes with the one that had the newest handshake. Zero means
	// that no replacement is under way.
	NextKey keys.Public `json:"next_key,omitzero"`
	// Address is the one tunnel address the peer may use.
	Address netip.Addr `json:"address"`
	// Expires is when the edge drops the peer by its own clock.
	Expires *time.Time `json:"expires,omitempty"`
}

// Route is one host and path that the edge serves.
type Route struct {
	Name         string     `json:"name"`
	Host         string     `json:"host"`
	Path         string     `json:"path"`
	StripPath    bool       `json:"strip_path,omitempty"`
	PreserveHost bool       `json:"preserve_host,omitempty"`
	WebSocket    bool       `json:"websocket,omitempty"`
	TLS          bool       `json:"tls,omitempty"`
	Redirect     bool       `json:"redirect,omitempty"`
	Upstreams    []Upstream `json:"upstreams"`
	Health       Health     `json:"health"`
	Expires      *time.Time `json:"expires,omitempty"`
	// From is the route's place in the fleet repo, "file:line:column", for the
	// edge's logs and error pages.
	From string `json:"from,omitempty"`
}

// Upstream is a service behind an agent, in order of preference.
type Upstream struct {
	// Agent is a Peer's name.
	Agent string `json:"agent"`
	// Service is the id in the agent's signed config.
	Service string `json:"service"`
	// URL is the service as the agent sees it, scheme and host only: it decides
	// whether TLS is spoken to it and which Host is sent without PreserveHost.
	URL string `json:"url"`
}

// Health is the active check of a route's upstreams. Durations are in
// nanoseconds on the wire, as encoding/json writes them.
type Health struct {
	Path     string        `json:"path,omitempty"`
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
	Failures int           `json:"failures"`
}

// Normalize sorts the config in place, so that equal configs are equal bytes.
func (c *Config) Normalize() {
	slices.SortFunc(c.Peers, func(a, b Peer) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Routes, func(a, b Route) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Agents, func(a, b Signed) int { return cmp.Compare(a.Agent, b.Agent) })
}

// Digest is the config's identity: 64 hexadecimal digits of SHA-256 over all of it
// but Revision. The config must be normalized. It is the entity tag on the wire.
func (c Config) Digest() string {
	c.Revision = ""
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(c); err != nil {
		panic("api: a config always encodes: " + err.Error())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// DecodeConfig reads a config strictly: an unknown field or trailing data is an
// error, since then this edge is older than its control plane or somebody else is
// talking, and so is a config that Validate refuses.
func DecodeConfig(data []byte) (Config, error) {
	var c Config
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("decode config: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Config{}, errors.New("decode config: data after the config")
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("decode config: %w", err)
	}
	return c, nil
}

// State is what an edge reports of itself: what is, not what was asked for.
type State struct {
	Fleet    string `json:"fleet"`
	Edge     string `json:"edge"`
	Version  string `json:"version"`
	Digest   string `json:"digest"`
	Revision string `json:"revision"`
	// Now is the edge's clock when it answered; the control plane warns when it
	// is off.
	Now     time.Time `json:"now"`
	Started time.Time `json:"started"`
	// Ready is whether visitors may be sent here; NotReady says why not.
	Ready    bool     `json:"ready"`
	NotReady []string `json:"not_ready,omitempty"`

	Tunnel       Tunnel             `json:"tunnel"`
	Peers        []PeerState        `json:"peers"`
	Certificates []CertificateState `json:"certificates"`
	Services     []ServiceState     `json:"services"`
	Agents       []AgentState       `json:"agents"`
}

// Tunnel says which make of WireGuard runs, and why that one.
type Tunnel struct {
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
}

// PeerState is a peer that the WireGuard device really has (control peers are
// left out), whoever put it there. An origin whose key is being replaced has two.
type PeerState struct {
	// Name is empty for a peer that the config does not name.
	Name       string         `json:"name,omitempty"`
	PublicKey  keys.Public    `json:"public_key"`
	AllowedIPs []netip.Prefix `json:"allowed_ips"`
	// Handshake is when the last one completed; zero means never.
	Handshake time.Time `json:"handshake,omitzero"`
	// Received and Sent count bytes inside the tunnel.
	Received uint64 `json:"received"`
	Sent     uint64 `json:"sent"`
}

// CertificateState is a certificate that the edge can serve. No key leaves it.
type CertificateState struct {
	Name string `json:"name"`
	// Fingerprint is SHA-256 of the leaf in hexadecimal.
	Fingerprint string    `json:"fingerprint"`
	Hosts       []string  `json:"hosts"`
	NotAfter    time.Time `json:"not_after"`
}

// Certificate is a certificate on its way to an edge, inside the tunnel.
type Certificate struct {
	// Name is the certificate's file name in the control plane's store.
	Name string `json:"name"`
	// Chain is PEM, leaf first; Key is PEM.
	Chain []byte `json:"chain"`
	Key   []byte `json:"key"`
}

// ServiceState is a service as probed from this edge, through the tunnel.
type ServiceState struct {
	Agent   string `json:"agent"`
	Service string `json:"service"`
	URL     string `json:"url"`
	// Up is nil until the first check has ended.
	Up *bool `json:"up"`
	// RTT is how long the last good check took.
	RTT   time.Duration `json:"rtt"`
	Since time.Time     `json:"since,omitzero"`
	Error string        `json:"error,omitempty"`
}

// AgentState is the last heartbeat that an agent sent this edge.
type AgentState struct {
	Name      string    `json:"name"`
	At        time.Time `json:"at"`
	Heartbeat Heartbeat `json:"heartbeat"`
}

// Heartbeat is what an agent says of itself, every 30 s and on change.
type Heartbeat struct {
	Agent    string `json:"agent"`
	Version  string `json:"version"`
	Platform string `json:"platform"`
	// Serial of the config the agent obeys.
	Serial uint64 `json:"serial"`
	// PublicKey is the agent's own now, or the one it is about to take.
	PublicKey keys.Public `json:"public_key,omitzero"`
	// Rotation asks the control plane to make another key the agent's next one:
	// join.SealRotation, which no edge can read or change.
	Rotation []byte    `json:"rotation,omitempty"`
	Started  time.Time `json:"started"`
	Now      time.Time `json:"now"`
	Tunnel   Tunnel    `json:"tunnel"`
	// Services as the agent itself sees them, locally.
	Services []LocalService `json:"services"`
	// Edges the agent has a tunnel to.
	Edges []AgentEdgeState `json:"edges"`
	// Refused lists config the agent will not obey, and why, for people.
	Refused []string `json:"refused,omitempty"`
	// Draining says that the agent is about to stop: it takes no new streams, and
	// ends when those it has are closed or its grace is over. An edge closes the
	// ones that carry no request.
	Draining bool `json:"draining,omitempty"`
}

// LocalService is a service as checked by its agent, without a tunnel between.
type LocalService struct {
	ID    string        `json:"id"`
	URL   string        `json:"url"`
	Up    bool          `json:"up"`
	RTT   time.Duration `json:"rtt"`
	Error string        `json:"error,omitempty"`
}

// AgentEdgeState is an agent's tunnel to one edge.
type AgentEdgeState struct {
	Name      string    `json:"name"`
	Up        bool      `json:"up"`
	Handshake time.Time `json:"handshake,omitzero"`
}

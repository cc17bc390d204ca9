package join

import (
	"crypto/ed25519"
	"net/netip"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
)

// Path is where the control plane answers POST with a Sealed question by a Sealed
// answer, and GET with a Hello. Everything that concerns joining is below Prefix, so
// that a route can publish just that.
const (
	Prefix = "/join/"
	Path   = "/join/v1"
)

// The kinds of message.
const (
	kindQuestion = "question"
	kindAnswer   = "answer"
)

// Hello is what the control plane tells everybody.
type Hello struct {
	Fleet string `json:"fleet"`
	// Control is its public join key. Those who have a token know it from there.
	Control keys.Public `json:"control"`
	// Now is its clock.
	Now time.Time `json:"now"`
}

// Question is what a host asks, sealed with its WireGuard key. The same question
// asked again is answered the same and costs nothing more.
type Question struct {
	// ID is chosen by the host for each question; the answer repeats it.
	ID string `json:"id"`
	// Wait is how long the control plane may hold the answer back for the state to
	// change from Seen; at most MaxWait.
	Wait time.Duration `json:"wait,omitempty"`
	// Seen is the state that the host knows.
	Seen State `json:"seen,omitempty"`
	// Register asks to become an origin; nil asks only how things stand.
	Register *Registration `json:"register,omitempty"`
	// Suggest asks for a free tunnel address, for a host that opens its pull
	// request by itself.
	Suggest bool `json:"suggest,omitempty"`
}

// MaxWait is the longest Wait.
const MaxWait = 25 * time.Second

// Registration is what a host wants to be. Its public key is the question's sender.
type Registration struct {
	// Token is Token.Reveal.
	Token string `json:"token"`
	// Name of the origin, a DNS label.
	Name string `json:"name"`
	// Hosts it asks to serve, as in fleet.Origin.Hosts; empty asks for what the
	// token allows.
	Hosts []string `json:"hosts,omitempty"`
	// Temporary is how long it is to live; 0 means for good.
	Temporary time.Duration `json:"temporary,omitempty"`
	// Platform is "linux/arm64"; Version is the agent's; Hostname the host's own
	// name. They are for people.
	Platform string `json:"platform"`
	Version  string `json:"version"`
	Hostname string `json:"hostname,omitempty"`
	// Now is the host's clock: one that is far off is told so.
	Now time.Time `json:"now"`
}

// State is how far a registration has come.
type State string

// The states.
const (
	// Unknown: the control plane knows no such key. It may never have registered,
	// or the origin was removed.
	Unknown State = "unknown"
	// Accepted: the token was taken, and the change will be proposed.
	Accepted State = "accepted"
	// Proposed: a pull request is open and waits for a person.
	Proposed State = "proposed"
	// Merged: the change is in the repo, or on its way there by itself, and not
	// yet live.
	Merged State = "merged"
	// Live: the key is an origin's; Fleet is set.
	Live State = "live"
	// Refused: it will not become an origin; Reason says why.
	Refused State = "refused"
)

// Answer is the control plane's, sealed for the host.
type Answer struct {
	// ID is the question's.
	ID    string `json:"id"`
	State State  `json:"state"`
	// Reason is a sentence for the person at the host's terminal: why it was
	// refused, or what holds it up.
	Reason string `json:"reason,omitempty"`
	// Pull is the address of the pull request, or, without a forge, the command
	// that approves it.
	Pull string `json:"pull,omitempty"`
	// Flags say what a reviewer should look at.
	Flags []string `json:"flags,omitempty"`
	// Fleet is what the host needs as an origin; set when it is live.
	Fleet *Fleet `json:"fleet,omitempty"`
	// Suggestion answers Question.Suggest.
	Suggestion *Suggestion `json:"suggestion,omitempty"`
	// Now is the control plane's clock.
	Now time.Time `json:"now"`
}

// Fleet is what an origin needs to know of its fleet.
type Fleet struct {
	Name string `json:"name"`
	// Origin is the name that the key has in the fleet repo.
	Origin        string            `json:"origin"`
	TunnelAddress netip.Addr        `json:"tunnel_address"`
	Network       netip.Prefix      `json:"network"`
	SigningKey    ed25519.PublicKey `json:"signing_key"`
	Edges         []api.AgentEdge   `json:"edges"`
	Expires       *time.Time        `json:"expires,omitempty"`
}

// Suggestion is where a new origin's file would go, and an address that is free
// now. It is not kept free.
type Suggestion struct {
	Folder        string     `json:"folder"`
	TunnelAddress netip.Addr `json:"tunnel_address"`
}

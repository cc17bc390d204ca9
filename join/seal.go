package join

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/nacl/box"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Sealed is a message that only the receiver of the Seal can read, and only the
// holder of Key's private half can have made.
type Sealed struct {
	// Key is the sender's.
	Key keys.Public `json:"key"`
	// Box is a nonce of 24 bytes and a NaCl box.
	Box []byte `json:"box"`
}

// ErrSeal is returned for a message that was made by another key or for another
// one, was changed, or is of another kind.
var ErrSeal = errors.New("the seal does not match")

const nonceSize = 24

// sealed is what is in a box: the kind keeps a message of one kind from being taken
// for one of another.
type sealed struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body"`
}

// Seal makes a message of a kind. The body is anything that encodes as JSON.
func Seal(from keys.Private, to keys.Public, kind string, body any) (Sealed, error) {
	raw, err := json.Marshal(body)
	if err == nil {
		raw, err = json.Marshal(sealed{kind, raw})
	}
	if err != nil {
		return Sealed{}, fmt.Errorf("seal %s: %w", kind, err)
	}
	var nonce [nonceSize]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return Sealed{}, fmt.Errorf("seal %s: %w", kind, err)
	}
	peer, own := [keys.Size]byte(to), [keys.Size]byte(from)
	return Sealed{from.Public(), box.Seal(nonce[:], raw, &nonce, &peer, &own)}, nil
}

// Open reads a message of a kind into body. The error is ErrSeal, or about the
// JSON inside.
func (s Sealed) Open(to keys.Private, kind string, body any) error {
	if len(s.Box) < nonceSize {
		return fmt.Errorf("open %s: %w", kind, ErrSeal)
	}
	nonce, peer, own := [nonceSize]byte(s.Box[:nonceSize]), [keys.Size]byte(s.Key), [keys.Size]byte(to)
	raw, ok := box.Open(nil, s.Box[nonceSize:], &nonce, &peer, &own)
	if !ok {
		return fmt.Errorf("open %s: %w", kind, ErrSeal)
	}
	var m sealed
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("open %s: %w", kind, err)
	}
	if m.Kind != kind {
		return fmt.Errorf("open %s: it is of kind %q: %w", kind, m.Kind, ErrSeal)
	}
	if err := json.Unmarshal(m.Body, body); err != nil {
		return fmt.Errorf("open %s: %w", kind, err)
	}
	return nil
}

const kindRotation, kindNextKey = "rotation", "next key"

// rotation is what an agent says to replace its key.
type rotation struct {
	Agent string `json:"agent"`
	// Asked is which question of the fleet's this answers (AgentConfig.RotateBefore):
	// else an edge could bring up an older answer again.
	Asked time.Time `json:"asked"`
	// Next is sealed with the new key, which proves that the agent holds it.
	Next Sealed `json:"next"`
}

// SealRotation is an agent's word, by its old key, that next is its new one, as it was
// asked for with a moment, for the control plane with the join key control. Whoever
// carries it can neither read nor change it.
func SealRotation(agent string, asked time.Time, old, next keys.Private, control keys.Public) ([]byte, error) {
	proof, err := Seal(next, control, kindNextKey, agent)
	if err != nil {
		return nil, err
	}
	s, err := Seal(old, control, kindRotation, rotation{agent, asked.UTC(), proof})
	if err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// OpenRotation reads what SealRotation made, and returns the new key and with which
// moment it was asked for. An error is ErrSeal unless both the key that the agent has
// now and the new one have sealed it for this agent and this control plane.
func OpenRotation(agent string, old keys.Public, control keys.Private, data []byte) (next keys.Public, asked time.Time, err error) {
	var s Sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return keys.Public{}, time.Time{}, fmt.Errorf("open rotation: %w", err)
	}
	var r rotation
	if err := s.Open(control, kindRotation, &r); err != nil {
		return keys.Public{}, time.Time{}, err
	}
	var named string
	if err := r.Next.Open(control, kindNextKey, &named); err != nil {
		return keys.Public{}, time.Time{}, err
	}
	if s.Key != old || r.Agent != agent || named != agent {
		return keys.Public{}, time.Time{}, fmt.Errorf("open rotation of agent %s: %w", agent, ErrSeal)
	}
	return r.Next.Key, r.Asked, nil
}

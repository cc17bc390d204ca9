package edge

import (
	"slices"
	"testing"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// TestSilence: a peer is made new once when it falls silent, and again when it has
// sent something since.
func TestSilence(t *testing.T) {
	var s silence
	received := map[keys.Public]uint64{key(1): 100, key(2): 0, key(3): 100}
	looks := func(n int, want ...keys.Public) {
		t.Helper()
		var due []keys.Public
		for range n {
			var stats []tunnel.PeerStats
			for _, k := range []keys.Public{key(1), key(2), key(3)} {
				if r, ok := received[k]; ok {
					stats = append(stats, tunnel.PeerStats{PublicKey: k, Received: r})
				}
			}
			due = append(due, s.look(stats, func(k keys.Public) int {
				if k == key(3) {
					return 20
				}
				return 8
			})...)
		}
		if !slices.Equal(due, want) {
			t.Errorf("made new: %v, want %v", due, want)
		}
	}
	looks(8)
	looks(1, key(1))
	looks(11)
	looks(1, key(3))
	looks(100)

	received[key(1)] = 248
	looks(8)
	received[key(1)] = 249 // just in time
	looks(8)
	looks(1, key(1))
	received[key(2)] = 1
	looks(8)
	looks(1, key(2))

	// One that comes back as another's is looked at from the start.
	delete(received, key(1))
	looks(20)
	received[key(1)] = 249
	looks(8)
	looks(1, key(1))
	received[key(1)] = 50
	looks(8)
	looks(1, key(1))
}

// TestSilentPeers: the edge makes silent agents new, and not the control plane, which
// may be silent for longer.
func TestSilentPeers(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	w.device.mu.Lock()
	w.device.received = map[keys.Public]uint64{key(1): 10, key(100): 10}
	w.device.mu.Unlock()
	eventually(t, "the agent is made new", func() bool {
		w.device.mu.Lock()
		defer w.device.mu.Unlock()
		return slices.Equal(w.device.renewed, []keys.Public{key(1)})
	})
}

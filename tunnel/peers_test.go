package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/keys"
)

func TestCheck(t *testing.T) {
	a, b, self := keys.Public{1}, keys.Public{2}, keys.Public{9}
	prefixes := func(texts ...string) (p []netip.Prefix) {
		for _, text := range texts {
			p = append(p, netip.MustParsePrefix(text))
		}
		return p
	}
	tests := []struct {
		name  string
		peers []Peer
		err   string // "" is none
	}{
		{"none", nil, ""},
		{"apart", []Peer{{PublicKey: a, AllowedIPs: prefixes("10.0.0.1/32")}, {PublicKey: b, AllowedIPs: prefixes("10.0.0.2/32", "fd00::2/128")}}, ""},
		{"nested within one", []Peer{{PublicKey: a, AllowedIPs: prefixes("10.0.0.0/8", "10.0.0.1/32", "10.0.0.1/32")}}, ""},
		{"the same", []Peer{{PublicKey: a, AllowedIPs: prefixes("10.0.0.1/32")}, {PublicKey: b, AllowedIPs: prefixes("10.0.0.1/32")}}, "overlap"},
		{"the same, not masked", []Peer{{PublicKey: a, AllowedIPs: prefixes("10.0.0.1/24")}, {PublicKey: b, AllowedIPs: prefixes("10.0.0.2/24")}}, "overlap"},
		{"the same, mapped", []Peer{{PublicKey: a, AllowedIPs: prefixes("10.0.0.1/32")}, {PublicKey: b, AllowedIPs: prefixes("::ffff:10.0.0.1/128")}}, "overlap"},
		{"nested behind another", []Peer{{PublicKey: a, AllowedIPs: prefixes("10.0.0.0/8", "10.0.0.0/16")}, {PublicKey: b, AllowedIPs: prefixes("10.200.0.1/32")}}, "10.0.0.0/8"},
		{"everything", []Peer{{PublicKey: a, AllowedIPs: prefixes("0.0.0.0/0")}, {PublicKey: b, AllowedIPs: prefixes("10.0.0.1/32")}}, "overlap"},
		{"two families", []Peer{{PublicKey: a, AllowedIPs: prefixes("0.0.0.0/0")}, {PublicKey: b, AllowedIPs: prefixes("::/0")}}, ""},
		{"no key", []Peer{{}}, "no public key"},
		{"twice", []Peer{{PublicKey: a}, {PublicKey: a}}, "named twice"},
		{"self", []Peer{{PublicKey: self}}, "own"},
		{"no prefix", []Peer{{PublicKey: a, AllowedIPs: []netip.Prefix{{}}}}, "no prefix"},
		{"an address", []Peer{{PublicKey: a, Endpoint: "192.0.2.1:51820"}}, ""},
		{"a name", []Peer{{PublicKey: a, Endpoint: "edge.example.com:51820"}}, ""},
		{"no port", []Peer{{PublicKey: a, Endpoint: "edge.example.com"}}, `endpoint "edge.example.com" is not host:port`},
		{"port 0", []Peer{{PublicKey: a, Endpoint: "192.0.2.1:0"}}, "port from 1"},
		{"port name", []Peer{{PublicKey: a, Endpoint: "192.0.2.1:wg"}}, "port from 1"},
		{"no host", []Peer{{PublicKey: a, Endpoint: ":51820"}}, "is not host:port"},
		{"a line break", []Peer{{PublicKey: a, Endpoint: "192.0.2.1:1\nreplace_peers=true"}}, "is not host:port"},
		{"a line break in a zone", []Peer{{PublicKey: a, Endpoint: "[fe80::1%a\nreplace_peers=true]:1"}}, "has a zone"},
		{"half a second", []Peer{{PublicKey: a, Keepalive: time.Second / 2}}, "whole seconds"},
		{"a day", []Peer{{PublicKey: a, Keepalive: 24 * time.Hour}}, "whole seconds"},
		{"past", []Peer{{PublicKey: a, Keepalive: -time.Second}}, "whole seconds"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := check(tt.peers, self)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
			if strings.Contains(tt.err, "overlap") && !errors.Is(err, ErrOverlap) {
				t.Errorf("%v is not ErrOverlap", err)
			}
		})
	}
}

// Overlap is found if and only if comparing every pair finds it.
func TestOverlapProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		peers := drawPeers(t)
		overlaps := false
		for i, p := range peers {
			for _, q := range peers[:i] {
				for _, a := range p.allowed {
					for _, b := range q.allowed {
						overlaps = overlaps || a.Overlaps(b)
					}
				}
			}
		}
		if err := overlap(peers); (err != nil) != overlaps {
			t.Fatalf("%v: %v", peers, err)
		}
	})
}

// Whatever a device has, the changes lead to what is wanted, in steps in which no
// address is two peers', and what is right already is not touched.
func TestDiffProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func() []wantedPeer {
			peers := drawPeers(t)
			owner := make(map[netip.Prefix]bool)
			for i := range peers { // disjoint, as check leaves them
				peers[i].allowed = slices.DeleteFunc(peers[i].allowed, func(p netip.Prefix) bool {
					taken := p.Bits() != 32 || owner[p]
					owner[p] = true
					return taken
				})
			}
			return peers
		}
		m := model{}
		m.apply(t, diff(nil, draw()))
		wanted := draw()
		before := m.clone()
		changes := diff(m.peers(), wanted)
		m.apply(t, changes)

		if len(m) != len(wanted) {
			t.Fatalf("%d peers, want %d", len(m), len(wanted))
		}
		for _, w := range wanted {
			got := m[w.key]
			slices.SortFunc(got.AllowedIPs, comparePrefix)
			if !slices.Equal(got.AllowedIPs, w.allowed) || got.keepalive != w.keepalive {
				t.Fatalf("peer is %v, want %v", got, w)
			}
			old, there := before[w.key]
			if there && old.keepalive == w.keepalive && sameSet(old.AllowedIPs, w.allowed) &&
				slices.ContainsFunc(changes, func(c change) bool { return c.key == w.key }) {
				t.Fatalf("peer %v was right, and was touched", w)
			}
		}
		if again := diff(m.peers(), wanted); len(again) != 0 {
			t.Fatalf("after all changes there are %v", again)
		}
	})
}

// model is a device that minds two peers with one address.
type model map[keys.Public]*peerState

func (m model) apply(t *rapid.T, changes []change) {
	for _, c := range changes {
		p := m[c.key]
		if p == nil && c.existing {
			t.Fatalf("change of a peer that is gone: %v", c)
		}
		if p == nil {
			p = &peerState{PeerStats: PeerStats{PublicKey: c.key}}
			m[c.key] = p
		}
		if c.remove {
			delete(m, c.key)
			continue
		}
		p.AllowedIPs = without(p.AllowedIPs, c.lose)
		if len(c.lose) > 0 && !sameSet(p.AllowedIPs, c.left) {
			t.Fatalf("left are %v, not %v", p.AllowedIPs, c.left)
		}
		for _, gain := range c.gain {
			for key, other := range m {
				if slices.Contains(other.AllowedIPs, gain) {
					t.Fatalf("%s is gained while %v has it", gain, key)
				}
			}
			p.AllowedIPs = append(p.AllowedIPs, gain)
		}
		if c.keepalive != nil {
			p.keepalive = *c.keepalive
		}
	}
}

func (m model) peers() (peers []peerState) {
	for _, p := range m {
		peers = append(peers, *p)
	}
	return peers
}

func (m model) clone() model {
	c := make(model, len(m))
	for k, p := range m {
		copied := *p
		copied.AllowedIPs = slices.Clone(p.AllowedIPs)
		c[k] = &copied
	}
	return c
}

func sameSet(a, b []netip.Prefix) bool {
	return len(without(a, b)) == 0 && len(without(b, a)) == 0
}

// drawPeers draws peers of few keys with few addresses, so that they meet.
func drawPeers(t *rapid.T) []wantedPeer {
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(rapid.IntRange(0, 1).Draw(t, "third")), byte(rapid.IntRange(0, 7).Draw(t, "fourth"))})
		return canonical(netip.PrefixFrom(addr, rapid.SampledFrom([]int{8, 24, 30, 32, 32, 32}).Draw(t, "bits")))
	})
	var peers []wantedPeer
	for i := range rapid.IntRange(0, 5).Draw(t, "peers") {
		allowed := rapid.SliceOfN(prefix, 0, 4).Draw(t, fmt.Sprint("allowed", i))
		slices.SortFunc(allowed, comparePrefix)
		peers = append(peers, wantedPeer{
			key:       keys.Public{byte(i + 1)},
			allowed:   slices.Compact(allowed),
			keepalive: time.Duration(rapid.IntRange(0, 2).Draw(t, "keepalive")) * time.Second,
		})
	}
	return peers
}

package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// A device takes another key while a connection is in use, as often as one likes: the
// other end knows both, and gives the address to the one that came last.
func TestSetPrivateKeyKeepsConnections(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		to := edge.serve(7, echo)
		c := agent.mustDial(to)
		if err := ask(c, "hello"); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			old, next := agent.key, newKey(t)
			edge.set(agent.peer(""), Peer{PublicKey: next.Public()})
			before := edge.stats(agent)
			if err := agent.SetPrivateKey(next); err != nil {
				t.Fatal(err)
			}
			agent.key = next
			answered := make(chan error, 1)
			go func() { answered <- ask(c, "still here?") }()
			until(t, "a handshake by the next key", func() bool { return !edge.stats(agent).Handshake.IsZero() })
			if got := edge.stats(agent).Endpoint; got != before.Endpoint {
				t.Errorf("it came from %s, and before from %s", got, before.Endpoint)
			}
			edge.set(agent.peer(""), Peer{PublicKey: old.Public()})
			if err := <-answered; err != nil {
				t.Fatalf("what was under way: %v", err)
			}
			handshake := edge.stats(agent).Handshake
			edge.set(agent.peer(""))
			if err := ask(c, "and now?"); err != nil {
				t.Fatalf("without the old key: %v", err)
			}
			if got := edge.stats(agent).Handshake; !got.Equal(handshake) {
				t.Error("the session was lost with the old key")
			}
		}
	})
}

// Who keeps its peers alive is known by its new key without sending anything.
func TestSetPrivateKeyShakesHandsAtOnce(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent, next := w.openEdge(), w.openAgent(1), newKey(t)
		edge.set(agent.peer(""), Peer{PublicKey: next.Public()})
		at := edge.peer(netip.AddrPortFrom(w.under(1), edge.ListenPort()).String())
		at.Keepalive = 20 * time.Minute
		agent.set(at)
		until(t, "the first handshake", func() bool { return !edge.stats(agent).Handshake.IsZero() })
		if err := agent.SetPrivateKey(next); err != nil {
			t.Fatal(err)
		}
		agent.key = next
		until(t, "a handshake by the next key", func() bool { return !edge.stats(agent).Handshake.IsZero() })
		peers, err := agent.Device.(*device).wireguard.peers()
		if err != nil || len(peers) != 1 || peers[0].keepalive != at.Keepalive {
			t.Errorf("peers %+v, %v; want the same keepalive", peers, err)
		}
	})
}

// The key that was replaced opens nothing any more, and a key that cannot be the
// device's own changes nothing.
func TestSetPrivateKeyRefusesAndIsRefused(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		to := edge.serve(7, echo)
		c := agent.mustDial(to)
		for want, key := range map[string]keys.Private{"no private key": {}, "it is the key of peer": edge.key} {
			if err := agent.SetPrivateKey(key); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		if err := ask(c, "as before"); err != nil {
			t.Fatal(err)
		}
		old, next := agent.key, newKey(t)
		edge.set(Peer{PublicKey: next.Public(), AllowedIPs: agent.peer("").AllowedIPs})
		if err := shortly(c); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the old key still gets through: %v", err)
		}
		if err := agent.SetPrivateKey(next); err != nil {
			t.Fatal(err)
		}
		if err := agent.SetPeers(t.Context(), []Peer{{PublicKey: next.Public()}}); err == nil {
			t.Error("the device's new key was taken as a peer's")
		}
		agent.set(edge.peer(netip.AddrPortFrom(w.under(1), edge.ListenPort()).String()), Peer{PublicKey: old.Public()})
		if err := ask(agent.mustDial(to), "by the next key"); err != nil {
			t.Error(err)
		}
		if err := agent.Close(); err != nil {
			t.Fatal(err)
		}
		if err := agent.SetPrivateKey(old); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

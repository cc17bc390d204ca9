package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel/tunneltest"
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

// A device that goes on from another port keeps its connections, and its peer learns
// the port without being asked for anything.
func TestRebindKeepsConnections(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		edge.set(agent.peer(""))
		at := edge.peer(netip.AddrPortFrom(w.under(1), edge.ListenPort()).String())
		at.Keepalive = 20 * time.Minute
		agent.set(at)
		c := agent.mustDial(edge.serve(7, echo))
		if err := ask(c, "hello"); err != nil {
			t.Fatal(err)
		}
		handshake := edge.stats(agent).Handshake
		for range 5 {
			port, before := agent.ListenPort(), edge.stats(agent).Endpoint
			agent.in(agent.Rebind)
			if got := agent.ListenPort(); got == port || got == 0 {
				t.Errorf("the port is %d, and was %d", got, port)
			}
			until(t, "the peer learns the port", func() bool {
				at, err := netip.ParseAddrPort(edge.stats(agent).Endpoint)
				return err == nil && at.Port() == agent.ListenPort()
			})
			if got := edge.stats(agent).Endpoint; got == before {
				t.Errorf("it still comes from %s", got)
			}
			if err := ask(c, "still here?"); err != nil {
				t.Fatal(err)
			}
		}
		if got := edge.stats(agent).Handshake; !got.Equal(handshake) {
			t.Error("the session was lost with the port")
		}
		if err := agent.Close(); err != nil {
			t.Fatal(err)
		}
		if err := agent.Rebind(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A peer whose clock was an hour ahead is refused once it is right, until it is made
// new: that is why there is Renew.
func TestRenewForgetsAClockThatWasAhead(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		edge.set(agent.peer(""))
		at := netip.AddrPortFrom(w.under(1), edge.ListenPort())
		to := edge.serve(7, echo)
		agent.in(func() error {
			tunneltest.Initiate(t, agent.key, edge.key.Public(), at, time.Now().Add(time.Hour))
			return nil
		})
		until(t, "the handshake from the future", func() bool { return edge.stats(agent).Received > 0 })

		agent.set(edge.peer(at.String()))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if c, err := agent.dial(ctx, to); err == nil {
			c.Close()
			t.Fatal("the device takes a handshake that is earlier than the last")
		}
		before := edge.stats(agent)
		edge.in(func() error { return edge.Renew(agent.key.Public(), newKey(t).Public()) })
		after := edge.stats(agent)
		if after.Received < before.Received || after.Endpoint == "" || !slices.Equal(after.AllowedIPs, before.AllowedIPs) {
			t.Errorf("the peer was %+v and is %+v", before, after)
		}
		agent.set()
		agent.set(edge.peer(at.String()))
		if err := ask(agent.mustDial(to), "hello again"); err != nil {
			t.Fatal(err)
		}
	})
}

// What is under way when a peer is made new goes on, whichever side has something to
// say, and the count of what was said does too.
func TestRenewKeepsConnections(t *testing.T) {
	eachMake(t, func(t *testing.T, w *world) {
		edge, agent := w.openEdge(), w.openAgent(1)
		w.connect(edge, agent)
		to := agent.serve(7, echo)
		first := agent.mustDial(edge.serve(7, echo)) // the edge learns where the agent is
		if err := ask(first, "hello"); err != nil {
			t.Fatal(err)
		}
		c := edge.mustDial(to)
		if err := ask(c, "hello"); err != nil {
			t.Fatal(err)
		}
		before := edge.stats(agent)
		edge.in(func() error { return edge.Renew(agent.key.Public()) })
		if got := edge.stats(agent); got.Handshake.Before(before.Handshake) || got.Received < before.Received || got.Sent < before.Sent {
			t.Errorf("the stats were %+v and are %+v", before, got)
		}
		if err := ask(c, "still here?"); err != nil {
			t.Fatal(err)
		}
		edge.set()
		edge.set(agent.peer(""))
		if got := edge.stats(agent); got.Received > 0 || !got.Handshake.IsZero() {
			t.Errorf("a peer that was taken out and put back has %+v", got)
		}
		if err := edge.Close(); err != nil {
			t.Fatal(err)
		}
		if err := edge.Renew(agent.key.Public()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

package edge

import (
	"errors"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
)

// shake completes a handshake with a peer.
func (d *device) shake(key keys.Public) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shaken == nil {
		d.shaken = map[keys.Public]time.Time{}
	}
	d.shaken[key] = time.Now()
}

// holder is the key that has the address of a1, and the number of peers that have it.
func (d *device) holder() (holder keys.Public, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		for _, a := range p.AllowedIPs {
			if a.Addr() == agentAddress {
				holder, n = p.PublicKey, n+1
			}
		}
	}
	return holder, n
}

// held waits until a key has the address of a1, and is the only one.
func (w *world) held(what string, key keys.Public) {
	w.t.Helper()
	eventually(w.t, what, func() bool {
		holder, n := w.device.holder()
		return holder == key && n == 1
	})
}

// rotating is a config in which a1 has two keys.
func rotating(public, next keys.Public) api.Config {
	c := config()
	c.Peers[0].PublicKey, c.Peers[0].NextKey = public, next
	return c
}

// TestRotation is a key's replacement from the first commit to the last: both keys are
// peers, the address goes with the one that was used last, and the key that leaves the
// config leaves the device with it.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	w.device.shake(key(1))
	w.put(rotating(key(1), key(9)))
	w.held("the key that is used keeps the address", key(1))
	if !w.device.has(key(9)) {
		t.Fatal("the next key is no peer")
	}
	state, err := w.server.State()
	must(t, err)
	named := 0
	for _, p := range state.Peers {
		if p.Name == "a1" && (p.PublicKey == key(1) || p.PublicKey == key(9)) {
			named++
		}
	}
	if named != 2 {
		t.Errorf("the state names %d keys of a1, want 2: %+v", named, state.Peers)
	}

	w.device.shake(key(9))
	w.held("the next key is used", key(9))
	w.device.shake(key(1))
	w.held("the agent went back", key(1))
	w.device.shake(key(9))
	w.held("and on again", key(9))
	w.device.mu.Lock()
	w.device.history = nil
	w.device.mu.Unlock()
	w.put(rotating(key(9), keys.Public{}))
	w.held("the next key is the key", key(9))
	if w.device.has(key(1)) {
		t.Error("the old key is still a peer")
	}
	w.device.mu.Lock()
	defer w.device.mu.Unlock()
	for _, peers := range w.device.history {
		found := false
		for _, p := range peers {
			found = found || p.PublicKey == key(9) && len(p.AllowedIPs) == 1
		}
		if !found {
			t.Error("the key was out for a moment")
		}
	}
}

// TestRotationIsGivenUp: the next key leaves the config, and the address goes back.
func TestRotationIsGivenUp(t *testing.T) {
	w := newWorld(t)
	w.put(rotating(key(1), key(9)))
	w.device.shake(key(9))
	w.held("the next key is used", key(9))
	w.put(config())
	w.held("the key has its address back", key(1))
	if w.device.has(key(9)) {
		t.Error("a key that no config names is a peer")
	}
}

// TestRotationAcrossARestart: the device that is new knows no handshake, and the first
// one decides.
func TestRotationAcrossARestart(t *testing.T) {
	w := newWorld(t)
	w.put(rotating(key(1), key(9)))
	w.device.shake(key(9))
	w.held("the next key is used", key(9))
	w.restart()
	w.held("nobody has come yet", key(1))
	w.device.shake(key(9))
	w.held("the next key is used", key(9))
}

// TestRotationOfAPeerThatLeaves: its requests end on the key that it uses.
func TestRotationOfAPeerThatLeaves(t *testing.T) {
	w := newWorld(t)
	entered, release := w.serveWaiting("slow")
	c := rotating(key(1), key(9))
	c.Routes = append(c.Routes, to("h.example.com", "slow", plainHTTP))
	w.put(c)
	w.device.shake(key(9))
	w.held("the next key is used", key(9))
	got := make(chan int, 1)
	go func() {
		status, _ := get(t, w.browser(false), "http://h.example.com/wait")
		got <- status
	}()
	<-entered
	next := config()
	next.Peers = next.Peers[1:]
	w.put(next)
	if holder, n := w.device.holder(); holder != key(9) || n != 1 {
		t.Errorf("while a request runs %d peers have the address, one is %s", n, holder)
	}
	close(release)
	if status := <-got; status != 200 {
		t.Errorf("the request: %d", status)
	}
	eventually(t, "both keys go", func() bool { return !w.device.has(key(1)) && !w.device.has(key(9)) })
}

// TestRotationRefused: a next key that is somebody else's.
func TestRotationRefused(t *testing.T) {
	w := newWorld(t)
	w.put(config())
	_, digest, err := w.server.Config()
	must(t, err)
	if err := w.server.Apply(t.Context(), digest, rotating(key(1), key(100))); !errors.Is(err, api.ErrRejected) {
		t.Errorf("the control plane's key as a next key: %v", err)
	}
	w.held("all is as before", key(1))
}

// TestDeviceFallsSilent: an address does not go back because the device cannot be
// asked for a moment.
func TestDeviceFallsSilent(t *testing.T) {
	w := newWorld(t)
	w.put(rotating(key(1), key(9)))
	w.device.shake(key(9))
	w.held("the next key is used", key(9))
	w.device.mu.Lock()
	w.device.silent = errors.New("no answer")
	w.device.mu.Unlock()
	again := rotating(key(1), key(9))
	again.Peers = again.Peers[:1]
	w.put(again)
	w.held("still", key(9))
}

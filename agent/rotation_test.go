package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
)

// rotating is a fleet with two edges whose agent gets another key, without a packet.
type rotating struct {
	t            *testing.T
	fleet        *testFleet
	world        *world
	tokyo, osaka *fakeEdge
	control      keys.Private
	agent        *agent
	stop         func()
	log          *logtest.Buffer
	// public and next are the agent's keys in the fleet.
	public, next keys.Public
	serial       uint64
	// asked is the RotateBefore in the config; nil is none.
	asked *time.Time
}

func newRotating(t *testing.T) *rotating {
	f := newTestFleet(t)
	f.config.Edges = append(f.config.Edges, testEdge(t, "osaka", "10.77.0.11", "127.0.0.1:51821"))
	control, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	r := &rotating{t: t, fleet: f, world: newWorld(), control: control, public: f.bootstrap.PrivateKey.Public(), serial: 5, log: &logtest.Buffer{}}
	r.tokyo = r.world.add(f.config.Edges[0], "127.0.0.1:51820", r.config())
	r.osaka = r.world.add(f.config.Edges[1], "127.0.0.1:51821", r.config())
	r.take()
	r.start()
	return r
}

// config is what the fleet says now.
func (r *rotating) config() api.Signed {
	return r.fleet.sign(r.t, func(c *api.AgentConfig) {
		c.Serial, c.PublicKey, c.NextKey, c.RotateBefore, c.Control = r.serial, r.public, r.next, r.asked, r.control.Public()
	})
}

// take has the edges know the keys that the fleet does.
func (r *rotating) take() {
	known := []keys.Public{r.public}
	if !r.next.IsZero() {
		known = append(known, r.next)
	}
	r.tokyo.take(known...)
	r.osaka.take(known...)
}

// commit has both edges serve what the fleet says now.
func (r *rotating) commit() {
	r.serial++
	r.take()
	r.tokyo.relay(r.config())
	r.osaka.relay(r.config())
}

// ask asks for a key made after a moment.
func (r *rotating) ask(moment int64) {
	at := time.Unix(moment, 0).UTC()
	r.asked = &at
	r.commit()
}

func (r *rotating) start() {
	r.t.Helper()
	a, err := newAgent(r.fleet.bootstrap, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		r.t.Fatal(err)
	}
	a.open, a.connect, a.lookup = r.world.open, r.world.connect, r.world.lookup
	r.agent, r.stop = a, started(r.t, a)
	synctest.Wait()
	r.until(2*time.Second, "the agent is up", func() bool { return up(a, "tokyo") && up(a, "osaka") || r.tokyo.takes == nil })
}

func (r *rotating) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

func (r *rotating) until(d time.Duration, what string, ok func() bool) time.Duration {
	r.t.Helper()
	return until(r.t, d, what, ok)
}

// offered is the next key in an edge's newest heartbeat, as the control plane reads
// it; zero when there is none.
func (r *rotating) offered(e *fakeEdge) keys.Public {
	r.t.Helper()
	beats := e.heartbeats()
	if len(beats) == 0 || beats[len(beats)-1].Rotation == nil {
		return keys.Public{}
	}
	next, _, err := join.OpenRotation("rpi", r.public, r.control, beats[len(beats)-1].Rotation)
	if err != nil {
		r.t.Fatal(err)
	}
	return next
}

// device is the key of the device in use.
func (r *rotating) device() keys.Public {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	return r.world.devices[len(r.world.devices)-1].key.Public()
}

// makes waits for a next key to be offered, and says which.
func (r *rotating) makes() keys.Public {
	r.t.Helper()
	r.until(promised, "a next key is offered", func() bool {
		return !r.offered(r.tokyo).IsZero() && r.offered(r.tokyo) == r.offered(r.osaka)
	})
	return r.offered(r.tokyo)
}

// switched waits until the device has a key.
func (r *rotating) switched(d time.Duration, key keys.Public) time.Duration {
	r.t.Helper()
	return r.until(d, "the device has another key", func() bool { return r.device() == key })
}

// settled checks that a key is the only one, in use and on disk.
func (r *rotating) settled(key keys.Public) {
	r.t.Helper()
	r.until(30*time.Second, "only the new key is left", func() bool {
		var ring keyring
		err := privatefile.ReadJSON(filepath.Join(r.fleet.bootstrap.Data, keyringName), &ring)
		return err == nil && ring.Next == nil && ring.Current.Private.Public() == key && r.device() == key && up(r.agent, "tokyo") && up(r.agent, "osaka")
	})
	if got, err := CurrentKey(r.fleet.bootstrap); err != nil || got.Public() != key {
		r.t.Errorf("the current key is %v, %v", got.Public(), err)
	}
	if got := r.agent.report().Key; got != key {
		r.t.Errorf("the report says %v", got)
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	if !r.offered(r.tokyo).IsZero() || r.device() != key {
		r.t.Error("it goes on, and nobody asked")
	}
}

// TestRotation is a key's replacement, step by step, while no edge is ever without an
// answer; and another one after it.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		for _, moment := range []int64{1000, 2000} {
			r.ask(moment)
			next := r.makes()
			time.Sleep(10 * time.Minute)
			if got := r.offered(r.osaka); got != next {
				t.Fatalf("while it waits it offers %v, and before %v", got, next)
			}

			// The commit reaches one edge, and then the other.
			r.next = next
			r.serial++
			r.take()
			r.tokyo.relay(r.config())
			time.Sleep(time.Minute)
			if r.device() != r.public {
				t.Fatal("it switched before every edge was told")
			}
			r.osaka.relay(r.config())
			r.switched(3*time.Second, next)
			beats := r.osaka.heartbeats()
			if i := slices.IndexFunc(beats, func(b beat) bool { return b.PublicKey == next }); i < 0 {
				t.Error("the edges were not told before")
			}
			r.until(3*time.Second, "heartbeats name it", func() bool {
				beats := r.osaka.heartbeats()
				last := beats[len(beats)-1]
				return last.PublicKey == next && last.Rotation == nil
			})

			r.public, r.next = next, keys.Public{}
			r.commit()
			r.settled(next)
		}
		if n := r.tokyo.unanswered() + r.osaka.unanswered(); n > 0 {
			t.Errorf("%d calls met silence", n)
		}
		if log := r.log.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Error(log)
		}
	})
}

// TestRotationGoesOn: whichever step the agent is killed at, it goes on with it.
func TestRotationGoesOn(t *testing.T) {
	for _, killed := range []string{"asked", "made", "told", "switched", "off while promoted", "promoted", "settled"} {
		t.Run(killed, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotating(t)
				at := func(step string) {
					if step == killed {
						r.restart()
					}
				}
				r.ask(1000)
				at("asked")
				next := r.makes()
				at("made")
				if again := r.makes(); again != next && killed != "asked" {
					t.Errorf("it offers %v, and before %v", again, next)
				} else {
					next = again
				}
				r.next = next
				r.commit()
				at("told")
				r.switched(3*time.Second, next)
				at("switched")
				if r.device() != next {
					t.Error("it is back at the old key")
				}
				if killed == "off while promoted" {
					r.stop()
				}
				r.public, r.next = next, keys.Public{}
				r.commit()
				if killed == "off while promoted" {
					r.start()
				}
				at("promoted")
				r.settled(next)
				at("settled")
				r.settled(next)
			})
		})
	}
}

// TestTheOtherKey: an agent that was off while the fleet went on, or back, finds out
// which of its keys is taken.
func TestTheOtherKey(t *testing.T) {
	for name, went := range map[string]struct{ switched, on bool }{
		"on": {false, true}, "back": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotating(t)
				old := r.public
				r.ask(1000)
				next := r.makes()
				if went.switched {
					r.next = next
					r.commit()
					r.switched(3*time.Second, next)
				}
				r.stop()
				r.next = keys.Public{}
				if went.on {
					r.public = next
				}
				r.commit()
				a, _ := r.world.run(t, r.fleet.bootstrap)
				r.agent = a
				took := r.until(20*time.Second, "reached", func() bool { return up(a, "tokyo") && up(a, "osaka") })
				t.Logf("reached after %v", took)
				if r.device() != r.public {
					t.Error("by a key that no edge takes")
				}
				if went.on {
					r.settled(next)
					return
				}
				time.Sleep(10 * time.Minute)
				if r.device() != old {
					t.Error("it does not stay")
				}
			})
		})
	}
}

// TestNextKeyThatNoEdgeTakes: the agent goes back, tries again now and then, says so
// once, and has it when the edges do.
func TestNextKeyThatNoEdgeTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		r.ask(1000)
		r.next = r.makes()
		r.serial++
		r.tokyo.relay(r.config())
		r.osaka.relay(r.config())
		r.switched(3*time.Second, r.next)
		if took := r.switched(15*time.Second, r.public); took < 5*time.Second {
			t.Errorf("it gave up after %v", took)
		}
		r.until(10*time.Second, "reached by the old key", func() bool { return up(r.agent, "tokyo") && up(r.agent, "osaka") })
		time.Sleep(time.Hour)
		synctest.Wait()
		r.world.mu.Lock()
		tries := len(r.world.devices[0].taken) / 2
		r.world.mu.Unlock()
		if tries < 5 || tries > 8 {
			t.Errorf("%d tries in an hour", tries)
		}
		if n := strings.Count(r.log.String(), "next key put off"); n != 1 {
			t.Errorf("said %d times", n)
		}
		r.take()
		next := r.next
		time.Sleep(32 * time.Minute)
		r.switched(time.Minute, next)
		r.public, r.next = next, keys.Public{}
		r.commit()
		r.settled(next)
	})
}

// TestAnEdgeThatIsNotTold does not hold a rotation up for ever, and one that is away
// not at all.
func TestAnEdgeThatIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		r.ask(1000)
		r.next = r.makes()
		r.serial++
		r.tokyo.take(r.public, r.next)
		r.tokyo.relay(r.config())
		if took := r.switched(15*time.Minute, r.next); took < 5*time.Minute {
			t.Errorf("it cut off an edge after %v", took)
		}
		r.until(promised, "told", func() bool {
			r.osaka.take(r.public, r.next)
			r.osaka.relay(r.config())
			return up(r.agent, "osaka")
		})
		next := r.next
		r.public, r.next = next, keys.Public{}
		r.commit()
		r.settled(next)

		r.osaka.die()
		r.until(time.Minute, "one edge is away", func() bool { return !up(r.agent, "osaka") })
		r.ask(2000)
		r.until(3*time.Second, "a next key is offered", func() bool { return !r.offered(r.tokyo).IsZero() })
		r.next = r.offered(r.tokyo)
		r.commit()
		r.switched(3*time.Second, r.next)
	})
}

// TestRotationIsCalledOff: what the fleet does not name any more is not used.
func TestRotationIsCalledOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		old := r.public
		r.ask(1000)
		first := r.makes()
		r.next = first
		r.commit()
		r.switched(3*time.Second, first)
		r.next, r.asked = keys.Public{}, nil
		r.commit()
		r.switched(promised, old)
		r.until(promised, "nothing is offered", func() bool { return r.offered(r.tokyo).IsZero() && up(r.agent, "tokyo") && up(r.agent, "osaka") })
		// What was asked for before is not made again, and what is asked for later is
		// another key.
		r.ask(1000)
		if again := r.makes(); again != first {
			t.Error("one question, two keys")
		}
		r.ask(3000)
		r.until(promised, "another key", func() bool { k := r.offered(r.tokyo); return !k.IsZero() && k != first })
	})
}

// TestOutageDuringRotation: the promise about how soon an edge is back in use holds
// while a key waits to be taken.
func TestOutageDuringRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		r.ask(1000)
		next := r.makes()
		for away := 15 * time.Second; away < 2*time.Minute; away += 7 * time.Second {
			r.tokyo.die()
			r.osaka.die()
			time.Sleep(away)
			r.tokyo.live("127.0.0.1:51820")
			r.osaka.live("127.0.0.1:51821")
			took := r.until(promised+r.agent.rotor.pace.trial, "back", func() bool { return up(r.agent, "tokyo") && up(r.agent, "osaka") })
			t.Logf("away for %v, back after %v", away, took)
		}
		if got := r.makes(); got != next {
			t.Errorf("offers %v, and before %v", got, next)
		}
	})
}

// TestNobodyAsks: a control plane that is older says nothing of keys, and one that
// has another key for this agent is told of it.
func TestNobodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		r.serial++
		r.tokyo.relay(r.fleet.sign(t, serial(r.serial)))
		r.osaka.relay(r.fleet.sign(t, serial(r.serial)))
		time.Sleep(10 * time.Minute)
		if _, err := os.Stat(filepath.Join(r.fleet.bootstrap.Data, keyringName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there is a key file: %v", err)
		}
		beats := r.tokyo.heartbeats()
		if last := beats[len(beats)-1]; last.PublicKey != r.public || last.Rotation != nil || len(last.Refused) > 0 {
			t.Errorf("heartbeat %+v", last)
		}
		other := r.public
		r.public, r.next = keys.Public{1}, keys.Public{2}
		r.ask(1000)
		r.tokyo.take(other)
		r.until(2*time.Minute, "it says so", func() bool {
			beats := r.tokyo.heartbeats()
			refused := strings.Join(beats[len(beats)-1].Refused, "\n")
			return strings.Contains(refused, "the fleet has public key "+r.public.String()) && strings.Contains(refused, "the fleet has next key "+r.next.String())
		})
		if beats := r.tokyo.heartbeats(); beats[len(beats)-1].Rotation != nil {
			t.Error("it offers a key for a registration that is not its own")
		}
	})
}

// TestKeysNotSaved: a key that is not on disk is told to nobody.
func TestKeysNotSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating(t)
		path := filepath.Join(r.fleet.bootstrap.Data, keyringName)
		block := func() {
			if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		free := func() {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		block()
		r.ask(1000)
		r.until(time.Minute, "it says so", func() bool {
			beats := r.tokyo.heartbeats()
			return strings.Contains(strings.Join(beats[len(beats)-1].Refused, "\n"), "save keys")
		})
		if !r.offered(r.tokyo).IsZero() {
			t.Error("a key that is not on disk was offered")
		}
		free()
		next := r.makes()
		r.next = next
		r.commit()
		r.switched(3*time.Second, next)
		free()
		block()
		r.public, r.next = next, keys.Public{}
		r.commit()
		time.Sleep(time.Minute)
		free()
		r.settled(next)
		if n := strings.Count(r.log.String(), "keys not saved"); n != 2 {
			t.Errorf("said %d times, of two", n)
		}
	})
}

// TestKeyring is what is on disk.
func TestKeyring(t *testing.T) {
	f := newTestFleet(t)
	b := f.bootstrap
	if err := (store{dir: b.Data}).prepare(); err != nil {
		t.Fatal(err)
	}
	if k, err := CurrentKey(b); err != nil || k != b.PrivateKey {
		t.Fatalf("without a file: %v, %v", k, err)
	}
	current, next := newTestFleet(t).bootstrap.PrivateKey, newTestFleet(t).bootstrap.PrivateKey
	ring := keyring{Bootstrap: b.PrivateKey.Public(), Current: heldKey{Private: current}, Next: &heldKey{next, time.Unix(5, 0).UTC()}}
	for _, switched := range []bool{false, true} {
		ring.Switched = switched
		if err := ring.save(b.Data); err != nil {
			t.Fatal(err)
		}
		got, err := loadKeyring(b)
		if err != nil || got.Current != ring.Current || *got.Next != *ring.Next || got.Switched != switched {
			t.Fatalf("%+v became %+v, %v", ring, got, err)
		}
		want := current
		if switched {
			want = next
		}
		if k, err := CurrentKey(b); err != nil || k != want {
			t.Errorf("the current key is %v, %v; want %v", k, err, want)
		}
	}
	path := filepath.Join(b.Data, keyringName)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// A new registration has a new key, and the old file nothing to do with it.
	again := b
	again.PrivateKey = newTestFleet(t).bootstrap.PrivateKey
	if k, err := CurrentKey(again); err != nil || k != again.PrivateKey {
		t.Errorf("another bootstrap: %v, %v", k, err)
	}

	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"cut off": good[:len(good)/2],
		"empty":   {},
		"no key":  []byte(`{"bootstrap":"` + b.PrivateKey.Public().String() + `","current":{}}`),
		"no next": bytes.Replace(good, []byte(next.Reveal()), []byte(keys.Private{}.Reveal()), 1),
	} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := newAgent(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.run(t.Context()); err == nil || !strings.Contains(err.Error(), "remove the file and register this host again") || strings.Contains(err.Error(), current.Reveal()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := CurrentKey(b); !errors.Is(err, privatefile.ErrExposed) {
		t.Errorf("a file that others can read: %v", err)
	}
}

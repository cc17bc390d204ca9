package agent

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
)

// rotationPace is how patient a rotation is. Tests shorten it.
type rotationPace struct {
	// stale is how long an edge that is up may keep the switch waiting: by a key
	// that it was not told of the agent cannot be reached through it.
	stale time.Duration
	// announce bounds how long edges are told before the switch.
	announce time.Duration
	// proof is how soon an edge has to answer by a key.
	proof time.Duration
	// again is the rest after a switch that no edge answered; it doubles each time,
	// up to againMax.
	again, againMax time.Duration
	// trial is how long the other key is tried while no edge answers by the one
	// that should work; between trials is proof, doubled each time up to quietMax.
	trial, quietMax time.Duration
}

var defaultRotationPace = rotationPace{
	stale:    10 * time.Minute,
	announce: time.Second,
	proof:    10 * time.Second,
	again:    time.Minute,
	againMax: time.Hour,
	trial:    5 * time.Second,
	quietMax: time.Minute,
}

// rotor replaces the agent's key when the fleet asks for it, without a request that
// fails:
//
//  1. The signed config asks for a key made later (RotateBefore). The agent makes one,
//     saves it, and has its heartbeats carry it to the control plane, sealed by both
//     keys.
//  2. The signed config names it as NextKey: the edges that relay that take either
//     key. When all that are up have relayed it, the device takes the next key, and
//     the edges move the tunnel's address to it.
//  3. The signed config names it as PublicKey: the old key is forgotten.
//
// Every step is on disk before it shows, so an agent that was killed goes on where it
// was. Which key the fleet takes may have changed meanwhile: while no edge answers by
// the one, the other is tried.
type rotor struct {
	agent *agent
	pace  rotationPace
	// awake has the next turn made now.
	awake chan struct{}

	// mu guards what others read; only turn changes it.
	mu   sync.Mutex
	ring keyring
	// trial says that the device has the key that ring does not say is in use.
	trial bool
	// announced is the key that the device is about to take, or zero.
	announced keys.Public
	// sealed is the agent's word for the next key, and sealedFor whom for.
	sealed    []byte
	sealedFor keys.Public
	// unsaved is why ring is not on disk, or nil.
	unsaved error

	// What is below is turn's alone.

	// set is the key that the device has, changed since when, and shaken were the
	// handshakes until then. unset is why it has not taken another, or nil.
	set     keys.Private
	changed time.Time
	shaken  map[keys.Public]time.Time
	unset   error
	// fresh says that no edge has answered since the switch to the next key.
	fresh bool
	// known is when the orders first named both keys; zero while they do not.
	known time.Time
	// rest follows the next switch that no edge answers, and due is when the last
	// one is over.
	rest time.Duration
	due  time.Time
	// quiet is how long no edge has to answer until the other key is tried.
	quiet time.Duration
}

func newRotor(a *agent) *rotor {
	return &rotor{agent: a, pace: defaultRotationPace, awake: make(chan struct{}, 1)}
}

// load reads the keys on disk.
func (r *rotor) load() error {
	if err := atomicfile.Sweep(filepath.Join(r.agent.bootstrap.Data, keyringName)); err != nil {
		r.agent.log.Warn("data folder not swept", "err", err)
	}
	ring, err := loadKeyring(r.agent.bootstrap)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring = ring
	return nil
}

// key is the device's.
func (r *rotor) key() keys.Private {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keyLocked()
}

func (r *rotor) keyLocked() keys.Private {
	ring := r.ring
	ring.Switched = ring.Switched != r.trial
	return ring.inUse()
}

// tell adds to a heartbeat what the edges and the control plane are to know of keys.
func (r *rotor) tell(c api.AgentConfig, h *api.Heartbeat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.PublicKey = r.announced
	if h.PublicKey.IsZero() {
		h.PublicKey = r.keyLocked().Public()
	}
	if r.asks(c) {
		h.Rotation = r.sealed
	}
}

// asks reports whether the control plane is still to be told of the next key.
func (r *rotor) asks(c api.AgentConfig) bool {
	return r.ring.Next != nil && wanted(c, r.ring.Current) &&
		c.PublicKey == r.ring.Current.Private.Public() && c.NextKey != r.ring.Next.Private.Public()
}

// wanted reports whether the fleet asks for a key that was made later than k.
func wanted(c api.AgentConfig, k heldKey) bool {
	return c.RotateBefore != nil && c.RotateBefore.After(k.For) && !c.Control.IsZero()
}

// strange says what of the agent's keys the fleet has otherwise, for people.
func (r *rotor) strange(c api.AgentConfig) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := map[keys.Public]bool{{}: true, r.ring.Current.Private.Public(): true}
	if r.ring.Next != nil {
		held[r.ring.Next.Private.Public()] = true
	}
	if !held[c.PublicKey] {
		list = append(list, "the fleet has public key "+c.PublicKey.String()+" for this agent, which is none of this host's")
	}
	if !held[c.NextKey] {
		list = append(list, "the fleet has next key "+c.NextKey.String()+" for this agent, which is none of this host's")
	}
	if r.unsaved != nil {
		list = append(list, shorten(r.unsaved.Error()))
	}
	return list
}

// wake has the keys looked at now: the orders have changed.
func (r *rotor) wake() {
	select {
	case r.awake <- struct{}{}:
	default:
	}
}

// run looks after the key of a session's device until ctx ends.
func (r *rotor) run(ctx context.Context, s *session) {
	r.set, r.changed, r.shaken, r.quiet = r.key(), time.Now(), nil, r.pace.proof
	tick := time.NewTicker(r.agent.pace.tick)
	defer tick.Stop()
	for ctx.Err() == nil {
		r.turn(ctx, s)
		select {
		case <-tick.C:
		case <-r.awake:
		case <-ctx.Done():
		}
	}
}

// turn makes the next step, if there is one.
func (r *rotor) turn(ctx context.Context, s *session) {
	o := r.agent.orders.Load()
	if r.unsaved != nil {
		r.keep(r.ring)
	}
	r.promote(o.config)
	r.make(o.config)
	r.seal(o.config)
	if r.ring.Next != nil {
		r.follow(ctx, s, o)
		r.search(s)
	}
	r.use(s) // again, if the device did not take it
}

// promote forgets the key that was replaced.
func (r *rotor) promote(c api.AgentConfig) {
	if r.ring.Next == nil || c.PublicKey != r.ring.Next.Private.Public() {
		return
	}
	r.keep(keyring{Bootstrap: r.ring.Bootstrap, Current: *r.ring.Next})
	r.try(false)
	r.fresh, r.known, r.rest, r.due = false, time.Time{}, 0, time.Time{}
	r.agent.log.Info("key replaced")
	r.agent.news()
}

// make makes a next key when the fleet asks for one. A key that is not on disk is told
// to nobody.
func (r *rotor) make(c api.AgentConfig) {
	k := r.ring
	public := k.Current.Private.Public()
	known := c.PublicKey == public || c.NextKey == public
	if !known || !wanted(c, k.Current) || k.Switched || r.trial {
		return
	}
	if k.Next != nil && (c.NextKey == k.Next.Private.Public() || !wanted(c, *k.Next)) {
		return
	}
	next, err := keys.NewPrivate()
	if err == nil {
		k.Next = &heldKey{Private: next, For: *c.RotateBefore}
		err = k.save(r.agent.bootstrap.Data)
	}
	if err != nil {
		r.note(err)
		return
	}
	r.mu.Lock()
	r.ring, r.sealed = k, nil
	r.mu.Unlock()
	r.note(nil)
	r.agent.log.Info("next key made")
}

// seal makes the word that heartbeats carry, once for all of them.
func (r *rotor) seal(c api.AgentConfig) {
	if !r.asks(c) || r.sealed != nil && r.sealedFor == c.Control {
		return
	}
	sealed, err := join.SealRotation(r.agent.bootstrap.Name, r.ring.Next.For, r.ring.Current.Private, r.ring.Next.Private, c.Control)
	if err != nil {
		r.agent.log.Error("next key not sealed", "err", err)
		return
	}
	r.mu.Lock()
	r.sealed, r.sealedFor = sealed, c.Control
	r.mu.Unlock()
	r.agent.news()
}

// follow has the device take the key that the orders allow.
func (r *rotor) follow(ctx context.Context, s *session, o *orders) {
	if r.trial {
		return
	}
	current, next := r.ring.Current.Private.Public(), r.ring.Next.Private.Public()
	now, both := time.Now(), o.config.PublicKey == current && o.config.NextKey == next
	if !both {
		r.known = time.Time{}
		if r.ring.Switched && o.config.PublicKey == current {
			r.agent.log.Warn("next key given up", "reason", "the fleet does not name it any more")
			r.choose(s, false)
		}
		return
	}
	if r.known.IsZero() {
		r.known = now
	}
	switch {
	case !r.ring.Switched:
		if now.Before(r.due) || !s.relayed(o, now.Sub(r.known) > r.pace.stale) {
			return
		}
		r.announce(ctx, s, next)
		r.choose(s, true)
		r.fresh = true
		r.agent.log.Info("next key taken")
	case r.fresh && r.heard(s):
		r.fresh, r.rest = false, 0
	case r.fresh && now.Sub(r.changed) > r.pace.proof:
		if r.rest == 0 {
			r.agent.log.Warn("next key put off", "reason", "no edge answered by it")
		}
		r.rest = min(max(2*r.rest, r.pace.again), r.pace.againMax)
		r.due, r.fresh = now.Add(r.rest), false
		r.choose(s, false)
	}
}

// announce tells the edges which key comes next, so that they look out for it.
func (r *rotor) announce(ctx context.Context, s *session, next keys.Public) {
	r.tellOf(next)
	defer r.tellOf(keys.Public{})
	ctx, cancel := context.WithTimeout(ctx, r.pace.announce)
	defer cancel()
	var told sync.WaitGroup
	s.each(func(l *link) {
		if !l.isUp() {
			return
		}
		told.Go(func() {
			if err := l.heartbeat(ctx); err != nil {
				l.log.Debug("heartbeat not answered", "err", err)
			}
		})
	})
	told.Wait()
}

func (r *rotor) tellOf(next keys.Public) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.announced = next
}

// search tries the other key for a while when no edge answers by the one that should
// work: what the fleet takes may have changed while nobody could say so.
func (r *rotor) search(s *session) {
	heard := r.heard(s)
	answered, _ := s.lastAnswer()
	last := r.changed
	if answered.After(last) {
		last = answered
	}
	switch {
	case heard && r.trial:
		k := r.ring
		k.Switched = !k.Switched
		r.try(false)
		r.keep(k)
		r.quiet = r.pace.proof
		r.agent.log.Info("other key answered")
	case heard && time.Since(last) < r.pace.proof:
		r.quiet = r.pace.proof
	case r.trial && time.Since(r.changed) > r.pace.trial:
		r.try(false)
		r.quiet = min(2*r.quiet, r.pace.quietMax)
		r.use(s)
	case !r.trial && time.Since(last) > r.quiet:
		r.try(true)
		r.use(s)
	}
}

// heard reports whether an edge has answered by the device's key. An answer that was
// under way when the device took it proves nothing, so there has to be a new handshake.
func (r *rotor) heard(s *session) bool {
	if answered, ever := s.lastAnswer(); !ever || !answered.After(r.changed) {
		return false
	}
	for key, at := range s.handshakes() {
		if !at.IsZero() && !at.Equal(r.shaken[key]) {
			return true
		}
	}
	return false
}

// choose makes one of the two keys the one in use.
func (r *rotor) choose(s *session, next bool) {
	k := r.ring
	k.Switched = next
	r.keep(k)
	r.use(s)
}

// try begins or ends the trial of the other key.
func (r *rotor) try(trial bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trial = trial
}

// use has the device take the key it should have, if it has another.
func (r *rotor) use(s *session) {
	key := r.key()
	if key == r.set {
		return
	}
	shaken := s.handshakes()
	err := s.device.SetPrivateKey(key)
	if err != nil && r.unset == nil {
		r.agent.log.Error("key not set", "err", err)
	}
	if r.unset = err; err != nil {
		return
	}
	r.set, r.shaken, r.changed = key, shaken, time.Now()
	s.each((*link).retry)
	r.agent.news()
}

// keep makes k the agent's keys, on disk too. When the disk does not take them they
// count all the same: the next turn saves them.
func (r *rotor) keep(k keyring) {
	err := k.save(r.agent.bootstrap.Data)
	r.mu.Lock()
	r.ring = k
	r.mu.Unlock()
	r.note(err)
}

// note logs that the keys could not be saved, or can be again.
func (r *rotor) note(err error) {
	r.mu.Lock()
	was := r.unsaved
	r.unsaved = err
	r.mu.Unlock()
	switch {
	case err != nil && was == nil:
		r.agent.log.Error("keys not saved", "err", err)
	case err == nil && was != nil:
		r.agent.log.Info("keys saved")
	}
}

package registrar

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

const (
	// together is how many registrations that wait at once are still proposed one by
	// one; more share a pull request, of at most batch.
	together, batch = 5, 50
	// lookEvery is the least time between two questions about one pull request.
	lookEvery = time.Minute
	// restMin and restMax bound the time that a forge in trouble is left alone.
	restMin, restMax = 2 * time.Second, 5 * time.Minute
	// mergedLimit is how long the repo may take to show what was merged.
	mergedLimit = 10 * time.Minute
	// idle is how often there is a look when nothing happens.
	idle = 30 * time.Second
)

// Run proposes and merges until ctx ends. It is called once.
func (r *Registrar) Run(ctx context.Context) {
	r.setUp()
	for {
		wait := r.work(ctx)
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
		case <-time.After(wait):
		}
	}
}

// work does what can be done now, and says when there is reason to look again.
func (r *Registrar) work(ctx context.Context) time.Duration {
	v := r.seen()
	if v == nil {
		return idle
	}
	if err := r.settle(v); err != nil {
		r.Log.Error("ledger not written", "err", err)
		return restMin
	}
	if r.Forge == nil {
		return idle
	}
	if wait := r.rest.Sub(r.Now()); wait > 0 {
		return wait
	}
	var (
		err   error
		limit forge.LimitError
	)
	// One pull request that the forge does not take must not hold up the others.
	for _, step := range []func(context.Context, *View) error{r.registrations, r.rotate, r.cleanUp} {
		err = errors.Join(err, step(ctx, v))
		if errors.Is(err, errBudget) || errors.As(err, &limit) || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return idle
	}
	switch {
	case err == nil:
		if r.failures > 0 {
			r.Log.Info("forge reached again", "addr", r.Forge.String())
		}
		r.failures = 0
		return idle
	case errors.Is(err, errBudget):
		return time.Minute / perMinute
	case errors.As(err, &limit):
		r.rest = limit.Until
	}
	if r.failures == 0 {
		r.Log.Warn("change not proposed", "addr", r.Forge.String(), "err", err)
	}
	wait := min(restMin<<min(r.failures, 16), restMax)
	r.failures++
	if until := r.Now().Add(wait); r.rest.Before(until) {
		r.rest = until
	}
	r.explain(err)
	return r.rest.Sub(r.Now())
}

// pending reports whether a registration is on its way to the repo.
func pending(g ledger.Registration) bool {
	return g.State == join.Accepted || g.State == join.Proposed || g.State == join.Merged
}

// settle notes what the fleet says of registrations by itself: which are live, and
// which were and are gone.
func (r *Registrar) settle(v *View) error {
	told := false
	var arrived []string
	err := r.Ledger.Update(r.Now(), func(g *ledger.Registration) bool {
		_, live := v.byKey[g.Key]
		_, exists := v.Fleet.Origins[g.Name]
		switch {
		case live && g.State != join.Live:
			g.State, g.Reason = join.Live, ""
			arrived = append(arrived, g.Name)
			r.Log.Info("origin registered", "agent", g.Name)
		case !live && g.State == join.Live && exists:
			g.State, g.Reason = join.Refused, fmt.Sprintf("origin %q has another key by now", g.Name)
		case !live && g.State == join.Live:
			g.State, g.Reason = join.Refused, fmt.Sprintf("origin %q was removed from the fleet", g.Name)
			r.Log.Info("origin removed", "agent", g.Name)
		case !live && g.State == join.Merged && v.Trouble == "" && r.Now().Sub(g.Changed) > mergedLimit:
			g.State, g.Reason = join.Refused, "the pull request was merged, and the fleet has no origin with this host's key: somebody changed it, or took it back"
			r.Log.Warn("registration refused", "agent", g.Name, "reason", g.Reason)
		default:
			return false
		}
		told = true
		return true
	})
	if told {
		r.announce()
	}
	for _, name := range arrived {
		err = errors.Join(err, r.Ledger.Rotated(name, r.Now())) // that was about another key
	}
	return err
}

// explain tells the hosts that wait what holds them up.
func (r *Registrar) explain(trouble error) {
	reason := "it could not be proposed yet, and the control plane goes on trying: " + trouble.Error()
	r.update(func(g *ledger.Registration) bool {
		if g.State != join.Accepted || g.Reason == reason {
			return false
		}
		g.Reason = reason
		return true
	})
}

// update changes registrations and tells those who wait.
func (r *Registrar) update(change func(*ledger.Registration) bool) {
	if err := r.Ledger.Update(r.Now(), change); err != nil {
		r.Log.Error("ledger not written", "err", err)
	}
	r.announce()
}

// registrations proposes those that were accepted, keeps those that are open true,
// and merges those that may be.
func (r *Registrar) registrations(ctx context.Context, v *View) error {
	if err := r.assign(v); err != nil {
		return err
	}
	all, err := r.Ledger.Registrations()
	if err != nil {
		return err
	}
	open := map[string][]ledger.Registration{}
	var branches []string
	for _, g := range all {
		if !pending(g) || g.Branch == "" {
			continue
		}
		if open[g.Branch] == nil {
			branches = append(branches, g.Branch)
		}
		open[g.Branch] = append(open[g.Branch], g)
	}
	var failed []error
	for _, branch := range branches {
		if err := r.group(ctx, v, branch, open[branch], len(branches)); err != nil {
			failed = append(failed, err)
			var limit forge.LimitError
			if errors.Is(err, errBudget) || errors.As(err, &limit) || ctx.Err() != nil {
				break
			}
		}
	}
	return errors.Join(failed...)
}

// assign gives every registration that waits its address, its flags and its branch,
// before anything is proposed. What was free when it was assigned and is no longer,
// because somebody merged something else meanwhile, is assigned anew.
func (r *Registrar) assign(v *View) error {
	all, err := r.Ledger.Registrations()
	if err != nil {
		return err
	}
	// Those that have an address keep it before others look for one.
	used := taken(v.Fleet, nil)
	keeps := map[keys.Public]bool{}
	for _, g := range all {
		if pending(g) && g.Address.IsValid() && !used[g.Address] && v.Fleet.Network.Contains(g.Address) {
			used[g.Address], keeps[g.Key] = true, true
		}
	}
	changes := map[keys.Public]ledger.Registration{}
	var fresh []ledger.Registration
	for _, g := range all {
		if !pending(g) || g.State == join.Merged {
			continue
		}
		was := g
		judged := judge(v.Fleet, g)
		if g.Flags = judged.flags; judged.refused != "" {
			g.State, g.Reason = join.Refused, judged.refused
		}
		o, exists := v.Fleet.Origins[g.Name]
		switch {
		case exists:
			g.Address = o.TunnelAddress
		case !keeps[g.Key]:
			if g.Address, err = free(v.Fleet.Network, used); err != nil {
				return err
			}
		}
		used[g.Address] = true
		if g.Branch == "" && g.State != join.Refused {
			fresh = append(fresh, g)
		}
		if !slices.Equal(was.Flags, g.Flags) || was.Address != g.Address || was.State != g.State {
			changes[g.Key] = g
		}
	}
	for _, group := range r.groups(v, fresh) {
		branch := branchOf(group)
		for _, g := range group {
			g.Branch = branch
			changes[g.Key] = g
		}
	}
	if len(changes) == 0 {
		return nil
	}
	defer r.announce()
	return r.Ledger.Update(r.Now(), func(g *ledger.Registration) bool {
		next, ok := changes[g.Key]
		if ok {
			g.Address, g.Flags, g.Branch, g.State, g.Reason = next.Address, next.Flags, next.Branch, next.State, next.Reason
		}
		return ok
	})
}

// groups says which registrations share a pull request: each has its own, until too
// many wait at once. What merges by itself is never held up by what does not.
func (r *Registrar) groups(v *View, fresh []ledger.Registration) (groups [][]ledger.Registration) {
	var kinds [2][]ledger.Registration
	for _, g := range fresh {
		kind := 0
		if judge(v.Fleet, g).automatic {
			kind = 1
		}
		kinds[kind] = append(kinds[kind], g)
	}
	for _, kind := range kinds {
		size := 1
		if len(kind) > together {
			size = batch
		}
		for group := range slices.Chunk(kind, size) {
			groups = append(groups, group)
		}
	}
	return groups
}

// group brings one pull request of registrations up to date, and merges it when all
// in it may be merged. n is how many pull requests are open.
func (r *Registrar) group(ctx context.Context, v *View, branch string, group []ledger.Registration, n int) error {
	merged := func(g ledger.Registration) bool { return g.State == join.Merged }
	if slices.ContainsFunc(group, merged) {
		return nil // the next turn shows it
	}
	p, err := register(v.Fleet, v.Read, branch, group)
	if err != nil {
		r.refuse(branch, fmt.Sprintf("the file of the origin cannot be written: %v", err))
		return nil
	}
	if slices.ContainsFunc(group, func(g ledger.Registration) bool { _, exists := v.Fleet.Origins[g.Name]; return exists }) {
		// A file is edited, not made: it must be the one at the head.
		if v.Trouble != "" {
			return nil
		}
		p.Base = v.Commit
	}
	fresh := slices.ContainsFunc(group, func(g ledger.Registration) bool { return g.State == join.Accepted })
	if !fresh && r.proposed[branch] == digest(p) {
		if r.Now().Before(r.look[branch]) {
			return nil
		}
		r.look[branch] = r.Now().Add(max(lookEvery, time.Duration(n)*lookEvery/2))
		return r.find(ctx, branch)
	}
	if err := r.spend(); err != nil {
		return err
	}
	pull, err := r.Forge.Propose(ctx, p)
	if errors.Is(err, forge.ErrConflict) {
		return nil // the next turn shows what is there now
	}
	if err != nil {
		return fmt.Errorf("propose %s: %w", branch, err)
	}
	r.proposed[branch], r.look[branch] = digest(p), r.Now().Add(lookEvery)
	reason := ""
	automatic := !slices.ContainsFunc(group, func(g ledger.Registration) bool { return !judge(v.Fleet, g).automatic })
	state := join.Proposed
	if automatic {
		switch err := r.Forge.Merge(ctx, pull); {
		case err == nil:
			state = join.Merged
		case errors.Is(err, forge.ErrProtected):
			reason = "it may be merged without a person, but the repo's rules want one"
		case errors.Is(err, forge.ErrConflict):
			delete(r.proposed, branch) // and so it is proposed again
			r.wake()
		default:
			delete(r.proposed, branch)
			return fmt.Errorf("merge %s: %w", branch, err)
		}
	}
	r.update(func(g *ledger.Registration) bool {
		if g.Branch != branch || !pending(*g) {
			return false
		}
		if g.State != state {
			r.Log.Info("registration moved on", "agent", g.Name, "kind", string(state), "addr", pull.URL)
		}
		g.State, g.Pull, g.Reason = state, pull.URL, reason
		return true
	})
	return nil
}

// find asks how a pull request stands that the repo does not show.
func (r *Registrar) find(ctx context.Context, branch string) error {
	pull, err := r.Forge.Find(ctx, branch)
	switch {
	case errors.Is(err, forge.ErrNoPull), err == nil && pull.State == forge.Closed:
		r.refuse(branch, "the pull request was closed without being merged")
		return nil
	case err != nil:
		return fmt.Errorf("look for %s: %w", branch, err)
	case pull.State == forge.Merged:
		r.update(func(g *ledger.Registration) bool {
			if g.Branch != branch || !pending(*g) {
				return false
			}
			g.State = join.Merged
			return true
		})
	}
	return nil
}

// refuse ends all registrations of a branch.
func (r *Registrar) refuse(branch, reason string) {
	delete(r.proposed, branch)
	delete(r.look, branch)
	r.update(func(g *ledger.Registration) bool {
		if g.Branch != branch || !pending(*g) {
			return false
		}
		r.Log.Warn("registration refused", "agent", g.Name, "reason", reason)
		g.State, g.Reason = join.Refused, reason
		return true
	})
}

// errBudget says that proposals wait for their turn.
var errBudget = errors.New("too many proposals at once")

// spend takes one proposal from the budget.
func (r *Registrar) spend() error {
	now := r.Now()
	for _, l := range r.limits {
		if l.TokensAt(now) < 1 {
			return errBudget
		}
	}
	for _, l := range r.limits {
		l.AllowN(now, 1)
	}
	return nil
}

// digest tells two proposals apart.
func digest(p forge.Proposal) [32]byte {
	data, err := json.Marshal(p)
	if err != nil {
		panic("registrar: a proposal always encodes: " + err.Error())
	}
	return sha256.Sum256(data)
}

// propose makes a proposal of the control plane's own, once, and merges it when merge
// is set and the repo's rules let it.
func (r *Registrar) propose(ctx context.Context, p forge.Proposal, merge bool) error {
	if r.proposed[p.Branch] == digest(p) {
		return nil
	}
	if err := r.spend(); err != nil {
		return err
	}
	pull, err := r.Forge.Propose(ctx, p)
	if errors.Is(err, forge.ErrConflict) {
		return nil // the next turn shows what is there now
	}
	if err != nil {
		return fmt.Errorf("propose %s: %w", p.Branch, err)
	}
	if merge {
		switch err := r.Forge.Merge(ctx, pull); {
		case err == nil:
		case errors.Is(err, forge.ErrConflict):
			r.wake()
			return nil
		case errors.Is(err, forge.ErrProtected):
			r.Log.Warn("change waits for a person", "addr", pull.URL, "reason", "the repo's rules do not let it be merged here")
		default:
			return fmt.Errorf("merge %s: %w", p.Branch, err)
		}
	}
	r.proposed[p.Branch] = digest(p)
	r.Log.Info("change proposed", "addr", pull.URL, "reason", p.Title)
	return nil
}

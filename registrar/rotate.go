package registrar

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/schema/edit"
)

// rotations are the moments that origins' keys are to be newer than. By schedule an
// origin's moments are a period apart, at a place in the period that its name
// chooses: a fleet's agents do not all change keys in the same hour. An origin's first
// key was made when it registered, where that is known.
func rotations(f *fleet.Fleet, asked, made map[string]time.Time, now time.Time) map[string]time.Time {
	all := map[string]time.Time{}
	for name := range f.Origins {
		at, ok := asked[name]
		if every := f.Registration.RotateEvery; every > 0 {
			h := fnv.New64a()
			h.Write([]byte(name))
			phase := time.Duration(h.Sum64() % uint64(every))
			if due := now.Add(-phase).Truncate(every).Add(phase); due.After(at) && due.After(made[name]) {
				at, ok = due, true
			}
		}
		if ok {
			all[name] = at.UTC()
		}
	}
	return all
}

// rotate proposes what agents said about their keys, and merges it: the old key has
// signed it, and the new one is of the same host. An origin has two keys from the
// first proposal to the second.
func (r *Registrar) rotate(ctx context.Context, v *View) error {
	if v.Trouble != "" {
		return nil // the files are not those at the head
	}
	asked := r.Rotations(v.Fleet)
	var failed []error
	for _, name := range v.Fleet.OriginNames() {
		o := v.Fleet.Origins[name]
		var (
			p   forge.Proposal
			err error
		)
		switch beat := v.Heartbeats[name]; {
		case !o.NextKey.IsZero() && v.Rotated[name]:
			p, err = promoteKey(v, o)
		case len(beat.Rotation) > 0:
			next, moment, oerr := join.OpenRotation(name, o.PublicKey, r.Secret.Join(), beat.Rotation)
			if oerr != nil || !moment.Equal(asked[name]) || next == o.PublicKey || next == o.NextKey {
				// The rotation before, of an agent that has not heard yet that it is
				// done; or an edge that made one up, or kept an older one.
				r.Log.Debug("rotation not taken", "agent", name, "err", oerr)
				continue
			}
			p, err = addKey(v, o, next)
		default:
			continue
		}
		if err != nil {
			// A person must look at the file; the tunnel goes on with the old key.
			if r.proposed["trouble "+name] == ([32]byte{}) {
				r.proposed["trouble "+name] = [32]byte{1}
				r.Log.Error("key not rotated", "agent", name, "err", err)
			}
			continue
		}
		if err := r.propose(ctx, p, true); err != nil {
			failed = append(failed, err)
		} else if v.Rotated[name] {
			failed = append(failed, r.Ledger.Rotated(name, r.Now()))
		}
	}
	return errors.Join(failed...)
}

func rotateBranch(name string, next keys.Public, step string) string {
	sum := sha256.Sum256(next[:])
	return rotatePrefix + name + "-" + hex.EncodeToString(sum[:6]) + "-" + step
}

func addKey(v *View, o fleet.Origin, next keys.Public) (forge.Proposal, error) {
	file, err := edited(v.Read, o.Position.File, func(src []byte) ([]byte, error) {
		return edit.SetField(src, "origin", o.Name, "next_key", next.String())
	})
	return forge.Proposal{
		Branch: rotateBranch(o.Name, next, "begin"),
		Title:  fmt.Sprintf("Give origin %s a new key", o.Name),
		Body: fmt.Sprintf("The host made a new key, `%s`, and signed that with its old one, `%s`. Both are valid until every edge has seen the new one; then the old one is taken out.\n",
			next, o.PublicKey),
		Files: []forge.File{file}, Base: v.Commit,
	}, err
}

func promoteKey(v *View, o fleet.Origin) (forge.Proposal, error) {
	file, err := edited(v.Read, o.Position.File, func(src []byte) ([]byte, error) {
		src, err := edit.SetField(src, "origin", o.Name, "public_key", o.NextKey.String())
		if err != nil {
			return nil, err
		}
		return edit.RemoveField(src, "origin", o.Name, "next_key")
	})
	return forge.Proposal{
		Branch: rotateBranch(o.Name, o.NextKey, "end"),
		Title:  fmt.Sprintf("Take out the old key of origin %s", o.Name),
		Body:   fmt.Sprintf("Every edge has seen the host's new key, `%s`. The old one, `%s`, ends with this.\n", o.NextKey, o.PublicKey),
		Files:  []forge.File{file}, Base: v.Commit,
	}, err
}

package reconciler

import (
	"maps"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/edges"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// Rotation is how far an origin with a next key has come: which of the fleet's edges,
// sorted, have seen its agent by that key.
type Rotation struct {
	// Next are the edges whose newest handshake was by the next key.
	Next []string `json:"next"`
	// Old are those with a live tunnel by the old key.
	Old []string `json:"old"`
	// Away are those that the agent has no tunnel to, or that are out of sight.
	Away []string `json:"away"`
}

// Done reports whether the agent uses its next key, so that the old one can go. An
// agent has one key at a time: an edge that it has no tunnel to holds nothing up.
func (r Rotation) Done() bool { return len(r.Next) > 0 && len(r.Old) == 0 }

// Rotations is how far every origin of f has come that has a next key, by name. It is
// pure.
func Rotations(f *fleet.Fleet, w World) map[string]Rotation {
	out := map[string]Rotation{}
	handshakes := map[string]map[keys.Public]time.Time{}
	for _, name := range f.OriginNames() {
		o := f.Origins[name]
		if o.NextKey.IsZero() {
			continue
		}
		r := Rotation{Next: []string{}, Old: []string{}, Away: []string{}}
		for _, edge := range f.EdgeNames() {
			shaken, read := handshakes[edge]
			if !read {
				shaken = map[keys.Public]time.Time{}
				for _, p := range w.Edges[edge].State.Peers {
					shaken[p.PublicKey] = p.Handshake
				}
				handshakes[edge] = shaken
			}
			switch old, next := shaken[o.PublicKey], shaken[o.NextKey]; {
			case next.After(old):
				r.Next = append(r.Next, edge)
			case w.Now.Sub(old) < freshHandshake:
				r.Old = append(r.Old, edge)
			default:
				r.Away = append(r.Away, edge)
			}
		}
		out[name] = r
	}
	return out
}

// rotate is what agents are asked for. A run beside the fleet's own `kokoa serve`
// leaves what that one asked for as the newest configs on edges say it.
func (r *Reconciler) rotate(f *fleet.Fleet, observed []plan.Object) map[string]time.Time {
	if r.Rotations != nil {
		asked := maps.Clone(r.Rotations(f))
		for name, before := range asked {
			asked[name] = before.UTC().Round(0) // equal moments are equal bytes
		}
		return asked
	}
	asked, serials := map[string]time.Time{}, map[string]uint64{}
	for _, o := range observed {
		s, ok := o.Spec.(edges.AgentSpec)
		if !ok || s.Config.Agent == "" || s.Config.Serial <= serials[o.Ref.Name] {
			continue
		}
		serials[o.Ref.Name] = s.Config.Serial
		delete(asked, o.Ref.Name)
		if s.Config.RotateBefore != nil {
			asked[o.Ref.Name] = *s.Config.RotateBefore
		}
	}
	return asked
}

package registrar

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/schema/edit"
)

// grace is how long something has ended before its removal is proposed: a person who
// wants it longer has until then to say so.
const grace = time.Hour

// cleanUp proposes to remove what has ended. It ended on the edges by itself; this
// only keeps the repo tidy, so a person merges it.
func (r *Registrar) cleanUp(ctx context.Context, v *View) error {
	gone := ended(v.Fleet, r.Now().Add(-grace))
	if len(gone) == 0 || v.Trouble != "" {
		return nil
	}
	p, err := remove(v, cleanUp, "Remove what has ended", gone)
	if err != nil {
		if r.proposed[cleanUp] == ([32]byte{}) {
			r.proposed[cleanUp] = [32]byte{1}
			r.Log.Warn("ended objects not removed", "err", err)
		}
		return nil
	}
	return r.propose(ctx, p, false)
}

// object is something in the repo.
type object struct {
	kind, name string
	at         fleet.Position
	// why it goes, for people.
	why string
}

// ended are the routes and origins that were over at a moment, routes first. An origin
// that a living route still names stays, since the repo would not load without it.
func ended(f *fleet.Fleet, at time.Time) (gone []object) {
	over := func(t *time.Time) bool { return t != nil && t.Before(at) }
	dead := func(u fleet.Upstream) bool { return over(f.Origins[u.Origin].Expires) }
	needed := map[string]bool{}
	for _, name := range f.RouteNames() {
		route := f.Routes[name]
		switch alive := slices.ContainsFunc(route.Upstreams, func(u fleet.Upstream) bool { return !dead(u) }); {
		case over(route.Expires):
			gone = append(gone, object{"route", name, route.Position, "it ended at " + route.Expires.UTC().Format(time.RFC3339)})
		case !alive:
			gone = append(gone, object{"route", name, route.Position, "its origin ended"})
		default:
			for _, u := range route.Upstreams {
				needed[u.Origin] = true
			}
		}
	}
	for _, name := range f.OriginNames() {
		if o := f.Origins[name]; over(o.Expires) && !needed[name] {
			gone = append(gone, object{"origin", name, o.Position, "it ended at " + o.Expires.UTC().Format(time.RFC3339)})
		}
	}
	return gone
}

// Remove is the proposal that takes an origin out of the repo, with the routes that
// only it serves when routes is set. Without, such routes are an error.
func Remove(v View, name string, routes bool) (forge.Proposal, error) {
	o, ok := v.Fleet.Origins[name]
	if !ok {
		return forge.Proposal{}, fmt.Errorf("the fleet has no origin %q; it has: %s", name, strings.Join(v.Fleet.OriginNames(), ", "))
	}
	var gone []object
	for _, route := range v.Fleet.RouteNames() {
		at := v.Fleet.Routes[route]
		others := slices.DeleteFunc(slices.Clone(at.Upstreams), func(u fleet.Upstream) bool { return u.Origin == name })
		switch {
		case len(others) == len(at.Upstreams):
		case len(others) > 0:
			return forge.Proposal{}, fmt.Errorf("%s: route %q names origin %q beside another; take it out there first", at.Position, route, name)
		case !routes:
			return forge.Proposal{}, fmt.Errorf("%s: route %q is served by origin %q; remove it first, or both with --with-routes", at.Position, route, name)
		default:
			gone = append(gone, object{"route", route, at.Position, "its origin is removed"})
		}
	}
	gone = append(gone, object{"origin", name, o.Position, "a person removed it"})
	return remove(&v, removePrefix+name, "Remove origin "+name, gone)
}

// remove is the proposal that takes objects out of the repo, and files that hold
// nothing else.
func remove(v *View, branch, title string, gone []object) (forge.Proposal, error) {
	p := forge.Proposal{Branch: branch, Title: title, Base: v.Commit}
	var body strings.Builder
	files := map[string][]byte{}
	var order []string
	for _, o := range gone {
		src, begun := files[o.at.File]
		if !begun {
			order = append(order, o.at.File)
			var err error
			if src, err = v.Read(o.at.File); err != nil {
				return forge.Proposal{}, fmt.Errorf("remove %s %s: %w", o.kind, o.name, err)
			}
		}
		src, empty, err := edit.Remove(src, o.kind, o.name)
		if err != nil {
			return forge.Proposal{}, fmt.Errorf("remove %s %s: %s:%w", o.kind, o.name, o.at.File, err)
		}
		if empty {
			src = nil
		}
		files[o.at.File] = src
		fmt.Fprintf(&body, "- %s `%s` (`%s`): %s\n", o.kind, o.name, o.at.File, o.why)
	}
	for _, name := range order {
		p.Files = append(p.Files, forge.File{Path: name, Content: files[name]})
	}
	p.Body = body.String()
	return p, nil
}

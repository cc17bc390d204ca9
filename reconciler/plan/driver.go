package plan

import "context"

// Observation is what a driver saw of its kinds.
type Observation struct {
	// Objects that Kokoa owns, and no others.
	Objects []Object
	// Unseen scopes, and why they could not be seen.
	Unseen map[Scope]string
}

// Applier makes changes of its own kinds. A change that already holds is not an
// error, so that a turn which died halfway can be run again. It refuses to take
// over a thing that exists and is not Kokoa's.
type Applier interface {
	// Apply makes changes in order and returns one error or nil for each, at
	// the change's own index. The changes are all creates and updates, or all
	// deletes.
	Apply(ctx context.Context, changes []Change) []error
}

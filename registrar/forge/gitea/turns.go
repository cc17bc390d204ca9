package gitea

import (
	"context"
	"sync"
)

// turns lets one at a time go on for each name. The zero value is ready.
type turns struct {
	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the turn is over
}

// take waits for its turn, or for the context's end. The caller calls done.
func (t *turns) take(ctx context.Context, name string) (done func(), err error) {
	for {
		t.mu.Lock()
		over, taken := t.busy[name]
		if !taken {
			break
		}
		t.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over:
		}
	}
	defer t.mu.Unlock()
	if t.busy == nil {
		t.busy = map[string]chan struct{}{}
	}
	over := make(chan struct{})
	t.busy[name] = over
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.busy, name)
		close(over)
	}, nil
}

package reconciler

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

// History remembers, in one small file, which revision was last begun and which was
// last applied whole. It is a cache: lost, the edges' own configs tell which
// revision is live. All methods may be called at once.
type History struct {
	path string

	mu   sync.Mutex
	seen applied
}

type applied struct {
	// Attempted is the last commit of which a turn changed something.
	Attempted string `json:"attempted"`
	// Settled is the last commit of which a plan was empty.
	Settled string `json:"settled"`
}

// OpenHistory reads the file at path, which need not exist. "" keeps the history
// in memory only.
func OpenHistory(path string) (*History, error) {
	h := &History{path: path}
	if path == "" {
		return h, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	} else if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	if err := json.Unmarshal(data, &h.seen); err != nil {
		return nil, fmt.Errorf("read history: %s: %w; remove the file: it is only a cache", path, err)
	}
	return h, nil
}

// Attempted is the last commit of which something was applied; "" for none.
func (h *History) Attempted() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen.Attempted
}

// Settled is the last commit that was applied whole; "" for none.
func (h *History) Settled() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.seen.Settled
}

// Attempt records that a commit begins to be applied, before anything is.
func (h *History) Attempt(commit string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.seen
	next.Attempted = commit
	return h.write(next)
}

// Settle records that a commit was applied whole.
func (h *History) Settle(commit string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.write(applied{commit, commit})
}

func (h *History) write(next applied) error {
	if next == h.seen {
		return nil
	}
	if h.path != "" {
		data, err := json.Marshal(next)
		if err != nil {
			return fmt.Errorf("write history: %w", err)
		}
		if err := atomicfile.Write(h.path, append(data, '\n'), 0o600); err != nil {
			return fmt.Errorf("write history: %w", err)
		}
	}
	h.seen = next
	return nil
}

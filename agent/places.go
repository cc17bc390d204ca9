package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
)

// places is where edges last answered, by the names they are looked up by. It is on
// disk, so that an agent that starts while DNS does not answer finds its edges. What
// is wrong in it harms nobody: who answers there has to have the edge's key.
type places struct {
	dir string

	mu    sync.Mutex
	known map[string]netip.AddrPort
	// unsaved says that known is not what is on disk.
	unsaved bool
}

const placesName = "endpoints.json"

// load reads what save wrote. Nothing saved yet is no error.
func (p *places) load() error {
	path := filepath.Join(p.dir, placesName)
	known := map[string]netip.AddrPort{}
	err := errors.Join(atomicfile.Sweep(path), privatefile.ReadJSON(path, &known))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("read endpoints: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = known
	return nil
}

// find is where the edge with that endpoint last answered, or the zero value.
func (p *places) find(hostport string) netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[hostport]
}

// keep remembers that the edge with that endpoint answered at a place. Those of edges
// that are no longer wanted are forgotten.
func (p *places) keep(hostport string, at netip.AddrPort, wanted []api.AgentEdge) error {
	if _, err := netip.ParseAddrPort(hostport); err == nil || !at.IsValid() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	next := map[string]netip.AddrPort{hostport: at}
	for _, e := range wanted {
		if was, ok := p.known[e.Endpoint]; ok && e.Endpoint != hostport {
			next[e.Endpoint] = was
		}
	}
	if !p.unsaved && maps.Equal(next, p.known) {
		return nil
	}
	p.known = next
	data, err := json.Marshal(next)
	if err == nil {
		err = atomicfile.Write(filepath.Join(p.dir, placesName), data, 0o600)
	}
	p.unsaved = err != nil
	if err != nil {
		return fmt.Errorf("save endpoints: %w", err)
	}
	return nil
}

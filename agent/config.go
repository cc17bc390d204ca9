package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/keys"
)

var (
	// errOlder is returned for a config that was replaced by one already obeyed.
	errOlder = errors.New("older than the config obeyed")
	// errTwin is returned for a config with the serial of the one obeyed that
	// says something else: one of the two was not meant to exist.
	errTwin = errors.New("the config obeyed has the same serial and says something else")
)

// orders is a config the agent obeys, read once and never changed. The zero
// orders are an agent's that has not heard from its fleet.
type orders struct {
	signed   api.Signed
	config   api.AgentConfig
	services map[string]service
	// unfit are services left out, and why.
	unfit []string
}

// service is one declared service, by its id.
type service struct {
	id       string
	url      string
	target   target
	health   string
	interval time.Duration
}

// expired reports whether the agent must no longer serve at the given time.
func (o *orders) expired(now time.Time) bool {
	return o.config.Expires != nil && !now.Before(*o.config.Expires)
}

// obeyed reports whether anything was obeyed yet.
func (o *orders) obeyed() bool { return o.signed.Payload != nil }

// next says what the agent obeys once it has seen s: new orders, or o itself
// when s says the same. An error means that s must not be obeyed; it tells
// api.ErrSignature, errOlder and errTwin apart.
func (o *orders) next(b Bootstrap, s api.Signed) (*orders, error) {
	if o.obeyed() && s.Agent == b.Name && bytes.Equal(s.Payload, o.signed.Payload) && bytes.Equal(s.Signature, o.signed.Signature) {
		return o, nil
	}
	n, err := newOrders(b, s)
	if err != nil || !o.obeyed() {
		return n, err
	}
	switch {
	case n.config.Serial < o.config.Serial:
		return nil, fmt.Errorf("config with serial %d: %w, serial %d", n.config.Serial, errOlder, o.config.Serial)
	case n.config.Serial == o.config.Serial && !bytes.Equal(s.Payload, o.signed.Payload):
		return nil, fmt.Errorf("config with serial %d: %w", n.config.Serial, errTwin)
	case n.config.Serial == o.config.Serial:
		return o, nil
	}
	return n, nil
}

// newOrders checks all of s that does not depend on what was obeyed before.
func newOrders(b Bootstrap, s api.Signed) (*orders, error) {
	c, err := s.Open(b.SigningKey)
	if err != nil {
		return nil, err
	}
	if c.Fleet != b.Fleet {
		return nil, fmt.Errorf("config with serial %d: it is for fleet %q, and this agent is of fleet %q", c.Serial, c.Fleet, b.Fleet)
	}
	if c.Agent != b.Name {
		return nil, fmt.Errorf("config with serial %d: it is for agent %q, and this is agent %q", c.Serial, c.Agent, b.Name)
	}
	if err := checkEdges(b, c.Edges); err != nil {
		return nil, fmt.Errorf("config with serial %d: %w", c.Serial, err)
	}
	o := &orders{signed: s, config: c, services: make(map[string]service, len(c.Services))}
	for _, declared := range c.Services {
		// One service that cannot be served must not keep the others from being
		// served, nor a removal from being obeyed.
		v, err := newService(declared)
		if err == nil && o.services[v.id].id != "" {
			err = errors.New("the id is declared twice")
		}
		if err != nil {
			o.unfit = append(o.unfit, fmt.Sprintf("service %s: %v", declared.ID, err))
			continue
		}
		o.services[v.id] = v
	}
	return o, nil
}

func newService(s api.AgentService) (service, error) {
	if s.ID == "" {
		return service{}, errors.New("it has no id")
	}
	t, err := serviceTarget(s.URL)
	if err != nil {
		return service{}, err
	}
	if s.Health != "" && !strings.HasPrefix(s.Health, "/") {
		return service{}, fmt.Errorf("health path %q does not start with /", s.Health)
	}
	interval := s.Interval
	if interval <= 0 {
		interval = defaultInterval
	}
	return service{id: s.ID, url: s.URL, target: t, health: s.Health, interval: max(interval, time.Second)}, nil
}

// checkEdges refuses edges that the agent could not keep as peers, and a list
// without any: nothing could ever reach an agent that obeyed it.
func checkEdges(b Bootstrap, edges []api.AgentEdge) error {
	if len(edges) == 0 {
		return errors.New("it names no edge")
	}
	var (
		names  = make(map[string]bool)
		known  = make(map[keys.Public]bool)
		places = make(map[netip.Addr]bool)
	)
	for _, e := range edges {
		host, port, err := net.SplitHostPort(e.Endpoint)
		if err == nil && host == "" {
			err = errors.New("the host is missing")
		}
		if err == nil {
			_, err = parsePort(port)
		}
		switch {
		case e.Name == "":
			return errors.New("an edge has no name")
		case names[e.Name]:
			return fmt.Errorf("edge %s: named twice", e.Name)
		case e.PublicKey.IsZero():
			return fmt.Errorf("edge %s: public key is missing", e.Name)
		case known[e.PublicKey]:
			return fmt.Errorf("edge %s: another edge has its public key", e.Name)
		case e.PublicKey == b.PrivateKey.Public():
			return fmt.Errorf("edge %s: its public key is this agent's own", e.Name)
		case !e.Address.IsValid() || !b.Network.Contains(e.Address):
			return fmt.Errorf("edge %s: address %v is not in the tunnel's network %v", e.Name, e.Address, b.Network)
		case places[e.Address]:
			return fmt.Errorf("edge %s: another edge has address %v", e.Name, e.Address)
		case e.Address == b.TunnelAddress:
			return fmt.Errorf("edge %s: address %v is this agent's own", e.Name, e.Address)
		case err != nil:
			return fmt.Errorf("edge %s: endpoint %q is not host:port", e.Name, e.Endpoint)
		}
		names[e.Name], known[e.PublicKey], places[e.Address] = true, true, true
	}
	return nil
}

// store keeps the last good config in a folder that only the agent's user can
// read, so that an agent starts while no edge can be reached, and so that its
// serial survives a restart.
type store struct{ dir string }

const (
	storedName = "config.json"
	// storedLimit is far above the config of any agent; a file beyond it is not
	// one.
	storedLimit = 16 << 20
)

func (s store) path() string { return filepath.Join(s.dir, storedName) }

// prepare makes the folder. A folder that others can use is an error: whoever
// can replace the file can set the serial back.
func (s store) prepare() error {
	if err := privatefile.Folder(s.dir); err != nil {
		return fmt.Errorf("open data folder: %w", err)
	}
	return nil
}

// load reads what save wrote. Nothing saved yet is an error that is
// fs.ErrNotExist.
func (s store) load() (api.Signed, error) {
	f, err := os.Open(s.path())
	if err != nil {
		return api.Signed{}, fmt.Errorf("read stored config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, storedLimit+1))
	if err != nil {
		return api.Signed{}, fmt.Errorf("read stored config: %w", err)
	}
	signed, err := decodeStored(data)
	if err != nil {
		return api.Signed{}, fmt.Errorf("read stored config: %s: %w", f.Name(), err)
	}
	return signed, nil
}

// save replaces the stored config at once: a reader finds the old or the new one
// whole, also after a crash.
func (s store) save(signed api.Signed) error {
	data, err := json.Marshal(signed)
	if err == nil {
		err = atomicfile.Write(s.path(), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("save config: %w", err)
	}
	return nil
}

// decodeStored reads a stored config strictly. It does not look at the signature.
func decodeStored(data []byte) (api.Signed, error) {
	if len(data) > storedLimit {
		return api.Signed{}, fmt.Errorf("more than %d bytes", storedLimit)
	}
	var s api.Signed
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return api.Signed{}, fmt.Errorf("decode: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return api.Signed{}, errors.New("decode: data after the config")
	}
	if s.Agent == "" || len(s.Payload) == 0 || len(s.Signature) == 0 {
		return api.Signed{}, errors.New("decode: agent, payload or signature is missing")
	}
	return s, nil
}

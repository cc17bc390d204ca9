package api

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/route"
	"github.com/kokoa-proxy/kokoa/keys"
)

// maxProblems is how many mistakes one error lists.
const maxProblems = 10

// Validate says what in the config no edge can serve: lists that are not sorted by
// unique names, hosts, paths, addresses and URLs that are none, upstreams whose
// agent is no peer, tunnel addresses or keys that two peers claim. It lists up to
// ten mistakes.
//
// Two things are allowed because a rename passes through them, make before break:
// two routes with the same host and path (the first by name serves), and two peers
// with the same keys and address (they are one tunnel).
func (c Config) Validate() error {
	var p problems
	byKey, byAddress := map[keys.Public]Peer{}, map[netip.Addr]Peer{}
	named := make(map[string]bool, len(c.Peers))
	last := ""
	for i, peer := range c.Peers {
		what := "peer " + peer.Name
		p.order(what, i, &last, peer.Name)
		named[peer.Name] = true
		if peer.PublicKey.IsZero() {
			p.add(what, "it has no public key")
		}
		if a := peer.Address; !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
			p.add(what, fmt.Sprintf("its address %q is not a tunnel address", a))
		}
		if other, ok := byKey[peer.PublicKey]; ok && other.Address != peer.Address {
			p.add(what, "it has the public key of peer "+other.Name+" and another address")
		}
		if other, ok := byKey[peer.NextKey]; ok && other.Address != peer.Address && !peer.NextKey.IsZero() {
			p.add(what, "its next key is a key of peer "+other.Name)
		}
		if peer.NextKey == peer.PublicKey && !peer.NextKey.IsZero() {
			p.add(what, "its next key is the one it has")
		}
		if other, ok := byAddress[peer.Address]; ok && (other.PublicKey != peer.PublicKey || other.NextKey != peer.NextKey) {
			p.add(what, "it has the address of peer "+other.Name+" and another public key")
		}
		byKey[peer.PublicKey], byAddress[peer.Address] = peer, peer
		if !peer.NextKey.IsZero() {
			byKey[peer.NextKey] = peer
		}
	}
	last = ""
	for i, r := range c.Routes {
		what := "route " + r.Name
		p.order(what, i, &last, r.Name)
		p.check(what, route.CheckHost(r.Host))
		p.check(what, route.CheckPath(r.Path))
		p.check(what, r.Health.validate())
		if len(r.Upstreams) == 0 {
			p.add(what, "it has no upstream")
		}
		for _, u := range r.Upstreams {
			if !named[u.Agent] {
				p.add(what, fmt.Sprintf("its agent %q is no peer", u.Agent))
			}
			if !plain(u.Service, 64) {
				p.add(what, fmt.Sprintf("its service id %q is not 1 to 64 printable characters", u.Service))
			}
			_, err := u.ParseURL()
			p.check(what, err)
		}
		if len(p.list) >= maxProblems {
			break
		}
	}
	last = ""
	for i, s := range c.Agents {
		what := "config of agent " + s.Agent
		p.order(what, i, &last, s.Agent)
		if len(s.Payload) == 0 || len(s.Signature) == 0 {
			p.add(what, "it is not signed")
		}
	}
	return p.err()
}

// ParseURL reads u.URL: "http://host[:port]" or "https://host[:port]", no more.
func (u Upstream) ParseURL() (*url.URL, error) {
	parsed, err := url.Parse(u.URL)
	if err != nil {
		return nil, fmt.Errorf("service URL: %w", err)
	}
	if parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Hostname() == "" {
		return nil, fmt.Errorf("service URL %q: want http://host:port or https://host:port", u.URL)
	}
	if parsed.Path != "" && parsed.Path != "/" || parsed.RawQuery != "" || parsed.ForceQuery || parsed.User != nil || parsed.Fragment != "" {
		return nil, fmt.Errorf("service URL %q: leave out what stands beside scheme, host and port", u.URL)
	}
	return parsed, nil
}

func (h Health) validate() error {
	switch {
	case h.Path != "" && !strings.HasPrefix(h.Path, "/"), strings.ContainsAny(h.Path, " \t\r\n\x00"):
		return fmt.Errorf("health path %q: begin it with \"/\", without blanks", h.Path)
	case h.Interval < 0 || h.Timeout < 0 || h.Failures < 0:
		return errors.New("health: interval, timeout and failures cannot be negative")
	case h.Interval > 0 && h.Interval < 10*time.Millisecond:
		return fmt.Errorf("health interval %s: at least 10ms", h.Interval)
	}
	return nil
}

type problems struct{ list []error }

func (p *problems) add(what, text string) { p.check(what, errors.New(text)) }

func (p *problems) check(what string, err error) {
	if err != nil && len(p.list) < maxProblems {
		p.list = append(p.list, fmt.Errorf("%s: %w", what, err))
	}
}

// order checks a name and that it comes after the last.
func (p *problems) order(what string, i int, last *string, name string) {
	if !plain(name, 253) {
		p.add(what, fmt.Sprintf("its name %q is not 1 to 253 printable characters", name))
	}
	if i > 0 && name <= *last {
		p.add(what, fmt.Sprintf("it stands after %q: names are sorted and unique", *last))
	}
	*last = name
}

func (p *problems) err() error { return errors.Join(p.list...) }

// plain reports whether s is 1 to most printable ASCII characters.
func plain(s string, most int) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return 0 < len(s) && len(s) <= most
}

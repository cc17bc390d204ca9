package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

// wantedPeer is a Peer that has been checked.
type wantedPeer struct {
	key keys.Public
	// endpoint is the text asked for. It is an address, addr, or a name, host and
	// port; "" is neither.
	endpoint string
	addr     netip.AddrPort
	host     string
	port     uint16
	// set is the endpoint that diff is to set; the zero value leaves it alone.
	set       netip.AddrPort
	allowed   []netip.Prefix
	keepalive time.Duration
}

// peerState is a peer as the device has it.
type peerState struct {
	PeerStats
	keepalive time.Duration
}

// change is one step of making a device's peers the wanted ones.
type change struct {
	key    keys.Public
	remove bool
	// existing keeps a peer that is gone meanwhile from coming back.
	existing bool
	// lose and gain are allowed addresses; left is what the peer has when lose is
	// done, for devices that can only replace all of them.
	lose, left, gain []netip.Prefix
	endpoint         netip.AddrPort
	keepalive        *time.Duration
}

// check reads peers, and refuses what a device would take but no one can mean.
func check(peers []Peer, self keys.Public) ([]wantedPeer, error) {
	var (
		wanted = make([]wantedPeer, 0, len(peers))
		seen   = make(map[keys.Public]bool, len(peers))
		errs   []error
	)
	for _, p := range peers {
		w, err := p.check()
		switch {
		case p.PublicKey.IsZero():
			err = errors.New("no public key")
		case p.PublicKey == self:
			err = errors.New("the key is this device's own")
		case seen[p.PublicKey]:
			err = errors.New("named twice")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("peer %s: %w", p.PublicKey, err))
		}
		seen[p.PublicKey] = true
		wanted = append(wanted, w)
	}
	if err := overlap(wanted); err != nil {
		errs = append(errs, err)
	}
	return wanted, errors.Join(errs...)
}

func (p Peer) check() (wantedPeer, error) {
	w := wantedPeer{key: p.PublicKey, endpoint: p.Endpoint, keepalive: p.Keepalive}
	if p.Keepalive < 0 || p.Keepalive > 65535*time.Second || p.Keepalive%time.Second != 0 {
		return w, fmt.Errorf("keepalive %s is not in whole seconds from 0 to 65535", p.Keepalive)
	}
	for _, prefix := range p.AllowedIPs {
		if !prefix.IsValid() {
			return w, errors.New("an allowed address is no prefix")
		}
		w.allowed = append(w.allowed, canonical(prefix))
	}
	slices.SortFunc(w.allowed, comparePrefix)
	w.allowed = slices.Compact(w.allowed)
	if p.Endpoint == "" {
		return w, nil
	}
	host, text, err := net.SplitHostPort(p.Endpoint)
	if err != nil {
		return w, fmt.Errorf("endpoint %q is not host:port", p.Endpoint)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || host == "" {
		return w, fmt.Errorf("endpoint %q is not host:port, with a port from 1 to 65535", p.Endpoint)
	}
	w.port = uint16(port)
	addr, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		w.host = host
	case addr.Zone() != "": // may be any text, line breaks too
		return w, fmt.Errorf("endpoint %q has a zone; give an address that is routed", p.Endpoint)
	default:
		w.addr = netip.AddrPortFrom(addr.Unmap(), w.port)
	}
	return w, nil
}

// overlap finds two peers that claim one address. Prefixes either nest or are
// apart, so in sorted order it is enough to look at the last one not inside
// another.
func overlap(wanted []wantedPeer) error {
	type claim struct {
		prefix netip.Prefix
		peer   int
	}
	var claims []claim
	for i, w := range wanted {
		for _, p := range w.allowed {
			claims = append(claims, claim{p, i})
		}
	}
	slices.SortFunc(claims, func(a, b claim) int { return comparePrefix(a.prefix, b.prefix) })
	var errs []error
	var cover claim
	for i, c := range claims {
		if i == 0 || !cover.prefix.Overlaps(c.prefix) {
			cover = c
			continue
		}
		if cover.peer != c.peer {
			errs = append(errs, fmt.Errorf("%w: %s of peer %s and %s of peer %s", ErrOverlap,
				cover.prefix, wanted[cover.peer].key, c.prefix, wanted[c.peer].key))
		}
	}
	return errors.Join(errs...)
}

// diff lists what makes have the wanted peers: first what goes, then what comes,
// so that no address is ever two peers'. Peers that are right are not touched.
func diff(have []peerState, wanted []wantedPeer) []change {
	want := make(map[keys.Public]wantedPeer, len(wanted))
	for _, w := range wanted {
		want[w.key] = w
	}
	var changes []change
	states := make(map[keys.Public]peerState, len(have))
	for _, h := range have {
		states[h.PublicKey] = h
		w, ok := want[h.PublicKey]
		if !ok {
			changes = append(changes, change{key: h.PublicKey, remove: true})
			continue
		}
		if lose := without(h.AllowedIPs, w.allowed); len(lose) > 0 {
			changes = append(changes, change{
				key: h.PublicKey, existing: true,
				lose: lose, left: without(h.AllowedIPs, lose),
			})
		}
	}
	for _, w := range wanted {
		h, ok := states[w.key]
		c := change{key: w.key, gain: without(w.allowed, h.AllowedIPs), endpoint: w.set}
		if w.keepalive != h.keepalive {
			c.keepalive = &w.keepalive
		}
		if !ok || len(c.gain) > 0 || c.endpoint.IsValid() || c.keepalive != nil {
			changes = append(changes, c)
		}
	}
	return changes
}

// wake has every peer that is kept alive sent something now: WireGuard does that when
// keepalive is turned on, and what has no session begins a handshake.
func wake(have []peerState) []change {
	var changes []change
	off := time.Duration(0)
	for _, h := range have {
		if h.keepalive > 0 {
			changes = append(changes,
				change{key: h.PublicKey, existing: true, keepalive: &off},
				change{key: h.PublicKey, existing: true, keepalive: &h.keepalive})
		}
	}
	return changes
}

// afresh takes peers out and puts them back with what they have.
func afresh(have []peerState) ([]change, error) {
	var changes []change
	for _, h := range have {
		back := change{key: h.PublicKey, gain: h.AllowedIPs}
		if h.Endpoint != "" {
			addr, err := netip.ParseAddrPort(h.Endpoint)
			if err != nil {
				return nil, err
			}
			back.endpoint = addr
		}
		if h.keepalive > 0 {
			back.keepalive = &h.keepalive
		}
		changes = append(changes, change{key: h.PublicKey, remove: true}, back)
	}
	return changes, nil
}

// without is a, less what is in b, in a's order.
func without(a, b []netip.Prefix) []netip.Prefix {
	in := make(map[netip.Prefix]bool, len(b))
	for _, p := range b {
		in[p] = true
	}
	var rest []netip.Prefix
	for _, p := range a {
		if !in[p] {
			rest = append(rest, p)
		}
	}
	return rest
}

// canonical is the one form of a prefix in which devices report it.
func canonical(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// comparePrefix sorts a prefix before those inside it.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

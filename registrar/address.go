package registrar

import (
	"errors"
	"net/netip"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

// reserved is how many of a network's first addresses are left to the control plane
// and to edges.
const reserved = 16

var errFull = errors.New("the fleet's network has no free address left; widen fleet.network")

// taken are the tunnel addresses that no new origin may get: those in the repo, and
// those of registrations on their way there.
func taken(f *fleet.Fleet, on []ledger.Registration) map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	for _, e := range f.Edges {
		used[e.TunnelAddress] = true
	}
	for _, o := range f.Origins {
		used[o.TunnelAddress] = true
	}
	for _, r := range on {
		if r.Address.IsValid() && pending(r) {
			used[r.Address] = true
		}
	}
	return used
}

// free is the lowest address of the network behind the reserved ones that is not
// used, nor the network's last: in IPv4 that is the broadcast address.
func free(network netip.Prefix, used map[netip.Addr]bool) (netip.Addr, error) {
	a := network.Masked().Addr()
	for range reserved {
		a = a.Next()
	}
	for ; network.Contains(a) && network.Contains(a.Next()); a = a.Next() {
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, errFull
}

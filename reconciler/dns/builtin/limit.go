package builtin

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// limiter counts a source network's requests per second, in a fixed table: networks
// that share a slot share its allowance.
type limiter struct {
	seed  maphash.Seed        // keeps others from finding networks that share a slot
	slots [4096]atomic.Uint64 // second << 32 | count
}

const perSecond = 1000

// allow reports whether addr's network, a /24 or a /56, may have another answer in
// the second of now.
func (l *limiter) allow(addr netip.Addr, now time.Time) bool {
	addr = addr.Unmap()
	bits := 56
	if addr.Is4() {
		bits = 24
	}
	network, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return false
	}
	slot := &l.slots[maphash.Comparable(l.seed, network)%uint64(len(l.slots))]
	second := uint64(uint32(now.Unix())) << 32
	for {
		old := slot.Load()
		next := old + 1
		if old>>32 != second>>32 {
			next = second | 1
		}
		if uint32(old) >= perSecond && old>>32 == second>>32 {
			return false
		}
		if slot.CompareAndSwap(old, next) {
			return true
		}
	}
}

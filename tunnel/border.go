package tunnel

import (
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// border is where packets cross between WireGuard and the user-space stack: the
// TUN device of the one, the network link of the other.
//
// What crosses costs by the packet, so both ways it crosses in batches and in
// large packets. Outwards the stack hands over TCP segments of up to 64 KiB (host
// GSO), which are cut here. Inwards segments are joined before they are delivered
// (GRO). The link says that checksums were verified (RX checksum offload): every
// packet came out of WireGuard's AEAD, and a joined packet has no checksum of its
// own that could be verified.
type border struct {
	link   link
	events chan tun.Event
	once   sync.Once
	mtu    int

	// Of Read, which has one caller.
	packet  *stack.PacketBuffer
	cutting segmenter

	joiners sync.Pool
}

// link is the stack's side of a border.
type link struct {
	// Endpoint is gVisor's in-memory link; its own queue is not used.
	*channel.Endpoint
	out  chan *stack.PacketBuffer
	done chan struct{}
}

// queued is how many packets wait for WireGuard before the stack has to. With
// segments of 64 KiB it bounds the memory, and a bulk stream needs no more.
const queued = 256

func newBorder(mtu int) *border {
	b := &border{
		link: link{
			Endpoint: channel.New(0, uint32(mtu), ""),
			out:      make(chan *stack.PacketBuffer, queued),
			done:     make(chan struct{}),
		},
		events: make(chan tun.Event, 1),
		mtu:    mtu,
	}
	b.link.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	b.link.SupportedGSOKind = stack.HostGSOSupported
	b.joiners.New = func() any { return &joiner{deliver: b.deliver} }
	b.events <- tun.EventUp
	return b
}

// GSOMaxSize is the largest packet that the stack may hand over, in bytes.
func (l link) GSOMaxSize() uint32 { return stack.GVisorGSOMaxSize }

// WritePackets takes packets from the stack, and blocks while WireGuard is behind.
func (l link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range packets.AsSlice() {
		select {
		case l.out <- p.IncRef():
		case <-l.done:
			p.DecRef()
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return packets.Len(), nil
}

// Read gives WireGuard what the stack has sent: it waits for one packet, and takes
// what else is there as long as bufs last.
func (b *border) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for n < len(bufs) {
		if b.packet == nil {
			if n == 0 {
				select {
				case b.packet = <-b.link.out:
				case <-b.link.done:
					return 0, os.ErrClosed
				}
			} else {
				select {
				case b.packet = <-b.link.out:
				default:
					return n, nil
				}
			}
			if b.whole(bufs[n][offset:], &sizes[n]) {
				n++
				continue
			}
		}
		sizes[n] = b.cutting.next(bufs[n][offset:])
		n++
		if b.cutting.empty() {
			b.release()
		}
	}
	return n, nil
}

// whole copies a packet that needs no cutting. For one that does it reports false,
// and cutting is ready.
func (b *border) whole(to []byte, size *int) bool {
	p := b.packet
	if p.GSOOptions.Type != stack.GSONone {
		ip, tcp := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
		payload, skip := p.AsSlices(), p.HeaderSize()
		for len(payload) > 0 && skip >= len(payload[0]) {
			skip -= len(payload[0])
			payload = payload[1:]
		}
		if len(payload) > 0 {
			payload[0] = payload[0][skip:]
		} else {
			payload = [][]byte{nil}
		}
		if b.cutting.start(ip, tcp, payload, int(p.GSOOptions.MSS)) {
			return false
		}
	}
	*size = 0
	for _, part := range p.AsSlices() {
		*size += copy(to[*size:], part)
	}
	b.release()
	return true
}

func (b *border) release() {
	b.packet.DecRef()
	b.packet = nil
}

// Write delivers packets that WireGuard has decrypted. It may be called at once
// for several peers.
func (b *border) Write(bufs [][]byte, offset int) (int, error) {
	j := b.joiners.Get().(*joiner)
	for _, buf := range bufs {
		if len(buf) > offset {
			j.add(buf[offset:])
		}
	}
	j.done()
	b.joiners.Put(j)
	return len(bufs), nil
}

func (b *border) deliver(parts [][]byte, size int) {
	view := buffer.NewViewSize(size)
	to := view.AsSlice()
	for _, part := range parts {
		to = to[copy(to, part):]
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	switch parts[0][0] >> 4 {
	case 4:
		b.link.InjectInbound(header.IPv4ProtocolNumber, p)
	case 6:
		b.link.InjectInbound(header.IPv6ProtocolNumber, p)
	}
	p.DecRef()
}

// BatchSize is how many packets WireGuard reads and writes at once.
func (b *border) BatchSize() int { return conn.IdealBatchSize }

func (b *border) MTU() (int, error) { return b.mtu, nil }

func (b *border) Name() (string, error)    { return "userspace", nil }
func (b *border) File() *os.File           { return nil }
func (b *border) Events() <-chan tun.Event { return b.events }

// Close ends Read and WritePackets.
func (b *border) Close() error {
	b.once.Do(func() {
		close(b.link.done)
		close(b.events)
	})
	return nil
}

package tunnel

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// joiner joins TCP segments that follow each other into packets of up to 64 KiB,
// so that the stack has one to look at instead of fifty. It is what gVisor's gro
// package does, which cannot be used: its Flush forgets all but the first packet
// of a bucket. Packets of one connection keep their order. The zero value is
// ready; it has one user at a time.
type joiner struct {
	deliver func(packet [][]byte, size int)
	runs    [8]run // few: a batch comes from one peer, mostly from one connection
	count   int
}

// run is a packet in the making.
type run struct {
	// parts are the first segment whole, and the payload of those after it.
	parts [][]byte
	size  int
	// flow is the addresses and ports, within the first segment.
	flow []byte
	segment
}

// segment is a TCP segment that can be joined with others.
type segment struct {
	ip, headers, payload int // sizes: of the IP header, of both headers, of the rest
	seq                  uint32
}

// maxPacket is the longest that an IP packet can say it is.
const maxPacket = 1<<16 - 1

// add takes a packet, which must stay as it is until it was delivered.
func (j *joiner) add(packet []byte) {
	flow, s, joinable := parseSegment(packet)
	if flow == nil {
		j.deliver([][]byte{packet}, len(packet))
		return
	}
	for i := range j.runs[:j.count] {
		r := &j.runs[i]
		if !bytes.Equal(r.flow, flow) {
			continue
		}
		if joinable && r.takes(packet, s) {
			r.parts = append(r.parts, packet[s.headers:])
			r.size += s.payload
			// A short or pushed segment is the end of what was sent at once.
			if packet[s.ip+13]&flagPush != 0 || s.payload < r.payload {
				r.parts[0][s.ip+13] |= packet[s.ip+13] & flagPush
				j.flush(i)
			}
			return
		}
		j.flush(i)
		break
	}
	if !joinable || packet[s.ip+13]&flagPush != 0 {
		j.deliver([][]byte{packet}, len(packet))
		return
	}
	if j.count == len(j.runs) {
		j.flush(0)
	}
	r := &j.runs[j.count]
	j.count++
	*r = run{parts: append(r.parts[:0], packet), size: len(packet), flow: flow, segment: s}
}

// done delivers what is left.
func (j *joiner) done() {
	for j.count > 0 {
		j.flush(0)
	}
}

// flush delivers run i and closes the gap.
func (j *joiner) flush(i int) {
	r := j.runs[i]
	if len(r.parts) > 1 {
		if first := r.parts[0]; r.ip == header.IPv4MinimumSize {
			binary.BigEndian.PutUint16(first[2:], uint16(r.size))
		} else {
			binary.BigEndian.PutUint16(first[4:], uint16(r.size-r.ip))
		}
	}
	j.deliver(r.parts, r.size)
	clear(r.parts)
	copy(j.runs[i:j.count], j.runs[i+1:j.count])
	j.count--
	j.runs[j.count] = run{parts: r.parts[:0]}
}

// takes reports whether packet continues r.
func (r *run) takes(packet []byte, s segment) bool {
	first := r.parts[0]
	a, b := first[r.ip:r.headers], packet[s.ip:s.headers]
	return s.ip == r.ip && s.headers == r.headers &&
		s.seq == r.seq+uint32(r.size-r.headers) &&
		s.payload <= r.payload &&
		r.size+s.payload <= maxPacket &&
		sameIP(first[:r.ip], packet[:s.ip]) &&
		// All of the TCP header but the sequence number, the PSH flag and the
		// checksum: acknowledgement, window and options, timestamps among them.
		bytes.Equal(a[8:13], b[8:13]) &&
		a[13]|flagPush == b[13]|flagPush &&
		bytes.Equal(a[14:16], b[14:16]) &&
		bytes.Equal(a[18:], b[18:])
}

// sameIP compares two IP headers but for addresses, length, identification and
// checksum.
func sameIP(a, b []byte) bool {
	if len(a) == header.IPv4MinimumSize {
		return a[1] == b[1] && a[6] == b[6] && a[8] == b[8] // TOS, flags, TTL
	}
	return bytes.Equal(a[:4], b[:4]) && a[7] == b[7] // class and label, hop limit
}

const (
	flagPush = byte(header.TCPFlagPsh)
	flagAck  = byte(header.TCPFlagAck)
)

// parseSegment reads a packet. flow is nil when it is not TCP, or has what this
// does not read: options or extension headers of IP, fragments.
func parseSegment(p []byte) (flow []byte, s segment, joinable bool) {
	switch {
	case len(p) >= header.IPv4MinimumSize+header.TCPMinimumSize && p[0] == 0x45:
		if p[9] != uint8(header.TCPProtocolNumber) || binary.BigEndian.Uint16(p[6:])&^0x4000 != 0 ||
			int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return nil, s, false
		}
		s.ip = header.IPv4MinimumSize
		flow = p[12:24]
	case len(p) >= header.IPv6MinimumSize+header.TCPMinimumSize && p[0]>>4 == 6:
		if p[6] != uint8(header.TCPProtocolNumber) ||
			int(binary.BigEndian.Uint16(p[4:])) != len(p)-header.IPv6MinimumSize {
			return nil, s, false
		}
		s.ip = header.IPv6MinimumSize
		flow = p[8:44]
	default:
		return nil, s, false
	}
	tcp := p[s.ip:]
	s.headers = s.ip + int(tcp[12]>>4)*4
	if s.headers < s.ip+header.TCPMinimumSize || s.headers > len(p) {
		return nil, segment{}, false
	}
	s.payload = len(p) - s.headers
	s.seq = binary.BigEndian.Uint32(tcp[4:])
	return flow, s, s.payload > 0 && tcp[13]&^flagPush == flagAck
}

package tunnel

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// segmenter cuts one TCP packet of up to 64 KiB, as the stack hands it over, into
// packets that fit the MTU. They are alike but for the last, which is what
// WireGuard's UDP segmentation offload wants to see. The zero value has nothing
// to cut.
type segmenter struct {
	header [header.IPv6MinimumSize + header.TCPHeaderMaximumSize]byte
	// size is that of the IP and the TCP header together, ip that of the first.
	size, ip int
	// parts hold the payload; left counts what was not cut yet.
	parts [][]byte
	left  int
	mss   int
	// count is how many segments were cut.
	count uint16
}

// start takes the headers and the payload of a packet, which are not copied and
// must stay until empty reports true. mss is the payload of a segment in bytes. It
// reports false for headers it does not know.
func (s *segmenter) start(ip, tcp []byte, payload [][]byte, mss int) bool {
	if mss <= 0 || len(tcp) < header.TCPMinimumSize || len(ip)+len(tcp) > len(s.header) {
		return false
	}
	switch {
	case len(ip) == header.IPv4MinimumSize && ip[0]>>4 == 4:
	case len(ip) == header.IPv6MinimumSize && ip[0]>>4 == 6:
	default:
		return false
	}
	s.size, s.ip = len(ip)+len(tcp), len(ip)
	copy(s.header[copy(s.header[:], ip):], tcp)
	s.parts, s.left, s.mss, s.count = payload, 0, mss, 0
	for _, p := range payload {
		s.left += len(p)
	}
	return true
}

// empty reports whether all has been cut.
func (s *segmenter) empty() bool { return s.parts == nil }

// next writes the next segment to b and returns its size. b has room for the
// headers and mss bytes.
func (s *segmenter) next(b []byte) int {
	n := copy(b, s.header[:s.size])
	for room := s.mss; room > 0 && len(s.parts) > 0; {
		c := copy(b[n:n+min(room, len(s.parts[0]))], s.parts[0])
		n, room, s.left = n+c, room-c, s.left-c
		if s.parts[0] = s.parts[0][c:]; len(s.parts[0]) == 0 {
			s.parts = s.parts[1:]
		}
	}
	b = b[:n]
	s.finish(b)
	if s.left == 0 {
		s.parts = nil
	}
	return n
}

// finish makes the headers of a segment its own.
func (s *segmenter) finish(b []byte) {
	var src, dst []byte
	if s.ip == header.IPv4MinimumSize {
		ip := header.IPv4(b)
		ip.SetTotalLength(uint16(len(b)))
		ip.SetID(ip.ID() + s.count)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		src, dst = b[12:16], b[16:20]
	} else {
		header.IPv6(b).SetPayloadLength(uint16(len(b) - s.ip))
		src, dst = b[8:24], b[24:40]
	}
	tcp := header.TCP(b[s.ip:])
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(s.count)*uint32(s.mss))
	if s.left > 0 {
		tcp.SetFlags(uint8(tcp.Flags() &^ (header.TCPFlagFin | header.TCPFlagPsh)))
	}
	if s.count > 0 { // RFC 3168 section 6.1.2: once for a reduced window
		tcp.SetFlags(uint8(tcp.Flags() &^ header.TCPFlagCwr))
	}
	s.count++
	tcp.SetChecksum(0)
	var length [4]byte
	binary.BigEndian.PutUint16(length[:], uint16(len(tcp)))
	length[3] = uint8(header.TCPProtocolNumber)
	sum := checksum.Checksum(length[:], 0)
	sum = checksum.Checksum(src, sum)
	sum = checksum.Checksum(dst, sum)
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
}

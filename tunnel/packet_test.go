package tunnel

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"pgregory.net/rapid"
)

// packetOf makes a TCP packet with valid lengths and checksums.
func packetOf(v6 bool, port uint16, seq uint32, flags header.TCPFlags, options, payload []byte) []byte {
	ip := header.IPv4MinimumSize
	if v6 {
		ip = header.IPv6MinimumSize
	}
	p := make([]byte, ip+header.TCPMinimumSize+len(options), ip+header.TCPMinimumSize+len(options)+len(payload))
	p = append(p, payload...)
	if v6 {
		header.IPv6(p).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(p) - ip), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16([16]byte{0xfd, 15: 1}), DstAddr: tcpip.AddrFrom16([16]byte{0xfd, 15: 2}),
		})
	} else {
		header.IPv4(p).Encode(&header.IPv4Fields{
			TotalLength: uint16(len(p)), ID: 7, Flags: header.IPv4FlagDontFragment, TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
			SrcAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}),
		})
		header.IPv4(p).SetChecksum(^header.IPv4(p).CalculateChecksum())
	}
	tcp := header.TCP(p[ip:])
	tcp.Encode(&header.TCPFields{
		SrcPort: port, DstPort: 7, SeqNum: seq, AckNum: 99, Flags: flags, WindowSize: 1000,
		DataOffset: uint8(header.TCPMinimumSize + len(options)),
	})
	copy(tcp[header.TCPMinimumSize:], options)
	tcp.SetChecksum(checksumOf(p, ip))
	return p
}

// checksumOf computes a TCP checksum the slow way of RFC 9293 section 3.1.
func checksumOf(p []byte, ip int) uint16 {
	tcp := slices.Clone(p[ip:])
	tcp[16], tcp[17] = 0, 0
	pseudo := slices.Clone(p[12:20])
	if ip == header.IPv6MinimumSize {
		pseudo = slices.Clone(p[8:40])
	}
	pseudo = append(pseudo, 0, uint8(header.TCPProtocolNumber))
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(tcp)))
	all := append(pseudo, tcp...)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	var sum uint32
	for i := 0; i < len(all); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(all[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// What is cut is a row of valid packets that fit, whose payloads are the whole in
// order, and what joins them gets the whole back.
func TestCutAndJoinProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		payload := make([]byte, rapid.IntRange(0, 60000).Draw(t, "payload"))
		rand.NewChaCha8([32]byte{}).Read(payload)
		options := make([]byte, 4*rapid.IntRange(0, 10).Draw(t, "options"))
		seq := rapid.Uint32().Draw(t, "seq")
		flags := header.TCPFlagAck | rapid.SampledFrom([]header.TCPFlags{0, header.TCPFlagPsh, header.TCPFlagFin | header.TCPFlagPsh, header.TCPFlagCwr}).Draw(t, "flags")
		mss := rapid.IntRange(1, 9000).Draw(t, "mss")
		if len(payload)/mss > 2000 {
			mss = 1000
		}
		whole := packetOf(v6, 5, seq, flags, options, payload)
		ip := len(whole) - len(payload) - len(options) - header.TCPMinimumSize
		headers := len(whole) - len(payload)

		var s segmenter
		var parts [][]byte
		for rest := whole[headers:]; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "part")
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		if parts == nil {
			parts = [][]byte{nil}
		}
		if !s.start(whole[:ip], whole[ip:headers], parts, mss) {
			t.Fatal("not taken")
		}
		var segments [][]byte
		var got []byte
		for buf := make([]byte, headers+mss); !s.empty(); {
			segment := slices.Clone(buf[:s.next(buf)])
			flow, parsed, _ := parseSegment(segment)
			if flow == nil || parsed.seq != seq+uint32(len(got)) {
				t.Fatalf("segment %d: %v", len(segments), parsed)
			}
			tcp := header.TCP(segment[ip:])
			if tcp.Checksum() != checksumOf(segment, ip) {
				t.Fatalf("segment %d: checksum %x, want %x", len(segments), tcp.Checksum(), checksumOf(segment, ip))
			}
			if !v6 && !header.IPv4(segment).IsChecksumValid() {
				t.Fatalf("segment %d: bad checksum of IP", len(segments))
			}
			last := s.empty()
			want := flags
			if !last {
				want &^= header.TCPFlagFin | header.TCPFlagPsh
			}
			if len(segments) > 0 {
				want &^= header.TCPFlagCwr
			}
			if tcp.Flags() != want {
				t.Fatalf("segment %d: flags %s, want %s", len(segments), tcp.Flags(), want)
			}
			got = append(got, segment[headers:]...)
			segments = append(segments, segment)
		}
		if !bytes.Equal(got, payload) {
			t.Fatal("the segments' payload is not the whole's")
		}

		got = got[:0]
		packets := 0
		j := joiner{deliver: func(parts [][]byte, size int) {
			joined := slices.Concat(parts...)
			if _, parsed, _ := parseSegment(joined); len(joined) != size || parsed.payload != size-headers || parsed.seq != seq+uint32(len(got)) {
				t.Fatalf("delivered %v of %d bytes", parsed, size)
			}
			packets++
			got = append(got, joined[headers:]...)
		}}
		for _, s := range segments {
			j.add(s)
		}
		j.done()
		if !bytes.Equal(got, payload) {
			t.Fatal("the joined payload is not the whole's")
		}
		if flags&^flagsJoined == 0 && packets != 1 {
			t.Fatalf("%d segments were joined to %d packets", len(segments), packets)
		}
	})
}

const flagsJoined = header.TCPFlagAck | header.TCPFlagPsh

// However packets of several connections arrive, each connection's bytes are
// delivered in the order in which they came, none is lost or doubled, and nothing
// is kept back after done.
func TestJoinKeepsOrderProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type end struct {
			v6   bool
			port uint16
		}
		next := make(map[end]uint32)
		sent, got := make(map[end][]byte), make(map[end][]byte)
		headerOf := make(map[end][]byte)
		j := joiner{}
		j.deliver = func(parts [][]byte, size int) {
			p := slices.Concat(parts...)
			flow, s, _ := parseSegment(p)
			if flow == nil || len(p) != size {
				t.Fatalf("delivered %x", p)
			}
			e := end{p[0]>>4 == 6, binary.BigEndian.Uint16(p[s.ip:])}
			got[e] = append(got[e], p[s.headers:]...)
			if !bytes.Equal(flow, headerOf[e]) {
				t.Fatalf("delivered for flow %x, not %x", flow, headerOf[e])
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "packets") {
			e := end{rapid.Bool().Draw(t, "v6"), uint16(rapid.IntRange(1, 12).Draw(t, "port"))}
			payload := bytes.Repeat([]byte{byte(len(sent[e]))}, rapid.SampledFrom([]int{0, 1, 100, 100, 100, 60000}).Draw(t, "size"))
			flags := header.TCPFlagAck | rapid.SampledFrom([]header.TCPFlags{0, 0, 0, header.TCPFlagPsh, header.TCPFlagFin, header.TCPFlagRst}).Draw(t, "flags")
			options := []byte{1, 1, 1, byte(rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "option"))}
			if rapid.IntRange(0, 9).Draw(t, "gap") == 0 {
				next[e] += 5
			}
			p := packetOf(e.v6, e.port, next[e], flags, options, payload)
			next[e] += uint32(len(payload))
			sent[e] = append(sent[e], payload...)
			headerOf[e], _, _ = parseSegment(slices.Clone(p))
			j.add(p)
		}
		j.done()
		if j.count != 0 {
			t.Fatalf("%d runs are kept back", j.count)
		}
		for e, want := range sent {
			if !bytes.Equal(got[e], want) {
				t.Fatalf("connection %v: %d bytes sent, %d delivered", e, len(want), len(got[e]))
			}
		}
	})
}

// FuzzJoin: packets come from peers, who may send what they like. Every byte
// arrives, and none is read beyond its packet.
func FuzzJoin(f *testing.F) {
	a := packetOf(false, 1, 1, header.TCPFlagAck, nil, make([]byte, 100))
	b := packetOf(false, 1, 101, header.TCPFlagAck, nil, make([]byte, 100))
	f.Add(a, b)
	f.Add(packetOf(true, 1, 1, header.TCPFlagAck, make([]byte, 12), []byte("x")), []byte{0x60})
	f.Add(a[:21], b[:len(b)-1])
	f.Add([]byte{0x45}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) == 0 || len(b) == 0 || len(a) > maxPacket || len(b) > maxPacket {
			return // WireGuard hands over no such packet
		}
		delivered, packets := 0, 0
		j := joiner{deliver: func(parts [][]byte, size int) {
			sum := 0
			for _, p := range parts {
				sum += len(p)
			}
			if sum != size || size > maxPacket {
				t.Fatalf("%d bytes delivered as %d", sum, size)
			}
			delivered += sum
			packets++
		}}
		a, b = slices.Clone(a), slices.Clone(b)
		_, s, _ := parseSegment(b)
		j.add(a[:len(a):len(a)])
		j.add(b[:len(b):len(b)])
		j.done()
		want := len(a) + len(b)
		if packets == 1 {
			want -= s.headers
		}
		if delivered != want {
			t.Fatalf("%d bytes came, %d were delivered in %d packets", len(a)+len(b), delivered, packets)
		}
	})
}

// Package stream carries one connection for one service from an edge to an agent,
// inside the tunnel. It is the seam behind which pooled connections can one day
// become streams of a few.
//
// On the wire the edge opens a TCP connection to the agent's ingress port and sends
// a PROXY protocol version 2 header (HAProxy's proxy-protocol.txt, section 2.2) with
// the visitor's address, or the command LOCAL when there is none, and one TLV of type
// 0xE0 whose value is the service's id. What follows in this direction is the
// visitor's bytes. Nothing waits for an answer: the header goes with the first bytes.
//
// The agent first sends one byte. 0 is "open", and the service's bytes follow. 1 is
// "refused" and 2 is "service down"; one byte with a length and so many bytes of
// reason follow, and the end. The edge reads it with its first Read.
package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/pires/go-proxyproto"
)

// What the first Read of a dialled connection can be tested for.
var (
	// ErrRefused: the agent will not open this service for anybody: the fleet
	// did not declare it, or the agent's owner did not allow it.
	ErrRefused = errors.New("refused by the agent")
	// ErrServiceDown: the agent could not reach the service.
	ErrServiceDown = errors.New("service is down")
	// ErrNoAnswer: the connection ended before the agent said anything, as when
	// the agent dies. Whether the service got something is not known. It comes
	// with what the connection ended with, io.ErrUnexpectedEOF for its plain end.
	ErrNoAnswer = errors.New("no answer from the agent")
	// ErrHeader: what came is no header of this package.
	ErrHeader = errors.New("not a stream header")
)

// serviceTLV is the header's TLV with the service's id, in the range that the
// protocol leaves to applications.
const serviceTLV proxyproto.PP2Type = 0xE0

// Bounds of what is read before anything is trusted, in bytes.
const (
	maxHeader  = 512
	maxService = 128
)

// The agent's first byte.
const (
	statusOpen = iota
	statusRefused
	statusDown
)

// Target is what a stream is for.
type Target struct {
	// Agent is the agent's tunnel address.
	Agent netip.Addr
	// Service is the id in the agent's signed config: 1 to 128 bytes.
	Service string
	// Client and Server are the two ends of the visitor's connection; both zero
	// for a stream that no single visitor is behind.
	Client, Server netip.AddrPort
}

// Dialer opens streams.
type Dialer struct {
	// Dial opens a TCP connection through the tunnel; a tunnel.Device's Dial.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Port is the agents' ingress port.
	Port uint16
}

// Stream opens a stream. It returns when the agent has taken the connection, not
// when the service has: that comes with the first Read, as ErrRefused,
// ErrServiceDown or ErrNoAnswer when it did not. The connection has CloseWrite where the tunnel's
// does; its methods may be called as net.Conn allows.
func (d Dialer) Stream(ctx context.Context, t Target) (net.Conn, error) {
	header, err := encode(t)
	if err != nil {
		return nil, err
	}
	c, err := d.Dial(ctx, netip.AddrPortFrom(t.Agent, d.Port))
	if err != nil {
		return nil, err
	}
	return &outbound{Conn: c, header: header}, nil
}

func encode(t Target) ([]byte, error) {
	if len(t.Service) == 0 || len(t.Service) > maxService {
		return nil, fmt.Errorf("%w: a service id has 1 to %d bytes, not %d", ErrHeader, maxService, len(t.Service))
	}
	h := proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if t.Client.IsValid() && t.Server.IsValid() {
		from, to := t.Client.Addr().Unmap(), t.Server.Addr().Unmap()
		h.Command, h.TransportProtocol = proxyproto.PROXY, proxyproto.TCPv4
		if !from.Is4() || !to.Is4() {
			h.TransportProtocol = proxyproto.TCPv6
			from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
		}
		h.SourceAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, t.Client.Port()))
		h.DestinationAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, t.Server.Port()))
	}
	if err := h.SetTLVs([]proxyproto.TLV{{Type: serviceTLV, Value: []byte(t.Service)}}); err != nil {
		return nil, fmt.Errorf("encode stream header: %w", err)
	}
	out, err := h.Format()
	if err != nil {
		return nil, fmt.Errorf("encode stream header: %w", err)
	}
	return out, nil
}

// outbound is an edge's end. The header waits for the first bytes, or for the first
// Read when the other side is to speak first.
type outbound struct {
	net.Conn

	write  sync.Mutex
	header []byte // until it is sent

	read   sync.Mutex
	opened bool
	failed error
}

func (o *outbound) Write(p []byte) (int, error) {
	o.write.Lock()
	defer o.write.Unlock()
	if o.header == nil {
		return o.Conn.Write(p)
	}
	head := len(o.header)
	first := append(o.header, p...)
	o.header = nil
	n, err := o.Conn.Write(first)
	return max(0, n-head), err
}

func (o *outbound) flush() error {
	o.write.Lock()
	defer o.write.Unlock()
	if o.header == nil {
		return nil
	}
	header := o.header
	o.header = nil
	_, err := o.Conn.Write(header)
	return err
}

func (o *outbound) Read(p []byte) (int, error) {
	o.read.Lock()
	defer o.read.Unlock()
	if o.failed != nil {
		return 0, o.failed
	}
	if !o.opened {
		if err := o.open(); err != nil {
			// A deadline may be moved and the read tried again.
			if !isTimeout(err) {
				o.failed = err
			}
			return 0, err
		}
		o.opened = true
	}
	return o.Conn.Read(p)
}

func (o *outbound) open() error {
	if err := o.flush(); err != nil {
		return err
	}
	var status [2]byte
	if _, err := io.ReadFull(o.Conn, status[:1]); err != nil {
		switch {
		case isTimeout(err), errors.Is(err, net.ErrClosed):
			return err // this end's doing
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	var kind error
	switch status[0] {
	case statusOpen:
		return nil
	case statusRefused:
		kind = ErrRefused
	case statusDown:
		kind = ErrServiceDown
	default:
		return fmt.Errorf("%w: the agent began with %#x", ErrHeader, status[0])
	}
	// The kind is known; the reason is only for people.
	if _, err := io.ReadFull(o.Conn, status[1:]); err != nil {
		return kind
	}
	reason := make([]byte, status[1])
	if n, err := io.ReadFull(o.Conn, reason); err != nil || n == 0 {
		return kind
	}
	return fmt.Errorf("%w: %s", kind, printable(string(reason)))
}

// CloseWrite ends this direction, when the tunnel's connection can.
func (o *outbound) CloseWrite() error {
	if err := o.flush(); err != nil {
		return err
	}
	return closeWrite(o.Conn)
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}

// Inbound is a stream as an agent takes it. One of Accept, Refuse and Down answers
// it; until then the edge waits.
type Inbound struct {
	// Service is the id asked for.
	Service string
	// Client is the visitor's address; zero when no single one is behind it.
	Client netip.AddrPort

	conn net.Conn
	// linger is how long an edge may take to take an answer that is the end.
	linger time.Duration
}

// Read takes the header off a connection that was accepted at the ingress port,
// within timeout. Bytes after the header stay in the connection. On an error,
// ErrHeader among them, the connection is closed.
func Read(c net.Conn, timeout time.Duration) (*Inbound, error) {
	in, err := read(c, timeout)
	if err != nil {
		return nil, errors.Join(err, ignoreClosed(c.Close()))
	}
	return in, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func read(c net.Conn, timeout time.Duration) (*Inbound, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	in, err := decode(c)
	if err != nil {
		return nil, err
	}
	in.conn, in.linger = c, answerTimeout
	return in, c.SetReadDeadline(time.Time{})
}

// fixed is the length of a header before what its own length counts: signature,
// version and command, family and protocol, length.
const fixed = 16

// decode reads exactly one header.
func decode(r io.Reader) (*Inbound, error) {
	head := make([]byte, fixed, maxHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	if !bytes.HasPrefix(head, proxyproto.SIGV2) {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrHeader)
	}
	length := int(head[14])<<8 | int(head[15])
	if length > maxHeader-fixed {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrHeader, length)
	}
	head = head[:fixed+length]
	if _, err := io.ReadFull(r, head[fixed:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	tlvs, err := h.TLVs()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	in := &Inbound{}
	for _, t := range tlvs {
		if t.Type != serviceTLV {
			continue
		}
		if in.Service != "" || len(t.Value) == 0 || len(t.Value) > maxService {
			return nil, fmt.Errorf("%w: it must name one service, in at most %d bytes", ErrHeader, maxService)
		}
		in.Service = string(t.Value)
	}
	if in.Service == "" {
		return nil, fmt.Errorf("%w: it names no service", ErrHeader)
	}
	if a, ok := h.SourceAddr.(*net.TCPAddr); ok && h.Command == proxyproto.PROXY {
		in.Client = a.AddrPort()
		in.Client = netip.AddrPortFrom(in.Client.Addr().Unmap(), in.Client.Port())
	}
	return in, nil
}

// Accept tells the edge that the service is open, and returns the connection, whose
// bytes are the service's and the visitor's from here on.
func (in *Inbound) Accept() (net.Conn, error) {
	if _, err := in.conn.Write([]byte{statusOpen}); err != nil {
		return nil, errors.Join(err, ignoreClosed(in.conn.Close()))
	}
	return in.conn, nil
}

// Refuse tells the edge that this agent will not open the service, and closes once
// the edge has taken the answer, or after ten seconds.
func (in *Inbound) Refuse(reason string) error { return in.end(statusRefused, reason) }

// Down tells the edge that the service cannot be reached, and closes as Refuse does.
func (in *Inbound) Down(reason string) error { return in.end(statusDown, reason) }

const (
	// answerTimeout is time for an answer of a few bytes, on a bad line too, behind
	// all that the edge is still sending.
	answerTimeout = 10 * time.Second
	// maxUnwanted is how much of the visitor's an edge may send until then.
	maxUnwanted = 8 << 20
)

func (in *Inbound) end(status byte, reason string) error {
	reason = reason[:min(len(reason), 255)]
	err := in.conn.SetDeadline(time.Now().Add(in.linger))
	if err == nil {
		_, err = in.conn.Write(append([]byte{status, byte(len(reason))}, reason...))
	}
	if err == nil {
		err = closeWrite(in.conn)
	}
	if err == nil {
		// To close on bytes that nobody read is a reset, which may overtake the
		// answer (RFC 9293 section 3.6). How the edge ends does not matter.
		io.CopyN(io.Discard, in.conn, maxUnwanted)
	}
	return errors.Join(err, ignoreClosed(in.conn.Close()))
}

// Close closes the connection without an answer.
func (in *Inbound) Close() error { return in.conn.Close() }

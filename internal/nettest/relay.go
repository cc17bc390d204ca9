// Package nettest makes networks for tests: hosts that are network namespaces,
// joined by veth pairs, and a UDP relay that delays, loses, reorders and rebinds.
// Only tests import it.
package nettest

import (
	"container/heap"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Shape is what a Relay does to each datagram, in either direction.
type Shape struct {
	// Delay of every datagram, one way.
	Delay time.Duration
	// Loss and Reorder are shares from 0 to 1. A datagram that is reordered is
	// not delayed, and so overtakes those before it.
	Loss, Reorder float64
}

// Relay passes UDP datagrams between clients and one server, like a NAT on a bad
// line: the server sees a port of the relay's for each client. Its dice are the
// same in every run; which datagram meets which throw is not.
type Relay struct {
	server netip.AddrPort
	listen func() (*net.UDPConn, error)
	front  *net.UDPConn
	group  sync.WaitGroup
	done   chan struct{}
	wake   chan struct{}

	mu      sync.Mutex
	shape   Shape
	dice    *rand.Rand
	clients map[netip.AddrPort]*net.UDPConn
	// forsaken clients are never served again.
	forsaken map[netip.AddrPort]bool
	queue    datagrams
	passed   int
	lost     int
}

// NewRelay starts a relay to server. It ends with the test.
func NewRelay(t testing.TB, server netip.AddrPort, shape Shape) *Relay {
	t.Helper()
	return newRelay(t, server, shape, func() (*net.UDPConn, error) { return listenUDP(server) })
}

func newRelay(t testing.TB, server netip.AddrPort, shape Shape, listen func() (*net.UDPConn, error)) *Relay {
	t.Helper()
	front, err := listen()
	if err != nil {
		t.Fatalf("start relay: %v", err)
	}
	r := &Relay{
		server:   server,
		listen:   listen,
		front:    front,
		done:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		shape:    shape,
		dice:     rand.New(rand.NewPCG(1, 2)),
		clients:  make(map[netip.AddrPort]*net.UDPConn),
		forsaken: make(map[netip.AddrPort]bool),
	}
	r.group.Go(r.fromClients)
	r.group.Go(r.send)
	t.Cleanup(func() {
		close(r.done)
		front.Close()
		r.Rebind()
		r.group.Wait()
	})
	return r
}

// Addr is where clients of the same host send to, at loopback.
func (r *Relay) Addr() netip.AddrPort {
	port := r.front.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if r.server.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), port)
}

// SetShape changes what happens to datagrams from now on.
func (r *Relay) SetShape(s Shape) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shape = s
}

// Rebind forgets the clients, as a NAT that has restarted: the server sees their
// next datagrams come from other ports, and what it sends to the old ones is lost.
func (r *Relay) Rebind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.clients {
		c.Close()
	}
	clear(r.clients)
}

// Forsake loses for good what comes from the clients that there are and what is sent
// to them, as a NAT does whose mapping has gone bad and is kept by every new datagram.
// A client that goes on from another port is served.
func (r *Relay) Forsake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for from := range r.clients {
		r.forsaken[from] = true
	}
}

// Counts tells how many datagrams were passed on and how many were lost.
func (r *Relay) Counts() (passed, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed, r.lost
}

func (r *Relay) fromClients() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := r.front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if back, ok := r.client(from); ok {
			r.pass(from, buf[:n], func(b []byte) { back.WriteToUDPAddrPort(b, r.server) })
		}
	}
}

// client is the socket that stands for a client towards the server.
func (r *Relay) client(from netip.AddrPort) (*net.UDPConn, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.done:
		return nil, false
	default:
	}
	if c, ok := r.clients[from]; ok {
		return c, true
	}
	c, err := r.listen()
	if err != nil {
		return nil, false
	}
	r.clients[from] = c
	r.group.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			r.pass(from, buf[:n], func(b []byte) { r.front.WriteToUDPAddrPort(b, from) })
		}
	})
	return c, true
}

// pass throws the dice over a datagram of a client's, in either direction.
func (r *Relay) pass(client netip.AddrPort, b []byte, send func([]byte)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forsaken[client] || r.dice.Float64() < r.shape.Loss {
		r.lost++
		return
	}
	r.passed++
	due := time.Now()
	if r.dice.Float64() >= r.shape.Reorder {
		due = due.Add(r.shape.Delay)
	}
	heap.Push(&r.queue, datagram{due, r.passed, append([]byte(nil), b...), send})
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// send sends what is due.
func (r *Relay) send() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		r.mu.Lock()
		var due []datagram
		for now := time.Now(); len(r.queue) > 0 && !r.queue[0].due.After(now); {
			due = append(due, heap.Pop(&r.queue).(datagram))
		}
		wait := time.Hour
		if len(r.queue) > 0 {
			wait = time.Until(r.queue[0].due)
		}
		r.mu.Unlock()
		for _, d := range due {
			d.send(d.bytes)
		}
		timer.Reset(wait)
		select {
		case <-r.done:
			return
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// datagram waits to be sent.
type datagram struct {
	due   time.Time
	order int
	bytes []byte
	send  func([]byte)
}

// datagrams is a heap, the earliest first.
type datagrams []datagram

func (q datagrams) Len() int { return len(q) }
func (q datagrams) Less(i, j int) bool {
	return q[i].due.Before(q[j].due) || q[i].due.Equal(q[j].due) && q[i].order < q[j].order
}
func (q datagrams) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *datagrams) Push(x any)   { *q = append(*q, x.(datagram)) }
func (q *datagrams) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = datagram{}
	*q = old[:len(old)-1]
	return last
}

// listenUDP opens a socket of server's family, with room for a burst as far as the
// system allows.
func listenUDP(server netip.AddrPort) (*net.UDPConn, error) {
	network := "udp6"
	if server.Addr().Is4() {
		network = "udp4"
	}
	c, err := net.ListenUDP(network, nil)
	if err != nil {
		return nil, err
	}
	c.SetReadBuffer(4 << 20)
	c.SetWriteBuffer(4 << 20)
	return c, nil
}

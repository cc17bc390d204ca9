// Package builtin is the authoritative DNS server inside `kokoa serve`. It keeps its
// zones in memory, answers from an immutable snapshot of each, and is itself a
// dns.Zone, a dns.Batcher and a dns.Adder.
//
// It answers for its own zones and nothing else: no recursion, no forwarding. It
// keeps types that need no further lookups (see Types); wildcards are synthesised as
// RFC 4592 says, ANY is answered as RFC 8482 section 4.2 says, and what does not
// exist as RFC 2308 says. Who holds a zone's TSIG key can look and change by hand:
//
//	dig @HOST -y hmac-sha256:NAME:SECRET example.com AXFR
//	nsupdate -y hmac-sha256:NAME:SECRET
//
// An answer over UDP is small (1,232 bytes at most, RFC 9715), and a network that
// asks for more than 1,000 in a second gets further ones empty and truncated, so that
// a resolver asks again over TCP and a forged source is no use.
//
// With a file the zones survive a restart. It is written in the background, about a
// second after a change: a crash in between loses that second, which the next turn of
// the reconciler makes good, and no change waits for the disk.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// Types are the record types that the server keeps beside the SOA and NS records of
// each zone, which it makes itself.
var Types = []dns.Type{dns.A, dns.AAAA, dns.TXT, "CAA", "MX", "SRV"}

// Options say what to serve.
type Options struct {
	// Zones by name. Where one lies in another, the longer one answers.
	Zones []string
	// Nameservers are the names in the zones' NS records, the primary first. None
	// is "ns.<zone>".
	Nameservers []string
	// Keys allow transfers and updates of a zone, by its name. A zone without a
	// key has neither. One name with two different keys is an error.
	Keys map[string]dns.Key
	// File keeps the zones; empty keeps them in memory only.
	File string
	// Log may be nil.
	Log *slog.Logger
}

// Server serves zones. It is safe for concurrent use.
type Server struct {
	zones   map[string]*Zone
	secrets map[string]string // by key name with dot, in base64
	file    string
	log     *slog.Logger
	dirty   chan struct{}
	limit   limiter
	now     func() time.Time
}

// New makes a server whose zones hold what the file holds. That there is no file is
// no error; one that cannot be read is.
func New(o Options) (*Server, error) {
	s := &Server{zones: map[string]*Zone{}, secrets: map[string]string{}, file: o.File, log: o.Log, dirty: make(chan struct{}, 1), limit: limiter{seed: maphash.MakeSeed()}, now: time.Now}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, n := range slices.Concat(o.Zones, o.Nameservers) {
		if _, ok := mdns.IsDomainName(n); !ok || n == "" || wire.Name(n) != n {
			return nil, fmt.Errorf("%q is no name in lower case without trailing dot", n)
		}
	}
	for _, name := range o.Zones {
		key := o.Keys[name]
		if !key.IsZero() {
			if err := wire.CheckKey(key); err != nil {
				return nil, fmt.Errorf("zone %s: %w", name, err)
			}
			id, secret := wire.FQDN(key.Name), wire.Secret(key)
			if old, ok := s.secrets[id]; ok && old != secret {
				return nil, fmt.Errorf("zone %s: another zone has a key of the name %s with another secret", name, key.Name)
			}
			s.secrets[id] = secret
		}
		s.zones[name] = newZone(name, o.Nameservers, key, s.changed)
	}
	if s.file != "" {
		if err := s.load(); err != nil {
			return nil, fmt.Errorf("load dns zones: %w", err)
		}
	}
	return s, nil
}

// Zone is a zone of the server; nil when it is none.
func (s *Server) Zone(name string) *Zone { return s.zones[name] }

// Zones is every zone by name, as dns.Driver wants them.
func (s *Server) Zones() map[string]dns.Zone {
	m := make(map[string]dns.Zone, len(s.zones))
	for name, z := range s.zones {
		m[name] = z
	}
	return m
}

// Serve answers on both until ctx ends, and closes them. It returns after the last
// answer is sent and the file is written. It may be called once at a time.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	servers := []*mdns.Server{
		{PacketConn: udp, UDPSize: maxRequest},
		{Listener: bounded{netutil.LimitListener(tcp, maxConns)}, IdleTimeout: func() time.Duration { return idle }, ReadTimeout: idle},
	}
	failed := make(chan error, len(servers))
	var running, ready sync.WaitGroup
	for _, m := range servers {
		m.Handler, m.TsigSecret, m.MsgAcceptFunc = mdns.HandlerFunc(s.handle), s.secrets, accept
		ready.Add(1)
		started := sync.OnceFunc(ready.Done)
		m.NotifyStartedFunc = started
		running.Go(func() {
			defer started()
			if err := m.ActivateAndServe(); err != nil {
				failed <- err
			}
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var saver sync.WaitGroup
	saver.Go(func() { s.keepSaving(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		cancel()
	}
	ready.Wait() // miekg/dns cannot shut down what has not started
	for _, m := range servers {
		m.Shutdown()
	}
	running.Wait()
	udp.Close()
	tcp.Close()
	saver.Wait()
	if err != nil {
		return fmt.Errorf("serve dns: %w", err)
	}
	return nil
}

const (
	maxRequest = 4096
	maxConns   = 256
	idle       = 5 * time.Second
)

// accept lets updates in, which miekg/dns by default does not.
func accept(h mdns.Header) mdns.MsgAcceptAction {
	const response = 1 << 15
	switch opcode := int(h.Bits>>11) & 0xF; {
	case h.Bits&response != 0:
		return mdns.MsgIgnore
	case opcode != mdns.OpcodeQuery && opcode != mdns.OpcodeUpdate:
		return mdns.MsgRejectNotImplemented
	case h.Qdcount != 1, opcode == mdns.OpcodeQuery && (h.Ancount > 0 || h.Nscount > 1), h.Arcount > 3:
		return mdns.MsgReject
	}
	return mdns.MsgAccept
}

// bounded gives each write its time: a client that does not read must not keep a
// connection for ever.
type bounded struct{ net.Listener }

func (l bounded) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return boundedConn{c}, nil
}

type boundedConn struct{ net.Conn }

func (c boundedConn) Write(b []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(idle))
	return c.Conn.Write(b)
}

// handle answers one request.
func (s *Server) handle(w mdns.ResponseWriter, r *mdns.Msg) {
	_, overUDP := w.RemoteAddr().(*net.UDPAddr)
	a := new(mdns.Msg)
	a.SetReply(r)
	a.RecursionAvailable = false
	a.Compress = true
	if len(r.Question) != 1 { // a bare header passes accept
		a.Rcode = mdns.RcodeFormatError
		w.WriteMsg(a)
		return
	}
	q := r.Question[0]
	size := mdns.MaxMsgSize
	if overUDP {
		size = mdns.MinMsgSize
	}
	var opt *mdns.OPT
	if o := r.IsEdns0(); o != nil {
		opt = &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
		opt.SetUDPSize(maxAnswer)
		if overUDP {
			size = min(max(int(o.UDPSize()), mdns.MinMsgSize), maxAnswer)
		}
		if o.Version() != 0 {
			a.Extra = append(a.Extra, opt)
			a.Rcode = mdns.RcodeBadVers
			w.WriteMsg(a)
			return
		}
	}
	if overUDP && !s.limit.allow(w.RemoteAddr().(*net.UDPAddr).AddrPort().Addr(), s.now()) {
		a.Truncated = true
		w.WriteMsg(a)
		return
	}
	key, badSig, rcode := s.verify(w, r)
	zone := s.zoneOf(wire.Name(q.Name))
	switch {
	case rcode != mdns.RcodeSuccess:
		a.Rcode = rcode
	case q.Qclass != mdns.ClassINET || zone == nil:
		a.Rcode = mdns.RcodeRefused
		if r.Opcode == mdns.OpcodeUpdate {
			a.Rcode = mdns.RcodeNotAuth
		}
	case r.Opcode == mdns.OpcodeUpdate:
		a.Rcode = s.update(w, zone, key, r)
	case q.Qtype == mdns.TypeAXFR || q.Qtype == mdns.TypeIXFR:
		if a.Rcode = s.mayTransfer(zone, key, q, overUDP); a.Rcode == mdns.RcodeSuccess {
			zone.transfer(w, r, key)
			return
		}
	default:
		zone.live.Load().answer(a, q, rand.Int())
	}
	if opt != nil {
		a.Extra = append(a.Extra, opt)
	}
	if overUDP {
		a.Truncate(size - signatureSize(key))
	}
	// A signature stands last.
	if badSig != nil {
		a.Extra = append(a.Extra, badSig)
	}
	sign(a, key)
	w.WriteMsg(a)
}

// maxAnswer over UDP is what passes every network unfragmented (RFC 9715).
const maxAnswer = 1232

// zoneOf is the longest zone that name is in.
func (s *Server) zoneOf(name string) *Zone {
	for {
		if z, ok := s.zones[name]; ok {
			return z
		}
		i, end := mdns.NextLabel(name, 0)
		if end {
			return nil
		}
		name = name[i:]
	}
}

func (s *Server) mayTransfer(z *Zone, key dns.Key, q mdns.Question, overUDP bool) int {
	if wire.Name(q.Name) != z.name {
		return mdns.RcodeNotAuth
	}
	if overUDP || !z.allows(key) {
		return mdns.RcodeRefused
	}
	return mdns.RcodeSuccess
}

func (s *Server) update(w mdns.ResponseWriter, z *Zone, key dns.Key, r *mdns.Msg) int {
	q := r.Question[0]
	switch {
	case q.Qtype != mdns.TypeSOA:
		return mdns.RcodeFormatError
	case wire.Name(q.Name) != z.name:
		return mdns.RcodeNotAuth
	case !z.allows(key):
		return mdns.RcodeRefused
	}
	rcode, changed := z.update(r)
	if changed {
		s.log.Info("zone updated", "zone", z.name, "serial", z.live.Load().serial, "addr", w.RemoteAddr().String())
	}
	return rcode
}

func (s *Server) changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// verify is the key that signed r, zero when it is not signed. When the signature does
// not hold, bad says why (RFC 8945 section 5.2).
func (s *Server) verify(w mdns.ResponseWriter, r *mdns.Msg) (key dns.Key, bad *mdns.TSIG, rcode int) {
	var sig *mdns.TSIG
	for _, rr := range r.Extra {
		t, ok := rr.(*mdns.TSIG)
		if ok && sig != nil {
			// miekg/dns verifies the first: the second could name another key.
			return dns.Key{}, nil, mdns.RcodeFormatError
		}
		if ok {
			sig = t
		}
	}
	if sig == nil {
		return dns.Key{}, nil, mdns.RcodeSuccess
	}
	if r.IsTsig() == nil {
		return dns.Key{}, nil, mdns.RcodeFormatError
	}
	key = dns.Key{Name: wire.Name(sig.Hdr.Name), Algorithm: wire.Name(sig.Algorithm)}
	bad = &mdns.TSIG{
		Hdr:       mdns.RR_Header{Name: sig.Hdr.Name, Rrtype: mdns.TypeTSIG, Class: mdns.ClassANY},
		Algorithm: sig.Algorithm, Fudge: sig.Fudge, OrigId: r.Id,
	}
	switch err := w.TsigStatus(); {
	case !s.knows(key):
		bad.Error = mdns.RcodeBadKey
	case errors.Is(err, mdns.ErrTime):
		bad.Error = mdns.RcodeBadTime
		bad.TimeSigned = sig.TimeSigned
		bad.OtherLen, bad.OtherData = 6, fmt.Sprintf("%012x", time.Now().Unix())
	case err != nil:
		bad.Error = mdns.RcodeBadSig
	default:
		return key, nil, mdns.RcodeSuccess
	}
	return dns.Key{}, bad, mdns.RcodeNotAuth
}

func (s *Server) knows(key dns.Key) bool {
	for _, z := range s.zones {
		if z.allows(key) {
			return true
		}
	}
	return false
}

func sign(a *mdns.Msg, key dns.Key) {
	if !key.IsZero() {
		a.SetTsig(wire.FQDN(key.Name), wire.FQDN(key.Algorithm), 300, time.Now().Unix())
	}
}

// signatureSize is more than what sign adds.
func signatureSize(key dns.Key) int {
	if key.IsZero() {
		return 0
	}
	return 120 + len(key.Name) + len(key.Algorithm)
}

// supported reports whether the server keeps a type.
func supported(t dns.Type) bool { return slices.Contains(Types, t) }

func unsupported(t dns.Type) error {
	names := make([]string, len(Types))
	for i, t := range Types {
		names[i] = string(t)
	}
	return fmt.Errorf("the built-in server keeps no %s records, only %s", t, strings.Join(names, ", "))
}

package certstest

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// Zone is a DNS server that answers every A question with 127.0.0.1 and TXT
// questions with what was added. It is a certs.TXT.
type Zone struct {
	// Addr is its host:port, the same for UDP and TCP.
	Addr string

	mu   sync.Mutex
	txt  map[string][]string
	most int
	// deaf accepts values and does not answer with them.
	deaf bool
}

// DNS starts a Zone on a loopback port; it is gone at the test's end.
func DNS(t testing.TB) *Zone {
	t.Helper()
	z := &Zone{txt: map[string][]string{}}
	tcp, udp := sockets(t)
	z.Addr = tcp.Addr().String()
	for _, s := range []*dns.Server{{Listener: tcp, Handler: z}, {PacketConn: udp, Handler: z}} {
		ended := make(chan error, 1)
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- s.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-ended:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
	return z
}

// sockets listens on one free port over TCP and UDP.
func sockets(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	var last error
	for range 50 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return tcp, udp
		}
		tcp.Close()
		last = err
	}
	t.Fatal("no port that is free over TCP and UDP: ", last)
	return nil, nil
}

// Add implements certs.TXT.
func (z *Zone) Add(_ context.Context, fqdn, value string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.txt[fqdn] = append(z.txt[fqdn], value)
	z.most = max(z.most, len(z.txt[fqdn]))
	return nil
}

// Remove implements certs.TXT.
func (z *Zone) Remove(_ context.Context, fqdn, value string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.txt[fqdn] = slices.DeleteFunc(z.txt[fqdn], func(v string) bool { return v == value })
	if len(z.txt[fqdn]) == 0 {
		delete(z.txt, fqdn)
	}
	return nil
}

// Records is how many TXT values stand, and the most that stood at one name.
func (z *Zone) Records() (now, most int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, values := range z.txt {
		now += len(values)
	}
	return now, z.most
}

// SetDeaf makes the server take values and not answer with them, or ends that.
func (z *Zone) SetDeaf(deaf bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.deaf = deaf
}

// ServeDNS implements dns.Handler.
func (z *Zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(q)
	answer.Authoritative = true
	z.mu.Lock()
	for _, question := range q.Question {
		head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 1}
		switch name := strings.TrimSuffix(question.Name, "."); {
		case question.Qtype == dns.TypeA:
			answer.Answer = append(answer.Answer, &dns.A{Hdr: head, A: net.IPv4(127, 0, 0, 1)})
		case question.Qtype == dns.TypeTXT && !z.deaf:
			for _, value := range z.txt[strings.ToLower(name)] {
				answer.Answer = append(answer.Answer, &dns.TXT{Hdr: head, Txt: []string{value}})
			}
		}
	}
	z.mu.Unlock()
	// A client that has gone is no concern of a test server.
	_ = w.WriteMsg(answer)
}

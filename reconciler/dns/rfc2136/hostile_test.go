package rfc2136_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/rfc2136"
)

var hostileKey = dns.Key{Name: "kokoa", Algorithm: "hmac-sha256", Secret: []byte("secret")}

// hostile is a server that answers as the handler says.
func hostile(t *testing.T, h mdns.HandlerFunc) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	s := &mdns.Server{
		Listener: l, Handler: h, TsigSecret: map[string]string{"kokoa.": "c2VjcmV0", "other.": "c2VjcmV0"},
		MsgAcceptFunc:     func(mdns.Header) mdns.MsgAcceptAction { return mdns.MsgAccept },
		NotifyStartedFunc: func() { close(started) },
	}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		s.Shutdown()
		<-done
	})
	return l.Addr().String()
}

func rr(t *testing.T, text string) mdns.RR {
	t.Helper()
	r, err := mdns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A listing that is not whole is an error, however it falls short.
func TestPartialTransfers(t *testing.T) {
	soa := rr(t, "kokoa.test. 300 SOA ns. h. 7 1 1 1 1")
	later := rr(t, "kokoa.test. 300 SOA ns. h. 8 1 1 1 1")
	a, b := rr(t, "a.kokoa.test. 60 A 192.0.2.1"), rr(t, "b.kokoa.test. 60 A 192.0.2.1")
	for _, c := range []struct {
		name     string
		messages [][]mdns.RR
		sign     []string // the key of each message; "" is none
		says     string   // "" is success
	}{
		{"whole", [][]mdns.RR{{soa, a, b, soa}}, []string{"kokoa."}, ""},
		{"whole, in pieces", [][]mdns.RR{{soa}, {a}, {b}, {soa}}, []string{"kokoa.", "kokoa.", "kokoa.", "kokoa."}, ""},
		{"cut after the first message", [][]mdns.RR{{soa, a}}, []string{"kokoa."}, "EOF"},
		{"empty", [][]mdns.RR{{}}, []string{"kokoa."}, "empty"},
		{"no SOA first", [][]mdns.RR{{a, b, soa}}, []string{"kokoa."}, "does not begin"},
		{"changed meanwhile", [][]mdns.RR{{soa, a}, {b, later}}, []string{"kokoa.", "kokoa."}, "changed under the transfer"},
		{"more after the end", [][]mdns.RR{{soa, a, soa, b}}, []string{"kokoa."}, "follow"},
		{"not signed", [][]mdns.RR{{soa, a, soa}}, []string{""}, "does not sign"},
		{"second message not signed", [][]mdns.RR{{soa, a}, {soa}}, []string{"kokoa.", ""}, "does not sign"},
		{"signed with another key", [][]mdns.RR{{soa, a, soa}}, []string{"other."}, "not signed with the key kokoa"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := hostile(t, func(w mdns.ResponseWriter, r *mdns.Msg) {
				for i, rrs := range c.messages {
					m := new(mdns.Msg)
					m.SetReply(r)
					m.Answer = rrs
					if c.sign[i] != "" {
						m.SetTsig(c.sign[i], mdns.HmacSHA256, 300, time.Now().Unix())
					}
					w.WriteMsg(m)
					w.TsigTimersOnly(true)
				}
				w.Close()
			})
			sets, err := open(t, addr, hostileKey).RRsets(t.Context())
			if c.says == "" {
				if err != nil || len(sets) != 2 {
					t.Errorf("got %v, %v", sets, err)
				}
				return
			}
			if err == nil || sets != nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v; want %q", sets, err, c.says)
			}
		})
	}
}

func TestErrorAnswers(t *testing.T) {
	for _, c := range []struct {
		rcode int
		tsig  uint16
		says  string
	}{
		{mdns.RcodeRefused, 0, "may not update"},
		{mdns.RcodeNotAuth, mdns.RcodeBadTime, "clocks differ"},
		{mdns.RcodeNotAuth, mdns.RcodeBadSig, "secret of key kokoa differs"},
		{mdns.RcodeNotAuth, 0, "not the primary"},
		{mdns.RcodeNotZone, 0, "not in zone"},
		{mdns.RcodeNotImplemented, 0, "no dynamic updates"},
		{mdns.RcodeServerFailure, 0, "see its log"},
		{mdns.RcodeFormatError, 0, "FORMERR"},
		{mdns.RcodeSuccess, 0, "does not sign"},
	} {
		addr := hostile(t, func(w mdns.ResponseWriter, r *mdns.Msg) {
			m := new(mdns.Msg)
			m.SetRcode(r, c.rcode)
			if c.tsig != 0 {
				m.SetTsig("kokoa.", mdns.HmacSHA256, 300, time.Now().Unix())
				m.IsTsig().Error = c.tsig
			}
			w.WriteMsg(m)
		})
		err := open(t, addr, hostileKey).Set(t.Context(), set("www.kokoa.test", dns.A, "192.0.2.1"))
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), zoneName) {
			t.Errorf("%s: got %v, want %q", mdns.RcodeToString[c.rcode], err, c.says)
		}
	}
}

// A server that says nothing is given up, by its time or by the caller's.
func TestSilentServer(t *testing.T) {
	silent := make(chan struct{})
	addr := hostile(t, func(mdns.ResponseWriter, *mdns.Msg) { <-silent })
	t.Cleanup(func() { close(silent) })
	z, err := rfc2136.New(rfc2136.Options{Zone: zoneName, Server: addr, Key: hostileKey, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := z.RRsets(t.Context()); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	z = open(t, addr, hostileKey)
	if _, err := z.RRsets(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	for _, err := range z.Commit(ctx, []dns.Transaction{{Set: []dns.RRset{set("www.kokoa.test", dns.A, "192.0.2.1")}}, {}}) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
}

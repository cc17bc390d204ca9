package front

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/kokoa-proxy/kokoa/edge/certs"
)

// remote is a connection from an address.
type remote struct {
	net.Conn
	at string
}

func (r remote) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", r.at)
	if err != nil {
		panic(err)
	}
	return a
}

func (r remote) Close() error { return nil }

// TestAdmit: one visitor's connections are counted together, however it spreads them
// over the addresses that are its own, and given back when they close.
func TestAdmit(t *testing.T) {
	store, _, err := certs.Open(filepath.Join(t.TempDir(), "certs"))
	if err != nil {
		t.Fatal(err)
	}
	d := New(store, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	defer d.Shutdown(t.Context())
	var conns []*Conn
	for i := range MaxConnsPerAddress {
		for _, at := range []string{"192.0.2.1:%d", "[2001:db8::%x]:1"} {
			c := d.admit(remote{at: fmt.Sprintf(at, i+1)})
			if c == nil {
				t.Fatalf("connection %d was refused", i)
			}
			conns = append(conns, c)
		}
	}
	for at, want := range map[string]bool{
		"192.0.2.1:9999": false, "[::ffff:192.0.2.1]:1": false, "[2001:db8::ffff:1]:1": false, "192.0.2.2:1": true, "[2001:db8:0:1::1]:1": true,
	} {
		c := d.admit(remote{at: at})
		if (c != nil) != want {
			t.Errorf("%s: admitted %v; want %v", at, c != nil, want)
		}
		if c != nil {
			c.Close()
		}
	}
	for _, c := range conns {
		c.Close()
		c.Close() // counted once
	}
	if d.admit(remote{at: "192.0.2.1:1"}) == nil {
		t.Error("refused though all are closed")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.conns) != 1 || len(d.from) != 1 {
		t.Errorf("%d connections and %d visitors are counted", len(d.conns), len(d.from))
	}
}

package stream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/internal/nettest"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// pair is a stream over loopback: the edge's end, and what the agent took.
func pair(t *testing.T, target Target) (net.Conn, chan *Inbound) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	taken := make(chan *Inbound, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(taken)
			return
		}
		in, err := Read(c, 5*time.Second)
		if err != nil {
			t.Errorf("agent: %v", err)
			close(taken)
			return
		}
		taken <- in
	}()
	at := netip.MustParseAddrPort(l.Addr().String())
	d := Dialer{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", at.String())
	}}
	c, err := d.Stream(context.Background(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, taken
}

func TestBytesGoBothWays(t *testing.T) {
	client := netip.MustParseAddrPort("198.51.100.7:4711")
	c, taken := pair(t, Target{Service: "0123456789abcdef", Client: client, Server: netip.MustParseAddrPort("203.0.113.10:443")})
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	in := <-taken
	if in.Service != "0123456789abcdef" || in.Client != client {
		t.Errorf("agent sees %q from %s", in.Service, in.Client)
	}
	service, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(service, got); err != nil || string(got) != "hello" {
		t.Fatalf("agent reads %q, %v", got, err)
	}
	if _, err := io.WriteString(service, "world"); err != nil {
		t.Fatal(err)
	}
	service.Close()
	back, err := io.ReadAll(c)
	if err != nil || string(back) != "world" {
		t.Errorf("edge reads %q, %v", back, err)
	}
}

// A service that speaks first is heard though the visitor says nothing.
func TestServiceSpeaksFirst(t *testing.T) {
	c, taken := pair(t, Target{Service: "smtp"})
	go func() {
		if in := <-taken; in != nil {
			if service, err := in.Accept(); err == nil {
				io.WriteString(service, "220 hello\r\n")
			}
		}
	}()
	got := make([]byte, 3)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "220" {
		t.Errorf("reads %q, %v", got, err)
	}
}

// The end of one direction leaves the other.
func TestHalfClose(t *testing.T) {
	c, taken := pair(t, Target{Service: "x"})
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	service, err := (<-taken).Accept()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(service); err != nil || len(b) != 0 {
		t.Errorf("agent reads %q, %v", b, err)
	}
	io.WriteString(service, "still here")
	service.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "still here" {
		t.Errorf("edge reads %q, %v", b, err)
	}
}

func TestAnswersThatEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(*Inbound) error
		want   error
		text   string
	}{
		"refused":         {func(in *Inbound) error { return in.Refuse("not declared") }, ErrRefused, "not declared"},
		"down":            {func(in *Inbound) error { return in.Down("connection refused") }, ErrServiceDown, "connection refused"},
		"without a word":  {func(in *Inbound) error { return in.Refuse("") }, ErrRefused, ""},
		"a long reason":   {func(in *Inbound) error { return in.Down(strings.Repeat("x", 1000)) }, ErrServiceDown, strings.Repeat("x", 255)},
		"control letters": {func(in *Inbound) error { return in.Down("a\x1b[2Jb\nc") }, ErrServiceDown, "a[2Jbc"},
		"closed":          {func(in *Inbound) error { return in.Close() }, ErrNoAnswer, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			c, taken := pair(t, Target{Service: "x"})
			done := make(chan error, 1)
			go func() {
				if in := <-taken; in != nil {
					done <- tt.answer(in)
				}
			}()
			for range 2 { // It stays so.
				_, err := c.Read(make([]byte, 1))
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
				}
			}
			c.Close()
			if err := <-done; err != nil {
				t.Errorf("agent: %v", err)
			}
		})
	}
}

// A refusal arrives though the edge is sending, on a line that loses packets: nothing
// that the agent leaves unread may turn it into a reset.
func TestRefusalIsNotLost(t *testing.T) {
	for _, tt := range []struct {
		name  string
		times int
		open  func(*testing.T) (net.Listener, func(context.Context, netip.AddrPort) (net.Conn, error))
	}{
		{"loopback", 200, func(t *testing.T) (net.Listener, func(context.Context, netip.AddrPort) (net.Conn, error)) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			return l, func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
			}
		}},
		{"userspace tunnel", 200, func(t *testing.T) (net.Listener, func(context.Context, netip.AddrPort) (net.Conn, error)) {
			return listenInTunnel(t, nettest.Shape{})
		}},
		{"loss of 5 percent", 200, func(t *testing.T) (net.Listener, func(context.Context, netip.AddrPort) (net.Conn, error)) {
			return listenInTunnel(t, nettest.Shape{Loss: .05})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, dial := tt.open(t)
			var agents, edges sync.WaitGroup
			over, end := context.WithCancel(t.Context())
			agents.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					agents.Go(func() {
						defer context.AfterFunc(over, func() { c.Close() })()
						in, err := Read(c, time.Minute)
						if err == nil {
							in.linger = time.Minute // on a busy machine
							err = in.Refuse("not declared")
						}
						if err != nil {
							t.Errorf("agent: %v", err)
						}
					})
				}
			})
			defer agents.Wait()
			defer l.Close()
			defer end() // who has its refusal may be slow to go away
			body := make([]byte, 256<<10)
			limit := make(chan struct{}, 16)
			for i := range tt.times {
				limit <- struct{}{}
				edges.Go(func() {
					defer func() { <-limit }()
					c, err := Dialer{Dial: dial, Port: 7071}.Stream(t.Context(), Target{Agent: agentAddr, Service: "x"})
					if err != nil {
						t.Errorf("dial %d: %v", i, err)
						return
					}
					defer c.Close()
					c.SetDeadline(time.Now().Add(time.Minute))
					if _, err := c.Write(body); err != nil {
						t.Errorf("write %d: %v", i, err)
					}
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not declared") {
						t.Errorf("read %d: %v", i, err)
					}
				})
			}
			edges.Wait()
		})
	}
}

// An edge that sends without end, or does not go away, does not keep the agent.
func TestRefusalEnds(t *testing.T) {
	t.Run("after so many bytes", func(t *testing.T) {
		c, taken := pair(t, Target{Service: "x"})
		done := make(chan error, 1)
		go func() {
			if in := <-taken; in != nil {
				in.linger = time.Hour
				done <- in.Refuse("not declared")
			}
		}()
		var err error
		for err == nil {
			_, err = c.Write(make([]byte, 1<<20))
		}
		if isTimeout(err) {
			t.Errorf("edge: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	t.Run("after so long", func(t *testing.T) {
		c, taken := pair(t, Target{Service: "x"})
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		in := <-taken
		in.linger = 10 * time.Millisecond
		if err := in.Refuse("not declared"); err != nil {
			t.Errorf("agent: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrRefused) {
			t.Errorf("edge: %v", err)
		}
	})
}

var (
	edgeAddr  = netip.MustParseAddr("10.90.0.1")
	agentAddr = netip.MustParseAddr("10.90.0.11")
)

// listenInTunnel listens at an agent's end of a tunnel and dials from the edge's.
func listenInTunnel(t *testing.T, shape nettest.Shape) (net.Listener, func(context.Context, netip.AddrPort) (net.Conn, error)) {
	t.Helper()
	open := func(addr netip.Addr) (tunnel.Device, keys.Public) {
		key, err := keys.NewPrivate()
		if err != nil {
			t.Fatal(err)
		}
		d, err := tunnel.Open(tunnel.Config{Kind: tunnel.Userspace, PrivateKey: key, Address: addr, Network: netip.MustParsePrefix("10.90.0.0/24")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d, key.Public()
	}
	edge, edgeKey := open(edgeAddr)
	agent, agentKey := open(agentAddr)
	line := nettest.NewRelay(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), agent.ListenPort()), shape)
	for _, end := range []struct {
		device tunnel.Device
		other  tunnel.Peer
	}{
		{edge, tunnel.Peer{PublicKey: agentKey, AllowedIPs: []netip.Prefix{netip.PrefixFrom(agentAddr, 32)}, Endpoint: line.Addr().String()}},
		{agent, tunnel.Peer{PublicKey: edgeKey, AllowedIPs: []netip.Prefix{netip.PrefixFrom(edgeAddr, 32)}}},
	} {
		if err := end.device.SetPeers(t.Context(), []tunnel.Peer{end.other}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := agent.Listen(7071)
	if err != nil {
		t.Fatal(err)
	}
	return l, edge.Dial
}

// An agent that dies leaves no end that could be taken for a service's.
func TestAgentThatDies(t *testing.T) {
	for name, tt := range map[string]struct {
		die  func(*net.TCPConn) error
		with error
	}{
		"in good order": {(*net.TCPConn).Close, io.ErrUnexpectedEOF},
		"with a reset": {func(c *net.TCPConn) error {
			return errors.Join(c.SetLinger(0), c.Close())
		}, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			c, taken := pair(t, Target{Service: "x"})
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			in := <-taken
			if _, err := io.ReadFull(in.conn, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			if err := tt.die(in.conn.(*net.TCPConn)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, tt.with) || errors.Is(err, io.EOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// That this end is closed says nothing about the agent.
func TestReadAfterClose(t *testing.T) {
	c, taken := pair(t, Target{Service: "x"})
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	defer (<-taken).Close()
	c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrNoAnswer) {
		t.Errorf("got %v", err)
	}
}

// A read whose deadline passes before the agent answers can be tried again.
func TestDeadlineBeforeTheAnswer(t *testing.T) {
	c, taken := pair(t, Target{Service: "x"})
	if err := c.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		t.Fatalf("got %v, want a timeout", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	service, err := (<-taken).Accept()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(service, "!")
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestReadRefuses(t *testing.T) {
	good, err := encode(Target{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Clone(good)
	long[14], long[15] = 0xFF, 0xFF
	none, err := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}).Format()
	if err != nil {
		t.Fatal(err)
	}
	two := proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}
	if err := two.SetTLVs([]proxyproto.TLV{{Type: serviceTLV, Value: []byte("a")}, {Type: serviceTLV, Value: []byte("b")}}); err != nil {
		t.Fatal(err)
	}
	twice, err := two.Format()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "http": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "version 1": []byte("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"),
		"cut short": good[:len(good)-1], "too long": long, "no service": none, "two services": twice,
	} {
		if in, err := decode(bytes.NewReader(raw)); !errors.Is(err, ErrHeader) {
			t.Errorf("%s: %v, %v", name, in, err)
		}
	}
	for _, service := range []string{"", strings.Repeat("x", maxService+1)} {
		if _, err := encode(Target{Service: service}); !errors.Is(err, ErrHeader) {
			t.Errorf("%d bytes of service id: %v", len(service), err)
		}
	}
}

// What is encoded is what is decoded, and not a byte more is read.
func TestHeaderSurvives(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "a")))
		}
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "a"))).Unmap()
	})
	rapid.Check(t, func(t *rapid.T) {
		target := Target{Service: string(rapid.SliceOfN(rapid.Byte(), 1, maxService).Draw(t, "service"))}
		if rapid.Bool().Draw(t, "visitor") {
			target.Client = netip.AddrPortFrom(addr.Draw(t, "client"), rapid.Uint16().Draw(t, "port"))
			target.Server = netip.AddrPortFrom(addr.Draw(t, "server"), rapid.Uint16().Draw(t, "port"))
		}
		raw, err := encode(target)
		if err != nil {
			t.Fatal(err)
		}
		rest := bytes.NewReader(append(raw, "visitor"...))
		in, err := decode(rest)
		if err != nil || in.Service != target.Service || in.Client != target.Client || rest.Len() != len("visitor") {
			t.Fatalf("got %+v, %v, %d bytes left", in, err, rest.Len())
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, target := range []Target{
		{Service: "0123456789abcdef"},
		{Service: "x", Client: netip.MustParseAddrPort("198.51.100.7:4711"), Server: netip.MustParseAddrPort("203.0.113.10:443")},
		{Service: "x", Client: netip.MustParseAddrPort("[2001:db8::1]:4711"), Server: netip.MustParseAddrPort("[2001:db8::2]:443")},
	} {
		raw, err := encode(target)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)-2])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		in, err := decode(bytes.NewReader(raw))
		if err == nil && (in.Service == "" || len(in.Service) > maxService) {
			t.Errorf("accepted service %q", in.Service)
		}
	})
}

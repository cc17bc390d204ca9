package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge"
	"github.com/kokoa-proxy/kokoa/edge/api"
	routing "github.com/kokoa-proxy/kokoa/edge/route"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// BenchmarkEdgeLookup10k finds the route of a request among 10,000. Wanted: 500 ns,
// and nothing allocated.
func BenchmarkEdgeLookup10k(b *testing.B) {
	var rules []routing.Rule
	for i := range 10_000 {
		rules = append(rules, routing.Rule{Host: fmt.Sprintf("app-%d.example.com", i/2), Path: []string{"/", "/api/v1"}[i%2]})
	}
	table, err := routing.New(rules)
	if err != nil {
		b.Fatal(err)
	}
	names := make([]string, 1024)
	for i := range names {
		names[i] = fmt.Sprintf("app-%d.example.com:443", i*4)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		name, err := routing.Host(names[i%len(names)])
		if err != nil {
			b.Fatal(err)
		}
		if rule, err := table.Match(name, "/api/v1/users/42", ""); err != nil || rule < 0 {
			b.Fatal(rule, err)
		}
	}
}

// BenchmarkEdgeSwap10k puts a config of 10,000 routes, of which one has changed,
// through the edge's API: encoding, transfer, checking, compiling, saving and the
// swap. Wanted: 500 ms.
func BenchmarkEdgeSwap10k(b *testing.B) {
	e := startEdge(b)
	config := func(n int) api.Config {
		c := edgeConfig(10_000)
		c.Routes[5000].Path = fmt.Sprintf("/v%d", n)
		return c
	}
	client := api.NewClient("e1", netip.AddrPortFrom(edgeAddress, api.EdgePort), e.device.dialFromControl)
	defer client.Close()
	live := config(0)
	if err := client.PutConfig(b.Context(), "", live); err != nil {
		b.Fatal(err)
	}
	// Every service is checked once, which is not what is measured here.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		s, err := client.State(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		checked := 0
		for _, svc := range s.Services {
			if svc.Up != nil {
				checked++
			}
		}
		if checked == 10_000 {
			break
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d of 10000 services were checked in 30 s", checked)
		}
	}
	if data, err := json.Marshal(live); err == nil {
		b.ReportMetric(float64(len(data))/1e6, "MB/config")
	}
	digest := live.Digest()
	n := 0
	for b.Loop() {
		n++
		b.StopTimer()
		next := config(n)
		b.StartTimer()
		if err := client.PutConfig(b.Context(), digest, next); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		digest = next.Digest()
		b.StartTimer()
	}
}

// BenchmarkEdgeRequests is the rate of requests through an edge alone: TLS, 64
// connections that are kept, 1 KiB answers from a service on this host. Client,
// edge and service share the machine.
func BenchmarkEdgeRequests(b *testing.B) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
		b.Run(version, func(b *testing.B) {
			e := startEdge(b)
			text := strings.Repeat("k", 1024)
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }))
			b.Cleanup(service.Close)
			e.service = service.Listener.Addr().String()
			chain, key := certificate(b, "app-0.example.com")
			if err := e.server.PutCertificate(api.Certificate{Name: "c", Chain: chain, Key: key}); err != nil {
				b.Fatal(err)
			}
			if err := e.server.Apply(b.Context(), "", edgeConfig(1)); err != nil {
				b.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(chain)
			const connections = 64
			clients := make(chan *http.Client, connections)
			for range connections {
				var p http.Protocols
				p.SetHTTP1(version == "HTTP/1.1")
				p.SetHTTP2(version == "HTTP/2")
				t := &http.Transport{
					Protocols: &p, ForceAttemptHTTP2: version == "HTTP/2", TLSClientConfig: &tls.Config{RootCAs: roots},
					DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
						return new(net.Dialer).DialContext(ctx, "tcp", e.https)
					},
				}
				b.Cleanup(t.CloseIdleConnections)
				clients <- &http.Client{Transport: t}
			}
			b.SetParallelism(connections / 2)
			b.RunParallel(func(pb *testing.PB) {
				c := <-clients
				defer func() { clients <- c }()
				for pb.Next() {
					resp, err := c.Get("https://app-0.example.com/")
					if err != nil {
						b.Error(err)
						return
					}
					n, err := io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if err != nil || n != 1024 || resp.StatusCode != 200 {
						b.Errorf("%d, %d bytes, %v", resp.StatusCode, n, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		})
	}
}

var (
	edgeAddress    = netip.MustParseAddr("10.86.0.16")
	controlAddress = netip.MustParseAddr("10.86.0.1")
)

// edgeConfig has n routes to n services of 20 agents.
func edgeConfig(n int) api.Config {
	c := api.Config{Fleet: "bench", Edge: "e1", Revision: "r"}
	address := netip.MustParseAddr("10.86.1.0")
	for i := range 20 {
		address = address.Next()
		c.Peers = append(c.Peers, api.Peer{Name: fmt.Sprintf("agent%02d", i), PublicKey: keys.Public{1, byte(i)}, Address: address})
	}
	for i := range n {
		c.Routes = append(c.Routes, api.Route{
			Name: fmt.Sprintf("app-%05d", i), Host: fmt.Sprintf("app-%d.example.com", i), Path: "/", TLS: true, Redirect: true, PreserveHost: true, WebSocket: true,
			Upstreams: []api.Upstream{{Agent: fmt.Sprintf("agent%02d", i%20), Service: fmt.Sprintf("%016x", i), URL: "http://localhost:3000"}},
			Health:    api.Health{Interval: time.Hour, Timeout: 5 * time.Second, Failures: 3},
			From:      fmt.Sprintf("routes/app-%05d.cue:3:1", i),
		})
	}
	c.Normalize()
	return c
}

// runningEdge is an edge without WireGuard.
type runningEdge struct {
	server  *edge.Server
	device  *loopback
	https   string
	service string // host:port of every service; "" answers with nothing
}

func startEdge(b *testing.B) *runningEdge {
	b.Helper()
	e := &runningEdge{device: &loopback{}}
	var listeners [2]net.Listener
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		listeners[i] = l
	}
	e.https = listeners[1].Addr().String()
	var err error
	e.server, err = edge.New(edge.Options{
		Bootstrap: edge.Bootstrap{
			Fleet: "bench", Name: "e1", TunnelAddress: edgeAddress, Network: netip.MustParsePrefix("10.86.0.0/16"),
			Control: []edge.ControlPeer{{PublicKey: keys.Public{9}, Address: controlAddress}}, Data: filepath.Join(b.TempDir(), "data"),
		},
		Device: e.device, Dial: e.dial, HTTP: listeners[0], HTTPS: listeners[1], Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.server.Serve(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	for {
		if s, err := e.server.State(); err == nil && len(s.NotReady) == 1 { // only the config is missing
			return e
		}
		time.Sleep(time.Millisecond)
	}
}

func (e *runningEdge) dial(ctx context.Context, _ netip.Addr, _ string) (net.Conn, error) {
	if e.service != "" {
		return new(net.Dialer).DialContext(ctx, "tcp", e.service)
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		if _, err := there.Read(make([]byte, 4096)); err == nil {
			io.WriteString(there, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		}
	}()
	return here, nil
}

// loopback is a tunnel device without WireGuard, whose every connection is the
// control plane's.
type loopback struct {
	addr string
}

func (d *loopback) SetPeers(context.Context, []tunnel.Peer) error { return nil }
func (d *loopback) Stats() ([]tunnel.PeerStats, error)            { return nil, nil }
func (d *loopback) Kind() tunnel.Kind                             { return tunnel.Userspace }
func (d *loopback) Reason() string                                { return "benchmark" }
func (d *loopback) ListenPort() uint16                            { return 0 }
func (d *loopback) SetPrivateKey(keys.Private) error              { return nil }
func (d *loopback) Rebind() error                                 { return nil }
func (d *loopback) Renew(...keys.Public) error                    { return nil }
func (d *loopback) Close() error                                  { return nil }

func (d *loopback) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("nobody is there")
}

func (d *loopback) Listen(uint16) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d.addr = l.Addr().String()
	return fromControl{l}, nil
}

func (d *loopback) dialFromControl(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", d.addr)
}

type fromControl struct{ net.Listener }

func (l fromControl) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return controlConn{c}, nil
}

type controlConn struct{ net.Conn }

func (controlConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(controlAddress, 1))
}

// certificate is self-signed, in PEM.
func certificate(b *testing.B, host string) (chain, key []byte) {
	b.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		b.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		b.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

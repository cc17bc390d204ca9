package edge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

// TestThroughTheTunnel runs an edge on a real WireGuard device, with a control plane
// and an agent on theirs: nothing is faked but the agent's program.
func TestThroughTheTunnel(t *testing.T) {
	var streams sync.WaitGroup
	t.Cleanup(streams.Wait) // after the devices' end, which ends them
	network := netip.MustParsePrefix("10.86.0.0/16")
	open := func(a netip.Addr) (keys.Public, tunnel.Device) {
		k, err := keys.NewPrivate()
		must(t, err)
		d, err := tunnel.Open(tunnel.Config{Kind: tunnel.Userspace, PrivateKey: k, Address: a, Network: network})
		must(t, err)
		t.Cleanup(func() { must(t, d.Close()) })
		return k.Public(), d
	}
	edgeKey, edgeDevice := open(edgeAddress)
	controlKey, controlDevice := open(controlAddress)
	agentKey, agentDevice := open(agentAddress)
	_, strangerDevice := open(spareAddress)
	toEdge := []tunnel.Peer{{
		PublicKey: edgeKey, Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), edgeDevice.ListenPort()).String(),
		AllowedIPs: []netip.Prefix{netip.PrefixFrom(edgeAddress, 32)}, Keepalive: time.Second,
	}}
	for _, d := range []tunnel.Device{controlDevice, strangerDevice} {
		must(t, d.SetPeers(t.Context(), toEdge))
	}

	var listeners [2]net.Listener
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		listeners[i] = l
	}
	ca := newAuthority(t)
	s, err := New(Options{
		Bootstrap: Bootstrap{
			Fleet: "test", Name: "e1", TunnelAddress: edgeAddress, Network: network,
			Control: []ControlPeer{{controlKey, controlAddress}}, Data: filepath.Join(t.TempDir(), "data"),
		},
		Device: edgeDevice, HTTP: listeners[0], HTTPS: listeners[1], Log: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})

	// The agent: one service is there, one is down, others it refuses.
	service := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(rw, "through the tunnel "+r.Host+string(body))
	}))
	t.Cleanup(service.Close)
	ingress, err := agentDevice.Listen(api.AgentPort)
	must(t, err)
	t.Cleanup(func() { ingress.Close() })
	go func() {
		for {
			c, err := ingress.Accept()
			if err != nil {
				return
			}
			streams.Go(func() { answer(c, service.Listener.Addr().String()) })
		}
	}()

	config := config(
		to("h.example.com", "there"),
		to("failover.example.com", "down", func(r *api.Route) {
			r.Upstreams = append(r.Upstreams, api.Upstream{Agent: "a1", Service: "refused", URL: "http://localhost:3000"}, api.Upstream{Agent: "a1", Service: "there", URL: "http://localhost:3000"})
		}),
		to("down.example.com", "down"),
	)
	config.Peers = []api.Peer{{Name: "a1", PublicKey: agentKey, Address: agentAddress}}
	config.Agents = []api.Signed{{Agent: "a1", Payload: []byte("p"), Signature: []byte("s")}}
	at := netip.AddrPortFrom(edgeAddress, api.EdgePort)
	control := api.NewClient("e1", at, controlDevice.Dial)
	t.Cleanup(control.Close)
	patience, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, control.PutConfig(patience, "", config))
	for _, host := range []string{"h.example.com", "failover.example.com", "down.example.com"} {
		must(t, control.PutCertificate(patience, ca.issue(host, host)))
	}
	// Not before the edge knows it: the next handshake is tried 5 s after the first.
	must(t, agentDevice.SetPeers(t.Context(), toEdge))
	agent := api.NewClient("e1", at, agentDevice.Dial)
	t.Cleanup(agent.Close)
	if got, _, err := agent.AgentConfig(patience, "", time.Second); err != nil || string(got.Payload) != "p" {
		t.Errorf("the agent's config: %+v, %v", got, err)
	}
	if _, err := agent.State(patience); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("the agent asks for the state: %v; want ErrForbidden", err)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancelShort()
	if _, err := api.NewClient("e1", at, strangerDevice.Dial).State(short); err == nil {
		t.Error("who is no peer has been answered")
	}

	w := &world{t: t, https: listeners[1].Addr().String(), roots: ca.Pool}
	for _, http2 := range []bool{false, true} {
		c := w.browser(http2)
		eventually(t, "the agent's tunnel is up", func() bool {
			status, _ := get(t, c, "https://h.example.com/")
			return status == 200
		})
		for _, host := range []string{"h.example.com", "failover.example.com"} {
			if status, body := get(t, c, "https://"+host+"/"); status != 200 || body != "through the tunnel "+host {
				t.Errorf("%s: %d %q", host, status, body)
			}
		}
		if status, _ := get(t, c, "https://down.example.com/"); status != 502 && status != 503 {
			t.Errorf("a service that is down: %d", status)
		}
	}
	eventually(t, "the services are checked through the tunnel", func() bool {
		state, err := control.State(patience)
		if err != nil {
			t.Fatal(err)
		}
		up := map[string]bool{}
		for _, s := range state.Services {
			if s.Up == nil {
				return false
			}
			up[s.Service] = *s.Up
			if s.Service == "down" && !strings.Contains(s.Error, stream.ErrServiceDown.Error()) {
				t.Errorf("the check says %q", s.Error)
			}
		}
		return up["there"] && !up["down"] && !up["refused"] && len(state.Peers) == 1 && !state.Peers[0].Handshake.IsZero()
	})
}

// answer is one stream, as an agent takes it.
func answer(c net.Conn, service string) {
	in, err := stream.Read(c, 5*time.Second)
	if err != nil {
		return
	}
	switch in.Service {
	case "there":
	case "down":
		in.Down("connection refused")
		return
	default:
		in.Refuse("not declared")
		return
	}
	local, err := net.Dial("tcp", service)
	if err != nil {
		in.Down(err.Error())
		return
	}
	defer local.Close()
	remote, err := in.Accept()
	if err != nil {
		return
	}
	defer remote.Close()
	var both sync.WaitGroup
	both.Go(func() { io.Copy(local, remote); local.(*net.TCPConn).CloseWrite() })
	both.Go(func() { io.Copy(remote, local); remote.Close() })
	both.Wait()
}

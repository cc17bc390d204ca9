//go:build !race

// The race detector multiplies the cost of a packet, ours and the stock adapter's, by
// different factors: a ratio taken under it says nothing.

package bench

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// The two user-space tunnels that are compared: Kokoa's, and wireguard-go's own
// netstack adapter as it ships. Both ends are in this process, so what a round
// costs is the work of both.
var tunnels = []struct {
	name string
	open func(t testing.TB) (pipe tunnelPair)
}{{"kokoa", openKokoa}, {"stock", openStock}}

// tunnelPair is a tunnel with a listener at one end, and a way to dial it from the
// other.
type tunnelPair struct {
	listener net.Listener
	dial     func(context.Context) (net.Conn, error)
}

const (
	// tunnelBudget is the most CPU per byte that Kokoa's may use, of the stock one's.
	tunnelBudget = 0.5
	tunnelRounds = 5
	// tunnelBulk is the size of a round in bytes.
	tunnelBulk        = 64 << 20
	tunnelTrips       = 1500
	tunnelConnections = 150
)

var (
	tunnelServer = netip.MustParseAddrPort("10.91.0.1:7")
	tunnelClient = netip.MustParseAddr("10.91.0.2")
)

// TestTunnelCPUPerGB holds the user-space tunnel to its budget, in rounds that
// take turns, since other work on the machine comes and goes.
func TestTunnelCPUPerGB(t *testing.T) {
	var cpu [2][]float64
	pairs := [2]tunnelPair{openKokoa(t), openStock(t)}
	for _, p := range pairs {
		go answerTunnel(p.listener)
		sendThroughTunnel(t, p, tunnelBulk/8) // handshake, first buffers
	}
	for range tunnelRounds {
		for i, p := range pairs {
			before := processCPU(t)
			sendThroughTunnel(t, p, tunnelBulk)
			cpu[i] = append(cpu[i], float64(processCPU(t)-before)/float64(time.Second)/(tunnelBulk/1e9))
		}
	}
	ours, stock := medianOf(cpu[0]), medianOf(cpu[1])
	t.Logf("CPU seconds per GB: kokoa %.2f, stock %.2f, ratio %.2f", ours, stock, ours/stock)
	if ours > tunnelBudget*stock {
		t.Errorf("%.2f CPU seconds per GB, of the stock adapter's %.2f: want at most %.1f×", ours, stock, tunnelBudget)
	}
}

// BenchmarkTunnelStream sends one stream; it reports CPU seconds per GB.
func BenchmarkTunnelStream(b *testing.B) {
	for _, kind := range tunnels {
		b.Run(kind.name, func(b *testing.B) {
			p := kind.open(b)
			go answerTunnel(p.listener)
			sendThroughTunnel(b, p, tunnelBulk/8)
			b.SetBytes(tunnelBulk)
			before := processCPU(b)
			b.ResetTimer()
			for range b.N {
				sendThroughTunnel(b, p, tunnelBulk)
			}
			b.StopTimer()
			b.ReportMetric((processCPU(b)-before).Seconds()/(float64(b.N)*tunnelBulk/1e9), "cpu-s/GB")
		})
	}
}

// BenchmarkTunnelRoundTrip sends a byte to and fro; BenchmarkTunnelConnection does
// so once for each new connection. They report medians, and CPU per operation.
func BenchmarkTunnelRoundTrip(b *testing.B) { eachTunnelTrip(b, false) }

func BenchmarkTunnelConnection(b *testing.B) { eachTunnelTrip(b, true) }

func eachTunnelTrip(b *testing.B, fresh bool) {
	for _, kind := range tunnels {
		b.Run(kind.name, func(b *testing.B) {
			p := kind.open(b)
			go answerTunnel(p.listener)
			tunnelTripTimes(b, p, 10, fresh)
			before := processCPU(b)
			b.ResetTimer()
			times := tunnelTripTimes(b, p, b.N, fresh)
			b.StopTimer()
			b.ReportMetric(float64((processCPU(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(medianOf(times).Nanoseconds())/1e3, "p50-µs")
		})
	}
}

// TestTunnelLatency says that what is cheap by the byte is not slow by the packet:
// a round trip, and a connection with one, take no longer than through the stock
// adapter, give or take the noise of a shared machine.
func TestTunnelLatency(t *testing.T) {
	pairs := [2]tunnelPair{openKokoa(t), openStock(t)}
	for _, p := range pairs {
		go answerTunnel(p.listener)
		tunnelTripTimes(t, p, 10, true)
	}
	for _, tt := range []struct {
		name  string
		count int
		fresh bool
	}{{"round trip", tunnelTrips / tunnelRounds, false}, {"connection", tunnelConnections / tunnelRounds, true}} {
		var times [2][]time.Duration
		for range tunnelRounds {
			for i, p := range pairs {
				times[i] = append(times[i], tunnelTripTimes(t, p, tt.count, tt.fresh)...)
			}
		}
		ours, stock := medianOf(times[0]), medianOf(times[1])
		t.Logf("%s: kokoa %s, stock %s", tt.name, ours, stock)
		if ours > stock*3/2 {
			t.Errorf("%s: %s, and through the stock adapter %s", tt.name, ours, stock)
		}
	}
}

// answerTunnel answers each connection as its first byte asks: 0 for all that comes,
// back at once, 1 for one byte when all has come.
func answerTunnel(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			kind := make([]byte, 1)
			if _, err := io.ReadFull(c, kind); err != nil {
				return
			}
			if kind[0] == 0 {
				c.Write(kind)
				io.Copy(c, c)
				return
			}
			buf := make([]byte, 1<<16)
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, buf); err == nil {
				c.Write(kind)
			}
		}()
	}
}

func sendThroughTunnel(t testing.TB, p tunnelPair, size int) {
	t.Helper()
	c := mustDialTunnel(t, p)
	defer c.Close()
	buf := make([]byte, 1<<16)
	buf[0] = 1
	for sent := 0; sent < size; sent += len(buf) {
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		t.Fatal(err)
	}
}

func tunnelTripTimes(t testing.TB, p tunnelPair, count int, fresh bool) []time.Duration {
	t.Helper()
	times := make([]time.Duration, count)
	b := []byte{0}
	var c net.Conn
	for i := range times {
		start := time.Now()
		if fresh || c == nil {
			c = mustDialTunnel(t, p)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		times[i] = time.Since(start)
		if fresh {
			c.Close()
		}
	}
	if !fresh {
		c.Close()
	}
	return times
}

func mustDialTunnel(t testing.TB, p tunnelPair) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := p.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func openKokoa(t testing.TB) tunnelPair {
	t.Helper()
	var ends [2]tunnel.Device
	var private [2]keys.Private
	addrs := [2]netip.Addr{tunnelServer.Addr(), tunnelClient}
	for i := range ends {
		var err error
		if private[i], err = keys.NewPrivate(); err != nil {
			t.Fatal(err)
		}
		ends[i], err = tunnel.Open(tunnel.Config{
			Kind: tunnel.Userspace, PrivateKey: private[i],
			Address: addrs[i], Network: netip.PrefixFrom(addrs[i], 24),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	for i, end := range ends {
		other := 1 - i
		if err := end.SetPeers(t.Context(), []tunnel.Peer{{
			PublicKey:  private[other].Public(),
			Endpoint:   fmt.Sprintf("127.0.0.1:%d", ends[other].ListenPort()),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(addrs[other], 32)},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := ends[0].Listen(tunnelServer.Port())
	if err != nil {
		t.Fatal(err)
	}
	return tunnelPair{l, func(ctx context.Context) (net.Conn, error) { return ends[1].Dial(ctx, tunnelServer) }}
}

func openStock(t testing.TB) tunnelPair {
	t.Helper()
	var nets [2]*netstack.Net
	var devices [2]*device.Device
	var private [2]keys.Private
	var ports [2]string
	addrs := [2]netip.Addr{tunnelServer.Addr(), tunnelClient}
	for i := range nets {
		var err error
		if private[i], err = keys.NewPrivate(); err != nil {
			t.Fatal(err)
		}
		tun, stack, err := netstack.CreateNetTUN([]netip.Addr{addrs[i]}, nil, tunnel.DefaultMTU)
		if err != nil {
			t.Fatal(err)
		}
		nets[i] = stack
		devices[i] = device.NewDevice(tun, conn.NewStdNetBind(), device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(devices[i].Close)
		if err := devices[i].IpcSet("private_key=" + hex.EncodeToString(private[i][:]) + "\n"); err != nil {
			t.Fatal(err)
		}
		if err := devices[i].Up(); err != nil {
			t.Fatal(err)
		}
		state, err := devices[i].IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = listenPort(state)
	}
	for i, d := range devices {
		key := private[1-i].Public()
		if err := d.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=127.0.0.1:%s\nallowed_ip=%s/32\n",
			hex.EncodeToString(key[:]), ports[1-i], addrs[1-i])); err != nil {
			t.Fatal(err)
		}
	}
	l, err := nets[0].ListenTCPAddrPort(tunnelServer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return tunnelPair{l, func(ctx context.Context) (net.Conn, error) { return nets[1].DialContextTCPAddrPort(ctx, tunnelServer) }}
}

func listenPort(state string) string {
	var port string
	for line := range strings.Lines(state) {
		if p, ok := strings.CutPrefix(line, "listen_port="); ok {
			port = strings.TrimSpace(p)
		}
	}
	return port
}

// processCPU is the time this process has spent on a CPU, in user and system mode.
func processCPU(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func medianOf[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

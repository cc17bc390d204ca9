package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mirror is a server that tells each client where it is seen to come from. It
// returns its address.
func mirror(t *testing.T, listen func() (net.PacketConn, error)) netip.AddrPort {
	t.Helper()
	c, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(fmt.Sprintf("%s %s", buf[:n], from)), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func loopback() (net.PacketConn, error) { return net.ListenPacket("udp4", "127.0.0.1:0") }

// client is a UDP socket that has the relay for its peer.
func client(t *testing.T, r *Relay) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// ask sends word and returns the answer.
func ask(t *testing.T, c net.Conn, word string) (answer string) {
	t.Helper()
	if _, err := c.Write([]byte(word)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestRelayPassesAndRebinds(t *testing.T) {
	r := NewRelay(t, mirror(t, loopback), Shape{})
	c, other := client(t, r), client(t, r)
	first := ask(t, c, "hello")
	if !strings.HasPrefix(first, "hello 127.0.0.1:") {
		t.Fatalf("got %q", first)
	}
	if again := ask(t, c, "hello"); again != first {
		t.Errorf("one client was seen as %q, then as %q", first, again)
	}
	if got := ask(t, other, "hello"); got == first {
		t.Error("two clients were seen as one")
	}
	r.Rebind()
	if got := ask(t, c, "hello"); got == first {
		t.Errorf("after rebinding still %q", got)
	}
}

func TestRelayForsakes(t *testing.T) {
	r := NewRelay(t, mirror(t, loopback), Shape{})
	forsaken := client(t, r)
	ask(t, forsaken, "hello")
	r.Forsake()
	r.Rebind()
	if _, err := forsaken.Write([]byte("hello?")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, lost := r.Counts(); lost == 1 {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("a client that was forsaken is served")
		}
	}
	ask(t, client(t, r), "hello")
}

func TestRelayDelays(t *testing.T) {
	const delay = 30 * time.Millisecond
	r := NewRelay(t, mirror(t, loopback), Shape{Delay: delay})
	start := time.Now()
	ask(t, client(t, r), "hello")
	if took := time.Since(start); took < 2*delay {
		t.Errorf("to and fro took %s, which is less than twice %s", took, delay)
	}
}

func TestRelayLoses(t *testing.T) {
	r := NewRelay(t, mirror(t, loopback), Shape{Loss: 1})
	c := client(t, r)
	const sent = 10
	for range sent {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if passed, lost := r.Counts(); passed == 0 && lost == sent {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d passed, %d lost", passed, lost)
		}
	}
	r.SetShape(Shape{})
	ask(t, c, "hello")
}

func TestRelayReorders(t *testing.T) {
	r := NewRelay(t, mirror(t, loopback), Shape{Delay: 20 * time.Millisecond, Reorder: .5})
	c := client(t, r)
	for i := range 64 {
		if _, err := fmt.Fprintf(c, "%02d", i); err != nil {
			t.Fatal(err)
		}
	}
	seen, last := false, ""
	buf := make([]byte, 1500)
	for range 64 {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		word, _, _ := strings.Cut(string(buf[:n]), " ")
		seen = seen || word < last
		last = word
	}
	if !seen {
		t.Error("all came in order")
	}
}

func TestHostsReachWhatTheyAreJoinedTo(t *testing.T) {
	a, b, alone := NewHost(t, "a"), NewHost(t, "b"), NewHost(t, "alone")
	Join(a, netip.MustParsePrefix("192.0.2.1/24"), b, netip.MustParsePrefix("192.0.2.2/24"))
	server := mirror(t, func() (c net.PacketConn, err error) {
		b.Do(func() error {
			c, err = net.ListenPacket("udp4", "192.0.2.2:7")
			return err
		})
		return c, err
	})
	r := a.NewRelay(server, Shape{})
	var c net.Conn
	a.Do(func() (err error) {
		c, err = net.Dial("udp", r.Addr().String())
		return err
	})
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if got := ask(t, c, "hello"); !strings.HasPrefix(got, "hello 192.0.2.1:") {
		t.Errorf("got %q", got)
	}
	if err := alone.Try(func() error {
		c, err := net.Dial("udp", server.String())
		if err == nil {
			c.Close()
		}
		return err
	}); err == nil {
		t.Error("a host without a cable has a route")
	}
	if _, err := net.InterfaceByName("veth1"); err == nil {
		t.Error("the cable is on the host that runs the tests")
	}
}

func TestStartedProcessIsInTheHost(t *testing.T) {
	h := NewHost(t, "host")
	cmd := exec.Command("cat", "/proc/net/dev")
	var out strings.Builder
	cmd.Stdout = &out
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), ":"); n != 1 || !strings.Contains(out.String(), "lo:") {
		t.Errorf("the process sees %d interfaces:\n%s", n, out.String())
	}
}

func TestMountsAreTheProcessesOwn(t *testing.T) {
	for _, h := range []*Host{NewHost(t, "host"), Here(t)} {
		dir := t.TempDir()
		cmd := exec.Command("sh", "-c", `echo kept > "$0/file" && cat "$0/file"`, dir)
		var out strings.Builder
		cmd.Stdout = &out
		if err := h.StartMounted(cmd, func() error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") }); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || out.String() != "kept\n" {
			t.Errorf("got %q, %v", out.String(), err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("the test sees %v, %v", left, err)
		}
	}
	want := errors.New("as it must")
	if err := Here(t).StartMounted(exec.Command("true"), func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

func TestTryGivesBackTheError(t *testing.T) {
	want := errors.New("as it must")
	if err := NewHost(t, "host").Try(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

package tunnel

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/keys"
)

func TestAutoTakesTheFirstThatTheHostAllows(t *testing.T) {
	works := func(Config) (*device, error) { return &device{}, nil }
	lacks := func(why string) func(Config) (*device, error) {
		return func(Config) (*device, error) { return nil, unavailable(why) }
	}
	taken := func(Config) (*device, error) { return nil, errors.New("UDP port 51820 is taken") }
	tests := []struct {
		name        string
		want        Kind
		kernel, tun func(Config) (*device, error)
		kind        Kind
		reason      string
		err         string
	}{
		{name: "all work", want: Auto, kernel: works, tun: works,
			kind: Kernel, reason: "kernel: the best make, and this host allows it"},
		{name: "no module", want: Auto, kernel: lacks("the kernel has no WireGuard"), tun: works,
			kind: TUN, reason: "tun: the kernel has no WireGuard"},
		{name: "no privilege", want: Auto, kernel: lacks("no CAP_NET_ADMIN"), tun: lacks("no CAP_NET_ADMIN"),
			kind: Userspace, reason: "userspace: no CAP_NET_ADMIN"},
		{name: "a container", want: Auto, kernel: lacks("the kernel has no WireGuard"), tun: lacks("no /dev/net/tun"),
			kind: Userspace, reason: "userspace: the kernel has no WireGuard, no /dev/net/tun"},
		{name: "a fault is no lack", want: Auto, kernel: lacks("the kernel has no WireGuard"), tun: taken,
			err: "open tun tunnel: UDP port 51820 is taken"},
		{name: "asked for", want: Userspace, kernel: works, tun: works,
			kind: Userspace, reason: "userspace: as configured"},
		{name: "asked for what is not there", want: TUN, kernel: works, tun: lacks("no /dev/net/tun"),
			err: "open tun tunnel: not available on this host: no /dev/net/tun"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := open(Config{Kind: tt.want}, []maker{{Kernel, tt.kernel}, {TUN, tt.tun}, {Userspace, works}})
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("got %v, want %s", err, tt.err)
				}
				if strings.Contains(tt.err, "not available") != errors.Is(err, ErrUnavailable) {
					t.Error("ErrUnavailable is said wrongly")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.Kind() != tt.kind || d.Reason() != tt.reason {
				t.Errorf("got %s, %q", d.Kind(), d.Reason())
			}
		})
	}
}

func TestOpenRefusesBadConfig(t *testing.T) {
	good := Config{
		Kind:       Userspace,
		PrivateKey: newKey(t),
		Address:    netip.MustParseAddr("10.90.0.1"),
		Network:    netip.MustParsePrefix("10.90.0.0/24"),
	}
	tests := []struct {
		want   string
		change func(*Config)
	}{
		{`unknown kind "tap" (want auto, kernel, tun or userspace)`, func(c *Config) { c.Kind = "tap" }},
		{"no private key", func(c *Config) { c.PrivateKey = [32]byte{} }},
		{"is no address", func(c *Config) { c.Address = netip.Addr{} }},
		{"address 10.91.0.1 is not in network 10.90.0.0/24", func(c *Config) { c.Address = netip.MustParseAddr("10.91.0.1") }},
		{"not in network", func(c *Config) { c.Network = netip.Prefix{} }},
		{"MTU 500 is not from 576", func(c *Config) { c.MTU = 500 }},
		{"MTU 1279 is not from 1280", func(c *Config) {
			c.Address, c.Network, c.MTU = netip.MustParseAddr("fd00::1"), netip.MustParsePrefix("fd00::/64"), 1279
		}},
		{"MTU 65535 is not from", func(c *Config) { c.MTU = 65535 }},
		{"is no interface name", func(c *Config) { c.Name = "../../etc/passwd" }},
		{"is no interface name", func(c *Config) { c.Name = "sixteen-letters-" }},
	}
	for _, tt := range tests {
		cfg := good
		tt.change(&cfg)
		d, err := Open(cfg)
		if err == nil {
			d.Close()
			t.Errorf("opened, want %q", tt.want)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func newKey(t *testing.T) keys.Private {
	t.Helper()
	k, err := keys.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

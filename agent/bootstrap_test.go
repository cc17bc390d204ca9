package agent

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/keys"
)

func TestBootstrapCheck(t *testing.T) {
	for _, c := range []struct {
		spoil func(*Bootstrap)
		want  string // "" is fine
	}{
		{func(*Bootstrap) {}, ""},
		{func(b *Bootstrap) { b.Tunnel = "" }, ""},
		{func(b *Bootstrap) { b.Allow = []string{"localhost:80"} }, ""},
		{func(b *Bootstrap) { b.Fleet = "" }, "fleet is missing"},
		{func(b *Bootstrap) { b.Name = "" }, "name is missing"},
		{func(b *Bootstrap) { b.PrivateKey = keys.Private{} }, "private_key is missing"},
		{func(b *Bootstrap) { b.TunnelAddress = b.Network.Addr().Prev() }, "tunnel_address 10.76.255.255 is not in network 10.77.0.0/16"},
		{func(b *Bootstrap) { b.SigningKey = b.SigningKey[:31] }, "signing_key has 31 bytes, want 32"},
		{func(b *Bootstrap) { b.Edges = nil }, "edges: it names no edge"},
		{func(b *Bootstrap) { b.Allow = []string{"localhost"} }, `allow "localhost" is not host:port`},
		{func(b *Bootstrap) { b.Tunnel = "openvpn" }, `tunnel is "openvpn", want "auto", "kernel", "tun" or "userspace"`},
		{func(b *Bootstrap) { b.Data = "" }, "data is missing"},
	} {
		b := newTestFleet(t).bootstrap
		c.spoil(&b)
		err := b.check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
		if c.want == "" {
			continue
		}
		if err := Run(t.Context(), b, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("run: %v, want %q", err, c.want)
		}
	}
}

func FuzzDecodeBootstrap(f *testing.F) {
	good, err := json.MarshalIndent(newTestFleet(f).bootstrap, "", "  ")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("{\n\"fleet\": 5}"))
	f.Add([]byte("{}\n{}"))
	f.Add([]byte(nil))
	at := regexp.MustCompile(`^rpi\.json(:[1-9][0-9]*:[1-9][0-9]*)?: `)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := decodeBootstrap("rpi.json", data)
		if err != nil {
			if !at.MatchString(err.Error()) {
				t.Fatalf("%q does not say where", err)
			}
			return
		}
		if err := b.check(); err != nil {
			t.Fatalf("decoded a bootstrap that is refused: %v", err)
		}
	})
}

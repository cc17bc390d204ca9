package tunnel

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

func TestRenderChanges(t *testing.T) {
	seconds := 25 * time.Second
	got := renderChanges([]change{
		{key: keys.Public{1}, remove: true},
		{key: keys.Public{2}, existing: true, lose: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}},
		{
			key:       keys.Public{3},
			gain:      []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("fd00::2/128")},
			endpoint:  netip.MustParseAddrPort("[2001:db8::1]:51820"),
			keepalive: &seconds,
		},
	})
	want := "public_key=01" + strings.Repeat("0", 62) + `
remove=true
public_key=02` + strings.Repeat("0", 62) + `
update_only=true
allowed_ip=-10.0.0.2/32
public_key=03` + strings.Repeat("0", 62) + `
endpoint=[2001:db8::1]:51820
persistent_keepalive_interval=25
allowed_ip=10.0.0.2/32
allowed_ip=fd00::2/128
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestParseState(t *testing.T) {
	state, err := parseState(deviceText)
	if err != nil {
		t.Fatal(err)
	}
	if state.port != 51820 || len(state.peers) != 2 {
		t.Fatalf("got %+v", state)
	}
	p := state.peers[0]
	if p.PublicKey != (keys.Public{1}) || p.Endpoint != "192.0.2.1:51820" || p.keepalive != 25*time.Second ||
		p.Received != 2224 || p.Sent != 38333 || !p.Handshake.Equal(time.Unix(1, 5)) ||
		!slices.Equal(p.AllowedIPs, []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::1/128")}) {
		t.Errorf("got %+v", p)
	}
	if p := state.peers[1]; p.PublicKey != (keys.Public{2}) || !p.Handshake.IsZero() || p.Endpoint != "" || p.AllowedIPs != nil {
		t.Errorf("got %+v", p)
	}
}

func TestParseStateErrors(t *testing.T) {
	for _, text := range []string{
		"garbage",
		"listen_port=65536",
		"public_key=00",
		"public_key=" + strings.Repeat("00", 33),
		"public_key=" + strings.Repeat("zz", 32),
		deviceText + "endpoint=nowhere",
		deviceText + "allowed_ip=10.0.0.0/33",
		deviceText + "rx_bytes=-1",
		deviceText + "persistent_keepalive_interval=65536",
		deviceText + "last_handshake_time_sec=soon",
	} {
		if _, err := parseState(text); err == nil {
			t.Errorf("read %q", text)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
	}
}

// deviceText is what a device answers; "e8" is a private key that no error may
// quote.
var deviceText = `private_key=e8` + strings.Repeat("0", 62) + `
listen_port=51820
public_key=01` + strings.Repeat("0", 62) + `
preshared_key=` + strings.Repeat("0", 64) + `
protocol_version=1
endpoint=192.0.2.1:51820
last_handshake_time_sec=1
last_handshake_time_nsec=5
tx_bytes=38333
rx_bytes=2224
persistent_keepalive_interval=25
allowed_ip=10.0.0.1/32
allowed_ip=fd00::1/128
a_key_of_the_future=1
public_key=02` + strings.Repeat("0", 62) + `
last_handshake_time_sec=0
last_handshake_time_nsec=0
`

// FuzzParseState: no text makes the parser panic or quote a private key, and what
// it reads can be written and read again.
func FuzzParseState(f *testing.F) {
	f.Add(deviceText)
	f.Add("private_key\nlisten_port=1")
	f.Add("public_key=" + strings.Repeat("ab", 32) + "\nallowed_ip=::ffff:1.2.3.4/120\nendpoint=[fe80::1%eth0]:1\n")
	f.Fuzz(func(t *testing.T, text string) {
		state, err := parseState(text)
		if err != nil {
			if len(err.Error()) > 64 {
				t.Fatalf("an error of %d bytes quotes its input: %v", len(err.Error()), err)
			}
			return
		}
		var changes []change
		for _, p := range state.peers {
			endpoint, _ := netip.ParseAddrPort(p.Endpoint)
			changes = append(changes, change{key: p.PublicKey, gain: p.AllowedIPs, endpoint: endpoint, keepalive: &p.keepalive})
		}
		again, err := parseState(renderChanges(changes))
		if err != nil || len(again.peers) != len(state.peers) {
			t.Fatalf("%q: %v", renderChanges(changes), err)
		}
		for i, p := range again.peers {
			if q := state.peers[i]; p.PublicKey != q.PublicKey || p.Endpoint != q.Endpoint || p.keepalive != q.keepalive || !slices.Equal(p.AllowedIPs, q.AllowedIPs) {
				t.Fatalf("%+v became %+v", q, p)
			}
		}
	})
}

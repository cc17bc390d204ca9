package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/internal/privatefile"
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

func TestReadBootstrap(t *testing.T) {
	good := newTestFleet(t).bootstrap
	text, err := json.MarshalIndent(good, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rpi.json")
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	if got, err := ReadBootstrap(path); err != nil || !reflect.DeepEqual(got, good) {
		t.Errorf("read %+v, %v; want what was written", got, err)
	}
	write([]byte("{\n\"fleet\": 5}"))
	if _, err := ReadBootstrap(path); err == nil || !strings.Contains(err.Error(), "read bootstrap: "+path+":2:") {
		t.Errorf("%v; want the line of the mistake", err)
	}
	write([]byte("{}"))
	if _, err := ReadBootstrap(path); err == nil || !strings.Contains(err.Error(), path+": fleet is missing\nname is missing\n") {
		t.Errorf("%v; want all that is missing", err)
	}
	write(text)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBootstrap(path); !errors.Is(err, privatefile.ErrExposed) {
		t.Errorf("%v; want ErrExposed", err)
	}
}

// What is written is read back, what would not be read is not written, and what an
// agent keeps is removed without what else is there.
func TestWriteBootstrap(t *testing.T) {
	f := newTestFleet(t)
	path := filepath.Join(t.TempDir(), "new", "agent.json")
	want := f.bootstrap
	want.Control, want.ControlKey = "https://control.example.com", want.PrivateKey.Public()
	if err := WriteBootstrap(path, want); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadBootstrap(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if err := WriteBootstrap(path, Bootstrap{}); err == nil || !strings.Contains(err.Error(), "fleet is missing") {
		t.Errorf("an empty one: %v", err)
	}
	if got, err := ReadBootstrap(path); err != nil || got.Name != want.Name {
		t.Errorf("after that: %+v, %v", got, err)
	}
	if err := CheckAllow([]string{"localhost:80"}); err != nil {
		t.Error(err)
	}
	if err := CheckAllow([]string{"localhost:80", "localhost"}); err == nil || !strings.Contains(err.Error(), `allow "localhost" is not host:port`) {
		t.Error(err)
	}
	dir := t.TempDir()
	for _, name := range []string{storedName, keyringName, socketName, "." + storedName + ".123", "photo.jpg"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := RemoveData(dir); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "photo.jpg" {
			t.Errorf("left %v, %v", left, err)
		}
	}
}

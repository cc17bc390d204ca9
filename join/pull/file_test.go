package pull

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/format"
	"pgregory.net/rapid"

	"github.com/kokoa-proxy/kokoa/keys"
)

func TestFile(t *testing.T) {
	const want = `package fleet

origin: "rpi-home": {
	public_key:     "AQIDAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	tunnel_address: "10.86.1.7"
	expires:        "2026-11-24T18:00:00Z"
	hosts: ["blog.example.com", "*.dev.example.com"]
}
`
	if got, err := File(testOrigin); err != nil || string(got) != want {
		t.Errorf("%s%v", got, err)
	}
	for want, change := range map[string]func(*Origin){
		"name":           func(o *Origin) { o.Name = `x": {` },
		"host":           func(o *Origin) { o.Hosts = []string{`a.b", "c.d`} },
		"folder":         func(o *Origin) { o.Folder = "../.github" },
		"tunnel address": func(o *Origin) { o.TunnelAddress = netip.MustParseAddr("fe80::1%eth0") },
		"no key":         func(o *Origin) { o.Key = keys.Public{} },
	} {
		o := testOrigin
		change(&o)
		if text, err := File(o); err == nil || !strings.Contains(err.Error(), want) || text != nil {
			t.Errorf("%s: %s, %v", want, text, err)
		}
	}
}

// Whatever is written is CUE in cue fmt's form that says what was given.
func TestFileIsCUE(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.RuneFrom([]rune("ab1-_.*\"\\\n({")), 1, 12, -1)
		o := Origin{
			Name:          rapid.OneOf(rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?`), text).Draw(t, "name"),
			Key:           keys.Public(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")),
			Folder:        rapid.OneOf(rapid.SampledFrom([]string{"origins", "a/b_c-d"}), text).Draw(t, "folder"),
			TunnelAddress: rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("10.86.1.7"), netip.MustParseAddr("fd00::7")}).Draw(t, "address"),
			Hosts:         rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]string{"a.b", "*.a.example.com", "x_y.example.com"}), text), 0, 3).Draw(t, "hosts"),
		}
		if rapid.Bool().Draw(t, "temporary") {
			o.Expires = time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "expires"), 7)
		}
		written, err := File(o)
		if err != nil {
			return
		}
		if formatted, err := format.Source(written); err != nil || string(formatted) != string(written) {
			t.Fatalf("cue fmt: %v\n%s\nbecomes\n%s", err, written, formatted)
		}
		var got map[string]struct {
			Key     string    `json:"public_key"`
			Address string    `json:"tunnel_address"`
			Hosts   []string  `json:"hosts"`
			Expires time.Time `json:"expires"`
		}
		v := cuecontext.New().CompileBytes(written)
		if err := v.LookupPath(cue.ParsePath("origin")).Decode(&got); err != nil {
			t.Fatalf("%v\n%s", err, written)
		}
		is, ok := got[o.Name]
		if !ok || len(got) != 1 || is.Key != o.Key.String() || is.Address != o.TunnelAddress.String() || strings.Join(is.Hosts, ",") != strings.Join(o.Hosts, ",") {
			t.Fatalf("%s says %+v", written, got)
		}
		if want := o.Expires.Truncate(time.Second); !o.Expires.IsZero() && !is.Expires.Equal(want) || o.Expires.IsZero() && !is.Expires.IsZero() {
			t.Fatalf("expires %v, want %v", is.Expires, want)
		}
	})
}

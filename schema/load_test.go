package schema

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

// memory is a Tree of path and text.
type memory map[string]string

func (m memory) Files() []File {
	var out []File
	for p, text := range m {
		out = append(out, File{Path: p, Hash: blobHash([]byte(text))})
	}
	return out
}

func (m memory) Read(p string) ([]byte, error) {
	text, ok := m[p]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(text), nil
}

func newLoader(t testing.TB, o Options) *Loader {
	t.Helper()
	l := NewLoader(o)
	t.Cleanup(func() { l.Close() })
	return l
}

func TestX(t *testing.T) {
	l := newLoader(t, Options{})
	m := memory{"fleet.cue": `package fleet

fleet: {name: "demo", domains: ["kokoa.test"], network: "10.86.0.0/16", dns: {provider: "builtin"}}
edge: tokyo: {addresses: ["203.0.113.10"], endpoint: "203.0.113.10:51820", tunnel_address: "10.86.0.16"}
origin: vm1: {public_key: "aGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGU=", tunnel_address: "10.86.1.1"}
route: a: {host: "a.kokoa.test", origin: "vm1", service: "http://localhost:3000"}
`}
	f, w, err := l.Load(context.Background(), m)
	fmt.Printf("%+v\n%v\n%v\n", f, w, err)
	m["b.cue"] = "package fleet\nroute: b: #W & {hots: \"x.kokoa.test\", strip_paths: true, origin: \"vm2\", tls: \"autoo\", websocket: \"yes\", health: {interval: 3, pth: \"x\"}}\n"
	m["c.cue"] = "package fleet\nroute: c: {host: \"x.kokoa.test.\", origin: \"vm2\", failover: {origin: \"vm2\", service: \"http://x/\"}, edges: [\"toky\", \"Osaka\"]}\n"
	m["d.cue"] = "package fleet\nroute: d: {host: \"x.kokoa.org\", origin: \"vm2\", service: \"http://x\", edges: [\"toky\"]}\n"
	m["e.cue"] = "package fleet\nroute: e: {host: \"a.kokoa.test\", origin: \"vm2\", service: \"http://x\", edges: [\"toky\"]}\n"
	m["lib.cue"] = "package fleet\n#W: {service: \"http://x:1\", ...}\n"
	f, w, err = l.Load(context.Background(), m)
	var d Diagnostics
	if errors.As(err, &d) {
		d.Text(testWriter{t})
		d.JSON(testWriter{t})
	} else {
		fmt.Printf("%+v\n%v\n%v\n", f, w, err)
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { fmt.Print(string(b)); return len(b), nil }

func TestExample(t *testing.T) {
	tree, err := Dir("../examples/fleet-repo")
	if err != nil {
		t.Fatal(err)
	}
	f, w, err := newLoader(t, Options{}).Load(context.Background(), tree)
	fmt.Println(f, w, err)
}

package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
)

// kokoa is this test binary, as the program.
func kokoa(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asKokoa, "1")
	return self
}

// soon is far more than anything here takes.
const soon = 30 * time.Second

// The demo, as somebody lives with it: look, push, break, mend, leave.
func TestDemo(t *testing.T) {
	d := demotest.Start(t, kokoa(t), t.TempDir())
	d.Ready()
	both := d.Addresses()
	if len(d.File.Edges) != 2 || len(d.File.Agents) != 2 || len(d.File.Routes) < 5 {
		t.Fatalf("demo.json: %+v", d.File)
	}
	if out := d.Out.String(); !strings.Contains(out, "It is live") || !strings.Contains(out, "git clone") {
		t.Errorf("what to try is missing:\n%s", out)
	}

	t.Run("every route serves on every edge and in DNS at once", func(t *testing.T) {
		for _, r := range d.File.Routes {
			host := strings.Replace(r.Host, "*", "someone", 1)
			if err := d.Everywhere("https://"+host+r.Path, 200, ""); err != nil {
				t.Error(err)
			}
			if err := d.Answers(host, both); err != nil {
				t.Error(err)
			}
		}
		if err := d.Everywhere("https://app.kokoa.test/api/users?q=1", 200, `"path": "/users"`); err != nil {
			t.Error(err)
		}
		if err := d.Everywhere("https://anna.apps.kokoa.test/", 200, "anna.apps.kokoa.test"); err != nil {
			t.Error(err)
		}
		// Plain HTTP is sent to HTTPS, at the port beside it.
		r, err := http.NewRequest("GET", "http://"+d.File.Edges[0].HTTP+"/about?x=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, plain, _ := net.SplitHostPort(d.File.Edges[0].HTTP)
		_, secured, _ := net.SplitHostPort(d.File.Edges[0].HTTPS)
		r.Host = net.JoinHostPort("blog.kokoa.test", plain)
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := "https://blog.kokoa.test:" + secured + "/about?x=1"; resp.StatusCode != 308 || resp.Header.Get("Location") != want {
			t.Errorf("plain http: %d to %q, want 308 to %q", resp.StatusCode, resp.Header.Get("Location"), want)
		}
	})

	clone := filepath.Join(t.TempDir(), "clone")
	demotest.Git(t, "", "clone", "-q", d.File.Repo, clone)
	route := filepath.Join(clone, "routes", "hello.cue")
	hello := "package fleet\n\nroute: hello: {\n\thost:    \"hello.kokoa.test\"\n\torigin:  \"vm1\"\n\tservice: \"" + demotest.Service(t, clone, "app.cue") + "\"\n\ttls:     \"internal\"\n}\n"

	t.Run("plan in a clone is empty, then shows what is not yet committed", func(t *testing.T) {
		if code, out := d.Kokoa(clone, "plan", "--detailed-exitcode"); code != 0 || !strings.Contains(out, "Nothing to do") {
			t.Errorf("exit %d:\n%s", code, out)
		}
		demotest.Write(t, route, hello)
		code, out := d.Kokoa(clone, "plan", "--detailed-exitcode")
		if code != 2 || !strings.Contains(out, "+ route") || !strings.Contains(out, "routes/hello.cue:3:") || !strings.Contains(out, "+ record") {
			t.Errorf("exit %d:\n%s", code, out)
		}
		if code, out := d.Kokoa(clone, "plan", "--format", "json"); code != 0 || !json.Valid([]byte(out)) {
			t.Errorf("exit %d:\n%s", code, out)
		}
	})

	t.Run("a push makes it live, on both edges and in DNS", func(t *testing.T) {
		demotest.Git(t, clone, "add", ".")
		demotest.Git(t, clone, "commit", "-qm", "Say hello")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error { return d.Everywhere("https://hello.kokoa.test/", 200, "hello.kokoa.test") })
		demotest.Eventually(t, soon, func() error { return d.Answers("hello.kokoa.test", both) })
		demotest.Eventually(t, soon, func() error {
			if out := d.Out.String(); !strings.Contains(out, `"Say hello"`) {
				return errors.New("the terminal does not tell of the push")
			}
			return nil
		})
		if code, out := d.Kokoa(clone, "plan", "--detailed-exitcode"); code != 0 {
			t.Errorf("plan after apply: exit %d\n%s", code, out)
		}
	})

	t.Run("a broken commit changes nothing and says where", func(t *testing.T) {
		demotest.Write(t, route, strings.Replace(hello, "vm1", "vm2", 1))
		demotest.Git(t, clone, "commit", "-qam", "Break it")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error { return d.Phase(reconciler.Invalid, "routes/hello.cue:5:") })
		if err := d.Everywhere("https://hello.kokoa.test/", 200, ""); err != nil {
			t.Error(err)
		}
		demotest.Eventually(t, soon, func() error {
			if out := d.Out.String(); !strings.Contains(out, `did you mean "vm1"`) {
				return errors.New("the terminal does not say what is wrong")
			}
			return nil
		})
		demotest.Git(t, clone, "revert", "--no-edit", "HEAD")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error { return d.Phase(reconciler.Settled, "") })
	})

	t.Run("a record changed by hand is put back", func(t *testing.T) {
		m := new(dns.Msg)
		m.SetUpdate("kokoa.test.")
		rr, err := dns.NewRR("hello.kokoa.test. 5 IN A 192.0.2.66")
		if err != nil {
			t.Fatal(err)
		}
		m.RemoveRRset([]dns.RR{rr})
		m.Insert([]dns.RR{rr})
		secret, err := keys.ReadSecret(d.File.Secret)
		if err != nil {
			t.Fatal(err)
		}
		key := secret.TSIG("kokoa.test")
		m.SetTsig("kokoa.test.", dns.HmacSHA256, 300, time.Now().Unix())
		c := &dns.Client{Net: "tcp", TsigSecret: map[string]string{"kokoa.test.": base64.StdEncoding.EncodeToString(key[:])}}
		in, _, err := c.Exchange(m, d.File.DNS)
		if err != nil || in.Rcode != dns.RcodeSuccess {
			t.Fatalf("update: %v %v", in, err)
		}
		demotest.Eventually(t, soon, func() error { return d.Answers("hello.kokoa.test", both) })
		demotest.Eventually(t, soon, func() error {
			if out := d.Out.String(); !strings.Contains(out, "drift, put back") {
				return errors.New("the terminal does not tell of it")
			}
			return nil
		})
	})

	t.Run("taking a route out of Git takes it away", func(t *testing.T) {
		demotest.Git(t, clone, "rm", "-q", "routes/hello.cue")
		demotest.Git(t, clone, "commit", "-qm", "Say no more")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error { return d.Answers("hello.kokoa.test", nil) })
		demotest.Eventually(t, soon, func() error { return d.Everywhere("https://hello.kokoa.test/", 404, "") })
	})

	t.Run("rewound history is refused", func(t *testing.T) {
		head := strings.TrimSpace(demotest.Git(t, clone, "rev-parse", "HEAD"))
		demotest.Git(t, clone, "push", "-qf", "origin", "HEAD~1:main")
		demotest.Eventually(t, soon, func() error { return d.Phase(reconciler.Stalled, "--accept-history") })
		if err := d.Answers("hello.kokoa.test", nil); err != nil {
			t.Errorf("the rewound route is back: %v", err)
		}
		demotest.Git(t, clone, "push", "-qf", "origin", head+":main")
		demotest.Eventually(t, soon, func() error { return d.Phase(reconciler.Settled, "") })
	})

	t.Run("deleting every route asks first", func(t *testing.T) {
		demotest.Git(t, clone, "rm", "-qr", "routes")
		demotest.Git(t, clone, "commit", "-qm", "Oh no")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error { return d.Phase(reconciler.Blocked, "--approve-deletes") })
		if err := d.Everywhere("https://blog.kokoa.test/", 200, ""); err != nil {
			t.Error(err)
		}
		if code, out := d.Kokoa(clone, "plan"); code != 3 || !strings.Contains(out, "BLOCKED") || !strings.Contains(out, "- route") {
			t.Errorf("plan: exit %d\n%s", code, out)
		}
		demotest.Git(t, clone, "revert", "--no-edit", "HEAD")
		demotest.Git(t, clone, "push", "-q")
		demotest.Eventually(t, soon, func() error { return d.Phase(reconciler.Settled, "") })
	})

	t.Run("an edge that is killed leaves DNS, and the other serves", func(t *testing.T) {
		victim, other := d.File.Edges[0], d.File.Edges[1]
		if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if code, _, err := d.Get(other.HTTPS, "https://blog.kokoa.test/"); err != nil || code != 200 {
				t.Fatalf("the other edge: %d %v", code, err)
			}
		}
		rest := slices.DeleteFunc(slices.Clone(both), func(a string) bool {
			return a == netip.MustParseAddrPort(victim.HTTPS).Addr().String()
		})
		demotest.Eventually(t, soon, func() error { return d.Answers("blog.kokoa.test", rest) })
		// It comes back by itself, with its config, and then into DNS.
		demotest.Eventually(t, 2*soon, func() error { return d.Answers("blog.kokoa.test", both) })
		if err := d.Everywhere("https://blog.kokoa.test/", 200, ""); err != nil {
			t.Error(err)
		}
	})

	if err := d.Stop(); err != nil {
		t.Errorf("the demo ended with %v", err)
	}
	for _, e := range d.File.Edges {
		if c, err := net.DialTimeout("tcp", e.HTTPS, time.Second); err == nil {
			c.Close()
			t.Errorf("edge %s is still there after the end", e.Name)
		}
	}
}

func TestDemoOnce(t *testing.T) {
	dir := t.TempDir()
	d := demotest.Start(t, kokoa(t), dir, "--once")
	select {
	case err := <-d.Done:
		d.Done <- err
		if err != nil {
			t.Fatalf("%v\n%s", err, d.Out)
		}
	case <-time.After(90 * time.Second):
		t.Fatalf("--once does not end\n%s", d.Out)
	}
	if _, err := os.Stat(filepath.Join(dir, "demo.json")); err != nil {
		t.Error(err)
	}
	// A folder of an earlier demo can be used again.
	again := demotest.Start(t, kokoa(t), dir, "--once")
	select {
	case err := <-again.Done:
		again.Done <- err
		if err != nil {
			t.Fatalf("second time: %v\n%s", err, again.Out)
		}
	case <-time.After(90 * time.Second):
		t.Fatalf("the second does not end\n%s", again.Out)
	}
}

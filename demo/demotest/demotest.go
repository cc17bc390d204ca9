// Package demotest starts a demo as a visitor does, and lives with it.
package demotest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/demo"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/reconciler"
)

// Run is a demo in a process of its own, as a visitor starts it.
type Run struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	// Out is what the demo has printed.
	Out *logtest.Buffer
	// Done gets the demo's end, and keeps it.
	Done chan error
	// File is demo.json, once Ready.
	File demo.File
	pool *x509.CertPool
}

// Start runs `kokoa demo` with a folder, and ends it with the test. When the test
// failed, what the demo said is logged.
func Start(t testing.TB, kokoa, dir string, args ...string) *Run {
	t.Helper()
	d := &Run{t: t, dir: dir, Out: &logtest.Buffer{}, Done: make(chan error, 1)}
	d.cmd = exec.Command(kokoa, append([]string{"demo", "--dir", dir}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.Out, d.Out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.Done <- d.cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("demo said:\n%s", d.Out)
			for _, log := range []string{"control.log", "edge-osaka.log", "edge-tokyo.log", "agent-vm1.log"} {
				if data, err := os.ReadFile(filepath.Join(dir, "logs", log)); err == nil {
					t.Logf("%s:\n%s", log, data[max(0, len(data)-4000):])
				}
			}
		}
		d.Stop()
	})
	return d
}

// Stop ends the demo as Ctrl-C does.
func (d *Run) Stop() error {
	d.cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-d.Done:
		d.Done <- err
		return err
	case <-time.After(20 * time.Second):
		d.cmd.Process.Kill()
		return errors.New("did not end within 20 s of an interrupt")
	}
}

// Ready waits for demo.json.
func (d *Run) Ready() {
	d.t.Helper()
	Eventually(d.t, 60*time.Second, func() error {
		select {
		case err := <-d.Done:
			d.Done <- err
			d.t.Fatalf("the demo ended: %v\n%s", err, d.Out)
		default:
		}
		data, err := os.ReadFile(filepath.Join(d.dir, "demo.json"))
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &d.File)
	})
	pem, err := os.ReadFile(d.File.CA)
	if err != nil {
		d.t.Fatal(err)
	}
	d.pool = x509.NewCertPool()
	if !d.pool.AppendCertsFromPEM(pem) {
		d.t.Fatal("the CA file has no certificate")
	}
}

// Get fetches a URL through an edge, as `curl --connect-to` does.
func (d *Run) Get(edge, url string) (int, string, error) {
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: d.pool},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, edge)
			},
		},
	}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// Everywhere insists on an answer for url through every edge.
func (d *Run) Everywhere(url string, status int, contains string) error {
	for _, e := range d.File.Edges {
		code, body, err := d.Get(e.HTTPS, url)
		if err != nil {
			return fmt.Errorf("%s through %s: %w", url, e.Name, err)
		}
		if code != status || !strings.Contains(body, contains) {
			return fmt.Errorf("%s through %s: %d %q, want %d with %q", url, e.Name, code, body, status, contains)
		}
	}
	return nil
}

// Lookup is the demo's own DNS server's answer, sorted.
func (d *Run) Lookup(host string) ([]string, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(host), dns.TypeA)
	in, _, err := new(dns.Client).Exchange(m, d.File.DNS)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, rr := range in.Answer {
		if a, ok := rr.(*dns.A); ok {
			out = append(out, a.A.String())
		}
	}
	slices.Sort(out)
	return out, nil
}

// Answers insists on DNS saying want for host.
func (d *Run) Answers(host string, want []string) error {
	got, err := d.Lookup(host)
	if err == nil && !slices.Equal(got, want) {
		err = fmt.Errorf("%s answers %v, want %v", host, got, want)
	}
	return err
}

// Addresses are those of the edges, as DNS is to have them.
func (d *Run) Addresses() []string {
	var out []string
	for _, e := range d.File.Edges {
		out = append(out, netip.MustParseAddrPort(e.HTTPS).Addr().String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Status is the part of the status API's answer that tests look at.
func (d *Run) Status() (reconciler.Status, error) {
	var s reconciler.Status
	resp, err := http.Get(d.File.Status + "/api/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	var raw struct {
		Phase   reconciler.Phase
		Error   string
		Head    reconciler.RevisionStatus
		Applied reconciler.RevisionStatus
	}
	err = json.NewDecoder(resp.Body).Decode(&raw)
	s.Phase, s.Error, s.Head, s.Applied = raw.Phase, raw.Error, raw.Head, raw.Applied
	return s, err
}

// Phase insists on a phase, with an error that contains a text.
func (d *Run) Phase(want reconciler.Phase, contains string) error {
	s, err := d.Status()
	if err == nil && (s.Phase != want || !strings.Contains(s.Error, contains)) {
		err = fmt.Errorf("status is %s (%s), want %s with %q", s.Phase, s.Error, want, contains)
	}
	return err
}

// Kokoa runs a command of the binary that the demo left for the visitor.
func (d *Run) Kokoa(in string, args ...string) (code int, output string) {
	d.t.Helper()
	c := exec.Command(d.File.Kokoa, args...)
	c.Dir = in
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), string(out)
}

// Git runs git in a folder, as somebody.
func Git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", append([]string{"-c", "user.name=Test", "-c", "user.email=test@kokoa.test"}, args...)...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Write makes a file.
func Write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Eventually polls until check is content.
func Eventually(t testing.TB, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Service is the URL that the demo wrote into a route's file, which may not have the
// usual port.
func Service(t testing.TB, clone, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(clone, "routes", file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "service: \"")
	url, _, ok2 := strings.Cut(rest, "\"")
	if !ok || !ok2 {
		t.Fatalf("no service in %s:\n%s", file, data)
	}
	return url
}

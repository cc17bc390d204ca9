package agent

import (
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// TestReport is what the owner of a host is told of an agent between two edges, one
// of which dies.
func TestReport(t *testing.T) {
	f := newTestFleet(t)
	tokyo, osaka := f.newEdge(t, "tokyo", "10.77.0.10"), f.newEdge(t, "osaka", "10.77.0.11")
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	f.bootstrap.Edges = []api.AgentEdge{tokyo.is, osaka.is}
	f.config.Edges = f.bootstrap.Edges
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	tokyo.relay(f.sign(t, both(services(map[string]string{"web": web.URL, "metadata": "http://169.254.169.254"}), func(c *api.AgentConfig) { c.Expires = &expires })))
	data := f.bootstrap.Data

	if _, err := ReadReport(t.Context(), data); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before it runs: %v", err)
	}
	a, stop := f.runAgent(t)
	stopReports := a.reports()
	read := func() Report {
		r, err := ReadReport(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	var r Report
	eventually(t, "both tunnels and the service are up", func() bool {
		r = read()
		return r.Serial == 5 && r.Up() == 2 && len(r.Services) == 2 && r.Services[1].Up && len(r.Refused) > 0
	})
	if err := r.Unhealthy(); err != nil {
		t.Errorf("unhealthy: %v", err)
	}
	if r.Fleet != f.bootstrap.Fleet || r.Name != f.bootstrap.Name || r.Address != f.bootstrap.TunnelAddress || r.Key != f.bootstrap.PrivateKey.Public() {
		t.Errorf("it is %+v", r)
	}
	if r.Tunnel.Kind == "" || !strings.Contains(r.Tunnel.Reason, r.Tunnel.Kind) {
		t.Errorf("tunnel %+v", r.Tunnel)
	}
	if r.Expires == nil || !r.Expires.Equal(expires) {
		t.Errorf("expires %v, want %v", r.Expires, expires)
	}
	for _, e := range r.Edges {
		if e.Since.Before(r.Started.Add(-time.Second)) || e.Answered.Before(e.Since) || e.Handshake.IsZero() || !strings.HasPrefix(e.Endpoint, "127.0.0.1:") {
			t.Errorf("edge %+v", e)
		}
	}
	if !strings.Contains(strings.Join(r.Refused, "\n"), "metadata service") {
		t.Errorf("refused %q", r.Refused)
	}

	info, err := os.Stat(filepath.Join(data, socketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	osaka.stop()
	eventually(t, "osaka is down", func() bool { r = read(); return r.Up() == 1 })
	if down := r.Edges[1]; down.Up || down.Since.Before(down.Answered) || r.Unhealthy() != nil {
		t.Errorf("%+v, unhealthy: %v", r, r.Unhealthy())
	}
	tokyo.stop()
	eventually(t, "tokyo as well", func() bool { r = read(); return r.Up() == 0 })
	if err := r.Unhealthy(); err == nil || !strings.Contains(err.Error(), "none of 2 tunnels is up") {
		t.Errorf("unhealthy: %v", err)
	}

	stop()
	stopReports()
	if _, err := ReadReport(t.Context(), data); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after it ended: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, socketName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestUnhealthy(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	up, later := []EdgeReport{{Name: "tokyo"}, {Name: "osaka", Up: true}}, now.Add(time.Second)
	for _, c := range []struct {
		report Report
		want   string
	}{
		{Report{Now: now, Edges: up}, ""},
		{Report{Now: now, Edges: up, Expires: &later}, ""},
		{Report{Now: now, Edges: up, Expires: &now}, "the origin expired at 2026-11-23T12:00:00Z"},
		{Report{Now: now, Edges: up, Draining: true}, "the agent is stopping"},
		{Report{Now: now, Edges: up[:1]}, "none of 1 tunnels is up"},
		{Report{Now: now}, "none of 0 tunnels is up"},
	} {
		got := ""
		if err := c.report.Unhealthy(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.report, got, c.want)
		}
	}
}

// An answer grows old by itself: a link that nobody asks through is not up for ever.
func TestOldAnswers(t *testing.T) {
	f := newTestFleet(t)
	w := newWorld()
	a, err := newAgent(f.bootstrap, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.connect = w.connect
	device, err := w.open(tunnel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(a, device)
	l := newLink(s, api.AgentEdge{Name: "tokyo", Endpoint: "tokyo.example.com:51820"})
	s.links = []*link{l}
	a.session.Store(s)
	for age, want := range map[time.Duration]bool{0: true, answerAge - time.Second: true, answerAge + time.Second: false} {
		answered := time.Now().Add(-age)
		l.up, l.answered, l.since = true, answered, answered
		e := a.report().Edges[0]
		if e.Up != want || !want && !e.Since.Equal(answered.Add(answerAge)) || e.Endpoint != "tokyo.example.com:51820" {
			t.Errorf("%v after the last answer: %+v", age, e)
		}
	}
}

// TestSocketPlaces: long paths work, what a killed agent left is replaced, and what
// another one listens at is left alone.
func TestSocketPlaces(t *testing.T) {
	for _, name := range []string{"short", strings.Repeat("long", 40)} {
		f := newTestFleet(t)
		f.bootstrap.Data = filepath.Join(t.TempDir(), name)
		a, err := newAgent(f.bootstrap, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.store.prepare(); err != nil {
			t.Fatal(err)
		}
		// A process that was killed leaves its socket.
		err = atSocket(f.bootstrap.Data, func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ReadReport(t.Context(), f.bootstrap.Data); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: a socket that was left: %v", name, err)
		}
		stop := a.reports()
		if _, err := ReadReport(t.Context(), f.bootstrap.Data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if l, err := a.listenSocket(); err == nil || !strings.Contains(err.Error(), "another agent runs with the data folder") {
			t.Errorf("%s: a second agent: %v, %v", name, l, err)
		}
		if _, err := ReadReport(t.Context(), f.bootstrap.Data); err != nil {
			t.Errorf("%s: after a second agent: %v", name, err)
		}
		stop()
	}
}

package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/tunnel/stream"
)

// quickPace is defaultPace for tests on real tunnels: the same order of things,
// sooner.
var quickPace = pace{
	poll:        time.Second,
	answer:      time.Second,
	resolve:     time.Second,
	backoffMin:  50 * time.Millisecond,
	backoffMax:  500 * time.Millisecond,
	beat:        time.Second,
	beatGap:     50 * time.Millisecond,
	linger:      10 * time.Second,
	patience:    time.Minute,
	patienceMax: time.Minute,
	tick:        50 * time.Millisecond,
	grace:       10 * time.Second,
}

// runAgent runs an agent until the test ends or stop is called; stop waits and
// says how it ended.
func (f *testFleet) runAgent(t *testing.T, change ...func(*agent)) (a *agent, stop func()) {
	t.Helper()
	a, err := newAgent(f.bootstrap, slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	a.pace = quickPace
	for _, c := range change {
		c(a)
	}
	return a, started(t, a)
}

// started runs an agent until the test ends or stop is called.
func started(t *testing.T, a *agent) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// testLog writes an agent's log into the test's.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// eventually waits until ok, for half a minute at most.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not after 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// services declares services by id and URL.
func services(urls map[string]string) func(*api.AgentConfig) {
	return func(c *api.AgentConfig) {
		for id, u := range urls {
			c.Services = append(c.Services, api.AgentService{ID: id, URL: u})
		}
		slices.SortFunc(c.Services, func(a, b api.AgentService) int { return strings.Compare(a.ID, b.ID) })
	}
}

// both applies changes in order.
func both(changes ...func(*api.AgentConfig)) func(*api.AgentConfig) {
	return func(c *api.AgentConfig) {
		for _, change := range changes {
			change(c)
		}
	}
}

// TestThroughTwoTunnels is the agent's job in one: two edges with real tunnels and
// the real API, config through one of them, requests through both.
func TestThroughTwoTunnels(t *testing.T) {
	f := newTestFleet(t)
	tokyo, osaka := f.newEdge(t, "tokyo", "10.77.0.10"), f.newEdge(t, "osaka", "10.77.0.11")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d", r.Host, r.URL.Path, len(body))
	}))
	defer web.Close()

	f.bootstrap.Edges = []api.AgentEdge{tokyo.is}
	f.config.Edges = []api.AgentEdge{tokyo.is, osaka.is}
	f.runAgent(t)
	eventually(t, "a heartbeat before any config", func() bool { return len(tokyo.heartbeats()) > 0 })
	signed := f.sign(t, services(map[string]string{"web": web.URL}))
	tokyo.relay(signed)
	eventually(t, "osaka is told of the service being up", func() bool {
		h := osaka.last()
		return h.Serial == 5 && len(h.Services) == 1 && h.Services[0].Up && h.Services[0].RTT > 0
	})
	eventually(t, "and of both tunnels", func() bool {
		h := osaka.last()
		return len(h.Edges) == 2 && h.Edges[0].Up && h.Edges[1].Up && !h.Edges[0].Handshake.IsZero()
	})
	for _, e := range []*testEdgeServer{tokyo, osaka} {
		client := e.client("web")
		for i := range 5 {
			res, err := client.Post("http://blog.example.com/page", "text/plain", bytes.NewReader(make([]byte, i*100_000)))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if want := fmt.Sprintf("blog.example.com /page %d", i*100_000); err != nil || string(body) != want {
				t.Errorf("through %s: %q, %v; want %q", e.is.Name, body, err, want)
			}
		}
		client.CloseIdleConnections()
	}
}

// TestRefusals is what an edge is told when the agent does not serve it.
func TestRefusals(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	edge.relay(f.sign(t, services(map[string]string{
		"dead":     "http://" + nobody.Addr().String(),
		"metadata": "http://169.254.169.254",
	})))
	a, _ := f.runAgent(t)
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	for _, c := range []struct {
		service string
		want    error
	}{
		{"dead", stream.ErrServiceDown},
		{"metadata", stream.ErrRefused},
		{"unknown", stream.ErrRefused},
		{strings.Repeat("x", 128), stream.ErrRefused},
	} {
		if err := edge.refusal(t, c.service); !errors.Is(err, c.want) {
			t.Errorf("service %.20q: %v, want %v", c.service, err, c.want)
		}
	}
	eventually(t, "the local policy's refusal is reported", func() bool {
		return strings.Contains(strings.Join(edge.last().Refused, "\n"), "refused by local policy: 169.254.169.254:80 is a cloud's metadata service")
	})
	eventually(t, "no stream is left", func() bool { return a.flows.count() == 0 })
}

// TestConfigChangesUnderStreams: streams of a service that was taken away end,
// and no other stream notices any change of config.
func TestConfigChangesUnderStreams(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	other := f.newEdge(t, "osaka", "10.77.0.11")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is, other.is}, []api.AgentEdge{edge.is, other.is}
	echo := newEcho(t)
	urls := map[string]string{"stays": "http://" + echo, "goes": "http://" + echo, "changes": "http://" + echo}
	edge.relay(f.sign(t, services(urls)))
	f.runAgent(t)
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 && other.last().Serial == 5 })

	stays, goes, changes := edge.echoes(t, "stays"), edge.echoes(t, "goes"), edge.echoes(t, "changes")
	for _, s := range []*echoStream{stays, goes, changes} {
		s.say(t, "before")
	}
	// Twenty changes, the first of which takes two services away, and the tenth of
	// which an edge.
	for n := uint64(6); n < 26; n++ {
		next := map[string]string{"stays": urls["stays"], fmt.Sprint("new", n): urls["stays"], "changes": "http://127.0.0.1:1"}
		edges := f.config.Edges
		if n >= 16 {
			edges = edges[:1]
		}
		edge.relay(f.sign(t, both(serial(n), services(next), func(c *api.AgentConfig) { c.Edges = edges })))
		eventually(t, "next config obeyed", func() bool { return edge.last().Serial == n })
		stays.say(t, fmt.Sprint("after ", n))
		if n == 6 {
			goes.ended(t)
			changes.ended(t)
		}
	}
	eventually(t, "the edge that is not wanted any more is dropped", func() bool { return len(edge.last().Edges) == 1 })
	stays.say(t, "after all")
	stays.conn.Close()
}

// TestHalfClose: the end of one direction is passed on, and the other goes on.
func TestHalfClose(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	// The service answers only when it has been told that nothing more comes.
	service := listen(t, func(c net.Conn) {
		body, err := io.ReadAll(c)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%d bytes", len(body))
	})
	edge.relay(f.sign(t, services(map[string]string{"count": "http://" + service})))
	a, _ := f.runAgent(t)
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	for _, size := range []int{0, 1, quietSize, bufferSize, 3_000_000} {
		c, err := edge.dial(t.Context(), "count")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := closeWrite(c); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if want := fmt.Sprintf("%d bytes", size); err != nil || string(answer) != want {
			t.Errorf("%q, %v; want %q", answer, err, want)
		}
		c.Close()
	}
	eventually(t, "no stream is left", func() bool { return a.flows.count() == 0 })
}

// TestTooManyStreams: beyond the limit an edge is told so, and those under it go on.
func TestTooManyStreams(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	edge.relay(f.sign(t, services(map[string]string{"echo": "http://" + newEcho(t)})))
	a, _ := f.runAgent(t, func(a *agent) { a.flows.limit = 3 })
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	var open []*echoStream
	for range 3 {
		s := edge.echoes(t, "echo")
		s.say(t, "hello")
		open = append(open, s)
	}
	for range 3 {
		if err := edge.refusal(t, "echo"); !errors.Is(err, stream.ErrServiceDown) {
			t.Errorf("one stream too many: %v, want %v", err, stream.ErrServiceDown)
		}
	}
	for _, s := range open {
		s.say(t, "still here")
	}
	open[0].conn.Close()
	eventually(t, "a stream has ended", func() bool { return a.flows.count() == 2 })
	edge.echoes(t, "echo").say(t, "in its place")
}

// TestStop is the agent's end: at once when idle, after the streams in flight when
// there are some, and after the grace at the latest.
func TestStop(t *testing.T) {
	start := func(t *testing.T, grace time.Duration) (*testEdgeServer, *agent, func()) {
		f := newTestFleet(t)
		edge := f.newEdge(t, "tokyo", "10.77.0.10")
		f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
		edge.relay(f.sign(t, services(map[string]string{"echo": "http://" + newEcho(t)})))
		a, stop := f.runAgent(t, func(a *agent) { a.pace.grace = grace })
		eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
		return edge, a, stop
	}
	t.Run("idle", func(t *testing.T) {
		_, _, stop := start(t, time.Hour)
		stop()
	})
	t.Run("in flight", func(t *testing.T) {
		edge, a, stop := start(t, time.Hour)
		s := edge.echoes(t, "echo")
		s.say(t, "before")
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		eventually(t, "the edge is told", func() bool { return edge.last().Draining })
		s.say(t, "while it stops")
		if err := edge.refusal(t, "echo"); !errors.Is(err, stream.ErrServiceDown) {
			t.Errorf("a new stream: %v, want %v", err, stream.ErrServiceDown)
		}
		s.say(t, "to the end")
		s.conn.Close()
		<-stopped
		if n := a.flows.count(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
	t.Run("after the grace", func(t *testing.T) {
		edge, _, stop := start(t, 200*time.Millisecond)
		s := edge.echoes(t, "echo")
		s.say(t, "before")
		stop()
	})
}

// TestEdgeVanishes: a client of one edge goes on while the other is killed and
// comes back, and the one that comes back is in use again.
func TestEdgeVanishes(t *testing.T) {
	f := newTestFleet(t)
	tokyo, osaka := f.newEdge(t, "tokyo", "10.77.0.10"), f.newEdge(t, "osaka", "10.77.0.11")
	f.bootstrap.Edges = []api.AgentEdge{tokyo.is, osaka.is}
	f.config.Edges = f.bootstrap.Edges
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page") }))
	defer web.Close()
	signed := f.sign(t, services(map[string]string{"web": web.URL}))
	tokyo.relay(signed)
	osaka.relay(signed)
	f.runAgent(t)
	eventually(t, "both edges reached", func() bool { return tokyo.last().Serial == 5 && osaka.last().Serial == 5 })

	get := func(c *http.Client) error {
		res, err := c.Get("http://blog.example.com/")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && string(body) != "page" {
			err = fmt.Errorf("got %q", body)
		}
		return err
	}
	var loads atomic.Int64
	stop := make(chan struct{})
	var loading sync.WaitGroup
	loading.Go(func() {
		c := osaka.client("web")
		defer c.CloseIdleConnections()
		for {
			if err := get(c); err != nil {
				t.Errorf("through the edge that stayed: %v", err)
			}
			loads.Add(1)
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	for range 3 {
		c := tokyo.client("web")
		if err := get(c); err != nil {
			t.Errorf("before: %v", err)
		}
		port := tokyo.port()
		tokyo.stop()
		eventually(t, "the other edge is told", func() bool {
			i := slices.IndexFunc(osaka.last().Edges, func(e api.AgentEdgeState) bool { return e.Name == "tokyo" })
			return i >= 0 && !osaka.last().Edges[i].Up
		})
		told := len(tokyo.heartbeats())
		tokyo.start(t, port)
		eventually(t, "in use again", func() bool { return len(tokyo.heartbeats()) > told })
		c.CloseIdleConnections()
		c = tokyo.client("web")
		if err := get(c); err != nil {
			t.Errorf("after: %v", err)
		}
		c.CloseIdleConnections()
	}
	close(stop)
	loading.Wait()
	if loads.Load() == 0 {
		t.Error("nothing was loaded")
	}
	t.Logf("%d loads through the edge that stayed", loads.Load())
}

// TestBackInTime keeps the promise on a real tunnel at the real pace: an edge that
// was killed and is back, with the same key and nothing else, is in use again.
func TestBackInTime(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	edge.relay(f.sign(t, services(map[string]string{"echo": "http://" + newEcho(t)})))
	f.runAgent(t, func(a *agent) { a.pace = defaultPace })
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	port, told := edge.port(), len(edge.heartbeats())
	edge.stop()
	edge.start(t, port)
	back := time.Now()
	eventually(t, "in use again", func() bool { return len(edge.heartbeats()) > told })
	edge.echoes(t, "echo").say(t, "back")
	took := time.Since(back)
	t.Logf("in use again after %v", took)
	if took > promised {
		t.Errorf("in use again after %v, want at most %v", took, promised)
	}
}

// TestNATRebinds: the agent's packets come from another address all of a sudden,
// as behind a router that was restarted, and an open stream goes on.
func TestNATRebinds(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	nat := newNAT(t, "127.0.0.1:0", edge.is.Endpoint)
	behind := edge.is
	behind.Endpoint = nat.inside.LocalAddr().String()
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{behind}, []api.AgentEdge{behind}
	edge.relay(f.sign(t, services(map[string]string{"echo": "http://" + newEcho(t)})))
	f.runAgent(t)
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	s := edge.echoes(t, "echo")
	for i := range 3 {
		s.say(t, fmt.Sprint("from address ", i))
		before := edge.endpoint(t)
		nat.rebind(t)
		s.say(t, "from the next")
		if after := edge.endpoint(t); after == before {
			t.Errorf("the edge still sees the agent at %s", after)
		}
	}
}

// TestExpiryEndsStreams: the host's clock is set, and what the fleet allowed until a
// moment ends; it is set back, and the agent serves again.
func TestExpiryEndsStreams(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	end := time.Now().Add(time.Hour)
	edge.relay(f.sign(t, both(services(map[string]string{"echo": "http://" + newEcho(t)}), func(c *api.AgentConfig) { c.Expires = &end })))
	var ahead atomic.Int64
	f.runAgent(t, func(a *agent) { a.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	s := edge.echoes(t, "echo")
	s.say(t, "before")
	ahead.Store(int64(2 * time.Hour))
	s.ended(t)
	if err := edge.refusal(t, "echo"); !errors.Is(err, stream.ErrRefused) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a new stream: %v", err)
	}
	eventually(t, "the expiry is reported", func() bool { return strings.Contains(strings.Join(edge.last().Refused, "\n"), "expired") })
	ahead.Store(0)
	edge.echoes(t, "echo").say(t, "again")
}

// TestQuietStreams: a stream on which nothing has moved for hours ends, and one
// that moved lately goes on.
func TestQuietStreams(t *testing.T) {
	f := newTestFleet(t)
	a, err := newAgent(f.bootstrap, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.started = time.Now().Add(-2 * quietLimit)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	quiet, lively := a.flows.take(near, netip.Addr{}), a.flows.take(far, netip.Addr{})
	quiet.moved.Store(0)
	a.flows.closeQuiet()
	if quiet.ctx.Err() == nil || lively.ctx.Err() != nil {
		t.Errorf("quiet: %v, lively: %v", quiet.ctx.Err(), lively.ctx.Err())
	}
	a.flows.end(quiet)
	a.flows.end(lively)
}

// TestRestartWithoutEdges: an agent that was configured once serves from what it
// stored, before any edge has told it anything; a stored config that is spoilt is
// said to be, and the bootstrap serves.
func TestRestartWithoutEdges(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	edge.relay(f.sign(t, services(map[string]string{"echo": "http://" + newEcho(t)})))
	_, stop := f.runAgent(t)
	eventually(t, "config obeyed", func() bool { return edge.last().Serial == 5 })
	stop()

	// The edge has forgotten the config, as one that was made anew has.
	edge.relay(api.Signed{})
	before := len(edge.heartbeats())
	_, stop = f.runAgent(t)
	eventually(t, "heard again", func() bool { return len(edge.heartbeats()) > before })
	if n := edge.last().Serial; n != 5 {
		t.Errorf("obeys serial %d after a restart, want 5", n)
	}
	s := edge.echoes(t, "echo")
	s.say(t, "from the stored config")
	s.conn.Close()
	// A replay of what came before is not obeyed after a restart either.
	edge.relay(f.sign(t, serial(4)))
	eventually(t, "the replay is reported", func() bool {
		return strings.Contains(strings.Join(edge.last().Refused, "\n"), "serial 4: older than the config obeyed, serial 5")
	})
	stop()

	for name, spoil := range map[string]func([]byte) []byte{
		"cut":   func(b []byte) []byte { return b[:len(b)/2] },
		"empty": func([]byte) []byte { return nil },
		"edited": func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"signature":"`), []byte(`"signature":"AAAA`), 1)
		},
	} {
		path := filepath.Join(f.bootstrap.Data, storedName)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, spoil(good), 0o600); err != nil {
			t.Fatal(err)
		}
		edge.relay(api.Signed{})
		before := len(edge.heartbeats())
		_, stop := f.runAgent(t)
		eventually(t, name+" is reported", func() bool {
			b := edge.heartbeats()
			return len(b) > before && strings.Contains(strings.Join(edge.last().Refused, "\n"), "stored config not used, started from the bootstrap")
		})
		edge.relay(f.sign(t, serial(6)))
		eventually(t, name+" is replaced", func() bool { return edge.last().Serial == 6 && len(edge.last().Refused) == 0 })
		stop()
	}
}

// TestStrangers: what comes to the agent's port from no edge's address is turned
// away before a byte is read.
func TestStrangers(t *testing.T) {
	f := newTestFleet(t)
	a, err := newAgent(f.bootstrap, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		a.flows.accept(l, func(from netip.Addr) bool { return from == netip.MustParseAddr("10.77.0.10") })
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := bufio.NewReader(c).ReadByte(); err == nil {
		t.Errorf("a stranger was answered %d", n)
	}
	c.Close()
	l.Close()
	serving.Wait()
}

// TestFullDisk: a config that cannot be saved is obeyed all the same, said to be
// unsaved, and saved when there is room.
func TestFullDisk(t *testing.T) {
	f := newTestFleet(t)
	edge := f.newEdge(t, "tokyo", "10.77.0.10")
	f.bootstrap.Edges, f.config.Edges = []api.AgentEdge{edge.is}, []api.AgentEdge{edge.is}
	f.runAgent(t)
	eventually(t, "started", func() bool { return len(edge.heartbeats()) > 0 })
	// A folder in the file's place fails every way of writing it, for root too.
	path := filepath.Join(f.bootstrap.Data, storedName)
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	edge.relay(f.sign(t, nil))
	eventually(t, "obeyed and reported", func() bool {
		return edge.last().Serial == 5 && strings.Contains(strings.Join(edge.last().Refused, "\n"), "save config")
	})
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "saved", func() bool {
		signed, err := store{dir: f.bootstrap.Data}.load()
		return err == nil && signed.Agent == "rpi" && len(edge.last().Refused) == 0
	})
}

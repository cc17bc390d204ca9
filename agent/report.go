package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/program"
	"github.com/kokoa-proxy/kokoa/keys"
)

// Report is how a running agent is, at one moment. It is for the owner of the host;
// no secret is in it.
type Report struct {
	Fleet   string      `json:"fleet"`
	Name    string      `json:"name"`
	Address netip.Addr  `json:"address"`
	Key     keys.Public `json:"key"`
	Version string      `json:"version"`
	// Platform is "linux/arm64".
	Platform string    `json:"platform"`
	Started  time.Time `json:"started"`
	// Now is the agent's clock; the report's other times are of the same clock.
	Now    time.Time  `json:"now"`
	Tunnel api.Tunnel `json:"tunnel"`
	// Serial is the obeyed config's; 0 means that none was obeyed yet.
	Serial uint64 `json:"serial"`
	// Expires is when the origin ends; nil means never.
	Expires *time.Time   `json:"expires,omitempty"`
	Edges   []EdgeReport `json:"edges"`
	// Services as the agent sees them, without a tunnel between. RTT is in
	// nanoseconds.
	Services []api.LocalService `json:"services"`
	// Refused lists what the agent was told and does not do, for people.
	Refused []string `json:"refused,omitempty"`
	// Draining says that it was told to stop, and takes no new streams.
	Draining bool `json:"draining,omitempty"`
}

// EdgeReport is the tunnel to one edge.
type EdgeReport struct {
	Name string `json:"name"`
	// Up says that a question through the tunnel was answered within the last
	// answerAge, and none has failed since.
	Up bool `json:"up"`
	// Since is how long Up is what it is; zero when the edge never answered.
	Since time.Time `json:"since,omitzero"`
	// Answered is when the edge last did; zero means never.
	Answered time.Time `json:"answered,omitzero"`
	// Handshake is WireGuard's last; zero means never.
	Handshake time.Time `json:"handshake,omitzero"`
	// Endpoint is where the device sends to, or the name that has not been found.
	Endpoint string `json:"endpoint"`
}

// answerAge is how old an edge's last answer may be: an edge that is there answers
// every pace.poll, and one that is lost is noticed well before.
const answerAge = 15 * time.Second

// Up is how many of the tunnels are.
func (r Report) Up() int {
	n := 0
	for _, e := range r.Edges {
		if e.Up {
			n++
		}
	}
	return n
}

// Unhealthy is why no visitor can be served through this agent now, in one sentence,
// or nil when at least one tunnel carries traffic.
func (r Report) Unhealthy() error {
	switch {
	case r.Expires != nil && !r.Now.Before(*r.Expires):
		return fmt.Errorf("the origin expired at %s", r.Expires.UTC().Format(time.RFC3339))
	case r.Draining:
		return errors.New("the agent is stopping")
	case r.Up() == 0:
		return fmt.Errorf("none of %d tunnels is up", len(r.Edges))
	}
	return nil
}

// report is how the agent is now.
func (a *agent) report() Report {
	o, b := a.orders.Load(), a.bootstrap
	r := Report{
		Fleet: b.Fleet, Name: b.Name, Address: b.TunnelAddress, Key: a.rotor.key().Public(),
		Version: program.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Started: a.started, Now: a.now(),
		Serial: o.config.Serial, Expires: o.config.Expires,
		Edges: []EdgeReport{}, Services: a.checks.services(), Draining: a.draining.Load(),
	}
	s := a.session.Load()
	if s == nil {
		return r
	}
	r.Tunnel = api.Tunnel{Kind: string(s.device.Kind()), Reason: s.device.Reason()}
	r.Refused = a.refused(o, s)
	r.Edges = s.reports()
	return r
}

// reports is each tunnel's state, for people.
func (s *session) reports() []EdgeReport {
	endpoints, handshakes := make(map[keys.Public]string), make(map[keys.Public]time.Time)
	stats, err := s.device.Stats()
	if err != nil {
		s.log.Debug("device not read", "err", err)
	}
	for _, p := range stats {
		endpoints[p.PublicKey], handshakes[p.PublicKey] = p.Endpoint, p.Handshake
	}
	list := []EdgeReport{}
	s.each(func(l *link) {
		l.mu.Lock()
		defer l.mu.Unlock()
		e := EdgeReport{
			Name: l.edge.Name, Up: l.up && time.Since(l.answered) <= answerAge,
			Since: l.since, Answered: l.answered,
			Handshake: handshakes[l.edge.PublicKey], Endpoint: endpoints[l.edge.PublicKey],
		}
		if l.up && !e.Up {
			e.Since = l.answered.Add(answerAge)
		}
		if e.Endpoint == "" {
			e.Endpoint = l.hostport
		}
		list = append(list, e)
	})
	return list
}

// ErrNotRunning is returned when no agent runs with a data folder.
var ErrNotRunning = errors.New("no agent is running")

// The status socket: whoever connects is sent one Report in JSON. The data folder's
// mode says who may.
const (
	socketName  = "agent.sock"
	socketLimit = 5 * time.Second
	// maxReport in bytes is far above any report.
	maxReport = 16 << 20
)

// ReadReport asks the agent that runs with a data folder how it is. When none does,
// the error is ErrNotRunning; when this user may not ask, fs.ErrPermission. An agent
// that does not answer within 5 s is an error as well.
func ReadReport(ctx context.Context, data string) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, socketLimit)
	defer cancel()
	c, err := dialSocket(ctx, data)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return Report{}, fmt.Errorf("ask agent: %w with the data folder %s", ErrNotRunning, data)
	}
	if err != nil {
		return Report{}, fmt.Errorf("ask agent: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(c, maxReport))
	if errors.Is(err, syscall.ECONNRESET) || err == nil && len(text) == 0 {
		return Report{}, fmt.Errorf("ask agent: %w with the data folder %s any more", ErrNotRunning, data)
	}
	if err != nil {
		return Report{}, fmt.Errorf("ask agent: %w", err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return Report{}, fmt.Errorf("ask agent: %w", err)
	}
	return r, nil
}

func dialSocket(ctx context.Context, data string) (c net.Conn, err error) {
	err = atSocket(data, func(path string) (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	return c, err
}

// reports answers at the status socket until stop is called. An agent without one
// does its work all the same.
func (a *agent) reports() (stop func()) {
	l, err := a.listenSocket()
	if err != nil {
		a.log.Warn("status socket not opened", "err", err)
		return func() {}
	}
	var answering sync.WaitGroup
	answering.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of file descriptors: others will be closed
				time.Sleep(time.Second)
				continue
			}
			answering.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(socketLimit))
				if err := json.NewEncoder(c).Encode(a.report()); err != nil {
					a.log.Debug("status not read", "err", err)
				}
			})
		}
	})
	return func() {
		l.Close()
		os.Remove(filepath.Join(a.bootstrap.Data, socketName))
		answering.Wait()
	}
}

// listenSocket takes the place of a socket that a killed agent left, but not of one
// that answers.
func (a *agent) listenSocket() (l net.Listener, err error) {
	if err := a.store.prepare(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), socketLimit)
	defer cancel()
	if c, err := dialSocket(ctx, a.bootstrap.Data); err == nil {
		c.Close()
		return nil, fmt.Errorf("another agent runs with the data folder %s", a.bootstrap.Data)
	}
	path := filepath.Join(a.bootstrap.Data, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = atSocket(a.bootstrap.Data, func(path string) (err error) {
		u, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		if err == nil {
			// The name may be gone by then: reports removes the file itself.
			u.SetUnlinkOnClose(false)
			l = u
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// longestSocket is how many bytes the path of a socket may have on every system that
// the agent runs on (the BSDs' sun_path has 104, with a zero at its end).
const longestSocket = 103

// atSocket calls do with a path of the data folder's socket that is short enough for
// the system.
func atSocket(data string, do func(path string) error) error {
	path := filepath.Join(data, socketName)
	if len(path) <= longestSocket || runtime.GOOS != "linux" {
		return do(path)
	}
	dir, err := os.Open(data)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), socketName))
}

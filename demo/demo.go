// Package demo runs a whole fleet on one machine, in one terminal: a control plane,
// two edges, two agents with small services, DNS and a CA, from a fleet repo that
// the visitor may clone and push to.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/edge"
	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
)

// Options are what the visitor chose.
type Options struct {
	// Dir holds everything; "" is a temporary folder, removed at the end.
	Dir string
	// Listen is the address that edges, DNS and status listen on.
	Listen netip.Addr
	// Once ends the demo when everything serves.
	Once bool
	// Out gets what the visitor reads.
	Out io.Writer
	// Control runs a control plane until ctx ends.
	Control func(ctx context.Context, c Control) error
	// Self is the command that runs an edge or an agent as a child process: the
	// role ("edge" or "agent") and the config file are added to it.
	Self []string
}

// Control is what the demo's control plane is told.
type Control struct {
	Repo       string
	SecretFile string
	// State is its folder.
	State string
	// Status is the listener of its status pages, Join that of the API for hosts
	// that join, and Agents the folder of what such hosts download.
	Status, Join net.Listener
	Agents       string
	// Interval between looks at the world.
	Interval time.Duration
	// Grace before an edge out of sight counts as down.
	Grace time.Duration
	// Log is the file of its log.
	Log io.Writer
	// CA is called once with the internal CA's root.
	CA func(pem []byte) error
	// Turn is called after every turn.
	Turn func(reconciler.Turn, *reconciler.Status)
}

// network is the demo fleet's tunnel network.
var network = netip.MustParsePrefix("10.86.0.0/16")

// The demo's edges and origins, as examples/fleet-repo names them.
var (
	edgeNames   = []string{"osaka", "tokyo"}
	originNames = []string{"rpi-home", "vm1"}
)

// place is where an edge of the demo listens.
type place struct {
	name        string
	address     netip.Addr
	http, https netip.AddrPort
	wireguard   uint16
	tunnel      netip.Addr
	pid         int
}

// Run is the demo from start to end. It returns when ctx ends or, with Once, when
// everything serves; nothing that it started is left.
func Run(ctx context.Context, o Options) (err error) {
	began := time.Now()
	d := &demo{Options: o, began: began}
	if err := d.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.clean()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer d.wait(cancel)

	d.say("Kokoa demo in %s\n", d.dir)
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"services", d.startServices},
		{"ports", d.choosePorts},
		{"fleet repo", d.seed},
		{"edges", d.startEdges},
		{"control plane", d.startControl},
		{"agents", d.startAgents},
		{"routes", d.serving},
	} {
		if err := step.do(ctx); err != nil {
			if ctx.Err() != nil && d.failed == nil {
				return nil
			}
			return fmt.Errorf("demo: start %s: %w", step.what, errors.Join(err, d.failed))
		}
	}
	if err := d.describe(); err != nil {
		return err
	}
	if o.Once {
		d.say("Everything serves; --once ends it here.\n")
		return nil
	}
	d.invite()
	select {
	case <-ctx.Done():
		d.say("\nStopping.\n")
		return nil
	case err := <-d.ended:
		return fmt.Errorf("demo: control plane: %w", err)
	}
}

type demo struct {
	Options
	began     time.Time
	dir       string
	temporary bool
	secret    keys.Secret
	edges     []*place
	dns       netip.AddrPort
	status    net.Listener
	join      net.Listener
	kokoa     string                    // this program's own file
	services  map[string]netip.AddrPort // by the port the example names
	agentKeys map[string]keys.Private
	closers   []func()
	ended     chan error
	failed    error
	turns     chan *reconciler.Status
	narrator  narrator
	// routes that the visitor can try, from the first settled turn.
	settled *reconciler.Status
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, format, args...) }

// prepare makes the folder, and reads or makes the keys.
func (d *demo) prepare() error {
	d.ended, d.turns = make(chan error, 1), make(chan *reconciler.Status, 1)
	d.narrator = narrator{out: d.Out}
	if d.Listen == (netip.Addr{}) {
		d.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if d.Dir == "" {
		dir, err := os.MkdirTemp("", "kokoa-demo-")
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		d.dir, d.temporary = dir, true
	} else {
		dir, err := filepath.Abs(d.Dir)
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		d.dir = dir
	}
	// What an earlier demo wrote there no longer holds.
	if err := os.Remove(d.path("demo.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("demo: %w", err)
	}
	if err := os.MkdirAll(d.path("logs"), 0o700); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	var err error
	if d.kokoa, err = d.binary(); err != nil {
		return err
	}
	if d.secret, err = keys.ReadSecret(d.path("secret")); errors.Is(err, os.ErrNotExist) {
		if d.secret, err = keys.NewSecret(); err == nil {
			err = keys.WriteSecret(d.path("secret"), d.secret)
		}
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d.agentKeys = map[string]keys.Private{}
	for _, name := range originNames {
		if d.agentKeys[name], err = keptKey(d.path(name + ".key")); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	return nil
}

func keptKey(path string) (keys.Private, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		return keys.ParsePrivate(string(text))
	} else if !errors.Is(err, os.ErrNotExist) {
		return keys.Private{}, err
	}
	k, err := keys.NewPrivate()
	if err != nil {
		return keys.Private{}, err
	}
	return k, atomicfile.Write(path, []byte(k.Reveal()), 0o600)
}

func (d *demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// wait ends everything, in the order in which a visitor would want it gone.
func (d *demo) wait(cancel func()) {
	cancel()
	for _, stop := range slices.Backward(d.closers) {
		stop()
	}
}

func (d *demo) clean() error {
	if !d.temporary {
		return nil
	}
	return os.RemoveAll(d.dir)
}

// choosePorts takes the friendly port of each thing, or the next free one.
func (d *demo) choosePorts(context.Context) error {
	second := d.Listen
	if d.Listen.IsLoopback() && d.Listen.Is4() {
		// Two edges are two addresses in DNS, where the host has more than one.
		if next := d.Listen.Next(); bindable(next) {
			second = next
		}
	}
	taken := map[string]bool{}
	for i, name := range edgeNames {
		p := &place{name: name, address: d.Listen, tunnel: netip.AddrFrom4([4]byte{10, 86, 0, byte(16 + i)})}
		if i == 1 {
			p.address = second
		}
		var err error
		if p.https, err = freeTCP(p.address, 8443, taken); err != nil {
			return err
		}
		if p.http, err = freeTCP(p.address, 8480, taken); err != nil {
			return err
		}
		if p.wireguard, err = freeUDP(netip.IPv4Unspecified(), uint16(51820+i), taken); err != nil {
			return err
		}
		d.edges = append(d.edges, p)
	}
	port, err := freeUDP(d.Listen, 5354, taken)
	if err != nil {
		return err
	}
	d.dns = netip.AddrPortFrom(d.Listen, port)
	if d.status, err = listen(d.Listen, 7080); err != nil {
		return fmt.Errorf("status page: %w", err)
	}
	if d.join, err = listen(d.Listen, d.status.Addr().(*net.TCPAddr).AddrPort().Port()+1); err != nil {
		return errors.Join(fmt.Errorf("hosts that join: %w", err), d.status.Close())
	}
	return nil
}

// listen takes a port, or the next free one.
func listen(a netip.Addr, port uint16) (net.Listener, error) {
	var last error
	for p := port; p < port+tries; p++ {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, p).String())
		if err == nil {
			return l, nil
		}
		last = err
	}
	return nil, fmt.Errorf("no free TCP port from %d on at %s: %w", port, a, last)
}

func bindable(a netip.Addr) bool {
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// tries is how many ports after the friendly one are tried.
const tries = 200

func freeTCP(a netip.Addr, port uint16, taken map[string]bool) (netip.AddrPort, error) {
	var last error
	for p := port; p < port+tries; p++ {
		at := netip.AddrPortFrom(a, p)
		if taken["tcp "+at.String()] {
			continue
		}
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			last = err
			continue
		}
		taken["tcp "+at.String()] = true
		return at, l.Close()
	}
	return netip.AddrPort{}, fmt.Errorf("no free TCP port from %d on at %s: %w", port, a, last)
}

// freeUDP finds a port that is free for UDP, and for TCP beside it.
func freeUDP(a netip.Addr, port uint16, taken map[string]bool) (uint16, error) {
	var last error
	for p := port; p < port+tries; p++ {
		key := "udp " + strconv.Itoa(int(p))
		if taken[key] {
			continue
		}
		at := netip.AddrPortFrom(a, p).String()
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			last = err
			continue
		}
		l, err := net.Listen("tcp", at)
		if err := errors.Join(err, c.Close()); err != nil {
			last = err
			continue
		}
		taken[key] = true
		return p, l.Close()
	}
	return 0, fmt.Errorf("no free UDP port from %d on at %s: %w", port, a, last)
}

// startEdges writes each edge's bootstrap file and runs it as a process of its own.
func (d *demo) startEdges(ctx context.Context) error {
	var control []edge.ControlPeer
	for slot := range keys.Slots {
		control = append(control, edge.ControlPeer{PublicKey: d.secret.Control(slot).Public(), Address: fleet.ControlAddress(network, slot)})
	}
	for _, p := range d.edges {
		b := edge.Bootstrap{
			Fleet: "demo", Name: p.name, PrivateKey: d.secret.Edge(p.name, 1),
			TunnelAddress: p.tunnel, Network: network, Control: control,
			WireGuard: p.wireguard, HTTP: p.http.String(), HTTPS: p.https.String(),
			Tunnel: "userspace", Data: d.path("edges", p.name),
		}
		file := d.path("edges", p.name+".json")
		if err := writeJSON(file, b, 0o600); err != nil {
			return err
		}
		if err := d.child(ctx, "edge", p.name, file, func(pid int) { p.pid = pid }); err != nil {
			return err
		}
	}
	for _, p := range d.edges {
		if err := listening(ctx, p.https); err != nil {
			return fmt.Errorf("edge %s: %w; see %s", p.name, err, d.path("logs", "edge-"+p.name+".log"))
		}
	}
	d.say("  ✓ edges        osaka %s, tokyo %s\n", d.edges[0].https, d.edges[1].https)
	return nil
}

func (d *demo) startAgents(ctx context.Context) error {
	var edges []api.AgentEdge
	for _, p := range d.edges {
		edges = append(edges, api.AgentEdge{Name: p.name, PublicKey: d.secret.Edge(p.name, 1).Public(), Endpoint: d.endpoint(p), Address: p.tunnel})
	}
	for _, name := range originNames {
		b := agent.Bootstrap{
			Fleet: "demo", Name: name, PrivateKey: d.agentKeys[name],
			TunnelAddress: originAddress(name), Network: network,
			SigningKey: d.secret.SigningPublic(), Edges: edges,
			Tunnel: "userspace", Data: d.path("agents", name),
		}
		file := d.path("agents", name+".json")
		if err := writeJSON(file, b, 0o600); err != nil {
			return err
		}
		if err := d.child(ctx, "agent", name, file, nil); err != nil {
			return err
		}
	}
	d.say("  ✓ agents       rpi-home, vm1\n")
	return nil
}

// endpoint is where an edge's WireGuard is reached. It listens on every address.
func (d *demo) endpoint(p *place) string {
	return net.JoinHostPort(p.address.String(), strconv.Itoa(int(p.wireguard)))
}

func originAddress(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 86, 1, byte(1 + slices.Index(originNames, name))})
}

// startControl runs the control plane, and waits for its first turn that put the
// agents' peers on the edges: agents that knock before are made to wait.
func (d *demo) startControl(ctx context.Context) error {
	log, err := os.OpenFile(d.path("logs", "control.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := d.Control(ctx, Control{
			Repo: d.path("fleet.git"), SecretFile: d.path("secret"), State: d.path("control"),
			Status: d.status, Join: d.join, Agents: d.path("downloads"),
			Interval: 2 * time.Second, Grace: 5 * time.Second, Log: log,
			CA: func(pem []byte) error { return atomicfile.Write(d.path("ca.pem"), pem, 0o644) },
			Turn: func(t reconciler.Turn, s *reconciler.Status) {
				d.narrator.turn(t, s)
				select {
				case <-d.turns:
				default:
				}
				d.turns <- s
			},
		})
		if err == nil && ctx.Err() == nil {
			err = errors.New("it ended by itself")
		}
		d.ended <- err
	}()
	d.closers = append(d.closers, func() { <-done; log.Close() })
	return d.until(ctx, 30*time.Second, func(s *reconciler.Status) string {
		for _, e := range s.Edges {
			if !e.Reachable {
				return "edge " + e.Name + " is not reached: " + e.Error
			}
			if len(e.Peers) < len(originNames) && !changed(s, "peer") {
				return "edge " + e.Name + " does not have the agents as peers yet"
			}
		}
		if len(s.Edges) == 0 {
			return "there are no edges yet"
		}
		return ""
	})
}

func changed(s *reconciler.Status, kind string) bool {
	for _, c := range s.Plan.Changes {
		if c.Ref.Kind.String() == kind {
			return len(s.Failed) == 0
		}
	}
	return false
}

// serving waits until every route is up from every edge and in DNS.
func (d *demo) serving(ctx context.Context) error {
	err := d.until(ctx, time.Minute, func(s *reconciler.Status) string {
		d.settled = s
		if s.Phase != reconciler.Settled {
			return string(s.Phase)
		}
		for _, r := range s.Routes {
			if r.State == "active" && len(r.Up) < len(r.Edges) || r.State == "error" {
				return "route " + r.Name + " is not up on every edge yet"
			}
		}
		return ""
	})
	if err != nil {
		return err
	}
	d.narrator.begin()
	d.say("  ✓ converged    %d routes live on both edges and in DNS, %.1f s after the start\n", len(d.settled.Routes), time.Since(d.began).Seconds())
	return nil
}

// until waits for a status that ready has nothing more to say about.
func (d *demo) until(ctx context.Context, limit time.Duration, ready func(*reconciler.Status) string) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	why := "there was no turn yet"
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-d.ended:
			d.failed = err
			return errors.New("the control plane ended")
		case <-deadline.C:
			return fmt.Errorf("not within %s: %s; see %s", limit, why, d.path("logs"))
		case s := <-d.turns:
			if s.Phase == reconciler.Invalid || s.Phase == reconciler.Blocked {
				// Time does not mend it: somebody changed this folder's repo.
				return errors.New(s.Error)
			}
			if why = ready(s); why == "" {
				return nil
			}
			if s.Error != "" {
				why += " (" + s.Error + ")"
			}
			for _, f := range s.Failed {
				why += " (" + f.Address + ": " + f.Error + ")"
			}
		}
	}
}

func writeJSON(path string, v any, mode os.FileMode) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), mode)
}

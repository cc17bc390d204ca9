// Package e2e runs the programs as their users do: kokoa serve, kokoa-edge and
// kokoa-agent as processes, with a real name server, a real ACME issuer and a real
// git push, and asks for pages.
package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/edge"
	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/reconciler/certs/certstest"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/dnstest"
)

const (
	zone = "example.com"
	// limit is far more than anything here takes.
	limit = 60 * time.Second
)

var network = netip.MustParsePrefix("10.86.0.0/16")

// builtEnv names the folder of the binaries for a test that runs in a process of its
// own.
const builtEnv = "KOKOA_E2E_BINARIES"

// binaries are the programs, built once for all tests.
var binaries = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(builtEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "kokoa-e2e-")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"kokoa", "kokoa-edge", "kokoa-agent"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), "../cmd/"+name).CombinedOutput()
		if err != nil {
			return dir, fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv(builtEnv) == "" {
		if dir, _ := binaries(); dir != "" {
			os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// node is a host of the lab with one program on it.
type node struct {
	name string
	// address of the host, as others reach it; tunnel is inside the network.
	address netip.Addr
	tunnel  netip.Addr
	// ports that an edge listens on.
	http, https, wireguard uint16
	// launch starts a process on the host.
	launch func(*exec.Cmd) error

	key     keys.Private
	program string
	args    []string
	log     *logtest.Buffer
	cmd     *exec.Cmd
	done    chan struct{}
}

// lab is a fleet's hosts.
type lab struct {
	t      *testing.T
	dir    string
	bin    string
	secret keys.Secret
	edges  []*node
	agents []*node
	// service is what the agents' hosts serve, as agents dial it.
	service string
	tunnel  string

	control *node
	// statusAddr is where the control plane tells how it stands.
	statusAddr string
	// joinAddr is where it answers hosts that join; "" is nowhere.
	joinAddr string
	issuer   *certstest.Issuer
	// issuing is how the issuer behaves, challenge what it asks; "" is dns-01.
	issuing   certstest.Options
	challenge string
	dns       *dnstest.Server
	repo      string
	clone     string
}

func newLab(t *testing.T, kind string) *lab {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keys.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, dir: t.TempDir(), bin: bin, secret: secret, tunnel: kind}
}

// start runs a node's program, and again after it has ended.
func (l *lab) start(n *node) {
	l.t.Helper()
	if n.log == nil {
		n.log = &logtest.Buffer{}
		l.t.Cleanup(func() {
			l.kill(n)
			if l.t.Failed() {
				text := n.log.String()
				l.t.Logf("%s said:\n%s", n.name, text[max(0, len(text)-6000):])
			}
		})
	}
	cmd, done := exec.Command(filepath.Join(l.bin, n.program), n.args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = n.log, n.log
	if err := n.launch(cmd); err != nil {
		l.t.Fatalf("start %s: %v", n.name, err)
	}
	n.cmd, n.done = cmd, done
	go func() { cmd.Wait(); close(done) }()
}

// kill ends a node's program as a power cut does.
func (l *lab) kill(n *node) {
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Kill()
	<-n.done
	n.cmd = nil
}

func (l *lab) startEdges() {
	l.t.Helper()
	var control []edge.ControlPeer
	for slot := range keys.Slots {
		control = append(control, edge.ControlPeer{PublicKey: l.secret.Control(slot).Public(), Address: fleet.ControlAddress(network, slot)})
	}
	for _, e := range l.edges {
		e.program = "kokoa-edge"
		l.configure(e, edge.Bootstrap{
			Fleet: "acme-co", Name: e.name, PrivateKey: l.secret.Edge(e.name, 1), TunnelAddress: e.tunnel, Network: network,
			Control: control, WireGuard: e.wireguard,
			HTTP:   netip.AddrPortFrom(e.address, e.http).String(),
			HTTPS:  netip.AddrPortFrom(e.address, e.https).String(),
			Tunnel: l.tunnel, Data: filepath.Join(l.dir, e.name),
		})
		l.start(e)
	}
}

func (l *lab) startAgents() {
	l.t.Helper()
	var edges []api.AgentEdge
	for _, e := range l.edges {
		edges = append(edges, api.AgentEdge{Name: e.name, PublicKey: l.secret.Edge(e.name, 1).Public(), Endpoint: l.endpoint(e), Address: e.tunnel})
	}
	for _, a := range l.agents {
		if a.cmd != nil {
			continue
		}
		a.program = "kokoa-agent"
		l.configure(a, agent.Bootstrap{
			Fleet: "acme-co", Name: a.name, PrivateKey: a.key, TunnelAddress: a.tunnel, Network: network,
			SigningKey: l.secret.SigningPublic(), Edges: edges, Tunnel: l.tunnel, Data: filepath.Join(l.dir, a.name),
		})
		l.start(a)
	}
}

func (l *lab) endpoint(e *node) string {
	return net.JoinHostPort(e.address.String(), strconv.Itoa(int(e.wireguard)))
}

func (l *lab) configure(n *node, bootstrap any) {
	l.t.Helper()
	data, err := json.Marshal(bootstrap)
	if err != nil {
		l.t.Fatal(err)
	}
	path := filepath.Join(l.dir, n.name+".json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		l.t.Fatal(err)
	}
	n.args = []string{"run", "--config", path}
}

// startControl runs Knot and Pebble, makes a fleet repo, and serves it.
func (l *lab) startControl() {
	l.t.Helper()
	t := l.t
	l.dns = dnstest.Knot(t, zone)
	l.issuing.Resolver = l.dns.Addr
	l.issuer = certstest.Pebble(t, l.issuing)
	if l.challenge == "" {
		l.challenge = "dns-01"
	}
	if err := keys.WriteSecret(filepath.Join(l.dir, "secret"), l.secret); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "tsig"), []byte(l.tsig()), 0o600); err != nil {
		t.Fatal(err)
	}
	l.repo, l.clone = filepath.Join(l.dir, "fleet.git"), filepath.Join(l.dir, "clone")
	demotest.Git(t, "", "init", "-q", "--bare", "--initial-branch=main", l.repo)
	demotest.Git(t, "", "clone", "-q", l.repo, l.clone)
	demotest.Git(t, l.clone, "checkout", "-qb", "main")
	l.write("fleet.cue", fmt.Sprintf(`package fleet

fleet: {
	name: "acme-co"
	domains: [%q]
	network: %q
	dns: {
		provider: "rfc2136"
		ttl:      "5s"
		server:   %q
		tsig: {name: %q, algorithm: %q, key: file: %q}
	}
	acme: {directory: %q, challenge: %q, ca: %q}
}
`, zone, network, l.dns.Addr, l.dns.Key.Name, l.dns.Key.Algorithm, filepath.Join(l.dir, "tsig"), l.issuer.Directory, l.challenge, l.issuer.CA))
	for _, e := range l.edges {
		l.write("edges-"+e.name+".cue", fmt.Sprintf("package fleet\n\nedge: %q: {\n\taddresses: [%q]\n\tendpoint: %q\n\ttunnel_address: %q\n}\n", e.name, e.address, l.endpoint(e), e.tunnel))
	}
	for _, a := range l.agents {
		l.origin(a)
	}
	l.push("Begin")
	l.statusAddr = "127.0.0.1:" + strconv.Itoa(freePort(t))
	l.control = &node{name: "control", program: "kokoa", launch: (*exec.Cmd).Start, args: l.serve("state")}
	l.start(l.control)
}

// serve is the arguments of a control plane that keeps its state in a folder.
func (l *lab) serve(state string, more ...string) []string {
	return append([]string{"serve", "--repo", l.repo, "--secret-file", filepath.Join(l.dir, "secret"),
		"--state", filepath.Join(l.dir, state), "--listen", l.statusAddr, "--join-listen", l.joinAddr, "--interval", "1s", "--grace", "5s"}, more...)
}

func (l *lab) origin(a *node) {
	l.write("origins-"+a.name+".cue", fmt.Sprintf("package fleet\n\norigin: %q: {\n\tpublic_key: %q\n\ttunnel_address: %q\n}\n", a.name, a.key.Public(), a.tunnel))
}

func (l *lab) write(name, text string) {
	l.t.Helper()
	demotest.Write(l.t, filepath.Join(l.clone, name), text)
}

func (l *lab) route(name, path string) {
	l.write("route-"+name+".cue", fmt.Sprintf("package fleet\n\nroute: %q: {\n\thost: \"%s.example.com\"\n\tpath: %q\n\torigin: %q\n\tservice: %q\n}\n", name, name, path, l.agents[0].name, l.service))
}

func (l *lab) push(message string) {
	l.t.Helper()
	demotest.Git(l.t, l.clone, "add", "-A")
	demotest.Git(l.t, l.clone, "commit", "-qm", message)
	demotest.Git(l.t, l.clone, "push", "-q", "origin", "main")
}

// head is the newest commit.
func (l *lab) head() string {
	l.t.Helper()
	return strings.TrimSpace(demotest.Git(l.t, l.clone, "rev-parse", "HEAD"))
}

// client is a visitor who trusts the issuer and reaches one edge, whatever DNS says.
func (l *lab) client(e *node) *http.Client {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(l.issuer.RootPEM) {
		l.t.Fatal("no root")
	}
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			ForceAttemptHTTP2: true,
			TLSClientConfig:   &tls.Config{RootCAs: pool},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, netip.AddrPortFrom(e.address, e.https).String())
			},
		},
	}
}

func get(c *http.Client, url string) (int, string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// live waits until a page comes through every edge and DNS names them all.
func (l *lab) live(host string) {
	l.t.Helper()
	var want []string
	for _, e := range l.edges {
		want = append(want, e.address.String())
		c := l.client(e)
		demotest.Eventually(l.t, limit, func() error {
			code, body, err := get(c, "https://"+host+"/")
			if err == nil && (code != 200 || !strings.Contains(body, host)) {
				err = fmt.Errorf("%d %q", code, body)
			}
			return err
		})
	}
	slices.Sort(want)
	want = slices.Compact(want)
	demotest.Eventually(l.t, limit, func() error { return l.answers(host, want) })
}

func (l *lab) answers(host string, want []string) error {
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(host), mdns.TypeA)
	in, _, err := new(mdns.Client).Exchange(m, l.dns.Addr)
	if err != nil {
		return err
	}
	var got []string
	for _, rr := range in.Answer {
		if a, ok := rr.(*mdns.A); ok {
			got = append(got, a.A.String())
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s answers %v, want %v", host, got, want)
	}
	return nil
}

// status is the part of the status API's answer that tests look at.
type status struct {
	Phase   reconciler.Phase
	Error   string
	Applied reconciler.RevisionStatus
	Failed  []reconciler.FailedChange
	Edges   []reconciler.EdgeStatus
	Origins []reconciler.OriginStatus
}

func (l *lab) report() (status, error) {
	var s status
	resp, err := http.Get("http://" + l.statusAddr + "/api/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, errStatus(resp.StatusCode)
	}
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// settled waits until the head of the repo is live and nothing is left to do.
func (l *lab) settled() {
	l.t.Helper()
	head := l.head()
	demotest.Eventually(l.t, limit, func() error {
		s, err := l.report()
		if err == nil && (s.Phase != reconciler.Settled || s.Applied.Commit != head) {
			err = fmt.Errorf("%s at %s, want %s to be settled: %s %v", s.Phase, s.Applied.Commit, head, s.Error, s.Failed)
		}
		return err
	})
}

// visitors keep asking for a page, each on a kept connection.
type visitors struct {
	t    *testing.T
	stop func()
	all  []*visitor
}

type visitor struct {
	name     string
	answered atomic.Int64
	// failed is set before done is closed.
	failed error
	done   chan struct{}
}

// visit sends a visitor for each protocol through every edge.
func (l *lab) visit(url string) *visitors { return l.visitThrough(url, l.edges...) }

func (l *lab) visitThrough(url string, edges ...*node) *visitors {
	ctx, cancel := context.WithCancel(context.Background())
	vs := &visitors{t: l.t, stop: cancel}
	for _, e := range edges {
		for _, h2 := range []bool{true, false} {
			c := l.client(e)
			c.Transport.(*http.Transport).ForceAttemptHTTP2 = h2
			v := &visitor{name: fmt.Sprintf("through %s (h2 %t)", e.name, h2), done: make(chan struct{})}
			vs.all = append(vs.all, v)
			go func() {
				defer close(v.done)
				defer c.CloseIdleConnections()
				for ctx.Err() == nil && v.failed == nil {
					code, _, err := get(c, url)
					if err == nil && code != 200 {
						err = errStatus(code)
					}
					if v.failed = err; err == nil {
						v.answered.Add(1)
					}
				}
			}()
		}
	}
	l.t.Cleanup(func() { vs.leave() })
	return vs
}

// more waits until each visitor has got n more answers.
func (vs *visitors) more(n int64) {
	vs.t.Helper()
	var goals []int64
	for _, v := range vs.all {
		goals = append(goals, v.answered.Load()+n)
	}
	demotest.Eventually(vs.t, limit, func() error {
		for i, v := range vs.all {
			select {
			case <-v.done:
				vs.t.Fatalf("%s: %v", v.name, v.failed)
			default:
			}
			if got := v.answered.Load(); got < goals[i] {
				return fmt.Errorf("%s: %d answers, want %d", v.name, got, goals[i])
			}
		}
		return nil
	})
}

// leave ends the visits, and says how many answers there were and what failed.
func (vs *visitors) leave() (answers int64, failed error) {
	vs.stop()
	for _, v := range vs.all {
		<-v.done
		answers += v.answered.Load()
		if v.failed != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", v.name, v.failed))
		}
	}
	return answers, failed
}

func freePort(t *testing.T) int {
	t.Helper()
	// Free for TCP and UDP alike.
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		p, err := net.ListenPacket("udp", ":"+strconv.Itoa(port))
		l.Close()
		if err == nil {
			p.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// page answers with what it was asked.
func page(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s%s for %s\n", r.Method, r.Host, r.URL.Path, r.Header.Get("X-Forwarded-For"))
	w.Write(b.Bytes())
}

// tsig is the name server's key as text.
func (l *lab) tsig() string { return base64.StdEncoding.EncodeToString(l.dns.Key.Secret) }

func errStatus(code int) error { return fmt.Errorf("status %d", code) }

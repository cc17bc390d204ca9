package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/program/programtest"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// testFleet is what a host sees of a fleet: a control plane that answers what the
// session says, and an edge with a real tunnel.
type testFleet struct {
	key     keys.Private
	signing ed25519.PrivateKey
	token   join.Token
	server  *httptest.Server
	edge    testEdge

	mu      sync.Mutex
	changed chan struct{}
	// answer is what every host is told, whoever asks.
	answer join.Answer
	skew   time.Duration
	down   bool
	// seen are the states that hosts said they know, and registered the keys that
	// asked to be origins.
	seen       map[join.State]bool
	registered map[keys.Public]join.Registration
}

var (
	network     = netip.MustParsePrefix("10.77.0.0/16")
	hostAddress = netip.MustParseAddr("10.77.1.1")
	edgeAddress = netip.MustParseAddr("10.77.0.10")
)

// fleetCommands are for sessions with a fleet:
//
//	fleet [tls]             starts one; sets $CONTROL, and writes token, foreign and ca.pem
//	say STATE [REASON]      has the control plane answer so
//	flag TEXT               has the pull request be flagged
//	ends TIME               has the origin end then
//	skew TIME               puts the control plane's clock ahead
//	down, up                has the control plane be out of reach, and back
//	asked STATE             waits until a host that knows the state asks; what was asked
//	                        before the last say does not count
//	registered N            says how many keys have asked to become origins
//	edge down               ends the edge
//	forge                   starts a forge that takes one pull request; sets $FORGE
//	eventually CODE CMD…    runs a command until it ends with the exit code
//	signal FILE             kills the process whose id is in the file
//	kill                    kills what runs in the background
//	empty DIR               fails when something is in the folder
func fleetCommands() programtest.Commands {
	var running sync.Map // *testFleet by the session's folder
	with := func(do func(ts *testscript.TestScript, f *testFleet, args []string)) func(*testscript.TestScript, bool, []string) {
		return func(ts *testscript.TestScript, neg bool, args []string) {
			f, ok := running.Load(ts.Getenv("WORK"))
			if !ok || neg {
				ts.Fatalf("there is no fleet, or the command is negated")
			}
			do(ts, f.(*testFleet), args)
		}
	}
	return programtest.Commands{
		"fleet": func(ts *testscript.TestScript, _ bool, args []string) {
			f := newFleet(ts, len(args) > 0 && args[0] == "tls")
			running.Store(ts.Getenv("WORK"), f)
			ts.Defer(func() { running.Delete(ts.Getenv("WORK")) })
		},
		"say": with(func(_ *testscript.TestScript, f *testFleet, args []string) {
			f.change(func() {
				clear(f.seen)
				f.answer.State, f.answer.Reason = join.State(args[0]), strings.Join(args[1:], " ")
				if f.answer.State == join.Proposed {
					f.answer.Pull = "https://git.example.com/ann/fleet/pulls/7"
				}
			})
		}),
		"flag": with(func(_ *testscript.TestScript, f *testFleet, args []string) {
			f.change(func() { f.answer.Flags = append(f.answer.Flags, strings.Join(args, " ")) })
		}),
		"ends": with(func(ts *testscript.TestScript, f *testFleet, args []string) {
			d, err := time.ParseDuration(args[0])
			ts.Check(err)
			at := time.Now().Add(d)
			f.change(func() { f.edge.expires = &at })
		}),
		"skew": with(func(ts *testscript.TestScript, f *testFleet, args []string) {
			d, err := time.ParseDuration(args[0])
			ts.Check(err)
			f.change(func() { f.skew = d })
		}),
		"down": with(func(_ *testscript.TestScript, f *testFleet, _ []string) { f.change(func() { f.down = true }) }),
		"up":   with(func(_ *testscript.TestScript, f *testFleet, _ []string) { f.change(func() { f.down = false }) }),
		"asked": with(func(ts *testscript.TestScript, f *testFleet, args []string) {
			eventually(ts, "a host knows "+args[0], func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.seen[join.State(args[0])]
			})
		}),
		"registered": with(func(ts *testscript.TestScript, f *testFleet, args []string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if strconv.Itoa(len(f.registered)) != args[0] {
				ts.Fatalf("%d keys have registered", len(f.registered))
			}
		}),
		"edge":  with(func(ts *testscript.TestScript, f *testFleet, _ []string) { ts.Check(f.edge.stop()) }),
		"forge": func(ts *testscript.TestScript, _ bool, _ []string) { newForge(ts) },
		"signal": func(ts *testscript.TestScript, _ bool, args []string) {
			text, err := os.ReadFile(ts.MkAbs(args[0]))
			ts.Check(err)
			ts.Check(kill(text))
		},
		"kill": func(ts *testscript.TestScript, _ bool, _ []string) {
			for _, c := range ts.BackgroundCmds() {
				ts.Check(c.Process.Kill())
			}
		},
		"empty": func(ts *testscript.TestScript, _ bool, args []string) {
			entries, err := os.ReadDir(ts.MkAbs(args[0]))
			ts.Check(err)
			if len(entries) > 0 {
				ts.Fatalf("left in %s: %v", args[0], entries)
			}
		},
		"eventually": eventuallyExec,
	}
}

// newForge starts a Gitea as a host sees it that opens its first pull request there.
func newForge(ts *testscript.TestScript) {
	const repo = "/api/v1/repos/ann/fleet"
	mux := http.NewServeMux()
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "token forge-token" {
				status, body = http.StatusUnauthorized, `{"message": "token is required"}`
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	mux.HandleFunc("GET "+repo, text(200, `{"default_branch": "main"}`))
	mux.HandleFunc("GET "+repo+"/pulls", text(200, `[]`))
	mux.HandleFunc("GET "+repo+"/", text(404, `{"message": "not found"}`))
	mux.HandleFunc("POST "+repo+"/contents/origins/rpi-home.cue", text(201, `{}`))
	mux.HandleFunc("POST "+repo+"/pulls", text(201, `{"html_url": "https://git.example.com/ann/fleet/pulls/8"}`))
	server := httptest.NewServer(mux)
	ts.Defer(server.Close)
	ts.Setenv("FORGE", server.URL)
}

// kill kills a process that install started, by its id in a file.
func kill(text []byte) error {
	id, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return syscall.Kill(id, syscall.SIGKILL)
}

// eventuallyExec runs a command again and again until it ends with the exit code given
// first.
func eventuallyExec(ts *testscript.TestScript, _ bool, args []string) {
	eventually(ts, strings.Join(args, " "), func() bool {
		err := ts.Exec(args[1], args[2:]...)
		return exitCode(err) == args[0]
	})
}

func exitCode(err error) string {
	if err == nil {
		return "0"
	}
	text, _ := strings.CutPrefix(err.Error(), "exit status ")
	return text
}

func eventually(ts *testscript.TestScript, what string, ok func() bool) {
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("not after 30 s: %s", what)
		}
	}
}

func newFleet(ts *testscript.TestScript, secure bool) *testFleet {
	f := &testFleet{
		changed: make(chan struct{}), seen: make(map[join.State]bool), registered: make(map[keys.Public]join.Registration),
		answer: join.Answer{State: join.Unknown},
	}
	var err error
	f.key, err = keys.NewPrivate()
	ts.Check(err)
	_, f.signing, err = ed25519.GenerateKey(nil)
	ts.Check(err)
	f.token, err = join.NewToken(f.key.Public())
	ts.Check(err)
	other, err := keys.NewPrivate()
	ts.Check(err)
	foreign, err := join.NewToken(other.Public())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("token"), []byte(f.token.Reveal()+"\n"), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("foreign"), []byte(foreign.Reveal()+"\n"), 0o600))
	f.server = httptest.NewUnstartedServer(f)
	if secure {
		f.server.StartTLS()
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})
		ts.Check(os.WriteFile(ts.MkAbs("ca.pem"), ca, 0o644))
	} else {
		f.server.Start()
	}
	ts.Setenv("CONTROL", f.server.URL)
	ts.Setenv("TOKEN", f.token.Reveal())
	ts.Setenv("CONTROL_KEY", f.key.Public().String())
	ts.Check(f.edge.start())
	ts.Defer(func() {
		// A session that failed leaves what it installed.
		if text, err := os.ReadFile(ts.MkAbs("root/var/lib/kokoa-agent/agent.pid")); err == nil {
			kill(text)
		}
		f.change(func() { f.down = true })
		f.server.CloseClientConnections()
		f.server.Close()
		ts.Check(f.edge.stop())
	})
	return f
}

// change changes the fleet, and has held questions be answered.
func (f *testFleet) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *testFleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	down := f.down
	f.mu.Unlock()
	if down || r.URL.Path != join.Path {
		http.Error(w, "nobody is here", http.StatusBadGateway)
		return
	}
	if r.Method == http.MethodGet {
		json.NewEncoder(w).Encode(join.Hello{Fleet: "home", Control: f.key.Public(), Now: time.Now()})
		return
	}
	var s join.Sealed
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q, err := join.OpenQuestion(f.key, s)
	if err != nil {
		http.Error(w, "sealed for another", http.StatusUnauthorized)
		return
	}
	a, err := f.reply(r.Context(), s.Key, q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	sealed, err := join.SealAnswer(f.key, s.Key, a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(sealed)
}

func (f *testFleet) reply(ctx context.Context, key keys.Public, q join.Question) (join.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[q.Seen] = true
	if q.Register != nil {
		f.registered[key] = *q.Register
	}
	for end := time.After(q.Wait); f.answer.State == q.Seen && q.Wait > 0 && !f.down; {
		changed := f.changed
		f.mu.Unlock()
		expired := false
		select {
		case <-changed:
		case <-end:
			expired = true
		case <-ctx.Done():
			expired = true
		}
		f.mu.Lock()
		if expired {
			break
		}
	}
	if f.down {
		return join.Answer{}, fmt.Errorf("it went down")
	}
	a := f.answer
	a.ID, a.Now = q.ID, time.Now().Add(f.skew)
	if q.Suggest {
		a.Suggestion = &join.Suggestion{Folder: "origins", TunnelAddress: hostAddress}
	}
	if a.State != join.Live {
		return a, nil
	}
	a.Fleet = &join.Fleet{
		Name: "home", Origin: "rpi-home", TunnelAddress: hostAddress, Network: network,
		SigningKey: f.signing.Public().(ed25519.PublicKey), Edges: []api.AgentEdge{f.edge.is}, Expires: f.edge.expires,
	}
	return a, f.edge.admit(key, f.signing)
}

// testEdge is an edge as an agent sees it.
type testEdge struct {
	api.Edge // what only the control plane asks for

	is      api.AgentEdge
	expires *time.Time

	device tunnel.Device
	server *http.Server

	mu     sync.Mutex
	signed api.Signed
}

func (e *testEdge) start() error {
	private, err := keys.NewPrivate()
	if err != nil {
		return err
	}
	e.device, err = tunnel.Open(tunnel.Config{Kind: tunnel.Userspace, PrivateKey: private, Address: edgeAddress, Network: network})
	if err != nil {
		return err
	}
	l, err := e.device.Listen(api.EdgePort)
	if err != nil {
		return err
	}
	e.is = api.AgentEdge{Name: "tokyo", PublicKey: private.Public(), Address: edgeAddress, Endpoint: net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.device.ListenPort())))}
	e.server = &http.Server{Handler: api.Handler(e)}
	go e.server.Serve(l)
	return nil
}

func (e *testEdge) stop() error {
	if e.device == nil {
		return nil
	}
	e.server.Close()
	err := e.device.Close()
	e.device = nil
	return err
}

// admit makes a host the edge's only agent.
func (e *testEdge) admit(key keys.Public, signing ed25519.PrivateKey) error {
	signed, err := api.Sign(signing, api.AgentConfig{
		Fleet: "home", Agent: "rpi-home", Serial: 5, Edges: []api.AgentEdge{e.is}, PublicKey: key, Expires: e.expires,
		Services: []api.AgentService{{ID: "blog", URL: "http://127.0.0.1:9"}},
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.signed = signed
	if e.device == nil {
		return nil
	}
	return e.device.SetPeers(context.Background(), []tunnel.Peer{{PublicKey: key, AllowedIPs: []netip.Prefix{netip.PrefixFrom(hostAddress, 32)}}})
}

func (e *testEdge) Caller(from netip.Addr) api.Caller {
	if from != hostAddress {
		return api.Caller{}
	}
	return api.Caller{Agent: "rpi-home"}
}

func (e *testEdge) AgentConfig(string) (api.Signed, <-chan struct{}, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.signed, nil, true
}

func (e *testEdge) Heartbeat(string, api.Heartbeat) {}

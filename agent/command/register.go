package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/internal/program"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/join/pull"
	"github.com/kokoa-proxy/kokoa/keys"
)

// pending is a registration that has not come to its end: a file beside the config,
// written before anything is sent, so that the host asks with the same key until it is
// an origin.
type pending struct {
	Name       string       `json:"name"`
	Control    string       `json:"control"`
	ControlKey keys.Public  `json:"control_key"`
	PrivateKey keys.Private `json:"private_key"`
}

func (j *joining) pendingPath() string { return j.config + pendingSuffix }

const pendingSuffix = ".joining"

// register makes the host an origin, or finds that it is one, and returns what its
// agent starts from, which is in the config file by then.
func (j *joining) register(ctx context.Context, p *progress) (agent.Bootstrap, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, j.wait, fmt.Errorf("%w after %v", errWaited, j.wait))
	defer cancel()
	old, err := agent.ReadBootstrap(j.config)
	if err == nil {
		b, err := j.again(ctx, p, old)
		if !errors.Is(err, errForgotten) {
			return b, err
		}
		// By a new key: who removed the origin may have had a reason to.
		p.warn("%v", err)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return agent.Bootstrap{}, err
	}
	if j.control == "" {
		return agent.Bootstrap{}, j.flags.misused("--control URL is missing: where is the control plane?")
	}
	if j.name == "" {
		return agent.Bootstrap{}, j.flags.misused("--name NAME is missing: what shall this origin be called?")
	}
	r, err := j.asking(p)
	if err != nil {
		return agent.Bootstrap{}, err
	}
	if err := r.begin(ctx); err != nil {
		return agent.Bootstrap{}, err
	}
	f, err := r.live(ctx)
	if errors.Is(err, errRefused) && !r.taken {
		// Nobody remembers this key, so neither does the host.
		os.Remove(j.pendingPath())
		os.Remove(filepath.Dir(j.config)) // when nothing else is in it
	}
	if err != nil {
		return agent.Bootstrap{}, err
	}
	b := agent.Bootstrap{PrivateKey: r.client.Key, Allow: *j.allow, Tunnel: j.tunnel, Data: j.data, Control: j.control, ControlKey: r.client.Control}
	b = asOrigin(b, f)
	if err := agent.WriteBootstrap(j.config, b); err != nil {
		return agent.Bootstrap{}, err
	}
	if err := os.Remove(j.pendingPath()); err != nil {
		return agent.Bootstrap{}, err
	}
	p.done("Wrote %s", j.config)
	r.arrived(f)
	return b, nil
}

// again is register on a host that has been an origin: its registration is looked
// after. The error is errForgotten when the fleet does not have it any more.
func (j *joining) again(ctx context.Context, p *progress, old agent.Bootstrap) (agent.Bootstrap, error) {
	if j.name != "" && j.name != old.Name {
		return old, fmt.Errorf("this host is origin %q already (%s): to register another, give it --config and --data of its own, or take this one away first: kokoa-agent uninstall", old.Name, j.config)
	}
	j.name = old.Name
	if j.control == "" {
		j.control = old.Control
	}
	next := old
	if j.flags.given("tunnel") {
		next.Tunnel = j.tunnel
	}
	if len(*j.allow) > 0 {
		next.Allow = *j.allow
	}
	if j.flags.given("data") {
		next.Data = j.data
	}
	// A host that is an origin need not wait for the control plane.
	j.patience = min(j.patience, 3*time.Second)
	r, err := j.asking(p)
	if err != nil {
		return old, err
	}
	r.was, r.client.Control = true, old.ControlKey
	token, err := j.token(false)
	switch {
	case err != nil:
		return old, err
	case token == join.Token{}:
	case old.ControlKey.IsZero():
		r.client.Control = token.Control()
	case token.Control() != old.ControlKey:
		return old, fmt.Errorf("the token is of another fleet than this host's origin %q (%s): use one of this fleet, or take the agent away first: kokoa-agent uninstall", old.Name, j.config)
	}
	if j.control == "" || r.client.Control.IsZero() {
		p.done("Origin %q was set up by hand (%s)", old.Name, j.config)
		return next, agent.WriteBootstrap(j.config, next)
	}
	if r.client.Key, err = agent.CurrentKey(old); err != nil {
		if !errors.Is(err, privatefile.ErrExposed) {
			return old, err
		}
		// They are the agent's own user's. The agent needs nobody to look at them.
		p.done("Origin %q is registered already, as far as this host knows", old.Name)
		return next, agent.WriteBootstrap(j.config, next)
	}
	f, err := r.live(ctx)
	if errors.Is(err, errUnreachable) {
		// The agent needs no control plane to run.
		p.warn("%v", err)
		p.done("Origin %q is registered already, as far as this host knows", old.Name)
		return next, agent.WriteBootstrap(j.config, next)
	}
	if err != nil {
		return old, err
	}
	next = asOrigin(next, f)
	next.Control, next.ControlKey = j.control, r.client.Control
	r.arrived(f)
	return next, agent.WriteBootstrap(j.config, next)
}

// asOrigin is b with what the fleet says of the origin.
func asOrigin(b agent.Bootstrap, f join.Fleet) agent.Bootstrap {
	b.Fleet, b.Name, b.TunnelAddress, b.Network, b.SigningKey, b.Edges = f.Name, f.Origin, f.TunnelAddress, f.Network, f.SigningKey, f.Edges
	return b
}

// maxToken in bytes is far above any token.
const maxToken = 4 << 10

// token reads the join token. Standard input is read only when one is needed, and then
// it is an error when there is none; else the zero token stands for none.
func (j *joining) token(needed bool) (join.Token, error) {
	var text []byte
	var from string
	var err error
	switch {
	case j.tokenFile != "":
		from = j.tokenFile
		text, err = os.ReadFile(j.tokenFile)
	case j.getenv(envToken) != "":
		from, text = "$"+envToken, []byte(j.getenv(envToken))
	case needed && !isTerminal(j.stdin):
		from = "standard input"
		text, err = io.ReadAll(io.LimitReader(j.stdin, maxToken))
	}
	if err != nil {
		return join.Token{}, fmt.Errorf("read token: %w", err)
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		if needed || from != "" {
			return join.Token{}, errors.New("no join token was given: kokoa token create makes one; put it in a file and give --token-file FILE, or set KOKOA_TOKEN, or write it to standard input")
		}
		return join.Token{}, nil
	}
	t, err := join.ParseToken(string(text))
	if err != nil {
		return join.Token{}, fmt.Errorf("read token from %s: %w", from, err)
	}
	return t, nil
}

// registration is the conversation with the control plane.
type registration struct {
	*joining
	client   *join.Client
	progress *progress
	// token to register with; zero for none.
	token join.Token
	// known says that the key was asked with before this call.
	known bool
	// was says that the host has been an origin with the key.
	was bool
	// taken says that the control plane has known the key.
	taken bool
	// reached says that the control plane has answered.
	reached bool
	begun   time.Time
	told    bool
	// holdup is what the control plane last said holds the registration up.
	holdup string
}

// The errors that end a registration.
var (
	errRefused     = errors.New("the control plane refused")
	errUnreachable = errors.New("the control plane cannot be reached")
	errForgotten   = errors.New("this host is not an origin any more")
	errWaited      = errors.New("not registered")
)

// asking is a conversation that has not begun.
func (j *joining) asking(p *progress) (*registration, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if j.ca != "" {
		pem, err := os.ReadFile(j.ca)
		if err != nil {
			return nil, fmt.Errorf("read the certificates to trust: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the certificates to trust: %s has no PEM certificate in it", j.ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return &registration{
		joining: j, progress: p, begun: time.Now(),
		client: &join.Client{URL: j.control, HTTP: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}},
	}, nil
}

// begin finds the keys of a registration that was begun, or makes them and keeps them
// before anything is sent.
func (r *registration) begin(ctx context.Context) error {
	var made pending
	err := privatefile.ReadJSON(r.pendingPath(), &made)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the registration that was begun: %w", err)
	}
	begun := err == nil && made.Name == r.name && made.Control == r.control
	if r.token, err = r.joining.token(!begun && r.forge == ""); err != nil {
		return err
	}
	control := r.controlKey
	switch {
	case !control.IsZero():
	case r.token != join.Token{}:
		control = r.token.Control()
	case begun:
		control = made.ControlKey
	default:
		h, err := r.hello(ctx)
		if err != nil {
			return err
		}
		control = h.Control
	}
	if r.known = begun && made.ControlKey == control; r.known {
		r.progress.done("Found the WireGuard keys of the registration that was begun")
	} else {
		made = pending{Name: r.name, Control: r.control, ControlKey: control}
		if made.PrivateKey, err = keys.NewPrivate(); err != nil {
			return err
		}
		if err := r.keep(made); err != nil {
			return fmt.Errorf("keep the new keys: %w", err)
		}
		r.progress.done("Generating WireGuard keys")
	}
	r.client.Control, r.client.Key = made.ControlKey, made.PrivateKey
	return nil
}

func (r *registration) keep(made pending) error {
	// The folder of a config may be read by all, like /etc/kokoa-agent; the files in
	// it are private. A container's is the data folder.
	mode := fs.FileMode(0o755)
	if filepath.Dir(r.config) == r.data {
		mode = 0o700
	}
	if err := os.MkdirAll(filepath.Dir(r.config), mode); err != nil {
		return err
	}
	text, err := json.Marshal(made)
	if err != nil {
		return err
	}
	return atomicfile.Write(r.pendingPath(), text, 0o600)
}

// live registers the key, unless it is, and returns when it is an origin's.
func (r *registration) live(ctx context.Context) (join.Fleet, error) {
	q := join.Question{}
	switch {
	case r.forge != "" && !r.was:
		a, err := r.propose(ctx)
		if err != nil {
			return join.Fleet{}, err
		}
		if a.State == join.Live {
			r.registered()
			return r.fleet(a)
		}
		q.Seen = join.Unknown
	case !r.known && !r.was:
		q.Register = r.asked()
	}
	retried := false
	for {
		asked := time.Now()
		if q.Seen != "" {
			q.Wait = join.MaxWait
		}
		a, err := r.ask(ctx, q)
		if err != nil {
			return join.Fleet{}, err
		}
		fresh := a.State != q.Seen
		switch a.State {
		case join.Live:
			r.registered()
			return r.fleet(a)
		case join.Accepted, join.Proposed, join.Merged:
			r.taken = true
			r.tell(a, fresh)
		case join.Unknown, join.Refused:
			if r.was {
				return join.Fleet{}, fmt.Errorf("%w: %w", errForgotten, r.refusal(a))
			}
			if r.forge != "" && a.State == join.Unknown {
				break // nobody has merged it yet
			}
			// An earlier registration is gone. Another token is another chance.
			if q.Register == nil && r.token != (join.Token{}) && !retried {
				retried, q = true, join.Question{Register: r.asked()}
				continue
			}
			return join.Fleet{}, r.refusal(a)
		default:
			return join.Fleet{}, fmt.Errorf("the control plane says %q, which this kokoa-agent (%s) does not know: install a newer one", plain(string(a.State)), program.Version())
		}
		q = join.Question{Seen: a.State}
		if !fresh {
			// One that does not hold its answers back is not asked all the time.
			if err := r.rest(ctx, time.Until(asked.Add(2*time.Second))); err != nil {
				return join.Fleet{}, err
			}
		}
	}
}

// refusal is the error of an answer that says no.
func (r *registration) refusal(a join.Answer) error {
	reason := plain(a.Reason)
	switch {
	case a.State == join.Refused && reason != "":
		return fmt.Errorf("%w: %s", errRefused, reason)
	case a.State == join.Refused:
		return errRefused
	case reason != "":
		return fmt.Errorf("the control plane does not know this host: %s", reason)
	}
	return errors.New("the control plane does not know this host: its origin was removed, or was never merged. To register it again, give a new token: kokoa token create makes one")
}

// asked is what the host wants to be.
func (r *registration) asked() *join.Registration {
	hostname, _ := os.Hostname() // for people only
	return &join.Registration{
		Token: r.token.Reveal(), Name: r.name, Hosts: *r.hosts, Temporary: r.temporary,
		Platform: runtime.GOOS + "/" + runtime.GOARCH, Version: program.Version(), Hostname: hostname,
		Now: time.Now(),
	}
}

// tell says how far the registration has come.
func (r *registration) tell(a join.Answer, fresh bool) {
	p := r.progress
	r.registered()
	if fresh {
		switch a.State {
		case join.Accepted:
			p.wait("Waiting for the pull request to be opened")
		case join.Proposed:
			r.proposed(a.Pull, a.Flags)
		case join.Merged:
			p.done("Merged")
			p.wait("Waiting for the edges to know this host")
		}
	}
	if reason := plain(a.Reason); reason != r.holdup {
		r.holdup = reason
		if reason != "" {
			p.warn("%s", reason)
		}
	}
}

// registered says, once, that the control plane knows the key.
func (r *registration) registered() {
	switch {
	case r.told:
	case r.was:
		r.progress.done("Origin %q is registered already", r.name)
	default:
		r.progress.done("Registering %q with %s", r.name, r.control)
	}
	r.told = true
}

func (r *registration) proposed(where string, flags []string) {
	p := r.progress
	if strings.Contains(where, "://") {
		p.done("Opened the pull request: %s", plain(where))
	} else {
		p.done("Proposed it; to approve it, beside kokoa serve: %s", plain(where))
	}
	for _, f := range flags {
		p.note("for the reviewer: %s", plain(f))
	}
	p.wait("Waiting for it to be merged (Ctrl-C is fine: run the same line again)")
}

// arrived says that the host is an origin.
func (r *registration) arrived(f join.Fleet) {
	if f.Origin != r.name {
		r.progress.note("the fleet calls it %q", f.Origin)
	}
	if f.Expires != nil {
		r.progress.note("it is temporary, and ends %s", until(*f.Expires, time.Now()))
	}
}

func (r *registration) fleet(a join.Answer) (join.Fleet, error) {
	if a.Fleet == nil {
		return join.Fleet{}, errors.New("the control plane says that this host is an origin, and not of which fleet: it may be older or newer than this kokoa-agent")
	}
	return *a.Fleet, nil
}

// propose opens the pull request from here, unless the host is an origin already.
func (r *registration) propose(ctx context.Context) (join.Answer, error) {
	a, err := r.ask(ctx, join.Question{Suggest: true})
	if err != nil || a.State == join.Live {
		return a, err
	}
	if a.Suggestion == nil {
		return a, errors.New("the control plane suggests no address for a new origin: is its tunnel network full?")
	}
	o := pull.Origin{
		Name: r.name, Key: r.client.Key.Public(), Folder: a.Suggestion.Folder, TunnelAddress: a.Suggestion.TunnelAddress,
		Hosts: *r.hosts, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if r.temporary > 0 {
		o.Expires = a.Now.Add(r.temporary)
	}
	where, err := r.place().Open(ctx, o)
	if err != nil {
		return a, err
	}
	r.taken, r.told = true, true
	r.proposed(where, nil)
	return a, nil
}

// ask asks until there is an answer.
func (r *registration) ask(ctx context.Context, q join.Question) (a join.Answer, err error) {
	err = r.try(ctx, func() (err error) {
		a, err = r.client.Ask(ctx, q)
		return err
	})
	if err == nil {
		r.compare(a.Now)
	}
	return a, err
}

func (r *registration) hello(ctx context.Context) (h join.Hello, err error) {
	err = r.try(ctx, func() (err error) {
		h, err = r.client.Hello(ctx)
		return err
	})
	if err == nil && h.Control.IsZero() {
		err = fmt.Errorf("%s does not say its join key: is it a control plane?", r.control)
	}
	return h, err
}

// The rest between questions that were not answered.
const restMin, restMax = time.Second, 30 * time.Second

// try calls ask until it succeeds, or until that has no sense any more. What stands in
// the way is said once, and once that it is over.
func (r *registration) try(ctx context.Context, ask func() error) error {
	said := false
	for n := 0; ; n++ {
		err := ask()
		if err == nil {
			if said {
				r.progress.done("The control plane is back")
			}
			r.reached = true
			return nil
		}
		if ctx.Err() != nil {
			return r.stopped(ctx)
		}
		if errors.Is(err, join.ErrBusy) {
			r.reached = true
		}
		if err, final := r.explain(err); final || !r.reached && time.Since(r.begun) > r.patience {
			return err
		} else if !said {
			said = true
			r.progress.warn("%v; trying again", err)
		}
		if err := r.rest(ctx, min(restMin<<min(n, 10), restMax)); err != nil {
			return err
		}
	}
}

// rest waits for a time of about d.
func (r *registration) rest(ctx context.Context, d time.Duration) error {
	d = max(d, 0)
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return r.stopped(ctx)
	}
}

// stopped says how a registration that was given up goes on.
func (r *registration) stopped(ctx context.Context) error {
	const again = "run the same line again to go on; the token is not used up by that"
	if cause := context.Cause(ctx); errors.Is(cause, errWaited) {
		return fmt.Errorf("%w; %s", cause, again)
	}
	return fmt.Errorf("stopped before the end; %s: %w", again, ctx.Err())
}

// explain is why there was no answer, for a person, and whether it stays so.
func (r *registration) explain(err error) (why error, final bool) {
	var untrusted *tls.CertificateVerificationError
	var request *url.Error
	switch {
	case errors.Is(err, join.ErrStranger):
		return fmt.Errorf("%s is not the control plane that made the token: check the URL, or ask for a token of this fleet (%w)", r.control, join.ErrStranger), true
	case errors.As(err, &untrusted) && r.was:
		// What only starts an agent that is there does not depend on who answers.
		return fmt.Errorf("%w: the certificate of %s is not to be trusted: %w; when it is a private one, give --ca FILE", errUnreachable, r.control, untrusted.Err), true
	case errors.As(err, &untrusted):
		return fmt.Errorf("the certificate of %s is not to be trusted: %w; when it is a private one, give --ca FILE", r.control, untrusted.Err), true
	case errors.Is(err, join.ErrBusy):
		return err, false
	case errors.As(err, &request):
		return fmt.Errorf("%w at %s: %w", errUnreachable, r.control, request.Err), false
	}
	return fmt.Errorf("%w: %s", errUnreachable, strings.TrimPrefix(err.Error(), "ask control plane ")), false
}

// clockLimit is how far clocks may be apart before it is said.
const clockLimit = 5 * time.Minute

// compare says when this host's clock is off.
func (r *registration) compare(theirs time.Time) {
	if theirs.IsZero() || r.joining.warned {
		return
	}
	if off := time.Since(theirs); off.Abs() > clockLimit {
		r.joining.warned = true
		side := "ahead of"
		if off < 0 {
			side = "behind"
		}
		r.progress.warn("This host's clock is %s %s the control plane's: set it, since what expires ends by it", span(off.Abs()), side)
	}
}

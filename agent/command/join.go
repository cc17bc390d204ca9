package command

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/join/pull"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

const joinFlags = `  --control URL       the control plane, like https://control.example.com
  --name NAME         name for this origin: a-z, 0-9 and "-"
  --token-file FILE   file with the join token; else it is read from $KOKOA_TOKEN, or from
                      standard input when that is no terminal. A token is never an argument:
                      every user of the host can see those
  --temporary [24h]   let the origin end by itself after this time (default 24h)
  --host HOST         a host this origin will serve, like blog.example.com or
                      *.example.com; may be repeated (default: what the token allows)
  --tunnel MAKE       auto, kernel, tun or userspace (default auto: the best the host
                      allows; userspace needs no privilege)
  --allow HOST:PORT   let the fleet reach this service and no others but those also
                      allowed; may be repeated (default: what the fleet declares)
  --wait TIME         how long to wait for the registration to be merged (default 24h)
  --ca FILE           PEM certificates to trust for the URL, instead of the system's
  --insecure-http     let the URL be http://. The token and the answers are sealed all the
                      same; names and times are not hidden
  --config FILE       where to write what the agent starts from
  --data DIR          the agent's data folder

The pull request can be opened by this host itself, with a forge token of its own in
$KOKOA_FORGE_TOKEN, and then needs no join token:
  --forge MAKE        github or gitea (and Forgejo)
  --repo OWNER/NAME   the fleet repo
  --forge-url URL     the forge (default for github https://api.github.com; for GitHub
                      Enterprise the URL ends in /api/v3)
  --control-key KEY   the control plane's public join key (default: the key that it says it
                      has, by TLS)
`

const joinUsage = `usage: kokoa-agent join --control URL --name NAME [flags]

Join registers this host as an origin, waits until that is merged, and writes the file
that kokoa-agent run starts from. The private key is made here and never leaves. A join
that was stopped is finished by the same line again.

` + joinFlags

// joining is a registration as the flags have it.
type joining struct {
	*commands
	flags flagSet

	control, name, tokenFile, ca string
	hosts, allow                 *[]string
	temporary, wait              time.Duration
	tunnel, config, data         string
	insecureHTTP                 bool
	forge, repo, forgeURL        string
	controlKey                   keys.Public

	// patience is how long the control plane may be out of reach before it was
	// reached once.
	patience time.Duration
	// warned says that the clock was spoken of.
	warned bool
	// secret is the forge's token.
	secret string
}

func (c *commands) newJoining(name, usage string) *joining {
	j := &joining{commands: c, flags: newFlags(name, usage), patience: 15 * time.Second}
	f := j.flags
	f.StringVar(&j.control, "control", c.getenv(envControl), "")
	f.StringVar(&j.name, "name", c.getenv(envName), "")
	f.StringVar(&j.tokenFile, "token-file", c.getenv(envTokenFile), "")
	f.StringVar(&j.ca, "ca", c.getenv(envCA), "")
	f.DurationVar(&j.temporary, "temporary", 0, "")
	f.DurationVar(&j.wait, "wait", 24*time.Hour, "")
	f.StringVar(&j.tunnel, "tunnel", string(tunnel.Auto), "")
	f.StringVar(&j.config, "config", "", "")
	f.StringVar(&j.data, "data", "", "")
	f.BoolVar(&j.insecureHTTP, "insecure-http", false, "")
	f.StringVar(&j.forge, "forge", "", "")
	f.StringVar(&j.repo, "repo", "", "")
	f.StringVar(&j.forgeURL, "forge-url", "", "")
	f.Func("control-key", "", func(text string) (err error) {
		j.controlKey, err = keys.ParsePublic(text)
		return err
	})
	j.hosts, j.allow = f.list("host"), f.list("allow")
	return j
}

// defaultLife is what --temporary without a time means.
const defaultLife = "24h"

// parse reads the arguments and what the environment adds, and says what is wrong with
// them before anything is made or sent.
func (j *joining) parse(args []string, stdout io.Writer) error {
	var plain []string
	for i := 0; i < len(args); i++ {
		name, _, _ := strings.Cut(args[i], "=")
		switch {
		case name == "--token" || name == "-token" || strings.HasPrefix(args[i], "kokoa_"):
			return j.flags.misused("a join token is never an argument, since every user of the host can see those. Put it in a file and give --token-file FILE, or set KOKOA_TOKEN, or write it to standard input; and since this one was seen, ask for another")
		case args[i] == "--temporary" || args[i] == "-temporary":
			life := defaultLife
			if i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++
				life = args[i]
			}
			plain = append(plain, "--temporary="+life)
		default:
			plain = append(plain, args[i])
		}
	}
	if err := j.flags.parse(plain, stdout); err != nil {
		return err
	}
	j.secret = j.getenv(envForge)
	return j.check()
}

// check is what is wrong with the flags by themselves.
func (j *joining) check() error {
	bad := j.flags.misused
	if j.control != "" {
		u, err := url.Parse(j.control)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
			return bad("--control %q: want a URL like https://control.example.com", j.control)
		case u.Scheme == "http" && !loopback(u.Hostname()) && !j.insecureHTTP:
			return bad("--control %q: want https://, so that nobody in between sees who joins; --insecure-http does without", j.control)
		}
	}
	if j.name != "" {
		if err := join.CheckName(j.name); err != nil {
			return bad("--%v", err)
		}
	}
	for _, h := range *j.hosts {
		if err := join.CheckHost(h); err != nil {
			return bad("--%v", err)
		}
	}
	if j.flags.given("temporary") && j.temporary <= 0 {
		return bad("--temporary %v: want a time to live, like 24h", j.temporary)
	}
	if j.wait <= 0 {
		return bad("--wait %v: want a time, like 24h", j.wait)
	}
	switch tunnel.Kind(j.tunnel) {
	case tunnel.Auto, tunnel.Kernel, tunnel.TUN, tunnel.Userspace:
	default:
		return bad("--tunnel %q: want auto, kernel, tun or userspace", j.tunnel)
	}
	if err := agent.CheckAllow(*j.allow); err != nil {
		return bad("--%v", err)
	}
	if j.forge == "" {
		if j.repo != "" || j.forgeURL != "" {
			return bad("--repo and --forge-url go with --forge github or --forge gitea")
		}
		return nil
	}
	if j.secret == "" {
		return bad("--forge %s: put a token of the forge in KOKOA_FORGE_TOKEN; it must be allowed to write contents and pull requests of %s", j.forge, j.repo)
	}
	if err := j.place().Check(); err != nil {
		return bad("%v", err)
	}
	return nil
}

// place is where the host opens its pull request by itself.
func (j *joining) place() pull.Place {
	return pull.Place{Make: j.forge, URL: j.forgeURL, Repo: j.repo, Token: j.secret}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *commands) join(ctx context.Context, args []string, stdout, _ io.Writer) error {
	j := c.newJoining("join", joinUsage)
	if err := j.parse(args, stdout); errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if err := j.settle(c.place("")); err != nil {
		return err
	}
	p := newProgress(stdout)
	if _, err := j.register(ctx, p); err != nil {
		p.clear()
		return err
	}
	p.say("Run the agent: kokoa-agent run --config %s", j.config)
	return nil
}

// joinFirst is what an agent in a container does before it runs for the first time.
func (c *commands) joinFirst(ctx context.Context, config string) (agent.Bootstrap, error) {
	j := c.newJoining("run", runUsage)
	if err := j.check(); err != nil {
		return agent.Bootstrap{}, err
	}
	// What starts containers starts several at once, in no order.
	j.config, j.patience = config, j.wait
	if err := j.settle(c.place("")); err != nil {
		return agent.Bootstrap{}, err
	}
	return j.register(ctx, newProgress(c.stdout))
}

// settle completes the paths.
func (j *joining) settle(at place) (err error) {
	if j.config == "" {
		j.config = at.config
	}
	if j.config, err = absolute(j.config); err != nil {
		return err
	}
	if j.data == "" {
		j.data = at.data
	}
	j.data, err = absolute(j.data)
	return err
}

// Package github keeps proposals for the fleet repo on GitHub: github.com, or an
// Enterprise Server. It speaks the REST API alone, and needs no clone.
//
// A fine-grained token, or a GitHub App's installation, needs two permissions for
// the one repo: contents (read and write) and pull requests (read and write).
// Commits are made without an author's name: GitHub then names the token's owner
// or the App, and signs an App's commits as verified.
package github

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	gh "github.com/google/go-github/v62/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Config says which repo, and who asks. It prints as the repo's place.
type Config struct {
	// URL is the base of the REST API. Default https://api.github.com/; that of an
	// Enterprise Server is https://HOST/api/v3/. Without TLS it must be this host.
	URL string
	// Owner is the user or organization that the repo is listed under.
	Owner, Repo string
	// Branch is what proposals are for. Default "main".
	Branch string
	// Token is a fine-grained personal access token. Either this or App is given.
	Token string
	// App is a GitHub App that is installed on the repo.
	App App
	// HTTP makes the requests; its transport is wrapped, and it is not changed.
	// Default: one with a timeout of 30 s.
	HTTP *http.Client
	// Log takes what is worth knowing and no error to the caller; may be nil.
	Log *slog.Logger
}

// App is a GitHub App, which acts as itself and not as a person. It prints as
// nothing.
type App struct {
	// ID is the App's, Installation that of its installation at the repo's owner.
	ID, Installation int64
	// PrivateKey is the PEM text that GitHub gives out: PKCS #1, or PKCS #8.
	PrivateKey string
}

// String names the repo, without credentials.
func (c Config) String() string { return "github:" + c.Owner + "/" + c.Repo }

// GoString names the repo, without credentials.
func (c Config) GoString() string { return c.String() }

// LogValue names the repo, without credentials.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// String hides the credentials.
func (App) String() string { return "(hidden)" }

// GoString hides the credentials.
func (App) GoString() string { return "(hidden)" }

// LogValue hides the credentials.
func (App) LogValue() slog.Value { return slog.StringValue("(hidden)") }

// Open is the forge that c describes. It asks GitHub nothing yet.
func Open(c Config) (*Forge, error) {
	base, err := apiBase(c.URL)
	if err != nil {
		return nil, err
	}
	if !name.MatchString(c.Owner) || !name.MatchString(c.Repo) || c.Repo == "." || c.Repo == ".." {
		return nil, fmt.Errorf("github: %q is no repo: write it as owner/name", c.Owner+"/"+c.Repo)
	}
	f := &Forge{
		place: base.Host + "/" + c.Owner + "/" + c.Repo,
		owner: c.Owner, repo: c.Repo, base: c.Branch, log: c.Log,
		turn: make(chan struct{}, 1), opened: make(map[string]opening),
		pauses: []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second},
	}
	if base.Host == "api.github.com" {
		f.place = "github.com/" + c.Owner + "/" + c.Repo
	}
	if f.base == "" {
		f.base = "main"
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	wire := http.Client{Timeout: 30 * time.Second}
	if c.HTTP != nil {
		wire = *c.HTTP
	}
	if wire.Transport == nil {
		wire.Transport = http.DefaultTransport
	}
	wire.Transport = bounded{wire.Transport}
	tokens, err := tokensOf(c, base, wire)
	if err != nil {
		return nil, fmt.Errorf("github: %w", err)
	}
	wire.Transport = newRemembering(&bearer{next: wire.Transport, base: base, tokens: tokens})
	f.client = client(base, &wire)
	return f, nil
}

var name = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

func apiBase(text string) (*url.URL, error) {
	if text == "" {
		text = "https://api.github.com/"
	}
	base, err := url.Parse(text)
	switch {
	case err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "":
		return nil, fmt.Errorf("github: %q is no address of an API: write https://HOST/api/v3/", redacted(base, text))
	case base.Scheme == "https":
	case base.Scheme != "http" || !loopback(base.Hostname()):
		return nil, fmt.Errorf("github: %s would carry the credentials in the clear: write https", base.Redacted())
	}
	if !strings.HasSuffix(base.Path, "/") {
		base.Path += "/"
	}
	return base, nil
}

func redacted(u *url.URL, text string) string {
	if u == nil {
		return "(" + fmt.Sprint(len(text)) + " characters)"
	}
	return u.Redacted()
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func client(base *url.URL, wire *http.Client) *gh.Client {
	c := gh.NewClient(wire)
	c.BaseURL, c.UserAgent = base, "kokoa"
	return c
}

// Forge is a repo on GitHub. It is a forge.Forge.
type Forge struct {
	client            *gh.Client
	place             string
	owner, repo, base string
	log               *slog.Logger

	// turn is held by whoever writes: GitHub wants one request after the other
	// from one client, and answers those at once with its secondary rate limit.
	turn chan struct{}
	// pauses are between looks at what GitHub has not settled yet.
	pauses []time.Duration
	// method is the first way to merge that the repo has not refused; who holds
	// the turn may use it.
	method int

	mu     sync.Mutex
	opened map[string]opening // by branch
}

// opening is a pull request that this Forge opened lately. A list may lack it for
// a moment.
type opening struct {
	number int
	at     time.Time
	over   bool // this Forge merged or closed it
}

const (
	// lately is how long a list may lack what was opened.
	lately = time.Minute
	// pagesAtMost bounds the search for a branch's pull requests; the first page
	// has them but when forks under the same owner have branches of that name.
	pagesAtMost = 10
)

// String names the repo.
func (f *Forge) String() string { return f.place }

// Propose is as forge.Forge says. A new pull request takes six requests, one
// that stands already two.
func (f *Forge) Propose(ctx context.Context, p forge.Proposal) (forge.Pull, error) {
	if p.Branch == "" || p.Branch == f.base {
		return forge.Pull{}, fmt.Errorf("propose to %s: a proposal needs a branch of its own, not %q", f, p.Branch)
	}
	var pull forge.Pull
	err := f.inTurn(ctx, func() (err error) {
		pull, err = f.propose(ctx, p)
		return err
	})
	if err != nil {
		return forge.Pull{}, fmt.Errorf("propose %s to %s: %w", p.Branch, f, err)
	}
	return pull, nil
}

// Find is as forge.Forge says. It takes one request, which costs nothing of
// the rate limit's budget while nothing has changed.
func (f *Forge) Find(ctx context.Context, branch string) (forge.Pull, error) {
	pull, err := f.newest(ctx, branch, "all")
	if err != nil {
		return forge.Pull{}, fmt.Errorf("find %s at %s: %w", branch, f, err)
	}
	if pull == nil {
		return forge.Pull{}, fmt.Errorf("find %s at %s: %w", branch, f, forge.ErrNoPull)
	}
	return pullOf(pull), nil
}

// Merge is as forge.Forge says.
func (f *Forge) Merge(ctx context.Context, p forge.Pull) error {
	if err := f.inTurn(ctx, func() error { return f.merge(ctx, p) }); err != nil {
		return fmt.Errorf("merge pull request %d of %s: %w", p.Number, f, err)
	}
	return nil
}

// Close is as forge.Forge says. One that is merged is ErrConflict.
func (f *Forge) Close(ctx context.Context, p forge.Pull, why string) error {
	if err := f.inTurn(ctx, func() error { return f.close(ctx, p, why) }); err != nil {
		return fmt.Errorf("close pull request %d of %s: %w", p.Number, f, err)
	}
	return nil
}

func (f *Forge) inTurn(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-f.turn }()
	return do()
}

// newest is the branch's newest pull request, or nil. State is "open" or "all".
func (f *Forge) newest(ctx context.Context, branch, state string) (*gh.PullRequest, error) {
	found, err := f.listed(ctx, branch, state)
	if err != nil {
		return nil, trouble("list pull requests", err)
	}
	f.mu.Lock()
	last, ok := f.opened[branch]
	f.mu.Unlock()
	if !ok || time.Since(last.at) > lately || found.GetNumber() >= last.number || last.over && state == "open" {
		return found, nil
	}
	pull, err := f.get(ctx, last.number)
	if err != nil {
		return nil, err
	}
	if state == "open" && pullOf(pull).State != forge.Open {
		return found, nil
	}
	return pull, nil
}

func (f *Forge) listed(ctx context.Context, branch, state string) (*gh.PullRequest, error) {
	opts := &gh.PullRequestListOptions{
		State: state, Head: f.owner + ":" + branch, Base: f.base,
		Sort: "created", Direction: "desc", ListOptions: gh.ListOptions{PerPage: 10},
	}
	for range pagesAtMost {
		pulls, resp, err := f.client.PullRequests.List(ctx, f.owner, f.repo, opts)
		if err != nil {
			return nil, err
		}
		for _, pull := range pulls {
			if f.ours(pull, branch) {
				return pull, nil
			}
		}
		if resp.NextPage == 0 {
			break
		}
		opts.Page = resp.NextPage
	}
	return nil, nil
}

// ours reports whether a pull request is from the branch, of this very repo, to
// the base branch. GitHub lists more than it was asked for when it does not
// understand the question, and what forks have is nobody's proposal.
func (f *Forge) ours(pull *gh.PullRequest, branch string) bool {
	return pull.GetHead().GetRef() == branch && pull.GetBase().GetRef() == f.base &&
		pull.GetHead().GetRepo().GetID() == pull.GetBase().GetRepo().GetID()
}

func (f *Forge) get(ctx context.Context, number int) (*gh.PullRequest, error) {
	pull, _, err := f.client.PullRequests.Get(ctx, f.owner, f.repo, number)
	if err != nil {
		return nil, trouble("look at the pull request", err)
	}
	return pull, nil
}

// remember notes what was opened just now, and forgets what was before.
func (f *Forge) remember(branch string, number int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for branch, o := range f.opened {
		if time.Since(o.at) > lately {
			delete(f.opened, branch)
		}
	}
	f.opened[branch] = opening{number: number, at: time.Now()}
}

// over notes that a pull request is no longer open.
func (f *Forge) over(p forge.Pull) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o, ok := f.opened[p.Branch]; ok && o.number == p.Number {
		o.over = true
		f.opened[p.Branch] = o
	}
}

func pullOf(pull *gh.PullRequest) forge.Pull {
	p := forge.Pull{
		Number: pull.GetNumber(), Branch: pull.GetHead().GetRef(), State: forge.Open,
		Head: pull.GetHead().GetSHA(), URL: pull.GetHTMLURL(),
	}
	switch {
	case pull.MergedAt != nil || pull.GetMerged(): // lists have only the former
		p.State = forge.Merged
	case pull.GetState() == "closed":
		p.State = forge.Closed
	}
	return p
}

// pause waits before the next try. It is false when there have been enough.
func (f *Forge) pause(ctx context.Context, try int) (bool, error) {
	if try >= len(f.pauses) {
		return false, nil
	}
	timer := time.NewTimer(f.pauses[try])
	defer timer.Stop()
	select {
	case <-timer.C:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// gone reports whether GitHub says that what was asked for is not there.
func gone(err error) bool {
	var answer *gh.ErrorResponse
	return errors.As(err, &answer) && answer.Response.StatusCode == http.StatusNotFound
}

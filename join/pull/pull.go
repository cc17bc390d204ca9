// Package pull opens the pull request that makes a host an origin from that host, with
// a forge's token of its own, for fleets whose control plane has none. It speaks the
// few REST calls that this takes, of GitHub and of Gitea (and Forgejo), itself: with
// the control plane's client of GitHub the agent would be larger than a small board can
// spare.
package pull

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
)

// Place is a fleet repo at a forge, and who asks there.
type Place struct {
	// Make is "github" or "gitea".
	Make string
	// URL is GitHub's API ("https://api.github.com" when empty), or Gitea's site.
	URL string
	// Repo is "owner/name".
	Repo string
	// Token may read the repo, and write its contents and pull requests.
	Token string
	// HTTP makes the requests; nil is a client of its own.
	HTTP *http.Client
}

// Origin is what the pull request adds.
type Origin struct {
	Name string
	Key  keys.Public
	// Folder of the repo, and the address that the origin gets.
	Folder        string
	TunnelAddress netip.Addr
	// Hosts and Expires are as fleet.Origin's; a zero Expires is never.
	Hosts   []string
	Expires time.Time
	// Platform is "linux/arm64", for people.
	Platform string
}

// The errors that a caller may ask for with errors.Is. Others say that the forge could
// not be reached or is not well.
var (
	// ErrTaken: the repo has a file for an origin of that name, with another key.
	ErrTaken = errors.New("the name is taken")
	// ErrDenied: the forge refused the token, or it may not do this.
	ErrDenied = errors.New("the forge refused the token")
)

// Check is why nothing could be opened at the place, or nil. It asks nobody.
func (p Place) Check() error {
	if p.Make != "github" && p.Make != "gitea" {
		return fmt.Errorf("forge %q: want github or gitea", p.Make)
	}
	owner, name, _ := strings.Cut(p.Repo, "/")
	if !word(owner) || !word(name) {
		return fmt.Errorf("repo %q: want OWNER/NAME", p.Repo)
	}
	if p.URL == "" && p.Make == "github" {
		return nil
	}
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("forge URL %q: want one like https://git.example.com", p.URL)
	}
	return nil
}

// word reports whether text can be an owner or a repo.
func word(text string) bool {
	for _, r := range text {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.') {
			return false
		}
	}
	return text != "" && text != "." && text != ".."
}

// Open sees that a pull request for the origin is open and returns its address. One that
// is open for the same name and key is returned as it is, and one that was merged is
// found in the repo: then the address is the file's.
func (p Place) Open(ctx context.Context, o Origin) (string, error) {
	if err := p.Check(); err != nil {
		return "", fmt.Errorf("open pull request: %w", err)
	}
	content, err := File(o)
	if err != nil {
		return "", fmt.Errorf("open pull request: %w", err)
	}
	where, err := p.open(ctx, o, content)
	if err != nil {
		return "", fmt.Errorf("open pull request at %s of %s: %w", p.Repo, p.Make, err)
	}
	return where, nil
}

// change is what is proposed.
type change struct {
	branch, path, title, body string
	content                   []byte
}

func (p Place) open(ctx context.Context, o Origin, content []byte) (string, error) {
	c := change{
		branch: join.Branch(o.Name, o.Key), path: path.Join(o.Folder, o.Name+".cue"), content: content,
		title: "Add origin " + o.Name, body: body(o),
	}
	r := newRepo(p)
	base, err := r.base(ctx)
	if err != nil {
		return "", err
	}
	if where, err := r.pull(ctx, base, c.branch); err != nil || where != "" {
		return where, err
	}
	switch merged, err := r.file(ctx, base, c.path); {
	case err != nil:
		return "", err
	case merged != nil && strings.Contains(string(merged.Content), o.Key.String()):
		return merged.URL, nil
	case merged != nil:
		return "", fmt.Errorf("%w: %s is in the repo, for another key", ErrTaken, c.path)
	}
	if err := r.write(ctx, base, c); err != nil {
		return "", err
	}
	return r.propose(ctx, base, c)
}

// body is the pull request's text.
func body(o Origin) string {
	var b strings.Builder
	fmt.Fprintf(&b, "A host asks to become the origin `%s`. It opened this pull request by itself.\n\n", o.Name)
	row := func(name, value string) { fmt.Fprintf(&b, "- %s: %s\n", name, value) }
	row("public key", "`"+o.Key.String()+"`")
	row("tunnel address", "`"+o.TunnelAddress.String()+"`")
	if len(o.Hosts) == 0 {
		row("hosts", "any of the fleet's domains")
	} else {
		row("hosts", "`"+strings.Join(o.Hosts, "`, `")+"`")
	}
	if !o.Expires.IsZero() {
		row("ends", o.Expires.UTC().Format(time.RFC3339))
	}
	row("platform", "`"+o.Platform+"`")
	b.WriteString("\nIt can serve nothing before a route names it. Merge this only when you know the host: compare the key with what `kokoa-agent` printed there.\n")
	return b.String()
}

// Package gitea is the forge Gitea, and its fork Forgejo.
//
// It speaks to the API of version 1 with a small client of its own: Gitea's SDK for
// Go takes no context per call, reads answers without a bound, and throws away the
// text of a refused merge, which is all that tells rules from conflicts.
//
// A proposal's commit is made by the server, in one call for all files. A branch that
// is there already cannot be moved by that call, nor by any other before Gitea 1.26;
// and to delete and make it anew would close its pull request. So the commit is made
// on a branch beside it, named like it and ".next", and one Git push without objects,
// which the server has already, moves the one and removes the other: both or neither,
// and only from the commits that were seen. That push is the only thing that needs Git
// over HTTP, and it keeps a Git library out of this package.
//
// Forgejo has the same calls. It words its answer to a merge that its rules forbid
// differently; whatever is not known to be a conflict counts as a rule. The tests in
// e2e/gitea build a Gitea to run against, and take another server's program if told.
package gitea

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Config says where the repo is, and who asks.
type Config struct {
	// URL is the server's, as in "https://git.example.com"; it may have a path.
	URL string
	// Owner is a user or an organization, and Repo one of its repos.
	Owner, Repo string
	// Branch is the base branch, which proposals are for.
	Branch string
	// Token is an access token with the scopes write:repository and write:issue, of a
	// user who may write to the repo.
	Token Token
	// HTTP is what asks; nil is a client that gives up a call after a minute.
	// Redirects are not followed.
	HTTP *http.Client
	// Log may be nil.
	Log *slog.Logger
}

// Token is an access token. It prints as nothing.
type Token string

// Format prints nothing, whatever the verb.
func (Token) Format(fmt.State, rune) {}

// LogValue logs nothing.
func (Token) LogValue() slog.Value { return slog.StringValue("") }

// MarshalText writes nothing.
func (Token) MarshalText() ([]byte, error) { return nil, nil }

// Forge is a repo at a Gitea or Forgejo server. Its methods may be called at once.
type Forge struct {
	client
	base string
	log  *slog.Logger

	proposing turns
	// patience is how long a merge waits for the server to find out whether a pull
	// request has conflicts.
	patience time.Duration
}

// Open checks the config. It does not ask the server anything.
func Open(c Config) (*Forge, error) {
	at, err := url.Parse(c.URL)
	switch {
	case err != nil:
		var why *url.Error // which says the URL, and so what credentials are in it
		if errors.As(err, &why) {
			err = why.Err
		}
		return nil, fmt.Errorf("gitea: url: %w", err)
	case at.Scheme != "http" && at.Scheme != "https" || at.Host == "" || at.User != nil || at.RawQuery != "" || at.Fragment != "":
		return nil, fmt.Errorf("gitea: url %q: want one like https://git.example.com, without credentials", at.Redacted())
	case c.Owner == "" || c.Repo == "" || c.Branch == "":
		return nil, errors.New("gitea: want the names of owner, repo and branch")
	case c.Token == "":
		return nil, errors.New("gitea: want an access token with the scopes write:repository and write:issue")
	}
	asks := http.Client{Timeout: time.Minute}
	if c.HTTP != nil {
		asks = *c.HTTP
	}
	// The token is for this server, and a POST that was sent on would be a GET.
	asks.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	token := string(c.Token)
	return &Forge{
		client: client{
			server: strings.TrimRight(at.String(), "/"),
			repo:   "/" + url.PathEscape(c.Owner) + "/" + url.PathEscape(c.Repo),
			token:  func() string { return token },
			http:   &asks,
		},
		base:     c.Branch,
		log:      c.Log,
		patience: 20 * time.Second,
	}, nil
}

// String is the repo's address.
func (f *Forge) String() string { return f.server + f.repo }

// GoString is String: %#v must not look inside.
func (f *Forge) GoString() string { return f.String() }

// Propose is as forge.Forge has it. The pull request's title and body are written
// when the proposal's text changes, and otherwise stay as people edited them.
func (f *Forge) Propose(ctx context.Context, p forge.Proposal) (forge.Pull, error) {
	if p.Branch == f.base || p.Branch == "" {
		return forge.Pull{}, fmt.Errorf("propose: branch %q is not for proposals", p.Branch)
	}
	done, err := f.proposing.take(ctx, p.Branch)
	if err != nil {
		return forge.Pull{}, fmt.Errorf("propose %s: %w", p.Branch, err)
	}
	defer done()
	for wait := 100 * time.Millisecond; ; wait *= 2 {
		pull, err := f.propose(ctx, p)
		if errors.Is(err, errMoved) && wait < 5*time.Second {
			if err = sleep(ctx, wait); err == nil {
				continue
			}
		}
		if err != nil {
			return forge.Pull{}, fmt.Errorf("propose %s: %w", p.Branch, err)
		}
		return pull, nil
	}
}

func (f *Forge) propose(ctx context.Context, p forge.Proposal) (forge.Pull, error) {
	base, err := f.mustHead(ctx, f.base)
	if err != nil {
		return forge.Pull{}, err
	}
	if p.Base != "" && p.Base != base {
		return forge.Pull{}, fmt.Errorf("%w: %s is at %.12s and not %.12s", forge.ErrConflict, f.base, base, p.Base)
	}
	last, err := f.newest(ctx, p.Branch)
	if err != nil {
		return forge.Pull{}, err
	}
	var open *pull
	if last != nil && last.State == "open" {
		open = last
	}
	old, err := f.head(ctx, p.Branch)
	if err != nil {
		return forge.Pull{}, err
	}
	var there commit
	if old != "" {
		if there, err = f.commit(ctx, old); err != nil {
			return forge.Pull{}, err
		}
	}

	if open != nil && !there.says(p) && (open.Title != p.Title || open.Body != p.Body) {
		// Before the branch says so: else an end in between would leave the old text.
		text := map[string]string{"title": p.Title, "body": p.Body}
		if err := f.call(ctx, http.MethodPatch, f.pullPath(open.Number), text, nil, http.StatusCreated); err != nil {
			return forge.Pull{}, err
		}
	}
	head, same := old, old != "" && there.says(p) && there.isOn(base)
	if same {
		if same, err = f.leaves(ctx, there, p); err != nil {
			return forge.Pull{}, err
		}
	}
	switch {
	case !same:
		if head, err = f.write(ctx, p, base, old); err != nil {
			return forge.Pull{}, err
		}
		f.log.Info("proposal written", "object", p.Branch, "revision", head)
	case open == nil:
		// Whoever wrote the branch is about to open the pull request, or ended before.
		if open, err = f.awaitOpen(ctx, p.Branch); err != nil {
			return forge.Pull{}, err
		}
	}
	if open == nil {
		if last != nil && old == "" {
			if err := f.awaitNews(ctx, head); err != nil {
				return forge.Pull{}, err
			}
		}
		if open, err = f.request(ctx, p); err != nil {
			return forge.Pull{}, err
		}
		f.log.Info("pull request opened", "object", p.Branch, "revision", head)
	}
	pull := open.pull()
	pull.Head = head
	return pull, nil
}

// Find is as forge.Forge has it.
func (f *Forge) Find(ctx context.Context, branch string) (forge.Pull, error) {
	found, err := f.newest(ctx, branch)
	if err == nil && found == nil {
		if err = f.visible(ctx); err == nil {
			err = forge.ErrNoPull
		}
	}
	if err != nil {
		return forge.Pull{}, fmt.Errorf("find %s: %w", branch, err)
	}
	return found.pull(), nil
}

// Merge is as forge.Forge has it. It merges in the style that the repo has by
// default, or else in one that it allows.
func (f *Forge) Merge(ctx context.Context, p forge.Pull) error {
	if err := f.merge(ctx, p); err != nil {
		return fmt.Errorf("merge %s: %w", p.Branch, err)
	}
	return nil
}

func (f *Forge) merge(ctx context.Context, p forge.Pull) error {
	end := time.Now().Add(f.patience)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		now, err := f.get(ctx, p.Number)
		switch {
		case err != nil:
			return err
		case now.Merged:
			return f.sweep(ctx, p)
		case now.State != "open":
			return fmt.Errorf("%w: it is closed", forge.ErrConflict)
		case now.Base.Ref != f.base:
			return fmt.Errorf("%w: it is for %s", forge.ErrConflict, now.Base.Ref)
		case now.Head.SHA != p.Head:
			return fmt.Errorf("%w: it is at %.12s and not %.12s", forge.ErrConflict, now.Head.SHA, p.Head)
		case now.Draft:
			return fmt.Errorf("%w: somebody made it a draft", forge.ErrProtected)
		case now.Mergeable:
			err = f.press(ctx, p)
			if err == nil {
				f.log.Info("pull request merged", "object", p.Branch, "revision", p.Head)
				return f.sweep(ctx, p)
			}
		default:
			// Conflicts look the same as not knowing yet.
			err = f.fits(ctx, now)
		}
		if !errors.Is(err, errLater) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: the forge does not find it free of conflicts", forge.ErrConflict)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// Close is as forge.Forge has it. One that was merged is ErrConflict.
func (f *Forge) Close(ctx context.Context, p forge.Pull, why string) error {
	if err := f.close(ctx, p, why); err != nil {
		return fmt.Errorf("close %s: %w", p.Branch, err)
	}
	return nil
}

func (f *Forge) close(ctx context.Context, p forge.Pull, why string) error {
	now, err := f.get(ctx, p.Number)
	switch {
	case err != nil:
		return err
	case now.Merged:
		return fmt.Errorf("%w: it is merged", forge.ErrConflict)
	case now.State != "open":
		return f.sweep(ctx, p)
	}
	if why != "" {
		comment := map[string]string{"body": why}
		if err := f.call(ctx, http.MethodPost, fmt.Sprintf("/issues/%d/comments", p.Number), comment, nil, http.StatusCreated); err != nil {
			return err
		}
	}
	if err := f.shut(ctx, p.Number); err != nil {
		return err
	}
	f.log.Info("pull request closed", "object", p.Branch, "revision", now.Head.SHA)
	return f.sweep(ctx, forge.Pull{Branch: p.Branch, Head: now.Head.SHA})
}

// sweep removes the branch of a pull request that is over, unless it became another
// one's.
func (f *Forge) sweep(ctx context.Context, p forge.Pull) error {
	head, err := f.head(ctx, p.Branch)
	if err != nil || head != p.Head || p.Branch == f.base {
		return err
	}
	if open, err := f.open(ctx, p.Branch); err != nil || open != nil {
		return err
	}
	return f.call(ctx, http.MethodDelete, f.branchPath(p.Branch), nil, nil, http.StatusNoContent, http.StatusNotFound)
}

// sleep waits, unless the context ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

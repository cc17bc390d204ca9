package gitea

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// errLater: the server does not know yet whether a pull request has conflicts.
var errLater = errors.New("the forge is still looking for conflicts")

// pull is what is read of a pull request.
type pull struct {
	Number int    `json:"number"`
	URL    string `json:"html_url"`
	Title  string `json:"title"`
	Body   string `json:"body"`
	State  string `json:"state"`
	Draft  bool   `json:"draft"`
	Merged bool   `json:"merged"`
	// Mergeable is false also while the server is looking for conflicts.
	Mergeable bool   `json:"mergeable"`
	MergeBase string `json:"merge_base"`
	Base      side   `json:"base"`
	Head      side   `json:"head"`
	Poster    user   `json:"user"`
}

type user struct {
	Login string `json:"login"`
}

type side struct {
	// Label is the branch's name. Ref is the same for as long as there is that
	// branch.
	Label string `json:"label"`
	Ref   string `json:"ref"`
	// SHA is the branch's commit; without the branch, the last it had.
	SHA    string `json:"sha"`
	RepoID int64  `json:"repo_id"`
}

func (p *pull) pull() forge.Pull {
	state := forge.Open
	switch {
	case p.Merged:
		state = forge.Merged
	case p.State != "open":
		state = forge.Closed
	}
	return forge.Pull{Number: p.Number, Branch: p.Head.Label, State: state, Head: p.Head.SHA, URL: p.URL}
}

func (f *Forge) pullPath(number int) string { return fmt.Sprintf("/pulls/%d", number) }

// get is a pull request, or ErrNoPull.
func (f *Forge) get(ctx context.Context, number int) (*pull, error) {
	var p pull
	err := f.call(ctx, http.MethodGet, f.pullPath(number), nil, &p, http.StatusOK)
	if is(err, http.StatusNotFound) {
		if err = f.visible(ctx); err == nil {
			err = forge.ErrNoPull
		}
	}
	if err != nil {
		return nil, err
	}
	return &p, f.undo(ctx, &p)
}

// open is a branch's open pull request, or nil.
func (f *Forge) open(ctx context.Context, branch string) (*pull, error) {
	p, err := f.newest(ctx, branch)
	if err != nil || p == nil || p.State != "open" {
		return nil, err
	}
	return p, nil
}

// newest is a branch's newest pull request, or nil when none can be seen.
func (f *Forge) newest(ctx context.Context, branch string) (*pull, error) {
	var p pull
	err := f.call(ctx, http.MethodGet, "/pulls/"+url.PathEscape(f.base)+"/"+escape(branch), nil, &p, http.StatusOK)
	switch {
	case is(err, http.StatusNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case p.State == "open":
		return &p, nil // there is one at most, and newer ones only after it is over
	}
	// The server answers with any one of several.
	newer, err := f.list(ctx, "all", branch, p.Number)
	if err != nil {
		return nil, err
	}
	if len(newer) > 0 {
		p = newer[0]
	}
	return &p, f.undo(ctx, &p)
}

// undo opens a pull request again that the server closed by mistake. When a branch is
// removed, the server closes its pull requests some time later, without another look at
// the branch: so it may hit the next one of the same name. It shows as the removal of
// the branch by who opened it, and nobody does that here: Close closes first.
func (f *Forge) undo(ctx context.Context, p *pull) error {
	if p.State == "open" || p.Merged || p.Head.Ref != p.Head.Label {
		return nil // or the branch is gone
	}
	mistaken := false
	for page := 1; ; page++ {
		var events []struct {
			Type string `json:"type"`
			By   user   `json:"user"`
		}
		path := fmt.Sprintf("/issues/%d/timeline?limit=50&page=%d", p.Number, page)
		if err := f.call(ctx, http.MethodGet, path, nil, &events, http.StatusOK); err != nil {
			return err
		}
		for _, e := range events {
			switch e.Type {
			case "close", "reopen":
				mistaken = false
			case "delete_branch":
				mistaken = e.By == p.Poster
			}
		}
		if len(events) == 0 {
			break
		}
	}
	if !mistaken {
		return nil
	}
	f.log.Warn("pull request opened again", "object", p.Head.Label, "revision", p.Head.SHA)
	return f.call(ctx, http.MethodPatch, f.pullPath(p.Number), map[string]string{"state": "open"}, p, http.StatusCreated)
}

// list lists a branch's pull requests with numbers above after, newest first.
func (f *Forge) list(ctx context.Context, state, branch string, after int) ([]pull, error) {
	var found []pull
	for page := 1; ; page++ {
		var some []pull
		path := fmt.Sprintf("/pulls?state=%s&limit=50&page=%d", state, page)
		if err := f.call(ctx, http.MethodGet, path, nil, &some, http.StatusOK); err != nil {
			return nil, err
		}
		for _, p := range some {
			if p.Number > after && p.Head.Label == branch && p.Base.Ref == f.base && p.Head.RepoID == p.Base.RepoID {
				found = append(found, p)
			}
		}
		if len(some) == 0 || slices.ContainsFunc(some, func(p pull) bool { return p.Number <= after }) {
			// The server sorts by the second.
			slices.SortFunc(found, func(a, b pull) int { return cmp.Compare(b.Number, a.Number) })
			return found, nil
		}
	}
}

// awaitOpen waits a moment for another process to open a branch's pull request. It is
// nil when none did.
func (f *Forge) awaitOpen(ctx context.Context, branch string) (*pull, error) {
	for range 10 {
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
		if p, err := f.open(ctx, branch); p != nil || err != nil {
			return p, err
		}
	}
	return nil, nil
}

// awaitNews waits a moment for the server to go through what was done to branches up to
// a commit: with the removal of an earlier branch of the same name still before it, it
// would close the new one's pull request (see undo).
func (f *Forge) awaitNews(ctx context.Context, commit string) error {
	for wait := 50 * time.Millisecond; wait < 5*time.Second; wait *= 2 {
		var news []struct {
			Content string `json:"content"`
		}
		if err := f.call(ctx, http.MethodGet, "/activities/feeds?limit=50", nil, &news, http.StatusOK); err != nil {
			var r *refusal
			if errors.As(err, &r) {
				return nil // one that does not show its news; undo helps there, too
			}
			return err
		}
		for _, n := range news {
			if strings.Contains(n.Content, commit) {
				return nil
			}
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// request opens the pull request of a branch that has none.
func (f *Forge) request(ctx context.Context, p forge.Proposal) (*pull, error) {
	var made pull
	ask := map[string]string{"base": f.base, "head": p.Branch, "title": p.Title, "body": p.Body}
	err := f.call(ctx, http.MethodPost, "/pulls", ask, &made, http.StatusCreated)
	if is(err, http.StatusNotFound) {
		if err := f.visible(ctx); err != nil {
			return nil, err
		}
	}
	if is(err, http.StatusConflict, http.StatusNotFound) {
		return nil, moved(err) // there is one now, or the branch is gone
	}
	if err != nil {
		return nil, err
	}
	// The server looks for another one before it makes one, and not at once: two
	// processes can get one each. The newest stays, as everywhere.
	others, err := f.list(ctx, "open", p.Branch, made.Number-10)
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if o.Number < made.Number {
			if err := f.shut(ctx, o.Number); err != nil {
				return nil, err
			}
		}
	}
	return &made, nil
}

// shut closes a pull request.
func (f *Forge) shut(ctx context.Context, number int) error {
	return f.call(ctx, http.MethodPatch, f.pullPath(number), map[string]string{"state": "closed"}, nil, http.StatusCreated)
}

// press merges a pull request whose head is p.Head. Errors can be tested for errLater.
func (f *Forge) press(ctx context.Context, p forge.Pull) error {
	style, err := f.style(ctx)
	if err != nil {
		return err
	}
	if style == fastForward { // the server's own answer to one that is behind is 500
		c, err := f.commit(ctx, p.Head)
		if err != nil {
			return err
		}
		base, err := f.mustHead(ctx, f.base)
		if err != nil {
			return err
		}
		if !c.isOn(base) {
			return fmt.Errorf("%w: it is behind, and the repo merges only by moving on", forge.ErrConflict)
		}
	}
	err = f.call(ctx, http.MethodPost, f.pullPath(p.Number)+"/merge", map[string]any{
		"Do": style, "head_commit_id": p.Head, "delete_branch_after_merge": true,
	}, nil, http.StatusOK)
	return judge(err)
}

// judge is what a refused merge means. All of Gitea's rules are 405, as are some other
// things that only the text tells apart.
func judge(err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch r.status {
	case http.StatusMethodNotAllowed:
		switch {
		case strings.Contains(r.message, "try again later"), strings.Contains(r.message, "already merged"):
			return fmt.Errorf("%w: %w", errLater, err)
		case strings.Contains(r.message, "behind the base branch"):
			return fmt.Errorf("%w: %w", forge.ErrConflict, err)
		}
		return fmt.Errorf("%w: %w", forge.ErrProtected, err)
	case http.StatusConflict:
		if strings.Contains(r.message, "PushRejected") {
			return fmt.Errorf("%w: %w", forge.ErrProtected, err)
		}
		return fmt.Errorf("%w: %w", forge.ErrConflict, err)
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", forge.ErrConflict, err) // closed a moment ago
	}
	return err
}

const fastForward = "fast-forward-only"

// style is how the repo merges.
func (f *Forge) style(ctx context.Context) (string, error) {
	var r repository
	if err := f.call(ctx, http.MethodGet, "", nil, &r, http.StatusOK); err != nil {
		return "", err
	}
	allowed := map[string]bool{
		"merge": r.Merge, "squash": r.Squash, "rebase": r.Rebase,
		"rebase-merge": r.RebaseMerge, fastForward: r.FastForward,
	}
	for _, s := range []string{r.Style, "merge", "squash", "rebase", "rebase-merge", fastForward} {
		if allowed[s] {
			return s, nil
		}
	}
	return "", fmt.Errorf("%w: they allow no style of merging", forge.ErrProtected)
}

// fits is errLater when nothing shows that a pull request has conflicts, and
// ErrConflict when it is one commit, and what it changes has changed in the base branch
// since. The server may find more than that.
func (f *Forge) fits(ctx context.Context, p *pull) error {
	c, err := f.commit(ctx, p.Head.SHA)
	if err != nil {
		return err
	}
	base, err := f.mustHead(ctx, f.base)
	if err != nil {
		return err
	}
	if c.isOn(base) || !c.isOn(p.MergeBase) {
		return errLater
	}
	for _, changed := range c.Files {
		before, err := f.blob(ctx, c.Parents[0].SHA, changed.Name)
		if err != nil {
			return err
		}
		now, err := f.blob(ctx, base, changed.Name)
		if err != nil {
			return err
		}
		if before != now {
			return fmt.Errorf("%w: %s has changed", forge.ErrConflict, changed.Name)
		}
	}
	return errLater
}

package github

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"

	gh "github.com/google/go-github/v62/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// methods are the ways to merge, best first: a merge commit keeps the commit that
// was reviewed in the base branch's history. Repos may forbid some.
var methods = [...]string{"merge", "squash", "rebase"}

var commit = regexp.MustCompile(`^[0-9a-f]{40}$`)

func (f *Forge) merge(ctx context.Context, p forge.Pull) error {
	if !commit.MatchString(p.Head) {
		return conflict("%q is no commit", p.Head) // GitHub would merge whatever is there
	}
	pull, err := f.get(ctx, p.Number)
	if err != nil {
		return err
	}
	switch now := pullOf(pull); {
	case !f.ours(pull, p.Branch):
		return conflict("it is not from %s to %s", p.Branch, f.base)
	case now.State == forge.Merged:
		return f.sweep(ctx, p)
	case now.State == forge.Closed:
		return conflict("it was closed")
	}
	return f.mergeOpen(ctx, p)
}

func (f *Forge) mergeOpen(ctx context.Context, p forge.Pull) error {
	for try := 0; ; {
		_, _, err := f.client.PullRequests.Merge(ctx, f.owner, f.repo, p.Number, "",
			&gh.PullRequestOptions{SHA: p.Head, MergeMethod: methods[f.method]})
		if err == nil {
			f.over(p)
			return f.deleteBranch(ctx, p.Branch)
		}
		switch status(err) {
		case http.StatusConflict:
			return conflict("%s", said(err))
		case http.StatusMethodNotAllowed:
		default:
			return trouble("merge", err)
		}
		if f.method+1 < len(methods) && refusesMethod(err) {
			f.method++
			continue
		}
		merged, reason := f.refused(ctx, p, err)
		if merged {
			return f.sweep(ctx, p)
		}
		if !errors.Is(reason, errUnsettled) {
			return reason
		}
		again, err := f.pause(ctx, try)
		if err != nil {
			return err
		}
		if !again {
			return reason
		}
		try++
	}
}

// refusesMethod reports whether a merge was refused for how it was to be done:
// "Merge commits are not allowed on this repository."
func refusesMethod(err error) bool {
	text := strings.ToLower(said(err))
	return strings.Contains(text, "merge commits") || strings.Contains(text, "linear history") ||
		strings.Contains(text, "merges are not allowed")
}

// errUnsettled: GitHub has not made up its mind; ask again.
var errUnsettled = errors.New("GitHub does not say yet whether it can be merged")

// refused is why GitHub answered a merge with 405, which it does for everything
// from a conflict to a missing review. The words are for people and change, so the
// pull request's own state decides. Merged is true when somebody else was faster.
func (f *Forge) refused(ctx context.Context, p forge.Pull, answer error) (merged bool, reason error) {
	text := said(answer)
	if strings.Contains(text, "Base branch was modified") {
		// Somebody else's merge came between. The next try mostly goes through.
		return false, refusal{text, errors.Join(forge.ErrConflict, errUnsettled)}
	}
	pull, err := f.get(ctx, p.Number)
	if err != nil {
		return false, err
	}
	switch now := pullOf(pull); {
	case now.State == forge.Merged:
		return true, nil
	case now.State == forge.Closed:
		return false, conflict("it was closed")
	case pull.Mergeable != nil && !pull.GetMergeable(), pull.GetMergeableState() == "dirty":
		return false, conflict("%s", text)
	case pull.GetMergeableState() == "behind": // the rules want the newest base branch below it
		return false, conflict("%s", text)
	case pull.Mergeable == nil && strings.Contains(text, "not mergeable"), strings.Contains(text, "unstable state"):
		return false, refusal{errUnsettled.Error() + ": " + text, errUnsettled}
	}
	return false, refusal{text, forge.ErrProtected}
}

func (f *Forge) close(ctx context.Context, p forge.Pull, why string) error {
	pull, err := f.get(ctx, p.Number)
	if err != nil {
		return err
	}
	switch now := pullOf(pull); {
	case !f.ours(pull, p.Branch):
		return conflict("it is not from %s to %s", p.Branch, f.base)
	case now.State == forge.Merged:
		return conflict("it was merged")
	case now.State == forge.Closed:
		return f.sweep(ctx, p)
	}
	if why != "" {
		if _, _, err := f.client.Issues.CreateComment(ctx, f.owner, f.repo, p.Number, &gh.IssueComment{Body: &why}); err != nil {
			return trouble("comment", err)
		}
	}
	if _, _, err := f.client.PullRequests.Edit(ctx, f.owner, f.repo, p.Number, &gh.PullRequest{State: gh.String("closed")}); err != nil {
		return trouble("close", err)
	}
	f.over(p)
	return f.deleteBranch(ctx, p.Branch)
}

// sweep removes what an earlier merge or close left. The branch may be another
// proposal's by now: then it stays.
func (f *Forge) sweep(ctx context.Context, p forge.Pull) error {
	ref, _, err := f.client.Git.GetRef(ctx, f.owner, f.repo, "refs/heads/"+p.Branch)
	if gone(err) {
		return nil
	}
	if err != nil {
		return trouble("look at the branch", err)
	}
	if ref.GetObject().GetSHA() != p.Head {
		return nil
	}
	return f.deleteBranch(ctx, p.Branch)
}

func (f *Forge) deleteBranch(ctx context.Context, branch string) error {
	_, err := f.client.Git.DeleteRef(ctx, f.owner, f.repo, "refs/heads/"+branch)
	switch {
	case err == nil, gone(err), says(err, "Reference does not exist"): // repos may delete merged branches themselves
		return nil
	case status(err) == http.StatusUnprocessableEntity:
		// A rule keeps the branch. What was asked for is done all the same.
		f.log.Warn("branch left", "kind", "github", "reason", said(err))
		return nil
	}
	return trouble("delete branch", err)
}

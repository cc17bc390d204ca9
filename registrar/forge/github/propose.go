package github

import (
	"context"
	"crypto/sha1" // Git's names of objects
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	gh "github.com/google/go-github/v62/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// rounds bounds how often a proposal begins again because somebody closed, merged
// or deleted under its hands.
const rounds = 3

func (f *Forge) propose(ctx context.Context, p forge.Proposal) (forge.Pull, error) {
	for range rounds {
		open, err := f.newest(ctx, p.Branch, "open")
		if err != nil {
			return forge.Pull{}, err
		}
		var pull forge.Pull
		var done bool
		if open == nil {
			pull, done, err = f.open(ctx, p)
		} else {
			pull, done, err = f.update(ctx, p, open)
		}
		if err != nil || done {
			return pull, err
		}
	}
	return forge.Pull{}, conflict("the branch and its pull request keep changing")
}

// open makes the branch and a pull request of it. It is not done when somebody
// took the branch away meanwhile.
func (f *Forge) open(ctx context.Context, p forge.Proposal) (pull forge.Pull, done bool, err error) {
	base, err := f.baseHead(ctx)
	if err != nil {
		return forge.Pull{}, false, err
	}
	if err := f.current(p, base); err != nil {
		return forge.Pull{}, false, err
	}
	tree, err := f.tree(ctx, base.tree, p.Files)
	if err != nil {
		return forge.Pull{}, false, err
	}
	head, err := f.commit(ctx, p, base.commit, tree)
	if err != nil {
		return forge.Pull{}, false, err
	}
	ref := &gh.Reference{Ref: gh.String("refs/heads/" + p.Branch), Object: &gh.GitObject{SHA: &head}}
	_, _, err = f.client.Git.CreateRef(ctx, f.owner, f.repo, ref)
	if says(err, "Reference already exists") {
		// Left by an end halfway, or by a merge that people made; or another
		// process is proposing the same at this moment.
		tip, there, err := f.tip(ctx, p.Branch)
		if err != nil || !there {
			return forge.Pull{}, false, err
		}
		if tip.is(p, base.commit, tree) {
			head = tip.head
		} else if moved, err := f.move(ctx, p.Branch, head); err != nil || !moved {
			return forge.Pull{}, false, err
		}
	} else if err != nil {
		return forge.Pull{}, false, trouble("create branch", err)
	}
	return f.openFrom(ctx, p, head)
}

// openFrom opens a pull request of the branch as it is.
func (f *Forge) openFrom(ctx context.Context, p forge.Proposal, head string) (forge.Pull, bool, error) {
	for try := 0; ; try++ {
		made, _, err := f.client.PullRequests.Create(ctx, f.owner, f.repo, &gh.NewPullRequest{
			Title: &p.Title, Body: &p.Body, Head: &p.Branch, Base: &f.base,
		})
		if err == nil {
			f.remember(p.Branch, made.GetNumber())
			pull := pullOf(made)
			pull.Head = head
			return pull, true, nil
		}
		unsettled := invalid(err, "head") // a branch is not always seen at once
		if says(err, "A pull request already exists for") {
			unsettled = true // nor is a pull request
			open, err := f.newest(ctx, p.Branch, "open")
			if err != nil {
				return forge.Pull{}, false, err
			}
			if open != nil {
				return f.reword(ctx, p, open, head)
			}
		}
		if unsettled {
			again, waited := f.pause(ctx, try)
			if waited != nil {
				return forge.Pull{}, false, waited
			}
			if again {
				continue
			}
		}
		if says(err, "No commits between") {
			return forge.Pull{}, false, conflict("GitHub sees nothing to merge in %s", p.Branch)
		}
		return forge.Pull{}, false, trouble("open pull request", err)
	}
}

// update brings an open pull request up to date. It is not done when the pull
// request is not open any more.
func (f *Forge) update(ctx context.Context, p forge.Proposal, open *gh.PullRequest) (forge.Pull, bool, error) {
	tip, there, err := f.tip(ctx, p.Branch)
	if err != nil {
		return forge.Pull{}, false, err
	}
	if !there { // deleting the branch has closed it, and the list lags behind
		return f.open(ctx, p)
	}
	if err := f.current(p, tip.base); err != nil {
		return forge.Pull{}, false, err
	}
	head := tip.head
	if !tip.says(p) {
		tree, err := f.tree(ctx, tip.base.tree, p.Files)
		if err != nil {
			return forge.Pull{}, false, err
		}
		if !tip.is(p, tip.base.commit, tree) {
			if head, err = f.commit(ctx, p, tip.base.commit, tree); err != nil {
				return forge.Pull{}, false, err
			}
			if moved, err := f.move(ctx, p.Branch, head); err != nil || !moved {
				return forge.Pull{}, false, err
			}
		}
	}
	return f.reword(ctx, p, open, head)
}

// reword sees that an open pull request has the proposal's text.
func (f *Forge) reword(ctx context.Context, p forge.Proposal, open *gh.PullRequest, head string) (forge.Pull, bool, error) {
	if plain(open.GetTitle()) != plain(p.Title) || plain(open.GetBody()) != plain(p.Body) {
		var err error
		open, _, err = f.client.PullRequests.Edit(ctx, f.owner, f.repo, open.GetNumber(), &gh.PullRequest{Title: &p.Title, Body: &p.Body})
		if err != nil {
			return forge.Pull{}, false, trouble("change the pull request's text", err)
		}
	}
	pull := pullOf(open)
	pull.Head = head
	return pull, pull.State == forge.Open, nil
}

// snapshot is a commit and its tree.
type snapshot struct{ commit, tree string }

// current is a conflict when the proposal was made for another commit than the base
// branch's head.
func (f *Forge) current(p forge.Proposal, base snapshot) error {
	if p.Base != "" && p.Base != base.commit {
		return conflict("%s is at %.12s and not at %.12s", f.base, base.commit, p.Base)
	}
	return nil
}

func (f *Forge) baseHead(ctx context.Context) (snapshot, error) {
	// The client's own call for this bypasses its rate limits and its errors.
	req, err := f.client.NewRequest("GET", fmt.Sprintf("repos/%s/%s/branches/%s", f.owner, f.repo, url.PathEscape(f.base)), nil)
	if err != nil {
		return snapshot{}, err
	}
	var branch gh.Branch
	if _, err := f.client.Do(ctx, req, &branch); says(err, "Branch not found") {
		return snapshot{}, fmt.Errorf("there is no branch %s: push a first commit to it", f.base)
	} else if err != nil {
		return snapshot{}, trouble("look at the base branch", err)
	}
	return snapshot{branch.GetCommit().GetSHA(), branch.GetCommit().GetCommit().GetTree().GetSHA()}, nil
}

// tip is where a proposal's branch stands, seen from the base branch.
type tip struct {
	base snapshot
	head string
	tree string
	// single: the branch is one commit on the base branch's head.
	single  bool
	message string
	// files are what that commit changes: Git's name of the content, or "" for a
	// file that it removes. It is nil when GitHub does not list all of them.
	files map[string]string
}

// filesListed is how many files GitHub lists of a comparison, at most.
const filesListed = 300

// tip asks how the branch compares. There is false when there is no such branch.
func (f *Forge) tip(ctx context.Context, branch string) (t tip, there bool, err error) {
	c, _, err := f.client.Repositories.CompareCommits(ctx, f.owner, f.repo, f.base, branch, nil)
	if gone(err) {
		return tip{}, false, nil
	}
	if err != nil {
		return tip{}, false, trouble("compare the branch", err)
	}
	t.base = snapshot{c.GetBaseCommit().GetSHA(), c.GetBaseCommit().GetCommit().GetTree().GetSHA()}
	if c.GetBehindBy() != 0 || c.GetAheadBy() != 1 || len(c.Commits) != 1 || len(c.Commits[0].Parents) != 1 {
		return t, true, nil
	}
	only := c.Commits[0]
	t.single, t.head = true, only.GetSHA()
	t.tree, t.message = only.GetCommit().GetTree().GetSHA(), only.GetCommit().GetMessage()
	if len(c.Files) < filesListed {
		t.files = make(map[string]string, len(c.Files))
	}
	for _, file := range c.Files {
		switch {
		case t.files == nil:
		case file.GetStatus() == "removed":
			t.files[file.GetFilename()] = ""
		default:
			if file.GetStatus() == "renamed" {
				t.files[file.GetPreviousFilename()] = ""
			}
			t.files[file.GetFilename()] = file.GetSHA()
		}
	}
	return t, true, nil
}

// says reports whether the branch is the proposal as it would be made now. It may
// miss that it is, when the proposal names files that it does not change.
func (t tip) says(p forge.Proposal) bool {
	if !t.single || t.files == nil || len(t.files) != len(p.Files) || plain(t.message) != plain(message(p)) {
		return false
	}
	for _, file := range p.Files {
		want := ""
		if file.Content != nil {
			want = blob(file.Content)
		}
		if got, ok := t.files[file.Path]; !ok || got != want {
			return false
		}
	}
	return true
}

// is reports whether the branch is the proposal on this commit, with this tree.
func (t tip) is(p forge.Proposal, base, tree string) bool {
	return t.single && t.base.commit == base && t.tree == tree && plain(t.message) == plain(message(p))
}

// tree makes the tree that differs from base by the files.
func (f *Forge) tree(ctx context.Context, base string, files []forge.File) (string, error) {
	var entries []*gh.TreeEntry
	var removes bool
	for _, file := range files {
		entry := &gh.TreeEntry{Path: &file.Path, Mode: gh.String("100644"), Type: gh.String("blob")}
		switch {
		case file.Content == nil: // an entry without a name is how to remove one
			removes = true
		case utf8.Valid(file.Content):
			entry.Content = gh.String(string(file.Content))
		default:
			made, _, err := f.client.Git.CreateBlob(ctx, f.owner, f.repo, &gh.Blob{
				Content: gh.String(base64.StdEncoding.EncodeToString(file.Content)), Encoding: gh.String("base64"),
			})
			if err != nil {
				return "", trouble("create "+file.Path, err)
			}
			entry.SHA = made.SHA
		}
		entries = append(entries, entry)
	}
	if len(entries) == 0 {
		return base, nil
	}
	made, _, err := f.client.Git.CreateTree(ctx, f.owner, f.repo, base, entries)
	if removes && status(err) == 422 {
		// GitHub refuses to remove what is not there.
		if entries, err = f.withoutAbsent(ctx, base, entries); err != nil {
			return "", err
		}
		if len(entries) == 0 {
			return base, nil
		}
		made, _, err = f.client.Git.CreateTree(ctx, f.owner, f.repo, base, entries)
	}
	if err != nil {
		return "", trouble("create tree", err)
	}
	return made.GetSHA(), nil
}

// withoutAbsent leaves out what is to be removed from base and not in it.
func (f *Forge) withoutAbsent(ctx context.Context, base string, entries []*gh.TreeEntry) ([]*gh.TreeEntry, error) {
	tree, _, err := f.client.Git.GetTree(ctx, f.owner, f.repo, base, true)
	if err != nil {
		return nil, trouble("list files", err)
	}
	if tree.GetTruncated() {
		return nil, fmt.Errorf("list files: the repo has more than GitHub lists")
	}
	there := make(map[string]bool, len(tree.Entries))
	for _, entry := range tree.Entries {
		there[entry.GetPath()] = entry.GetType() == "blob"
	}
	var left []*gh.TreeEntry
	for _, entry := range entries {
		if entry.Content != nil || entry.SHA != nil || there[entry.GetPath()] {
			left = append(left, entry)
		}
	}
	return left, nil
}

func (f *Forge) commit(ctx context.Context, p forge.Proposal, parent, tree string) (string, error) {
	made, _, err := f.client.Git.CreateCommit(ctx, f.owner, f.repo, &gh.Commit{
		Message: gh.String(message(p)), Tree: &gh.Tree{SHA: &tree}, Parents: []*gh.Commit{{SHA: &parent}},
	}, nil)
	if err != nil {
		return "", trouble("create commit", err)
	}
	return made.GetSHA(), nil
}

// move makes the branch this commit, whatever it was. Moved is false when there is
// no such branch.
func (f *Forge) move(ctx context.Context, branch, head string) (moved bool, err error) {
	ref := &gh.Reference{Ref: gh.String("refs/heads/" + branch), Object: &gh.GitObject{SHA: &head}}
	_, _, err = f.client.Git.UpdateRef(ctx, f.owner, f.repo, ref, true)
	if says(err, "Reference does not exist") {
		return false, nil
	}
	if err != nil {
		return false, trouble("move branch", err)
	}
	return true, nil
}

func message(p forge.Proposal) string { return p.Title + "\n\n" + p.Body }

// plain is text without what forges and editors change in it.
func plain(text string) string {
	return strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
}

// blob is Git's name of a file's content.
func blob(content []byte) string {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(content))
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil))
}

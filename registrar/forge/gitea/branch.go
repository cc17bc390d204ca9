package gitea

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// errMoved: others may have changed the same things in the same moment, so it is worth
// looking again. Its text is for when it was not.
var errMoved = errors.New("the forge did not take it, however often it was asked")

func moved(why error) error { return fmt.Errorf("%w: %w", errMoved, why) }

// commit is what is read of a commit.
type commit struct {
	SHA     string `json:"sha"`
	Parents []struct {
		SHA string `json:"sha"`
	} `json:"parents"`
	Commit struct {
		Message string `json:"message"`
	} `json:"commit"`
	// Files are those that differ from the parent's.
	Files []struct {
		Name string `json:"filename"`
	} `json:"files"`
}

// isOn reports whether the commit's only parent is the one named.
func (c commit) isOn(parent string) bool {
	return len(c.Parents) == 1 && c.Parents[0].SHA == parent
}

// says reports whether the commit's text is the proposal's. A server that signs
// commits adds who proposed it.
func (c commit) says(p forge.Proposal) bool {
	got := strings.TrimSpace(strings.ReplaceAll(c.Commit.Message, "\r\n", "\n"))
	rest, ok := strings.CutPrefix(got, text(p))
	return ok && (rest == "" || strings.HasPrefix(rest, "\n\nCo-authored-by: "))
}

// text is a proposal's commit message.
func text(p forge.Proposal) string {
	return strings.TrimSpace(strings.ReplaceAll(p.Title+"\n\n"+p.Body, "\r\n", "\n"))
}

func (f *Forge) branchPath(branch string) string { return "/branches/" + escape(branch) }

// head is a branch's commit, or "" when there is no such branch that can be seen.
func (f *Forge) head(ctx context.Context, branch string) (string, error) {
	var b struct {
		Commit struct {
			ID string `json:"id"`
		} `json:"commit"`
	}
	err := f.call(ctx, http.MethodGet, f.branchPath(branch), nil, &b, http.StatusOK)
	if is(err, http.StatusNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if len(b.Commit.ID) != 2*sha1.Size {
		return "", fmt.Errorf("branch %s is at %q, which is no SHA-1", branch, b.Commit.ID)
	}
	return b.Commit.ID, nil
}

func (f *Forge) mustHead(ctx context.Context, branch string) (string, error) {
	head, err := f.head(ctx, branch)
	if err != nil || head != "" {
		return head, err
	}
	if err := f.visible(ctx); err != nil {
		return "", err
	}
	return "", fmt.Errorf("there is no branch %s", branch)
}

func (f *Forge) commit(ctx context.Context, sha string) (commit, error) {
	var c commit
	err := f.call(ctx, http.MethodGet, "/git/commits/"+sha+"?stat=false&verification=false&files=true", nil, &c, http.StatusOK)
	return c, err
}

// blob is the name of a file's content at a commit, or "" when it is not there.
func (f *Forge) blob(ctx context.Context, sha, path string) (string, error) {
	var file struct {
		SHA string `json:"sha"`
	}
	err := f.call(ctx, http.MethodGet, "/contents/"+escape(path)+"?ref="+sha, nil, &file, http.StatusOK)
	if is(err, http.StatusNotFound) {
		return "", nil
	}
	return file.SHA, err
}

// leaves reports whether a commit leaves the proposal's files as the proposal does, and
// changes no others.
func (f *Forge) leaves(ctx context.Context, c commit, p forge.Proposal) (bool, error) {
	for _, changed := range c.Files {
		if !slices.ContainsFunc(p.Files, func(file forge.File) bool { return file.Path == changed.Name }) {
			return false, nil
		}
	}
	for _, file := range p.Files {
		got, err := f.blob(ctx, c.SHA, file.Path)
		if err != nil || got != blobName(file.Content) {
			return false, err
		}
	}
	return true, nil
}

// change is one file's part of a commit to be made.
type change struct {
	Operation string `json:"operation"`
	Path      string `json:"path"`
	Content   string `json:"content,omitempty"`
	// SHA is what is replaced or removed: the server compares.
	SHA string `json:"sha,omitempty"`
}

// write makes the proposal's branch one commit on the base branch, and returns it. The
// branch is at old, or not there when that is "". Errors can be tested for errMoved.
func (f *Forge) write(ctx context.Context, p forge.Proposal, base, old string) (string, error) {
	changes := []change{}
	for _, file := range p.Files {
		was, err := f.blob(ctx, base, file.Path)
		if err != nil {
			return "", err
		}
		c := change{Path: file.Path, SHA: was, Content: base64.StdEncoding.EncodeToString(file.Content)}
		switch {
		case was == blobName(file.Content):
			continue
		case was == "":
			c.Operation = "create"
		case file.Content == nil:
			c.Operation = "delete"
		default:
			c.Operation = "update"
		}
		changes = append(changes, c)
	}
	if len(changes) == 0 {
		return "", fmt.Errorf("branch %s has it already", f.base)
	}

	target := p.Branch
	if old != "" {
		target += ".next"
		left, err := f.head(ctx, target)
		if err != nil {
			return "", err
		}
		if left != "" { // an earlier one ended halfway
			if err := f.push(ctx, move{target, left, ""}); err != nil {
				return "", err
			}
		}
	}
	var made struct {
		Commit struct {
			SHA     string `json:"sha"`
			Parents []struct {
				SHA string `json:"sha"`
			} `json:"parents"`
		} `json:"commit"`
	}
	err := f.call(ctx, http.MethodPost, "/contents", map[string]any{
		"branch": f.base, "new_branch": target, "message": text(p), "files": changes,
	}, &made, http.StatusCreated)
	switch {
	case is(err, http.StatusInternalServerError):
		// So it is when rules protect the branch, and when two make it at once. A push
		// of what is there tells.
		if why := f.push(ctx, move{target, "", base}); errors.Is(why, forge.ErrProtected) {
			return "", why
		}
		return "", moved(err)
	case is(err, http.StatusUnprocessableEntity, http.StatusConflict, http.StatusNotFound):
		return "", moved(err) // the branch is there by now, or the base branch has moved
	case err != nil:
		return "", err
	case len(made.Commit.SHA) != 2*sha1.Size:
		return "", fmt.Errorf("the forge made commit %q", made.Commit.SHA)
	}
	if old != "" {
		if err := f.push(ctx, move{p.Branch, old, made.Commit.SHA}, move{target, made.Commit.SHA, ""}); err != nil {
			return "", err
		}
	}
	if len(made.Commit.Parents) != 1 || made.Commit.Parents[0].SHA != base {
		return "", moved(errors.New("the base branch moved"))
	}
	return made.Commit.SHA, nil
}

// blobName is what Git calls a file's content; "" for a file that is not there.
func blobName(content []byte) string {
	if content == nil {
		return ""
	}
	sum := sha1.New()
	fmt.Fprintf(sum, "blob %d\x00", len(content))
	sum.Write(content)
	return hex.EncodeToString(sum.Sum(nil))
}

// escape makes a path of a URL, and leaves the slashes.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

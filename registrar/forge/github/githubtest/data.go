package githubtest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

var endpoints = []endpoint{
	{"POST /app/installations/{installation}/access_tokens", "rest/apps/apps#create-an-installation-access-token-for-an-app", "", (*Server).createToken},
	{"GET /repos/{owner}/{repo}/branches/{branch}", "rest/branches/branches#get-a-branch", "contents=read", (*Server).getBranch},
	{"GET /repos/{owner}/{repo}/compare/{range}", "rest/commits/commits#compare-two-commits", "contents=read", (*Server).compare},
	{"POST /repos/{owner}/{repo}/git/blobs", "rest/git/blobs#create-a-blob", "contents=write", (*Server).createBlob},
	{"GET /repos/{owner}/{repo}/git/trees/{tree}", "rest/git/trees#get-a-tree", "contents=read", (*Server).getTree},
	{"POST /repos/{owner}/{repo}/git/trees", "rest/git/trees#create-a-tree", "contents=write", (*Server).createTree},
	{"POST /repos/{owner}/{repo}/git/commits", "rest/git/commits#create-a-commit", "contents=write", (*Server).createCommit},
	{"GET /repos/{owner}/{repo}/git/ref/{ref...}", "rest/git/refs#get-a-reference", "contents=read", (*Server).getRef},
	{"POST /repos/{owner}/{repo}/git/refs", "rest/git/refs#create-a-reference", "contents=write", (*Server).createRef},
	{"PATCH /repos/{owner}/{repo}/git/refs/{ref...}", "rest/git/refs#update-a-reference", "contents=write", (*Server).updateRef},
	{"DELETE /repos/{owner}/{repo}/git/refs/{ref...}", "rest/git/refs#delete-a-reference", "contents=write", (*Server).deleteRef},
	{"GET /repos/{owner}/{repo}/pulls", "rest/pulls/pulls#list-pull-requests", "pull_requests=read", (*Server).listPulls},
	{"POST /repos/{owner}/{repo}/pulls", "rest/pulls/pulls#create-a-pull-request", "pull_requests=write", (*Server).createPull},
	{"GET /repos/{owner}/{repo}/pulls/{number}", "rest/pulls/pulls#get-a-pull-request", "pull_requests=read", (*Server).getPull},
	{"PATCH /repos/{owner}/{repo}/pulls/{number}", "rest/pulls/pulls#update-a-pull-request", "pull_requests=write", (*Server).updatePull},
	{"PUT /repos/{owner}/{repo}/pulls/{number}/merge", "rest/pulls/pulls#merge-a-pull-request", "contents=write", (*Server).mergePull},
	{"POST /repos/{owner}/{repo}/issues/{number}/comments", "rest/issues/comments#create-an-issue-comment", "pull_requests=write", (*Server).createComment},
}

var hash = regexp.MustCompile(`^[0-9a-f]{40}$`)

func (s *Server) getBranch(r *request) reply {
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	branch := r.PathValue("branch")
	head, ok := branches[branch]
	if !ok {
		return r.failure(http.StatusNotFound, "Branch not found")
	}
	c, err := s.commitJSON(head)
	if err != nil {
		return r.broken(err)
	}
	return reply{status: http.StatusOK, body: map[string]any{
		"name": branch, "commit": c, "protected": s.protected != "" || s.strict,
		"_links": map[string]string{"self": s.api("/branches/%s", branch)},
	}}
}

func (s *Server) commitJSON(hash string) (map[string]any, error) {
	c, err := s.git.commit(hash)
	if err != nil {
		return nil, err
	}
	parents := []map[string]string{}
	for _, parent := range c.parents {
		parents = append(parents, map[string]string{"sha": parent, "url": s.api("/commits/%s", parent)})
	}
	return map[string]any{
		"sha": hash, "url": s.api("/commits/%s", hash), "parents": parents,
		"commit": map[string]any{
			"message": c.message, "url": s.api("/git/commits/%s", hash),
			"tree": map[string]string{"sha": c.tree, "url": s.api("/git/trees/%s", c.tree)},
		},
	}, nil
}

// GitHub lists no more of a comparison.
const (
	commitsListed = 250
	filesListed   = 300
)

func (s *Server) compare(r *request) reply {
	base, head, ok := strings.Cut(r.PathValue("range"), "...")
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	if !ok || branches[base] == "" || branches[head] == "" {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	base, head = branches[base], branches[head]
	fork, err := s.git.line("merge-base", base, head)
	if err != nil {
		return r.failure(http.StatusNotFound, "No common ancestor between "+base+" and "+head+".")
	}
	ahead, err1 := s.git.list(base + ".." + head)
	behind, err2 := s.git.list(head + ".." + base)
	changes, err3 := s.git.diff(fork, head)
	baseJSON, err4 := s.commitJSON(base)
	forkJSON, err5 := s.commitJSON(fork)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return r.broken(err)
	}
	commits := []map[string]any{}
	for _, hash := range ahead[:min(len(ahead), commitsListed)] {
		c, err := s.commitJSON(hash)
		if err != nil {
			return r.broken(err)
		}
		commits = append(commits, c)
	}
	files := []map[string]any{}
	for _, c := range changes[:min(len(changes), filesListed)] {
		file := map[string]any{"sha": c.hash, "filename": c.path, "status": c.status}
		if c.from != "" {
			file["previous_filename"] = c.from
		}
		files = append(files, file)
	}
	state := "identical"
	switch {
	case len(ahead) > 0 && len(behind) > 0:
		state = "diverged"
	case len(ahead) > 0:
		state = "ahead"
	case len(behind) > 0:
		state = "behind"
	}
	return reply{status: http.StatusOK, body: map[string]any{
		"status": state, "ahead_by": len(ahead), "behind_by": len(behind), "total_commits": len(ahead),
		"base_commit": baseJSON, "merge_base_commit": forkJSON, "commits": commits, "files": files,
	}}
}

func (s *Server) createBlob(r *request) reply {
	var asked struct{ Content, Encoding string }
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	content := []byte(asked.Content)
	if asked.Encoding == "base64" {
		var err error
		if content, err = base64.StdEncoding.DecodeString(asked.Content); err != nil {
			return r.failure(http.StatusUnprocessableEntity, "content is not valid Base64")
		}
	}
	made, err := s.git.blob(content)
	if err != nil {
		return r.broken(err)
	}
	return reply{status: http.StatusCreated, body: map[string]string{"sha": made, "url": s.api("/git/blobs/%s", made)}}
}

func (s *Server) getTree(r *request) reply {
	tree := r.PathValue("tree")
	if !hash.MatchString(tree) || !s.git.is(tree, "tree") {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	args := []string{"ls-tree", "-z", tree}
	if r.URL.Query().Get("recursive") != "" {
		args = []string{"ls-tree", "-z", "-r", "-t", tree}
	}
	out, err := s.git.run(nil, nil, args...)
	if err != nil {
		return r.broken(err)
	}
	entries := []map[string]string{}
	for line := range strings.SplitSeq(out, "\x00") {
		if meta, path, ok := strings.Cut(line, "\t"); ok {
			f := strings.Fields(meta)
			entries = append(entries, map[string]string{"path": path, "mode": f[0], "type": f[1], "sha": f[2]})
		}
	}
	return reply{status: http.StatusOK, body: map[string]any{"sha": tree, "url": s.api("/git/trees/%s", tree), "tree": entries, "truncated": false}}
}

func (s *Server) createTree(r *request) reply {
	var asked struct {
		BaseTree string           `json:"base_tree"`
		Tree     []map[string]any `json:"tree"`
	}
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	if len(asked.Tree) == 0 {
		return r.failure(http.StatusUnprocessableEntity, "Invalid tree info")
	}
	if !s.git.is(asked.BaseTree, "tree") {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	var edits []edit
	for _, entry := range asked.Tree {
		path, _ := entry["path"].(string)
		mode, _ := entry["mode"].(string)
		name, named := entry["sha"]
		content, filled := entry["content"].(string)
		e := edit{mode: mode, path: path}
		switch {
		case path == "" || strings.HasPrefix(path, "/") || slices.ContainsFunc(strings.Split(path, "/"), malformed):
			return r.failure(http.StatusUnprocessableEntity, "tree.path contains a malformed path component")
		case mode != "100644" && mode != "100755" && mode != "120000":
			return r.failure(http.StatusUnprocessableEntity, "Must supply a valid tree.mode")
		case named == filled:
			return r.failure(http.StatusUnprocessableEntity, "Must supply either tree.sha or tree.content. Request will be rejected if both are present.")
		case filled:
			made, err := s.git.blob([]byte(content))
			if err != nil {
				return r.broken(err)
			}
			e.hash = made
		case name != nil:
			e.hash, _ = name.(string)
			if !hash.MatchString(e.hash) || !s.git.is(e.hash, "blob") {
				return r.failure(http.StatusUnprocessableEntity, "tree.sha "+e.hash+" is not a valid blob")
			}
		}
		edits = append(edits, e)
	}
	made, err := s.git.edit(asked.BaseTree, edits)
	if errors.Is(err, errAbsent) {
		return r.failure(http.StatusUnprocessableEntity, "GitRPC::BadObjectState")
	}
	if err != nil {
		return r.broken(err)
	}
	return reply{status: http.StatusCreated, body: map[string]any{"sha": made, "url": s.api("/git/trees/%s", made), "truncated": false}}
}

func malformed(part string) bool {
	return part == "" || part == "." || part == ".." || strings.EqualFold(part, ".git")
}

func (s *Server) createCommit(r *request) reply {
	var asked struct {
		Message, Tree string
		Parents       []string
	}
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	if strings.TrimSpace(asked.Message) == "" {
		return r.failure(http.StatusUnprocessableEntity, "Invalid request.\n\n\"message\" wasn't supplied.")
	}
	if !hash.MatchString(asked.Tree) || !s.git.is(asked.Tree, "tree") {
		return r.failure(http.StatusUnprocessableEntity, "Tree SHA does not exist")
	}
	for _, parent := range asked.Parents {
		if !hash.MatchString(parent) || !s.git.is(parent, "commit") {
			return r.failure(http.StatusUnprocessableEntity, "Parent SHA does not exist or is not a commit object")
		}
	}
	made, err := s.git.commitTree(asked.Tree, asked.Message, asked.Parents...)
	if err != nil {
		return r.broken(err)
	}
	return reply{status: http.StatusCreated, body: map[string]any{
		"sha": made, "url": s.api("/git/commits/%s", made), "message": asked.Message,
		"tree":         map[string]string{"sha": asked.Tree},
		"verification": map[string]any{"verified": false, "reason": "unsigned"},
	}}
}

func (s *Server) refJSON(branch, commit string) map[string]any {
	return map[string]any{
		"ref": "refs/heads/" + branch, "url": s.api("/git/refs/heads/%s", branch),
		"object": map[string]string{"sha": commit, "type": "commit", "url": s.api("/git/commits/%s", commit)},
	}
}

func (s *Server) getRef(r *request) reply {
	branch, _ := strings.CutPrefix(r.PathValue("ref"), "heads/")
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	if head := branches[branch]; head != "" {
		return reply{status: http.StatusOK, body: s.refJSON(branch, head)}
	}
	return r.failure(http.StatusNotFound, "Not Found")
}

func (s *Server) createRef(r *request) reply {
	var asked struct{ Ref, Sha string }
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	branch, ok := strings.CutPrefix(asked.Ref, "refs/heads/")
	if _, err := s.git.line("check-ref-format", asked.Ref); err != nil || !ok {
		return r.failure(http.StatusUnprocessableEntity, asked.Ref+" is not a valid ref name.")
	}
	if !hash.MatchString(asked.Sha) || !s.git.is(asked.Sha, "commit") {
		return r.failure(http.StatusUnprocessableEntity, "Object does not exist")
	}
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	if branches[branch] != "" {
		return r.failure(http.StatusUnprocessableEntity, "Reference already exists")
	}
	if err := s.git.set(branch, asked.Sha, ""); err != nil {
		return r.failure(http.StatusUnprocessableEntity, "Reference update failed")
	}
	return reply{status: http.StatusCreated, body: s.refJSON(branch, asked.Sha)}
}

func (s *Server) updateRef(r *request) reply {
	var asked struct {
		Sha   string
		Force bool
	}
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	branch, _ := strings.CutPrefix(r.PathValue("ref"), "heads/")
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	old := branches[branch]
	switch {
	case old == "":
		return r.failure(http.StatusUnprocessableEntity, "Reference does not exist")
	case !hash.MatchString(asked.Sha) || !s.git.is(asked.Sha, "commit"):
		return r.failure(http.StatusUnprocessableEntity, "Object does not exist")
	case !asked.Force && !s.git.contains(asked.Sha, old):
		return r.failure(http.StatusUnprocessableEntity, "Update is not a fast forward")
	}
	if err := s.git.set(branch, asked.Sha, old); err != nil {
		return r.failure(http.StatusUnprocessableEntity, "Reference update failed")
	}
	return reply{status: http.StatusOK, body: s.refJSON(branch, asked.Sha)}
}

func (s *Server) deleteRef(r *request) reply {
	branch, _ := strings.CutPrefix(r.PathValue("ref"), "heads/")
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	if branches[branch] == "" {
		return r.failure(http.StatusUnprocessableEntity, "Reference does not exist")
	}
	if err := s.git.delete(branch); err != nil {
		return r.broken(err)
	}
	if err := s.settle(); err != nil {
		return r.broken(fmt.Errorf("after deleting %s: %w", branch, err))
	}
	return reply{status: http.StatusNoContent}
}

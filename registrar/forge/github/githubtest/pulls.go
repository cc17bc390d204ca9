package githubtest

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Pull is a pull request as people see it.
type Pull struct {
	Number              int
	Branch, Title, Body string
	// State is "open", "merged" or "closed".
	State string
	// Head is the branch's commit, the last one it had.
	Head string
	// Comments are those of its conversation, oldest first.
	Comments []string
}

// pull is a pull request.
type pull struct {
	Pull
	base, baseHead string
	merge          string // the commit that merged it
	created        time.Time
	closed         *time.Time
	hidden         int    // from this many lists
	asked          string // the heads for which mergeable was asked before
}

// Pulls lists all pull requests, oldest first.
func (s *Server) Pulls(t testing.TB) []Pull {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.settle(); err != nil {
		t.Fatal(err)
	}
	all := make([]Pull, len(s.pulls))
	for i, p := range s.pulls {
		all[i] = p.Pull
		all[i].Comments = slices.Clone(p.Comments)
	}
	return all
}

// Merge merges a pull request as an administrator does on its page, whatever the
// rules say. The branch stays, but when DeleteMerged says otherwise.
func (s *Server) Merge(t testing.TB, number int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.settle(); err != nil {
		t.Fatal(err)
	}
	p := s.number(strconv.Itoa(number))
	if p == nil || p.State != "open" {
		t.Fatalf("there is no open pull request %d", number)
	}
	if ok, err := s.perform(p, "merge"); err != nil || !ok {
		t.Fatalf("pull request %d cannot be merged: %v", number, err)
	}
}

// Close closes a pull request as people do on its page. The branch stays.
func (s *Server) Close(t testing.TB, number int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.number(strconv.Itoa(number))
	if p == nil || p.State != "open" {
		t.Fatalf("there is no open pull request %d", number)
	}
	p.end("closed")
}

// Retarget makes an open pull request one to another branch, as people do on its
// page.
func (s *Server) Retarget(t testing.TB, number int, base string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.number(strconv.Itoa(number))
	if p == nil || p.State != "open" {
		t.Fatalf("there is no open pull request %d", number)
	}
	p.base = base
}

func (p *pull) end(state string) {
	now := time.Now()
	p.State, p.closed = state, &now
}

func (s *Server) number(text string) *pull {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > len(s.pulls) {
		return nil
	}
	return s.pulls[n-1]
}

// settle lets pull requests follow what became of their branches: a push moves
// them, a deleted branch closes them, and one whose commits came into the base
// branch, by whatever way, is merged. The caller holds the lock.
func (s *Server) settle() error {
	branches, err := s.git.branches()
	if err != nil {
		return err
	}
	for _, p := range s.pulls {
		if p.State != "open" {
			continue
		}
		head, base := branches[p.Branch], branches[p.base]
		switch {
		case head == "" || base == "":
			p.end("closed")
			continue
		case head == p.Head && base == p.baseHead:
			continue
		}
		p.Head, p.baseHead = head, base
		if s.git.contains(base, head) {
			p.merge = base
			p.end("merged")
		}
	}
	return nil
}

//go:embed testdata/pull.json
var recorded []byte

// json is a pull request in GitHub's shape; lists have less of it.
func (s *Server) json(p *pull, whole bool) (map[string]any, error) {
	var shape map[string]any
	if err := json.Unmarshal(recorded, &shape); err != nil {
		return nil, err
	}
	site := s.http.URL + "/" + s.Owner + "/" + s.Repo
	repo := map[string]any{"id": 1, "name": s.Repo, "full_name": s.Owner + "/" + s.Repo, "private": true, "default_branch": s.Branch}
	end := func(branch, commit string) map[string]any {
		return map[string]any{"label": s.Owner + ":" + branch, "ref": branch, "sha": commit, "repo": repo}
	}
	set := map[string]any{
		"url": s.api("/pulls/%d", p.Number), "id": 1000 + p.Number, "html_url": fmt.Sprintf("%s/pull/%d", site, p.Number),
		"issue_url": s.api("/issues/%d", p.Number), "number": p.Number, "state": "open", "title": p.Title, "body": p.Body,
		"created_at": stamp(&p.created), "updated_at": stamp(&p.created), "closed_at": stamp(p.closed), "merged_at": nil,
		"merge_commit_sha": nil, "head": end(p.Branch, p.Head), "base": end(p.base, p.baseHead),
	}
	if p.Body == "" {
		set["body"] = nil
	}
	if p.State != "open" {
		set["state"] = "closed"
	}
	if p.State == "merged" {
		set["merged_at"], set["merge_commit_sha"] = stamp(p.closed), p.merge
	}
	if whole {
		mergeable, state, err := s.mergeable(p)
		if err != nil {
			return nil, err
		}
		set["merged"], set["mergeable"], set["rebaseable"], set["mergeable_state"] = p.State == "merged", mergeable, mergeable, state
		set["comments"], set["maintainer_can_modify"] = len(p.Comments), false
	}
	for key, value := range set {
		shape[key] = value
	}
	return shape, nil
}

func stamp(t *time.Time) any {
	if t == nil {
		return nil
	}
	return t.UTC().Format(time.RFC3339)
}

// mergeable is nil when it is first asked for: GitHub begins to look only then.
func (s *Server) mergeable(p *pull) (mergeable any, state string, err error) {
	if p.State != "open" {
		return nil, "unknown", nil
	}
	if heads := p.Head + p.baseHead; p.asked != heads {
		p.asked = heads
		return nil, "unknown", nil
	}
	_, ok, err := s.git.merge(p.baseHead, p.Head)
	switch {
	case err != nil:
		return nil, "", err
	case !ok:
		return false, "dirty", nil
	case s.protected != "":
		return true, "blocked", nil
	case s.strict && !s.git.contains(p.Head, p.baseHead):
		return true, "behind", nil
	}
	return true, "clean", nil
}

// invalid is an error about one field, or a sentence of its own.
func (r *request) invalid(resource, field, message string) reply {
	e := map[string]string{"resource": resource, "code": "invalid"}
	if field != "" {
		e["field"] = field
	}
	if message != "" {
		e["code"], e["message"] = "custom", message
	}
	return r.failure(http.StatusUnprocessableEntity, "Validation Failed", e)
}

func (s *Server) listPulls(r *request) reply {
	q := r.URL.Query()
	owner, branch, filtered := strings.Cut(q.Get("head"), ":") // without a colon it does not count
	var found []*pull
	for _, p := range s.pulls {
		state := listedAs(p.State)
		switch {
		case q.Get("state") != "all" && state != q.Get("state") && (q.Get("state") != "" || state != "open"):
		case filtered && (!strings.EqualFold(owner, s.Owner) || p.Branch != branch):
		case q.Get("base") != "" && p.base != q.Get("base"):
		case p.hidden > 0:
			p.hidden--
		default:
			found = append(found, p)
		}
	}
	if q.Get("direction") != "asc" {
		slices.Reverse(found)
	}
	size, page := 30, 1
	if n, err := strconv.Atoi(q.Get("per_page")); err == nil && n > 0 {
		size = min(n, 100)
	}
	if n, err := strconv.Atoi(q.Get("page")); err == nil && n > 0 {
		page = n
	}
	from, to := min((page-1)*size, len(found)), min(page*size, len(found))
	body := []map[string]any{}
	for _, p := range found[from:to] {
		shape, err := s.json(p, false)
		if err != nil {
			return r.broken(err)
		}
		body = append(body, shape)
	}
	rep := reply{status: http.StatusOK, body: body}
	if to < len(found) {
		next, last := r.page(page+1), r.page((len(found)+size-1)/size)
		rep.header = map[string]string{"Link": fmt.Sprintf(`<%s>; rel="next", <%s>; rel="last"`, next, last)}
	}
	return rep
}

func listedAs(state string) string {
	if state == "open" {
		return "open"
	}
	return "closed"
}

// page is the request's address, for another page.
func (r *request) page(n int) string {
	q := r.URL.Query()
	q.Set("page", strconv.Itoa(n))
	u := url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path, RawQuery: q.Encode()}
	return u.String()
}

const (
	titleAtMost = 256
	bodyAtMost  = 65536
)

func (s *Server) createPull(r *request) reply {
	var asked struct{ Title, Body, Head, Base string }
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	branches, err := s.git.branches()
	if err != nil {
		return r.broken(err)
	}
	branch := strings.TrimPrefix(asked.Head, s.Owner+":")
	head, base := branches[branch], branches[asked.Base]
	switch {
	case strings.TrimSpace(asked.Title) == "":
		return r.failure(http.StatusUnprocessableEntity, "Validation Failed", map[string]string{"resource": "Issue", "code": "missing_field", "field": "title"})
	case utf8.RuneCountInString(asked.Title) > titleAtMost:
		return r.invalid("Issue", "title", "title is too long (maximum is 256 characters)")
	case utf8.RuneCountInString(asked.Body) > bodyAtMost:
		return r.invalid("Issue", "body", "body is too long (maximum is 65536 characters)")
	case base == "":
		return r.invalid("PullRequest", "base", "")
	case head == "":
		return r.invalid("PullRequest", "head", "")
	case s.heads > 0:
		s.heads--
		return r.invalid("PullRequest", "head", "")
	}
	for _, p := range s.pulls {
		if p.State == "open" && p.Branch == branch && p.base == asked.Base {
			return r.invalid("PullRequest", "", "A pull request already exists for "+s.Owner+":"+branch+".")
		}
	}
	if s.git.contains(base, head) {
		return r.invalid("PullRequest", "", "No commits between "+asked.Base+" and "+branch)
	}
	p := &pull{
		Pull: Pull{Number: len(s.pulls) + 1, Branch: branch, Title: asked.Title, Body: asked.Body, State: "open", Head: head},
		base: asked.Base, baseHead: base, created: time.Now(), hidden: s.lists,
	}
	s.pulls = append(s.pulls, p)
	rep := s.whole(r, p)
	rep.status = http.StatusCreated
	rep.header = map[string]string{"Location": s.api("/pulls/%d", p.Number)}
	return rep
}

func (s *Server) whole(r *request, p *pull) reply {
	shape, err := s.json(p, true)
	if err != nil {
		return r.broken(err)
	}
	return reply{status: http.StatusOK, body: shape}
}

func (s *Server) getPull(r *request) reply {
	p := s.number(r.PathValue("number"))
	if p == nil {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	return s.whole(r, p)
}

func (s *Server) updatePull(r *request) reply {
	p := s.number(r.PathValue("number"))
	if p == nil {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	var asked struct{ Title, Body, State *string }
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	switch {
	case asked.Title != nil && utf8.RuneCountInString(*asked.Title) > titleAtMost:
		return r.invalid("Issue", "title", "title is too long (maximum is 256 characters)")
	case asked.Body != nil && utf8.RuneCountInString(*asked.Body) > bodyAtMost:
		return r.invalid("Issue", "body", "body is too long (maximum is 65536 characters)")
	case asked.State != nil && *asked.State != "closed":
		return r.invalid("PullRequest", "state", "")
	}
	if asked.Title != nil {
		p.Title = *asked.Title
	}
	if asked.Body != nil {
		p.Body = *asked.Body
	}
	if asked.State != nil && p.State == "open" {
		p.end("closed")
	}
	return s.whole(r, p)
}

func (s *Server) mergePull(r *request) reply {
	p := s.number(r.PathValue("number"))
	if p == nil {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	var asked struct {
		SHA    string `json:"sha"`
		Method string `json:"merge_method"`
	}
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	if asked.Method == "" {
		asked.Method = "merge"
	}
	forbidden := map[string]string{
		"merge":  "Merge commits are not allowed on this repository.",
		"squash": "Squash merges are not allowed on this repository.",
		"rebase": "Rebase merges are not allowed on this repository.",
	}
	switch {
	case p.State != "open":
		return r.failure(http.StatusMethodNotAllowed, "Pull Request is not mergeable")
	case asked.SHA != "" && asked.SHA != p.Head:
		return r.failure(http.StatusConflict, "Head branch was modified. Review and try the merge again.")
	case !slices.Contains(s.methods, asked.Method):
		return r.failure(http.StatusMethodNotAllowed, forbidden[asked.Method])
	case s.modified > 0:
		s.modified--
		return r.failure(http.StatusMethodNotAllowed, "Base branch was modified. Review and try the merge again.")
	case s.protected != "":
		return r.failure(http.StatusMethodNotAllowed, s.protected)
	case s.strict && !s.git.contains(p.Head, p.baseHead):
		return r.failure(http.StatusMethodNotAllowed, `Required status check "ci" is expected.`)
	}
	ok, err := s.perform(p, asked.Method)
	switch {
	case err != nil:
		return r.failure(http.StatusMethodNotAllowed, "Base branch was modified. Review and try the merge again.")
	case !ok:
		return r.failure(http.StatusMethodNotAllowed, "Pull Request is not mergeable")
	}
	return reply{status: http.StatusOK, body: map[string]any{"sha": p.merge, "merged": true, "message": "Pull Request successfully merged"}}
}

// perform merges. Ok is false when there are conflicts; the error is one when
// somebody pushed meanwhile.
func (s *Server) perform(p *pull, method string) (ok bool, err error) {
	tree, ok, err := s.git.merge(p.baseHead, p.Head)
	if err != nil || !ok {
		return false, err
	}
	message, parents := fmt.Sprintf("Merge pull request #%d from %s/%s\n\n%s", p.Number, s.Owner, p.Branch, p.Title), []string{p.baseHead, p.Head}
	if method != "merge" {
		message, parents = fmt.Sprintf("%s (#%d)\n\n%s", p.Title, p.Number, p.Body), []string{p.baseHead}
	}
	if p.merge, err = s.git.commitTree(tree, message, parents...); err != nil {
		return false, err
	}
	if err := s.git.set(p.base, p.merge, p.baseHead); err != nil {
		return false, err
	}
	p.end("merged")
	if s.deletes {
		return true, s.git.delete(p.Branch)
	}
	return true, nil
}

func (s *Server) createComment(r *request) reply {
	p := s.number(r.PathValue("number"))
	var asked struct{ Body string }
	if err := r.decode(&asked); err != nil {
		return r.failure(http.StatusBadRequest, "Problems parsing JSON")
	}
	if p == nil {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	p.Comments = append(p.Comments, asked.Body)
	return reply{status: http.StatusCreated, body: map[string]any{
		"id": len(p.Comments), "body": asked.Body, "issue_url": s.api("/issues/%d", p.Number),
	}}
}

package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// repo is the fleet repo over REST. Where the two forges differ, gitea says so.
type repo struct {
	place Place
	gitea bool
	api   string
}

func newRepo(p Place) repo {
	r := repo{place: p, gitea: p.Make == "gitea", api: strings.TrimSuffix(p.URL, "/")}
	switch {
	case r.gitea:
		r.api += "/api/v1"
	case r.api == "":
		r.api = "https://api.github.com"
	}
	r.api += "/repos/" + p.Repo
	return r
}

// base is the branch that origins are merged into.
func (r repo) base(ctx context.Context) (string, error) {
	var repo struct {
		Default string `json:"default_branch"`
	}
	err := r.call(ctx, http.MethodGet, "", nil, &repo)
	if status(err) == http.StatusNotFound {
		return "", fmt.Errorf("there is no such repo, or the token cannot see it: %w", ErrDenied)
	}
	if err == nil && repo.Default == "" {
		err = errors.New("it names no default branch")
	}
	return repo.Default, err
}

// pullRequest is one as both forges show it.
type pullRequest struct {
	URL  string `json:"html_url"`
	Head struct {
		Ref string `json:"ref"`
	} `json:"head"`
}

const (
	// pageSize is what both forges give at most in one page by default settings.
	pageSize = 50
	maxPages = 200
)

// pull is the address of the open pull request of a branch, or "".
func (r repo) pull(ctx context.Context, base, branch string) (string, error) {
	query := url.Values{"state": {"open"}}
	if !r.gitea {
		owner, _, _ := strings.Cut(r.place.Repo, "/")
		query.Set("head", owner+":"+branch)
		query.Set("base", base)
	}
	query.Set("per_page", strconv.Itoa(pageSize)) // GitHub's word
	query.Set("limit", strconv.Itoa(pageSize))    // Gitea's
	for page := 1; page <= maxPages; page++ {
		query.Set("page", strconv.Itoa(page))
		var open []pullRequest
		if err := r.call(ctx, http.MethodGet, "/pulls?"+query.Encode(), nil, &open); err != nil {
			return "", err
		}
		for _, p := range open {
			if p.Head.Ref == branch {
				return p.URL, nil
			}
		}
		if len(open) == 0 {
			return "", nil
		}
	}
	return "", errors.New("too many pull requests are open")
}

// file is a file of a branch.
type file struct {
	URL     string `json:"html_url"`
	SHA     string `json:"sha"`
	Content []byte `json:"-"`
}

// file is a file of a branch, or nil.
func (r repo) file(ctx context.Context, branch, path string) (*file, error) {
	var got struct {
		file
		// The text is base64 in lines.
		Text string `json:"content"`
	}
	err := r.call(ctx, http.MethodGet, "/contents/"+escape(path)+"?ref="+url.QueryEscape(branch), nil, &got)
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	quoted, err := json.Marshal(strings.ReplaceAll(got.Text, "\n", ""))
	if err == nil {
		err = json.Unmarshal(quoted, &got.Content)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &got.file, nil
}

// write sees that the branch exists and has the file.
func (r repo) write(ctx context.Context, base string, c change) error {
	there, err := r.branch(ctx, base, c.branch)
	if err != nil {
		return err
	}
	put := struct {
		Message string `json:"message"`
		Content []byte `json:"content"`
		Branch  string `json:"branch"`
		// New is a branch that Gitea makes for the commit.
		New string `json:"new_branch,omitempty"`
		SHA string `json:"sha,omitempty"`
	}{Message: c.title, Content: c.content, Branch: c.branch}
	if there {
		switch old, err := r.file(ctx, c.branch, c.path); {
		case err != nil:
			return err
		case old != nil && bytes.Equal(old.Content, c.content):
			return nil
		case old != nil:
			put.SHA = old.SHA
		}
	} else {
		put.Branch, put.New = base, c.branch
	}
	method := http.MethodPut
	if r.gitea && put.SHA == "" {
		method = http.MethodPost
	}
	return r.call(ctx, method, "/contents/"+escape(c.path), put, nil)
}

// branch reports whether the branch exists. At GitHub it does when branch returns: a
// file is only written to one that is there.
func (r repo) branch(ctx context.Context, base, branch string) (bool, error) {
	if r.gitea {
		err := r.call(ctx, http.MethodGet, "/branches/"+escape(branch), nil, nil)
		if status(err) == http.StatusNotFound {
			return false, nil
		}
		return err == nil, err
	}
	var head struct {
		Object struct {
			SHA string `json:"sha"`
		} `json:"object"`
	}
	if err := r.call(ctx, http.MethodGet, "/git/ref/heads/"+escape(base), nil, &head); err != nil {
		return false, err
	}
	ref := map[string]string{"ref": "refs/heads/" + branch, "sha": head.Object.SHA}
	err := r.call(ctx, http.MethodPost, "/git/refs", ref, nil)
	if status(err) == http.StatusUnprocessableEntity && strings.Contains(err.Error(), "already exists") {
		err = nil
	}
	return err == nil, err
}

// propose opens the pull request of the branch, or finds the one that somebody else
// opened meanwhile.
func (r repo) propose(ctx context.Context, base string, c change) (string, error) {
	var opened pullRequest
	err := r.call(ctx, http.MethodPost, "/pulls", map[string]string{"title": c.title, "body": c.body, "head": c.branch, "base": base}, &opened)
	if s := status(err); s == http.StatusConflict || s == http.StatusUnprocessableEntity {
		if where, ferr := r.pull(ctx, base, c.branch); ferr == nil && where != "" {
			return where, nil
		}
	}
	return opened.URL, err
}

// refused is an answer that is not a success.
type refused struct {
	status int
	text   string
}

func (r refused) Error() string { return r.text }

func (r refused) Is(target error) bool {
	return target == ErrDenied && (r.status == http.StatusUnauthorized || r.status == http.StatusForbidden)
}

// status is the HTTP status of an error, or 0.
func status(err error) int {
	var r refused
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

const (
	callLimit = 30 * time.Second
	// maxAnswer in bytes is above a page of pull requests.
	maxAnswer = 8 << 20
)

// client makes the requests of places that bring no client. A redirect is not
// followed: a token is for the forge that it was given for.
var client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// call makes one request. What is sent and got is JSON; either may be nil.
func (r repo) call(ctx context.Context, method, path string, send, get any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var body io.Reader
	if send != nil {
		text, err := json.Marshal(send)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.api+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kokoa-agent")
	req.Header.Set("Content-Type", "application/json")
	if r.gitea {
		req.Header.Set("Authorization", "token "+r.place.Token)
	} else {
		req.Header.Set("Authorization", "Bearer "+r.place.Token)
		req.Header.Set("Accept", "application/vnd.github+json")
		req.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	}
	c := r.place.HTTP
	if c == nil {
		c = client
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL.Path, err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return refusal(req, res, text)
	}
	if get == nil {
		return nil
	}
	if err := json.Unmarshal(text, get); err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL.Path, err)
	}
	return nil
}

// refusal is what the forge says is wrong, in one line.
func refusal(req *http.Request, res *http.Response, text []byte) error {
	var says struct {
		Message string            `json:"message"`
		Errors  []json.RawMessage `json:"errors"`
	}
	_ = json.Unmarshal(text, &says) // a proxy in between answers in HTML
	why := fmt.Sprintf("%s %s: %s", req.Method, req.URL.Path, res.Status)
	if says.Message != "" {
		why += ": " + says.Message
	}
	for _, e := range says.Errors {
		why += " " + string(e)
	}
	limited := res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusForbidden && res.Header.Get("X-RateLimit-Remaining") == "0"
	if seconds, err := strconv.ParseInt(res.Header.Get("X-RateLimit-Reset"), 10, 64); limited && err == nil {
		why += "; the forge's rate limit is used up until " + time.Unix(seconds, 0).UTC().Format(time.RFC3339)
	}
	if location := res.Header.Get("Location"); location != "" {
		why += "; it has moved to " + location
	}
	why = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, why)
	if limited { // the token itself is good
		return refused{http.StatusTooManyRequests, why}
	}
	return refused{res.StatusCode, why}
}

// escape is a path, or a branch, for a URL: its slashes stay.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

package gitea

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// maxAnswer is how much of an answer is read.
const maxAnswer = 32 << 20

// client asks the server about one repo.
type client struct {
	// server is its address without a slash at the end; repo is "/owner/name".
	server, repo string
	// token is a function, so that no printing of a Forge shows it.
	token func() string
	http  *http.Client
}

// repository is what is read of the repo.
type repository struct {
	Pulls       bool   `json:"has_pull_requests"`
	Style       string `json:"default_merge_style"`
	Merge       bool   `json:"allow_merge_commits"`
	Rebase      bool   `json:"allow_rebase"`
	RebaseMerge bool   `json:"allow_rebase_explicit"`
	Squash      bool   `json:"allow_squash_merge"`
	FastForward bool   `json:"allow_fast_forward_only_merge"`
}

// visible is nil when the repo can be seen and has pull requests: then what was not
// found is not there.
func (c *client) visible(ctx context.Context) error {
	var r repository
	err := c.call(ctx, http.MethodGet, "", nil, &r, http.StatusOK)
	switch {
	case is(err, http.StatusNotFound):
		return fmt.Errorf("%w: there is no repo %s%s, or they may not see it", forge.ErrDenied, c.server, c.repo)
	case err == nil && !r.Pulls:
		return fmt.Errorf("%s%s has no pull requests: switch them on in the repo's settings", c.server, c.repo)
	}
	return err
}

// call asks the API for what is below the repo. The answer's body is read into out
// unless that is nil. An answer whose status is not among want is a *refusal.
func (c *client) call(ctx context.Context, method, path string, in, out any, want ...int) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.server+"/api/v1/repos"+c.repo+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "token "+c.token())
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	raw, err := c.do(req, want...)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL.Path, err)
	}
	return nil
}

// do asks, and returns the body of an answer with a wanted status.
func (c *client) do(req *http.Request, want ...int) ([]byte, error) {
	req.Header.Set("User-Agent", "kokoa")
	answer, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err == nil && len(raw) > maxAnswer {
		err = errors.New("the answer is too long")
	}
	if !slices.Contains(want, answer.StatusCode) {
		return nil, refused(req, answer, raw)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err)
	}
	return raw, nil
}

// refusal is an answer that was not wanted. errors.Is finds ErrDenied in 401 and 403,
// and ErrProtected in 423, an archived repo; errors.As finds LimitError in 429.
type refusal struct {
	asked   string
	status  int
	message string
	until   time.Time
}

func refused(req *http.Request, answer *http.Response, body []byte) *refusal {
	r := &refusal{asked: req.Method + " " + req.URL.Path, status: answer.StatusCode}
	var said struct {
		Message string `json:"message"`
	}
	switch kind, _, _ := strings.Cut(answer.Header.Get("Content-Type"), ";"); {
	case json.Unmarshal(body, &said) == nil:
		r.message = plain(said.Message)
	case kind == "text/plain":
		r.message = plain(string(body))
	}
	if at := answer.Header.Get("Location"); at != "" {
		r.message = plain("it is at " + at + " now")
	}
	if r.status == http.StatusTooManyRequests {
		r.until = until(answer.Header.Get("Retry-After"), time.Now())
	}
	return r
}

func (r *refusal) Error() string {
	said := fmt.Sprintf("%s: %d %s", r.asked, r.status, http.StatusText(r.status))
	if r.message != "" {
		said += ": " + r.message
	}
	return said
}

func (r *refusal) Unwrap() error {
	switch r.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return forge.ErrDenied
	case http.StatusLocked:
		return forge.ErrProtected
	case http.StatusTooManyRequests:
		return forge.LimitError{Until: r.until}
	}
	return nil
}

// is reports whether an error is a refusal with one of these statuses.
func is(err error, status ...int) bool {
	var r *refusal
	return errors.As(err, &r) && slices.Contains(status, r.status)
}

// until reads Retry-After (RFC 9110 section 10.2.3). Without one, or with nonsense, it
// is a minute.
func until(header string, now time.Time) time.Time {
	if seconds, err := strconv.Atoi(header); err == nil && seconds >= 0 && seconds <= int(24*time.Hour/time.Second) {
		return now.Add(time.Duration(seconds) * time.Second)
	}
	if at, err := http.ParseTime(header); err == nil {
		return at
	}
	return now.Add(time.Minute)
}

// plain is a server's text for one line of a terminal or a log.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	const most = 300
	if short := []rune(text); len(short) > most {
		text = string(short[:most]) + "…"
	}
	return text
}

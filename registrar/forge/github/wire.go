package github

import (
	"bytes"
	"io"
	"net/http"
	"sync"
)

// bounded cuts answers that are larger than any that is wanted, and bounds how
// long one makes the client wait.
type bounded struct{ next http.RoundTripper }

// answerAtMost is in bytes. The largest are comparisons, with texts of 300 files.
const answerAtMost = 32 << 20

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, answerAtMost)
	if resp.StatusCode == http.StatusForbidden && resp.Header.Get("Retry-After") == "" && resp.Header.Get("X-RateLimit-Remaining") != "0" {
		return aMinute(resp)
	}
	return resp, nil
}

// aMinute says for GitHub how long its secondary rate limit holds, where it does
// not say itself: its documentation asks for a minute. The client would wait until
// the hour of the primary limit is over.
func aMinute(resp *http.Response) (*http.Response, error) {
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if bytes.Contains(text, []byte("secondary rate limit")) {
		resp.Header.Set("Retry-After", "60")
	}
	return resp, nil
}

// remembering asks again by what it has: "not modified" costs nothing of the rate
// limit's budget. Only what a poll looks at stays in it, since it is small.
type remembering struct {
	next http.RoundTripper

	mu      sync.Mutex
	answers map[string]answer // by address
}

type answer struct {
	etag   string
	header http.Header
	body   []byte
}

const (
	answersAtMost    = 256
	answerRemembered = 64 << 10
)

func newRemembering(next http.RoundTripper) *remembering {
	return &remembering{next: next, answers: make(map[string]answer)}
}

func (r *remembering) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet {
		return r.next.RoundTrip(req)
	}
	where := req.URL.String()
	r.mu.Lock()
	old, ok := r.answers[where]
	r.mu.Unlock()
	if ok {
		req = req.Clone(req.Context())
		req.Header.Set("If-None-Match", old.etag)
	}
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if ok && resp.StatusCode == http.StatusNotModified {
		resp.Body.Close()
		return old.again(resp), nil
	}
	if etag := resp.Header.Get("ETag"); resp.StatusCode == http.StatusOK && etag != "" {
		return r.keep(where, etag, resp)
	}
	return resp, nil
}

// again is the answer as it was, with the headers of the one that says so: they
// have the rate limit.
func (a answer) again(resp *http.Response) *http.Response {
	for key, values := range a.header {
		if _, ok := resp.Header[key]; !ok {
			resp.Header[key] = values
		}
	}
	resp.StatusCode, resp.Status = http.StatusOK, "200 OK"
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(a.body)), int64(len(a.body))
	return resp
}

func (r *remembering) keep(where, etag string, resp *http.Response) (*http.Response, error) {
	start, err := io.ReadAll(io.LimitReader(resp.Body, answerRemembered+1))
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if len(start) > answerRemembered {
		resp.Body = rest{io.MultiReader(bytes.NewReader(start), resp.Body), resp.Body}
		return resp, nil
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(start))
	r.mu.Lock()
	defer r.mu.Unlock()
	for old := range r.answers {
		if len(r.answers) < answersAtMost {
			break
		}
		delete(r.answers, old)
	}
	r.answers[where] = answer{etag, resp.Header.Clone(), start}
	return resp, nil
}

type rest struct {
	io.Reader
	io.Closer
}

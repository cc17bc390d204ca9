package github

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	gh "github.com/google/go-github/v62/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Whatever an answer holds, it becomes one bounded line of at most one kind, and
// only a limit says when.
func FuzzMeaning(f *testing.F) {
	f.Add(403, "0", "1700000000", "", `{"message":"API rate limit exceeded","documentation_url":"https://docs.github.com/rest"}`)
	f.Add(403, "12", "1700000000", "", `{"message":"You have exceeded a secondary rate limit","documentation_url":"https://docs.github.com/x#about-secondary-rate-limits"}`)
	f.Add(429, "", "", "30", ``)
	f.Add(401, "", "", "", `{"message":"Bad credentials"}`)
	f.Add(404, "", "", "", `{"message":"Not Found"}`)
	f.Add(405, "", "", "", `{"message":"Pull Request is not mergeable"}`)
	f.Add(409, "", "", "", `{"message":"Git Repository is empty."}`)
	f.Add(422, "", "", "", `{"message":"Validation Failed","errors":[{"resource":"PullRequest","field":"head","code":"invalid"}]}`)
	f.Add(422, "", "", "", `{"message":"x","errors":["plain text"]}`)
	f.Add(502, "", "", "-1", "<html>\n\nUnicorn!</html>")
	now := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, code int, remaining, reset, after, body string) {
		if code < 300 || code > 599 {
			return
		}
		header := http.Header{}
		for key, value := range map[string]string{"X-RateLimit-Remaining": remaining, "X-RateLimit-Reset": reset, "Retry-After": after} {
			if value != "" {
				header.Set(key, value)
			}
		}
		answer := gh.CheckResponse(&http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body)),
			Request: &http.Request{Method: "GET", URL: &url.URL{Path: "/"}}})
		err := meaning(answer, now)
		if err == nil || err.Error() == "" || len(err.Error()) > 2*textAtMost || strings.ContainsAny(err.Error(), "\n\r") {
			t.Fatalf("%d means %q", code, err)
		}
		var limit forge.LimitError
		kinds := 0
		for _, is := range []bool{errors.As(err, &limit), errors.Is(err, forge.ErrDenied), errors.Is(err, forge.ErrProtected), errors.Is(err, forge.ErrConflict)} {
			if is {
				kinds++
			}
		}
		if kinds > 1 || errors.Is(err, forge.ErrNoPull) {
			t.Errorf("%d means %q, of %d kinds", code, err, kinds)
		}
		if code >= 500 && kinds != 0 {
			t.Errorf("%d means %q: a failure of GitHub's says nothing of the repo", code, err)
		}
		if errors.As(err, &limit) != (code == 429 || code == 403 && !errors.Is(err, forge.ErrDenied)) {
			t.Errorf("%d means %q", code, err)
		}
	})
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 11, 23, 16, 0, 0, 0, time.UTC)
	for date, want := range map[string]string{
		"Mon, 23 Nov 2026 16:00:30 GMT": "",
		"Mon, 23 Nov 2026 15:48:00 GMT": "; this host's clock is off by 12m0s",
		"Mon, 23 Nov 2026 18:00:00 GMT": "; this host's clock is off by -2h0m0s",
		"":                              "",
		"yesterday":                     "",
	} {
		if got := clock(http.Header{"Date": {date}}, now); got != want {
			t.Errorf("%q: %q, want %q", date, got, want)
		}
	}
}

func TestBlob(t *testing.T) { // as git hash-object says
	for content, want := range map[string]string{
		"":        "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
		"hello\n": "ce013625030ba8dba906f756967f9e9ca394464a",
	} {
		if got := blob([]byte(content)); got != want {
			t.Errorf("%q is %s, want %s", content, got, want)
		}
	}
}

package gitea

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

const secret = "0123456789abcdef0123456789abcdef01234567"

// open is a forge whose server answers every call alike.
func open(t *testing.T, answer http.HandlerFunc) *Forge {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	f, err := Open(Config{URL: s.URL, Owner: "mika", Repo: "fleet", Branch: "main", Token: secret})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What a server is in trouble with is never an answer about the pull request.
func TestTrouble(t *testing.T) {
	write := func(status int, header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if key, value, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(key, value)
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   error // nil is trouble that passes
		text   string
	}{
		{"unknown token", write(401, "", `{"message":"invalid username, password or token"}`), forge.ErrDenied, "invalid username, password or token"},
		{"scope", write(403, "", `{"message":"token does not have at least one of required scope(s)"}`), forge.ErrDenied, "required scope"},
		{"unseen repo", write(404, "", `{"message":"The target couldn't be found."}`), forge.ErrDenied, "there is no repo"},
		{"archived", write(423, "", `{"message":"mika/fleet is archived"}`), forge.ErrProtected, "archived"},
		{"limit", write(429, "Retry-After: 30", `{"message":"slow down"}`), forge.LimitError{}, "429 Too Many Requests: slow down"},
		{"overload", write(503, "", "<html>"), nil, "503 Service Unavailable"},
		{"proxy", write(502, "Content-Type: text/plain; charset=utf-8", "no\x1b[31m upstream\r\n"), nil, "502 Bad Gateway: no [31m upstream"},
		{"moved", write(301, "Location: https://elsewhere.example/", ""), nil, "it is at https://elsewhere.example/ now"},
		{"damaged", write(200, "", `{"number": 1, "state": "op`), nil, "unexpected end of JSON"},
		{"a page", write(200, "Content-Type: text/html", "<html>Sign in"), nil, "invalid character '<'"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"number": 1`)
		}, nil, "unexpected EOF"},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for chunk := bytes.Repeat([]byte(" "), 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, nil, "the answer is too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := open(t, c.answer)
			_, proposed := f.Propose(t.Context(), forge.Proposal{Branch: "kokoa/a", Title: "A"})
			_, found := f.Find(t.Context(), "kokoa/a")
			p := forge.Pull{Number: 1, Branch: "kokoa/a", Head: strings.Repeat("a", 40)}
			for _, err := range []error{proposed, found, f.Merge(t.Context(), p), f.Close(t.Context(), p, "")} {
				if err == nil || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), secret) || strings.ContainsRune(err.Error(), '\x1b') {
					t.Errorf("error %v; want %q in it", err, c.text)
				}
				for _, answer := range []error{forge.ErrNoPull, forge.ErrConflict, forge.ErrProtected, forge.ErrDenied} {
					if errors.Is(err, answer) != (c.want == answer) {
						t.Errorf("is %v %v: %v", err, answer, errors.Is(err, answer))
					}
				}
				var limit forge.LimitError
				if _, limited := c.want.(forge.LimitError); errors.As(err, &limit) != limited {
					t.Errorf("a limit in %v: %v", err, !limited)
				} else if left := time.Until(limit.Until); limited && (left < 10*time.Second || left > 30*time.Second) {
					t.Errorf("until in %s", left)
				}
			}
		})
	}
}

// The server may let two processes open a pull request each, in the same moment. Then
// the newer stays, and what belongs to others does.
func TestTwoRequests(t *testing.T) {
	list := `[
		{"number": 6, "state": "open", "base": {"ref": "main", "repo_id": 1}, "head": {"label": "kokoa/a", "repo_id": 1}},
		{"number": 7, "state": "open", "base": {"ref": "main", "repo_id": 1}, "head": {"label": "kokoa/a", "repo_id": 1}},
		{"number": 5, "state": "open", "base": {"ref": "main", "repo_id": 1}, "head": {"label": "kokoa/a", "repo_id": 2}},
		{"number": 4, "state": "open", "base": {"ref": "main", "repo_id": 1}, "head": {"label": "kokoa/b", "repo_id": 1}},
		{"number": 3, "state": "open", "base": {"ref": "next", "repo_id": 1}, "head": {"label": "kokoa/a", "repo_id": 1}}
	]`
	var closed []string
	f := open(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"number": 7, "state": "open"}`)
		case r.Method == http.MethodPatch:
			body, _ := io.ReadAll(r.Body)
			closed = append(closed, r.URL.Path+" "+string(body))
			w.WriteHeader(http.StatusCreated)
		case r.URL.Query().Get("page") == "1":
			fmt.Fprint(w, list)
		default:
			fmt.Fprint(w, "[]")
		}
	})
	made, err := f.request(t.Context(), forge.Proposal{Branch: "kokoa/a", Title: "A"})
	if err != nil || made.Number != 7 {
		t.Errorf("opened %+v, %v", made, err)
	}
	if want := []string{`/api/v1/repos/mika/fleet/pulls/6 {"state":"closed"}`}; !slices.Equal(closed, want) {
		t.Errorf("closed %q, want %q", closed, want)
	}
}

// A refused merge is a rule, a conflict, something to wait for, or trouble.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		status  int
		message string
		want    error
	}{
		{405, "User not allowed to merge PR", forge.ErrProtected},
		{405, "Does not have enough approvals", forge.ErrProtected},
		{405, "not allowed to merge [reason: Does not have enough approvals]", forge.ErrProtected}, // Forgejo
		{405, "Work in progress PRs cannot be merged", forge.ErrProtected},
		{405, "rebase is not allowed an allowed merge style for this repository", forge.ErrProtected},
		{405, "", forge.ErrProtected},
		{405, "The head branch is behind the base branch", forge.ErrConflict},
		{405, "Please try again later", errLater},
		{405, "The PR is already merged", errLater}, // to be seen with the next look
		{409, "head out of date", forge.ErrConflict},
		{409, "merge push out of date", forge.ErrConflict},
		{409, "", forge.ErrConflict},
		{409, "PushRejected with remote message: no", forge.ErrProtected},
		{404, "", forge.ErrConflict},
		{401, "", forge.ErrDenied},
		{403, "", forge.ErrDenied},
		{423, "", forge.ErrProtected},
		{500, "", nil},
	} {
		err := judge(&refusal{asked: "POST /merge", status: c.status, message: c.message})
		if err == nil {
			t.Errorf("%d %q is no error", c.status, c.message)
		}
		for _, kind := range []error{forge.ErrProtected, forge.ErrConflict, forge.ErrDenied, errLater} {
			if errors.Is(err, kind) != (kind == c.want) {
				t.Errorf("%d %q: %v", c.status, c.message, err)
			}
		}
	}
	if err := judge(nil); err != nil {
		t.Error(err)
	}
	if err := judge(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUntil(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"0": 0, "30": 30 * time.Second, "86400": 24 * time.Hour,
		"Mon, 23 Nov 2026 12:05:00 GMT": 5 * time.Minute, "Mon, 23 Nov 2026 11:55:00 GMT": -5 * time.Minute,
		"": time.Minute, "-1": time.Minute, "soon": time.Minute, "99999999999999999999": time.Minute, "86401": time.Minute,
	} {
		if got := until(header, now).Sub(now); got != want {
			t.Errorf("Retry-After %q is %s, want %s", header, got, want)
		}
	}
}

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		" two\r\n\tlines\x00\x1b[2J ":   "two lines [2J",
		"台所 \u202e reversed \u200bnone": "台所 reversed none",
		strings.Repeat("ä", 301):        strings.Repeat("ä", 300) + "…",
	} {
		if got := plain(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestOpen(t *testing.T) {
	good := Config{URL: "https://git.example.com/sub/", Owner: "mika", Repo: "fleet", Branch: "main", Token: secret}
	f, err := Open(good)
	if err != nil || f.String() != "https://git.example.com/sub/mika/fleet" {
		t.Errorf("opened %v, %v", f, err)
	}
	for name, change := range map[string]func(*Config){
		"no url":      func(c *Config) { c.URL = "" },
		"no host":     func(c *Config) { c.URL = "https:///x" },
		"ssh":         func(c *Config) { c.URL = "ssh://git.example.com" },
		"credentials": func(c *Config) { c.URL = "https://mika:" + secret + "@git.example.com" },
		"nonsense":    func(c *Config) { c.URL = "https://mika:" + secret + "@git.example.com:port" },
		"query":       func(c *Config) { c.URL = "https://git.example.com?a=b" },
		"no owner":    func(c *Config) { c.Owner = "" },
		"no repo":     func(c *Config) { c.Repo = "" },
		"no branch":   func(c *Config) { c.Branch = "" },
		"no token":    func(c *Config) { c.Token = "" },
	} {
		bad := good
		change(&bad)
		if _, err := Open(bad); err == nil || strings.Contains(err.Error(), secret) || !strings.HasPrefix(err.Error(), "gitea: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.Propose(t.Context(), forge.Proposal{Branch: "main", Title: "A"}); err == nil {
		t.Error("proposed the base branch itself")
	}
}

func TestTokenIsNotShown(t *testing.T) {
	f := open(t, http.NotFound)
	var log bytes.Buffer
	c := Config{Token: secret}
	slog.New(slog.NewJSONHandler(&log, nil)).Info("said", "kind", c.Token, "object", c, "addr", f)
	for _, text := range []string{
		fmt.Sprintf("%v %+v %#v %s %q %x", c.Token, c, c, c.Token, c.Token, c.Token),
		fmt.Sprintf("%v %+v %#v %s", f, f, f, f), log.String(),
	} {
		if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", secret)) {
			t.Errorf("shown: %s", text)
		}
	}
}

func TestTurns(t *testing.T) {
	var all turns
	done, err := all.take(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := all.take(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.take(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("took a turn that is another's: %v", err)
	}
	const waiting = 20
	count, over := 0, make(chan struct{})
	for range waiting {
		go func() {
			mine, err := all.take(t.Context(), "a")
			if err != nil {
				t.Error(err)
			} else {
				count++ // the race detector watches
				mine()
			}
			over <- struct{}{}
		}()
	}
	done()
	for range waiting {
		<-over
	}
	if count != waiting || len(all.busy) != 0 {
		t.Errorf("%d of %d had a turn; %d are left", count, waiting, len(all.busy))
	}
}

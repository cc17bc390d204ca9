package github_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github/githubtest"
)

// Answers that GitHub gave, or that it documents, and what they mean.
func TestAnswers(t *testing.T) {
	text, err := os.ReadFile("testdata/answers.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, From, Kind, Says string
		Status                 int
		Header                 map[string]string
		Body                   json.RawMessage
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]error{
		"denied": forge.ErrDenied, "conflict": forge.ErrConflict, "protected": forge.ErrProtected, "none": forge.ErrNoPull,
	}
	if len(cases) < 15 {
		t.Fatalf("there are %d cases", len(cases))
	}
	for _, c := range cases {
		s := githubtest.New(t)
		f := open(t, byToken(s))
		s.Next("POST", repoPath+"/git/trees", githubtest.Answer{Status: c.Status, Header: c.Header, Body: string(c.Body)})
		_, err := f.Propose(t.Context(), proposal("vm1", "new"))
		if err == nil {
			t.Errorf("%s: no error", c.Name)
			continue
		}
		var limit forge.LimitError
		if errors.As(err, &limit) != (c.Kind == "limit") {
			t.Errorf("%s: %v", c.Name, err)
		}
		for kind, want := range kinds {
			if errors.Is(err, want) != (c.Kind == kind) {
				t.Errorf("%s: %v; is it %s: %v", c.Name, err, kind, errors.Is(err, want))
			}
		}
		if !strings.Contains(err.Error(), c.Says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q does not say %q", c.Name, err, c.Says)
		}
	}
}

// The budget that is used up is not asked about again before its time, and what was
// half done is completed then.
func TestPrimaryLimit(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusTooManyRequests} {
		for left := range 6 {
			s := githubtest.New(t)
			f := open(t, byToken(s))
			reset := time.Now().Add(time.Hour).Truncate(time.Second)
			s.Budget(left, reset, status)
			_, err := f.Propose(t.Context(), proposal("vm1", "new"))
			var limit forge.LimitError
			if !errors.As(err, &limit) || !limit.Until.Equal(reset) {
				t.Fatalf("%d left, then %d: %v; want until %s", left, status, err, reset)
			}
			s.Calls()
			if _, err := f.Find(t.Context(), "kokoa/register/vm1"); !errors.As(err, &limit) {
				t.Errorf("%d left, then %d: found %v", left, status, err)
			}
			if calls := s.Calls(); len(calls) != 0 {
				t.Errorf("%d left, then %d: asked %q all the same", left, status, calls)
			}
			s.Budget(100, reset, status)
			propose(t, open(t, byToken(s)), proposal("vm1", "new")) // as after a restart
			if n := len(s.Pulls(t)); n != 1 {
				t.Errorf("there are %d pull requests", n)
			}
		}
	}
}

func TestLimitEnds(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	s.Budget(0, time.Now().Add(2*time.Second), http.StatusForbidden)
	deadline := time.Now().Add(30 * time.Second)
	for refused := false; ; refused = true {
		_, err := f.Find(t.Context(), "kokoa/register/vm1")
		var limit forge.LimitError
		if errors.Is(err, forge.ErrNoPull) {
			if !refused {
				t.Error("the limit was never seen")
			}
			return
		}
		if !errors.As(err, &limit) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		timer := time.NewTimer(max(time.Until(limit.Until), 10*time.Millisecond))
		<-timer.C
	}
}

func TestSecondaryLimit(t *testing.T) {
	for retryAfter, least := range map[time.Duration]time.Duration{90 * time.Second: 90 * time.Second, 0: time.Minute} {
		s := githubtest.New(t)
		f := open(t, byToken(s))
		s.Secondary(1, retryAfter)
		before := time.Now()
		_, err := f.Propose(t.Context(), proposal("vm1", "new"))
		var limit forge.LimitError
		if !errors.As(err, &limit) {
			t.Fatal(err)
		}
		if wait := limit.Until.Sub(before); wait < least-time.Second || wait > least+time.Minute {
			t.Errorf("retry after %s: until %s from now", retryAfter, wait)
		}
		s.Calls()
		if _, err := f.Propose(t.Context(), proposal("vm1", "new")); !errors.As(err, &limit) || len(s.Calls()) != 0 {
			t.Errorf("asked again at once: %v", err)
		}
	}
}

func TestPermissions(t *testing.T) {
	for _, c := range []struct{ contents, pulls, says string }{
		{"read", "write", "contents=write"},
		{"write", "read", "pull_requests=write"},
	} {
		s := githubtest.New(t)
		s.Permit(c.contents, c.pulls)
		_, err := open(t, byToken(s)).Propose(t.Context(), proposal("vm1", "new"))
		if !errors.Is(err, forge.ErrDenied) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
		_, err = open(t, byApp(s)).Propose(t.Context(), proposal("vm1", "new"))
		if !errors.Is(err, forge.ErrDenied) || !strings.Contains(err.Error(), "permissions requested are not granted") {
			t.Errorf("%+v, as an app: %v", c, err)
		}
	}
}

func TestWrongPlace(t *testing.T) {
	for _, change := range []func(*github.Config){
		func(c *github.Config) { c.Owner = "else" },
		func(c *github.Config) { c.Repo = "else" },
	} {
		c := byToken(githubtest.New(t))
		change(&c)
		_, err := open(t, c).Propose(t.Context(), proposal("vm1", "new"))
		if !errors.Is(err, forge.ErrDenied) || !strings.Contains(err.Error(), "the repo does not exist, or the credentials may not see it") {
			t.Error(err)
		}
	}
	c := byToken(githubtest.New(t))
	c.Branch = "else"
	if _, err := open(t, c).Propose(t.Context(), proposal("vm1", "new")); err == nil || !strings.Contains(err.Error(), "there is no branch else") {
		t.Error(err)
	}
	p := proposal("vm1", "new")
	p.Branch = "main"
	if _, err := open(t, byToken(githubtest.New(t))).Propose(t.Context(), p); err == nil || !strings.Contains(err.Error(), "a branch of its own") {
		t.Error(err)
	}
}

func TestDown(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byToken(s))
	for _, status := range []int{0, 500, 502, 503} {
		up := s.Down(status)
		_, err := f.Find(t.Context(), "kokoa/register/vm1")
		if err == nil || errors.Is(err, forge.ErrNoPull) || errors.Is(err, forge.ErrDenied) || status != 0 && !strings.Contains(err.Error(), fmt.Sprint(status)) {
			t.Errorf("%d: %v", status, err)
		}
		up()
	}
	if _, err := f.Find(t.Context(), "kokoa/register/vm1"); !errors.Is(err, forge.ErrNoPull) {
		t.Error(err)
	}
}

// Credentials stay with the API's host, wherever an answer points, and go nowhere
// in the clear.
func TestCredentialsStay(t *testing.T) {
	var got []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		w.Write([]byte("[]"))
	}))
	defer elsewhere.Close()
	for _, config := range []func(*githubtest.Server) github.Config{byToken, byApp} {
		s := githubtest.New(t)
		s.Next("GET", pullsPath, githubtest.Answer{Status: http.StatusFound, Body: `""`, Header: map[string]string{"Location": elsewhere.URL}})
		if _, err := open(t, config(s)).Find(t.Context(), "kokoa/register/vm1"); !errors.Is(err, forge.ErrNoPull) {
			t.Error(err)
		}
	}
	if len(got) != 2 || got[0] != "" || got[1] != "" {
		t.Errorf("another host was sent %q", got)
	}
}

func TestOpen(t *testing.T) {
	good := github.Config{Owner: "acme", Repo: "fleet", Token: "github_pat_secret"}
	for _, c := range []struct {
		change func(*github.Config)
		says   string // "" when it is fine
	}{
		{func(*github.Config) {}, ""},
		{func(c *github.Config) { c.URL = "https://git.example.com/api/v3" }, ""},
		{func(c *github.Config) { c.URL = "http://127.0.0.1:8080/" }, ""},
		{func(c *github.Config) { c.URL = "http://[::1]/" }, ""},
		{func(c *github.Config) { c.URL = "http://git.example.com/api/v3/" }, "write https"},
		{func(c *github.Config) { c.URL = "ftp://git.example.com/" }, "write https"},
		{func(c *github.Config) { c.URL = "git.example.com" }, "no address of an API"},
		{func(c *github.Config) { c.URL = "https://a:secret@git.example.com/" }, "no address of an API"},
		{func(c *github.Config) { c.URL = "https://git.example.com/\x00secret" }, "no address of an API"},
		{func(c *github.Config) { c.Owner = "" }, "owner/name"},
		{func(c *github.Config) { c.Owner = "a/b" }, "owner/name"},
		{func(c *github.Config) { c.Repo = ".." }, "owner/name"},
		{func(c *github.Config) { c.Repo = "fleet?x=y" }, "owner/name"},
		{func(c *github.Config) { c.Token = "" }, "no credentials"},
		{func(c *github.Config) { c.App.ID = 1 }, "give one of them"},
		{func(c *github.Config) { c.Token, c.App.ID = "", 1 }, "its installation"},
		{func(c *github.Config) { c.Token, c.App = "", github.App{ID: 1, Installation: 2, PrivateKey: "secret"} }, "it is not PEM"},
		{func(c *github.Config) {
			c.Token, c.App = "", github.App{ID: 1, Installation: 2, PrivateKey: "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0\n-----END RSA PRIVATE KEY-----\n"}
		}, "PKCS"},
	} {
		config := good
		c.change(&config)
		_, err := github.Open(config)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", config, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows a secret: %v", err)
		}
	}
	f, err := github.Open(good)
	if err != nil || f.String() != "github.com/acme/fleet" {
		t.Error(f, err)
	}
}

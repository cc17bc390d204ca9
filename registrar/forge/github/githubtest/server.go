// Package githubtest is a GitHub of its own for tests: the REST endpoints that
// package github asks, as GitHub answers them, with a real Git repository behind
// that is also served to Git over HTTP.
package githubtest

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge/forgetest"
)

// Server is a GitHub with one private repo, whose base branch has one commit. Its
// methods may be called at any time, from any goroutine.
type Server struct {
	// URL is the base of the API, as that of an Enterprise Server.
	URL string
	// CloneURL is where Git finds the repo, by HTTP Basic with any token for a
	// password. Dir is the bare repository itself, which people may push to.
	CloneURL, Dir string
	Owner, Repo   string
	// Branch is the base branch.
	Branch string
	// Token is one that is accepted, a fine-grained personal one.
	Token string
	// App is installed on the repo.
	App App

	t    testing.TB
	http *httptest.Server
	git  store
	key  *rsa.PublicKey

	mu            sync.Mutex
	pulls         []*pull
	calls         []string
	answers       []planned
	installations map[string]time.Time // tokens of the App, with their ends
	life          time.Duration
	denied        bool
	permissions   map[string]string
	down          int
	slow          time.Duration
	budget        int
	reset         time.Time
	limitStatus   int
	secondary     int
	retryAfter    time.Duration
	lists, heads  int
	protected     string
	strict        bool
	methods       []string
	modified      int
	deletes       bool
}

// App is a GitHub App and its installation.
type App struct {
	ID, Installation int64
	// PrivateKey is PEM, PKCS #1 as GitHub gives it out.
	PrivateKey string
}

// Answer is what GitHub answers for once, whatever was asked.
type Answer struct {
	Status int
	Header map[string]string
	Body   string
}

type planned struct {
	method, path string
	answer       Answer
}

// limit is GitHub's budget of requests in an hour, for a user.
const limit = 5000

// appKey is one for all servers of a program, since it takes long to make.
var appKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// New starts a server that ends with the test.
func New(t *testing.T) *Server {
	t.Helper()
	s := &Server{
		Owner: "acme", Repo: "fleet", Branch: "main",
		Token: "github_pat_" + strings.ToLower(rand.Text()),
		Dir:   forgetest.NewBare(t, "main"),
		t:     t, installations: make(map[string]time.Time), life: time.Hour,
		permissions: map[string]string{"contents": "write", "pull_requests": "write", "metadata": "read"},
		budget:      limit, reset: time.Now().Add(time.Hour).Truncate(time.Second), limitStatus: http.StatusForbidden,
		methods: []string{"merge", "squash", "rebase"},
	}
	s.git = store{s.Dir}
	for _, setting := range []string{"http.receivepack", "core.logallrefupdates"} {
		if _, err := s.git.run(nil, nil, "config", setting, "true"); err != nil {
			t.Fatal(err)
		}
	}
	key, err := appKey()
	if err != nil {
		t.Fatal(err)
	}
	s.key = &key.PublicKey
	s.App = App{
		ID: 4711, Installation: 815,
		PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	}
	s.http = httptest.NewServer(s.routes())
	t.Cleanup(s.http.Close)
	s.URL = s.http.URL + "/api/v3/"
	s.CloneURL = s.http.URL + "/" + s.Owner + "/" + s.Repo + ".git"
	return s
}

// Client is an HTTP client whose connections end with the test.
func (s *Server) Client() *http.Client { return s.http.Client() }

// Person works on the repo with Git, through HTTP.
func (s *Server) Person() forgetest.Person {
	return forgetest.Person{
		Remote: strings.Replace(s.CloneURL, "http://", "http://x-access-token:"+s.Token+"@", 1),
		Base:   s.Branch,
	}
}

// Calls are the requests to the API since the last call of Calls, as "GET
// /repos/acme/fleet/pulls".
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// Spent is how much of the rate limit's budget is used.
func (s *Server) Spent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return limit - s.budget
}

// Budget leaves this many requests until reset. Beyond, the answer has the status:
// 403, or 429.
func (s *Server) Budget(left int, reset time.Time, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget, s.reset, s.limitStatus = left, reset.Truncate(time.Second), status
}

// Secondary makes the next n writes run into the secondary rate limit. Without
// retryAfter there is no such header.
func (s *Server) Secondary(n int, retryAfter time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secondary, s.retryAfter = n, retryAfter
}

// Deny makes the server refuse all credentials from now on.
func (s *Server) Deny() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied = true
}

// Permit sets what tokens may do with the contents and the pull requests: "read",
// or "write". The default is "write".
func (s *Server) Permit(contents, pulls string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.permissions["contents"], s.permissions["pull_requests"] = contents, pulls
}

// TokenLife is how long tokens of the App's last that are made from now on.
// Default one hour.
func (s *Server) TokenLife(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = d
}

// Revoke ends all tokens of the App's that there are.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.installations)
}

// Down makes every request end with this status and a page that is no JSON, as
// from a proxy before GitHub; with 0, connections end without an answer. Up ends it.
func (s *Server) Down(status int) (up func()) {
	set := func(down int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.down = down
	}
	if status == 0 {
		status = -1
	}
	set(status)
	return func() { set(0) }
}

// Slow delays every answer.
func (s *Server) Slow(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow = d
}

// Lag makes the next lists of pull requests, as many as lists, lack what is opened
// from now on; and the first attempts, as many as heads, to open a pull request of
// a new branch fail, since it is not seen yet.
func (s *Server) Lag(lists, heads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists, s.heads = lists, heads
}

// Next answers the next request of this kind. Path is without the API's base.
func (s *Server) Next(method, path string, a Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, planned{method, path, a})
}

// Protect makes rules of the base branch forbid merging, with GitHub's words for
// why; "" is a review that is missing.
func (s *Server) Protect(words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if words == "" {
		words = "At least 1 approving review is required by reviewers with write access."
	}
	s.protected = words
}

// Strict makes the rules ask that a branch has all of the base branch.
func (s *Server) Strict() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strict = true
}

// Methods are those that the repo allows, of "merge", "squash" and "rebase".
func (s *Server) Methods(methods ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.methods = methods
}

// Modified makes the next n merges find that the base branch was modified just
// then.
func (s *Server) Modified(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.modified = n
}

// DeleteMerged makes the repo delete branches that are merged by itself.
func (s *Server) DeleteMerged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deletes = true
}

// reply is an answer. A body that is nil is none.
type reply struct {
	status int
	body   any
	header map[string]string
}

// endpoint is what the API does at an address.
type endpoint struct {
	pattern string
	// docs is where GitHub documents it, below docs.github.com.
	docs string
	// needs is the permission, as GitHub writes it in a header.
	needs string
	do    func(s *Server, r *request) reply
}

// request is one that was let in.
type request struct {
	*http.Request
	docs string
	body []byte
}

func (r *request) decode(v any) error { return json.Unmarshal(r.body, v) }

// failure is an error in GitHub's shape. Errors may be nil.
func (r *request) failure(status int, message string, errors ...map[string]string) reply {
	body := map[string]any{"message": message, "documentation_url": "https://docs.github.com/" + r.docs, "status": strconv.Itoa(status)}
	if len(errors) > 0 {
		body["errors"] = errors
	}
	return reply{status: status, body: body}
}

func (r *request) broken(err error) reply {
	return r.failure(http.StatusInternalServerError, err.Error())
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, e := range endpoints {
		method, path, _ := strings.Cut(e.pattern, " ")
		mux.HandleFunc(method+" /api/v3"+path, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, e) })
	}
	mux.HandleFunc("/api/v3/", func(w http.ResponseWriter, r *http.Request) {
		s.t.Errorf("githubtest: %s %s is no endpoint that this GitHub has", r.Method, r.URL)
		http.NotFound(w, r)
	})
	mux.Handle("/"+s.Owner+"/", s.cloning())
	return mux
}

// cloning is Git's own server, for whoever has a token.
func (s *Server) cloning() http.Handler {
	path, err := s.git.run(nil, nil, "--exec-path")
	if err != nil {
		s.t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path:       filepath.Join(strings.TrimSpace(path), "git-http-backend"),
		Root:       "/" + s.Owner,
		Env:        []string{"GIT_PROJECT_ROOT=" + filepath.Dir(s.Dir), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "REMOTE_USER=git"},
		InheritEnv: []string{"PATH"},
		Stderr:     io.Discard,
		Logger:     log.New(io.Discard, "", 0),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.fails(w) {
			return
		}
		_, password, _ := r.BasicAuth()
		s.mu.Lock()
		ok := s.accepts(password)
		s.mu.Unlock()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="GitHub"`)
			http.Error(w, "Repository not found.", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	})
}

// fails plays a GitHub that is down.
func (s *Server) fails(w http.ResponseWriter) bool {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	switch {
	case down == 0:
		return false
	case down < 0:
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			s.t.Errorf("githubtest: %v", err)
			return true
		}
		conn.Close()
	default:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(down)
		io.WriteString(w, "<html><title>Unicorn!</title><p>We had issues producing the response to your request.</html>")
	}
	return true
}

func (s *Server) serve(w http.ResponseWriter, hr *http.Request, e endpoint) {
	path := strings.TrimPrefix(hr.URL.Path, "/api/v3")
	s.mu.Lock()
	s.calls = append(s.calls, hr.Method+" "+path)
	slow := s.slow
	s.mu.Unlock()
	if slow > 0 {
		timer := time.NewTimer(slow)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-hr.Context().Done():
			return
		}
	}
	if s.fails(w) {
		return
	}
	r := &request{Request: hr, docs: e.docs}
	var err error
	if r.body, err = io.ReadAll(hr.Body); err != nil {
		return // the client is gone
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	rep := s.answer(r, e, path)
	var text []byte
	if rep.body != nil {
		if text, err = json.Marshal(rep.body); err != nil {
			s.t.Errorf("githubtest: %v", err)
		}
		if raw, ok := rep.body.(json.RawMessage); ok {
			text = raw
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-GitHub-Media-Type", "github.v3; format=json")
	h.Set("X-GitHub-Api-Version-Selected", "2022-11-28")
	h.Set("X-GitHub-Request-Id", rand.Text()[:20])
	if rep.status != http.StatusUnauthorized {
		if s.budget > 0 && rep.status == http.StatusOK && hr.Method == http.MethodGet {
			sum := sha256.Sum256(text)
			etag := `W/"` + hex.EncodeToString(sum[:]) + `"`
			h.Set("ETag", etag)
			if hr.Header.Get("If-None-Match") == etag {
				rep.status, text = http.StatusNotModified, nil
			}
		}
		if s.budget > 0 && rep.status != http.StatusNotModified {
			s.budget--
		}
		h.Set("X-RateLimit-Limit", strconv.Itoa(limit))
		h.Set("X-RateLimit-Remaining", strconv.Itoa(s.budget))
		h.Set("X-RateLimit-Used", strconv.Itoa(limit-s.budget))
		h.Set("X-RateLimit-Reset", strconv.FormatInt(s.reset.Unix(), 10))
		h.Set("X-RateLimit-Resource", "core")
	}
	for key, value := range rep.header {
		h.Set(key, value)
	}
	w.WriteHeader(rep.status)
	w.Write(text) // a client that is gone is its own trouble
}

// answer has the order in which GitHub refuses.
func (s *Server) answer(r *request, e endpoint, path string) reply {
	if r.UserAgent() == "" {
		return r.failure(http.StatusForbidden, "Request forbidden by administrative rules. Please make sure your request has a User-Agent header (https://docs.github.com/en/rest/overview/resources-in-the-rest-api#user-agent-required). Check https://developer.github.com for other possible causes.")
	}
	if accept := r.Header.Get("Accept"); !strings.HasPrefix(accept, "application/vnd.github") {
		return r.failure(http.StatusUnsupportedMediaType, "Unsupported 'Accept' header: '"+accept+"'. Must accept 'application/json'.")
	}
	if version := r.Header.Get("X-GitHub-Api-Version"); version != "2022-11-28" {
		return r.failure(http.StatusBadRequest, "\""+version+"\" is not a valid API version.")
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if strings.HasPrefix(path, "/app/") {
		if message := s.jwtTrouble(token, time.Now()); message != "" || s.denied {
			return r.failure(http.StatusUnauthorized, cmp.Or(message, "Bad credentials"))
		}
		return e.do(s, r)
	}
	if token == "" {
		return r.failure(http.StatusNotFound, "Not Found") // as for every private repo
	}
	if !s.accepts(token) {
		r.docs = "rest"
		return r.failure(http.StatusUnauthorized, "Bad credentials")
	}
	if s.budget <= 0 && time.Now().Before(s.reset) {
		r.docs = "rest/overview/rate-limits-for-the-rest-api"
		return r.failure(s.limitStatus, "API rate limit exceeded for user ID 1. If you reach out to GitHub Support for help, please include the request ID and timestamp.")
	}
	if s.budget <= 0 {
		s.budget, s.reset = limit, time.Now().Add(time.Hour)
	}
	if s.secondary > 0 && r.Method != http.MethodGet {
		s.secondary--
		r.docs = "free-pro-team@latest/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"
		rep := r.failure(http.StatusForbidden, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again. If you reach out to GitHub Support for help, please include the request ID.")
		if s.retryAfter > 0 {
			rep.header = map[string]string{"Retry-After": strconv.Itoa(int(s.retryAfter / time.Second))}
		}
		return rep
	}
	for i, p := range s.answers {
		if p.method == r.Method && p.path == path {
			s.answers = slices.Delete(s.answers, i, i+1)
			return reply{p.answer.Status, json.RawMessage(p.answer.Body), p.answer.Header}
		}
	}
	if r.PathValue("owner") != s.Owner || r.PathValue("repo") != s.Repo {
		return r.failure(http.StatusNotFound, "Not Found")
	}
	if permission, level, _ := strings.Cut(e.needs, "="); level == "write" && s.permissions[permission] != "write" {
		actor := "personal access token"
		if token != s.Token {
			actor = "integration"
		}
		rep := r.failure(http.StatusForbidden, "Resource not accessible by "+actor)
		rep.header = map[string]string{"X-Accepted-GitHub-Permissions": e.needs}
		return rep
	}
	if err := s.settle(); err != nil {
		return r.broken(err)
	}
	return e.do(s, r)
}

// accepts reports whether a token is good now. The caller holds the lock.
func (s *Server) accepts(token string) bool {
	if s.denied || token == "" {
		return false
	}
	return token == s.Token || time.Now().Before(s.installations[token])
}

func (s *Server) api(format string, args ...any) string {
	return s.http.URL + "/api/v3/repos/" + s.Owner + "/" + s.Repo + fmt.Sprintf(format, args...)
}

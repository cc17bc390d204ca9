package githubtest_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github/githubtest"
)

// ask is one request as a client makes it that knows the rules, but for the
// headers given, by twos.
func ask(t *testing.T, s *githubtest.Server, method, path, body string, headers ...string) (*http.Response, map[string]any) {
	t.Helper()
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.github+json")
	req.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	req.Header.Set("Authorization", "Bearer "+s.Token)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if len(text) > 0 && text[0] == '{' {
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatal(err)
		}
	}
	return resp, answer
}

// Every refusal has GitHub's shape, and every answer to somebody known the rate
// limit's headers.
func TestRefusals(t *testing.T) {
	s := githubtest.New(t)
	for _, c := range []struct {
		method, path, body string
		headers            []string
		status             int
		message            string
	}{
		{"GET", "repos/acme/fleet/pulls", "", []string{"User-Agent", ""}, 403, "Request forbidden by administrative rules."},
		{"GET", "repos/acme/fleet/pulls", "", []string{"Accept", "text/html"}, 415, "Unsupported 'Accept' header"},
		{"GET", "repos/acme/fleet/pulls", "", []string{"X-GitHub-Api-Version", "2001-01-01"}, 400, "not a valid API version"},
		{"GET", "repos/acme/fleet/pulls", "", []string{"Authorization", ""}, 404, "Not Found"},
		{"GET", "repos/acme/fleet/pulls", "", []string{"Authorization", "Bearer wrong"}, 401, "Bad credentials"},
		{"GET", "repos/acme/else/pulls", "", nil, 404, "Not Found"},
		{"GET", "repos/acme/fleet/branches/else", "", nil, 404, "Branch not found"},
		{"GET", "repos/acme/fleet/pulls/1", "", nil, 404, "Not Found"},
		{"GET", "repos/acme/fleet/compare/main...else", "", nil, 404, "Not Found"},
		{"GET", "repos/acme/fleet/git/ref/heads/els", "", nil, 404, "Not Found"},
		{"POST", "repos/acme/fleet/pulls", "{", nil, 400, "Problems parsing JSON"},
		{"POST", "repos/acme/fleet/pulls", `{"title":"","head":"main","base":"main"}`, nil, 422, "Validation Failed"},
		{"POST", "repos/acme/fleet/pulls", `{"title":"t","head":"main","base":"main"}`, nil, 422, "Validation Failed"},
		{"POST", "repos/acme/fleet/git/trees", `{"tree":[]}`, nil, 422, "Invalid tree info"},
		{"POST", "repos/acme/fleet/git/commits", `{"message":"m","tree":"1111111111111111111111111111111111111111"}`, nil, 422, "Tree SHA does not exist"},
		{"POST", "repos/acme/fleet/git/refs", `{"ref":"refs/heads/x","sha":"4b825dc642cb6eb9a060e54bf8d69288fbee4904"}`, nil, 422, "Object does not exist"},
		{"PATCH", "repos/acme/fleet/git/refs/heads/x", `{"sha":"4b825dc642cb6eb9a060e54bf8d69288fbee4904"}`, nil, 422, "Reference does not exist"},
		{"DELETE", "repos/acme/fleet/git/refs/heads/x", "", nil, 422, "Reference does not exist"},
		{"PUT", "repos/acme/fleet/pulls/1/merge", "{}", nil, 404, "Not Found"},
	} {
		resp, answer := ask(t, s, c.method, c.path, c.body, c.headers...)
		message, _ := answer["message"].(string)
		docs, _ := answer["documentation_url"].(string)
		if resp.StatusCode != c.status || !strings.Contains(message, c.message) || answer["status"] != fmt.Sprint(c.status) || !strings.HasPrefix(docs, "https://docs.github.com/rest") {
			t.Errorf("%s %s %q: %d %v", c.method, c.path, c.headers, resp.StatusCode, answer)
		}
		if known := c.status != 401; (resp.Header.Get("X-RateLimit-Remaining") != "") != known || resp.Header.Get("X-GitHub-Request-Id") == "" {
			t.Errorf("%s %s: headers %v", c.method, c.path, resp.Header)
		}
	}
}

// What has not changed costs nothing.
func TestETag(t *testing.T) {
	s := githubtest.New(t)
	first, _ := ask(t, s, "GET", "repos/acme/fleet/branches/main", "")
	etag, spent := first.Header.Get("ETag"), s.Spent()
	if again, _ := ask(t, s, "GET", "repos/acme/fleet/branches/main", "", "If-None-Match", etag); again.StatusCode != 304 || s.Spent() != spent {
		t.Errorf("%d, and %d spent", again.StatusCode, s.Spent()-spent)
	}
	s.Person().Commit(t, "main", "Move on", forge.File{Path: "a", Content: []byte("a")})
	if again, _ := ask(t, s, "GET", "repos/acme/fleet/branches/main", "", "If-None-Match", etag); again.StatusCode != 200 || s.Spent() != spent+1 {
		t.Errorf("%d, and %d spent", again.StatusCode, s.Spent()-spent)
	}
}

// Pull requests follow their branches, whoever moves those.
func TestPullsFollow(t *testing.T) {
	s := githubtest.New(t)
	person := s.Person()
	var heads []string
	for i, branch := range []string{"pushed", "deleted", "merged"} {
		heads = append(heads, person.Commit(t, branch, "Begin", forge.File{Path: branch, Content: []byte("1")}))
		resp, answer := ask(t, s, "POST", "repos/acme/fleet/pulls", `{"title":"t","head":"`+branch+`","base":"main"}`)
		if resp.StatusCode != 201 || answer["number"] != float64(i+1) || answer["mergeable"] != nil {
			t.Fatal(resp.StatusCode, answer)
		}
	}
	if resp, _ := ask(t, s, "GET", "repos/acme/fleet/pulls?state=open&per_page=1&page=2", ""); !strings.Contains(resp.Header.Get("Link"), `page=3&per_page=1&state=open>; rel="next"`) {
		t.Errorf("links are %q", resp.Header.Get("Link"))
	}
	pushed := person.Commit(t, "pushed", "Change", forge.File{Path: "pushed", Content: []byte("2")})
	person.Delete(t, forge.Pull{Branch: "deleted"})
	person.Merge(t, forge.Pull{Branch: "merged"})
	for i, want := range []struct{ state, head string }{{"open", pushed}, {"closed", heads[1]}, {"merged", heads[2]}} {
		if got := s.Pulls(t)[i]; got.State != want.state || got.Head != want.head {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	for _, mergeable := range []any{nil, true} { // the first look only begins to find out
		if _, answer := ask(t, s, "GET", "repos/acme/fleet/pulls/1", ""); answer["mergeable"] != mergeable {
			t.Errorf("mergeable %v, want %v", answer["mergeable"], mergeable)
		}
	}
}

// An App's own token is looked at as GitHub does.
func TestAppToken(t *testing.T) {
	s := githubtest.New(t)
	block, _ := pem.Decode([]byte(s.App.PrivateKey))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(header string, iss any, iat, exp time.Duration) string {
		now := time.Now()
		claims, err := json.Marshal(map[string]any{"iss": iss, "iat": now.Add(iat).Unix(), "exp": now.Add(exp).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(claims)
		sum := sha256.Sum256([]byte(text))
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + base64.RawURLEncoding.EncodeToString(signature)
	}
	const rs256 = `{"alg":"RS256","typ":"JWT"}`
	id := fmt.Sprint(s.App.ID)
	path := fmt.Sprintf("app/installations/%d/access_tokens", s.App.Installation)
	body := `{"repositories":["fleet"],"permissions":{"contents":"write"}}`
	for _, c := range []struct {
		token, body string
		status      int
		message     string
	}{
		{sign(rs256, id, -time.Minute, 9*time.Minute), body, 201, ""},
		{sign(rs256, id, -time.Minute, 9*time.Minute), `{"repositories":["else"]}`, 422, "There is at least one repository"},
		{sign(rs256, id, -time.Minute, 9*time.Minute), `{"repositories":["fleet"],"permissions":{"administration":"write"}}`, 422, "permissions requested"},
		{sign(rs256, id, -time.Minute, 20*time.Minute), body, 401, "too far in the future"},
		{sign(rs256, id, -20*time.Minute, -time.Minute), body, 401, "the assertion expires"},
		{sign(rs256, id, time.Hour, 9*time.Minute), body, 401, "'Issued at'"},
		{sign(rs256, "1", -time.Minute, 9*time.Minute), body, 401, "Integration not found"},
		{sign(`{"alg":"none"}`, id, -time.Minute, 9*time.Minute), body, 401, "could not be decoded"},
		{sign(rs256, id, -time.Minute, 9*time.Minute) + "A", body, 401, "could not be decoded"},
		{s.Token, body, 401, "could not be decoded"},
	} {
		resp, answer := ask(t, s, "POST", path, c.body, "Authorization", "Bearer "+c.token)
		message, _ := answer["message"].(string)
		if resp.StatusCode != c.status || !strings.Contains(message, c.message) {
			t.Errorf("%d %v, want %d %q", resp.StatusCode, answer, c.status, c.message)
		}
		if token, _ := answer["token"].(string); c.status == 201 {
			if resp, _ := ask(t, s, "GET", "repos/acme/fleet/pulls", "", "Authorization", "Bearer "+token); resp.StatusCode != 200 {
				t.Errorf("the token it gave is answered with %d", resp.StatusCode)
			}
		}
	}
}

package github

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	gh "github.com/google/go-github/v62/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// tokens has what to put into the Authorization header.
type tokens interface {
	token(ctx context.Context) (string, error)
	// refused is told of a token that GitHub no longer takes, and reports whether
	// another may do.
	refused(token string) bool
}

func tokensOf(c Config, base *url.URL, wire http.Client) (tokens, error) {
	switch app := c.App; {
	case c.Token != "" && app != (App{}):
		return nil, errors.New("there are a token and an app: give one of them")
	case c.Token != "":
		return fixed(c.Token), nil
	case app == (App{}):
		return nil, errors.New("there are no credentials: give a token, or an app")
	case app.ID <= 0 || app.Installation <= 0:
		return nil, errors.New("an app needs its id and its installation's")
	default:
		key, err := privateKey(app.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("private key of app %d: %w", app.ID, err)
		}
		wire.Transport = &bearer{next: wire.Transport, base: base, tokens: signer{app.ID, key}}
		return &installation{
			client: client(base, &wire), id: app.Installation, repo: c.Repo, turn: make(chan struct{}, 1),
		}, nil
	}
}

func privateKey(text string) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("it is neither PKCS #1 nor PKCS #8")
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is not an RSA key")
	}
	return key, nil
}

// bearer adds the credentials to requests to the API, and to no other host, to
// which an answer might redirect.
type bearer struct {
	next   http.RoundTripper
	base   *url.URL
	tokens tokens
}

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != b.base.Scheme || req.URL.Host != b.base.Host {
		return b.next.RoundTrip(req)
	}
	for first := true; ; first = false {
		token, err := b.tokens.token(req.Context())
		if err != nil {
			closeBody(req)
			return nil, err
		}
		sent := req.Clone(req.Context())
		sent.Header.Set("Authorization", "Bearer "+token)
		if !first && req.GetBody != nil {
			if sent.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		resp, err := b.next.RoundTrip(sent)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || !first || req.Body != nil && req.GetBody == nil || !b.tokens.refused(token) {
			return resp, err
		}
		resp.Body.Close()
	}
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// fixed is a token that somebody made.
type fixed string

func (f fixed) token(context.Context) (string, error) { return string(f), nil }

func (fixed) refused(string) bool { return false }

// signer is an App that speaks for itself: it signs a token for each request (RFC
// 7519, with RS256 of RFC 7518 section 3.3).
type signer struct {
	id  int64
	key *rsa.PrivateKey
}

func (s signer) token(context.Context) (string, error) {
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": strconv.FormatInt(s.id, 10),
		// GitHub takes ten minutes at most, and its clock may be behind.
		"iat": now.Add(-time.Minute).Unix(),
		"exp": now.Add(8 * time.Minute).Unix(),
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + encode(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(nil, s.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign as the app: %w", err)
	}
	return text + "." + encode(signature), nil
}

func (signer) refused(string) bool { return false }

// installation gets tokens for an App's installation, each for an hour, and for
// the one repo with no more than is needed.
type installation struct {
	client *gh.Client
	id     int64
	repo   string

	turn chan struct{} // held while a token is asked for

	mu    sync.Mutex
	last  string
	until time.Time
}

// early is how long before its end a token is no longer used.
const early = time.Minute

func (i *installation) token(ctx context.Context) (string, error) {
	select {
	case i.turn <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-i.turn }()
	i.mu.Lock()
	last, until := i.last, i.until
	i.mu.Unlock()
	if last != "" && time.Now().Before(until.Add(-early)) {
		return last, nil
	}
	made, _, err := i.client.Apps.CreateInstallationToken(ctx, i.id, &gh.InstallationTokenOptions{
		Repositories: []string{i.repo},
		Permissions:  &gh.InstallationPermissions{Contents: gh.String("write"), PullRequests: gh.String("write")},
	})
	if err != nil {
		return "", i.meaning(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last, i.until = made.GetToken(), made.GetExpiresAt().Time
	return i.last, nil
}

func (i *installation) refused(token string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last == token {
		i.last = ""
	}
	return true
}

// meaning is what GitHub says to the App itself, rather than of the repo.
func (i *installation) meaning(err error) error {
	switch status(err) {
	case http.StatusNotFound, http.StatusUnprocessableEntity:
		// The latter when the repo is not among the installation's, or the App was
		// not given the permissions.
		return refusal{fmt.Sprintf("the app's installation %d may not do this at the repo: %s", i.id, said(err)), forge.ErrDenied}
	}
	return trouble("get a token for the app", err)
}

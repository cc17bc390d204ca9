package github_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github/githubtest"
)

// tokens counts the tokens that the App asked for.
func tokens(s *githubtest.Server) (n int) {
	for _, call := range s.Calls() {
		if strings.HasSuffix(call, "/access_tokens") {
			n++
		}
	}
	return n
}

// One token does for an hour, and for all who ask at once.
func TestAppToken(t *testing.T) {
	s := githubtest.New(t)
	f := open(t, byApp(s))
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if _, err := f.Find(t.Context(), "kokoa/register/vm1"); !errors.Is(err, forge.ErrNoPull) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	propose(t, f, proposal("vm1", "new"))
	if n := tokens(s); n != 1 {
		t.Errorf("asked for %d tokens", n)
	}
}

// A token is not used up to its last second, and one that GitHub ended before its
// time is replaced without the caller's knowing, whatever was being asked.
func TestAppTokenEnds(t *testing.T) {
	s := githubtest.New(t)
	s.TokenLife(30 * time.Second)
	f := open(t, byApp(s))
	for range 3 {
		if _, err := f.Find(t.Context(), "kokoa/register/vm1"); !errors.Is(err, forge.ErrNoPull) {
			t.Fatal(err)
		}
	}
	if n := tokens(s); n != 3 {
		t.Errorf("asked for %d tokens", n)
	}

	s.TokenLife(time.Hour)
	pull := propose(t, f, proposal("vm1", "new"))
	tokens(s)
	s.Revoke()
	if _, err := f.Find(t.Context(), pull.Branch); err != nil {
		t.Error(err)
	}
	s.Revoke()
	changed := proposal("vm1", "newer")
	if again := propose(t, f, changed); again.Number != pull.Number {
		t.Errorf("proposed %+v, then %+v", pull, again)
	}
	if n := tokens(s); n != 2 {
		t.Errorf("asked for %d tokens after two were revoked", n)
	}
}

func TestAppRefused(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*github.App)
		says   string
	}{
		{func(a *github.App) { a.ID++ }, "Integration not found"},
		{func(a *github.App) { a.Installation++ }, "the app's installation 816 may not do this at the repo"},
		{func(a *github.App) {
			a.PrivateKey = string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(other)}))
		}, "A JSON web token could not be decoded"},
	} {
		config := byApp(githubtest.New(t))
		c.change(&config.App)
		_, err := open(t, config).Propose(t.Context(), proposal("vm1", "new"))
		if !errors.Is(err, forge.ErrDenied) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, want %q", err, c.says)
		}
	}

	// PKCS #8 is taken as well.
	s := githubtest.New(t)
	config := byApp(s)
	block, _ := pem.Decode([]byte(config.App.PrivateKey))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config.App.PrivateKey = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	propose(t, open(t, config), proposal("vm1", "new"))
}

func TestConfigHides(t *testing.T) {
	c := github.Config{Owner: "acme", Repo: "fleet", Token: "github_pat_secret", App: github.App{ID: 1, PrivateKey: "secret"}}
	var text strings.Builder
	for _, v := range []any{c, &c, c.App, &c.App, struct{ C github.Config }{c}, struct{ A github.App }{c.App}} {
		fmt.Fprintf(&text, "%v %+v %#v %s\n", v, v, v, v)
	}
	slog.New(slog.NewTextHandler(&text, nil)).Info("opened", "kind", c, "reason", c.App)
	slog.New(slog.NewJSONHandler(&text, nil)).Info("opened", "kind", c, "reason", c.App)
	if strings.Contains(text.String(), "secret") {
		t.Errorf("it shows:\n%s", &text)
	}
}

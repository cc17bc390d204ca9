package github_test

import (
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/forge/forgetest"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github"
	"github.com/kokoa-proxy/kokoa/registrar/forge/github/githubtest"
)

// byToken and byApp are the two ways to say who asks.
func byToken(s *githubtest.Server) github.Config {
	return github.Config{URL: s.URL, Owner: s.Owner, Repo: s.Repo, Token: s.Token, HTTP: s.Client()}
}

func byApp(s *githubtest.Server) github.Config {
	c := byToken(s)
	c.Token, c.App = "", github.App{ID: s.App.ID, Installation: s.App.Installation, PrivateKey: s.App.PrivateKey}
	return c
}

func open(t *testing.T, c github.Config) *github.Forge {
	t.Helper()
	f, err := github.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	f.Hasten()
	return f
}

func TestSuite(t *testing.T) {
	for name, config := range map[string]func(*githubtest.Server) github.Config{"token": byToken, "app": byApp} {
		t.Run(name, func(t *testing.T) {
			forgetest.Run(t, func(t *testing.T) forgetest.Place { return place(t, githubtest.New(t), config) })
		})
	}
}

func place(t *testing.T, s *githubtest.Server, config func(*githubtest.Server) github.Config) forgetest.Place {
	// People push to the repository itself, since that is quicker.
	person := forgetest.Person{Remote: s.Dir, Base: s.Branch}
	secret := config(s).Token
	if secret == "" {
		secret = config(s).App.PrivateKey
	}
	return forgetest.Place{
		Forge: open(t, config(s)), Again: func(t *testing.T) forge.Forge { return open(t, config(s)) }, Base: s.Branch,
		Commit: person.Commit, Read: person.Read, Descends: person.Descends,
		Merge: func(t *testing.T, p forge.Pull) { s.Merge(t, p.Number) },
		Close: func(t *testing.T, p forge.Pull) { s.Close(t, p.Number) },
		Requests: func(t *testing.T) (open []forgetest.Request) {
			for _, p := range s.Pulls(t) {
				if p.State == "open" {
					open = append(open, forgetest.Request{Number: p.Number, Branch: p.Branch, Title: p.Title, Body: p.Body})
				}
			}
			return open
		},
		Protect: func(*testing.T) { s.Protect("") },
		Deny:    func(*testing.T) { s.Deny() },
		Stop:    func(*testing.T) func() { return s.Down(0) },
		Secret:  secret,
	}
}

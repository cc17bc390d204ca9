package bare_test

import (
	"os"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge/bare"
	"github.com/kokoa-proxy/kokoa/registrar/forge/forgetest"
)

func TestSuite(t *testing.T) {
	forgetest.Run(t, func(t *testing.T) forgetest.Place {
		dir := forgetest.NewBare(t, "main")
		person := forgetest.Person{Remote: dir, Base: "main"}
		return forgetest.Place{
			Forge:    open(t, dir),
			Again:    func(t *testing.T) forgetest.Forge { return open(t, dir) },
			Base:     "main",
			Commit:   person.Commit,
			Read:     person.Read,
			Descends: person.Descends,
			Merge:    person.Merge,
			Close:    person.Delete,
			Requests: func(t *testing.T) []forgetest.Request { return requests(t, person) },
			Stop: func(t *testing.T) func() {
				rename(t, dir, dir+".away")
				return func() { rename(t, dir+".away", dir) }
			},
		}
	})
}

func open(t *testing.T, dir string) *bare.Forge {
	t.Helper()
	f, err := bare.Open(dir, "main", bare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// requests are the branches that the base branch does not have.
func requests(t *testing.T, p forgetest.Person) []forgetest.Request {
	t.Helper()
	var all []forgetest.Request
	for _, branch := range p.Branches(t) {
		c, ok := p.Read(t, branch)
		if branch == p.Base || !ok || p.Descends(t, p.Base, c.Hash) {
			continue
		}
		title, body, _ := strings.Cut(c.Message, "\n\n")
		all = append(all, forgetest.Request{Branch: branch, Title: title, Body: body})
	}
	return all
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}


// Package forgetest has the suite that every make of forge passes, and a person
// who works on the same repo with Git.
package forgetest

import (
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Place is a repo of its own at a forge, with one commit or more on its base
// branch, and what people can do there. The functions fail the test when they
// cannot do it. A Person has most of them, wherever Git reaches the repo.
type Place struct {
	// Forge is what is tested. Again makes another value for the same repo, with
	// the same credentials, as a second process would.
	Forge forge.Forge
	Again func(t *testing.T) forge.Forge
	// Base is the name of the base branch.
	Base string

	// Commit makes one commit on a branch, and returns its hash. A branch that is
	// not there begins at the base branch. A file without content is removed.
	Commit func(t *testing.T, branch, message string, files ...forge.File) string
	// Read is a branch's commit; ok is false when there is no such branch.
	Read func(t *testing.T, branch string) (c Commit, ok bool)
	// Descends reports whether a commit is in a branch's history.
	Descends func(t *testing.T, branch, commit string) bool
	// Merge merges an open pull request, and Close closes it without merging, in
	// the way that people do at this forge. The branch may be left.
	Merge, Close func(t *testing.T, p forge.Pull)
	// Requests lists the open pull requests.
	Requests func(t *testing.T) []Request

	// What follows is nil, or empty, for a make of forge that has no such thing.

	// Protect sets rules of the base branch that forbid the forge to merge.
	Protect func(t *testing.T)
	// Deny makes the forge refuse the credentials from now on.
	Deny func(t *testing.T)
	// Stop makes the forge unreachable, until start is called.
	Stop func(t *testing.T) (start func())
	// Secret is the credential: it must not show.
	Secret string
}

// Commit is a commit as Git has it.
type Commit struct {
	Hash string
	// Parents are hashes.
	Parents []string
	// Message is all of it, without white space at the end.
	Message string
	// Files are all files of the commit's tree, by path.
	Files map[string]string
}

// Request is an open pull request as people see it.
type Request struct {
	// Number is 0 where the forge has none.
	Number              int
	Branch, Title, Body string
}

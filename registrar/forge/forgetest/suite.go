package forgetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// Run runs the suite. It calls open once for every test, and nothing of a Place
// after its test.
func Run(t *testing.T, open func(t *testing.T) Place) {
	for _, c := range []struct {
		name string
		test func(s *suite)
	}{
		{"propose", (*suite).propose},
		{"propose again", (*suite).proposeAgain},
		{"propose at once", (*suite).proposeAtOnce},
		{"propose something else", (*suite).proposeElse},
		{"propose over what others pushed", (*suite).proposeOver},
		{"propose on a branch that was left", (*suite).proposeLeftOver},
		{"propose removals", (*suite).proposeRemovals},
		{"propose many files", (*suite).proposeMany},
		{"odd text", (*suite).oddText},
		{"base moved", (*suite).baseMoved},
		{"base moved, merge", (*suite).baseMovedMerge},
		{"base moved in the same file", (*suite).baseMovedSameFile},
		{"base moved from what was read", (*suite).baseMovedFromRead},
		{"merge", (*suite).merge},
		{"merge what is stale", (*suite).mergeStale},
		{"merge what others pushed to", (*suite).mergePushed},
		{"merge two at once", (*suite).mergeTwo},
		{"close", (*suite).close},
		{"merged by a person", (*suite).personMerged},
		{"closed by a person", (*suite).personClosed},
		{"find", (*suite).find},
		{"cancelled", (*suite).cancelled},
		{"protected", (*suite).protected},
		{"denied", (*suite).denied},
		{"unreachable", (*suite).unreachable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &suite{T: t, Place: open(t)}
			c.test(s)
		})
	}
}

type suite struct {
	*testing.T
	Place
}

// A proposal becomes one commit on the base branch's head, in a pull request that
// says what it was told to, and the base branch stays as it is.
func (s *suite) propose() {
	before := s.read(s.Base)
	p := s.mustPropose(origin("rpi-home", "first"))
	if p.Branch != "kokoa/register/rpi-home" || p.State != forge.Open || p.URL == "" {
		s.Errorf("proposed as %+v", p)
	}
	s.onHead(p, origin("rpi-home", "first"))
	s.requests(p)
	if got := s.Requests(s.T)[0]; got.Title != "Add origin rpi-home" || got.Number != p.Number {
		s.Errorf("people see %+v of %+v", got, p)
	}
	if after := s.read(s.Base); after.Hash != before.Hash {
		s.Errorf("the base branch moved from %s to %s", before.Hash, after.Hash)
	}
	if s.Forge.String() == "" || s.Secret != "" && strings.Contains(s.Forge.String(), s.Secret) {
		s.Errorf("the place is called %q", s.Forge)
	}
}

// A proposal that stands already is found, also by another process, and nothing is
// written.
func (s *suite) proposeAgain() {
	first := s.mustPropose(origin("rpi-home", "first"))
	for _, f := range []forge.Forge{s.Forge, s.Again(s.T)} {
		again, err := f.Propose(s.Context(), origin("rpi-home", "first"))
		if err != nil || again != first {
			s.Errorf("proposed again as %+v, %v; it was %+v", again, err, first)
		}
	}
	s.onHead(first, origin("rpi-home", "first"))
	s.requests(first)
}

// However many propose the same at once, from nothing and later, there is one pull
// request, and all are told of it.
func (s *suite) proposeAtOnce() {
	forges := []forge.Forge{s.Forge, s.Again(s.T)}
	var first forge.Pull
	for round := range 2 {
		pulls, errs := make([]forge.Pull, 20), make([]error, 20)
		var all sync.WaitGroup
		for i := range pulls {
			all.Go(func() {
				pulls[i], errs[i] = forges[i%2].Propose(s.Context(), origin("rpi-home", "first"))
			})
		}
		all.Wait()
		if round == 0 {
			first = pulls[0]
		}
		for i := range pulls {
			if errs[i] != nil || pulls[i] != first {
				s.Errorf("round %d: one proposed %+v, %v; another %+v", round, pulls[i], errs[i], first)
			}
		}
		s.onHead(first, origin("rpi-home", "first"))
		s.requests(first)
	}
}

// A changed proposal changes the pull request that is open: files, title and body.
func (s *suite) proposeElse() {
	first := s.mustPropose(origin("rpi-home", "first"))
	changed := origin("rpi-home", "second")
	changed.Files[0].Path = "elsewhere/rpi-home.cue"
	changed.Title, changed.Body = "Add origin rpi-home, elsewhere", "Another text."
	second := s.mustPropose(changed)
	if second.Number != first.Number || second.Head == first.Head {
		s.Errorf("proposed as %+v, and changed as %+v", first, second)
	}
	s.onHead(second, changed)
	s.requests(second)
	if got := s.Requests(s.T)[0]; got.Title != changed.Title || trim(got.Body) != changed.Body {
		s.Errorf("people see %+v", got)
	}

	// The text alone is a change as well.
	changed.Title = "Add origin rpi-home, elsewhere again"
	third := s.mustPropose(changed)
	s.requests(third)
	if got := s.Requests(s.T)[0]; third.Number != first.Number || got.Title != changed.Title {
		s.Errorf("people see %+v of %+v", got, third)
	}
}

// What others push to a proposal's branch gives way to the proposal.
func (s *suite) proposeOver() {
	first := s.mustPropose(origin("rpi-home", "first"))
	s.Commit(s.T, first.Branch, "Change it", file("origins/rpi-home.cue", "theirs"), file("more.cue", "theirs"))
	again := s.mustPropose(origin("rpi-home", "first"))
	if again.Number != first.Number {
		s.Errorf("proposed as %+v, and again as %+v", first, again)
	}
	s.onHead(again, origin("rpi-home", "first"))
	s.requests(again)
}

// A branch without a pull request, as an end halfway leaves it, is taken over.
func (s *suite) proposeLeftOver() {
	s.Commit(s.T, "kokoa/register/rpi-home", "Half a proposal", file("origins/rpi-home.cue", "half"), file("more.cue", "half"))
	s.Commit(s.T, s.Base, "Move on", file("moved.cue", "on"))
	p := s.mustPropose(origin("rpi-home", "first"))
	s.onHead(p, origin("rpi-home", "first"))
	s.requests(p)
}

// Files are removed, and one that is not there is no trouble.
func (s *suite) proposeRemovals() {
	s.Commit(s.T, s.Base, "Fill", file("origins/old.cue", "old"), file("origins/kept.cue", "kept"), file("alone/old.cue", "old"))
	p := forge.Proposal{Branch: "kokoa/clean", Title: "Clean up", Body: "They have expired.", Files: []forge.File{
		{Path: "origins/old.cue"}, {Path: "alone/old.cue"}, {Path: "origins/never.cue"}, {Path: "nowhere/never.cue"},
	}}
	pull := s.mustPropose(p)
	s.onHead(pull, p)
	if again := s.mustPropose(p); again != pull {
		s.Errorf("proposed as %+v, and again as %+v", pull, again)
	}
	s.mustMerge(pull)
	s.contains(s.read(s.Base), p)
	if got := s.read(s.Base).Files["origins/kept.cue"]; got != "kept" {
		s.Errorf("the file that nobody named holds %q", got)
	}
}

// Several files change in one commit: new ones, old ones, deep ones, large ones,
// and ones in scripts of all kinds.
func (s *suite) proposeMany() {
	s.Commit(s.T, s.Base, "Fill", file("a/b/old.cue", "old"), file("a/kept.cue", "kept"), file("changed.cue", "before"))
	p := forge.Proposal{Branch: "kokoa/many", Title: "Change much", Body: "All at once.", Files: []forge.File{
		file("new.cue", "new"),
		file("changed.cue", "after"),
		file("a/b/c/d/e/deep.cue", "deep"),
		file("a/b/old-2.cue", ""),
		file("a-b.cue", "sorts before a/ and after a"),
		file("unicode.cue", "// Küche, 台所, кухня, 🏠\r\n\tx: \"\\u0000\"\n"),
		file("large.cue", strings.Repeat("// a line that is repeated\n", 4000)),
		{Path: "a/b/old.cue"},
	}}
	for i := range 20 {
		p.Files = append(p.Files, file(fmt.Sprintf("origins/vm%d.cue", i), fmt.Sprint(i)))
	}
	pull := s.mustPropose(p)
	s.onHead(pull, p)
	if again := s.mustPropose(p); again != pull {
		s.Errorf("proposed as %+v, and again as %+v", pull, again)
	}
	s.mustMerge(pull)
	s.contains(s.read(s.Base), p)
}

// Title and body arrive as they were.
func (s *suite) oddText() {
	p := origin("rpi-home", "first")
	p.Title = `Add origin "rpi-home" (Küche, 台所) & <more> %s`
	p.Body = "# Not a comment\n\n" +
		"- *one* `two` <three> & \"four\" 'five' \\six $HOME %s {{.}}\n" +
		"- [ ] 台所, кухня, 🏠\n\n" +
		"| a | b |\n|---|---|\n| 1 | 2 |\n\n" +
		"```cue\norigin: \"rpi-home\": {\n\tpublic_key: \"e23u5nB6xc3ueglH03JBDcK0KKJPIq8iy5N0npsASgA=\"\n}\n```"
	pull := s.mustPropose(p)
	s.onHead(pull, p)
	s.requests(pull)
	if got := s.Requests(s.T)[0]; got.Title != p.Title || trim(got.Body) != p.Body {
		s.Errorf("people see\n%s\n\n%s", got.Title, got.Body)
	}
	if again := s.mustPropose(p); again != pull {
		s.Errorf("proposed as %+v, and again as %+v", pull, again)
	}
}

// When the base branch moves, proposing again puts the branch on the new head.
func (s *suite) baseMoved() {
	first := s.mustPropose(origin("rpi-home", "first"))
	s.Commit(s.T, s.Base, "Move on", file("moved.cue", "on"))
	again := s.mustPropose(origin("rpi-home", "first"))
	if again.Number != first.Number {
		s.Errorf("proposed as %+v, and again as %+v", first, again)
	}
	s.onHead(again, origin("rpi-home", "first"))
	s.requests(again)
}

// A pull request that the base branch has moved away from without touching its
// files can be merged.
func (s *suite) baseMovedMerge() {
	p := s.mustPropose(origin("rpi-home", "first"))
	s.Commit(s.T, s.Base, "Move on", file("moved.cue", "on"), file("origins/vm1.cue", "theirs"))
	s.mustMerge(p)
	base := s.read(s.Base)
	s.contains(base, origin("rpi-home", "first"))
	if base.Files["moved.cue"] != "on" || base.Files["origins/vm1.cue"] != "theirs" {
		s.Errorf("what others did is gone: %q", base.Files)
	}
}

// A proposal of files as they were read at a commit is for that commit only: else it
// would undo what others did to them since.
func (s *suite) baseMovedFromRead() {
	p := origin("rpi-home", "edited")
	p.Base = s.read(s.Base).Hash
	first := s.mustPropose(p)
	s.onHead(first, p)
	s.Commit(s.T, s.Base, "Be faster", file("origins/rpi-home.cue", "theirs"))
	if again, err := s.Forge.Propose(s.Context(), p); !errors.Is(err, forge.ErrConflict) {
		s.Errorf("proposed over what others did: %+v, %v", again, err)
	}
	s.requests(first)
	p.Base = s.read(s.Base).Hash
	s.onHead(s.mustPropose(p), p)
}

// One whose files others changed cannot be merged; proposed again, it is the
// proposal on top of what they did.
func (s *suite) baseMovedSameFile() {
	p := s.mustPropose(origin("rpi-home", "first"))
	s.Commit(s.T, s.Base, "Be faster", file("origins/rpi-home.cue", "theirs"), file("moved.cue", "on"))
	head := s.read(s.Base).Hash
	if err := s.Forge.Merge(s.Context(), p); !errors.Is(err, forge.ErrConflict) {
		s.Errorf("merged: %v", err)
	}
	if got := s.read(s.Base); got.Hash != head {
		s.Errorf("the base branch moved to %+v", got)
	}
	again := s.mustPropose(origin("rpi-home", "first"))
	if again.Number != p.Number {
		s.Errorf("proposed as %+v, and again as %+v", p, again)
	}
	s.onHead(again, origin("rpi-home", "first"))
	s.requests(again)
	s.mustMerge(again)
	s.contains(s.read(s.Base), origin("rpi-home", "first"))
}

// Merging makes the base branch have the proposal, and takes the branch away.
func (s *suite) merge() {
	head := s.Commit(s.T, s.Base, "Fill", file("origins/vm1.cue", "kept"))
	p := s.mustPropose(origin("rpi-home", "first"))
	s.mustMerge(p)
	base := s.read(s.Base)
	s.contains(base, origin("rpi-home", "first"))
	if base.Files["origins/vm1.cue"] != "kept" || !s.Descends(s.T, s.Base, head) {
		s.Errorf("the base branch lost what it had: %+v", base)
	}
	if c, ok := s.Read(s.T, p.Branch); ok {
		s.Errorf("the branch was left at %s", c.Hash)
	}
	s.requests()
	for _, f := range []forge.Forge{s.Forge, s.Again(s.T)} {
		if err := f.Merge(s.Context(), p); err != nil {
			s.Errorf("merge what is merged: %v", err)
		}
	}
	if again := s.read(s.Base); again.Hash != base.Hash {
		s.Errorf("merging what is merged moved the base branch from %s to %s", base.Hash, again.Hash)
	}
}

// Only what the caller saw is merged.
func (s *suite) mergeStale() {
	first := s.mustPropose(origin("rpi-home", "first"))
	second := s.mustPropose(origin("rpi-home", "second"))
	head := s.read(s.Base).Hash
	if err := s.Forge.Merge(s.Context(), first); !errors.Is(err, forge.ErrConflict) {
		s.Errorf("merged what it was: %v", err)
	}
	if got := s.read(s.Base); got.Hash != head {
		s.Errorf("the base branch moved to %+v", got)
	}
	s.mustMerge(second)
	s.contains(s.read(s.Base), origin("rpi-home", "second"))
}

func (s *suite) mergePushed() {
	p := s.mustPropose(origin("rpi-home", "first"))
	pushed := s.Commit(s.T, p.Branch, "Slip something in", file("origins/evil.cue", "evil"))
	head := s.read(s.Base).Hash
	if err := s.Forge.Merge(s.Context(), p); !errors.Is(err, forge.ErrConflict) {
		s.Errorf("merged: %v", err)
	}
	if got := s.read(s.Base); got.Hash != head {
		s.Errorf("the base branch moved to %+v", got)
	}
	if found := s.mustFind(p.Branch, forge.Open); found.Head != pushed {
		s.Errorf("found at %s, and %s was pushed", found.Head, pushed)
	}
}

// Two proposals can be merged at once, and people push to the base branch
// meanwhile: nothing is lost, and no history is rewritten.
func (s *suite) mergeTwo() {
	forges := []forge.Forge{s.Forge, s.Again(s.T)}
	head := s.read(s.Base).Hash
	proposals := []forge.Proposal{origin("rpi-home", "home"), origin("rpi-attic", "attic")}
	errs := make([]error, len(proposals))
	var all sync.WaitGroup
	for i, p := range proposals {
		pull := s.mustPropose(p)
		all.Go(func() { errs[i] = mergeInTheEnd(s.Context(), forges[i], p, pull) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			s.Fatalf("%s: %v", proposals[i].Branch, err)
		}
	}
	s.contains(s.read(s.Base), proposals[0])
	s.contains(s.read(s.Base), proposals[1])
	if !s.Descends(s.T, s.Base, head) {
		s.Errorf("%s is no longer in the base branch's history", head)
	}
	s.requests()
}

// mergeInTheEnd merges as the control plane does: what no longer fits is proposed
// again.
func mergeInTheEnd(ctx context.Context, f forge.Forge, p forge.Proposal, pull forge.Pull) error {
	var err error
	for range 10 {
		if err = f.Merge(ctx, pull); !errors.Is(err, forge.ErrConflict) {
			return err
		}
		if pull, err = f.Propose(ctx, p); err != nil {
			return err
		}
	}
	return err
}

// Closing takes the branch away and leaves the base branch alone.
func (s *suite) close() {
	head := s.read(s.Base).Hash
	p := s.mustPropose(origin("rpi-home", "first"))
	for _, f := range []forge.Forge{s.Forge, s.Again(s.T), s.Forge} {
		if err := f.Close(s.Context(), p, "The token was **revoked**."); err != nil {
			s.Fatalf("close: %v", err)
		}
	}
	s.requests()
	if c, ok := s.Read(s.T, p.Branch); ok {
		s.Errorf("the branch was left at %s", c.Hash)
	}
	if got := s.read(s.Base); got.Hash != head {
		s.Errorf("the base branch moved to %+v", got)
	}
	if err := s.Forge.Merge(s.Context(), p); !errors.Is(err, forge.ErrConflict) {
		s.Errorf("merge what is closed: %v", err)
	}

	again := s.mustPropose(origin("rpi-home", "first"))
	if p.Number != 0 && again.Number == p.Number {
		s.Errorf("pull request %d came back", p.Number)
	}
	s.onHead(again, origin("rpi-home", "first"))
	s.requests(again)
	s.mustMerge(again)
}

// What a person merged is merged, and the next proposal of the branch is a new one.
func (s *suite) personMerged() {
	p := s.mustPropose(origin("rpi-home", "first"))
	s.Place.Merge(s.T, p)
	s.mustFind(p.Branch, forge.Merged)
	if err := s.Forge.Merge(s.Context(), p); err != nil {
		s.Errorf("merge what is merged: %v", err)
	}
	s.requests()

	next := s.mustPropose(origin("rpi-home", "second"))
	if p.Number != 0 && next.Number == p.Number {
		s.Errorf("pull request %d came back", p.Number)
	}
	s.onHead(next, origin("rpi-home", "second"))
	s.requests(next)
	s.mustMerge(next)
	s.contains(s.read(s.Base), origin("rpi-home", "second"))
}

// What a person closed stays closed; the next proposal is a new one.
func (s *suite) personClosed() {
	p := s.mustPropose(origin("rpi-home", "first"))
	s.Place.Close(s.T, p)
	s.mustFind(p.Branch, forge.Closed)
	if err := s.Forge.Close(s.Context(), p, "It is over."); err != nil {
		s.Errorf("close what is closed: %v", err)
	}
	next := s.mustPropose(origin("rpi-home", "first"))
	if p.Number != 0 && next.Number == p.Number {
		s.Errorf("pull request %d came back", p.Number)
	}
	s.onHead(next, origin("rpi-home", "first"))
	s.requests(next)
}

// Find finds the newest of a branch, whatever became of it, and after a restart.
func (s *suite) find() {
	find := func(want forge.State) forge.Pull {
		found := s.mustFind("kokoa/register/rpi-home", want)
		if again, err := s.Again(s.T).Find(s.Context(), found.Branch); err != nil || again != found {
			s.Errorf("found %+v, and by another process %+v, %v", found, again, err)
		}
		return found
	}
	nobody := func(branch string) {
		if p, err := s.Forge.Find(s.Context(), branch); !errors.Is(err, forge.ErrNoPull) {
			s.Errorf("found %+v, %v", p, err)
		}
	}
	nobody("kokoa/register/rpi-home")
	first := s.mustPropose(origin("rpi-home", "first"))
	if got := find(forge.Open); got != first {
		s.Errorf("proposed as %+v, and found as %+v", first, got)
	}
	nobody("kokoa/register/rpi-hom")
	nobody("kokoa/register/rpi-home2")
	nobody("kokoa/register")

	s.mustMerge(first)
	if got := find(forge.Merged); got.Number != first.Number {
		s.Errorf("merged %+v, and found %+v", first, got)
	}
	second := s.mustPropose(origin("rpi-home", "second"))
	if got := find(forge.Open); got != second {
		s.Errorf("proposed as %+v, and found as %+v", second, got)
	}
	if err := s.Forge.Close(s.Context(), second, "It is over."); err != nil {
		s.Fatal(err)
	}
	if got := find(forge.Closed); got.Number != second.Number || got.Head != second.Head {
		s.Errorf("closed %+v, and found %+v", second, got)
	}
	third := s.mustPropose(origin("rpi-home", "third"))
	s.mustMerge(third)
	if got := find(forge.Merged); got.Number != third.Number {
		s.Errorf("merged %+v, and found %+v", third, got)
	}
}

func (s *suite) cancelled() {
	p := s.mustPropose(origin("rpi-home", "first"))
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	_, proposed := s.Forge.Propose(ctx, origin("rpi-attic", "first"))
	_, found := s.Forge.Find(ctx, p.Branch)
	for _, err := range []error{proposed, found, s.Forge.Merge(ctx, p), s.Forge.Close(ctx, p, "")} {
		if !errors.Is(err, context.Canceled) {
			s.Errorf("with a context that has ended: %v", err)
		}
	}
	s.requests(p)
}

// Rules that forbid merging leave the pull request to a person.
func (s *suite) protected() {
	if s.Protect == nil {
		return
	}
	s.Protect(s.T)
	p := s.mustPropose(origin("rpi-home", "first"))
	head := s.read(s.Base).Hash
	if err := s.Forge.Merge(s.Context(), p); !errors.Is(err, forge.ErrProtected) {
		s.Errorf("merged: %v", err)
	}
	s.requests(p)
	if got := s.read(s.Base); got.Hash != head {
		s.Errorf("the base branch moved to %+v", got)
	}
}

func (s *suite) denied() {
	if s.Deny == nil {
		return
	}
	p := s.mustPropose(origin("rpi-home", "first"))
	s.Deny(s.T)
	for _, err := range s.all(p) {
		if !errors.Is(err, forge.ErrDenied) {
			s.Errorf("denied: %v", err)
		}
	}
}

// An unreachable forge is trouble that passes: nothing is taken for an answer.
func (s *suite) unreachable() {
	if s.Stop == nil {
		return
	}
	p := s.mustPropose(origin("rpi-home", "first"))
	start := s.Stop(s.T)
	for _, err := range s.all(p) {
		if err == nil {
			s.Error("an unreachable forge answered")
		}
		for _, answer := range []error{forge.ErrNoPull, forge.ErrConflict, forge.ErrProtected, forge.ErrDenied} {
			if errors.Is(err, answer) {
				s.Errorf("an unreachable forge answered %v", err)
			}
		}
	}
	start()
	if again := s.mustPropose(origin("rpi-home", "first")); again != p {
		s.Errorf("proposed as %+v, and again as %+v", p, again)
	}
	s.requests(p)
}

// all is the errors of all methods. None may show the secret.
func (s *suite) all(p forge.Pull) []error {
	_, proposed := s.Forge.Propose(s.Context(), origin("rpi-attic", "first"))
	_, found := s.Forge.Find(s.Context(), p.Branch)
	errs := []error{proposed, found, s.Forge.Merge(s.Context(), p), s.Forge.Close(s.Context(), p, "It is over.")}
	for _, err := range errs {
		if err != nil && s.Secret != "" && strings.Contains(err.Error(), s.Secret) {
			s.Error("an error shows the secret")
		}
	}
	return errs
}

// origin is the proposal that the tests are about.
func origin(name, content string) forge.Proposal {
	return forge.Proposal{
		Branch: "kokoa/register/" + name,
		Title:  "Add origin " + name,
		Body:   "It asked to join.",
		Files:  []forge.File{file("origins/"+name+".cue", content)},
	}
}

func file(path, content string) forge.File {
	return forge.File{Path: path, Content: []byte(content)}
}

var hash = regexp.MustCompile(`^[0-9a-f]{40}$`)

func (s *suite) mustPropose(p forge.Proposal) forge.Pull {
	s.Helper()
	pull, err := s.Forge.Propose(s.Context(), p)
	if err != nil {
		s.Fatalf("propose: %v", err)
	}
	if pull.Branch != p.Branch || pull.State != forge.Open || !hash.MatchString(pull.Head) {
		s.Fatalf("proposed %q as %+v", p.Branch, pull)
	}
	return pull
}

func (s *suite) mustMerge(p forge.Pull) {
	s.Helper()
	if err := s.Forge.Merge(s.Context(), p); err != nil {
		s.Fatalf("merge: %v", err)
	}
}

func (s *suite) mustFind(branch string, want forge.State) forge.Pull {
	s.Helper()
	p, err := s.Forge.Find(s.Context(), branch)
	if err != nil {
		s.Fatalf("find: %v", err)
	}
	if p.Branch != branch || p.State != want || !hash.MatchString(p.Head) || p.URL == "" {
		s.Fatalf("found %+v, want it %s", p, want)
	}
	return p
}

func (s *suite) read(branch string) Commit {
	s.Helper()
	c, ok := s.Read(s.T, branch)
	if !ok {
		s.Fatalf("branch %s is gone", branch)
	}
	return c
}

// onHead says that a pull request's branch is one commit on the base branch's
// head, with the proposal's text, and what it changes is the proposal's files.
func (s *suite) onHead(pull forge.Pull, p forge.Proposal) {
	s.Helper()
	base, got := s.read(s.Base), s.read(pull.Branch)
	if got.Hash != pull.Head || len(got.Parents) != 1 || got.Parents[0] != base.Hash {
		s.Errorf("branch is %s on %s; want %s on %s", got.Hash, got.Parents, pull.Head, base.Hash)
	}
	if want := p.Title + "\n\n" + p.Body; got.Message != want {
		s.Errorf("commit says\n%s\n\nwant\n%s", got.Message, want)
	}
	want := maps.Clone(base.Files)
	for _, f := range p.Files {
		if f.Content == nil {
			delete(want, f.Path)
		} else {
			want[f.Path] = string(f.Content)
		}
	}
	if !maps.Equal(got.Files, want) {
		s.Errorf("branch has %.200q\nwant %.200q", got.Files, want)
	}
}

// contains says that a commit has the proposal's files as they were proposed.
func (s *suite) contains(c Commit, p forge.Proposal) {
	s.Helper()
	for _, f := range p.Files {
		got, ok := c.Files[f.Path]
		if ok != (f.Content != nil) || got != string(f.Content) {
			s.Errorf("%s holds %.200q, %v; proposed was %.200q", f.Path, got, ok, f.Content)
		}
	}
}

// requests says that these pull requests are open, and no others.
func (s *suite) requests(want ...forge.Pull) {
	s.Helper()
	got := map[string]int{}
	for _, r := range s.Requests(s.T) {
		got[r.Branch]++
	}
	ok := len(got) == len(want)
	for _, p := range want {
		ok = ok && got[p.Branch] == 1
	}
	if !ok {
		s.Errorf("open pull requests by branch: %v; want %+v", got, want)
	}
}

// trim cuts the line ends that some forges add.
func trim(body string) string { return strings.TrimRight(strings.ReplaceAll(body, "\r\n", "\n"), "\n") }

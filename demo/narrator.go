package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// narrator tells, a line each, what happens in the fleet once the demo stands.
type narrator struct {
	out io.Writer

	mu    sync.Mutex
	begun bool
	error string
}

// begin ends the silence of the start.
func (n *narrator) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.begun = true
}

func (n *narrator) event(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.begun {
		fmt.Fprintf(n.out, "  %s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
	}
}

// shown is how many changes of a turn are told one by one.
const shown = 6

// turn tells what a turn changed, and trouble when it begins and ends.
func (n *narrator) turn(t reconciler.Turn, s *reconciler.Status) {
	n.trouble(s)
	done := map[string]bool{}
	var lines []string
	for _, r := range t.Results {
		c := r.Change
		// What edges relay to agents follows from routes, and is told by them.
		if r.Err != nil || c.Ref.Kind == plan.Agent {
			continue
		}
		line := fmt.Sprintf("%s %s %s", c.Action, c.Ref.Kind, c.Ref.Name)
		if c.Cause == plan.Drift {
			line += " (drift, put back)"
		}
		if !done[line] {
			done[line] = true
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return
	}
	what := strings.Join(lines[:min(len(lines), shown)], ", ")
	if more := len(lines) - shown; more > 0 {
		what += fmt.Sprintf(" and %d more", more)
	}
	n.event("%.7s %q: %s, live in %d ms", t.Revision.Commit, t.Revision.Subject, what, (t.Loaded + t.Took + t.Applied).Milliseconds())
}

func (n *narrator) trouble(s *reconciler.Status) {
	now := s.Error
	if len(s.Diagnostics) > 0 {
		var b strings.Builder
		if err := s.Diagnostics.Text(&b); err == nil {
			now = strings.TrimSpace(b.String())
		}
	}
	n.mu.Lock()
	was := n.error
	n.error = now
	n.mu.Unlock()
	switch {
	case now == was:
	case now != "":
		n.event("%.7s %q is not applied; %.7s stays live:\n%s", s.Head.Commit, s.Head.Subject, s.Applied.Commit, indent(now))
	default:
		n.event("all is well again at %.7s", s.Applied.Commit)
	}
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

package certs

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"time"
)

// shortLived is the lifetime under which half of it must be left at renewal: a
// third would leave no time for an issuer's bad day.
const shortLived = 10 * 24 * time.Hour

// renewAt is when a certificate is renewed for its age alone.
func renewAt(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	left := life / 3
	if life < shortLived {
		left = life / 2
	}
	return leaf.NotAfter.Add(-left)
}

// due says why a certificate is to be renewed now; empty when it is not. The
// issuer's wish (RFC 9773) goes before age, but only until half of the usual time
// for renewal has gone: a wrong wish must not let a certificate expire.
func due(leaf *x509.Certificate, wish renewal, now time.Time) string {
	day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }
	switch at := renewAt(leaf); {
	case now.After(leaf.NotAfter):
		return "it expired on " + day(leaf.NotAfter)
	case wish.Serial == leaf.SerialNumber.String() && !wish.At.IsZero():
		late := leaf.NotAfter.Add(-leaf.NotAfter.Sub(at) / 2)
		switch {
		case !now.Before(wish.At) && wish.Explanation != "":
			return fmt.Sprintf("its issuer asks for renewal from %s, see %s", day(wish.At), wish.Explanation)
		case !now.Before(wish.At):
			return "its issuer asks for renewal from " + day(wish.At)
		case now.Before(late):
			return ""
		}
		return "it expires on " + day(leaf.NotAfter)
	case !now.Before(at):
		return "it expires on " + day(leaf.NotAfter)
	}
	return ""
}

// renewal is what the issuer wishes for one certificate (RFC 9773), as cached.
type renewal struct {
	// Serial of the certificate, decimal.
	Serial string `json:"serial"`
	// Start and End of the suggested window; zero when the issuer has none.
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// At is the moment drawn from the window, kept while the window stands.
	At          time.Time `json:"at,omitzero"`
	Explanation string    `json:"explanation,omitempty"`
	// Again is when to ask next.
	Again time.Time `json:"again"`
}

func renewalKey(name string) string { return "renewals/" + name + ".json" }

// attempts is a certificate's failures in a row. It is written before the issuer
// is asked, so that a crash, a restart or a full disk cannot ask again and again.
type attempts struct {
	// For is what was asked for; asking for something else starts afresh.
	For   string    `json:"for"`
	Count int       `json:"count"`
	Next  time.Time `json:"next"`
	Error string    `json:"error,omitempty"`
}

func attemptsKey(name string) string { return "attempts/" + name + ".json" }

// refused is how long to wait after the issuer has said no, as Let's Encrypt's
// integration guide asks; the last is repeated.
var refused = []time.Duration{time.Minute, 10 * time.Minute, 100 * time.Minute, 24 * time.Hour}

// unheard is how many of refused count when the issuer was never made to say no:
// it could not be reached, or our side could not answer its challenge.
const unheard = 2

// pause is the wait after the nth failure in a row, up to a fifth longer, so that
// certificates which failed together do not come back together.
func pause(n int) time.Duration {
	d := refused[min(n, len(refused))-1]
	return d + rand.N(d/5)
}

// LaterError is the error for a certificate that is not asked for yet, since the
// last try failed not long ago. Nothing was sent to the issuer.
type LaterError struct {
	// At is when it is tried next.
	At time.Time
	// Failures in a row; 0 when all of the issuer's certificates wait.
	Failures int
	// Last is the text of the last failure.
	Last string
}

// Error implements error.
func (e *LaterError) Error() string {
	s := "tried next at " + e.At.UTC().Format(time.RFC3339)
	if e.Failures > 0 {
		s += fmt.Sprintf(", after %d failures", e.Failures)
	}
	if e.Last != "" {
		s += "; the last: " + e.Last
	}
	return s
}

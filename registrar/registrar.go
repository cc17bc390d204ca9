// Package registrar lets hosts become origins: it takes their registrations,
// proposes them to the fleet repo as the fleet's policy says, and tells each host
// when it is live. It also proposes what follows from time: new keys for agents, and
// the end of what has expired.
package registrar

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

// View is the fleet as the control plane sees it after a turn. What it refers to is
// not changed any more.
type View struct {
	// Fleet is the newest that loads, as Git has it, and Commit where it is from.
	Fleet  *fleet.Fleet
	Commit string
	// Read is a file of the repo at Commit.
	Read func(path string) ([]byte, error)
	// Edges are the fleet's as agents peer with them.
	Edges []api.AgentEdge
	// Heartbeats are the newest of each origin's agent.
	Heartbeats map[string]api.Heartbeat
	// Rotated are the origins whose next key has taken over on every edge that can
	// be seen.
	Rotated map[string]bool
	// Trouble says why Fleet is not that of the repo's head; "" when it is.
	Trouble string

	// byKey names the origin that has a key, or is to have it.
	byKey map[keys.Public]string
}

// Registrar is a control plane's. Its fields are set before its methods are used.
type Registrar struct {
	Secret keys.Secret
	Ledger *ledger.Ledger
	// Forge may be nil: then no token is taken, and nothing is proposed.
	Forge forge.Forge
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	once    sync.Once
	limits  []*rate.Limiter // of proposals
	asked   *rate.Limiter   // of questions
	waiting chan struct{}   // a place for each question that is held
	unknown chan struct{}   // the same for hosts that the control plane does not know
	kick    chan struct{}

	mu   sync.Mutex
	view *View
	// changed is closed, and made anew, when an answer may be another.
	changed chan struct{}

	// The rest belongs to Run.

	// proposed are the digests of the proposals that are known to be open, by
	// branch; look is when to ask the forge about one again.
	proposed map[string][32]byte
	look     map[string]time.Time
	// failures in a row of the forge, and until when it is left alone.
	failures int
	rest     time.Time
}

// Bounds of what strangers can cause.
const (
	// proposals to the forge: a person who scripts something wrong must not use up
	// a budget that the fleet's reconciler shares.
	perMinute, perHour = 20, 200
	// questions a second, how many are held at once, and how many of them of hosts
	// that the control plane does not know: anybody can be one.
	questions, held, heldUnknown = 200, 2000, 200
)

func (r *Registrar) setUp() {
	r.once.Do(func() {
		if r.Log == nil {
			r.Log = slog.New(slog.DiscardHandler)
		}
		if r.Now == nil {
			r.Now = time.Now
		}
		r.limits = []*rate.Limiter{
			rate.NewLimiter(rate.Every(time.Minute/perMinute), perMinute),
			rate.NewLimiter(rate.Every(time.Hour/perHour), perHour),
		}
		r.asked = rate.NewLimiter(questions, 2*questions)
		r.waiting, r.unknown = make(chan struct{}, held), make(chan struct{}, heldUnknown)
		r.kick = make(chan struct{}, 1)
		r.changed = make(chan struct{})
		r.proposed = map[string][32]byte{}
		r.look = map[string]time.Time{}
	})
}

// See tells the registrar how the fleet is after a turn. It does not block.
func (r *Registrar) See(v View) {
	r.setUp()
	v.byKey = make(map[keys.Public]string, len(v.Fleet.Origins))
	for name, o := range v.Fleet.Origins {
		v.byKey[o.PublicKey] = name
		if !o.NextKey.IsZero() {
			v.byKey[o.NextKey] = name
		}
	}
	r.mu.Lock()
	r.view = &v
	r.mu.Unlock()
	r.wake()
	r.announce()
}

// Handler answers hosts below join.Prefix: GET and POST of join.Path, and nothing
// else. It is meant for the internet.
func (r *Registrar) Handler() http.Handler {
	r.setUp()
	mux := http.NewServeMux()
	r.routes(mux)
	return mux
}

// Rotations are the moments that origins' keys are to be newer than: what a person
// asked for, and the fleet's schedule, under which every origin has its own hour.
func (r *Registrar) Rotations(f *fleet.Fleet) map[string]time.Time {
	r.setUp()
	all, err := r.Ledger.Rotations()
	if err != nil {
		r.Log.Error("ledger not read", "err", err)
	}
	joined, err := r.Ledger.Registrations()
	if err != nil {
		r.Log.Error("ledger not read", "err", err)
	}
	made := map[string]time.Time{}
	for _, g := range joined {
		made[g.Name] = g.At
	}
	return rotations(f, all, made, r.Now())
}

// seen is the newest view; nil before the first one.
func (r *Registrar) seen() *View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view
}

// wake has Run look again soon.
func (r *Registrar) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// announce wakes those who wait for another answer.
func (r *Registrar) announce() {
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
}

// news is closed when an answer may be another than now.
func (r *Registrar) news() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

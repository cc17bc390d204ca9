package registrar

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
)

// maxQuestion bounds a question, in bytes.
const maxQuestion = 64 << 10

func (r *Registrar) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+join.Path, func(w http.ResponseWriter, _ *http.Request) {
		v := r.seen()
		if v == nil {
			busy(w, errStarting.Error())
			return
		}
		reply(w, join.Hello{Fleet: v.Fleet.Name, Control: r.Secret.Join().Public(), Now: r.Now().UTC()})
	})
	mux.HandleFunc("POST "+join.Path, r.question)
}

func (r *Registrar) question(w http.ResponseWriter, req *http.Request) {
	if !r.asked.Allow() {
		busy(w, "too many hosts ask at once")
		return
	}
	select {
	case r.waiting <- struct{}{}:
		defer func() { <-r.waiting }()
	default:
		busy(w, errCrowded.Error())
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxQuestion))
	if err != nil {
		http.Error(w, "the question is too long, or was cut off", http.StatusBadRequest)
		return
	}
	var sealed join.Sealed
	if err := json.Unmarshal(data, &sealed); err != nil {
		http.Error(w, "this is not a question of a kokoa-agent", http.StatusBadRequest)
		return
	}
	q, err := join.OpenQuestion(r.Secret.Join(), sealed)
	if err != nil {
		http.Error(w, "the question is sealed for another control plane", http.StatusUnauthorized)
		return
	}
	a, err := r.answer(req.Context(), sealed.Key, q)
	switch {
	case errors.Is(err, errStarting), errors.Is(err, errCrowded):
		busy(w, err.Error())
		return
	case err != nil:
		r.Log.Error("registration not answered", "err", err)
		busy(w, "the control plane cannot keep its records just now")
		return
	}
	a.ID, a.Now = q.ID, r.Now().UTC()
	out, err := join.SealAnswer(r.Secret.Join(), sealed.Key, a)
	if err != nil {
		r.Log.Error("registration not answered", "err", err)
		busy(w, "the control plane cannot answer just now")
		return
	}
	reply(w, out)
}

func busy(w http.ResponseWriter, why string) {
	w.Header().Set("Retry-After", "5")
	http.Error(w, why, http.StatusServiceUnavailable)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// A host that went away asks again.
	_ = json.NewEncoder(w).Encode(v)
}

var (
	errStarting = errors.New("the control plane has only just started")
	errCrowded  = errors.New("too many hosts wait at once")
)

// answer is what a host with a key is told. An error is the control plane's own
// trouble.
func (r *Registrar) answer(ctx context.Context, key keys.Public, q join.Question) (join.Answer, error) {
	v := r.seen()
	if v == nil {
		return join.Answer{}, errStarting
	}
	if q.Register != nil {
		if a, err := r.register(v, key, *q.Register); err != nil || a.State == join.Refused {
			return a, err
		}
	}
	end := time.NewTimer(min(max(q.Wait, 0), join.MaxWait))
	defer end.Stop()
	held := false // a place among the unknown
	for {
		news := r.news()
		a, err := r.standing(key)
		if err != nil {
			return join.Answer{}, err
		}
		if q.Suggest {
			if a.Suggestion, err = r.suggest(); err != nil {
				return join.Answer{}, err
			}
		}
		if a.State != q.Seen {
			return a, nil
		}
		if a.State == join.Unknown && !held {
			select {
			case r.unknown <- struct{}{}:
				defer func() { <-r.unknown }()
				held = true
			default:
				return join.Answer{}, errCrowded
			}
		}
		select {
		case <-news:
		case <-end.C:
			return a, nil
		case <-ctx.Done():
			return a, nil
		}
	}
}

// register takes a registration, or says why not. What was taken shows in standing.
func (r *Registrar) register(v *View, key keys.Public, asked join.Registration) (join.Answer, error) {
	no := func(format string, args ...any) (join.Answer, error) {
		reason := fmt.Sprintf(format, args...)
		r.Log.Warn("registration refused", "agent", shorten(asked.Name), "reason", reason)
		return join.Answer{State: join.Refused, Reason: reason}, nil
	}
	now := r.Now()
	if o, live := v.Fleet.Origins[asked.Name]; live && (o.PublicKey == key || o.NextKey == key) {
		return join.Answer{}, nil // it is what it asks to be
	}
	if r.Forge == nil {
		return no("this control plane opens no pull requests; open one yourself, with --forge")
	}
	if reason := malformed(asked, now); reason != "" {
		return no("%s", reason)
	}
	token, err := join.ParseToken(asked.Token)
	if err != nil {
		return no("%v", err)
	}
	kept, err := r.Ledger.Token(token)
	if errors.Is(err, ledger.ErrUnknown) {
		return no("this control plane does not know the token: it was made for another one, or long ago; ask for a new one")
	}
	if err != nil {
		return join.Answer{}, err
	}
	g := ledger.Registration{
		Key: key, Name: asked.Name, Hosts: asked.Hosts, Folder: kept.Folder, Scope: kept.Scope,
		Platform: plain(asked.Platform), Version: plain(asked.Version), Hostname: plain(asked.Hostname),
	}
	if len(g.Hosts) == 0 {
		g.Hosts = kept.Hosts
	}
	if g.Folder == "" {
		g.Folder = v.Fleet.Registration.Folder
	}
	if life := shortest(asked.Temporary, kept.Temporary); life > 0 {
		ends := now.Add(life).UTC().Truncate(time.Second)
		g.Expires = &ends
	}
	judged := judge(v.Fleet, g)
	if judged.refused != "" {
		return no("%s", judged.refused)
	}
	g.Flags = judged.flags
	taken, err := r.Ledger.Accept(token, g, now)
	switch {
	case errors.Is(err, ledger.ErrUsed), errors.Is(err, ledger.ErrExpired), errors.Is(err, ledger.ErrRevoked), errors.Is(err, ledger.ErrUnknown):
		return no("%v; ask for a new one", err)
	case errors.Is(err, ledger.ErrTwin):
		return no("%v; use that name, or delete the key to join anew", err)
	case err != nil:
		return join.Answer{}, err
	}
	if taken.At.Equal(now.UTC()) {
		r.Log.Info("registration accepted", "agent", g.Name, "addr", taken.Hostname)
	}
	r.wake()
	return join.Answer{}, nil
}

// shortest is the shorter of two lives; 0 stands for no end.
func shortest(a, b time.Duration) time.Duration {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}

// standing is how things stand with a key.
func (r *Registrar) standing(key keys.Public) (join.Answer, error) {
	v := r.seen()
	if name, ok := v.byKey[key]; ok {
		o := v.Fleet.Origins[name]
		if o.Expires != nil && !r.Now().Before(*o.Expires) {
			return join.Answer{State: join.Refused, Reason: fmt.Sprintf("origin %q ended at %s", name, o.Expires.UTC().Format(time.RFC3339))}, nil
		}
		return join.Answer{State: join.Live, Fleet: &join.Fleet{
			Name: v.Fleet.Name, Origin: name, TunnelAddress: o.TunnelAddress, Network: v.Fleet.Network,
			SigningKey: r.Secret.SigningPublic(), Edges: v.Edges, Expires: o.Expires,
		}}, nil
	}
	g, ok, err := r.Ledger.Registration(key)
	if err != nil {
		return join.Answer{}, err
	}
	if !ok {
		return join.Answer{State: join.Unknown, Reason: "the fleet has no origin with this host's key"}, nil
	}
	a := join.Answer{State: g.State, Reason: g.Reason, Pull: g.Pull, Flags: g.Flags}
	switch g.State {
	case join.Live: // and not in the fleet
		a.State, a.Reason = join.Refused, fmt.Sprintf("origin %q was removed from the fleet", g.Name)
	case join.Merged:
		if a.Reason == "" && v.Trouble != "" {
			a.Reason = "the fleet repo cannot be applied: " + v.Trouble
		}
	}
	return a, nil
}

// suggest is a free address, somewhere in the network: two hosts that ask at the
// same time hardly ever get the same one.
func (r *Registrar) suggest() (*join.Suggestion, error) {
	v := r.seen()
	all, err := r.Ledger.Registrations()
	if err != nil {
		return nil, err
	}
	used := taken(v.Fleet, all)
	bits := min(v.Fleet.Network.Addr().BitLen()-v.Fleet.Network.Bits(), 32)
	for range 16 {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("suggest address: %w", err)
		}
		n := binary.BigEndian.Uint32(b[:]) >> (32 - bits)
		if n < reserved {
			continue
		}
		raw := v.Fleet.Network.Masked().Addr().AsSlice()
		low := raw[len(raw)-4:]
		binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)|n)
		a, _ := netip.AddrFromSlice(raw)
		if !used[a] && v.Fleet.Network.Contains(a.Next()) {
			return &join.Suggestion{Folder: v.Fleet.Registration.Folder, TunnelAddress: a}, nil
		}
	}
	a, err := free(v.Fleet.Network, used)
	if err != nil {
		return nil, err
	}
	return &join.Suggestion{Folder: v.Fleet.Registration.Folder, TunnelAddress: a}, nil
}

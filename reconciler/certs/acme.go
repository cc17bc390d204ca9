package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/sync/errgroup"

	"github.com/kokoa-proxy/kokoa/fleet"
)

const (
	// orderTimeout bounds one order, challenges included.
	orderTimeout = 5 * time.Minute
	// lockWait is over the time, 10 s, after which certmagic's file locks lapse.
	lockWait = 20 * time.Second
	// unreachable is how long a directory is left alone after it could not be
	// reached, and rateLimited when it asked for peace without saying how long.
	unreachable = time.Minute
	rateLimited = time.Hour
)

// order obtains want from the fleet's ACME issuer. One call makes at most one
// order, and none before the time that earlier failures have set.
func (m *Manager) order(ctx context.Context, issuers *sessions, want Want, start time.Time) error {
	solvers, err := m.solvers(want)
	if err != nil {
		return err
	}
	if err := m.resting(ctx, want); err != nil {
		return err
	}
	issuer, err := issuers.get(ctx, want.fleet.ACME)
	if err != nil {
		return err
	}
	unlock, err := m.lock(ctx, "order "+want.Name)
	if err != nil {
		return err
	}
	defer unlock()
	// Another process may have ordered it, or failed to, while this one waited.
	if done, err := m.settled(ctx, want); done || err != nil {
		return err
	}
	if err := m.resting(ctx, want); err != nil {
		return err
	}
	before, err := m.attempts(ctx, want)
	if err != nil {
		return err
	}
	now := before
	now.Count++
	now.Next = m.now().Add(pause(now.Count))
	now.Error = "the order did not end; the process may have been stopped"
	if err := save(ctx, m.shelf.storage, attemptsKey(want.Name), now); err != nil {
		return fmt.Errorf("nothing was ordered, since the store cannot be written: %w", err)
	}
	b, wish, err := issuer.obtain(ctx, want, solvers)
	after := context.WithoutCancel(ctx)
	if err != nil {
		return m.failed(after, ctx.Err() != nil, want, before, now, err)
	}
	err = m.keep(ctx, want, b, start)
	if clear := m.shelf.storage.Delete(after, attemptsKey(want.Name)); err == nil && clear != nil {
		err = fmt.Errorf("forget earlier failures: %w", clear)
	}
	if wish := m.wish(b.leaf, wish, renewal{}); err == nil {
		err = save(after, m.shelf.storage, renewalKey(want.Name), wish)
	}
	return err
}

// lock waits until no other process does what is named: long enough for the lock of
// one that was killed to be given up, and no longer, so that a turn goes on.
func (m *Manager) lock(ctx context.Context, what string) (unlock func(), err error) {
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	err = m.shelf.storage.Lock(wait, what)
	switch {
	case err != nil && wait.Err() != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("another process on the same store is at it (%s): %w", what, err)
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", what, err)
	}
	return func() {
		if err := m.shelf.storage.Unlock(context.WithoutCancel(ctx), what); err != nil {
			m.log.Warn("lock not released", "object", what, "err", err)
		}
	}, nil
}

// resting returns a *LaterError while want or its whole issuer is left alone.
func (m *Manager) resting(ctx context.Context, want Want) error {
	if p := m.restingAll(want.fleet.ACME.Directory); p != nil {
		return p
	}
	a, err := m.attempts(ctx, want)
	if err != nil {
		return err
	}
	if m.now().Before(a.Next) {
		return &LaterError{a.Next, a.Count, a.Error}
	}
	return nil
}

// restingAll is not nil while a directory is left alone.
func (m *Manager) restingAll(directory string) *LaterError {
	m.pausedMu.Lock()
	defer m.pausedMu.Unlock()
	if p, ok := m.paused[directory]; ok && m.now().Before(p.At) {
		return &p
	}
	return nil
}

func (m *Manager) rest(directory string, d time.Duration, why error) {
	m.pausedMu.Lock()
	defer m.pausedMu.Unlock()
	m.paused[directory] = LaterError{At: m.now().Add(d), Last: why.Error()}
}

func (m *Manager) attempts(ctx context.Context, want Want) (attempts, error) {
	id := strings.Join(want.Hosts, ",") + " " + want.Authority + " " + string(want.fleet.ACME.Challenge)
	var a attempts
	if err := load(ctx, m.shelf.storage, attemptsKey(want.Name), &a); err != nil {
		return attempts{}, err
	}
	if a.For != id {
		a = attempts{For: id}
	}
	return a, nil
}

// failed records what became of an order and says when it is tried again.
func (m *Manager) failed(ctx context.Context, cancelled bool, want Want, before, now attempts, cause error) error {
	var problem acme.Problem
	isProblem := errors.As(cause, &problem)
	switch {
	case cancelled:
		// Being stopped is nobody's failure.
		return errors.Join(cause, save(ctx, m.shelf.storage, attemptsKey(want.Name), before))
	case isProblem && problem.Type == acme.ProblemTypeRateLimited:
		now = before
		now.Next = m.now().Add(rateLimited)
		if p := m.restingAll(want.fleet.ACME.Directory); p != nil {
			now.Next = p.At
		}
	case !isProblem || problem.Status >= http.StatusInternalServerError:
		now.Count = min(now.Count, unheard)
		now.Next = m.now().Add(pause(now.Count))
	}
	now.Error = cause.Error()
	err := fmt.Errorf("%w; tried next at %s", cause, now.Next.UTC().Format(time.RFC3339))
	return errors.Join(err, save(ctx, m.shelf.storage, attemptsKey(want.Name), now))
}

// PollRenewals asks the issuers when they wish f's certificates renewed (RFC 9773),
// where the last answer is no longer to be relied on; the next Observe takes it
// into account. An issuer uses this to have revoked certificates replaced. To be
// called at least twice a day. Certificates that could not be asked about keep
// what was known.
func (m *Manager) PollRenewals(ctx context.Context, f *fleet.Fleet) error {
	issuers := sessions{m: m, open: map[string]*session{}}
	defer issuers.close()
	var g errgroup.Group
	g.SetLimit(parallel)
	var mu sync.Mutex
	var errs []error
	for _, want := range Wants(f) {
		b, _, err := m.shelf.get(ctx, want.Name)
		if err != nil || b.Issuer != ACME || b.Authority != want.Authority {
			continue
		}
		g.Go(func() error {
			if err := m.pollRenewal(ctx, &issuers, want, b.leaf); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("ask for the renewal time of certificate %s: %w", want.Name, err))
			}
			return nil
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

func (m *Manager) pollRenewal(ctx context.Context, issuers *sessions, want Want, leaf *x509.Certificate) error {
	var have renewal
	if err := load(ctx, m.shelf.storage, renewalKey(want.Name), &have); err != nil {
		have = renewal{}
	}
	if have.Serial == leaf.SerialNumber.String() && m.now().Before(have.Again) {
		return nil
	}
	client, err := issuers.client(want.fleet.ACME)
	if err != nil {
		return err
	}
	info, err := client.GetRenewalInfo(ctx, leaf)
	if err != nil && !errors.Is(err, acme.ErrUnsupported) {
		return err
	}
	next := m.wish(leaf, &info, have)
	if next.At != have.At && !next.At.IsZero() {
		m.log.Info("renewal time set by issuer", "certificate", want.Name, "reason", next.Explanation)
	}
	return save(ctx, m.shelf.storage, renewalKey(want.Name), next)
}

// Bounds of an issuer's word on when to ask again (RFC 9773 section 4.3.2).
const (
	askSoonest = time.Minute
	askLatest  = 12 * time.Hour
)

// wish is an answer as it is kept. The moment drawn from a window stays as long as
// the window does, or else it would drift to the window's end.
func (m *Manager) wish(leaf *x509.Certificate, info *acme.RenewalInfo, have renewal) renewal {
	next := renewal{Serial: leaf.SerialNumber.String(), Again: m.now().Add(askLatest)}
	if info == nil || !info.HasWindow() {
		return next
	}
	next.Start, next.End = info.SuggestedWindow.Start, info.SuggestedWindow.End
	next.At, next.Explanation = info.SelectedTime, info.ExplanationURL
	if have.Serial == next.Serial && have.Start.Equal(next.Start) && have.End.Equal(next.End) {
		next.At = have.At
	}
	if info.RetryAfter != nil {
		wait := min(max(time.Until(*info.RetryAfter), askSoonest), askLatest)
		next.Again = m.now().Add(wait)
	}
	return next
}

// sessions are the issuers that one Apply talks to, each opened once.
type sessions struct {
	m    *Manager
	mu   sync.Mutex
	open map[string]*session
}

// session is a client of one directory.
type session struct {
	*acme.Client
	m    *Manager
	http http.Client

	connect sync.Once
	account acme.Account
	err     error
}

// client is a client that may ask what needs no account.
func (s *sessions) client(at fleet.ACME) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.open[at.Directory]; have != nil {
		return have, nil
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 15 * time.Second}
	if at.CA != "" {
		raw, err := os.ReadFile(at.CA)
		if err != nil {
			return nil, fmt.Errorf("%s: read acme.ca: %w", at.Position, err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("%s: acme.ca: %s has no PEM certificate", at.Position, at.CA)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	made := &session{m: s.m, http: http.Client{Timeout: 30 * time.Second, Transport: listening{transport, s.m, at.Directory}}}
	made.Client = &acme.Client{Directory: at.Directory, HTTPClient: &made.http, UserAgent: "kokoa", PollTimeout: orderTimeout}
	s.open[at.Directory] = made
	return made, nil
}

// get is a client with an account.
func (s *sessions) get(ctx context.Context, at fleet.ACME) (*session, error) {
	client, err := s.client(at)
	if err != nil {
		return nil, err
	}
	client.connect.Do(func() {
		client.account, client.err = s.m.account(ctx, client.Client, at, false)
		if client.err != nil {
			client.err = fmt.Errorf("open the account at %s: %w", at.Directory, client.err)
			if ctx.Err() == nil {
				s.m.rest(at.Directory, unreachable, client.err)
			}
		}
	})
	return client, client.err
}

func (s *sessions) close() {
	for _, client := range s.open {
		client.http.CloseIdleConnections()
	}
}

// listening hears when an issuer asks to be left alone: acmez does not pass on
// Retry-After with an error.
type listening struct {
	next      *http.Transport
	m         *Manager
	directory string
}

func (l listening) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests {
		return resp, err
	}
	wait := rateLimited
	after := resp.Header.Get("Retry-After")
	if s, err := strconv.Atoi(after); err == nil && s >= 0 {
		wait = time.Duration(min(s, 7*24*3600)) * time.Second
	} else if at, err := http.ParseTime(after); err == nil {
		wait = min(max(time.Until(at), 0), 7*24*time.Hour)
	}
	l.m.rest(l.directory, wait, errors.New("the ACME issuer answered that there were too many requests"))
	return resp, nil
}

// CloseIdleConnections is for http.Client.
func (l listening) CloseIdleConnections() { l.next.CloseIdleConnections() }

// account is the fleet's account at an issuer, registered when there is none. The
// key is written first: registering it twice gives the same account (RFC 8555
// section 7.3.1), losing it costs one of few registrations.
func (m *Manager) account(ctx context.Context, client *acme.Client, at fleet.ACME, anew bool) (acme.Account, error) {
	unlock, err := m.lock(ctx, "account "+at.Directory)
	if err != nil {
		return acme.Account{}, err
	}
	defer unlock()
	name := accountKey(at.Directory)
	var have account
	if err := load(ctx, m.shelf.storage, name, &have); err != nil {
		return acme.Account{}, err
	}
	if have.Key == "" {
		_, pemKey, err := newKey()
		if err != nil {
			return acme.Account{}, err
		}
		have = account{Directory: at.Directory, Key: string(pemKey)}
		if err := save(ctx, m.shelf.storage, name, have); err != nil {
			return acme.Account{}, err
		}
	}
	key, err := have.private()
	if err != nil {
		return acme.Account{}, fmt.Errorf("read %s: %w", name, err)
	}
	var contact []string
	if at.Email != "" {
		contact = []string{"mailto:" + at.Email}
	}
	acc := acme.Account{Status: acme.StatusValid, Contact: contact, TermsOfServiceAgreed: true, Location: have.Location, PrivateKey: key}
	if have.Location != "" && !anew {
		if slices.Equal(have.Contact, contact) {
			return acc, nil
		}
		acc, err = client.UpdateAccount(ctx, acc)
		if anew = forgotten(err); err != nil && !anew {
			return acme.Account{}, fmt.Errorf("update its e-mail address: %w", err)
		}
		// An update's answer need not repeat where the account is.
		acc.Location = have.Location
	}
	if have.Location == "" || anew {
		acc, err = client.NewAccount(ctx, acme.Account{Contact: contact, TermsOfServiceAgreed: true, PrivateKey: key})
		if err != nil {
			return acme.Account{}, fmt.Errorf("register: %w", err)
		}
		m.log.Info("acme account registered", "addr", acc.Location)
	}
	have.Location, have.Contact = acc.Location, contact
	return acc, save(ctx, m.shelf.storage, name, have)
}

// forgotten reports whether the issuer no longer knows the account.
func forgotten(err error) bool {
	var problem acme.Problem
	return errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist
}

// account is an ACME account as it is stored.
type account struct {
	Directory string   `json:"directory"`
	Location  string   `json:"location,omitempty"`
	Contact   []string `json:"contact,omitempty"`
	Key       string   `json:"key"`
}

func (a account) private() (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(a.Key))
	if block == nil {
		return nil, errors.New("the account has no PEM key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the account's key does not parse")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the account's key is not on P-256")
	}
	return ec, nil
}

func accountKey(directory string) string {
	sum := sha256.Sum256([]byte(directory))
	return "accounts/" + hex.EncodeToString(sum[:8]) + ".json"
}

// obtain makes one order. When the issuer refuses to open it, since it has
// forgotten the account or does not like what is said to be replaced, it is opened
// again without.
func (s *session) obtain(ctx context.Context, want Want, solvers map[string]acmez.Solver) (*bundle, *acme.RenewalInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := acmez.NewCSR(key, want.Hosts)
	if err != nil {
		return nil, nil, fmt.Errorf("make request: %w", err)
	}
	params, err := acmez.OrderParametersFromCSR(s.account, csr)
	if err != nil {
		return nil, nil, fmt.Errorf("make request: %w", err)
	}
	// An order that says what it replaces is free of rate limits.
	if old, _, err := s.m.shelf.get(ctx, want.Name); err == nil && old.Issuer == ACME && old.Authority == want.Authority && shares(old.leaf, want.Hosts) {
		params.Replaces = old.leaf
	}
	request := &request{CertificateRequest: csr}
	params.CSR = request
	client := acmez.Client{Client: s.Client, ChallengeSolvers: solvers}
	chains, err := client.ObtainCertificate(ctx, params)
	if params.Replaces != nil && !request.sent && refusedToOpen(err) {
		params.Replaces = nil
		chains, err = client.ObtainCertificate(ctx, params)
	}
	if forgotten(err) {
		if params.Account, err = s.m.account(ctx, s.Client, want.fleet.ACME, true); err != nil {
			return nil, nil, err
		}
		chains, err = client.ObtainCertificate(ctx, params)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("order %s from %s: %w", strings.Join(want.Hosts, ", "), want.Authority, err)
	}
	if len(chains) == 0 {
		return nil, nil, fmt.Errorf("order %s from %s: it gave no certificate", strings.Join(want.Hosts, ", "), want.Authority)
	}
	b, err := newBundle(ACME, want.Authority, chains[0].ChainPEM, keyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("read what %s issued: %w", want.Authority, err)
	}
	for _, host := range want.Hosts {
		if !covers(b.leaf, host) {
			return nil, nil, fmt.Errorf("read what %s issued: it does not cover %s", want.Authority, host)
		}
	}
	return b, chains[0].RenewalInfo, nil
}

// request is a CSR that knows whether it was asked for, to finalize an order.
type request struct {
	*x509.CertificateRequest
	sent bool
}

// CSR implements acmez.CSRSource.
func (r *request) CSR(context.Context, []acme.Identifier) (*x509.CertificateRequest, error) {
	r.sent = true
	return r.CertificateRequest, nil
}

// refusedToOpen reports whether an issuer refused an order before a challenge of it
// failed: the problem is then about no authorization.
func refusedToOpen(err error) bool {
	var problem acme.Problem
	return errors.As(err, &problem) && problem.Resource == nil && problem.Type != acme.ProblemTypeRateLimited
}

// shares reports whether an order for hosts may say that it replaces leaf (RFC
// 9773 section 5).
func shares(leaf *x509.Certificate, hosts []string) bool {
	return slices.ContainsFunc(hosts, func(h string) bool { return slices.Contains(leaf.DNSNames, h) })
}

func (m *Manager) solvers(want Want) (map[string]acmez.Solver, error) {
	at := want.fleet.ACME
	switch at.Challenge {
	case fleet.ChallengeDNS01:
		if m.txt == nil {
			return nil, fmt.Errorf("%s: dns-01 needs DNS that Kokoa may change; set fleet.dns.provider, or fleet.acme.challenge to http-01", at.Position)
		}
		return map[string]acmez.Solver{acme.ChallengeTypeDNS01: dnsSolver{m.txt, m.resolvers, m.wait}}, nil
	case fleet.ChallengeHTTP01:
		for _, host := range want.Hosts {
			if strings.HasPrefix(host, "*.") {
				return nil, fmt.Errorf("%s: http-01 cannot prove the wildcard %s; set fleet.acme.challenge to dns-01", want.From, host)
			}
		}
		if m.challenges == nil {
			return nil, fmt.Errorf("%s: http-01 needs an edge that answers", at.Position)
		}
		return map[string]acmez.Solver{acme.ChallengeTypeHTTP01: httpSolver{m.challenges}}, nil
	}
	return nil, fmt.Errorf("%s: unknown challenge %q; write dns-01 or http-01", at.Position, at.Challenge)
}

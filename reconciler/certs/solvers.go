package certs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"
)

// TXT changes TXT records for DNS-01 (RFC 8555 section 8.4). Names are absolute
// and without the trailing dot; values are unquoted. Several values may stand at
// one name at once. Both methods may be called concurrently.
type TXT interface {
	// Add adds a value to those of the name.
	Add(ctx context.Context, fqdn, value string) error
	// Remove removes the value and leaves others; one that is not there is no
	// error.
	Remove(ctx context.Context, fqdn, value string) error
}

// Challenges answers HTTP-01 (RFC 8555 section 8.3) for every host of the fleet:
// GET /.well-known/acme-challenge/TOKEN on port 80. Both methods may be called
// concurrently.
type Challenges interface {
	// Put returns once every edge that the issuer may ask answers with keyAuth.
	Put(ctx context.Context, token, keyAuth string) error
	// Delete ends the answer; one that is not there is no error.
	Delete(ctx context.Context, token string) error
}

// cleanup is how long the end of a challenge may take. It happens after a
// cancelled context too.
const cleanup = 30 * time.Second

type httpSolver struct{ challenges Challenges }

func (s httpSolver) Present(ctx context.Context, c acme.Challenge) error {
	if err := s.challenges.Put(ctx, c.Token, c.KeyAuthorization); err != nil {
		return fmt.Errorf("put the HTTP-01 answer for %s on the edges: %w", c.Identifier.Value, err)
	}
	return nil
}

func (s httpSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	return s.challenges.Delete(ctx, c.Token)
}

type dnsSolver struct {
	txt       TXT
	resolvers func(string) []string
	// wait is how long servers may take.
	wait time.Duration
}

func (s dnsSolver) Present(ctx context.Context, c acme.Challenge) error {
	name := c.DNS01TXTRecordName()
	if err := s.txt.Add(ctx, name, c.DNS01KeyAuthorization()); err != nil {
		return fmt.Errorf("add TXT record %s: %w", name, err)
	}
	return nil
}

func (s dnsSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer cancel()
	return s.txt.Remove(ctx, c.DNS01TXTRecordName(), c.DNS01KeyAuthorization())
}

// Wait blocks until all resolvers answer with the record: the issuer may ask any.
func (s dnsSolver) Wait(ctx context.Context, c acme.Challenge) error {
	name, value := c.DNS01TXTRecordName(), c.DNS01KeyAuthorization()
	stopped := ctx
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	for _, server := range s.resolvers(name) {
		pause := 50 * time.Millisecond
		for {
			err := hasTXT(ctx, server, name, value)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				if stopped.Err() != nil {
					return stopped.Err()
				}
				return fmt.Errorf("the TXT record %s was added but DNS server %s does not answer with it: %w", name, server, err)
			case <-time.After(pause):
			}
			pause = min(2*pause, 2*time.Second)
		}
	}
	return nil
}

var errNoTXT = errors.New("the record is not there")

func hasTXT(ctx context.Context, server, name, value string) error {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	q.SetEdns0(1232, false)
	client := dns.Client{Timeout: 5 * time.Second}
	answer, _, err := client.ExchangeContext(ctx, q, server)
	if err == nil && answer.Truncated {
		client.Net = "tcp"
		answer, _, err = client.ExchangeContext(ctx, q, server)
	}
	if err != nil {
		return err
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return fmt.Errorf("it answers %s", dns.RcodeToString[answer.Rcode])
	}
	if !slices.ContainsFunc(answer.Answer, func(rr dns.RR) bool {
		txt, ok := rr.(*dns.TXT)
		return ok && strings.Join(txt.Txt, "") == value
	}) {
		return errNoTXT
	}
	return nil
}

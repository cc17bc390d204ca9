package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/kokoa-proxy/kokoa/reconciler"
)

// serving is `kokoa serve`, also inside the demo.
type serving struct {
	control
	joining  joining
	listener net.Listener
	interval time.Duration
	grace    time.Duration
	// turn and ca may be nil.
	turn func(reconciler.Turn, *reconciler.Status)
	ca   func(pem []byte) error
}

func serveCommand() *cobra.Command {
	var (
		s      serving
		listen string
		hosts  string
	)
	c := &cobra.Command{
		Use:   "serve",
		Short: "Keep the live fleet as the repo wants it",
		Long: `Serve follows a fleet repo and makes turns without end: at once when the repo
moves, and at every interval, to put back what was changed by hand. A commit that
is broken, rewinds history or deletes too much changes nothing: the last good one
stays live, and the log and the status say what is wrong and where.

Hosts with a token from ` + "`kokoa token create`" + ` ask it to become origins, and it opens
their pull requests.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := logger(c.ErrOrStderr(), s.logFormat, s.verbose)
			if err != nil {
				return err
			}
			if s.listener, err = net.Listen("tcp", listen); err != nil {
				return fmt.Errorf("listen for status: %w", err)
			}
			if hosts != "" {
				if s.joining.listener, err = net.Listen("tcp", hosts); err != nil {
					return errors.Join(fmt.Errorf("listen for hosts that join: %w; give another --join-listen, or --join-listen \"\" for none", err), s.listener.Close())
				}
			}
			return s.run(c.Context(), log)
		},
	}
	s.flags(c)
	c.Flags().StringVar(&s.state, "state", stateDir(), "folder of the state: certificates, ACME account, history")
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:7080", "address of the read-only status API")
	s.joining.flags(c)
	c.Flags().StringVar(&hosts, "join-listen", "127.0.0.1:7081", `address of the API for hosts that join, which a route of the fleet may publish; "" for none`)
	c.Flags().DurationVar(&s.interval, "interval", 10*time.Second, "time between looks at a fleet that has settled")
	c.Flags().DurationVar(&s.grace, "grace", 10*time.Second, "time out of sight after which an edge leaves DNS, when no agent reaches it either")
	return c
}

// renewalPoll is how often issuers are asked when they wish certificates renewed;
// RFC 9773 section 4.3 leaves the exact time to them.
const renewalPoll = time.Hour

// run serves until ctx ends. It closes the listeners.
func (s *serving) run(ctx context.Context, log *slog.Logger) (err error) {
	fail := func(err error) error {
		if s.joining.listener != nil {
			err = errors.Join(err, s.joining.listener.Close())
		}
		return errors.Join(err, s.listener.Close())
	}
	opened, err := s.open(true, false, log)
	if err != nil {
		return fail(err)
	}
	defer closing(opened, &err)
	registrar, hosts, err := s.joining.open(&s.control, opened.Secret, log)
	if err != nil {
		return fail(err)
	}
	opened.Grace = s.grace
	opened.Rotations = registrar.Rotations
	loop := &reconciler.Loop{Reconciler: opened.Reconciler, Interval: s.interval}
	firstCA := s.ca
	var polled time.Time
	loop.Turn = func(t reconciler.Turn, status *reconciler.Status) {
		if t.Fleet != nil && firstCA != nil {
			pem, err := opened.Certs.RootPEM(ctx, t.Fleet)
			if err == nil {
				err = firstCA(pem)
			}
			if err != nil {
				log.Error("internal CA not written", "err", err)
			} else {
				firstCA = nil
			}
		}
		if t.Fleet != nil && time.Since(polled) > renewalPoll {
			polled = time.Now()
			go func() {
				if err := opened.Certs.PollRenewals(ctx, t.Fleet); err != nil && ctx.Err() == nil {
					log.Warn("issuer not asked about renewals", "err", err)
				}
			}()
		}
		if t.Fleet != nil {
			registrar.See(view(t, status, opened.Secret))
		}
		if s.turn != nil {
			s.turn(t, status)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 2)
	for _, serve := range []func() error{
		func() error { return serveStatus(ctx, s.listener, loop.Status) },
		func() error { return s.joining.run(ctx, registrar, hosts) },
	} {
		go func() {
			served <- serve()
			cancel()
		}()
	}
	err = loop.Run(ctx)
	cancel()
	return errors.Join(err, <-served, <-served)
}

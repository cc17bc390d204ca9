package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"time"
)

// rest is how long an edge or agent that ended stays away: long enough to see the
// others carry on, and its address leave DNS.
const rest = 20 * time.Second

// farewell is how long a part has to end by itself when the demo does.
const farewell = time.Second

// child runs one part as a process of its own, so that it can be killed like a
// host. It is started again when it ends. Its standard input is a pipe that nobody
// writes to: when the demo is gone, however it went, the child reads the end.
func (d *demo) child(ctx context.Context, role, name, config string, started func(pid int)) error {
	log, err := os.OpenFile(d.path("logs", role+"-"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	run := func() (*exec.Cmd, io.Closer, error) {
		c := exec.Command(d.Self[0], append(d.Self[1:], role, config)...)
		c.Stdout, c.Stderr = log, log
		lifeline, err := c.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		if err := c.Start(); err != nil {
			return nil, nil, fmt.Errorf("start %s %s: %w", role, name, err)
		}
		if started != nil {
			started(c.Process.Pid)
		}
		return c, lifeline, nil
	}
	c, lifeline, err := run()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer log.Close()
		for {
			gone := make(chan error, 1)
			go func() { gone <- c.Wait() }()
			select {
			case <-ctx.Done():
				lifeline.Close()
				select {
				case <-gone:
				case <-time.After(farewell):
					c.Process.Kill()
					<-gone
				}
				return
			case err := <-gone:
				why := "it ended"
				if err != nil {
					why = err.Error()
				}
				d.narrator.event("%s %s is gone (%s); it comes back in %.0f s", role, name, why, rest.Seconds())
			}
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(rest):
				}
				if c, lifeline, err = run(); err == nil {
					break
				}
				d.narrator.event("%v", err)
			}
			d.narrator.event("%s %s is back", role, name)
		}
	}()
	d.closers = append(d.closers, func() { <-done })
	return nil
}

// listening waits until something takes connections at a.
func listening(ctx context.Context, a netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var dialer net.Dialer
	for {
		c, err := dialer.DialContext(ctx, "tcp", a.String())
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens at %s: %w", a, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Lifeline is a context that ends when the pipe from the demo does, for its
// children.
func Lifeline(ctx context.Context, stdin io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		io.Copy(io.Discard, stdin)
		cancel()
	}()
	return ctx, cancel
}

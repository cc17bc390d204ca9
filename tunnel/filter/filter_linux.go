// Package filter keeps the host's own ports out of the reach of a tunnel's peers:
// whatever listens on all of the host's addresses listens at the tunnel's too.
package filter

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Filter is about one link. What comes out of it passes when it is for the link's
// address and
//
//   - the first segment of a TCP connection to a port that Allow was called for,
//   - a later segment to a port that connections were taken at or dialled from, or
//   - the ICMP message of a path that takes smaller packets only.
//
// All else that is TCP gets a reset, open port or not, as from a host where nothing
// else listens: a dialler learns at once. The rest is dropped.
//
// It is an nftables table of its own, "kokoa-" and the link's name, which leaves other
// tables' verdicts as they are. It does not use connection tracking, which one rule
// would switch on for all traffic of the host. It outlives the process, and so fails
// closed, and is put back when somebody flushes the host's rules.
//
// All methods but Watch and Close may be called at once.
type Filter struct {
	link    string
	address netip.Addr
	log     *slog.Logger

	events  *netlink.Conn
	closing chan struct{}
	watcher sync.WaitGroup

	mu      sync.Mutex // for what follows, and transactions as a whole
	conn    *nftables.Conn
	allowed map[uint16]bool
}

// New installs the filter of a link, which need not exist yet, in place of one that a
// killed process left. It belongs to the network namespace of the calling thread.
func New(link string, address netip.Addr, log *slog.Logger) (*Filter, error) {
	f := &Filter{
		link:    link,
		address: address,
		log:     log,
		closing: make(chan struct{}),
		allowed: make(map[uint16]bool),
	}
	// One socket for good: it stays in its namespace, whatever thread uses it.
	var err error
	f.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetWriteBuffer(1 << 20) // a transaction with every port there is
	}))
	if err != nil {
		return nil, fmt.Errorf("reach nftables: %w", err)
	}
	if err := f.install(nil); err != nil {
		return nil, errors.Join(fmt.Errorf("install nftables table %s: %w", f.table().Name, err), f.conn.CloseLasting())
	}
	const group = 1 << (unix.NFNLGRP_NFTABLES - 1)
	if f.events, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: group}); err != nil {
		return nil, errors.Join(fmt.Errorf("watch nftables: %w", err), f.uninstall(), f.conn.CloseLasting())
	}
	return f, nil
}

// Allow lets peers connect to port.
func (f *Filter) Allow(port uint16) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed[port] = true
	err := errors.Join(
		f.conn.SetAddElements(f.allowedSet(), elements(port)),
		f.conn.SetAddElements(f.usedSet(), elements(port)),
	)
	if err == nil {
		err = f.conn.Flush()
	}
	// A table that was removed comes back with the port.
	if err != nil && !errors.Is(err, unix.ENOENT) {
		delete(f.allowed, port)
		return fmt.Errorf("let port %d through the filter of %s: %w", port, f.link, err)
	}
	return nil
}

// Forbid takes Allow back. Connections that were taken go on.
func (f *Filter) Forbid(port uint16) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.allowed, port)
	err := f.conn.SetDeleteElements(f.allowedSet(), elements(port))
	if err == nil {
		err = f.conn.Flush()
	}
	// Without its table the port is not allowed either.
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take port %d from the filter of %s: %w", port, f.link, err)
	}
	return nil
}

// Watch puts the filter back, until Close, whenever it is removed: loading a host's
// firewall often begins with "flush ruleset". inUse are the local ports of open
// sockets.
func (f *Filter) Watch(inUse func() []uint16) {
	f.watcher.Go(func() {
		for {
			messages, err := f.events.Receive()
			select {
			case <-f.closing:
				return
			default:
			}
			switch {
			case errors.Is(err, unix.ENOBUFS): // events were lost
			case err != nil:
				f.log.Error("tunnel filter not watched any more", "object", f.table().Name, "err", err)
				return
			case !slices.ContainsFunc(messages, removesTable):
				continue
			}
			f.putBack(inUse)
		}
	})
}

// Close removes the filter; the link must be gone. The nil filter has nothing to
// remove.
func (f *Filter) Close() error {
	if f == nil {
		return nil
	}
	close(f.closing)
	closed := f.events.Close()
	f.watcher.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(f.uninstall(), closed, f.conn.CloseLasting()); err != nil {
		return fmt.Errorf("remove filter of %s: %w", f.link, err)
	}
	return nil
}

func removesTable(m netlink.Message) bool {
	return m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE
}

func (f *Filter) putBack(inUse func() []uint16) {
	for {
		gone, err := f.restore(inUse)
		if err == nil {
			if gone {
				f.log.Warn("tunnel filter was removed and put back", "object", f.table().Name)
			}
			return
		}
		f.log.Error("tunnel filter not put back", "object", f.table().Name, "err", err)
		select {
		case <-f.closing:
			return
		case <-time.After(time.Second):
		}
	}
}

// restore installs the filter if it is gone.
func (f *Filter) restore(inUse func() []uint16) (gone bool, err error) {
	ports := inUse()
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err = f.conn.ListTableOfFamily(f.table().Name, f.table().Family)
	if !errors.Is(err, unix.ENOENT) {
		return false, err
	}
	return true, f.install(ports)
}

func (f *Filter) uninstall() error {
	f.conn.DelTable(f.table())
	if err := f.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

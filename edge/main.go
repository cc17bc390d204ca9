package edge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"syscall"

	"github.com/kokoa-proxy/kokoa/internal/program"
	"github.com/kokoa-proxy/kokoa/tunnel"
)

// Main runs an edge until ctx ends: it opens the tunnel and the public listeners of
// the bootstrap, serves, and lets go of all of it.
func Main(ctx context.Context, b Bootstrap, log *slog.Logger) (err error) {
	if err := b.check(); err != nil {
		return fmt.Errorf("start edge: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	plain, err := listen("http", b.HTTP)
	if err != nil {
		return err
	}
	secure, err := listen("https", b.HTTPS)
	if err != nil {
		return errors.Join(err, plain.Close())
	}
	device, err := tunnel.Open(tunnel.Config{
		Kind:       tunnel.Kind(b.Tunnel),
		PrivateKey: b.PrivateKey,
		Address:    b.TunnelAddress,
		Network:    b.Network,
		ListenPort: b.WireGuard,
		Log:        log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("open tunnel: %w", err), plain.Close(), secure.Close())
	}
	defer func() {
		if cerr := device.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close tunnel: %w", cerr))
		}
	}()
	s, err := New(Options{Bootstrap: b, Device: device, HTTP: plain, HTTPS: secure, Version: program.Version(), Log: log})
	if err != nil {
		return errors.Join(fmt.Errorf("start edge: %w", err), plain.Close(), secure.Close())
	}
	return s.Serve(ctx)
}

// listen opens a public listener, and says what to do when it cannot.
func listen(what, at string) (net.Listener, error) {
	l, err := net.Listen("tcp", at)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("listen for %s: %w; ports below 1024 need root, or: setcap cap_net_bind_service+ep on this program", what, err)
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen for %s: %w; another program has it: see ss -ltnp", what, err)
	}
	return nil, fmt.Errorf("listen for %s: %w", what, err)
}

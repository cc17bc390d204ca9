package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kokoa-proxy/kokoa/edge/api"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

// The last good config and the one before it, in the data folder: a line with the
// checksum, then JSON.
const (
	configFile   = "config"
	previousFile = "config.previous"
	checksumLine = "kokoa edge config sha256:"
)

// save makes c what a restart will serve. What was saved before becomes the
// fallback. After an error the saved config is as it was.
func (s *Server) save(c api.Config) (err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	config, previous := filepath.Join(s.o.Bootstrap.Data, configFile), filepath.Join(s.o.Bootstrap.Data, previousFile)
	sum := sha256.Sum256(body)
	header := []byte(checksumLine + hex.EncodeToString(sum[:]) + "\n")
	// Written aside first: on a full disk neither the config nor its fallback is
	// touched.
	next := config + ".next"
	if err := atomicfile.Write(next, append(header, body...), 0o600); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(next))
		}
	}()
	// A second name for the file that is about to be replaced: at no moment is
	// there none that is whole.
	fallback := previous + ".new"
	if err := os.Remove(fallback); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(config, fallback); err == nil {
		if err := os.Rename(fallback, previous); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.Rename(next, config)
}

// restore makes the last good config live, or the one before it, and sets the
// device's peers. Only the folder and the peers are an error.
func (s *Server) restore() error {
	if err := atomicfile.Sweep(filepath.Join(s.o.Bootstrap.Data, configFile)); err != nil {
		return err
	}
	for _, name := range []string{configFile, previousFile} {
		path := filepath.Join(s.o.Bootstrap.Data, name)
		c, err := readConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.log.Error("saved config left out", "object", path, "err", err)
			continue
		}
		fresh, change, err := s.build(c, c.Digest(), nil)
		if err != nil {
			s.log.Error("saved config left out", "object", path, "err", err)
			continue
		}
		if err := s.setPeers(context.Background(), s.peersFor(c.Peers, nil)); err != nil {
			return fmt.Errorf("set peers: %w", err)
		}
		s.live.Store(fresh)
		change.Commit()
		s.expiry = soonest(c, s.now())
		s.log.Info("saved config restored", "object", path, "revision", c.Revision, "count", len(c.Routes))
		return nil
	}
	s.log.Info("no config found", "reason", "the control plane has to put one")
	if err := s.setPeers(context.Background(), s.peersFor(nil, nil)); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

func readConfig(path string) (api.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return api.Config{}, err
	}
	header, body, _ := bytes.Cut(data, []byte("\n"))
	sum := sha256.Sum256(body)
	if string(header) != checksumLine+hex.EncodeToString(sum[:]) {
		return api.Config{}, errors.New("it is damaged: the checksum does not match")
	}
	return api.DecodeConfig(body)
}

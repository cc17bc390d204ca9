package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// saveEvery bounds how often the file is written: a burst of changes is one write.
const (
	saveEvery  = time.Second
	retryEvery = 30 * time.Second
)

// keepSaving writes the file after changes until ctx ends, and then once more.
func (s *Server) keepSaving(ctx context.Context) {
	if s.file == "" {
		return
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-s.dirty:
		}
		wait := saveEvery
		if !s.saveAndLog() {
			wait = retryEvery
			s.changed()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	select {
	case <-s.dirty:
		s.saveAndLog()
	default:
	}
}

// saveAndLog reports whether the file was written. When not, the zones are served on
// from memory.
func (s *Server) saveAndLog() bool {
	start := time.Now()
	if err := s.save(); err != nil {
		s.log.Error("dns zones not saved", "err", err)
		return false
	}
	s.log.Debug("dns zones saved", "count", len(s.zones), "took", time.Since(start))
	return true
}

// save writes all zones, in the format of RFC 1035 section 5.
func (s *Server) save() error {
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(s.zones)) {
		s.zones[name].live.Load().print(&text)
	}
	return atomicfile.Write(s.file, text.Bytes(), 0o600)
}

// print writes the zone, its SOA record first.
func (s *snapshot) print(w *bytes.Buffer) {
	fmt.Fprintln(w, s.soaRecord())
	for _, rr := range s.ns.rrs {
		fmt.Fprintln(w, rr)
	}
	for _, n := range s.nodes {
		for _, set := range n.sets {
			for _, rr := range set.rrs {
				fmt.Fprintln(w, rr)
			}
		}
	}
}

// load fills the zones from the file. Records of other zones are left behind, and
// SOA and NS records are the server's own but for the serial, which must rise.
func (s *Server) load() error {
	if err := atomicfile.Sweep(s.file); err != nil {
		return err
	}
	f, err := os.Open(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.parse(f); err != nil {
		return fmt.Errorf("%w; remove the file to begin with empty zones, which the next turn fills", err)
	}
	return nil
}

func (s *Server) parse(r io.Reader) error {
	serials := map[*Zone]uint32{}
	records := map[*Zone][]mdns.RR{}
	p := mdns.NewZoneParser(r, "", s.file)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		z := s.zoneOf(wire.Name(rr.Header().Name))
		if z == nil {
			continue
		}
		switch rr := rr.(type) {
		case *mdns.SOA:
			serials[z] = rr.Serial
		case *mdns.NS:
		default:
			records[z] = append(records[z], rr)
		}
	}
	if err := p.Err(); err != nil {
		return err
	}
	for _, z := range s.zones {
		snapshot := *z.live.Load()
		d := &draft{base: &snapshot, nodes: map[string]*node{}}
		for _, set := range wire.Sets(records[z]) {
			if err := d.commit(dns.Transaction{Set: []dns.RRset{set}}); err != nil {
				return fmt.Errorf("%s: %w", s.file, err)
			}
		}
		next, _ := d.publish()
		loaded := *next
		loaded.serial = nextSerial(serials[z])
		z.live.Store(&loaded)
	}
	return nil
}

package dnstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// ErrFault is what a faulty call returns.
var ErrFault = errors.New("injected fault")

// Fault is how a call of a Memory goes wrong.
type Fault uint8

// The faults.
const (
	// None: the call does what it should.
	None Fault = iota
	// Refused: the call does nothing and returns ErrFault.
	Refused
	// Lost: the call does what it should and returns ErrFault, as when the
	// answer is lost or the caller is killed.
	Lost
)

// Memory is a zone in memory that can only set and delete, one set at a time. It is
// safe for concurrent use.
type Memory struct {
	// Fault decides about the n-th call, counted from 1 since the last Reset.
	// Nil is no fault. Reads count too.
	Fault func(n int) Fault

	mu     sync.Mutex
	calls  int
	writes []string
	sets   state
}

var _ dns.Zone = (*Memory)(nil)

// RRsets is every set.
func (m *Memory) RRsets(ctx context.Context) ([]dns.RRset, error) {
	var sets []dns.RRset
	err := m.call("", func() error {
		sets = slices.SortedFunc(maps.Values(m.sets), dns.RRset.Compare)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sets, ctx.Err()
}

// Set replaces one set.
func (m *Memory) Set(_ context.Context, set dns.RRset) error {
	if len(set.Values) == 0 {
		return dns.ErrEmpty
	}
	return m.call(fmt.Sprintf("set %s %s", set.Name, set.Type), func() error { m.put(set); return nil })
}

// Delete deletes one set.
func (m *Memory) Delete(_ context.Context, name string, typ dns.Type) error {
	return m.call(fmt.Sprintf("delete %s %s", name, typ), func() error { m.put(dns.RRset{Name: name, Type: typ}); return nil })
}

// Put sets or, without values, deletes sets by a hand that is not Kokoa's: without
// faults and without counting.
func (m *Memory) Put(sets ...dns.RRset) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range sets {
		m.put(s)
	}
}

// Get is one set; without values when there is none. It does not count as a call.
func (m *Memory) Get(name string, typ dns.Type) dns.RRset {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sets[[2]string{name, string(typ)}]
}

// Reset forgets the calls so far and installs fault.
func (m *Memory) Reset(fault func(n int) Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.writes, m.Fault = 0, nil, fault
}

// Calls counts the calls since the last Reset.
func (m *Memory) Calls() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// Writes is "set name TYPE" or "delete name TYPE" for each write that took effect
// since the last Reset.
func (m *Memory) Writes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.writes)
}

func (m *Memory) call(write string, do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	fault := None
	if m.Fault != nil {
		fault = m.Fault(m.calls)
	}
	if fault == Refused {
		return ErrFault
	}
	if err := do(); err != nil {
		return err
	}
	if write != "" {
		m.writes = append(m.writes, write)
	}
	if fault == Lost {
		return ErrFault
	}
	return nil
}

func (m *Memory) put(set dns.RRset) {
	if m.sets == nil {
		m.sets = state{}
	}
	k := [2]string{set.Name, string(set.Type)}
	if len(set.Values) == 0 {
		delete(m.sets, k)
		return
	}
	m.sets[k] = set
}

// Atomic is a Memory that is a dns.Batcher as well. Each transaction is a call.
type Atomic struct{ *Memory }

var _ dns.Batcher = Atomic{}

// Commit makes transactions, each whole or not at all.
func (a Atomic) Commit(_ context.Context, transactions []dns.Transaction) []error {
	errs := make([]error, len(transactions))
	for i, t := range transactions {
		errs[i] = a.call("commit", func() error {
			for _, r := range t.Require {
				if !slices.Equal(a.sets[[2]string{r.Name, string(r.Type)}].Values, r.Values) {
					return fmt.Errorf("%s %s: %w", r.Name, r.Type, dns.ErrConflict)
				}
			}
			for _, s := range t.Set {
				a.put(s)
			}
			return nil
		})
	}
	return errs
}

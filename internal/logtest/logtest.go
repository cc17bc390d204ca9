// Package logtest keeps what a program says, for tests to read while it speaks.
package logtest

import (
	"bytes"
	"sync"
)

// Buffer keeps what is written to it. The zero Buffer is empty, and for concurrent use.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer; it cannot fail.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is all that was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// bufferSize suits what the user-space stack hands over at once.
	bufferSize = 64 << 10
	// quietSize is the buffer of a stream on which little moves: most streams
	// wait for most of their life, and must be cheap while they do.
	quietSize = 4 << 10
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// touchEvery is how often a copy that the kernel does by itself says that it
// still moves bytes.
const touchEvery = time.Minute

// duplex copies both ways between a and b until both have ended, and closes them.
// The end of one direction is passed on by itself, since many protocols go on in
// the other; an error ends both. Touch is called when bytes have moved.
func duplex(a, b net.Conn, touch func()) {
	var both sync.WaitGroup
	oneWay := func(dst, src net.Conn) {
		err := transfer(dst, src, touch)
		if err == nil {
			err = closeWrite(dst)
		}
		if err != nil {
			a.Close()
			b.Close()
		}
	}
	both.Go(func() { oneWay(a, b) })
	oneWay(b, a)
	both.Wait()
	a.Close()
	b.Close()
}

// transfer copies src to dst until src ends, which is no error.
func transfer(dst, src net.Conn, touch func()) error {
	if to, ok := dst.(*net.TCPConn); ok {
		if from, ok := src.(*net.TCPConn); ok {
			return splice(to, from, touch)
		}
	}
	quiet := make([]byte, quietSize)
	buf := quiet
	var pooled *[bufferSize]byte
	defer func() {
		if pooled != nil {
			buffers.Put(pooled)
		}
	}()
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
			touch()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case n == quietSize && pooled == nil:
			pooled = buffers.Get().(*[bufferSize]byte)
			buf = pooled[:]
		case n < quietSize && pooled != nil:
			buffers.Put(pooled)
			pooled, buf = nil, quiet
		}
	}
}

// splice leaves the copying to the kernel, where it can. The deadline is only for
// looking up from it now and then.
func splice(dst, src *net.TCPConn, touch func()) error {
	for {
		if err := src.SetReadDeadline(time.Now().Add(touchEvery)); err != nil {
			return err
		}
		n, err := dst.ReadFrom(src)
		if n > 0 {
			touch()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// closeWrite ends one direction of conn. What cannot do that is closed.
func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

package front

import (
	"errors"
	"io"
	"net"
	"strings"
)

// guard lets HTTP/1 requests through that are formed strictly as RFC 9112 says, and
// nothing else. Where net/http forgives (bare LF, folded lines, Content-Length
// beside Transfer-Encoding, blanks after a chunk's size), a service behind may read
// another request out of the same bytes, so those end here.
//
// It looks at the bytes as they pass and holds none back. A bad head is cut off and
// ended with a byte that net/http takes in no head, so that net/http itself answers
// 400 in turn and closes. A bad body ends in an error, which cuts the request to
// the service too.
type guard struct {
	net.Conn
	meta *Conn

	state state
	// poison is what is left to read of the end of a bad head; err then follows.
	poison string
	err    error

	// name and value are what was read of a field, as much as matters; framing is
	// whether its name is one that says where the message ends.
	name, value field
	framing     bool
	head        head
	// left is the bytes still to come of a body or a chunk; digits and size bound
	// what frames them.
	left         uint64
	digits, size int
}

// head is what a request's head says of its body.
type head struct {
	version10 bool
	length    uint64
	hasLength bool
	chunked   bool
	upgrade   bool
	trailer   bool // these are the fields after a chunked body
	word      int  // bytes read of a word of the request line
}

type state uint8

const (
	inMethod state = iota
	inTarget
	inVersion
	requestLF
	lineStart
	inName
	inValue
	valueLF
	headLF
	inBody
	chunkSize
	chunkExtension
	chunkLF
	inChunk
	chunkCR
	chunkEndLF
	opaque // after the head of an upgrade: a 101 or the connection's end follows
)

// errBody is what a request's reader gets for a body that is not framed strictly.
var errBody = errors.New("malformed chunked body")

// poison ends a head: NUL is in no method, target, version, field name or value.
const poison = "\x00\n\x00\n\n"

const version = "HTTP/1."

const (
	maxMethod    = 32
	maxExtension = 256
	maxTrailers  = 16 << 10
)

func newGuard(c net.Conn, meta *Conn) *guard { return &guard{Conn: c, meta: meta} }

// Read implements io.Reader. Like every connection of net/http it is read by one
// goroutine at a time.
func (g *guard) Read(p []byte) (int, error) {
	switch {
	case g.poison != "":
		n := copy(p, g.poison)
		g.poison = g.poison[n:]
		return n, nil
	case g.err != nil:
		return 0, g.err
	case len(p) == 0:
		return 0, nil
	}
	n, err := g.Conn.Read(p)
	good := g.pass(p[:n])
	if good == n {
		return n, err
	}
	if g.state >= inBody || g.head.trailer {
		g.err = errBody
		return good, g.err
	}
	g.poison, g.err = poison, io.EOF
	if good == 0 {
		return g.Read(p)
	}
	return good, nil
}

// CloseWrite is for net/http, which calls it after an answer to half a request.
func (g *guard) CloseWrite() error { return closeWrite(g.Conn) }

// pass is how many of the bytes may pass. After fewer than all, the guard is done.
func (g *guard) pass(b []byte) int {
	for i := 0; i < len(b); {
		switch g.state {
		case opaque:
			return len(b)
		case inBody, inChunk:
			n := uint64(len(b) - i)
			if n < g.left {
				g.left -= n
				return len(b)
			}
			i += int(g.left)
			g.left = 0
			if g.state == inBody {
				g.next()
			} else {
				g.state = chunkCR
			}
		default:
			if n := g.skip(b[i:]); n > 0 {
				i += n
				continue
			}
			if !g.step(b[i]) {
				return i
			}
			i++
		}
	}
	return len(b)
}

// skip is how many bytes at the beginning of b belong to a target or to a value that
// frames nothing, and change no state: most of every head.
func (g *guard) skip(b []byte) int {
	n := 0
	switch {
	case g.head.trailer:
	case g.state == inTarget && g.head.word > 0:
		for n < len(b) && b[n] > ' ' && b[n] != 0x7f && b[n] != '#' {
			n++
		}
	case g.state == inValue && !g.framing:
		for n < len(b) && (b[n] >= ' ' && b[n] != 0x7f || b[n] == '\t') {
			n++
		}
	}
	return n
}

// next awaits another request.
func (g *guard) next() {
	g.state, g.head, g.digits = inMethod, head{}, 0
}

// step takes a byte of a head or of what frames chunks.
func (g *guard) step(c byte) bool {
	switch g.state {
	case inMethod:
		switch {
		case 'A' <= c && c <= 'Z', c == '-' && g.head.word > 0:
			g.head.word++
			return g.head.word <= maxMethod
		case c == ' ' && g.head.word > 0:
			g.state, g.head.word = inTarget, 0
			return true
		}
		return false
	case inTarget:
		switch {
		case c == ' ' && g.head.word > 0:
			g.state, g.head.word = inVersion, 0
			return true
		case c > ' ' && c != 0x7f && c != '#':
			g.head.word++
			return true
		}
		return false
	case inVersion:
		g.head.word++
		switch i := g.head.word - 1; {
		case i < len(version):
			return c == version[i]
		case i == len(version):
			g.head.version10 = c == '0'
			return c == '0' || c == '1'
		}
		g.state = requestLF
		return c == '\r'
	case requestLF, valueLF:
		g.state = lineStart
		return c == '\n'
	case lineStart:
		if c == '\r' {
			g.state = headLF
			return true
		}
		g.state = inName
		g.name.reset()
		g.name.add(lower(c))
		return isTokenByte(c) && g.sizeUp()
	case inName:
		if c == ':' {
			g.state, g.framing = inValue, g.name.frames()
			g.value.reset()
			return g.sizeUp()
		}
		g.name.add(lower(c))
		return isTokenByte(c) && g.sizeUp()
	case inValue:
		switch {
		case c == '\r':
			g.state = valueLF
			return g.field()
		case c == '\t', c >= ' ' && c != 0x7f:
			if g.framing {
				g.value.add(c)
			}
			return g.sizeUp()
		}
		return false
	case headLF:
		return c == '\n' && g.framed()
	case chunkSize:
		switch {
		case isHex(c):
			g.left = g.left<<4 | uint64(unhex(c))
			g.digits++
			return g.digits <= 15
		case g.digits == 0:
			return false
		case c == ';':
			g.state, g.size = chunkExtension, 0
			return true
		case c == '\r':
			g.state = chunkLF
			return true
		}
		return false
	case chunkExtension:
		if c == '\r' {
			g.state = chunkLF
			return true
		}
		g.size++
		return (c == '\t' || c >= ' ' && c < 0x7f) && g.size <= maxExtension
	case chunkLF:
		g.digits = 0
		if g.left > 0 {
			g.state = inChunk
		} else {
			g.state, g.size, g.head.trailer = lineStart, 0, true
		}
		return c == '\n'
	case chunkCR:
		g.state = chunkEndLF
		return c == '\r'
	case chunkEndLF:
		g.state = chunkSize
		return c == '\n'
	}
	return false
}

// sizeUp counts the bytes of trailers. Those of heads net/http counts.
func (g *guard) sizeUp() bool {
	if g.head.trailer {
		g.size++
	}
	return g.size <= maxTrailers || !g.head.trailer
}

// field takes a field that says how long the body is, once its line is whole.
func (g *guard) field() bool {
	if !g.framing {
		return true
	}
	value := strings.Trim(g.value.text(), " \t")
	switch {
	case g.head.trailer:
		// A trailer that frames a message is one that somebody may obey.
		return g.name.text() == "upgrade"
	case g.name.text() == "content-length":
		n, ok := decimal(value)
		if !ok || g.value.cut || g.head.hasLength && n != g.head.length {
			return false
		}
		g.head.length, g.head.hasLength = n, true
	case g.name.text() == "transfer-encoding":
		if g.head.chunked || g.value.cut || !strings.EqualFold(value, "chunked") {
			return false
		}
		g.head.chunked = true
	case g.name.text() == "upgrade":
		g.head.upgrade = g.head.upgrade || strings.EqualFold(value, "websocket")
	}
	return true
}

// framed ends a head, or the trailers of a body.
func (g *guard) framed() bool {
	h := g.head
	switch {
	case h.trailer:
		g.next()
	case h.chunked && (h.hasLength || h.version10):
		return false
	case h.chunked:
		g.state, g.left, g.digits = chunkSize, 0, 0
	case h.length > 0:
		g.state, g.left = inBody, h.length
	case h.upgrade:
		g.state = opaque
	default:
		g.next()
	}
	return true
}

// field is the beginning of a name or a value.
type field struct {
	bytes  [40]byte
	length int
	cut    bool // there was more
}

func (f *field) reset() { f.length, f.cut = 0, false }

func (f *field) add(c byte) {
	if f.length == len(f.bytes) {
		f.cut = true
		return
	}
	f.bytes[f.length] = c
	f.length++
}

func (f *field) text() string { return string(f.bytes[:f.length]) }

// frames reports whether f is the name of a field that says where the message ends.
func (f *field) frames() bool {
	if f.cut {
		return false
	}
	switch string(f.bytes[:f.length]) {
	case "content-length", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

func decimal(s string) (uint64, bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	var n uint64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + uint64(s[i]-'0')
	}
	return n, true
}

// isTokenByte is tchar of RFC 9110 section 5.6.2.
func isTokenByte(c byte) bool {
	l := lower(c)
	if 'a' <= l && l <= 'z' || '0' <= c && c <= '9' || c == '-' {
		return true
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= lower(c) && lower(c) <= 'f'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return lower(c) - 'a' + 10
}

// Package route decides which of an edge's rules a request belongs to. It is pure:
// no clock, no network, no log.
//
// Priority, first to last: the exact host with the longest path, the exact host
// with shorter paths, the wildcard one label above, and the default "*". A path is
// a prefix on segment borders: "/api" has "/api" and "/api/x", not "/apix". Where
// a better host has no path that fits, the next host is asked.
package route

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Default is the pattern for every host that no other rule names.
const Default = "*"

// Rule is a host and a path prefix.
type Rule struct {
	// Host is a canonical name, "*.suffix" for every name one label below suffix,
	// or Default.
	Host string
	// Path begins with "/". A slash at its end means nothing.
	Path string
}

// ErrAmbiguous is returned for a path that servers are known to read in several
// ways, at a host where the path decides who gets the request.
var ErrAmbiguous = errors.New("path can be read in more than one way")

// Table is a set of rules. It is immutable and safe for concurrent use.
type Table struct {
	exact    map[string]*host
	wildcard map[string]*host // by suffix
	fallback *host
}

// host is the rules of one pattern.
type host struct {
	paths map[string]int
	root  int // the rule for "/", or none
	// longest is the length of the longest key in paths.
	longest int
	// next is the pattern asked when no path here fits.
	next *host
	// split is whether a path decides anything, here or further on.
	split bool
}

const none = -1

// New builds a table. Of two rules with the same host and path the first counts. A
// rule with a bad host or path is an error that names its place in rules.
func New(rules []Rule) (*Table, error) {
	t := &Table{exact: map[string]*host{}, wildcard: map[string]*host{}}
	for i, r := range rules {
		if err := CheckHost(r.Host); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		if err := CheckPath(r.Path); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		h := t.pattern(r.Host)
		path := strings.TrimSuffix(r.Path, "/")
		if path == "" {
			if h.root == none {
				h.root = i
			}
			continue
		}
		if h.paths == nil {
			h.paths = map[string]int{}
		}
		if _, taken := h.paths[path]; !taken {
			h.paths[path] = i
			h.longest = max(h.longest, len(path))
		}
	}
	t.link()
	return t, nil
}

// Match is the index of the rule that a request belongs to, or -1. Name is as Host
// returns it; path is the decoded path and raw the path as it was sent, or "" when
// encoding path gives it back (net/url's Path and RawPath). Match allocates nothing
// unless the path has empty segments or parameters.
func (t *Table) Match(name, path, raw string) (int, error) {
	h := t.find(name)
	if h == nil {
		return none, nil
	}
	if !h.split {
		return h.match(path), nil
	}
	if ambiguous(path, raw) {
		return none, ErrAmbiguous
	}
	rule := h.match(path)
	if !strings.Contains(path, "//") && !strings.Contains(path, ";") {
		return rule, nil
	}
	// Some servers merge empty segments, some drop ";parameters", some do both: all
	// must come to the same rule.
	bare := withoutParameters(path)
	for _, reading := range [...]string{merged(path), bare, merged(bare)} {
		if h.match(reading) != rule {
			return none, ErrAmbiguous
		}
	}
	return rule, nil
}

// Host is the canonical form of a request's host: lower case, without port and
// trailing dot. Anything that is not a plain ASCII host name is an error.
func Host(hostport string) (string, error) {
	name := hostport
	if i := strings.IndexByte(name, ':'); i >= 0 {
		if !isPort(name[i+1:]) {
			return "", fmt.Errorf("host %q: the port is not one", hostport)
		}
		name = name[:i]
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("host %q: %w", hostport, err)
	}
	return name, nil
}

// CheckHost says what is wrong with a rule's host.
func CheckHost(pattern string) error {
	if pattern == Default {
		return nil
	}
	if err := checkName(strings.TrimPrefix(pattern, "*.")); err != nil {
		return fmt.Errorf("host %q: %w", pattern, err)
	}
	if strings.ToLower(pattern) != pattern {
		return fmt.Errorf("host %q: write it in lower case", pattern)
	}
	return nil
}

// CheckPath says what is wrong with a rule's path.
func CheckPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return fmt.Errorf("path %q: begin it with \"/\"", path)
	case len(path) > maxPath:
		return fmt.Errorf("path of %d bytes: at most %d", len(path), maxPath)
	case strings.ContainsAny(path, "%?#;"):
		return fmt.Errorf("path %q: write it decoded, without %%, ?, # and ;", path)
	case strings.Contains(path, "//") || ambiguous(path, ""):
		return fmt.Errorf("path %q: no empty segments, dot segments, backslashes or control characters", path)
	}
	return nil
}

// maxPath bounds a rule's path in bytes, and so the work of one Match.
const maxPath = 1024

func (t *Table) pattern(name string) *host {
	fresh := &host{root: none}
	if name == Default {
		if t.fallback == nil {
			t.fallback = fresh
		}
		return t.fallback
	}
	names := t.exact
	if suffix, ok := strings.CutPrefix(name, "*."); ok {
		names, name = t.wildcard, suffix
	}
	if names[name] == nil {
		names[name] = fresh
	}
	return names[name]
}

func (t *Table) link() {
	if f := t.fallback; f != nil {
		f.split = len(f.paths) > 0
	}
	settle := func(h, next *host) {
		h.next = next
		h.split = len(h.paths) > 0 || next != nil && next.split
	}
	for _, h := range t.wildcard {
		settle(h, t.fallback)
	}
	for name, h := range t.exact {
		next := t.above(name)
		if next == nil {
			next = t.fallback
		}
		settle(h, next)
	}
}

func (t *Table) find(name string) *host {
	if h := t.exact[name]; h != nil {
		return h
	}
	if h := t.above(name); h != nil {
		return h
	}
	return t.fallback
}

// above is the wildcard that covers name.
func (t *Table) above(name string) *host {
	if i := strings.IndexByte(name, '.'); i > 0 {
		return t.wildcard[name[i+1:]]
	}
	return nil
}

func (h *host) match(path string) int {
	for ; h != nil; h = h.next {
		if rule := h.here(path); rule != none {
			return rule
		}
	}
	return none
}

func (h *host) here(path string) int {
	if len(h.paths) == 0 {
		return h.root
	}
	if len(path) > h.longest {
		// No key is longer, so only borders up to there are worth asking for.
		if path[h.longest] == '/' {
			path = path[:h.longest]
		} else {
			path = parent(path[:h.longest])
		}
	}
	for ; path != ""; path = parent(path) {
		if rule, ok := h.paths[path]; ok {
			return rule
		}
	}
	return h.root
}

// parent is path without its last segment.
func parent(path string) string { return path[:max(strings.LastIndexByte(path, '/'), 0)] }

// ambiguous reports whether decoding gave path another structure than it was sent
// with, or may give it one at the service.
func ambiguous(path, raw string) bool {
	for i := 0; i < len(path); i++ {
		if c := path[i]; c < ' ' || c == 0x7f || c == '\\' {
			return true
		}
	}
	// Overlong forms of "/" and "." are never valid UTF-8.
	if !utf8.ValidString(path) {
		return true
	}
	for i := 0; i+2 < len(raw); i++ {
		if raw[i] == '%' && raw[i+1] == '2' && raw[i+2]|0x20 == 'f' {
			return true
		}
	}
	for rest := path; rest != ""; {
		segment, after, _ := strings.Cut(rest, "/")
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." {
			return true
		}
		rest = after
	}
	return false
}

func merged(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

func withoutParameters(path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return errors.New("a host name has 1 to 253 characters")
	}
	length := 0
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			if length == 0 || name[i-1] == '-' {
				return errNotName
			}
			length = 0
			continue
		case c == '-':
			if length == 0 {
				return errNotName
			}
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		default:
			return errNotName
		}
		if length++; length > 63 {
			return errNotName
		}
	}
	if length == 0 || name[len(name)-1] == '-' {
		return errNotName
	}
	return nil
}

var errNotName = errors.New("not a host name: labels of 1 to 63 letters, digits, - and _, with dots between")

func isPort(s string) bool {
	if len(s) == 0 || len(s) > 5 {
		return false
	}
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}

package schema

import (
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// canonicalHost is the one way to write a host: lower case, without a trailing
// dot, and other scripts in their ASCII form. A host that cannot be written so is
// given back as it is.
func canonicalHost(host string) string {
	wild, name := "", strings.TrimSuffix(host, ".")
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		wild, name = "*.", rest
	}
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil || name == "" || strings.HasSuffix(name, ".") {
		return host
	}
	return wild + ascii
}

// isCanonical reports whether a host the schema allows is written in its one way.
// Names with "_" are not domain names for idna, and have no other way.
func isCanonical(host string) bool {
	if !strings.Contains(host, "xn--") {
		return true
	}
	name := strings.TrimPrefix(host, "*.")
	unicode, err := idna.Lookup.ToUnicode(name)
	if err != nil {
		return false
	}
	ascii, err := idna.Lookup.ToASCII(unicode)
	return err == nil && ascii == name
}

// canonicalPath is a route's path without a trailing slash; problem says why a
// path cannot be one.
func canonicalPath(p string) (canonical, problem string) {
	if p != "/" {
		p = strings.TrimSuffix(p, "/")
	}
	if p == "" || path.Clean(p) != p {
		return p, `want no "//", "." or ".." in it`
	}
	return p, ""
}

// canonicalService is a service URL with lower-case host and its port; problem
// says what is wrong with it.
func canonicalService(s string) (canonical, problem string) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return s, `want "http://host:port" or "https://host:port"`
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if !isPort(port) {
		return s, "want a port from 1 to 65535"
	}
	host := strings.ToLower(u.Hostname())
	if strings.Contains(host, ":") {
		a, err := netip.ParseAddr(host)
		if err != nil {
			return s, "want an IPv6 address in the brackets"
		}
		host = "[" + a.String() + "]"
	}
	n, _ := strconv.Atoi(port)
	return u.Scheme + "://" + host + ":" + strconv.Itoa(n), ""
}

// hostPort checks "host:port" or ":port" and says what is wrong with it.
func hostPort(s string) (problem string) {
	i := strings.LastIndexByte(s, ':')
	host, port := s[:max(i, 0)], s[i+1:]
	if !isPort(port) {
		return "want a port from 1 to 65535"
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]")); err != nil || !a.Is6() {
			return "want an IPv6 address in the brackets"
		}
	}
	return ""
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

package proxy

import (
	"net/http"
	"strings"
)

// Headers that the edge sets, and so the only ones of their kind that a service
// sees.
const (
	forwardedFor   = "X-Forwarded-For"
	forwardedProto = "X-Forwarded-Proto"
	forwardedHost  = "X-Forwarded-Host"
	realIP         = "X-Real-Ip"
	requestID      = "X-Request-Id"
)

// claims are headers by which applications are told who the visitor is or what was
// asked for. From a visitor they are lies or useless.
var claims = map[string]bool{
	"Cf-Connecting-Ip":    true,
	"Cf-Connecting-Ipv6":  true,
	"Client-Ip":           true,
	"Fastly-Client-Ip":    true,
	"Fly-Client-Ip":       true,
	"Forwarded":           true,
	"Front-End-Https":     true,
	"Proxy":               true, // CGI programs read it as HTTP_PROXY
	"True-Client-Ip":      true,
	"X-Client-Ip":         true,
	"X-Cluster-Client-Ip": true,
	"X-Original-Host":     true,
	"X-Original-Uri":      true,
	"X-Original-Url":      true,
	"X-Originating-Ip":    true,
	"X-Real-Ip":           true,
	"X-Remote-Addr":       true,
	"X-Remote-Ip":         true,
	"X-Request-Id":        true,
	"X-Rewrite-Url":       true,
	"X-Url-Scheme":        true,
}

// scrub removes from a visitor's headers what only the edge may say, and names that
// CGI-like servers mix up with others: those read "_" and "." as "-".
func scrub(h http.Header) {
	for name := range h {
		if claims[name] || strings.HasPrefix(name, "X-Forwarded-") || strings.ContainsAny(name, "_.") {
			delete(h, name)
		}
	}
}

// visitor is who asked, as services are told.
type visitor struct {
	address string
	proto   string // "http" or "https"
	host    string // with the port, if one was sent
	request string
}

func (v visitor) set(h http.Header) {
	h[forwardedFor] = []string{v.address}
	h[forwardedProto] = []string{v.proto}
	h[forwardedHost] = []string{v.host}
	h[realIP] = []string{v.address}
	h[requestID] = []string{v.request}
}

// size is a request's head as RFC 9113 section 6.5.2 would count it without the
// overhead: names, values, the target. count is the number of fields.
func size(r *http.Request) (bytes, count int) {
	bytes = len(r.Method) + len(r.RequestURI) + len(r.Host)
	count = 1 // Host
	for name, values := range r.Header {
		count += len(values)
		for _, v := range values {
			bytes += len(name) + len(v) + len(": \r\n")
		}
	}
	return bytes, count
}

// stripHopByHop removes from the head of a 101 what is between the service and the
// edge only; what of Connection and Upgrade remains is the upgrade itself. Of other
// answers net/http/httputil removes it.
func stripHopByHop(h http.Header, upgrade string) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Content-Length"} {
		h.Del(name)
	}
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", upgrade)
}

package proxy

import (
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
)

// wantsWebSocket reports whether the request asks to leave HTTP for WebSocket. Other
// upgrades are not taken, h2c among them: they are answered as plain requests.
// Package front passes what follows such a request unread, by the same rule.
func wantsWebSocket(r *http.Request) bool {
	return r.ProtoMajor == 1 && slices.ContainsFunc(r.Header["Upgrade"], func(v string) bool { return strings.EqualFold(v, "websocket") })
}

// checkWebSocket says what is wrong with an opening handshake (RFC 6455 section
// 4.2.1), as the status to answer, or 0.
func checkWebSocket(r *http.Request) int {
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-Websocket-Key"))
	switch {
	case r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || !hasToken(r.Header["Connection"], "upgrade"),
		len(r.Header["Upgrade"]) != 1 || len(r.Header["Sec-Websocket-Key"]) != 1 || err != nil || len(key) != 16,
		r.ContentLength != 0:
		return http.StatusBadRequest
	case r.Header.Get("Sec-Websocket-Version") != "13":
		return http.StatusUpgradeRequired
	}
	return 0
}

// acceptsWebSocket reports whether a 101 answers the handshake with key.
func acceptsWebSocket(h http.Header, key string) bool {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return strings.EqualFold(h.Get("Upgrade"), "websocket") &&
		h.Get("Sec-Websocket-Accept") == base64.StdEncoding.EncodeToString(sum[:])
}

func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for t := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

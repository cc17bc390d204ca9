package join

import (
	"fmt"
	"strings"
)

// CheckName is why name cannot be an origin's, or nil: it is a DNS label (RFC 1123
// section 2.1) in lower case.
func CheckName(name string) error {
	if !label(name, false) {
		return fmt.Errorf("name %q: want 1 to 63 of a-z, 0-9 and \"-\", with no \"-\" at either end, like rpi-home", name)
	}
	return nil
}

// CheckHost is why host cannot be one of an origin's hosts, or nil: it is a domain
// name of at least two labels in lower case, or "*." and such a name.
func CheckHost(host string) error {
	labels := strings.Split(strings.TrimPrefix(host, "*."), ".")
	ok := len(labels) > 1 && len(host) <= 253
	for i, l := range labels {
		ok = ok && label(l, i < len(labels)-1)
	}
	if !ok {
		return fmt.Errorf("host %q: want a name in lower case like blog.example.com, or *.example.com for every name below", host)
	}
	return nil
}

// label reports whether text is a DNS label; underscore says that "_" counts as a
// letter.
func label(text string, underscore bool) bool {
	for i, r := range []byte(text) {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '_' && underscore:
		case r == '-' && i > 0 && i < len(text)-1:
		default:
			return false
		}
	}
	return 0 < len(text) && len(text) <= 63
}

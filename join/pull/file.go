package pull

import (
	"fmt"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
)

// File is the CUE that declares the origin, formatted as cue fmt does. Names and hosts
// are checked first, so nothing in it can end a string.
func File(o Origin) ([]byte, error) {
	if err := join.CheckName(o.Name); err != nil {
		return nil, err
	}
	for _, h := range o.Hosts {
		if err := join.CheckHost(h); err != nil {
			return nil, err
		}
	}
	if !folder(o.Folder) {
		return nil, fmt.Errorf("folder %q: want one of the repo, like origins", o.Folder)
	}
	if !o.TunnelAddress.IsValid() || o.TunnelAddress.Zone() != "" {
		return nil, fmt.Errorf("tunnel address %v: want an address", o.TunnelAddress)
	}
	if o.Key.IsZero() {
		return nil, fmt.Errorf("origin %s has no key", o.Name)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "package fleet\n\norigin: %q: {\n", o.Name)
	fmt.Fprintf(&b, "\tpublic_key:     %q\n\ttunnel_address: %q\n", o.Key.String(), o.TunnelAddress.String())
	if !o.Expires.IsZero() {
		fmt.Fprintf(&b, "\texpires:        %q\n", o.Expires.UTC().Truncate(time.Second).Format(time.RFC3339))
	}
	if len(o.Hosts) > 0 {
		quoted := make([]string, len(o.Hosts))
		for i, h := range o.Hosts {
			quoted[i] = fmt.Sprintf("%q", h)
		}
		fmt.Fprintf(&b, "\thosts: [%s]\n", strings.Join(quoted, ", "))
	}
	b.WriteString("}\n")
	return []byte(b.String()), nil
}

// folder reports whether text is a folder of the repo, by the form that the schema
// gives it: nothing in it leads elsewhere.
func folder(text string) bool {
	for part := range strings.SplitSeq(text, "/") {
		for i, r := range []byte(part) {
			if !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || i > 0 && (r == '-' || r == '_')) {
				return false
			}
		}
		if part == "" || len(part) > 63 {
			return false
		}
	}
	return true
}

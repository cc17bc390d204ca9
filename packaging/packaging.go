// Package packaging is how Kokoa gets onto hosts: the script that installs an agent,
// and beside it systemd units, images and releases.
package packaging

import (
	"crypto/ecdsa"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"regexp"
	"strings"
)

//go:embed install.sh
var install string

// address is what may stand between the quotes of a shell script.
var address = regexp.MustCompile(`^https?://[A-Za-z0-9.:_~/\[\]-]+$`)

// Install is the script that installs the agent which the control plane at url offers
// and signs with key. The url is without a slash at its end; one with characters that a
// shell could take for its own is an error.
func Install(url string, key *ecdsa.PublicKey) ([]byte, error) {
	if !address.MatchString(url) || strings.HasSuffix(url, "/") {
		return nil, fmt.Errorf("make install script: %q is not an address like https://control.example.com", url)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("make install script: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	filled := strings.NewReplacer("@URL@", url, "@KEY@", strings.TrimSpace(string(block))).Replace(install)
	return []byte(filled), nil
}

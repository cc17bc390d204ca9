package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
	"github.com/kokoa-proxy/kokoa/internal/privatefile"
	"github.com/kokoa-proxy/kokoa/keys"
)

// keyring is what an agent's data folder keeps of keys: a file of mode 0600. Until the
// fleet first asks for another key there is none, and the bootstrap's key is used.
type keyring struct {
	// Bootstrap is the public key of the bootstrap that these keys replace. The
	// keys of another bootstrap are those of another registration.
	Bootstrap keys.Public `json:"bootstrap"`
	Current   heldKey     `json:"current"`
	// Next is to replace Current once the fleet knows it; nil when no replacement
	// is under way.
	Next *heldKey `json:"next,omitempty"`
	// Switched says that Next is the one in use.
	Switched bool `json:"switched,omitempty"`
}

// heldKey is one key of a keyring.
type heldKey struct {
	Private keys.Private `json:"private"`
	// For is the api.AgentConfig.RotateBefore that the key was made for, by the
	// fleet's clock; zero for the bootstrap's. So a fleet that asks twice gets one
	// key, whatever this host's clock says.
	For time.Time `json:"for,omitzero"`
}

const keyringName = "keys.json"

// CurrentKey is the WireGuard key that the agent with a bootstrap uses now: the
// bootstrap's own, or the one that has replaced it since. Nothing is changed.
func CurrentKey(b Bootstrap) (keys.Private, error) {
	k, err := loadKeyring(b)
	if err != nil {
		return keys.Private{}, err
	}
	return k.inUse(), nil
}

// inUse is the key of the device.
func (k keyring) inUse() keys.Private {
	if k.Next != nil && k.Switched {
		return k.Next.Private
	}
	return k.Current.Private
}

// loadKeyring reads the keys that belong to b. A file that cannot be used is an
// error: the bootstrap's key may be one that the fleet has long forgotten.
func loadKeyring(b Bootstrap) (keyring, error) {
	own := keyring{Bootstrap: b.PrivateKey.Public(), Current: heldKey{Private: b.PrivateKey}}
	path := filepath.Join(b.Data, keyringName)
	var k keyring
	err := privatefile.ReadJSON(path, &k)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return own, nil
	case errors.Is(err, privatefile.ErrExposed):
		return keyring{}, fmt.Errorf("read keys: %w", err)
	case err == nil && (k.Current.Private == keys.Private{} || k.Next != nil && k.Next.Private == keys.Private{}):
		err = fmt.Errorf("%s: a key is missing", path)
	}
	if err != nil {
		return keyring{}, fmt.Errorf("read keys: %w; put back a copy, or remove the file and register this host again", err)
	}
	if k.Bootstrap != own.Bootstrap {
		return own, nil
	}
	return k, nil
}

// save replaces the file at once: after a crash it is the old or the new one, whole.
func (k keyring) save(dir string) error {
	data, err := json.Marshal(k)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, keyringName), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("save keys: %w", err)
	}
	return nil
}

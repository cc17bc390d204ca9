package join

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Branch is the branch of the fleet repo that proposes the origin, without
// "refs/heads/". A host that asks again, or asks somebody else to propose it, gets the
// same branch, and so never a second pull request.
func Branch(name string, key keys.Public) string {
	sum := sha256.Sum256(key[:])
	return "kokoa/register/" + name + "-" + hex.EncodeToString(sum[:6])
}

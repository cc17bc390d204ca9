package join

import (
	"testing"

	"github.com/kokoa-proxy/kokoa/keys"
)

// The branch is part of the agreement between agents and control planes of different
// versions: it stays what it is.
func TestBranch(t *testing.T) {
	key := keys.Public{1, 2, 3}
	const want = "kokoa/register/rpi-home-1ac2f1927028"
	if got := Branch("rpi-home", key); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if Branch("rpi-home", keys.Public{1, 2, 4}) == want || Branch("rpi-work", key) == want {
		t.Error("another key or name has the same branch")
	}
}

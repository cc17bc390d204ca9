// Package tunneltest makes WireGuard messages that no device makes. Only tests import
// it.
package tunneltest

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/kokoa-proxy/kokoa/keys"
)

// Initiate begins a handshake with the device at a UDP address, as the peer with a key
// does whose clock says at. Nobody takes the answer. The device that knows the peer
// refuses from then on what that peer begins earlier than at.
func Initiate(t testing.TB, peer keys.Private, device keys.Public, to netip.AddrPort, at time.Time) {
	t.Helper()
	c, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(initiation(t, peer, device, at)); err != nil {
		t.Fatal(err)
	}
}

// initiation is the first message of a handshake, as section 5.4.2 of the WireGuard
// paper has it.
func initiation(t testing.TB, peer keys.Private, device keys.Public, at time.Time) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(err)
	static, err := ecdh.X25519().NewPrivateKey(peer[:])
	must(err)
	remote, err := ecdh.X25519().NewPublicKey(device[:])
	must(err)

	chain := wgdevice.InitialChainKey
	hash := blake2s.Sum256(append(wgdevice.InitialHash[:], device[:]...))
	message := make([]byte, 0, wgdevice.MessageInitiationSize)
	message = append(message, wgdevice.MessageInitiationType, 0, 0, 0)
	message = append(message, 1, 2, 3, 4) // the sender's index
	add := func(field []byte) {
		message = append(message, field...)
		hash = blake2s.Sum256(append(hash[:], field...))
	}
	seal := func(with *ecdh.PrivateKey, text []byte) []byte {
		shared, err := with.ECDH(remote)
		must(err)
		var key [chacha20poly1305.KeySize]byte
		wgdevice.KDF2(&chain, &key, chain[:], shared)
		aead, err := chacha20poly1305.New(key[:])
		must(err)
		return aead.Seal(nil, make([]byte, chacha20poly1305.NonceSize), text, hash[:])
	}
	public := ephemeral.PublicKey().Bytes()
	wgdevice.KDF1(&chain, chain[:], public)
	add(public)
	add(seal(ephemeral, static.PublicKey().Bytes()))
	// TAI64N, https://cr.yp.to/libtai/tai64.html
	stamp := binary.BigEndian.AppendUint64(nil, 0x400000000000000a+uint64(at.Unix()))
	stamp = binary.BigEndian.AppendUint32(stamp, uint32(at.Nanosecond()))
	add(seal(static, stamp))

	message = message[:wgdevice.MessageInitiationSize] // with room for both MACs
	var macs wgdevice.CookieGenerator
	macs.Init(wgdevice.NoisePublicKey(device))
	macs.AddMacs(message)
	return message
}

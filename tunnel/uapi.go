package tunnel

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/kokoa-proxy/kokoa/keys"
)

// uapi configures a wireguard-go device of this process, in the text protocol of
// https://www.wireguard.com/xplatform/.
type uapi struct{ device *wgdevice.Device }

func (u uapi) change(changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	return u.device.IpcSet(renderChanges(changes))
}

func (u uapi) setKey(key keys.Private) error {
	return u.device.IpcSet(renderKey(key))
}

func (u uapi) rebind() (uint16, error) {
	if err := u.device.IpcSet("listen_port=0\n"); err != nil {
		return 0, err
	}
	text, err := u.device.IpcGet()
	if err != nil {
		return 0, err
	}
	state, err := parseState(text)
	return state.port, err
}

func (u uapi) peers() ([]peerState, error) {
	text, err := u.device.IpcGet()
	if err != nil {
		return nil, err
	}
	state, err := parseState(text)
	return state.peers, err
}

// deviceState is what a device says of itself, less its private key.
type deviceState struct {
	port  uint16
	peers []peerState
}

// renderDevice is the text that gives a device its key and port.
func renderDevice(key keys.Private, port uint16) string {
	return renderKey(key) + fmt.Sprintf("listen_port=%d\n", port)
}

func renderKey(key keys.Private) string {
	return fmt.Sprintf("private_key=%s\n", hex.EncodeToString(key[:]))
}

func renderChanges(changes []change) string {
	var b bytes.Buffer
	for _, c := range changes {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(c.key[:]))
		if c.existing {
			b.WriteString("update_only=true\n")
		}
		if c.remove {
			b.WriteString("remove=true\n")
		}
		for _, p := range c.lose {
			fmt.Fprintf(&b, "allowed_ip=-%s\n", p)
		}
		if c.endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", c.endpoint)
		}
		if c.keepalive != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(c.keepalive.Seconds()))
		}
		for _, p := range c.gain {
			fmt.Fprintf(&b, "allowed_ip=%s\n", p)
		}
	}
	return b.String()
}

// parseState reads what a device answers to get. Keys that are of no use here are
// passed over, as the protocol asks. No error quotes a value: one of them is the
// private key.
func parseState(text string) (deviceState, error) {
	var (
		state     deviceState
		peer      *peerState
		sec, nsec int64
	)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return deviceState{}, fmt.Errorf("parse device: a line of %d bytes has no =", len(line))
		}
		if key == "public_key" {
			state.peers = append(state.peers, peerState{})
			peer = &state.peers[len(state.peers)-1]
			sec, nsec = 0, 0
		}
		var err error
		switch {
		case key == "listen_port":
			state.port, err = parseUint16(value)
		case peer == nil:
		case key == "public_key":
			var n int
			if n, err = hex.Decode(peer.PublicKey[:], []byte(value[:min(len(value), 2*keys.Size)])); n != keys.Size || len(value) != 2*keys.Size {
				err = keys.ErrKey
			}
		case key == "endpoint":
			var addr netip.AddrPort
			addr, err = netip.ParseAddrPort(value)
			peer.Endpoint = addr.String()
		case key == "allowed_ip":
			var prefix netip.Prefix
			prefix, err = netip.ParsePrefix(value)
			peer.AllowedIPs = append(peer.AllowedIPs, canonical(prefix))
		case key == "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
			peer.Handshake = handshakeTime(sec, nsec)
		case key == "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(value, 10, 64)
			peer.Handshake = handshakeTime(sec, nsec)
		case key == "rx_bytes":
			peer.Received, err = strconv.ParseUint(value, 10, 64)
		case key == "tx_bytes":
			peer.Sent, err = strconv.ParseUint(value, 10, 64)
		case key == "persistent_keepalive_interval":
			var seconds uint16
			seconds, err = parseUint16(value)
			peer.keepalive = time.Duration(seconds) * time.Second
		}
		if err != nil {
			return deviceState{}, fmt.Errorf("parse device: bad %s", key)
		}
	}
	return state, nil
}

func parseUint16(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err
}

// handshakeTime is zero for a handshake that never was.
func handshakeTime(sec, nsec int64) time.Time {
	if sec == 0 && nsec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, nsec)
}

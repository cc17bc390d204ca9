package front

import (
	"crypto/tls"
	"strings"

	"github.com/kokoa-proxy/kokoa/edge/certs"
	"github.com/kokoa-proxy/kokoa/edge/route"
)

// tlsConfig is Mozilla's intermediate profile. A name that no certificate is for,
// or none, gets the alert unrecognized_name (RFC 6066 section 3) and sees no
// certificate.
func (d *Door) tlsConfig() *tls.Config {
	c := &tls.Config{
		MinVersion:       tls.VersionTLS12,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		CipherSuites: []uint16{ // of TLS 1.2
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if found := d.certificate(hello.ServerName); found != nil {
				return found.TLS, nil
			}
			// Neither a certificate nor an error: crypto/tls sends unrecognized_name.
			return nil, nil
		},
	}
	// A session belongs to the name it was made for, and ends with that name's
	// certificate.
	c.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, []byte(sessionName+state.ServerName))
		return c.EncryptTicket(state, session)
	}
	c.UnwrapSession = func(identity []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		session, err := c.DecryptTicket(identity, state)
		if err != nil || session == nil || d.certificate(state.ServerName) == nil {
			return nil, err
		}
		for _, extra := range session.Extra {
			if name, ok := strings.CutPrefix(string(extra), sessionName); ok && name == state.ServerName {
				return session, nil
			}
		}
		return nil, nil
	}
	return c
}

// sessionName marks our part of a session's Extra, which others may add to.
const sessionName = "kokoa sni "

func (d *Door) certificate(serverName string) *certs.Certificate {
	name, err := route.Host(serverName)
	if err != nil {
		return nil
	}
	return d.certs.Find(name)
}

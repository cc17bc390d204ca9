package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
)

// served is the certificate that an edge shows for a host.
func (l *lab) served(e *node, host string) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", netip.AddrPortFrom(e.address, e.https).String(), &tls.Config{
		ServerName: host, InsecureSkipVerify: true,
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// With HTTP-01 a name must be in DNS before its first certificate, and whichever edge
// the issuer asks must know the answer.
func TestHTTP01(t *testing.T) {
	l := newLoopback(t, func(l *lab) {
		// The issuer asks every address at one port.
		port := freePort(t)
		for _, e := range l.edges {
			e.http = uint16(port)
		}
		l.challenge, l.issuing.HTTPPort = "http-01", port
	})
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")
	l.route("shop", "/")
	l.push("Publish the shop")
	l.live("shop.example.com")
	var hosts []string
	for _, o := range l.issuer.Orders() {
		hosts = append(hosts, o.Hosts...)
	}
	slices.Sort(hosts)
	if !slices.Equal(hosts, []string{"blog.example.com", "shop.example.com"}) {
		t.Errorf("ordered %v, want each host once", hosts)
	}
	// A name that nobody publishes has no certificate, and asking starts no order.
	if c, err := l.served(l.edges[0], "unknown.example.com"); err == nil {
		t.Errorf("shown for an unknown name: %v", c.DNSNames)
	}
	if n := len(l.issuer.Orders()); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}

// A certificate is renewed in time, edges serve the new one, and no connection, old
// or new, notices.
func TestRenewal(t *testing.T) {
	l := newLoopback(t, func(l *lab) { l.issuing.Lifetime = 40 * time.Second })
	l.route("blog", "/")
	l.push("Publish the blog")
	l.live("blog.example.com")
	first := map[string]string{}
	for _, e := range l.edges {
		c, err := l.served(e, "blog.example.com")
		if err != nil {
			t.Fatal(err)
		}
		first[e.name] = c.SerialNumber.String()
	}
	visitors := l.visit("https://blog.example.com/")
	for _, e := range l.edges {
		demotest.Eventually(t, limit, func() error {
			c, err := l.served(e, "blog.example.com")
			if err == nil && c.SerialNumber.String() == first[e.name] {
				err = errors.New("edge " + e.name + " still shows its first certificate, good until " + c.NotAfter.Format(time.TimeOnly))
			}
			return err
		})
	}
	visitors.more(100)
	if n, err := visitors.leave(); err != nil || n == 0 {
		t.Errorf("%d answers during a renewal, and %v", n, err)
	}
	if n := len(l.issuer.Orders()); n < 2 {
		t.Errorf("%d orders, want a renewal", n)
	}
}

package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/reconciler/certs"
	"github.com/kokoa-proxy/kokoa/reconciler/plan"
)

// internalFleet has routes with tls internal under example.com.
func internalFleet(hosts ...string) *fleet.Fleet {
	f := &fleet.Fleet{Name: "test", Domains: []string{"example.com"}, Routes: map[string]fleet.Route{}}
	for i, h := range hosts {
		f.Routes[h] = route(h, h, fleet.TLSInternal, i+1)
	}
	return f
}

// local is a world without an issuer.
func local(t *testing.T, secret keys.Secret) *world {
	t.Helper()
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "state"), clock: &clock{}, secret: secret, said: &logtest.Buffer{}}
	w.reopen()
	t.Cleanup(w.noKeys)
	return w
}

func (w *world) roots(f *fleet.Fleet) (*x509.CertPool, []byte) {
	w.t.Helper()
	root, err := w.m.RootPEM(w.t.Context(), f)
	if err != nil {
		w.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		w.t.Fatal("no root")
	}
	return pool, root
}

func TestInternal(t *testing.T) {
	w := local(t, keys.Secret{1})
	f := internalFleet("a.example.com", "example.com", "x.y.example.com")
	roots, root := w.roots(f)
	w.converge(f)
	w.settled(f)
	chain, key, err := w.m.Load(t.Context(), "internal-_.example.com")
	if err != nil {
		t.Fatal(err)
	}
	leaf := serves(t, chain, key, roots, time.Now(), "*.example.com", "example.com")
	if life := time.Until(leaf.NotAfter); life < 29*24*time.Hour || life > 31*24*time.Hour {
		t.Errorf("a leaf lives %s", life)
	}
	if k, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("a leaf's key is %T", leaf.PublicKey)
	}

	t.Run("renewed with a third left", func(t *testing.T) {
		w.clock.add(19 * 24 * time.Hour)
		w.settled(f)
		w.clock.add(24*24*time.Hour - 19*24*time.Hour)
		if p := w.plan(f); len(p.Changes) != 2 {
			t.Fatalf("plan: %+v", p.Changes)
		}
		w.converge(f)
		w.settled(f)
		w.clock.add(-w.clock.off)
	})

	// The disk is lost; the secret gives a root that serves those who trust the
	// old one, and the old leaf verifies under the new one.
	t.Run("lost root", func(t *testing.T) {
		if err := os.RemoveAll(w.dir); err != nil {
			t.Fatal(err)
		}
		w.reopen()
		w.converge(f)
		newRoots, newRoot := w.roots(f)
		if bytes.Equal(root, newRoot) {
			t.Error("the root was not made anew")
		}
		newChain, newKey, err := w.m.Load(t.Context(), "internal-_.example.com")
		if err != nil {
			t.Fatal(err)
		}
		serves(t, newChain, newKey, roots, time.Now(), "*.example.com", "example.com")
		serves(t, chain, key, newRoots, time.Now(), "*.example.com", "example.com")
	})

	t.Run("another secret", func(t *testing.T) {
		w.secret = keys.Secret{2}
		w.reopen()
		if p := w.plan(f); len(p.Changes) != 2 || !strings.Contains(p.Changes[0].Before.String(), "internal CA is another one") {
			t.Fatalf("plan: %+v", p.Changes)
		}
		w.converge(f)
		w.settled(f)
		newChain, newKey, err := w.m.Load(t.Context(), "internal-_.example.com")
		if err != nil {
			t.Fatal(err)
		}
		newRoots, _ := w.roots(f)
		serves(t, newChain, newKey, newRoots, time.Now(), "*.example.com", "example.com")
	})
}

// Whoever trusts the root does not trust the fleet with others' names, nor with
// addresses; a new domain makes a new root.
func TestInternalConstraints(t *testing.T) {
	w := local(t, keys.Secret{1})
	f := internalFleet("a.example.com")
	roots, rootPEM := w.roots(f)
	block, _ := pem.Decode(rootPEM)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if life := root.NotAfter.Sub(root.NotBefore); life < 9*365*24*time.Hour {
		t.Errorf("a root lives %s", life)
	}
	// What a thief of the secret would make.
	sign := func(template *x509.Certificate) *x509.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, root, key.Public(), w.secret.CA())
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		host string
		ok   bool
	}{{"a.example.com", true}, {"deep.a.example.com", true}, {"bank.test", false}, {"badexample.com", false}} {
		_, err := sign(&x509.Certificate{DNSNames: []string{c.host}}).Verify(x509.VerifyOptions{Roots: roots, DNSName: c.host})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.host, err)
		}
	}
	for _, ip := range []string{"203.0.113.1", "2001:db8::1"} {
		c := sign(&x509.Certificate{IPAddresses: []net.IP{net.ParseIP(ip)}, DNSNames: []string{"a.example.com"}})
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: ip}); err == nil {
			t.Errorf("%s is accepted", ip)
		}
	}
	f.Domains = []string{"other.test", "example.com"}
	if _, wider := w.roots(f); bytes.Equal(rootPEM, wider) {
		t.Error("a new domain left the root as it was")
	}
	if _, again := w.roots(f); bytes.Equal(rootPEM, again) {
		t.Error("the root went back")
	}
	w.clock.add(9*365*24*time.Hour + 24*time.Hour)
	_, before := w.roots(f)
	w.clock.add(24 * time.Hour)
	if _, after := w.roots(f); !bytes.Equal(before, after) {
		t.Error("the root made with a year left is made again each day")
	}
}

func TestManual(t *testing.T) {
	w := local(t, keys.Secret{1})
	dir := t.TempDir()
	chainFile, keyFile := filepath.Join(dir, "shop.pem"), filepath.Join(dir, "shop.key")
	f := &fleet.Fleet{Name: "test", Domains: []string{"example.com"}, Routes: map[string]fleet.Route{}}
	r := route("shop", "shop.example.com", fleet.TLSManual, 4)
	r.Certificate = fleet.ManualCertificate{Chain: fleet.SecretRef{File: chainFile}, Key: fleet.SecretRef{File: keyFile}}
	f.Routes["shop"] = r
	write := func(chain, key []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(chainFile, chain, 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	ca := makeCA(t)
	good, goodKey := ca.leaf(t, now.Add(-time.Hour), now.Add(365*24*time.Hour), "shop.example.com")
	other, otherKey := ca.leaf(t, now.Add(-time.Hour), now.Add(365*24*time.Hour), "*.example.com")
	expired, expiredKey := ca.leaf(t, now.Add(-2*time.Hour), now.Add(-time.Hour), "shop.example.com")
	future, futureKey := ca.leaf(t, now.Add(48*time.Hour), now.Add(72*time.Hour), "shop.example.com")
	foreign, foreignKey := ca.leaf(t, now.Add(-time.Hour), now.Add(time.Hour), "blog.example.com")

	// While there is none to serve, each mistake is told with where the route is
	// and what to do.
	for _, c := range []struct {
		name       string
		chain, key []byte
		want       []string
	}{
		{"not PEM", []byte("hello"), goodKey, []string{chainFile, "give PEM certificates, leaf first"}},
		{"key of another", good, otherKey, []string{"are no pair"}},
		{"key and chain swapped", goodKey, good, []string{"are no pair"}},
		{"expired", expired, expiredKey, []string{chainFile + " expired on ", "replace it"}},
		{"not yet valid", future, futureKey, []string{"is not valid before ", "check the clock"}},
		{"for another host", foreign, foreignKey, []string{`is for ["blog.example.com"] and does not cover shop.example.com`}},
		{"chain out of order", slices.Concat(good, foreign), goodKey, []string{"certificate 2 did not sign certificate 1"}},
		{"huge", bytes.Repeat([]byte("x"), 1<<20+1), goodKey, []string{"over 1048576 bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(c.chain, c.key)
			errs := w.apply(f)
			if len(errs) != 1 {
				t.Fatalf("errors: %v, want one", errs)
			}
			for _, part := range append(c.want, "certificate manual-shop: routes.cue:4:1: route shop: ") {
				if !strings.Contains(errs[0].Error(), part) {
					t.Errorf("%v\ndoes not say %q", errs[0], part)
				}
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		write(good, goodKey)
		if err := os.Remove(keyFile); err != nil {
			t.Fatal(err)
		}
		if errs := w.apply(f); len(errs) != 1 || !errors.Is(errs[0], fs.ErrNotExist) || !strings.Contains(errs[0].Error(), "read certificate.key") {
			t.Errorf("errors: %v", errs)
		}
	})

	write(slices.Concat(good, ca.pem), goodKey)
	w.converge(f)
	w.settled(f)
	first := w.held(f)["manual-shop"]

	// A broken file leaves what is served and shows in the plan; a mended one is
	// taken up.
	write([]byte("half a fi"), goodKey)
	if p := w.plan(f); len(p.Changes) != 1 || !strings.Contains(p.Changes[0].Before.String(), "due: ") {
		t.Fatalf("plan: %+v", p.Changes)
	}
	if errs := w.apply(f); len(errs) != 1 {
		t.Errorf("errors: %v", errs)
	}
	if w.held(f)["manual-shop"].Fingerprint != first.Fingerprint {
		t.Error("the held certificate is gone")
	}
	write(other, otherKey)
	if p := w.plan(f); len(p.Changes) != 1 || !strings.Contains(p.Changes[0].Before.String(), "it was changed where it is kept") {
		t.Fatalf("plan: %+v", p.Changes)
	}
	w.converge(f)
	w.settled(f)
	if w.held(f)["manual-shop"].Fingerprint == first.Fingerprint {
		t.Error("the changed certificate was not taken up")
	}

	// From the environment, as Cloudflare's.
	rsaChain, rsaKey := ca.rsaLeaf(t, "cf.example.com")
	t.Setenv("KOKOA_TEST_CHAIN", string(rsaChain))
	t.Setenv("KOKOA_TEST_KEY", string(rsaKey))
	cf := route("cf", "cf.example.com", fleet.TLSCloudflare, 9)
	cf.Certificate = fleet.ManualCertificate{Chain: fleet.SecretRef{Env: "KOKOA_TEST_CHAIN"}, Key: fleet.SecretRef{Env: "KOKOA_TEST_KEY"}}
	f.Routes["cf"] = cf
	w.converge(f)
	w.settled(f)
	if got := w.held(f)["cloudflare-cf"]; got.Issuer != certs.Cloudflare || !slices.Equal(got.Hosts, []string{"cf.example.com"}) {
		t.Errorf("held: %+v", got)
	}
	cf.Certificate.Key.Env = "KOKOA_TEST_NOT_SET"
	f.Routes["cf"] = cf
	if errs := w.apply(f); len(errs) != 1 || !strings.Contains(errs[0].Error(), "env KOKOA_TEST_NOT_SET is not set for the control plane") {
		t.Errorf("errors: %v", errs)
	}
}

// A stored value that is damaged is issued anew, and says so; a store that cannot
// be read is not an empty one.
func TestDamagedStore(t *testing.T) {
	w := local(t, keys.Secret{1})
	f := internalFleet("a.example.com")
	w.converge(f)
	path := filepath.Join(w.dir, "certificates", "internal-_.example.com.json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range [][]byte{nil, []byte("{}"), whole[:len(whole)/2], bytes.Replace(whole, []byte("BEGIN PRIVATE"), []byte("BEGIN PUBLIC"), 1)} {
		if err := os.WriteFile(path, damage, 0o600); err != nil {
			t.Fatal(err)
		}
		p := w.plan(f)
		if len(p.Changes) != 1 || !strings.Contains(p.Changes[0].Before.String(), "stored certificate is unreadable") {
			t.Fatalf("plan: %+v", p.Changes)
		}
		w.converge(f)
		w.settled(f)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if p := w.plan(f); len(p.Changes) != 0 || len(p.Waiting) != 1 {
		t.Errorf("plan: %+v %+v, want it to wait", p.Changes, p.Waiting)
	}
}

// A name that no route uses any more is no reason to issue again; one more is.
func TestHostsChange(t *testing.T) {
	w := local(t, keys.Secret{1})
	w.converge(internalFleet("a.example.com", "example.com"))
	w.settled(internalFleet("a.example.com"))
	w.settled(internalFleet())
	w.settled(internalFleet("example.com", "b.example.com"))

	w = local(t, keys.Secret{1})
	w.converge(internalFleet("a.example.com"))
	if p := w.plan(internalFleet("a.example.com", "example.com")); len(p.Changes) != 1 {
		t.Errorf("plan: %+v", p.Changes)
	}
}

// A turn looks at every certificate, most of which have not changed.
func BenchmarkObserve(b *testing.B) {
	m, err := certs.Open(certs.Config{Dir: filepath.Join(b.TempDir(), "state"), CA: keys.Secret{1}.CA()})
	if err != nil {
		b.Fatal(err)
	}
	f := internalFleet()
	for i := range 1000 {
		host := fmt.Sprintf("a.h%d.example.com", i)
		f.Routes[host] = route(host, host, fleet.TLSInternal, 1)
	}
	var changes []plan.Change
	for _, w := range certs.Wants(f) {
		changes = append(changes, plan.Change{Action: plan.Create, Ref: plan.Ref{Kind: plan.Certificate, Name: w.Name}, After: w.Spec()})
	}
	if err := errors.Join(m.Apply(b.Context(), changes)...); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, held := m.Observe(b.Context(), f); len(held) != len(changes) {
			b.Fatalf("%d held, want %d", len(held), len(changes))
		}
	}
}

// authority is somebody's CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func makeCA(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Somebody"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a authority) leaf(t *testing.T, from, until time.Time, hosts ...string) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return a.sign(t, from, until, private.Public(), hosts), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func (a authority) rsaLeaf(t *testing.T, hosts ...string) (chain, key []byte) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return a.sign(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), private.Public(), hosts),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
}

func (a authority) sign(t *testing.T, from, until time.Time, public any, hosts []string) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{NotBefore: from, NotAfter: until, DNSNames: hosts}, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

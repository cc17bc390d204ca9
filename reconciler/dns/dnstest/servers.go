package dnstest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
)

// Server is a real name server on loopback, the primary of one zone that at first has
// nothing but SOA and NS records. It ends with the test.
type Server struct {
	// Addr is host:port, for UDP and TCP.
	Addr string
	// Key may transfer and update the zone.
	Key dns.Key
	// Reader may transfer the zone and not update it.
	Reader dns.Key
	// Dir has the server's files.
	Dir string
}

// Knot starts Knot DNS (Debian package knot).
func Knot(t testing.TB, zone string) *Server {
	return start(t, zone, program{
		path: "/usr/sbin/knotd", pkg: "knot",
		config: func(s *Server, host, port string) string {
			return fmt.Sprintf(`server:
    rundir: %[1]s
    listen: %[2]s@%[3]s
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: %[1]s
    journal-db-max-size: 64M
log:
  - target: stderr
    any: notice
key:
  - id: %[5]s
    algorithm: %[6]s
    secret: %[7]s
  - id: %[8]s
    algorithm: %[9]s
    secret: %[10]s
acl:
  - id: change
    key: %[5]s
    action: [transfer, update]
  - id: read
    key: %[8]s
    action: transfer
zone:
  - domain: %[4]s
    storage: %[1]s
    file: zone
    acl: [change, read]
`, s.Dir, host, port, zone, s.Key.Name, s.Key.Algorithm, base64.StdEncoding.EncodeToString(s.Key.Secret),
				s.Reader.Name, s.Reader.Algorithm, base64.StdEncoding.EncodeToString(s.Reader.Secret))
		},
		args: func(config string) []string { return []string{"-c", config} },
	})
}

// BIND starts BIND (Debian package bind9).
func BIND(t testing.TB, zone string) *Server {
	return start(t, zone, program{
		path: "/usr/sbin/named", pkg: "bind9",
		config: func(s *Server, host, port string) string {
			key := func(k dns.Key) string {
				return fmt.Sprintf("key %q { algorithm %s; secret %q; };\n", k.Name, k.Algorithm, base64.StdEncoding.EncodeToString(k.Secret))
			}
			return key(s.Key) + key(s.Reader) + fmt.Sprintf(`options {
	directory %[1]q;
	managed-keys-directory %[1]q;
	session-keyfile "%[1]s/session.key";
	pid-file none;
	lock-file none;
	listen-on port %[3]s { %[2]s; };
	listen-on-v6 { none; };
	recursion no;
	dnssec-validation no;
	notify no;
};
controls { };
zone %[4]q {
	type primary;
	file "zone";
	allow-transfer { key %[5]q; key %[6]q; };
	allow-update { key %[5]q; };
};
`, s.Dir, host, port, zone, s.Key.Name, s.Reader.Name)
		},
		args: func(config string) []string { return []string{"-g", "-n", "1", "-c", config} },
	})
}

type program struct {
	path, pkg string
	config    func(s *Server, host, port string) string
	args      func(config string) []string
}

func start(t testing.TB, zone string, p program) *Server {
	t.Helper()
	if _, err := os.Stat(p.path); err != nil {
		t.Fatalf("this test needs %s: apt-get install %s", p.path, p.pkg)
	}
	s := &Server{
		Key:    dns.Key{Name: "kokoa", Algorithm: "hmac-sha256", Secret: []byte("0123456789abcdef0123456789abcdef")},
		Reader: dns.Key{Name: "reader", Algorithm: "hmac-sha512", Secret: []byte("fedcba9876543210fedcba9876543210")},
	}
	// The port is free when it is chosen and may be taken when the server binds it.
	var err error
	for range 5 {
		s.Dir = t.TempDir()
		if err = s.launch(t, zone, p); err == nil {
			return s
		}
	}
	t.Fatalf("start %s: %v", p.path, err)
	return nil
}

func (s *Server) launch(t testing.TB, zone string, p program) error {
	s.Addr = freeAddr(t)
	host, port, _ := net.SplitHostPort(s.Addr)
	write(t, filepath.Join(s.Dir, "zone"), fmt.Sprintf("$ORIGIN %s.\n@ 300 SOA ns hostmaster 1 300 60 1209600 30\n@ 300 NS ns\nns 300 A 192.0.2.53\n", zone))
	config := filepath.Join(s.Dir, "config")
	write(t, config, p.config(s, host, port))
	log, err := os.Create(filepath.Join(s.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args(config)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if err := answers(s.Addr, zone, exited); err != nil {
		cmd.Process.Kill()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w:\n%s", err, tail(string(text)))
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s says:\n%s", p.path, tail(string(text)))
		}
	})
	return nil
}

// answers waits until the server answers for its zone.
func answers(addr, zone string, exited chan error) error {
	m := new(mdns.Msg)
	m.SetQuestion(mdns.Fqdn(zone), mdns.TypeSOA)
	client := &mdns.Client{Net: "tcp", Timeout: time.Second}
	deadline := time.After(20 * time.Second)
	for {
		if a, _, err := client.Exchange(m, addr); err == nil && a.Rcode == mdns.RcodeSuccess && a.Authoritative {
			return nil
		}
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("it ended: %w", errors.Join(err))
		case <-deadline:
			return errors.New("it does not answer")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freeAddr is an address on loopback whose port was free for UDP and TCP.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", l.Addr().String())
		l.Close()
		if err == nil {
			u.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return ""
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

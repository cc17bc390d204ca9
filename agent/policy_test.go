package agent

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var testNetwork = netip.MustParsePrefix("10.77.0.0/16")

func TestServiceTarget(t *testing.T) {
	for _, c := range []struct {
		url, want string // want is host:port, or a part of the error
	}{
		{"http://localhost:2368", "localhost:2368"},
		{"http://localhost", "localhost:80"},
		{"https://Web.Local.", "web.local:443"},
		{"http://web_1:8080/", "web_1:8080"},
		{"https://[2001:DB8::1]:8443", "[2001:db8::1]:8443"},
		{"http://[::ffff:192.0.2.7]:80", "192.0.2.7:80"},
		{"http://[fe80::1%25eth0]:80", "[fe80::1%eth0]:80"},
		{"ftp://localhost:21", "want http or https"},
		{"localhost:8080", "want http or https"},
		{"http://user@localhost:80", "nothing else"},
		{"http://localhost:80/admin", "nothing else"},
		{"http://localhost:80?x=1", "nothing else"},
		{"http://localhost:80#x", "nothing else"},
		{"http://localhost:", "port is missing"},
		{"http://:80", "neither a name nor an address"},
		{"http://localhost:0", "between 1 and 65535"},
		{"http://localhost:65536", "between 1 and 65535"},
		{"http://2852039166:80", "write it in full"},
		{"http://0xa9fea9fe:80", "write it in full"},
		{"http://0251.0376.0251.0376:80", "write it in full"},
		{"http://169.254.43518:80", "write it in full"},
		{"http://127.1:80", "write it in full"},
		{"http://bücher.example:80", "neither a name nor an address"},
		{"http://a..b:80", "neither a name nor an address"},
		{"http://a b:80", "not a URL"},
		{"", "want http or https"},
	} {
		got, err := serviceTarget(c.url)
		switch {
		case err != nil && !strings.Contains(err.Error(), c.want):
			t.Errorf("%q: error %q, want one with %q", c.url, err, c.want)
		case err == nil && got.String() != c.want:
			t.Errorf("%q: %v, want %v", c.url, got, c.want)
		}
	}
}

// TestForbidden is the deny-set that no config may reach, in every form that
// hides an address, and what must stay reachable beside it.
func TestForbidden(t *testing.T) {
	p, err := newPolicy(nil, testNetwork)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr string
		why  string // "" is fine to dial
	}{
		{"127.0.0.1", ""},
		{"::1", ""},
		{"192.168.1.20", ""},
		{"10.0.0.5", ""},
		{"100.64.0.1", ""},
		{"203.0.113.9", ""},
		{"fd12:3456::1", ""},
		{"2001:db8::1", ""},
		{"64:ff9b::203.0.113.9", ""},
		{"2002:cb00:7109::1", ""},

		{"169.254.169.254", "metadata"},
		{"169.254.170.2", "metadata"},
		{"168.63.129.16", "metadata"},
		{"192.0.0.192", "metadata"},
		{"100.100.100.200", "metadata"},
		{"fd00:ec2::254", "metadata"},
		{"fd00:ec2::253", "metadata"},
		{"fd20:ce::254", "metadata"},
		{"169.254.0.1", "link-local"},
		{"fe80::1", "link-local"},
		{"fe80::1%eth0", "link-local"},
		{"febf::1", "link-local"},
		{"fec0::1", "site-local"},
		{"224.0.0.1", "multicast"},
		{"239.255.255.250", "multicast"},
		{"ff02::1", "multicast"},
		{"255.255.255.255", "broadcast"},
		{"240.0.0.1", "reserved"},
		{"0.0.0.0", "unspecified"},
		{"0.1.2.3", "unspecified"},
		{"::", "unspecified"},
		{"10.77.0.9", "tunnel"},

		{"::ffff:169.254.169.254", "metadata"},
		{"::ffff:0.0.0.0", "unspecified"},
		{"::ffff:10.77.0.9", "tunnel"},
		{"::169.254.169.254", "IPv4-compatible form of 169.254.169.254"},
		{"::ffff:0:169.254.169.254", "translated form of 169.254.169.254"},
		{"64:ff9b::169.254.169.254", "NAT64 form of 169.254.169.254"},
		{"64:ff9b::224.0.0.1", "NAT64 form of 224.0.0.1"},
		{"64:ff9b::10.77.0.9", "NAT64 form of 10.77.0.9"},
		{"64:ff9b:1::a9fe:a9fe", "local NAT64"},
		{"2002:a9fe:a9fe::1", "6to4 form of 169.254.169.254"},
		{"2002:0000:0000::1", "6to4 form of 0.0.0.0"},
		{"2001:0:1::1", "Teredo"},
		{"2001:db8::5efe:169.254.169.254", "ISATAP form of 169.254.169.254"},
		{"2001:db8::200:5efe:169.254.169.254", "ISATAP form of 169.254.169.254"},
	} {
		got := p.forbidden(netip.MustParseAddr(c.addr))
		if (got == "") != (c.why == "") || !strings.Contains(got, c.why) {
			t.Errorf("%s: %q, want %q", c.addr, got, c.why)
		}
	}
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		name   string
		allow  []string
		target string
		at     string // where the name leads; "" when target is an address
		want   string // "" is allowed, else a part of the refusal
	}{
		{name: "no list allows what is declared", target: "web:80", at: "192.168.1.9"},
		{name: "a name may turn out to be bad", target: "web:80", at: "169.254.169.254", want: "web:80 is at 169.254.169.254, which is a cloud's metadata service; only --allow 169.254.169.254:80"},
		{name: "a bad address", target: "169.254.169.254:80", want: "only --allow 169.254.169.254:80"},
		{name: "a bad address that is listed", allow: []string{"169.254.169.254:80"}, target: "169.254.169.254:80"},
		{name: "its port is part of the entry", allow: []string{"169.254.169.254:80"}, target: "169.254.169.254:81", want: "metadata"},
		{name: "a list refuses the rest", allow: []string{"localhost:2368"}, target: "nas:80", at: "192.168.1.2", want: "nas:80 is not on the allow-list"},
		{name: "an entry by name", allow: []string{"LocalHost.:2368"}, target: "localhost:2368", at: "127.0.0.1"},
		{name: "an entry by address covers a name that leads there", allow: []string{"127.0.0.1:2368"}, target: "localhost:2368", at: "127.0.0.1"},
		{name: "and not when it leads elsewhere", allow: []string{"127.0.0.1:2368"}, target: "localhost:2368", at: "192.168.1.2", want: "localhost:2368 is not on the allow-list"},
		{name: "a listed name is no licence for a bad address", allow: []string{"metadata.google.internal:80"}, target: "metadata.google.internal:80", at: "169.254.169.254", want: "metadata"},
		{name: "both listed", allow: []string{"metadata.google.internal:80", "169.254.169.254:80"}, target: "metadata.google.internal:80", at: "169.254.169.254"},
		{name: "the mapped form is the address", allow: []string{"[::ffff:192.0.2.7]:80"}, target: "192.0.2.7:80"},
		{name: "another family is another address", allow: []string{"127.0.0.1:80"}, target: "[::1]:80", want: "not on the allow-list"},
		{name: "the tunnel itself", target: "10.77.0.1:7070", want: "inside the tunnel's network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := newPolicy(c.allow, testNetwork)
			if err != nil {
				t.Fatal(err)
			}
			target, err := parseTarget(c.target)
			if err != nil {
				t.Fatal(err)
			}
			err = p.check(target)
			if err == nil && c.at != "" {
				err = p.admit(target, netip.AddrPortFrom(netip.MustParseAddr(c.at), target.port))
			}
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (!errors.Is(err, errPolicy) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want a refusal with %q", err, c.want)
			}
		})
	}
}

// TestDialChecksEveryAddress dials a name for real: localhost, which no list names.
func TestDialChecksEveryAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	to := target{host: "localhost", port: port}

	open, err := newPolicy(nil, testNetwork)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := open.dial(t.Context(), to)
	if err != nil {
		t.Fatalf("dial %v: %v", to, err)
	}
	conn.Close()

	// The same name, where loopback is what must not be reached.
	closed, err := newPolicy(nil, netip.MustParsePrefix("127.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	closed.allowed[target{host: "localhost", port: port}] = true
	conn, err = closed.dial(t.Context(), target{host: "localhost", port: port})
	if err == nil {
		conn.Close()
		t.Fatal("dialled an address that is forbidden")
	}
	// On a host where localhost is ::1 too, that one refuses the connection.
	if errors.Is(err, errPolicy) && !strings.HasPrefix(err.Error(), errPolicy.Error()) {
		t.Errorf("the refusal reads %q", err)
	}
}

func TestAllowEntries(t *testing.T) {
	for _, bad := range []string{"", "localhost", ":80", "localhost:", "localhost:http", "http://localhost:80", "*:80", "localhost:*", "::1:80", "[::1]", "10.0.0.0/8:80", "localhost:+80"} {
		if _, err := newPolicy([]string{bad}, testNetwork); err == nil {
			t.Errorf("%q was taken", bad)
		} else if !strings.Contains(err.Error(), "192.0.2.1:8080") {
			t.Errorf("%q: the error shows no example: %v", bad, err)
		}
	}
}

// TestPolicyNeverWidens: whatever is allowed without a list is what a list may
// narrow, and a forbidden address passes only when it is listed itself.
func TestPolicyNeverWidens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6")))
		if rapid.Bool().Draw(t, "four") {
			addr = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
		}
		port := uint16(rapid.IntRange(1, 3).Draw(t, "port"))
		entries := rapid.SliceOfN(rapid.SampledFrom([]string{"web:1", "web:2", "10.1.2.3:1", "[fe80::1]:2", "169.254.169.254:1"}), 0, 4).Draw(t, "entries")
		open, err := newPolicy(nil, testNetwork)
		if err != nil {
			t.Fatal(err)
		}
		narrow, err := newPolicy(entries, testNetwork)
		if err != nil {
			t.Fatal(err)
		}
		name := target{host: "web", port: port}
		to := netip.AddrPortFrom(addr, port)
		listed := narrow.allowed[target{host: addr.Unmap().String(), port: port}]
		if narrow.admit(name, to) == nil && open.admit(name, to) != nil && !listed {
			t.Fatalf("a list opened %v", to)
		}
		if len(entries) > 0 && narrow.admit(name, to) == nil && !listed && !narrow.allowed[name] {
			t.Fatalf("%v passed a list that names neither it nor %v", to, name)
		}
	})
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"localhost:80", "[::1]:443", "[fe80::1%eth0]:1", "127.1:80", "0x7f000001:80", "a.b.:65535", "[::ffff:1.2.3.4]:5", "web_1:08"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTarget(text)
		if err != nil {
			return
		}
		again, err := parseTarget(got.String())
		if err != nil || again != got {
			t.Fatalf("%q is %v, which is read as %v, %v", text, got, again, err)
		}
		if got.port == 0 {
			t.Fatalf("%q has port 0", text)
		}
		if addr, err := netip.ParseAddr(got.host); err == nil && addr.Is4In6() {
			t.Fatalf("%q kept a mapped address: %v", text, got)
		}
	})
}

package builtin

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/reconciler/dns"
	"github.com/kokoa-proxy/kokoa/reconciler/dns/internal/wire"
)

// run is what a person types; ok says whether it should succeed.
func run(t *testing.T, ok bool, stdin, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: apt-get install bind9-dnsutils", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if (err == nil) != ok {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// A person looks and changes by hand with dig and nsupdate.
func TestByHand(t *testing.T) {
	s := newServer(t, options())
	fill(t, s.Zone(zoneName), set("www.example.test", dns.A, 60, "192.0.2.1"))
	addr, _ := serve(t, s)
	host, port, _ := strings.Cut(addr, ":")
	key := fmt.Sprintf("%s:%s:%s", testKey.Algorithm, testKey.Name, wire.Secret(testKey))
	server := "@" + host

	for _, extra := range []string{"+notcp", "+tcp", "+noedns", "+cookie", "+dnssec"} {
		if out := run(t, true, "", "dig", server, "-p", port, "+short", extra, "www.example.test", "A"); out != "192.0.2.1\n" {
			t.Errorf("dig %s: %q", extra, out)
		}
	}
	out := run(t, true, "", "dig", server, "-p", port, "-y", key, "example.test", "AXFR")
	if strings.Count(out, "\tSOA\t") != 2 || !strings.Contains(out, "www.example.test.\t60\tIN\tA\t192.0.2.1") || !strings.Contains(out, "NOERROR") {
		t.Errorf("dig AXFR: %s", out)
	}
	if out := run(t, true, "", "dig", server, "-p", port, "example.test", "AXFR"); !strings.Contains(out, "Transfer failed") {
		t.Errorf("dig AXFR without a key: %s", out)
	}

	update := func(ok bool, lines ...string) string {
		t.Helper()
		text := fmt.Sprintf("server %s %s\nzone example.test\n%s\nsend\n", host, port, strings.Join(lines, "\n"))
		return run(t, ok, text, "nsupdate", "-y", key)
	}
	zone := func() string {
		sets, err := s.Zone(zoneName).RRsets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, s := range sets[1:] {
			lines = append(lines, fmt.Sprintf("%s %s %s", s.Name, s.Type, strings.Join(s.Values, ",")))
		}
		return strings.Join(lines, "\n")
	}
	for _, c := range []struct {
		ok    bool
		lines []string
		want  string
	}{
		{true, []string{"prereq nxdomain a.example.test", "update add a.example.test 60 A 192.0.2.2", "update add a.example.test 60 TXT \"some text\""},
			"a.example.test A 192.0.2.2\na.example.test TXT some text\nwww.example.test A 192.0.2.1"},
		{false, []string{"prereq nxdomain a.example.test", "update delete a.example.test"},
			"a.example.test A 192.0.2.2\na.example.test TXT some text\nwww.example.test A 192.0.2.1"},
		{false, []string{"prereq yxdomain b.example.test", "update delete a.example.test"},
			"a.example.test A 192.0.2.2\na.example.test TXT some text\nwww.example.test A 192.0.2.1"},
		{false, []string{"prereq yxrrset a.example.test AAAA", "update delete a.example.test"},
			"a.example.test A 192.0.2.2\na.example.test TXT some text\nwww.example.test A 192.0.2.1"},
		{false, []string{"prereq nxrrset a.example.test A", "update delete a.example.test"},
			"a.example.test A 192.0.2.2\na.example.test TXT some text\nwww.example.test A 192.0.2.1"},
		{true, []string{"prereq yxdomain a.example.test", "prereq yxrrset a.example.test A 192.0.2.2", "update add a.example.test 60 A 192.0.2.3", "update delete a.example.test A 192.0.2.2", "update delete a.example.test TXT"},
			"a.example.test A 192.0.2.3\nwww.example.test A 192.0.2.1"},
		// One bad line, and none is done. The zone's own records stay.
		{false, []string{"update delete a.example.test", "update add b.example.test 60 CNAME example.net."},
			"a.example.test A 192.0.2.3\nwww.example.test A 192.0.2.1"},
		{true, []string{"update delete example.test NS", "update delete example.test"},
			"a.example.test A 192.0.2.3\nwww.example.test A 192.0.2.1"},
		{true, []string{"update delete a.example.test"}, "www.example.test A 192.0.2.1"},
	} {
		out := update(c.ok, c.lines...)
		if got := zone(); got != c.want {
			t.Errorf("%v: %s\ngot  %q\nwant %q", c.lines, out, got, c.want)
		}
	}
	if out := run(t, false, fmt.Sprintf("server %s %s\nzone example.test\nupdate delete www.example.test\nsend\n", host, port), "nsupdate"); !strings.Contains(out, "REFUSED") {
		t.Errorf("nsupdate without a key: %s", out)
	}
}

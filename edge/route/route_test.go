package route

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPriority(t *testing.T) {
	tests := []struct {
		name  string
		rules []Rule
		want  map[string]int
	}{
		{
			name:  "exact and longest, exact and shorter, wildcard, default",
			rules: []Rule{{"api.example.com", "/v2/"}, {"api.example.com", "/"}, {"*.example.com", "/"}, {"*", "/"}},
			want: map[string]int{
				"api.example.com/v2/users": 0,
				"api.example.com/v2":       0,
				"api.example.com/health":   1,
				"api.example.com/v20":      1,
				"blog.example.com/":        2,
				"a.b.example.com/":         3,
				"example.com/":             3,
				"unknown.com/":             3,
			},
		},
		{
			name:  "paths of one host, on segment borders",
			rules: []Rule{{"example.com", "/"}, {"example.com", "/api"}, {"example.com", "/blog"}, {"example.com", "/admin"}, {"example.com", "/api/v2/deep"}},
			want: map[string]int{
				"example.com/":               0,
				"example.com":                0,
				"example.com/api":            1,
				"example.com/api/":           1,
				"example.com/api/users":      1,
				"example.com/apix":           0,
				"example.com/api/v2":         1,
				"example.com/api/v2/deep":    4,
				"example.com/api/v2/deep/er": 4,
				"example.com/api/v2/deeper":  1,
				"example.com/blog":           2,
				"example.com/%61dmin":        3,
				"example.com/Admin":          0,
				"www.example.com/":           none,
			},
		},
		{
			name:  "a wildcard is one label deep, and the more specific host wins",
			rules: []Rule{{"*.app.example.com", "/"}, {"user3.app.example.com", "/"}, {"*.example.com", "/"}},
			want: map[string]int{
				"user1.app.example.com/":   0,
				"user3.app.example.com/":   1,
				"x.user1.app.example.com/": none,
				"app.example.com/":         2,
			},
		},
		{
			name:  "a host without a path that fits asks the next host",
			rules: []Rule{{"api.example.com", "/v2"}, {"*.example.com", "/public"}, {"*", "/"}},
			want: map[string]int{
				"api.example.com/v2":     0,
				"api.example.com/public": 1,
				"api.example.com/other":  2,
			},
		},
		{
			name:  "of two rules that say the same the first counts",
			rules: []Rule{{"example.com", "/a"}, {"example.com", "/a/"}},
			want:  map[string]int{"example.com/a": 0},
		},
		{name: "no rules", want: map[string]int{"example.com/": none}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table, err := New(test.rules)
			if err != nil {
				t.Fatal(err)
			}
			for target, want := range test.want {
				u, err := url.Parse("http://" + target)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := table.Match(u.Host, u.Path, u.RawPath); err != nil || got != want {
					t.Errorf("%s: rule %d, %v; want %d", target, got, err, want)
				}
			}
		})
	}
}

func TestAmbiguousPaths(t *testing.T) {
	split, err := New([]Rule{{"example.com", "/"}, {"example.com", "/admin"}})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := New([]Rule{{"example.com", "/"}})
	if err != nil {
		t.Fatal(err)
	}
	refused := []string{
		"/a%2f..%2fadmin", "/..%2Fadmin", "/%2e%2e/admin", "/./admin", "/a/../admin", "/a/%2E./x",
		`/..\admin`, "/..%5cadmin", "/%00", "/a%0d%0ab", "/a%7f", "/%c0%afadmin", "/..;/admin", "/..;a=b/admin",
		"//admin", "///admin/x", "/admin;a=b/x", "/admin;x", "/;/admin",
	}
	for _, path := range refused {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Fatal(err)
		}
		if rule, err := split.Match("example.com", u.Path, u.RawPath); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("%s: rule %d, %v where paths decide; want ErrAmbiguous", path, rule, err)
		}
		if rule, err := whole.Match("example.com", u.Path, u.RawPath); err != nil || rule != 0 {
			t.Errorf("%s: rule %d, %v where no path decides; want 0", path, rule, err)
		}
	}
	for path, want := range map[string]int{
		"/%61dmin": 1, "/admin//x": 1, "/a//b": 0, "/a;b=c": 0, "/admin/x;y": 1, "/caf%C3%A9": 0, "/%252e%252e/admin": 0, "/...": 0, "/.well-known/x": 0,
	} {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Fatal(err)
		}
		if rule, err := split.Match("example.com", u.Path, u.RawPath); err != nil || rule != want {
			t.Errorf("%s: rule %d, %v; want %d", path, rule, err, want)
		}
	}
}

func TestHost(t *testing.T) {
	for in, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.com": "example.com", "example.com.": "example.com", "example.com:443": "example.com",
		"Example.Com.:8443": "example.com", "xn--bcher-kva.example": "xn--bcher-kva.example", "my_app.example.com": "my_app.example.com",
		"localhost": "localhost", "203.0.113.1:80": "203.0.113.1",
	} {
		if got, err := Host(in); err != nil || got != want {
			t.Errorf("Host(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	long := strings.Repeat("a", 64)
	for _, in := range []string{
		"", ".", "a..b", "a,b", "a@b", "a/x", "a b", "a\x00b", "a\tb", "[::1]", "[::1]:80", "::1", "a:b", "a:", "a:70000", "a:1:2", "-a.com", "a-.com",
		"a.com-", "bücher.example", "*.example.com", "*", "a%2eb", long + ".com", strings.Repeat("a.", 130) + "a", "..", "a.com..",
	} {
		if got, err := Host(in); err == nil {
			t.Errorf("Host(%q) = %q; want an error", in, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range []Rule{
		{"Example.com", "/"}, {"*.*.example.com", "/"}, {"a.*.example.com", "/"}, {"*example.com", "/"}, {"", "/"}, {"example.com:80", "/"},
		{"example.com.", "/"}, {"*.", "/"}, {"example.com", ""}, {"example.com", "api"}, {"example.com", "/a//b"}, {"example.com", "/a/../b"},
		{"example.com", "/a?b"}, {"example.com", "/a#b"}, {"example.com", "/%61"}, {"example.com", `/a\b`}, {"example.com", "/a;b"},
		{"example.com", "/\x00"}, {"example.com", "/" + strings.Repeat("a", maxPath)},
	} {
		if _, err := New([]Rule{bad}); err == nil {
			t.Errorf("New took %+v", bad)
		}
	}
}

// naive is the specification: every rule is tried, and the best kept.
func naive(rules []Rule, name, path string) int {
	best, rank := none, -1
	for i, r := range rules {
		class := -1
		suffix, wildcard := strings.CutPrefix(r.Host, "*.")
		switch _, above, _ := strings.Cut(name, "."); {
		case r.Host == name:
			class = 2
		case wildcard && suffix == above:
			class = 1
		case r.Host == Default:
			class = 0
		}
		prefix := strings.TrimSuffix(r.Path, "/")
		if class < 0 || path != prefix && !strings.HasPrefix(path, prefix+"/") {
			continue
		}
		if n := class*10*maxPath + len(prefix); n > rank {
			best, rank = i, n
		}
	}
	return best
}

func TestMatchesNaive(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "c"})
	segment := rapid.SampledFrom([]string{"a", "b", "ab", "a.b", "é"})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 4).Draw(t, "labels"), ".")
	})
	path := rapid.Custom(func(t *rapid.T) string {
		p := "/" + strings.Join(rapid.SliceOfN(segment, 0, 4).Draw(t, "segments"), "/")
		if len(p) > 1 && rapid.Bool().Draw(t, "slash") {
			p += "/"
		}
		return p
	})
	rule := rapid.Custom(func(t *rapid.T) Rule {
		h := name.Draw(t, "host")
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			h = "*." + h
		case 1:
			h = Default
		}
		return Rule{h, path.Draw(t, "path")}
	})
	rapid.Check(t, func(t *rapid.T) {
		rules := rapid.SliceOfN(rule, 0, 30).Draw(t, "rules")
		table, err := New(rules)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			n, p := name.Draw(t, "name"), path.Draw(t, "target")
			got, err := table.Match(n, p, "")
			if want := naive(rules, n, p); err != nil || got != want {
				t.Fatalf("%s%s: rule %d, %v; want %d of %v", n, p, got, err, want, rules)
			}
		}
	})
}

// TestReadingsAgree takes random hostile paths: whenever one is not refused, every
// way servers are known to normalise it leads to the rule that was chosen.
func TestReadingsAgree(t *testing.T) {
	piece := rapid.SampledFrom([]string{"/", "/", "//", "admin", "a", "..", ".", "%2e", "%2f", "%5c", `\`, "%00", ";", ";a=b", "%61dmin", "%252f", "%c0%af", "é", "%3b"})
	rules := []Rule{{"h", "/"}, {"h", "/admin"}, {"h", "/admin/a"}, {"h", "/a"}}
	table, err := New(rules)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		raw := "/" + strings.Join(rapid.SliceOfN(piece, 0, 8).Draw(t, "pieces"), "")
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			return
		}
		rule, err := table.Match("h", u.Path, u.RawPath)
		if err != nil {
			return
		}
		for server, read := range readings {
			if other := naive(rules, "h", read(raw)); other != rule {
				t.Fatalf("%s goes to rule %d, but %s reads it as %s, rule %d", raw, rule, server, read(raw), other)
			}
		}
	})
}

// readings are how servers of several families come from the sent path to the one
// they act on.
var readings = map[string]func(string) string{
	"node": func(raw string) string { p, _ := url.PathUnescape(raw); return p },
	"nginx": func(raw string) string {
		p, _ := url.PathUnescape(raw)
		return resolved(merged(p))
	},
	"go":     func(raw string) string { p, _ := url.PathUnescape(raw); return resolved(merged(p)) },
	"tomcat": func(raw string) string { p, _ := url.PathUnescape(withoutParameters(raw)); return resolved(merged(p)) },
	"iis": func(raw string) string {
		p, _ := url.PathUnescape(raw)
		return resolved(strings.ReplaceAll(p, `\`, "/"))
	},
}

// resolved is path without its dot segments (RFC 3986 section 5.2.4).
func resolved(path string) string {
	var out []string
	segments := strings.Split(path, "/")[1:]
	for i, s := range segments {
		switch s {
		case ".", "..":
			if s == ".." && len(out) > 0 {
				out = out[:len(out)-1]
			}
			if i == len(segments)-1 {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

func TestMatchAllocatesNothing(t *testing.T) {
	var rules []Rule
	for i := range 10_000 {
		rules = append(rules, Rule{fmt.Sprintf("app-%d.example.com", i), "/"}, Rule{fmt.Sprintf("app-%d.example.com", i), "/api/v1"})
	}
	table, err := New(rules)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		name, err := Host("app-4711.example.com:443")
		if err != nil {
			t.Fatal(err)
		}
		if rule, err := table.Match(name, "/api/v1/users/1", ""); err != nil || rule != 9423 {
			t.Fatalf("rule %d, %v", rule, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations; want none", n)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("example.com", "/admin/%2e%2e/x")
	f.Add("A.b.:80", "//a;b/../%5c")
	f.Add("*", "/")
	rules := []Rule{{"example.com", "/"}, {"example.com", "/admin"}, {"*.example.com", "/a/b"}, {"*", "/c"}}
	table, err := New(rules)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, hostport, target string) {
		name, err := Host(hostport)
		if err != nil {
			return
		}
		if again, err := Host(name); err != nil || again != name {
			t.Fatalf("Host(%q) = %q, which becomes %q, %v", hostport, name, again, err)
		}
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Path == "" {
			return
		}
		rule, err := table.Match(name, u.Path, u.RawPath)
		if err != nil {
			return
		}
		if want := naive(rules, name, u.Path); rule != want {
			t.Fatalf("%s%s: rule %d; want %d", name, target, rule, want)
		}
	})
}

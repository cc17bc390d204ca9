package schema

import (
	"strings"
	"testing"
)

func TestCanonicalHost(t *testing.T) {
	for host, want := range map[string]string{
		"Blog.Example.COM.":      "blog.example.com",
		"*.Example.com":          "*.example.com",
		"bücher.example":         "xn--bcher-kva.example",
		"BÜCHER.example":         "xn--bcher-kva.example",
		"blog.example.com":       "blog.example.com",
		"not a host.example.com": "not a host.example.com",
	} {
		if got := canonicalHost(host); got != want {
			t.Errorf("%q became %q, want %q", host, got, want)
		}
	}
	for host, want := range map[string]bool{
		"xn--bcher-kva.example":   true,
		"*.xn--bcher-kva.example": true,
		"_acme.example.com":       true,
		"xn--a.example":           false,
		"xn--BCHER-kva.example":   false,
		"xn--abc-.example":        false,
	} {
		if got := isCanonical(host); got != want {
			t.Errorf("%q is canonical: %t, want %t", host, got, want)
		}
	}
}

func TestCanonicalService(t *testing.T) {
	for service, want := range map[string]string{
		"http://localhost":          "http://localhost:80",
		"https://LocalHost":         "https://localhost:443",
		"http://localhost:08080":    "http://localhost:8080",
		"http://[2001:DB8:0::1]:80": "http://[2001:db8::1]:80",
	} {
		if got, problem := canonicalService(service); got != want || problem != "" {
			t.Errorf("%q became %q, %q, want %q", service, got, problem, want)
		}
	}
	for _, service := range []string{"http://", "http://x:0", "http://x:65536", "http://[::zz]:1", "http://[1.2.3.4]:1"} {
		if got, problem := canonicalService(service); problem == "" {
			t.Errorf("%q became %q, want a problem", service, got)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add("http://[::1]:80")
	f.Add("/a/../b")
	f.Add("[::1]:53")
	f.Add("*.xn--bcher-kva.example")
	f.Fuzz(func(t *testing.T, s string) {
		hostPort(s)
		isCanonical(s)
		host := canonicalHost(s)
		if again := canonicalHost(host); again != host {
			t.Errorf("host %q became %q and then %q", s, host, again)
		}
		if p, problem := canonicalPath(s); problem == "" && strings.HasPrefix(s, "/") {
			if again, problem := canonicalPath(p); again != p || problem != "" {
				t.Errorf("path %q became %q and then %q, %s", s, p, again, problem)
			}
		}
		if u, problem := canonicalService(s); problem == "" {
			if again, problem := canonicalService(u); again != u || problem != "" {
				t.Errorf("service %q became %q and then %q, %s", s, u, again, problem)
			}
		}
	})
}

func FuzzWithoutStrings(f *testing.F) {
	f.Add(`key: "secret" // or "not`)
	f.Add(`'a\'b' "\"`)
	f.Fuzz(func(t *testing.T, line string) {
		line = strings.ToValidUTF8(line, "?")
		if got := withoutStrings(line); len(got) != len(line) {
			t.Errorf("%q has another length than %q", got, line)
		}
	})
}

package join

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// pattern is a definition of the schema that is written as one regular expression and
// a limit of 253 characters.
func pattern(t testing.TB, file, definition string) *regexp.Regexp {
	t.Helper()
	text, err := os.ReadFile("../schema/" + file)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^#` + definition + `: =~#?"(.*?)"#?( & =~"\^\.\{1,253\}\$")?$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("%s has no #%s of the form that this test knows", file, definition)
	}
	return regexp.MustCompile(string(found[1]))
}

// Hosts and names are checked here as the schema checks them: the agent has no CUE.
func TestChecksAreTheSchemas(t *testing.T) {
	name, host := pattern(t, "repo.cue", "Label"), pattern(t, "route.cue", "Host")
	compare := func(t rapid.TB, text string) {
		if got, want := CheckName(text) == nil, name.MatchString(text); got != want {
			t.Errorf("name %q: %v, the schema says %v", text, got, want)
		}
		if got, want := CheckHost(text) == nil, host.MatchString(text) && len(text) <= 253; got != want {
			t.Errorf("host %q: %v, the schema says %v", text, got, want)
		}
	}
	long := strings.Repeat("a", 63)
	for _, text := range []string{
		"", "a", "-", "a-", "-a", "a-b", "A", "a_b", "é", long, long + "a", "a.b", "*.a.b", "*.a", "*", "*.", ".a.b", "a..b", "a.b.",
		"a.*.b", "_a.b", "a._b", "a.b_c", "a_.b-c", "xn--bcher-kva.example", "a.b\n", "a.b\x00", "a b.c",
		long + "." + long + "." + long + "." + long[:61], long + "." + long + "." + long + "." + long[:62],
	} {
		compare(t, text)
	}
	rapid.Check(t, func(t *rapid.T) {
		compare(t, rapid.StringOfN(rapid.RuneFrom([]rune("ab9-_.*A \n")), 0, 20, -1).Draw(t, "text"))
	})
}

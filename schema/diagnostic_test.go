package schema

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/kokoa-proxy/kokoa/fleet"
)

var sampleDiagnostics = Diagnostics{
	{
		Code: CodeInvalid, Severity: SeverityError, Position: fleet.Position{File: "a.cue", Line: 12, Column: 5}, Length: 4,
		Message: "bad\x1b[31m", Hint: "mend it", Quote: "\tü abcd\x1b[2J",
		Related: []Related{{fleet.Position{File: "b.cue", Line: 1, Column: 1}, "first here"}},
	},
	{Code: CodeLimit, Severity: SeverityError, Message: "too many", Length: 1},
	{Code: CodeExpired, Severity: SeverityWarning, Position: fleet.Position{File: "c.cue"}, Length: 1, Message: "over", Hint: strings.Repeat("long ", 20)},
}

func TestDiagnosticsText(t *testing.T) {
	var out bytes.Buffer
	if err := sampleDiagnostics.Text(&out); err != nil {
		t.Fatal(err)
	}
	want := "error K1003: bad\uFFFD[31m\n" +
		"  a.cue:12:5\n" +
		"   12 | \tü abcd\uFFFD[2J\n" +
		"      | \t  ^^^^ mend it\n" +
		"  b.cue:1:1: first here\n\n" +
		"error K1010: too many\n\n" +
		"warning K1201: over\n" +
		"  c.cue\n" +
		"  " + strings.Repeat("long ", 20) + "\n\n" +
		"2 errors, 1 warning\n"
	if out.String() != want {
		t.Errorf("text is:\n%q\nwant:\n%q", out.String(), want)
	}
	out.Reset()
	if err := (Diagnostics{}).Text(&out); err != nil || out.Len() != 0 {
		t.Errorf("no diagnostics are %q, %v", out.String(), err)
	}
}

func TestDiagnosticsJSON(t *testing.T) {
	var out bytes.Buffer
	if err := sampleDiagnostics.JSON(&out); err != nil {
		t.Fatal(err)
	}
	var got struct {
		FormatVersion    string `json:"format_version"`
		Errors, Warnings int
		Diagnostics      []struct {
			Code, Severity, Message string
			Position                fleet.Position
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.FormatVersion != "1.0" || got.Errors != 2 || got.Warnings != 1 || len(got.Diagnostics) != 3 ||
		got.Diagnostics[0].Position.Line != 12 || got.Diagnostics[2].Severity != "warning" {
		t.Errorf("decoded %+v", got)
	}
	out.Reset()
	if err := Diagnostics(nil).JSON(&out); err != nil || !strings.Contains(out.String(), `"diagnostics": []`) {
		t.Errorf("no diagnostics are %s, %v", out.String(), err)
	}
}

func TestDiagnosticsError(t *testing.T) {
	if got, want := sampleDiagnostics.Error(), "a.cue:12:5: bad\uFFFD[31m (and 1 more error)"; got != want {
		t.Errorf("error is %q, want %q", got, want)
	}
}

// TestSecrets plants secrets of many kinds in many places: each is refused, and
// none is repeated.
func TestSecrets(t *testing.T) {
	random := "8f3kD92mXq7LzP0aVbN4cT6yWeR1uI5o"
	kinds := map[string]string{
		"OpenSSH key":   "-----BEGIN OPENSSH PRIVATE KEY-----",
		"RSA key":       "-----BEGIN RSA PRIVATE KEY-----",
		"PGP key":       "-----BEGIN PGP PRIVATE KEY BLOCK-----",
		"age":           "AGE-SECRET-KEY-1" + strings.ToUpper(random),
		"AWS":           "AKIA" + strings.ToUpper(random[:16]),
		"GitHub":        "ghp_" + random + "abcd",
		"GitHub fine":   "github_pat_" + random,
		"GitLab":        "glpat-" + random[:20],
		"Slack":         "xoxb-1234567890-" + random[:12],
		"Stripe":        "sk_live_" + random[:24],
		"Google":        "AIza" + random + "abc",
		"DigitalOcean":  "dop_v1_" + strings.Repeat("0123456789abcdef", 4),
		"npm":           "npm_" + random + "abcd",
		"Hugging Face":  "hf_" + random + "ab",
		"Vault":         "hvs." + random,
		"JWT":           "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + random,
		"URL":           "https://user:" + random + "@example.com/",
		"plain in tsig": random,
	}
	places := map[string]string{
		"comment":  "package fleet\n// %s\n",
		"hidden":   "package fleet\n_x: \"%s\"\nroute: x: {host: _x}\n",
		"library":  "package fleet\n#X: \"%s\"\n",
		"field":    "package fleet\nroute: x: {host: \"x.kokoa.test\", origin: \"vm1\", service: \"http://x:1\", token: \"%s\"}\n",
		"tsig key": "package fleet\norigin: x: {}\nfleet: dns: tsig: {name: \"x\", key: \"%s\"}\n",
		"multi":    "package fleet\nroute: x: {token: \"\"\"\n\t%s\n\t\"\"\"}\n",
	}
	l := newLoader(t, Options{})
	for kind, secret := range kinds {
		for place, format := range places {
			if kind == "plain in tsig" && place != "tsig key" && place != "field" {
				continue // nothing tells it from a name
			}
			tree := memory{"fleet.cue": baseFleet, "x.cue": fmt.Sprintf(format, secret)}
			_, _, err := l.Load(context.Background(), tree)
			d, ok := err.(Diagnostics)
			if !ok {
				t.Errorf("%s in %s: load gave %v", kind, place, err)
				continue
			}
			var out bytes.Buffer
			d.Text(&out)
			d.JSON(&out)
			if strings.Contains(out.String(), secret) || strings.Contains(out.String(), random[:12]) {
				t.Errorf("%s in %s is repeated:\n%s", kind, place, out.String())
			}
		}
	}
}

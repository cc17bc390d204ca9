package schema

import (
	"bytes"
	"regexp"
)

// secretForms are texts that are secrets whatever they stand for. A quick search
// for the fixed part comes first, since nearly no file has any.
var secretForms = []struct {
	name string
	part string
	form *regexp.Regexp
}{
	{"a private key", "PRIVATE KEY", regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----`)},
	{"an age key", "AGE-SECRET-KEY-", regexp.MustCompile(`AGE-SECRET-KEY-(PQ-)?1[0-9A-Z]{20,}`)},
	{"an AWS key", "AKIA", regexp.MustCompile(`\bAKIA[0-9A-Z]{16}\b`)},
	{"a GitHub token", "gh", regexp.MustCompile(`\bgh[pousr]_[0-9A-Za-z]{30,}`)},
	{"a GitHub token", "github_pat_", regexp.MustCompile(`\bgithub_pat_[0-9A-Za-z_]{30,}`)},
	{"a GitLab token", "glpat-", regexp.MustCompile(`\bglpat-[0-9A-Za-z_-]{20,}`)},
	{"a Slack token", "xox", regexp.MustCompile(`\bxox[abeprs]-[0-9A-Za-z-]{10,}`)},
	{"a Stripe key", "k_live_", regexp.MustCompile(`\b[rs]k_live_[0-9A-Za-z]{16,}`)},
	{"a Google API key", "AIza", regexp.MustCompile(`\bAIza[0-9A-Za-z_-]{35}`)},
	{"a DigitalOcean token", "_v1_", regexp.MustCompile(`\bdo[opr]_v1_[0-9a-f]{64}`)},
	{"an npm token", "npm_", regexp.MustCompile(`\bnpm_[0-9A-Za-z]{36}`)},
	{"a Hugging Face token", "hf_", regexp.MustCompile(`\bhf_[0-9A-Za-z]{30,}`)},
	{"a Vault token", "hvs.", regexp.MustCompile(`\bhvs\.[0-9A-Za-z_-]{20,}`)},
	{"a JSON Web Token", "eyJ", regexp.MustCompile(`\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}`)},
	{"a password in a URL", "://", regexp.MustCompile(`://[^/\s:@"']+:[^/\s:@"']+@`)},
}

// findSecrets finds texts in a file, comments included, that must not be in Git.
func findSecrets(text []byte) []finding {
	var findings []finding
	for _, s := range secretForms {
		if !bytes.Contains(text, []byte(s.part)) {
			continue
		}
		for _, at := range s.form.FindAllIndex(text, 10) {
			before := text[:at[0]]
			findings = append(findings, finding{
				code: CodeSecret, private: true,
				at: mark{
					line:   1 + bytes.Count(before, []byte("\n")),
					column: at[0] - bytes.LastIndexByte(before, '\n'),
					length: 1,
				},
				message: s.name + " stands in the repo",
				hint:    `take it out and replace it where it is used: it is no secret any more. Write {env: "NAME"} or {file: "/path"}`,
			})
		}
	}
	return findings
}

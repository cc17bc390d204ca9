package packaging_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	used   = regexp.MustCompile(`(?m)^\s*(?:- )?uses: *(.*)$`)
	pinned = regexp.MustCompile(`^[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d`)
	rights = regexp.MustCompile(`(?m)^permissions:\n  contents: read\n(\S|\n)`)
	given  = regexp.MustCompile(`(?m)^ *(permissions|[a-z-]+: *write|id-token):?`)
)

// complaints are what is wrong with a workflow: who can change what an action's name
// means, or gets a token that may write, can change a release.
func complaints(workflow string) (wrong []string) {
	for _, use := range used.FindAllStringSubmatch(workflow, -1) {
		if !pinned.MatchString(use[1]) {
			wrong = append(wrong, "uses "+use[1]+", which is not a commit with its version beside it")
		}
	}
	if !rights.MatchString(workflow) || len(given.FindAllString(workflow, -1)) != 1 {
		wrong = append(wrong, "has more rights than to read")
	}
	if strings.Contains(workflow, "pull_request_target") || strings.Contains(workflow, "workflow_run") {
		wrong = append(wrong, "runs a stranger's pull request with our rights")
	}
	if strings.Count(workflow, "actions/checkout@") != strings.Count(workflow, "persist-credentials: false") {
		wrong = append(wrong, "leaves a token in the checkout")
	}
	return wrong
}

func TestWorkflows(t *testing.T) {
	files, err := filepath.Glob("../.github/workflows/*")
	if err != nil || len(files) < 2 {
		t.Fatalf("workflows: %q, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, wrong := range complaints(string(text)) {
			t.Errorf("%s %s", file, wrong)
		}
		// The check sees what it is there for.
		for _, bad := range [][2]string{
			{"@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7"},
			{"contents: read", "contents: write"},
			{"permissions:\n  contents: read\n", ""},
			{"    steps:", "    permissions:\n      id-token: write\n    steps:"},
			{"on:\n", "on:\n  pull_request_target:\n"},
			{"          persist-credentials: false\n", ""},
		} {
			if worse := strings.Replace(string(text), bad[0], bad[1], 1); worse == string(text) || len(complaints(worse)) == 0 {
				t.Errorf("%s: nothing is wrong with %q", file, bad[1])
			}
		}
	}
}

package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kokoa-proxy/kokoa/schema"
)

// asKokoa makes the test binary be the program itself: for the demo, which starts
// its edges and agents as children of its own binary.
const asKokoa = "KOKOA_TEST_AS_KOKOA"

func TestMain(m *testing.M) {
	schema.RunIfWorker()
	if os.Getenv(asKokoa) != "" {
		main()
		return
	}
	testscript.Main(m, map[string]func(){"kokoa": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/.cache")
			return nil
		},
	})
}

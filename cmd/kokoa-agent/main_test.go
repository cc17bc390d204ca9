package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kokoa-proxy/kokoa/internal/program/programtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kokoa-agent": main})
}

func TestScripts(t *testing.T) {
	dir := "testdata"
	if inside := os.Getenv(scriptsEnv); inside != "" {
		dir = inside
	}
	programtest.Run(t, dir, fleetCommands())
}

// scriptsEnv names another folder of sessions: those for a host with systemd.
const scriptsEnv = "KOKOA_TEST_SCRIPTS"

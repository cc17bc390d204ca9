package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kokoa-proxy/kokoa/internal/program/programtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"kokoa-agent": main})
}

func TestScripts(t *testing.T) { programtest.Run(t, "testdata", fleetCommands()) }

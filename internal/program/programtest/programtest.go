// Package programtest has the commands that sessions of a program need in tests.
package programtest

import (
	"maps"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Commands are commands of sessions, by name.
type Commands map[string]func(ts *testscript.TestScript, neg bool, args []string)

// Run runs the sessions in a folder. Beside testscript's own commands they have own,
// which may be nil, "waitfile FILE…", which waits until each file exists, and
// "terminate", which sends SIGTERM to what runs in the background.
func Run(t *testing.T, dir string, own Commands) {
	commands := Commands{"waitfile": waitFile, "terminate": terminate}
	maps.Copy(commands, own)
	testscript.Run(t, testscript.Params{Dir: dir, Cmds: commands})
}

func waitFile(ts *testscript.TestScript, neg bool, names []string) {
	if neg {
		ts.Fatalf("waitfile cannot be negated")
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, name := range names {
		for {
			if _, err := os.Stat(ts.MkAbs(name)); err == nil {
				break
			}
			if time.Now().After(deadline) {
				ts.Fatalf("%s does not exist after 30 s", name)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func terminate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: terminate")
	}
	for _, background := range ts.BackgroundCmds() {
		ts.Check(background.Process.Signal(syscall.SIGTERM))
	}
}

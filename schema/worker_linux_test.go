package schema

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWorkerInheritsNothing: what evaluates a stranger's file has no secrets of
// ours at hand, and no place of ours.
func TestWorkerInheritsNothing(t *testing.T) {
	t.Setenv("KOKOA_TEST_CANARY", "canary")
	l := newLoader(t, Options{})
	pid := warmWorker(t, l)
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for v := range strings.SplitSeq(strings.TrimSuffix(string(environ), "\x00"), "\x00") {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{"CUE_REGISTRY", "GOMEMLIMIT", memoryVariable, outputVariable, workerVariable}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("the worker's environment is %q, want %q", names, want)
	}
	if wd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || wd != "/" {
		t.Errorf("the worker's folder is %q, %v", wd, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max data size") && strings.Contains(line, "unlimited") {
			t.Error("the worker's memory is not limited")
		}
	}
}

// TestCloseEndsWorkers: a closed loader leaves no process.
func TestCloseEndsWorkers(t *testing.T) {
	l := NewLoader(Options{})
	pid := warmWorker(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("worker %d is still there: %v", pid, err)
	}
}

// TestWorkerStaysWarm: loads after the first use the same worker, and one that
// was killed in between is replaced.
func TestWorkerStaysWarm(t *testing.T) {
	l := newLoader(t, Options{})
	first := warmWorker(t, l)
	tree := memory{"fleet.cue": baseFleet, "a.cue": routeText("a", "vm1")}
	if _, _, err := l.Load(context.Background(), tree); err != nil {
		t.Fatal(err)
	}
	if second := l.pool.idle[0].cmd.Process.Pid; second != first {
		t.Errorf("the worker was %d and is %d", first, second)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tree["b.cue"] = routeText("b", "vm1")
	if _, _, err := l.Load(context.Background(), tree); err != nil {
		t.Errorf("load after the worker was killed: %v", err)
	}
	if l.stats.ended != 0 {
		t.Error("a file was blamed for it")
	}
}

// TestWorkerEndsWithItsParent: a worker in the middle of an evaluation ends when
// nobody is there to take the result.
func TestWorkerEndsWithItsParent(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{workerVariable + "=1", memoryVariable + "=1073741824", outputVariable + "=1000000"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	text := batch{files: [][]byte{[]byte("package fleet\n" + bombs["nested comprehensions"])}}.append(nil)
	in.Write(append(binary.AppendUvarint([]byte{frameBatch}, uint64(len(text))), text...))
	in.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("worker: %v: %s", err, out.Bytes())
		}
	case <-time.After(time.Minute):
		t.Error("the worker did not end")
	}
}

// TestNoWorkerInWorker: a program that forgets RunIfWorker does not start itself
// without end.
func TestNoWorkerInWorker(t *testing.T) {
	t.Setenv(workerVariable, "1")
	l := newLoader(t, Options{})
	_, _, err := l.Load(context.Background(), memory{"fleet.cue": baseFleet})
	if !errors.Is(err, errNoWorker) {
		t.Errorf("load gave %v, want the hint to RunIfWorker", err)
	}
}

// warmWorker loads once and returns the process id of the worker that stays.
func warmWorker(t *testing.T, l *Loader) int {
	t.Helper()
	if _, _, err := l.Load(context.Background(), memory{"fleet.cue": baseFleet}); err != nil {
		t.Fatal(err)
	}
	if n := len(l.pool.idle); n != 1 {
		t.Fatalf("%d workers are warm, want 1", n)
	}
	return l.pool.idle[0].cmd.Process.Pid
}

package schema

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// confine keeps the process from taking much more than memory bytes on top of
// what it has, and makes it the first to go when the host runs out.
//
// RLIMIT_DATA counts what is writable, not what is only reserved, so it fits Go's
// heap (and the race detector's) where RLIMIT_AS does not. It is a wall behind
// watchMemory, which does its work alone where a limit cannot be set: hitting it
// crashes the process.
func confine(memory int) {
	os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	if held := dataSize(); held > 0 {
		limit := held + uint64(memory) + uint64(memory)/4
		syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: limit, Max: limit})
	}
	syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
}

// dataSize is the process's writable memory in bytes, as RLIMIT_DATA counts it; 0
// when the system does not say.
func dataSize() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("VmData:"))
	line, _, _ := bytes.Cut(rest, []byte("kB"))
	n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

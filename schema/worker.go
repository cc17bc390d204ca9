package schema

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"time"
)

// RunIfWorker makes this process an evaluation worker, and does not return, when a
// Loader started it as one; else it does nothing. It must be the first thing that
// main, or TestMain, does in every program that uses a Loader.
func RunIfWorker() {
	if os.Getenv(workerVariable) == "" {
		return
	}
	if err := work(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "evaluate:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The environment of a worker, which is all of it but CUE's own.
const (
	workerVariable = "KOKOA_SCHEMA_WORKER"
	memoryVariable = "KOKOA_SCHEMA_MEMORY"
	outputVariable = "KOKOA_SCHEMA_OUTPUT"
)

// exitMemory is the status of a worker that took more memory than it may.
const exitMemory = 70

// Messages are frames of a type, a length and a payload. A worker says hello,
// and then answers each batch with ready, one result per file in order, and
// done.
const (
	frameHello  = 'H' // fingerprint
	frameBatch  = 'B' // batch
	frameReady  = 'L' // one encoded outcome per library file
	frameResult = 'R' // an encoded outcome
	frameDone   = 'D' // memory in use, bytes
)

// batch is files to evaluate in one context, after a library.
type batch struct {
	// probe: evaluate each library file alone, as if it were no library.
	probe bool
	// scoped: the library is known, though it may have no files.
	scoped bool
	// broken: the library lacks what a file that cannot be read would define.
	broken  bool
	library []sourceFile
	files   [][]byte
}

func (b batch) append(out []byte) []byte {
	out = append(out, bit(b.probe), bit(b.scoped), bit(b.broken))
	out = binary.AppendUvarint(out, uint64(len(b.library)))
	for _, f := range b.library {
		out = appendText(out, f.name)
		out = binary.AppendUvarint(out, uint64(len(f.text)))
		out = append(out, f.text...)
	}
	out = binary.AppendUvarint(out, uint64(len(b.files)))
	for _, f := range b.files {
		out = binary.AppendUvarint(out, uint64(len(f)))
		out = append(out, f...)
	}
	return out
}

func decodeBatch(b []byte) (batch, error) {
	d := decoder{rest: b}
	out := batch{probe: d.below(2) == 1, scoped: d.below(2) == 1, broken: d.below(2) == 1}
	for range d.count() {
		out.library = append(out.library, sourceFile{d.text(), []byte(d.text())})
	}
	for range d.count() {
		out.files = append(out.files, []byte(d.text()))
	}
	if d.bad || len(d.rest) != 0 {
		return batch{}, fmt.Errorf("decode batch: %w", errOutcome)
	}
	return out, nil
}

// work serves batches until in ends.
func work(in io.Reader, out io.Writer) error {
	// The parent decides when evaluation ends, also after Ctrl-C.
	signal.Ignore(os.Interrupt)
	debug.SetMaxStack(256 << 20)
	limits := evaluationLimits{output: numberFromEnv(outputVariable)}
	memory := numberFromEnv(memoryVariable)
	confine(memory)
	go watchMemory(uint64(memory))

	w := bufio.NewWriter(out)
	sum := fingerprint()
	if err := send(w, frameHello, sum[:]); err != nil {
		return err
	}
	// Reading beside evaluating notices at once when the parent is gone.
	batches := make(chan batch)
	go func() {
		r := bufio.NewReader(in)
		for {
			typ, payload, err := receive(r, maxFrame)
			if errors.Is(err, io.EOF) {
				os.Exit(0)
			}
			var b batch
			if err == nil && typ == frameBatch {
				b, err = decodeBatch(payload)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "read batch:", err)
				os.Exit(1)
			}
			batches <- b
		}
	}()
	for b := range batches {
		if err := b.evaluate(w, limits); err != nil {
			return err
		}
	}
	return nil
}

// evaluate answers one batch.
func (b batch) evaluate(w *bufio.Writer, limits evaluationLimits) error {
	e, err := newEvaluator(limits)
	if err != nil {
		return err
	}
	var ready []byte
	switch {
	case b.probe:
		// Answer each file as if it were a batch's, so that the parent sees which
		// one does not end.
		for _, f := range b.library {
			e.use([]sourceFile{f})
			if err := send(w, frameResult, outcome{}.append(nil)); err != nil {
				return err
			}
			if e, err = newEvaluator(limits); err != nil {
				return err
			}
		}
	case b.scoped:
		e.libraryBroken = b.broken
		for i, findings := range e.use(b.library) {
			o := outcome{class: library, size: len(b.library[i].text), findings: findings}
			text := o.append(nil)
			ready = append(binary.AppendUvarint(ready, uint64(len(text))), text...)
		}
	}
	if err := send(w, frameReady, ready); err != nil {
		return err
	}
	for _, f := range b.files {
		if err := send(w, frameResult, e.file(f).append(nil)); err != nil {
			return err
		}
	}
	return send(w, frameDone, binary.AppendUvarint(nil, memoryInUse()))
}

// maxFrame bounds a frame, both ways: a batch of large files, or the outcome of
// one.
const maxFrame = 128 << 20

func send(w *bufio.Writer, typ byte, payload []byte) error {
	var head [1 + binary.MaxVarintLen64]byte
	head[0] = typ
	n := 1 + binary.PutUvarint(head[1:], uint64(len(payload)))
	if _, err := w.Write(head[:n]); err != nil {
		return err
	}
	if _, err := w.Write(payload); err != nil {
		return err
	}
	return w.Flush()
}

var errFrame = errors.New("not a message of an evaluation worker")

// receive reads a frame of at most limit bytes.
func receive(r *bufio.Reader, limit int) (typ byte, payload []byte, err error) {
	if typ, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	if n > uint64(limit) {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	return typ, payload, nil
}

// watchMemory ends the process when it holds more than limit bytes. Confine is
// the harder wall where the system has one; this one names the cause.
func watchMemory(limit uint64) {
	for range time.Tick(20 * time.Millisecond) {
		if memoryInUse() > limit {
			os.Exit(exitMemory)
		}
	}
}

// memoryInUse is what the Go runtime holds and has not given back, in bytes.
func memoryInUse() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

func numberFromEnv(name string) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		fmt.Fprintf(os.Stderr, "evaluate: %s is not set\n", name)
		os.Exit(1)
	}
	return n
}

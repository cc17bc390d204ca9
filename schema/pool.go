package schema

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// pool runs evaluations in worker processes, which it starts when they are needed
// and kills when they go too far.
type pool struct {
	limits Limits
	log    *slog.Logger
	want   [32]byte // the workers' fingerprint

	mu     sync.Mutex
	idle   []*process
	closed bool
}

const (
	// parallel workers run at most.
	parallel = 2
	// batchFiles share a CUE context: more cost memory, fewer cost time.
	batchFiles = 200
	// batchBytes of source end a batch too.
	batchBytes = 4 << 20
	// A worker is replaced when it has evaluated so many files or holds so much
	// memory, since CUE keeps some of what it has seen for ever.
	workerFiles  = 20_000
	workerMemory = 128 << 20
	// startTime is how long a worker may take to say hello.
	startTime = 30 * time.Second
)

// reason is why an evaluation was ended from outside.
type reason byte

const (
	tooSlow reason = iota + 1
	tooMuchMemory
	tooDeep
	tooMuchOutput
	crashed
)

// fault is the end of a worker at one file.
type fault struct {
	reason reason
	detail string // the worker's last words
}

func (f *fault) Error() string { return "evaluation ended: " + f.detail }

// finding is the fault as a mistake of the file.
func (f *fault) finding(l Limits, what string) finding {
	out := finding{code: CodeLimit}
	switch f.reason {
	case tooSlow:
		out.message = fmt.Sprintf("%s took longer than %s to evaluate", what, l.Time)
		out.hint = "look for huge lists, nested comprehensions and references that multiply"
	case tooMuchMemory:
		out.message = fmt.Sprintf("%s needs more than %s of memory to evaluate", what, size(l.Memory))
		out.hint = "look for huge lists and strings, and references that multiply"
	case tooDeep:
		out.message = what + " is nested too deep to evaluate"
		out.hint = "look for brackets in brackets, and references that lead back to themselves"
	case tooMuchOutput:
		out.message = fmt.Sprintf("%s grows to more than %s when it is evaluated", what, size(l.Output))
		out.hint = "split it, or generate less"
	default:
		out.message = what + " crashed CUE's evaluator"
		out.hint = "write it more simply"
	}
	return out
}

// fileSet is the files of a run, by number. Its functions are called one at a
// time.
type fileSet struct {
	// read gives the text of a file, or false to leave it out.
	read func(i int) ([]byte, bool, error)
	// done takes the outcome of a file, also as the worker encoded it.
	done func(i int, o outcome, raw []byte)
	// fault is told of a file whose evaluation had to be ended.
	fault func(i int, f *fault)
}

// run evaluates n files after a library, which was prepared. After maxFaults the
// rest is left out, and run returns how many files that is.
func (p *pool) run(ctx context.Context, lib *scope, n int, files fileSet) (left int, err error) {
	q := newQueue(n)
	var mu sync.Mutex // held around the functions of files
	var group sync.WaitGroup
	var once sync.Once
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) {
		once.Do(func() { failed = err; cancel(); q.stop() })
	}
	defer context.AfterFunc(ctx, q.stop)()
	for range parallel {
		group.Go(func() {
			for {
				t, ok := q.next()
				if !ok {
					return
				}
				if err := p.batch(ctx, lib, q, t, &mu, files); err != nil {
					fail(err)
				}
				q.finish()
			}
		})
	}
	group.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	if failed != nil {
		return 0, failed
	}
	return q.left(), nil
}

// batch evaluates one task and puts what it could not finish back.
func (p *pool) batch(ctx context.Context, lib *scope, q *queue, t task, mu *sync.Mutex, files fileSet) error {
	b := batch{}
	if lib != nil {
		b = batch{scoped: true, broken: lib.broken, library: lib.files}
	}
	var sent []int
	total := 0
	for at, i := range t.files {
		if total > batchBytes {
			q.put(task{files: t.files[at:]})
			break
		}
		mu.Lock()
		text, ok, err := files.read(i)
		mu.Unlock()
		if err != nil {
			return err
		}
		if ok {
			sent = append(sent, i)
			b.files = append(b.files, text)
			total += len(text)
		}
	}
	if len(sent) == 0 {
		return nil
	}
	w, err := p.take(ctx)
	if err != nil {
		return err
	}
	fresh := !w.used
	finished := 0
	_, f, err := w.evaluate(ctx, p.limits, b, func(raw []byte) error {
		o, err := decodeOutcome(raw)
		if err != nil || finished == len(sent) {
			return errors.Join(errFrame, err)
		}
		mu.Lock()
		defer mu.Unlock()
		files.done(sent[finished], o, raw)
		finished++
		return nil
	})
	p.give(w)
	if err != nil || f == nil {
		return err
	}
	if finished == len(sent) {
		return nil // it died after its last answer
	}
	bad, rest := sent[finished], sent[finished+1:]
	if f.reason != tooSlow && !(fresh && finished == 0) {
		// What came before it may have used the memory up: ask once more, alone.
		q.put(task{files: []int{bad}})
	} else {
		mu.Lock()
		files.fault(bad, f)
		mu.Unlock()
		q.fault()
	}
	// In two parts, so that an idle worker helps with what may be more of the kind.
	for part := range slices.Chunk(rest, len(rest)/2+1) {
		q.put(task{files: part})
	}
	return nil
}

// prepare evaluates a library and returns the outcome of each of its files; a
// fault when it could not.
func (p *pool) prepare(ctx context.Context, lib *scope) ([]outcome, *fault, error) {
	b := batch{scoped: true, broken: lib.broken, library: lib.files}
	var ready []byte
	for {
		w, err := p.take(ctx)
		if err != nil {
			return nil, nil, err
		}
		used := w.used
		var f *fault
		ready, f, err = w.evaluate(ctx, p.limits, b, nil)
		p.give(w)
		if err != nil {
			return nil, nil, err
		}
		if f == nil {
			break
		}
		// A used worker may have ended for another cause: ask a new one.
		if !used || f.reason == tooSlow {
			return nil, f, nil
		}
	}
	d := decoder{rest: ready}
	var out []outcome
	for range lib.files {
		o, err := decodeOutcome([]byte(d.text()))
		if err != nil {
			return nil, nil, fmt.Errorf("read library: %w", err)
		}
		out = append(out, o)
	}
	return out, nil, nil
}

// probe finds the file of a library that cannot be evaluated: -1 when each can
// alone.
func (p *pool) probe(ctx context.Context, lib *scope) (int, *fault, error) {
	w, err := p.start(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer p.give(w)
	finished := 0
	_, f, err := w.evaluate(ctx, p.limits, batch{probe: true, library: lib.files}, func([]byte) error {
		finished++
		return nil
	})
	if err != nil || f == nil || finished >= len(lib.files) {
		return -1, nil, err
	}
	return finished, f, nil
}

// take gives a worker to the caller alone.
func (p *pool) take(ctx context.Context) (*process, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return w, nil
	}
	p.mu.Unlock()
	return p.start(ctx)
}

func (p *pool) give(w *process) {
	p.mu.Lock()
	keep := !p.closed && !w.dead && w.files < workerFiles && w.memory < workerMemory
	if keep {
		p.idle = append(p.idle, w)
	}
	p.mu.Unlock()
	if !keep {
		w.end()
	}
}

// rest ends all idle workers but one, which stays warm.
func (p *pool) rest() { p.shrink(1) }

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.shrink(0)
}

func (p *pool) shrink(keep int) {
	p.mu.Lock()
	keep = min(keep, len(p.idle))
	over := p.idle[keep:]
	p.idle = p.idle[:keep:keep]
	p.mu.Unlock()
	for _, w := range over {
		w.end()
	}
}

func (p *pool) start(ctx context.Context) (*process, error) {
	if os.Getenv(workerVariable) != "" {
		return nil, errNoWorker
	}
	program := "/proc/self/exe" // also right after an upgrade has replaced the file
	if runtime.GOOS != "linux" {
		var err error
		if program, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find own program: %w", err)
		}
	}
	w := &process{words: &tail{limit: 4 << 10}}
	w.cmd = exec.Command(program)
	w.cmd.Args = []string{"kokoa: evaluate"}
	w.cmd.Dir = "/"
	w.cmd.Env = []string{
		workerVariable + "=1",
		memoryVariable + "=" + strconv.Itoa(p.limits.Memory),
		outputVariable + "=" + strconv.Itoa(p.limits.Output),
		"GOMEMLIMIT=" + strconv.Itoa(p.limits.Memory/8*7),
		"CUE_REGISTRY=none",
	}
	w.cmd.Stderr = w.words
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start evaluation worker: %w", err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start evaluation worker: %w", err)
	}
	w.out = bufio.NewReaderSize(out, 64<<10)
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start evaluation worker: %w", err)
	}
	defer context.AfterFunc(ctx, w.kill)()
	timer := time.AfterFunc(startTime, w.kill)
	defer timer.Stop()
	typ, sum, err := receive(w.out, 1<<10)
	if err != nil || typ != frameHello || !bytes.Equal(sum, p.want[:]) {
		w.end()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %s", errNoWorker, w.words)
	}
	p.log.Debug("evaluation worker started")
	return w, nil
}

var errNoWorker = errors.New("start evaluation worker: the program must call schema.RunIfWorker first in main")

// process is a worker, used by one caller at a time.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	words  *tail
	used   bool
	files  int
	memory uint64
	dead   bool
}

// evaluate runs one batch and passes each result on. It returns what the worker
// said of the library, or a fault when the worker had to be ended or ended itself:
// then the result that was not passed on is at fault.
func (w *process) evaluate(ctx context.Context, l Limits, b batch, result func(raw []byte) error) (ready []byte, f *fault, err error) {
	w.used = true
	var slow atomic.Bool
	timer := time.AfterFunc(l.Time, func() { slow.Store(true); w.kill() })
	defer timer.Stop()
	defer context.AfterFunc(ctx, w.kill)()

	text := b.append(nil)
	head := binary.AppendUvarint([]byte{frameBatch}, uint64(len(text)))
	_, err = w.in.Write(append(head, text...))
	for err == nil {
		var typ byte
		var payload []byte
		if typ, payload, err = receive(w.out, maxFrame); err != nil {
			break
		}
		timer.Reset(l.Time)
		switch typ {
		case frameReady:
			ready = payload
		case frameResult:
			w.files++
			if len(payload) > l.Output+l.Output/2 {
				w.dead = true
				return nil, &fault{reason: tooMuchOutput, detail: "too much output"}, nil
			}
			if result == nil {
				w.dead = true
				return nil, nil, errFrame
			}
			if err := result(payload); err != nil {
				w.dead = true
				return nil, nil, err
			}
		case frameDone:
			w.memory, _ = binary.Uvarint(payload)
			return ready, nil, nil
		default:
			w.dead = true
			return nil, nil, errFrame
		}
	}
	w.dead = true
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	w.kill()
	w.end()
	f = &fault{reason: crashed, detail: w.words.String()}
	said := func(words string) bool { return bytes.Contains(w.words.text, []byte(words)) }
	switch status := w.cmd.ProcessState.ExitCode(); {
	case slow.Load():
		f.reason = tooSlow
	case status == exitMemory, status == -1, // -1: a signal, which the host sends when it runs out
		said("out of memory"), said("cannot allocate memory"), said("failed to allocate"):
		f.reason = tooMuchMemory
	case said("stack overflow"), said("stack exceeds"):
		f.reason = tooDeep
	}
	return nil, f, nil
}

func (w *process) kill() { w.cmd.Process.Kill() }

// end ends the worker, which has nothing to lose, and waits until it is gone.
func (w *process) end() {
	w.kill()
	w.in.Close()
	w.cmd.Wait()
}

// tail keeps the last bytes written to it.
type tail struct {
	limit int
	text  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	// A crash says what it is first and then where, at length: keep the first.
	if room := t.limit - len(t.text); room > 0 {
		t.text = append(t.text, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	line, _, _ := bytes.Cut(t.text, []byte("\n"))
	return string(line)
}

// task is files that share a context.
type task struct{ files []int }

// queue hands tasks out until all are finished; a task in work may put others
// back.
type queue struct {
	mu      sync.Mutex
	changed *sync.Cond
	tasks   []task
	working int
	faults  int
	stopped bool
}

// maxFaults files of one load may have to be ended before the rest is left out.
const maxFaults = 8

func newQueue(n int) *queue {
	q := &queue{}
	q.changed = sync.NewCond(&q.mu)
	each := batchFiles
	if n < parallel*batchFiles && n > 40 {
		each = (n + parallel - 1) / parallel
	}
	for from := 0; from < n; from += each {
		var t task
		for i := from; i < min(n, from+each); i++ {
			t.files = append(t.files, i)
		}
		q.tasks = append(q.tasks, t)
	}
	return q
}

// next waits for a task; false when all are finished or the queue was stopped.
func (q *queue) next() (task, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.stopped, q.faults >= maxFaults:
			return task{}, false
		case len(q.tasks) > 0:
			t := q.tasks[0]
			q.tasks = q.tasks[1:]
			q.working++
			return t, true
		case q.working == 0:
			return task{}, false
		}
		q.changed.Wait()
	}
}

func (q *queue) put(t task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tasks = append(q.tasks, t)
	q.changed.Broadcast()
}

func (q *queue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.working--
	q.changed.Broadcast()
}

func (q *queue) fault() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.faults++
	q.changed.Broadcast()
}

func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	q.changed.Broadcast()
}

// left counts files that nobody took.
func (q *queue) left() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, t := range q.tasks {
		n += len(t.files)
	}
	return n
}

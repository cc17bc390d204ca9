package schema

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
)

// Options are how a Loader works; the zero value works.
type Options struct {
	// CacheDir is a folder for results of evaluations, so that the next process
	// need not repeat them; it is made when it is not there. "" keeps them in
	// memory alone.
	CacheDir string
	// Log takes what the Loader does; nil discards it.
	Log *slog.Logger
	// Limits on what a repo may cost.
	Limits Limits
	// Now tells the time that expiry is compared with; nil is time.Now.
	Now func() time.Time
}

// Limits bound what loading a repo may cost. A field that is zero has the default
// that its comment names.
type Limits struct {
	// Files in the repo that are read: 20,000.
	Files int
	// FileSize of one file in bytes: 1 MiB; at most 16 MiB.
	FileSize int
	// TotalSize of all files in bytes: 64 MiB.
	TotalSize int
	// Time to evaluate one file: 10 s.
	Time time.Duration
	// Memory of a worker in bytes, two of which may run: 1 GiB.
	Memory int
	// Output of one file in bytes, as results are encoded: 4 MiB.
	Output int
	// TotalOutput of all files in bytes: 128 MiB.
	TotalOutput int
	// TotalTime to evaluate all files that no cache has: 2 min.
	TotalTime time.Duration
}

// ErrClosed is the error of Load on a Loader that was closed.
var ErrClosed = errors.New("loader is closed")

// Loader turns trees into fleets. It keeps the results of evaluations by blob
// hash, and a child process ready for the next one. It is safe for concurrent use:
// loads take turns. Close it.
type Loader struct {
	limits Limits
	log    *slog.Logger
	now    func() time.Time
	pool   *pool

	closing context.Context
	abort   context.CancelFunc

	turn    chan struct{} // held by the load that runs
	results map[key]*result
	store   *store // nil without CacheDir
	loads   uint64
	stats   loadStats
}

// loadStats count what the last load did.
type loadStats struct{ evaluated, ended, decoded, kept int }

// NewLoader makes a Loader. It starts no process yet.
func NewLoader(o Options) *Loader {
	l := o.Limits
	l.Files = cmp.Or(l.Files, 20_000)
	l.FileSize = min(cmp.Or(l.FileSize, 1<<20), maxAnyFile)
	l.TotalSize = cmp.Or(l.TotalSize, 64<<20)
	l.Time = cmp.Or(l.Time, 10*time.Second)
	l.Memory = cmp.Or(l.Memory, 1<<30)
	l.Output = cmp.Or(l.Output, 4<<20)
	l.TotalOutput = cmp.Or(l.TotalOutput, 128<<20)
	l.TotalTime = cmp.Or(l.TotalTime, 2*time.Minute)
	out := &Loader{
		limits: l, log: o.Log, now: o.Now,
		turn:    make(chan struct{}, 1),
		results: map[key]*result{},
	}
	out.closing, out.abort = context.WithCancel(context.Background())
	if out.log == nil {
		out.log = slog.New(slog.DiscardHandler)
	}
	if out.now == nil {
		out.now = time.Now
	}
	out.pool = &pool{limits: l, log: out.log, want: fingerprint()}
	if o.CacheDir != "" {
		s, err := openStore(o.CacheDir, out.pool.want)
		if err != nil {
			out.log.Warn("evaluation cache left out", "err", err)
		}
		out.store = s
	}
	return out
}

// Close ends the child processes and waits for them. A load that runs ends with
// ErrClosed.
func (l *Loader) Close() error {
	l.abort()
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.pool.close()
	return nil
}

// Load reads a tree and returns the fleet it describes, and warnings.
//
// When the repo is wrong, the error is Diagnostics with every mistake and every
// warning. Any other error is not the user's: the tree could not be read, a
// worker not be started, ctx ended, or ErrClosed. No file can do more harm than
// Limits allow: it is reported, and the other files are checked all the same.
func (l *Loader) Load(ctx context.Context, tree Tree) (*fleet.Fleet, Diagnostics, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.closing, cancel)()
	start := time.Now()
	l.loads++
	l.stats = loadStats{}
	r := run{Loader: l, tree: tree}
	defer l.pool.rest()
	if err := r.evaluate(ctx); err != nil {
		if l.closing.Err() != nil {
			err = ErrClosed
		}
		return nil, nil, fmt.Errorf("load fleet: %w", err)
	}
	l.keep()
	f, diagnostics := assemble(r.loaded(), r.diagnostics, r.unread(), l.now())
	r.quote(diagnostics)
	l.log.Debug("fleet loaded", "count", len(r.files), "took", time.Since(start))
	if len(diagnostics.Errors()) > 0 {
		return nil, nil, diagnostics
	}
	return f, diagnostics, nil
}

// keep drops results that the last few loads had no use for, and saves new ones.
func (l *Loader) keep() {
	const loads = 4
	for k, r := range l.results {
		if r.used+loads <= l.loads {
			delete(l.results, k)
		}
	}
	if l.store == nil {
		return
	}
	if err := l.store.flush(); err != nil {
		l.log.Warn("evaluation cache not written", "err", err)
	}
	l.store.forget()
}

// scope is a fleet's library: the files that hold only definitions and hidden
// fields.
type scope struct {
	sum   string // names it in keys; "" when results may not be kept
	files []sourceFile
	// broken: it may lack what a file that could not be read would define.
	broken bool
}

// run is one load.
type run struct {
	*Loader
	tree        Tree
	files       []File
	found       []*result   // by index in files
	diagnostics Diagnostics // about the repo as a whole
	size        int         // of what was read
	output      int         // of what was evaluated
}

// evaluate gives every file a result.
func (r *run) evaluate(ctx context.Context) error {
	r.list()
	r.found = make([]*result, len(r.files))
	limited, cancel := context.WithTimeout(ctx, r.limits.TotalTime)
	defer cancel()
	err := r.evaluateAll(limited)
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		r.about(fmt.Sprintf("the repo takes longer than %s to evaluate", short(r.limits.TotalTime)), "look for what is generated, and in the library")
		err = nil
	}
	for i := range r.found {
		if r.found[i] == nil {
			r.found[i] = &result{unread: true}
		}
	}
	r.checkTotals()
	return err
}

func (r *run) evaluateAll(ctx context.Context) error {
	// First what needs no library; it also tells which files are the library.
	var missing []int
	for i, f := range r.files {
		if r.found[i] = r.lookup(key{blob: f.Hash}); r.found[i] == nil {
			missing = append(missing, i)
		}
	}
	if err := r.fill(ctx, nil, missing); err != nil {
		return err
	}
	lib, err := r.library()
	if err != nil {
		return err
	}
	missing = nil
	var shared []int
	for i, f := range r.files {
		switch r.found[i].class {
		case user:
			if r.found[i] = r.lookup(key{f.Hash, lib.sum}); r.found[i] == nil {
				missing = append(missing, i)
			}
		case library:
			shared = append(shared, i)
		}
	}
	lib, err = r.checkLibrary(ctx, lib, shared)
	if err != nil {
		return err
	}
	return r.fill(ctx, lib, missing)
}

// list takes the files that are wanted, in order, and as many as may be.
func (r *run) list() {
	for _, f := range r.tree.Files() {
		if Wanted(f.Path) {
			r.files = append(r.files, f)
		}
	}
	slices.SortFunc(r.files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	if n := len(r.files); n > r.limits.Files {
		r.about(fmt.Sprintf("the repo has %d *.cue files, and %d may be", n, r.limits.Files), "put several routes in one file")
		r.files = r.files[:r.limits.Files]
	}
}

func (r *run) about(message, hint string) {
	r.diagnostics = append(r.diagnostics, Diagnostic{
		Code: CodeLimit, Severity: SeverityError, Length: 1, Message: message, Hint: hint,
	})
}

// lookup finds a result in memory or on disk.
func (r *run) lookup(k key) *result {
	if x := r.results[k]; x != nil && (x.until.IsZero() || r.now().Before(x.until)) {
		x.used = r.loads
		r.stats.kept++
		return x
	}
	if r.store == nil {
		return nil
	}
	o, ok := r.store.get(k)
	if !ok {
		return nil
	}
	r.stats.decoded++
	return r.remember(k, o)
}

func (r *run) remember(k key, o outcome) *result {
	x := bind(o)
	x.used = r.loads
	r.results[k] = x
	return x
}

// save remembers a result, and keeps it for the next process too.
func (r *run) save(k key, o outcome, raw []byte) *result {
	if r.store != nil {
		r.store.add(k, raw)
	}
	return r.remember(k, o)
}

// fill evaluates the files that no cache has.
func (r *run) fill(ctx context.Context, lib *scope, missing []int) error {
	if len(missing) == 0 {
		return nil
	}
	left, err := r.pool.run(ctx, lib, len(missing), fileSet{
		read: func(n int) ([]byte, bool, error) { return r.read(missing[n]) },
		done: func(n int, o outcome, raw []byte) {
			i := missing[n]
			r.stats.evaluated++
			if r.output += len(raw); r.output > r.limits.TotalOutput {
				r.found[i] = &result{unread: true} // checkTotals says why
				return
			}
			k := key{blob: r.files[i].Hash}
			if lib != nil && o.class == user {
				k.scope = lib.sum
				if lib.sum == "" {
					r.found[i] = bind(o)
					return
				}
			}
			r.found[i] = r.save(k, o, raw)
		},
		fault: func(n int, f *fault) {
			i := missing[n]
			r.stats.ended++
			r.log.Warn("evaluation ended", "object", r.files[i].Path, "reason", f.detail)
			r.found[i] = r.refused(f.finding(r.limits, "the file"))
			k := key{blob: r.files[i].Hash}
			if lib != nil {
				k.scope = lib.sum
			}
			r.results[k] = r.found[i]
		},
	})
	if err != nil {
		return err
	}
	if left > 0 {
		r.about(fmt.Sprintf("%s not checked, since %d others had to be ended", count(left, "file"), maxFaults), "mend those first")
	}
	for _, i := range missing {
		if r.found[i] == nil {
			r.found[i] = &result{unread: true}
		}
	}
	return nil
}

// faultMemory is how long a file is not tried again that had to be ended: a busy
// host may have been the cause, but not likely.
const faultMemory = 10 * time.Minute

func (r *run) refused(f finding) *result {
	return &result{
		findings: []finding{f}, unread: true,
		used: r.loads, until: r.now().Add(faultMemory),
	}
}

// read gives a file's text, and false when it is too large to be evaluated.
func (r *run) read(i int) ([]byte, bool, error) {
	text, err := r.tree.Read(r.files[i].Path)
	if err != nil {
		return nil, false, fmt.Errorf("read %s: %w", r.files[i].Path, err)
	}
	if len(text) > r.limits.FileSize {
		r.found[i] = r.refused(finding{
			code:    CodeLimit,
			message: fmt.Sprintf("the file has %d bytes, and %s may be", len(text), size(r.limits.FileSize)),
			hint:    "split it",
		})
		return nil, false, nil
	}
	if r.size += len(text); r.size > r.limits.TotalSize {
		r.found[i] = &result{unread: true} // checkTotals says why
		return nil, false, nil
	}
	return text, true, nil
}

// library gathers the files that are it.
func (r *run) library() (*scope, error) {
	lib := &scope{}
	h := sha256.New()
	for i, f := range r.files {
		lib.broken = lib.broken || r.found[i].unread
		if r.found[i].class != library {
			continue
		}
		text, err := r.tree.Read(f.Path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", f.Path, err)
		}
		lib.files = append(lib.files, sourceFile{f.Path, text})
		fmt.Fprintf(h, "%q %s\n", f.Path, f.Hash)
	}
	fmt.Fprintf(h, "%t\n", lib.broken)
	lib.sum = hex.EncodeToString(h.Sum(nil)[:12])
	return lib, nil
}

// checkLibrary finds the mistakes in the library's files, whose indices shared
// are, and returns the library without files that cannot be evaluated.
func (r *run) checkLibrary(ctx context.Context, lib *scope, shared []int) (*scope, error) {
	known := true
	for _, i := range shared {
		if x := r.lookup(key{r.files[i].Hash, lib.sum}); x != nil {
			r.found[i] = x
		} else {
			known = false
		}
	}
	if known {
		return lib, nil
	}
	outcomes, f, err := r.pool.prepare(ctx, lib)
	for f != nil && err == nil {
		// Some file of it does not end. Without that file, the others are still
		// good for something; but nothing of this is worth keeping.
		at, alone, probeErr := r.pool.probe(ctx, lib)
		if probeErr != nil {
			return nil, probeErr
		}
		what := "the file"
		if alone == nil {
			at, alone, what = 0, f, "the library, which begins with this file,"
		}
		r.stats.ended++
		r.log.Warn("evaluation ended", "object", lib.files[at].name, "reason", alone.detail)
		r.found[shared[at]] = r.refused(alone.finding(r.limits, what))
		rest := &scope{broken: true, files: slices.Delete(slices.Clone(lib.files), at, at+1)}
		shared = slices.Delete(slices.Clone(shared), at, at+1)
		if what != "the file" {
			rest.files, shared = nil, nil
		}
		lib = rest
		outcomes, f, err = r.pool.prepare(ctx, lib)
	}
	if err != nil {
		return nil, err
	}
	for n, o := range outcomes {
		i := shared[n]
		if lib.sum == "" {
			r.found[i] = bind(o)
			continue
		}
		r.found[i] = r.save(key{r.files[i].Hash, lib.sum}, o, o.append(nil))
	}
	return lib, nil
}

func (r *run) checkTotals() {
	total := 0
	for _, x := range r.found {
		total += x.size
	}
	if total = max(total, r.size); total > r.limits.TotalSize {
		r.about(fmt.Sprintf("the repo's *.cue files have more than %s", size(r.limits.TotalSize)), "take out what is generated")
	}
	if r.output > r.limits.TotalOutput {
		r.about(fmt.Sprintf("the repo grows to more than %s when it is evaluated", size(r.limits.TotalOutput)), "generate less")
	}
}

func (r *run) loaded() []loaded {
	out := make([]loaded, len(r.files))
	for i, f := range r.files {
		out[i] = loaded{f.Path, r.found[i]}
	}
	return out
}

// unread are the texts of files that gave nothing because they are wrong; nil
// when one is too large to be looked at.
func (r *run) unread() [][]byte {
	var out [][]byte
	for i, x := range r.found {
		if !x.unread {
			continue
		}
		text, err := r.tree.Read(r.files[i].Path)
		if err != nil || len(text) > r.limits.FileSize {
			text = nil
		}
		out = append(out, text)
	}
	return out
}

// maxQuote is how much of a line is quoted, in bytes.
const maxQuote = 200

// quote gives each diagnostic the line that it is about.
func (r *run) quote(diagnostics Diagnostics) {
	var file string
	var lines [][]byte
	type line struct {
		file string
		line int
	}
	private := map[line]bool{} // for whatever else is said of the line too
	for _, d := range diagnostics {
		if d.private {
			private[line{d.Position.File, d.Position.Line}] = true
		}
	}
	for i := range diagnostics {
		d := &diagnostics[i]
		if d.Position.Line == 0 || d.Code == CodeSecret {
			continue
		}
		if d.Position.File != file || lines == nil {
			text, err := r.tree.Read(d.Position.File)
			if err != nil || len(text) > r.limits.FileSize {
				continue
			}
			file, lines = d.Position.File, bytes.Split(text, []byte("\n"))
		}
		if d.Position.Line > len(lines) {
			continue
		}
		text := string(bytes.TrimRight(lines[d.Position.Line-1], "\r"))
		if len(text) > maxQuote {
			if d.Position.Column > maxQuote {
				continue
			}
			text = text[:maxQuote]
		}
		if text = strings.ToValidUTF8(text, "?"); private[line{d.Position.File, d.Position.Line}] {
			text = withoutStrings(text)
		}
		d.Quote = text
		before, _ := split(text, d.Position.Column-1, 0)
		d.Length = max(1, min(d.Length, len(text)-len(before)))
	}
}

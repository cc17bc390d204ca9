package repo_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
)

// A task is what a process of its own does under strace.
type task struct {
	// Sources are read within Limits, and Good then without, one after the other. All
	// are kept open until the end.
	Sources, Good []string
	CacheDir      string
	Limits        repo.Limits
	// Misdeeds are done first, to see that they are seen.
	Misdeeds *misdeeds
}

// A reading is what became of one source.
type reading struct {
	Files map[string]string // texts by path
	Error string
	Is    []string // the texts of the package's errors that it is
	Took  time.Duration
}

// A report is what the process prints at its end.
type report struct {
	Readings []reading
	PeakRSS  int64 // bytes
}

const taskVariable = "KOKOA_REPO_TASK"

func TestMain(m *testing.M) {
	if raw := os.Getenv(taskVariable); raw != "" {
		os.Exit(carryOut(raw))
	}
	status := m.Run()
	if readerFolder != "" {
		os.RemoveAll(readerFolder)
	}
	os.Exit(status)
}

func carryOut(raw string) int {
	var t task
	if err := json.Unmarshal([]byte(raw), &t); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var out report
	if t.Misdeeds != nil {
		if err := t.Misdeeds.commit(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	for i, spec := range slices.Concat(t.Sources, t.Good) {
		options := repo.Options{CacheDir: t.CacheDir, Poll: time.Hour, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
		if i < len(t.Sources) {
			options.Limits = t.Limits
		}
		start := time.Now()
		s, err := repo.Open(spec, options)
		var files map[string]string
		if err == nil {
			defer s.Close()
			files, err = readAll(s)
		}
		out.Readings = append(out.Readings, newReading(files, err, time.Since(start)))
	}
	var err error
	if out.PeakRSS, err = peakRSS(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

// readAll does with a source what the reconciler does with one.
func readAll(s repo.Source) (map[string]string, error) {
	ctx, stop := context.WithCancel(context.Background())
	changed, watched := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		watched <- s.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() { <-watched }()
	defer stop()
	<-changed
	rev, err := s.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	files := make(map[string]string)
	for _, f := range rev.Files() {
		text, err := rev.Read(f.Path)
		if err != nil {
			return nil, err
		}
		files[f.Path] = string(text)
	}
	if err := rev.Descends(ctx, strings.Repeat("1", 40)); !errors.Is(err, repo.ErrRewind) {
		return nil, fmt.Errorf("descends from a commit that there is not: %w", err)
	}
	if _, err := s.At(ctx, rev.Commit); err != nil {
		return nil, err
	}
	return files, nil
}

var errorsOfPackage = []error{
	repo.ErrNotRepository, repo.ErrNoBranch, repo.ErrEmpty, repo.ErrRewind, repo.ErrUnknownCommit,
	repo.ErrLimit, repo.ErrPath, repo.ErrCorrupt, repo.ErrDenied, context.DeadlineExceeded,
}

func newReading(files map[string]string, err error, took time.Duration) reading {
	r := reading{Files: files, Took: took}
	if err == nil {
		return r
	}
	r.Error = err.Error()
	for _, known := range errorsOfPackage {
		if errors.Is(err, known) {
			r.Is = append(r.Is, known.Error())
		}
	}
	return r
}

// peakRSS is the most memory that this process ever had (proc_pid_status(5)).
func peakRSS() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/self/status has no VmHWM")
}

// A fence says what a process may touch.
type fence struct {
	read, write []string // folders with all that is below; what may be written may be read
	borrow      string   // a folder in which only what a hash names may be opened
	reach       []string // addresses
}

// traced carries a task out and returns its report and every call with which it
// left the fence.
func traced(t *testing.T, do task, f fence) (report, []string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("this test needs strace: apt-get install strace")
	}
	self := readerProgram(t)
	raw, err := json.Marshal(do)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("["+canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// One file for each thread keeps calls in one piece; -y names what was opened
	// behind all links, and -xx leaves nothing in a name that could be taken for
	// something else.
	dir := t.TempDir()
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, strace, "-f", "-ff", "-o", filepath.Join(dir, "thread"), "-y", "-xx", "-qq",
		"--seccomp-bpf", "-e", "signal=none", "-e", "trace=%file,connect", self)
	cmd.Dir = home
	// What strace was to watch must not outlive it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + do.CacheDir, "TZ=", taskVariable + "=" + string(raw)}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if err != nil && strings.Contains(strings.ToLower(stderr.String()), "ptrace") {
		t.Fatalf("strace may not trace here; it needs the capability SYS_PTRACE, or a seccomp profile that allows ptrace: %s", &stderr)
	}
	if err != nil {
		t.Fatalf("strace of %s: %v\n%s", raw, err, &stderr)
	}
	if said := stdout.String() + stderr.String(); strings.Contains(said, canary) {
		t.Errorf("the process tells the secret: %s", said)
	}
	var out report
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		t.Fatalf("report %q: %v\n%s", &stdout, err, &stderr)
	}
	threads, err := filepath.Glob(filepath.Join(dir, "thread.*"))
	if err != nil || len(threads) < 2 {
		t.Fatalf("the traces of %d threads: %v", len(threads), err)
	}
	var left []string
	for _, path := range threads {
		trace, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(trace)) {
			if why := f.leaves(strings.TrimSuffix(line, "\n"), self); why != "" {
				left = append(left, why)
			}
		}
	}
	slices.Sort(left)
	return out, slices.Compact(left)
}

// readerProgram is this test's own program, without the race detector: that takes
// several times the memory.
func readerProgram(t *testing.T) string {
	t.Helper()
	program, err := buildReader()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

var readerFolder string // removed by TestMain

var buildReader = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", errors.New("the test does not know how it was built")
	}
	if !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return filepath.EvalSymlinks(self)
	}
	if readerFolder, err = os.MkdirTemp("", "reader"); err != nil {
		return "", err
	}
	program := filepath.Join(readerFolder, "reader.test")
	if out, err := exec.Command("go", "test", "-c", "-race=false", "-o", program, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build without the race detector: %w\n%s", err, out)
	}
	return filepath.EvalSymlinks(program)
})

var (
	tracedCall = regexp.MustCompile(`^(\w+)\((.*)\) += (.*)$`)
	tracedPath = regexp.MustCompile(`(?:(?:AT_FDCWD|\d+)<((?:\\x..)*)>, )?"((?:\\x..)*)"`)
	tracedFile = regexp.MustCompile(`^\d+<((?:\\x..)*)>`)
	// A thread that ended with its process, before its call was made.
	tracedEnd  = regexp.MustCompile(`^\?\?\?\( <(detached|unfinished) \.\.\.>`)
	tracedPeer = regexp.MustCompile(`sin_port=htons\((\d+)\), sin_addr=inet_addr\("((?:\\x..)*)"\)`)
)

// leaves says how a line of strace leaves the fence; "" when it does not. What it
// does not understand does.
func (f fence) leaves(line, self string) string {
	if tracedEnd.MatchString(line) {
		return ""
	}
	call := tracedCall.FindStringSubmatch(line)
	if call == nil {
		return "line that is not understood: " + line
	}
	name, args, result := call[1], call[2], call[3]
	if name == "connect" {
		peer := tracedPeer.FindStringSubmatch(args)
		if peer == nil {
			return "reaches " + args
		}
		if address := net.JoinHostPort(plain(peer[2]), peer[1]); !slices.Contains(f.reach, address) {
			return "reaches " + address
		}
		return ""
	}
	names := tracedPath.FindAllStringSubmatch(args, -1)
	if len(names) == 0 {
		return "line that is not understood: " + line
	}
	var paths []string
	for _, n := range names {
		path := plain(n[2])
		if !filepath.IsAbs(path) {
			path = filepath.Join(plain(n[1]), path)
		}
		paths = append(paths, filepath.Clean(path))
	}
	path := paths[0]
	if opened := tracedFile.FindStringSubmatch(result); opened != nil {
		path = plain(opened[1])
	}
	switch name {
	case "open", "openat", "openat2":
		if !strings.Contains(args, "O_WRONLY") && !strings.Contains(args, "O_RDWR") && !strings.Contains(args, "O_CREAT") && !strings.Contains(args, "O_TRUNC") {
			if !f.reads(path) && path != self {
				return fmt.Sprintf("reads %q", path)
			}
			return ""
		}
	case "stat", "lstat", "newfstatat", "fstatat64", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "statfs", "getcwd", "chdir", "inotify_add_watch":
		if !f.sees(path) {
			return fmt.Sprintf("looks at %q", path)
		}
		return ""
	case "execve", "execveat":
		if path != self {
			return fmt.Sprintf("runs %q", path)
		}
		return ""
	case "symlink", "symlinkat", "link", "linkat":
		return fmt.Sprintf("makes the link %q", paths[len(paths)-1])
	case "rename", "renameat", "renameat2":
	default:
		paths = paths[:1]
	}
	// Everything else changes something.
	for _, path := range append(paths, path) {
		if !slices.ContainsFunc(f.write, func(dir string) bool { return below(dir, path) }) && path != "/dev/null" {
			return fmt.Sprintf("changes %q (%s)", path, name)
		}
	}
	return ""
}

// plain is a name that strace has printed in hexadecimal.
func plain(hex string) string {
	name, err := strconv.Unquote(`"` + hex + `"`)
	if err != nil {
		panic(err) // the patterns allow nothing else
	}
	return name
}

func below(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// runtimeFiles are what a Go program reads of the system before and while it runs.
var runtimeFiles = regexp.MustCompile(`^(` + strings.Join([]string{
	`/etc/ld\.so\.(cache|preload)|(/usr)?/lib(64)?/[^.]*/lib[a-z]+\.so\.\d+`, // the dynamic linker
	`/proc/(self|\d+)/(cgroup|exe|maps|mountinfo|status)`,
	`/sys/fs/cgroup/.*cpu\.[a-z_]+`, // GOMAXPROCS
	`/sys/kernel/mm/transparent_hugepage/hpage_pmd_size`,
	`/proc/sys/net/core/somaxconn`,
}, "|") + `)$`)

// ofObjects are the paths below an objects folder that lead to objects.
var ofObjects = regexp.MustCompile(`^(/[0-9a-f]{2}(/[0-9a-f]{38})?|/pack(/pack-[0-9a-f]{40}\.(idx|pack))?|/info(/alternates)?)?$`)

func (f fence) reads(path string) bool {
	if rest, ok := strings.CutPrefix(path, f.borrow); ok && f.borrow != "" && ofObjects.MatchString(rest) {
		return true
	}
	inside := func(dir string) bool { return below(dir, path) }
	return slices.ContainsFunc(f.read, inside) || slices.ContainsFunc(f.write, inside) || runtimeFiles.MatchString(path)
}

// sees is reads, and the folders on the way there.
func (f fence) sees(path string) bool {
	leadsTo := func(dir string) bool { return below(path, dir) }
	return f.reads(path) || path == "/" || f.borrow != "" && (below(path, f.borrow) || below(f.borrow, path)) || slices.ContainsFunc(f.read, leadsTo) || slices.ContainsFunc(f.write, leadsTo)
}

// misdeeds are what no repository may bring its reader to.
type misdeeds struct {
	Secret string // a file that is not the repository's
	Cache  string // a folder that may be written
	Mine   string // a folder that may not
	Peer   string // an address that may not be reached
}

func (m misdeeds) commit() error {
	link := filepath.Join(m.Cache, "link")
	for _, deed := range []func() error{
		func() error { _, err := os.ReadFile(m.Secret); return err },
		func() error { _, err := os.Stat(m.Secret + "-stat"); return found(err) },
		func() error { return os.Symlink(m.Mine, link) },
		func() error { return os.WriteFile(filepath.Join(link, "through\n\"link"), nil, 0o600) },
		func() error { return os.Mkdir(filepath.Join(m.Mine, "folder"), 0o700) },
		func() error { return os.WriteFile(filepath.Join(m.Cache, "file"), nil, 0o600) },
		func() error { return os.Rename(filepath.Join(m.Cache, "file"), filepath.Join(m.Mine, "moved")) },
		func() error { return os.Chmod(filepath.Join(m.Mine, "moved"), 0o644) },
		func() error { return os.Remove(filepath.Join(m.Mine, "moved")) },
		func() error { return exec.Command("/bin/true").Run() },
		func() error {
			conn, err := net.Dial("tcp", m.Peer)
			if err == nil {
				conn.Close()
			}
			return err
		},
	} {
		// On another thread each.
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- deed()
		}()
		if err := <-done; err != nil {
			return err
		}
	}
	return nil
}

func found(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("want that nothing is there: %w", err)
}

// The audit sees what it is there to see.
func TestAuditSeesMisdeeds(t *testing.T) {
	outside, cache := realTempDir(t), realTempDir(t)
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, left := traced(t, task{
		CacheDir: cache,
		Misdeeds: &misdeeds{Secret: secret, Cache: cache, Mine: outside, Peer: listener.Addr().String()},
	}, fence{write: []string{cache}})
	for _, want := range []string{
		fmt.Sprintf("reads %q", secret),
		fmt.Sprintf("looks at %q", secret+"-stat"),
		fmt.Sprintf("makes the link %q", filepath.Join(cache, "link")),
		fmt.Sprintf("changes %q (openat)", filepath.Join(outside, "through\n\"link")),
		fmt.Sprintf("changes %q (mkdirat)", filepath.Join(outside, "folder")),
		fmt.Sprintf("changes %q (renameat)", filepath.Join(outside, "moved")),
		fmt.Sprintf("changes %q (fchmodat)", filepath.Join(outside, "moved")),
		fmt.Sprintf("changes %q (unlinkat)", filepath.Join(outside, "moved")),
		`runs "/bin/true"`,
		"reaches " + listener.Addr().String(),
	} {
		if !slices.Contains(left, want) {
			t.Errorf("%s: not among what was seen: %s", want, strings.Join(left, "; "))
		}
	}
}

// realTempDir is a folder whose path has no links in it, as strace prints it.
func realTempDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

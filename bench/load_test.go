// Package bench measures what the whole of Kokoa must reach.
package bench

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/schema"
)

func TestMain(m *testing.M) {
	schema.RunIfWorker()
	os.Exit(m.Run())
}

// BenchmarkLoadCold10k loads a repo of 10,000 routes in 10,000 files with nothing
// cached. Wanted on two cores: 4 s and 200 MiB, for the parent and each child.
func BenchmarkLoadCold10k(b *testing.B) {
	tree := newFleetTree(10_000)
	peak := watchPeak(b)
	for b.Loop() {
		loader := schema.NewLoader(schema.Options{})
		load(b, loader, tree, 10_000)
		if err := loader.Close(); err != nil {
			b.Fatal(err)
		}
	}
	peak.report(b)
}

// BenchmarkLoadOneChanged10k loads the same repo with one file changed, by a
// loader that has seen the others. Wanted: 150 ms.
func BenchmarkLoadOneChanged10k(b *testing.B) {
	tree := newFleetTree(10_000)
	loader := schema.NewLoader(schema.Options{})
	defer loader.Close()
	load(b, loader, tree, 10_000)
	peak := watchPeak(b)
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		tree.set("routes/r5000.cue", routeFile(5000, 9000+n%1000))
		b.StartTimer()
		load(b, loader, tree, 10_000)
	}
	peak.report(b)
}

// BenchmarkLoadSecondProcess10k loads the same repo with only the cache on disk.
func BenchmarkLoadSecondProcess10k(b *testing.B) {
	tree := newFleetTree(10_000)
	folder := b.TempDir()
	first := schema.NewLoader(schema.Options{CacheDir: folder})
	load(b, first, tree, 10_000)
	first.Close()
	peak := watchPeak(b)
	for b.Loop() {
		loader := schema.NewLoader(schema.Options{CacheDir: folder})
		load(b, loader, tree, 10_000)
		loader.Close()
	}
	peak.report(b)
}

func load(b *testing.B, l *schema.Loader, tree schema.Tree, routes int) {
	b.Helper()
	f, _, err := l.Load(context.Background(), tree)
	if err != nil {
		b.Fatal(err)
	}
	if len(f.Routes) != routes {
		b.Fatalf("%d routes loaded, want %d", len(f.Routes), routes)
	}
}

// fleetTree is a fleet repo in memory, hashed as Git hashes blobs.
type fleetTree struct {
	texts map[string][]byte
	files []schema.File
	index map[string]int
}

func newFleetTree(routes int) *fleetTree {
	t := &fleetTree{texts: map[string][]byte{}, index: map[string]int{}}
	t.set("fleet.cue", `package fleet

fleet: {
	name:    "bench"
	domains: ["kokoa.test"]
	network: "10.86.0.0/16"
	dns: provider: "builtin"
}
`)
	for i, name := range []string{"tokyo", "osaka"} {
		t.set("edges/"+name+".cue", fmt.Sprintf(`package fleet

edge: %s: {
	addresses:      ["203.0.113.%d"]
	endpoint:       "203.0.113.%d:51820"
	tunnel_address: "10.86.0.%d"
}
`, name, 10+i, 10+i, 16+i))
	}
	t.set("origins/vm1.cue", `package fleet

origin: vm1: {
	public_key:     "n0pHPZYKxWlIt3qL+yQAq8iJmZ0p4kO6E0E8pZfHnWo="
	tunnel_address: "10.86.1.1"
}
`)
	for i := range routes {
		t.set(fmt.Sprintf("routes/r%d.cue", i), routeFile(i, 3000))
	}
	return t
}

func routeFile(i, port int) string {
	return fmt.Sprintf(`package fleet

// Tenant number %d.
route: r%d: {
	host:    "r%d.kokoa.test"
	origin:  "vm1"
	service: "http://localhost:%d"
	tls:     "internal"
}
`, i, i, i, port)
}

func (t *fleetTree) set(path, text string) {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00%s", len(text), text)
	t.texts[path] = []byte(text)
	f := schema.File{Path: path, Hash: hex.EncodeToString(h.Sum(nil))}
	if i, ok := t.index[path]; ok {
		t.files[i] = f
		return
	}
	t.index[path] = len(t.files)
	t.files = append(t.files, f)
}

func (t *fleetTree) Files() []schema.File { return t.files }

func (t *fleetTree) Read(path string) ([]byte, error) {
	text, ok := t.texts[path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return text, nil
}

// peaks are the largest resident sets seen, of this process and of any child.
type peaks struct {
	mu            sync.Mutex
	parent, child int64
	stop          chan struct{}
	stopped       sync.WaitGroup
}

// watchPeak looks at the processes' own high-water marks until report.
func watchPeak(b *testing.B) *peaks {
	// Sets this process's mark back to now; without it, an earlier benchmark's counts.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
	p := &peaks{stop: make(chan struct{})}
	p.stopped.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			p.look()
			select {
			case <-p.stop:
				return
			case <-tick.C:
			}
		}
	})
	return p
}

func (p *peaks) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parent = max(p.parent, highWater("self"))
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		text, _ := os.ReadFile(t)
		for _, pid := range strings.Fields(string(text)) {
			p.child = max(p.child, highWater(pid))
		}
	}
}

func (p *peaks) report(b *testing.B) {
	close(p.stop)
	p.stopped.Wait()
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/load")
	b.ReportMetric(float64(p.parent)/1024, "parent-peak-MiB")
	b.ReportMetric(float64(p.child)/1024, "child-peak-MiB")
}

// highWater is a process's largest resident set, in KiB.
func highWater(pid string) int64 {
	f, err := os.Open("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

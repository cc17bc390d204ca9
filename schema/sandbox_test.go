package schema

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// bombs are files that would take all the time or memory there is.
var bombs = map[string]string{
	"fields of a huge list": `import "list"
route: a: {for i in list.Range(0, 1000000, 1) {"f\(i)": i}}`,
	"huge list as value": `import "list"
route: a: edges: list.Range(0, 1000000, 1)`,
	"million routes": `import "list"
for i in list.Range(0, 1000000, 1) {
	route: "r\(i)": {host: "r\(i).kokoa.test", origin: "vm1", service: "http://x:1", tls: "internal"}
}`,
	"laughing strings": `_s0: "haha"
` + levels(40, `_s%[2]d: "\(_s%[1]d)\(_s%[1]d)"`) + `route: a: host: _s40`,
	"laughing structs": `_s0: {host: "a", b: {}}
` + levels(25, `_s%[2]d: {a: _s%[1]d, b: _s%[1]d}`) + `route: a: _s25`,
	"laughing value": `_s0: {a: 1}
` + levels(25, `_s%[2]d: {a: _s%[1]d, b: _s%[1]d}`) + `route: a: host: _s25`,
	"laughing lists": `import "list"
_s0: ["tokyo", "osaka"]
` + levels(25, `_s%[2]d: list.Concat([_s%[1]d, _s%[1]d])`) + `route: a: edges: _s25`,
	"nested comprehensions": `_l: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
route: a: edges: [for a in _l for b in _l for c in _l for d in _l for e in _l for f in _l for g in _l for h in _l {"x\(a)\(b)\(c)\(d)\(e)\(f)\(g)\(h)"}]`,
	"cross product": `_d: ` + strings.Repeat(`({a: 1} | {b: 1} | {c: 1} | {d: 1}) & `, 14) + `_
route: a: _d`,
	"huge string": `import "strings"
route: a: host: strings.Repeat("x", 20000000000)`,
	"huge number": `import "math"
route: a: host: "\(math.Pow(7.123456789123456789, 99999999))"`,
	"deep brackets": `route: a: ` + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000),
	"deep structs":  `route: ` + strings.Repeat("{a:", 150_000) + "1" + strings.Repeat("}", 150_000),
	"deep fields":   `route: ` + strings.Repeat("a:", 200_000) + "1",
	"deep sums":     `route: a: x: ` + strings.Repeat("(1+", 150_000) + "1" + strings.Repeat(")", 150_000),
	"self":          `#f: {n: int, next: #f & {n: 1}}` + "\nroute: a: #f",
	"heavy pattern": `route: a: host: "` + strings.Repeat("a", 100_000) + `" & =~"(x+x+)+y(.{0,999}){0,1}(.{0,999}){0,1}"`,
}

func levels(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format+"\n", i, i+1)
	}
	return b.String()
}

// TestBombs loads each bomb beside a good file and one with a mistake: the bomb
// is reported at its file, the mistake too, and the loader goes on.
func TestBombs(t *testing.T) {
	for name, text := range bombs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLoader(t, Options{Limits: Limits{Time: 2 * time.Second, Memory: 384 << 20}})
			good := memory{"fleet.cue": baseFleet, "good.cue": routeText("good", "vm1")}
			bad := maps.Clone(good)
			bad["bomb.cue"] = "package fleet\n" + text
			bad["other.cue"] = routeText("other", "vm2")
			bomb, other := false, false
			for _, d := range mistakes(t, l, bad) {
				switch d.Position.File {
				case "bomb.cue":
					bomb = true
				case "other.cue":
					other = d.Code == CodeUnknownName
				default:
					t.Errorf("a mistake was reported elsewhere: %v", d)
				}
			}
			if !bomb || !other {
				t.Errorf("reported the bomb: %t, and the other mistake: %t", bomb, other)
			}
			f, _, err := l.Load(context.Background(), good)
			if err != nil {
				t.Fatalf("the next load failed: %v", err)
			}
			if _, ok := f.Routes["good"]; !ok {
				t.Error("the next load lost a route")
			}
		})
	}
}

// TestBombReasons says which limit ended a file.
func TestBombReasons(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"nested comprehensions": "the file took longer than 2s to evaluate",
		"million routes":        "the file needs more than 256 MiB of memory to evaluate",
		"deep brackets":         "nesting depth",
	} {
		l := newLoader(t, Options{Limits: Limits{Time: 2 * time.Second, Memory: 256 << 20}})
		if name == "million routes" {
			l = newLoader(t, Options{Limits: Limits{Time: time.Minute, Memory: 256 << 20}})
		}
		got := mistakes(t, l, memory{"fleet.cue": baseFleet, "bomb.cue": "package fleet\n" + bombs[name]})
		if len(got) != 1 || !strings.Contains(got[0].Message, want) || got[0].Position.File != "bomb.cue" {
			t.Errorf("%s: told %v, want %q alone", name, got, want)
		}
	}
}

// TestFaultIsRemembered: the same bomb is not tried again at every load, and is
// after a while.
func TestFaultIsRemembered(t *testing.T) {
	t.Parallel()
	now := today
	l := NewLoader(Options{Now: func() time.Time { return now }, Limits: Limits{Time: 2 * time.Second}})
	defer l.Close()
	tree := memory{"fleet.cue": baseFleet, "bomb.cue": "package fleet\n" + bombs["nested comprehensions"]}
	for i, want := range []int{1, 0, 1} {
		if i == 2 {
			now = now.Add(faultMemory)
		}
		mistakes(t, l, tree)
		if l.stats.ended != want {
			t.Errorf("load %d ended %d evaluations, want %d", i, l.stats.ended, want)
		}
	}
}

// TestManyBombs: so many are tried, and then the rest of the repo is left out.
func TestManyBombs(t *testing.T) {
	t.Parallel()
	l := newLoader(t, Options{Limits: Limits{Time: time.Second}})
	tree := memory{"fleet.cue": baseFleet}
	for i := range 2 * maxFaults {
		tree[fmt.Sprintf("bomb%02d.cue", i)] = fmt.Sprintf("package fleet\n// %d\n%s", i, bombs["nested comprehensions"])
	}
	got := mistakes(t, l, tree)
	left := 0
	for _, d := range got {
		if d.Position.File == "" && strings.Contains(d.Message, "not checked") {
			left++
		}
	}
	if ended := len(got) - left; left != 1 || ended < maxFaults || ended > maxFaults+parallel {
		t.Errorf("%d files were reported and %d times the rest, want about %d and 1:\n%v", ended, left, maxFaults, got)
	}
}

// TestLibraryBombs: a library file that does not end is found, alone or by what
// it does with the others, and the rest is still checked.
func TestLibraryBombs(t *testing.T) {
	t.Parallel()
	bomb := "package fleet\n_l: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n#L: [for a in _l for b in _l for c in _l for d in _l for e in _l for f in _l for g in _l for h in _l {\"x\\(a)\\(b)\"}]\n"
	used := "package fleet\nroute: used: #Web & {host: \"used.kokoa.test\"}\n"
	web := "package fleet\n#Web: {origin: \"vm2\", service: \"http://x:1\", ...}\n"
	for name, c := range map[string]struct {
		tree memory
		at   string
		want []string // codes of the others
	}{
		"alone": {memory{"a.cue": bomb, "b.cue": web, "used.cue": used}, "a.cue", []string{"used.cue K1101"}},
		"together": {memory{
			"a.cue": "package fleet\n_l: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n",
			"b.cue": "package fleet\n" + strings.SplitN(bomb, "\n", 3)[2],
			"c.cue": routeText("other", "vm2"), "used.cue": used, "web.cue": web,
		}, "a.cue", []string{"c.cue K1101"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoader(t, Options{Limits: Limits{Time: 2 * time.Second}})
			c.tree["fleet.cue"] = baseFleet
			var others []string
			found := false
			for _, d := range mistakes(t, l, c.tree) {
				if d.Position.File == c.at && d.Code == CodeLimit {
					found = true
					continue
				}
				others = append(others, d.Position.File+" "+string(d.Code))
			}
			if !found || !slices.Equal(others, c.want) {
				t.Errorf("found the bomb: %t; others: %q, want %q", found, others, c.want)
			}
		})
	}
}

// TestLimits: numbers and sizes that are too large are told as such.
func TestLimits(t *testing.T) {
	long := "// " + strings.Repeat("x", 2000) + "\n"
	for name, c := range map[string]struct {
		limits Limits
		tree   memory
		want   string
	}{
		"files":        {Limits{Files: 2}, memory{"x.cue": routeText("x", "vm1"), "y.cue": routeText("y", "vm1")}, "the repo has 3 *.cue files, and 2 may be"},
		"file size":    {Limits{FileSize: 1500}, memory{"x.cue": long + routeText("x", "vm1")}, "bytes, and 1 KiB may be"},
		"total size":   {Limits{TotalSize: 4500}, memory{"x.cue": long + routeText("x", "vm1"), "y.cue": long + "//\n" + routeText("y", "vm1")}, "the repo's *.cue files have more than 4 KiB"},
		"output":       {Limits{Output: 2000}, memory{"x.cue": manyRoutes("x", 50)}, "the file grows to more than 1 KiB when it is evaluated"},
		"total output": {Limits{TotalOutput: 5000}, memory{"x.cue": manyRoutes("x", 50), "y.cue": manyRoutes("y", 50)}, "the repo grows to more than 4 KiB"},
		"list":         {Limits{}, memory{"x.cue": "package fleet\nimport \"list\"\nroute: x: {host: \"x.kokoa.test\", origin: \"vm1\", service: \"http://x:1\", edges: [for i in list.Range(0, 1001, 1) {\"e\\(i)\"}]}"}, "edges has more than 1000 elements"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoader(t, Options{Limits: c.limits})
			c.tree["fleet.cue"] = baseFleet
			var messages []string
			for _, d := range mistakes(t, l, c.tree) {
				messages = append(messages, d.Message)
			}
			if !slices.ContainsFunc(messages, func(m string) bool { return strings.Contains(m, c.want) }) {
				t.Errorf("told %q, want %q", messages, c.want)
			}
		})
	}
}

// TestTotalTime: many files that are each quick enough still come to an end.
func TestTotalTime(t *testing.T) {
	t.Parallel()
	l := newLoader(t, Options{Limits: Limits{Time: time.Minute, TotalTime: 2 * time.Second}})
	got := mistakes(t, l, memory{"fleet.cue": baseFleet, "bomb.cue": "package fleet\n" + bombs["nested comprehensions"]})
	if len(got) != 1 || got[0].Message != "the repo takes longer than 2s to evaluate" {
		t.Errorf("told %v", got)
	}
}

func TestLoadEndsWithItsContext(t *testing.T) {
	l := newLoader(t, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	tree := cancelTree{memory{"fleet.cue": baseFleet, "bomb.cue": "package fleet\n" + bombs["nested comprehensions"]}, cancel}
	if _, _, err := l.Load(ctx, tree); !errors.Is(err, context.Canceled) {
		t.Errorf("load gave %v, want context.Canceled", err)
	}
	if _, _, err := l.Load(context.Background(), memory{"fleet.cue": baseFleet}); err != nil {
		t.Errorf("the next load gave %v", err)
	}
}

// cancelTree cancels a load when its files are read.
type cancelTree struct {
	memory
	cancel func()
}

func (c cancelTree) Read(p string) ([]byte, error) {
	c.cancel()
	return c.memory.Read(p)
}

func TestClosed(t *testing.T) {
	l := newLoader(t, Options{})
	tree := cancelTree{memory{"fleet.cue": baseFleet, "bomb.cue": "package fleet\n" + bombs["nested comprehensions"]}, func() { go l.Close() }}
	if _, _, err := l.Load(context.Background(), tree); !errors.Is(err, ErrClosed) {
		t.Errorf("the load that ran gave %v, want ErrClosed", err)
	}
	if _, _, err := l.Load(context.Background(), memory{"fleet.cue": baseFleet}); !errors.Is(err, ErrClosed) {
		t.Errorf("a load after it gave %v, want ErrClosed", err)
	}
}

// TestConcurrentLoads: several callers share one loader.
func TestConcurrentLoads(t *testing.T) {
	l := newLoader(t, Options{})
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			name := fmt.Sprintf("r%d", i)
			f, _, err := l.Load(context.Background(), memory{"fleet.cue": baseFleet, "r.cue": routeText(name, "vm1")})
			if err != nil {
				t.Error(err)
				return
			}
			if _, ok := f.Routes[name]; !ok {
				t.Errorf("the fleet has not its own route %s", name)
			}
		})
	}
	group.Wait()
}

func routeText(name, origin string) string {
	return fmt.Sprintf("package fleet\n\nroute: %s: {\n\thost:    \"%s.kokoa.test\"\n\torigin:  \"%s\"\n\tservice: \"http://x:1\"\n}\n", name, name, origin)
}

func manyRoutes(prefix string, n int) string {
	var b strings.Builder
	b.WriteString("package fleet\n")
	for i := range n {
		fmt.Fprintf(&b, "route: %s%d: {host: \"%s%d.kokoa.test\", origin: \"vm1\", service: \"http://x:1\"}\n", prefix, i, prefix, i)
	}
	return b.String()
}

// mistakes are what a load of a wrong tree tells.
func mistakes(t *testing.T, l *Loader, tree Tree) Diagnostics {
	t.Helper()
	_, _, err := l.Load(context.Background(), tree)
	var d Diagnostics
	if !errors.As(err, &d) {
		t.Fatalf("load gave %v, want diagnostics", err)
	}
	return d.Errors()
}

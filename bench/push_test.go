package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/reconciler"
)

// fleetSize is the number of routes that the goals are stated for.
const fleetSize = 10_000

// The goals, on a machine of two cores.
const (
	pushGoal = 1500 * time.Millisecond
	planGoal = time.Second
)

// BenchmarkPushToLive measures a `git push` in a fleet of 10,000 routes in 10,000
// files: from the start of the push until the new route is answered on both edges
// and in DNS. It reports the median, and that of the plan's own time.
func BenchmarkPushToLive(b *testing.B) {
	dir := b.TempDir()
	kokoa := filepath.Join(dir, "kokoa-under-test")
	build := exec.Command("go", "build", "-o", kokoa, "../cmd/kokoa")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	d := demotest.Start(b, kokoa, filepath.Join(dir, "demo"))
	d.Ready()
	both := d.Addresses()
	clone := filepath.Join(dir, "clone")
	demotest.Git(b, "", "clone", "-q", d.File.Repo, clone)
	service := demotest.Service(b, clone, "app.cue")
	for i := range fleetSize {
		folder := filepath.Join(clone, "routes", fmt.Sprintf("%02d", i%100))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			b.Fatal(err)
		}
		demotest.Write(b, filepath.Join(folder, fmt.Sprintf("r%05d.cue", i)), pushedRoute(i, "r", service))
	}
	push(b, clone, "10,000 routes")
	demotest.Eventually(b, 3*time.Minute, func() error { return d.Answers("r09999.kokoa.test", both) })
	demotest.Eventually(b, 3*time.Minute, func() error { return d.Phase(reconciler.Settled, "") })

	var pushes []time.Duration
	for b.Loop() {
		i := len(pushes)
		demotest.Write(b, filepath.Join(clone, "routes", "new.cue"), pushedRoute(i, "new", service))
		demotest.Git(b, clone, "add", ".")
		demotest.Git(b, clone, "commit", "-qm", "One more")
		began := time.Now()
		demotest.Git(b, clone, "push", "-q")
		host := fmt.Sprintf("new%05d.kokoa.test", i)
		demotest.Eventually(b, time.Minute, func() error { return d.Everywhere("https://"+host+"/", 200, host) })
		demotest.Eventually(b, time.Minute, func() error { return d.Answers(host, both) })
		pushes = append(pushes, time.Since(began))
		demotest.Eventually(b, time.Minute, func() error { return d.Phase(reconciler.Settled, "") })
	}
	slices.Sort(pushes)
	median := pushes[len(pushes)/2]
	b.ReportMetric(float64(median.Milliseconds()), "ms/push")
	if median > pushGoal {
		b.Errorf("median of %d pushes is %s, goal %s", len(pushes), median, pushGoal)
	}

	// `kokoa plan` as a person runs it, with its own start.
	var plans []time.Duration
	for range 5 {
		began := time.Now()
		if code, out := d.Kokoa(clone, "plan", "--detailed-exitcode"); code != 0 {
			b.Fatalf("plan: exit %d\n%s", code, out)
		}
		plans = append(plans, time.Since(began))
	}
	slices.Sort(plans)
	b.ReportMetric(float64(plans[2].Milliseconds()), "ms/plan")
	if plans[2] > planGoal {
		b.Errorf("median of 5 plans is %s, goal %s", plans[2], planGoal)
	}
}

func pushedRoute(i int, prefix, service string) string {
	name := fmt.Sprintf("%s%05d", prefix, i)
	return strings.NewReplacer("NAME", name, "SERVICE", service).Replace(`package fleet

route: NAME: {
	host:    "NAME.kokoa.test"
	origin:  "vm1"
	service: "SERVICE"
	tls:     "internal"
}
`)
}

func push(b *testing.B, clone, message string) {
	b.Helper()
	demotest.Git(b, clone, "add", ".")
	demotest.Git(b, clone, "commit", "-qm", message)
	demotest.Git(b, clone, "push", "-q")
}

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

// pushes is how many are made: enough for a median, however fast they are.
const pushes = 9

// BenchmarkPushToLive measures a `git push` in a fleet of 10,000 routes in 10,000
// files: from the start of the push until the new route is answered on both edges
// and in DNS. Wanted on two cores: a median of 1.5 s, and 1 s for `kokoa plan` as a
// process of its own.
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
	demotest.Git(b, clone, "add", ".")
	demotest.Git(b, clone, "commit", "-qm", "10,000 routes")
	demotest.Git(b, clone, "push", "-q")
	demotest.Eventually(b, 3*time.Minute, func() error { return d.Answers("r09999.kokoa.test", both) })
	demotest.Eventually(b, 3*time.Minute, func() error { return d.Phase(reconciler.Settled, "") })

	var push, plan []time.Duration
	for b.Loop() {
		for i := range pushes {
			demotest.Write(b, filepath.Join(clone, "routes", "new.cue"), pushedRoute(len(push), "new", service))
			host := fmt.Sprintf("new%05d.kokoa.test", len(push))
			demotest.Git(b, clone, "add", ".")
			demotest.Git(b, clone, "commit", "-qm", fmt.Sprintf("Push %d", i))
			began := time.Now()
			demotest.Git(b, clone, "push", "-q")
			demotest.Eventually(b, time.Minute, func() error { return d.Everywhere("https://"+host+"/", 200, host) })
			demotest.Eventually(b, time.Minute, func() error { return d.Answers(host, both) })
			push = append(push, time.Since(began))
			demotest.Eventually(b, time.Minute, func() error { return d.Phase(reconciler.Settled, "") })
		}
	}
	for range pushes {
		began := time.Now()
		if code, out := d.Kokoa(clone, "plan", "--detailed-exitcode"); code != 0 {
			b.Fatalf("plan: exit %d\n%s", code, out)
		}
		plan = append(plan, time.Since(began))
	}
	slices.Sort(push)
	slices.Sort(plan)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(push[len(push)/2].Milliseconds()), "ms/push")
	b.ReportMetric(float64(push[len(push)-1].Milliseconds()), "ms/slowest-push")
	b.ReportMetric(float64(plan[len(plan)/2].Milliseconds()), "ms/plan")
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

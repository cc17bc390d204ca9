package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kokoa-proxy/kokoa/demo/demotest"
	"github.com/kokoa-proxy/kokoa/internal/logtest"
	"github.com/kokoa-proxy/kokoa/internal/nettest"
	"github.com/kokoa-proxy/kokoa/keys"
)

// fresh is a host of its own files where it matters, without systemd, that nobody has
// installed anything on.
type fresh struct {
	*internet
	name string
	dir  string
}

// newFresh puts a fresh host behind the core router. It knows some names.
func (i *internet) newFresh(name string, address netip.Prefix, names map[string]netip.Addr) *fresh {
	i.t.Helper()
	f := &fresh{i, name, filepath.Join(i.dir, name+"-files")}
	i.hosts[name] = nettest.NewHost(i.t, name)
	i.join("core", name, address)
	for _, d := range []string{"run", "bin", "lib"} {
		if err := os.MkdirAll(filepath.Join(f.dir, d), 0o755); err != nil {
			i.t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "-a", "/etc", filepath.Join(f.dir, "etc")).CombinedOutput(); err != nil {
		i.t.Fatalf("%v: %s", err, out)
	}
	hosts := "127.0.0.1 localhost\n"
	for n, a := range names {
		hosts += a.String() + " " + n + "\n"
	}
	if err := os.WriteFile(filepath.Join(f.dir, "etc", "hosts"), []byte(hosts), 0o644); err != nil {
		i.t.Fatal(err)
	}
	return f
}

// start starts a shell's line on the host, as root.
func (f *fresh) start(line string, env ...string) (*exec.Cmd, *logtest.Buffer) {
	f.t.Helper()
	cmd, out := exec.Command("bash", "-c", line), &logtest.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, env...)
	err := f.hosts[f.name].StartMounted(cmd, func() error {
		var failed []error
		for from, to := range map[string]string{"run": "/run", "bin": "/usr/local/bin", "lib": "/var/lib", "etc": "/etc"} {
			failed = append(failed, unix.Mount(filepath.Join(f.dir, from), to, "", unix.MS_BIND, ""))
		}
		return errors.Join(failed...)
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return cmd, out
}

func (f *fresh) run(line string, env ...string) (string, error) {
	f.t.Helper()
	cmd, out := f.start(line, env...)
	err := cmd.Wait()
	return out.String(), err
}

// kokoa is a command on the control plane's host.
func (l *lab) kokoa(args ...string) string {
	l.t.Helper()
	cmd := exec.Command(filepath.Join(l.bin, "kokoa"), append(args, "--repo", l.repo, "--state", filepath.Join(l.dir, "state"))...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("kokoa %v: %v\n%s%s", args, err, &out, &said)
	}
	return strings.TrimSpace(out.String())
}

// A fresh host, as root and without systemd, installs the agent from the control
// plane, which the fleet itself publishes, is approved, serves, and is clean again.
func TestAFreshHostJoins(t *testing.T) {
	onInternet(t, func(i *internet) {
		const host = "control.example.com"
		key, err := keys.NewPrivate()
		if err != nil {
			t.Fatal(err)
		}
		console := &node{name: "console", tunnel: netip.AddrFrom4([4]byte{10, 86, 1, 3}), key: key, launch: i.launch("control")}
		i.agents = append(i.agents, console)
		downloads, root := filepath.Join(i.dir, "downloads"), filepath.Join(i.dir, "root.pem")
		if err := errors.Join(
			os.Mkdir(downloads, 0o755),
			os.Symlink(filepath.Join(i.bin, "kokoa-agent"), filepath.Join(downloads, "kokoa-agent-linux-"+runtime.GOARCH)),
			os.WriteFile(root, i.issuer.RootPEM, 0o644),
		); err != nil {
			t.Fatal(err)
		}
		i.kill(i.control)
		i.joinAddr = "127.0.0.1:7081"
		i.control.args = i.serve("state", "--join-url", "https://"+host, "--agents", downloads)
		i.start(i.control)
		i.origin(console)
		i.write("route-control.cue", fmt.Sprintf("package fleet\n\nroute: control: {host: %q, origin: \"console\", service: \"http://127.0.0.1:7081\"}\n", host))
		i.push("Publish the join API")
		i.startAgents()
		demotest.Eventually(t, limit, func() error {
			code, body, err := i.ask("https://" + host + "/join/v1")
			if err != nil || code != 200 || !strings.Contains(body, `"fleet":"acme-co"`) {
				return fmt.Errorf("%d %q %w", code, body, err)
			}
			return nil
		})

		laptop := i.newFresh("laptop", netip.MustParsePrefix("198.18.0.2/24"), map[string]netip.Addr{host: osakaAddr})
		service := httptest.NewUnstartedServer(http.HandlerFunc(page))
		service.Listener.Close()
		service.Listener = i.listen("laptop", netip.MustParseAddrPort("127.0.0.1:3000"))
		service.Start()
		t.Cleanup(service.Close)

		line := fmt.Sprintf("curl -fsSL --cacert %[1]s https://%[2]s/install.sh | bash -s -- --name laptop --ca %[1]s", root, host)
		if out, err := laptop.run(line, "KOKOA_TOKEN=nonsense"); err == nil || !strings.Contains(out, "not a join token") {
			t.Errorf("a wrong token: %v\n%s", err, out)
		}
		token := i.kokoa("token", "create", "--secret-file", filepath.Join(i.dir, "secret"), "--name", "laptop")
		installing, said := laptop.start(line, "KOKOA_TOKEN="+token)
		demotest.Eventually(t, limit, func() error {
			if !strings.Contains(said.String(), "kokoa origin approve laptop") {
				return fmt.Errorf("it is not proposed yet:\n%s", said)
			}
			return nil
		})
		i.kokoa("origin", "approve", "laptop")
		if err := installing.Wait(); err != nil || !strings.Contains(said.String(), `Origin "laptop" is now registered!`) {
			t.Fatalf("%v\n%s", err, said)
		}
		t.Logf("the terminal:\n%s", said)

		demotest.Git(t, i.clone, "pull", "-q", "--rebase", "origin", "main")
		i.write("route-laptop.cue", "package fleet\n\nroute: laptop: {host: \"laptop.example.com\", origin: \"laptop\", service: \"http://127.0.0.1:3000\"}\n")
		i.push("Publish the laptop")
		i.live("laptop.example.com")

		if out, err := laptop.run("kokoa-agent status && kokoa-agent health"); err != nil || !strings.Contains(out, "osaka") || !strings.Contains(out, "tun") {
			t.Errorf("status: %v\n%s", err, out)
		}
		// The host reboots: without systemd somebody has to start it, as it said.
		if out, err := laptop.run("kill -9 $(cat /var/lib/kokoa-agent/agent.pid)"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		demotest.Eventually(t, limit, func() error {
			if out, err := laptop.run("kokoa-agent health"); err == nil {
				return fmt.Errorf("a dead agent is healthy: %s", out)
			}
			return nil
		})
		if out, err := laptop.run("kokoa-agent install"); err != nil {
			t.Errorf("start it again: %v\n%s", err, out)
		}
		i.live("laptop.example.com")

		if out, err := laptop.run("kokoa-agent uninstall --yes"); err != nil {
			t.Errorf("uninstall: %v\n%s", err, out)
		}
		for _, d := range []string{"bin", "lib", "etc/kokoa-agent", "run"} {
			err := filepath.WalkDir(filepath.Join(laptop.dir, d), func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					t.Errorf("%s is left", path)
				}
				return err
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
		if i.device("laptop") {
			time.Sleep(time.Second)
			if i.device("laptop") {
				t.Error("its network device is left")
			}
		}
		i.kokoa("origin", "remove", "laptop", "--with-routes")
		demotest.Eventually(t, limit, func() error { return i.answers("laptop.example.com", nil) })
	})
}

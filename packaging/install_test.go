package packaging_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
	"github.com/kokoa-proxy/kokoa/packaging"
	"github.com/kokoa-proxy/kokoa/registrar/downloads"
)

// agent stands for kokoa-agent: it notes how it was called.
const agent = `#!/bin/sh
# %s
case $1 in
version) echo "kokoa-agent v1.2.3 go1.26.0 linux/arm64"; exit ;;
esac
printf '%%s\n' "$@" >"$RECORD"
printf 'token=%%s\n' "${KOKOA_TOKEN-none}" >>"$RECORD"
echo "the agent speaks"
[ "$1 $6" != "install --break" ] || exit 7
`

// system is what a host is made of, as far as the script sees it.
type system struct {
	name  string
	shell []string
	get   string
	// busybox is one program in place of most others, as on Alpine.
	busybox bool
}

// tools are the programs that the script may find; what is not named it cannot use.
var tools = strings.Fields("openssl awk head mktemp mv chmod date rm sed sort wc stty")

var systems = []system{
	{"dash and curl", []string{"dash"}, "curl", false},
	{"bash and curl", []string{"bash"}, "curl", false},
	{"bash and wget", []string{"bash"}, "wget", false},
	{"busybox", []string{"busybox", "sh"}, "wget", true},
}

// host is one on which the script runs: all that it may change is below dir.
type host struct {
	system
	dir  string
	path string
	env  []string
}

func newHost(t *testing.T, s system, uname string) *host {
	t.Helper()
	h := &host{system: s, dir: t.TempDir(), path: t.TempDir()}
	for _, dir := range []string{"tmp", "home/.local/bin", "prefix/usr/local/bin"} {
		if err := os.MkdirAll(filepath.Join(h.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range append([]string{s.get}, tools...) {
		from := tool
		if s.busybox && tool != "openssl" {
			from = "busybox"
		}
		if err := os.Symlink(find(t, from), filepath.Join(h.path, tool)); err != nil {
			t.Fatal(err)
		}
	}
	kernel, machine, _ := strings.Cut(uname, " ")
	h.tool(t, "uname", "case $1 in -s) echo "+kernel+" ;; -m) echo "+machine+" ;; esac")
	h.tool(t, "sleep", "exit 0")
	h.tool(t, "id", "echo 1000")
	h.env = []string{
		"PATH=" + h.path, "HOME=" + filepath.Join(h.dir, "home"), "TMPDIR=" + filepath.Join(h.dir, "tmp"),
		"RECORD=" + filepath.Join(h.dir, "record"),
	}
	return h
}

// find is where a program is; one that is not there is installed by scripts/test.
func find(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%v: install it, as scripts/test does", err)
	}
	return path
}

func (h *host) tool(t *testing.T, name, body string) {
	t.Helper()
	write(t, filepath.Join(h.path, name), "#!/bin/sh\n"+body+"\n")
}

func (h *host) remove(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if err := os.Remove(filepath.Join(h.path, tool)); err != nil {
			t.Fatal(err)
		}
	}
}

// installed puts a kokoa-agent there that calls itself of a version.
func (h *host) installed(t *testing.T, where, version string) {
	t.Helper()
	write(t, filepath.Join(h.dir, where, "bin/kokoa-agent"), "#!/bin/sh\necho kokoa-agent '"+version+"' go1.26.0 linux/arm64\n")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

// result is what came of a call of the script.
type result struct {
	stdout, stderr string
	code           int
	// record is what the agent noted; it is empty when none ran.
	record string
}

// pipe runs the script as "curl … | sh -s -- args" does, without a terminal.
func (h *host) pipe(t *testing.T, script []byte, args ...string) result {
	t.Helper()
	return h.run(t, bytes.NewReader(script), append([]string{"-s", "--", "--prefix", filepath.Join(h.dir, "prefix")}, args...)...)
}

func (h *host) run(t *testing.T, stdin io.Reader, args ...string) (r result) {
	t.Helper()
	cmd := h.command(t, args...)
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	record, err := os.ReadFile(filepath.Join(h.dir, "record"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode(), string(record)}
}

// command is the host's shell. It has a minute.
func (h *host) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	args = append(h.shell[1:len(h.shell):len(h.shell)], args...)
	cmd := exec.CommandContext(ctx, find(t, h.shell[0]), args...)
	cmd.Env, cmd.Dir = h.env, h.dir
	return cmd
}

// tree lists everything on the host with its content.
func (h *host) tree(t *testing.T) string {
	t.Helper()
	var list strings.Builder
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var sum [sha256.Size]byte
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = sha256.Sum256(data)
		}
		// A folder's own time tells of files that came and went; TMPDIR's may.
		changed := info.ModTime()
		if d.Name() == "tmp" {
			changed = time.Time{}
		}
		fmt.Fprintln(&list, path, info.Mode(), changed, fmt.Sprintf("%x", sum))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.String()
}

// control is a control plane that offers downloads, and can be made to lie.
type control struct {
	*httptest.Server
	key *ecdsa.PrivateKey
	// lie may answer in place of the handler, and says whether it did.
	lie    atomic.Pointer[func(http.ResponseWriter, *http.Request, http.Handler) bool]
	script []byte
}

// newControl offers the agent for linux/arm64 and linux/amd64 in version 1.2.3.
func newControl(t *testing.T) *control {
	t.Helper()
	return startControl(t, (*httptest.Server).Start)
}

func startControl(t *testing.T, start func(*httptest.Server)) *control {
	t.Helper()
	secret, err := keys.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, platform := range []string{"linux-arm64", "linux-amd64"} {
		write(t, filepath.Join(dir, "kokoa-agent-"+platform), fmt.Sprintf(agent, platform+strings.Repeat(" padding", 8<<10)))
	}
	c := &control{key: secret.Downloads()}
	var honest http.Handler
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lie := c.lie.Load(); lie != nil && (*lie)(w, r, honest) {
			return
		}
		honest.ServeHTTP(w, r)
	}))
	c.Config.ErrorLog = log.New(io.Discard, "", 0)
	start(c.Server)
	t.Cleanup(c.Close)
	if honest, err = downloads.Open(downloads.Config{Dir: dir, Key: c.key, URL: c.URL, Version: "v1.2.3"}); err != nil {
		t.Fatal(err)
	}
	c.script = c.read(t, "/install.sh")
	return c
}

func (c *control) read(t *testing.T, path string) []byte {
	t.Helper()
	res, err := c.Client().Get(c.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", path, res.Status, err)
	}
	return data
}

// answers makes every answer for a path something else than it was.
func (c *control) answers(path string, change func(body []byte) []byte) {
	lie := func(w http.ResponseWriter, r *http.Request, honest http.Handler) bool {
		if r.URL.Path != path {
			return false
		}
		r.Header.Del("Range")
		was := httptest.NewRecorder()
		honest.ServeHTTP(was, r)
		w.Write(change(was.Body.Bytes()))
		return true
	}
	c.lie.Store(&lie)
}

// signs makes the control plane offer another list, with a good signature of key.
func (c *control) signs(t *testing.T, key *ecdsa.PrivateKey, change func(list string) string) {
	t.Helper()
	c.lie.Store(nil)
	text := change(string(c.read(t, "/join/manifest")))
	digest := sha256.Sum256([]byte(text))
	signature, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	lie := func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch r.URL.Path {
		case "/join/manifest":
			io.WriteString(w, text)
		case "/join/manifest.sig":
			w.Write(signature)
		default:
			return false
		}
		return true
	}
	c.lie.Store(&lie)
}

const agentPath = "/join/agent/kokoa-agent-linux-arm64"

func flip(at int) func([]byte) []byte {
	return func(body []byte) []byte {
		body = bytes.Clone(body)
		body[(at+len(body))%len(body)] ^= 1
		return body
	}
}

func TestInstall(t *testing.T) {
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			c := newControl(t)
			h := newHost(t, s, "Linux aarch64")
			h.env = append(h.env, "KOKOA_TOKEN=kokoa_secret")
			r := h.pipe(t, c.script, "--name", "it's here", "$(reboot)")
			want := "install\n--control\n" + c.URL + "\n--prefix\n" + filepath.Join(h.dir, "prefix") + "\n--name\nit's here\n$(reboot)\ntoken=kokoa_secret\n"
			if r.code != 0 || r.record != want {
				t.Errorf("exit code %d, the agent was called with\n%s\nwant\n%s\n%s", r.code, r.record, want, r.stderr)
			}
			if want := "✓ Downloading kokoa-agent 1.2.3 (linux/arm64)\nthe agent speaks\n"; r.stdout != want || r.stderr != "" {
				t.Errorf("said\n%s%s\nwant\n%s", r.stdout, r.stderr, want)
			}
			write(t, filepath.Join(h.dir, "mine"), "")
			if got, want := mode(t, filepath.Join(h.dir, "record")), mode(t, filepath.Join(h.dir, "mine"))&^0o111; got != want {
				t.Errorf("what the agent writes has mode %v, want this user's %v", got, want)
			}
			if left, _ := filepath.Glob(filepath.Join(h.dir, "tmp", "*")); len(left) > 0 {
				t.Errorf("left %s", left)
			}
			if r := h.pipe(t, c.script, "--break"); r.code != 7 {
				t.Errorf("exit code %d, want the agent's", r.code)
			}
		})
	}
}

// What cannot be trusted, or cannot work, changes nothing and says why.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name  string
		uname string
		args  []string
		set   func(*testing.T, *control, *host)
		want  string
	}{
		{name: "first byte of the program", want: "is not the kokoa-agent that the control plane signed", set: func(_ *testing.T, c *control, _ *host) { c.answers(agentPath, flip(0)) }},
		{name: "last byte of the program", want: "is not the kokoa-agent that the control plane signed", set: func(_ *testing.T, c *control, _ *host) { c.answers(agentPath, flip(-1)) }},
		{name: "a byte of the list", want: "is not signed", set: func(_ *testing.T, c *control, _ *host) { c.answers("/join/manifest", flip(-9)) }},
		{name: "a byte of the signature", want: "is not signed", set: func(_ *testing.T, c *control, _ *host) { c.answers("/join/manifest.sig", flip(-1)) }},
		{name: "no signature", want: "gave no list", set: func(_ *testing.T, c *control, _ *host) {
			c.answers("/join/manifest.sig", func([]byte) []byte { return nil })
		}},
		{name: "an endless list", want: "is not signed", set: func(_ *testing.T, c *control, _ *host) { c.endless("/join/manifest") }},
		{name: "another key", want: "is not signed", set: func(t *testing.T, c *control, _ *host) {
			c.signs(t, newControl(t).key, func(list string) string { return list })
		}},
		{name: "the program of another platform", want: "is not the kokoa-agent that the control plane signed", set: func(t *testing.T, c *control, _ *host) {
			other := c.read(t, "/join/agent/kokoa-agent-linux-amd64")
			c.answers(agentPath, func([]byte) []byte { return other })
		}},
		{name: "the lines of two platforms exchanged", want: "is not signed", set: func(_ *testing.T, c *control, _ *host) {
			c.answers("/join/manifest", func(list []byte) []byte {
				return []byte(strings.NewReplacer("amd64", "arm64", "arm64", "amd64").Replace(string(list)))
			})
		}},
		{name: "an expired list", want: "was good until 2026-01-01T00:00:00Z", set: func(t *testing.T, c *control, _ *host) { c.expires(t, "2026-01-01T00:00:00Z") }},
		{name: "a list that does not say when it expires", want: "was good until", set: func(t *testing.T, c *control, _ *host) { c.expires(t, "") }},
		{name: "a list of another form", want: "too old for the list", set: func(t *testing.T, c *control, _ *host) {
			c.signs(t, c.key, func(list string) string { return strings.Replace(list, "manifest v1", "manifest v2", 1) })
		}},
		{name: "half a program", want: "is not the kokoa-agent that the control plane signed", set: func(_ *testing.T, c *control, _ *host) {
			c.answers(agentPath, func(body []byte) []byte { return body[:len(body)/2] })
		}},
		{name: "no program", want: "is not the kokoa-agent that the control plane signed", set: func(_ *testing.T, c *control, _ *host) {
			c.answers(agentPath, func(body []byte) []byte { return nil })
		}},
		{name: "an endless program", want: "is not the kokoa-agent that the control plane signed", set: func(_ *testing.T, c *control, _ *host) { c.endless(agentPath) }},
		{name: "an older version", want: "kokoa-agent v1.10.0 is installed, and 1.2.3 is older", set: func(t *testing.T, _ *control, h *host) { h.installed(t, "prefix/usr/local", "v1.10.0") }},
		{name: "nobody there", want: "gave no list of downloads", set: func(_ *testing.T, c *control, _ *host) { c.Close() }},
		{name: "no openssl", want: "this needs openssl", set: func(t *testing.T, _ *control, h *host) { h.remove(t, "openssl") }},
		{name: "no awk", want: "this needs awk", set: func(t *testing.T, _ *control, h *host) { h.remove(t, "awk") }},
		{name: "no way to download", want: "this needs curl or wget", set: func(t *testing.T, _ *control, h *host) {
			h.remove(t, h.get)
		}},
		{name: "plain HTTP", want: "does not begin with https://", set: func(t *testing.T, c *control, _ *host) { c.at(t, "http://127.0.0.1.example.com") }},
		{name: "plain HTTP to a name like localhost", want: "does not begin with https://", set: func(t *testing.T, c *control, _ *host) { c.at(t, "http://localhosts") }},
		{name: "a platform that is not offered", uname: "Darwin arm64", want: "has no kokoa-agent for darwin/arm64"},
		{name: "an old ARM", uname: "Linux armv6l", want: "no kokoa-agent for armv6l: it needs ARMv7"},
		{name: "another processor", uname: "Linux riscv64", want: "no kokoa-agent for riscv64"},
		{name: "another system", uname: "FreeBSD amd64", want: "no kokoa-agent for FreeBSD"},
		{name: "a token as an argument", args: []string{"--token", "kokoa_abc"}, want: "can be seen by every user"},
		{name: "a token in an argument", args: []string{"--token=kokoa_abc"}, want: "can be seen by every user"},
		{name: "a bare token", args: []string{"--name", "rpi", "kokoa_abc"}, want: "can be seen by every user"},
	}
	for _, s := range systems {
		for _, test := range tests {
			t.Run(s.name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				if test.uname == "" {
					test.uname = "Linux aarch64"
				}
				c, h := newControl(t), newHost(t, s, test.uname)
				if test.set != nil {
					test.set(t, c, h)
				}
				before := h.tree(t)
				r := h.pipe(t, c.script, test.args...)
				if r.code == 0 || !strings.Contains(r.stderr, "kokoa: ") || !strings.Contains(r.stderr, test.want) {
					t.Errorf("exit code %d, said\n%s\nwant %q", r.code, r.stderr, test.want)
				}
				if strings.Contains(r.stdout, "✓") {
					t.Errorf("said %s", r.stdout)
				}
				if after := h.tree(t); after != before {
					t.Errorf("changed the host, before:\n%s\nafter:\n%s", before, after)
				}
			})
		}
	}
}

func (c *control) endless(path string) {
	lie := func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.URL.Path != path {
			return false
		}
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return true
			}
		}
	}
	c.lie.Store(&lie)
}

func (c *control) expires(t *testing.T, when string) {
	t.Helper()
	c.signs(t, c.key, func(list string) string {
		lines := strings.SplitAfter(list, "\n")
		lines[2] = strings.TrimSpace("expires "+when) + "\n"
		return strings.Join(lines, "")
	})
}

// at makes the script one of a control plane at another address.
func (c *control) at(t *testing.T, url string) {
	t.Helper()
	script, err := packaging.Install(url, &c.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	c.script = script
}

// Versions are compared as semver.org says, section 11.
func TestDowngrade(t *testing.T) {
	c := newControl(t)
	for _, test := range []struct {
		installed, offered string
		refused            bool
	}{
		{"v1.2.3", "1.2.3", false},
		{"1.2.3", "1.2.4", false},
		{"v1.2.3", "1.2.2", true},
		{"v1.9.0", "1.10.0", false},
		{"v1.10.0", "1.9.0", true},
		{"v2.0.0", "10.0.0", false},
		{"v10.0.0", "2.0.0", true},
		{"v1.0.0-rc.1", "1.0.0", false},
		{"v1.0.0", "1.0.0-rc.1", true},
		{"v1.0.0-rc.9", "1.0.0-rc.10", false},
		{"v1.0.0-rc.10", "1.0.0-rc.9", true},
		{"v1.0.0-alpha", "1.0.0-alpha.1", false},
		{"v1.0.0-alpha.1", "1.0.0-alpha", true},
		{"v1.0.0-1", "1.0.0-alpha", false},
		{"v1.0.0-alpha", "1.0.0-1", true},
		{"v1.0.0-beta", "1.0.0-alpha.9", true},
		{"v1.0.0+linux", "1.0.0+other", false},
		{"v0.0.0-20261123131200-0123456789ab", "0.0.0-20261123131201-0000000000ab", false},
		{"v0.0.0-20261123131201-0123456789ab+dirty", "0.0.0-20261123131200-fffffffffffb", true},
		{"(devel)", "1.0.0", false},
		{"(devel)", "(devel)", false},
		{"v1.0.0", "(devel)", true},
		{"v1.0.0", "1.0", true},
		{"", "1.0.0", false},
	} {
		t.Run(test.installed+" to "+test.offered, func(t *testing.T) {
			for _, s := range []system{systems[0], systems[len(systems)-1]} {
				h := newHost(t, s, "Linux aarch64")
				h.installed(t, "home/.local", test.installed)
				c.signs(t, c.key, func(list string) string {
					return strings.Replace(list, "version 1.2.3", "version "+test.offered, 1)
				})
				r := h.run(t, bytes.NewReader(c.script), "-s", "--", "--name", "rpi")
				if refused := r.code != 0 && strings.Contains(r.stderr, "is older"); refused != test.refused || refused != (r.record == "") {
					t.Errorf("%s: refused %v, want %v; exit code %d, said\n%s", s.name, refused, test.refused, r.code, r.stderr)
				}
			}
		})
	}
}

// A download that breaks off goes on where it was.
func TestResume(t *testing.T) {
	for _, s := range systems {
		t.Run(s.name, func(t *testing.T) {
			c, h := newControl(t), newHost(t, s, "Linux aarch64")
			var asked []string
			lie := func(w http.ResponseWriter, r *http.Request, honest http.Handler) bool {
				if r.URL.Path != agentPath {
					return false
				}
				asked = append(asked, r.Header.Get("Range"))
				if len(asked) < 3 {
					honest.ServeHTTP(&short{w, 10_000}, r)
					panic(http.ErrAbortHandler)
				}
				return false
			}
			c.lie.Store(&lie)
			r := h.pipe(t, c.script)
			if want := []string{"", "bytes=10000-", "bytes=20000-"}; r.code != 0 || r.record == "" || fmt.Sprint(asked) != fmt.Sprint(want) {
				t.Errorf("exit code %d, asked for %q, want %q\n%s", r.code, asked, want, r.stderr)
			}
		})
	}
}

// short lets so many bytes of a body through.
type short struct {
	http.ResponseWriter
	left int
}

func (s *short) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	s.left -= n
	if _, err := s.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	if err := http.NewResponseController(s.ResponseWriter).Flush(); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// A control plane with a certificate of its own is trusted when its CA is named.
func TestCA(t *testing.T) {
	for _, s := range systems[:3] {
		t.Run(s.name, func(t *testing.T) {
			c, h := startControl(t, (*httptest.Server).StartTLS), newHost(t, s, "Linux aarch64")
			ca := filepath.Join(t.TempDir(), "ca.pem")
			write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})))
			if r := h.pipe(t, c.script); r.code == 0 || !strings.Contains(r.stderr, "gave no list") {
				t.Errorf("without the CA: exit code %d\n%s", r.code, r.stderr)
			}
			for _, args := range [][]string{{"--ca", ca}, {"--ca=" + ca}} {
				if r := h.pipe(t, c.script, args...); r.code != 0 || !strings.Contains(r.record, strings.Join(args, "\n")+"\n") {
					t.Errorf("%s: exit code %d, %s\n%s", args, r.code, r.stderr, r.record)
				}
			}
		})
	}
}

// However a script is cut off, the shell runs nothing of it. The shells tell by a trace
// what they run, assignments and their own commands among it; other commands are not
// found.
func TestCutOff(t *testing.T) {
	secret, err := keys.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	install, err := packaging.Install("https://control.example.com", &secret.Downloads().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range []system{systems[0], systems[1], systems[3]} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, s, "Linux aarch64")
			h.env = []string{"PATH=" + t.TempDir()}
			before := h.tree(t)
			ran := func(script []byte) bool {
				r := h.run(t, bytes.NewReader(script), "-x", "-s", "--", "--name", "rpi")
				return r.stdout != "" || strings.Contains(r.stderr, "+ ") || strings.Contains(r.stderr, "not found")
			}
			end := bytes.LastIndexByte(install, '}')
			if !ran(install) || !ran(install[:end+1]) {
				t.Fatal("the whole script does not run")
			}
			if !ran([]byte("main")) || !ran([]byte("url='x'\n")) {
				t.Fatal("it cannot be seen what runs")
			}
			for n := i; n < end; n++ {
				if ran(install[:n]) {
					t.Errorf("%d bytes run:\n…%s", n, install[max(0, n-80):n])
				}
				if n < end-400 { // each shell stops at other places
					n += 15
				}
			}
			if after := h.tree(t); after != before {
				t.Errorf("changed the host, before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

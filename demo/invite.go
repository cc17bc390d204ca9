package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

// File is demo.json: what a script needs to drive a running demo.
type File struct {
	// Repo is the path of the bare fleet repo.
	Repo   string     `json:"repo"`
	Branch string     `json:"branch"`
	Edges  []FileEdge `json:"edges"`
	// DNS is the ip:port of the authoritative server.
	DNS string `json:"dns"`
	// CA is the path of a PEM file.
	CA string `json:"ca"`
	// Status is the base URL of the status API.
	Status string      `json:"status"`
	Routes []FileRoute `json:"routes"`
	Agents []FileAgent `json:"agents"`
	// Secret is the path of the fleet secret, Kokoa that of this program.
	Secret string `json:"secret"`
	Kokoa  string `json:"kokoa"`
	// Join is the base URL for hosts that join: install.sh is there.
	Join string `json:"join"`
}

// FileEdge is an edge in File: where visitors reach it, and its process.
type FileEdge struct {
	Name  string `json:"name"`
	HTTPS string `json:"https"`
	HTTP  string `json:"http"`
	PID   int    `json:"pid"`
}

// FileRoute is a route in File. The URL is as visitors write it, without the
// demo's ports.
type FileRoute struct {
	Name string `json:"name"`
	Host string `json:"host"`
	Path string `json:"path"`
	URL  string `json:"url"`
}

// FileAgent is an agent in File.
type FileAgent struct {
	Name string `json:"name"`
}

// describe writes demo.json, last of all: when it is there, everything serves.
func (d *demo) describe() error {
	f := File{
		Repo: d.path("fleet.git"), Branch: "main", DNS: d.dns.String(), CA: d.path("ca.pem"),
		Status: "http://" + d.status.Addr().String(), Secret: d.path("secret"), Kokoa: d.kokoa,
		Join: "http://" + d.join.Addr().String(),
	}
	for _, p := range d.edges {
		f.Edges = append(f.Edges, FileEdge{p.name, p.https.String(), p.http.String(), p.pid})
	}
	for _, r := range d.settled.Routes {
		f.Routes = append(f.Routes, FileRoute{r.Name, r.Host, r.Path, r.URL})
	}
	for _, name := range originNames {
		f.Agents = append(f.Agents, FileAgent{name})
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(d.path("demo.json"), append(data, '\n'), 0o644)
}

// binary puts this program where the visitor can call it after `go run`, which
// removes its own copy at the end, and where hosts download it as their agent: under
// that name it is one.
func (d *demo) binary() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("demo: find this program: %w", err)
	}
	arch := runtime.GOARCH
	if arch == "arm" {
		arch = "armv7"
	}
	kokoa := d.path("bin", "kokoa")
	for _, to := range []string{kokoa, d.path("downloads", "kokoa-agent-"+runtime.GOOS+"-"+arch)} {
		if err := offer(self, to); err != nil {
			return "", fmt.Errorf("demo: %w", err)
		}
	}
	return kokoa, nil
}

// offer makes to the same file as from, or a copy.
func offer(from, to string) error {
	if from == to {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return atomicfile.Write(to, data, 0o700)
}

// invite prints what to try.
func (d *demo) invite() {
	if len(d.settled.Routes) == 0 {
		return
	}
	first, host := d.settled.Routes[0], ""
	for _, r := range d.settled.Routes {
		if r.Name == "blog" {
			first = r
		}
	}
	host = first.Host
	b := &strings.Builder{}
	fmt.Fprintf(b, "\nIt is live. Try, in another terminal:\n\n  cd %s\n\n", d.dir)
	for _, p := range d.edges {
		fmt.Fprintf(b, "  curl --cacert ca.pem --connect-to %s:443:%s https://%s%s    # through %s\n", host, p.https, host, first.Path, p.name)
	}
	fmt.Fprintf(b, "  dig @%s -p %d %s +short\n", d.dns.Addr(), d.dns.Port(), host)
	fmt.Fprintf(b, "  curl %s/api/v1/status\n\n", "http://"+d.status.Addr().String())
	hint := func(command, comment string) { fmt.Fprintf(b, "  %-58s # %s\n", command, comment) }
	fmt.Fprintf(b, "Change something: a push is live in about a second, and what it did is told here.\n\n")
	fmt.Fprintf(b, "  git clone -q fleet.git clone && cd clone\n")
	fmt.Fprintf(b, "  sed -i 's/%s/hello.kokoa.test/' routes/%s.cue\n", host, first.Name)
	hint("../bin/kokoa plan", "what would change")
	fmt.Fprintf(b, "  git commit -qam 'Say hello' && git push -q\n")
	fmt.Fprintf(b, "  curl --cacert ../ca.pem --connect-to hello.kokoa.test:443:%s https://hello.kokoa.test/\n\n", d.edges[0].https)
	fmt.Fprintf(b, "Let another host join, in %s; it waits until you approve its pull request:\n\n", d.dir)
	fmt.Fprintf(b, "  curl -fsSL http://%s/install.sh | KOKOA_TOKEN=$(bin/kokoa token create --repo fleet.git --name laptop 2>/dev/null) bash -s -- --name laptop --prefix laptop --tunnel userspace\n", d.join.Addr())
	hint("bin/kokoa origin approve laptop --repo fleet.git", "in another terminal")
	b.WriteByte('\n')
	fmt.Fprintf(b, "Break something, in %s:\n\n", d.dir)
	hint(fmt.Sprintf("kill -9 %d", d.edges[0].pid), "edge "+d.edges[0].name+": the other serves, DNS follows")
	hint(fmt.Sprintf("printf 'server %s %d\\nupdate delete app.kokoa.test A\\nsend\\n' | nsupdate -k tsig.key", d.dns.Addr(), d.dns.Port()), "it is put back")
	hint(fmt.Sprintf("echo 'route: oops: {}' >> clone/routes/%s.cue", first.Name), "commit and push it: nothing changes, and it says why")
	b.WriteByte('\n')
	fmt.Fprintf(b, "Logs are in logs/. Ctrl-C ends it all%s.\n\n", map[bool]string{true: ", and removes the folder"}[d.temporary])
	d.say("%s", b.String())
}

package repo_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/reconciler/repo"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// gitHTTP is Git's own HTTP server for the repositories below dir.
func gitHTTP(t testing.TB, dir string) http.Handler {
	return &cgi.Handler{
		Path:       filepath.Join(git(t, "", "--exec-path"), "git-http-backend"),
		Env:        []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
		InheritEnv: []string{"PATH"},
		Stderr:     io.Discard,
		Logger:     log.New(io.Discard, "", 0),
	}
}

func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// counting counts requests by their kind.
type counting struct {
	http.Handler
	listed, fetched atomic.Int64
	sent            atomic.Int64 // bytes of the answers to the latter
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/info/refs") {
		c.listed.Add(1)
		c.Handler.ServeHTTP(w, r)
		return
	}
	c.fetched.Add(1)
	c.Handler.ServeHTTP(countingWriter{w, &c.sent}, r)
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c countingWriter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func TestHTTP(t *testing.T) {
	files := map[string]string{"a.cue": "1"}
	for i := range 150 {
		files[fmt.Sprintf("routes/r%03d.cue", i)] = fmt.Sprintf("route %d", i)
	}
	o := newOrigin(t, files)
	backend := &counting{Handler: gitHTTP(t, filepath.Dir(o.bare))}
	url := serve(t, backend) + "/fleet.git"
	cacheDir := filepath.Join(t.TempDir(), "cache")
	s := open(t, url, repo.Options{CacheDir: cacheDir})
	first := fetch(t, s)
	wantContent(t, first, files)
	if fetch(t, s) != first {
		t.Error("a fetch with nothing new made a new revision")
	}
	if n := backend.fetched.Load(); n != 1 {
		t.Errorf("objects were asked for %d times, want once", n)
	}
	all := backend.sent.Swap(0)
	for i := range 3 {
		files["a.cue"] = fmt.Sprint("changed ", i)
		o.push(t, "change", map[string]string{"a.cue": files["a.cue"]})
		rev := fetch(t, s)
		wantContent(t, rev, files)
		if err := rev.Descends(t.Context(), first.Commit); err != nil {
			t.Error(err)
		}
	}
	if some := backend.sent.Load(); some > all/2 {
		t.Errorf("three small changes took %d bytes after %d for all", some, all)
	}

	// Another run begins from the cache.
	fetched := backend.fetched.Load()
	again := open(t, url, repo.Options{CacheDir: cacheDir})
	wantContent(t, fetch(t, again), files)
	if n := backend.fetched.Load() - fetched; n != 0 {
		t.Errorf("a warm start asked for objects %d times", n)
	}
	old, err := again.At(t.Context(), first.Commit)
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, old, content(t, first))

	// A commit that is new to a cold cache is fetched for.
	cold := open(t, url, repo.Options{CacheDir: t.TempDir()})
	old, err = cold.At(t.Context(), first.Commit)
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, old, content(t, first))
	if _, err := cold.At(t.Context(), strings.Repeat("12", 20)); !errors.Is(err, repo.ErrUnknownCommit) {
		t.Errorf("unknown commit: %v", err)
	}
	git(t, cacheDir+"/"+onlyEntry(t, cacheDir), "fsck", "--strict")
}

func onlyEntry(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	return entries[0].Name()
}

func TestHTTPRewindAndBranches(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	s := open(t, serve(t, gitHTTP(t, filepath.Dir(o.bare)))+"/fleet.git", repo.Options{CacheDir: t.TempDir()})
	first := fetch(t, s)
	o.push(t, "second", map[string]string{"a.cue": "2"})
	second := fetch(t, s)
	git(t, o.clone, "checkout", "-q", "--orphan", "unrelated")
	o.commit(t, "unrelated", map[string]string{"a.cue": "3"})
	git(t, o.clone, "push", "-q", "--force", "origin", "unrelated:main")
	rev := fetch(t, s)
	wantContent(t, rev, map[string]string{"a.cue": "3"})
	if err := rev.Descends(t.Context(), second.Commit); !errors.Is(err, repo.ErrRewind) {
		t.Errorf("unrelated history: %v", err)
	}
	// What was applied last can still be built, though no branch has it.
	if again, err := s.At(t.Context(), second.Commit); err != nil {
		t.Error(err)
	} else {
		wantContent(t, again, map[string]string{"a.cue": "2"})
	}
	git(t, o.clone, "push", "-q", "--force", "origin", first.Commit+":main")
	if err := fetch(t, s).Descends(t.Context(), second.Commit); !errors.Is(err, repo.ErrRewind) {
		t.Errorf("older commit: %v", err)
	}
	git(t, o.clone, "push", "-q", "origin", "HEAD:trunk")
	git(t, o.bare, "symbolic-ref", "HEAD", "refs/heads/trunk")
	git(t, o.clone, "push", "-q", "origin", ":main")
	if _, err := s.Fetch(t.Context()); !errors.Is(err, repo.ErrNoBranch) || !strings.Contains(err.Error(), "it has: trunk") {
		t.Errorf("deleted branch: %v", err)
	}
	empty := filepath.Join(filepath.Dir(o.bare), "empty.git")
	git(t, "", "init", "-q", "--bare", empty)
	url := serve(t, gitHTTP(t, filepath.Dir(o.bare)))
	if _, err := open(t, url+"/empty.git", repo.Options{CacheDir: t.TempDir()}).Fetch(t.Context()); !errors.Is(err, repo.ErrNoBranch) {
		t.Errorf("empty repository: %v", err)
	}
	if _, err := open(t, url+"/nowhere.git", repo.Options{CacheDir: t.TempDir()}).Fetch(t.Context()); !errors.Is(err, repo.ErrNotRepository) {
		t.Errorf("no repository: %v", err)
	}
}

// What a host that lost power leaves in the cache is fetched again, whether a fetch
// stumbles on it or a read.
func TestDamagedCacheIsFilledAgain(t *testing.T) {
	files := map[string]string{"a.cue": "1"}
	for _, packed := range []bool{false, true} {
		if packed {
			for i := range 150 {
				files[fmt.Sprintf("r%d.cue", i)] = fmt.Sprint(i)
			}
		}
		o := newOrigin(t, files)
		url := serve(t, gitHTTP(t, filepath.Dir(o.bare))) + "/fleet.git"
		for name, damage := range map[string]func(path string) error{
			"gone":  os.Remove,
			"empty": func(path string) error { return os.WriteFile(path, nil, 0o644) },
			"cut":   func(path string) error { return os.Truncate(path, 30) },
		} {
			dir := t.TempDir()
			s := open(t, url, repo.Options{CacheDir: dir})
			rev := fetch(t, s)
			tree := git(t, o.clone, "rev-parse", "HEAD:")
			objects := filepath.Join(dir, onlyEntry(t, dir), "objects")
			for _, hash := range []string{rev.Files()[0].Hash, tree} {
				path := filepath.Join(objects, hash[:2], hash[2:])
				if packed {
					path = onlyPack(t, objects)
				}
				if err := errors.Join(os.Chmod(path, 0o644), damage(path)); err != nil {
					t.Fatal(err)
				}
				again := open(t, url, repo.Options{CacheDir: dir})
				// A file's damage shows when it is read, if not before.
				if rev, err := again.Fetch(t.Context()); err != nil {
					t.Errorf("packed=%t, %s: %v", packed, name, err)
				} else if _, err := rev.Read("a.cue"); err != nil && !errors.Is(err, repo.ErrCorrupt) {
					t.Errorf("packed=%t, %s: %v", packed, name, err)
				}
				wantContent(t, fetch(t, again), files)
			}
		}
	}
}

func onlyPack(t *testing.T, objects string) string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(objects, "pack", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	return packs[0]
}

// What is wrong in the repository itself is not taken for the cache's damage.
func TestBadTreeIsNotFetchedAgain(t *testing.T) {
	r := newRaw(t)
	blob := r.blob(t, "x")
	r.main(t, r.tree(t, "100644 a.cue "+blob))
	backend := &counting{Handler: gitHTTP(t, filepath.Dir(string(r)))}
	s := open(t, serve(t, backend)+"/raw.git", repo.Options{CacheDir: t.TempDir()})
	fetch(t, s)
	r.main(t, r.tree(t, "100644 b.cue "+blob, "100644 a.cue "+blob))
	for range 3 {
		if _, err := s.Fetch(t.Context()); !errors.Is(err, repo.ErrCorrupt) {
			t.Errorf("%v", err)
		}
	}
	if n := backend.fetched.Load(); n != 2 {
		t.Errorf("objects were asked for %d times, want twice", n)
	}
}

const canary = "canary-7f3a"

// basicAuth lets only git:canary in, and repeats what it was sent to others.
func basicAuth(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != canary {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			http.Error(w, "not with "+password+" in "+r.Header.Get("Authorization"), http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func TestHTTPCredentials(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	url := serve(t, basicAuth(gitHTTP(t, filepath.Dir(o.bare)))) + "/fleet.git"
	var logged bytes.Buffer
	options := func(auth repo.Auth) repo.Options {
		return repo.Options{CacheDir: t.TempDir(), Auth: auth, Log: slog.New(slog.NewTextHandler(&logged, nil))}
	}
	for _, s := range []repo.Source{
		open(t, url, options(repo.Auth{Password: canary})),
		open(t, url, options(repo.Auth{Username: "ada", Password: canary})),
		open(t, strings.Replace(url, "//", "//ada:"+canary+"@", 1), options(repo.Auth{})),
		open(t, strings.Replace(url, "//", "//"+canary+"@", 1), options(repo.Auth{})),
	} {
		wantContent(t, fetch(t, s), map[string]string{"a.cue": "1"})
		if strings.Contains(s.String(), canary) {
			t.Errorf("the source prints as %s", s)
		}
	}
	for _, auth := range []repo.Auth{{}, {Password: canary + "x"}} {
		_, err := open(t, url, options(auth)).Fetch(t.Context())
		if !errors.Is(err, repo.ErrDenied) || strings.Contains(err.Error(), canary) {
			t.Errorf("wrong password: %v", err)
		}
	}
	if strings.Contains(logged.String(), canary) {
		t.Errorf("the log has %s", &logged)
	}
}

// What a server says in an error is shown without what it was told in secret, and
// without what would move a terminal's cursor.
func TestHTTPErrorsAreClean(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"500":     func(w http.ResponseWriter, r *http.Request) { http.Error(w, canary, http.StatusInternalServerError) },
		"403":     func(w http.ResponseWriter, r *http.Request) { http.Error(w, canary, http.StatusForbidden) },
		"404":     func(w http.ResponseWriter, r *http.Request) { http.Error(w, canary, http.StatusNotFound) },
		"a page":  func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>\x1b[2J"+canary) },
		"nothing": func(w http.ResponseWriter, r *http.Request) {},
		"an error": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%04xERR \x1b[2J%s", 4+8+len(canary), canary)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+canary+".example.com/"+canary, http.StatusFound)
		},
		"a drop": func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	}
	for name, answer := range answers {
		s := open(t, serve(t, answer)+"/fleet.git", repo.Options{CacheDir: t.TempDir(), Auth: repo.Auth{Password: canary}})
		rev, err := s.Fetch(t.Context())
		if err == nil || rev != nil || strings.Contains(err.Error(), canary) || strings.ContainsAny(err.Error(), "\x1b\r\n") {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, repo.ErrNoBranch) || errors.Is(err, repo.ErrEmpty) {
			t.Errorf("%s: what was not seen counts as not there: %v", name, err)
		}
	}
}

func TestHTTPRedirects(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	var seen atomic.Int64
	thief := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		if r.Header.Get("Authorization") != "" {
			t.Error("another host was sent the password")
		}
		gitHTTP(t, filepath.Dir(o.bare)).ServeHTTP(w, r)
	}))
	away := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief+r.URL.RequestURI(), http.StatusFound)
	}))
	for _, auth := range []repo.Auth{{}, {Password: canary}} {
		_, err := open(t, away+"/fleet.git", repo.Options{CacheDir: t.TempDir(), Auth: auth}).Fetch(t.Context())
		if !errors.Is(err, repo.ErrDenied) || !strings.Contains(err.Error(), "give its URL") {
			t.Errorf("redirect to another host: %v", err)
		}
	}
	if seen.Load() != 0 {
		t.Error("another host was asked")
	}
	backend := basicAuth(gitHTTP(t, filepath.Dir(o.bare)))
	moved := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rest, old := strings.CutPrefix(r.URL.RequestURI(), "/old/"); old {
			http.Redirect(w, r, "/"+rest, http.StatusMovedPermanently)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	s := open(t, moved+"/old/fleet.git", repo.Options{CacheDir: t.TempDir(), Auth: repo.Auth{Password: canary}})
	wantContent(t, fetch(t, s), map[string]string{"a.cue": "1"})
}

func TestHTTPLimits(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	o.push(t, "noise", map[string]string{"noise": string(noise)})
	backend := gitHTTP(t, filepath.Dir(o.bare))
	url := serve(t, backend) + "/fleet.git"
	dir := t.TempDir()
	if _, err := open(t, url, repo.Options{CacheDir: dir, Limits: repo.Limits{Bytes: 1 << 19}}).Fetch(t.Context()); !errors.Is(err, repo.ErrLimit) {
		t.Errorf("a large pack: %v", err)
	}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if info, err := d.Info(); err == nil && info.Size() > 1<<16 {
			t.Errorf("%s was left behind", path)
		}
		return err
	})
	wantContent(t, fetch(t, open(t, url, repo.Options{CacheDir: dir})), map[string]string{"a.cue": "1"})

	endless := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "001e# service=git-upload-pack\n0000")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "004d%040x refs/heads/branch-%010x\x00agent=x\n", i+1, i); err != nil {
				return
			}
		}
	}))
	if _, err := open(t, endless, repo.Options{CacheDir: t.TempDir(), Limits: repo.Limits{Bytes: 1 << 20}}).Fetch(t.Context()); err == nil || errors.Is(err, repo.ErrNoBranch) {
		t.Errorf("endless refs: %v", err)
	}
}

func TestTimeout(t *testing.T) {
	held := make(chan struct{})
	hold := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-held:
		case <-r.Context().Done():
		}
	})
	url := serve(t, hold)
	t.Cleanup(func() { close(held) })
	s := open(t, url, repo.Options{CacheDir: t.TempDir(), Limits: repo.Limits{Timeout: 50 * time.Millisecond}})
	if _, err := s.Fetch(t.Context()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no end after 50ms") {
		t.Errorf("server that says nothing: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := s.Fetch(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNothingIsWrittenOutsideTheCache(t *testing.T) {
	r := newRaw(t)
	blob := r.blob(t, "x")
	evil := r.tree(t, "100644 evil.cue "+blob)
	r.main(t, r.tree(t, "40000 .. "+r.tree(t, "40000 .. "+evil)))
	url := serve(t, gitHTTP(t, filepath.Dir(string(r)))) + "/raw.git"
	top := t.TempDir()
	if _, err := open(t, url, repo.Options{CacheDir: filepath.Join(top, "cache")}).Fetch(t.Context()); !errors.Is(err, repo.ErrPath) {
		t.Errorf("%v", err)
	}
	if got := onlyEntry(t, top); got != "cache" {
		t.Errorf("%s was written", got)
	}
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if strings.Contains(d.Name(), "evil") {
			t.Errorf("%s was written", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatchRemote(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	s := open(t, serve(t, gitHTTP(t, filepath.Dir(o.bare)))+"/fleet.git", repo.Options{CacheDir: t.TempDir(), Poll: 10 * time.Millisecond})
	calls := watchCalls(t, s)
	commit := o.push(t, "second", nil)
	until(t, calls, s, "a push", func(rev *repo.Revision, err error) bool { return err == nil && rev.Commit == commit })
}

func TestRemoteFetchesAtOnce(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	url := serve(t, gitHTTP(t, filepath.Dir(o.bare))) + "/fleet.git"
	dir := t.TempDir()
	one, two := open(t, url, repo.Options{CacheDir: dir}), open(t, url, repo.Options{CacheDir: dir})
	for i := range 3 {
		commit := o.push(t, fmt.Sprint(i), map[string]string{"a.cue": fmt.Sprint(i)})
		var all sync.WaitGroup
		for _, s := range []repo.Source{one, two, one, two} {
			all.Go(func() {
				rev, err := s.Fetch(t.Context())
				if err != nil {
					t.Error(err)
				} else if text, err := rev.Read("a.cue"); err != nil || string(text) != fmt.Sprint(i) || rev.Commit != commit {
					t.Errorf("%s: %q, %v", rev, text, err)
				}
			})
		}
		all.Wait()
	}
}

// sshServer runs git-upload-pack for whoever has the key, and counts nothing else.
type sshServer struct {
	address string
	hostKey ssh.PublicKey
	key     string // PEM of the one key that is let in
}

func newKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, string(pem.EncodeToMemory(block))
}

func newSSHServer(t testing.TB) *sshServer {
	t.Helper()
	host, _ := newKey(t)
	user, key := newKey(t)
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
			if !bytes.Equal(k.Marshal(), user.PublicKey().Marshal()) {
				return nil, errors.New("unknown key")
			}
			return nil, nil
		},
	}
	config.AddHostKey(host)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serveSSH(conn, config, &all) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		all.Wait()
	})
	return &sshServer{listener.Addr().String(), host.PublicKey(), key}
}

func serveSSH(conn net.Conn, config *ssh.ServerConfig, all *sync.WaitGroup) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	all.Go(func() { ssh.DiscardRequests(requests) })
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			for r := range requests {
				var exec struct{ Command string }
				if r.Type != "exec" || ssh.Unmarshal(r.Payload, &exec) != nil {
					r.Reply(false, nil)
					continue
				}
				r.Reply(true, nil)
				all.Go(func() { runUploadPack(channel, exec.Command) })
			}
		})
	}
}

func runUploadPack(channel ssh.Channel, command string) {
	path, ok := strings.CutPrefix(command, "git-upload-pack '")
	if !ok {
		channel.Close()
		return
	}
	cmd := exec.Command("git", "upload-pack", strings.ReplaceAll(strings.TrimSuffix(path, "'"), `'\''`, "'"))
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	stdin, err := cmd.StdinPipe() // a reader as Stdin would be waited for
	if err != nil {
		return
	}
	var copied sync.WaitGroup
	copied.Go(func() {
		io.Copy(stdin, channel)
		stdin.Close()
	})
	defer copied.Wait()
	defer channel.Close()
	status := make([]byte, 4)
	if cmd.Run() != nil {
		status[3] = 1
	}
	channel.SendRequest("exit-status", false, status)
}

func (s *sshServer) knownHosts(t testing.TB, key ssh.PublicKey) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(path, []byte(knownhosts.Line([]string{s.address}, key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSSH(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	quoted := filepath.Join(filepath.Dir(o.bare), "it's.git")
	if err := os.Rename(o.bare, quoted); err != nil {
		t.Fatal(err)
	}
	o.bare = quoted
	git(t, o.clone, "remote", "set-url", "origin", quoted)
	server := newSSHServer(t)
	auth := repo.Auth{SSHKey: server.key, KnownHosts: server.knownHosts(t, server.hostKey)}
	s := open(t, "ssh://"+server.address+o.bare, repo.Options{CacheDir: t.TempDir(), Auth: auth})
	first := fetch(t, s)
	wantContent(t, first, map[string]string{"a.cue": "1"})
	o.push(t, "second", map[string]string{"a.cue": "2"})
	second := fetch(t, s)
	wantContent(t, second, map[string]string{"a.cue": "2"})
	if fetch(t, s) != second {
		t.Error("a fetch with nothing new made a new revision")
	}
	if err := second.Descends(t.Context(), first.Commit); err != nil {
		t.Error(err)
	}
	git(t, o.clone, "push", "-q", "origin", "HEAD:trunk")
	git(t, o.bare, "symbolic-ref", "HEAD", "refs/heads/trunk")
	git(t, o.clone, "push", "-q", "origin", ":main")
	if _, err := s.Fetch(t.Context()); !errors.Is(err, repo.ErrNoBranch) || !strings.Contains(err.Error(), "it has: trunk") {
		t.Errorf("deleted branch: %v", err)
	}
	_, err := open(t, "ssh://"+server.address+"/nowhere", repo.Options{CacheDir: t.TempDir(), Auth: auth}).Fetch(t.Context())
	if !errors.Is(err, repo.ErrNotRepository) || !strings.Contains(err.Error(), "does not appear to be a git repository") {
		t.Errorf("no repository: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty.git")
	git(t, "", "init", "-q", "--bare", empty)
	if _, err := open(t, "ssh://"+server.address+empty, repo.Options{CacheDir: t.TempDir(), Auth: auth}).Fetch(t.Context()); !errors.Is(err, repo.ErrNoBranch) {
		t.Errorf("empty repository: %v", err)
	}
}

func TestSSHRefuses(t *testing.T) {
	o := newOrigin(t, map[string]string{"a.cue": "1"})
	server := newSSHServer(t)
	other, otherKey := newKey(t)
	good := server.knownHosts(t, server.hostKey)
	unknown := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(unknown, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		auth repo.Auth
		is   error
		says string
	}{
		"unknown host":   {repo.Auth{SSHKey: server.key, KnownHosts: unknown}, repo.ErrDenied, "has no key of " + server.address},
		"other host key": {repo.Auth{SSHKey: server.key, KnownHosts: server.knownHosts(t, other.PublicKey())}, repo.ErrDenied, "someone may be in between"},
		"other key":      {repo.Auth{SSHKey: otherKey, KnownHosts: good}, repo.ErrDenied, "does not take the ssh key"},
		"no file":        {repo.Auth{SSHKey: server.key, KnownHosts: unknown + "x"}, nil, "known hosts"},
	} {
		s := open(t, "ssh://"+server.address+o.bare, repo.Options{CacheDir: t.TempDir(), Auth: test.auth})
		_, err := s.Fetch(t.Context())
		if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v; want %q", name, err, test.says)
		}
	}

	// A server that accepts and then says nothing.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	s := open(t, "ssh://"+listener.Addr().String()+"/x", repo.Options{
		CacheDir: t.TempDir(), Auth: repo.Auth{SSHKey: server.key, KnownHosts: good},
		Limits: repo.Limits{Timeout: 50 * time.Millisecond},
	})
	if _, err := s.Fetch(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("server that says nothing: %v", err)
	}
}

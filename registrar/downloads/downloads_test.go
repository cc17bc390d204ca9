package downloads

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kokoa-proxy/kokoa/keys"
)

func testKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	secret, err := keys.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	return secret.Downloads()
}

// folder is one with files, and their content.
func folder(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		put(t, dir, files[i], files[i+1])
	}
	return dir
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, c Config) *Handler {
	t.Helper()
	if c.Key == nil {
		c.Key = testKey(t)
	}
	if c.URL == "" {
		c.URL = "https://control.example.com/"
	}
	h, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func get(h *Handler, path string, header ...string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The list is what install.sh reads, and openssl checks it.
func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is midnight, 2000-01-01
		time.Sleep(15 * time.Hour)
		dir := folder(t, "kokoa-agent-linux-armv7", "seven", "kokoa-agent-linux-amd64", "sixty-four", "kokoa-agent-plan9-mips", "no", "secret", "no")
		key := testKey(t)
		h := open(t, Config{Dir: dir, Key: key, Version: "v1.2.3"})
		want := fmt.Sprintf("kokoa agent manifest v1\nversion 1.2.3\nexpires 2000-01-09T00:00:00Z\n%x 10 kokoa-agent-linux-amd64\n%x 5 kokoa-agent-linux-armv7\n",
			sha256.Sum256([]byte("sixty-four")), sha256.Sum256([]byte("seven")))
		list := body(t, get(h, "/join/manifest"))
		if list != want {
			t.Errorf("got\n%s\nwant\n%s", list, want)
		}
		signature := body(t, get(h, "/join/manifest.sig"))
		digest := sha256.Sum256([]byte(list))
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], []byte(signature)) {
			t.Error("the signature is not good")
		}

		again := open(t, Config{Dir: dir, Key: key, Version: "v1.2.3"})
		if body(t, get(again, "/join/manifest.sig")) != signature {
			t.Error("another process signs the same list otherwise: hosts between the two would fail")
		}
		time.Sleep(10 * time.Hour)
		list = body(t, get(h, "/join/manifest"))
		if want := strings.Replace(want, "01-09", "01-10", 1); list != want {
			t.Errorf("a day later:\n%s\nwant\n%s", list, want)
		}
		digest = sha256.Sum256([]byte(list))
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], []byte(body(t, get(h, "/join/manifest.sig")))) {
			t.Error("the signature is not that of the new list")
		}
	})
}

func TestFiles(t *testing.T) {
	h := open(t, Config{Dir: folder(t, "kokoa-agent-linux-arm64", "0123456789", "VERSION", "1.2.3\n"), Version: "v9"})
	const path = "/join/agent/kokoa-agent-linux-arm64"
	whole := get(h, path)
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256([]byte("0123456789")))
	if got := body(t, whole); whole.StatusCode != 200 || got != "0123456789" || whole.Header.Get("ETag") != etag || whole.ContentLength != 10 {
		t.Errorf("got %d, %q, %v", whole.StatusCode, got, whole.Header)
	}
	if got := whole.Header; got.Get("Cache-Control") != "no-cache" || got.Get("Content-Type") != "application/octet-stream" || got.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("got %v", got)
	}
	if list := body(t, get(h, "/join/manifest")); !strings.Contains(list, "\nversion 1.2.3\n") {
		t.Errorf("the file VERSION does not count:\n%s", list)
	}
	for _, test := range []struct {
		name   string
		header []string
		status int
		want   string
	}{
		{"the rest", []string{"Range", "bytes=4-"}, 206, "456789"},
		{"the rest of the same", []string{"Range", "bytes=4-", "If-Range", etag}, 206, "456789"},
		{"the rest of another", []string{"Range", "bytes=4-", "If-Range", `"other"`}, 200, "0123456789"},
		{"beyond the end", []string{"Range", "bytes=10-"}, 416, ""},
		{"known already", []string{"If-None-Match", etag}, 304, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := get(h, path, test.header...)
			if got := body(t, res); res.StatusCode != test.status || test.status < 300 && got != test.want {
				t.Errorf("got %d, %q, want %d, %q", res.StatusCode, got, test.status, test.want)
			}
		})
	}
}

// Nothing but the few names is there, however it is asked for.
func TestNothingElse(t *testing.T) {
	dir := folder(t, "kokoa-agent-linux-arm64", "agent", "kokoa-agent-darwin-arm64", "agent", "secret", "canary", "VERSION", "1.2.3")
	put(t, filepath.Dir(dir), "kokoa-agent-linux-amd64", "canary")
	h := open(t, Config{Dir: dir})
	server := httptest.NewServer(h)
	defer server.Close()
	for _, path := range []string{
		"/join/agent/secret", "/join/agent/VERSION", "/join/agent/", "/join/agent", "/join/", "/", "/join/agent/.",
		"/join/agent/..%2fkokoa-agent-linux-amd64", "/join/agent/%2e%2e/kokoa-agent-linux-amd64", "/join/agent/../secret",
		"/join/agent/kokoa-agent-linux-amd64", "/join/agent/kokoa-agent-linux-arm64/", "/join/agent/kokoa-agent-linux-arm64%00",
		"/join/agent/KOKOA-AGENT-LINUX-ARM64", "/join/manifest/", "/join/v1",
	} {
		res, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, res); res.StatusCode != http.StatusNotFound || strings.Contains(got, "canary") {
			t.Errorf("%s: %s, %q", path, res.Status, got)
		}
		res.Body.Close()
	}
	if got := body(t, get(h, "/join/agent/kokoa-agent-linux-riscv64")); got != "there is no such download; there is kokoa-agent-linux-arm64, kokoa-agent-darwin-arm64\n" {
		t.Errorf("an unknown platform is told %q", got)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		for _, path := range []string{"/install.sh", "/join/install.sh", "/join/manifest", "/join/manifest.sig", "/join/agent/kokoa-agent-linux-arm64"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, %v", method, path, w.Code, w.Header())
			}
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("HEAD", "/join/agent/kokoa-agent-linux-arm64", nil))
	if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") != "5" {
		t.Errorf("HEAD: %d, %q, %v", w.Code, w.Body, w.Header())
	}
}

// A file that was replaced is offered with its own checksum, and at no moment with
// another's.
func TestReplaced(t *testing.T) {
	dir := folder(t, "kokoa-agent-linux-arm64", "content 0")
	h := open(t, Config{Dir: dir, Version: "1.0.0"})
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				res := get(h, "/join/agent/kokoa-agent-linux-arm64")
				content, err := io.ReadAll(res.Body)
				sum := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
				if err != nil || res.StatusCode == 200 && res.Header.Get("ETag") != sum || res.StatusCode != 200 && res.StatusCode != 503 {
					t.Errorf("%d, %q with the checksum of another: %v", res.StatusCode, content, err)
				}
			}
		})
	}
	for i := range 200 {
		content := fmt.Sprintf("content %d", i)
		put(t, dir, "new", content)
		// Two files within a tick of the file system's clock may look the same.
		when := time.Unix(int64(i), 0)
		if err := os.Chtimes(filepath.Join(dir, "new"), when, when); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "kokoa-agent-linux-arm64")); err != nil {
			t.Fatal(err)
		}
		if list, want := body(t, get(h, "/join/manifest")), fmt.Sprintf("%x %d kokoa", sha256.Sum256([]byte(content)), len(content)); !strings.Contains(list, want) {
			t.Fatalf("%q is not listed:\n%s", content, list)
		}
	}
	close(done)
	readers.Wait()
	put(t, dir, "kokoa-agent-darwin-amd64", "more")
	if list := body(t, get(h, "/join/manifest")); !strings.Contains(list, "darwin-amd64") {
		t.Errorf("a new file is not listed:\n%s", list)
	}
}

// When files are gone the answer is 503 without a path of this host, and the log has
// one line about it, not one for each question.
func TestGone(t *testing.T) {
	dir := folder(t, "kokoa-agent-linux-arm64", "agent")
	var log strings.Builder
	h := open(t, Config{Dir: dir, Version: "1.0.0", Log: slog.New(slog.NewTextHandler(&log, nil))})
	agent := filepath.Join(dir, "kokoa-agent-linux-arm64")
	for range 2 {
		if err := os.Remove(agent); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/join/manifest", "/join/manifest.sig", "/join/agent/kokoa-agent-linux-arm64"} {
			res := get(h, path)
			if got := body(t, res); res.StatusCode != http.StatusServiceUnavailable || strings.Contains(got, dir) {
				t.Errorf("%s: %d, %q", path, res.StatusCode, got)
			}
		}
		put(t, dir, "kokoa-agent-linux-arm64", "agent")
		if res := get(h, "/join/manifest"); res.StatusCode != 200 {
			t.Errorf("the file is back: %d", res.StatusCode)
		}
	}
	if n := strings.Count(log.String(), "downloads not read"); n != 2 {
		t.Errorf("%d lines about two causes:\n%s", n, &log)
	}
}

func TestNoDownloads(t *testing.T) {
	for name, c := range map[string]Config{
		"no folder":  {URL: "https://control.example.com"},
		"no address": {Dir: folder(t, "kokoa-agent-linux-arm64", "agent"), Key: testKey(t)},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"/join/manifest", "/join/manifest.sig", "/join/agent/kokoa-agent-linux-arm64"} {
				if res := get(h, path); res.StatusCode != http.StatusNotFound || !strings.Contains(body(t, res), "no downloads") {
					t.Errorf("%s: %d", path, res.StatusCode)
				}
			}
			script := get(h, "/install.sh")
			if script.StatusCode != 200 {
				t.Errorf("install.sh: %d", script.StatusCode)
			}
			sh := exec.Command("sh", "-s", "--", "--name", "rpi")
			sh.Stdin = script.Body
			said, err := sh.CombinedOutput()
			if err == nil || !strings.Contains(string(said), "no downloads") || strings.Count(string(said), "\n") != 1 {
				t.Errorf("install.sh: %v, %s", err, said)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	good := folder(t, "kokoa-agent-linux-arm64", "agent")
	broken := folder(t)
	if err := os.Mkdir(filepath.Join(broken, "kokoa-agent-linux-arm64"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		c    Config
		want string
	}{
		"plain HTTP":             {Config{Dir: good, URL: "http://control.example.com", Version: "1.0.0"}, "must begin with https://"},
		"another scheme":         {Config{Dir: good, URL: "file:///etc", Version: "1.0.0"}, "must begin with https://"},
		"a quote":                {Config{Dir: good, URL: "https://control.example.com/'$(id)'", Version: "1.0.0"}, "is not an address like"},
		"a line":                 {Config{Dir: good, URL: "https://control.example.com/\nid", Version: "1.0.0"}, "invalid control character"},
		"no host":                {Config{Dir: good, URL: "https://", Version: "1.0.0"}, "is not an address like"},
		"an empty folder":        {Config{Dir: folder(t), Version: "1.0.0"}, "has no file like kokoa-agent-linux-amd64"},
		"no such folder":         {Config{Dir: filepath.Join(good, "no"), Version: "1.0.0"}, "has no file like kokoa-agent-linux-amd64"},
		"a folder for a file":    {Config{Dir: broken, Version: "1.0.0"}, "is not a file"},
		"no version":             {Config{Dir: good}, `version "" is not one like 1.2.3`},
		"a version for a shell":  {Config{Dir: good, Version: "1.0.0; reboot"}, "is not one like 1.2.3"},
		"a version of two lines": {Config{Dir: folder(t, "kokoa-agent-linux-arm64", "agent", "VERSION", "1.0.0\nexpires never")}, "is not one like 1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			test.c.Key = testKey(t)
			if test.c.URL == "" {
				test.c.URL = "https://control.example.com"
			}
			if _, err := Open(test.c); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	for _, url := range []string{"http://localhost:7080", "http://127.0.0.1:7080", "http://[::1]:7080", "https://[2001:db8::1]:8443/kokoa/"} {
		if _, err := Open(Config{Dir: good, Key: testKey(t), URL: url, Version: "(devel)"}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

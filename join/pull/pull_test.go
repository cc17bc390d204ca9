package pull

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/keys"
)

var testOrigin = Origin{
	Name: "rpi-home", Key: keys.Public{1, 2, 3}, Folder: "origins/home", TunnelAddress: netip.MustParseAddr("10.86.1.7"),
	Hosts: []string{"blog.example.com", "*.dev.example.com"}, Expires: time.Date(2026, 11, 24, 18, 0, 0, 0, time.UTC), Platform: "linux/arm64",
}

// fakeForge is a repo with branches, files and pull requests, as either forge answers
// about it.
type fakeForge struct {
	*httptest.Server
	gitea bool

	mu sync.Mutex
	// branches have files, by path.
	branches map[string]map[string][]byte
	pulls    []fakePull
	// calls are all requests that changed something.
	calls []string
	// answer, when set, is given to a request instead.
	answer func(method, path string) (status int, header http.Header, body string)
}

type fakePull struct {
	Number int    `json:"number"`
	URL    string `json:"html_url"`
	State  string `json:"state"`
	Title  string `json:"title"`
	Body   string `json:"body"`
	Head   struct {
		Ref string `json:"ref"`
	} `json:"head"`
}

const token = "forge-token"

func newForge(t *testing.T, kind string) (*fakeForge, Place) {
	f := &fakeForge{gitea: kind == "gitea", branches: map[string]map[string][]byte{"main": {"fleet.cue": []byte("package fleet\n")}}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f, Place{Make: kind, URL: f.URL, Repo: "ann/fleet", Token: token}
}

func (f *fakeForge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	prefix, auth := "/repos/ann/fleet", "Bearer "+token
	if f.gitea {
		prefix, auth = "/api/v1/repos/ann/fleet", "token "+token
	}
	path, ok := strings.CutPrefix(r.URL.Path, prefix)
	if !ok {
		fail(w, 404, "no such repo")
		return
	}
	if r.Header.Get("Authorization") != auth {
		fail(w, 401, "Bad credentials")
		return
	}
	if f.answer != nil {
		if status, header, body := f.answer(r.Method, path); status != 0 {
			maps.Copy(w.Header(), header)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
			return
		}
	}
	if r.Method != "GET" {
		f.calls = append(f.calls, r.Method+" "+path)
	}
	var body struct {
		Ref, SHA, Branch, Title, Body, Head, Base, Message string
		New                                                string `json:"new_branch"`
		Content                                            []byte
	}
	if r.Body != nil && r.Method != "GET" {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			fail(w, 400, err.Error())
			return
		}
	}
	switch {
	case path == "":
		reply(w, 200, map[string]string{"default_branch": "main"})
	case path == "/pulls" && r.Method == "GET":
		f.list(w, r.URL.Query())
	case path == "/pulls":
		f.open(w, body.Title, body.Body, body.Head, body.Base)
	case path == "/git/ref/heads/main" && !f.gitea:
		reply(w, 200, map[string]any{"object": map[string]string{"sha": "c0ffee"}})
	case path == "/git/refs" && r.Method == "POST" && !f.gitea:
		name := strings.TrimPrefix(body.Ref, "refs/heads/")
		if f.branches[name] != nil {
			fail(w, 422, "Reference already exists")
			return
		}
		f.branches[name] = maps.Clone(f.branches["main"])
		reply(w, 201, map[string]string{"ref": body.Ref})
	case strings.HasPrefix(path, "/branches/") && f.gitea:
		name := strings.TrimPrefix(path, "/branches/")
		if f.branches[name] == nil {
			fail(w, 404, "branch does not exist")
			return
		}
		reply(w, 200, map[string]string{"name": name})
	case strings.HasPrefix(path, "/contents/") && r.Method == "GET":
		file := strings.TrimPrefix(path, "/contents/")
		text, ok := f.branches[r.URL.Query().Get("ref")][file]
		if !ok {
			fail(w, 404, "Not Found")
			return
		}
		encoded, _ := json.Marshal(text)
		lines := strings.Trim(string(encoded), `"`)
		lines = lines[:min(20, len(lines))] + "\n" + lines[min(20, len(lines)):] + "\n"
		reply(w, 200, map[string]string{"content": lines, "sha": sha(text), "html_url": f.URL + "/ann/fleet/" + file})
	case strings.HasPrefix(path, "/contents/"):
		f.put(w, r.Method, strings.TrimPrefix(path, "/contents/"), body.Branch, body.New, body.SHA, body.Content)
	default:
		fail(w, 404, "Not Found")
	}
}

func (f *fakeForge) put(w http.ResponseWriter, method, file, branch, made, old string, text []byte) {
	if f.gitea && made != "" && f.branches[made] == nil {
		f.branches[made] = maps.Clone(f.branches[branch])
		branch = made
	}
	files := f.branches[branch]
	was, exists := files[file]
	switch {
	case files == nil:
		fail(w, 404, "Branch not found")
	case exists && sha(was) != old, !exists && old != "":
		fail(w, 422, `"sha" wasn't supplied or does not match`)
	case f.gitea && exists != (method == "PUT"):
		fail(w, 422, "POST makes files, PUT changes them")
	default:
		files[file] = text
		reply(w, 201, map[string]any{})
	}
}

func (f *fakeForge) list(w http.ResponseWriter, q url.Values) {
	open := []fakePull{}
	for _, p := range f.pulls {
		if p.State == "open" && (f.gitea || q.Get("head") == "ann:"+p.Head.Ref) {
			open = append(open, p)
		}
	}
	size := 50
	if f.gitea {
		size = 2 // a server with smaller pages than were asked for
	}
	page, _ := strconv.Atoi(q.Get("page"))
	from := min((page-1)*size, len(open))
	reply(w, 200, open[from:min(from+size, len(open))])
}

func (f *fakeForge) open(w http.ResponseWriter, title, body, head, base string) {
	if slices.ContainsFunc(f.pulls, func(p fakePull) bool { return p.State == "open" && p.Head.Ref == head }) {
		fail(w, map[bool]int{true: 409, false: 422}[f.gitea], "A pull request already exists")
		return
	}
	p := fakePull{Number: len(f.pulls) + 1, State: "open", Title: title, Body: body, URL: fmt.Sprintf("%s/ann/fleet/pull/%d", f.URL, len(f.pulls)+1)}
	p.Head.Ref = head
	f.pulls = append(f.pulls, p)
	reply(w, 201, p)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, message string) {
	reply(w, status, map[string]string{"message": message})
}

func sha(text []byte) string {
	return fmt.Sprintf("%x", len(text)) + "-" + string(text[:min(3, len(text))])
}

// each runs a test with both makes of forge.
func each(t *testing.T, test func(t *testing.T, f *fakeForge, p Place)) {
	for _, kind := range []string{"github", "gitea"} {
		t.Run(kind, func(t *testing.T) {
			f, p := newForge(t, kind)
			test(t, f, p)
		})
	}
}

func TestOpen(t *testing.T) {
	each(t, func(t *testing.T, f *fakeForge, p Place) {
		for n := range 3 {
			f.pulls = append(f.pulls, fakePull{Number: n + 1, State: "open"}) // other people's
		}
		where, err := p.Open(t.Context(), testOrigin)
		if err != nil || where != f.URL+"/ann/fleet/pull/4" {
			t.Fatalf("%q, %v", where, err)
		}
		branch := join.Branch(testOrigin.Name, testOrigin.Key)
		want, err := File(testOrigin)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.branches[branch]["origins/home/rpi-home.cue"]; string(got) != string(want) || f.branches[branch]["fleet.cue"] == nil {
			t.Errorf("the branch has %s", got)
		}
		opened := f.pulls[3]
		if opened.Head.Ref != branch || opened.Title != "Add origin rpi-home" || !strings.Contains(opened.Body, testOrigin.Key.String()) || !strings.Contains(opened.Body, "2026-11-24T18:00:00Z") {
			t.Errorf("%+v", opened)
		}
		if len(f.branches["main"]) != 1 {
			t.Errorf("main has changed: %v", slices.Collect(maps.Keys(f.branches["main"])))
		}

		// Again: what is open is found, and nothing is written.
		n := len(f.calls)
		if again, err := p.Open(t.Context(), testOrigin); err != nil || again != where || len(f.calls) != n {
			t.Errorf("again: %q, %v, %v", again, err, f.calls[n:])
		}

		// One that was closed does not count. The branch does.
		f.pulls[3].State = "closed"
		if again, err := p.Open(t.Context(), testOrigin); err != nil || again != f.URL+"/ann/fleet/pull/5" || len(f.branches) != 2 {
			t.Errorf("after it was closed: %q, %v", again, err)
		}

		// On what is left of an attempt with another address the file is changed.
		f.pulls[4].State = "closed"
		moved := testOrigin
		moved.TunnelAddress = netip.MustParseAddr("10.86.1.8")
		if _, err := p.Open(t.Context(), moved); err != nil || !strings.Contains(string(f.branches[branch]["origins/home/rpi-home.cue"]), "10.86.1.8") {
			t.Errorf("at another address: %v", err)
		}

		// Merged, the file itself is the answer; and the name is taken for other keys.
		f.pulls[5].State = "closed"
		f.branches["main"] = f.branches[branch]
		if again, err := p.Open(t.Context(), moved); err != nil || again != f.URL+"/ann/fleet/origins/home/rpi-home.cue" {
			t.Errorf("merged: %q, %v", again, err)
		}
		other := testOrigin
		other.Key = keys.Public{9}
		if _, err := p.Open(t.Context(), other); !errors.Is(err, ErrTaken) {
			t.Errorf("another key: %v", err)
		}
	})
}

// Killed after any step, the next call ends with one branch and one pull request.
func TestOpenAfterAnyStep(t *testing.T) {
	each(t, func(t *testing.T, _ *fakeForge, p Place) {
		for dies := 1; ; dies++ {
			f, p := newForge(t, p.Make)
			n := 0
			f.answer = func(method, path string) (int, http.Header, string) {
				if n++; n == dies {
					return 500, nil, `{"message": "it broke"}`
				}
				return 0, nil, ""
			}
			_, err := p.Open(t.Context(), testOrigin)
			if err == nil {
				if dies < 5 {
					t.Errorf("only %d calls were made", dies-1)
				}
				return
			}
			if !strings.Contains(err.Error(), "it broke") {
				t.Errorf("call %d: %v", dies, err)
			}
			if _, err := p.Open(t.Context(), testOrigin); err != nil || len(f.pulls) != 1 || len(f.branches) != 2 {
				t.Errorf("after call %d broke: %v, %d pull requests, %d branches", dies, err, len(f.pulls), len(f.branches))
			}
		}
	})
}

// A pull request that the other end opened while the answer was on its way is found.
func TestOpenedMeanwhile(t *testing.T) {
	each(t, func(t *testing.T, f *fakeForge, p Place) {
		first, err := p.Open(t.Context(), testOrigin)
		if err != nil {
			t.Fatal(err)
		}
		blind := true
		f.answer = func(method, path string) (int, http.Header, string) {
			if method == "GET" && path == "/pulls" && blind {
				blind = false
				return 200, nil, "[]"
			}
			return 0, nil, ""
		}
		if where, err := p.Open(t.Context(), testOrigin); err != nil || where != first || len(f.pulls) != 1 {
			t.Errorf("%q, %v, %d pull requests", where, err, len(f.pulls))
		}
	})
}

func TestRefusals(t *testing.T) {
	each(t, func(t *testing.T, f *fakeForge, p Place) {
		wrong := p
		wrong.Token = "another"
		if _, err := wrong.Open(t.Context(), testOrigin); !errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "another") {
			t.Errorf("wrong token: %v", err)
		}
		absent := p
		absent.Repo = "ann/absent"
		if _, err := absent.Open(t.Context(), testOrigin); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "no such repo") {
			t.Errorf("absent repo: %v", err)
		}
		for _, c := range []struct {
			status int
			header http.Header
			body   string
			want   string
			denied bool
		}{
			{403, nil, `{"message": "Resource not accessible by personal access token"}`, "Resource not accessible by personal access token", true},
			{403, http.Header{"X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {"1795543200"}}, `{"message": "API rate limit exceeded"}`, "rate limit is used up until 2026-11-24T18:00:00Z", false},
			{301, http.Header{"Location": {"https://elsewhere.example/"}}, "", "it has moved to https://elsewhere.example/", false},
			{502, nil, "<html>\x1b[31m", "502 Bad Gateway", false},
			{422, nil, `{"message": "Invalid\u001b[31m", "errors": [{"code": "custom"}]}`, `Invalid [31m {"code": "custom"}`, false},
			{200, nil, `{}`, "it names no default branch", false},
			{200, nil, `[`, "unexpected end of JSON input", false},
		} {
			f.answer = func(string, string) (int, http.Header, string) { return c.status, c.header, c.body }
			if _, err := p.Open(t.Context(), testOrigin); err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrDenied) != c.denied {
				t.Errorf("%d %s: %v", c.status, c.body, err)
			}
		}
	})
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		place Place
		want  string
	}{
		{Place{Make: "github", Repo: "ann/fleet"}, ""},
		{Place{Make: "github", Repo: "ann/fleet", URL: "https://ghe.example.com/api/v3"}, ""},
		{Place{Make: "gitea", Repo: "ann/fleet.git_x-1", URL: "http://localhost:3000"}, ""},
		{Place{Make: "gitea", Repo: "ann/fleet"}, `forge URL ""`},
		{Place{Make: "gitlab", Repo: "ann/fleet"}, `forge "gitlab": want github or gitea`},
		{Place{Make: "github", Repo: "fleet"}, `repo "fleet": want OWNER/NAME`},
		{Place{Make: "github", Repo: "ann/fleet/x"}, "want OWNER/NAME"},
		{Place{Make: "github", Repo: "../fleet"}, "want OWNER/NAME"},
		{Place{Make: "github", Repo: "ann/fl?et"}, "want OWNER/NAME"},
		{Place{Make: "github", Repo: "ann/fleet", URL: "ftp://x"}, "want one like https://"},
		{Place{Make: "github", Repo: "ann/fleet", URL: "https://me:secret@x"}, "want one like https://"},
	} {
		err := c.place.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.place, err, c.want)
		}
	}
}

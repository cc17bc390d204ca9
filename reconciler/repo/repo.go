// Package repo reads the fleet repo at a commit. A Source is a bare repository on
// this host, one reached by http(s) or ssh, or a folder as it lies; all of them
// give a Revision: every *.cue file at one commit, or an error.
//
// Nothing is ever checked out. Trees and files are read from Git's objects, each
// bounded in size and checked against its own hash, so a path, a symbolic link or
// a damaged pack in the repo can do no more than make Fetch fail. What could not
// be seen is an error and never an absence: no part of a tree is left out in
// silence.
//
// No link leads out of a repository's folder. Objects are looked for in other
// folders when the repository borrows them from there (objects/info/alternates).
//
// The fleet's files are those named *.cue, but for names that begin with a dot and
// what lies in such folders, and for cue.mod, which is CUE's own (schema.Wanted).
package repo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// The errors a caller may ask for with errors.Is. Everything else is the world's:
// a network or a disk that may be better next time.
var (
	// ErrNotRepository: there is nothing at the place that Git could read.
	ErrNotRepository = errors.New("not a Git repository")
	// ErrNoBranch: the repository lacks the branch.
	ErrNoBranch = errors.New("no such branch")
	// ErrEmpty: the revision has no *.cue file at all.
	ErrEmpty = errors.New("no *.cue files")
	// ErrRewind: the revision does not descend from the one applied last.
	ErrRewind = errors.New("history was rewound")
	// ErrUnknownCommit: the repository does not have the commit.
	ErrUnknownCommit = errors.New("unknown commit")
	// ErrLimit: something is larger than Limits allow.
	ErrLimit = errors.New("over the limit")
	// ErrPath: a *.cue file has a name or a type that Kokoa refuses.
	ErrPath = errors.New("refused path")
	// ErrCorrupt: an object is missing, or is not what its hash says.
	ErrCorrupt = errors.New("damaged repository")
	// ErrDenied: the remote refused the credentials, or is not who it should be.
	ErrDenied = errors.New("access denied")
)

// Source is a place that a fleet repo is read from. Its methods may be called at
// once from several goroutines.
type Source interface {
	// Fetch is the newest revision. It is cheap when there is nothing new, and
	// then returns the very same Revision as before. On error nothing of what
	// was seen is returned.
	Fetch(ctx context.Context) (*Revision, error)
	// At is the revision at a commit, given as 40 hexadecimal digits, that Fetch
	// has seen or that the branch's history holds. The error is ErrUnknownCommit
	// when there is none.
	At(ctx context.Context, commit string) (*Revision, error)
	// Watch calls changed whenever Fetch may have something new, from one
	// goroutine, until ctx ends; it then returns nil. The first call comes when
	// watching has begun, so nothing falls between a Fetch and the watch. What
	// happens during a call leads to one more call.
	Watch(ctx context.Context, changed func()) error
	// String names the place, without credentials.
	String() string
	// Close frees what the source holds. Its revisions are of no use afterwards.
	Close() error
}

// Limits bound what is taken from a repository. A zero field has its default.
type Limits struct {
	// Bytes in all *.cue files and folders of a revision together, and in one
	// fetch from a remote. Default 64 MiB. To get at them, 64 times as many may be
	// unpacked of other objects between two fetches.
	Bytes int64
	// Files is the number of *.cue files. Default 20,000.
	Files int
	// File is the size of one *.cue file in bytes. Default 1 MiB.
	File int64
	// Timeout of one fetch from a remote. Default 60 s.
	Timeout time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 64 << 20
	}
	if l.Files == 0 {
		l.Files = 20_000
	}
	if l.File == 0 {
		l.File = 1 << 20
	}
	if l.Timeout == 0 {
		l.Timeout = time.Minute
	}
	return l
}

// Auth is what a remote is asked with. It prints as nothing.
type Auth struct {
	// Username and Password for http(s): HTTP Basic (RFC 7617). A forge's token
	// is a password; the name then hardly ever matters and defaults to "git".
	Username, Password string
	// SSHKey is the PEM text of a private key without a passphrase.
	SSHKey string
	// KnownHosts is the path of a file of host keys, as ssh(1) keeps it. It is
	// needed for ssh: an unknown host is refused.
	KnownHosts string
}

// String hides the credentials.
func (Auth) String() string { return "(hidden)" }

// GoString hides the credentials.
func (Auth) GoString() string { return "(hidden)" }

// LogValue hides the credentials.
func (Auth) LogValue() slog.Value { return slog.StringValue("(hidden)") }

// Options say how a source is read.
type Options struct {
	// Branch to follow. Default "main".
	Branch string
	// Folder takes a folder as it lies, uncommitted files and all. Without it a
	// folder with a clone in it stands for the clone's own repository, at what
	// is committed to Branch.
	Folder bool
	// CacheDir is where remotes are kept between fetches, one folder for each.
	// It is needed for remotes only, may be shared by several sources and
	// programs, and may be deleted while none runs.
	CacheDir string
	// Poll is the time between looks at a remote, give or take a tenth. Default
	// 60 s. Local sources are watched, and looked at as often in case the watch
	// misses something.
	Poll   time.Duration
	Limits Limits
	Auth   Auth
	// Log takes what is worth knowing and no error to the caller; may be nil.
	Log *slog.Logger
}

// Open is the source that spec names: a path or file:// URL, an https://, http://
// or ssh:// URL, or the short form of ssh, user@host:path. A local source must
// exist; a remote is first asked by Fetch.
func Open(spec string, o Options) (Source, error) {
	if o.Branch == "" {
		o.Branch = "main"
	}
	if why := oddRef(o.Branch); why != "" {
		return nil, fmt.Errorf("branch %q: %s", o.Branch, why)
	}
	if o.Poll <= 0 {
		o.Poll = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Limits = o.Limits.withDefaults()

	if path, local := localPath(spec); local {
		return openLocal(path, o)
	}
	where, auth, err := parseRemote(spec, o.Auth)
	if err != nil {
		return nil, err
	}
	o.Auth = auth
	return openRemote(where, o)
}

// Remote is the URL that spec names, without credentials; nil for a place on this
// host.
func Remote(spec string) (*url.URL, error) {
	if _, local := localPath(spec); local {
		return nil, nil
	}
	where, _, err := parseRemote(spec, Auth{})
	return where, err
}

func openLocal(path string, o Options) (Source, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open fleet repo: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: %s does not exist", ErrNotRepository, path)
	case err != nil:
		return nil, fmt.Errorf("open fleet repo: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("%w: %s is a file; give the folder it is in", ErrNotRepository, path)
	}
	if isGitDir(path) {
		return openBare(path, o)
	}
	if o.Folder {
		return openFolder(path, o)
	}
	if clone, err := cloneAt(path); err == nil {
		return openBare(clone.common, o)
	}
	return nil, fmt.Errorf("%w: %s has neither HEAD, objects and refs nor .git; make one with: git init --bare --initial-branch=%s %s",
		ErrNotRepository, path, o.Branch, path)
}

var scpLike = regexp.MustCompile(`^(?:([^@/:]+)@)?([^@/:]+):(.+)$`)

// localPath tells a path from a URL. What exists on disk is a path, whatever it
// looks like.
func localPath(spec string) (path string, local bool) {
	if rest, ok := strings.CutPrefix(spec, "file://"); ok {
		return rest, true
	}
	if strings.Contains(spec, "://") {
		return "", false
	}
	if _, err := os.Lstat(spec); err == nil {
		return spec, true
	}
	return spec, !scpLike.MatchString(spec)
}

// parseRemote reads the URL of a remote, and moves credentials out of it.
func parseRemote(spec string, auth Auth) (*url.URL, Auth, error) {
	if !strings.Contains(spec, "://") {
		m := scpLike.FindStringSubmatch(spec)
		user, host, path := m[1], m[2], m[3]
		if user == "" {
			user = "git"
		}
		if !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
		return &url.URL{Scheme: "ssh", User: url.User(user), Host: host, Path: path}, auth, nil
	}
	u, err := url.Parse(spec)
	if err != nil {
		// The parser's error repeats the text, which may hold a password.
		return nil, auth, errors.New("fleet repo: this is not a URL; it looks like https://host/path or ssh://git@host/path")
	}
	switch u.Scheme {
	case "http", "https":
		if u.User != nil && auth.Password == "" {
			auth.Username = u.User.Username()
			password, set := u.User.Password()
			if !set {
				auth.Username, password = "", auth.Username
			}
			auth.Password = password
		}
		u.User = nil
	case "ssh":
		if _, set := u.User.Password(); set {
			return nil, auth, errors.New("fleet repo: ssh takes a key, not a password: give the key's file and leave the password out of the URL")
		}
		if u.User == nil {
			u.User = url.User("git")
		}
	default:
		return nil, auth, fmt.Errorf("fleet repo: cannot read %s:// URLs; use https://, ssh:// or a path", u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, auth, fmt.Errorf("fleet repo: %s has no host", u.Redacted())
	}
	u.RawQuery, u.Fragment = "", ""
	return u, auth, nil
}

// oddRef says why a branch's name is refused (git-check-ref-format).
func oddRef(name string) string {
	if strings.HasPrefix(name, "refs/") {
		return "give the branch's short name"
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return "Git does not allow this name"
		}
	}
	if strings.Contains(name, "..") || strings.Contains(name, "@{") || strings.HasPrefix(name, "-") ||
		strings.HasSuffix(name, ".") || strings.ContainsAny(name, "\\ ~^:?*[\x7f") {
		return "Git does not allow this name"
	}
	for _, r := range name {
		if r < ' ' {
			return "Git does not allow this name"
		}
	}
	return ""
}

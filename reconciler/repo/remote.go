package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// remote is a repository reached by http(s) or ssh, kept in a bare repository of
// our own. The copy's branch is moved only when all below it is there.
type remote struct {
	url     *url.URL // without credentials
	opts    Options
	connect func(context.Context) (transport.UploadPackSession, error)
	dir     string
	copy    *filesystem.Storage
	reader  reader

	mu   sync.Mutex
	last *Revision
}

func openRemote(u *url.URL, o Options) (*remote, error) {
	if o.CacheDir == "" {
		return nil, fmt.Errorf("open %s: a remote needs a cache folder", u)
	}
	r := &remote{url: u, opts: o}
	var err error
	switch u.Scheme {
	case "ssh":
		r.connect, err = sshConnector(u, o.Auth)
	default:
		r.connect, err = httpConnector(u, o.Auth, o.Limits)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", u, err)
	}
	sum := sha256.Sum256([]byte(u.String()))
	r.dir = filepath.Join(o.CacheDir, hex.EncodeToString(sum[:8])+".git")
	if !isGitDir(r.dir) {
		if err := os.MkdirAll(r.dir, 0o700); err != nil {
			return nil, fmt.Errorf("make cache: %w", err)
		}
		if _, err := git.PlainInit(r.dir, true); err != nil && !errors.Is(err, git.ErrRepositoryAlreadyExists) {
			return nil, fmt.Errorf("make cache %s: %w", r.dir, err)
		}
	}
	r.copy = filesystem.NewStorage(osfs.New(r.dir), cache.NewObjectLRU(0))
	if err := removeLeftovers(filepath.Join(r.dir, "objects", "pack")); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if r.reader, err = newReader(filepath.Join(r.dir, "objects"), o.Limits); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	return r, nil
}

func (r *remote) Fetch(ctx context.Context) (*Revision, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev, err := r.fetch(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", r.url, r.opts.Auth.scrub(explain(err)))
	}
	return rev, nil
}

func (r *remote) fetch(ctx context.Context) (*Revision, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.opts.Limits.Timeout,
		fmt.Errorf("no end after %s: %w", r.opts.Limits.Timeout, context.DeadlineExceeded))
	defer cancel()
	r.reader.objects.rest()
	ask := func(have plumbing.Hash) (*Revision, error) {
		session, err := r.connect(ctx)
		if err != nil {
			return nil, err
		}
		defer session.Close()
		head, caps, err := r.head(ctx, session)
		if err != nil {
			return nil, err
		}
		if r.last != nil && r.last.Commit == head.String() {
			return r.last, nil
		}
		if have.IsZero() || !r.reader.objects.has(head) {
			if err := r.download(ctx, session, caps, head, have); err != nil {
				return nil, err
			}
		}
		rev, err := r.reader.revision(ctx, head, "", true)
		if err != nil {
			return nil, err
		}
		return r.mending(rev), nil
	}
	branch := plumbing.NewBranchReferenceName(r.opts.Branch)
	var have plumbing.Hash
	if ref, err := r.copy.Reference(branch); err == nil {
		if _, err := r.reader.objects.size(ref.Hash()); !r.discard(err) {
			have = ref.Hash()
		}
	}
	rev, err := ask(have)
	if r.discard(err) && !have.IsZero() {
		rev, err = ask(plumbing.ZeroHash)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		return nil, err
	}
	if rev != r.last {
		if err := r.copy.SetReference(plumbing.NewHashReference(branch, plumbing.NewHash(rev.Commit))); err != nil {
			return nil, fmt.Errorf("move branch in cache: %w", err)
		}
		r.last = rev
	}
	return rev, nil
}

// discard reports whether an error is the copy's own damage (a host that lost power
// leaves empty files), and makes room for another copy of the object.
func (r *remote) discard(err error) bool {
	var bad damage
	if !errors.As(err, &bad) {
		return false
	}
	r.opts.Log.Warn("cache found damaged, fetching again", "err", err)
	if err := r.reader.objects.discard(bad.hash); err != nil {
		r.opts.Log.Warn("damage not removed", "err", err)
	}
	return true
}

// mending is a revision that, when a file turns out to be damaged, has the next
// Fetch get it again.
func (r *remote) mending(rev *Revision) *Revision {
	read := rev.read
	rev.read = func(i int) ([]byte, error) {
		text, err := read(i)
		if r.discard(err) {
			r.mu.Lock()
			r.last = nil
			r.mu.Unlock()
		}
		return text, err
	}
	return rev
}

// head asks where the branch is.
func (r *remote) head(ctx context.Context, session transport.UploadPackSession) (plumbing.Hash, *capability.List, error) {
	refs, err := session.AdvertisedReferencesContext(ctx)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return plumbing.ZeroHash, nil, noBranch(r.url.String(), r.opts.Branch, nil)
	}
	if err != nil {
		return plumbing.ZeroHash, nil, err
	}
	if head, ok := refs.References[plumbing.NewBranchReferenceName(r.opts.Branch).String()]; ok {
		return head, refs.Capabilities, nil
	}
	var names []string
	for name := range refs.References {
		names = append(names, name)
	}
	return plumbing.ZeroHash, nil, noBranch(r.url.String(), r.opts.Branch, names)
}

// download takes in what head has and have does not.
func (r *remote) download(ctx context.Context, session transport.UploadPackSession, caps *capability.List, head, have plumbing.Hash) error {
	req := packp.NewUploadPackRequestFromCapabilities(caps)
	if caps.Supports(capability.NoProgress) {
		if err := req.Capabilities.Set(capability.NoProgress); err != nil {
			return err
		}
	}
	req.Wants = []plumbing.Hash{head}
	if !have.IsZero() {
		req.Haves = []plumbing.Hash{have}
	}
	answer, err := session.UploadPack(ctx, req)
	if err != nil {
		return fmt.Errorf("ask for objects: %w", err)
	}
	defer answer.Close()
	var pack io.Reader = answer
	switch {
	case req.Capabilities.Supports(capability.Sideband64k):
		pack = sideband.NewDemuxer(sideband.Sideband64k, answer)
	case req.Capabilities.Supports(capability.Sideband):
		pack = sideband.NewDemuxer(sideband.Sideband, answer)
	}
	if err := storePack(ctx, filepath.Join(r.dir, "objects"), pack, r.opts.Limits.Bytes); err != nil {
		return fmt.Errorf("take in objects: %w", err)
	}
	return nil
}

func (r *remote) At(ctx context.Context, commit string) (*Revision, error) {
	rev, err := r.reader.at(ctx, commit, "", func() error {
		_, err := r.Fetch(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.url, err)
	}
	return r.mending(rev), nil
}

func (r *remote) Watch(ctx context.Context, changed func()) error {
	return poll(ctx, r.opts.Poll, changed)
}

func (r *remote) String() string { return r.url.String() }

func (r *remote) Close() error { return r.reader.objects.close() }

// explain turns the errors of transports that a person must act on into words,
// without what the server said: it may repeat what it was sent.
func explain(err error) error {
	switch {
	case errors.Is(err, transport.ErrAuthenticationRequired):
		return fmt.Errorf("%w: the server asks for a name and password or token, or does not take the one given (401)", ErrDenied)
	case errors.Is(err, transport.ErrAuthorizationFailed):
		return fmt.Errorf("%w: these credentials may not read the repository (403)", ErrDenied)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return fmt.Errorf("%w: the server has no such repository, or hides it from these credentials", ErrNotRepository)
	}
	return err
}

// scrub takes credentials and control characters out of an error's text, parts of
// which a server may have chosen; errors.Is goes on working.
func (a Auth) scrub(err error) error {
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, err.Error())
	for _, secret := range []string{a.Password, url.QueryEscape(a.Password), url.PathEscape(a.Password)} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	if text == err.Error() {
		return err
	}
	return scrubbed{text, err}
}

type scrubbed struct {
	text string
	err  error
}

func (s scrubbed) Error() string        { return s.text }
func (s scrubbed) Is(target error) bool { return errors.Is(s.err, target) }

// removeLeftovers deletes what a killed fetch left behind.
func removeLeftovers(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "tmp_*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil && time.Since(info.ModTime()) > time.Hour {
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

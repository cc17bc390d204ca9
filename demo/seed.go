package demo

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/kokoa-proxy/kokoa/examples"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

// seed makes the bare fleet repo from examples/fleet-repo, and then commits this
// machine's addresses and keys on top. In a folder of an earlier demo only the
// second commit is made, and only when something differs.
func (d *demo) seed(context.Context) error {
	bare := d.path("fleet.git")
	storage := filesystem.NewStorage(osfs.New(bare), cache.NewObjectLRUDefault())
	tree := memfs.New()
	r, err := git.Open(storage, tree)
	switch {
	case errors.Is(err, git.ErrRepositoryNotExists):
		if r, err = git.InitWithOptions(storage, tree, git.InitOptions{DefaultBranch: plumbing.Main}); err != nil {
			return fmt.Errorf("make %s: %w", bare, err)
		}
		config, err := r.Config()
		if err != nil {
			return err
		}
		config.Core.IsBare = true
		// A clone's `kokoa plan` finds the secret by this; see `kokoa plan --help`.
		config.Raw.SetOption("kokoa", "", "secretFile", d.path("secret"))
		config.Raw.SetOption("kokoa", "", "state", d.path("control"))
		if err := r.SetConfig(config); err != nil {
			return err
		}
		if err := write(tree, d.example); err != nil {
			return err
		}
		if err := commit(r, "Start from the example fleet"); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("open %s: %w", bare, err)
	default:
		w, err := r.Worktree()
		if err != nil {
			return err
		}
		if err := w.Checkout(&git.CheckoutOptions{Branch: plumbing.Main, Force: true}); err != nil {
			return fmt.Errorf("read %s: %w", bare, err)
		}
	}
	if err := write(tree, d.here); err != nil {
		return err
	}
	if err := commit(r, "Demo: this machine's addresses and keys"); err != nil {
		return err
	}
	// For `nsupdate -k`: the key that the built-in DNS server takes.
	key := d.secret.TSIG("kokoa.test")
	text := fmt.Sprintf("key \"kokoa.test\" {\n\talgorithm hmac-sha256;\n\tsecret %q;\n};\n", base64.StdEncoding.EncodeToString(key[:]))
	return atomicfile.Write(d.path("tsig.key"), []byte(text), 0o600)
}

// write puts files into the tree.
func write(tree billy.Filesystem, files func() (map[string]string, error)) error {
	all, err := files()
	if err != nil {
		return err
	}
	for name, text := range all {
		if err := tree.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := tree.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = f.Write([]byte(text))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func commit(r *git.Repository, message string) error {
	w, err := r.Worktree()
	if err != nil {
		return err
	}
	if err := w.AddGlob("."); err != nil {
		return err
	}
	status, err := w.Status()
	if err != nil {
		return err
	}
	if status.IsClean() {
		return nil
	}
	_, err = w.Commit(message, &git.CommitOptions{Author: &object.Signature{Name: "Kokoa demo", Email: "demo@kokoa.test", When: time.Now()}})
	return err
}

// example is examples/fleet-repo, with the services where they really listen.
func (d *demo) example() (map[string]string, error) {
	out := map[string]string{}
	root, err := fs.Sub(examples.FleetRepo, "fleet-repo")
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, name)
		text := string(data)
		for url, at := range d.services {
			text = strings.ReplaceAll(text, url+"\"", fmt.Sprintf("http://localhost:%d\"", at.Port()))
		}
		out[name] = text
		return err
	})
	return out, err
}

// here are the files that say where the demo's edges and origins are.
func (d *demo) here() (map[string]string, error) {
	out := map[string]string{
		"fleet.cue": fmt.Sprintf(`package fleet

// Written by the demo for this machine. Everything else is examples/fleet-repo.
fleet: {
	name: "demo"
	domains: ["kokoa.test"]
	network: %q
	dns: {
		provider: "builtin"
		listen:   %q
		ttl:      "5s"
		nameservers: ["ns.kokoa.test"]
	}
}
`, network, d.dns),
	}
	for _, p := range d.edges {
		out["edges/"+p.name+".cue"] = fmt.Sprintf(`package fleet

edge: %q: {
	addresses: [%q]
	endpoint:       %q
	tunnel_address: %q
}
`, p.name, p.address, d.endpoint(p), p.tunnel)
	}
	for _, name := range originNames {
		out["origins/"+name+".cue"] = fmt.Sprintf(`package fleet

origin: %q: {
	public_key:     %q
	tunnel_address: %q
}
`, name, d.agentKeys[name].Public(), originAddress(name))
	}
	return out, nil
}

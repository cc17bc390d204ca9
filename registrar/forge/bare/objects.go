package bare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"

	"github.com/kokoa-proxy/kokoa/registrar/forge"
)

// objects are a repository's objects, and new ones that are not written yet. It is
// for one step: what is pushed or packed later it need not see.
type objects struct {
	dir   string
	store *filesystem.Storage
	fresh []plumbing.EncodedObject
}

func openObjects(dir string) *objects {
	return &objects{dir: dir, store: filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRUDefault())}
}

// supported asks go-git, which refuses the kinds of repository that it cannot read
// (SHA-256, reftable).
func supported(dir string) error {
	_, err := git.Open(openObjects(dir).store, nil)
	return err
}

// proposed is the proposal's commit on a base, without who and when.
func (o *objects) proposed(base plumbing.Hash, p forge.Proposal) (*object.Commit, error) {
	parent, err := object.GetCommit(o.store, base)
	if err != nil {
		return nil, fmt.Errorf("read commit %s: %w", base, err)
	}
	edits := map[string]entry{}
	for _, f := range p.Files {
		if !fs.ValidPath(f.Path) || f.Path == "." || slices.ContainsFunc(strings.Split(f.Path, "/"), reserved) {
			return nil, fmt.Errorf("no file of the repo can be named %q", f.Path)
		}
		if _, twice := edits[f.Path]; twice {
			return nil, fmt.Errorf("file %s is named twice", f.Path)
		}
		edits[f.Path] = entry{}
		if f.Content == nil {
			continue
		}
		was, err := o.find(parent.TreeHash, f.Path)
		if err != nil {
			return nil, err
		}
		mode := filemode.Regular
		if was.mode == filemode.Executable {
			mode = filemode.Executable
		}
		edits[f.Path] = entry{mode, o.blob(f.Content)}
	}
	tree, err := o.edited(parent.TreeHash, edits)
	if err != nil {
		return nil, err
	}
	message := strings.TrimSpace(p.Title+"\n\n"+p.Body) + "\n"
	return &object.Commit{TreeHash: tree, ParentHashes: []plumbing.Hash{base}, Message: message}, nil
}

// reserved reports whether Git itself takes a name, however it is written.
func reserved(name string) bool { return strings.EqualFold(name, ".git") }

// same reports whether a commit says the same as another, whoever made it and when.
// No commit does not.
func (o *objects) same(hash plumbing.Hash, c *object.Commit) (bool, error) {
	if hash.IsZero() {
		return false, nil
	}
	is, err := object.GetCommit(o.store, hash)
	if err != nil {
		return false, fmt.Errorf("read commit %s: %w", hash, err)
	}
	return is.TreeHash == c.TreeHash && is.Message == c.Message && slices.Equal(is.ParentHashes, c.ParentHashes), nil
}

// rebased is the tree of a base with what changed from fork to head, or ErrConflict
// when the base's changes touch the same files.
func (o *objects) rebased(ctx context.Context, fork, head, base plumbing.Hash) (plumbing.Hash, error) {
	var trees [3]plumbing.Hash
	for i, hash := range []plumbing.Hash{fork, head, base} {
		c, err := object.GetCommit(o.store, hash)
		if err != nil {
			return plumbing.ZeroHash, fmt.Errorf("read commit %s: %w", hash, err)
		}
		trees[i] = c.TreeHash
	}
	was, wants := map[string]entry{}, map[string]entry{}
	if err := o.compare(ctx, "", trees[0], trees[1], was, wants); err != nil {
		return plumbing.ZeroHash, err
	}
	for path := range wants {
		is, err := o.find(trees[2], path)
		switch {
		case err != nil:
			return plumbing.ZeroHash, err
		case is != was[path] && is != wants[path]:
			return plumbing.ZeroHash, fmt.Errorf("%w: %s has changed", forge.ErrConflict, path)
		}
	}
	return o.edited(trees[2], wants)
}

// compare adds what differs between two folders, by path: what was there, and what
// is there instead. What is gone is there as nothing.
func (o *objects) compare(ctx context.Context, folder string, from, to plumbing.Hash, was, wants map[string]entry) error {
	if from == to {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	old, err := o.entries(from)
	if err != nil {
		return err
	}
	next, err := o.entries(to)
	if err != nil {
		return err
	}
	names := maps.Clone(old)
	maps.Copy(names, next)
	for name := range names {
		a, b := old[name], next[name]
		if a == b {
			continue
		}
		path := folder + name
		// A file and a folder of one name are two changes: one goes, one comes.
		var inner [2]plumbing.Hash
		if a.mode == filemode.Dir {
			inner[0], a = a.hash, entry{}
		}
		if b.mode == filemode.Dir {
			inner[1], b = b.hash, entry{}
		}
		if a != b {
			was[path], wants[path] = a, b
		}
		if err := o.compare(ctx, path+"/", inner[0], inner[1], was, wants); err != nil {
			return err
		}
	}
	return nil
}

// entry is what a tree has at a path; the zero entry is nothing.
type entry struct {
	mode filemode.FileMode
	hash plumbing.Hash
}

func entryOf(e object.TreeEntry) entry { return entry{e.Mode, e.Hash} }

// find is what a tree has at a path.
func (o *objects) find(tree plumbing.Hash, path string) (entry, error) {
	entries, err := o.entries(tree)
	if err != nil {
		return entry{}, err
	}
	name, rest, deep := strings.Cut(path, "/")
	e := entries[name]
	switch {
	case !deep:
		return e, nil
	case e.mode == filemode.Dir:
		return o.find(e.hash, rest)
	}
	return entry{}, nil
}

func (o *objects) entries(tree plumbing.Hash) (map[string]entry, error) {
	entries := map[string]entry{}
	if tree.IsZero() {
		return entries, nil
	}
	t, err := object.GetTree(o.store, tree)
	if err != nil {
		return nil, fmt.Errorf("read tree %s: %w", tree, err)
	}
	for _, e := range t.Entries {
		entries[e.Name] = entryOf(e)
	}
	return entries, nil
}

// edited is a tree with other entries at some paths. Folders come and go with what
// is in them; a file where a folder is, or the other way, is ErrConflict.
func (o *objects) edited(tree plumbing.Hash, edits map[string]entry) (plumbing.Hash, error) {
	next, err := o.editedFolder(tree, edits)
	if err == nil && next.IsZero() {
		return o.add(&object.Tree{})
	}
	return next, err
}

// editedFolder is zero when the folder is empty, as the zero tree is.
func (o *objects) editedFolder(tree plumbing.Hash, edits map[string]entry) (plumbing.Hash, error) {
	entries, err := o.entries(tree)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	added := map[string]entry{}
	folders := map[string]map[string]entry{}
	for path, e := range edits {
		name, rest, deep := strings.Cut(path, "/")
		switch {
		case deep && folders[name] == nil:
			folders[name] = map[string]entry{rest: e}
		case deep:
			folders[name][rest] = e
		case !e.hash.IsZero():
			added[name] = e
		case entries[name].mode != filemode.Dir:
			delete(entries, name)
		}
	}
	// After files went and before others come, a folder may take the place of a file,
	// and a file that of a folder.
	for name, inner := range folders {
		is, there := entries[name]
		if is.mode != filemode.Dir {
			is.hash = plumbing.ZeroHash
		}
		next, err := o.editedFolder(is.hash, inner)
		switch {
		case err != nil:
			return plumbing.ZeroHash, err
		case there && is.mode != filemode.Dir && !next.IsZero():
			return plumbing.ZeroHash, fmt.Errorf("%w: %s is a file", forge.ErrConflict, name)
		case !next.IsZero():
			entries[name] = entry{filemode.Dir, next}
		case is.mode == filemode.Dir:
			delete(entries, name)
		}
	}
	for name, e := range added {
		if entries[name].mode == filemode.Dir {
			return plumbing.ZeroHash, fmt.Errorf("%w: %s is a folder", forge.ErrConflict, name)
		}
		entries[name] = e
	}
	if len(entries) == 0 {
		return plumbing.ZeroHash, nil
	}
	var t object.Tree
	for name, e := range entries {
		t.Entries = append(t.Entries, object.TreeEntry{Name: name, Mode: e.mode, Hash: e.hash})
	}
	sort.Sort(object.TreeEntrySorter(t.Entries))
	return o.add(&t)
}

// blob takes up a new file, to be written by flush.
func (o *objects) blob(content []byte) plumbing.Hash {
	var m plumbing.MemoryObject
	m.SetType(plumbing.BlobObject)
	m.Write(content) // into memory
	o.fresh = append(o.fresh, &m)
	return m.Hash()
}

// add takes up a new object, to be written by flush.
func (o *objects) add(v interface {
	Encode(plumbing.EncodedObject) error
}) (plumbing.Hash, error) {
	var m plumbing.MemoryObject
	if err := v.Encode(&m); err != nil {
		return plumbing.ZeroHash, err
	}
	o.fresh = append(o.fresh, &m)
	return m.Hash(), nil
}

// flush writes what was added and is not there yet. It is on disk then: a ref that
// names it may follow.
func (o *objects) flush() error {
	folders := map[string]bool{}
	for _, v := range o.fresh {
		if o.store.HasEncodedObject(v.Hash()) == nil {
			continue
		}
		if _, err := o.store.SetEncodedObject(v); err != nil {
			return fmt.Errorf("write object %s: %w", v.Hash(), err)
		}
		name := v.Hash().String()
		folder := filepath.Join(o.dir, "objects", name[:2])
		if err := syncDisk(filepath.Join(folder, name[2:])); err != nil {
			return fmt.Errorf("write object %s: %w", name, err)
		}
		folders[folder], folders[filepath.Dir(folder)] = true, true
	}
	o.fresh = nil
	for folder := range folders {
		if err := syncDisk(folder); err != nil {
			return fmt.Errorf("write objects: %w", err)
		}
	}
	return nil
}

// missing reports whether an object, a pack or a folder was not found.
func missing(err error) bool {
	for _, missing := range []error{plumbing.ErrObjectNotFound, dotgit.ErrPackfileNotFound, dotgit.ErrIdxNotFound, fs.ErrNotExist} {
		if errors.Is(err, missing) {
			return true
		}
	}
	return false
}

// syncDisk puts a file, or a folder's entries, on disk.
func syncDisk(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

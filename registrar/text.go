package registrar

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kokoa-proxy/kokoa/fleet"
	"github.com/kokoa-proxy/kokoa/join"
	"github.com/kokoa-proxy/kokoa/registrar/forge"
	"github.com/kokoa-proxy/kokoa/registrar/ledger"
	"github.com/kokoa-proxy/kokoa/schema/edit"
)

// What begins the branches that Kokoa proposes.
const (
	batchPrefix  = "kokoa/register/batch-"
	rotatePrefix = "kokoa/rotate/"
	cleanUp      = "kokoa/expired"
	removePrefix = "kokoa/remove/"
)

// branchOf is the branch of registrations that are proposed together: that of its
// host for one, and one of all their keys for several, in whatever order.
func branchOf(group []ledger.Registration) string {
	if len(group) == 1 {
		return join.Branch(group[0].Name, group[0].Key)
	}
	var all []string
	for _, r := range group {
		all = append(all, r.Name+" "+r.Key.String())
	}
	slices.Sort(all)
	sum := sha256.Sum256([]byte(strings.Join(all, "\n")))
	return batchPrefix + hex.EncodeToString(sum[:6])
}

// register is the proposal that makes a group origins.
func register(f *fleet.Fleet, read func(string) ([]byte, error), branch string, group []ledger.Registration) (forge.Proposal, error) {
	p := forge.Proposal{Branch: branch}
	var body strings.Builder
	for _, r := range group {
		file, err := originFile(f, read, r)
		if err != nil {
			return forge.Proposal{}, fmt.Errorf("origin %s: %w", r.Name, err)
		}
		p.Files = append(p.Files, file)
		describe(&body, r, file.Path)
	}
	if p.Title = fmt.Sprintf("Register origin %s", group[0].Name); len(group) > 1 {
		p.Title = fmt.Sprintf("Register %d origins", len(group))
	}
	body.WriteString("Merging this lets the host keep a tunnel to every edge of the fleet; it makes nothing public until a route names it. ")
	body.WriteString("The host made its key itself and proved that it holds the private half.\n")
	p.Body = body.String()
	return p, nil
}

// originFile is the file of a registration: a new one, or that of the origin whose
// key it would replace.
func originFile(f *fleet.Fleet, read func(string) ([]byte, error), r ledger.Registration) (forge.File, error) {
	if o, exists := f.Origins[r.Name]; exists {
		return edited(read, o.Position.File, func(src []byte) ([]byte, error) {
			src, err := edit.SetField(src, "origin", r.Name, "public_key", r.Key.String())
			if err != nil || o.NextKey.IsZero() {
				return src, err
			}
			return edit.RemoveField(src, "origin", r.Name, "next_key")
		})
	}
	o := fleet.Origin{Name: r.Name, PublicKey: r.Key, TunnelAddress: r.Address, Hosts: r.Hosts, Expires: r.Expires}
	file := forge.File{Path: path.Join(r.Folder, r.Name+".cue"), Content: edit.Origin(o)}
	if _, err := read(file.Path); err == nil {
		// Somebody keeps something else in a file of that name.
		sum := sha256.Sum256(r.Key[:])
		file.Path = path.Join(r.Folder, r.Name+"-"+hex.EncodeToString(sum[:3])+".cue")
	}
	return file, nil
}

// edited is a file of the repo with a change.
func edited(read func(string) ([]byte, error), name string, change func([]byte) ([]byte, error)) (forge.File, error) {
	src, err := read(name)
	if err != nil {
		return forge.File{}, fmt.Errorf("edit %s: %w", name, err)
	}
	if src, err = change(src); err != nil {
		return forge.File{}, fmt.Errorf("edit %s:%w", name, err) // its place follows
	}
	return forge.File{Path: name, Content: src}, nil
}

// describe writes what a reviewer wants to know of a registration.
func describe(b *strings.Builder, r ledger.Registration, file string) {
	fmt.Fprintf(b, "### Origin `%s`\n\n", r.Name)
	for _, flag := range r.Flags {
		fmt.Fprintf(b, "> ⚠️ **Look twice:** %s.\n\n", flag)
	}
	row := func(what, format string, args ...any) {
		fmt.Fprintf(b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	b.WriteString("| | |\n|---|---|\n")
	row("File", "`%s`", file)
	row("Public key", "`%s`", r.Key)
	row("Tunnel address", "`%s`", r.Address)
	hosts := "any host of the fleet's domains"
	if len(r.Hosts) > 0 {
		hosts = "`" + strings.Join(r.Hosts, "`, `") + "`"
	}
	row("May serve", "%s", hosts)
	ends := "never"
	if r.Expires != nil {
		ends = r.Expires.UTC().Format(time.RFC3339)
	}
	row("Ends", "%s", ends)
	row("Host", "%s, %s, kokoa-agent %s", plain(r.Hostname), plain(r.Platform), plain(r.Version))
	row("Asked", "%s, with token `%s`", r.At.UTC().Format(time.RFC3339), r.Token)
	b.WriteByte('\n')
}

package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kokoa-proxy/kokoa/agent"
	"github.com/kokoa-proxy/kokoa/agent/service"
	"github.com/kokoa-proxy/kokoa/internal/atomicfile"
)

const uninstallUsage = `usage: kokoa-agent uninstall [--yes] [flags]

Uninstall stops the agent and removes its service, its config with the private key, its
data folder and kokoa-agent itself. What is not there is no error. The fleet still has the
origin after that, until somebody takes it out there.

  --yes           do not ask
` + whichAgent

func (c *commands) uninstall(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := newFlags("uninstall", uninstallUsage)
	yes, where := flags.Bool("yes", false, ""), flags.place()
	if err := flags.parse(args, stdout); errors.Is(err, errHelp) {
		return nil
	} else if err != nil {
		return err
	}
	at, err := where.place(c)
	if err != nil {
		return err
	}
	name := ""
	if b, err := agent.ReadBootstrap(at.config); err == nil {
		name = b.Name
	}
	p := newProgress(stdout)
	if !*yes {
		if !isTerminal(c.stdin) {
			return flags.misused("nobody can be asked here: --yes removes without asking")
		}
		if !c.sure(stdout, name, at) {
			return errors.New("nothing was removed")
		}
	}
	// An agent may have been put into the background before there was a systemd.
	for _, s := range []service.Service{service.Find(ctx, at.where()), service.Find(ctx, service.Where{Alone: true, Data: at.data})} {
		if err := s.Remove(ctx); err != nil {
			return fmt.Errorf("remove the agent's service (%s): %w", s, err)
		}
	}
	if r, err := agent.ReadReport(ctx, at.data); err == nil {
		return fmt.Errorf("an agent of origin %q that was not started by install still runs with %s: end it first", r.Name, at.data)
	}
	p.done("Stopped the agent and removed its service")
	for _, remove := range []struct {
		what string
		do   func() (bool, error)
	}{
		{at.config, func() (bool, error) { return removeConfig(at.config) }},
		{at.data, func() (bool, error) { return removeData(at.data) }},
		{at.binary, func() (bool, error) { return removeFile(at.binary) }},
	} {
		switch was, err := remove.do(); {
		case err != nil:
			return fmt.Errorf("remove %s: %w", remove.what, err)
		case was:
			p.done("Removed %s", remove.what)
		}
	}
	if at.prefix != "" {
		for _, path := range []string{at.config, at.data, at.binary} {
			removeEmpty(path, at.prefix)
		}
	}
	if name != "" {
		p.say("\nThe fleet still has the origin. To take it out there: kokoa origin remove %s", name)
	}
	return nil
}

// sure asks the person at the terminal.
func (c *commands) sure(stdout io.Writer, name string, at place) bool {
	if name != "" {
		fmt.Fprintf(stdout, "This takes origin %q off this host", name)
	} else {
		fmt.Fprint(stdout, "This takes the agent off this host")
	}
	fmt.Fprintf(stdout, ": its key in %s is gone then, for good. Go on? [y/N] ", at.config)
	answer, err := bufio.NewReader(c.stdin).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return err == nil && (answer == "y" || answer == "yes")
}

func removeFile(path string) (was bool, err error) {
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// removeConfig removes the config, and what joins that did not end left beside it.
func removeConfig(path string) (was bool, err error) {
	was, err = removeFile(path)
	if err != nil {
		return was, err
	}
	begun := path + pendingSuffix
	if _, err := removeFile(begun); err != nil {
		return was, err
	}
	for _, unfinished := range []string{path, begun} {
		if err := atomicfile.Sweep(unfinished); err != nil {
			return was, err
		}
	}
	os.Remove(filepath.Dir(path)) // when it is empty
	return was, nil
}

// removeData removes a data folder: all of it where it is the agent's by its name, and
// else the agent's files in it.
func removeData(dir string) (was bool, err error) {
	if !exists(dir) {
		return false, nil
	}
	if filepath.Base(dir) == "kokoa-agent" {
		// Of an agent with a user of its own systemd keeps it elsewhere.
		if elsewhere, err := filepath.EvalSymlinks(dir); err == nil && filepath.Base(elsewhere) == "kokoa-agent" {
			if err := os.RemoveAll(elsewhere); err != nil {
				return true, err
			}
		}
		return true, os.RemoveAll(dir)
	}
	if err := agent.RemoveData(dir); err != nil {
		return true, err
	}
	os.Remove(dir) // when it is empty
	return true, nil
}

// removeEmpty removes the folders above path that are empty, up to but without top.
func removeEmpty(path, top string) {
	for dir := filepath.Dir(path); strings.HasPrefix(dir, top+string(filepath.Separator)); dir = filepath.Dir(dir) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

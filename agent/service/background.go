package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kokoa-proxy/kokoa/internal/privatefile"
)

// The files of an agent in the background, in its data folder.
const (
	pidName = "agent.pid"
	logName = "agent.log"
	// oldLogName is the log before the last start that found it long.
	oldLogName = "agent.log.old"
	longLog    = 4 << 20
)

// background runs an agent apart from the terminal, without anybody to look after it.
// The agent holds a lock on the file with its process id for as long as it lives: an id
// that another process has by now is never taken for the agent's.
type background struct {
	data, again, why string
	// agent is the last that was started, for Notice.
	agent Agent
}

const (
	// patience is how long an agent that was told to end may take; its own grace is
	// 10 s.
	patience = 20 * time.Second
	look     = 50 * time.Millisecond
)

func (b *background) path(name string) string { return filepath.Join(b.data, name) }

func (b *background) Start(ctx context.Context, a Agent, fresh bool) error {
	b.agent = a
	if err := privatefile.Folder(b.data); err != nil {
		return fmt.Errorf("open data folder: %w", err)
	}
	if fresh {
		if err := b.Stop(ctx); err != nil {
			return err
		}
	}
	pid, err := os.OpenFile(b.path(pidName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	defer pid.Close()
	if free, err := lock(pid); err != nil || !free {
		return err // it runs
	}
	if info, err := os.Stat(b.path(logName)); err == nil && info.Size() > longLog {
		if err := os.Rename(b.path(logName), b.path(oldLogName)); err != nil {
			return fmt.Errorf("start agent: %w", err)
		}
	}
	log, err := os.OpenFile(b.path(logName), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	defer log.Close()
	c := exec.Command(a.Binary, "run", "--config", a.Config)
	c.Dir = "/"
	c.Stdout, c.Stderr = log, log
	// The lock goes with the open file, to the agent.
	c.ExtraFiles = []*os.File{pid}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	text := strconv.Itoa(c.Process.Pid) + "\n"
	err = pid.Truncate(0)
	if err == nil {
		_, err = pid.WriteAt([]byte(text), 0)
	}
	if err != nil {
		// One that could not be stopped later must not run.
		c.Process.Kill()
		c.Wait()
		return fmt.Errorf("start agent: %w", err)
	}
	return c.Process.Release()
}

func (b *background) Stop(ctx context.Context) error {
	f, err := os.Open(b.path(pidName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop agent: %w", err)
	}
	defer f.Close()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if ended, err := b.end(ctx, f, signal); err != nil || ended {
			return err
		}
	}
	return fmt.Errorf("stop agent: the process in %s does not end", f.Name())
}

// end sends a signal to the process that holds the file's lock, and reports whether it
// has ended in good time.
func (b *background) end(ctx context.Context, f *os.File, signal syscall.Signal) (bool, error) {
	sent := false
	for until := time.Now().Add(patience); time.Now().Before(until); {
		free, err := lock(f)
		if err != nil || free {
			return free, err
		}
		// The lock is held, so the process lives, and the id is its own.
		if !sent {
			if sent, err = b.signal(f, signal); err != nil {
				return false, fmt.Errorf("stop agent: %w", err)
			}
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return false, nil
}

// signal sends a signal to the process whose id the file has, if one is in it yet.
func (b *background) signal(f *os.File, s syscall.Signal) (sent bool, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil || len(text) == 0 {
		return false, err
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || id <= 1 {
		return false, fmt.Errorf("%s holds no process id, and an agent holds it: end that one by hand", f.Name())
	}
	if err := syscall.Kill(id, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return false, err
	}
	return true, nil
}

func (b *background) Remove(ctx context.Context) error {
	if err := b.Stop(ctx); err != nil {
		return err
	}
	for _, name := range []string{pidName, logName, oldLogName} {
		if _, err := remove(b.path(name)); err != nil {
			return err
		}
	}
	return nil
}

func (b *background) Notice() string {
	return fmt.Sprintf("Nothing looks after it, since %s: it will not survive a reboot. To start it again: %s. To have something of your own start it: %s run --config %s",
		b.why, b.again, b.agent.Binary, b.agent.Config)
}

func (b *background) Logs() string { return "tail " + b.path(logName) }

func (b *background) String() string { return "in the background" }

// lock takes the lock on a file, and reports whether it was free. The lock ends when
// the last copy of the open file is closed.
func lock(f *os.File) (free bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

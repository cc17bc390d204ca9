package command

import (
	"fmt"
	"io"
	"os"
)

// progress tells a person what was done, one tick a line. What is waited for is
// replaced by its tick on a terminal, and stays above it elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	// open is a line that the next tick replaces, or "".
	open string
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && isTerminal(f)}
}

// isTerminal takes any character device for one: of those, only terminals have
// somebody in front of them who may type a token, or read a line as it changes.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// done says what was done.
func (p *progress) done(format string, args ...any) { p.line("✓ ", format, args...) }

// note says more about what was done last.
func (p *progress) note(format string, args ...any) { p.line("  ", format, args...) }

// warn says what may need the person. What is waited for is waited for still.
func (p *progress) warn(format string, args ...any) {
	open := p.open
	p.line("! ", format, args...)
	if open != "" {
		p.wait("%s", open)
	}
}

// say is a line by itself.
func (p *progress) say(format string, args ...any) { p.line("", format, args...) }

// wait says what is waited for.
func (p *progress) wait(format string, args ...any) {
	p.clear()
	if !p.terminal {
		p.line("· ", format, args...)
		return
	}
	p.open = fmt.Sprintf(format, args...)
	fmt.Fprint(p.w, "· "+p.open)
}

func (p *progress) line(mark, format string, args ...any) {
	p.clear()
	fmt.Fprintf(p.w, mark+format+"\n", args...)
}

// clear takes back a line that is open.
func (p *progress) clear() {
	if p.open != "" {
		fmt.Fprint(p.w, "\r\x1b[2K")
		p.open = ""
	}
}

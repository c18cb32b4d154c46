package main

import (
	"fmt"
	"io"
	"time"

	"dm/api"
)

// Progress is shown only where it is worth it: a command that ends quickly says nothing.
const (
	progressAfter    = time.Second
	progressTerminal = 100 * time.Millisecond // between redraws of the line
	progressPlain    = 5 * time.Second        // between the lines of a transfer, where nobody watches
	progressQuiet    = 10 * time.Second       // before the first and between the lines of anything else there
)

// progress shows how far a long operation is: one line that is redrawn on a terminal, a line now and then elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	next     time.Time
	drawn    bool
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, terminal: terminalOf(w) >= 0, next: time.Now().Add(progressQuiet)}
	if p.terminal {
		p.next = time.Now().Add(progressAfter)
	}
	return p
}

func (p *progress) show(at api.Progress) {
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	line := at.Stage + " " + amount(at.Done, at.Bytes)
	if at.Total > 0 {
		line += fmt.Sprintf(" / %s %.2f%%", amount(at.Total, at.Bytes), 100*float64(at.Done)/float64(at.Total))
	}
	if p.terminal {
		p.next = now.Add(progressTerminal)
		p.drawn = true
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
		return
	}
	p.next = now.Add(progressQuiet)
	fmt.Fprintln(p.w, line)
}

// end takes the line away, so that what follows stands alone.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func amount(n int64, bytes bool) string {
	if !bytes {
		return fmt.Sprint(n)
	}
	if n == 0 {
		return "0 kiB"
	}
	return size(n)
}

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"dm/api"
)

// travel is what push, pull and clone have in common: how they say what travels.
type travel struct {
	json   bool
	result api.TransferResult
}

func (t *travel) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.json, "json", false, "print what traveled as JSON")
}

// run runs a transfer and tells of it: what is said while it runs goes to stderr, what came of it to stdout.
func (t *travel) run(a *app, begins, traveled string, do func(func(api.Progress), func(api.Travel) error) (api.TransferResult, error)) error {
	out := a.out
	if t.json {
		out = io.Discard
	}
	b := newBar(a.err)
	result, err := do(b.show, func(item api.Travel) error {
		b.finish()
		return written(tellTravel(out, begins, item))
	})
	b.stop()
	if err != nil {
		return err
	}
	t.result = result
	if t.json {
		return writeJSON(a.out, result)
	}
	_, err = fmt.Fprintln(out, summary(traveled, result))
	return written(err)
}

// tellTravel writes one thing that a transfer has to tell.
func tellTravel(w io.Writer, begins string, item api.Travel) (err error) {
	say := func(format string, args ...any) { _, err = fmt.Fprintf(w, format+"\n", args...) }
	switch item.Did {
	case "":
		say("%s %s to %s", begins, item.From, item.To)
	case api.DidNothing:
		say("%s is up to date at %.12s", item.Ref, item.New)
	case api.DidAhead:
		say("%s is ahead of the remote, which is at %.12s: there is nothing to pull", item.Ref, item.New)
	case api.DidMake:
		say("%s is new, at %.12s", item.Ref, item.New)
	case api.DidMove:
		say("%s moved from %.12s to %.12s", item.Ref, item.Old, item.New)
	case api.DidStash:
		say("%s has diverged: what was at %.12s is kept as %s", item.Ref, item.New, item.Detail)
	case api.DidClash:
		say("%s stands for another commit on the other side and was left alone", item.Ref)
	}
	return err
}

// summary says what traveled.
func summary(traveled string, r api.TransferResult) string {
	switch {
	case r.Objects == 0:
		return traveled + " nothing: all of it was there"
	case r.Lazy:
		return fmt.Sprintf("%s %s in %s objects; the rest comes when it is read", traveled, decimal(r.Bytes), humanize.Comma(r.Objects))
	}
	s := fmt.Sprintf("%s %s of %s (", traveled, decimal(r.Bytes), decimal(r.Size))
	if r.Total >= r.Objects {
		s += fmt.Sprintf("%s of %s objects)", humanize.Comma(r.Objects), humanize.Comma(r.Total))
	} else { // more than one commit has, or it was not counted
		s += fmt.Sprintf("%s objects of %s commits)", humanize.Comma(r.Objects), humanize.Comma(r.Commits))
	}
	switch share := 100 * float64(r.Bytes) / float64(max(r.Size, 1)); {
	case r.Size == 0:
	case share < 0.05:
		s += ", less than 0.1% of the dot"
	default:
		s += fmt.Sprintf(", %.1f%% of the dot", share)
	}
	return s
}

// decimal formats bytes in powers of ten, as transfers always have.
func decimal(n int64) string {
	switch v := float64(n); {
	case n < 1e6:
		return fmt.Sprintf("%.2f kB", v/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.2f MB", v/1e6)
	default:
		return fmt.Sprintf("%.2f GB", v/1e9)
	}
}

// bar shows how far a transfer is: one line that is redrawn on a terminal, a line every few seconds elsewhere.
type bar struct {
	w     io.Writer
	fd    int // of the terminal; -1: none
	began time.Time
	next  time.Time
	last  api.Progress
	drawn bool
	now   func() time.Time
}

func newBar(w io.Writer) *bar {
	return &bar{w: w, fd: terminalOf(w), now: time.Now}
}

func (b *bar) show(at api.Progress) {
	now := b.now()
	if b.began.IsZero() {
		b.began, b.next = now, now
		if b.fd < 0 {
			b.next = now.Add(progressPlain)
		}
	}
	b.last = at
	if now.Before(b.next) {
		return
	}
	if b.fd < 0 {
		b.next = now.Add(progressPlain)
		fmt.Fprintln(b.w, b.line(at.Stage, 0))
		return
	}
	b.next = now.Add(progressTerminal)
	b.drawn = true
	fmt.Fprintf(b.w, "\r\x1b[K%s", b.line(at.Stage, terminalWidth(b.fd)))
}

// finish ends the line of one branch, if anything of it has traveled.
func (b *bar) finish() {
	if b.last.Total > 0 {
		if b.drawn {
			fmt.Fprint(b.w, "\r\x1b[K")
		}
		width := 0
		if b.fd >= 0 {
			width = terminalWidth(b.fd)
		}
		fmt.Fprintln(b.w, b.line("finished", width))
	} else if b.drawn {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
	b.began, b.last, b.drawn = time.Time{}, api.Progress{}, false
}

// stop takes away a line that was not finished, so that what follows stands alone.
func (b *bar) stop() {
	if b.drawn {
		fmt.Fprint(b.w, "\r\x1b[K")
		b.drawn = false
	}
}

// Widths of the bar itself, in columns.
const (
	barLeast = 4
	barMost  = 40
)

// line is `pushing 811.84 MB / 811.84 MB [====] 100.00% 5.17 MiB/s 12s (1/1)`; the time that remains is not said at the end.
func (b *bar) line(stage string, width int) string {
	at := b.last
	share := 0.0
	if at.Total > 0 {
		share = min(1, float64(at.Done)/float64(at.Total))
	}
	seconds := max(b.now().Sub(b.began).Seconds(), 0.001)
	rate := float64(at.Done) / seconds
	before := fmt.Sprintf("%s %s / %s ", stage, decimal(at.Done), decimal(at.Total))
	after := fmt.Sprintf(" %.2f%% %.2f MiB/s", 100*share, rate/(1<<20))
	if share < 1 && rate > 0 && at.Total > 0 {
		left := time.Duration(float64(at.Total-at.Done) / rate * float64(time.Second))
		after += " " + left.Round(time.Second).String()
	}
	if at.Parts > 0 {
		after += fmt.Sprintf(" (%d/%d)", at.Part, at.Parts)
	}
	cells := min(max(width-len(before)-len(after)-3, barLeast), barMost)
	full := int(share * float64(cells))
	return before + "[" + strings.Repeat("=", full) + strings.Repeat("-", cells-full) + "]" + after
}

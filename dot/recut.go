package dot

import (
	"context"

	"dm/chunker"
	"dm/internal/errs"
	"dm/object"
	"dm/workcopy"
)

// step is one piece of a file's new list, in order: either the old chunks up to an offset stay, or a new chunk or hole
// follows.
type step struct {
	keep bool
	upTo uint64        // keep: a boundary of the old list
	size uint64        // otherwise: of the new span
	done <-chan stored // its id; nil: a hole
}

// maxSteps bounds how far a file's plan runs ahead of its list.
const maxSteps = 256

// large makes a file's new list out of its old one and its dirty ranges.
func (c *chunking) large(ctx context.Context, f frozenFile) (content object.Content, err error) {
	cut, err := cutOf(ctx, c.src, f)
	if err != nil {
		return content, err
	}
	ctx, cancel := context.WithCancelCause(ctx) // the first error counts
	defer cancel(nil)
	steps := make(chan step, maxSteps)
	built := make(chan struct{})
	go func() {
		defer close(built)
		if content, err = c.build(ctx, f, cut, steps); err != nil {
			cancel(err)
		}
	}()
	if err := c.plan(ctx, f, cut, steps); err != nil {
		cancel(err) // before the end of the steps, which is not that of the file
	}
	close(steps)
	<-built
	return content, context.Cause(ctx)
}

// plan sends the steps of a file's plan.
func (c *chunking) plan(ctx context.Context, f frozenFile, cut object.Cut, steps chan<- step) error {
	p := &plan{
		chunking: c, ctx: ctx, f: f, cut: cut, size: f.Size(), base: f.Base().Size,
		// The plan needs the old boundaries before the list is built up to there, so it has an editor of its own, of which it
		// uses only the reading half.
		old:   object.NewListEditor(ctx, c.src, nil, f.Base(), cut),
		dirty: f.Dirty(), steps: steps,
	}
	defer p.leave()
	return p.run()
}

// build takes the steps of a plan into the file's list.
func (c *chunking) build(ctx context.Context, f frozenFile, cut object.Cut, steps <-chan step) (object.Content, error) {
	ed := object.NewListEditor(ctx, c.src, c.sink, f.Base(), cut)
	for st := range steps {
		if !st.keep {
			id, err := st.wait(ctx)
			if err != nil {
				return object.Content{}, err
			}
			if err := ed.Add(object.Span{Size: st.size, ID: id}); err != nil {
				return object.Content{}, err
			}
			continue
		}
		ok, err := ed.Boundary(ed.Size())
		if err != nil {
			return object.Content{}, err
		}
		at, err := ed.CopyTo(st.upTo)
		if err != nil {
			return object.Content{}, err
		}
		if !ok || at != st.upTo {
			return object.Content{}, errs.New(errs.Internal, "old content has no boundary at %d, where the plan saw one", st.upTo)
		}
	}
	if err := ctx.Err(); err != nil {
		return object.Content{}, err
	}
	content, err := ed.Finish()
	if err == nil && content.Size != f.Size() {
		err = errs.New(errs.Internal, "the new list has %d bytes, the file %d", content.Size, f.Size())
	}
	return content, err
}

func (st step) wait(ctx context.Context) (object.ID, error) {
	if st.done == nil {
		return object.ID{}, nil
	}
	select {
	case s := <-st.done:
		return s.id, s.err
	case <-ctx.Done():
		return object.ID{}, ctx.Err()
	}
}

// plan decides, from the front of a file, what of its old list stays and what is cut anew.
//
// A dirty range is cut from the old boundary before it until, behind it, a new cut falls on an old boundary: from there
// on the old cuts hold, since a cut depends only on what follows the one before. Two more places are cut anew
// though nothing is dirty: what has become the end of a truncated file, and the last old chunk of a file that has
// grown, because there the old end cut it, not the content.
type plan struct {
	*chunking
	ctx   context.Context
	f     frozenFile
	cut   object.Cut
	size  uint64 // of the new content
	base  uint64 // of the old content
	old   *object.ListEditor
	dirty []workcopy.Range // not yet passed
	steps chan<- step

	win    *window // what was read last, held
	winOff uint64  // where it begins in the file
	winLen uint64
}

func (p *plan) run() error {
	at := uint64(0)
	for {
		off, ok := p.nextDirty(at)
		if !ok {
			break
		}
		start, err := p.startOf(off, at)
		if err != nil {
			return err
		}
		if start > at {
			if err := p.emit(step{keep: true, upTo: start}); err != nil {
				return err
			}
		}
		if at, err = p.recut(start); err != nil {
			return err
		}
	}
	if at < p.size {
		return p.emit(step{keep: true, upTo: p.size})
	}
	return nil
}

// nextDirty returns the first offset at or behind at that has to be cut anew.
func (p *plan) nextDirty(at uint64) (off uint64, ok bool) {
	if at >= p.size {
		return 0, false
	}
	off = p.size
	if len(p.dirty) > 0 {
		off = max(at, p.dirty[0].Off)
	}
	switch {
	case p.size < p.base:
		off = min(off, p.size-1)
	case p.size > p.base && p.base > 0 && !(p.cut == object.CutFixed && p.base%chunker.Block == 0):
		off = min(off, p.base-1)
	}
	off = max(off, at)
	return off, off < p.size
}

// startOf returns the last old boundary at or before off, but not before at.
func (p *plan) startOf(off, at uint64) (uint64, error) {
	if _, err := p.old.Boundary(off); err != nil {
		return 0, err
	}
	start, span, ok := p.old.At()
	switch {
	case !ok: // behind the old content
		return off, nil
	case span.ID.IsZero(): // a hole may be cut at multiples of Block
		start = max(start, off&^(chunker.Block-1))
	}
	return max(start, at), nil
}

// recut cuts from at on until the old cuts hold again, and returns where that is.
func (p *plan) recut(at uint64) (uint64, error) {
	for at < p.size {
		n := p.zeros(at)
		var err error
		if n > 0 {
			err = p.emit(step{size: n})
		} else {
			n, err = p.chunk(at)
		}
		if err != nil {
			return at, err
		}
		at += n
		p.pass(at-n, at)
		if len(p.dirty) > 0 && p.dirty[0].Off < at || at > p.base {
			continue
		}
		if ok, err := p.old.Boundary(at); ok || err != nil {
			return at, err
		}
	}
	return at, nil
}

// pass drops the dirty ranges that lie before to and counts what was done of them from from on.
func (p *plan) pass(from, to uint64) {
	var done uint64
	for len(p.dirty) > 0 && p.dirty[0].Off < to {
		r := p.dirty[0]
		end := min(r.Off+r.Len, to)
		if from < end {
			done += end - max(from, r.Off)
		}
		if r.Off+r.Len > to {
			break
		}
		p.dirty = p.dirty[1:]
	}
	p.meter.bytes(done)
}

// zeros returns the length of the hole that can be added at at without reading: dirty, known to be empty, and ending
// where a cut through zeros would.
func (p *plan) zeros(at uint64) uint64 {
	if len(p.dirty) == 0 || at < p.dirty[0].Off {
		return 0
	}
	start, _ := p.f.NextData(at)
	end := min(start, p.dirty[0].Off+p.dirty[0].Len)
	switch {
	case end <= at:
		return 0
	case end >= p.size:
		return p.size - at
	case p.cut == object.CutFixed:
		if end &^= chunker.Block - 1; end <= at {
			return 0
		}
		return end - at
	}
	return (end - at) / p.zeroStep * p.zeroStep
}

// chunk cuts one chunk at at, sends it to the workers and returns its length.
func (p *plan) chunk(at uint64) (uint64, error) {
	want := uint64(chunker.Max)
	if p.cut == object.CutFixed {
		want = chunker.Block - at%chunker.Block // keeps to multiples of Block behind an odd old boundary
	}
	buf, err := p.view(at, want)
	if err != nil {
		return 0, err
	}
	n := min(uint64(len(buf)), want)
	if p.cut == object.CutGear {
		p.cores <- struct{}{}
		n = uint64(chunker.Gear(buf))
		<-p.cores
	}
	var old object.ID
	if at < p.base {
		if _, err := p.old.Boundary(at); err != nil {
			return 0, err
		}
		if _, span, ok := p.old.At(); ok {
			old = span.ID
		}
	}
	done := make(chan stored, 1)
	p.win.refs.Add(1)
	select {
	case p.jobs <- job{data: buf[:n:n], in: p.win, old: old, done: done}:
	case <-p.ctx.Done():
		p.release(p.win)
		return 0, p.ctx.Err()
	}
	return n, p.emit(step{size: n, done: done})
}

// view returns the file's bytes from at on, at least want of them unless the file ends before. It reads on to the end of
// the stretch of dirty data at hand, as far as a window goes.
func (p *plan) view(at, want uint64) ([]byte, error) {
	want = min(want, p.size-at)
	if p.win != nil && at >= p.winOff && at+want <= p.winOff+p.winLen {
		return p.win.buf[at-p.winOff : p.winLen], nil
	}
	w, err := p.window(p.ctx)
	if err != nil {
		return nil, err
	}
	length := want
	if len(p.dirty) > 0 && p.dirty[0].Off <= at {
		if start, end := p.f.NextData(at); start <= at {
			length = max(want, min(end, p.dirty[0].Off+p.dirty[0].Len, at+windowSize)-at)
		}
	}
	buf := w.room(int(length))
	have := 0
	if p.win != nil && at >= p.winOff && at < p.winOff+p.winLen {
		have = copy(buf, p.win.buf[at-p.winOff:p.winLen])
	}
	p.leave()
	p.win, p.winOff, p.winLen = w, at, length
	if err := p.readAt(p.f, buf[have:], at+uint64(have)); err != nil {
		return nil, err
	}
	return buf, nil
}

// leave lets go of the window read last.
func (p *plan) leave() {
	if p.win != nil {
		p.release(p.win)
		p.win = nil
	}
}

func (p *plan) emit(st step) error {
	select {
	case p.steps <- st:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

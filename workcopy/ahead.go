package workcopy

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"dm/object"
)

// readAhead follows the readers of a partial file. Who reads on where the last read ended gets what comes next fetched
// from the store meanwhile, in a window that doubles up to maxWindow.
type readAhead struct {
	mu         sync.Mutex
	next       uint64 // where the last read ended
	fetched    uint64 // up to here it has been fetched, or is being
	window     uint64
	busy       bool
	sequential bool            // the last read went on where the one before it ended
	seen       *roaring.Bitmap // blocks that were read before
}

const (
	minWindow = 512 << 10
	maxWindow = 16 << 20
	// skew is how far from its place a sequential reader's request may come, in bytes: the kernel sends several at once.
	skew = 256 << 10
	// maxReadAheads bounds the fetches of one working copy that run ahead of their readers.
	maxReadAheads = 4
	// aheadTimeout ends a fetch whose store does not answer; the reader will ask again by itself.
	aheadTimeout = 30 * time.Second
)

// see takes note of a read of [off, end) and says whether some of it was read before.
func (r *readAhead) see(off, end uint64) (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first, last := blockOf(off), blocksUpTo(end)
	if r.seen == nil {
		r.seen = roaring.New()
	}
	before := r.seen.GetCardinality()
	r.seen.AddRange(first, last)
	again = r.seen.GetCardinality()-before < last-first
	r.sequential = off != 0 && off+skew >= r.next && off <= r.next+skew
	if r.sequential {
		r.next = max(r.next, end)
	} else {
		r.next, r.window, r.fetched = end, 0, 0
	}
	return again
}

// scattered says whether other parts of the chunks in [from, to) were read before [off, end), by somebody who does not
// read on from there.
func (r *readAhead) scattered(off, end, from, to uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sequential || r.seen == nil {
		return false
	}
	return inRange(r.seen, blockOf(from), blocksUpTo(to)) > inRange(r.seen, blockOf(off), blocksUpTo(end))
}

// inRange counts the members of [first, end).
func inRange(set *roaring.Bitmap, first, end uint64) uint64 {
	if first >= end {
		return 0
	}
	n := set.Rank(uint32(end - 1))
	if first > 0 {
		n -= set.Rank(uint32(first - 1))
	}
	return n
}

// forget gives the memory back: all of the file is local.
func (r *readAhead) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = nil
}

// plan returns what to fetch after a read that ended at end; from == to: nothing.
func (r *readAhead) plan(end uint64) (from, to uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.sequential || r.busy || r.fetched > end+r.window/2 {
		return 0, 0
	}
	r.window = min(max(minWindow, 2*r.window), maxWindow)
	from = max(end, r.fetched)
	r.fetched, r.busy = end+r.window, true
	return from, r.fetched
}

func (r *readAhead) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
}

// readAhead fetches in the background what a sequential reader will ask for next: into the backing file if the reader has
// been there before, otherwise into the memory of the source only.
func (c *Copy) readAhead(n *node, end uint64, again bool) {
	r := &n.file.ahead
	from, to := r.plan(end)
	if from >= to {
		return
	}
	select {
	case c.aheads <- struct{}{}:
	default: // enough of them run
		r.done()
		return
	}
	c.mu.Lock()
	if c.closed || c.life.Err() != nil {
		c.mu.Unlock()
		<-c.aheads
		r.done()
		return
	}
	committed := n.file.committed
	n.refs++ // or a look-up meanwhile could make another node of the same file
	c.tasks.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.tasks.Done()
		defer c.Forget(n.id, 1)
		defer func() { <-c.aheads }()
		defer r.done()
		ctx, cancel := context.WithTimeout(c.life, aheadTimeout)
		defer cancel()
		var err error
		if again {
			err = c.fill(ctx, n.id, from, to)
		} else {
			err = warm(ctx, c.cfg.Source, committed, from, to)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, errClosed) {
			c.log.Warn("read ahead", "copy", c.path, "inode", n.ino, "err", err)
		}
	}()
}

// warm has a source read the chunks of [from, to), for those who ask for them soon.
func warm(ctx context.Context, src object.Source, content object.Content, from, to uint64) error {
	if from >= content.Size {
		return nil
	}
	err := object.WalkSpans(ctx, src, content, from, func(off uint64, s object.Span) error {
		if off >= to {
			return errFound
		}
		if s.ID.IsZero() {
			return nil
		}
		_, err := src.Get(ctx, object.KindChunk, s.ID)
		return err
	})
	if err == errFound {
		return nil
	}
	return err
}

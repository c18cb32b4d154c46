package workcopy

import (
	"context"
	"errors"
	"sync"
	"time"
)

// readAhead follows one reader of a partial file. Who reads on where the last read ended gets what comes next fetched
// from the store meanwhile, in a window that doubles up to maxWindow.
type readAhead struct {
	mu      sync.Mutex
	next    uint64 // where the last read ended
	fetched uint64 // up to here it has been fetched, or is being
	window  uint64
	busy    bool
}

const (
	minWindow = 512 << 10
	maxWindow = 16 << 20
	// maxReadAheads bounds the fetches of one working copy that run ahead of their readers.
	maxReadAheads = 4
	// aheadTimeout ends a fetch whose store does not answer; the reader will ask again by itself.
	aheadTimeout = 30 * time.Second
)

// plan takes note of a read of [off, end) and returns what to fetch; from == to: nothing.
func (r *readAhead) plan(off, end uint64) (from, to uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sequential := off == r.next && off != 0
	r.next = end
	if !sequential {
		r.window, r.fetched = 0, 0
		return 0, 0
	}
	if r.busy || r.fetched > end+r.window/2 {
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

// readAhead fetches in the background what a sequential reader will ask for next.
func (c *Copy) readAhead(n *node, off, end uint64) {
	r := &n.file.ahead
	from, to := r.plan(off, end)
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
		return
	}
	c.tasks.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.tasks.Done()
		defer func() { <-c.aheads }()
		defer r.done()
		ctx, cancel := context.WithTimeout(c.life, aheadTimeout)
		defer cancel()
		err := c.fill(ctx, n.id, from, to)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errClosed) {
			c.log.Warn("read ahead", "copy", c.path, "inode", n.ino, "err", err)
		}
	}()
}

package workcopy

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// gate holds operations back while a freeze has the kernel write out its cache. It is closed for milliseconds, and the
// freeze that closed it opens it again in any case, so waiting at it cannot be interrupted: a program does not expect
// EINTR from stat(2).
//
// Reads and the kernel's own writeback pass. Holding an operation back here, before it has taken anything, is what makes
// the rest of a freeze free of deadlock.
type gate struct {
	closed atomic.Pointer[chan struct{}]
	halves halves
}

// wait returns at once while the gate is open.
func (g *gate) wait() {
	for {
		ch := g.closed.Load()
		if ch == nil {
			return
		}
		<-*ch
	}
}

func (g *gate) close() {
	ch := make(chan struct{})
	g.closed.Store(&ch)
}

func (g *gate) open() {
	if ch := g.closed.Swap(nil); ch != nil {
		close(*ch)
	}
}

// halves knows the write(2)s of which one part has come and another may follow. Without its writeback cache the kernel ends
// a WRITE with the page it began in, if it began inside of it and does not hold the rest, and sends what is left of the
// same write(2) in another (fuse_fill_write_pages in its fs/fuse/file.c). A cut between the two would hold half a
// write(2), which no program that is alive leaves behind: Redis, for one, goes on behind half a transaction. So the second
// passes the gate. There is only one, up to the largest WRITE, because it begins with a page. And as the kernel holds the
// file's lock for the whole of a write(2), and asks for a sync with that lock held, what else comes of these shows that the
// write(2) before is over.
//
// A WRITE that ends anywhere, because a page of the program's memory was not there (a mapped file, swap), cannot be told from
// a write(2) of that length: such a write(2) may be in a cut in part.
type halves struct {
	mu      sync.Mutex
	open    map[NodeID]*half
	changed chan struct{} // not nil: closed when one is over
}

// half is such a write(2).
type half struct {
	end   uint64    // of the first part
	since time.Time // that it is written; zero: it, or the second part, is being written
}

// halfWait is how long the second part of a write(2) is waited for. It comes at once, as soon as its thread has a processor;
// a write(2) that ends with a page by chance is waited for in vain, unless its file is written or synced again.
const halfWait = 20 * time.Millisecond

var pageSize = uint64(os.Getpagesize())

// waitWrite is wait for a write of the bytes [off, end) of a file. The function it returns must be called when that is done.
func (g *gate) waitWrite(id NodeID, off, end uint64) (done func(error)) {
	h := &g.halves
	for {
		h.mu.Lock()
		first := h.open[id]
		ch := g.closed.Load() // after the lock: settle takes it when the gate is closed
		switch {
		case first != nil && first.end == off && first.since != (time.Time{}):
			first.since = time.Time{}
			h.mu.Unlock()
			return func(error) { h.over(id, first) }
		case first != nil:
			h.remove(id)
		}
		if ch == nil {
			break
		}
		h.mu.Unlock()
		<-*ch
	}
	defer h.mu.Unlock()
	if off%pageSize == 0 || end%pageSize != 0 {
		return func(error) {}
	}
	first := &half{end: end}
	if h.open == nil {
		h.open = map[NodeID]*half{}
	}
	h.open[id] = first
	return func(err error) {
		if err != nil {
			h.over(id, first)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		first.since = time.Now()
	}
}

// remove takes a file's out. The caller holds the lock.
func (h *halves) remove(id NodeID) {
	delete(h.open, id)
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

func (h *halves) over(id NodeID, one *half) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[id] == one {
		h.remove(id)
	}
}

// noWrite notes that no write(2) is going on in a file: a sync of it was asked for, or the kernel has forgotten it.
func (h *halves) noWrite(id NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[id] != nil {
		h.remove(id)
	}
}

// settle waits behind the closed gate until no write(2) is there in part, for halfWait at most.
func (h *halves) settle(ctx context.Context) {
	timeout := time.NewTimer(halfWait)
	defer timeout.Stop()
	for {
		changed, until := h.pending()
		if changed == nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(until):
		case <-timeout.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// pending returns a channel that is closed when a write(2) is over, or nil if there is none in part, and how long it is
// until the first of them has been waited for.
func (h *halves) pending() (changed <-chan struct{}, until time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	until = halfWait
	for id, one := range h.open {
		if one.since == (time.Time{}) {
			continue
		}
		left := halfWait - time.Since(one.since)
		if left <= 0 {
			delete(h.open, id)
			continue
		}
		until = min(until, left)
	}
	if len(h.open) == 0 {
		return nil, 0
	}
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed, until
}

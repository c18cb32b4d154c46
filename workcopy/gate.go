package workcopy

import "sync/atomic"

// gate holds operations back while a freeze has the kernel write out its cache. It is closed for milliseconds, and the
// freeze that closed it opens it again in any case, so waiting at it cannot be interrupted: a program does not expect
// EINTR from stat(2).
//
// Reads and the kernel's own writeback pass. Holding an operation back here, before it has taken anything, is what makes
// the rest of a freeze free of deadlock.
type gate struct {
	closed atomic.Pointer[chan struct{}]
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

package daemon

import (
	"context"
	"fmt"
	"sync"

	"dm/internal/errs"
)

// opGate counts running operations and, once closed, lets no more in.
type opGate struct {
	mu      sync.Mutex
	running int
	closed  bool
	idle    chan struct{} // closed when running falls to 0 after closed
}

// enter begins an operation; a server that stops refuses. Whoever entered calls leave.
func (g *opGate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errs.WithHint(errs.New(errs.Unreachable, "the server is stopping"), "start it again with 'dm cluster init'")
	}
	g.running++
	return nil
}

func (g *opGate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// close lets no more operations in and waits until the running ones have left.
func (g *opGate) close(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	if g.running == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for running operations: %w", ctx.Err())
	}
}

// open lets operations in again.
func (g *opGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

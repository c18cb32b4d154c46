package fusefs

import (
	"context"
	"fmt"
	"sync"
)

// truncates lets truncations pass the gate while writeback must not be held up.
type truncates struct {
	mu      sync.Mutex
	changed *sync.Cond
	pass    bool
	waiting int    // that were told to wait at the gate
	passing int    // on their way past it
	passed  uint64 // done, ever
}

func (t *truncates) begin() (pass bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pass {
		t.passing++
		return true
	}
	t.waiting++
	return false
}

func (t *truncates) end(pass bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pass {
		t.passing--
		t.passed++
	} else {
		t.waiting--
	}
	t.changed.Broadcast()
}

// await waits until ok, which looks at t with its lock held. The caller holds the lock.
func (t *truncates) await(ctx context.Context, ok func() bool) error {
	defer context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.changed.Broadcast()
	})()
	for !ok() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for a truncation: %w", err)
		}
		t.changed.Wait()
	}
	return nil
}

// letPass begins the time in which truncations pass, and waits for those that have been told otherwise.
func (t *truncates) letPass(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushWait)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass = true
	return t.await(ctx, func() bool { return t.waiting == 0 })
}

func (t *truncates) count() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.passed
}

// letWaitIf ends that time if no truncation has passed since the count, those included that are passing now.
func (t *truncates) letWaitIf(ctx context.Context, count uint64) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.await(ctx, func() bool { return t.passing == 0 }); err != nil {
		t.pass = false
		return false, err
	}
	if t.passed != count {
		return false, nil
	}
	t.pass = false
	return true, nil
}

func (t *truncates) letWait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass = false
}

package workcopy

import "context"

// turn is a mutex whose wait can be cut short.
//
// What changes the base of a working copy, commits, resets and grafts, takes the two turns of it hand over hand: cutting,
// then commits, then it lets go of cutting. So they end in the order in which they began, and a commit that holds cutting
// and waits for commits may make its cut meanwhile: the one before it is being chunked. There are never more than two.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) lock(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) try() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t turn) unlock() { <-t }

// maxCuts is how many commits can be open: one that is being chunked, and one whose cut has been made.
const maxCuts = 2

// alone waits until no commit is being made. The caller unlocks commits.
func (c *Copy) alone(ctx context.Context) error {
	if err := c.cutting.lock(ctx); err != nil {
		return err
	}
	defer c.cutting.unlock()
	return c.commits.lock(ctx)
}

// maxUndo bounds what overlapping commits may leave in the undo file that they share, in bytes.
const maxUndo = 1 << 30

// mayOverlap says whether a commit is being made beside which another may make its cut. As long as commits overlap the
// journal cannot be compacted and the undo file does not end; when these have become large the next commit waits. The
// caller holds cutting.
func (c *Copy) mayOverlap() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.snaps) > 0 && c.journal.end < compactAbove+c.dumped && c.snaps[0].undo.used() < maxUndo
}

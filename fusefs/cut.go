package fusefs

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"dm/internal/errs"
	"dm/workcopy"
)

// cutter gives a working copy what a cut needs of its mount. The steps of a cut, by the working copy:
//
//	Flush        the gate is open: call all leases back, write out what had one, again while that is worth it; then
//	             the same once more while no leases are given, so that little is left to do behind the gate
//	close the gate
//	Recall       call back the leases given since: every write(2) that begins from now on waits at the gate
//	FlushRecent  write out what may be dirty
//	the cut, open the gate
//
// A write(2) that had its attributes before Recall and is not done by FlushRecent may fall on either side. Whatever
// began after it returned is behind the gate or was flushed with it.
//
// Truncation is an exception at the gate. The kernel holds a file's writeback back from before it sends the request until
// it is answered: parked at the gate it would keep FlushRecent, and so the gate, waiting for ever. So truncations pass
// until FlushRecent is done, and FlushRecent begins again after each: then everything that ended before the truncation
// began has been flushed too, and the cut may hold it.
type cutter struct {
	mount   *Mount
	leases  *leases
	flusher *Flusher      // nil: none, which is possible with Through only
	id      atomic.Uint32 // of this mount, for the flusher; 0: not yet known to it

	truncates truncates
	released  chan struct{} // a cut is over: what the flusher kept open can go
	stop      context.CancelFunc
	done      sync.WaitGroup
	once      sync.Once

	// skipRecall leaves out that leases are called back behind the gate, and just before it. Tests set it, to see that
	// they would notice.
	skipRecall atomic.Bool
}

const (
	// flushWait bounds the steps behind the gate.
	flushWait = 10 * time.Second
	// flushRounds bounds how often the steps are repeated, before and behind the gate.
	flushRounds = 8
	// flushEnough is when it is time to give no leases any more, flushShort when it is time to close the gate.
	flushEnough = 10 * time.Millisecond
	// manyHot is a number of files that takes some milliseconds to visit.
	manyHot    = 4096
	flushShort = time.Millisecond
)

func newCutter(m *Mount) *cutter {
	c := &cutter{mount: m, leases: m.leases, flusher: m.opts.Flusher, released: make(chan struct{}, 1), stop: func() {}}
	c.truncates.changed = sync.NewCond(&c.truncates.mu)
	return c
}

// begin makes the mount known to the flusher, and starts the work in the background.
func (c *cutter) begin(ctx context.Context) error {
	if c.flusher == nil {
		return nil
	}
	id, err := c.flusher.attach(ctx, c.mount.dir, c.mount.dev)
	if err != nil {
		return err
	}
	c.id.Store(id)
	bg, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.done.Go(func() { c.tidy(bg) })
	return nil
}

func (c *cutter) isFlusher(thread uint32) bool {
	return c.flusher != nil && c.flusher.isThread(thread)
}

// Flush is a step of workcopy.Kernel.
func (c *cutter) Flush(ctx context.Context) error {
	if c.flusher == nil {
		return nil
	}
	if c.leases.on {
		if err := c.truncates.letPass(ctx); err != nil {
			return err
		}
		// Opened while the attributes are valid: the kernel then asks no questions.
		if err := c.flush(ctx, flushOpen); err != nil {
			return err
		}
		if err := c.notify(ctx, c.leases.recall()); err != nil {
			return err
		}
	}
	if err := c.flushUntil(ctx, flushTimes, flushEnough); err != nil || !c.leases.on || c.skipRecall.Load() {
		return err
	}
	if err := c.thinOut(ctx); err != nil {
		return err
	}
	c.leases.dimDown()
	if err := c.notify(ctx, c.leases.recall()); err != nil {
		return err
	}
	return c.flushUntil(ctx, flushData, flushShort)
}

// thinOut takes files out of the flush set that nobody writes any more, if it is so large that visiting them all behind
// the gate would be felt: tens of thousands were just made, or looked at. What had a lease until now can be taken out when
// no write(2) can be on its way that had its attributes from it.
func (c *cutter) thinOut(ctx context.Context) error {
	recalled := time.Now()
	if c.leases.heat() <= manyHot {
		return nil
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("flush the page cache: %w", ctx.Err())
	case <-time.After(coolTime):
	}
	if err := c.retire(ctx, recalled, math.MaxInt); err != nil {
		return err
	}
	return c.flushUntil(ctx, flushTimes, flushEnough)
}

// flushUntil flushes until that takes no longer than enough, or another time would hardly be shorter.
func (c *cutter) flushUntil(ctx context.Context, how flushKind, enough time.Duration) error {
	last := time.Duration(-1)
	for range flushRounds {
		start := time.Now()
		if err := c.flush(ctx, how); err != nil {
			return err
		}
		took := time.Since(start)
		if took < enough || last >= 0 && took > last*7/10 {
			return nil
		}
		last = took
	}
	return nil
}

// Recall is a step of workcopy.Kernel.
func (c *cutter) Recall(ctx context.Context) error {
	if !c.leases.on || c.skipRecall.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushWait)
	defer cancel()
	c.leases.darken()
	return c.notify(ctx, c.leases.recall())
}

// FlushRecent is a step of workcopy.Kernel.
func (c *cutter) FlushRecent(ctx context.Context) error {
	if !c.leases.on {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushWait)
	defer cancel()
	defer func() {
		select {
		case c.released <- struct{}{}:
		default:
		}
	}()
	for range flushRounds {
		before := c.truncates.count()
		if err := c.flush(ctx, flushData); err != nil {
			c.truncates.letWait()
			return err
		}
		if ok, err := c.truncates.letWaitIf(ctx, before); ok || err != nil {
			return err
		}
	}
	c.truncates.letWait()
	return errs.New(errs.Conflict, "commit: files of %s are truncated all the time", c.mount.dir)
}

// flush has the flusher do something with all files that may be dirty.
func (c *cutter) flush(ctx context.Context, how flushKind) error {
	return c.flushThese(ctx, how, c.leases.hot())
}

func (c *cutter) flushThese(ctx context.Context, how flushKind, ids []workcopy.NodeID) error {
	if len(ids) == 0 {
		return nil
	}
	gone, err := c.flusher.flush(ctx, c.id.Load(), how, ids)
	for _, id := range gone {
		c.leases.drop(id)
	}
	if err != nil && !c.mount.gone() {
		return fmt.Errorf("write out the kernel's cache of %s: %w", c.mount.dir, err)
	}
	return nil
}

// flushNode writes out one file, if it may be dirty.
func (c *cutter) flushNode(ctx context.Context, id workcopy.NodeID) error {
	if c.id.Load() == 0 || !c.leases.isHot(id) {
		return nil
	}
	return c.flushThese(ctx, flushAlone, []workcopy.NodeID{id})
}

// notify makes the kernel forget attributes. It takes no lock that an operation parked at the gate could hold.
//
// The kernel says ENOENT for an inode it does not have, and that may be one whose first answer, with a lease in it, is
// still on its way: then it is told again until the answer is there, or a FORGET shows that the inode is gone. An answer
// for an inode it has cannot overtake the notice, because the kernel drops attributes that were asked for before it.
func (c *cutter) notify(ctx context.Context, ids []workcopy.NodeID) error {
	wait := 20 * time.Microsecond
	for len(ids) > 0 {
		var again []workcopy.NodeID
		for _, id := range ids {
			switch st := c.mount.server.InodeNotify(uint64(id), -1, 0); st {
			case fuse.OK:
			case fuse.ENOENT:
				if c.leases.known(id) {
					again = append(again, id)
				}
			default:
				if c.mount.gone() {
					return nil
				}
				return fmt.Errorf("call attributes of %s back: %w", c.mount.dir, errnoError(st))
			}
		}
		if ids = again; len(ids) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("call attributes of %s back: %w", c.mount.dir, ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, time.Millisecond)
		}
	}
	return nil
}

// refresh has the kernel ask for a file's attributes when they are wanted next. Its lease, if it has one, stays counted.
func (c *cutter) refresh(id workcopy.NodeID) {
	c.mount.server.InodeNotify(uint64(id), -1, 0) // that the kernel does not have the inode any more is fine
}

// Invalidate makes the kernel forget names of a directory and what is behind them, and the directory's own attributes
// and listing. It takes the lock of the directory's inode: never behind the gate.
func (c *cutter) Invalidate(dir workcopy.NodeID, names []string) error {
	for _, name := range names {
		if st := c.mount.server.EntryNotify(uint64(dir), name); st != fuse.OK && st != fuse.ENOENT && !c.mount.gone() {
			return fmt.Errorf("invalidate %q in %s: %w", name, c.mount.dir, errnoError(st))
		}
	}
	if st := c.mount.server.InodeNotify(uint64(dir), 0, 0); st != fuse.OK && st != fuse.ENOENT && !c.mount.gone() {
		return fmt.Errorf("invalidate a directory of %s: %w", c.mount.dir, errnoError(st))
	}
	return nil
}

func (c *cutter) beginTruncate() (pass bool) { return c.truncates.begin() }

func (c *cutter) endTruncate(pass bool) { c.truncates.end(pass) }

// How often the tidying looks, and how much it does at once.
const (
	tidyEvery = time.Second
	tidyBatch = 4096
	// releaseAfter is how long after a cut files are kept open, where nothing shows that the gate is open again.
	releaseAfter = 100 * time.Millisecond
)

// tidy keeps the sets of leases small, in the background.
func (c *cutter) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-c.mount.served:
			return
		case <-c.released:
			for end := time.Now().Add(releaseAfter); c.leases.dark.Load() != 0 && time.Now().Before(end) && ctx.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
			err = c.flusher.release(ctx, c.id.Load())
		case <-c.leases.full:
			err = c.notify(ctx, c.leases.recallOf(maxLeases/8, time.Now()))
		case <-tick.C:
			if err = c.notify(ctx, c.leases.recallOf(tidyBatch, time.Now().Add(-idleTime))); err == nil {
				err = c.retire(ctx, time.Now().Add(-coolTime), tidyBatch)
			}
		}
		if err != nil && ctx.Err() == nil && !c.mount.gone() {
			c.mount.log.Warn("leases of a volume cannot be tidied up", "err", err)
		}
	}
}

// retire takes up to most files out of the flush set that have been warm since before the given time, coolTime ago. The
// flush it makes takes the file's lock, behind any write(2) that is in it; one that had its attributes and has not reached
// the lock does so within coolTime.
func (c *cutter) retire(ctx context.Context, since time.Time, most int) error {
	start := time.Now()
	ids := c.leases.cooling(since.Add(coolTime))
	ids = ids[:min(len(ids), most)]
	if err := c.flushThese(ctx, flushSettle, ids); err != nil {
		return err
	}
	for _, id := range ids {
		c.leases.cool(id, start)
	}
	return nil
}

// pause makes the flusher let go of the mount, so that it can be unmounted.
func (c *cutter) pause(ctx context.Context) {
	if c.id.Load() != 0 {
		c.flusher.detach(ctx, c.id.Load())
	}
}

func (c *cutter) resume(ctx context.Context) error {
	if c.id.Load() == 0 {
		return nil
	}
	return c.flusher.reattach(ctx, c.id.Load())
}

// close ends the work in the background, when the mount is gone.
func (c *cutter) close() {
	c.once.Do(func() {
		c.stop()
		if c.id.Load() != 0 {
			c.flusher.remove(c.id.Load())
		}
	})
	c.done.Wait()
}

package workcopy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/RoaringBitmap/roaring/v2"
	"golang.org/x/sys/unix"

	"dm/object"
)

// maxSize is the largest file: block numbers have 32 bits.
const maxSize = BlockSize << 32

func blockOf(off uint64) uint64    { return off / BlockSize }
func blocksUpTo(end uint64) uint64 { return (end + BlockSize - 1) / BlockSize }

// absent says whether a block still has to come from the committed content. The caller holds Copy.mu.
func (f *content) absent(block uint64) bool {
	return f.partial && block*BlockSize < f.limit && (f.local == nil || !f.local.Contains(uint32(block)))
}

// firstAbsent returns the first block of [first, last] that is absent.
func (f *content) firstAbsent(first, last uint64) (uint64, bool) {
	if !f.partial || first*BlockSize >= f.limit {
		return 0, false
	}
	for b := first; b <= last && b*BlockSize < f.limit; b++ {
		if f.absent(b) {
			return b, true
		}
	}
	return 0, false
}

// Read fills p from off on; short only at the end of the file.
func (c *Copy) Read(ctx context.Context, id NodeID, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	c.mu.RLock()
	n, err := c.getRegular(id)
	if err == nil && n.file.unknown {
		c.mu.RUnlock()
		_, err = c.fileOf(id)
		c.mu.RLock()
	}
	if err != nil {
		c.mu.RUnlock()
		return 0, err
	}
	size := n.size
	if uint64(off) >= size {
		c.mu.RUnlock()
		return 0, nil
	}
	p = p[:min(uint64(len(p)), size-uint64(off))]
	partial := n.file.partial
	c.mu.RUnlock()
	if partial && len(p) > 0 {
		end := uint64(off) + uint64(len(p))
		again := n.file.ahead.see(uint64(off), end)
		c.readAhead(n, end, again)
		if !again {
			if done, err := c.handThrough(ctx, n, p, uint64(off)); done || err != nil {
				return len(p), err
			}
		}
		if err := c.fill(ctx, id, uint64(off), end); err != nil {
			return 0, err
		}
	}
	return len(p), n.file.readAt(p, off)
}

// readAt reads from the backing file; what lies behind its end, or in no file at all, is zero.
func (b *backing) readAt(p []byte, off int64) error {
	h, err := b.acquire(false)
	if err != nil {
		return err
	}
	if h == nil {
		clear(p)
		return nil
	}
	defer b.release(h)
	return preadFull(h.fd, p, off)
}

func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read backing file: %w", err)
		}
		if n == 0 {
			clear(p)
			return nil
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// writing is one write on its way: marked under Copy.mu, not yet in the backing file.
type writing struct {
	n      *node
	frozen []*frozenFile // to be saved from first, the oldest first
	flight *sync.WaitGroup
	first  uint64 // blocks [first, end)
	end    uint64
	before uint64 // the size before, and after: larger if the write made the file longer
	after  uint64

	exclusive bool // the file's io is held alone
	complete  bool // the file was not partial
	hold      bool // the first block is marked as written, and may be a hole
}

// Write writes data at off and returns the number of bytes written. writeback marks pages that the kernel writes out of
// its cache; they pass the gate. killPriv has set-user-ID bits cleared.
//
// The blocks are marked as changed before their bytes are in the file, under the mutex: a cut sees a write either not at
// all or as begun, and then waits for it.
func (c *Copy) Write(ctx context.Context, id NodeID, data [][]byte, off int64, writeback, killPriv bool) (_ int, err error) {
	total := 0
	for _, d := range data {
		total += len(d)
	}
	if off < 0 || uint64(off)+uint64(total) > maxSize {
		return 0, syscall.EFBIG
	}
	if total == 0 {
		return 0, nil
	}
	if !writeback {
		done := c.gate.waitWrite(id, uint64(off), uint64(off)+uint64(total))
		defer func() { done(err) }()
	}
	w, err := c.beginWrite(ctx, id, uint64(off), uint64(off)+uint64(total), killPriv, false)
	if err != nil {
		return 0, err
	}
	defer w.done()
	w.save()
	err = w.n.file.writeAt(data, off)
	if errors.Is(err, syscall.ENOSPC) && c.giveBack() == nil {
		err = w.n.file.writeAt(data, off)
	}
	if err != nil {
		return 0, c.writeFailed(w, err)
	}
	return total, nil
}

// beginWrite marks the bytes [off, end) of a file as being written. On success w.done must be called.
func (c *Copy) beginWrite(ctx context.Context, id NodeID, off, end uint64, killPriv, zero bool) (*writing, error) {
	f, err := c.fileOf(id)
	if err != nil {
		return nil, err
	}
	lock, unlock := f.io.RLock, f.io.RUnlock
	if zero { // marks and bytes of two overlapping changes must not come in different orders
		lock, unlock = f.io.Lock, f.io.Unlock
	}
	for {
		lock()
		w, err := c.tryWrite(id, off, end, killPriv, zero)
		if w != nil {
			w.exclusive = zero
			return w, err
		}
		unlock()
		if err != nil {
			return nil, err
		}
		// A block written in part must hold the rest of its bytes first.
		if err := c.fill(ctx, id, off, off+1); err != nil {
			return nil, err
		}
		if err := c.fill(ctx, id, end-1, end); err != nil {
			return nil, err
		}
	}
}

// errBehindEnd says that there is nothing to make zero.
var errBehindEnd = errors.New("behind the end of the file")

// tryWrite returns nil and no error where a block at the edges has to be filled first. What is to be zero ends where the file
// ends, which no one else changes until the writing is done.
func (c *Copy) tryWrite(id NodeID, off, end uint64, killPriv, zero bool) (*writing, error) {
	if err := c.begin(false); err != nil {
		return nil, err
	}
	n, err := c.getFile(id)
	if err != nil {
		return nil, c.end(err)
	}
	if zero {
		if end = min(end, n.size); off >= end {
			return nil, c.end(errBehindEnd)
		}
	}
	first, last := blockOf(off), blockOf(end-1)
	if off%BlockSize != 0 && n.file.absent(first) || end%BlockSize != 0 && end < n.size && n.file.absent(last) {
		return nil, c.end(nil)
	}
	w := c.startWriting(n, first, last+1)
	w.complete = !n.file.partial
	c.markWrite(w, off, end, killPriv, zero)
	var essential []*node
	if n.file.partial {
		essential = append(essential, n)
		if n.file.complete() {
			c.promotions[n] = struct{}{}
		}
	}
	if err := c.end(nil, essential...); err != nil {
		w.flight.Done()
		return nil, err
	}
	return w, nil
}

// startWriting begins a change of a file's bytes: of the blocks [first, end), within begin and end.
func (c *Copy) startWriting(n *node, first, end uint64) *writing {
	c.change(n)
	w := &writing{n: n, first: first, end: end, flight: c.flight}
	c.flight.Add(1)
	for _, v := range n.versions {
		if v.file != nil && (len(c.snaps) > 1 || !v.file.released.Load()) {
			w.frozen = append(w.frozen, v.file)
		}
	}
	return w
}

// done says that the bytes are where they belong.
func (w *writing) done() {
	w.flight.Done()
	if w.exclusive {
		w.n.file.io.Unlock()
	} else {
		w.n.file.io.RUnlock()
	}
}

// markWrite marks the bytes [off, end) as written or, if zero, as zeroed as far as whole blocks go.
func (c *Copy) markWrite(w *writing, off, end uint64, killPriv, zero bool) {
	n, f := w.n, w.n.file
	flags := byte(blocksDirty)
	if f.partial {
		flags |= blocksLocal | blocksPartial
	}
	if off > n.size { // a hole comes to be between the old end and the write
		if from := blocksUpTo(n.size); from < w.first {
			f.markZero(from, w.first)
			c.journal.blocks(n, flags&^blocksDirty|blocksZero, from, w.first-from)
		}
	}
	w.before = n.size
	if end > n.size {
		c.resize(n, end)
	}
	w.after = n.size
	a, b := w.first, w.first // of the range, what becomes zero by whole blocks
	if zero {
		a, b = blocksUpTo(off), blockOf(end)
		if end == n.size {
			b = blocksUpTo(end)
		}
		if a >= b {
			a, b = w.first, w.first
		}
	}
	f.markZero(a, b)
	f.markDirty(w.first, a)
	f.markDirty(b, w.end)
	n.mtime = c.now()
	n.ctime = n.mtime
	if n.dropPriv(killPriv) {
		c.journal.inode(n)
	}
	if a < b {
		c.journal.blocks(n, flags&^blocksDirty|blocksZero, a, b-a)
	}
	if w.first < a {
		c.journal.blocks(n, flags, w.first, a-w.first)
	}
	if b < w.end {
		c.journal.blocks(n, flags, b, w.end-b)
	}
}

// markDirty marks the blocks [first, end) as written.
func (f *content) markDirty(first, end uint64) {
	if first >= end {
		return
	}
	addRange(&f.dirty, first, end)
	removeRange(f.zeroed, first, end)
	if f.partial {
		addRange(&f.local, first, end)
	}
}

// markZero marks the blocks [first, end) as zero now.
func (f *content) markZero(first, end uint64) {
	if first >= end {
		return
	}
	addRange(&f.zeroed, first, end)
	removeRange(f.dirty, first, end)
	if f.partial {
		addRange(&f.local, first, end)
		addRange(&f.hole, first, end)
	}
}

// unmark says that the blocks [first, end) are as committed.
func (f *content) unmark(first, end uint64) {
	for _, set := range []*roaring.Bitmap{f.dirty, f.zeroed} {
		removeRange(set, first, end)
	}
}

// dropBlocks forgets what is known of the blocks from first on: the file ends before them.
func (f *content) dropBlocks(first uint64) {
	for _, set := range []*roaring.Bitmap{f.dirty, f.zeroed} {
		if set != nil {
			set.RemoveRange(first, maxSize/BlockSize)
		}
	}
	if f.partial {
		f.limit = min(f.limit, first*BlockSize)
		if f.local != nil {
			f.local.RemoveRange(first, maxSize/BlockSize)
		}
	}
}

// resize sets a file's size and what hangs on it.
func (c *Copy) resize(n *node, size uint64) {
	if f := n.file; f.partial || f.unknown {
		addRange(&f.hole, blocksUpTo(n.size), blocksUpTo(size))
	}
	delta := size - n.size
	n.size = size
	if n.linked {
		return
	}
	for _, p := range n.places {
		p.dir.addSums(0, delta)
	}
}

// writeAt writes to the backing file, making it if need be.
func (b *backing) writeAt(data [][]byte, off int64) error {
	h, err := b.acquire(true)
	if err != nil {
		return err
	}
	defer b.release(h)
	for len(data) > 0 {
		n, err := unix.Pwritev(h.fd, data, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write backing file: %w", err)
		}
		off += int64(n)
		for len(data) > 0 && n >= len(data[0]) {
			n -= len(data[0])
			data = data[1:]
		}
		if n > 0 {
			data = append([][]byte{data[0][n:]}, data[1:]...)
		}
	}
	return nil
}

// writeFailed takes back the growth of a write that did not reach the file, unless another has made the file still longer.
// The blocks stay marked: they may be changed.
func (c *Copy) writeFailed(w *writing, cause error) error {
	if w.after == w.before {
		return cause
	}
	if err := c.begin(true); err != nil {
		return cause
	}
	n := w.n
	if n.size != w.after {
		c.end(nil)
		return cause
	}
	size := w.before
	if h, err := n.file.acquire(false); err == nil && h != nil {
		var st unix.Stat_t
		if unix.Fstat(h.fd, &st) == nil {
			size = max(size, min(uint64(st.Size), n.size))
		}
		n.file.release(h)
	}
	c.change(n)
	n.file.dropBlocks(blocksUpTo(size))
	c.resize(n, size)
	c.journal.inode(n)
	c.end(nil)
	return cause
}

// truncate sets a file's size; if grow is set, only to a larger one.
func (c *Copy) truncate(ctx context.Context, id NodeID, size uint64, grow bool) error {
	if size > maxSize {
		return syscall.EFBIG
	}
	f, err := c.fileOf(id)
	if err != nil {
		return err
	}
	for {
		f.io.Lock()
		w, edge, err := c.tryTruncate(id, size, grow)
		if w != nil {
			defer w.done()
			return c.applyTruncate(w, size)
		}
		f.io.Unlock()
		if err != nil || edge == 0 {
			return err
		}
		if err := c.fill(ctx, id, edge, edge+1); err != nil {
			return err
		}
	}
}

// tryTruncate marks the change; it returns no writing and an edge where the block in which the file ends, before or
// after, has to be filled first: it is kept in part, or filled up with zeros.
func (c *Copy) tryTruncate(id NodeID, size uint64, grow bool) (w *writing, edge uint64, err error) {
	if err := c.begin(true); err != nil {
		return nil, 0, err
	}
	n, err := c.getFile(id)
	if err != nil || size == n.size || grow && size < n.size {
		return nil, 0, c.end(err)
	}
	f := n.file
	edge = min(size, n.size)
	if edge%BlockSize != 0 && f.absent(blockOf(edge)) {
		return nil, edge, c.end(nil)
	}
	old := n.size
	w = c.startWriting(n, blockOf(edge), blocksUpTo(max(size, old)))
	f.dropBlocks(blocksUpTo(edge))
	w.exclusive, w.complete, w.before = true, !f.partial, old
	if size == 0 && f.partial { // nothing of the committed content is left to wait for
		f.whole()
	}
	if !f.partial { // from now on a missing backing file means zeros, not the committed bytes
		c.journal.complete(n)
	}
	kind := byte(blocksDirty)
	if f.zeroed != nil && f.zeroed.Contains(uint32(blockOf(edge))) {
		kind = blocksZero // it stays what it is
	} else if edge%BlockSize != 0 {
		f.markDirty(blockOf(edge), blockOf(edge)+1)
		w.hold = true
	}
	f.markZero(blocksUpTo(edge), blocksUpTo(size))
	c.resize(n, size)
	n.mtime = c.now()
	n.ctime = n.mtime
	n.dropPriv(false)
	c.journal.inode(n)
	if edge%BlockSize != 0 {
		c.journal.blocks(n, f.flags(kind), blockOf(edge), 1)
	}
	if from := blocksUpTo(edge); from < blocksUpTo(size) {
		c.journal.blocks(n, f.flags(blocksZero), from, blocksUpTo(size)-from)
	}
	if err := c.end(nil, n); err != nil {
		w.flight.Done()
		return nil, 0, err
	}
	return w, 0, nil
}

// applyTruncate changes the backing file. What a commit still has to read of an emptied file is left to it whole.
func (c *Copy) applyTruncate(w *writing, size uint64) error {
	f := w.n.file
	if !w.complete && size < w.before || size == 0 && w.frozen != nil {
		if err := c.noted(w.n); err != nil {
			return err
		}
	}
	switch {
	case size == 0 && w.frozen != nil:
		return w.takeFile()
	case size == 0 && !w.complete:
		return f.discard()
	}
	w.save()
	err := f.setSize(int64(size), w.complete && size > 0)
	if err == nil && w.hold && !w.complete {
		err = f.hold(w.first)
	}
	return err
}

// noted waits, if a node has a backing file, until the record of its last change is durable. What takes bytes of a partial
// file away, or all of a file, comes after that: with the bytes gone and the record lost, what was synced would be taken for
// bytes of the commit, or for zeros.
func (c *Copy) noted(n *node) error {
	if !n.file.onHost() {
		return nil
	}
	c.mu.RLock()
	lsn, end := n.bytesLSN, c.journal.lsn()
	c.mu.RUnlock()
	return c.journal.sync(lsn, end)
}

// hold makes sure that the host has bytes for a block whose content is right: in a partial file a hole that is marked as
// written is taken for a write that did not arrive, after a crash, and the block for one of the commit.
func (b *backing) hold(block uint64) error {
	var p [1]byte
	if err := b.readAt(p[:], int64(block*BlockSize)); err != nil {
		return err
	}
	return b.writeAt([][]byte{p[:]}, int64(block*BlockSize))
}

// whole says that nothing comes from the commit any more.
func (f *content) whole() {
	f.partial, f.local, f.limit, f.hole = false, nil, 0, nil
}

// rebase gives a file of the given size what it was committed as. What is behind the limit by then is in the backing file,
// and in the commit: it counts as local, and comes from there when a crash has lost it here.
func (f *content) rebase(committed object.Content, size uint64) {
	f.committed = committed
	limit := min(committed.Size, blocksUpTo(size)*BlockSize)
	if f.partial {
		addRange(&f.local, blocksUpTo(f.limit), blocksUpTo(limit))
		f.limit = limit
	} else {
		f.limit = min(f.limit, limit)
	}
}

func (f *content) flags(flags byte) byte {
	if f.partial {
		flags |= blocksPartial | blocksLocal
	}
	return flags
}

// setSize gives the backing file the node's size. Where there is none it is made if create is set: a complete file's size
// must be on the host, where fsync makes it durable.
func (b *backing) setSize(size int64, create bool) error {
	h, err := b.acquire(create)
	if err != nil || h == nil {
		return err
	}
	defer b.release(h)
	if err := unix.Ftruncate(h.fd, size); err != nil {
		return fmt.Errorf("truncate backing file: %w", err)
	}
	return nil
}

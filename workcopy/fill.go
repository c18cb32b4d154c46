package workcopy

import (
	"context"
	"fmt"

	"dm/internal/errs"
	"dm/object"
)

// fill brings the bytes [off, end) of a partial file from the store into its backing file: whole chunks, except for what
// has been written or filled before.
func (c *Copy) fill(ctx context.Context, id NodeID, off, end uint64) error {
	off &^= BlockSize - 1 // the committed content may end inside of the block, before off
	for {
		c.mu.RLock()
		n, err := c.get(id)
		if err != nil {
			c.mu.RUnlock()
			return err
		}
		f := n.file
		end := min(end, f.limit)
		if off >= end {
			c.mu.RUnlock()
			return nil
		}
		block, missing := f.firstAbsent(blockOf(off), blockOf(end-1))
		committed := f.committed
		c.mu.RUnlock()
		if !missing {
			return nil
		}
		from := block * BlockSize
		piece, err := readPiece(ctx, c.cfg.Source, committed, from, min(max(end, from+1), from+maxPiece))
		if err != nil {
			return fmt.Errorf("read inode %d: %w", n.ino, err)
		}
		if err := c.place(n, piece); err != nil {
			return err
		}
	}
}

var errClosed = errs.New(errs.Internal, "the working copy is closed")

// handThrough answers a first read of [off, off+len(p)) from the store, if all of it is still there only, and leaves no
// copy of it in the backing file: most of what is read once stays in the kernel's cache or is not wanted again. Who reads
// here and there in one chunk, though, has it made local, rather than unpacked each time.
func (c *Copy) handThrough(ctx context.Context, n *node, p []byte, off uint64) (done bool, err error) {
	f, end := n.file, off+uint64(len(p))
	c.mu.RLock()
	committed := f.committed
	elsewhere := f.partial && end <= f.limit && f.allAbsent(blockOf(off), blocksUpTo(end))
	c.mu.RUnlock()
	if !elsewhere {
		return false, nil
	}
	piece, err := readPiece(ctx, c.cfg.Source, committed, off, end)
	if err != nil {
		return false, fmt.Errorf("read inode %d: %w", n.ino, err)
	}
	clear(p)
	for _, q := range piece.parts {
		if q.data == nil || q.off >= end || q.off+q.size <= off {
			continue
		}
		if q.off < off {
			copy(p, q.data[off-q.off:])
		} else {
			copy(p[q.off-off:], q.data)
		}
	}
	if f.ahead.scattered(off, end, piece.off, piece.off+piece.size) {
		err = c.place(n, piece)
	}
	return true, err
}

// allAbsent says whether the blocks [first, end) are all absent. The caller holds Copy.mu.
func (f *content) allAbsent(first, end uint64) bool {
	for b := first; b < end; b++ {
		if !f.absent(b) {
			return false
		}
	}
	return true
}

// maxPiece bounds what one fill asks for at a time, in bytes; the chunks at its ends come on top.
const maxPiece = 1 << 20

// piece is a stretch of committed content.
type piece struct {
	off   uint64
	size  uint64
	parts []part
}

type part struct {
	off  uint64
	size uint64
	data []byte // nil: a hole
}

// readPiece reads the chunks that hold [from, to), whole blocks at the least: a chunk may end inside of a block.
func readPiece(ctx context.Context, src object.Source, content object.Content, from, to uint64) (piece, error) {
	to = min((to+BlockSize-1)&^(BlockSize-1), content.Size)
	p := piece{off: from}
	err := object.WalkSpans(ctx, src, content, from, func(off uint64, s object.Span) error {
		if off >= to {
			return errFound
		}
		q := part{off: off, size: s.Size}
		if s.ID.IsZero() {
			q.off = max(off, from) // of a hole, only what is asked for
			q.size = min(off+s.Size, to) - q.off
		} else {
			data, err := src.Get(ctx, object.KindChunk, s.ID)
			if err != nil {
				return err
			}
			if uint64(len(data)) != s.Size {
				return errs.New(errs.Damaged, "chunk %s has %d bytes where %d are expected", s.ID.Short(), len(data), s.Size)
			}
			q.data = data
		}
		if len(p.parts) == 0 {
			p.off = q.off
		}
		p.parts = append(p.parts, q)
		p.size = q.off + q.size - p.off
		return nil
	})
	if err == errFound {
		err = nil
	}
	return p, err
}

// place writes those blocks of a piece that are still absent. It keeps writers of the file out while it does.
func (c *Copy) place(n *node, p piece) error {
	f := n.file
	f.io.Lock()
	defer f.io.Unlock()

	c.mu.RLock()
	limit := f.limit
	first, end := blocksUpTo(p.off), blockOf(p.off+p.size)
	if p.off+p.size >= limit {
		end = blocksUpTo(limit)
	}
	var blocks []uint64
	for b := first; b < end; b++ {
		if f.absent(b) {
			blocks = append(blocks, b)
		}
	}
	closed := c.closed
	c.mu.RUnlock()
	if closed {
		return errClosed
	}
	for i := 0; i < len(blocks); {
		j := i + 1
		for j < len(blocks) && blocks[j] == blocks[j-1]+1 {
			j++
		}
		if err := f.writePiece(p, blocks[i]*BlockSize, min((blocks[j-1]+1)*BlockSize, limit)); err != nil {
			return err
		}
		i = j
	}
	return c.filled(n, blocks)
}

// writePiece writes the bytes [from, to) of a piece; holes stay holes.
func (f *content) writePiece(p piece, from, to uint64) error {
	for _, q := range p.parts {
		a, b := max(from, q.off), min(to, q.off+q.size)
		if a >= b || q.data == nil {
			continue
		}
		if err := f.writeAt([][]byte{q.data[a-q.off : b-q.off]}, int64(a)); err != nil {
			return err
		}
	}
	return nil
}

// filled marks blocks as local after their bytes are in the backing file.
func (c *Copy) filled(n *node, blocks []uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(blocks) == 0 {
		return nil
	}
	if err := c.journal.reserve(false); err != nil {
		return err
	}
	c.journal.begin()
	c.logNode(n)
	for i := 0; i < len(blocks); {
		j := i + 1
		for j < len(blocks) && blocks[j] == blocks[j-1]+1 {
			j++
		}
		first, count := blocks[i], uint64(j-i)
		addRange(&n.file.local, first, first+count)
		c.journal.blocks(n, blocksLocal|blocksPartial, first, count)
		i = j
	}
	if _, err := c.journal.commit(); err != nil {
		return err
	}
	if n.file.complete() {
		c.promotions[n] = struct{}{}
	}
	return nil
}

// complete says whether a partial file has no absent block left. The caller holds Copy.mu.
func (f *content) complete() bool {
	need := blocksUpTo(f.limit)
	if need == 0 {
		return true
	}
	return f.local != nil && f.local.GetCardinality() >= need && f.local.Rank(uint32(need-1)) == need
}

// promote makes complete files of those partial ones that have everything by now: bytes synced, then the final name, then
// the journal.
func (c *Copy) promote() error {
	c.mu.Lock()
	var list []promotion
	for n := range c.promotions {
		if n.nlink > 0 {
			list = append(list, promotion{n: n})
		}
	}
	clear(c.promotions)
	c.mu.Unlock()
	var err error
	if len(list) > fewFiles {
		err = c.syncTogether(list)
	}
	for len(list) > 0 && err == nil {
		if err = c.promoteOne(list[0]); err == nil {
			list = list[1:]
		}
	}
	if err != nil { // the next round tries again
		c.mu.Lock()
		for _, p := range list {
			c.promotions[p.n] = struct{}{}
		}
		c.mu.Unlock()
	}
	return err
}

// fewFiles are synced one by one; for more, the whole filesystem is synced at once.
const fewFiles = 16

// promotion is a node whose file is to become complete.
type promotion struct {
	n      *node
	synced bool   // with uses the file's count of uses at that time
	uses   uint64 // the same now: nobody has touched the file since
}

// syncTogether makes the bytes and sizes of many files durable at the price of one sync.
func (c *Copy) syncTogether(list []promotion) error {
	for i := range list {
		p := &list[i]
		f := p.n.file
		f.io.Lock() // no write is on its way
		c.mu.RLock()
		size, ready := int64(p.n.size), c.promotable(p.n)
		c.mu.RUnlock()
		var err error
		if ready {
			err = f.setSize(size, true)
			p.synced, p.uses = err == nil, f.uses()
		}
		f.io.Unlock()
		if err != nil {
			return err
		}
	}
	return c.syncFS()
}

// finish makes the bytes and the size of a file durable before it is called complete.
func (b *backing) finish(size int64) error {
	if err := b.setSize(size, true); err != nil {
		return err
	}
	return b.sync(true)
}

func (c *Copy) promoteOne(p promotion) error {
	n, f := p.n, p.n.file
	f.io.Lock() // neither bytes nor size change from here on
	defer f.io.Unlock()
	c.mu.RLock()
	size, ready := int64(n.size), c.promotable(n)
	c.mu.RUnlock()
	if !ready {
		return nil
	}
	if !p.synced || p.uses != f.uses() {
		if err := f.finish(size); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.promotable(n) {
		return nil
	}
	if err := c.journal.reserve(false); err != nil {
		return err
	}
	if err := f.backing.promote(); err != nil {
		return err
	}
	c.journal.begin()
	f.whole()
	f.ahead.forget()
	c.journal.complete(n)
	_, err := c.journal.commit()
	c.unref(n)
	return err
}

// promotable says whether a partial file has everything. The caller holds mu.
func (c *Copy) promotable(n *node) bool {
	return !c.closed && n.file.partial && n.file.complete() && n.nlink > 0 && c.nodes[n.id] == n
}

package workcopy

import (
	"context"
	"errors"
	"syscall"

	"github.com/RoaringBitmap/roaring/v2"
	"golang.org/x/sys/unix"

	"dm/object"
)

// Fallocate is fallocate(2) with the modes 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE.
func (c *Copy) Fallocate(ctx context.Context, id NodeID, mode uint32, off, length int64) error {
	c.gate.wait()
	if off < 0 || length <= 0 {
		return syscall.EINVAL
	}
	start, end := uint64(off), uint64(off)+uint64(length)
	if end > maxSize {
		return syscall.EFBIG
	}
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		return c.preallocate(ctx, id, start, end, keep)
	case unix.FALLOC_FL_PUNCH_HOLE:
		if !keep {
			return syscall.EOPNOTSUPP
		}
	case unix.FALLOC_FL_ZERO_RANGE:
		if !keep {
			if err := c.truncate(ctx, id, end, true); err != nil {
				return err
			}
		}
	default:
		return syscall.EOPNOTSUPP
	}
	return c.zero(ctx, id, start, end)
}

// preallocate has the host set space aside. On a partial file this is not possible without making absent blocks look
// present, so it only grows the file there.
func (c *Copy) preallocate(ctx context.Context, id NodeID, start, end uint64, keep bool) error {
	if !keep {
		if err := c.truncate(ctx, id, end, true); err != nil {
			return err
		}
	}
	f, err := c.fileOf(id)
	if err != nil {
		return err
	}
	c.mu.RLock()
	partial := f.partial
	c.mu.RUnlock()
	if partial {
		return nil
	}
	f.io.RLock()
	defer f.io.RUnlock()
	h, err := f.acquire(true)
	if err != nil {
		return err
	}
	defer f.release(h)
	err = unix.Fallocate(h.fd, unix.FALLOC_FL_KEEP_SIZE, int64(start), int64(end-start))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// zero makes the bytes [start, end) zero, as far as they are inside of the file, and gives their space back.
func (c *Copy) zero(ctx context.Context, id NodeID, start, end uint64) error {
	w, err := c.beginWrite(ctx, id, start, end, true, true)
	if err == errBehindEnd {
		return nil
	}
	if err != nil {
		return err
	}
	end = min(end, w.after)
	defer w.done()
	w.save()
	f := w.n.file
	if !w.complete {
		if err := c.noted(w.n); err != nil {
			return err
		}
	}
	if err := f.punch(start, end); err != nil {
		return err
	}
	for _, edge := range []uint64{start, end} {
		if !w.complete && edge%BlockSize != 0 && edge < w.after {
			if err := f.hold(blockOf(edge)); err != nil {
				return err
			}
		}
	}
	return nil
}

// punch makes the bytes [start, end) of the backing file, if there is one, a hole.
func (b *backing) punch(start, end uint64) error {
	h, err := b.acquire(false)
	if err != nil || h == nil {
		return err
	}
	defer b.release(h)
	err = unix.Fallocate(h.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(start), int64(end-start))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return b.writeZeros(start, end)
	}
	return err
}

func (b *backing) writeZeros(start, end uint64) error {
	p := make([]byte, min(end-start, 1<<20))
	for off := start; off < end; off += uint64(len(p)) {
		if err := b.writeAt([][]byte{p[:min(uint64(len(p)), end-off)]}, int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// Seek finds the next data or hole at or after off, as lseek(2) does.
func (c *Copy) Seek(ctx context.Context, id NodeID, off int64, what RangeKind) (int64, error) {
	f, err := c.fileOf(id)
	if err != nil {
		return 0, err
	}
	c.mu.RLock()
	n, err := c.get(id)
	if err != nil {
		c.mu.RUnlock()
		return 0, err
	}
	size, partial := int64(n.size), f.partial
	var s seeker
	if partial {
		s = seeker{
			what: what, at: uint64(off), size: n.size, content: f.committed,
			local: cloneSet(f.local), dirty: cloneSet(f.dirty), zeroed: cloneSet(f.zeroed),
		}
	}
	c.mu.RUnlock()
	if off < 0 || off >= size {
		return 0, syscall.ENXIO
	}
	if partial {
		return s.seek(ctx, c.cfg.Source)
	}
	return f.seekBacking(off, size, what)
}

// seekBacking asks the host's filesystem; where there is no file, or behind its end, all is one hole.
func (b *backing) seekBacking(off, size int64, what RangeKind) (int64, error) {
	h, err := b.acquire(false)
	if err != nil {
		return 0, err
	}
	if h == nil {
		if what == Data {
			return 0, syscall.ENXIO
		}
		return off, nil
	}
	defer b.release(h)
	whence := unix.SEEK_DATA
	if what == Hole {
		whence = unix.SEEK_HOLE
	}
	at, err := unix.Seek(h.fd, off, whence)
	if errors.Is(err, unix.ENXIO) && what == Hole {
		return off, nil
	}
	if err != nil {
		return 0, err
	}
	return min(at, size), nil
}

// seeker finds data and holes of a partial file: of what is not local, in the committed content's list.
type seeker struct {
	what                 RangeKind
	at, size             uint64
	content              object.Content
	local, dirty, zeroed *roaring.Bitmap
}

func (s *seeker) seek(ctx context.Context, src object.Source) (int64, error) {
	from := s.at &^ (BlockSize - 1)
	err := object.WalkSpans(ctx, src, s.content, from, func(off uint64, span object.Span) error {
		end := off + span.Size // a block with some data in it is data
		if span.ID.IsZero() {
			end &^= BlockSize - 1
		} else {
			end = (end + BlockSize - 1) &^ (BlockSize - 1)
		}
		return s.scan(min(end, s.size), span.ID.IsZero())
	})
	if err == nil {
		err = s.scan(s.size, true)
	}
	switch {
	case err == errFound:
		return int64(min(s.at, s.size)), nil
	case err != nil:
		return 0, err
	case s.what == Hole:
		return int64(s.size), nil
	}
	return 0, syscall.ENXIO
}

// scan goes on from s.at to end, where what is not local is a hole or data, and stops with errFound at what is sought.
func (s *seeker) scan(end uint64, hole bool) error {
	for s.at < end {
		b := blockOf(s.at)
		next := (b + 1) * BlockSize
		isHole := s.zeroed.Contains(uint32(b))
		switch {
		case isHole:
			next = runEnd(s.zeroed, b) * BlockSize
		case s.dirty.Contains(uint32(b)):
		default: // as committed
			isHole = hole
			if it := s.local.Iterator(); hole { // straight to the next block that may be otherwise
				it.AdvanceIfNeeded(uint32(b))
				next = end
				if it.HasNext() {
					next = min(end, uint64(it.Next())*BlockSize)
				}
			}
		}
		if isHole == (s.what == Hole) {
			return errFound
		}
		s.at = max(next, s.at+1)
	}
	return nil
}

// CopyRange copies bytes from one file to another and returns how many; fewer than n at the end of the source.
func (c *Copy) CopyRange(ctx context.Context, from NodeID, fromOff int64, to NodeID, toOff, n int64) (int64, error) {
	buf := make([]byte, min(n, 1<<20))
	var done int64
	for done < n {
		got, err := c.Read(ctx, from, buf[:min(int64(len(buf)), n-done)], fromOff+done)
		if err != nil || got == 0 {
			return done, err
		}
		put, err := c.Write(ctx, to, [][]byte{buf[:got]}, toOff+done, false, true)
		done += int64(put)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

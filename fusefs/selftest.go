package fusefs

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
)

// The self-test's ring: one process writes blocks round some files, each block filled with the number of the write.
const (
	ringFiles  = 5
	ringBlock  = 8 << 10
	ringBlocks = 16 // in a file
	ringCuts   = 40
	ringLimit  = 1500 * time.Millisecond
)

// SelfTest finds out whether this kernel behaves as the cut with a writeback cache needs it. It mounts a small volume
// below dir, has it written by another process while it is cut some times, and looks whether each cut is one that can
// have been at an instant. An error says why Through has to be used. It takes less than two seconds.
func SelfTest(ctx context.Context, dir string, f *Flusher) error {
	return selfTest(ctx, dir, f, func(*Mount) {})
}

func selfTest(ctx context.Context, dir string, f *Flusher, prepare func(*Mount)) error {
	tmp, err := os.MkdirTemp(dir, "selftest-")
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	defer os.Remove(tmp)
	p := newProbe(ringFiles, ringBlocks*ringBlock)
	m, err := New(ctx, p, tmp, Options{Cache: Writeback, Flusher: f})
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	prepare(m)
	err = ringTest(ctx, m, p, f)
	if uerr := m.Unmount(ctx); uerr != nil {
		m.Abort()
		m.Lazy()
		if err == nil {
			err = uerr
		}
	}
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

func ringTest(ctx context.Context, m *Mount, p *probe, f *Flusher) error {
	ctx, cancel := context.WithTimeout(ctx, 2*ringLimit)
	defer cancel()
	type result struct {
		writes uint64
		err    error
	}
	ended := make(chan result, 1)
	go func() {
		reply, err := f.call(ctx, opRing, m.cutter.id.Load(), binary.LittleEndian.AppendUint64(nil, uint64(ringLimit)))
		r := result{err: err}
		if len(reply) == 8 {
			r.writes = binary.LittleEndian.Uint64(reply)
		}
		ended <- r
	}()
	var bad error
	for start, n := time.Now(), 0; n < ringCuts && time.Since(start) < ringLimit*2/3; n++ {
		time.Sleep(5 * time.Millisecond)
		content, _, err := p.cut(ctx)
		if err == nil {
			err = checkRing(content)
		}
		if err != nil {
			bad = err
			break
		}
	}
	if err := f.stopRing(ctx, m.cutter.id.Load()); err != nil && bad == nil {
		bad = err
	}
	r := <-ended
	switch {
	case bad != nil:
		return bad
	case r.err != nil:
		return r.err
	case p.cached.Load() == 0:
		return errs.New(errs.Internal, "the kernel does not say which writes come from its cache")
	case p.direct.Load() > 0:
		return errs.New(errs.Internal, "the kernel does not cache writes")
	// An answer that a notice overtakes does not count for the kernel, and makes it ask nothing more.
	case p.caps.Load() < max(ringFiles, p.attrs.Load()/2):
		return errs.New(errs.Internal, "the kernel does not ask for capabilities before the first write to a file that was looked at")
	case r.writes < ringCuts*ringFiles:
		return errs.New(errs.Internal, "only %d writes in %v", r.writes, ringLimit)
	}
	return nil
}

// ring writes round the files of a mount until the time is over or it is stopped. It runs in the flusher's process, but
// not on its threads: its writes are those of a stranger. The reply is the number of writes.
func (c *child) ring(m *childMount, payload []byte) ([]byte, error) {
	if len(payload) != 8 {
		return nil, unix.EINVAL
	}
	end := time.Now().Add(time.Duration(binary.LittleEndian.Uint64(payload)))
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for i := range ringFiles {
		fd, err := unix.Openat(m.fd, strconv.Itoa(i), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %d: %w", i, err)
		}
		fds = append(fds, fd)
	}
	block := make([]byte, ringBlock)
	n := uint64(0)
	for ; time.Now().Before(end) && !m.stopped.Load(); n++ {
		fillRing(block, n)
		if _, err := unix.Pwrite(fds[n%ringFiles], block, ringOffset(n)); err != nil {
			return nil, fmt.Errorf("write %d: %w", n, err)
		}
	}
	return binary.LittleEndian.AppendUint64(nil, n), nil
}

// stopRing ends a ring before its time.
func (f *Flusher) stopRing(ctx context.Context, mount uint32) error {
	_, err := f.call(ctx, opStopRing, mount, nil)
	return err
}

// fillRing fills a block with a write's number, from 1.
func fillRing(block []byte, n uint64) {
	for i := 0; i < len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], n+1)
	}
}

func ringOffset(n uint64) int64 { return int64(n / ringFiles % ringBlocks * ringBlock) }

// checkRing says whether the files of a ring are as they can have been at one instant: where a write is to be seen, all
// writes before it are there wholly.
func checkRing(content [][]byte) error {
	last := uint64(0) // number of the last write that is to be seen
	whole := make([]uint64, len(content))
	for i, b := range content {
		for off := 0; off+ringBlock <= len(b); off += ringBlock {
			low, high := ringRange(b[off : off+ringBlock])
			last = max(last, high)
			whole[i] = max(whole[i], low)
		}
	}
	return checkOrder(last, whole)
}

// checkOrder says whether all writes before the last one that is to be seen are there. Write number n, from 1, went to
// file (n-1) modulo the number of files; whole has for each file the last write that is there wholly.
func checkOrder(last uint64, whole []uint64) error {
	files := uint64(len(whole))
	for i, have := range whole {
		// The last write to file i before write number last, if it has been that far.
		back := (last - 2 + files - uint64(i)) % files
		if last < back+2 {
			continue
		}
		if want := last - 1 - back; have < want {
			return errs.New(errs.Internal, "a cut holds write %d and lacks write %d, which came before it", last, want)
		}
	}
	return nil
}

// ringRange returns the lowest and the highest number in a block.
func ringRange(block []byte) (low, high uint64) {
	low = binary.LittleEndian.Uint64(block)
	for i := 0; i < len(block); i += 8 {
		n := binary.LittleEndian.Uint64(block[i:])
		low, high = min(low, n), max(high, n)
	}
	return low, high
}

package causal

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"dm/internal/e2e/fsx"
)

const block = 4096

// writer takes steps. Not safe for concurrent use: a step follows the one before.
type writer struct {
	ring *Ring
	root string
	open map[string]*os.File
	maps map[string][]byte
}

func newWriter(r *Ring, root string) *writer {
	return &writer{ring: r, root: root, open: make(map[string]*os.File), maps: make(map[string][]byte)}
}

func (w *writer) close() {
	for _, m := range w.maps {
		unix.Munmap(m)
	}
	for _, f := range w.open {
		f.Close()
	}
}

// Prepare makes a ring's directories and takes its first round of steps, after which every slot shows one. It returns
// the step to go on with.
func Prepare(r *Ring, root string) (int64, error) {
	for _, sub := range r.Subdots {
		if err := os.MkdirAll(filepath.Join(root, sub, r.Name, "names"), 0o755); err != nil {
			return 0, err
		}
	}
	w := newWriter(r, root)
	defer w.close()
	for s := range r.period() {
		if err := w.step(s); err != nil {
			return 0, err
		}
	}
	return r.period(), nil
}

func stamp(n int, step int64) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(step))
	}
	return b
}

func (w *writer) file(path string, flags int) (*os.File, error) {
	if f := w.open[path]; f != nil {
		return f, nil
	}
	f, err := os.OpenFile(path, flags|os.O_RDWR|os.O_CREATE, 0o644)
	if err == nil {
		w.open[path] = f
	}
	return f, err
}

// step takes one step; when it returns, all of it has happened.
func (w *writer) step(s int64) error {
	slot := w.ring.slot(s)
	k, dir := w.ring.kind(slot), w.ring.dir(w.root, slot)
	var err error
	switch k {
	case Write, Append, Map, Direct:
		err = w.content(k, s, filepath.Join(dir, k.String()))
	case Grow, Shrink, SetXattr, SetTime:
		err = w.attribute(k, s, filepath.Join(dir, k.String()))
	default:
		err = w.name(k, s, dir)
	}
	if err != nil {
		return fmt.Errorf("step %d (%s): %w", s, w.ring.describe(slot), err)
	}
	return nil
}

func (w *writer) content(k Kind, s int64, path string) error {
	switch k {
	case Write:
		f, err := w.file(path, 0)
		if err == nil {
			_, err = f.WriteAt(stamp(2*block, s), 0)
		}
		return err
	case Append:
		// Opened each time: O_APPEND has to find the end by what the filesystem says, not by what this process did.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write(stamp(16, s))
		return err
	case Direct:
		f, err := w.file(path, unix.O_DIRECT)
		if err == nil {
			b := fsx.Aligned(block)
			copy(b, stamp(block, s))
			_, err = f.WriteAt(b, 0)
		}
		return err
	}
	m := w.maps[path]
	if m == nil {
		f, err := w.file(path, 0)
		if err != nil {
			return err
		}
		if err := f.Truncate(2 * block); err != nil {
			return err
		}
		if m, err = unix.Mmap(int(f.Fd()), 0, 2*block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return err
		}
		w.maps[path] = m
	}
	// One store a block: a process may stop, or the kernel write out, between any two of them.
	for at := 0; at < 2*block; at += block {
		atomic.StoreInt64((*int64)(unsafe.Pointer(&m[at])), s)
	}
	return unix.Msync(m, unix.MS_SYNC)
}

func (w *writer) attribute(k Kind, s int64, path string) error {
	f, err := w.file(path, 0)
	if err != nil {
		return err
	}
	switch k {
	case Grow:
		return f.Truncate(s)
	case Shrink:
		return f.Truncate(shrinkFrom - s)
	case SetXattr:
		return unix.Setxattr(path, "user.step", stamp(8, s), 0)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: s}, {Sec: s}}, 0)
}

func (w *writer) name(k Kind, s int64, dir string) error {
	names := filepath.Join(dir, "names")
	numbered := func(k Kind, s int64) string { return filepath.Join(names, fmt.Sprintf("%s-%d", k, s)) }
	create := func(path string, data []byte) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write(data)
		return err
	}
	prev := s - w.ring.period()
	switch k {
	case Create:
		return create(numbered(Create, s), nil)
	case Unlink:
		return os.Remove(numbered(Create, w.ring.created(s)))
	case Rename:
		if prev < 0 {
			return create(numbered(Rename, s), nil)
		}
		return os.Rename(numbered(Rename, prev), numbered(Rename, s))
	case Replace:
		if err := create(filepath.Join(dir, "replace.new"), stamp(512, s)); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, "replace.new"), filepath.Join(dir, "replace"))
	}
	before := w.ring.movedBefore(s)
	if before < 0 {
		if err := os.Mkdir(numbered(Move, s), 0o755); err != nil {
			return err
		}
		return create(filepath.Join(numbered(Move, s), "inside"), []byte("moved along"))
	}
	from := filepath.Join(w.ring.dir(w.root, w.ring.slot(before)), "names", fmt.Sprintf("%s-%d", Move, before))
	return os.Rename(from, numbered(Move, s))
}

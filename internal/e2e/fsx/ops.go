package fsx

import (
	"fmt"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// op is an operation, to be done on either side.
type op func(*side) result

// draw chooses an operation and describes it.
func (r *Run) draw() (string, op) {
	slot := r.rnd.IntN(files * 2)
	if r.model.fds[slot] < 0 {
		return r.open(slot)
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.model.fds[slot], &st); err != nil {
		return "fstat", func(*side) result { return result{err: err} }
	}
	switch k := r.rnd.IntN(100); {
	case k < 22:
		return r.write(slot, st.Size)
	case k < 40:
		return r.read(slot, st.Size)
	case k < 48:
		return r.mmapWrite(slot, st.Size)
	case k < 53:
		return r.mmapRead(slot, st.Size)
	case k < 60:
		return r.truncate(slot, st.Size)
	case k < 72:
		return r.fallocate(slot, st.Size)
	case k < 78:
		return r.copyRange(slot, st.Size)
	case k < 83:
		return r.direct(slot, st.Size)
	case k < 86:
		return r.appendTo(slot)
	case k < 93:
		return r.name(slot)
	case k < 97:
		return r.sync(slot)
	}
	return fmt.Sprintf("close %d", slot), func(s *side) result {
		err := unix.Close(s.fds[slot])
		s.fds[slot] = -1
		return result{err: err}
	}
}

func (s *side) path(i int) string { return filepath.Join(s.dir, fmt.Sprintf("f%d", i)) }

// offset draws a place in or shortly after a file of the given size: often at block boundaries, often at its end.
func (r *Run) offset(size int64) int64 {
	var off int64
	switch r.rnd.IntN(4) {
	case 0:
		off = r.rnd.Int64N(size + 1)
	case 1:
		off = r.rnd.Int64N(size/4096+1) * 4096
	case 2:
		off = max(0, size-r.rnd.Int64N(5000))
	default:
		off = size + r.rnd.Int64N(1<<r.rnd.IntN(17))
	}
	return min(off, maxSize-1)
}

func (r *Run) length(off int64) int64 {
	n := 1 + r.rnd.Int64N(1<<(1+r.rnd.IntN(17)))
	if r.rnd.IntN(3) == 0 {
		n = (n + 4095) / 4096 * 4096
	}
	return min(n, maxLen, maxSize-off)
}

func (r *Run) payload(n int64) []byte {
	p := make([]byte, n)
	if r.rnd.IntN(8) == 0 {
		return p // zeros that are written are not a hole, and must read the same
	}
	b := byte(r.rnd.Uint32())
	for i := range p {
		p[i] = b + byte(i>>3)
	}
	return p
}

func (r *Run) open(slot int) (string, op) {
	flags := unix.O_RDWR | unix.O_CREAT | unix.O_CLOEXEC
	switch r.rnd.IntN(10) {
	case 0:
		flags |= unix.O_TRUNC
	case 1:
		flags |= unix.O_EXCL
	case 2:
		flags &^= unix.O_CREAT
	}
	return fmt.Sprintf("open %d flags %#x", slot, flags), func(s *side) result {
		fd, err := unix.Open(s.path(slot%files), flags, 0o644)
		if err == nil {
			s.fds[slot] = fd
		}
		return result{err: err}
	}
}

func (r *Run) write(slot int, size int64) (string, op) {
	off := r.offset(size)
	data := r.payload(r.length(off))
	return fmt.Sprintf("write %d at %d, %d", slot, off, len(data)), func(s *side) result {
		n, err := unix.Pwrite(s.fds[slot], data, off)
		return result{n: int64(n), err: err}
	}
}

func (r *Run) read(slot int, size int64) (string, op) {
	off := r.offset(size)
	n := r.length(off)
	return fmt.Sprintf("read %d at %d, %d", slot, off, n), func(s *side) result {
		buf := make([]byte, n)
		n, err := unix.Pread(s.fds[slot], buf, off)
		return result{n: int64(n), err: err, data: buf[:max(n, 0)]}
	}
}

// span draws a range inside the file, and where its page begins.
func (r *Run) span(size int64) (off, n, page int64) {
	off = min(r.offset(size), size-1)
	return off, min(r.length(off), size-off), off / 4096 * 4096
}

func (r *Run) mmapWrite(slot int, size int64) (string, op) {
	if size == 0 {
		return r.write(slot, size)
	}
	off, n, page := r.span(size)
	data := r.payload(n)
	sync := r.rnd.IntN(2) == 0
	return fmt.Sprintf("mmap write %d at %d, %d, msync %v", slot, off, n, sync), func(s *side) result {
		m, err := unix.Mmap(s.fds[slot], page, int(off-page+n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return result{err: err}
		}
		copy(m[off-page:], data)
		if sync {
			if err := unix.Msync(m, unix.MS_SYNC); err != nil {
				return result{err: err}
			}
		}
		return result{n: n, err: unix.Munmap(m)}
	}
}

func (r *Run) mmapRead(slot int, size int64) (string, op) {
	if size == 0 {
		return r.read(slot, size)
	}
	off, n, page := r.span(size)
	return fmt.Sprintf("mmap read %d at %d, %d", slot, off, n), func(s *side) result {
		m, err := unix.Mmap(s.fds[slot], page, int(off-page+n), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return result{err: err}
		}
		data := append([]byte(nil), m[off-page:]...)
		return result{n: n, data: data, err: unix.Munmap(m)}
	}
}

func (r *Run) truncate(slot int, size int64) (string, op) {
	to := r.offset(size)
	if r.rnd.IntN(6) == 0 {
		to = 0
	}
	return fmt.Sprintf("truncate %d from %d to %d", slot, size, to), func(s *side) result {
		return result{err: unix.Ftruncate(s.fds[slot], to)}
	}
}

func (r *Run) fallocate(slot int, size int64) (string, op) {
	modes := []uint32{
		0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
		unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
	}
	mode := modes[r.rnd.IntN(len(modes))]
	off := r.offset(size)
	n := r.length(off)
	return fmt.Sprintf("fallocate %d mode %#x at %d, %d", slot, mode, off, n), func(s *side) result {
		return result{err: unix.Fallocate(s.fds[slot], mode, off, n)}
	}
}

func (r *Run) copyRange(slot int, size int64) (string, op) {
	to := r.rnd.IntN(files * 2)
	if r.model.fds[to] < 0 || size == 0 {
		return r.read(slot, size)
	}
	off, n, _ := r.span(size)
	toOff := min(r.offset(size), maxSize-n)
	return fmt.Sprintf("copy_file_range %d at %d to %d at %d, %d", slot, off, to, toOff, n), func(s *side) result {
		from, at, done := off, toOff, int64(0)
		for done < n {
			// It may copy less than asked for, so that the total is what two filesystems have in common.
			k, err := unix.CopyFileRange(s.fds[slot], &from, s.fds[to], &at, int(n-done), 0)
			if err != nil || k == 0 {
				return result{n: done, err: err}
			}
			done += int64(k)
		}
		return result{n: done}
	}
}

// direct writes or reads whole blocks around the page cache, through a descriptor of its own.
func (r *Run) direct(slot int, size int64) (string, op) {
	off := min(r.offset(size)/4096*4096, maxSize-4096)
	n := min((r.length(off)+4095)/4096*4096, (maxSize-off)/4096*4096)
	data := r.payload(n)
	write := r.rnd.IntN(2) == 0
	return fmt.Sprintf("O_DIRECT %d at %d, %d, write %v", slot, off, n, write), func(s *side) result {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", s.fds[slot]), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return result{err: err}
		}
		defer unix.Close(fd)
		buf := Aligned(int(n))
		if write {
			copy(buf, data)
			k, err := unix.Pwrite(fd, buf, off)
			return result{n: int64(k), err: err}
		}
		k, err := unix.Pread(fd, buf, off)
		return result{n: int64(k), err: err, data: buf[:max(k, 0)]}
	}
}

// Aligned returns n bytes that begin at a multiple of 4096, as O_DIRECT needs them.
func Aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+n]
}

func (r *Run) appendTo(slot int) (string, op) {
	data := r.payload(1 + r.rnd.Int64N(3000))
	return fmt.Sprintf("append %d, %d", slot, len(data)), func(s *side) result {
		fd, err := unix.Open(s.path(slot%files), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
		if err != nil {
			return result{err: err}
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size > maxSize {
			return result{err: err, n: -1}
		}
		n, err := unix.Write(fd, data)
		return result{n: int64(n), err: err}
	}
}

func (r *Run) name(slot int) (string, op) {
	i, j := slot%files, r.rnd.IntN(files)
	switch r.rnd.IntN(5) {
	case 0:
		return fmt.Sprintf("unlink f%d", i), func(s *side) result { return result{err: unix.Unlink(s.path(i))} }
	case 1:
		return fmt.Sprintf("link f%d f%d", i, j), func(s *side) result { return result{err: unix.Link(s.path(i), s.path(j))} }
	case 2:
		return fmt.Sprintf("exchange f%d f%d", i, j), func(s *side) result {
			return result{err: unix.Renameat2(unix.AT_FDCWD, s.path(i), unix.AT_FDCWD, s.path(j), unix.RENAME_EXCHANGE)}
		}
	case 3:
		return fmt.Sprintf("rename f%d f%d noreplace", i, j), func(s *side) result {
			return result{err: unix.Renameat2(unix.AT_FDCWD, s.path(i), unix.AT_FDCWD, s.path(j), unix.RENAME_NOREPLACE)}
		}
	}
	return fmt.Sprintf("rename f%d f%d", i, j), func(s *side) result { return result{err: unix.Rename(s.path(i), s.path(j))} }
}

func (r *Run) sync(slot int) (string, op) {
	if r.rnd.IntN(2) == 0 {
		return fmt.Sprintf("fdatasync %d", slot), func(s *side) result { return result{err: unix.Fdatasync(s.fds[slot])} }
	}
	return fmt.Sprintf("fstat %d", slot), func(s *side) result {
		var st unix.Stat_t
		err := unix.Fstat(s.fds[slot], &st)
		return result{n: st.Size<<8 | int64(st.Nlink), err: err}
	}
}

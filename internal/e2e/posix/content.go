package posix

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

func contentChecks() []Check {
	return []Check{
		{"O_APPEND", appends},
		{"O_APPEND of many", appendsOfMany},
		{"holes", holes},
		{"SEEK_DATA and SEEK_HOLE", seekData},
		{"fallocate", fallocate},
		{"copy_file_range", copyFileRange},
		{"splice and sendfile", spliceSendfile},
		{"O_DIRECT", direct},
		{"fsync", fsync},
		{"wrong descriptors", wrongDescriptors},
		{"writes of many in place", writesOfMany},
	}
}

func appends(e *env) {
	e.write("f", "start")
	fd := e.open("f", unix.O_WRONLY|unix.O_APPEND)
	defer unix.Close(fd)
	other := e.open("f", unix.O_WRONLY|unix.O_APPEND)
	defer unix.Close(other)
	for i := range 3 {
		for j, d := range []int{fd, other} {
			_, err := unix.Write(d, fmt.Appendf(nil, " %d%d", i, j))
			e.must("write", err)
		}
	}
	e.content("f", "start 00 01 10 11 20 21")
	_, err := unix.Pwrite(fd, []byte("!"), 0) // Linux appends here too, as its manual says
	e.must("pwrite", err)
	e.content("f", "start 00 01 10 11 20 21!")
	e.must("truncate", unix.Ftruncate(fd, 2))
	_, err = unix.Write(other, []byte("op"))
	e.must("write", err)
	e.content("f", "stop")
}

// appendsOfMany: records of several writers are all there, whole.
func appendsOfMany(e *env) {
	const writers, records, size = 6, 300, 100
	e.write("f", "")
	var wait sync.WaitGroup
	for w := range writers {
		fd := e.open("f", unix.O_WRONLY|unix.O_APPEND)
		wait.Go(func() {
			defer unix.Close(fd)
			for r := range records {
				if n, err := unix.Write(fd, fmt.Appendf(nil, "%02d %03d %*d\n", w, r, size-8, r)); n != size || err != nil {
					e.errorf("write: %d, %v", n, err)
					return
				}
			}
		})
	}
	wait.Wait()
	data, err := os.ReadFile(e.path("f"))
	e.must("read", err)
	e.equal("bytes", len(data), writers*records*size)
	next := make([]int, writers)
	for len(data) >= size {
		var w, r, again int
		if _, err := fmt.Sscanf(string(data[:size]), "%d %d %d\n", &w, &r, &again); err != nil || r != again || w >= writers || next[w] != r {
			e.errorf("record %q is torn or out of order", data[:size])
			return
		}
		next[w]++
		data = data[size:]
	}
}

func holes(e *env) {
	e.write("f", "head")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	_, err := unix.Pwrite(fd, []byte("tail"), 10000)
	e.must("write", err)
	e.must("grow", unix.Ftruncate(fd, 20000))
	want := make([]byte, 20000)
	copy(want, "head")
	copy(want[10000:], "tail")
	e.content("f", string(want))
	e.must("cut inside", unix.Ftruncate(fd, 10002))
	e.must("grow again", unix.Ftruncate(fd, 20000))
	copy(want[10002:], "\x00\x00")
	e.content("f", string(want))
	n, err := unix.Pread(fd, make([]byte, 100), 30000)
	if n != 0 || err != nil {
		e.errorf("read behind the end: %d, %v", n, err)
	}
}

func seekData(e *env) {
	e.write("f", "")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	e.must("grow", unix.Ftruncate(fd, 1<<20))
	_, err := unix.Pwrite(fd, bytes.Repeat([]byte("x"), 4096), 512<<10)
	e.must("write", err)
	seek := func(off int64, whence int, lo, hi int64) {
		got, err := unix.Seek(fd, off, whence)
		if err != nil || got < lo || got > hi {
			e.errorf("seek from %d, whence %d: %d, %v; want %d to %d", off, whence, got, err, lo, hi)
		}
	}
	// A filesystem may see data where there is none, never the reverse.
	seek(0, unix.SEEK_DATA, 0, 512<<10)
	seek(512<<10, unix.SEEK_DATA, 512<<10, 512<<10)
	seek(512<<10, unix.SEEK_HOLE, 516<<10, 1<<20)
	_, err = unix.Seek(fd, 1<<20, unix.SEEK_DATA)
	e.is("data from the end", err, unix.ENXIO)
	_, err = unix.Seek(fd, 2<<20, unix.SEEK_HOLE)
	e.is("hole behind the end", err, unix.ENXIO)
}

func fallocate(e *env) {
	e.write("f", "0123456789")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	e.is("keep size", unix.Fallocate(fd, keep, 0, 1<<20), 0)
	e.equal("size", e.stat("f").Size, int64(10))
	e.is("extend", unix.Fallocate(fd, 0, 0, 20), 0)
	e.equal("size", e.stat("f").Size, int64(20))
	e.is("punch", unix.Fallocate(fd, punch|keep, 2, 3), 0)
	e.content("f", "01\x00\x00\x0056789"+string(make([]byte, 10)))
	e.is("zero", unix.Fallocate(fd, zero, 8, 14), 0)
	e.content("f", "01\x00\x00\x00567"+string(make([]byte, 14)))
	e.is("punch without keep", unix.Fallocate(fd, punch, 0, 1), unix.EOPNOTSUPP)
	e.is("no length", unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
	e.is("before the start", unix.Fallocate(fd, 0, -1, 5), unix.EINVAL)
	ro := e.open("f", unix.O_RDONLY)
	defer unix.Close(ro)
	e.is("read only", unix.Fallocate(ro, 0, 0, 5), unix.EBADF)
}

func copyFileRange(e *env) {
	e.mkdir("d")
	e.write("f", "0123456789")
	e.write("d/g", "abc")
	from, to := e.open("f", unix.O_RDWR), e.open("d/g", unix.O_RDWR)
	defer unix.Close(from)
	defer unix.Close(to)
	off, at := int64(2), int64(1)
	n, err := unix.CopyFileRange(from, &off, to, &at, 5, 0)
	e.must("copy", err)
	e.equal("copied", n, 5)
	e.content("d/g", "a23456")
	off, at = 8, 6
	n, err = unix.CopyFileRange(from, &off, to, &at, 100, 0)
	e.must("copy to the end", err)
	e.equal("copied", n, 2)
	e.content("d/g", "a2345689")
	off, at = 0, 2
	_, err = unix.CopyFileRange(from, &off, from, &at, 5, 0)
	e.is("overlapping", err, unix.EINVAL)
}

func spliceSendfile(e *env) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	e.write("f", string(data))
	from := e.open("f", unix.O_RDONLY)
	defer unix.Close(from)
	to := e.open("g", unix.O_CREAT|unix.O_WRONLY)
	defer unix.Close(to)
	for total := 0; total < len(data); {
		n, err := unix.Sendfile(to, from, nil, len(data)-total)
		e.must("sendfile", err)
		if n == 0 {
			break
		}
		total += n
	}
	e.content("g", string(data))
}

func direct(e *env) {
	fd := e.open("f", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT)
	defer unix.Close(fd)
	buf := aligned(8192)
	copy(buf, bytes.Repeat([]byte("d"), 8192))
	_, err := unix.Pwrite(fd, buf, 4096)
	e.must("write", err)
	cached := e.open("f", unix.O_RDWR)
	defer unix.Close(cached)
	_, err = unix.Pwrite(cached, []byte("cached"), 4096)
	e.must("write through the cache", err)
	n, err := unix.Pread(fd, buf, 4096)
	e.must("read", err)
	e.equal("read", n, 8192)
	e.equal("what the cache had", string(buf[:7]), "cachedd")
	copy(buf, "direct")
	_, err = unix.Pwrite(fd, buf, 4096)
	e.must("write", err)
	small := make([]byte, 7)
	_, err = unix.Pread(cached, small, 4096)
	e.must("read through the cache", err)
	e.equal("what was written around the cache", string(small), "directd")
	e.equal("size", e.stat("f").Size, int64(12288))
}

func fsync(e *env) {
	e.write("f", "x")
	e.mkdir("d")
	for _, name := range []string{"f", "d", "."} {
		fd := e.open(name, unix.O_RDONLY)
		e.is("fsync "+name, unix.Fsync(fd), 0)
		e.is("fdatasync "+name, unix.Fdatasync(fd), 0)
		e.is("syncfs "+name, unix.Syncfs(fd), 0)
		unix.Close(fd)
	}
	fd := e.open("f", unix.O_RDWR|unix.O_DSYNC)
	defer unix.Close(fd)
	_, err := unix.Write(fd, []byte("dsync"))
	e.must("write with O_DSYNC", err)
	e.is("sync_file_range", unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER), 0)
	e.content("f", "dsync")
}

func wrongDescriptors(e *env) {
	e.write("f", "x")
	ro, wo := e.open("f", unix.O_RDONLY), e.open("f", unix.O_WRONLY)
	defer unix.Close(ro)
	defer unix.Close(wo)
	_, err := unix.Write(ro, []byte("y"))
	e.is("write read-only", err, unix.EBADF)
	_, err = unix.Read(wo, make([]byte, 1))
	e.is("read write-only", err, unix.EBADF)
	e.is("truncate read-only", unix.Ftruncate(ro, 0), unix.EINVAL)
	dir := e.open(".", unix.O_RDONLY)
	defer unix.Close(dir)
	_, err = unix.Read(dir, make([]byte, 1))
	e.is("read a directory", err, unix.EISDIR)
}

// writesOfMany: several writers of their own blocks of one file, beside one that grows it, disturb no one.
func writesOfMany(e *env) {
	const writers, rounds = 6, 200
	e.write("f", "")
	var wait sync.WaitGroup
	for w := range writers {
		fd := e.open("f", unix.O_RDWR)
		wait.Go(func() {
			defer unix.Close(fd)
			buf := make([]byte, 1000)
			for r := range rounds {
				at := int64(r*writers+w) * 1000
				for i := range buf {
					buf[i] = byte(w*31 + r)
				}
				if _, err := unix.Pwrite(fd, buf, at); err != nil {
					e.errorf("write: %v", err)
					return
				}
			}
		})
	}
	wait.Wait()
	data, err := os.ReadFile(e.path("f"))
	e.must("read", err)
	e.equal("size", len(data), writers*rounds*1000)
	for i := range data {
		k := i / 1000
		if data[i] != byte(k%writers*31+k/writers) {
			e.errorf("byte %d is %d, want %d", i, data[i], byte(k%writers*31+k/writers))
			return
		}
	}
}

package fusefs

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const busyFiles = 2000

// writeMany keeps many files open and writes round them without a break, so that between any two moments most of them
// become dirty.
func writeMany(dir string) error {
	told := untilTold()
	var fds []int
	for i := range busyFiles {
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprint("f", i)), unix.O_RDWR|unix.O_CREAT, 0o600)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	fmt.Println("ready")
	b := make([]byte, 8192)
	for n := 0; !told(); n++ {
		if _, err := unix.Pwrite(fds[n%len(fds)], b, int64(n/len(fds)%64)*8192); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkPauseOfManyFiles measures for how long writers wait at a cut while 2,000 files are written.
func BenchmarkPauseOfManyFiles(b *testing.B) {
	c := newCopy(b)
	f := newTestFlusher(b)
	m := mountTest(b, c, Options{Flusher: f})
	h := startHelper(b, "write-many", m.Dir())
	var pauses []time.Duration
	for b.Loop() {
		time.Sleep(20 * time.Millisecond)
		s, err := c.Freeze(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		pauses = append(pauses, s.Pause())
		s.Abort()
	}
	h.end(b)
	slices.Sort(pauses)
	b.ReportMetric(float64(pauses[len(pauses)/2].Microseconds()), "us-median")
	b.ReportMetric(float64(pauses[len(pauses)*99/100].Microseconds()), "us-p99")
}

// BenchmarkStat measures lstat(2) of a file that the kernel has to ask for.
func BenchmarkStat(b *testing.B) {
	m := mountTest(b, newCopy(b), Options{Flusher: newTestFlusher(b)})
	m.leases.max.Store(0)
	path := filepath.Join(m.Dir(), "f")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	for b.Loop() {
		if err := unix.Lstat(path, &st); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenReadClose is what a program that reads small files does.
func BenchmarkOpenReadClose(b *testing.B) {
	m := mountTest(b, newCopy(b), Options{Flusher: newTestFlusher(b)})
	path := filepath.Join(m.Dir(), "f")
	page := make([]byte, 4096)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := unix.Write(fd, page); err != nil {
		b.Fatal(err)
	}
	unix.Close(fd)
	for b.Loop() {
		fd, err := unix.Open(path, unix.O_RDONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := unix.Pread(fd, page, 0); err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
	}
}

// BenchmarkWrite4K is a write(2) of a page into the kernel's cache, or through it.
func BenchmarkWrite4K(b *testing.B) {
	for _, cache := range []Cache{Writeback, Through} {
		b.Run(cache.String(), func(b *testing.B) {
			m := mountTest(b, newCopy(b), Options{Cache: cache, Flusher: newTestFlusher(b)})
			fd, err := unix.Open(filepath.Join(m.Dir(), "f"), unix.O_RDWR|unix.O_CREAT, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(fd)
			page := make([]byte, 4096)
			b.SetBytes(4096)
			for i := 0; b.Loop(); i++ {
				if _, err := unix.Pwrite(fd, page, int64(i*2654435761%(64<<20))&^4095); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package dot

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/workcopy"
)

// pages fills p with something like a database's pages: text that compresses to about a fifth.
func pages(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	var words [512][]byte
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x,", r.Uint64()>>r.IntN(48))
	}
	for len(p) > 0 {
		n := copy(p, words[r.IntN(len(words))])
		p = p[n:]
	}
}

// fill writes count files of the given size.
func (f *files) fill(dir string, count, size int) {
	buf := make([]byte, min(size, 1<<20))
	for i := range count {
		p := fmt.Sprintf("%s/f%06d", dir, i)
		f.write(p, nil)
		for off := 0; off < size; off += len(buf) {
			pages(buf, uint64(i<<20+off>>10))
			f.writeAt(p, int64(off), buf)
		}
	}
}

// cpu returns the seconds of processor time the process has used.
func cpu(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// peak returns the most memory the process has had resident, in MB.
func peak(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	b.Fatal("the kernel does not say")
	return 0
}

// resetPeak makes the peak start from what is resident now.
func resetPeak(b *testing.B) {
	runtime.GC()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFirstCommit commits 1 GB: in one file, in some large ones, in many small ones.
func BenchmarkFirstCommit(b *testing.B) {
	const total = 1 << 30
	for _, count := range []int{1, 32, 16384} {
		b.Run(fmt.Sprintf("%d-files", count), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				h := newHome(b)
				n := h.create("d", "s")
				h.fs(n).fill("s", count, total/count)
				resetPeak(b)
				b.StartTimer()
				began, used := time.Now(), cpu(b)
				r := h.commit(n, "first")
				b.ReportMetric(total/1e6/time.Since(began).Seconds(), "MB/s")
				b.ReportMetric(cpu(b)-used, "cpu-s")
				b.ReportMetric(float64(r.StoredBytes)/1e6, "stored-MB")
				b.ReportMetric(peak(b), "peak-MB")
				b.ReportMetric(r.PauseMS, "pause-ms")
				b.StopTimer()
				h.shut()
			}
		})
	}
}

// BenchmarkSmallCommit changes 16 bytes in each of some 4 KiB pages of a 1 GB file and commits that.
func BenchmarkSmallCommit(b *testing.B) {
	h := newHome(b)
	n := h.create("d", "s")
	f := h.fs(n)
	f.fill("s", 1, 1<<30)
	h.commit(n, "first")
	for _, edits := range []int{1, 100, 2000} {
		b.Run(fmt.Sprintf("%d-pages", edits), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			var read, stored, commits float64
			for b.Loop() {
				b.StopTimer()
				for range edits {
					off := r.Int64N(1<<30/workcopy.BlockSize)*workcopy.BlockSize + 100
					f.writeAt("s/f000000", off, fmt.Appendf(nil, "%016x", r.Uint64()))
				}
				b.StartTimer()
				c := h.commit(n, "small")
				read, stored, commits = read+float64(c.ReadBytes), stored+float64(c.StoredBytes), commits+1
			}
			b.ReportMetric(read/commits/1e6, "read-MB")
			b.ReportMetric(stored/commits/1e3, "stored-kB")
		})
	}
}

// BenchmarkCommitOfOneFile touches one file of few and of many: the cost should not be that of the many.
func BenchmarkCommitOfOneFile(b *testing.B) {
	for _, count := range []int{1000, 200_000} {
		b.Run(fmt.Sprintf("of-%d", count), func(b *testing.B) {
			h := newHome(b)
			n := h.create("d", "s")
			f := h.fs(n)
			for i := range count / 1000 {
				f.mkdir(fmt.Sprintf("s/d%d", i))
				for j := range 1000 {
					f.write(fmt.Sprintf("s/d%d/f%d", i, j), []byte("x"))
				}
			}
			h.commit(n, "first")
			h.reopen()
			f = h.fs(n)
			i := 0
			b.Run("commit", func(b *testing.B) {
				for b.Loop() {
					i++
					f.write("s/d0/f7", bytes.Repeat([]byte("y"), i%5000+1))
					h.commit(n, "one")
				}
			})
			b.Run("list", func(b *testing.B) {
				for b.Loop() {
					if l, err := h.List(context.Background()); err != nil || l[0].Error != "" {
						b.Fatal(l, err)
					}
				}
			})
			b.Run("status", func(b *testing.B) {
				for b.Loop() {
					if _, err := h.Status(context.Background(), n); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("diff", func(b *testing.B) {
				for b.Loop() {
					if c, err := h.Diff(context.Background(), n, "HEAD^", "HEAD"); err != nil || len(c) != 1 {
						b.Fatal(c, err)
					}
				}
			})
			h.shut()
		})
	}
}

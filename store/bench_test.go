package store

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/chunker"
	"dm/object"
)

// cpu reports the processor time of a benchmark's loop, per operation and as bytes per second, n bytes each: on a machine
// that does other things as well it says more than the wall. Call what it returns when the loop is done.
func cpu(b *testing.B, n int) func() {
	now := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	start := now()
	return func() {
		per := float64(now()-start) / float64(b.N)
		b.ReportMetric(per, "cpu-ns/op")
		b.ReportMetric(float64(n)*1000/per, "MB/cpu-s")
	}
}

// BenchmarkPut is what one core puts through a batch, by the kind of data: hashing, looking up, compressing, writing, and
// a commit per 16 MiB.
func BenchmarkPut(b *testing.B) {
	for _, kind := range []string{"compressible", "incompressible", "zero", "known", "delta"} {
		b.Run(kind, func(b *testing.B) {
			s := testStore(b, b.TempDir(), Options{})
			const n = 64 << 10
			data := page(1, n)
			switch kind {
			case "incompressible":
				data = random(1, n)
			case "zero":
				data = make([]byte, n)
			}
			var old object.ID
			batch := begin(b, s)
			b.SetBytes(n)
			i := uint64(0)
			done := cpu(b, n)
			for b.Loop() {
				if i++; kind != "known" && kind != "zero" {
					binary.LittleEndian.PutUint64(data[i*64%n:], i*0x9e3779b97f4a7c15)
					binary.LittleEndian.PutUint64(data[n/2:], i)
				}
				base := object.ID{}
				if kind == "delta" {
					base = old
				}
				id, err := batch.PutOver(b.Context(), object.KindChunk, data, base)
				if err != nil {
					b.Fatal(err)
				}
				if old = id; i%256 == 0 {
					if _, err := batch.Commit(b.Context(), nil); err != nil {
						b.Fatal(err)
					}
					if batch, err = s.Begin(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
			done()
		})
	}
}

// BenchmarkIngest is a first commit's work on one core: cut, hash, compress and write 64 MiB of database-like pages. The
// profile of it says what cutting and hashing take.
func BenchmarkIngest(b *testing.B) {
	data := make([]byte, 0, 64<<20)
	for i := 0; len(data) < cap(data); i++ {
		data = append(data, page(uint64(i), 16<<10)...)
	}
	s := testStore(b, b.TempDir(), Options{})
	b.SetBytes(int64(len(data)))
	done := cpu(b, len(data))
	defer func() { done() }()
	for n := uint64(1); b.Loop(); n++ {
		for i := 0; i < len(data); i += 16 << 10 {
			binary.LittleEndian.PutUint64(data[i:], n<<32+uint64(i))
		}
		batch, err := s.Begin(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for rest := data; len(rest) > 0; {
			k := chunker.Gear(rest)
			if _, err := batch.Put(b.Context(), object.KindChunk, rest[:k]); err != nil {
				b.Fatal(err)
			}
			rest = rest[k:]
		}
		if _, err := batch.Commit(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkGet reads chunks of 64 KiB that are not in the store's cache, though in the kernel's: standing alone, and at
// the end of the longest chain of deltas.
func BenchmarkGet(b *testing.B) {
	for _, depth := range []int{0, 1, maxDepth} {
		b.Run(fmt.Sprint("depth-", depth), func(b *testing.B) {
			s := testStore(b, b.TempDir(), Options{CacheBytes: 1})
			var ids []object.ID
			batch := begin(b, s)
			for i := range 100 {
				data := page(uint64(i), 64<<10)
				id := put(b, batch, object.KindChunk, data, object.ID{})
				for d := range depth {
					copy(data[d*5000:], random(uint64(d), 100))
					id = put(b, batch, object.KindChunk, data, id)
				}
				ids = append(ids, id)
			}
			commit(b, batch, nil)
			if e, _, _ := s.lookup(ids[0]); int(e.depth) != depth {
				b.Fatalf("depth is %d", e.depth)
			}
			b.SetBytes(64 << 10)
			i := 0
			done := cpu(b, 64<<10)
			for b.Loop() {
				if _, err := s.Get(b.Context(), object.KindChunk, ids[i%len(ids)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
			done()
		})
	}
}

// BenchmarkCommit is the smallest commit that moves a ref: what syncing costs.
func BenchmarkCommit(b *testing.B) {
	s := testStore(b, b.TempDir(), Options{})
	var tip object.ID
	for i := uint64(0); b.Loop(); i++ {
		batch := begin(b, s)
		id := put(b, batch, object.KindCommit, binary.LittleEndian.AppendUint64(nil, i), object.ID{})
		commit(b, batch, func(tx *Tx) error { return tx.SetRef("main", tip, id) })
		tip = id
	}
}

// BenchmarkScale makes a store of two million objects and says what it costs to have one: run it with -benchtime 1x.
func BenchmarkScale(b *testing.B) {
	for b.Loop() {
		scale(b)
	}
}

func scale(b *testing.B) {
	const total, perCommit = 2_000_000, 50_000
	dir := b.TempDir()
	s := testStore(b, dir, Options{})
	start := time.Now()
	small := func(n uint64, count int) {
		batch := begin(b, s)
		for i := range count {
			put(b, batch, object.KindChunk, fmt.Appendf(nil, "object %d of %d", i, n), object.ID{})
		}
		commit(b, batch, nil)
	}
	for n := range uint64(total / perCommit) {
		small(n, perCommit)
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/total, "us/object-made")
	st, err := os.Stat(filepath.Join(dir, indexName))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(st.Size())/total, "index-bytes/object")
	for _, count := range []int{1, 2000} {
		start := time.Now()
		for i := range uint64(5) {
			small(1000+i+uint64(count), count)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds())/5, fmt.Sprintf("ms/commit-of-%d", count))
	}
	s.Close()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start = time.Now()
	s = testStore(b, dir, Options{})
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/open")
	s.Close()
	if err := os.Remove(filepath.Join(dir, cleanName)); err != nil {
		b.Fatal(err)
	}
	start = time.Now()
	s = testStore(b, dir, Options{})
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/open-after-crash")
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "MiB-heap-open")
	start = time.Now()
	for i := range 20000 {
		if has, err := s.Has(object.Sum(object.KindChunk, fmt.Appendf(nil, "object %d of %d", i, i%40))); err != nil || !has {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(time.Since(start).Microseconds())/20000, "us/lookup")
	start = time.Now()
	longest := longestWait(b, s)
	stats, err := s.GC(b.Context(), GCOptions{})
	if err != nil || stats.Freed < total {
		b.Fatalf("%+v, %v", stats, err)
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/gc-of-all")
	b.ReportMetric(float64(longest().Milliseconds()), "ms/longest-wait-in-gc")
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapSys)/(1<<20), "MiB-heap-peak")
}

// longestWait changes metadata again and again until the function it returns is called, which tells how long that took at most.
func longestWait(b *testing.B, s *Store) func() time.Duration {
	stop, done := make(chan struct{}), make(chan time.Duration)
	go func() {
		var longest time.Duration
		for i := byte(0); ; i++ {
			select {
			case <-stop:
				done <- longest
				return
			case <-time.After(5 * time.Millisecond):
			}
			start := time.Now()
			if err := s.Update(func(tx *Tx) error { return tx.SetMeta("k", []byte{i}) }); err != nil {
				b.Error(err)
			}
			longest = max(longest, time.Since(start))
		}
	}()
	return func() time.Duration {
		close(stop)
		return <-done
	}
}

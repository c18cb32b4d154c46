package chunker

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// random returns n bytes of a fixed pseudo-random stream.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// text returns n bytes that look like a log: lines that share most of their bytes.
func text(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "2026-01-02T03:04:05.%06dZ INFO request %d served in %d us\n", i*977%1000000, i, i*i%9973)
	}
	return b.Bytes()[:n]
}

// cuts returns the ends of all chunks of b.
func cuts(cut func([]byte) int, b []byte) (ends []int) {
	for off := 0; off < len(b); {
		off += cut(b[off:])
		ends = append(ends, off)
	}
	return ends
}

// reference is the definition of Gear, written as plainly as possible.
func reference(buf []byte) int {
	for n := Min; n < len(buf); n++ {
		if n == Max {
			return n
		}
		var h uint64
		for _, b := range buf[n-window : n] {
			h = h<<1 + gear[b]
		}
		bits := strictBits
		if n > Avg {
			bits = looseBits
		}
		if h>>(64-bits) == 0 {
			return n
		}
	}
	return len(buf)
}

func inputs() map[string][]byte {
	return map[string][]byte{
		"random": random(1, 4<<20),
		"text":   text(4 << 20),
		"zero":   make([]byte, 1<<20),
		"0x20":   bytes.Repeat([]byte{0x20}, 1<<20),
		"short":  random(2, Min-1),
		"min":    random(3, Min),
		"empty":  nil,
	}
}

// The cut functions are part of the format. If this test fails, the code is wrong, not the vectors.
func TestGoldenVectors(t *testing.T) {
	var got strings.Builder
	fmt.Fprintf(&got, "gear %016x %016x %016x\n", gear[0], gear[1], gear[255])
	in := inputs()
	for _, name := range []string{"random", "text", "zero", "0x20", "short", "min", "empty"} {
		fmt.Fprintf(&got, "input %s crc32 %08x\n", name, crc32.ChecksumIEEE(in[name]))
		fmt.Fprintf(&got, "gear %s %s\n", name, strings.Trim(fmt.Sprint(cuts(Gear, in[name])), "[]"))
		fmt.Fprintf(&got, "fixed %s %d\n", name, len(cuts(Fixed, in[name])))
	}
	path := filepath.Join("testdata", "golden.txt")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v\ngot:\n%s", err, got.String())
	}
	a, b := bufio.NewScanner(bytes.NewReader(want)), bufio.NewScanner(strings.NewReader(got.String()))
	a.Buffer(nil, 1<<20)
	b.Buffer(nil, 1<<20)
	for line := 1; ; line++ {
		more, moreGot := a.Scan(), b.Scan()
		if a.Text() != b.Text() || more != moreGot {
			t.Fatalf("%s line %d: content would be cut in other places than before\nwant %.200s\ngot  %.200s",
				path, line, a.Text(), b.Text())
		}
		if !more {
			return
		}
	}
}

func TestGearIsItsDefinition(t *testing.T) {
	for name, b := range inputs() {
		if name == "zero" || name == "0x20" {
			b = b[:min(len(b), 300<<10)]
		}
		for off, rounds := 0, 0; off < len(b) && rounds < 12; rounds++ {
			n, want := Gear(b[off:]), reference(b[off:])
			if n != want {
				t.Fatalf("%s at %d: cut after %d, want %d", name, off, n, want)
			}
			off += n
		}
	}
}

func TestSizes(t *testing.T) {
	b := random(4, 64<<20)
	ends := cuts(Gear, b)
	avg := len(b) / len(ends)
	if avg < Avg*3/4 || avg > Avg*5/4 {
		t.Errorf("random data is cut into chunks of %d bytes on average, want about %d", avg, Avg)
	}
	last := 0
	for i, e := range ends {
		if n := e - last; n > Max || n < Min && i != len(ends)-1 {
			t.Errorf("chunk %d has %d bytes", i, n)
		}
		last = e
	}
}

// After any edit the cuts meet the old ones again soon: half of them within 2*Avg, and of the others one in ten is later than
// 4*Avg more, one in a hundred later than 8*Avg.
func TestCutsMeetAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Byte().Draw(t, "seed")
		old := random(seed, 5<<20)
		at := rapid.IntRange(0, 1<<20).Draw(t, "at")
		gone := rapid.IntRange(0, 100<<10).Draw(t, "gone")
		put := random(seed+1, rapid.IntRange(0, 100<<10).Draw(t, "put"))
		edited := append(append(append([]byte(nil), old[:at]...), put...), old[at+gone:]...)

		shift := len(edited) - len(old)
		known := map[int]bool{}
		for _, e := range cuts(Gear, old) {
			known[e+shift] = true
		}
		limit := at + len(put) + 12*Max
		for _, e := range cuts(Gear, edited) {
			if e < at {
				continue
			}
			if known[e] && e > at+len(put) {
				return
			}
			if e > limit {
				t.Fatalf("no common cut up to %d, edit ended at %d", e, at+len(put))
			}
		}
	})
}

// What is behind a chunk's end does not matter, nor how much of it the caller had at hand.
func FuzzGear(f *testing.F) {
	f.Add([]byte("x"), uint16(9), uint32(5))
	f.Add(random(5, 100), uint16(5000), uint32(70000))
	f.Fuzz(func(t *testing.T, piece []byte, times uint16, extra uint32) {
		if len(piece) == 0 || len(piece)*int(times) > 2*Max {
			return
		}
		b := bytes.Repeat(piece, int(times))
		n := Gear(b)
		if n != reference(b) {
			t.Fatalf("cut after %d, want %d", n, reference(b))
		}
		if n == len(b) && n < Max {
			return
		}
		longer := append(b[:len(b):len(b)], make([]byte, extra%(1<<20))...)
		if m := Gear(longer); m != n {
			t.Fatalf("cut after %d, with more content at hand after %d", n, m)
		}
	})
}

func TestZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 4096, 64 << 10, 64<<10 + 1, 1 << 20} {
		b := make([]byte, n)
		if !Zero(b) {
			t.Errorf("%d zero bytes are not zero", n)
		}
		for _, i := range []int{0, 1, n / 3, n / 2, n - 2, n - 1} {
			if i < 0 || i >= n {
				continue
			}
			b[i] = 1
			if Zero(b) {
				t.Errorf("%d bytes with a one at %d are zero", n, i)
			}
			b[i] = 0
		}
	}
}

func BenchmarkGear(b *testing.B) {
	for name, data := range map[string][]byte{"random": random(6, 16<<20), "text": text(16 << 20)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				for off := 0; off < len(data); {
					off += Gear(data[off:])
				}
			}
		})
	}
}

func BenchmarkZero(b *testing.B) {
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if !Zero(data) {
			b.Fatal("not zero")
		}
	}
}

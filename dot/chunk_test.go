package dot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"dm/chunker"
	"dm/internal/errs"
	"dm/object"
	"dm/workcopy"
)

// memory is a store of objects in memory that counts, and fails when told to.
type memory struct {
	mu         sync.Mutex
	objects    map[object.ID][]byte
	gets, puts int
	over       int // puts with an old object that is there
	failAfter  int // puts; 0: never
}

var errDisk = errors.New("the disk is gone")

func newMemory() *memory { return &memory{objects: map[object.ID][]byte{}} }

func (m *memory) Put(_ context.Context, kind object.Kind, plain []byte) (object.ID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.puts++
	if m.failAfter > 0 && m.puts > m.failAfter {
		return object.ID{}, errDisk
	}
	id := object.Sum(kind, plain)
	m.objects[id] = bytes.Clone(plain)
	return id, nil
}

func (m *memory) PutOver(ctx context.Context, kind object.Kind, plain []byte, old object.ID) (object.ID, error) {
	m.mu.Lock()
	if _, ok := m.objects[old]; ok {
		m.over++
	}
	m.mu.Unlock()
	return m.Put(ctx, kind, plain)
}

func (m *memory) Get(_ context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gets++
	if b, ok := m.objects[id]; ok {
		return b, nil
	}
	return nil, errs.New(errs.NotFound, "no %s %s", kind, id)
}

// fakeFile is a frozen file in memory. Its holes are the known ones: dirty, zero, and never to be read.
type fakeFile struct {
	path  string
	base  object.Content
	data  []byte
	dirty []workcopy.Range
	holes []workcopy.Range // inside of dirty, ascending
	read  atomic.Uint64
	got   object.Content
	set   int
}

func (f *fakeFile) Path() string                { return f.path }
func (f *fakeFile) Base() object.Content        { return f.base }
func (f *fakeFile) Size() uint64                { return uint64(len(f.data)) }
func (f *fakeFile) Dirty() []workcopy.Range     { return f.dirty }
func (f *fakeFile) SetContent(c object.Content) { f.got = c; f.set++ }

func (f *fakeFile) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, f.data[off:])
	f.read.Add(uint64(n))
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *fakeFile) NextData(off uint64) (uint64, uint64) {
	end := f.Size()
	for _, h := range f.holes {
		if h.Off <= off && off < h.Off+h.Len {
			off = h.Off + h.Len
		}
		if h.Off > off {
			end = min(end, h.Off)
		}
	}
	return min(off, f.Size()), end
}

func contentBytes(t fatal, m *memory, c object.Content) []byte {
	var b bytes.Buffer
	if err := writeContent(context.Background(), m, c, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type fatal interface{ Fatal(...any) }

func chunkOne(t fatal, m *memory, f *fakeFile) object.Content {
	if _, err := chunkFiles(context.Background(), m, m, []*fakeFile{f}, nil); err != nil {
		t.Fatal(err)
	}
	if f.set != 1 {
		t.Fatal("SetContent was called", f.set, "times")
	}
	return f.got
}

// random fills p from a seed.
func random(p []byte, seed uint64) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(key).Read(p)
}

// blocks returns the ranges of dirty 4 KiB blocks, cut off at size, as a working copy reports them.
func blocks(dirty map[uint64]bool, size uint64) (list []workcopy.Range) {
	for b := uint64(0); b*workcopy.BlockSize < size; b++ {
		if !dirty[b] {
			continue
		}
		off := b * workcopy.BlockSize
		n := min(workcopy.BlockSize, size-off)
		if k := len(list); k > 0 && list[k-1].Off+list[k-1].Len == off {
			list[k-1].Len += n
		} else {
			list = append(list, workcopy.Range{Off: off, Len: n})
		}
	}
	return list
}

// edit changes a file as programs do, marks the blocks it touches as dirty and punches holes that are known.
type edit struct {
	data  []byte
	dirty map[uint64]bool
	holes map[uint64]bool
}

func (e *edit) touch(off, n uint64, hole bool) {
	for b := off / workcopy.BlockSize; n > 0 && b*workcopy.BlockSize < off+n; b++ {
		e.dirty[b] = true
		delete(e.holes, b)
		if hole && b*workcopy.BlockSize >= off && (b+1)*workcopy.BlockSize <= off+n {
			e.holes[b] = true
		}
	}
}

func (e *edit) resize(size, base uint64) {
	old := uint64(len(e.data))
	switch {
	case size > old:
		e.data = append(e.data, make([]byte, size-old)...)
		e.touch(old, size-old, true)
	case size < old:
		e.data = e.data[:size]
		for b := size / workcopy.BlockSize; b*workcopy.BlockSize < old; b++ {
			if b*workcopy.BlockSize >= size {
				delete(e.dirty, b)
			}
			delete(e.holes, b)
		}
		// What is grown over again later was cut off here: it is no longer the base's.
	}
}

func (e *edit) step(t *rapid.T, base uint64) {
	size := uint64(len(e.data))
	off := uint64(0)
	if size > 0 {
		off = rapid.Uint64Range(0, size-1).Draw(t, "off")
	}
	n := rapid.SampledFrom([]uint64{1, 100, 4096, 20_000, 300_000}).Draw(t, "n")
	switch rapid.SampledFrom([]string{"write", "write", "write", "append", "punch", "grow", "truncate"}).Draw(t, "op") {
	case "write":
		n = min(n, size-off)
		random(e.data[off:off+n], rapid.Uint64().Draw(t, "seed"))
		e.touch(off, n, false)
	case "append":
		add := make([]byte, n)
		random(add, rapid.Uint64().Draw(t, "seed"))
		e.data = append(e.data, add...)
		e.touch(size, n, false)
	case "punch":
		n = min(n, size-off)
		clear(e.data[off : off+n])
		e.touch(off, n, true)
	case "grow":
		e.resize(size+n, base)
	case "truncate":
		e.resize(off, base)
	}
}

// Whatever is done to a file, chunking its dirty ranges over the old list gives the file's bytes, and for files cut at
// fixed places the very list that chunking the whole file gives.
func TestRecutIsTheFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		data := make([]byte, rapid.SampledFrom([]int{0, 1, 5000, 16384, 65536, 70_000, 131072, 1_000_000, 1 << 20}).Draw(t, "size"))
		random(data, rapid.Uint64().Draw(t, "seed"))
		if rapid.Bool().Draw(t, "sparse") && len(data) > 500_000 {
			clear(data[100_000:450_000])
		}
		base := object.Content{}
		dirty := map[uint64]bool{}
		for b := range uint64(len(data)/workcopy.BlockSize + 1) {
			dirty[b] = true
		}
		holes := map[uint64]bool{}
		for round := range rapid.IntRange(1, 4).Draw(t, "rounds") {
			e := &edit{data: bytes.Clone(data), dirty: dirty, holes: holes}
			if round > 0 {
				low := uint64(len(data))
				for range rapid.IntRange(0, 4).Draw(t, "steps") {
					e.step(t, base.Size)
					low = min(low, uint64(len(e.data)))
				}
				// What was cut off at any time and lies behind is dirty: a working copy says so.
				for b := low / workcopy.BlockSize; b*workcopy.BlockSize < uint64(len(e.data)); b++ {
					e.dirty[b] = true
				}
			}
			data = e.data
			f := &fakeFile{path: "f", base: base, data: data, dirty: blocks(e.dirty, uint64(len(data))), holes: blocks(e.holes, uint64(len(data)))}
			got := chunkOne(t, m, f)
			if got.Size != uint64(len(data)) || !bytes.Equal(contentBytes(t, m, got), data) {
				t.Fatalf("round %d: the chunks are not the file", round)
			}
			if cut, ok, _ := object.CutOf(context.Background(), m, got); ok && cut == object.CutFixed {
				whole := map[uint64]bool{}
				for b := range uint64(len(data)/workcopy.BlockSize + 1) {
					whole[b] = true
				}
				fresh := &fakeFile{data: data, dirty: blocks(whole, uint64(len(data)))}
				if c := chunkFixed(t, m, fresh); c != got {
					t.Fatalf("round %d: edited %+v, chunked anew %+v", round, got, c)
				}
			}
			base, dirty, holes = got, map[uint64]bool{}, map[uint64]bool{}
		}
	})
}

// chunkFixed lists a file in fixed blocks in the plainest way.
func chunkFixed(t fatal, m *memory, f *fakeFile) object.Content {
	ctx := context.Background()
	ed := object.NewListEditor(ctx, m, m, object.Content{}, object.CutFixed)
	for data := f.data; len(data) > 0; {
		n := chunker.Fixed(data)
		s := object.Span{Size: uint64(n)}
		if !chunker.Zero(data[:n]) {
			s.ID = object.Sum(object.KindChunk, data[:n])
		}
		if err := ed.Add(s); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	c, err := ed.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A gear-cut file that a few bytes are inserted into keeps its other chunks.
func TestInsertionKeepsChunks(t *testing.T) {
	m := newMemory()
	data := make([]byte, 8_000_001)
	random(data, 1)
	f := &fakeFile{data: data, dirty: []workcopy.Range{{Off: 0, Len: uint64(len(data))}}}
	first := chunkOne(t, m, f)
	m.puts = 0
	data = append(append(bytes.Clone(data[:3_000_000]), "inserted"...), data[3_000_000:]...)
	g := &fakeFile{base: first, data: data, dirty: []workcopy.Range{{Off: 2998272, Len: uint64(len(data)) - 2998272}}}
	second := chunkOne(t, m, g)
	if !bytes.Equal(contentBytes(t, m, second), data) {
		t.Fatal("wrong bytes")
	}
	same := map[object.ID]bool{}
	for _, s := range spansOf(t, m, first) {
		same[s.ID] = true
	}
	fresh := 0
	for _, s := range spansOf(t, m, second) {
		if !same[s.ID] {
			fresh++
		}
	}
	if fresh > 3 {
		t.Errorf("%d chunks are new after an insertion of 8 bytes", fresh)
	}
}

func spansOf(t fatal, m *memory, c object.Content) (list []object.Span) {
	if err := object.WalkSpans(context.Background(), m, c, 0, func(_ uint64, s object.Span) error {
		list = append(list, s)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// A change costs what it is, wherever it is: this reads a few blocks of a file of 64 MiB and gives each its old chunk as a
// base.
func TestRecutReadsWhatChanged(t *testing.T) {
	for _, cut := range []object.Cut{object.CutFixed, object.CutGear} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			m := newMemory()
			size := 64 << 20
			if cut == object.CutGear {
				size -= 123
			}
			data := make([]byte, size)
			random(data, 2)
			first := chunkOne(t, m, &fakeFile{data: data, dirty: []workcopy.Range{{Off: 0, Len: uint64(size)}}})
			m.gets, m.puts, m.over = 0, 0, 0
			f := &fakeFile{base: first, data: data}
			const edits = 20
			for i := range uint64(edits) {
				off := (i*3_000_000 + 4096) &^ (workcopy.BlockSize - 1)
				random(data[off:off+100], i)
				f.dirty = append(f.dirty, workcopy.Range{Off: off, Len: workcopy.BlockSize})
			}
			got := chunkOne(t, m, f)
			if !bytes.Equal(contentBytes(t, m, got), data) {
				t.Fatal("wrong bytes")
			}
			perEdit := f.read.Load() / edits
			if limit := uint64(3 * chunker.Max); perEdit > limit || cut == object.CutFixed && perEdit != chunker.Block {
				t.Errorf("an edit of 4 KiB read %d bytes", perEdit)
			}
			if m.over < edits {
				t.Errorf("%d of %d edits had an old chunk to compare with", m.over, edits)
			}
			if m.puts > 6*edits {
				t.Errorf("%d edits wrote %d objects", edits, m.puts)
			}
		})
	}
}

// Known holes are not read, however large.
func TestHolesAreNotRead(t *testing.T) {
	for _, size := range []uint64{64 << 20, 64<<20 + 77} {
		m := newMemory()
		data := make([]byte, size)
		random(data[32<<20:32<<20+8192], 3)
		f := &fakeFile{
			data: data, dirty: []workcopy.Range{{Off: 0, Len: size}},
			holes: []workcopy.Range{{Off: 0, Len: 32 << 20}, {Off: 32<<20 + 8192, Len: size - 32<<20 - 8192}},
		}
		got := chunkOne(t, m, f)
		if !bytes.Equal(contentBytes(t, m, got), data) {
			t.Fatal("wrong bytes")
		}
		if n := f.read.Load(); n > 2*chunker.Max {
			t.Errorf("read %d bytes of a file with 8 KiB of data", n)
		}
		if n := len(spansOf(t, m, got)); n > 5 {
			t.Errorf("8 KiB in a hole became %d spans", n)
		}
	}
}

// An error ends the run, is reported as what it is, and leaves no goroutine behind (TestMain looks).
func TestChunkingFails(t *testing.T) {
	data := make([]byte, 20<<20)
	random(data, 4)
	for _, after := range []int{1, 50, 300} {
		m := newMemory()
		m.failAfter = after
		var files []*fakeFile
		for i := range 5 {
			files = append(files, &fakeFile{path: fmt.Sprint(i), data: data, dirty: []workcopy.Range{{Off: 0, Len: uint64(len(data))}}})
		}
		if _, err := chunkFiles(context.Background(), m, m, files, nil); !errors.Is(err, errDisk) {
			t.Fatalf("after %d puts: %v", after, err)
		}
	}
	m := newMemory()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f := &fakeFile{data: data, dirty: []workcopy.Range{{Off: 0, Len: uint64(len(data))}}}
	if _, err := chunkFiles(ctx, m, m, []*fakeFile{f}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestChunkingProgress(t *testing.T) {
	m := newMemory()
	var files []*fakeFile
	total := uint64(0)
	for i := range 40 {
		data := make([]byte, 1+i*50_000)
		random(data, uint64(i))
		files = append(files, &fakeFile{data: data, dirty: []workcopy.Range{{Off: 0, Len: uint64(len(data))}}})
		total += uint64(len(data))
	}
	var last Progress
	read, err := chunkFiles(context.Background(), m, m, files, func(p Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	want := Progress{FilesDone: 40, FilesTotal: 40, BytesDone: total, BytesTotal: total}
	if last != want || read != total {
		t.Errorf("progress ends at %+v with %d bytes read, want %+v", last, read, want)
	}
}

package object

import (
	"context"
	"encoding/binary"
	"fmt"
	"reflect"
	"sort"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"dm/internal/errs"
)

// memory is a Source and Sink that counts what goes through it.
type memory struct {
	mu         sync.Mutex
	m          map[ID][]byte
	gets, puts int
}

func newMemory() *memory { return &memory{m: map[ID][]byte{}} }

func (s *memory) Put(_ context.Context, k Kind, b []byte) (ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	id := Sum(k, b)
	s.m[id] = append([]byte(nil), b...)
	return id, nil
}

func (s *memory) Get(_ context.Context, k Kind, id ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	b, ok := s.m[id]
	if !ok {
		return nil, errs.New(errs.NotFound, "no %s %s", k, id)
	}
	return b, nil
}

func chunkID(n uint64) ID {
	return Sum(KindChunk, binary.BigEndian.AppendUint64(nil, n))
}

// buildList adds spans one by one.
func buildList(t interface{ Fatal(...any) }, m *memory, spans []Span) Content {
	e := NewListEditor(context.Background(), m, m, Content{}, CutFixed)
	for _, s := range spans {
		if err := e.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	c, err := e.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func spansOf(t interface{ Fatal(...any) }, m *memory, c Content, from uint64) (spans []Span) {
	err := WalkSpans(context.Background(), m, c, from, func(off uint64, s Span) error {
		spans = append(spans, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return spans
}

// An edited list must be the very list that is made by adding the same spans from scratch, and must not have touched
// what the edit did not change.
func TestListEditIsCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		n := rapid.IntRange(0, 3000).Draw(t, "n")
		var old []Span
		for i := range n {
			old = append(old, Span{Size: uint64(1 + i%7), ID: chunkID(uint64(i))})
		}
		base := buildList(t, m, old)
		if got := spansOf(t, m, base, 0); len(got) != n || n > 0 && !reflect.DeepEqual(got, old) {
			t.Fatalf("walk gives %d spans, want %d", len(got), n)
		}
		// replace old[i:j] by k new spans
		i := rapid.IntRange(0, n).Draw(t, "i")
		j := rapid.IntRange(i, n).Draw(t, "j")
		k := rapid.IntRange(0, 5).Draw(t, "k")
		offset := func(i int) (o uint64) {
			for _, s := range old[:i] {
				o += s.Size
			}
			return o
		}
		want := append([]Span{}, old[:i]...)
		e := NewListEditor(context.Background(), m, m, base, CutFixed)
		at, err := e.CopyTo(offset(i))
		if err != nil || at != offset(i) {
			t.Fatalf("CopyTo stops at %d, %v; want %d", at, err, offset(i))
		}
		for x := range k {
			s := Span{Size: 3, ID: chunkID(uint64(1e6 + x))}
			want = append(want, s)
			if err := e.Add(s); err != nil {
				t.Fatal(err)
			}
		}
		if ok, err := e.Boundary(offset(j)); !ok || err != nil {
			t.Fatalf("%d is no boundary: %v", offset(j), err)
		}
		want = append(want, old[j:]...)
		if _, err := e.CopyTo(base.Size); err != nil {
			t.Fatal(err)
		}
		got, err := e.Finish()
		if err != nil {
			t.Fatal(err)
		}
		fresh := buildList(t, newMemory(), want)
		if got != fresh {
			t.Fatalf("edited %+v, made anew %+v", got, fresh)
		}
		if len(want) > 0 {
			if got := spansOf(t, m, got, 0); !reflect.DeepEqual(got, want) {
				t.Fatal("wrong spans")
			}
		}
	})
}

func TestListEditReadsLittle(t *testing.T) {
	m := newMemory()
	var old []Span
	for i := range 160_000 { // a file of 10 GB
		old = append(old, Span{Size: 64 << 10, ID: chunkID(uint64(i))})
	}
	base := buildList(t, m, old)
	m.gets, m.puts = 0, 0
	e := NewListEditor(context.Background(), m, m, base, CutFixed)
	mid := uint64(80_000 * 64 << 10)
	if at, err := e.CopyTo(mid + 17); at != mid || err != nil {
		t.Fatal(at, err)
	}
	e.Add(Span{64 << 10, chunkID(1e9)})
	if ok, err := e.Boundary(mid + 64<<10); !ok || err != nil {
		t.Fatal(ok, err)
	}
	e.CopyTo(base.Size)
	if _, err := e.Finish(); err != nil {
		t.Fatal(err)
	}
	if m.gets > 12 || m.puts > 12 {
		t.Errorf("an edit of one chunk read %d and wrote %d lists", m.gets, m.puts)
	}
}

func TestListHoles(t *testing.T) {
	m := newMemory()
	base := buildList(t, m, []Span{{Size: 5 << 30}, {Size: 5 << 30}})
	if base.Depth != 0 || !base.Root.IsZero() || base.Size != 10<<30 {
		t.Fatalf("two holes in a row are %+v, not one hole", base)
	}
	e := NewListEditor(context.Background(), m, m, base, CutFixed)
	at, err := e.CopyTo(3<<30 + 5000)
	if err != nil || at != 3<<30 {
		t.Fatal(at, err)
	}
	e.Add(Span{64 << 10, chunkID(1)})
	if ok, err := e.Boundary(at + 64<<10); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := e.CopyTo(10 << 30); err != nil {
		t.Fatal(err)
	}
	c, err := e.Finish()
	if err != nil {
		t.Fatal(err)
	}
	want := []Span{{3 << 30, ID{}}, {64 << 10, chunkID(1)}, {7<<30 - 64<<10, ID{}}}
	if got := spansOf(t, m, c, 0); !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v", got)
	}
	if got := spansOf(t, m, c, 3<<30+1); !reflect.DeepEqual(got, want[1:]) {
		t.Fatalf("from the middle: %v", got)
	}
}

func file(name string, ino uint64) *Entry {
	return &Entry{Name: name, Ino: ino, Mode: ModeRegular | 0o644, Sec: 1, Content: Content{Size: 5, Root: chunkID(ino)}}
}

// A directory edited step by step must be the very tree that is made from its last state at once.
func TestTreeEditIsCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		m := newMemory()
		model := map[string]*Entry{}
		var root ID
		var sums Totals
		ino := uint64(1)
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			edits := map[string]*Entry{}
			for range rapid.IntRange(0, 700).Draw(t, "edits") {
				name := fmt.Sprintf("n%d", rapid.IntRange(0, 2000).Draw(t, "name"))
				if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
					edits[name] = nil
					delete(model, name)
				} else {
					ino++
					edits[name] = file(name, ino)
					model[name] = edits[name]
				}
			}
			var err error
			root, sums, err = EditTree(ctx, m, m, root, sorted(edits))
			if err != nil {
				t.Fatal(err)
			}
		}
		fresh, freshSums, err := EditTree(ctx, m, m, ID{}, sorted(model))
		if err != nil || fresh != root || sums != freshSums {
			t.Fatalf("edited %s %v, made anew %s %v, %v", root, sums, fresh, freshSums, err)
		}
		got := map[string]*Entry{}
		if err := WalkTree(ctx, m, root, "", func(e *Entry) error {
			c := *e
			got[e.Name] = &c
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, model) {
			t.Fatalf("tree has %d entries, model %d", len(got), len(model))
		}
		if sums.Files != uint64(len(model)) || sums.Bytes != uint64(5*len(model)) {
			t.Fatalf("totals %+v of %d files", sums, len(model))
		}
		for _, name := range []string{"n5", "n77", "a", "z"} {
			e, ok, err := LookupTree(ctx, m, root, name)
			if want := model[name]; err != nil || ok != (want != nil) || ok && !reflect.DeepEqual(&e, want) {
				t.Fatalf("lookup %s: %v %v %v", name, e, ok, err)
			}
		}
	})
}

func sorted(m map[string]*Entry) (edits []Edit) {
	for name, e := range m {
		edits = append(edits, Edit{name, e})
	}
	sort.Slice(edits, func(i, j int) bool { return edits[i].Name < edits[j].Name })
	return edits
}

func TestTreeEditReadsLittle(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	all := map[string]*Entry{}
	for i := range 200_000 {
		name := fmt.Sprintf("file-%06d", i)
		all[name] = file(name, uint64(i+2))
	}
	root, _, err := EditTree(ctx, m, m, ID{}, sorted(all))
	if err != nil {
		t.Fatal(err)
	}
	m.gets, m.puts = 0, 0
	_, sums, err := EditTree(ctx, m, m, root, []Edit{{"file-123456", file("file-123456", 7)}})
	if err != nil || sums.Files != 200_000 {
		t.Fatal(sums, err)
	}
	if m.gets > 8 || m.puts > 8 {
		t.Errorf("an edit of one name read %d and wrote %d trees", m.gets, m.puts)
	}
}

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// random returns n bytes of a fixed pseudo-random stream.
func random(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// page returns n bytes that compress to about a third, as a page of a database may.
func page(seed uint64, n int) []byte {
	b := random(seed, n)
	for i := range b {
		if i%64 > 16 {
			b[i] = byte(i / 64)
		}
	}
	return b
}

func testStore(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func begin(t testing.TB, s *Store) *Batch {
	t.Helper()
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Abort)
	return b
}

func put(t testing.TB, b *Batch, kind object.Kind, plain []byte, old object.ID) object.ID {
	t.Helper()
	id, err := b.PutOver(t.Context(), kind, plain, old)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func commit(t testing.TB, b *Batch, fn func(tx *Tx) error) Stats {
	t.Helper()
	stats, err := b.Commit(t.Context(), fn)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func wantKind(t testing.TB, err error, kind errs.Kind) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind {
		t.Fatalf("error is %v (%v), want one of kind %v", err, errs.KindOf(err), kind)
	}
}

func wantObject(t testing.TB, src object.Source, kind object.Kind, id object.ID, want []byte) {
	t.Helper()
	got, err := src.Get(context.Background(), kind, id)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("object %s has other bytes than were put", id.Short())
	}
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{})
	objects := [][]byte{nil, {1}, []byte("hello"), random(1, 100<<10), page(2, 64<<10), make([]byte, object.MaxSize)}
	b := begin(t, s)
	var ids []object.ID
	for _, o := range objects {
		id := put(t, b, object.KindChunk, o, object.ID{})
		wantObject(t, b, object.KindChunk, id, o)
		if has, err := s.Has(id); has || err != nil {
			t.Fatalf("an object is in the store before its batch is committed: %v", err)
		}
		if _, err := s.Get(t.Context(), object.KindChunk, id); errs.KindOf(err) != errs.NotFound {
			t.Fatalf("an object is read before its batch is committed: %v", err)
		}
		ids = append(ids, id)
	}
	put(t, b, object.KindChunk, objects[2], object.ID{})
	stats := commit(t, b, nil)
	if stats.Objects != len(objects)+1 || stats.NewObjects != len(objects) {
		t.Errorf("stats are %+v", stats)
	}
	for range 2 {
		for i, id := range ids {
			wantObject(t, s, object.KindChunk, id, objects[i])
			_, err := s.Get(t.Context(), object.KindTree, id)
			wantKind(t, err, errs.NotFound)
		}
		s.Close()
		s = testStore(t, dir, Options{})
	}
	b = begin(t, s)
	for _, o := range objects {
		put(t, b, object.KindChunk, o, object.ID{})
	}
	if stats := commit(t, b, nil); stats.NewObjects != 0 || stats.StoredBytes != 0 {
		t.Errorf("what is there was stored again: %+v", stats)
	}
}

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{})
	_, err := Open(t.Context(), dir, Options{})
	wantKind(t, err, errs.Conflict)
	if !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("the holder is not named: %v", err)
	}
	s.Close()
	testStore(t, dir, Options{})
}

func TestRefsAndMeta(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{})
	b := begin(t, s)
	one := put(t, b, object.KindCommit, []byte("one"), object.ID{})
	two := put(t, b, object.KindCommit, []byte("two"), object.ID{})
	commit(t, b, func(tx *Tx) error {
		return errors.Join(tx.SetRef("a/x", object.ID{}, one), tx.SetRef("a/y", object.ID{}, two),
			tx.SetRef("b", object.ID{}, two), tx.SetMeta("k", []byte("v")), tx.SetMeta("empty", []byte{}))
	})
	var none object.ID
	for _, c := range []struct {
		name     string
		old, new object.ID
		want     errs.Kind
	}{
		{"a/x", none, two, errs.Conflict},
		{"a/x", two, one, errs.Conflict},
		{"c", one, two, errs.Conflict},
		{"a/x", one, object.ID{1}, errs.NotFound},
		{"c", one, none, errs.Conflict},
		{"", none, one, errs.Usage},
	} {
		err := s.Update(func(tx *Tx) error { return tx.SetRef(c.name, c.old, c.new) })
		wantKind(t, err, c.want)
	}
	boom := errors.New("boom")
	err := s.Update(func(tx *Tx) error {
		if err := errors.Join(tx.SetRef("a/x", one, two), tx.SetMeta("k", nil)); err != nil {
			t.Error(err)
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("fn's error is lost: %v", err)
	}
	if err := s.Update(func(tx *Tx) error { return errors.Join(tx.SetRef("b", two, none), tx.SetRef("a/y", two, one)) }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := s.View(func(tx *Tx) error {
			var got []string
			for name, id := range tx.Refs("a/") {
				got = append(got, name, id.Short())
			}
			if want := []string{"a/x", one.Short(), "a/y", one.Short()}; !equalStrings(got, want) {
				t.Errorf("refs are %v, want %v", got, want)
			}
			if _, ok := tx.Ref("b"); ok {
				t.Error("a removed ref is there")
			}
			if v, ok := tx.Meta("k"); !ok || string(v) != "v" {
				t.Errorf("metadata is %q", v)
			}
			if v, ok := tx.Meta("empty"); !ok || len(v) != 0 || v == nil {
				t.Errorf("empty metadata is %v, %v", v, ok)
			}
			n := 0
			for range tx.Metas("") {
				n++
			}
			if n != 2 {
				t.Errorf("%d keys of metadata", n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		s = testStore(t, dir, Options{})
	}
}

func TestFailedCommitLeavesNothing(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{})
	b := begin(t, s)
	first := put(t, b, object.KindChunk, page(1, 1000), object.ID{})
	commit(t, b, nil)
	before := s.packs.grow[0].size

	b = begin(t, s)
	id := put(t, b, object.KindChunk, page(2, 100<<10), object.ID{})
	boom := errors.New("boom")
	_, err := b.Commit(t.Context(), func(*Tx) error { return boom })
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if has, _ := s.Has(id); has {
		t.Error("an object of a failed commit is there")
	}
	if _, err := b.Put(t.Context(), object.KindChunk, nil); err == nil {
		t.Error("a closed batch takes objects")
	}
	st, err := s.packs.grow[0].f.Stat()
	if err != nil || st.Size() != before {
		t.Errorf("the pack has %d bytes, %d before the failed commit; %v", st.Size(), before, err)
	}
	wantObject(t, s, object.KindChunk, first, page(1, 1000))
}

// Small commits one after another do not become many packs, and large ones are cut into packs of the size asked for.
func TestPacks(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{PackBytes: 1 << 20})
	plains := map[object.ID][]byte{}
	for i := range 50 {
		b := begin(t, s)
		p := random(uint64(i), 1000)
		plains[put(t, b, object.KindChunk, p, object.ID{})] = p
		commit(t, b, nil)
	}
	if n := len(s.packs.open); n != 1 {
		t.Errorf("50 small commits made %d packs", n)
	}
	b := begin(t, s)
	for i := range 100 {
		p := random(uint64(1000+i), 64<<10)
		plains[put(t, b, object.KindChunk, p, object.ID{})] = p
	}
	commit(t, b, nil)
	if n := len(s.packs.open); n != 7 && n != 8 {
		t.Errorf("6.4 MB are in %d packs of 1 MB", n)
	}
	s.Close()
	s = testStore(t, dir, Options{PackBytes: 1 << 20})
	for id, p := range plains {
		wantObject(t, s, object.KindChunk, id, p)
	}
}

func TestDeltaChains(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{})
	p := page(1, 64<<10)
	var old object.ID
	plains := map[object.ID][]byte{}
	var total int64
	for i := range 50 {
		b := begin(t, s)
		p = append([]byte(nil), p...)
		copy(p[i*1000:], random(uint64(100+i), 100))
		old = put(t, b, object.KindChunk, p, old)
		plains[old] = p
		stats := commit(t, b, nil)
		if i > 0 {
			total += stats.StoredBytes
		}
		e, ok, err := s.lookup(old)
		if err != nil || !ok || int(e.depth) > maxDepth {
			t.Fatalf("commit %d: entry %+v, %v, %v", i, e, ok, err)
		}
	}
	if total > 50*2000 {
		t.Errorf("50 changes of 100 bytes took %d bytes", total)
	}
	s.Close()
	s = testStore(t, dir, Options{CacheBytes: 1})
	for id, p := range plains {
		wantObject(t, s, object.KindChunk, id, p)
	}
}

// Content that moved within a chunk is found, and content that has nothing in common with what stood there is not tried.
func TestMovedContent(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{CacheBytes: 1})
	text := []byte(nil)
	for i := range 1000 {
		text = fmt.Appendf(text, "line %d says %x\n", i, random(uint64(i), 20))
	}
	b := begin(t, s)
	old := put(t, b, object.KindChunk, text, object.ID{})
	moved := append([]byte("a line before all others\n"), text...)
	id := put(t, b, object.KindChunk, moved, old)
	other := put(t, b, object.KindChunk, random(9, 50000), old)
	commit(t, b, nil)
	wantObject(t, s, object.KindChunk, id, moved)
	if n, err := s.StoredSize(id); n > 300 || err != nil {
		t.Errorf("a line put in front takes %d bytes, %v", n, err)
	}
	if e, _, _ := s.lookup(other); e.enc != pack.Raw {
		t.Errorf("unrelated content is stored as %v", e.enc)
	}
}

// Many goroutines put the same and different objects into one and into several batches at a time.
func TestConcurrentBatches(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{PackBytes: 4 << 20})
	var outer sync.WaitGroup
	for n := range 4 {
		outer.Go(func() {
			b, err := s.Begin(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			var wg sync.WaitGroup
			for g := range 4 {
				wg.Go(func() {
					var old object.ID
					for i := range 60 {
						p := page(uint64(i%40+n%2*20), 32<<10)
						id, err := b.PutOver(t.Context(), object.KindChunk, p, old)
						if err != nil {
							t.Errorf("batch %d, %d: %v", n, g, err)
							return
						}
						got, err := b.Get(t.Context(), object.KindChunk, id)
						if err != nil || !bytes.Equal(got, p) {
							t.Errorf("batch %d: read own object: %v", n, err)
						}
						old = id
					}
				})
			}
			wg.Wait()
			if n == 3 {
				b.Abort()
				return
			}
			if _, err := b.Commit(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	outer.Wait()
	for i := range 60 {
		p := page(uint64(i), 32<<10)
		wantObject(t, s, object.KindChunk, object.Sum(object.KindChunk, p), p)
	}
}

func equalStrings(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// The index is walked at opening unless it is the very file that a store closed in order has left: neither after a crash nor
// when something has written to it since.
func TestCleanNote(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{})
	b := begin(t, s)
	put(t, b, object.KindChunk, []byte("something"), object.ID{})
	commit(t, b, nil)
	note := filepath.Join(dir, cleanName)
	if _, err := os.Stat(note); !os.IsNotExist(err) {
		t.Fatalf("an open store has a note: %v", err)
	}
	s.Close()
	text, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(dir, indexName)
	whole, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	// Damage that only the walk finds: the page of the top tree says it is another.
	flipped := bytes.Clone(whole)
	for p := 2 * os.Getpagesize(); p < len(flipped); p += os.Getpagesize() {
		flipped[p] ^= 0x40
	}
	if err := os.WriteFile(index, flipped, 0o600); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, Options{})
	if len(s.Recovered()) == 0 {
		t.Error("damage that was written beside the note is not noticed")
	}
	if _, err := os.Stat(note); !os.IsNotExist(err) {
		t.Errorf("the note is still there: %v", err)
	}
	if ok, _ := s.Has(object.Sum(object.KindChunk, []byte("something"))); !ok {
		t.Error("what was stored is lost")
	}
	s.Close()
	if again, err := os.ReadFile(note); err != nil || bytes.Equal(again, text) {
		t.Errorf("the note of another file is the same: %q, %v", again, err)
	}
	s = testStore(t, dir, Options{})
	if len(s.Recovered()) != 0 {
		t.Errorf("after a clean end: %v", s.Recovered())
	}
}

package store

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// Records travel from store to store in the form they are stored in, and end up as the same objects.
func TestTransfer(t *testing.T) {
	dir := t.TempDir()
	want, refs := history(t, dir, Options{})
	from, to := testStore(t, dir, Options{}), testStore(t, t.TempDir(), Options{CacheBytes: 1})

	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		t.Fatal(err)
	}
	defer codec.Close()
	var stream bytes.Buffer
	w := pack.NewWriter(&stream)
	sent := map[object.ID]bool{}
	var send func(id object.ID)
	send = func(id object.ID) {
		if id.IsZero() || sent[id] {
			return
		}
		sent[id] = true
		rec, err := from.Record(t.Context(), want[id], id)
		if err != nil {
			t.Fatal(err)
		}
		send(rec.Base)
		if err := w.Write(&rec); err != nil {
			t.Fatal(err)
		}
	}
	for id := range want {
		send(id)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	size := stream.Len()

	b := begin(t, to)
	deltas := 0
	for r := pack.NewReader(&stream); ; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Encoding.HasBase() {
			deltas++
		}
		var base []byte
		if rec.Encoding.HasBase() {
			if base, err = b.Get(t.Context(), rec.Kind, rec.Base); err != nil {
				t.Fatal(err)
			}
		}
		plain, err := codec.Decode(rec, base)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PutRecord(t.Context(), rec, plain); err != nil {
			t.Fatal(err)
		}
	}
	tip := refs["heads/main"]
	stats := commit(t, b, func(tx *Tx) error { return tx.SetRef("main", object.ID{}, tip) })
	if deltas == 0 || stats.NewObjects != len(want) || stats.StoredBytes > int64(size) {
		t.Errorf("%d deltas, stats %+v, sent %d bytes", deltas, stats, size)
	}
	if err := reach(t.Context(), to, object.KindCommit, tip, map[object.ID]object.Kind{}); err != nil {
		t.Error(err)
	}
	_, err = from.Record(t.Context(), object.KindChunk, object.ID{1})
	wantKind(t, err, errs.NotFound)
}

// A record that is not what it says is refused, and one whose base is not here is stored anew.
func TestOddRecords(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{})
	b := begin(t, s)
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		t.Fatal(err)
	}
	defer codec.Close()
	plain, base := page(1, 5000), page(2, 5000)
	id := object.Sum(object.KindChunk, plain)
	for name, c := range map[string]struct {
		kind  object.Kind
		id    object.ID
		plain []byte
	}{
		"wrong id": {object.KindChunk, object.ID{9}, plain}, "wrong kind": {object.KindTree, id, plain},
		"wrong bytes": {object.KindChunk, id, base}, "wrong length": {object.KindChunk, id, plain[:10]},
	} {
		raw, _ := codec.Append(nil, c.kind, c.id, plain)
		rec, err := pack.ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PutRecord(t.Context(), &rec, c.plain); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: %v", name, err)
		}
	}
	changed := bytes.Clone(base)
	changed[100]++
	id = object.Sum(object.KindChunk, changed)
	raw, _, ok := codec.AppendDelta(nil, object.KindChunk, id, changed, object.ID{7}, base, 1000)
	if !ok {
		t.Fatal("no delta")
	}
	rec, err := pack.ParseRecord(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.PutRecord(t.Context(), &rec, changed); err != nil {
		t.Fatal(err)
	}
	if stats := commit(t, b, nil); stats.NewObjects != 1 {
		t.Errorf("stats are %+v", stats)
	}
	if e, _, _ := s.lookup(id); e.enc != pack.Zstd {
		t.Errorf("an object without its base is stored as %v", e.enc)
	}
	wantObject(t, s, object.KindChunk, id, changed)
}

// A chain may not grow beyond its bound, whoever makes it.
func TestForeignChains(t *testing.T) {
	to := testStore(t, t.TempDir(), Options{CacheBytes: 1})
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		t.Fatal(err)
	}
	defer codec.Close()
	b := begin(t, to)
	base := page(1, 60000)
	baseID := put(t, b, object.KindChunk, base, object.ID{})
	for i := range 100 {
		plain := bytes.Clone(base)
		copy(plain[i*500:], random(uint64(i), 50))
		id := object.Sum(object.KindChunk, plain)
		raw, _, ok := codec.AppendDelta(nil, object.KindChunk, id, plain, baseID, base, 10000)
		if !ok {
			t.Fatal("no delta")
		}
		rec, err := pack.ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.PutRecord(t.Context(), &rec, plain); err != nil {
			t.Fatal(err)
		}
		base, baseID = plain, id
	}
	commit(t, b, nil)
	e, _, err := to.lookup(baseID)
	if err != nil || e.depth > maxDepth {
		t.Errorf("depth is %d, %v", e.depth, err)
	}
	wantObject(t, to, object.KindChunk, baseID, base)
}

// Remotes store the same two objects the other way round. A record of an object that a gc has just hidden, as a delta of the
// very object whose base it is, would make a chain without an end.
func TestRecordOverItsOwnDelta(t *testing.T) {
	var s *Store
	arrive := func() {}
	s, err := open(t.Context(), t.TempDir(), Options{CacheBytes: 1}, func(point string) error {
		if point == "GCSwept" {
			arrive()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	old := page(1, 60000)
	now := bytes.Clone(old)
	copy(now[1000:], random(2, 50))
	b := begin(t, s)
	oldID := put(t, b, object.KindChunk, old, object.ID{})
	nowID := put(t, b, object.KindChunk, now, oldID)
	commit(t, b, func(tx *Tx) error { return tx.SetRef("now", object.ID{}, nowID) })
	if e, _, _ := s.lookup(nowID); e.base != oldID {
		t.Fatal("there is no delta to begin with")
	}

	arrive = func() {
		codec, err := pack.NewCodec(pack.Fast)
		if err != nil {
			t.Fatal(err)
		}
		defer codec.Close()
		raw, _, ok := codec.AppendDelta(nil, object.KindChunk, oldID, old, nowID, now, 1000)
		if !ok {
			t.Fatal("no delta")
		}
		rec, err := pack.ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		b := begin(t, s)
		if has, err := b.Has(oldID); err != nil || has {
			t.Fatalf("nothing needs the object, and it is there: %v, %v", has, err)
		}
		if err := b.PutRecord(t.Context(), &rec, old); err != nil {
			t.Fatal(err)
		}
		commit(t, b, func(tx *Tx) error { return tx.SetRef("old", object.ID{}, oldID) })
	}
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Fatal(err)
	}
	wantObject(t, s, object.KindChunk, nowID, now)
	wantObject(t, s, object.KindChunk, oldID, old)
}

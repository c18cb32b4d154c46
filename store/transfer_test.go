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

	var stream bytes.Buffer
	w := pack.NewWriter(&stream)
	sent := map[object.ID]bool{}
	var send func(id object.ID)
	send = func(id object.ID) {
		if id.IsZero() || sent[id] {
			return
		}
		sent[id] = true
		rec, err := from.Stored(t.Context(), id)
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
		if err := b.PutStored(t.Context(), rec); err != nil {
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
	_, err := from.Stored(t.Context(), object.ID{1})
	wantKind(t, err, errs.NotFound)
}

// What a hostile peer sends is refused, and leaves nothing.
func TestHostileRecords(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{})
	b := begin(t, s)
	plain := page(1, 5000)
	id := put(t, b, object.KindChunk, plain, object.ID{})
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		t.Fatal(err)
	}
	defer codec.Close()
	record := func(kind object.Kind, id object.ID) pack.Record {
		raw, _ := codec.Append(nil, kind, id, []byte("something else"))
		rec, err := pack.ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	other := object.Sum(object.KindChunk, []byte("something else"))
	over := record(object.KindChunk, other)
	over.Encoding, over.Base, over.Payload = pack.Delta, object.ID{7}, []byte{0, 0}
	self := over
	self.Base = id
	for name, c := range map[string]struct {
		rec  pack.Record
		kind errs.Kind
	}{
		"wrong id":      {record(object.KindChunk, object.ID{9}), errs.Damaged},
		"wrong kind":    {record(object.KindTree, other), errs.Damaged},
		"missing base":  {over, errs.NotFound},
		"another delta": {self, errs.Damaged},
	} {
		err := b.PutStored(t.Context(), &c.rec)
		if errs.KindOf(err) != c.kind {
			t.Errorf("%s: %v (%v), want kind %v", name, err, errs.KindOf(err), c.kind)
		}
	}
	if stats := commit(t, b, nil); stats.NewObjects != 1 {
		t.Errorf("stats are %+v", stats)
	}
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
		if err := b.PutStored(t.Context(), &rec); err != nil {
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

package store

import (
	"bytes"
	"testing"

	"dm/internal/errs"
	"dm/object"
)

// copyObject brings one object from a store into another.
func copyObject(t *testing.T, from, to *Store, kind object.Kind, id object.ID, fn func(*Tx) error) {
	t.Helper()
	plain, err := from.Get(t.Context(), kind, id)
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, to)
	put(t, b, kind, bytes.Clone(plain), object.ID{})
	commit(t, b, fn)
}

// What is not there of a partial commit is no damage; what is there stays, is checked and comes to be whole.
func TestPartialCommit(t *testing.T) {
	ctx := t.Context()
	far := testStore(t, t.TempDir(), Options{})
	w := newWorld()
	w.write("a1", 1, 300<<10)
	w.write("b1", 2, 200)
	b := begin(t, far)
	first, err := w.store(ctx, b, nil, "one")
	if err != nil {
		t.Fatal(err)
	}
	w.write("b1", 3, 200)
	tip, err := w.store(ctx, b, []object.ID{first}, "two")
	if err != nil {
		t.Fatal(err)
	}
	commit(t, b, func(tx *Tx) error { return tx.SetRef("main", object.ID{}, tip) })

	near := testStore(t, t.TempDir(), Options{})
	partial := func(id object.ID) func(*Tx) error { return func(tx *Tx) error { return tx.SetPartial(id) } }
	copyObject(t, far, near, object.KindCommit, first, partial(first))
	copyObject(t, far, near, object.KindCommit, tip, func(tx *Tx) error {
		if err := tx.SetPartial(tip); err != nil {
			return err
		}
		return tx.SetRef("main", object.ID{}, tip)
	})
	holds := func(want bool) {
		t.Helper()
		for _, id := range []object.ID{first, tip} {
			if has, err := near.Has(id); err != nil || has != want {
				t.Errorf("the store has commit %s: %v, %v", id.Short(), has, err)
			}
		}
	}
	holds(false)
	if _, err := near.Get(ctx, object.KindCommit, first); err != nil {
		t.Errorf("the record: %v", err)
	}
	well := func() {
		t.Helper()
		if r := fsck(t, near, FsckOptions{}); !r.OK() || len(r.Affected) > 0 {
			t.Errorf("fsck: %+v %+v", r.Problems, r.Affected)
		}
		if _, err := near.GC(ctx, GCOptions{}); err != nil {
			t.Error(err)
		}
	}
	well()
	// Some of it comes, and stays; what nothing leads to goes.
	c, err := object.DecodeCommit(mustGet(t, far, object.KindCommit, tip))
	if err != nil {
		t.Fatal(err)
	}
	copyObject(t, far, near, object.KindTree, c.Root.Tree, nil)
	stray := put(t, begin(t, far), object.KindChunk, []byte("stray"), object.ID{})
	b = begin(t, near)
	put(t, b, object.KindChunk, []byte("stray"), object.ID{})
	commit(t, b, nil)
	well()
	if _, err := near.Get(ctx, object.KindTree, c.Root.Tree); err != nil {
		t.Errorf("a tree of a partial commit: %v", err)
	}
	_, err = near.Get(ctx, object.KindChunk, stray)
	wantKind(t, err, errs.NotFound)
	// What is there is checked.
	e, _, _ := near.lookup(c.Root.Tree)
	flip(t, near.packs.path(e.pack), e.off+int64(e.recordLen())-1)
	fresh(near)
	if r := fsck(t, near, FsckOptions{}); len(r.Problems) != 1 || r.Problems[0].Object != c.Root.Tree || len(r.Affected) != 1 {
		t.Errorf("fsck of a damaged tree: %+v %+v", r.Problems, r.Affected)
	}
	if _, err := near.GC(ctx, GCOptions{}); errs.KindOf(err) != errs.Damaged {
		t.Errorf("gc over a damaged tree: %v", err)
	}
	fsck(t, near, FsckOptions{Repair: true})
	well()
	// All of it comes, the commits last, as a fetch does it.
	all := collect(t, far, tip)
	b = begin(t, near)
	for _, r := range all {
		put(t, b, r.Kind, bytes.Clone(mustGet(t, far, r.Kind, r.ID)), object.ID{})
	}
	commit(t, b, nil)
	holds(true)
	well()
	// A commit that goes takes its being partial with it.
	b = begin(t, near)
	other := put(t, b, object.KindCommit, (&object.Commit{
		Root: object.Entry{Ino: 1, Mode: object.ModeDir | 0o755, Tree: object.Sum(object.KindTree, []byte("elsewhere"))}, NextIno: 2,
	}).Encode(), object.ID{})
	commit(t, b, partial(other))
	well()
	if err := near.View(func(tx *Tx) error {
		if tx.Partial(other) {
			t.Error("a commit that is gone is still partial")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := near.Update(partial(stray)); errs.KindOf(err) != errs.NotFound {
		t.Errorf("an object that is not there cannot be partial: %v", err)
	}
}

func mustGet(t *testing.T, s *Store, kind object.Kind, id object.ID) []byte {
	t.Helper()
	b, err := s.Get(t.Context(), kind, id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// collect returns everything that an object needs and itself, what is needed first.
func collect(t *testing.T, s *Store, tip object.ID) (list []object.Reference) {
	t.Helper()
	seen := map[object.ID]bool{}
	var visit func(r object.Reference)
	visit = func(r object.Reference) {
		if seen[r.ID] {
			return
		}
		seen[r.ID] = true
		if err := object.References(r.Kind, mustGet(t, s, r.Kind, r.ID), visit); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	visit(object.Reference{Kind: object.KindCommit, ID: tip})
	return list
}

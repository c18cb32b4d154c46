package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"go.etcd.io/bbolt"

	"dm/object"
)

// sweepRound is how many chunks are taken out of the index in one transaction, so that writers never wait long and the
// transaction's memory is bounded.
const sweepRound = 20_000

// noteBases begins or ends the noting of what becomes the base of a delta while a gc runs: what the gc has seen of the index
// does not say.
func (s *Store) noteBases(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bases = nil
	if on {
		s.bases = map[object.ID]struct{}{}
	}
}

func (s *Store) tookBase(id object.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bases != nil {
		s.bases[id] = struct{}{}
	}
}

// candidates collects what is in the index and not marked, and what of it is needed as a base. Objects that come later are none.
func (g *collection) candidates(ctx context.Context) error {
	g.needed = map[object.ID]struct{}{}
	return g.s.view(func(b *bbolt.Tx) error {
		objects, hidden := b.Bucket([]byte(bucketObjects)), b.Bucket([]byte(bucketHidden))
		total := 0
		err := objects.ForEach(func(k, v []byte) error {
			if id := object.ID(k); !g.mark.has(id) {
				g.dead = append(g.dead, id)
				e, err := decodeEntry(v)
				if err != nil {
					return err
				}
				if e.kind == object.KindChunk {
					g.chunks = append(g.chunks, deadChunk{id, e.depth})
				} else {
					g.meta = append(g.meta, id)
				}
			}
			if total++; total%4096 == 0 {
				g.opts.Progress("search", int64(total), 0)
			}
			return ctx.Err()
		})
		g.stats.Kept = total - len(g.dead)
		if err != nil || len(g.dead) == 0 {
			return err
		}
		g.mark.track = true
		return objects.ForEach(func(k, v []byte) error {
			if g.isDead(object.ID(k)) {
				return errors.Join(g.keepOther(objects, v), ctx.Err())
			}
			return errors.Join(g.keepBases(objects, hidden, v), ctx.Err())
		})
	})
}

// keepOther notes the base of a dead chunk that is no chunk: it goes before the chunk does.
func (g *collection) keepOther(objects *bbolt.Bucket, v []byte) error {
	e, err := decodeEntry(v)
	if err != nil || e.kind != object.KindChunk || !e.enc.HasBase() {
		return err
	}
	base := e.base
	if v = objects.Get(base[:]); v == nil || !g.isDead(base) {
		return nil
	}
	if e, err = decodeEntry(v); err == nil && e.kind != object.KindChunk {
		g.needed[base] = struct{}{}
	}
	return err
}

// deadChunk is a chunk that is to go.
type deadChunk struct {
	id    object.ID
	depth uint8
}

func (g *collection) isDead(id object.ID) bool {
	_, ok := slices.BinarySearchFunc(g.dead, id, func(x, y object.ID) int { return bytes.Compare(x[:], y[:]) })
	return ok
}

// keepBases notes those of the dead that stand below an object that stays, in its chain of deltas. v is the object's entry.
func (g *collection) keepBases(objects, hidden *bbolt.Bucket, v []byte) error {
	for n := 0; n <= chainLimit; n++ {
		e, err := decodeEntry(v)
		if err != nil {
			return err
		}
		if !e.enc.HasBase() {
			return nil
		}
		if v = objects.Get(e.base[:]); v == nil {
			if v = hidden.Get(e.base[:]); v == nil {
				return nil // damage, which fsck reports
			}
			continue
		}
		if !g.isDead(e.base) {
			return nil // it stays, and its own chain is looked at in its turn
		}
		if _, ok := g.needed[e.base]; ok {
			return nil
		}
		g.needed[e.base] = struct{}{}
	}
	return nil
}

// sweepAll takes the dead out of the index. What needs others goes first, in one transaction: were it more, an object could be
// there for a while whose parts are gone, and whoever found it would take it for whole. Chunks need nothing, so they may
// go in many. Before each, what has been added or found meanwhile is marked.
func (g *collection) sweepAll(ctx context.Context) error {
	if err := g.sweep(ctx, g.meta, true); err != nil {
		return err
	}
	// A delta goes before its base, which has the smaller depth: what comes back to life in between can be read.
	slices.SortFunc(g.chunks, func(x, y deadChunk) int {
		return cmp.Or(cmp.Compare(y.depth, x.depth), bytes.Compare(x.id[:], y.id[:]))
	})
	chunks := make([]object.ID, len(g.chunks))
	for i, c := range g.chunks {
		chunks[i] = c.id
	}
	total := int64(len(chunks))
	for len(chunks) > 0 {
		n := min(len(chunks), g.s.round)
		if err := g.sweep(ctx, chunks[:n], false); err != nil {
			return err
		}
		chunks = chunks[n:]
		g.opts.Progress("remove", total-int64(len(chunks)), total)
	}
	return g.s.fail("GCSwept")
}

// sweep takes some of the dead out of the index, unless they have come back to life.
func (g *collection) sweep(ctx context.Context, dead []object.ID, first bool) error {
	s := g.s
	unlock := func() {}
	defer func() { unlock() }()
	var gone []object.ID
	err := s.update(func(tx *Tx) error {
		// The transaction keeps refs from moving, and the lock keeps batches from relying on more than is noted here. It
		// comes second, because what runs in a transaction may pin.
		s.sweep.Lock()
		unlock = s.sweep.Unlock
		if err := g.markRoots(ctx, tx); err != nil {
			return err
		}
		if err := g.markBatches(ctx); err != nil {
			return err
		}
		if first {
			if err := errors.Join(tx.hollowOut(g.mark), tx.dropPartial(g.mark)); err != nil {
				return err
			}
		}
		gone = slices.DeleteFunc(slices.Clone(dead), g.mark.has)
		return g.remove(tx, gone)
	})
	if err != nil {
		return err
	}
	set := make(map[object.ID]struct{}, len(gone))
	for _, id := range gone {
		set[id] = struct{}{}
	}
	s.cache.drop(set)
	g.stats.Freed += len(gone)
	g.stats.Kept += len(dead) - len(gone)
	return s.fail("GCRound")
}

// markBatches marks what open batches rely on.
func (g *collection) markBatches(ctx context.Context) error {
	g.s.mu.Lock()
	batches := slices.Collect(maps.Keys(g.s.batches))
	g.s.mu.Unlock()
	for _, b := range batches {
		for id := range b.used {
			// A batch may rely on what is damaged; then that is its trouble, and what is left of it stays.
			if err := g.mark.walk(ctx, id, false, g.progress); err != nil {
				return err
			}
		}
	}
	return g.mark.rest(ctx)
}

// remove takes objects out of the index and hides those of them that are bases of what stays.
func (g *collection) remove(tx *Tx, gone []object.ID) error {
	objects, hidden := tx.b.Bucket([]byte(bucketObjects)), tx.b.Bucket([]byte(bucketHidden))
	if err := g.newBases(objects, hidden); err != nil {
		return err
	}
	for _, id := range gone {
		v := objects.Get(id[:])
		if v == nil {
			continue
		}
		if _, ok := g.needed[id]; ok {
			if err := hidden.Put(id[:], bytes.Clone(v)); err != nil {
				return err
			}
		}
		if err := objects.Delete(id[:]); err != nil {
			return err
		}
	}
	return nil
}

// newBases notes what has become the base of a delta since the gc began, and the bases of candidates that have come back to
// life.
func (g *collection) newBases(objects, hidden *bbolt.Bucket) error {
	g.s.mu.Lock()
	bases := slices.Collect(maps.Keys(g.s.bases))
	clear(g.s.bases)
	g.s.mu.Unlock()
	for _, id := range bases {
		if v := objects.Get(id[:]); v != nil {
			if g.isDead(id) {
				g.needed[id] = struct{}{}
			}
			if err := g.keepBases(objects, hidden, v); err != nil {
				return err
			}
		}
	}
	for _, id := range g.mark.late {
		if v := objects.Get(id[:]); v != nil && g.isDead(id) {
			if err := g.keepBases(objects, hidden, v); err != nil {
				return err
			}
		}
	}
	g.mark.late = nil
	return nil
}

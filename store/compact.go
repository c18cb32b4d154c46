package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
)

// moved is an object that gets a new place, or a new form.
type moved struct {
	id       object.ID
	hidden   bool
	old, now entry
}

// mover writes objects that are in the store once more and then has the index point to the new places.
type mover struct {
	s     *Store
	out   appender
	items []moved
}

// add writes a record for an object that has one at old. e says how it is stored.
func (m *mover) add(id object.ID, hidden bool, old, e entry, rec []byte) error {
	num, off, err := m.out.append(rec)
	if err != nil {
		return err
	}
	e.pack, e.off = num, off
	m.items = append(m.items, moved{id, hidden, old, e})
	return nil
}

// commit makes the new places known, in one transaction with more; the mover is done then, whatever came of it.
func (m *mover) commit(more func(tx *Tx) error) (err error) {
	defer func() { m.out.close(err == nil) }()
	if err := m.out.sync(); err != nil {
		return err
	}
	return m.s.update(func(tx *Tx) error {
		if err := m.out.enter(tx); err != nil {
			return err
		}
		slices.SortFunc(m.items, func(x, y moved) int { return bytes.Compare(x.id[:], y.id[:]) })
		for _, it := range m.items {
			name := bucketObjects
			if it.hidden {
				name = bucketHidden
			}
			bucket := tx.b.Bucket([]byte(name))
			if !bytes.Equal(bucket.Get(it.id[:]), it.old.encode(nil)) {
				return errs.New(errs.Internal, "object %s was moved by someone else", it.id.Short())
			}
			if err := bucket.Put(it.id[:], it.now.encode(nil)); err != nil {
				return err
			}
		}
		return more(tx)
	})
}

// compact gives the space of what is dead back to the disk.
func (g *collection) compact(ctx context.Context) error {
	if err := g.freeHidden(ctx); err != nil {
		return err
	}
	usage, err := g.s.usage(ctx)
	if err != nil {
		return err
	}
	var victims []victim
	for num, u := range usage {
		dead := u.info.size - u.live
		if dead <= packOverhead {
			continue
		}
		if dead*100 < u.info.size*int64(g.opts.Waste) {
			g.stats.BytesDead += dead - packOverhead
			continue
		}
		victims = append(victims, victim{num: num, usage: u})
	}
	// The emptiest first: they give most space for the least writing.
	slices.SortFunc(victims, func(a, b victim) int { return cmp.Or(cmp.Compare(a.live, b.live), cmp.Compare(a.num, b.num)) })
	for len(victims) > 0 {
		n, objects := 0, 0
		for n < len(victims) && (n == 0 || objects+victims[n].objects <= groupObjects) {
			objects += victims[n].objects
			n++
		}
		if err := g.rewriteGroup(ctx, victims[:n]); err != nil {
			return err
		}
		victims = victims[n:]
		g.opts.Progress("rewrite", int64(g.stats.PacksRemoved+g.stats.PacksRewritten), int64(len(victims)))
	}
	return nil
}

// packOverhead is what a pack with nothing dead in it has beside its records: header and end, in bytes.
const packOverhead = 16 + 72

// groupObjects bounds the objects of the packs that are rewritten with one pass over the index.
const groupObjects = 1 << 20

// usage says what of a pack is needed.
type usage struct {
	info    packInfo
	live    int64 // bytes of records
	objects int
}

type victim struct {
	num uint64
	usage
	items []moved   // what lives in it
	taken bool      // nothing is added to it
	own   *packFile // the lease, for one that grows
}

// usage goes over the index and returns what is needed of each pack.
func (s *Store) usage(ctx context.Context) (map[uint64]usage, error) {
	all := map[uint64]usage{}
	err := s.view(func(b *bbolt.Tx) error {
		err := b.Bucket([]byte(bucketPacks)).ForEach(func(k, v []byte) error {
			info, err := decodePackInfo(v)
			all[binary.BigEndian.Uint64(k)] = usage{info: info}
			return err
		})
		if err != nil {
			return err
		}
		return eachEntry(ctx, b, func(_ object.ID, _ bool, e entry) error {
			u := all[e.pack]
			u.live += int64(e.recordLen())
			u.objects++
			all[e.pack] = u
			return nil
		})
	})
	return all, err
}

// eachEntry calls fn for all objects of the index, the hidden ones too.
func eachEntry(ctx context.Context, b *bbolt.Tx, fn func(id object.ID, hidden bool, e entry) error) error {
	return eachValue(ctx, b, func(k, v []byte, hidden bool) error {
		e, err := decodeEntry(v)
		if err != nil {
			return err
		}
		return fn(object.ID(k), hidden, e)
	})
}

// eachValue is eachEntry with what stands in the index, which may be damaged.
func eachValue(ctx context.Context, b *bbolt.Tx, fn func(k, v []byte, hidden bool) error) error {
	for _, name := range []string{bucketObjects, bucketHidden} {
		err := b.Bucket([]byte(name)).ForEach(func(k, v []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return fn(k, v, name == bucketHidden)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rewriteGroup moves what lives in some packs elsewhere and removes them.
func (g *collection) rewriteGroup(ctx context.Context, group []victim) error {
	g.seize(group)
	defer g.letGo(group)
	at := map[uint64]*victim{}
	for i := range group {
		at[group[i].num] = &group[i]
	}
	err := g.s.view(func(b *bbolt.Tx) error {
		return eachEntry(ctx, b, func(id object.ID, hidden bool, e entry) error {
			if v := at[e.pack]; v != nil {
				v.items = append(v.items, moved{id: id, hidden: hidden, old: e})
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	for i := range group {
		v := &group[i]
		room, err := g.s.roomToMove(v.live)
		if err != nil {
			return err
		}
		if v.taken && room {
			if err = g.rewrite(ctx, v); err == nil {
				continue
			}
		}
		if !room {
			g.stats.NoRoom += v.info.size - v.live
		}
		// A pack that a batch has, and a damaged one, stays as it is; fsck says what is wrong with it.
		g.stats.BytesDead += v.info.size - v.live
		if err != nil && errs.KindOf(err) != errs.Damaged && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rewrite pack %s: %w", packName(v.num), err)
		}
	}
	return nil
}

// seize takes those packs of a group that grow, so that nothing is added to them: neither by batches nor by what is moved
// out of the others.
func (g *collection) seize(group []victim) {
	for i := range group {
		v := &group[i]
		v.taken = v.info.sealed || g.s.packs.isStuck(v.num)
		if v.taken {
			continue
		}
		own, ok := g.s.packs.take(v.num)
		if ok && own.known != v.info { // one had it meanwhile
			g.s.packs.giveBack(own, true)
			ok = false
		}
		if ok {
			v.own, v.taken = own, true
		}
	}
}

// letGo ends seize for the packs that were not removed.
func (g *collection) letGo(group []victim) {
	for i := range group {
		if v := &group[i]; v.own != nil {
			g.s.packs.giveBack(v.own, g.s.broken.Load() == nil)
			v.own = nil
		}
	}
}

// rewrite copies what lives in a pack as it is stored, and removes the pack.
func (g *collection) rewrite(ctx context.Context, v *victim) error {
	s := g.s
	m := &mover{s: s, out: appender{s: s}}
	slices.SortFunc(v.items, func(x, y moved) int { return cmp.Compare(x.old.off, y.old.off) })
	for _, it := range v.items {
		err := ctx.Err()
		if err == nil {
			err = m.copy(it)
		}
		if err != nil {
			m.out.close(false)
			return err
		}
	}
	err := m.commit(func(tx *Tx) error { return tx.b.Bucket([]byte(bucketPacks)).Delete(packKey(v.num)) })
	if err != nil {
		return err
	}
	if v.own != nil {
		defer s.packs.release(v.own)
		v.own = nil
	}
	if err := s.fail("IndexBeforeRemove"); err != nil {
		return err
	}
	if g.aside {
		if err := s.quarantineFile(s.packs.path(v.num)); err != nil {
			return err
		}
	}
	if err := s.packs.remove(v.num); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	g.stats.BytesFreed += v.info.size - v.live
	if len(v.items) == 0 {
		g.stats.PacksRemoved++
	} else {
		g.stats.PacksRewritten++
	}
	v.items = nil
	return nil
}

func (m *mover) copy(it moved) error {
	rec, err := m.s.readRecord(it.id, it.old)
	if err != nil {
		return err
	}
	return m.add(it.id, it.hidden, it.old, it.old, rec.Append(nil))
}

// freeHidden stores anew what has hidden objects in its chain, and then forgets those.
func (g *collection) freeHidden(ctx context.Context) error {
	deps, any, err := g.dependents(ctx)
	if err != nil || !any {
		return err
	}
	// Bases before what needs them.
	slices.SortFunc(deps, func(x, y moved) int {
		return cmp.Or(cmp.Compare(x.old.depth, y.old.depth), bytes.Compare(x.id[:], y.id[:]))
	})
	need := int64(0)
	for _, it := range deps {
		need += int64(it.old.plain)
	}
	if room, err := g.s.roomToMove(need); err != nil || !room {
		g.stats.NoRoom += need // about: what is hidden stays hidden
		return err
	}
	m := &mover{s: g.s, out: appender{s: g.s}}
	instead := map[object.ID]object.ID{} // hidden base: the first object that was stored anew without it
	kept := false
	for i, it := range deps {
		err := ctx.Err()
		if err == nil {
			err = m.reencode(ctx, it, instead)
		}
		if errs.KindOf(err) == errs.Damaged {
			kept = true // it is as it was, and so must its base be
			continue
		}
		if err != nil {
			m.out.close(false)
			return err
		}
		g.opts.Progress("store anew", int64(i), int64(len(deps)))
	}
	return m.commit(func(tx *Tx) error {
		if kept {
			return nil
		}
		if err := tx.b.DeleteBucket([]byte(bucketHidden)); err != nil {
			return err
		}
		_, err := tx.b.CreateBucket([]byte(bucketHidden))
		return err
	})
}

// dependents returns the objects whose direct base is hidden. any says whether anything is hidden at all.
func (g *collection) dependents(ctx context.Context) (deps []moved, any bool, err error) {
	err = g.s.view(func(b *bbolt.Tx) error {
		objects, hidden := b.Bucket([]byte(bucketObjects)), b.Bucket([]byte(bucketHidden))
		if k, _ := hidden.Cursor().First(); k == nil {
			return nil
		}
		any = true
		return objects.ForEach(func(k, v []byte) error {
			e, err := decodeEntry(v)
			if err != nil {
				return err
			}
			if e.enc.HasBase() && objects.Get(e.base[:]) == nil && hidden.Get(e.base[:]) != nil {
				deps = append(deps, moved{id: object.ID(k), old: e})
			}
			return ctx.Err()
		})
	})
	return deps, any, err
}

// reencode stores an object without its hidden base: as a delta of the next object in its chain that is not hidden, of the
// first object that had the same base and was stored anew, or by itself.
func (m *mover) reencode(ctx context.Context, it moved, instead map[object.ID]object.ID) error {
	s := m.s
	plain, err := s.load(ctx, it.old.kind, it.id, s.lookup)
	if err != nil {
		return err
	}
	links, err := s.fullChain(it.id, it.old)
	if err != nil {
		return err
	}
	var baseID object.ID
	depth := uint8(0) // what was stored anew by itself has depth 0
	for _, l := range links[1:] {
		if e, ok, err := s.lookup(l.id); err != nil {
			return err
		} else if ok {
			baseID, depth = l.id, e.depth
			break
		}
		if id, ok := instead[l.id]; ok {
			baseID = id
			break
		}
	}
	// What it would take alone is not known; a delta is taken if it is well below what any compression gives.
	if !baseID.IsZero() && baseID != it.id && depth < maxDepth {
		base, err := s.load(ctx, it.old.kind, baseID, s.lookup)
		if err == nil {
			if rec, h, ok := s.codec.AppendDelta(nil, it.old.kind, it.id, plain, baseID, base, len(plain)/8); ok {
				e := entryOf(&h)
				e.depth = depth + 1
				return m.add(it.id, false, it.old, e, rec)
			}
		}
	}
	rec, h := s.codec.Append(nil, it.old.kind, it.id, plain)
	for _, l := range links[1:] {
		if _, ok := instead[l.id]; !ok {
			instead[l.id] = it.id
		}
	}
	return m.add(it.id, false, it.old, entryOf(&h), rec)
}

// fullChain returns an object and all its bases.
func (s *Store) fullChain(id object.ID, e entry) (links []link, err error) {
	for {
		links = append(links, link{id, e})
		if !e.enc.HasBase() {
			return links, nil
		}
		if len(links) > chainLimit {
			return nil, errs.New(errs.Damaged, "the chain of deltas below %s has no end", links[0].id.Short())
		}
		next := e.base
		var ok bool
		if e, ok, err = s.lookupBase(next); err != nil {
			return nil, err
		} else if !ok {
			return nil, errs.New(errs.Damaged, "delta base %s is missing", next.Short())
		}
		id = next
	}
}

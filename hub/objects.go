package hub

import (
	"context"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
	"dm/remote/hubproto"
	"dm/store"
	"dm/store/pack"
)

// missing returns those of ids that the asker has to send to the dot.
func (h *Hub) missing(who asker, name string, ids []object.ID) (list []object.ID, err error) {
	err = h.db.View(func(tx *bbolt.Tx) error {
		rec, err := readable(tx, who, name)
		if err != nil {
			return err
		}
		s, err := see(tx, who, rec)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if _, ok := s.elsewhere(id); !ok && !s.member(id) {
				list = append(list, id)
			}
		}
		return nil
	})
	return list, err
}

// packStats says what taking in a pack did.
type packStats struct {
	Objects int   // in the pack
	Bytes   int64 // of the pack's records
	Adopted int   // objects of other dots that became members
}

// takeIn takes in a pack: all of it becomes members of the dot, or nothing.
func (h *Hub) takeIn(ctx context.Context, who asker, name string, body io.Reader) (st packStats, err error) {
	var dot *dotRecord
	err = h.db.Update(func(tx *bbolt.Tx) error {
		dot, err = h.ensureDot(tx, who, name)
		return err
	})
	if err != nil {
		return st, err
	}
	batch, err := h.store.Begin(ctx)
	if err != nil {
		return st, err
	}
	defer batch.Abort()
	in := &intake{h: h, who: who, dot: dot, batch: batch, got: map[object.ID]object.Kind{}, needs: map[object.ID]object.Kind{}}
	if err := in.read(ctx, pack.NewReader(body)); err != nil {
		return st, fmt.Errorf("take in a pack for %s: %w", name, err)
	}
	st = in.stats
	st.Objects = len(in.got)
	if err := in.adoptNeeds(ctx); err != nil {
		return st, fmt.Errorf("take in a pack for %s: %w", name, err)
	}
	st.Adopted = len(in.adopted)
	if _, err := batch.Commit(ctx, nil); err != nil {
		return st, err
	}
	return st, h.enter(dot, in.got, in.adopted)
}

// enter makes objects members of a dot. The store has them durably.
func (h *Hub) enter(dot *dotRecord, sets ...map[object.ID]object.Kind) error {
	return h.db.Update(func(tx *bbolt.Tx) error {
		b := members(tx, dot.ID)
		if b == nil {
			return errs.WithHint(errs.New(errs.Conflict, "the dot was deleted meanwhile"), "push again")
		}
		for _, set := range sets {
			for id, kind := range set {
				if err := b.Put(id[:], []byte{byte(kind)}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// intake is one pack being taken in.
type intake struct {
	h       *Hub
	who     asker
	dot     *dotRecord
	batch   *store.Batch
	got     map[object.ID]object.Kind // in the pack
	needs   map[object.ID]object.Kind // what those need
	adopted map[object.ID]object.Kind // members of other dots that become this one's
	stats   packStats
	plain   int64 // bytes unpacked
}

func (in *intake) read(ctx context.Context, r *pack.Reader) error {
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := in.record(ctx, rec); err != nil {
			return err
		}
		in.stats.Bytes += int64(rec.RecordLen())
	}
}

// record decodes an object, compares it with its id, and stores it. A few bytes can unpack to four million and cost the hub
// the time for them, so the sum is bounded, too.
func (in *intake) record(ctx context.Context, rec *pack.Record) error {
	if _, twice := in.got[rec.ID]; twice {
		return errs.New(errs.Damaged, "%s %s is in the pack twice", rec.Kind, rec.ID.Short())
	}
	if in.plain += int64(rec.PlainLen); in.plain > hubproto.MaxPlain {
		return errs.New(errs.Damaged, "the pack unpacks to more than %d bytes", hubproto.MaxPlain)
	}
	var base []byte
	if rec.Encoding.HasBase() {
		var err error
		if base, err = in.base(ctx, rec); err != nil {
			return err
		}
	}
	plain, err := in.h.codec.Decode(rec, base)
	if err != nil {
		return fmt.Errorf("unpack %s %s: %w", rec.Kind, rec.ID.Short(), err)
	}
	if object.Sum(rec.Kind, plain) != rec.ID {
		return errs.New(errs.Damaged, "%s %s has other content than its id says", rec.Kind, rec.ID.Short())
	}
	err = store.References(rec.Kind, plain, func(r store.Reference) { in.needs[r.ID] = r.Kind })
	if err != nil {
		return fmt.Errorf("check %s %s: %w", rec.Kind, rec.ID.Short(), err)
	}
	if err := in.batch.PutRecord(ctx, rec, plain); err != nil {
		return err
	}
	in.got[rec.ID] = rec.Kind
	return nil
}

// base reads a delta's base. That the store has it is not enough: the sender must be able to see it.
func (in *intake) base(ctx context.Context, rec *pack.Record) ([]byte, error) {
	kind, ok := in.got[rec.Base]
	if !ok {
		err := in.h.db.View(func(tx *bbolt.Tx) error {
			if own := members(tx, in.dot.ID); own != nil {
				if v := own.Get(rec.Base[:]); len(v) == 1 {
					kind, ok = object.Kind(v[0]), true
					return nil
				}
			}
			s, err := see(tx, in.who, in.dot)
			if err == nil {
				kind, ok = s.elsewhere(rec.Base)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if !ok || kind != rec.Kind {
		return nil, errs.New(errs.Damaged, "%s %s is a delta of %s, which is not here", rec.Kind, rec.ID.Short(), rec.Base.Short())
	}
	return in.batch.Get(ctx, kind, rec.Base)
}

// adoptNeeds looks for what the pack's objects need and are not in the pack.
func (in *intake) adoptNeeds(ctx context.Context) error {
	for id, kind := range in.needs {
		if got, ok := in.got[id]; ok {
			if got != kind {
				return errs.New(errs.Damaged, "object %s is needed as a %s and is a %s", id.Short(), kind, got)
			}
			delete(in.needs, id)
		}
	}
	var err error
	in.adopted, err = in.h.adopt(ctx, in.who, in.dot, in.needs)
	return err
}

// adopt returns what must become a member of a dot so that it has the objects given, with all they need: those that are
// members of other dots which the asker may read. What is in none of them is not here: Damaged.
func (h *Hub) adopt(ctx context.Context, who asker, dot *dotRecord, wants map[object.ID]object.Kind) (map[object.ID]object.Kind, error) {
	adopted := map[object.ID]object.Kind{}
	frontier := wants
	for len(frontier) > 0 {
		var fresh []store.Reference
		err := h.db.View(func(tx *bbolt.Tx) error {
			s, err := see(tx, who, dot)
			if err != nil {
				return err
			}
			for id, kind := range frontier {
				if s.own != nil {
					if v := s.own.Get(id[:]); len(v) == 1 && object.Kind(v[0]) == kind {
						continue
					}
				}
				if there, ok := s.elsewhere(id); !ok || there != kind {
					return errs.WithHint(errs.New(errs.Damaged, "%s %s is needed and not here", kind, id.Short()), "push again")
				}
				adopted[id] = kind
				fresh = append(fresh, store.Reference{Kind: kind, ID: id})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		frontier = map[object.ID]object.Kind{}
		for _, r := range fresh {
			if r.Kind == object.KindChunk {
				continue
			}
			plain, err := h.store.Get(ctx, r.Kind, r.ID)
			if err != nil {
				return nil, err
			}
			err = store.References(r.Kind, plain, func(n store.Reference) {
				if _, ok := adopted[n.ID]; !ok {
					frontier[n.ID] = n.Kind
				}
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return adopted, nil
}

// refs returns the refs of a dot. One that the asker may not read has none, like one that does not exist.
func (h *Hub) refs(who asker, name string) (refs map[string]object.ID, err error) {
	err = h.db.View(func(tx *bbolt.Tx) error {
		rec, err := readable(tx, who, name)
		if rec != nil {
			refs = refsOf(tx, rec.ID)
		}
		return err
	})
	return refs, err
}

// move moves a ref from old to new, which all that it needs is here for.
func (h *Hub) move(ctx context.Context, who asker, name, ref string, old, new object.ID) error {
	if !refRE.MatchString(ref) {
		return errs.New(errs.Usage, "invalid ref name '%.140s': it is heads/BRANCH or tags/TAG", ref)
	}
	var dot *dotRecord
	err := h.db.Update(func(tx *bbolt.Tx) (err error) {
		dot, err = h.ensureDot(tx, who, name)
		return err
	})
	if err != nil {
		return err
	}
	var adopted map[object.ID]object.Kind
	if !new.IsZero() {
		adopted, err = h.adopt(ctx, who, dot, map[object.ID]object.Kind{new: object.KindCommit})
		if errs.KindOf(err) == errs.Damaged {
			return errs.New(errs.NotFound, "%s has no commit %s", name, new.Short())
		}
		if err != nil {
			return err
		}
	}
	err = h.db.Update(func(tx *bbolt.Tx) error {
		rec, err := writable(tx, who, name)
		if err != nil {
			return err
		}
		if rec == nil || rec.ID != dot.ID {
			return errs.WithHint(errs.New(errs.Conflict, "the dot was deleted meanwhile"), "push again")
		}
		return h.moveTx(tx, dot, ref, old, new, adopted)
	})
	if err == nil {
		h.audit(who.name(), "ref moved", "dot", name, "ref", ref, "old", hubproto.EncodeID(old), "new", hubproto.EncodeID(new))
	}
	return err
}

func (h *Hub) moveTx(tx *bbolt.Tx, dot *dotRecord, ref string, old, new object.ID, adopted map[object.ID]object.Kind) error {
	b := tx.Bucket([]byte(bucketRefs))
	key := []byte(refPrefix(dot.ID) + ref)
	var cur object.ID
	copy(cur[:], b.Get(key))
	if cur != old {
		at := func(id object.ID) string {
			if id.IsZero() {
				return "no commit"
			}
			return "commit " + id.Short()
		}
		return errs.New(errs.Conflict, "%s is at %s and not at %s any more", ref, at(cur), at(old))
	}
	set := members(tx, dot.ID)
	for id, kind := range adopted {
		if err := set.Put(id[:], []byte{byte(kind)}); err != nil {
			return err
		}
	}
	if new.IsZero() {
		return b.Delete(key)
	}
	return b.Put(key, new[:])
}

// remove removes a dot. Its objects stay in the store, and in other dots.
func (h *Hub) remove(who asker, name string) error {
	err := h.db.Update(func(tx *bbolt.Tx) error {
		rec, err := owned(tx, who, name)
		if err != nil {
			return err
		}
		if !hasRefs(tx, rec.ID) {
			err = errs.New(errs.NotFound, "there is no dot %s", name)
		}
		for ref := range refsOf(tx, rec.ID) {
			if err := tx.Bucket([]byte(bucketRefs)).Delete([]byte(refPrefix(rec.ID) + ref)); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if err := tx.Bucket([]byte(bucketMembers)).DeleteBucket([]byte(rec.ID)); err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketDots)).Delete([]byte(name))
	})
	if err == nil {
		h.audit(who.name(), "dot deleted", "dot", name)
	}
	return err
}

// list returns the dots that the asker may read.
func (h *Hub) list(who asker) (list []hubproto.Dot, err error) {
	err = h.db.View(func(tx *bbolt.Tx) error {
		return eachReadable(tx, who, func(name string, rec *dotRecord, a hubproto.Access) error {
			if hasRefs(tx, rec.ID) {
				list = append(list, hubproto.Dot{Name: name, ReadOnly: a != hubproto.Write, Public: rec.Public})
			}
			return nil
		})
	})
	return list, err
}

package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store"
	"dm/store/pack"
)

// localEngine keeps objects in a store and everything else in hub.db.
type localEngine struct {
	store *store.Store
	db    *bbolt.DB
	codec *pack.Codec
	room  *semaphore.Weighted // bytes of objects being unpacked
}

// cacheBytes is for trees and lists that loads look at, and for bases. Chunks are sent as they are stored.
const cacheBytes = 16 << 20

// memoryForObjects bounds the objects that are being unpacked at a time, in bytes. One takes up to five times its size,
// with its base and its record.
const memoryForObjects = 5 * object.MaxSize

func openLocal(ctx context.Context, dir string, minFree int64) (_ *localEngine, err error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.New(errs.KindOf(err), "open hub %s: %w", dir, err)
	}
	if err := notOfServer(dir); err != nil {
		return nil, err
	}
	e := &localEngine{room: semaphore.NewWeighted(memoryForObjects)}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.store, err = store.Open(ctx, filepath.Join(dir, "store"), store.Options{MinFree: minFree, CacheBytes: cacheBytes}); err != nil {
		return nil, err
	}
	if e.db, err = openDB(filepath.Join(dir, "hub.db")); err != nil {
		return nil, err
	}
	e.codec, err = pack.NewCodec(pack.Fast)
	return e, err
}

// notOfServer refuses the state directory of a dm server. The store there is the server's: each of the two would free what
// only the other reaches.
func notOfServer(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, "server.json")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errs.WithHint(errs.New(errs.Conflict, "%s is the state directory of a dm server", dir),
		"give the hub one of its own with --home or DM_HOME")
}

func (e *localEngine) close() error {
	var err error
	if e.codec != nil {
		e.codec.Close()
	}
	if e.db != nil {
		err = e.db.Close()
	}
	if e.store != nil {
		if serr := e.store.Close(); err == nil {
			err = serr
		}
	}
	return err
}

// healthy reads a little. Anybody may ask, so it costs little.
func (e *localEngine) healthy(ctx context.Context) error {
	return e.look(ctx, func(a accounts) error {
		_, err := a.user("")
		return err
	})
}

func (e *localEngine) look(_ context.Context, fn func(a accounts) error) error {
	return e.db.View(func(tx *bbolt.Tx) error { return fn(boltAccounts{tx}) })
}

func (e *localEngine) change(_ context.Context, fn func(a accounts) error) error {
	return e.db.Update(func(tx *bbolt.Tx) error { return fn(boltAccounts{tx}) })
}

func (e *localEngine) removed(*dotRecord) {}

// memberSets is the members of the dots in sight, in one transaction.
type memberSets struct {
	tx     *bbolt.Tx
	sight  *sight
	own    *bbolt.Bucket   // nil: there is no such dot
	others []*bbolt.Bucket // of dots that are still there; opened when first needed, as there may be thousands
}

func setsOf(tx *bbolt.Tx, s *sight) *memberSets {
	m := &memberSets{tx: tx, sight: s}
	if s.own != nil {
		m.own = members(tx, s.own.ID)
	}
	return m
}

// member says whether the dot itself has an object, and its kind.
func (m *memberSets) member(id object.ID) (object.Kind, bool) { return kindIn(m.own, id) }

// elsewhere says whether another dot in sight has an object, and its kind.
func (m *memberSets) elsewhere(id object.ID) (object.Kind, bool) {
	if m.others == nil {
		m.others = make([]*bbolt.Bucket, 0, len(m.sight.others))
		for _, d := range m.sight.others {
			if b := members(m.tx, d.ID); b != nil {
				m.others = append(m.others, b)
			}
		}
	}
	for _, b := range m.others {
		if kind, ok := kindIn(b, id); ok {
			return kind, true
		}
	}
	return 0, false
}

func kindIn(set *bbolt.Bucket, id object.ID) (object.Kind, bool) {
	if set == nil {
		return 0, false
	}
	if v := set.Get(id[:]); len(v) == 1 {
		return object.Kind(v[0]), true
	}
	return 0, false
}

func (e *localEngine) missing(_ context.Context, s *sight, ids []object.ID) (list []object.ID, err error) {
	err = e.db.View(func(tx *bbolt.Tx) error {
		sets := setsOf(tx, s)
		for _, id := range ids {
			if _, ok := sets.member(id); ok {
				continue
			}
			if _, ok := sets.elsewhere(id); !ok {
				list = append(list, id)
			}
		}
		return nil
	})
	return list, err
}

func (e *localEngine) takeIn(ctx context.Context, s *sight, body io.Reader) (st packStats, err error) {
	batch, err := e.store.Begin(ctx)
	if err != nil {
		return st, err
	}
	defer batch.Abort()
	in := &intake{e: e, sight: s, batch: batch, contents: newContents()}
	if err := in.read(pack.NewReader(body), func(rec *pack.Record) error { return in.record(ctx, rec) }); err != nil {
		return st, err
	}
	st.Objects, st.Bytes = len(in.kinds), in.bytes
	needs, err := in.outside()
	if err != nil {
		return st, err
	}
	adopted, err := e.adopt(ctx, s, needs)
	if err != nil {
		return st, err
	}
	st.Adopted = len(adopted)
	if err := s.still(ctx); err != nil {
		return st, err
	}
	if _, err := batch.Commit(ctx, nil); err != nil {
		return st, err
	}
	return st, e.enter(s.own, in.kinds, adopted)
}

// enter makes objects members of a dot. The store has them durably.
func (e *localEngine) enter(dot *dotRecord, sets ...map[object.ID]object.Kind) error {
	return e.db.Update(func(tx *bbolt.Tx) error {
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
	contents
	e     *localEngine
	sight *sight
	batch *store.Batch
}

// record decodes an object, compares it with its id, and stores it.
func (in *intake) record(ctx context.Context, rec *pack.Record) error {
	room := int64(5 * rec.PlainLen)
	if err := in.e.room.Acquire(ctx, room); err != nil {
		return err
	}
	defer in.e.room.Release(room)
	var base []byte
	if rec.Encoding.HasBase() {
		var err error
		if base, err = in.base(ctx, rec); err != nil {
			return err
		}
	}
	plain, err := in.e.codec.Decode(rec, base)
	if err != nil {
		return fmt.Errorf("unpack %s %s: %w", rec.Kind, rec.ID.Short(), err)
	}
	if object.Sum(rec.Kind, plain) != rec.ID {
		return errs.New(errs.Damaged, "%s %s has other content than its id says", rec.Kind, rec.ID.Short())
	}
	if err := in.need(&rec.Head, plain); err != nil {
		return err
	}
	return in.batch.PutRecord(ctx, rec, plain)
}

// base reads a delta's base. That the store has it is not enough: the sender must be able to see it.
func (in *intake) base(ctx context.Context, rec *pack.Record) ([]byte, error) {
	kind, ok := in.kinds[rec.Base]
	if !ok {
		err := in.e.db.View(func(tx *bbolt.Tx) error {
			sets := setsOf(tx, in.sight)
			if kind, ok = sets.member(rec.Base); !ok {
				kind, ok = sets.elsewhere(rec.Base)
			}
			return nil
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

// adopt returns what must become a member of a dot so that it has the objects given, with all they need: those that are
// members of other dots which the asker may read. What is in none of them is not here: Damaged.
func (e *localEngine) adopt(ctx context.Context, s *sight, wants map[object.ID]object.Kind) (map[object.ID]object.Kind, error) {
	adopted := map[object.ID]object.Kind{}
	frontier := wants
	for len(frontier) > 0 {
		var fresh []object.Reference
		err := e.db.View(func(tx *bbolt.Tx) error {
			sets := setsOf(tx, s)
			for id, kind := range frontier {
				if there, ok := sets.member(id); ok && there == kind {
					continue
				}
				if there, ok := sets.elsewhere(id); !ok || there != kind {
					return notHere(kind, id)
				}
				adopted[id] = kind
				fresh = append(fresh, object.Reference{Kind: kind, ID: id})
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
			plain, err := e.store.Get(ctx, r.Kind, r.ID)
			if err != nil {
				return nil, err
			}
			err = object.References(r.Kind, plain, func(n object.Reference) {
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

func (e *localEngine) refs(_ context.Context, d *dotRecord) (refs map[string]object.ID, err error) {
	err = e.db.View(func(tx *bbolt.Tx) error {
		refs = refsOf(tx, d.ID)
		return nil
	})
	return refs, err
}

func (e *localEngine) move(ctx context.Context, s *sight, ref string, old, new object.ID) error {
	var adopted map[object.ID]object.Kind
	if !new.IsZero() {
		var err error
		if adopted, err = e.adopt(ctx, s, map[object.ID]object.Kind{new: object.KindCommit}); err != nil {
			return err
		}
	}
	if err := s.still(ctx); err != nil {
		return err
	}
	return e.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketRefs))
		key := []byte(refPrefix(s.own.ID) + ref)
		set := members(tx, s.own.ID)
		if set == nil {
			return errs.WithHint(errs.New(errs.Conflict, "the dot was deleted meanwhile"), "push again")
		}
		var cur object.ID
		copy(cur[:], b.Get(key))
		if cur != old {
			return remote.Moved(ref, cur, old)
		}
		for id, kind := range adopted {
			if err := set.Put(id[:], []byte{byte(kind)}); err != nil {
				return err
			}
		}
		if new.IsZero() {
			return b.Delete(key)
		}
		return b.Put(key, new[:])
	})
}

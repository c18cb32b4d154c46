package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// quarantineName is that of the directory for what is damaged.
const quarantineName = "quarantine"

// lostPrefix begins the names of the refs that keep commits alive whose branches are lost.
const lostPrefix = "lost/"

// rebuild makes the index again, from the packs and from what the journal says (nil: there is none that can be read). The
// old index goes to quarantine.
//
// An object enters when everything it needs has: those that stand alone first, then deltas of what is there already. That
// makes chains without an end impossible, whatever copies of an object the packs hold.
func (s *Store) rebuild(ctx context.Context, st *state, why error) error {
	path := filepath.Join(s.dir, indexName)
	fresh := path + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	db, err := bbolt.Open(fresh, 0o600, &bbolt.Options{
		Timeout: time.Second, FreelistType: bbolt.FreelistMapType,
		NoSync: true,
	})
	if err != nil {
		return err
	}
	r := &rebuilder{s: s, db: db, waiting: map[object.ID][]item{}}
	err = r.run(ctx, st)
	if err == nil {
		err = db.Sync()
	}
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(fresh)
		return errs.New(errs.KindOf(err), "make the index of store %s again: %w", s.dir, err)
	}
	if err := s.quarantineFile(path); err != nil {
		return err
	}
	if err := durable.Rename(fresh, path); err != nil {
		return err
	}
	s.note("the index was made again from %d packs with %d objects (%v)", r.packs, r.objects, why)
	if n := len(r.waiting); n > 0 {
		s.note("%d objects are lost: the objects they are deltas of are", n)
	}
	if r.damaged > 0 {
		s.note("%d damaged places in packs were passed over; run 'dm fsck'", r.damaged)
	}
	if r.lost > 0 {
		s.note("the journal was damaged, too: %d commits that no branch leads to are kept as refs %s...", r.lost, lostPrefix)
	}
	return nil
}

// quarantineFile puts a file aside, if it is there.
func (s *Store) quarantineFile(path string) error {
	if _, err := os.Lstat(path); os.IsNotExist(err) {
		return nil
	}
	dir := filepath.Join(s.dir, quarantineName)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%d", filepath.Base(path), time.Now().UnixNano())
	return durable.Rename(path, filepath.Join(dir, name))
}

func (s *Store) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// Recovered says what Open had to put in order beyond what any crash leaves behind, one line each, for the log.
func (s *Store) Recovered() []string { return slices.Clone(s.notes) }

type rebuilder struct {
	s       *Store
	db      *bbolt.DB
	waiting map[object.ID][]item // deltas, by the base that is not there yet
	packs   int
	objects int
	damaged int
	lost    int
}

func (r *rebuilder) run(ctx context.Context, st *state) error {
	if err := initBuckets(r.db); err != nil {
		return err
	}
	files, err := os.ReadDir(r.s.packs.dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		if num, ok := parsePackName(file.Name()); ok {
			if err := r.pack(ctx, num); err != nil {
				return fmt.Errorf("read pack %s: %w", file.Name(), err)
			}
			r.packs++
		}
	}
	return r.refs(ctx, st)
}

// pack enters what one pack holds.
func (r *rebuilder) pack(ctx context.Context, num uint64) error {
	f, err := os.Open(r.s.packs.path(num))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return nil // a crash came before its header
	}
	var items []item
	damaged := 0
	end, err := pack.Scan(f, st.Size(), func(found pack.Found) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if found.Err != nil {
			if errs.HintOf(found.Err) != "" { // of a newer version
				return found.Err
			}
			damaged++
			return nil
		}
		e := entryOf(&found.Record.Head)
		e.pack, e.off = num, found.Off
		items = append(items, item{found.Record.ID, e})
		return nil
	})
	if err != nil {
		return err
	}
	r.damaged += damaged
	info := packInfo{end.Size, end.Records, end.Sealed}
	if !end.Sealed && end.Size < st.Size() {
		// Half a record at the end of a growing pack is what a crash leaves. It could as well be damage: the pack is left
		// as it is, and does not grow any more.
		info = packInfo{st.Size(), end.Records, true}
	}
	return r.db.Update(func(b *bbolt.Tx) error {
		if err := b.Bucket([]byte(bucketPacks)).Put(packKey(num), info.encode()); err != nil {
			return err
		}
		return r.enter(b.Bucket([]byte(bucketObjects)), items)
	})
}

// enter puts the items into the index whose bases are there, and with each those that waited for it.
func (r *rebuilder) enter(objects *bbolt.Bucket, items []item) error {
	slices.SortStableFunc(items, func(x, y item) int { return bytes.Compare(x.id[:], y.id[:]) })
	for len(items) > 0 {
		var next []item
		for _, it := range items {
			if objects.Get(it.id[:]) != nil {
				continue
			}
			if it.e.enc.HasBase() {
				v := objects.Get(it.e.base[:])
				if v == nil {
					r.waiting[it.e.base] = append(r.waiting[it.e.base], it)
					continue
				}
				base, err := decodeEntry(v)
				if err != nil {
					return err
				}
				if it.e.depth = base.depth + 1; it.e.depth > chainLimit {
					continue
				}
			}
			if err := objects.Put(it.id[:], it.e.encode(nil)); err != nil {
				return err
			}
			r.objects++
			next = append(next, r.waiting[it.id]...)
			delete(r.waiting, it.id)
		}
		items = next
	}
	return nil
}

// refs enters refs and metadata. Where the journal is not whole, commits that nothing leads to get refs of their own, so
// that no gc takes them. Where it is, they are hidden, as a gc would have done or has: what they need may be gone, and a
// commit that the store has is one that is there with all it needs.
func (r *rebuilder) refs(ctx context.Context, st *state) error {
	torn := st == nil || st.torn
	if st == nil {
		st = &state{seq: 1}
	}
	parents, err := r.commits(ctx)
	if err != nil {
		return err
	}
	strays, whole := strayCommits(parents, st.refs)
	var lost []object.ID
	if torn {
		lost = tips(strays, parents)
	}
	r.lost = len(lost)
	return r.db.Update(func(b *bbolt.Tx) error {
		put := func(bucket, key string, value []byte) error {
			return b.Bucket([]byte(bucket)).Put([]byte(key), seal(key, value))
		}
		for name, id := range st.refs {
			if err := put(bucketRefs, name, id); err != nil {
				return err
			}
		}
		for key, value := range st.meta {
			if err := put(bucketMeta, key, value); err != nil {
				return err
			}
		}
		for _, id := range lost {
			if err := put(bucketRefs, lostPrefix+id.String(), id[:]); err != nil {
				return err
			}
		}
		if whole && !torn {
			if err := hide(b, strays); err != nil {
				return err
			}
		}
		seq := st.seq
		if len(lost) > 0 || st.torn {
			seq++ // what is in the journal is not this state
		}
		return b.Bucket([]byte(bucketStore)).Put([]byte(keySeq), binary.AppendUvarint(nil, seq))
	})
}

// hide leaves objects to those that are deltas of them.
func hide(b *bbolt.Tx, ids []object.ID) error {
	objects, hidden := b.Bucket([]byte(bucketObjects)), b.Bucket([]byte(bucketHidden))
	for _, id := range ids {
		if err := hidden.Put(id[:], bytes.Clone(objects.Get(id[:]))); err != nil {
			return err
		}
		if err := objects.Delete(id[:]); err != nil {
			return err
		}
	}
	return nil
}

// commits returns all commits that can be read, with their parents.
func (r *rebuilder) commits(ctx context.Context) (parents map[object.ID][]object.ID, err error) {
	find := func(id object.ID) (e entry, ok bool, err error) {
		err = r.db.View(func(b *bbolt.Tx) error {
			if v := b.Bucket([]byte(bucketObjects)).Get(id[:]); v != nil {
				ok = true
				e, err = decodeEntry(v)
			}
			return err
		})
		return e, ok, err
	}
	var ids []object.ID
	err = r.db.View(func(b *bbolt.Tx) error {
		return b.Bucket([]byte(bucketObjects)).ForEach(func(k, v []byte) error {
			if e, err := decodeEntry(v); err == nil && e.kind == object.KindCommit {
				ids = append(ids, object.ID(k))
			}
			return ctx.Err()
		})
	})
	if err != nil {
		return nil, err
	}
	parents = make(map[object.ID][]object.ID, len(ids))
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		plain, err := r.s.load(ctx, object.KindCommit, id, find)
		if err != nil {
			continue
		}
		if c, err := object.DecodeCommit(plain); err == nil {
			parents[id] = c.Parents
		}
	}
	return parents, nil
}

// strayCommits returns the commits that no ref leads to. whole says that all are there that refs lead to: with one missing,
// refs may lead to any of the strays.
func strayCommits(parents map[object.ID][]object.ID, refs map[string][]byte) (strays []object.ID, whole bool) {
	whole = true
	led := map[object.ID]bool{}
	var todo []object.ID
	for _, id := range refs {
		todo = append(todo, object.ID(id))
	}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if led[id] {
			continue
		}
		led[id] = true
		before, ok := parents[id]
		whole = whole && ok
		todo = append(todo, before...)
	}
	for id := range parents {
		if !led[id] {
			strays = append(strays, id)
		}
	}
	return strays, whole
}

// tips returns those of the commits that are no other's parent.
func tips(commits []object.ID, parents map[object.ID][]object.ID) (list []object.ID) {
	before := map[object.ID]bool{}
	for _, id := range commits {
		for _, p := range parents[id] {
			before[p] = true
		}
	}
	for _, id := range commits {
		if !before[id] {
			list = append(list, id)
		}
	}
	return list
}

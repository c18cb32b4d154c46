package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
)

const indexName = "index.db"

// openIndex opens index, journal and packs and brings them to one state: that of the index, if it is whole, and otherwise
// that of packs and journal.
func (s *Store) openIndex(ctx context.Context) error {
	s.packs = newPackSet(filepath.Join(s.dir, "packs"))
	st, err := readJournal(s.dir)
	if err != nil && !missing(err) {
		return errs.New(errs.KindOf(err), "open store %s: %w", s.dir, err)
	}
	if err := s.checkIndex(ctx, st); err != nil {
		return err
	}
	if err := s.openDB(); err != nil {
		return err
	}
	bad := s.checkVersion()
	if bad == nil {
		bad = s.checkStale(st)
	}
	if errs.KindOf(bad) == errs.Damaged {
		if err := s.db.Close(); err != nil {
			return err
		}
		if err := s.rebuild(ctx, st, bad); err != nil {
			return err
		}
		s.broken.Store(nil)
		bad = s.openDB()
	}
	if bad != nil {
		return bad
	}
	if err := s.matchJournal(st); err != nil {
		return errs.New(errs.KindOf(err), "open store %s: %w", s.dir, err)
	}
	if err := s.matchValues(); err != nil {
		return errs.New(errs.KindOf(err), "open store %s: %w", s.dir, err)
	}
	return s.matchPacks(ctx)
}

// checkIndex rebuilds the index if it is damaged, or is missing while there is something it should know of.
func (s *Store) checkIndex(ctx context.Context, st *state) error {
	clean, err := s.takeClean()
	if clean || err != nil {
		return err
	}
	bad := checkBolt(filepath.Join(s.dir, indexName))
	if bad == nil {
		return nil
	}
	if errors.Is(bad, errNoIndex) {
		files, err := os.ReadDir(s.packs.dir)
		if err != nil {
			return err
		}
		if len(files) == 0 && (st == nil || len(st.refs)+len(st.meta) == 0) {
			return nil
		}
	}
	return s.rebuild(ctx, st, bad)
}

// checkStale says so if the journal is ahead of the index by more than the one transaction that a crash may cut short. Such
// an index does not know of objects that refs need, and may know of packs that are gone.
func (s *Store) checkStale(st *state) error {
	var seq uint64
	err := s.view(func(b *bbolt.Tx) error { seq = indexSeq(b); return nil })
	if err != nil || st == nil || st.seq <= seq || st.seq == seq+1 && st.prev == seq {
		return err
	}
	return errs.New(errs.Damaged, "it was older than the journal")
}

// openDB opens the bbolt file. Its freelist is a map, because the list costs more the larger the file is.
func (s *Store) openDB() (err error) {
	defer s.guard(&err)()
	db, err := bbolt.Open(filepath.Join(s.dir, indexName), 0o600, &bbolt.Options{
		Timeout: time.Second, FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return errs.New(errs.KindOf(err), "open index of store %s: %w", s.dir, err)
	}
	s.db = db
	return nil
}

// checkVersion refuses a newer index and makes what a new one needs.
func (s *Store) checkVersion() (err error) {
	defer s.guard(&err)()
	whole := false
	err = s.db.View(func(b *bbolt.Tx) error {
		st := b.Bucket([]byte(bucketStore))
		if st == nil {
			return nil
		}
		v, _ := binary.Uvarint(st.Get([]byte(keyVersion)))
		if v > formatVersion {
			return errs.WithHint(errs.New(errs.Usage, "index of store %s has version %d; this dm knows %d", s.dir, v,
				formatVersion), "install a newer dm")
		}
		for _, name := range buckets() {
			if b.Bucket([]byte(name)) == nil {
				return errs.New(errs.Damaged, "index of store %s has no %s", s.dir, name)
			}
		}
		whole = v == formatVersion
		return nil
	})
	if whole || err != nil {
		return err
	}
	return initBuckets(s.db)
}

func initBuckets(db *bbolt.DB) error {
	return db.Update(func(b *bbolt.Tx) error {
		for _, name := range buckets() {
			if _, err := b.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return b.Bucket([]byte(bucketStore)).Put([]byte(keyVersion), binary.AppendUvarint(nil, formatVersion))
	})
}

// matchJournal opens the journal and brings it to the index's state: cut back by the transaction that the index did not
// commit, or written anew.
func (s *Store) matchJournal(st *state) error {
	var seq uint64
	if err := s.view(func(b *bbolt.Tx) error { seq = indexSeq(b); return nil }); err != nil {
		return err
	}
	if st != nil && st.seq == seq+1 && st.prev == seq {
		st.size, st.seq, st.torn = st.at, seq, true
	}
	if st != nil && st.seq == seq {
		j, err := openJournal(s.dir, st)
		s.log = j
		return err
	}
	if seq > 0 {
		s.note("the journal was damaged or missing and was written anew from the index")
	}
	var all []change
	err := s.view(func(b *bbolt.Tx) (err error) { all, err = allChanges(b); return err })
	if err != nil {
		return err
	}
	s.log, err = newJournal(s.dir, seq, all)
	return err
}

// matchValues gives the index the refs and metadata of the journal, should the two differ. bbolt's pages have no checksums,
// so a flipped bit in the index shows here; the journal's records have one.
func (s *Store) matchValues() error {
	st, err := readJournal(s.dir)
	if err != nil {
		return err
	}
	same := false
	if err := s.view(func(b *bbolt.Tx) error { same = st.equals(b); return nil }); err != nil || same {
		return err
	}
	s.note("refs or metadata in the index were damaged and were taken from the journal")
	return s.update(func(tx *Tx) error { return st.restore(tx.b) })
}

// matchPacks brings the pack files to the state that the index knows: packs that it does not know go, and the unsealed
// ones are cut back to what counts of them.
func (s *Store) matchPacks(ctx context.Context) error {
	known := map[uint64]packInfo{}
	err := s.view(func(b *bbolt.Tx) error {
		return b.Bucket([]byte(bucketPacks)).ForEach(func(k, v []byte) error {
			info, err := decodePackInfo(v)
			if err == nil && len(k) == 8 {
				known[binary.BigEndian.Uint64(k)] = info
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	files, err := os.ReadDir(s.packs.dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		num, ok := parsePackName(file.Name())
		if !ok {
			continue
		}
		s.packs.next = max(s.packs.next, num+1)
		if _, ok := known[num]; !ok {
			if err := os.Remove(s.packs.path(num)); err != nil {
				return fmt.Errorf("remove uncommitted pack %s: %w", file.Name(), err)
			}
		}
	}
	for num, info := range known {
		s.packs.next = max(s.packs.next, num+1)
		if info.sealed {
			continue
		}
		// A missing or short pack is reported by whoever reads it, and by fsck. What is not damaged stays usable.
		if err := s.packs.adopt(num, info); err != nil && errs.KindOf(err) != errs.Damaged && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open pack %s: %w", packName(num), err)
		}
	}
	return ctx.Err()
}

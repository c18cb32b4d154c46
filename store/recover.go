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

// openIndex opens index, journal and packs and brings them to one state: that of the index, if it is whole.
func (s *Store) openIndex(ctx context.Context) error {
	s.packs = newPackSet(filepath.Join(s.dir, "packs"))
	journal, jerr := readJournal(s.dir)
	if jerr != nil && !missing(jerr) {
		return errs.New(errs.KindOf(jerr), "open store %s: %w", s.dir, jerr)
	}
	if err := s.openDB(); err != nil {
		return err
	}
	if err := s.initIndex(); err != nil {
		return err
	}
	if err := s.matchJournal(journal); err != nil {
		return errs.New(errs.KindOf(err), "open store %s: %w", s.dir, err)
	}
	return s.matchPacks(ctx)
}

// openDB opens the bbolt file. Its freelist is a map, because the list costs more the larger the file is.
func (s *Store) openDB() (err error) {
	defer s.guard(&err)()
	db, err := bbolt.Open(filepath.Join(s.dir, indexName), 0o600, &bbolt.Options{
		Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return errs.New(errs.KindOf(err), "open index of store %s: %w", s.dir, err)
	}
	s.db = db
	return nil
}

// initIndex makes what a new index needs and refuses a newer one.
func (s *Store) initIndex() (err error) {
	defer s.guard(&err)()
	whole := false
	err = s.db.View(func(b *bbolt.Tx) error {
		st := b.Bucket([]byte(bucketStore))
		if st == nil {
			return nil
		}
		if v, _ := binary.Uvarint(st.Get([]byte(keyVersion))); v > formatVersion {
			return errs.WithHint(errs.New(errs.Usage, "index of store %s has version %d; this dm knows %d", s.dir, v,
				formatVersion), "install a newer dm")
		}
		whole = true
		return nil
	})
	if whole || err != nil {
		return err
	}
	return s.db.Update(func(b *bbolt.Tx) error {
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
	var all []change
	err := s.view(func(b *bbolt.Tx) (err error) { all, err = allChanges(b); return err })
	if err != nil {
		return err
	}
	s.log, err = newJournal(s.dir, seq, all)
	return err
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

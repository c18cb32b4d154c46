package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"runtime/debug"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
)

// Tx is a transaction over refs and metadata. It is valid inside of the function it was given to, in that goroutine.
//
// Refs are names for objects: branches and tags. Names and keys may be any string that is not empty. What Tx returns may
// be kept. Damage found on the way makes the function that runs the transaction return an error of kind Damaged,
// whatever fn returns, and commits nothing.
type Tx struct {
	b       *bbolt.Tx
	changes []change // for the journal
	err     error    // damage found
}

// View runs fn in a transaction that sees one state and changes nothing.
func (s *Store) View(fn func(tx *Tx) error) error {
	return s.view(func(b *bbolt.Tx) error {
		tx := &Tx{b: b}
		err := fn(tx)
		if tx.err != nil {
			return tx.err
		}
		return err
	})
}

// Update runs fn in a transaction and commits it durably, unless fn returns an error. Transactions that change something
// run one at a time.
func (s *Store) Update(fn func(tx *Tx) error) error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.update(fn)
}

// view runs fn with a read transaction of the index.
func (s *Store) view(fn func(b *bbolt.Tx) error) (err error) {
	defer s.guard(&err)()
	return s.db.View(fn)
}

// guard turns what bbolt does on a damaged file, a panic or an access beyond its end, into an error. Call it deferred,
// twice: defer s.guard(&err)().
func (s *Store) guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			*err = errs.WithHint(errs.New(errs.Damaged, "index of store %s is damaged: %v", s.dir, r),
				"restart the server: it makes the index again from packs and journal")
			s.breakDown(*err)
		}
	}
}

// update runs fn in a transaction of the index. In the order of the package comment: whoever calls it for new objects has
// synced their packs; the journal is synced here, before the index commits.
func (s *Store) update(fn func(tx *Tx) error) (err error) {
	s.txMu.Lock()
	defer s.txMu.Unlock()
	defer s.guard(&err)()
	b, err := s.db.Begin(true)
	if err != nil {
		return errs.New(errs.KindOf(err), "begin transaction: %w", err)
	}
	defer func() {
		if b.DB() != nil {
			b.Rollback()
		}
	}()
	tx := &Tx{b: b}
	if err := fn(tx); err != nil {
		return err
	}
	if tx.err != nil {
		return tx.err
	}
	if len(tx.changes) > 0 {
		seq := indexSeq(b) + 1
		if err := b.Bucket([]byte(bucketStore)).Put([]byte(keySeq), binary.AppendUvarint(nil, seq)); err != nil {
			return err
		}
		if err := s.fail("JournalBeforeIndex"); err != nil {
			return err
		}
		if err := s.log.append(seq, tx.changes); err != nil {
			return fmt.Errorf("write journal: %w", err)
		}
	}
	if err := s.commit(b); err != nil {
		if len(tx.changes) > 0 {
			if err := s.log.undo(); err != nil {
				s.breakDown(err)
			}
		}
		return err
	}
	s.log.committed(s)
	return nil
}

func (s *Store) commit(b *bbolt.Tx) error {
	if err := s.fail("IndexCommit"); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		err = fmt.Errorf("commit index: %w", err)
		// A full disk leaves the old state. Anything else may have left either: only opening it again tells.
		if errs.KindOf(err) != errs.NoSpace {
			s.breakDown(err)
		}
		return err
	}
	return nil
}

func indexSeq(b *bbolt.Tx) uint64 {
	seq, _ := binary.Uvarint(b.Bucket([]byte(bucketStore)).Get([]byte(keySeq)))
	return seq
}

// Ref returns what a name points to.
func (tx *Tx) Ref(name string) (object.ID, bool) {
	v := tx.b.Bucket([]byte(bucketRefs)).Get([]byte(name))
	if v == nil {
		return object.ID{}, false
	}
	return tx.refValue(name, v)
}

func (tx *Tx) refValue(name string, v []byte) (id object.ID, ok bool) {
	v, err := unseal(name, v)
	if err != nil || len(v) != object.IDSize {
		tx.damaged(err, name)
		return id, false
	}
	copy(id[:], v)
	return id, true
}

func (tx *Tx) damaged(err error, name string) {
	if err == nil {
		err = errs.New(errs.Damaged, "index: the value of %q is damaged", name)
	}
	if tx.err == nil {
		tx.err = err
	}
}

// SetRef moves a name from old to new. A zero old creates the name, a zero new removes it. It fails with errs.Conflict,
// changing nothing, if the name does not point to old, and with errs.NotFound if new is not in the store.
func (tx *Tx) SetRef(name string, old, new object.ID) error {
	if name == "" {
		return errs.New(errs.Usage, "a ref needs a name")
	}
	cur, _ := tx.Ref(name)
	if tx.err != nil {
		return tx.err
	}
	if cur != old {
		return errs.New(errs.Conflict, "ref %s is at %s, not at %s", name, refName(cur), refName(old))
	}
	if new.IsZero() {
		tx.changes = append(tx.changes, change{op: opRef, key: name})
		return tx.b.Bucket([]byte(bucketRefs)).Delete([]byte(name))
	}
	if tx.b.Bucket([]byte(bucketObjects)).Get(new[:]) == nil {
		return errs.New(errs.NotFound, "ref %s cannot move to %s: there is no such object", name, new.Short())
	}
	if err := tx.revive(new); err != nil {
		return errs.New(errs.KindOf(err), "ref %s cannot move to %s: %w", name, new.Short(), err)
	}
	tx.changes = append(tx.changes, change{op: opRef, key: name, value: new[:]})
	return tx.b.Bucket([]byte(bucketRefs)).Put([]byte(name), seal(name, new[:]))
}

func refName(id object.ID) string {
	if id.IsZero() {
		return "nothing"
	}
	return id.Short()
}

// Refs returns all refs whose name begins with prefix, in order of names. Do not change refs while going over them.
func (tx *Tx) Refs(prefix string) iter.Seq2[string, object.ID] {
	return func(yield func(string, object.ID) bool) {
		for name, v := range tx.scan(bucketRefs, prefix) {
			id, ok := tx.refValue(name, v)
			if !ok || !yield(name, id) {
				return
			}
		}
	}
}

// Meta returns the value of a key.
func (tx *Tx) Meta(key string) ([]byte, bool) {
	v := tx.b.Bucket([]byte(bucketMeta)).Get([]byte(key))
	if v == nil {
		return nil, false
	}
	return tx.metaValue(key, v)
}

func (tx *Tx) metaValue(key string, v []byte) ([]byte, bool) {
	v, err := unseal(key, v)
	if err != nil {
		tx.damaged(err, key)
		return nil, false
	}
	return append([]byte{}, v...), true
}

// SetMeta sets the value of a key; nil removes the key. Keys have at most 1 KiB, values at most 16 MiB.
func (tx *Tx) SetMeta(key string, value []byte) error {
	if key == "" || len(key) > maxKey || len(value) > maxValue {
		return errs.New(errs.Usage, "metadata %.40q has a key of %d and a value of %d bytes, outside of what is allowed", key,
			len(key), len(value))
	}
	bucket := tx.b.Bucket([]byte(bucketMeta))
	if value == nil {
		tx.changes = append(tx.changes, change{op: opMeta, key: key})
		return bucket.Delete([]byte(key))
	}
	value = append([]byte{}, value...)
	tx.changes = append(tx.changes, change{op: opMeta, key: key, value: value})
	return bucket.Put([]byte(key), seal(key, value))
}

// Metas returns all metadata whose key begins with prefix, in order of keys. Do not change metadata while going over it.
func (tx *Tx) Metas(prefix string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for key, v := range tx.scan(bucketMeta, prefix) {
			value, ok := tx.metaValue(key, v)
			if !ok || !yield(key, value) {
				return
			}
		}
	}
}

func (tx *Tx) scan(bucket, prefix string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		c := tx.b.Bucket([]byte(bucket)).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			if !yield(string(k), v) {
				return
			}
		}
	}
}

// Find returns the ids of all objects of one kind whose hex form begins with prefix, at most limit of them: to resolve
// abbreviated ids. prefix has at least four digits.
func (s *Store) Find(ctx context.Context, kind object.Kind, prefix string, limit int) (ids []object.ID, err error) {
	low, err := prefixBytes(prefix)
	if err != nil {
		return nil, err
	}
	err = s.view(func(b *bbolt.Tx) error {
		c := b.Bucket([]byte(bucketObjects)).Cursor()
		for k, v := c.Seek(low); k != nil && len(ids) < limit; k, v = c.Next() {
			var id object.ID
			copy(id[:], k)
			if id.String()[:len(prefix)] != prefix {
				return nil
			}
			if e, err := decodeEntry(v); err == nil && e.kind == kind {
				ids = append(ids, id)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	return ids, err
}

func prefixBytes(prefix string) ([]byte, error) {
	if len(prefix) < 4 || len(prefix) > 2*object.IDSize {
		return nil, errs.New(errs.Usage, "%q is no abbreviated id: it has %d digits, not 4 to %d", prefix, len(prefix),
			2*object.IDSize)
	}
	full := prefix + "0000000000000000000000000000000000000000000000000000000000000000"[len(prefix):]
	id, err := object.ParseID(full)
	return id[:(len(prefix)+1)/2], err
}

package store

import (
	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
)

// A partial commit is one whose record the store has, and of what it needs so much as somebody has fetched so far: the rest is
// at a remote, which whoever reads it asks (a lazy clone, and what is committed on top of one). What stands for it in the
// metadata is partial/ID.
//
// To whoever asks, the store does not have a partial commit, so that a fetch of it brings all of it. Refs may point to one. gc
// keeps what is there of it, and neither gc nor a check takes what is not there for damage.
//
// A batch that puts a commit says that all the commit needs is in the store: that ends its being partial, unless the
// batch's transaction says that it is.
const partialPrefix = "partial/"

func partialKey(id object.ID) string { return partialPrefix + id.String() }

// SetPartial notes that what a commit needs may not be in the store.
func (tx *Tx) SetPartial(id object.ID) error {
	e, err := tx.entry(id)
	if err != nil {
		return err
	}
	if e.kind != object.KindCommit {
		return errs.New(errs.Usage, "object %s is a %s; only commits are partial", id.Short(), e.kind)
	}
	if err := tx.refill(id); err != nil { // a pruned commit is shown again
		return err
	}
	return tx.SetMeta(partialKey(id), []byte{1})
}

// SetWhole notes that all that a commit needs is in the store, or that the commit is not.
func (tx *Tx) SetWhole(id object.ID) error {
	if !tx.Partial(id) || tx.err != nil {
		return tx.err
	}
	return tx.SetMeta(partialKey(id), nil)
}

// Partial says whether what a commit needs may not be in the store.
func (tx *Tx) Partial(id object.ID) bool {
	_, ok := tx.Meta(partialKey(id))
	return ok
}

// partialCommits returns all partial commits.
func (tx *Tx) partialCommits() (map[object.ID]struct{}, error) {
	all := map[object.ID]struct{}{}
	for key := range tx.Metas(partialPrefix) {
		id, err := object.ParseID(key[len(partialPrefix):])
		if err != nil {
			return nil, errs.New(errs.Damaged, "metadata %q names no commit: %w", key, err)
		}
		all[id] = struct{}{}
	}
	return all, tx.err
}

// isPartial says whether an object is a partial commit.
func isPartial(b *bbolt.Tx, id object.ID, e *entry) bool {
	return e.kind == object.KindCommit && b.Bucket([]byte(bucketMeta)).Get([]byte(partialKey(id))) != nil
}

// dropPartial forgets which commits were partial of those that gc removes.
func (tx *Tx) dropPartial(m *marker) error {
	for id := range m.partial {
		if !m.has(id) {
			if err := tx.SetMeta(partialKey(id), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

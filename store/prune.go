package store

import (
	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
)

// A pruned commit is one whose content the history no longer keeps: gc keeps its record, so that ids and histories stay what
// they are, and walks on to its parents, but takes its trees, lists and chunks for unreachable unless something else needs
// them. What stands in the metadata, under pruned/ID:
//
//	given up   Prune was called; the content is there as long as no gc has run or something pins the commit
//	hollow     a gc has removed content: to whoever asks, the store does not have the commit, so that a fetch brings it again
//
// No ref points to a pruned commit: SetRef takes back a Prune that no gc has carried out yet and refuses a hollow commit.
const (
	prunedPrefix = "pruned/"
	givenUp      = "p"
	hollow       = "h"
)

func prunedKey(id object.ID) string { return prunedPrefix + id.String() }

// Prune gives up the content of commits. A ref points to one of them: Conflict.
func (tx *Tx) Prune(ids ...object.ID) error {
	tips := map[object.ID]string{}
	for name, tip := range tx.Refs("") {
		tips[tip] = name
	}
	for _, id := range ids {
		e, err := tx.entry(id)
		if err != nil {
			return err
		}
		if e.kind != object.KindCommit {
			return errs.New(errs.Usage, "object %s is a %s; only commits are pruned", id.Short(), e.kind)
		}
		if name, ok := tips[id]; ok {
			return errs.New(errs.Conflict, "commit %s cannot be pruned: %s points to it", id.Short(), name)
		}
		if tx.Pruned(id) || tx.err != nil {
			continue
		}
		if err := tx.SetMeta(prunedKey(id), []byte(givenUp)); err != nil {
			return err
		}
	}
	return tx.err
}

// Pruned says whether the content of a commit was given up.
func (tx *Tx) Pruned(id object.ID) bool {
	_, ok := tx.Meta(prunedKey(id))
	return ok
}

func (tx *Tx) entry(id object.ID) (entry, error) {
	v := tx.b.Bucket([]byte(bucketObjects)).Get(id[:])
	if v == nil {
		return entry{}, errs.New(errs.NotFound, "object %s is not in the store", id)
	}
	return decodeEntry(v)
}

// revive makes a commit one that the store has again, unless it is hollow.
func (tx *Tx) revive(id object.ID) error {
	v, ok := tx.Meta(prunedKey(id))
	switch {
	case tx.err != nil || !ok:
		return tx.err
	case string(v) == hollow:
		return errs.New(errs.NotFound, "the content of commit %s was pruned", id.Short())
	}
	return tx.SetMeta(prunedKey(id), nil)
}

// refill notes that the content of a commit is there again.
func (tx *Tx) refill(id object.ID) error {
	if err := tx.SetWhole(id); err != nil {
		return err
	}
	if !tx.Pruned(id) || tx.err != nil {
		return tx.err
	}
	return tx.SetMeta(prunedKey(id), nil)
}

// hollowOut notes of which commits gc removes the content: those that are pruned and were not marked in full. What is
// not marked at all goes, and with it what was noted of it.
func (tx *Tx) hollowOut(m *marker) error {
	for id := range m.pruned {
		if !m.has(id) {
			if err := tx.SetMeta(prunedKey(id), nil); err != nil {
				return err
			}
		}
	}
	for id := range m.bare {
		if _, full := m.seen[id]; full || m.pruned[id] == hollow {
			continue
		}
		if err := tx.SetMeta(prunedKey(id), []byte(hollow)); err != nil {
			return err
		}
	}
	return nil
}

// prunedCommits returns all pruned commits and whether they are hollow.
func (tx *Tx) prunedCommits() (map[object.ID]string, error) {
	all := map[object.ID]string{}
	for key, v := range tx.Metas(prunedPrefix) {
		id, err := object.ParseID(key[len(prunedPrefix):])
		if err != nil {
			return nil, errs.New(errs.Damaged, "metadata %q names no commit: %w", key, err)
		}
		all[id] = string(v)
	}
	return all, tx.err
}

// isHollow says whether an object is a commit without its content.
func isHollow(b *bbolt.Tx, id object.ID, e *entry) bool {
	if e.kind != object.KindCommit {
		return false
	}
	key := prunedKey(id)
	v := b.Bucket([]byte(bucketMeta)).Get([]byte(key))
	if v == nil {
		return false
	}
	v, err := unseal(key, v)
	return err == nil && string(v) == hollow
}

// loadPruned tells the marker which commits are pruned. What it has marked without content and is pruned no longer, it has to
// mark again: that is returned.
func (m *marker) loadPruned(tx *Tx) (revived []object.ID, err error) {
	now, err := tx.prunedCommits()
	if err != nil {
		return nil, err
	}
	m.pruned = now
	if m.partial, err = tx.partialCommits(); err != nil {
		return nil, err
	}
	for id := range m.bare {
		if _, ok := now[id]; !ok {
			revived = append(revived, id)
		}
	}
	return revived, nil
}

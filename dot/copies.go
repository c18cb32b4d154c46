package dot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/semaphore"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/store"
	"dm/workcopy"
)

// WorkingCopy is the open working copy of one branch.
type WorkingCopy struct {
	ID     string // 16 hex digits, of this working copy alone: the name of its directory
	DotID  string
	Branch string
	Cache  CacheMode
	Copy   *workcopy.Copy
}

// slot is the place of one working copy in this process, open or not.
type slot struct {
	// base is held whole by what changes the working copy's base: reset, restore, delete. Commits hold a share: one may
	// make its cut while the one before it is being chunked.
	base *semaphore.Weighted
	// life is held with weight 1 by whoever uses the open working copy, and whole by who opens or closes it.
	// It is taken after base.
	life *semaphore.Weighted
	open *WorkingCopy // nil: closed; guarded by life
	gone bool         // its branch was deleted; guarded by life
}

// baseWhole is how many commits of one working copy can run, the last of them waiting for its cut.
const baseWhole = 3

// lifeWhole is more users at a time than there can be.
const lifeWhole = 1 << 30

func (d *Dots) slot(copyID string) *slot {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.slots[copyID]
	if s == nil {
		s = &slot{base: semaphore.NewWeighted(baseWhole), life: semaphore.NewWeighted(lifeWhole)}
		d.slots[copyID] = s
	}
	return s
}

// use is a branch with its open working copy, for as long as done has not been called.
type use struct {
	*branchState
	*WorkingCopy
	done func()
}

// view opens a branch's working copy for something that may run beside all else.
func (d *Dots) view(ctx context.Context, n Name) (*use, error) { return d.use(ctx, n, 0) }

// append opens a branch's working copy for a commit: others may be under way, but nothing else that changes its base.
func (d *Dots) append(ctx context.Context, n Name) (*use, error) { return d.use(ctx, n, 1) }

// change opens a branch's working copy for something that changes its base or needs it to stay.
func (d *Dots) change(ctx context.Context, n Name) (*use, error) { return d.use(ctx, n, baseWhole) }

// use opens a branch's working copy with a share of its base.
func (d *Dots) use(ctx context.Context, n Name, share int64) (*use, error) {
	b, err := d.branch(ctx, n)
	if err != nil {
		return nil, err
	}
	s := d.slot(b.rec.Copy)
	unlock := func() {}
	if share > 0 {
		if err := s.base.Acquire(ctx, share); err != nil {
			return nil, err
		}
		unlock = func() { s.base.Release(share) }
	}
	wc, err := d.enter(ctx, s, b, share > 0)
	if err != nil {
		unlock()
		return nil, err
	}
	done := func() {
		s.life.Release(1)
		unlock()
	}
	if err := d.readAgain(b); err != nil { // it may have changed before the locks were held
		done()
		return nil, err
	}
	return &use{branchState: b, WorkingCopy: wc, done: done}, nil
}

// readAgain reads what a branch is by now. It keeps its working copy's id through a rename, so it is found by the dot's id.
func (d *Dots) readAgain(b *branchState) error {
	return d.store.View(func(tx *store.Tx) error {
		if _, err := getJSON(tx, dotKey(b.dot.ID), &b.dot); err != nil {
			return err
		}
		_, err := getJSON(tx, b.key(), &b.rec)
		b.tip, _ = tx.Ref(b.ref())
		return err
	})
}

// enter takes a share of the slot's life, opening the working copy if it is not open. baseHeld says whether the caller
// holds the slot's base.
func (d *Dots) enter(ctx context.Context, s *slot, b *branchState, baseHeld bool) (*WorkingCopy, error) {
	for {
		if err := s.life.Acquire(ctx, 1); err != nil {
			return nil, err
		}
		switch {
		case s.gone:
			s.life.Release(1)
			return nil, noBranch(b.name)
		case s.open != nil:
			return s.open, nil
		}
		s.life.Release(1)
		if err := d.openSlot(ctx, s, b, baseHeld); err != nil {
			return nil, err
		}
	}
}

// openSlot opens a slot's working copy unless another did meanwhile.
func (d *Dots) openSlot(ctx context.Context, s *slot, b *branchState, baseHeld bool) error {
	if !baseHeld {
		if err := s.base.Acquire(ctx, baseWhole); err != nil {
			return err
		}
		defer s.base.Release(baseWhole)
	}
	if err := s.life.Acquire(ctx, lifeWhole); err != nil {
		return err
	}
	defer s.life.Release(lifeWhole)
	if s.open != nil || s.gone {
		return nil
	}
	if d.isClosed() {
		return errs.New(errs.Interrupted, "dm is stopping")
	}
	c, err := d.openCopy(ctx, b)
	if err != nil {
		return fmt.Errorf("open the working copy of %s@%s: %w", b.dot.name(), b.name, err)
	}
	s.open = &WorkingCopy{ID: b.rec.Copy, DotID: b.dot.ID, Branch: b.name, Cache: b.dot.Cache, Copy: c}
	return nil
}

func (d *Dots) copyDir(copyID string) string { return filepath.Join(d.cfg.Dir, copyID) }

func (d *Dots) copyConfig() workcopy.Config {
	return workcopy.Config{Source: d.trees, Now: d.cfg.Now, Log: d.cfg.Log, Files: d.cfg.Files}
}

// openCopy opens a branch's working copy, or makes it if it was never made. The caller holds base and life.
func (d *Dots) openCopy(ctx context.Context, b *branchState) (*workcopy.Copy, error) {
	err := d.store.View(func(tx *store.Tx) error {
		_, err := getJSON(tx, b.key(), &b.rec)
		b.tip, _ = tx.Ref(b.ref())
		return err
	})
	if err != nil {
		return nil, err
	}
	dir := d.copyDir(b.rec.Copy)
	if !b.rec.Ready {
		return d.makeCopy(ctx, b, dir)
	}
	return workcopy.Open(ctx, dir, d.copyConfig(), b.tip)
}

func (d *Dots) makeCopy(ctx context.Context, b *branchState, dir string) (*workcopy.Copy, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(d.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	commit, err := d.commit(ctx, b.tip)
	if err != nil {
		return nil, err
	}
	c, err := workcopy.Create(ctx, dir, d.copyConfig(), b.tip, commit)
	if err != nil {
		return nil, err
	}
	err = d.updateBranch(b, func(r *branchRecord) { r.Ready = true })
	if err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	return c, nil
}

// commit reads a commit; the zero id gives nil.
func (d *Dots) commit(ctx context.Context, id object.ID) (*object.Commit, error) {
	if id.IsZero() {
		return nil, nil
	}
	return readCommit(ctx, d.store, id)
}

func readCommit(ctx context.Context, src object.Source, id object.ID) (*object.Commit, error) {
	raw, err := src.Get(ctx, object.KindCommit, id)
	if err != nil {
		return nil, fmt.Errorf("read commit %s: %w", id.Short(), err)
	}
	return object.DecodeCommit(raw)
}

// updateBranch changes a branch's record. The caller holds its base.
func (d *Dots) updateBranch(b *branchState, change func(r *branchRecord)) error {
	return d.store.Update(func(tx *store.Tx) error {
		var r branchRecord
		ok, err := getJSON(tx, b.key(), &r)
		if err != nil {
			return err
		}
		if !ok {
			return noBranch(b.name)
		}
		change(&r)
		b.rec = r
		return setJSON(tx, b.key(), &r)
	})
}

// WorkingCopy opens the working copy of a branch, or returns the one that is open. It stays open until Release, Close or
// the branch's deletion.
func (d *Dots) WorkingCopy(ctx context.Context, n Name) (*WorkingCopy, error) {
	u, err := d.view(ctx, n)
	if err != nil {
		return nil, err
	}
	defer u.done()
	return u.WorkingCopy, nil
}

// Release closes a working copy that nobody shows any more. Not open: no error.
func (d *Dots) Release(ctx context.Context, copyID string) error {
	s := d.slot(copyID)
	if err := s.base.Acquire(ctx, baseWhole); err != nil {
		return err
	}
	defer s.base.Release(baseWhole)
	return s.close(ctx)
}

// close closes the working copy when its last user has left it. The caller holds base.
func (s *slot) close(ctx context.Context) error {
	if err := s.life.Acquire(ctx, lifeWhole); err != nil {
		return err
	}
	defer s.life.Release(lifeWhole)
	return s.shut(ctx)
}

// shut closes the working copy; the caller holds life.
func (s *slot) shut(ctx context.Context) error {
	if s.open == nil {
		return nil
	}
	wc := s.open
	s.open = nil
	return wc.Copy.Close(ctx)
}

// destroy closes a working copy whose branch is being deleted, after unmounting it, and has commit remove the branch from
// the metadata. Then its directory goes. A crash in between leaves it in the trash, where the next Open finds it.
func (d *Dots) destroy(ctx context.Context, copyIDs []string, commit func(tx *store.Tx) error) error {
	for _, id := range copyIDs {
		s := d.slot(id)
		if err := s.base.Acquire(ctx, baseWhole); err != nil {
			return err
		}
		defer s.base.Release(baseWhole)
		if d.cfg.Detach != nil {
			if err := d.cfg.Detach(ctx, id); err != nil {
				return err
			}
		}
		if err := s.life.Acquire(ctx, lifeWhole); err != nil {
			return err
		}
		defer s.life.Release(lifeWhole)
	}
	err := d.store.Update(func(tx *store.Tx) error {
		for _, id := range copyIDs {
			if err := tx.SetMeta(trashKey(id), []byte{}); err != nil {
				return err
			}
		}
		return commit(tx)
	})
	if err != nil {
		return err
	}
	for _, id := range copyIDs {
		s := d.slot(id)
		s.gone = true
		// What fails from here on costs disk space only, and the next Open tries again.
		err = errors.Join(err, s.shut(context.WithoutCancel(ctx)), d.emptyTrash(id))
	}
	return err
}

// emptyTrash deletes a working copy's directory for good.
func (d *Dots) emptyTrash(copyID string) error {
	if err := os.RemoveAll(d.copyDir(copyID)); err != nil {
		return err
	}
	return d.store.Update(func(tx *store.Tx) error { return tx.SetMeta(trashKey(copyID), nil) })
}

// newID draws 16 hex digits.
func newID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

package dot

import (
	"context"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
	"dm/workcopy"
)

// Commit makes a commit of all subdots at one instant and moves the branch to it. When it fails, nothing has happened.
//
// Writers wait only for the freeze. What follows reads the frozen state while they go on, and costs what changed since
// the last commit. Another commit may begin meanwhile: its instant is then, and the rest of it waits, because this one is
// its parent. The commit exists from the moment the batch is committed: objects, branch and count in one
// transaction. A crash before leaves the old commit with everything dirty as it was, a crash after the new one: the note
// that Prepare leaves in the working copy's journal lets the next start tell which.
func (d *Dots) Commit(ctx context.Context, n Name, req CommitRequest) (*CommitResult, error) {
	began := time.Now()
	if err := checkMeta(req.Meta); err != nil {
		return nil, err
	}
	u, err := d.append(ctx, n)
	if err != nil {
		return nil, err
	}
	defer u.done()
	batch, err := d.store.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer batch.Abort()
	snap, err := u.Copy.FreezeThen(ctx, req.Frozen)
	if err != nil {
		return nil, fmt.Errorf("freeze the working copy: %w", err)
	}
	defer snap.Abort()
	// Another commit may have ended since the locks were taken, and is the base then.
	if err := d.readAgain(u.branchState); err != nil {
		return nil, err
	}
	count, err := d.countOf(ctx, u.branchState)
	if err != nil {
		return nil, err
	}

	res := &CommitResult{Branch: u.name, PauseMS: milliseconds(snap.Pause())}
	commit, err := d.build(ctx, snap, batch, req.Progress, res)
	if err != nil {
		return nil, err
	}
	files, bytes, err := snap.Restored(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare what was restored: %w", err)
	}
	res.Files, res.DirtyBytes = res.Files+files, res.DirtyBytes+bytes
	commit.Author, commit.Message, commit.Meta, commit.System = req.Author, req.Message, req.Meta, req.System
	commit.Time = d.now().UTC()
	if err := commit.Check(); err != nil {
		return nil, err
	}
	if res.ID, err = batch.Put(ctx, object.KindCommit, commit.Encode()); err != nil {
		return nil, err
	}
	if err := snap.Prepare(ctx, res.ID, commit); err != nil {
		return nil, err
	}
	stats, err := batch.Commit(ctx, func(tx *store.Tx) error {
		// What it shares with a commit of which not all is here is not here, either.
		if tx.Partial(snap.Base()) {
			if err := tx.SetPartial(res.ID); err != nil {
				return err
			}
		}
		return u.advance(tx, snap.Base(), res.ID, count+1)
	})
	if err != nil && !d.isAt(u.branchState, res.ID) {
		return nil, err
	}
	res.Commit, res.StoredBytes, res.NewObjects = res.ID.String(), uint64(stats.StoredBytes), uint64(stats.NewObjects)
	// The commit has taken place, so this must not be cut short.
	if err := snap.Done(context.WithoutCancel(ctx)); err != nil {
		return res, fmt.Errorf("commit %s is stored, but the working copy could not note it: %w", res.Commit, err)
	}
	res.DurationMS = milliseconds(time.Since(began))
	return res, nil
}

// build turns a snapshot into objects: chunks and lists of the changed files, then trees along the changed paths.
func (d *Dots) build(ctx context.Context, snap *workcopy.Snapshot, sink chunkSink, progress func(Progress), res *CommitResult) (*object.Commit, error) {
	files := snap.Files()
	res.Files = uint64(len(files))
	for _, f := range files {
		res.DirtyBytes += rangesLen(f.Dirty())
	}
	var err error
	if res.ReadBytes, err = chunkFiles(ctx, d.src, sink, files, progress); err != nil {
		return nil, err
	}
	c := &object.Commit{}
	if base := snap.Base(); !base.IsZero() {
		c.Parents = []object.ID{base}
	}
	c.Root, c.Links, c.NextIno, err = snap.Root(ctx, sink)
	if err != nil {
		return nil, fmt.Errorf("build the trees: %w", err)
	}
	return c, nil
}

// advance moves the branch from one commit to the next.
func (b *branchState) advance(tx *store.Tx, from, to object.ID, count uint64) error {
	if err := tx.SetRef(b.ref(), from, to); err != nil {
		return errs.WithHint(fmt.Errorf("move branch %s: %w", b.name, err),
			"the working copy is based on another commit than the branch; 'dm reset --hard HEAD' shows the branch's")
	}
	var r branchRecord
	if ok, err := getJSON(tx, b.key(), &r); err != nil || !ok {
		return fmt.Errorf("read the record of branch %s (found: %v): %w", b.name, ok, err)
	}
	r.Count, r.CountOf = count, to.String()
	return setJSON(tx, b.key(), &r)
}

// isAt says whether a branch is at a commit: the answer to whether a transaction took place whose end failed.
func (d *Dots) isAt(b *branchState, id object.ID) (at bool) {
	err := d.store.View(func(tx *store.Tx) error {
		tip, _ := tx.Ref(b.ref())
		at = tip == id
		return nil
	})
	return at && err == nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func checkMeta(m map[string]string) error {
	for k := range m {
		if r, _ := utf8.DecodeRuneInString(k); !unicode.IsLower(r) {
			return errs.New(errs.Usage, "Metadata field names must start with lowercase characters: %s", k)
		}
	}
	return nil
}

package dot

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
	"dm/workcopy"
)

func branchModels(tx *store.Tx, r *dotRecord) ([]Branch, error) {
	list, err := branchesOf(tx, r)
	models := make([]Branch, 0, len(list))
	for _, b := range list {
		models = append(models, Branch{Name: b.name, Commit: hexOrEmpty(b.tip), Current: b.name == r.Branch})
	}
	return models, err
}

// Branches returns a dot's branches, by name.
func (d *Dots) Branches(ctx context.Context, n Name) ([]Branch, error) {
	info, err := d.Info(ctx, n)
	if err != nil {
		return nil, err
	}
	return info.Branches, nil
}

// CreateBranch makes a branch at the commit of n's branch, or of the current one. There is one of that name already, or
// nothing to branch from: Conflict.
func (d *Dots) CreateBranch(ctx context.Context, n Name, branch string) error {
	if err := CheckName("branch", branch); err != nil {
		return err
	}
	return d.updateDot(ctx, n, func(tx *store.Tx, r *dotRecord) error {
		from, err := mayCheckout(tx, n, r, branch, true)
		if err != nil {
			return err
		}
		return branchOff(tx, from, branch)
	})
}

// Checkout makes a branch the current one. Each branch has its own working copy, so nothing uncommitted moves or is lost.
func (d *Dots) Checkout(ctx context.Context, n Name, branch string) error {
	if err := CheckName("branch", branch); err != nil {
		return err
	}
	return d.updateDot(ctx, n, func(tx *store.Tx, r *dotRecord) error {
		if _, err := mayCheckout(tx, n, r, branch, false); err != nil {
			return err
		}
		r.Branch = branch
		return nil
	})
}

// MayCheckout says whether a Checkout, after a CreateBranch with create, would take place, for who has to prepare for one.
func (d *Dots) MayCheckout(ctx context.Context, n Name, branch string, create bool) error {
	if err := errors.Join(ctx.Err(), CheckName("branch", branch)); err != nil {
		return err
	}
	return d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		_, err = mayCheckout(tx, n, r, branch, create)
		return err
	})
}

// mayCheckout returns the branch that a new one is to begin from.
func mayCheckout(tx *store.Tx, n Name, r *dotRecord, branch string, create bool) (from *branchState, err error) {
	_, there := tx.Meta(branchKey(r.ID, branch))
	tagged, tag := tx.Ref(tagRef(r.ID, branch))
	switch {
	case create && there:
		return nil, errs.WithHint(errs.New(errs.Conflict, "Branch already exists: %s", branch),
			"switch to it with 'dm checkout %s'", branch)
	case !create && !there:
		if tag {
			return nil, errs.WithHint(errs.New(errs.NotFound, "Branch does not exist: %s, which is a tag", branch),
				"go back to it with 'dm reset %s', or look at it with 'dm mount %s:%s DIR'", branch, n.DotName(), branch)
		}
		return nil, errs.WithHint(errs.New(errs.NotFound, "Branch does not exist: %s", branch),
			"list the branches with 'dm branch', or make it with 'dm checkout -b %s'", branch)
	case !create:
		return nil, nil
	case tag:
		return nil, errs.WithHint(errs.New(errs.Conflict, "a tag has this name already: %s (at %s)", branch, tagged.Short()),
			"choose another name: as a revision it would mean either")
	}
	if err := CheckNew("branch", branch); err != nil {
		return nil, err
	}
	if from, err = getBranch(tx, n); err != nil {
		return nil, err
	}
	if from.tip.IsZero() {
		return nil, errs.WithHint(errs.New(errs.Conflict, "nothing has been committed on branch %s yet", from.name),
			"make a commit to branch from with 'dm commit -m MESSAGE'")
	}
	return from, nil
}

// branchOff makes a branch where another is.
func branchOff(tx *store.Tx, from *branchState, branch string) error {
	rec := branchRecord{Copy: newID(), Count: from.rec.Count, CountOf: from.rec.CountOf}
	if err := setJSON(tx, branchKey(from.dot.ID, branch), &rec); err != nil {
		return err
	}
	return tx.SetRef(headRef(from.dot.ID, branch), object.ID{}, from.tip)
}

// DeleteBranch removes a branch with its working copy. The current one, or one with changes that were never committed:
// Conflict.
func (d *Dots) DeleteBranch(ctx context.Context, n Name, branch string) error {
	if err := CheckName("branch", branch); err != nil {
		return err
	}
	n.Branch = branch
	b, err := d.branch(ctx, n)
	if err != nil {
		return err
	}
	if b.dot.Branch == branch {
		return isCurrent(branch) // before anything is unmounted
	}
	if b.rec.Ready {
		if err := d.mustBeClean(ctx, n); err != nil {
			return errs.WithHint(fmt.Errorf("delete branch %s: %w", branch, err),
				"commit them, or give them up with 'dm reset --hard HEAD', on that branch")
		}
	}
	return d.destroy(ctx, []string{b.rec.Copy}, func(tx *store.Tx) error {
		now, err := getBranch(tx, n)
		if err != nil {
			return err
		}
		if now.dot.Branch == branch {
			return isCurrent(branch)
		}
		return now.remove(tx)
	})
}

func isCurrent(branch string) error {
	return errs.WithHint(errs.New(errs.Conflict, "branch %s is the current one", branch),
		"switch to another with 'dm checkout BRANCH' first")
}

func (d *Dots) mustBeClean(ctx context.Context, n Name) error {
	u, err := d.view(ctx, n)
	if err != nil {
		return err
	}
	defer u.done()
	_, err = clean(ctx, u.Copy)
	return err
}

// clean returns a Conflict where a working copy is dirty, and how many bytes are.
func clean(ctx context.Context, c *workcopy.Copy) (dirty uint64, err error) {
	st, err := c.Status(ctx)
	if err != nil {
		return 0, err
	}
	if st.Dirty == 0 && st.Changed == 0 {
		return 0, nil
	}
	return st.Dirty, errs.New(errs.Conflict, "there are uncommitted changes: %d bytes (%s) in %d files",
		st.Dirty, humanize.IBytes(st.Dirty), st.Changed)
}

// Reset moves a branch to a commit and shows it in the working copy, under live mounts. A dirty working copy is refused
// unless hard.
//
// The working copy notes durably what it is about to show, then the branch moves, then it shows it. After a crash in
// between, its next opening compares the note with the branch.
func (d *Dots) Reset(ctx context.Context, n Name, rev string, hard bool) (*ResetResult, error) {
	u, err := d.change(ctx, n)
	if err != nil {
		return nil, err
	}
	defer u.done()
	id, commit, err := d.resolve(ctx, u.branchState, rev)
	if err != nil {
		return nil, err
	}
	dirty, err := mayReset(ctx, u, rev, hard)
	if err != nil {
		return nil, err
	}
	res := &ResetResult{Branch: u.name, From: hexOrEmpty(u.tip), To: id.String(), Discarded: dirty}
	if err := d.moveTo(ctx, u, id, commit); err != nil {
		return nil, fmt.Errorf("reset to commit %s: %w", id.Short(), err)
	}
	return res, nil
}

// MayReset says whether a Reset would take place as things are now, for who has to prepare for one.
func (d *Dots) MayReset(ctx context.Context, n Name, rev string, hard bool) error {
	u, err := d.view(ctx, n)
	if err != nil {
		return err
	}
	defer u.done()
	if _, _, err := d.resolve(ctx, u.branchState, rev); err != nil {
		return err
	}
	_, err = mayReset(ctx, u, rev, hard)
	return err
}

// mayReset returns how many dirty bytes a reset to rev drops.
func mayReset(ctx context.Context, u *use, rev string, hard bool) (dirty uint64, err error) {
	dirty, err = clean(ctx, u.Copy)
	if err != nil && !(hard && errs.KindOf(err) == errs.Conflict) {
		return 0, errs.WithHint(err, "commit them with 'dm commit', or give them up with 'dm reset --hard %s'", rev)
	}
	return dirty, nil
}

// moveTo moves a branch, and its working copy with it.
func (d *Dots) moveTo(ctx context.Context, u *use, id object.ID, commit *object.Commit) error {
	count, err := d.countTo(ctx, id)
	if err != nil {
		return err
	}
	before := u.rec
	move := func(from, to object.ID, rec branchRecord) error {
		if from == to {
			return nil
		}
		return d.store.Update(func(tx *store.Tx) error {
			if err := tx.SetRef(u.ref(), from, to); err != nil {
				return err
			}
			return setJSON(tx, u.key(), &rec)
		})
	}
	after := before
	after.Count, after.CountOf = count, id.String()
	moved := false
	err = u.Copy.Reset(ctx, id, commit, func() error {
		err := move(u.tip, id, after)
		moved = err == nil
		return err
	})
	if err != nil && moved && u.Copy.Head() != id {
		err = errors.Join(err, move(id, u.tip, before)) // it still shows the old commit
	}
	return err
}

// Tags returns a dot's tags, by name.
func (d *Dots) Tags(ctx context.Context, n Name) ([]Tag, error) {
	info, err := d.Info(ctx, n)
	if err != nil {
		return nil, err
	}
	return info.Tags, nil
}

func tagsOf(tx *store.Tx, r *dotRecord) []Tag {
	list := []Tag{}
	for name, id := range tx.Refs(tagPrefix(r.ID)) {
		list = append(list, Tag{Name: strings.TrimPrefix(name, tagPrefix(r.ID)), Commit: id.String()})
	}
	return list
}

// CreateTag gives a commit a fixed name. It exists already: Conflict.
func (d *Dots) CreateTag(ctx context.Context, n Name, tag, rev string) (*Tag, error) {
	if err := CheckNew("tag", tag); err != nil {
		return nil, err
	}
	b, err := d.branch(ctx, n)
	if err != nil {
		return nil, err
	}
	id, _, err := d.resolve(ctx, b, rev)
	if err != nil {
		return nil, err
	}
	err = d.store.Update(func(tx *store.Tx) error {
		if old, ok := tx.Ref(tagRef(b.dot.ID, tag)); ok {
			return errs.WithHint(errs.New(errs.Conflict, "Tag already exists: %s (at %s)", tag, old.Short()),
				"delete it first with 'dm tag -d %s'", tag)
		}
		if _, ok := tx.Meta(branchKey(b.dot.ID, tag)); ok {
			return errs.WithHint(errs.New(errs.Conflict, "a branch has this name already: %s", tag),
				"choose another name: as a revision it would mean either")
		}
		if _, ok := tx.Meta(dotKey(b.dot.ID)); !ok {
			return errs.New(errs.NotFound, "Dot %s does not exist.", n.DotName())
		}
		return tx.SetRef(tagRef(b.dot.ID, tag), object.ID{}, id)
	})
	if err != nil {
		return nil, err
	}
	return &Tag{Name: tag, Commit: id.String()}, nil
}

// DeleteTag removes a tag.
func (d *Dots) DeleteTag(ctx context.Context, n Name, tag string) error {
	return d.updateDot(ctx, n, func(tx *store.Tx, r *dotRecord) error {
		id, ok := tx.Ref(tagRef(r.ID, tag))
		if !ok {
			return errs.WithHint(errs.New(errs.NotFound, "Tag does not exist: %s", tag), "list the tags with 'dm tag'")
		}
		return tx.SetRef(tagRef(r.ID, tag), id, object.ID{})
	})
}

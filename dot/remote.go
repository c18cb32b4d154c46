package dot

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// This file is what a dot has to do with its counterparts at remotes, and nothing of how commits travel: that is package
// remote. What it takes in is in the store already.
//
// Where the branches and tags of a counterpart were last seen is a ref, too, dots/ID/seen/REMOTE/NAMESPACE/DOT/heads/BRANCH:
// so what was seen stays until it is seen to have moved, also where it has diverged, and can be looked at and branched from.

func seenPrefix(id string) string { return "dots/" + id + "/seen/" }

func seenOf(id string, u Upstream) string { return seenPrefix(id) + u.Remote + "/" + u.Name + "/" }

// Tips is everything that a dot's names point to.
type Tips struct {
	Heads map[string]object.ID // by branch; those without a commit are not in it
	Tags  map[string]object.ID
	Seen  []object.ID // at remotes
}

// All returns the commits of all, each once.
func (t *Tips) All() []object.ID {
	all := slices.Concat(slices.Collect(maps.Values(t.Heads)), slices.Collect(maps.Values(t.Tags)), t.Seen)
	slices.SortFunc(all, func(a, b object.ID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(all)
}

// Tips returns what a dot's branches and tags point to, and where those of its counterparts were last seen.
func (d *Dots) Tips(ctx context.Context, n Name) (*Tips, error) {
	t := &Tips{Heads: map[string]object.ID{}, Tags: map[string]object.ID{}}
	err := d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		for ref, id := range tx.Refs(headPrefix(r.ID)) {
			t.Heads[strings.TrimPrefix(ref, headPrefix(r.ID))] = id
		}
		for ref, id := range tx.Refs(tagPrefix(r.ID)) {
			t.Tags[strings.TrimPrefix(ref, tagPrefix(r.ID))] = id
		}
		for _, id := range tx.Refs(seenPrefix(r.ID)) {
			t.Seen = append(t.Seen, id)
		}
		return ctx.Err()
	})
	return t, err
}

// Seen returns where the refs of a counterpart were last seen, by their names there (heads/BRANCH, tags/TAG).
func (d *Dots) Seen(ctx context.Context, n Name, u Upstream) (map[string]object.ID, error) {
	seen := map[string]object.ID{}
	err := d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		prefix := seenOf(r.ID, u)
		for ref, id := range tx.Refs(prefix) {
			seen[strings.TrimPrefix(ref, prefix)] = id
		}
		return ctx.Err()
	})
	return seen, err
}

// NoteSeen notes where refs of a counterpart are. Their commits are in the store; a zero id says that a ref is gone.
func (d *Dots) NoteSeen(ctx context.Context, n Name, u Upstream, refs map[string]object.ID) error {
	if err := ctx.Err(); err != nil || len(refs) == 0 {
		return err
	}
	return d.store.Update(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		return noteSeen(tx, r, u, refs)
	})
}

func noteSeen(tx *store.Tx, r *dotRecord, u Upstream, refs map[string]object.ID) error {
	for ref, id := range refs {
		name := seenOf(r.ID, u) + ref
		old, _ := tx.Ref(name)
		if old == id {
			continue
		}
		if err := tx.SetRef(name, old, id); err != nil {
			return err
		}
	}
	return nil
}

// Arrival is a dot that has arrived from a remote: its commits are in the store, nothing leads to them yet.
type Arrival struct {
	Heads  map[string]object.ID // branches to be made; at least one
	Tags   map[string]object.ID
	Branch string // the current one; one of Heads
	From   Upstream
	Seen   map[string]object.ID // refs of From, as they were seen
	Cache  CacheMode            // empty: the server chooses
	Lazy   *Origin              // what is not here is read from it; nil: all is here
}

// CreateAt makes a dot of what has arrived. It exists already: Conflict. Nothing is unpacked: its files are read from the
// store when they are used.
func (d *Dots) CreateAt(ctx context.Context, n Name, a Arrival) (*Info, error) {
	if err := checkCreate(n, CreateOptions{Cache: a.Cache}); err != nil {
		return nil, err
	}
	for _, names := range []struct {
		what string
		refs map[string]object.ID
	}{{"branch", a.Heads}, {"tag", a.Tags}} {
		for name := range names.refs {
			if err := CheckName(names.what, name); err != nil {
				return nil, err
			}
		}
	}
	counts := map[object.ID]uint64{}
	for _, id := range a.Heads {
		count, err := d.countTo(ctx, id)
		if err != nil {
			return nil, err
		}
		counts[id] = count
	}
	r := dotRecord{
		ID: newID(), Namespace: n.Namespace, Name: n.Dot, Created: d.now().UTC(), Branch: a.Branch, Cache: a.Cache, Upstreams: []Upstream{a.From}, Origin: a.Lazy,
	}
	err := d.store.Update(func(tx *store.Tx) error {
		if _, ok := tx.Meta(nameKey(n)); ok {
			return exists(n)
		}
		for branch, id := range a.Heads {
			if err := addBranch(tx, r.ID, branch, id, counts[id]); err != nil {
				return err
			}
		}
		for tag, id := range a.Tags {
			if err := tx.SetRef(tagRef(r.ID, tag), object.ID{}, id); err != nil {
				return err
			}
		}
		if err := noteSeen(tx, &r, a.From, a.Seen); err != nil {
			return err
		}
		if err := tx.SetMeta(nameKey(n), []byte(r.ID)); err != nil {
			return err
		}
		return setJSON(tx, dotKey(r.ID), &r)
	})
	if err != nil {
		return nil, err
	}
	return d.Info(ctx, Name{Namespace: n.Namespace, Dot: n.Dot})
}

// addBranch makes a branch at a commit that count commits lead to.
func addBranch(tx *store.Tx, dotID, branch string, id object.ID, count uint64) error {
	rec := branchRecord{Copy: newID(), Count: count, CountOf: id.String()}
	if err := setJSON(tx, branchKey(dotID, branch), &rec); err != nil {
		return err
	}
	return tx.SetRef(headRef(dotID, branch), object.ID{}, id)
}

// AddBranch makes a branch at a commit that has arrived. It exists already: Conflict.
func (d *Dots) AddBranch(ctx context.Context, n Name, branch string, id object.ID) error {
	if err := CheckName("branch", branch); err != nil {
		return err
	}
	count, err := d.countTo(ctx, id)
	if err != nil {
		return err
	}
	return d.updateDot(ctx, n, func(tx *store.Tx, r *dotRecord) error {
		if _, there := tx.Meta(branchKey(r.ID, branch)); there {
			return errs.WithHint(errs.New(errs.Conflict, "Branch already exists: %s", branch), "try again")
		}
		return addBranch(tx, r.ID, branch, id, count)
	})
}

// Forward moves the branch of n from one commit to another that has arrived, and shows it in the working copy, under live
// mounts. It is for the caller to know that nothing is given up by that. A dirty working copy is a Conflict with its figures,
// unless what is dirty is to be dropped, and so is a branch that is not at from any more.
func (d *Dots) Forward(ctx context.Context, n Name, from, to object.ID, drop bool) error {
	u, err := d.change(ctx, n)
	if err != nil {
		return err
	}
	defer u.done()
	if u.tip != from {
		return errs.WithHint(errs.New(errs.Conflict, "branch %s has got another commit meanwhile", u.name), "pull again")
	}
	if err := cleanForPull(ctx, u); err != nil && !(drop && errs.KindOf(err) == errs.Conflict) {
		return err
	}
	commit, err := d.commit(ctx, to)
	if err != nil {
		return err
	}
	if err := d.moveTo(ctx, u, to, commit); err != nil {
		return fmt.Errorf("move branch %s to commit %s: %w", u.name, to.Short(), err)
	}
	return nil
}

// CheckClean is a Conflict where the working copy of a branch has changes that were never committed: a pull would have to
// give them up.
func (d *Dots) CheckClean(ctx context.Context, n Name) error {
	u, err := d.view(ctx, n)
	if err != nil {
		return err
	}
	defer u.done()
	return cleanForPull(ctx, u)
}

func cleanForPull(ctx context.Context, u *use) error {
	if u.tip.IsZero() {
		// A dot in which there is nothing yet has nothing to lose.
		if st, err := u.Copy.Status(ctx); err != nil || st.Changed == 0 {
			return err
		}
	}
	if _, err := clean(ctx, u.Copy); err != nil {
		return errs.WithHint(fmt.Errorf("branch %s of %s cannot be moved: %w", u.name, u.dot.name(), err),
			"commit them with 'dm commit', or give them up with 'dm reset --hard HEAD', then pull again")
	}
	return nil
}

// TakeTags makes tags that have arrived. Those whose name stands for another commit here are left as they are and returned.
func (d *Dots) TakeTags(ctx context.Context, n Name, tags map[string]object.ID) (made, clash []string, err error) {
	for tag := range tags {
		if err := CheckName("tag", tag); err != nil {
			return nil, nil, err
		}
	}
	if err := ctx.Err(); err != nil || len(tags) == 0 {
		return nil, nil, err
	}
	err = d.store.Update(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		for _, tag := range slices.Sorted(maps.Keys(tags)) {
			switch old, ok := tx.Ref(tagRef(r.ID, tag)); {
			case ok && old != tags[tag]:
				clash = append(clash, tag)
			case !ok:
				if err := tx.SetRef(tagRef(r.ID, tag), object.ID{}, tags[tag]); err != nil {
					return err
				}
				made = append(made, tag)
			}
		}
		return nil
	})
	return made, clash, err
}

// Contains says which of ids are among the commits that lead to tips, the tips included.
func (d *Dots) Contains(ctx context.Context, tips, ids []object.ID) (map[object.ID]bool, error) {
	wanted := make(map[object.ID]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	found := map[object.ID]bool{}
	if len(wanted) == 0 {
		return found, nil
	}
	err := d.ancestors(ctx, tips, func(id object.ID, _ *object.Commit) error {
		if wanted[id] {
			found[id] = true
		}
		return nil
	})
	return found, err
}

// Upstream returns a dot's counterpart at a remote; ok is false where none has been set.
func (i *Info) Upstream(remote string) (u Upstream, ok bool) {
	for _, u := range i.Upstreams {
		if u.Remote == remote {
			return u, true
		}
	}
	return Upstream{}, false
}

// Size returns the bytes of all regular files of a commit.
func (d *Dots) Size(ctx context.Context, id object.ID) (uint64, error) {
	c, err := d.commit(ctx, id)
	if err != nil || c == nil {
		return 0, err
	}
	return stateOf(d.src, c).size(ctx)
}

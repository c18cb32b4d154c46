// Package dot is what a user can do with dots: create, commit, branch, go back, compare, take data in and out. It joins a
// freeze of a working copy, the chunking of what is dirty and the store into one Commit, and knows nothing of mounts,
// sockets or command lines.
//
// Everything it has to remember is in the store's metadata, so that one transaction moves a branch and what belongs to it:
//
//	names/NAMESPACE/NAME      the dot's id
//	dots/ID                   the dot: its name, current branch, cache mode, upstreams
//	branches/ID/BRANCH        the branch: the directory of its working copy, its number of commits
//	auto/ID                   when the dot is committed by itself, and how that went
//	trash/COPY                the directory of a working copy that is to be deleted
//	refs dots/ID/heads/BRANCH and dots/ID/tags/TAG point to commits, and so does what was seen at remotes (remote.go)
//
// A dot's id is drawn once and never changes, so a rename is a change of two records and disturbs nobody.
//
// A working copy's directory is made when it is first needed. So making a branch, or receiving one, is a transaction and
// nothing else, and whatever a crash leaves half-made is recognized by its record and made again.
package dot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/store"
	"dm/workcopy"
)

// Config is what Open needs.
type Config struct {
	Store *store.Store
	// Source is where committed trees, lists and chunks are read from: the store, with something behind it for what is at a
	// remote (Origins). nil: the store.
	Source object.Source
	Dir    string           // holds the working copies, one directory each
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // of what the working copies do by themselves; nil: nowhere
	// Detach is called before a working copy is closed for good, with its id; it unmounts what shows it, or says in an
	// error of kind Conflict who uses it. nil: nobody shows any.
	Detach func(ctx context.Context, copyID string) error
	// Files is what working copies may open between them. nil: each has its own.
	Files *workcopy.OpenFiles
}

// Dots is all dots of one machine. Its methods are safe for concurrent use. Of each working copy one change of its base at
// a time (commit, reset, restore, delete) runs, others wait; but a commit fixes its content while the one before it is
// being stored. Everything else runs beside it. A Name's Branch
// may be empty: the dot's current one. A dot that is not there is an error of kind NotFound.
type Dots struct {
	cfg   Config
	store *store.Store
	src   object.Source
	trees *object.TreeCache // src, for working copies

	mu     sync.Mutex
	slots  map[string]*slot // by working copy id
	closed bool
}

// treeCache is what decoded trees may take in memory, in bytes, over all working copies: some 100,000 names.
const treeCache = 32 << 20

// Open reads the metadata, finishes deletions that a crash cut short, and opens no working copy yet.
func Open(ctx context.Context, cfg Config) (*Dots, error) {
	d := &Dots{cfg: cfg, store: cfg.Store, slots: map[string]*slot{}}
	if d.src = cfg.Source; d.src == nil {
		d.src = cfg.Store
	}
	d.trees = object.NewTreeCache(d.src, treeCache)
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	var trash []string
	err := d.store.View(func(tx *store.Tx) error {
		for key := range tx.Metas(trashPrefix) {
			trash = append(trash, strings.TrimPrefix(key, trashPrefix))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range trash {
		if err := errors.Join(ctx.Err(), d.emptyTrash(id)); err != nil {
			return nil, fmt.Errorf("delete the working copy %s: %w", id, err)
		}
	}
	return d, nil
}

// Close waits for what runs and closes all working copies that are open. What comes after it is refused.
func (d *Dots) Close(ctx context.Context) error {
	d.mu.Lock()
	d.closed = true
	var all []string
	for id := range d.slots {
		all = append(all, id)
	}
	d.mu.Unlock()
	var err error
	for _, id := range all {
		err = errors.Join(err, d.Release(ctx, id))
	}
	return err
}

func (d *Dots) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func (d *Dots) now() time.Time {
	if d.cfg.Now != nil {
		return d.cfg.Now()
	}
	return time.Now()
}

// Create makes a dot with the subdots named. It exists already: Conflict.
func (d *Dots) Create(ctx context.Context, n Name, o CreateOptions) (*Info, error) {
	if err := checkCreate(n, o); err != nil {
		return nil, err
	}
	r := dotRecord{
		ID: newID(), Namespace: n.Namespace, Name: n.Dot, Created: d.now().UTC(), Branch: DefaultBranch, Cache: o.Cache,
	}
	err := d.store.Update(func(tx *store.Tx) error {
		if _, ok := tx.Meta(nameKey(n)); ok {
			return errs.WithHint(exists(n), "choose another name; 'dm path -c %s.SUBDOT' gives this one another subdot", n.DotName())
		}
		if err := tx.SetMeta(nameKey(n), []byte(r.ID)); err != nil {
			return err
		}
		if err := setJSON(tx, branchKey(r.ID, r.Branch), &branchRecord{Copy: newID()}); err != nil {
			return err
		}
		return setJSON(tx, dotKey(r.ID), &r)
	})
	if err != nil {
		return nil, err
	}
	n.Branch = ""
	for _, s := range o.Subdots {
		n.Subdot = s
		if _, err := d.EnsureSubdot(ctx, n); err != nil {
			return nil, errors.Join(err, d.Delete(context.WithoutCancel(ctx), n))
		}
	}
	return d.Info(ctx, n)
}

func exists(n Name) error {
	return errs.WithHint(errs.New(errs.Conflict, "Error: %s exists already", n.DotName()), "choose another name")
}

func checkCreate(n Name, o CreateOptions) error {
	err := errors.Join(CheckNew("namespace", n.Namespace), CheckNew("dot", n.Dot))
	for _, s := range o.Subdots {
		err = errors.Join(err, CheckNew("subdot", s))
	}
	switch o.Cache {
	case "", CacheWriteback, CacheThrough:
		return err
	}
	return errs.New(errs.Usage, "unknown cache mode '%s': use writeback or through", o.Cache)
}

// Delete removes a dot with all its branches, tags and working copies. What only it held goes with the next gc.
func (d *Dots) Delete(ctx context.Context, n Name) error {
	var copies []string
	var r *dotRecord
	err := d.store.View(func(tx *store.Tx) (err error) {
		if r, err = getDot(tx, n); err != nil {
			return err
		}
		list, err := branchesOf(tx, r)
		for _, b := range list {
			copies = append(copies, b.rec.Copy)
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.destroy(ctx, copies, func(tx *store.Tx) error {
		now, err := branchesOf(tx, r)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(now, copies, func(b branchState, id string) bool { return b.rec.Copy == id }) {
			return errs.WithHint(errs.New(errs.Conflict, "the branches of dot %s have changed meanwhile", n.DotName()), "try again")
		}
		for _, b := range now {
			if err := b.remove(tx); err != nil {
				return err
			}
		}
		return r.remove(tx)
	})
}

// remove takes a branch out of the metadata.
func (b *branchState) remove(tx *store.Tx) error {
	if !b.tip.IsZero() {
		if err := tx.SetRef(b.ref(), b.tip, object.ID{}); err != nil {
			return err
		}
	}
	return tx.SetMeta(b.key(), nil)
}

// remove takes a dot without branches, its tags and what was seen of its counterparts out of the metadata.
func (r *dotRecord) remove(tx *store.Tx) error {
	left := map[string]object.ID{}
	for name, id := range tx.Refs("dots/" + r.ID + "/") {
		left[name] = id
	}
	for name, id := range left {
		if err := tx.SetRef(name, id, object.ID{}); err != nil {
			return err
		}
	}
	for _, key := range []string{nameKey(r.name()), autoKey(r.ID)} {
		if err := tx.SetMeta(key, nil); err != nil {
			return err
		}
	}
	return tx.SetMeta(dotKey(r.ID), nil)
}

// Rename gives a dot another name. The new one exists already: Conflict.
func (d *Dots) Rename(ctx context.Context, from, to Name) error {
	err := errors.Join(ctx.Err(), CheckNew("namespace", to.Namespace), CheckNew("dot", to.Dot))
	if err != nil {
		return err
	}
	return d.store.Update(func(tx *store.Tx) error {
		r, err := getDot(tx, from)
		if err != nil {
			return err
		}
		if _, ok := tx.Meta(nameKey(to)); ok {
			return exists(to)
		}
		if err := tx.SetMeta(nameKey(from), nil); err != nil {
			return err
		}
		if err := tx.SetMeta(nameKey(to), []byte(r.ID)); err != nil {
			return err
		}
		r.Namespace, r.Name = to.Namespace, to.Dot
		return setJSON(tx, dotKey(r.ID), r)
	})
}

// updateDot changes a dot's record.
func (d *Dots) updateDot(ctx context.Context, n Name, change func(tx *store.Tx, r *dotRecord) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.store.Update(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		if err := change(tx, r); err != nil {
			return err
		}
		return setJSON(tx, dotKey(r.ID), r)
	})
}

// SetUpstream sets a dot's counterpart at a remote; an empty name removes it.
func (d *Dots) SetUpstream(ctx context.Context, n Name, u Upstream) error {
	if err := CheckName("remote", u.Remote); err != nil {
		return err
	}
	if u.Name != "" {
		if _, err := ParseDotName(u.Name); err != nil {
			return err
		}
	}
	return d.updateDot(ctx, n, func(_ *store.Tx, r *dotRecord) error {
		var list []Upstream
		for _, old := range r.Upstreams {
			if old.Remote != u.Remote {
				list = append(list, old)
			}
		}
		if u.Name != "" {
			list = append(list, u)
		}
		r.Upstreams = list
		return nil
	})
}

// Info says what is known about a dot.
func (d *Dots) Info(ctx context.Context, n Name) (info *Info, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		info = &Info{
			ID: r.ID, Namespace: r.Namespace, Name: r.Name, Created: r.Created, Branch: r.Branch, Cache: r.Cache,
			Upstreams: append([]Upstream{}, r.Upstreams...), Tags: tagsOf(tx, r), Lazy: r.Origin != nil,
		}
		info.Branches, err = branchModels(tx, r)
		return err
	})
	return info, err
}

// Names returns all dots in order, the own namespace's first.
func (d *Dots) Names(ctx context.Context) ([]Name, error) {
	var own, others []Name
	err := d.store.View(func(tx *store.Tx) error {
		for key := range tx.Metas(namePrefix) {
			ns, dot, _ := strings.Cut(strings.TrimPrefix(key, namePrefix), "/")
			if n := (Name{Namespace: ns, Dot: dot}); ns == DefaultNamespace {
				own = append(own, n)
			} else {
				others = append(others, n)
			}
		}
		return ctx.Err()
	})
	return append(own, others...), err
}

package dot

import (
	"context"
	"encoding/json"
	"slices"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// A lazy dot is a clone of whose commits the store has the records and what has been read so far. Its commits are partial
// (package store); where the rest is, the dot's record says. What is committed on top of a partial commit is partial, too,
// until Complete says that all is here.

// Origins returns where the lazy dots of a store read from what is not here, each once.
func Origins(st *store.Store) ([]Origin, error) {
	var list []Origin
	err := st.View(func(tx *store.Tx) error {
		for key, value := range tx.Metas(dotKey("")) {
			var r dotRecord
			if err := json.Unmarshal(value, &r); err != nil {
				return errs.New(errs.Damaged, "metadata %s cannot be read: %w", key, err)
			}
			if r.Origin != nil && !slices.Contains(list, *r.Origin) {
				list = append(list, *r.Origin)
			}
		}
		return nil
	})
	return list, err
}

// Origin returns where a lazy dot reads from; nil for one that is not lazy.
func (d *Dots) Origin(ctx context.Context, n Name) (o *Origin, err error) {
	err = d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		o = r.Origin
		return ctx.Err()
	})
	return o, err
}

// SetOrigin changes where a lazy dot reads from: another key, another address. A dot that is not lazy stays so.
func (d *Dots) SetOrigin(ctx context.Context, n Name, o Origin) error {
	return d.updateDot(ctx, n, func(_ *store.Tx, r *dotRecord) error {
		if r.Origin != nil {
			r.Origin = &o
		}
		return nil
	})
}

// Partial returns those commits of a dot, of all its branches and tags and of what was seen of its counterparts, of which not
// all is here.
func (d *Dots) Partial(ctx context.Context, n Name) (list []object.ID, err error) {
	t, err := d.Tips(ctx, n)
	if err != nil {
		return nil, err
	}
	var all []object.ID
	err = d.records(ctx, t.All(), func(id object.ID, _ *object.Commit) error { all = append(all, id); return nil })
	if err != nil {
		return nil, err
	}
	err = d.store.View(func(tx *store.Tx) error {
		for _, id := range all {
			if tx.Partial(id) {
				list = append(list, id)
			}
		}
		return nil
	})
	return list, err
}

// Complete notes that commits are here with all they need; with them, the dot is not lazy any more. It is a Conflict where the
// dot has got another partial commit meanwhile.
func (d *Dots) Complete(ctx context.Context, n Name, whole []object.ID) error {
	return d.updateDot(ctx, n, func(tx *store.Tx, r *dotRecord) error {
		for _, id := range whole {
			if err := tx.SetWhole(id); err != nil {
				return err
			}
		}
		for _, tip := range tx.Refs("dots/" + r.ID + "/") {
			if tx.Partial(tip) {
				return errs.WithHint(errs.New(errs.Conflict, "dot %s has got another commit meanwhile", r.name().DotName()),
					"run 'dm pull --complete' again")
			}
		}
		r.Origin = nil
		return nil
	})
}

// AddRecords stores the records of commits, parents first, whose content is at a remote.
func (d *Dots) AddRecords(ctx context.Context, records [][]byte) (release func(), err error) {
	b, err := d.store.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer b.Abort()
	var ids []object.ID
	for _, plain := range records {
		id, err := b.Put(ctx, object.KindCommit, plain)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	var pins []func()
	release = func() {
		for _, unpin := range pins {
			unpin()
		}
	}
	_, err = b.Commit(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			if err := tx.SetPartial(id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		pins = append(pins, d.store.Pin(id))
	}
	return release, nil
}

// HasRecord says whether the record of a commit is here, and what it needs is here or at an origin: so that a lazy dot can
// be at it.
func (d *Dots) HasRecord(ctx context.Context, id object.ID) (bool, error) {
	ok, err := d.store.Has(id)
	if err != nil || ok {
		return ok, err
	}
	err = d.store.View(func(tx *store.Tx) error {
		ok = tx.Partial(id)
		return ctx.Err()
	})
	return ok, err
}

package store

import (
	"context"

	"dm/object"
)

// affected names the commits and paths that need what cannot be read. It walks once more, into those objects only that
// have something unreadable below them.
func (c *check) affected(ctx context.Context) error {
	if len(c.report.unreadable) == 0 {
		return nil
	}
	w := &affectedWalk{check: c, below: map[object.ID]bool{}}
	done := map[object.ID]bool{} // commits
	for _, t := range c.tips {
		todo := []object.ID{t.id}
		for len(todo) > 0 {
			id := todo[0]
			todo = todo[1:]
			if done[id] {
				continue
			}
			done[id] = true
			parents, err := w.commit(ctx, t.ref, id)
			if err != nil {
				return err
			}
			todo = append(todo, parents...)
		}
	}
	return nil
}

type affectedWalk struct {
	*check
	below map[object.ID]bool // whether something unreadable is at or below an object
}

// commit names what is affected of one commit and returns its parents.
func (w *affectedWalk) commit(ctx context.Context, ref string, id object.ID) (parents []object.ID, err error) {
	refs, ok := w.references(ctx, object.Reference{Kind: object.KindCommit, ID: id})
	if !ok {
		w.name(Affected{ref, id.String(), "", id.String()})
		return nil, ctx.Err()
	}
	for _, r := range refs {
		if r.Kind == object.KindCommit {
			parents = append(parents, r.ID)
			continue
		}
		if _, pruned := w.pruned[id]; pruned {
			continue
		}
		if bad, err := w.isBelow(ctx, r); err != nil {
			return nil, err
		} else if bad {
			if err := w.paths(ctx, ref, id, "/", r); err != nil {
				return nil, err
			}
		}
	}
	return parents, nil
}

// references returns what an object needs; ok is false where the object itself cannot be read.
func (w *affectedWalk) references(ctx context.Context, r object.Reference) (refs []object.Reference, ok bool) {
	if _, bad := w.report.unreadable[r.ID]; bad {
		return nil, false
	}
	if r.Kind == object.KindChunk {
		return nil, true
	}
	plain, err := w.s.get(ctx, r.Kind, r.ID, w.s.lookup)
	if err == nil {
		err = object.References(r.Kind, plain, func(r object.Reference) { refs = append(refs, r) })
	}
	// What is missing and should not be has been noted as unreadable: this is at a remote.
	return refs, err == nil || isUnknown(err)
}

// isBelow says whether something unreadable is at or below an object. The depth of trees is that of the paths in them.
func (w *affectedWalk) isBelow(ctx context.Context, r object.Reference) (bool, error) {
	if bad, ok := w.below[r.ID]; ok {
		return bad, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	refs, ok := w.references(ctx, r)
	bad := !ok
	for _, next := range refs {
		b, err := w.isBelow(ctx, next)
		if err != nil {
			return false, err
		}
		bad = bad || b
	}
	w.below[r.ID] = bad
	return bad, nil
}

// paths names the paths below an object, reached at path, that are affected.
func (w *affectedWalk) paths(ctx context.Context, ref string, commit object.ID, path string, r object.Reference) error {
	if _, bad := w.report.unreadable[r.ID]; bad {
		w.name(Affected{ref, commit.String(), path, r.ID.String()})
		return nil
	}
	refs, _ := w.references(ctx, r)
	for _, next := range refs {
		bad, err := w.isBelow(ctx, next)
		if err != nil {
			return err
		}
		if !bad || w.report.Truncated {
			continue
		}
		at := path
		if next.Name != "" {
			if at != "/" {
				at += "/"
			}
			at += next.Name
		}
		if err := w.paths(ctx, ref, commit, at, next); err != nil {
			return err
		}
	}
	return nil
}

func (w *affectedWalk) name(a Affected) {
	if len(w.report.Affected) >= maxAffected {
		w.report.Truncated = true
		return
	}
	w.report.Affected = append(w.report.Affected, a)
}

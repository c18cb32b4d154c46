package hub

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// missing returns those of ids that the asker has to send to the dot.
func (h *Hub) missing(ctx context.Context, who asker, name string, ids []object.ID) ([]object.ID, error) {
	s, err := h.see(ctx, who, name, readable)
	if err != nil {
		return nil, err
	}
	return h.engine.missing(ctx, s, ids)
}

// toWrite returns what the asker sees from a dot to be written, which is made if there is none.
func (h *Hub) toWrite(ctx context.Context, who asker, name string) (*sight, error) {
	if err := h.ensureDot(ctx, who, name); err != nil {
		return nil, err
	}
	s, err := h.see(ctx, who, name, writable)
	if err == nil && s.own == nil {
		err = errs.WithHint(errs.New(errs.Conflict, "dot %s was deleted meanwhile", name), "push again")
	}
	return s, err
}

// takeIn takes in a pack: all of it becomes members of the dot, or nothing.
func (h *Hub) takeIn(ctx context.Context, who asker, name string, body io.Reader) (packStats, error) {
	s, err := h.toWrite(ctx, who, name)
	if err != nil {
		return packStats{}, err
	}
	st, err := h.engine.takeIn(ctx, s, body)
	if err != nil {
		return st, fmt.Errorf("take in a pack for %s: %w", name, err)
	}
	return st, nil
}

// load writes a pack of what is wanted, as far as the asker may read it, and of what will be wanted next.
func (h *Hub) load(ctx context.Context, who asker, name string, req *hubproto.LoadRequest, out *pack.Writer) error {
	var d *dotRecord
	err := h.engine.look(ctx, func(a accounts) (err error) {
		d, err = readable(a, who, name)
		return err
	})
	if err != nil {
		return err
	}
	if d != nil {
		if err := h.engine.load(ctx, d, req, out); err != nil {
			return err
		}
	}
	return out.Close()
}

// refs returns the refs of a dot. One that the asker may not read has none, like one that does not exist.
func (h *Hub) refs(ctx context.Context, who asker, name string) (map[string]object.ID, error) {
	var d *dotRecord
	err := h.engine.look(ctx, func(a accounts) (err error) {
		d, err = readable(a, who, name)
		return err
	})
	if err != nil || d == nil {
		return nil, err
	}
	return h.engine.refs(ctx, d)
}

// move moves a ref from old to new, which all that it needs is here for.
func (h *Hub) move(ctx context.Context, who asker, name, ref string, old, new object.ID) error {
	if err := remote.CheckRef(ref); err != nil {
		return err
	}
	s, err := h.toWrite(ctx, who, name)
	if err != nil {
		return err
	}
	if old.IsZero() && !new.IsZero() {
		refs, err := h.engine.refs(ctx, s.own)
		if err != nil {
			return err
		}
		if len(refs) >= h.cfg.Limits.Refs {
			return errs.New(errs.NotAllowed, "%s has %d branches and tags, more are not allowed", name, len(refs))
		}
	}
	if err := h.engine.move(ctx, s, ref, old, new); errs.KindOf(err) == errs.Damaged {
		return errs.New(errs.NotFound, "%s has no commit %s", name, new.Short())
	} else if err != nil {
		return err
	}
	h.audit(who.name(), "ref moved", "dot", name, "ref", ref, "old", hubproto.EncodeID(old), "new", hubproto.EncodeID(new))
	return nil
}

// remove removes a dot, also one that has no refs yet. Its objects stay.
func (h *Hub) remove(ctx context.Context, who asker, name string) error {
	var d *dotRecord
	err := h.engine.change(ctx, func(a accounts) (err error) {
		if d, err = owned(a, who, name); err != nil {
			return err
		}
		return a.removeDot(name, d)
	})
	if err != nil {
		return err
	}
	h.audit(who.name(), "dot deleted", "dot", name)
	h.engine.removed(d)
	return nil
}

// listParallel is of how many dots the refs are read at a time.
const listParallel = 16

// list returns the dots that the asker may read. One without refs is no dot yet.
func (h *Hub) list(ctx context.Context, who asker) ([]hubproto.Dot, error) {
	var all []hubproto.Dot
	var recs []*dotRecord
	err := h.engine.look(ctx, func(a accounts) error {
		all, recs = nil, nil
		return eachReadable(a, who, func(name string, rec *dotRecord, may hubproto.Access) error {
			all = append(all, hubproto.Dot{Name: name, ReadOnly: may != hubproto.Write, Public: rec.Public})
			recs = append(recs, rec)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	live := make([]bool, len(all))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(listParallel)
	for i, rec := range recs {
		group.Go(func() error {
			refs, err := h.engine.refs(ctx, rec)
			live[i] = len(refs) > 0
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	list := make([]hubproto.Dot, 0, len(all))
	for i := range all {
		if live[i] {
			list = append(list, all[i])
		}
	}
	return list, nil
}

package dot

import (
	"cmp"
	"context"
	"maps"
	"slices"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Status says how the working copy of a branch differs from its commit.
func (d *Dots) Status(ctx context.Context, n Name) (*Status, error) {
	u, err := d.view(ctx, n)
	if err != nil {
		return nil, err
	}
	defer u.done()
	st, err := u.Copy.Status(ctx)
	if err != nil {
		return nil, err
	}
	local, err := u.Copy.LocalBytes(ctx)
	if err != nil {
		return nil, err
	}
	res := &Status{
		Name: u.dot.name().DotName(), Branch: u.name, Commit: hexOrEmpty(u.tip),
		Size: st.Size, Dirty: st.Dirty, Changed: st.Changed, Local: local, Subdots: []SubdotStatus{},
	}
	for _, name := range sortedKeys(st.Subdots) {
		s := st.Subdots[name]
		res.Subdots = append(res.Subdots, SubdotStatus{
			Name: name, Size: s.Size, Dirty: s.Dirty, Changed: s.Changed, Containers: []string{},
		})
	}
	return res, nil
}

// List returns a line for each dot, in the order of Names. Its cost per dot does not depend on the dot's size. A dot
// whose working copy cannot be opened has an Error in its line and does not spoil the others'.
func (d *Dots) List(ctx context.Context) ([]Listing, error) {
	names, err := d.Names(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Listing, 0, len(names))
	for _, n := range names {
		l, err := d.listing(ctx, n)
		if isNotFound(err) {
			continue // deleted just now
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			l.Error = err.Error()
		}
		list = append(list, l)
	}
	return list, nil
}

func (d *Dots) listing(ctx context.Context, n Name) (Listing, error) {
	l := Listing{Name: n.DotName(), Containers: []string{}}
	b, err := d.branch(ctx, n)
	if err != nil {
		return l, err
	}
	l.ID, l.Branch = b.dot.ID, b.name
	if l.Commits, err = d.countOf(ctx, b); err != nil {
		return l, err
	}
	u, err := d.view(ctx, n)
	if err != nil {
		return l, err
	}
	defer u.done()
	st, err := u.Copy.Status(ctx)
	l.Size, l.Dirty = st.Size, st.Dirty
	return l, err
}

package bucket

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store/pack"
)

// Addition is what becomes known to a remote with one index file: all of it at once, or nothing. It is not safe for
// concurrent use.
type Addition struct {
	r      *Remote
	f      file
	has    map[object.ID]uint8 // depth of what was added
	packAt map[object.ID]uint32
}

// Add begins an addition.
func (r *Remote) Add() *Addition {
	return &Addition{
		r: r, f: file{parents: map[object.ID][]object.ID{}}, has: map[object.ID]uint8{}, packAt: map[object.ID]uint32{},
	}
}

// Pack stores a pack. Its objects are known when the addition is committed.
func (a *Addition) Pack(ctx context.Context, p *remote.Pack) error {
	if err := a.r.create(ctx); err != nil {
		return err
	}
	if remote.PackName(p.Data) != p.Name {
		return errs.New(errs.Damaged, "store pack %s: its bytes have another name", p.Name.Short())
	}
	f, err := a.r.indexOf(p)
	if err != nil {
		return err
	}
	if err := a.r.b.Put(ctx, packKey(p.Name), p.Data); err != nil {
		return fmt.Errorf("store pack %s: %w", p.Name.Short(), err)
	}
	for i := range f.locs {
		a.enter(f.locs[i], f)
	}
	return nil
}

// Share adds objects of another remote whose packs are in the same bucket, so that nothing is copied. It returns those
// that cannot be shared: what is stored as a delta is only of use to who has the base, and where that is at the end of a long
// chain of its own, the chain would become too long.
func (a *Addition) Share(from *Remote, ids []object.ID) (rest []object.ID) {
	from.refresh.RLock()
	defer from.refresh.RUnlock()
	todo := ids
	for len(todo) > 0 {
		var later []object.ID
		for _, id := range todo {
			l, ok := from.index.find(id)
			if ok && l.base != 0 {
				var depth int
				depth, ok = a.depth(from.index.bases[l.base-1])
				ok = ok && depth < remote.MaxChain
				l.depth = uint8(depth + 1)
			}
			if !ok {
				later = append(later, id)
				continue
			}
			a.enter(l, &from.index.file)
		}
		if len(later) == len(todo) {
			return later
		}
		todo = later // a base may have come after its delta
	}
	return nil
}

// depth says whether the remote knows an object, or will with this addition, and how many records it takes above one without
// a base.
func (a *Addition) depth(id object.ID) (int, bool) {
	if d, ok := a.has[id]; ok {
		return int(d), true
	}
	_, d, ok := a.r.Head(id)
	return d, ok
}

// enter takes over an entry of f.
func (a *Addition) enter(l loc, f *file) {
	if _, ok := a.has[l.id]; ok {
		return
	}
	a.has[l.id] = l.depth
	name := f.packs[l.pack]
	at, ok := a.packAt[name]
	if !ok {
		at = uint32(len(a.f.packs))
		a.packAt[name] = at
		a.f.packs = append(a.f.packs, name)
	}
	l.pack = at
	if l.base != 0 {
		a.f.bases = append(a.f.bases, f.bases[l.base-1])
		l.base = uint32(len(a.f.bases))
	}
	if parents, ok := f.parents[l.id]; ok {
		a.f.parents[l.id] = parents
	}
	a.f.locs = append(a.f.locs, l)
}

// Commit makes known what was added. Without anything it does nothing.
func (a *Addition) Commit(ctx context.Context) error {
	if len(a.f.locs) == 0 {
		return nil
	}
	if err := a.r.create(ctx); err != nil {
		return err
	}
	slices.SortFunc(a.f.locs, func(x, y loc) int { return bytes.Compare(x.id[:], y.id[:]) })
	data := a.f.encode()
	name := remote.PackName(data)
	if err := a.r.b.Put(ctx, indexKey(name), data); err != nil {
		return fmt.Errorf("store index %s: %w", name.Short(), err)
	}
	a.r.keep(name, data)
	a.r.refresh.Lock()
	defer a.r.refresh.Unlock()
	a.r.index.add(read{name, &a.f})
	return nil
}

// Refresh reads what became known since the index was read.
func (r *Remote) Refresh(ctx context.Context) error { return r.readIndex(ctx) }

// Kind says whether an object is known, and its kind. It looks at nothing outside of this process.
func (r *Remote) Kind(id object.ID) (object.Kind, bool) {
	r.refresh.RLock()
	defer r.refresh.RUnlock()
	l, ok := r.index.find(id)
	return object.Kind(l.kind), ok
}

// Head returns what is known of an object's record without reading it, and how many records it takes to read it.
func (r *Remote) Head(id object.ID) (h pack.Head, depth int, ok bool) {
	r.refresh.RLock()
	defer r.refresh.RUnlock()
	l, ok := r.index.find(id)
	if !ok {
		return h, 0, false
	}
	h = pack.Head{
		Kind: object.Kind(l.kind), Encoding: pack.Encoding(l.enc), PlainLen: int(l.plain), PayloadLen: int(l.payload), ID: id,
	}
	if l.base != 0 {
		h.Base = r.index.bases[l.base-1]
	}
	return h, int(l.depth), true
}

// All returns the objects that are known.
func (r *Remote) All() iter.Seq2[object.ID, object.Kind] {
	return func(yield func(object.ID, object.Kind) bool) {
		r.refresh.RLock()
		defer r.refresh.RUnlock()
		for i := range r.index.locs {
			if l := &r.index.locs[i]; !yield(l.id, object.Kind(l.kind)) {
				return
			}
		}
	}
}

// Len returns the number of objects known, each of which takes some sixty bytes of memory, and of index files.
func (r *Remote) Len() (objects, files int) {
	r.refresh.RLock()
	defer r.refresh.RUnlock()
	return len(r.index.locs), len(r.index.files)
}

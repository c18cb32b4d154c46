package bucket

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store/pack"
)

const (
	maxGap   = 128 << 10 // bytes between two records that are read rather than asked for around
	maxRange = 8 << 20   // default of Options.Range
	parallel = 8         // default of Options.Parallel
)

// Load reads the records wanted, neighbors with one request. Where a commit, list or tree is wanted, the others of its
// pack are likely to be wanted next: they were pushed together. The history of a commit is in the index.
func (d *dot) Load(ctx context.Context, req remote.Request, fn func(r *pack.Record) error) error {
	locs, packs, complete := d.locate(req)
	if !complete {
		if err := d.r.readIndex(ctx); err != nil {
			return err
		}
		locs, packs, _ = d.locate(req)
	}
	return d.r.readAll(ctx, locs, packs, fn)
}

// Read calls fn, not concurrently, with the record of each object of ids that is known, and of no other. A record is valid
// until fn returns and has been compared with nothing.
func (r *Remote) Read(ctx context.Context, ids []object.ID, fn func(rec *pack.Record) error) error {
	r.refresh.RLock()
	var locs []loc
	for _, id := range ids {
		if l, ok := r.index.find(id); ok {
			locs = append(locs, l)
		}
	}
	packs := r.index.packs // is only ever appended to
	r.refresh.RUnlock()
	slices.SortFunc(locs, byPlace)
	return r.readAll(ctx, slices.CompactFunc(locs, func(a, b loc) bool { return a.id == b.id }), packs, fn)
}

// readAll reads what is at the places given, which are in order.
func (r *Remote) readAll(ctx context.Context, locs []loc, packs []object.ID, fn func(rec *pack.Record) error) error {
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(r.opts.Parallel)
	for len(locs) > 0 && gctx.Err() == nil {
		n := stretch(locs, r.opts.Range)
		part := locs[:n]
		locs = locs[n:]
		group.Go(func() error {
			name := packs[part[0].pack]
			if err := r.readStretch(gctx, name, part, &mu, fn); err != nil {
				return fmt.Errorf("read pack %s: %w", name.Short(), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// stretch says how many entries, in order of places, are read with one request.
func stretch(locs []loc, limit int64) int {
	start, end := int64(locs[0].off), int64(locs[0].off)+locs[0].recordLen()
	for i := 1; i < len(locs); i++ {
		l := &locs[i]
		if l.pack != locs[0].pack || int64(l.off) > end+maxGap || int64(l.off)+l.recordLen()-start > limit {
			return i
		}
		end = max(end, int64(l.off)+l.recordLen())
	}
	return len(locs)
}

// readStretch reads records that are close to each other.
func (r *Remote) readStretch(ctx context.Context, name object.ID, locs []loc, mu *sync.Mutex, fn func(*pack.Record) error) error {
	start := int64(locs[0].off)
	end := start
	for i := range locs {
		end = max(end, int64(locs[i].off)+locs[i].recordLen())
	}
	data, err := r.b.GetRange(ctx, packKey(name), start, end-start)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	for i := range locs {
		l := &locs[i]
		rec, err := pack.ParseRecord(data[int64(l.off)-start:])
		if err != nil {
			return err
		}
		if rec.ID != l.id {
			return errs.New(errs.Damaged, "object %s is at %d where the index says %s", rec.ID.Short(), l.off, l.id.Short())
		}
		if err := fn(&rec); err != nil {
			return err
		}
	}
	return nil
}

// locate finds where what is wanted is, and what else to read with it, in order of places. complete says that all that is
// wanted was found.
func (d *dot) locate(req remote.Request) (locs []loc, packs []object.ID, complete bool) {
	d.r.refresh.RLock()
	defer d.r.refresh.RUnlock()
	t := d.r.index
	complete = true
	near := map[uint32]bool{} // packs whose lists and trees are read
	taken := map[object.ID]bool{}
	take := func(id object.ID) (loc, bool) {
		l, ok := t.find(id)
		if ok && !taken[id] {
			taken[id] = true
			locs = append(locs, l)
		}
		return l, ok
	}
	var commits []object.ID
	for _, w := range req.Wants {
		l, ok := take(w.ID)
		complete = complete && ok
		switch {
		case !ok || w.Kind == object.KindChunk:
		case w.Kind == object.KindCommit:
			commits = append(commits, w.ID)
		default:
			near[l.pack] = true
		}
	}
	extra := int64(0)
	more := func(id object.ID) bool {
		if l, ok := t.find(id); !ok || taken[id] || extra+l.recordLen() > remote.MaxExtra {
			return false
		} else {
			extra += l.recordLen()
		}
		take(id)
		return true
	}
	t.history(commits, req.Haves, more)
	if len(near) > 0 {
		for i := range t.locs {
			if l := &t.locs[i]; object.Kind(l.kind) != object.KindChunk && near[l.pack] {
				more(l.id)
			}
		}
	}
	slices.SortFunc(locs, byPlace)
	return locs, t.packs, complete
}

// history calls more for the ancestors of commits, as far as they are not those of haves, until it says no.
func (t *table) history(commits, haves []object.ID, more func(object.ID) bool) {
	stop := map[object.ID]bool{}
	for _, id := range haves {
		stop[id] = true
	}
	queue := commits
	for len(queue) > 0 {
		id := queue[0]
		queue = queue[1:]
		for _, p := range t.parents[id] {
			if !stop[p] && more(p) {
				queue = append(queue, p)
			}
			stop[p] = true
		}
	}
}

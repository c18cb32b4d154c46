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
	maxRange = 8 << 20   // bytes of one request, unless one record has more
	parallel = 8         // requests of one Load at a time
)

// Load reads the records wanted, neighbors with one request. Where a commit, list or tree is wanted, the others of its
// pack are likely to be wanted next: they were pushed together. The history of a commit is in the index.
func (d *dot) Load(ctx context.Context, req remote.Request, fn func(r *pack.Record) error) error {
	if err := d.update(ctx, false); err != nil {
		return err
	}
	locs, packs, complete := d.locate(req)
	if !complete {
		if err := d.update(ctx, true); err != nil {
			return err
		}
		locs, packs, _ = d.locate(req)
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for len(locs) > 0 {
		n := stretch(locs)
		part := locs[:n]
		locs = locs[n:]
		group.Go(func() error {
			name := packs[part[0].pack]
			if err := d.readStretch(ctx, name, part, &mu, fn); err != nil {
				return fmt.Errorf("read pack %s: %w", name.Short(), err)
			}
			return nil
		})
	}
	return group.Wait()
}

// stretch says how many entries, in order of places, are read with one request.
func stretch(locs []loc) int {
	start, end := int64(locs[0].off), int64(locs[0].off)+locs[0].recordLen()
	for i := 1; i < len(locs); i++ {
		l := &locs[i]
		if l.pack != locs[0].pack || int64(l.off) > end+maxGap || int64(l.off)+l.recordLen()-start > maxRange {
			return i
		}
		end = max(end, int64(l.off)+l.recordLen())
	}
	return len(locs)
}

// readStretch reads records that are close to each other.
func (d *dot) readStretch(ctx context.Context, name object.ID, locs []loc, mu *sync.Mutex, fn func(r *pack.Record) error) error {
	start := int64(locs[0].off)
	end := start
	for i := range locs {
		end = max(end, int64(locs[i].off)+locs[i].recordLen())
	}
	data, err := d.r.b.GetRange(ctx, packKey(name), start, end-start)
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
	for i := range t.locs {
		if l := &t.locs[i]; len(near) > 0 && near[l.pack] && object.Kind(l.kind) != object.KindChunk {
			more(l.id)
		}
	}
	slices.SortFunc(locs, byPlace)
	return locs, slices.Clone(t.packs), complete
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

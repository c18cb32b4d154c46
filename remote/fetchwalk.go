package remote

import (
	"context"
	"fmt"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// fetchWalk walks the trees and lists of new commits depth first, so that it has few of them in hand, and many at a time,
// so that latency counts little.
type fetchWalk struct {
	f     *fetcher
	out   chan<- []node
	stack []node
	seen  idSet // chunks found

	hand      []node // chunks that go out next
	handBytes uint64
}

func (w *fetchWalk) run(ctx context.Context) error {
	for len(w.stack) > 0 {
		batch, err := w.take(ctx)
		if err != nil {
			return err
		}
		var wants []Want
		byID := map[object.ID]*node{}
		for i := range batch {
			n := &batch[i]
			has, err := w.f.guard.Has(n.ID)
			if err != nil {
				return err
			}
			if has {
				if err := w.local(ctx, n); err != nil {
					return err
				}
				continue
			}
			wants = append(wants, n.Want)
			byID[n.ID] = n
		}
		if len(wants) == 0 {
			continue
		}
		err = w.f.load(ctx, wants, func(r *pack.Record, id object.ID, plain []byte) error {
			n := byID[id]
			if err := w.expand(ctx, n, plain); err != nil {
				return err
			}
			return w.f.put(ctx, r, id, n.Kind, plain)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// take takes nodes off the stack that are not known yet, some of them chunks: those go out.
func (w *fetchWalk) take(ctx context.Context) ([]node, error) {
	var batch []node
	for len(w.stack) > 0 && len(batch) < metaBatch {
		n := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		said, met := w.f.met[n.ID]
		if n.Kind == object.KindChunk && !met {
			if !w.seen.add(n.ID) {
				continue
			}
			w.handBytes += n.totals.Bytes
			if w.hand = append(w.hand, n); len(w.hand) >= chunkBatch || w.handBytes >= batchBytes {
				if err := w.send(ctx); err != nil {
					return nil, err
				}
			}
			continue
		}
		switch {
		case met && (n.nothing || n.announced == said):
			continue
		case met && !said.nothing:
			return nil, errs.New(errs.Damaged, "%s %s is announced in two ways", n.Kind, n.ID.Short())
		}
		// What was met without a word on it is looked at again when something is said.
		w.f.met[n.ID] = n.announced
		batch = append(batch, n)
	}
	return batch, nil
}

// local goes on below an object that is here already, perhaps since a Fetch that broke off: what is below it may be missing.
func (w *fetchWalk) local(ctx context.Context, n *node) error {
	plain, err := w.f.local.Get(ctx, n.Kind, n.ID)
	if err != nil {
		return err
	}
	return w.expand(ctx, n, plain)
}

func (w *fetchWalk) expand(ctx context.Context, n *node, plain []byte) error {
	below, err := expand(n, plain, func(want Want) []byte {
		b, _ := w.f.get(ctx, want.Kind, want.ID)
		return b
	})
	if err != nil {
		return fmt.Errorf("check what the remote sent: %w", err)
	}
	for i := len(below) - 1; i >= 0; i-- {
		w.stack = append(w.stack, below[i])
	}
	return nil
}

// send hands on the chunks found.
func (w *fetchWalk) send(ctx context.Context) error {
	if len(w.hand) == 0 {
		return nil
	}
	select {
	case w.out <- w.hand:
		w.hand, w.handBytes = nil, 0
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetchChunks fetches chunks until there are no more.
func (f *fetcher) fetchChunks(ctx context.Context, in <-chan []node) error {
	for {
		var nodes []node
		select {
		case n, ok := <-in:
			if !ok {
				return nil
			}
			nodes = n
		case <-ctx.Done():
			return ctx.Err()
		}
		sizes := make(map[object.ID]uint64, len(nodes))
		var wants []Want
		for _, n := range nodes {
			has, err := f.guard.Has(n.ID)
			if err != nil {
				return err
			}
			if !has {
				wants = append(wants, n.Want)
				sizes[n.ID] = n.totals.Bytes
			}
		}
		var total int64
		for _, s := range sizes {
			total += int64(s)
		}
		f.meter.update(func(p *Progress, _ *Stats) {
			p.TotalBytes += total
			p.TotalObjects += int64(len(wants))
		})
		err := f.load(ctx, wants, func(r *pack.Record, id object.ID, plain []byte) error {
			if uint64(len(plain)) != sizes[id] {
				return errs.New(errs.Damaged, "chunk %s has %d bytes where %d are announced", id.Short(), len(plain), sizes[id])
			}
			return f.put(ctx, r, id, object.KindChunk, plain)
		})
		if err != nil {
			return err
		}
	}
}

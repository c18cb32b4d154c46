package remote

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// FetchOptions tune Fetch. The zero value is right for most.
type FetchOptions struct {
	Parallel   int            // requests for chunks at a time; 0: 4
	BatchBytes int64          // what was received is made durable each time it has this size; 0: 4 MiB
	Progress   func(Progress) // told now and then, never twice at a time; may be nil
}

const (
	defaultRequests = 4
	defaultBatch    = 4 << 20

	// chunkBatch and metaBatch are how many objects one request asks for, chunks as long as they have not more than
	// batchBytes together. What is asked for when a pull is killed, and what is not durable then, travels again.
	chunkBatch = 512
	metaBatch  = 2048
	batchBytes = 8 << 20

	// maxHeld bounds the deltas of one request that wait for their bases, and those bases, in bytes. With chains as writers
	// make them it is not reached.
	maxHeld = 96 << 20

	// maxHistory bounds the commits of one Fetch, in bytes: millions of them.
	maxHistory = 1 << 30

	// maxAhead bounds what is kept of records that nobody asked for yet, in bytes.
	maxAhead = 64 << 20

	// chainLimit is where a chain of deltas is given up. Writers stay far below.
	chainLimit = 64
)

// Fetch brings the commits of tips, with all that they need, into the local store. haves are commits of the same history
// that are there already: what they hold is not asked for. Nothing is believed: each object is compared with its id and with
// what is announced of it, and commits become part of the store after everything that they need. What arrived before an
// error stays, without a commit that leads to it, and the next Fetch asks only for the rest.
//
// All that was fetched is safe from gc until release is called: move the branch before.
func Fetch(ctx context.Context, local Local, from Objects, tips, haves []object.ID, o FetchOptions) (_ Stats, release func(), err error) {
	f, err := newFetcher(ctx, local, from, haves, o)
	if err != nil {
		return Stats{}, nil, err
	}
	defer f.codec.Close()
	if err := f.run(ctx, tips); err != nil {
		f.keep()
		f.guard.Abort()
		return f.meter.total(), nil, err
	}
	return f.meter.total(), f.guard.Abort, nil
}

// newFetcher opens what a fetcher needs: guard and batch end with the caller, and so does codec.
func newFetcher(ctx context.Context, local Local, from Objects, haves []object.ID, o FetchOptions) (*fetcher, error) {
	if o.Parallel == 0 {
		o.Parallel = defaultRequests
	}
	if o.BatchBytes == 0 {
		o.BatchBytes = defaultBatch
	}
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		return nil, err
	}
	f := &fetcher{
		local: local, from: from, haves: haves, opts: o, codec: codec, meter: meter{tell: o.Progress},
		commits: map[object.ID]*fetched{}, ahead: map[object.ID]pack.Record{}, met: map[object.ID]announced{},
	}
	if f.guard, err = local.Begin(ctx); err != nil {
		codec.Close()
		return nil, err
	}
	if f.batch, err = local.Begin(ctx); err != nil {
		f.guard.Abort()
		codec.Close()
		return nil, err
	}
	return f, nil
}

// fetched is a commit that the local store does not have yet.
type fetched struct {
	*object.Commit
	plain []byte
}

// fetcher is one run of Fetch. Its own goroutine fetches commits, trees and lists; others fetch chunks.
type fetcher struct {
	local   Local
	from    Objects
	haves   []object.ID
	opts    FetchOptions
	codec   *pack.Codec
	meter   meter
	commits map[object.ID]*fetched
	guard   Batch                   // keeps what was fetched, and what was found, from gc
	met     map[object.ID]announced // lists and trees
	enough  int                     // bytes of what was not asked for, after which a load ends that has all it needs; 0: no limit

	aheadMu    sync.Mutex
	ahead      map[object.ID]pack.Record // came without being asked for
	aheadBytes int

	turn  sync.RWMutex // held exclusively while one batch takes the place of another
	batch Batch
	mu    sync.Mutex  // guards what follows, while turn is held shared
	size  int64       // bytes in batch
	ids   []object.ID // in batch
}

func (f *fetcher) run(ctx context.Context, tips []object.ID) error {
	for _, id := range f.haves {
		if ok, err := f.guard.Has(id); err != nil {
			return fmt.Errorf("look for commit %s: %w", id.Short(), err)
		} else if !ok {
			return errs.New(errs.Usage, "fetch on top of commit %s, which is not in the local store", id.Short())
		}
	}
	// A commit that the store has is complete.
	if err := f.fetchCommits(ctx, tips, f.guard.Has); err != nil {
		return err
	}
	order := f.order(tips)
	group, gctx := errgroup.WithContext(ctx)
	chunks := make(chan []node)
	for range f.opts.Parallel {
		group.Go(func() error { return f.fetchChunks(gctx, chunks) })
	}
	group.Go(func() error {
		defer close(chunks)
		return f.walk(gctx, order, chunks)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return f.finish(ctx, order)
}

// order returns the commits fetched, parents before children.
func (f *fetcher) order(tips []object.ID) []object.ID {
	return parentsFirst(tips, func(id object.ID) ([]object.ID, bool) {
		c, ok := f.commits[id]
		if !ok {
			return nil, false
		}
		return c.Parents, true
	})
}

// fetchCommits fetches the commits that are not known, as far back as one that is.
func (f *fetcher) fetchCommits(ctx context.Context, tips []object.ID, known func(object.ID) (bool, error)) error {
	frontier := tips
	history := int64(0)
	for len(frontier) > 0 {
		var wants []Want
		for _, id := range frontier {
			if _, ok := f.commits[id]; ok {
				continue
			}
			ok, err := known(id)
			if err != nil {
				return err
			}
			if !ok {
				wants = append(wants, Want{object.KindCommit, id})
			}
		}
		frontier = nil
		for len(wants) > 0 {
			n := min(len(wants), metaBatch)
			err := f.load(ctx, wants[:n], func(_ *pack.Record, id object.ID, plain []byte) error {
				c, err := object.DecodeCommit(plain)
				if err != nil {
					return fmt.Errorf("read commit %s: %w", id.Short(), err)
				}
				if history += int64(len(plain)); history > maxHistory {
					return errs.New(errs.Damaged, "the remote sends commits of more than %d bytes", int64(maxHistory))
				}
				f.commits[id] = &fetched{c, append([]byte(nil), plain...)}
				frontier = append(frontier, c.Parents...)
				return nil
			})
			if err != nil {
				return err
			}
			wants = wants[n:]
		}
	}
	return nil
}

// walk goes over what the commits have that the ones before them have not, fetches trees and lists, and hands on chunks.
func (f *fetcher) walk(ctx context.Context, order []object.ID, chunks chan<- []node) error {
	w := &fetchWalk{f: f, out: chunks}
	// The stack's top is the oldest commit: what deltas need comes first.
	for i := len(order) - 1; i >= 0; i-- {
		c := f.commits[order[i]]
		var parents []*object.Commit
		for _, p := range c.Parents {
			if pc, ok := f.commits[p]; ok {
				parents = append(parents, pc.Commit)
			} else if pc, err := readCommit(ctx, f.local, p); err != nil {
				return err
			} else {
				parents = append(parents, pc)
			}
		}
		w.stack = append(w.stack, commitNodes(c.Commit, parents)...)
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	return w.send(ctx)
}

// keep makes durable what was received before an error, for the next Fetch.
func (f *fetcher) keep() {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.batch.Commit(context.Background()) // where that fails it is received again
	f.batch.Abort()
}

// finish puts the commits, parents first, and makes all of it durable.
func (f *fetcher) finish(ctx context.Context, order []object.ID) error {
	for _, id := range order {
		if _, err := f.batch.PutOver(ctx, object.KindCommit, f.commits[id].plain, object.ID{}); err != nil {
			return err
		}
		f.ids = append(f.ids, id)
	}
	f.meter.update(func(_ *Progress, s *Stats) { s.Commits = int64(len(order)) })
	return f.rollOver(ctx, false)
}

// rollOver makes what was received so far durable, keeps it from gc, and goes on with a new batch.
func (f *fetcher) rollOver(ctx context.Context, more bool) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	if more && f.size < f.opts.BatchBytes {
		return nil // another goroutine did it
	}
	if err := f.batch.Commit(ctx); err != nil {
		return err
	}
	for _, id := range f.ids {
		if ok, err := f.guard.Has(id); err != nil || !ok {
			return errs.WithHint(errs.New(errs.Conflict, "object %s was collected while it was being fetched", id.Short()), "try again")
		}
	}
	f.ids, f.size = f.ids[:0], 0
	if !more {
		return nil
	}
	b, err := f.local.Begin(ctx)
	if err == nil {
		f.batch = b
	}
	return err
}

// put stores an object that has been compared with its id.
func (f *fetcher) put(ctx context.Context, r *pack.Record, id object.ID, kind object.Kind, plain []byte) error {
	f.turn.RLock()
	err := f.putInto(ctx, r, id, kind, plain)
	full := false
	if err == nil {
		f.mu.Lock() // and turn: what is noted is in this batch, not in the next one
		f.ids = append(f.ids, id)
		f.size += int64(len(plain))
		full = f.size >= f.opts.BatchBytes
		f.mu.Unlock()
	}
	f.turn.RUnlock()
	if err != nil {
		return err
	}
	if full {
		return f.rollOver(ctx, true)
	}
	return nil
}

func (f *fetcher) putInto(ctx context.Context, r *pack.Record, id object.ID, kind object.Kind, plain []byte) error {
	if sink, ok := f.batch.(recordSink); ok {
		return sink.PutRecord(ctx, r, plain)
	}
	got, err := f.batch.PutOver(ctx, kind, plain, r.Base)
	if err == nil && got != id {
		err = errs.New(errs.Internal, "stored object %s under id %s", id.Short(), got.Short())
	}
	return err
}

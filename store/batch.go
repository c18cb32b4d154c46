package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// Stats says what a batch did.
type Stats struct {
	Objects    int   // put, each as often as it was
	NewObjects int   // that were not in the store before
	PlainBytes int64 // of the objects put
	// StoredBytes is what the new objects take in packs.
	StoredBytes int64
}

// Batch takes in objects that become part of the store all at once, with Commit, or not at all. It is an object.Sink and
// an object.Source that also knows its own objects. All methods are safe for concurrent use. What is in an open batch,
// and what it found to be in the store already, is safe from gc. Every batch ends with Commit or Abort; Abort after Commit
// does nothing.
type Batch struct {
	s   *Store
	out appender

	// life is held shared by each call that puts or reads, and exclusively by Commit and Abort.
	life sync.RWMutex
	done bool

	mu      sync.Mutex
	written sync.Cond              // signaled when an object is written, with mu
	index   map[object.ID]int32    // into items; pending while its record is being written
	items   []item                 // in the order they were written, so that bases come first
	used    map[object.ID]struct{} // in the store already; this batch relies on them
	stats   Stats
	err     error // why the batch cannot be committed
}

type item struct {
	id object.ID
	e  entry
}

const pending = -1

// Begin opens a batch. It fails with errs.NoSpace if the disk has less free than Options.MinFree, as do batches that come
// to that.
func (s *Store) Begin(ctx context.Context) (*Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.usable(); err != nil {
		return nil, err
	}
	if err := s.reserve(); err != nil {
		return nil, err
	}
	b := &Batch{s: s, out: appender{s: s, reserve: true}, index: map[object.ID]int32{}, used: map[object.ID]struct{}{}}
	b.written.L = &b.mu
	s.mu.Lock()
	s.batches[b] = struct{}{}
	s.mu.Unlock()
	return b, nil
}

// Put stores an object and returns its id. It does not keep plain.
func (b *Batch) Put(ctx context.Context, kind object.Kind, plain []byte) (object.ID, error) {
	return b.PutOver(ctx, kind, plain, object.ID{})
}

// PutOver is Put with a hint: old is the object that stood in the same place before, and may be zero or missing. If the
// two have much in common, the new one is stored as a delta.
func (b *Batch) PutOver(ctx context.Context, kind object.Kind, plain []byte, old object.ID) (object.ID, error) {
	if err := ctx.Err(); err != nil {
		return object.ID{}, err
	}
	if !kind.Valid() || len(plain) > object.MaxSize {
		return object.ID{}, errs.New(errs.Usage, "cannot store an object of kind %d with %d bytes", kind, len(plain))
	}
	b.life.RLock()
	defer b.life.RUnlock()
	id := object.Sum(kind, plain)
	mine, err := b.claim(id, len(plain))
	if err != nil || !mine {
		return id, err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	rec, e := b.encode(ctx, (*buf)[:0], kind, id, plain, old)
	*buf = rec
	return id, b.write(id, e, rec)
}

// buffers holds records while they are written.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// claim counts an object and says whether the caller is the one to write it.
func (b *Batch) claim(id object.ID, size int) (mine bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.state(); err != nil {
		return false, err
	}
	b.stats.Objects++
	b.stats.PlainBytes += int64(size)
	if _, ok := b.index[id]; ok {
		return false, nil
	}
	has, err := b.use(id)
	if err != nil || has {
		return false, err
	}
	b.index[id] = pending
	return true, nil
}

// use says whether the store has an object, and keeps gc from it if so. Called with mu held.
func (b *Batch) use(id object.ID) (bool, error) {
	if _, ok := b.used[id]; ok {
		return true, nil
	}
	b.s.sweep.RLock()
	defer b.s.sweep.RUnlock()
	has, err := b.s.Has(id)
	if has {
		b.used[id] = struct{}{}
	}
	return has, err
}

// Has says whether an object is in the store or in this batch. If it is, it stays there while the batch is open.
func (b *Batch) Has(id object.ID) (bool, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.state(); err != nil {
		return false, err
	}
	if _, ok := b.index[id]; ok {
		return true, nil
	}
	return b.use(id)
}

// state returns why the batch takes nothing more. Called with mu held.
func (b *Batch) state() error {
	if b.done {
		return errs.New(errs.Internal, "batch is closed")
	}
	return b.err
}

// encode makes the record of an object, a delta where that is worth it.
func (b *Batch) encode(ctx context.Context, buf []byte, kind object.Kind, id object.ID, plain []byte, old object.ID) ([]byte, entry) {
	if base := b.base(ctx, kind, old, len(plain)); base.limit > 0 && base.id != id {
		rec, h := b.s.codec.AppendOver(buf, kind, id, plain, base.id, base.plain, base.limit)
		e := entryOf(&h)
		if h.Encoding.HasBase() {
			e.depth = base.depth + 1
		}
		return rec, e
	}
	rec, h := b.s.codec.Append(buf, kind, id, plain)
	return rec, entryOf(&h)
}

func entryOf(h *pack.Head) entry {
	return entry{kind: h.Kind, enc: h.Encoding, payload: h.PayloadLen, plain: h.PlainLen, base: h.Base}
}

// minDelta is the size from which on deltas are tried, in bytes.
const minDelta = 512

// base is what a delta can be made against.
type base struct {
	id    object.ID
	plain []byte
	depth uint8
	limit int // bytes that the delta may take to be worth it; 0: there is no base
}

// base looks for a base of an object of size bytes that takes old's place. Where the chain below old is at its full length
// already, the base is the chain's root: what has changed since then is often still little, and the new chain begins at
// depth 1.
func (b *Batch) base(ctx context.Context, kind object.Kind, old object.ID, size int) base {
	if old.IsZero() || size < minDelta {
		return base{}
	}
	e, root, ok := b.candidate(old)
	if !ok || e.kind != kind {
		return base{}
	}
	if e.depth >= maxDepth {
		old, e = root.id, root.e
	}
	// Damage of the base is no reason to fail: the object is stored whole.
	plain, err := b.get(ctx, kind, old)
	if err != nil || root.e.plain == 0 {
		return base{}
	}
	// The root's size tells what the object would take by itself.
	alone := int64(root.e.payload) * int64(size) / int64(root.e.plain)
	return base{old, plain, e.depth, int(alone * 3 / 4)}
}

// candidate looks for an object to be a base, and for the root of the chain below it, and keeps gc from all of the chain.
// There is no base where a part of the chain is hidden: what is hidden may be stored once more just now, and must not come to
// stand above what is a delta of it.
func (b *Batch) candidate(id object.ID) (e entry, root link, ok bool) {
	e, ok = b.keep(id)
	root = link{id, e}
	for n := 0; ok && root.e.enc.HasBase(); n++ {
		root.id = root.e.base
		root.e, ok = b.keep(root.id)
		ok = ok && n <= chainLimit
	}
	return e, root, ok
}

// keep looks for an object that is written, in the store or in this batch, and keeps gc from it.
func (b *Batch) keep(id object.ID) (entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.index[id]; ok {
		if i == pending {
			return entry{}, false
		}
		return b.items[i].e, true
	}
	if has, err := b.use(id); err != nil || !has {
		return entry{}, false
	}
	e, ok, err := b.s.lookup(id)
	return e, ok && err == nil
}

// write appends a record to a pack and makes the object known in the batch.
func (b *Batch) write(id object.ID, e entry, rec []byte) error {
	num, off, err := b.out.append(rec)
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.written.Broadcast()
	if err != nil {
		if b.err == nil {
			b.err = errs.New(errs.KindOf(err), "write object %s: %w", id.Short(), err)
		}
		return b.err
	}
	e.pack, e.off = num, off
	b.index[id] = int32(len(b.items))
	b.items = append(b.items, item{id, e})
	b.stats.StoredBytes += int64(len(rec))
	return nil
}

// Get returns an object of the store or of this batch, as Store.Get does.
func (b *Batch) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	b.life.RLock()
	defer b.life.RUnlock()
	b.mu.Lock()
	err := b.state()
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return b.get(ctx, kind, id)
}

// get reads an object. The batch's own do not go into the store's cache: they may come to nothing.
func (b *Batch) get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	b.mu.Lock()
	_, own := b.index[id]
	b.mu.Unlock()
	if own {
		return b.s.load(ctx, kind, id, b.find)
	}
	return b.s.get(ctx, kind, id, b.find)
}

// find looks in the batch and then in the store. It waits for an object that is being written.
func (b *Batch) find(id object.ID) (entry, bool, error) {
	b.mu.Lock()
	for b.index[id] == pending && b.err == nil {
		b.written.Wait()
	}
	i, ok := b.index[id]
	if err := b.err; ok && i == pending {
		b.mu.Unlock()
		return entry{}, false, err
	}
	if ok {
		defer b.mu.Unlock()
		return b.items[i].e, true, nil
	}
	b.mu.Unlock()
	return b.s.lookup(id)
}

// Commit makes the batch's objects part of the store, in one transaction with what fn does to refs and metadata; fn may
// be nil, and uses nothing of the store and the batch but tx. If anything fails, fn included, nothing has happened and the
// batch is closed. Calls that are still putting are waited for.
func (b *Batch) Commit(ctx context.Context, fn func(tx *Tx) error) (Stats, error) {
	b.life.Lock()
	defer b.life.Unlock()
	if b.done {
		return Stats{}, b.state()
	}
	stats, err := b.commit(ctx, fn)
	b.close(err == nil)
	if err != nil {
		return Stats{}, err
	}
	return stats, nil
}

func (b *Batch) commit(ctx context.Context, fn func(tx *Tx) error) (stats Stats, err error) {
	if err := errors.Join(b.err, ctx.Err(), b.s.usable()); err != nil {
		return stats, err
	}
	if err := b.out.sync(); err != nil {
		return stats, errs.New(errs.KindOf(err), "commit: %w", err)
	}
	err = b.s.update(func(tx *Tx) error {
		stats = b.stats
		if err := b.enter(tx, &stats); err != nil {
			return err
		}
		if fn == nil {
			return nil
		}
		return fn(tx)
	})
	return stats, err
}

// enter adds the batch's packs and objects to the index. An object that another batch has brought in meanwhile stays where
// that one put it.
func (b *Batch) enter(tx *Tx, stats *Stats) error {
	if err := b.out.enter(tx); err != nil {
		return err
	}
	objects := tx.b.Bucket([]byte(bucketObjects))
	if err := b.setDepths(objects); err != nil {
		return err
	}
	// Keys in order spare the B+ tree from splitting and rebalancing here and there.
	if k, _ := objects.Cursor().First(); k == nil {
		// Pages that are not quite full have room for the next commits' objects, whose ids fall anywhere among these.
		objects.FillPercent = bulkFill
	}
	order := make([]int32, len(b.items))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(x, y int32) int { return bytes.Compare(b.items[x].id[:], b.items[y].id[:]) })
	var buf []byte
	for _, i := range order {
		it := &b.items[i]
		if it.e.kind == object.KindCommit {
			if err := tx.refill(it.id); err != nil {
				return err
			}
		}
		if objects.Get(it.id[:]) != nil {
			stats.StoredBytes -= int64(it.e.recordLen())
			continue
		}
		stats.NewObjects++
		if it.e.enc.HasBase() {
			b.s.tookBase(it.e.base)
		}
		start := len(buf)
		buf = it.e.encode(buf)
		if err := objects.Put(it.id[:], buf[start:len(buf):len(buf)]); err != nil {
			return err
		}
	}
	return nil
}

// bulkFill is how full the index's pages are made by a batch that is the first.
const bulkFill = 0.8

// setDepths corrects the depths of deltas in chains with an object that another batch has brought in meanwhile. Bases come
// before what needs them.
func (b *Batch) setDepths(objects *bbolt.Bucket) error {
	for i := range b.items {
		e := &b.items[i].e
		if !e.enc.HasBase() {
			continue
		}
		if v := objects.Get(e.base[:]); v != nil {
			base, err := decodeEntry(v)
			if err != nil {
				return err
			}
			e.depth = base.depth + 1
		} else if k, ok := b.index[e.base]; ok {
			e.depth = b.items[k].e.depth + 1
		} else {
			return errs.New(errs.Internal, "commit: object %s is a delta of %s, which is gone", b.items[i].id.Short(), e.base.Short())
		}
	}
	return nil
}

// Abort drops the batch's objects. After Commit or another Abort it does nothing.
func (b *Batch) Abort() {
	b.life.Lock()
	defer b.life.Unlock()
	if !b.done {
		b.close(false)
	}
}

// close gives back what the batch holds. Called with life held.
func (b *Batch) close(committed bool) {
	b.mu.Lock()
	b.done = true
	b.mu.Unlock()
	b.out.close(committed)
	b.s.mu.Lock()
	delete(b.s.batches, b)
	b.s.mu.Unlock()
}

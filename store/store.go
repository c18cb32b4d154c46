// Package store keeps all objects, branches and metadata of one machine.
//
// Objects are in packs, append-only files (package pack); where each one is, what every branch points to and the metadata
// of dots are in one bbolt file, the index. The directory of a store:
//
//	format          the version of this layout
//	lock            held while a process has the store open; holds its process id
//	index.db        bbolt: objects, packs, refs, metadata
//	journal         refs and metadata once more, so that a lost index can be made again from packs and journal
//	packs/N.pack    objects; N counts up and is never used twice
//	clean           there while the store is closed and was closed in order; see clean.go
//	quarantine/     what fsck put aside
//
// # Writing
//
// All objects come in through a Batch, which appends to packs that nobody else writes to meanwhile and makes its objects
// known with one transaction. What must happen in which order (each rule has a crash test of its name):
//
//	PackBeforeIndex     packs are synced before the index entries that point into them are committed
//	IndexBeforeRef      a ref moves in the same transaction that makes the objects known, or later
//	JournalBeforeIndex  the journal holds a change of refs or metadata, synced, before the index commits it
//	IndexBeforeRemove   a pack's file is removed after the index has committed that nothing in it is needed
//
// A crash therefore leaves the index in its old or its new state, and packs with bytes behind the end that the index knows:
// the next Open cuts them off, and removes packs that the index does not know. The journal may then be one transaction ahead; the index decides, and the journal is
// cut back. Readers go the other way: ref, index, pack.
//
// # Reading
//
// Get compares every object it reads from disk with its id. Damage is reported as such and never returned as data.
//
// # Concurrency
//
// A Store is safe for concurrent use, and many batches may be open at a time. Exactly one process has a store open.
package store

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// Options tune a store. The zero value is right for most.
type Options struct {
	CacheBytes int64      // memory for decoded objects; 0: 64 MiB
	PackBytes  int64      // a pack of this size is sealed and a new one begun; 0: 256 MiB
	MinFree    int64      // free bytes on the disk that batches leave; 0: no limit
	Level      pack.Level // of compression
}

const (
	defaultCache = 64 << 20
	defaultPack  = 256 << 20
)

// maxDepth bounds the chains of deltas that batches make.
const maxDepth = 8

// Store is an open store.
type Store struct {
	dir   string
	opts  Options
	lock  *os.File
	db    *bbolt.DB
	packs *packSet
	codec *pack.Codec
	cache *cache
	log   *journal

	txMu sync.Mutex // held by the one transaction that changes something, and its journal

	// sweep is held shared while an object that is there already is looked up and noted as used, and exclusively by a gc
	// while it decides what goes.
	sweep sync.RWMutex

	collect sync.Mutex // held by a gc
	round   int        // sweepRound; less in tests

	mu      sync.Mutex
	batches map[*Batch]struct{}
	pins    map[object.ID]int
	bases   map[object.ID]struct{} // of deltas that became part of the store since a gc began; nil: none runs

	closed atomic.Bool
	notes  []string              // what Open had to put in order
	broken atomic.Pointer[error] // why nothing can be written any more
	fail   func(point string) error
}

// Open opens the store in dir and creates it if there is none. It fails with errs.Conflict if another process has it
// open, and refuses a format that is newer than it knows. What a crash left behind is put in order.
func Open(ctx context.Context, dir string, opts Options) (*Store, error) {
	return open(ctx, dir, opts, nil)
}

// open is Open with fail called at each named point of failure, which tests replace.
func open(ctx context.Context, dir string, opts Options, fail func(string) error) (_ *Store, err error) {
	if opts.CacheBytes == 0 {
		opts.CacheBytes = defaultCache
	}
	if opts.PackBytes == 0 {
		opts.PackBytes = defaultPack
	}
	if fail == nil {
		fail = func(string) error { return nil }
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(filepath.Join(dir, "packs"), 0o700); err != nil {
		return nil, errs.New(errs.KindOf(err), "open store %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, opts: opts, lock: lock, fail: fail, cache: newCache(opts.CacheBytes),
		batches: map[*Batch]struct{}{}, pins: map[object.ID]int{}, round: sweepRound,
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := checkFormat(dir); err != nil {
		return nil, err
	}
	if s.codec, err = pack.NewCodec(opts.Level); err != nil {
		return nil, err
	}
	if err := s.openIndex(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Close closes the store. Open batches are lost, as in a crash; nothing else may be in use any more. Closing it again does
// nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	var err error
	if s.db != nil {
		err = s.db.Close()
	}
	if s.log != nil && err == nil && s.broken.Load() == nil {
		err = s.leaveClean()
	}
	if s.log != nil {
		s.log.close()
	}
	if s.packs != nil {
		s.packs.close()
	}
	if s.codec != nil {
		s.codec.Close()
	}
	s.lock.Close()
	return err
}

// breakDown makes the store refuse all further writes: after a failed sync nobody knows what is on disk until it is
// opened again.
func (s *Store) breakDown(err error) {
	s.broken.CompareAndSwap(nil, &err)
}

func (s *Store) usable() error {
	if s.closed.Load() {
		return errs.New(errs.Internal, "store %s is closed", s.dir)
	}
	if p := s.broken.Load(); p != nil {
		return errs.WithHint(errs.New(errs.KindOf(*p), "store %s does not take changes since a write failed: %w", s.dir, *p),
			"restart the server; if this comes again, look at the disk's health")
	}
	return nil
}

// Pin keeps an object, and everything it needs, from being collected until release is called. It may be pinned more than
// once. Pins do not outlive the process.
func (s *Store) Pin(id object.ID) (release func()) {
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[id]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pins[id]--; s.pins[id] == 0 {
			delete(s.pins, id)
		}
	})
}

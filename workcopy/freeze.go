package workcopy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/RoaringBitmap/roaring/v2"

	"dm/internal/errs"
	"dm/object"
)

// freezeTimeout bounds the time for which the gate stays closed: a kernel that cannot write out its cache, because the
// host's disk hangs, must not stop every volume for ever.
const freezeTimeout = 20 * time.Second

// Snapshot is a working copy as it was at one instant, for as long as it takes to make a commit of it. Writers go on;
// what they overwrite is saved first. It ends with Done or Abort.
type Snapshot struct {
	c        *Copy
	epoch    uint64
	base     object.ID          // set by collect, like commit, versions and files
	commit   *object.Commit     // the base
	nextIno  uint64             // at the cut
	dirty    map[*node]struct{} // changed before the cut; guarded by Copy.mu
	nodes    []*node            // the same, once listed; guarded by Copy.mu
	listed   bool               // guarded by Copy.mu
	pause    time.Duration
	flight   *sync.WaitGroup
	undo     *undo
	versions map[*node]*frozen       // of nodes
	entries  map[*node]*object.Entry // as Root has built them
	files    []*File
	restored []*node // regular files that were restored since the base; set by collect
	ended    bool
	done     bool // noted in the journal as having taken place; guarded by Copy.mu
	prepared object.ID
	next     *object.Commit // the commit named to Prepare
}

// Freeze fixes the content of the working copy at one instant. Writers wait for Pause at the most. The instant may be while
// another commit is being made; then Freeze returns when that one has ended, because what it has become is the base.
func (c *Copy) Freeze(ctx context.Context) (*Snapshot, error) { return c.FreezeThen(ctx, nil) }

// FreezeThen is Freeze, and calls frozen, if it is not nil, as soon as the instant is over: another commit is not waited for
// before that. It must return at once.
//
// The order is that of the measured procedure in ARCHITECTURE.md; leaving out Recall lets writes slip between the cut and
// what they depend on.
func (c *Copy) FreezeThen(ctx context.Context, frozen func()) (*Snapshot, error) {
	if err := c.cutting.lock(ctx); err != nil {
		return nil, err
	}
	defer c.cutting.unlock()
	first := !c.mayOverlap()
	if first {
		if err := c.commits.lock(ctx); err != nil {
			return nil, err
		}
	}
	s, err := c.freezeNow(ctx)
	if err == nil && frozen != nil {
		frozen()
	}
	if err == nil && !first {
		if err = c.commits.lock(ctx); err != nil {
			s.giveUp(recordWithdraw)
			return nil, err
		}
	}
	if err != nil {
		if first {
			c.commits.unlock()
		}
		return nil, err
	}
	if !s.collect() {
		s.giveUp(recordAbort)
		c.commits.unlock()
		return nil, errReadOnly
	}
	return s, nil
}

var errReadOnly = errs.New(errs.NotAllowed, "the working copy is read-only")

func (c *Copy) freezeNow(ctx context.Context) (*Snapshot, error) {
	c.mu.RLock()
	k, readonly := c.kernel, c.readonly
	c.mu.RUnlock()
	if readonly {
		return nil, errReadOnly
	}
	if k != nil {
		if err := k.Flush(ctx); err != nil {
			return nil, fmt.Errorf("flush the page cache: %w", err)
		}
	}
	c.dumping.Lock()
	defer c.dumping.Unlock()
	started := time.Now()
	if k != nil {
		c.gate.close()
		defer c.gate.open()
		held, cancel := context.WithTimeout(ctx, freezeTimeout)
		defer cancel()
		if err := k.Recall(held); err != nil {
			return nil, fmt.Errorf("recall attributes: %w", err)
		}
		if err := k.FlushRecent(held); err != nil {
			return nil, fmt.Errorf("flush the page cache: %w", err)
		}
		c.gate.halves.settle(held)
	}
	s, err := c.cut()
	c.gate.open()
	if s == nil {
		return nil, err
	}
	s.pause = time.Since(started)
	if err != nil {
		s.thaw()
		s.close()
		return nil, err
	}
	s.keep()
	s.flight.Wait() // writes begun before the cut; later ones wait for these before they save
	return s, nil
}

// cut is the instant.
func (c *Copy) cut() (*Snapshot, error) {
	if err := c.begin(false); err != nil {
		return nil, err
	}
	s := c.startEpoch()
	c.journal.mark(recordCut)
	return s, c.end(nil)
}

// startEpoch makes what has changed so far the commit that is to be made. The caller holds mu, or replays.
func (c *Copy) startEpoch() *Snapshot {
	s := &Snapshot{c: c, epoch: c.epoch, nextIno: c.nextIno, flight: c.flight, dirty: c.dirty}
	if len(c.snaps) > 0 { // a version may pass from one commit to the next
		s.undo = c.snaps[0].undo
		s.undo.share()
	} else {
		s.undo = &undo{dir: c.path, users: 1}
	}
	c.snaps = append(c.snaps, s)
	c.epoch++
	c.dirty = map[*node]struct{}{}
	c.flight = &sync.WaitGroup{}
	return s
}

// slice is how many nodes are visited at a time under the mutex.
const slice = 512

// list lists the snapshot's nodes, giving the mutex back now and then: hundreds of thousands take longer than a writer
// should have to wait for the cut.
func (s *Snapshot) list() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.listed {
		return
	}
	for n := range s.dirty {
		if s.nodes = append(s.nodes, n); len(s.nodes)%slice == 0 {
			s.c.mu.Unlock()
			s.c.pause()
			s.c.mu.Lock()
		}
	}
	if len(s.nodes) < len(s.dirty) { // the commit before it has added some meanwhile
		s.nodes = slices.AppendSeq(s.nodes[:0], maps.Keys(s.dirty))
	}
	s.listed = true
}

// each visits the snapshot's nodes under the mutex, giving it back now and then. The commit before it may add some
// meanwhile.
func (s *Snapshot) each(fn func(n *node)) {
	s.list()
	for i, more := 0, true; more; i += slice {
		s.c.pause()
		s.c.mu.Lock()
		for _, n := range s.nodes[min(i, len(s.nodes)):min(i+slice, len(s.nodes))] {
			fn(n)
		}
		more = i+slice < len(s.nodes)
		s.c.mu.Unlock()
	}
}

// keep fixes every node of the snapshot that no later change has fixed already.
func (s *Snapshot) keep() { s.each(s.c.freeze) }

// collect lists what the commit is made of, once no other comes before it: what the working copy is based on is its base
// then. It says whether the working copy still takes changes.
func (s *Snapshot) collect() bool {
	c := s.c
	c.mu.RLock()
	s.base, s.commit = c.id, c.commit
	writable := !c.readonly
	s.versions = make(map[*node]*frozen, len(s.nodes))
	c.mu.RUnlock()
	s.each(func(n *node) {
		v := n.at(s)
		if v == nil {
			return
		}
		s.versions[n] = v
		if v.nlink > 0 && v.file != nil && c.foreign(n) {
			s.restored = append(s.restored, n)
		}
		if v.nlink > 0 && v.file != nil && v.file.changed(n.file.committed.Size) {
			s.files = append(s.files, &File{s: s, n: n, f: v.file, frozen: v, base: n.file.committed})
		}
	})
	return writable
}

// Pause returns for how long a write could have had to wait.
func (s *Snapshot) Pause() time.Duration { return s.pause }

// Base returns the commit the working copy was based on.
func (s *Snapshot) Base() object.ID { return s.base }

// Files returns the regular files whose content may have changed since the base.
func (s *Snapshot) Files() []*File { return s.files }

// File is a regular file of a snapshot whose content is to be chunked.
type File struct {
	s      *Snapshot
	n      *node
	f      *frozenFile
	frozen *frozen
	base   object.Content
}

// Range is a stretch of a file, in bytes.
type Range struct{ Off, Len uint64 }

// Path returns one of the file's names, from the root of the dot, without a leading slash.
func (f *File) Path() string { return f.s.path(f.frozen) }

// Base returns the committed content the file had.
func (f *File) Base() object.Content { return f.base }

// Size returns the file's size in bytes.
func (f *File) Size() uint64 { return f.frozen.size }

// Dirty returns where the content differs from Base: ascending, disjoint, inside of Size. What is beyond Base.Size is
// always among it.
func (f *File) Dirty() []Range {
	all := roaring.New()
	if f.f.dirty != nil {
		all.Or(f.f.dirty)
	}
	if f.f.zeroed != nil {
		all.Or(f.f.zeroed)
	}
	if f.frozen.size > f.base.Size {
		all.AddRange(blockOf(f.base.Size), blocksUpTo(f.frozen.size))
	}
	var list []Range
	ranges(all, func(first, count uint64) {
		off, end := first*BlockSize, min((first+count)*BlockSize, f.frozen.size)
		if off < end {
			list = append(list, Range{off, end - off})
		}
	})
	return list
}

// NextData returns the next stretch at or after off, inside of Size, that is not known to be zero without reading it.
// start is Size where there is none.
func (f *File) NextData(off uint64) (start, end uint64) {
	size := f.frozen.size
	if off >= size {
		return size, size
	}
	if f.f.zeroed == nil {
		return off, size
	}
	if b := blockOf(off); f.f.zeroed.Contains(uint32(b)) {
		if off = runEnd(f.f.zeroed, b) * BlockSize; off >= size {
			return size, size
		}
	}
	it := f.f.zeroed.Iterator()
	it.AdvanceIfNeeded(uint32(blockOf(off)))
	if it.HasNext() {
		return off, min(size, uint64(it.Next())*BlockSize)
	}
	return off, size
}

// ReadAt reads the file as it was at the cut. It is safe for concurrent use until SetContent.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || uint64(off) >= f.frozen.size {
		return 0, nil
	}
	p = p[:min(uint64(len(p)), f.frozen.size-uint64(off))]
	for done := 0; done < len(p); {
		at := uint64(off) + uint64(done)
		n, err := f.readRun(p[done:], at)
		if err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// where the bytes of a block come from.
type origin uint8

const (
	fromFile origin = iota
	fromZero
	fromStore
)

func (f *File) origin(block uint64) origin {
	b := uint32(block)
	switch {
	case f.f.zeroed != nil && f.f.zeroed.Contains(b):
		return fromZero
	case f.f.dirty != nil && f.f.dirty.Contains(b):
		return fromFile
	case block*BlockSize >= f.base.Size:
		return fromZero
	}
	return fromStore
}

// readRun reads the front of p, as far as the bytes come from one place.
func (f *File) readRun(p []byte, off uint64) (int, error) {
	from := f.origin(blockOf(off))
	end := (blockOf(off) + 1) * BlockSize
	for end < off+uint64(len(p)) && f.origin(blockOf(end)) == from {
		end += BlockSize
	}
	p = p[:min(uint64(len(p)), end-off)]
	switch from {
	case fromZero:
		clear(p)
		return len(p), nil
	case fromFile:
		return len(p), f.readFrozen(p, off)
	}
	return len(p), f.readClean(p, off)
}

// readFrozen reads blocks that were written before the cut. The backing file is read first and the saved blocks are laid
// over it: a writer saves before it writes, so whatever was overwritten under the read has been saved by then.
func (f *File) readFrozen(p []byte, off uint64) error {
	f.f.mu.Lock()
	taken := f.f.file
	f.f.mu.Unlock()
	f.pause()
	var err error
	if taken != nil {
		err = preadFull(int(taken.Fd()), p, int64(off))
	} else {
		err = f.n.file.readAt(p, int64(off))
	}
	if err != nil {
		return err
	}
	f.pause()
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	if f.f.failure != nil {
		return f.f.failure
	}
	if f.f.file != taken { // taken away meanwhile: what was read may be of the new file
		if err := preadFull(int(f.f.file.Fd()), p, int64(off)); err != nil {
			return err
		}
	}
	if len(f.f.saved) == 0 {
		return nil
	}
	for b := blockOf(off); b*BlockSize < off+uint64(len(p)); b++ {
		at, have := f.f.saved[b]
		if !have {
			continue
		}
		from, to := max(off, b*BlockSize), min(off+uint64(len(p)), (b+1)*BlockSize)
		if _, err := f.s.undo.f.ReadAt(p[from-off:to-off], at+int64(from-b*BlockSize)); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) pause() { f.s.c.pause() }

func (c *Copy) pause() {
	if c.cfg.pause != nil {
		c.cfg.pause()
	}
}

// readClean reads bytes that are as committed: from the backing file if they are there and nobody has changed them since
// the cut, else from the store.
func (f *File) readClean(p []byte, off uint64) error {
	if f.clean(off, off+uint64(len(p))) {
		f.pause()
		if err := f.n.file.readAt(p, int64(off)); err != nil {
			return err
		}
		f.pause()
		if f.clean(off, off+uint64(len(p))) {
			return nil
		}
	}
	f.pause()
	got, err := readPiece(context.Background(), f.s.c.cfg.Source, f.base, off, off+uint64(len(p)))
	if err != nil {
		return err
	}
	clear(p)
	for _, q := range got.parts {
		from, to := max(off, q.off), min(off+uint64(len(p)), q.off+q.size)
		if from < to && q.data != nil {
			copy(p[from-off:to-off], q.data[from-q.off:to-q.off])
		}
	}
	return nil
}

// clean says whether the bytes [off, end) are in the backing file as committed. Writers mark before they write.
func (f *File) clean(off, end uint64) bool {
	c, n := f.s.c, f.n
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n.nlink == 0 || n.file.unknown || n.size < end {
		return false
	}
	f.f.mu.Lock()
	taken := f.f.file != nil
	f.f.mu.Unlock()
	if taken {
		return false
	}
	since := []*marks{&n.file.marks}
	for _, v := range n.versions {
		if v.snap.epoch > f.s.epoch {
			if v.size < end {
				return false
			}
			since = append(since, &v.file.marks)
		}
	}
	for b := blockOf(off); b < blocksUpTo(end); b++ {
		if n.file.absent(b) {
			return false
		}
		for _, m := range since {
			if m.has(b) {
				return false
			}
		}
	}
	return true
}

// SetContent says how the file was chunked, and that its frozen bytes are not needed any more; unless the next commit has
// made its cut, to which they pass if this one is given up.
func (f *File) SetContent(c object.Content) {
	f.f.content = &c
	f.s.c.mu.RLock()
	defer f.s.c.mu.RUnlock()
	if len(f.s.c.snaps) == 1 {
		f.f.release()
	}
}

// path returns the way to a node as it was at the cut.
func (s *Snapshot) path(fr *frozen) string {
	s.c.mu.RLock()
	defer s.c.mu.RUnlock()
	path := ""
	for places := fr.places; len(places) > 0; {
		p := places[0]
		if path != "" {
			path = "/" + path
		}
		path = p.name + path
		places = p.dir.places
		if v := p.dir.at(s); v != nil {
			places = v.places
		}
	}
	return path
}

var errNoRoot = errors.New("Root has not been called")

// Prepare notes durably that this snapshot is about to become the commit with this id. The branch may move after it
// returns: whether it did is how a restart tells if the commit took place.
func (s *Snapshot) Prepare(_ context.Context, id object.ID, commit *object.Commit) error {
	if s.entries == nil {
		return errNoRoot
	}
	c := s.c
	if err := c.begin(false); err != nil {
		return err
	}
	c.journal.id(recordPrepare, id)
	if err := c.end(nil); err != nil {
		return err
	}
	s.prepared, s.next = id, commit
	c.mu.RLock()
	lsn := c.journal.lsn()
	c.mu.RUnlock()
	return c.journal.sync(lsn, lsn)
}

package workcopy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
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
	base     object.ID
	commit   *object.Commit
	nextIno  uint64
	dirty    map[*node]struct{} // changed before the cut; never changed itself
	nodes    []*node            // the same
	pause    time.Duration
	flight   *sync.WaitGroup
	undo     undo
	entries  map[*node]*object.Entry // as Root has built them
	files    []*File
	ended    bool
	prepared object.ID
	next     *object.Commit // the commit named to Prepare
}

// Freeze fixes the content of the working copy at one instant. Writers wait for Pause at the most.
//
// The order is that of the measured procedure in ARCHITECTURE.md; leaving out Recall lets writes slip between the cut and
// what they depend on.
func (c *Copy) Freeze(ctx context.Context) (*Snapshot, error) {
	c.commits.Lock()
	s, err := c.freezeNow(ctx)
	if err != nil {
		c.commits.Unlock()
	}
	return s, err
}

func (c *Copy) freezeNow(ctx context.Context) (*Snapshot, error) {
	c.mu.RLock()
	k, readonly := c.kernel, c.readonly
	c.mu.RUnlock()
	if readonly {
		return nil, errs.New(errs.NotAllowed, "the working copy is read-only")
	}
	if k != nil {
		if err := k.Flush(ctx); err != nil {
			return nil, fmt.Errorf("flush the page cache: %w", err)
		}
	}
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
	}
	s, err := c.cut()
	c.gate.open()
	if s == nil {
		return nil, err
	}
	s.pause = time.Since(started)
	s.listNodes()
	if err != nil {
		s.thaw()
		return nil, err
	}
	s.flight.Wait() // writes begun before the cut; later ones wait for these before they save
	return s, s.collect()
}

// cut is the instant.
func (c *Copy) cut() (*Snapshot, error) {
	if err := c.begin(false); err != nil {
		return nil, err
	}
	s := &Snapshot{
		c: c, epoch: c.epoch, base: c.id, commit: c.commit, nextIno: c.nextIno, flight: c.flight,
		undo: undo{dir: c.path}, dirty: c.dirty,
	}
	c.startEpoch(s)
	c.journal.mark(recordCut)
	return s, c.end(nil)
}

func (s *Snapshot) listNodes() {
	s.nodes = make([]*node, 0, len(s.dirty))
	for n := range s.dirty {
		s.nodes = append(s.nodes, n)
	}
}

func (c *Copy) startEpoch(s *Snapshot) {
	c.snap = s
	c.epoch++
	c.dirty = map[*node]struct{}{}
	c.flight = &sync.WaitGroup{}
}

// slice is how many nodes are visited at a time under the mutex.
const slice = 512

// each visits the snapshot's nodes under the mutex, giving it back now and then.
func (s *Snapshot) each(fn func(n *node)) {
	for i := 0; i < len(s.nodes); i += slice {
		s.c.mu.Lock()
		for _, n := range s.nodes[i:min(i+slice, len(s.nodes))] {
			fn(n)
		}
		s.c.mu.Unlock()
	}
}

// collect fixes every node of the snapshot that no later change has fixed already, and lists the files.
func (s *Snapshot) collect() error {
	s.each(func(n *node) {
		s.c.freeze(n)
		if n.frozen == nil || n.frozen.nlink == 0 || !n.isRegular() {
			return
		}
		if f := n.frozen.file; f.changed() {
			s.files = append(s.files, &File{s: s, n: n, f: f, frozen: n.frozen, base: n.file.committed})
		}
	})
	return nil
}

// Pause returns for how long a write could have had to wait.
func (s *Snapshot) Pause() time.Duration { return s.pause }

// Base returns the commit the working copy was based on.
func (s *Snapshot) Base() object.ID { return s.base }

// Files returns the regular files whose content may have changed since the base.
func (s *Snapshot) Files() []*File { return s.files }

// frozenFile is the content of a regular file as it was at the cut.
type frozenFile struct {
	snap     *Snapshot
	node     *node
	dirty    *roaring.Bitmap // written before the cut: only here are their bytes
	zeroed   *roaring.Bitmap
	released atomic.Bool // nobody will read it any more

	mu      sync.Mutex
	saved   map[uint64]int64 // block to offset in the undo file
	file    *os.File         // the whole backing file, taken away from the node
	failure error            // saving failed: the commit cannot be made
	content *object.Content  // as chunked
}

// changed says whether the content may differ from the committed one.
func (f *frozenFile) changed() bool {
	return f.dirty != nil && !f.dirty.IsEmpty() || f.zeroed != nil && !f.zeroed.IsEmpty() ||
		f.node.frozen.size != f.node.file.committed.Size
}

// save keeps what a write is about to overwrite, as far as the commit that is being made needs it.
func (w *writing) save() {
	f := w.frozen
	if f == nil || f.dirty == nil {
		return
	}
	f.snap.flight.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released.Load() || f.file != nil || f.failure != nil {
		return
	}
	it := f.dirty.Iterator()
	it.AdvanceIfNeeded(uint32(min(w.first, maxSize/BlockSize-1)))
	var block [BlockSize]byte
	for it.HasNext() {
		b := uint64(it.Next())
		if b >= w.end {
			return
		}
		if _, have := f.saved[b]; have {
			continue
		}
		if f.failure = w.n.file.readAt(block[:], int64(b*BlockSize)); f.failure != nil {
			return
		}
		var at int64
		if at, f.failure = f.snap.undo.append(block[:]); f.failure != nil {
			return
		}
		if f.saved == nil {
			f.saved = map[uint64]int64{}
		}
		f.saved[b] = at
	}
}

// takeFile leaves the whole backing file to the commit; the node goes on with a new, empty one.
func (f *frozenFile) takeFile() error {
	f.snap.flight.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	b := &f.node.file.backing
	if f.released.Load() || f.file != nil || f.failure != nil {
		return b.discard()
	}
	file, err := b.detach()
	if err != nil {
		return err
	}
	if file == nil {
		return b.discard()
	}
	if file != nil {
		f.file = file
	}
	return nil
}

// release says that the bytes have been read.
func (f *frozenFile) release() {
	f.released.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
	f.saved = nil
}

// undo is the file of saved blocks. It has no name: a crash ends the commit, and what was saved is of no use then.
type undo struct {
	dir  string
	mu   sync.Mutex
	f    *os.File
	size int64
}

func (u *undo) append(block []byte) (int64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.f == nil {
		path := filepath.Join(u.dir, "undo")
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		u.f = f
		if err := os.Remove(path); err != nil {
			return 0, err
		}
	}
	if _, err := u.f.WriteAt(block, u.size); err != nil {
		return 0, fmt.Errorf("save a block that is being overwritten: %w", err)
	}
	u.size += int64(len(block))
	return u.size - int64(len(block)), nil
}

func (u *undo) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.f != nil {
		u.f.Close()
		u.f = nil
	}
}

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

func (f *File) pause() {
	if fn := f.s.c.cfg.pause; fn != nil {
		fn()
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
	for b := blockOf(off); b < blocksUpTo(end); b++ {
		if n.file.absent(b) || n.file.dirty != nil && n.file.dirty.Contains(uint32(b)) ||
			n.file.zeroed != nil && n.file.zeroed.Contains(uint32(b)) {
			return false
		}
	}
	return true
}

// SetContent says how the file was chunked, and that its frozen bytes are not needed any more.
func (f *File) SetContent(c object.Content) {
	f.f.content = &c
	f.f.release()
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
		if p.dir.frozen != nil {
			places = p.dir.frozen.places
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

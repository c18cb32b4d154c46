package workcopy

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"dm/object"
)

// frozenFile is the content of a regular file as it was at a cut.
type frozenFile struct {
	node     *node
	size     uint64
	flight   *sync.WaitGroup // the writes that the cut holds
	undo     *undo
	released atomic.Bool // its commit has read it: nobody will, unless another commit inherits it

	// Since the cut before: only here are the bytes of those that were written. Guarded by mu until their commit's turn has
	// come, and not changed from then on.
	marks

	mu      sync.Mutex
	saved   map[uint64]int64 // block to offset in the undo file
	file    *takenFile       // the whole backing file, taken away from the node
	ended   bool             // nothing is to be saved for it any more
	failure error            // saving failed: the commit cannot be made
	content *object.Content  // as chunked
}

// changed says whether the content may differ from a committed one of the given size.
func (f *frozenFile) changed(committed uint64) bool {
	return f.dirty != nil && !f.dirty.IsEmpty() || f.zeroed != nil && !f.zeroed.IsEmpty() || f.size != committed
}

// save keeps what a write is about to overwrite, as far as commits that are being made need it.
//
// A block is saved for each of them that holds it, and has not saved it yet. The bytes of a block that a later commit
// holds as well were saved for the earlier one when they were written. The oldest comes first: when it is given up, what it
// holds and has saved passes to the next.
func (w *writing) save() {
	for _, f := range w.frozen {
		f.save(w)
	}
}

func (f *frozenFile) save(w *writing) {
	f.flight.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dirty == nil || f.ended || f.file != nil || f.failure != nil {
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
		if at, f.failure = f.undo.append(block[:]); f.failure != nil {
			return
		}
		f.keep(b, at)
	}
}

func (f *frozenFile) keep(block uint64, at int64) {
	if f.saved == nil {
		f.saved = map[uint64]int64{}
	}
	f.saved[block] = at
}

// takeFile leaves the whole backing file to the commits that are being made; the node goes on with a new, empty one. Where so
// many have been left already that descriptors are short, what they have to read is saved instead.
func (w *writing) takeFile() error {
	b := &w.n.file.backing
	for _, f := range w.frozen {
		switch err := f.take(b); {
		case outOfFiles(err):
			f.save(w)
		case err != nil:
			return err
		}
	}
	return b.discard()
}

func (f *frozenFile) take(b *backing) (err error) {
	f.flight.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended && f.file == nil && f.failure == nil {
		f.file, err = b.duplicate()
	}
	return err
}

// release says that the commit has read the bytes. What is overwritten from here on belongs to the next cut as well, if
// that is still to come; if it has come, the caller does not release before the end.
func (f *frozenFile) release() {
	f.released.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget()
}

// end says that nobody will read the bytes again.
func (f *frozenFile) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.forget()
}

// forget lets go of what was kept so far. The caller holds mu.
func (f *frozenFile) forget() {
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
	f.saved = nil
}

// inherit adds what an older version holds, whose commit was given up: what the file holds otherwise since then wins. The
// caller holds Copy.mu.
func (f *frozenFile) inherit(old *frozenFile) {
	old.mu.Lock()
	f.mu.Lock()
	for b, at := range old.saved {
		if b < blocksUpTo(f.size) && !f.has(b) {
			f.keep(b, at)
		}
	}
	f.add(old.marks, blocksUpTo(f.size))
	if f.failure == nil {
		f.failure = old.failure
	}
	f.mu.Unlock()
	old.mu.Unlock()
	old.end()
}

// undo is the file of saved blocks. It has no name: a crash ends the commit, and what was saved is of no use then.
type undo struct {
	dir   string
	mu    sync.Mutex
	f     *os.File
	size  int64
	users int // commits
}

func (u *undo) share() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.users++
}

func (u *undo) used() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
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

// leave ends one commit's use of the file.
func (u *undo) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.users--
	if u.users == 0 && u.f != nil {
		u.f.Close()
		u.f = nil
	}
}

package workcopy

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
)

// OpenFiles is how many descriptors working copies may have between them, and the open backing files. One is shared by all
// working copies of a process: the limit it comes from is the process's, and a working copy that is at rest must not keep
// what another needs.
//
// Backing files are closed in the order of the clock algorithm (Corbató, "A paging experiment with the Multics system", 1968):
// a use sets a bit of the file, and a hand that goes round closes the first idle one it finds with its bit cleared. So the use of
// a file that is open takes no lock of this type.
//
// Safe for concurrent use. Its mutex is taken after that of a backing file; the hand only tries theirs.
type OpenFiles struct {
	max  int
	wait time.Duration // acquireWait, but in tests

	mu      sync.Mutex
	ring    []*handle // all open backing files
	hand    int
	opening int // descriptors promised to files that are about to be opened
	held    int // descriptors that cannot be closed to make room
}

const (
	// ownFiles is for a working copy that shares with no other.
	ownFiles = 4096
	// copyFiles is what an open working copy has besides backing files, with its mount: the journal and the one that
	// replaces it, the undo file, the kernel's connection and the way to abort it.
	copyFiles = 5
	// MinOpenFiles is the least that OpenFiles works with: some working copies, and a backing file for each operation that is
	// likely to be under way.
	MinOpenFiles = 128
	// keepEvictable is what is never held, for backing files to be opened.
	keepEvictable = 64

	// acquireWait is how long an operation waits for a descriptor while all are in use. They are in use for single system
	// calls on the host's filesystem.
	acquireWait  = 10 * time.Second
	acquirePause = time.Millisecond
)

// NewOpenFiles returns a budget of so many descriptors, at least MinOpenFiles.
func NewOpenFiles(limit int) *OpenFiles {
	return &OpenFiles{max: max(limit, MinOpenFiles), wait: acquireWait}
}

// outOfFiles says whether an error is that there are no descriptors, of this process or of the system.
func outOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// reserve takes a descriptor for a file that is about to be opened, closing another if need be; add or cancel follows.
// ENFILE: all are in use.
func (o *OpenFiles) reserve() error {
	o.mu.Lock()
	old, ok := o.makeRoom(1)
	if ok {
		o.opening++
	}
	o.mu.Unlock()
	closeFDs(old)
	if !ok {
		return syscall.ENFILE
	}
	return nil
}

// makeRoom takes files away until there is room for n descriptors, and returns theirs for the caller to close, when mu is
// not held any more. The caller holds mu.
func (o *OpenFiles) makeRoom(n int) (old []int, ok bool) {
	for len(o.ring)+o.opening+o.held+n > o.max {
		fd := o.evict()
		if fd < 0 {
			return old, false
		}
		old = append(old, fd)
	}
	return old, true
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (o *OpenFiles) cancel() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opening--
}

// add puts a file in place that a descriptor was reserved for.
func (o *OpenFiles) add(h *handle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opening--
	h.slot = len(o.ring)
	o.ring = append(o.ring, h)
}

// remove takes away a file that is closed. The caller holds its mutex.
func (o *OpenFiles) remove(h *handle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(h)
}

// drop is remove with mu held.
func (o *OpenFiles) drop(h *handle) {
	last := len(o.ring) - 1
	o.ring[h.slot] = o.ring[last]
	o.ring[h.slot].slot = h.slot
	o.ring[last] = nil
	o.ring = o.ring[:last]
}

// evict takes a file away that nobody uses, and was not used for a while, and returns its descriptor for the caller to close;
// -1: there is none. The caller holds mu.
func (o *OpenFiles) evict() (fd int) {
	for range 2 * len(o.ring) {
		o.hand = (o.hand + 1) % len(o.ring)
		h := o.ring[o.hand]
		if h.used.Swap(false) || !h.of.mu.TryLock() {
			continue
		}
		idle := h.users == 0
		if idle {
			h.dead, h.of.h = true, nil // with no user it is the file's present one
			o.drop(h)
		}
		h.of.mu.Unlock()
		if idle {
			return h.fd
		}
	}
	return -1
}

// shed closes one file, for a process that has run out of descriptors all the same.
func (o *OpenFiles) shed() {
	o.mu.Lock()
	fd := o.evict()
	o.mu.Unlock()
	if fd >= 0 {
		unix.Close(fd)
	}
}

// hold takes n descriptors that stay open until letGo. It returns false where that would leave too few for backing files.
func (o *OpenFiles) hold(n int) bool {
	o.mu.Lock()
	if o.held+n > o.max-keepEvictable {
		o.mu.Unlock()
		return false
	}
	old, _ := o.makeRoom(n) // those that are in use at this moment make room when the next is opened
	o.held += n
	o.mu.Unlock()
	closeFDs(old)
	return true
}

func (o *OpenFiles) letGo(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held -= n
}

// closeAll closes every file of a working copy; nobody uses them any more.
func (o *OpenFiles) closeAll(c *Copy) {
	o.mu.Lock()
	var open []*handle
	for _, h := range o.ring {
		if h.of.copy == c {
			open = append(open, h)
		}
	}
	o.mu.Unlock() // a file's own mutex comes first everywhere
	for _, h := range open {
		h.of.mu.Lock()
		if !h.dead { // by the hand, meanwhile
			h.of.close(h)
		}
		h.of.mu.Unlock()
	}
}

// retry calls open again until there is a descriptor for it, closing idle backing files meanwhile. The error after
// acquireWait says so.
func (o *OpenFiles) retry(open func() error) error {
	for end := time.Now().Add(o.wait); ; time.Sleep(acquirePause) {
		o.shed()
		if err := open(); !outOfFiles(err) || time.Now().After(end) {
			return err
		}
	}
}

// syncDir makes a directory's names durable.
func (o *OpenFiles) syncDir(dir string) error {
	try := func() error {
		if err := o.reserve(); err != nil {
			return err
		}
		defer o.cancel()
		return syncDir(dir)
	}
	err := try()
	if outOfFiles(err) {
		err = o.retry(try)
	}
	return err
}

// holdOwn takes what the working copy itself needs besides backing files.
func (c *Copy) holdOwn() error {
	if !c.files.hold(copyFiles) {
		return errs.WithHint(errs.New(errs.Conflict, "the server's limit on open files does not allow another branch to be in use"),
			"start the server with a higher hard limit on open files (ulimit -Hn, LimitNOFILE= of a systemd unit)")
	}
	c.held = copyFiles
	return nil
}

// closeFiles closes all backing files.
func (c *Copy) closeFiles() { c.files.closeAll(c) }

// letGoOwn gives back what holdOwn took.
func (c *Copy) letGoOwn() {
	c.files.letGo(c.held)
	c.held = 0
}

// takenFile is a backing file that was taken away from its node, for those who go on reading it.
type takenFile struct {
	*os.File
	files *OpenFiles
}

// Close closes the file.
func (t *takenFile) Close() error {
	defer t.files.letGo(1)
	return t.File.Close()
}

// duplicate opens the file once more, for who goes on reading it when the node has another. nil where there is none;
// ENFILE where there is no descriptor that could be held.
func (b *backing) duplicate() (*takenFile, error) {
	h, err := b.acquire(false)
	if err != nil || h == nil {
		return nil, err
	}
	defer b.release(h)
	files := b.copy.files
	if !files.hold(1) {
		return nil, syscall.ENFILE
	}
	dup, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		files.letGo(1)
		return nil, fmt.Errorf("duplicate backing file: %w", err)
	}
	return &takenFile{os.NewFile(uintptr(dup), b.path), files}, nil
}

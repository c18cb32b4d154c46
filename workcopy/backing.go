package workcopy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// backing is the file on the host that holds a node's bytes. It is opened when first needed and closed when many others
// are open; so a node costs no descriptor, and no handle of the kernel's has to be remembered.
//
// A file that does not hold the whole content yet has the suffix ".part". It loses it only after its bytes are synced:
// what a crash leaves under the final name is complete.
type backing struct {
	path    string // without suffix
	copy    *Copy
	unknown bool // nobody has looked yet whether the file exists; guarded by Copy.mu

	mu     sync.Mutex // guards what follows
	part   bool       // the file has the suffix
	exists bool
	h      *handle // nil while closed
	gone   bool    // the node is gone: close when nobody uses the file any more
	synced bool    // its name is durable
	opened uint64  // how often it was acquired
}

// handle is an open backing file, closed when its last user lets go of it.
type handle struct {
	of    *backing
	fd    int
	users int         // guarded by backing.mu
	dead  bool        // nobody new uses it
	used  atomic.Bool // since the hand of OpenFiles came by
	slot  int         // its place there, guarded by OpenFiles.mu
}

const partSuffix = ".part"

func (c *Copy) dataPath(gen uint32, ino uint64) string {
	return filepath.Join(c.path, "data", fmt.Sprint(gen), fmt.Sprintf("%02x", ino&0xff), fmt.Sprint(ino))
}

func (b *backing) init(c *Copy, id NodeID) {
	b.path = c.dataPath(uint32(id>>GenerationShift), uint64(id)&(1<<GenerationShift-1))
	b.copy = c
}

// onDisk says whether the complete backing file exists.
func (b *backing) onDisk() bool {
	_, err := os.Lstat(b.path)
	return err == nil
}

// look finds out whether the complete backing file exists. The caller holds Copy.mu for writing.
func (b *backing) look() (complete bool) {
	complete = b.onDisk()
	b.unknown = false
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exists = complete
	return complete
}

// known notes whether the complete backing file exists. If not, the committed content is all there is. The caller holds
// Copy.mu for writing.
func (f *content) known(complete bool) {
	f.unknown = false
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exists = complete
	if !complete && f.limit > 0 {
		f.partial, f.part = true, true
	}
}

// acquire opens the file, creating it if asked to, and keeps it open until release. It returns nil where there is none. While
// all descriptors are in use it waits for one; so its caller holds no other and asks for nothing that waits for others.
func (b *backing) acquire(create bool) (*handle, error) {
	h, err := b.tryAcquire(create)
	if err == nil {
		return h, nil
	}
	if outOfFiles(err) {
		h, err = b.acquireLate(create)
	}
	if err != nil {
		return nil, fmt.Errorf("open backing file: %w", err)
	}
	return h, nil
}

// acquireLate is acquire when there was no descriptor.
func (b *backing) acquireLate(create bool) (h *handle, err error) {
	err = b.copy.files.retry(func() error {
		var err error
		h, err = b.tryAcquire(create)
		return err
	})
	return h, err
}

func (b *backing) tryAcquire(create bool) (*handle, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.h != nil {
		b.opened++
		b.h.users++
		b.h.used.Store(true)
		return b.h, nil
	}
	if !b.exists && !create {
		b.opened++
		return nil, nil
	}
	files := b.copy.files
	if err := files.reserve(); err != nil {
		return nil, err
	}
	fd, err := b.open()
	if err != nil {
		files.cancel()
		return nil, err
	}
	b.opened++
	b.h, b.exists = &handle{of: b, fd: fd, users: 1}, true
	b.h.used.Store(true)
	files.add(b.h)
	return b.h, nil
}

// uses counts the acquisitions so far: where it has not grown, nobody has read or written the file.
func (b *backing) uses() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opened
}

// onHost says whether there is a file.
func (b *backing) onHost() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.exists
}

func (b *backing) name() string {
	if b.part {
		return b.path + partSuffix
	}
	return b.path
}

func (b *backing) open() (fd int, err error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOATIME
	if !b.exists {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err = unix.Open(b.name(), flags, 0o600)
	if errors.Is(err, unix.ENOENT) && !b.exists {
		if err = os.MkdirAll(filepath.Dir(b.path), 0o700); err == nil {
			fd, err = unix.Open(b.name(), flags, 0o600)
		}
	}
	if errors.Is(err, unix.EPERM) { // O_NOATIME is for owners
		fd, err = unix.Open(b.name(), flags&^unix.O_NOATIME, 0o600)
	}
	return fd, err
}

// release ends one acquire that returned a handle.
func (b *backing) release(h *handle) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.users--
	if h.users == 0 && (h.dead || b.gone) {
		b.close(h)
	}
}

// close closes a handle, now or when its last user is done. The caller holds mu.
func (b *backing) close(h *handle) {
	if h == nil {
		return
	}
	h.dead = true
	if b.h == h {
		b.h = nil
	}
	if h.users == 0 {
		unix.Close(h.fd)
		b.copy.files.remove(h)
	}
}

// discard removes the file; the node goes on without one, and what it writes next is complete.
func (b *backing) discard() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.exists {
		if err := os.Remove(b.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	b.close(b.h)
	b.exists, b.synced, b.part = false, false, false
	return nil
}

// remove removes the file. It stays readable for those who have it open.
func (b *backing) remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	b.close(b.h)
	if !b.exists {
		return nil
	}
	b.exists = false
	if err := os.Remove(b.name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sync makes the bytes durable and, once, the file's name.
func (b *backing) sync(dataOnly bool) error {
	h, err := b.acquire(false)
	if err != nil || h == nil {
		return err
	}
	if dataOnly {
		err = unix.Fdatasync(h.fd)
	} else {
		err = unix.Fsync(h.fd)
	}
	b.release(h) // not held while another descriptor is asked for
	if err != nil {
		return fmt.Errorf("sync backing file: %w", err)
	}
	b.mu.Lock()
	synced := b.synced
	b.mu.Unlock()
	if synced {
		return nil
	}
	for dir := filepath.Dir(b.path); ; dir = filepath.Dir(dir) { // xx, G, data
		if err := b.copy.files.syncDir(dir); err != nil {
			return err
		}
		if filepath.Base(dir) == "data" {
			break
		}
	}
	b.mu.Lock()
	b.synced = true
	b.mu.Unlock()
	return nil
}

// forget closes the file of a node that is dropped from memory.
func (b *backing) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	b.close(b.h)
}

// pinned says whether the node must stay in memory: only there it is known which blocks a partial file holds.
func (f *content) pinned() bool {
	return f.partial && f.onHost()
}

// promote gives a partial file that has become complete its final name. Its bytes must be synced.
func (b *backing) promote() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.part {
		return nil
	}
	if b.exists {
		if err := os.Rename(b.path+partSuffix, b.path); err != nil {
			return err
		}
	}
	b.part, b.synced = false, false
	return nil
}

// measure adds to attributes what stat(2) says of the file's blocks of 512 bytes. b may be nil.
func (b *backing) measure(a Attr) Attr {
	if b == nil {
		return a
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.exists {
		return a
	}
	// Not stat(2): who has asked for a time gets a finer one with the next write, on hosts with multigrain timestamps
	// (Linux 6.13), and the kernel's coarse clock, by which it stamps files of the volume, goes on with it. Each such step is
	// a time more that is handed over before an fsync.
	var st unix.Statx_t
	fd, path, flags := unix.AT_FDCWD, b.path, unix.AT_SYMLINK_NOFOLLOW
	if b.h != nil {
		fd, path, flags = b.h.fd, "", unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(fd, path, flags, unix.STATX_BLOCKS, &st); err != nil {
		a.Blocks = (a.Size + 511) / 512
		return a
	}
	a.Blocks = st.Blocks
	return a
}

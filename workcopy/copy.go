package workcopy

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dm/object"
)

// Copy is an open working copy. All methods are safe for concurrent use.
//
// One mutex guards names, attributes and block sets; it is held for memory operations and one small journal write, never
// for bytes of files or for reading the store. What happened under it is what an instant is: a cut takes it for a moment
// and everything done before is in, everything after is out.
type Copy struct {
	path string
	cfg  Config
	log  *slog.Logger
	gate gate

	mu         sync.RWMutex
	nodes      map[NodeID]*node // in memory: of this generation, and of those before it that are still in use
	inodes     map[uint64]*node // of this generation
	root       *node
	gen        uint32
	nextIno    uint64
	id         object.ID      // the commit it is based on
	commit     *object.Commit // nil: none yet
	epoch      uint64
	dirty      map[*node]struct{} // changed in this epoch
	flight     *sync.WaitGroup    // writes of this epoch on their way to their backing files
	snaps      []*Snapshot        // the commits that are being made, by their cuts; the first is being chunked
	journal    *journal
	dumped     int64 // the journal's size after the last dump
	owed       bool  // what recovery found out is in no journal yet
	readonly   bool
	closed     bool
	promotions map[*node]struct{} // partial files that may have become complete
	dead       []corpse           // backing files of removed nodes, kept until the removal is durable

	listMu   sync.Mutex
	listings []listing // guarded by listMu; the latest first

	files   *OpenFiles
	held    int // descriptors of its own, taken from files
	kernel  Kernel
	cutting turn       // see turns.go
	commits turn       // one commit, reset or graft at a time
	dumping sync.Mutex // held by a dump, and for a cut: a dump knows of no open cut
	tasks   sync.WaitGroup
	wake    chan struct{}   // see hurry
	aheads  chan struct{}   // one for each fetch that runs ahead of its reader
	life    context.Context // ends with Close
	stop    context.CancelFunc
}

// unsettled is the lsn of a corpse whose frame is not written yet.
const unsettled = -1

// settleDead gives the corpses of the last operation the lsn behind it. The caller holds mu.
func (c *Copy) settleDead() {
	for i := len(c.dead) - 1; i >= 0 && c.dead[i].lsn == unsettled; i-- {
		c.dead[i].lsn = c.journal.lsn()
	}
}

// corpse is a backing file that can go once the journal is synced up to lsn.
type corpse struct {
	ino  uint64
	file *backing
	lsn  int64
}

func (c *Copy) nodeID(ino uint64) NodeID {
	if ino == uint64(RootID) {
		return RootID
	}
	return NodeID(uint64(c.gen)<<GenerationShift | ino)
}

func (c *Copy) now() Time {
	t := time.Now()
	if c.cfg.Now != nil {
		t = c.cfg.Now()
	}
	return Time{t.Unix(), uint32(t.Nanosecond())}
}

// Head returns the commit the working copy is based on; zero: none yet.
func (c *Copy) Head() object.ID {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.id
}

// Attach tells the working copy of the mount that shows it with the kernel's writeback cache. One at a time.
func (c *Copy) Attach(k Kernel) (detach func()) {
	c.mu.Lock()
	c.kernel = k
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		c.kernel = nil
		c.mu.Unlock()
	}
}

// get returns a node the kernel knows. The caller holds mu.
func (c *Copy) get(id NodeID) (*node, error) {
	if n := c.nodes[id]; n != nil {
		return n, nil
	}
	return nil, syscall.ESTALE
}

func (c *Copy) getDir(id NodeID) (*node, error) {
	n, err := c.get(id)
	if err == nil && !n.isDir() {
		err = syscall.ENOTDIR
	}
	return n, err
}

// getRegular returns a regular file's node.
func (c *Copy) getRegular(id NodeID) (*node, error) {
	n, err := c.get(id)
	switch {
	case err != nil:
		return nil, err
	case n.isDir():
		return nil, syscall.EISDIR
	case !n.isRegular():
		return nil, syscall.EINVAL
	}
	return n, nil
}

// getFile is getRegular and makes sure it is known where the bytes are. The caller holds mu for writing.
func (c *Copy) getFile(id NodeID) (*node, error) {
	n, err := c.getRegular(id)
	if err == nil {
		c.look(n)
	}
	return n, err
}

func (c *Copy) look(n *node) {
	if n.file.unknown {
		n.file.known(n.file.onDisk())
	}
}

// fileOf returns the content of a regular file's node, of which it is known then where its bytes are. The host is asked
// without mu: the first time it may have to read its disk. Nobody makes the file before it is known, or removes it.
func (c *Copy) fileOf(id NodeID) (*content, error) {
	c.mu.RLock()
	n, err := c.getRegular(id)
	unknown := err == nil && n.file.unknown
	c.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if unknown {
		complete := n.file.onDisk()
		c.mu.Lock()
		defer c.mu.Unlock()
		if n.file.unknown {
			n.file.known(complete)
		}
	}
	return n.file, nil
}

// begin starts an operation that changes something: it takes mu and reserves room in the journal, so that what is done
// in memory can be written. Every begin is followed by end.
func (c *Copy) begin(frees bool) error {
	c.mu.Lock()
	err := error(nil)
	switch {
	case c.readonly:
		err = syscall.EROFS
	case c.closed:
		err = syscall.EIO
	default:
		err = c.journal.reserve(frees)
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.journal.begin()
	return nil
}

// end writes the operation to the journal and gives mu back. It passes err on. What is essential for a node is durable once
// the node is synced.
func (c *Copy) end(err error, essential ...*node) error {
	defer c.mu.Unlock()
	lsn, err := c.record(err)
	for _, n := range essential {
		n.lsn, n.bytesLSN = lsn, lsn
	}
	return err
}

// endAttributes is end for a change of attributes that its bytes do not depend on: as on the host, fdatasync leaves them out.
// The kernel hands over the time of writing before nearly each one.
func (c *Copy) endAttributes(n *node) error {
	defer c.mu.Unlock()
	lsn, err := c.record(nil)
	n.lsn = lsn
	return err
}

// record writes the operation to the journal and returns the lsn behind it.
func (c *Copy) record(err error) (int64, error) {
	lsn, jerr := c.journal.commit()
	if jerr != nil {
		// Cannot happen while the reserve holds; if it does, memory is ahead of the journal and nothing more is taken.
		c.readonly = true
		c.log.Error("journal cannot be written, the volume is read-only from now on", "copy", c.path, "err", jerr)
		if err == nil {
			err = syscall.EIO
		}
	}
	c.settleDead()
	return lsn, err
}

// change must be called, within begin and end, before anything of n is changed. It keeps the frozen version for a commit
// that is being made, and marks n and what is above it as changed.
func (c *Copy) change(n *node) {
	c.logNode(n)
	c.mark(n)
}

func (c *Copy) mark(n *node) {
	if n.epoch == c.epoch || n.stray {
		return
	}
	c.freeze(n)
	n.epoch = c.epoch
	c.dirty[n] = struct{}{}
	if n.linked {
		return // its names stay as they are; the link table changes
	}
	for _, p := range n.places {
		c.mark(p.dir)
		p.dir.dir.touch(p.name, n)
	}
}

// freeze keeps a node as it was at the cut of the commit that its last change belongs to, if that is being made.
func (c *Copy) freeze(n *node) {
	s := c.snapOf(n.epoch)
	if s == nil || n.at(s) != nil {
		return
	}
	v := &frozen{snap: s, inode: n.inode, places: n.places}
	if n.dir != nil {
		v.touched, n.dir.touched = n.dir.touched, nil
	}
	if n.file != nil {
		v.file = &frozenFile{flight: s.flight, undo: s.undo, node: n, size: n.size, marks: n.file.marks}
		n.file.marks = marks{}
	}
	n.versions = append(n.versions, v)
}

// snapOf returns the commit that is being made of the changes of an epoch; nil: none.
func (c *Copy) snapOf(epoch uint64) *Snapshot {
	for _, s := range c.snaps {
		if s.epoch == epoch {
			return s
		}
	}
	return nil
}

// logNode makes sure that the journal can speak of n: it knows n and all above it. Behind the record of a commit that took
// place it speaks of what n has become by that.
func (c *Copy) logNode(n *node) {
	if s := c.settling(); s != nil {
		c.settleNode(s, n)
	}
	if n.logged || n == c.root || n.stray {
		return
	}
	n.logged = true
	if n.base != nil {
		c.journal.base(n.base)
	} else { // made since the commit, and not in the last dump because it had no name
		c.journal.inode(n)
	}
	for _, p := range n.places {
		c.logNode(p.dir)
		c.journal.bind(p.dir, p.name, n, false)
	}
}

// bind makes name lead to n, or to nothing. The caller has the old state settled.
func (c *Copy) bind(dir *node, name string, n *node) {
	c.change(dir)
	dir.dir.changes++
	delete(dir.dir.loaded, name)
	dir.dir.touch(name, n)
	if n != nil {
		c.logNode(n)
		n.addPlace(dir, name)
		subdirs, files, bytes := n.sums()
		dir.dir.subdirs += subdirs
		dir.addSums(files, bytes)
	}
	c.journal.bind(dir, name, n, true)
}

// unbind takes the name away from n; bind follows, with nil or with what takes its place.
func (c *Copy) unbind(dir *node, name string, n *node) {
	c.change(dir)
	c.change(n)
	n.dropPlace(dir, name)
	subdirs, files, bytes := n.sums()
	dir.dir.subdirs -= subdirs
	dir.addSums(-files, -bytes)
}

// stamp sets the times that a change of a directory or an inode sets.
func (c *Copy) stampDir(n *node) {
	n.mtime = c.now()
	n.ctime = n.mtime
	c.journal.inode(n)
}

func (c *Copy) stamp(n *node) {
	n.ctime = c.now()
	c.journal.inode(n)
}

// newNode makes an inode that no commit has.
func (c *Copy) newNode(in NewInode) *node {
	now := c.now()
	ino := c.nextIno
	c.nextIno++
	n := &node{id: c.nodeID(ino), ino: ino, logged: true}
	n.inode = inode{
		mode: in.Mode, uid: in.UID, gid: in.GID, rdev: in.Rdev, nlink: 1, target: in.Target,
		atime: now, mtime: now, ctime: now,
	}
	switch {
	case n.isDir():
		n.nlink = 2
		n.dir = &directory{}
	case n.isRegular():
		n.file = &content{}
		n.file.init(c, n.id)
	}
	c.add(n)
	c.journal.inode(n)
	c.mark(n)
	return n
}

func (c *Copy) add(n *node) {
	c.nodes[n.id] = n
	c.inodes[n.ino] = n
}

func (c *Copy) drop(n *node) {
	delete(c.nodes, n.id)
	if c.inodes[n.ino] == n {
		delete(c.inodes, n.ino)
	}
}

// unref drops a node from memory when nothing needs it there: the kernel does not know it and it is as committed, or it
// is gone. The caller holds mu.
func (c *Copy) unref(n *node) {
	if c.journal.f == nil {
		return // replaying: records to come may speak of it
	}
	for n != nil && n.refs == 0 && n != c.root && len(n.versions) == 0 && c.nodes[n.id] == n {
		if s := c.settling(); s != nil && s.versions[n] != nil {
			return // a directory that is not settled may lead to it; the end of the commit comes back to it
		}
		if n.nlink == 0 {
			c.bury(n)
			return
		}
		clean := n.epoch != c.epoch && c.snapOf(n.epoch) == nil
		if !clean || n.file != nil && n.file.pinned() {
			return
		}
		if n.dir != nil && (len(n.dir.loaded) > 0 || len(n.dir.touched) > 0) {
			return
		}
		parent := n.parent()
		for _, p := range n.places {
			delete(p.dir.dir.loaded, p.name)
		}
		if n.file != nil {
			n.file.forget()
		}
		c.drop(n)
		n = parent
	}
}

// bury forgets a node that has neither name nor user; its bytes go once that is durable. The caller holds mu.
func (c *Copy) bury(n *node) {
	c.drop(n)
	if !n.inTable() {
		delete(c.dirty, n)
	}
	if n.file != nil {
		if n.stray { // its whole generation goes
			n.file.forget()
			return
		}
		c.dead = append(c.dead, corpse{n.ino, &n.file.backing, unsettled})
		if n.size >= hurryAbove {
			c.hurry()
		}
	}
}

// hurryAbove is the size, in bytes, from which on a removed file's space is given back at once.
const hurryAbove = 4 << 20

// hurry has the background work run soon.
func (c *Copy) hurry() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// inTable says whether the commit's link table has the node: then its end is a change to be committed.
func (n *node) inTable() bool { return n.base != nil && n.base.Nlink > 0 }

// Forget gives n kernel references to a node back.
func (c *Copy) Forget(id NodeID, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	node := c.nodes[id]
	if node == nil {
		return
	}
	if node.refs -= min(n, node.refs); node.refs == 0 {
		c.gate.halves.noWrite(id)
	}
	c.unref(node)
	c.settleDead()
}

// StatFS describes the filesystem under the working copy.
func (c *Copy) StatFS(context.Context) (StatFS, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(c.path, &st); err != nil {
		return StatFS{}, fmt.Errorf("statfs: %w", err)
	}
	return StatFS{
		BlockSize: uint32(st.Bsize), Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvail: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree, NameLen: object.MaxName,
	}, nil
}

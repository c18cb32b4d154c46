package workcopy

import (
	"sync"
	"syscall"

	"github.com/RoaringBitmap/roaring/v2"

	"dm/object"
)

// inode is what there is to know about a node besides its place and its bytes. It is copied whole when a version of a
// node is frozen; slices in it are replaced, never changed.
type inode struct {
	mode, uid, gid      uint32
	rdev, nlink         uint32
	atime, mtime, ctime Time
	size                uint64
	xattrs              []object.Xattr // sorted by name
	target              string
	linked              bool // lives in the commit's link table
}

// place is one name of a node.
type place struct {
	dir  *node
	name string
}

// node is an inode in memory. All fields are guarded by Copy.mu unless they say otherwise.
type node struct {
	id  NodeID
	ino uint64
	inode
	refs   uint64  // the kernel's references
	places []place // known names; replaced, never changed in place
	base   *object.Entry
	epoch  uint64 // the last epoch in which it or something below it changed; 0: as committed
	// its states at the cuts of commits that are being made, the oldest first, each once it was needed
	versions []*frozen
	logged   bool  // the journal knows it
	stray    bool  // of an earlier generation, kept for those who have it open: the journal must not hear of it
	lsn      int64 // the journal must be synced up to here before the node counts as synced
	bytesLSN int64 // and up to here before its bytes do, without times and other attributes that say nothing of them

	dir  *directory // of directories
	file *content   // of regular files
}

// directory is the overlay of one directory over its committed tree.
type directory struct {
	tree    object.ID        // committed names; zero: none
	touched map[string]*node // names that changed, or lead to something that changed, in this epoch; nil: gone
	loaded  map[string]*node // names read from the tree and still as there
	changes uint64           // counts changes of names
	subdirs uint32
	files   uint64 // below it, at any depth
	bytes   uint64 // below it, at any depth, without hard-linked files
}

// content is where a regular file's bytes are.
//
// A block counts as local if its bytes are in the backing file; others are read from the committed content, and only
// below limit, which shrinks with truncation and grows only to the end of a new commit: what comes to lie behind it again
// is zero.
type content struct {
	backing
	marks
	committed object.Content
	partial   bool            // some blocks may not be local
	local     *roaring.Bitmap // only if partial
	limit     uint64          // only if partial

	ahead readAhead // of partial files

	// io is held shared by whoever changes bytes, and exclusively by a fill, which must not write what it fetched over
	// what somebody has just written. Taken before Copy.mu.
	io sync.RWMutex
}

// frozen is a node as it was at the cut.
type frozen struct {
	snap *Snapshot
	inode
	places  []place
	touched map[string]*node
	file    *frozenFile
}

func (in *inode) isDir() bool     { return in.mode&object.ModeType == object.ModeDir }
func (in *inode) isRegular() bool { return in.mode&object.ModeType == object.ModeRegular }

// attr returns the node's attributes; the caller holds Copy.mu. How many blocks a complete file has is for the host to say:
// measure adds it, without the mutex. host is nil for others.
func (n *node) attr() (a Attr, host *backing) {
	a = Attr{
		Ino: n.ino, Mode: n.mode, Nlink: n.nlink, UID: n.uid, GID: n.gid, Rdev: n.rdev, Size: n.size,
		Atime: n.atime, Mtime: n.mtime, Ctime: n.ctime,
	}
	switch {
	case n.isDir():
		a.Nlink = n.nlink + n.dir.subdirs
		a.Size = BlockSize
		a.Blocks = BlockSize / 512
	case n.isRegular():
		if f := n.file; !f.partial && !f.unknown {
			host = &f.backing
		} else if !f.committed.Root.IsZero() {
			a.Blocks = (n.size + 511) / 512
		}
	case n.target != "":
		a.Size = uint64(len(n.target))
	}
	return a, host
}

// dropPriv clears what must not outlive a change of a file: capabilities always, and the set-ID bits if kill is set,
// because the process has no privilege to keep them. It says whether anything was cleared.
func (n *node) dropPriv(kill bool) bool {
	if n.isDir() {
		return false
	}
	mode, count := n.mode, len(n.xattrs)
	if kill {
		n.mode &^= syscall.S_ISUID
		if n.mode&syscall.S_IXGRP != 0 {
			n.mode &^= syscall.S_ISGID
		}
	}
	n.setXattr("security.capability", nil)
	return n.mode != mode || len(n.xattrs) != count
}

func (n *node) findXattr(name string) int {
	for i := range n.xattrs {
		if n.xattrs[i].Name == name {
			return i
		}
	}
	return -1
}

// setXattr sets or, with a nil value, removes an attribute.
func (n *node) setXattr(name string, value []byte) {
	i := n.findXattr(name)
	if i < 0 && value == nil {
		return
	}
	list := make([]object.Xattr, 0, len(n.xattrs)+1)
	for j := range n.xattrs {
		if j != i {
			list = append(list, n.xattrs[j])
		}
	}
	if value != nil {
		list = append(list, object.Xattr{Name: name, Value: value})
		object.SortXattrs(list)
	}
	n.xattrs = list
}

// fromEntry makes a node that is as committed.
func (c *Copy) fromEntry(e *object.Entry) *node {
	n := &node{id: c.nodeID(e.Ino), ino: e.Ino, base: e}
	t := Time{e.Sec, e.Nsec}
	n.inode = inode{
		mode: e.Mode, uid: e.UID, gid: e.GID, rdev: e.Rdev, nlink: 1, atime: t, mtime: t, ctime: t,
		size: e.Content.Size, xattrs: e.Xattrs, target: e.Target,
	}
	if e.Nlink > 0 {
		n.nlink, n.linked = e.Nlink, true
	}
	switch e.Type() {
	case object.ModeDir:
		n.nlink = 2
		n.dir = &directory{
			tree: e.Tree, subdirs: uint32(e.Totals.Subdirs), files: e.Totals.Files, bytes: e.Totals.Bytes,
		}
	case object.ModeRegular:
		n.file = &content{committed: e.Content, limit: e.Content.Size}
		n.file.init(c, n.id)
		n.file.unknown = true
	}
	return n
}

// toEntry describes an inode for a tree. The caller fills in Content, Tree and Totals.
func (in *inode) toEntry(name string, ino uint64) object.Entry {
	return object.Entry{
		Name: name, Ino: ino, Mode: in.mode, UID: in.uid, GID: in.gid, Sec: in.mtime.Sec, Nsec: in.mtime.Nsec,
		Xattrs: in.xattrs, Target: in.target, Rdev: in.rdev,
	}
}

// asCommitted says whether in is what e describes, apart from content, tree and links.
func (in *inode) asCommitted(e *object.Entry) bool {
	return in.mtime == (Time{e.Sec, e.Nsec}) && in.sameAttributes(e)
}

// sameAttributes is asCommitted without the time.
func (in *inode) sameAttributes(e *object.Entry) bool {
	if in.mode != e.Mode || in.uid != e.UID || in.gid != e.GID || in.rdev != e.Rdev || in.target != e.Target ||
		len(in.xattrs) != len(e.Xattrs) {
		return false
	}
	for i, x := range in.xattrs {
		if x.Name != e.Xattrs[i].Name || string(x.Value) != string(e.Xattrs[i].Value) {
			return false
		}
	}
	return true
}

// at returns the node's version at the cut of a commit; nil: it had not changed since the one before, or not been kept yet.
func (n *node) at(s *Snapshot) *frozen {
	for _, v := range n.versions {
		if v.snap == s {
			return v
		}
	}
	return nil
}

// dropVersion replaces the list, which may be being read.
func (n *node) dropVersion(v *frozen) {
	var list []*frozen
	for _, w := range n.versions {
		if w != v {
			list = append(list, w)
		}
	}
	n.versions = list
}

// find looks a name up in the overlay. known is false where only the tree can tell.
func (n *node) find(name string) (child *node, known bool) {
	d := n.dir
	if child, known = d.touched[name]; known {
		return child, true
	}
	for i := len(n.versions) - 1; i >= 0; i-- {
		if child, known = n.versions[i].touched[name]; known {
			return child, true
		}
	}
	if child, known = d.loaded[name]; known {
		return child, true
	}
	return nil, d.tree.IsZero()
}

// changed returns all names that may differ from the committed tree; nil nodes are gone.
func (n *node) changed() map[string]*node {
	if len(n.versions) == 0 {
		return n.dir.touched
	}
	all := make(map[string]*node, len(n.dir.touched))
	for _, v := range n.versions {
		for name, child := range v.touched {
			all[name] = child
		}
	}
	for name, child := range n.dir.touched {
		all[name] = child
	}
	return all
}

func (d *directory) touch(name string, child *node) {
	if d.touched == nil {
		d.touched = map[string]*node{}
	}
	d.touched[name] = child
}

func (d *directory) load(name string, child *node) {
	if d.loaded == nil {
		d.loaded = map[string]*node{}
	}
	d.loaded[name] = child
}

// addPlace and dropPlace replace the list, because a frozen version may share it.
func (n *node) addPlace(dir *node, name string) {
	n.places = append(n.places[:len(n.places):len(n.places)], place{dir, name})
}

func (n *node) dropPlace(dir *node, name string) {
	list := make([]place, 0, len(n.places))
	for _, p := range n.places {
		if p.dir != dir || p.name != name {
			list = append(list, p)
		}
	}
	n.places = list
}

// parent returns the directory a node is in; nil for the root and for what was removed.
func (n *node) parent() *node {
	if len(n.places) == 0 {
		return nil
	}
	return n.places[0].dir
}

// sums is what a node adds to its directory's totals.
func (n *node) sums() (subdirs uint32, files, bytes uint64) {
	switch {
	case n.isDir():
		return 1, n.dir.files, n.dir.bytes
	case n.linked || !n.isRegular():
		return 0, 1, 0
	}
	return 0, 1, n.size
}

// addSums adds to the totals of a directory and of all above it.
func (n *node) addSums(files, bytes uint64) {
	for d := n; d != nil; d = d.parent() {
		d.dir.files += files
		d.dir.bytes += bytes
	}
}

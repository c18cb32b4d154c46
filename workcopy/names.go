package workcopy

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/object"
)

// ref is a name in a directory, to be resolved to the node behind it.
type ref struct {
	id   NodeID // of the directory
	name string

	dir   *node
	child *node // nil: there is none

	// What the committed tree said, valid while the directory still has that tree.
	asked bool
	tree  object.ID
	links object.ID // the link table that completed entry, if it is hard-linked
	entry *object.Entry
}

// resolve settles what is behind each name. It returns with mu held for writing, within begin if change is true and
// under plain mu otherwise; on an error it holds nothing. Trees are read without mu, and the answer is used only if the
// directory still has the tree that gave it.
func (c *Copy) resolve(ctx context.Context, change, frees bool, refs ...*ref) error {
	for {
		if change {
			if err := c.begin(frees); err != nil {
				return err
			}
		} else {
			c.mu.Lock()
		}
		missing, err := c.settle(refs)
		if err == nil && missing == nil {
			return nil
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if err := c.ask(ctx, missing); err != nil {
			return err
		}
	}
}

// settle fills in dir and child of each ref, or returns one whose tree has to be asked first.
func (c *Copy) settle(refs []*ref) (missing *ref, err error) {
	for _, r := range refs {
		if r.dir, err = c.getDir(r.id); err != nil {
			return nil, err
		}
		if len(r.name) > object.MaxName {
			return nil, syscall.ENAMETOOLONG
		}
		child, known := r.dir.find(r.name)
		switch {
		case known:
			r.child = child
		case !r.asked || r.tree != r.dir.dir.tree || r.links != c.linkTable():
			r.tree, r.links = r.dir.dir.tree, c.linkTable()
			return r, nil
		case r.entry != nil:
			if r.child, err = c.loadEntry(r.dir, r.entry); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// ask reads a name from the committed tree; for a hard-linked file, from the link table. Without mu.
func (c *Copy) ask(ctx context.Context, r *ref) error {
	r.asked, r.entry = true, nil
	e, ok, err := object.LookupTree(ctx, c.cfg.Source, r.tree, r.name)
	if err != nil || !ok {
		return err
	}
	if e, err = c.linkEntry(ctx, r.links, e); err != nil {
		return err
	}
	r.entry = &e
	return nil
}

// linkTable returns the commit's link table. The caller holds mu.
func (c *Copy) linkTable() object.ID {
	if c.commit == nil {
		return object.ID{}
	}
	return c.commit.Links
}

// linkEntry completes a directory's entry of a hard-linked file with what the commit's link table says.
func (c *Copy) linkEntry(ctx context.Context, table object.ID, e object.Entry) (object.Entry, error) {
	if !e.Linked {
		return e, nil
	}
	full, ok, err := object.LookupTree(ctx, c.cfg.Source, table, object.LinkName(e.Ino))
	if err != nil {
		return e, err
	}
	if !ok {
		return e, errors.New("hard link without an entry in the link table")
	}
	full.Name = e.Name
	return full, nil
}

// loadEntry puts a committed entry into the overlay as what it is: clean.
func (c *Copy) loadEntry(dir *node, e *object.Entry) (*node, error) {
	n := c.inodes[e.Ino]
	if e.Ino >= c.nextIno || n != nil && (!n.linked || n.mode&object.ModeType != e.Type()) {
		return nil, errs.New(errs.Damaged, "%q has inode number %d, which is not its own", e.Name, e.Ino)
	}
	if n == nil {
		n = c.fromEntry(e)
		c.add(n)
	}
	n.addPlace(dir, e.Name)
	dir.dir.load(e.Name, n)
	n.logged = false // the next change may remove this name, and the journal must know then whose it was
	return n, nil
}

// Lookup finds a name in a directory and counts a kernel reference on what it finds.
func (c *Copy) Lookup(ctx context.Context, dir NodeID, name string) (NodeID, Attr, error) {
	if name == "." || name == ".." {
		return c.lookupDots(dir, name)
	}
	r := &ref{id: dir, name: name}
	if err := c.resolve(ctx, false, false, r); err != nil {
		return 0, Attr{}, err
	}
	n := r.child
	if n == nil {
		c.mu.Unlock()
		return 0, Attr{}, syscall.ENOENT
	}
	n.refs++
	a, host := n.attr()
	c.mu.Unlock()
	return n.id, host.measure(a), nil
}

func (c *Copy) lookupDots(dir NodeID, name string) (NodeID, Attr, error) {
	c.mu.Lock()
	n, err := c.get(dir)
	if err != nil {
		c.mu.Unlock()
		return 0, Attr{}, err
	}
	if p := n.parent(); name == ".." && p != nil {
		n = p
	}
	n.refs++
	a, host := n.attr()
	c.mu.Unlock()
	return n.id, host.measure(a), nil
}

// Make makes a file, directory, symlink, fifo, socket or device and counts a kernel reference on it.
func (c *Copy) Make(ctx context.Context, dir NodeID, name string, in NewInode) (id NodeID, a Attr, err error) {
	c.gate.wait()
	r := &ref{id: dir, name: name}
	if err := c.resolve(ctx, true, false, r); err != nil {
		return 0, Attr{}, err
	}
	if r.child != nil {
		return 0, Attr{}, c.end(syscall.EEXIST)
	}
	if r.dir.nlink == 0 {
		return 0, Attr{}, c.end(syscall.ENOENT)
	}
	in.inherit(r.dir)
	c.change(r.dir)
	n := c.newNode(in)
	c.bind(r.dir, name, n)
	c.stampDir(r.dir)
	n.refs++
	a, _ = n.attr()
	return n.id, a, c.end(nil, n, r.dir)
}

// inherit follows the set-group-ID bit of the directory.
func (in *NewInode) inherit(dir *node) {
	if dir.mode&syscall.S_ISGID == 0 {
		return
	}
	in.GID = dir.gid
	if in.Mode&object.ModeType == object.ModeDir {
		in.Mode |= syscall.S_ISGID
	}
}

// Tmpfile makes a regular file without a name and counts a kernel reference on it. Link can give it a name.
func (c *Copy) Tmpfile(_ context.Context, dir NodeID, in NewInode) (id NodeID, a Attr, err error) {
	c.gate.wait()
	if err := c.begin(false); err != nil {
		return 0, Attr{}, err
	}
	d, err := c.getDir(dir)
	if err != nil {
		return 0, Attr{}, c.end(err)
	}
	in.inherit(d)
	n := c.newNode(in)
	n.nlink = 0
	n.refs++
	c.journal.inode(n)
	a, _ = n.attr()
	return n.id, a, c.end(nil)
}

// Link gives a file another name.
func (c *Copy) Link(ctx context.Context, id, dir NodeID, name string) (a Attr, err error) {
	c.gate.wait()
	r := &ref{id: dir, name: name}
	if err := c.resolve(ctx, true, false, r); err != nil {
		return Attr{}, err
	}
	n, err := c.get(id)
	switch {
	case err != nil:
		return Attr{}, c.end(err)
	case n.isDir():
		return Attr{}, c.end(syscall.EPERM)
	case r.child != nil:
		return Attr{}, c.end(syscall.EEXIST)
	case r.dir.nlink == 0, n.stray:
		return Attr{}, c.end(syscall.ENOENT)
	case n.nlink == ^uint32(0):
		return Attr{}, c.end(syscall.EMLINK)
	}
	c.change(n)
	if !n.linked && n.nlink > 0 {
		c.setLinked(n)
	}
	n.nlink++
	c.bind(r.dir, name, n)
	c.stamp(n)
	c.stampDir(r.dir)
	n.refs++
	a, host := n.attr()
	err = c.end(nil, n, r.dir)
	return host.measure(a), err
}

// setLinked moves a file into the link table: it has, or is about to have, more than one name.
func (c *Copy) setLinked(n *node) {
	for _, p := range n.places { // its bytes are counted in the table now, no longer in its directory
		if n.isRegular() {
			p.dir.addSums(0, -n.size)
		}
	}
	n.linked = true
}

// Unlink removes a name of something that is no directory.
func (c *Copy) Unlink(ctx context.Context, dir NodeID, name string) error {
	c.gate.wait()
	r := &ref{id: dir, name: name}
	if err := c.resolve(ctx, true, true, r); err != nil {
		return err
	}
	switch {
	case r.child == nil:
		return c.end(syscall.ENOENT)
	case r.child.isDir():
		return c.end(syscall.EISDIR)
	}
	c.removeName(r.dir, name, r.child)
	c.stampDir(r.dir)
	return c.end(nil, r.dir)
}

// removeName takes a name away, and the node with its last one.
func (c *Copy) removeName(dir *node, name string, n *node) {
	c.unbind(dir, name, n)
	c.bind(dir, name, nil)
	c.loseLink(n)
}

// loseLink counts a lost name. A node without any is gone when the kernel lets go of it.
func (c *Copy) loseLink(n *node) {
	if n.isDir() {
		n.nlink = 0
	} else {
		n.nlink--
	}
	c.stamp(n)
	if n.nlink > 0 {
		return
	}
	c.journal.gone(n.ino)
	c.unref(n)
}

// Rmdir removes an empty directory.
func (c *Copy) Rmdir(ctx context.Context, dir NodeID, name string) error {
	c.gate.wait()
	r := &ref{id: dir, name: name}
	if err := c.resolve(ctx, true, true, r); err != nil {
		return err
	}
	if r.child == nil {
		return c.end(syscall.ENOENT)
	}
	if !r.child.isDir() {
		return c.end(syscall.ENOTDIR)
	}
	if !r.child.dir.empty() {
		return c.end(syscall.ENOTEMPTY)
	}
	c.removeName(r.dir, name, r.child)
	c.stampDir(r.dir)
	return c.end(nil, r.dir)
}

// errFound ends a walk.
var errFound = errors.New("found")

// empty says whether a directory has no names.
func (d *directory) empty() bool { return d.subdirs == 0 && d.files == 0 }

// Rename moves a name, with the flags of renameat2(2): RENAME_NOREPLACE and RENAME_EXCHANGE.
func (c *Copy) Rename(ctx context.Context, dir NodeID, name string, toDir NodeID, toName string, flags uint32) error {
	c.gate.wait()
	from, to := &ref{id: dir, name: name}, &ref{id: toDir, name: toName}
	if err := c.resolve(ctx, true, false, from, to); err != nil {
		return err
	}
	if err := mayRename(from, to, flags); err != nil {
		return c.end(err)
	}
	a, b := from.child, to.child
	if a == b {
		return c.end(nil) // two names of one file: POSIX says that nothing happens
	}
	c.unbind(from.dir, name, a)
	if b != nil {
		c.unbind(to.dir, toName, b)
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		c.bind(from.dir, name, b)
		c.stamp(b)
	} else {
		c.bind(from.dir, name, nil)
	}
	c.bind(to.dir, toName, a)
	c.stamp(a)
	if b != nil && flags&unix.RENAME_EXCHANGE == 0 {
		c.loseLink(b)
	}
	c.stampDir(from.dir)
	if to.dir != from.dir {
		c.stampDir(to.dir)
	}
	return c.end(nil, from.dir, to.dir, a)
}

func mayRename(from, to *ref, flags uint32) error {
	a, b := from.child, to.child
	exchange := flags&unix.RENAME_EXCHANGE != 0
	switch {
	case flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0:
		return syscall.EINVAL
	case a == nil || exchange && b == nil || to.dir.nlink == 0:
		return syscall.ENOENT
	case flags&unix.RENAME_NOREPLACE != 0 && b != nil:
		return syscall.EEXIST
	case a.isDir() && a.above(to.dir), exchange && b.isDir() && b.above(from.dir):
		return syscall.EINVAL
	case b == nil || exchange || a == b:
		return nil
	case a.isDir() && !b.isDir():
		return syscall.ENOTDIR
	case !a.isDir() && b.isDir():
		return syscall.EISDIR
	case b.isDir() && !b.dir.empty():
		return syscall.ENOTEMPTY
	}
	return nil
}

// above says whether n is d or a directory on the way from the root to d.
func (n *node) above(d *node) bool {
	for ; d != nil; d = d.parent() {
		if d == n {
			return true
		}
	}
	return false
}

// Readlink returns a symlink's target.
func (c *Copy) Readlink(_ context.Context, id NodeID) (string, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, err := c.get(id)
	if err != nil {
		return "", err
	}
	if n.mode&object.ModeType != object.ModeSymlink {
		return "", syscall.EINVAL
	}
	return n.target, nil
}

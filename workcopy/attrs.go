package workcopy

import (
	"context"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dm/object"
)

// GetAttr returns a node's attributes. For regular files it waits at the gate: with the kernel's writeback cache this is
// where a write(2) that begins after the cut is held back.
func (c *Copy) GetAttr(_ context.Context, id NodeID) (Attr, error) {
	c.gate.wait()
	c.mu.RLock()
	n, err := c.get(id)
	if err != nil {
		c.mu.RUnlock()
		return Attr{}, err
	}
	a, host := n.attr()
	c.mu.RUnlock()
	return host.measure(a), nil
}

// SetAttr changes attributes and returns them as they are then.
func (c *Copy) SetAttr(ctx context.Context, id NodeID, ch AttrChange) (Attr, error) {
	if !ch.Late && !ch.Pass {
		c.gate.wait()
	}
	if ch.Size != nil {
		if err := c.truncate(ctx, id, *ch.Size, false); err != nil {
			return Attr{}, err
		}
	}
	if err := c.begin(true); err != nil {
		return Attr{}, err
	}
	n, err := c.get(id)
	if err != nil {
		return Attr{}, c.end(err)
	}
	if ch.Late && n.epoch != c.epoch {
		return c.lateTimes(n, ch)
	}
	c.change(n)
	c.setAttr(n, ch)
	c.journal.inode(n)
	a, host := n.attr()
	if ch.Size != nil {
		err = c.end(nil, n)
	} else {
		err = c.endAttributes(n)
	}
	return host.measure(a), err
}

func (c *Copy) setAttr(n *node, ch AttrChange) {
	if ch.Mode != nil {
		n.mode = n.mode&object.ModeType | *ch.Mode&^object.ModeType
	}
	if ch.UID != nil {
		n.uid = *ch.UID
	}
	if ch.GID != nil {
		n.gid = *ch.GID
	}
	if ch.KillPriv || ch.UID != nil || ch.GID != nil {
		n.dropPriv(ch.KillPriv)
	}
	n.ctime = c.now()
	if ch.Size != nil && ch.Mtime == nil {
		n.mtime = n.ctime
	}
	if ch.Mtime != nil {
		n.mtime = *ch.Mtime
	}
	if ch.Atime != nil {
		n.atime = *ch.Atime
	}
	if ch.Ctime != nil {
		n.ctime = *ch.Ctime
	}
}

// lateTimes takes times that the kernel hands over for a file that was not changed since the cut. The commit has the
// time at which the bytes arrived; a file does not become dirty for the difference.
func (c *Copy) lateTimes(n *node, ch AttrChange) (Attr, error) {
	if ch.Mtime != nil {
		n.mtime = *ch.Mtime
	}
	if ch.Ctime != nil {
		n.ctime = *ch.Ctime
	}
	a, host := n.attr()
	err := c.end(nil)
	return host.measure(a), err
}

// Capability is the extended attribute for which the kernel asks before the first write(2) on a file whose attributes it got.
const Capability = "security.capability"

// GetXattr returns an extended attribute's value. For Capability it waits at the gate, as GetAttr does and for the same
// reason.
func (c *Copy) GetXattr(_ context.Context, id NodeID, name string) ([]byte, error) {
	if name == Capability {
		c.gate.wait()
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, err := c.get(id)
	if err != nil {
		return nil, err
	}
	if i := n.findXattr(name); i >= 0 {
		return n.xattrs[i].Value, nil
	}
	return nil, unix.ENODATA
}

// ListXattr returns the names of a node's extended attributes.
func (c *Copy) ListXattr(_ context.Context, id NodeID) ([]string, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, err := c.get(id)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(n.xattrs))
	for i := range names {
		names[i] = n.xattrs[i].Name
	}
	return names, nil
}

// SetXattr sets an extended attribute, with the flags of setxattr(2).
func (c *Copy) SetXattr(_ context.Context, id NodeID, name string, value []byte, flags uint32) error {
	c.gate.wait()
	if name == "" || len(name) > object.MaxName || strings.ContainsRune(name, 0) {
		return syscall.ERANGE
	}
	if err := c.begin(false); err != nil {
		return err
	}
	n, err := c.get(id)
	if err != nil {
		return c.end(err)
	}
	i := n.findXattr(name)
	total := len(name) + len(value)
	for j, x := range n.xattrs {
		if j != i {
			total += len(x.Name) + len(x.Value)
		}
	}
	switch {
	case flags&unix.XATTR_CREATE != 0 && i >= 0:
		return c.end(syscall.EEXIST)
	case flags&unix.XATTR_REPLACE != 0 && i < 0:
		return c.end(unix.ENODATA)
	case total > object.MaxXattr:
		return c.end(syscall.ENOSPC)
	}
	c.change(n)
	n.setXattr(name, append(make([]byte, 0, len(value)), value...))
	c.stamp(n)
	return c.end(nil, n)
}

// RemoveXattr removes an extended attribute.
func (c *Copy) RemoveXattr(_ context.Context, id NodeID, name string) error {
	c.gate.wait()
	if err := c.begin(true); err != nil {
		return err
	}
	n, err := c.get(id)
	if err != nil {
		return c.end(err)
	}
	if n.findXattr(name) < 0 {
		return c.end(unix.ENODATA)
	}
	c.change(n)
	n.setXattr(name, nil)
	c.stamp(n)
	return c.end(nil, n)
}

// Fsync makes a file's bytes, or with its attributes also these, or a directory's names durable. With the node go all
// names and attributes changed before it: the journal keeps its order.
func (c *Copy) Fsync(_ context.Context, id NodeID, dataOnly bool) error {
	c.gate.halves.noWrite(id)
	c.mu.RLock()
	n, err := c.get(id)
	if err != nil {
		c.mu.RUnlock()
		return err
	}
	lsn, end, j := n.lsn, c.journal.lsn(), c.journal
	if dataOnly && n.file != nil {
		lsn = n.bytesLSN
	}
	c.mu.RUnlock()
	if n.file == nil {
		return j.sync(lsn, end)
	}
	if j.synced.Load() >= lsn {
		return n.file.sync(dataOnly)
	}
	done := make(chan error, 1)
	go func() { done <- j.sync(lsn, end) }() // both at once: the host's filesystem makes one transaction of them
	err = n.file.sync(dataOnly)
	if jerr := <-done; err == nil {
		err = jerr
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Package fusefs shows a working copy to the kernel: it mounts it and translates the FUSE protocol to its methods.
//
// The translation is handle-less: OPEN, OPENDIR, FLUSH and CREATE are answered with ENOSYS once, and from then on the
// kernel opens and closes files by itself. A node id is all that a request names, so a restarted server can answer for
// files that stayed open. Names and attributes are cached by the kernel without a time limit, since nothing changes a
// mounted working copy but the kernel itself; what a reset replaces is announced with Invalidate.
//
// With Cache Writeback a write(2) ends in the kernel's page cache and this server hears of it later. A commit that is to
// show one instant then needs three things of the mount, which it gives as a workcopy.Kernel:
//
//	leases    the attributes that the kernel may hold as valid of a regular file that it writes to. Before each write(2)
//	          the kernel wants valid attributes; taking a lease back makes the next write(2) ask, and the question waits
//	          at the working copy's gate. Before the first write(2) it asks, too, and that makes the lease.
//	flusher   a child process that opens inodes by handle and has the kernel write them out. The server itself must
//	          never touch its own mount: killed in such a call it would never end.
//	flush set what had a lease since the last cut, or showed that it is written without one (a shared mmap).
//
// The layout of the package:
//
//	mount.go            mounting, unmounting, who keeps a mount busy
//	names.go files.go   the translation: names and directories, files and attributes
//	call.go errno.go    a request's context, errors as errno
//	leases.go cut.go    what the kernel holds, and the steps of a cut
//	flusher.go child.go the flusher, as its parent and as the child sees it
//	selftest.go         does this kernel behave as a cut needs?
//	stale.go            remains of servers that died
package fusefs

import (
	"context"
	"log/slog"

	"dm/internal/errs"
	"dm/workcopy"
)

// Volume is what a mount shows: *workcopy.Copy, seen from here. All methods are safe for concurrent use. Errors that
// POSIX knows are syscall.Errno values; every other error is mapped by its kind.
//
// Methods that change something, and GetAttr of regular files, wait while the volume's gate is closed; except Write with
// writeback set, SetAttr with Late or Pass set, and Lookup, also of ".".
//
// Lookup, Make, Link and Tmpfile count one kernel reference on the node they return; Forget gives n back.
type Volume interface {
	Lookup(ctx context.Context, dir workcopy.NodeID, name string) (workcopy.NodeID, workcopy.Attr, error)
	Forget(id workcopy.NodeID, n uint64)
	GetAttr(ctx context.Context, id workcopy.NodeID) (workcopy.Attr, error)
	SetAttr(ctx context.Context, id workcopy.NodeID, ch workcopy.AttrChange) (workcopy.Attr, error)
	Make(ctx context.Context, dir workcopy.NodeID, name string, in workcopy.NewInode) (workcopy.NodeID, workcopy.Attr, error)
	Tmpfile(ctx context.Context, dir workcopy.NodeID, in workcopy.NewInode) (workcopy.NodeID, workcopy.Attr, error)
	Link(ctx context.Context, id, dir workcopy.NodeID, name string) (workcopy.Attr, error)
	Unlink(ctx context.Context, dir workcopy.NodeID, name string) error
	Rmdir(ctx context.Context, dir workcopy.NodeID, name string) error
	Rename(ctx context.Context, dir workcopy.NodeID, name string, toDir workcopy.NodeID, toName string, flags uint32) error
	Readlink(ctx context.Context, id workcopy.NodeID) (string, error)
	GetXattr(ctx context.Context, id workcopy.NodeID, name string) ([]byte, error)
	SetXattr(ctx context.Context, id workcopy.NodeID, name string, value []byte, flags uint32) error
	RemoveXattr(ctx context.Context, id workcopy.NodeID, name string) error
	ListXattr(ctx context.Context, id workcopy.NodeID) ([]string, error)
	Read(ctx context.Context, id workcopy.NodeID, p []byte, off int64) (int, error)
	Write(ctx context.Context, id workcopy.NodeID, data [][]byte, off int64, writeback, killPriv bool) (int, error)
	Fallocate(ctx context.Context, id workcopy.NodeID, mode uint32, off, length int64) error
	Seek(ctx context.Context, id workcopy.NodeID, off int64, what workcopy.RangeKind) (int64, error)
	CopyRange(ctx context.Context, from workcopy.NodeID, fromOff int64, to workcopy.NodeID, toOff int64, n int64) (int64, error)
	Fsync(ctx context.Context, id workcopy.NodeID, dataOnly bool) error
	ReadDir(ctx context.Context, dir workcopy.NodeID, cookie uint64, fn func(e workcopy.DirEntry) bool) error
	StatFS(ctx context.Context) (workcopy.StatFS, error)
	Attach(k workcopy.Kernel) (detach func())
}

// Cache says where a write(2) ends.
type Cache uint8

// The cache modes.
const (
	// Writeback lets writes end in the kernel's page cache. It needs a Flusher and a kernel that passes SelfTest.
	Writeback Cache = iota
	// Through sends each write(2) to the server before it returns; five to ten times slower for small writes.
	Through
)

// String returns the name users write.
func (c Cache) String() string {
	if c == Through {
		return "through"
	}
	return "writeback"
}

// ParseCache is the inverse of String.
func ParseCache(s string) (Cache, error) {
	switch s {
	case "writeback":
		return Writeback, nil
	case "through":
		return Through, nil
	}
	return 0, errs.New(errs.Usage, "%q is no cache mode: use writeback or through", s)
}

// Options say how to mount.
type Options struct {
	Cache    Cache
	ReadOnly bool   // refuse writes in the kernel already; the volume must refuse them too
	FSName   string // shown as the source in /proc/mounts; "": dm
	// Flusher writes out the kernel's cache at a cut. Needed for Writeback, unless ReadOnly. With Through it serves
	// files that are written through a shared mmap; nil: these are in a commit as far as the kernel wrote them by itself.
	Flusher *Flusher
	Log     *slog.Logger // nil: slog.Default()
}

func (o *Options) fill() error {
	if o.FSName == "" {
		o.FSName = "dm"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Cache == Writeback && !o.ReadOnly && o.Flusher == nil {
		return errs.New(errs.Usage, "mount with a writeback cache: there is no flusher")
	}
	return nil
}

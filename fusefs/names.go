package fusefs

import (
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"dm/workcopy"
)

// forever is how long the kernel may keep what only the kernel itself changes.
const forever = 365 * 24 * time.Hour

// filesystem translates requests of the raw protocol. What it does not implement the embedded default answers with
// ENOSYS; the kernel then does it by itself (permissions, locks) or says that it cannot be done (ioctls).
type filesystem struct {
	fuse.RawFileSystem
	vol      Volume
	leases   *leases
	cutter   *cutter // nil: read-only
	readonly bool
	failures failures
}

func newFilesystem(vol Volume, l *leases, opts Options, log *slog.Logger) *filesystem {
	return &filesystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		vol:           vol, leases: l, readonly: opts.ReadOnly, failures: failures{log: log},
	}
}

func (fs *filesystem) String() string { return "dm" }

// Open, OpenDir, Create and Flush are answered once: after ENOSYS the kernel opens and closes files without asking, keeps
// their pages from one open to the next, and makes files with MKNOD.

func (fs *filesystem) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (fs *filesystem) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (fs *filesystem) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.ENOSYS
}

func (fs *filesystem) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (fs *filesystem) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c := begin(cancel, h)
	defer c.finish()
	id, a, err := fs.vol.Lookup(c, workcopy.NodeID(h.NodeId), name)
	if err == syscall.ENOENT {
		// Only the kernel makes names in a mounted volume, so it may remember that there is none. The node id stays 0.
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	if err != nil {
		return fs.failures.status("lookup", h.NodeId, err)
	}
	fs.entry(id, a, out)
	return fuse.OK
}

// entry answers with a node that the volume has counted a reference on.
func (fs *filesystem) entry(id workcopy.NodeID, a workcopy.Attr, out *fuse.EntryOut) {
	out.NodeId = uint64(id)
	out.SetEntryTimeout(forever)
	setAttr(&out.Attr, a)
	if !isRegular(a.Mode) || fs.leases.take(id, 1) {
		out.SetAttrTimeout(forever)
	}
}

func (fs *filesystem) Forget(id, n uint64) {
	fs.leases.forget(workcopy.NodeID(id), n)
	fs.vol.Forget(workcopy.NodeID(id), n)
}

// make is the one way in which all kinds of inodes with a name come into being.
func (fs *filesystem) make(op string, cancel <-chan struct{}, h *fuse.InHeader, name string, in workcopy.NewInode, out *fuse.EntryOut) fuse.Status {
	c := begin(cancel, h)
	defer c.finish()
	in.UID, in.GID = h.Uid, h.Gid
	id, a, err := fs.vol.Make(c, workcopy.NodeID(h.NodeId), name, in)
	if err != nil {
		return fs.failures.status(op, h.NodeId, err)
	}
	fs.entry(id, a, out)
	return fuse.OK
}

func (fs *filesystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := in.Mode
	if mode&syscall.S_IFMT == 0 {
		mode |= syscall.S_IFREG
	}
	return fs.make("mknod", cancel, &in.InHeader, name, workcopy.NewInode{Mode: mode, Rdev: in.Rdev}, out)
}

func (fs *filesystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := in.Mode&^syscall.S_IFMT | syscall.S_IFDIR
	return fs.make("mkdir", cancel, &in.InHeader, name, workcopy.NewInode{Mode: mode}, out)
}

func (fs *filesystem) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make("symlink", cancel, h, name, workcopy.NewInode{Mode: syscall.S_IFLNK | 0o777, Target: target}, out)
}

// Tmpfile is open(2) with O_TMPFILE. The answer's handle is 0, as that of all files here.
func (fs *filesystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	mode := in.Mode&^syscall.S_IFMT | syscall.S_IFREG
	id, a, err := fs.vol.Tmpfile(c, workcopy.NodeID(in.NodeId), workcopy.NewInode{Mode: mode, UID: in.Uid, GID: in.Gid})
	if err != nil {
		return fs.failures.status("tmpfile", in.NodeId, err)
	}
	fs.entry(id, a, &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (fs *filesystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	id := workcopy.NodeID(in.Oldnodeid)
	a, err := fs.vol.Link(c, id, workcopy.NodeID(in.NodeId), name)
	if err != nil {
		return fs.failures.status("link", in.NodeId, err)
	}
	out.NodeId = in.Oldnodeid
	out.SetEntryTimeout(forever)
	setAttr(&out.Attr, a)
	// No lease: the kernel would take it from this answer even if it was called back meanwhile.
	if !isRegular(a.Mode) {
		out.SetAttrTimeout(forever)
	} else {
		fs.leases.ref(id, 1)
	}
	return fuse.OK
}

func (fs *filesystem) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := begin(cancel, h)
	defer c.finish()
	return fs.failures.status("unlink", h.NodeId, fs.vol.Unlink(c, workcopy.NodeID(h.NodeId), name))
}

func (fs *filesystem) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := begin(cancel, h)
	defer c.finish()
	return fs.failures.status("rmdir", h.NodeId, fs.vol.Rmdir(c, workcopy.NodeID(h.NodeId), name))
}

func (fs *filesystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	err := fs.vol.Rename(c, workcopy.NodeID(in.NodeId), name, workcopy.NodeID(in.Newdir), newName, in.Flags)
	return fs.failures.status("rename", in.NodeId, err)
}

func (fs *filesystem) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	c := begin(cancel, h)
	defer c.finish()
	target, err := fs.vol.Readlink(c, workcopy.NodeID(h.NodeId))
	return []byte(target), fs.failures.status("readlink", h.NodeId, err)
}

// The places of "." and ".." in a listing. A volume's cookies are above them.
const (
	cookieDot    = 1
	cookieDotDot = 2
)

func (fs *filesystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(cancel, in, out, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus is a listing with a Lookup for each name. The names are collected first: the volume is not called from
// within its own ReadDir.
func (fs *filesystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	type slot struct {
		name string
		out  *fuse.EntryOut
	}
	var slots []slot
	st := fs.readDir(cancel, in, out, func(e fuse.DirEntry) bool {
		eo := out.AddDirLookupEntry(e)
		if eo != nil && e.Name != "." && e.Name != ".." {
			slots = append(slots, slot{e.Name, eo})
		}
		return eo != nil
	})
	if st != fuse.OK {
		return st
	}
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	for _, s := range slots {
		// A name that is gone meanwhile keeps node id 0: the kernel then has its name only.
		if id, a, err := fs.vol.Lookup(c, workcopy.NodeID(in.NodeId), s.name); err == nil {
			fs.entry(id, a, s.out)
		}
	}
	return fuse.OK
}

func (fs *filesystem) readDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList, add func(fuse.DirEntry) bool) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	dir := workcopy.NodeID(in.NodeId)
	after := in.Offset
	for _, d := range []struct {
		name   string
		cookie uint64
	}{{".", cookieDot}, {"..", cookieDotDot}} {
		if after >= d.cookie {
			continue
		}
		id, a, err := fs.vol.Lookup(c, dir, d.name)
		if err != nil {
			return fs.failures.status("readdir", in.NodeId, err)
		}
		fs.vol.Forget(id, 1)
		if !add(fuse.DirEntry{Name: d.name, Ino: a.Ino, Mode: a.Mode, Off: d.cookie}) {
			return fuse.OK
		}
	}
	if after <= cookieDotDot {
		after = 0
	}
	err := fs.vol.ReadDir(c, dir, after, func(e workcopy.DirEntry) bool {
		return add(fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Type, Off: e.Cookie})
	})
	return fs.failures.status("readdir", in.NodeId, err)
}

func (fs *filesystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.Fsync(cancel, in)
}

func (fs *filesystem) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	c := begin(cancel, h)
	defer c.finish()
	s, err := fs.vol.StatFS(c)
	if err != nil {
		return fs.failures.status("statfs", h.NodeId, err)
	}
	*out = fuse.StatfsOut{
		Blocks: s.Blocks, Bfree: s.BlocksFree, Bavail: s.BlocksAvail, Files: s.Files, Ffree: s.FilesFree,
		Bsize: s.BlockSize, Frsize: s.BlockSize, NameLen: s.NameLen,
	}
	return fuse.OK
}

// isACL says whether an attribute is a POSIX access control list. Without the protocol's ACL support the kernel would
// store it here and not enforce it, so it is refused.
func isACL(name string) bool { return strings.HasPrefix(name, "system.posix_acl_") }

// mayName says whether an attribute can be set: the kernel leaves it to a FUSE filesystem to know which namespaces exist.
func mayName(name string) bool {
	for _, space := range []string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, space) && len(name) > len(space) {
			return true
		}
	}
	return false
}

func (fs *filesystem) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if isACL(name) {
		return 0, fuse.ENOTSUP
	}
	c := begin(cancel, h)
	defer c.finish()
	id := workcopy.NodeID(h.NodeId)
	asked := name == workcopy.Capability
	dark := fs.leases.dark.Load()
	if asked {
		fs.leases.writes(id)
	}
	value, err := fs.vol.GetXattr(c, id, name)
	if asked { // and so it has been through the gate
		fs.leases.lighten(dark)
		fs.leases.writes(id)
	}
	if err != nil {
		return 0, fs.failures.status("getxattr", h.NodeId, err)
	}
	return fill(dest, value)
}

func (fs *filesystem) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c := begin(cancel, h)
	defer c.finish()
	names, err := fs.vol.ListXattr(c, workcopy.NodeID(h.NodeId))
	if err != nil {
		return 0, fs.failures.status("listxattr", h.NodeId, err)
	}
	var list []byte
	for _, name := range names {
		if h.Uid != 0 && strings.HasPrefix(name, "trusted.") {
			continue // only for the privileged, as on every other filesystem
		}
		list = append(append(list, name...), 0)
	}
	return fill(dest, list)
}

// fill copies value into a buffer that may be too small: then the size alone is told.
func fill(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (fs *filesystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if !mayName(name) {
		return fuse.ENOTSUP
	}
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	err := fs.vol.SetXattr(c, workcopy.NodeID(in.NodeId), name, value, in.Flags)
	return fs.failures.status("setxattr", in.NodeId, err)
}

func (fs *filesystem) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if isACL(name) {
		return fuse.ENOTSUP
	}
	c := begin(cancel, h)
	defer c.finish()
	return fs.failures.status("removexattr", h.NodeId, fs.vol.RemoveXattr(c, workcopy.NodeID(h.NodeId), name))
}

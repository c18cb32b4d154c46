package fusefs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"dm/workcopy"
)

func isRegular(mode uint32) bool { return mode&syscall.S_IFMT == syscall.S_IFREG }

func setAttr(out *fuse.Attr, a workcopy.Attr) {
	*out = fuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks, Mode: a.Mode, Nlink: a.Nlink, Rdev: a.Rdev, Blksize: workcopy.BlockSize,
		Atime: uint64(a.Atime.Sec), Atimensec: a.Atime.Nsec,
		Mtime: uint64(a.Mtime.Sec), Mtimensec: a.Mtime.Nsec,
		Ctime: uint64(a.Ctime.Sec), Ctimensec: a.Ctime.Nsec,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
	}
}

// GetAttr answers with a lease for a regular file. It is the question the kernel asks before a write(2), and where that
// write waits during a cut.
func (fs *filesystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	id := workcopy.NodeID(in.NodeId)
	if fs.fromFlusher(&in.InHeader) {
		// The kernel checks the flusher's permission to open. It must not wait at the gate that is closed for it, and
		// gets no lease, since it never writes.
		same, a, err := fs.vol.Lookup(c, id, ".")
		if err != nil {
			return fs.failures.status("getattr", in.NodeId, err)
		}
		fs.vol.Forget(same, 1)
		setAttr(&out.Attr, a)
		return fuse.OK
	}
	dark := fs.leases.dark.Load()
	a, err := fs.vol.GetAttr(c, id)
	if err != nil {
		return fs.failures.status("getattr", in.NodeId, err)
	}
	setAttr(&out.Attr, a)
	if !isRegular(a.Mode) {
		out.SetTimeout(forever)
		return fuse.OK
	}
	// This request has been through the gate, so it is open again.
	fs.leases.lighten(dark)
	give := false
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 { // stat(2) asks without a file handle, write(2) with one
		give = fs.leases.takeForWrite(id)
	} else {
		give = fs.leases.take(id, 0)
	}
	if give {
		out.SetTimeout(forever)
	}
	return fuse.OK
}

func (fs *filesystem) fromFlusher(h *fuse.InHeader) bool {
	return fs.cutter != nil && fs.cutter.isFlusher(h.Pid)
}

// SetAttr gives no lease: unlike with GETATTR, the kernel would take it from this answer even if it was called back
// meanwhile.
func (fs *filesystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	id := workcopy.NodeID(in.NodeId)
	ch := change(in)
	ch.Late = fs.isLate(in)
	if ch.Size != nil && fs.cutter != nil {
		ch.Pass = fs.cutter.beginTruncate()
		defer fs.cutter.endTruncate(ch.Pass)
	}
	a, err := fs.vol.SetAttr(c, id, ch)
	if err != nil {
		return fs.failures.status("setattr", in.NodeId, err)
	}
	setAttr(&out.Attr, a)
	if !isRegular(a.Mode) || !fs.leases.on {
		out.SetTimeout(forever)
	}
	return fuse.OK
}

func change(in *fuse.SetAttrIn) (ch workcopy.AttrChange) {
	if mode, ok := in.GetMode(); ok {
		ch.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		ch.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		ch.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		ch.Size = &size
	}
	if t, ok := in.GetATime(); ok {
		ch.Atime = &workcopy.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	if t, ok := in.GetMTime(); ok {
		ch.Mtime = &workcopy.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	if t, ok := in.GetCTime(); ok {
		ch.Ctime = &workcopy.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	}
	ch.KillPriv = in.Valid&fuse.FATTR_KILL_SUIDGID != 0
	return ch
}

// isLate says whether the kernel hands over times that it kept itself: its inode writeback sets mtime and ctime, nothing
// else, not to "now". That is what utimensat(2) with a changed mtime alone looks like, too. But a write sets both times
// to the same value, and comes with data; a file whose data came in since the kernel last handed over its times is owed
// some.
func (fs *filesystem) isLate(in *fuse.SetAttrIn) bool {
	const times = fuse.FATTR_MTIME | fuse.FATTR_CTIME
	if !fs.leases.on || in.Valid&^(fuse.FATTR_FH|fuse.FATTR_LOCKOWNER) != times {
		return false
	}
	if fs.fromFlusher(&in.InHeader) {
		return true
	}
	return in.Mtime == in.Ctime && in.Mtimensec == in.Ctimensec && fs.leases.paid(workcopy.NodeID(in.NodeId))
}

func (fs *filesystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	n, err := fs.vol.Read(c, workcopy.NodeID(in.NodeId), buf, int64(in.Offset))
	if err != nil {
		return nil, fs.failures.status("read", in.NodeId, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (fs *filesystem) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	id := workcopy.NodeID(in.NodeId)
	cached := in.WriteFlags&fuse.WRITE_CACHE != 0
	if cached {
		fs.leases.wrote(id)
	}
	n, err := fs.vol.Write(c, id, data, int64(in.Offset), cached, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	return uint32(n), fs.failures.status("write", in.NodeId, err)
}

func (fs *filesystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if fs.fromFlusher(&in.InHeader) {
		return fuse.OK // it wants the kernel's cache written out, not the disk synced
	}
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	const dataOnly = 1 // FUSE_FSYNC_FDATASYNC
	err := fs.vol.Fsync(c, workcopy.NodeID(in.NodeId), in.FsyncFlags&dataOnly != 0)
	if err == nil && fs.cutter != nil && in.FsyncFlags&dataOnly == 0 {
		// The kernel has the number of blocks from before it wrote them out. It takes no lock for this.
		fs.cutter.refresh(workcopy.NodeID(in.NodeId))
	}
	return fs.failures.status("fsync", in.NodeId, err)
}

// dropSetID clears the set-ID bits of a file after a change by somebody without privilege, for requests in which the
// kernel has no flag that asks for it.
func (fs *filesystem) dropSetID(ctx context.Context, id workcopy.NodeID) error {
	a, err := fs.vol.GetAttr(ctx, id)
	if err != nil || a.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return err
	}
	_, err = fs.vol.SetAttr(ctx, id, workcopy.AttrChange{KillPriv: true})
	return err
}

func (fs *filesystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	id := workcopy.NodeID(in.NodeId)
	err := fs.vol.Fallocate(c, id, in.Mode, int64(in.Offset), int64(in.Length))
	if err == nil && in.Uid != 0 {
		err = fs.dropSetID(c, id)
	}
	return fs.failures.status("fallocate", in.NodeId, err)
}

// Lseek answers SEEK_DATA and SEEK_HOLE. The kernel asks without writing out first: data that is only in its cache would
// be taken for a hole, and a copy made with such an answer would lack it.
func (fs *filesystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	id := workcopy.NodeID(in.NodeId)
	what := workcopy.Data
	switch in.Whence {
	case unix.SEEK_DATA:
	case unix.SEEK_HOLE:
		what = workcopy.Hole
	default:
		return fuse.EINVAL
	}
	if fs.cutter != nil {
		if err := fs.cutter.flushNode(c, id); err != nil {
			return fs.failures.status("lseek", in.NodeId, err)
		}
	}
	off, err := fs.vol.Seek(c, id, int64(in.Offset), what)
	out.Offset = uint64(off)
	return fs.failures.status("lseek", in.NodeId, err)
}

// maxCopy bounds one COPY_FILE_RANGE: its answer has 32 bits, and a gate should not wait long for it.
const maxCopy = 64 << 20

func (fs *filesystem) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	c := begin(cancel, &in.InHeader)
	defer c.finish()
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	n, err := fs.vol.CopyRange(c, workcopy.NodeID(in.NodeId), int64(in.OffIn), workcopy.NodeID(in.NodeIdOut), int64(in.OffOut),
		int64(min(in.Len, maxCopy)))
	return uint32(n), fs.failures.status("copy", in.NodeId, err)
}

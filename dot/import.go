package dot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/object"
	"dm/workcopy"
)

// importer copies a host directory into a working copy.
type importer struct {
	ctx   context.Context
	c     *workcopy.Copy
	links map[[2]uint64]workcopy.NodeID // by device and inode: hard-linked files, each with a kernel reference held
	buf   []byte
	res   ImportResult
	meter *meter
}

// Import copies a directory of the host into a subdot of the working copy, which it makes if needed: modes, owners, times,
// extended attributes, hard links, holes, devices. n.Subdot may be empty: the default one. What is in the subdot under
// other names stays; a name that exists on both sides is a Conflict before anything is copied. An import that fails takes
// away again what it has brought in.
//
// The directory is walked by descriptors that do not follow symlinks, so that whoever owns it cannot have another place
// copied. It must not be a mount of the dm server that runs the import.
func (d *Dots) Import(ctx context.Context, n Name, dir string, progress func(Progress)) (*ImportResult, error) {
	src, err := openDir(unix.AT_FDCWD, filepath.Clean(dir))
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", dir, err)
	}
	defer src.Close()
	if _, err := d.EnsureSubdot(ctx, n); err != nil {
		return nil, err
	}
	u, err := d.view(ctx, n)
	if err != nil {
		return nil, err
	}
	defer u.done()
	subdot, _, err := u.Copy.Lookup(ctx, workcopy.RootID, subdotName(n))
	if err != nil {
		return nil, err
	}
	defer u.Copy.Forget(subdot, 1)
	x := &importer{
		ctx: ctx, c: u.Copy, links: map[[2]uint64]workcopy.NodeID{}, buf: make([]byte, windowSize), meter: newMeter(progress),
	}
	defer x.forgetLinks()
	if err := x.run(src, subdot); err != nil {
		return nil, fmt.Errorf("import %s: %w", dir, err)
	}
	x.meter.flush()
	return &x.res, nil
}

// run imports the top directory.
func (x *importer) run(src *os.File, subdot workcopy.NodeID) error {
	fresh := true
	taken := map[string]bool{}
	err := x.c.ReadDir(x.ctx, subdot, 0, func(e workcopy.DirEntry) bool {
		fresh, taken[e.Name] = false, true
		return true
	})
	if err != nil {
		return err
	}
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if taken[name] {
			return errs.WithHint(errs.New(errs.Conflict, "%q is in the subdot already", name),
				"remove it there, or import into another subdot")
		}
	}
	for i, name := range names {
		if err := x.entry(src, subdot, name, name); err != nil {
			// The subdot is left as it was found.
			for _, made := range names[:i+1] {
				err = errors.Join(err, removeAll(context.WithoutCancel(x.ctx), x.c, subdot, made))
			}
			return err
		}
	}
	if !fresh {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	return x.attributes(fdPath(src, ""), subdot, &st)
}

// openDir opens a directory below an open one without following a symlink.
func openDir(at int, name string) (*os.File, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if at != unix.AT_FDCWD {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := openat(at, name, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openat(at int, name string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Openat(at, name, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// fdPath is a path to a name in an open directory, for the calls on extended attributes, which have no "at" form.
func fdPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// entry imports one name of a directory.
func (x *importer) entry(dir *os.File, to workcopy.NodeID, name, p string) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	linked := st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR
	key := [2]uint64{st.Dev, st.Ino}
	if id, ok := x.links[key]; linked && ok {
		if _, err := x.c.Link(x.ctx, id, to, name); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		x.done(0)
		return nil
	}
	id, err := x.node(dir, to, name, p, &st)
	if err != nil {
		return err
	}
	if linked {
		x.links[key] = id
	} else {
		x.c.Forget(id, 1)
	}
	return nil
}

func (x *importer) forgetLinks() {
	for _, id := range x.links {
		x.c.Forget(id, 1)
	}
}

// done counts a file.
func (x *importer) done(bytes uint64) {
	x.res.Files++
	x.res.Bytes += bytes
	x.meter.add(1, bytes)
}

// node makes what st describes, with its content and attributes.
func (x *importer) node(dir *os.File, to workcopy.NodeID, name, p string, st *unix.Stat_t) (id workcopy.NodeID, err error) {
	in := workcopy.NewInode{Mode: st.Mode, UID: st.Uid, GID: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if in.Target, err = os.Readlink(fdPath(dir, name)); err != nil {
			return 0, err
		}
	case unix.S_IFBLK, unix.S_IFCHR:
		in.Rdev = uint32(unix.Major(st.Rdev)<<8 | unix.Minor(st.Rdev)&0xff | unix.Minor(st.Rdev)&^0xff<<12)
	}
	if id, _, err = x.c.Make(x.ctx, to, name, in); err != nil {
		return 0, fmt.Errorf("%s: %w", p, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = x.dir(dir, id, name, p)
	case unix.S_IFREG:
		err = x.file(dir, id, name, p, st)
	default:
		x.done(0)
	}
	if err == nil {
		if err = x.attributes(fdPath(dir, name), id, st); err != nil {
			err = fmt.Errorf("%s: %w", p, err)
		}
	}
	if err != nil {
		x.c.Forget(id, 1)
		return 0, err
	}
	return id, nil
}

func (x *importer) dir(parent *os.File, id workcopy.NodeID, name, p string) error {
	dir, err := openDir(int(parent.Fd()), name)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			if err := x.entry(dir, id, n, path.Join(p, n)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			x.res.Dirs++
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
}

// file copies the data stretches of a regular file.
func (x *importer) file(dir *os.File, id workcopy.NodeID, name, p string, want *unix.Stat_t) error {
	fd, err := openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if st.Ino != want.Ino || st.Dev != want.Dev || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errs.WithHint(errs.New(errs.Conflict, "%s was replaced while it was being imported", p), "stop what writes there, and try again")
	}
	copied, err := x.copyData(f, id, st.Size)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	size := uint64(st.Size)
	if _, err := x.c.SetAttr(x.ctx, id, workcopy.AttrChange{Size: &size}); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	x.done(0)
	x.res.Bytes += copied
	return nil
}

func (x *importer) copyData(f *os.File, id workcopy.NodeID, size int64) (copied uint64, err error) {
	for off := int64(0); off < size; {
		start, end, err := dataStretch(f, off, size)
		if err != nil {
			return copied, err
		}
		for off = start; off < end; {
			n, err := f.ReadAt(x.buf[:min(int64(len(x.buf)), end-off)], off)
			if n == 0 {
				if err == io.EOF {
					return copied, nil // it was truncated under our hands
				}
				return copied, err
			}
			if err := x.write(id, x.buf[:n], off); err != nil {
				return copied, err
			}
			off += int64(n)
			copied += uint64(n)
			x.meter.bytes(uint64(n))
		}
	}
	return copied, nil
}

func (x *importer) write(id workcopy.NodeID, data []byte, off int64) error {
	for len(data) > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		n, err := x.c.Write(x.ctx, id, [][]byte{data}, off, false, false)
		if err != nil {
			return err
		}
		if n <= 0 {
			return io.ErrShortWrite
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// dataStretch returns the next stretch of data at or behind off; start == size where there is none. A filesystem that knows
// no holes has one stretch.
func dataStretch(f *os.File, off, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return off, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	return min(start, size), min(end, size), nil
}

// attributes sets what Make and Write leave open or change: owner and mode against a set-group-ID directory, times, extended
// attributes. These come last: whoever writes to a file or gives it another owner takes its capabilities away.
func (x *importer) attributes(p string, id workcopy.NodeID, st *unix.Stat_t) error {
	list, err := readXattrs(p)
	if err != nil {
		return err
	}
	mode := st.Mode &^ unix.S_IFMT
	ch := workcopy.AttrChange{
		UID: &st.Uid, GID: &st.Gid,
		Atime: &workcopy.Time{Sec: st.Atim.Sec, Nsec: uint32(st.Atim.Nsec)},
		Mtime: &workcopy.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		ch.Mode = &mode
	}
	if _, err := x.c.SetAttr(x.ctx, id, ch); err != nil {
		return err
	}
	for _, a := range list {
		if err := x.c.SetXattr(x.ctx, id, a.Name, a.Value, 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", a.Name, err)
		}
	}
	return nil
}

// readXattrs returns the extended attributes of what p names, a symlink itself included. Those of the kernel's own making
// (system.*, but for access control lists) stay behind.
func readXattrs(p string) ([]object.Xattr, error) {
	names := make([]byte, object.MaxXattr)
	n, err := unix.Llistxattr(p, names)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var list []object.Xattr
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "system.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		value := make([]byte, object.MaxXattr)
		n, err := unix.Lgetxattr(p, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		list = append(list, object.Xattr{Name: name, Value: value[:n:n]})
	}
	return list, nil
}

// removeAll removes a name and what is below it. A name that is not there is no error.
func removeAll(ctx context.Context, c *workcopy.Copy, dir workcopy.NodeID, name string) error {
	id, attr, err := c.Lookup(ctx, dir, name)
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Forget(id, 1)
	if attr.Mode&object.ModeType != object.ModeDir {
		return c.Unlink(ctx, dir, name)
	}
	var names []string
	err = c.ReadDir(ctx, id, 0, func(e workcopy.DirEntry) bool {
		names = append(names, e.Name)
		return true
	})
	for _, n := range names {
		err = errors.Join(err, removeAll(ctx, c, id, n))
	}
	if err != nil {
		return err
	}
	return c.Rmdir(ctx, dir, name)
}

package posix

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func nameChecks() []Check {
	return []Check{
		{"open flags", openFlags},
		{"name too long", nameTooLong},
		{"path errors", pathErrors},
		{"unlink", unlink},
		{"unlink while open", unlinkWhileOpen},
		{"rename over", renameOver},
		{"rename directories", renameDirectories},
		{"rename flags", renameFlags},
		{"rename of two links", renameLinks},
		{"hard links", hardLinks},
		{"symlinks", symlinks},
		{"O_TMPFILE", tmpfile},
		{"names are bytes", namesAreBytes},
		{"special files", specialFiles},
	}
}

func openFlags(e *env) {
	e.write("f", "x")
	e.mkdir("d")
	e.must("symlink", os.Symlink("nowhere", e.path("dangling")))
	e.must("symlink", os.Symlink("loop", e.path("loop")))
	excl := unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY
	e.is("O_EXCL on a file", e.tryOpen("f", excl), unix.EEXIST)
	e.is("O_EXCL on a directory", e.tryOpen("d", excl), unix.EEXIST)
	e.is("O_EXCL on a dangling symlink", e.tryOpen("dangling", excl), unix.EEXIST)
	e.is("write a directory", e.tryOpen("d", unix.O_WRONLY), unix.EISDIR)
	e.is("O_CREAT a directory", e.tryOpen("d", unix.O_RDONLY|unix.O_CREAT), unix.EISDIR)
	e.is("O_DIRECTORY on a file", e.tryOpen("f", unix.O_DIRECTORY), unix.ENOTDIR)
	e.is("O_NOFOLLOW on a symlink", e.tryOpen("dangling", unix.O_NOFOLLOW), unix.ELOOP)
	e.is("a loop", e.tryOpen("loop", unix.O_RDONLY), unix.ELOOP)
	e.is("a missing file", e.tryOpen("missing", unix.O_RDWR), unix.ENOENT)
	_, err := unix.Open(e.dir+"/f/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	e.is("a slash after a file", err, unix.ENOTDIR)
	e.is("create through a dangling symlink", e.tryOpen("dangling", unix.O_CREAT|unix.O_WRONLY), 0)
	e.equal("what that made", e.stat("nowhere").Size, int64(0))
	e.is("O_TRUNC", e.tryOpen("f", unix.O_WRONLY|unix.O_TRUNC), 0)
	e.content("f", "")
}

func nameTooLong(e *env) {
	long := strings.Repeat("n", 256)
	e.write(long[:255], "longest")
	e.content(long[:255], "longest")
	e.write("f", "")
	e.is("create", e.tryOpen(long, unix.O_CREAT|unix.O_WRONLY), unix.ENAMETOOLONG)
	e.is("open", e.tryOpen(long, unix.O_RDONLY), unix.ENAMETOOLONG)
	e.is("mkdir", unix.Mkdir(e.path(long), 0o755), unix.ENAMETOOLONG)
	e.is("rename", unix.Rename(e.path("f"), e.path(long)), unix.ENAMETOOLONG)
	e.is("link", unix.Link(e.path("f"), e.path(long)), unix.ENAMETOOLONG)
	e.is("symlink", unix.Symlink("x", e.path(long)), unix.ENAMETOOLONG)
	e.is("unlink", unix.Unlink(e.path(long)), unix.ENAMETOOLONG)
	e.is("mknod", unix.Mknod(e.path(long), unix.S_IFIFO|0o600, 0), unix.ENAMETOOLONG)
}

func pathErrors(e *env) {
	e.write("f", "")
	e.mkdir("d")
	e.is("below a file", unix.Mkdir(e.path("f", "x"), 0o755), unix.ENOTDIR)
	e.is("below nothing", unix.Mkdir(e.path("missing", "x"), 0o755), unix.ENOENT)
	e.is("mkdir what exists", unix.Mkdir(e.path("f"), 0o755), unix.EEXIST)
	e.is("rename nothing", unix.Rename(e.path("missing"), e.path("y")), unix.ENOENT)
	e.is("link nothing", unix.Link(e.path("missing"), e.path("y")), unix.ENOENT)
	e.is("truncate a directory", unix.Truncate(e.path("d"), 0), unix.EISDIR)
	e.is("truncate to less than nothing", unix.Truncate(e.path("f"), -1), unix.EINVAL)
	_, err := unix.Readlink(e.path("f"), make([]byte, 10))
	e.is("readlink a file", err, unix.EINVAL)
}

func unlink(e *env) {
	e.mkdir("d")
	e.write("f", "")
	e.is("unlink a directory", unix.Unlink(e.path("d")), unix.EISDIR)
	e.is("rmdir a file", unix.Rmdir(e.path("f")), unix.ENOTDIR)
	e.is("unlink", unix.Unlink(e.path("f")), 0)
	e.is("unlink again", unix.Unlink(e.path("f")), unix.ENOENT)
	e.is("open what was unlinked", e.tryOpen("f", unix.O_RDONLY), unix.ENOENT)
	e.write("f", "new")
	e.content("f", "new")
}

func unlinkWhileOpen(e *env) {
	e.write("f", "content")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	e.must("unlink", unix.Unlink(e.path("f")))
	e.write("f", "another file of the name")
	var st unix.Stat_t
	e.must("fstat", unix.Fstat(fd, &st))
	e.equal("links", uint64(st.Nlink), uint64(0))
	_, err := unix.Pwrite(fd, []byte("CONT"), 0)
	e.must("write", err)
	e.must("truncate", unix.Ftruncate(fd, 6))
	e.must("chmod", unix.Fchmod(fd, 0o600))
	e.must("fsync", unix.Fsync(fd))
	buf := make([]byte, 100)
	n, err := unix.Pread(fd, buf, 0)
	e.must("read", err)
	e.equal("content", string(buf[:n]), "CONTen")
	e.is("link it again", unix.Linkat(unix.AT_FDCWD, procFD(fd), unix.AT_FDCWD, e.path("g"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
	e.content("f", "another file of the name")
}

func renameOver(e *env) {
	e.write("old", "old content")
	e.write("new", "new content")
	fd := e.open("old", unix.O_RDONLY)
	defer unix.Close(fd)
	ino := e.stat("new").Ino
	e.must("rename", unix.Rename(e.path("new"), e.path("old")))
	e.content("old", "new content")
	e.equal("inode", e.stat("old").Ino, ino)
	e.is("the old name", e.tryOpen("new", unix.O_RDONLY), unix.ENOENT)
	buf := make([]byte, 100)
	n, err := unix.Pread(fd, buf, 0)
	e.must("read what was replaced", err)
	e.equal("what was replaced", string(buf[:n]), "old content")
	e.mkdir("d")
	e.is("a file over a directory", unix.Rename(e.path("old"), e.path("d")), unix.EISDIR)
	e.is("a directory over a file", unix.Rename(e.path("d"), e.path("old")), unix.ENOTDIR)
	e.must("rename an open file", unix.Rename(e.path("old"), e.path("d", "moved")))
	e.content("d/moved", "new content")
}

func renameDirectories(e *env) {
	e.mkdir("a")
	e.mkdir("a/sub")
	e.mkdir("b")
	e.write("a/sub/f", "deep")
	e.is("into itself", unix.Rename(e.path("a"), e.path("a", "sub", "x")), unix.EINVAL)
	e.is("over one that is not empty", unix.Rename(e.path("b"), e.path("a")), unix.ENOTEMPTY, unix.EEXIST)
	e.is("over its own ancestor", unix.Rename(e.path("a", "sub"), e.path("a")), unix.ENOTEMPTY, unix.EEXIST)
	e.is("over an empty one", unix.Rename(e.path("a"), e.path("b")), 0)
	e.content("b/sub/f", "deep")
	e.mkdir("c")
	links := func(name string, want int) { e.equal("links of "+name, int(e.stat(name).Nlink), want) }
	links("b", 3)
	links("c", 2)
	fd := e.open("b/sub", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	e.must("to another parent", unix.Rename(e.path("b", "sub"), e.path("c", "sub")))
	links("b", 2)
	links("c", 3)
	in, err := unix.Openat(fd, "../sub/f", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	e.must("dot dot of a moved directory", err)
	unix.Close(in)
	var up unix.Stat_t
	e.must("stat ..", unix.Fstatat(fd, "..", &up, 0))
	e.equal("dot dot", up.Ino, e.stat("c").Ino)
}

func renameFlags(e *env) {
	e.write("a", "A")
	e.write("b", "B")
	e.mkdir("d")
	e.write("d/in", "in")
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, e.path(from), unix.AT_FDCWD, e.path(to), flags)
	}
	e.is("no replace of what exists", rename("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	e.is("no replace", rename("a", "c", unix.RENAME_NOREPLACE), 0)
	e.is("exchange with nothing", rename("c", "missing", unix.RENAME_EXCHANGE), unix.ENOENT)
	e.is("exchange files", rename("c", "b", unix.RENAME_EXCHANGE), 0)
	e.content("b", "A")
	e.content("c", "B")
	e.is("exchange a file and a directory", rename("c", "d", unix.RENAME_EXCHANGE), 0)
	e.content("d", "B")
	e.content("c/in", "in")
	e.is("both flags", rename("b", "d", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	e.is("exchange with what is inside", rename("c", "c/in", unix.RENAME_EXCHANGE), unix.EINVAL)
}

func renameLinks(e *env) {
	e.write("a", "x")
	e.must("link", unix.Link(e.path("a"), e.path("b")))
	e.is("a name over another of the same file", unix.Rename(e.path("a"), e.path("b")), 0)
	e.equal("links", int(e.stat("a").Nlink), 2)
	e.equal("links", int(e.stat("b").Nlink), 2)
	e.is("over itself", unix.Rename(e.path("a"), e.path("a")), 0)
	e.content("a", "x")
}

func hardLinks(e *env) {
	e.write("a", "x")
	e.mkdir("d")
	e.is("of a directory", unix.Link(e.path("d"), e.path("e")), unix.EPERM)
	e.must("link", unix.Link(e.path("a"), e.path("d", "b")))
	e.is("over a name", unix.Link(e.path("a"), e.path("d", "b")), unix.EEXIST)
	e.equal("inode", e.stat("d/b").Ino, e.stat("a").Ino)
	e.equal("links", int(e.stat("a").Nlink), 2)
	e.must("write", os.WriteFile(e.path("d", "b"), []byte("through the other"), 0o644))
	e.content("a", "through the other")
	e.equal("size by the other name", e.stat("a").Size, int64(17))
	e.must("unlink", unix.Unlink(e.path("a")))
	e.equal("links", int(e.stat("d/b").Nlink), 1)
	e.content("d/b", "through the other")
	e.must("symlink", os.Symlink("nowhere", e.path("s")))
	e.is("of a symlink", unix.Link(e.path("s"), e.path("t")), 0)
	e.equal("links of a symlink", int(e.stat("t").Nlink), 2)
}

func symlinks(e *env) {
	for _, target := range []string{"x", "/absolute", "with\nnewline\xff", strings.Repeat("t", 4095)} {
		e.must("symlink", os.Symlink(target, e.path("s")))
		got, err := os.Readlink(e.path("s"))
		e.must("readlink", err)
		e.equal("target", got, target)
		st := e.stat("s")
		e.equal("size", st.Size, int64(len(target)))
		e.equal("mode", st.Mode, uint32(unix.S_IFLNK|0o777))
		e.must("unlink", unix.Unlink(e.path("s")))
	}
	e.is("an empty target", unix.Symlink("", e.path("s")), unix.ENOENT)
	e.is("a long target", unix.Symlink(strings.Repeat("t", 4096), e.path("s")), unix.ENAMETOOLONG)
	e.write("f", "")
	e.is("over a name", unix.Symlink("x", e.path("f")), unix.EEXIST)
}

func procFD(fd int) string { return "/proc/self/fd/" + itoa(fd) }

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

func tmpfile(e *env) {
	fd := e.open(".", unix.O_TMPFILE|unix.O_RDWR)
	defer unix.Close(fd)
	_, err := unix.Write(fd, []byte("no name yet"))
	e.must("write", err)
	list, err := os.ReadDir(e.dir)
	e.must("list", err)
	e.equal("names", len(list), 0)
	var st unix.Stat_t
	e.must("fstat", unix.Fstat(fd, &st))
	e.equal("links", int(st.Nlink), 0)
	e.is("name it", unix.Linkat(unix.AT_FDCWD, procFD(fd), unix.AT_FDCWD, e.path("f"), unix.AT_SYMLINK_FOLLOW), 0)
	e.content("f", "no name yet")
	e.equal("links", int(e.stat("f").Nlink), 1)
	never := e.open(".", unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL)
	defer unix.Close(never)
	e.is("name what must not have one",
		unix.Linkat(unix.AT_FDCWD, procFD(never), unix.AT_FDCWD, e.path("g"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
}

func namesAreBytes(e *env) {
	names := []string{"a", "A", "caf\u00e9", "cafe\u0301", "\xff", "\xfe", "new\nline", " ", "...", "-"}
	for i, name := range names {
		e.write(name, strings.Repeat("x", i+1))
	}
	for i, name := range names {
		e.content(name, strings.Repeat("x", i+1))
	}
	list, err := os.ReadDir(e.dir)
	e.must("list", err)
	e.equal("names", len(list), len(names))
}

func specialFiles(e *env) {
	for _, s := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"fifo", unix.S_IFIFO | 0o640, 0},
		{"socket", unix.S_IFSOCK | 0o755, 0},
		{"char", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)},
		{"block", unix.S_IFBLK | 0o660, unix.Mkdev(259, 1<<20-1)},
		{"file", unix.S_IFREG | 0o600, 0},
	} {
		e.must("mknod "+s.name, unix.Mknod(e.path(s.name), s.mode, int(s.dev)))
		e.must("chmod", unix.Chmod(e.path(s.name), s.mode&0o7777))
		st := e.stat(s.name)
		e.equal(s.name+" mode", st.Mode, s.mode)
		e.equal(s.name+" device", st.Rdev, s.dev)
		e.is("again", unix.Mknod(e.path(s.name), s.mode, int(s.dev)), unix.EEXIST)
	}
	n, err := os.ReadFile(e.path("char"))
	e.must("read /dev/null by another name", err)
	e.equal("its content", len(n), 0)
	e.is("open a socket", e.tryOpen("socket", unix.O_RDWR), unix.ENXIO)
	e.is("a fifo without reader", e.tryOpen("fifo", unix.O_WRONLY|unix.O_NONBLOCK), unix.ENXIO)
	go func() {
		if f, err := os.OpenFile(e.path("fifo"), os.O_WRONLY, 0); err == nil {
			f.WriteString("through the fifo")
			f.Close()
		}
	}()
	data, err := os.ReadFile(e.path("fifo"))
	e.must("read the fifo", err)
	e.equal("what came", string(data), "through the fifo")
}

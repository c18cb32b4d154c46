package posix

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func attributeChecks() []Check {
	return []Check{
		{"modes", modes},
		{"times are exact", timesExact},
		{"what changes which time", timesChange},
		{"times of directories", timesOfDirectories},
		{"inode numbers", inodeNumbers},
		{"blocks and sizes", blocks},
		{"statfs", statfs},
		{"chown clears set-user-ID", chownClears},
	}
}

func modes(e *env) {
	e.write("f", "")
	e.mkdir("d")
	for _, mode := range []uint32{0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o600} {
		for _, name := range []string{"f", "d"} {
			e.must("chmod", unix.Chmod(e.path(name), mode))
			e.equal("mode of "+name, e.stat(name).Mode&0o7777, mode)
		}
	}
	e.is("chmod nothing", unix.Chmod(e.path("missing"), 0), unix.ENOENT)
}

func timesExact(e *env) {
	e.write("f", "")
	e.mkdir("d")
	e.must("symlink", os.Symlink("x", e.path("s")))
	for i, ts := range []unix.Timespec{{Sec: 0, Nsec: 0}, {Sec: -5, Nsec: 999999999}, {Sec: 1 << 32, Nsec: 1}, {Sec: 1767225600, Nsec: 123456789}} {
		for _, name := range []string{"f", "d", "s"} {
			atime := unix.Timespec{Sec: ts.Sec + 1, Nsec: int64(i)}
			e.must("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, e.path(name), []unix.Timespec{atime, ts}, unix.AT_SYMLINK_NOFOLLOW))
			st := e.stat(name)
			e.equal("mtime of "+name, st.Mtim, ts)
			e.equal("atime of "+name, st.Atim, atime)
		}
	}
	omit := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	e.must("omit both", unix.UtimesNanoAt(unix.AT_FDCWD, e.path("f"), omit, 0))
	e.equal("mtime", e.stat("f").Mtim.Sec, int64(1767225600))
	omit[1] = unix.Timespec{Nsec: unix.UTIME_NOW}
	e.must("now", unix.UtimesNanoAt(unix.AT_FDCWD, e.path("f"), omit, 0))
	now := time.Now().Unix()
	if got := e.stat("f").Mtim.Sec; got < now-5 || got > now+5 {
		e.errorf("mtime set to now is %d, now is %d", got, now)
	}
	e.equal("atime that was left out", e.stat("f").Atim.Sec, int64(1767225601))
}

// times says which of mtime and ctime changed.
func (e *env) times(name string, do func()) string {
	before := e.stat(name)
	tick()
	do()
	after := e.stat(name)
	s := ""
	if after.Mtim != before.Mtim {
		s += "m"
	}
	if after.Ctim != before.Ctim {
		s += "c"
	}
	return s
}

func timesChange(e *env) {
	e.write("f", "content")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	for _, c := range []struct {
		what, want string
		do         func() error
	}{
		{"read", "", func() error { _, err := unix.Pread(fd, make([]byte, 3), 0); return err }},
		{"write", "mc", func() error { _, err := unix.Pwrite(fd, []byte("x"), 0); return err }},
		{"write in place", "mc", func() error { _, err := unix.Pwrite(fd, []byte("x"), 0); return err }},
		{"truncate", "mc", func() error { return unix.Ftruncate(fd, 3) }},
		{"chmod", "c", func() error { return unix.Fchmod(fd, 0o640) }},
		{"chown", "c", func() error { return unix.Fchown(fd, 1, 1) }},
		{"link", "c", func() error { return unix.Link(e.path("f"), e.path("g")) }},
		{"unlink a link", "c", func() error { return unix.Unlink(e.path("g")) }},
		{"xattr", "c", func() error { return unix.Setxattr(e.path("f"), "user.x", []byte("1"), 0) }},
		{"punch a hole", "mc", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 2) }},
		{"fsync", "", func() error { return unix.Fsync(fd) }},
	} {
		got := e.times("f", func() { e.must(c.what, c.do()) })
		e.equal(c.what+" changed", got, c.want)
	}
	e.must("rename", unix.Rename(e.path("f"), e.path("h")))
	e.content("h", "\x00\x00n")
}

func timesOfDirectories(e *env) {
	e.mkdir("d")
	e.mkdir("to")
	for _, c := range []struct {
		what, d, to string
		do          func() error
	}{
		{"create", "mc", "", func() error { return e.tryOpen("d/f", unix.O_CREAT|unix.O_WRONLY) }},
		{"write in it", "", "", func() error { return os.WriteFile(e.path("d", "f"), []byte("x"), 0o644) }},
		{"link", "", "mc", func() error { return unix.Link(e.path("d", "f"), e.path("to", "l")) }},
		{"rename", "mc", "mc", func() error { return unix.Rename(e.path("d", "f"), e.path("to", "f")) }},
		{"mkdir", "mc", "", func() error { return unix.Mkdir(e.path("d", "s"), 0o755) }},
		{"rmdir", "mc", "", func() error { return unix.Rmdir(e.path("d", "s")) }},
		{"symlink", "mc", "", func() error { return unix.Symlink("x", e.path("d", "sym")) }},
		{"unlink", "mc", "", func() error { return unix.Unlink(e.path("d", "sym")) }},
		{"list", "", "", func() error { _, err := os.ReadDir(e.path("d")); return err }},
		{"a failing mkdir", "", "", func() error { unix.Mkdir(e.path("to", "f"), 0o755); return nil }},
	} {
		var to string
		d := e.times("d", func() { to = e.times("to", func() { e.must(c.what, c.do()) }) })
		e.equal(c.what+" changed d", d, c.d)
		e.equal(c.what+" changed to", to, c.to)
	}
}

func inodeNumbers(e *env) {
	seen := make(map[uint64]string)
	e.mkdir("d")
	for _, name := range []string{"a", "b", "d/a", "d/b"} {
		e.write(name, name)
	}
	for _, name := range []string{"a", "b", "d", "d/a", "d/b"} {
		st := e.stat(name)
		if other, ok := seen[st.Ino]; ok || st.Ino == 0 {
			e.errorf("%s has inode %d, as has %s", name, st.Ino, other)
		}
		seen[st.Ino] = name
		e.equal("device of "+name, st.Dev, e.stat(".").Dev)
	}
	ino := e.stat("a").Ino
	e.must("rename", unix.Rename(e.path("a"), e.path("d", "moved")))
	e.equal("inode after a rename", e.stat("d/moved").Ino, ino)
	list, err := os.ReadDir(e.path("d"))
	e.must("list", err)
	e.equal("entries", len(list), 3)
	fd := e.open("d/moved", unix.O_RDONLY)
	defer unix.Close(fd)
	var st unix.Stat_t
	e.must("fstat", unix.Fstat(fd, &st))
	e.equal("inode of the open file", st.Ino, ino)
}

func blocks(e *env) {
	e.write("f", "")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	e.must("grow", unix.Ftruncate(fd, 1<<30))
	st := e.stat("f")
	e.equal("size", st.Size, int64(1<<30))
	if st.Blocks > 64 {
		e.errorf("a hole of 1 GiB has %d blocks", st.Blocks)
	}
	_, err := unix.Pwrite(fd, make([]byte, 1<<20), 1<<29)
	e.must("write", err)
	e.must("fsync", unix.Fsync(fd))
	if st = e.stat("f"); st.Blocks < 2048 || st.Blocks > 4096 {
		e.errorf("1 MiB of data has %d blocks", st.Blocks)
	}
	if st.Blksize < 512 {
		e.errorf("block size %d", st.Blksize)
	}
	e.must("cut", unix.Ftruncate(fd, 0))
	if st = e.stat("f"); st.Blocks > 16 || st.Size != 0 {
		e.errorf("an empty file has %d bytes, %d blocks", st.Size, st.Blocks)
	}
	_, err = unix.Pwrite(fd, []byte("far"), 1<<40)
	e.must("write at 1 TiB", err)
	e.equal("size", e.stat("f").Size, int64(1<<40+3))
}

func statfs(e *env) {
	var st unix.Statfs_t
	e.must("statfs", unix.Statfs(e.dir, &st))
	e.equal("longest name", st.Namelen, int64(255))
	if st.Bsize < 512 || st.Blocks == 0 || st.Bfree > st.Blocks || st.Bavail > st.Bfree || st.Files == 0 {
		e.errorf("statfs says %+v", st)
	}
}

func chownClears(e *env) {
	e.write("f", "")
	e.must("chmod", unix.Chmod(e.path("f"), 0o6755))
	e.must("chown", unix.Chown(e.path("f"), 1, 1))
	e.equal("mode after chown", e.stat("f").Mode&0o7777, uint32(0o755))
	e.mkdir("d")
	e.must("chmod", unix.Chmod(e.path("d"), 0o6755))
	e.must("chown", unix.Chown(e.path("d"), 1, 1))
	e.equal("mode of a directory after chown", e.stat("d").Mode&0o7777, uint32(0o6755))
	e.must("chown to no one else", unix.Chown(e.path("f"), -1, -1))
	st := e.stat("f")
	e.equal("owner", [2]uint32{st.Uid, st.Gid}, [2]uint32{1, 1})
	const max = 1<<32 - 2
	e.must("chown to the last user", unix.Chown(e.path("f"), max, max))
	e.equal("owner", e.stat("f").Uid, uint32(max))
}

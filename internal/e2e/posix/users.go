package posix

import (
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Two users without rights, and a group.
const (
	alice, bob = 20001, 20002
	staff      = 20100
)

func userChecks() []Check {
	return []Check{
		{"permissions", permissions},
		{"sticky directories", sticky},
		{"set-group-ID directories", setgidDirectories},
		{"a write clears set-user-ID", writeClears},
		{"who may change attributes", whoMay},
		{"programs run", programsRun},
		{"file capabilities", capabilities},
	}
}

// shared makes a directory in which everyone may write.
func (e *env) shared(name string, mode uint32) {
	e.mkdir(name)
	e.must("chmod", unix.Chmod(e.path(name), mode))
}

func permissions(e *env) {
	e.shared("d", 0o777)
	e.as(alice, alice, func() { e.write("d/f", "alice's"); e.is("chmod", unix.Chmod(e.path("d/f"), 0o600), 0) })
	e.equal("owner", e.stat("d/f").Uid, uint32(alice))
	e.equal("group", e.stat("d/f").Gid, uint32(alice))
	e.as(bob, bob, func() {
		e.is("read", e.tryOpen("d/f", unix.O_RDONLY), unix.EACCES)
		e.is("write", e.tryOpen("d/f", unix.O_WRONLY), unix.EACCES)
		e.is("truncate", unix.Truncate(e.path("d/f"), 0), unix.EACCES)
		e.is("access", unix.Faccessat(unix.AT_FDCWD, e.path("d/f"), unix.R_OK, unix.AT_EACCESS), unix.EACCES)
		e.is("unlink, as the directory allows", unix.Unlink(e.path("d/f")), 0)
	})
	e.mkdir("locked")
	e.write("locked/f", "x")
	e.must("chmod", unix.Chmod(e.path("locked"), 0o600))
	e.as(bob, bob, func() {
		e.is("enter", e.tryOpen("locked/f", unix.O_RDONLY), unix.EACCES)
		e.is("create where one may not write", e.tryOpen("new", unix.O_CREAT|unix.O_WRONLY), unix.EACCES)
		e.is("mkdir", unix.Mkdir(e.path("new"), 0o755), unix.EACCES)
		e.is("rename", unix.Rename(e.path("locked"), e.path("x")), unix.EACCES)
	})
	e.must("chmod", unix.Chmod(e.path("locked"), 0o755))
	e.as(bob, bob, func() { e.is("enter after chmod", e.tryOpen("locked/f", unix.O_RDONLY), 0) })
}

func sticky(e *env) {
	e.shared("d", 0o1777)
	e.as(alice, alice, func() { e.write("d/f", "x"); e.write("d/g", "y") })
	e.as(bob, bob, func() {
		e.write("d/mine", "")
		e.is("unlink another's", unix.Unlink(e.path("d/f")), unix.EPERM, unix.EACCES)
		e.is("rename another's", unix.Rename(e.path("d/f"), e.path("d/h")), unix.EPERM, unix.EACCES)
		e.is("rename over another's", unix.Rename(e.path("d/mine"), e.path("d/f")), unix.EPERM, unix.EACCES)
		e.is("unlink one's own", unix.Unlink(e.path("d/mine")), 0)
	})
	e.as(alice, alice, func() { e.is("unlink one's own", unix.Unlink(e.path("d/f")), 0) })
}

func setgidDirectories(e *env) {
	e.shared("d", 0o777)
	e.must("chown", unix.Chown(e.path("d"), 0, staff))
	e.must("chmod", unix.Chmod(e.path("d"), 0o2777))
	e.as(alice, alice, func() {
		e.write("d/f", "")
		e.mkdir("d/s")
		e.must("symlink", os.Symlink("x", e.path("d/l")))
		fd, err := unix.Open(e.path("d/x"), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o2775)
		e.must("create", err)
		unix.Close(fd)
	})
	for _, name := range []string{"d/f", "d/s", "d/l"} {
		e.equal("group of "+name, e.stat(name).Gid, uint32(staff))
	}
	e.equal("the bit of a new directory", e.stat("d/s").Mode&unix.S_ISGID, uint32(unix.S_ISGID))
	e.equal("the bit of a new program of a group one is not in", e.stat("d/x").Mode&unix.S_ISGID, uint32(0))
	e.as(alice, alice, func() {
		e.must("chmod", unix.Chmod(e.path("d/f"), 0o2755))
	})
	e.equal("the bit by chmod, in a group one is not in", e.stat("d/f").Mode&unix.S_ISGID, uint32(0))
}

func writeClears(e *env) {
	for _, c := range []struct {
		what string
		do   func(fd int) error
	}{
		{"write", func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err }},
		{"pwrite in place", func(fd int) error { _, err := unix.Pwrite(fd, []byte("y"), 0); return err }},
		{"truncate", func(fd int) error { return unix.Ftruncate(fd, 1) }},
		{"fallocate", func(fd int) error { return unix.Fallocate(fd, 0, 0, 8192) }},
	} {
		e.write("f", "content")
		e.must("chmod", unix.Chmod(e.path("f"), 0o777))
		e.must("chmod", unix.Chmod(e.path("f"), 0o6777))
		e.as(bob, bob, func() {
			fd := e.open("f", unix.O_RDWR)
			defer unix.Close(fd)
			e.must(c.what, c.do(fd))
			var st unix.Stat_t
			e.must("fstat", unix.Fstat(fd, &st))
			e.equal("mode after "+c.what, st.Mode&0o7777, uint32(0o777))
		})
		e.must("chmod", unix.Chmod(e.path("f"), 0o6777))
		fd := e.open("f", unix.O_RDWR)
		e.must(c.what, c.do(fd))
		unix.Close(fd)
		e.equal("mode after root's "+c.what, e.stat("f").Mode&0o7777, uint32(0o6777))
	}
}

func whoMay(e *env) {
	e.write("f", "x")
	e.must("chown", unix.Chown(e.path("f"), alice, alice))
	e.must("chmod", unix.Chmod(e.path("f"), 0o666))
	ts := []unix.Timespec{{Sec: 1}, {Sec: 2}}
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	e.as(bob, bob, func() {
		e.is("chmod another's", unix.Chmod(e.path("f"), 0o777), unix.EPERM)
		e.is("chown another's", unix.Chown(e.path("f"), bob, bob), unix.EPERM)
		e.is("times of another's", unix.UtimesNanoAt(unix.AT_FDCWD, e.path("f"), ts, 0), unix.EPERM)
		e.is("times to now, of what one may write", unix.UtimesNanoAt(unix.AT_FDCWD, e.path("f"), now, 0), 0)
		e.is("a device", unix.Mknod(e.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.EPERM, unix.EACCES)
	})
	e.as(alice, alice, func() {
		e.is("chmod one's own", unix.Chmod(e.path("f"), 0o640), 0)
		e.is("give it away", unix.Chown(e.path("f"), bob, -1), unix.EPERM)
		e.is("times of one's own", unix.UtimesNanoAt(unix.AT_FDCWD, e.path("f"), ts, 0), 0)
	})
	e.equal("mtime", e.stat("f").Mtim.Sec, int64(2))
}

func (e *env) copyProgram(from, name string, mode uint32) {
	data, err := os.ReadFile(from)
	e.must("read a program", err)
	e.must("write a program", os.WriteFile(e.path(name), data, 0o755))
	e.must("chmod", unix.Chmod(e.path(name), mode))
}

func programsRun(e *env) {
	e.copyProgram("/usr/bin/id", "id", 0o4755)
	e.must("chmod", unix.Chmod(e.path("."), 0o755))
	cmd := exec.Command(e.path("id"), "-u")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: bob, Gid: bob}}
	out, err := cmd.CombinedOutput()
	e.must("run "+string(out), err)
	e.equal("the user a set-user-ID program runs as", strings.TrimSpace(string(out)), "0")
	e.copyProgram("/bin/sleep", "sleep", 0o755)
	cmd = exec.Command(e.path("sleep"), "20")
	e.must("run", cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	e.is("write a program that runs", e.tryOpen("sleep", unix.O_WRONLY), unix.ETXTBSY)
	e.is("unlink a program that runs", unix.Unlink(e.path("sleep")), 0)
}

// capabilities: a file capability goes when the file is written.
func capabilities(e *env) {
	const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	e.write("f", "x")
	e.must("set", unix.Setxattr(e.path("f"), "security.capability", []byte(netBind), 0))
	buf := make([]byte, 100)
	n, err := unix.Getxattr(e.path("f"), "security.capability", buf)
	e.must("get", err)
	e.equal("value", string(buf[:n]), netBind)
	e.must("write", os.WriteFile(e.path("f"), []byte("y"), 0))
	_, err = unix.Getxattr(e.path("f"), "security.capability", buf)
	e.is("after a write", err, unix.ENODATA)
}

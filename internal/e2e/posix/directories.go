package posix

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func directoryChecks() []Check {
	return []Check{
		{"mkdir and rmdir", mkdirRmdir},
		{"directory link counts", linkCounts},
		{"a removed directory", removedDirectory},
		{"listing", listing},
		{"listing while removing", listingWhileRemoving},
		{"listing from a place", seekdir},
		{"inotify", inotify},
	}
}

func mkdirRmdir(e *env) {
	e.mkdir("d")
	e.write("d/f", "")
	e.is("not empty", unix.Rmdir(e.path("d")), unix.ENOTEMPTY)
	e.is("dot", unix.Rmdir(e.dir+"/d/."), unix.EINVAL)
	e.is("dot dot", unix.Rmdir(e.dir+"/d/.."), unix.ENOTEMPTY)
	e.must("unlink", unix.Unlink(e.path("d", "f")))
	e.is("empty", unix.Rmdir(e.path("d")), 0)
	e.is("again", unix.Rmdir(e.path("d")), unix.ENOENT)
	e.is("with a slash at the end", unix.Mkdir(e.path("slash")+"/", 0o755), 0)
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	e.must("mkdir", unix.Mkdir(e.path("masked"), 0o777))
	e.equal("mode", e.stat("masked").Mode&0o7777, uint32(0o750))
	e.must("create", e.tryOpen("maskedfile", unix.O_CREAT|unix.O_WRONLY))
	e.equal("mode", e.stat("maskedfile").Mode&0o7777, uint32(0o640))
}

func linkCounts(e *env) {
	e.mkdir("d")
	links := func(want int) { e.equal("links", int(e.stat("d").Nlink), want) }
	links(2)
	for i := range 5 {
		e.mkdir(fmt.Sprintf("d/%d", i))
		e.write(fmt.Sprintf("d/f%d", i), "")
	}
	links(7)
	e.must("rmdir", unix.Rmdir(e.path("d", "0")))
	links(6)
	e.must("over an empty one", unix.Rename(e.path("d", "1"), e.path("d", "2")))
	links(5)
	e.must("out", unix.Rename(e.path("d", "2"), e.path("out")))
	links(4)
	e.must("exchange", unix.Renameat2(unix.AT_FDCWD, e.path("d", "3"), unix.AT_FDCWD, e.path("d", "f3"), unix.RENAME_EXCHANGE))
	links(4)
	e.write("g", "")
	e.must("exchange out", unix.Renameat2(unix.AT_FDCWD, e.path("d", "4"), unix.AT_FDCWD, e.path("g"), unix.RENAME_EXCHANGE))
	links(3)
}

func removedDirectory(e *env) {
	e.mkdir("d")
	fd := e.open("d", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	e.must("rmdir", unix.Rmdir(e.path("d")))
	var st unix.Stat_t
	e.must("fstat", unix.Fstat(fd, &st))
	e.equal("links", int(st.Nlink), 0)
	_, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	e.is("create in it", err, unix.ENOENT)
	e.is("mkdir in it", unix.Mkdirat(fd, "x", 0o755), unix.ENOENT)
	e.write("f", "")
	e.is("rename into it", unix.Renameat(unix.AT_FDCWD, e.path("f"), fd, "f"), unix.ENOENT)
	e.is("link into it", unix.Linkat(unix.AT_FDCWD, e.path("f"), fd, "f", 0), unix.ENOENT)
	n, err := unix.Getdents(fd, make([]byte, 4096))
	if err != nil && err != unix.ENOENT || n > 60 {
		e.errorf("listing it: %d bytes, %v", n, err)
	}
}

func listing(e *env) {
	const n = 3000
	want := make(map[string]bool)
	for i := range n {
		name := fmt.Sprintf("%d-%0100d", i, i)
		e.write(name, "")
		want[name] = true
	}
	e.mkdir("d")
	e.must("symlink", os.Symlink("x", e.path("s")))
	e.must("mkfifo", unix.Mkfifo(e.path("p"), 0o600))
	types := map[string]os.FileMode{"d": os.ModeDir, "s": os.ModeSymlink, "p": os.ModeNamedPipe}
	list, err := os.ReadDir(e.dir)
	e.must("list", err)
	e.equal("entries", len(list), n+3)
	for _, entry := range list {
		e.equal("type of "+entry.Name(), entry.Type(), types[entry.Name()])
		delete(want, entry.Name())
	}
	e.equal("entries not listed", len(want), 0)
}

// names reads entries as getdents(2) gives them, "." and ".." included.
func getdents(fd, size int) ([]string, error) {
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	if err != nil || n == 0 {
		return nil, err
	}
	var names []string
	for at := 0; at < n; {
		length := int(buf[at+16]) | int(buf[at+17])<<8
		name := buf[at+19 : at+length]
		end := 0
		for end < len(name) && name[end] != 0 {
			end++
		}
		names = append(names, string(name[:end]))
		at += length
	}
	return names, nil
}

// listingWhileRemoving is rm -r: what is removed as it is listed must not make others go missing.
func listingWhileRemoving(e *env) {
	e.mkdir("d")
	for i := range 1500 {
		e.write(fmt.Sprintf("d/%0120d", i), "")
	}
	fd := e.open("d", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	for {
		list, err := getdents(fd, 4096)
		e.must("getdents", err)
		if len(list) == 0 {
			break
		}
		for _, name := range list {
			if name != "." && name != ".." {
				e.must("unlink", unix.Unlinkat(fd, name, 0))
			}
		}
	}
	e.is("rmdir", unix.Rmdir(e.path("d")), 0)
}

func seekdir(e *env) {
	e.mkdir("d")
	for i := range 500 {
		e.write(fmt.Sprintf("d/%0120d", i), "")
	}
	fd := e.open("d", unix.O_RDONLY|unix.O_DIRECTORY)
	defer unix.Close(fd)
	first, err := getdents(fd, 4096)
	e.must("getdents", err)
	at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	e.must("tell", err)
	second, err := getdents(fd, 4096)
	e.must("getdents", err)
	_, err = unix.Seek(fd, at, unix.SEEK_SET)
	e.must("seek", err)
	again, err := getdents(fd, 4096)
	e.must("getdents", err)
	// A signal, as Go's runtime sends itself, ends a getdents behind any entry (filldir64 in fs/readdir.c): one list may be
	// the beginning of the other.
	same := func(what string, a, b []string) {
		n := min(len(a), len(b))
		e.equal(what+": entries at all", n > 0, true)
		e.equal(what, fmt.Sprint(a[:n]), fmt.Sprint(b[:n]))
	}
	same("the part after the place", again, second)
	_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	e.must("rewind", err)
	again, err = getdents(fd, 4096)
	e.must("getdents", err)
	same("from the start", again, first)
	all := 0
	for list := again; len(list) > 0; list, err = getdents(fd, 4096) {
		e.must("getdents", err)
		all += len(list)
	}
	e.equal("entries with dot and dot dot", all, 502)
}

func inotify(e *env) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	e.must("inotify", err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, e.dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE)
	e.must("watch", err)
	e.write("f", "x")
	e.must("rename", unix.Rename(e.path("f"), e.path("g")))
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	e.must("read events", err)
	if n < 3*unix.SizeofInotifyEvent {
		e.errorf("%d bytes of events", n)
	}
}

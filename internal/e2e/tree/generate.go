package tree

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maker makes files below a directory and remembers the first error, so that a long list of cases stays a list.
type maker struct {
	root string
	rnd  *rand.Rand
	late []late // times, set when everything is made: making a name changes its directory's
	err  error
}

type late struct {
	path string
	ts   unix.Timespec
}

// Everything makes, in the directory root, at least one of each kind of thing a tree can hold, with the awkward cases of
// each kind, and random files beside them. Needs root and a filesystem with trusted and security attributes. The same
// seed makes the same tree.
func Everything(root string, seed uint64) error {
	m := &maker{root: root, rnd: rand.New(rand.NewPCG(seed, 1))}
	m.modes()
	m.contents()
	m.sparse()
	m.names()
	m.special()
	m.xattrs()
	m.links()
	m.times()
	m.random("random", 5, 300)
	m.setTimes()
	return m.err
}

// Many makes n small files in directories of a thousand.
func Many(root string, n int, seed uint64) error {
	m := &maker{root: root, rnd: rand.New(rand.NewPCG(seed, 2))}
	for i := range n {
		dir := fmt.Sprintf("d%04d", i/1000)
		if i%1000 == 0 {
			m.mkdir(dir, 0o755)
		}
		m.file(fmt.Sprintf("%s/f%06d", dir, i), 0o644, fmt.Appendf(nil, "%d %x\n", i, m.rnd.Uint64()))
	}
	return m.err
}

func (m *maker) try(what, name string, err error) {
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("%s %q: %w", what, name, err)
	}
}

func (m *maker) path(name string) string { return m.root + "/" + name }

func (m *maker) file(name string, perm uint32, data []byte) {
	if m.err != nil {
		return
	}
	fd, err := unix.Open(m.path(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		m.try("create", name, err)
		return
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	m.try("write", name, err)
	m.try("chmod", name, unix.Fchmod(fd, perm))
	m.try("close", name, f.Close())
}

func (m *maker) mkdir(name string, perm uint32) {
	if m.err == nil {
		m.try("mkdir", name, unix.Mkdir(m.path(name), 0o700))
		m.try("chmod", name, unix.Chmod(m.path(name), perm))
	}
}

func (m *maker) bytes(n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], m.rnd.Uint64())
	}
	return b
}

func (m *maker) modes() {
	m.mkdir("modes", 0o755)
	for _, perm := range []uint32{0, 0o400, 0o444, 0o600, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777} {
		m.file(fmt.Sprintf("modes/f%04o", perm), perm, []byte("x"))
		m.mkdir(fmt.Sprintf("modes/d%04o", perm), perm)
	}
	for i, id := range [][2]int{{1000, 1000}, {0, 1000}, {65534, 65534}, {4294967294, 0}, {0, 2147483648}} {
		name := fmt.Sprintf("modes/owned%d", i)
		m.file(name, 0o640, nil)
		m.try("chown", name, os.Lchown(m.path(name), id[0], id[1]))
		// chown clears set-user-ID, so the mode comes after it.
		m.try("chmod", name, unix.Chmod(m.path(name), 0o6750))
		dir := fmt.Sprintf("modes/owneddir%d", i)
		m.mkdir(dir, 0o755)
		m.try("chown", dir, os.Lchown(m.path(dir), id[0], id[1]))
		m.try("chmod", dir, unix.Chmod(m.path(dir), 0o3775))
		link := fmt.Sprintf("modes/ownedlink%d", i)
		m.try("symlink", link, os.Symlink("x", m.path(link)))
		m.try("lchown", link, os.Lchown(m.path(link), id[0], id[1]))
	}
}

// contents makes files of the sizes at which something changes: blocks, the 64 KiB chunk, a list's first level.
func (m *maker) contents() {
	m.mkdir("contents", 0o755)
	for _, size := range []int{
		0, 1, 7, 511, 512, 513, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 131072, 1<<20 - 1, 1 << 20, 3<<20 + 4096, 9<<20 + 5,
	} {
		m.file(fmt.Sprintf("contents/random%d", size), 0o644, m.bytes(size))
		m.file(fmt.Sprintf("contents/zeros%d", size), 0o644, make([]byte, size))
		text := strings.Repeat("the same line again and again\n", size/30+1)[:size]
		m.file(fmt.Sprintf("contents/text%d", size), 0o644, []byte(text))
	}
}

func (m *maker) sparse() {
	m.mkdir("sparse", 0o755)
	make := func(name string, size int64, at ...int64) {
		m.file("sparse/"+name, 0o644, nil)
		if m.err != nil {
			return
		}
		f, err := os.OpenFile(m.path("sparse/"+name), os.O_WRONLY, 0)
		if err != nil {
			m.try("open", name, err)
			return
		}
		for _, off := range at {
			_, err := f.WriteAt(m.bytes(4096+8), off)
			m.try("write", name, err)
		}
		m.try("truncate", name, f.Truncate(size))
		m.try("close", name, f.Close())
	}
	make("10g-empty", 10<<30)
	make("10g-data", 10<<30, 0, 1<<20+1, 5<<30, 10<<30-5000)
	make("10g-odd", 10<<30+17, 7<<30)
	make("hole-at-end", 1<<20, 0)
	make("hole-at-start", 1<<20, 1<<20-4104)
	make("one-block-hole", 3*4096)
	make("cut-in-data", 4100, 0)
}

func (m *maker) names() {
	m.mkdir("names", 0o755)
	names := []string{
		"new\nline", "tab\t", "bell\a", "back\\slash", "quote'\"", " space ", "-dash", "--", "~", "#", "%41", "$HOME", "*?[x]", "...", "..x",
		".hidden", "\xff\xfe invalid", "\xc3", "caf\u00e9", "cafe\u0301", "CASE", "case", "Case", "日本語", "🙂", "\x01\x7f",
		strings.Repeat("n", 255), strings.Repeat("é", 127), "a:b", "a;b", "x@y", "x.y", "nul\u2400", "lost+found", "CON", "trailing.",
	}
	for _, name := range names {
		m.file("names/"+name, 0o644, []byte(name))
	}
	m.mkdir("names/dir\nwith\xff odd name", 0o755)
	m.file("names/dir\nwith\xff odd name/"+strings.Repeat("\xf0", 255), 0o644, []byte("deep"))
	deep := "names"
	for range 40 {
		deep += "/level"
		m.mkdir(deep, 0o755)
	}
	m.file(deep+"/bottom", 0o644, []byte("bottom"))
	m.mkdir("names/empty", 0o755)
}

func (m *maker) special() {
	m.mkdir("special", 0o755)
	for _, s := range []struct {
		name string
		mode uint32
		dev  uint64
	}{
		{"fifo", unix.S_IFIFO | 0o600, 0},
		{"socket", unix.S_IFSOCK | 0o755, 0},
		{"null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)},
		{"whiteout", unix.S_IFCHR, unix.Mkdev(0, 0)},
		{"block", unix.S_IFBLK | 0o660, unix.Mkdev(7, 200)},
		{"big-device", unix.S_IFBLK | 0o600, unix.Mkdev(4095, 1<<20-1)},
	} {
		name := "special/" + s.name
		m.try("mknod", name, unix.Mknod(m.path(name), s.mode, int(s.dev)))
		m.try("chown", name, os.Lchown(m.path(name), 7, 8))
		m.late = append(m.late, late{name, unix.Timespec{Sec: 1234567890, Nsec: 987654321}})
	}
}

// fileCaps is a security.capability attribute of version 2: cap_net_bind_service, permitted and effective.
const fileCaps = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func (m *maker) xattrs() {
	m.mkdir("xattrs", 0o755)
	set := func(name, attr, value string) {
		if m.err == nil {
			m.try("set "+attr+" of", name, unix.Lsetxattr(m.path(name), attr, []byte(value), 0))
		}
	}
	m.file("xattrs/user", 0o644, []byte("x"))
	set("xattrs/user", "user.text", "value")
	set("xattrs/user", "user.empty", "")
	set("xattrs/user", "user.binary", "\x00\xff\n\x00")
	set("xattrs/user", "user.big", strings.Repeat("v", 2000))
	set("xattrs/user", "user."+strings.Repeat("n", 250), "long name")
	m.file("xattrs/trusted", 0o644, []byte("x"))
	set("xattrs/trusted", "trusted.overlay.opaque", "y")
	m.file("xattrs/capability", 0o755, []byte("#!/bin/true\n"))
	set("xattrs/capability", "security.capability", fileCaps)
	m.file("xattrs/many", 0o644, nil)
	for i := range 40 {
		set("xattrs/many", fmt.Sprintf("user.number%02d", i), fmt.Sprint(i))
	}
	m.mkdir("xattrs/dir", 0o755)
	set("xattrs/dir", "user.on-dir", "d")
	set("xattrs/dir", "trusted.on-dir", "t")
	m.try("symlink", "xattrs/link", os.Symlink("user", m.path("xattrs/link")))
	set("xattrs/link", "trusted.on-link", "l")
}

func (m *maker) links() {
	m.mkdir("links", 0o755)
	for i, target := range []string{
		"../contents", "/etc/passwd", "nowhere", "self", "new\nline\xff", strings.Repeat("t/", 2047) + "t", ".",
	} {
		name := fmt.Sprintf("links/sym%d", i)
		m.try("symlink", name, os.Symlink(target, m.path(name)))
		m.late = append(m.late, late{name, unix.Timespec{Sec: 1e9 + int64(i), Nsec: 5}})
	}
	m.mkdir("links/a", 0o755)
	m.mkdir("links/b", 0o755)
	m.file("links/a/one", 0o4755, m.bytes(70000))
	m.try("set attribute of", "links/a/one", unix.Lsetxattr(m.path("links/a/one"), "user.linked", []byte("1"), 0))
	for _, name := range []string{"links/a/two", "links/b/three", "links/four"} {
		m.try("link", name, os.Link(m.path("links/a/one"), m.path(name)))
	}
	m.file("links/many", 0o644, nil)
	for i := range 200 {
		name := fmt.Sprintf("links/b/many%d", i)
		m.try("link", name, os.Link(m.path("links/many"), m.path(name)))
	}
	m.try("mknod", "links/fifo", unix.Mkfifo(m.path("links/fifo"), 0o600))
	m.try("link", "links/fifo2", os.Link(m.path("links/fifo"), m.path("links/b/fifo2")))
	m.try("symlink", "links/symhard", os.Symlink("x", m.path("links/symhard")))
	m.try("link", "links/symhard2", os.Link(m.path("links/symhard"), m.path("links/symhard2")))
	m.late = append(m.late, late{"links/four", unix.Timespec{Sec: 77, Nsec: 77}})
}

func (m *maker) times() {
	m.mkdir("times", 0o755)
	for i, ts := range []unix.Timespec{
		{Sec: 0, Nsec: 0},
		{Sec: 0, Nsec: 1},
		{Sec: 1, Nsec: 999999999},
		{Sec: -1, Nsec: 5},
		{Sec: -2000000000, Nsec: 123456789},
		{Sec: 1 << 31, Nsec: 1},
		{Sec: 1 << 32, Nsec: 999},
		{Sec: 1767225600, Nsec: 123456789},
		{Sec: 15032385535, Nsec: 0},
	} {
		m.file(fmt.Sprintf("times/f%d", i), 0o644, []byte("t"))
		m.mkdir(fmt.Sprintf("times/d%d", i), 0o755)
		m.late = append(m.late, late{fmt.Sprintf("times/f%d", i), ts}, late{fmt.Sprintf("times/d%d", i), ts})
	}
}

// random makes a tree of n things by drawing kinds, sizes, modes and times.
func (m *maker) random(dir string, depth, n int) {
	m.mkdir(dir, 0o755)
	dirs := []string{dir}
	for i := range n {
		parent := dirs[m.rnd.IntN(len(dirs))]
		name := fmt.Sprintf("%s/%x%d", parent, m.rnd.Uint32(), i)
		switch k := m.rnd.IntN(10); {
		case k == 0 && strings.Count(name, "/") < depth:
			m.mkdir(name, 0o700|m.rnd.Uint32()&0o77)
			dirs = append(dirs, name)
		case k == 1:
			m.try("symlink", name, os.Symlink(filepath.Base(parent), m.path(name)))
		default:
			m.file(name, 0o600|m.rnd.Uint32()&0o7177, m.bytes(m.rnd.IntN(1<<m.rnd.IntN(18))))
			m.try("chown", name, os.Lchown(m.path(name), m.rnd.IntN(70000), m.rnd.IntN(70000)))
		}
		m.late = append(m.late, late{name, unix.Timespec{Sec: m.rnd.Int64N(1 << 31), Nsec: m.rnd.Int64N(1e9)}})
	}
}

// setTimes sets the times that were asked for, and one of its own to every directory, deepest last made first.
func (m *maker) setTimes() {
	if m.err != nil {
		return
	}
	for i := len(m.late) - 1; i >= 0; i-- {
		l := m.late[i]
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, l.ts}
		m.try("set time of", l.path, unix.UtimesNanoAt(unix.AT_FDCWD, m.path(l.path), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	for i, dir := range []string{"modes", "contents", "sparse", "names", "special", "xattrs", "links", "times", "random"} {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1700000000 + int64(i), Nsec: int64(i) + 1}}
		m.try("set time of", dir, unix.UtimesNanoAt(unix.AT_FDCWD, m.path(dir), ts, 0))
	}
}

package posix

import (
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

func xattrChecks() []Check {
	return []Check{{"attributes", attributes}, {"attribute errors", attributeErrors}, {"attributes and users", attributeUsers}}
}

func attributes(e *env) {
	e.write("f", "")
	e.mkdir("d")
	for _, name := range []string{"f", "d"} {
		p := e.path(name)
		for attr, value := range map[string]string{
			"user.a": "1", "user.empty": "", "user.binary": "\x00\xff", "trusted.t": "secret", "user.big": strings.Repeat("v", 2000),
		} {
			e.must("set "+attr, unix.Setxattr(p, attr, []byte(value), 0))
			buf := make([]byte, 4096)
			n, err := unix.Getxattr(p, attr, buf)
			e.must("get "+attr, err)
			e.equal(attr, string(buf[:n]), value)
		}
		buf := make([]byte, 4096)
		n, err := unix.Listxattr(p, buf)
		e.must("list", err)
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		sort.Strings(names)
		e.equal("names", strings.Join(names, " "), "trusted.t user.a user.big user.binary user.empty")
		e.is("remove", unix.Removexattr(p, "user.a"), 0)
		e.is("remove again", unix.Removexattr(p, "user.a"), unix.ENODATA)
	}
}

func attributeErrors(e *env) {
	e.write("f", "")
	f := e.path("f")
	e.is("replace nothing", unix.Setxattr(f, "user.a", []byte("1"), unix.XATTR_REPLACE), unix.ENODATA)
	e.is("create", unix.Setxattr(f, "user.a", []byte("123"), unix.XATTR_CREATE), 0)
	e.is("create again", unix.Setxattr(f, "user.a", []byte("2"), unix.XATTR_CREATE), unix.EEXIST)
	e.is("replace", unix.Setxattr(f, "user.a", []byte("12345"), unix.XATTR_REPLACE), 0)
	_, err := unix.Getxattr(f, "user.a", make([]byte, 2))
	e.is("get into too little", err, unix.ERANGE)
	n, err := unix.Getxattr(f, "user.a", nil)
	e.is("get the size", err, 0)
	e.equal("size", n, 5)
	_, err = unix.Listxattr(f, make([]byte, 2))
	e.is("list into too little", err, unix.ERANGE)
	_, err = unix.Getxattr(f, "user.none", make([]byte, 2))
	e.is("get nothing", err, unix.ENODATA)
	e.is("a value that is too big", unix.Setxattr(f, "user.b", make([]byte, 65537), 0), unix.E2BIG)
	e.is("a name that is too long", unix.Setxattr(f, "user."+strings.Repeat("n", 251), nil, 0), unix.ERANGE)
	e.is("no such namespace", unix.Setxattr(f, "nowhere.a", []byte("1"), 0), unix.EOPNOTSUPP)
	e.must("symlink", os.Symlink("f", e.path("s")))
	e.is("user attribute of a symlink", unix.Lsetxattr(e.path("s"), "user.a", []byte("1"), 0), unix.EPERM)
	e.is("trusted attribute of a symlink", unix.Lsetxattr(e.path("s"), "trusted.a", []byte("1"), 0), 0)
}

func attributeUsers(e *env) {
	e.write("f", "")
	e.must("chmod", unix.Chmod(e.path("f"), 0o644))
	e.must("set", unix.Setxattr(e.path("f"), "user.a", []byte("1"), 0))
	e.must("set", unix.Setxattr(e.path("f"), "trusted.a", []byte("1"), 0))
	e.as(bob, bob, func() {
		e.is("set without the right to write", unix.Setxattr(e.path("f"), "user.a", []byte("2"), 0), unix.EACCES)
		_, err := unix.Getxattr(e.path("f"), "user.a", make([]byte, 10))
		e.is("get", err, 0)
		e.is("set a trusted one", unix.Setxattr(e.path("f"), "trusted.a", []byte("2"), 0), unix.EPERM)
		_, err = unix.Getxattr(e.path("f"), "trusted.a", make([]byte, 10))
		e.is("get a trusted one", err, unix.ENODATA)
		buf := make([]byte, 100)
		n, err := unix.Listxattr(e.path("f"), buf)
		e.is("list", err, 0)
		e.equal("names one may see", string(buf[:max(n, 0)]), "user.a\x00")
	})
}

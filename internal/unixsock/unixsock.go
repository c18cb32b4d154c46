// Package unixsock makes unix sockets that their own user and root alone can use.
//
// A socket has its mode before it has its name, and replaces what is there under that name in one rename: whoever looks finds
// the old one or the new one, and never one that is open to all.
package unixsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// maxPath is the longest path that fits a sockaddr_un, in bytes, without its final NUL.
const maxPath = 107

// Short returns a name for the socket at path that fits a sockaddr_un however long path is: where needed it goes through
// /proc/self/fd of the directory, which release closes. The name is good only within this process.
func Short(path string) (short string, release func(), err error) {
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path))
	return short, func() { dir.Close() }, nil
}

// Listen makes a socket with mode 0600 at path, in the place of what is there. The caller sees to it that nobody does the same
// at the same time. Closing the listener leaves the socket.
func Listen(path string) (Listener, error) {
	// In a directory of its own nobody takes the socket for one that is in use.
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return Listener{}, err
	}
	defer os.RemoveAll(tmp)
	made := filepath.Join(tmp, "s")
	short, release, err := Short(made)
	if err != nil {
		return Listener{}, err
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return Listener{}, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		l.Close()
		return Listener{}, err
	}
	return Listener{l}, nil
}

// Listener accepts only connections of this process's user and of root: the mode of the socket says so too, but a mode can be
// changed by mistake.
type Listener struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return c, nil
		}
		c.Close()
	}
}

// peerUID returns the user of the process at the other end.
func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

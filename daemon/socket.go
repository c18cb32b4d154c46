package daemon

import (
	"errors"
	"net"
	"os"
	"syscall"

	"dm/api"
	"dm/internal/errs"
)

// listen makes the socket. It appears under its name only when it has its mode, and replaces what a killed server left:
// the lock on the state directory says that nobody listens there.
func listen(path string) (net.Listener, error) {
	tmp := path + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	short, release, err := api.ShortSocketPath(tmp)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	return ownerOnly{l}, nil
}

// ownerOnly accepts only connections of the server's own user and of root: the mode of the socket says so too, but a mode
// can be changed by mistake.
type ownerOnly struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l ownerOnly) Accept() (net.Conn, error) {
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
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

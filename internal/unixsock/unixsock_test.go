package unixsock

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A socket takes the place of what a killed process left, at however long a path.
func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep", 30))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.sock")
	for range 2 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("the socket has mode %v, %v", info.Mode(), err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("beside the socket there is %v, %v", left, err)
		}
		short, release, err := Short(path)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		c, err := net.Dial("unix", short)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	}
}

// Another user is turned away, even if the socket's mode lets in everybody.
func TestOtherUsersAreTurnedAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("only root can be somebody else: run the tests as root")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "x.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for p, mode := range map[string]os.FileMode{path: 0o666, dir: 0o755, filepath.Dir(dir): 0o755} {
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	turnedAway := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: this thread ends as another user
		turnedAway <- dialAs(65534, path)
	}()
	if err := <-turnedAway; err != nil {
		t.Error(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	own, ok := <-accepted
	if !ok {
		t.Fatal("the own user is turned away")
	}
	own.Close()
}

// dialAs connects as another user from this thread and waits for the end of the connection.
func dialAs(uid int, path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	// Of the thread alone, which the functions of package syscall would not do.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return errno
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	_, err = unix.Read(fd, make([]byte, 1))
	return err
}

// Package posix is a table of what Linux promises of system calls on a filesystem, beyond what an average program notices:
// error numbers, times, link counts, permissions of several users, locks between processes, files without names. Each
// check runs in a directory of its own. The table is verified on the host's filesystem by this package's own test, so a
// check that fails elsewhere found a difference.
package posix

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Check is one entry of the table.
type Check struct {
	Name string
	run  func(*env)
}

// Checks returns the table.
func Checks() []Check {
	return slices.Concat(nameChecks(), directoryChecks(), attributeChecks(), userChecks(), contentChecks(), mappingChecks(), lockChecks(), xattrChecks())
}

// Run does the check in dir, which exists and is empty, and returns what was not as it should be.
func (c Check) Run(dir string) []string {
	e := &env{dir: dir}
	done := make(chan struct{})
	go func() { // fatal ends the goroutine
		defer close(done)
		c.run(e)
	}()
	select {
	case <-done:
		return e.wrong
	case <-time.After(30 * time.Second):
		return []string{"still not done after 30 s"}
	}
}

// env is what a check works with.
type env struct {
	dir   string
	mu    sync.Mutex
	wrong []string
}

func (e *env) path(elem ...string) string { return filepath.Join(append([]string{e.dir}, elem...)...) }

func (e *env) errorf(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wrong = append(e.wrong, fmt.Sprintf(format, args...))
}

// must ends the check if err is not nil.
func (e *env) must(what string, err error) {
	if err != nil {
		e.errorf("%s: %v", what, err)
		runtime.Goexit()
	}
}

// is notes an error that is not the expected one; 0 is none.
func (e *env) is(what string, err error, want ...unix.Errno) {
	var got unix.Errno
	if err != nil && !errors.As(err, &got) {
		e.errorf("%s: %v", what, err)
		return
	}
	if !slices.Contains(want, got) {
		e.errorf("%s: %v (%d), want %v", what, got, got, want)
	}
}

func (e *env) equal(what string, got, want any) {
	if got != want {
		e.errorf("%s: %v, want %v", what, got, want)
	}
}

func (e *env) write(name, data string) {
	e.must("write "+name, os.WriteFile(e.path(name), []byte(data), 0o644))
}

func (e *env) content(name, want string) {
	data, err := os.ReadFile(e.path(name))
	if err != nil || string(data) != want {
		e.errorf("%s holds %q, %v; want %q", name, data, err, want)
	}
}

func (e *env) mkdir(name string) { e.must("mkdir "+name, os.Mkdir(e.path(name), 0o755)) }

func (e *env) stat(name string) unix.Stat_t {
	var st unix.Stat_t
	e.must("lstat "+name, unix.Lstat(e.path(name), &st))
	return st
}

func (e *env) open(name string, flags int) int {
	fd, err := unix.Open(e.path(name), flags|unix.O_CLOEXEC, 0o644)
	e.must("open "+name, err)
	return fd
}

// tryOpen opens and closes, for the error number.
func (e *env) tryOpen(name string, flags int) error {
	fd, err := unix.Open(e.path(name), flags|unix.O_CLOEXEC, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// as calls fn as another user, on a thread that ends with it: credentials are a thread's own below the C library.
func (e *env) as(uid, gid int, fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		_, _, err := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
		if err == 0 {
			_, _, err = unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		}
		if err == 0 {
			_, _, err = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		}
		if err != 0 {
			e.errorf("become user %d: %v", uid, err)
			return
		}
		fn()
	}()
	<-done
}

// tick waits until file times have moved on: the kernel takes them from a coarse clock.
func tick() { time.Sleep(15 * time.Millisecond) }

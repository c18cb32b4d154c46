package posix

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func lockChecks() []Check {
	return []Check{
		{"flock", flock},
		{"locks of descriptions", descriptionLocks},
		{"locks between processes", processLocks},
		{"waiting for a lock", waitForLock},
		{"locks end with the process", locksEnd},
	}
}

// helperEnv names the file that a helper process locks; a program that runs Checks calls RunHelper first in its main.
const helperEnv = "DM_E2E_LOCK_HELPER"

// RunHelper does the work of a helper process and exits, if this process was started as one: it obeys one word a line,
// "lock FROM LEN", "wait FROM LEN" or "unlock FROM LEN", and answers with an error's text or "ok".
func RunHelper() {
	name, ok := os.LookupEnv(helperEnv)
	if !ok {
		return
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var word string
		var from, length int64
		fmt.Sscan(in.Text(), &word, &from, &length)
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: from, Len: length}
		cmd := unix.F_SETLK
		switch word {
		case "wait":
			cmd = unix.F_SETLKW
		case "unlock":
			lk.Type = unix.F_UNLCK
		}
		if err := unix.FcntlFlock(uintptr(fd), cmd, &lk); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	os.Exit(0)
}

// helper is such a process.
type helper struct {
	e   *env
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (e *env) helper(name string) *helper {
	h := &helper{e: e, cmd: exec.Command("/proc/self/exe")}
	h.cmd.Env = append(os.Environ(), helperEnv+"="+e.path(name))
	var err error
	h.in, err = h.cmd.StdinPipe()
	e.must("pipe", err)
	out, err := h.cmd.StdoutPipe()
	e.must("pipe", err)
	h.out = bufio.NewReader(out)
	e.must("start", h.cmd.Start())
	return h
}

func (h *helper) send(order string) { fmt.Fprintln(h.in, order) }

func (h *helper) answer() string {
	line, err := h.out.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func (h *helper) do(order, want string) {
	h.send(order)
	h.e.equal("another process: "+order, h.answer(), want)
}

func (h *helper) kill() {
	h.cmd.Process.Kill()
	h.cmd.Wait()
}

func flock(e *env) {
	e.write("f", "")
	a, b := e.open("f", unix.O_RDWR), e.open("f", unix.O_RDWR)
	defer unix.Close(b)
	try := func(fd, how int) error { return unix.Flock(fd, how|unix.LOCK_NB) }
	e.is("exclusive", try(a, unix.LOCK_EX), 0)
	e.is("exclusive by another", try(b, unix.LOCK_EX), unix.EWOULDBLOCK)
	e.is("shared by another", try(b, unix.LOCK_SH), unix.EWOULDBLOCK)
	e.is("downgrade", try(a, unix.LOCK_SH), 0)
	e.is("shared by another", try(b, unix.LOCK_SH), 0)
	e.is("upgrade", try(a, unix.LOCK_EX), unix.EWOULDBLOCK)
	e.must("close", unix.Close(a))
	e.is("after the close", try(b, unix.LOCK_EX), 0)
}

func descriptionLocks(e *env) {
	e.write("f", "")
	a, b := e.open("f", unix.O_RDWR), e.open("f", unix.O_RDWR)
	defer unix.Close(b)
	try := func(fd int, kind int16, from, length int64) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: from, Len: length})
	}
	e.is("a range", try(a, unix.F_WRLCK, 0, 10), 0)
	e.is("overlapping", try(b, unix.F_RDLCK, 9, 1), unix.EAGAIN, unix.EACCES)
	e.is("beside", try(b, unix.F_WRLCK, 10, 0), 0)
	e.is("unlock a part", try(a, unix.F_UNLCK, 5, 5), 0)
	e.is("the part", try(b, unix.F_WRLCK, 5, 5), 0)
	e.is("the rest", try(b, unix.F_WRLCK, 0, 5), unix.EAGAIN, unix.EACCES)
	e.must("close", unix.Close(a))
	e.is("after the close", try(b, unix.F_WRLCK, 0, 5), 0)
}

func processLocks(e *env) {
	e.write("f", "")
	h := e.helper("f")
	defer h.kill()
	h.do("lock 100 100", "ok")
	fd := e.open("f", unix.O_RDWR)
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 150, Len: 10}
	e.is("what another has", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk), unix.EAGAIN, unix.EACCES)
	e.must("F_GETLK", unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lk))
	e.equal("who has it", int(lk.Pid), h.cmd.Process.Pid)
	e.equal("from where", lk.Start, int64(100))
	e.equal("how much", lk.Len, int64(100))
	lk = unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 100}
	e.is("beside it", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk), 0)
	h.do("lock 0 1", unix.EAGAIN.Error())
	// Closing any descriptor of the file gives up the process's locks, as POSIX has it.
	e.must("close", unix.Close(fd))
	h.do("lock 0 1", "ok")
}

func waitForLock(e *env) {
	e.write("f", "")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	e.must("lock", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk))
	h := e.helper("f")
	defer h.kill()
	h.send("wait 0 0")
	time.Sleep(50 * time.Millisecond)
	lk.Type = unix.F_UNLCK
	e.must("unlock", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk))
	e.equal("the waiting process", h.answer(), "ok")
}

func locksEnd(e *env) {
	e.write("f", "")
	h := e.helper("f")
	h.do("lock 0 0", "ok")
	h.kill()
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	e.is("lock what a killed process had", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lk), 0)
}

package fusefs

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// call is a request's context. It is cancelled when the calling process is being killed.
//
// The kernel tells of any signal that arrives while a process waits, and does not say which. Most programs have handlers
// for timers or children and do not expect EINTR from stat(2), rename(2) or pwrite(2) on a file, which no disk filesystem
// returns; some take it for a fatal error of the disk. So only a signal that ends the process counts. The kernel turns
// each of these into a pending SIGKILL.
//
// A call costs nothing until Done is called, that is, until something waits.
type call struct {
	interrupted <-chan struct{}
	pid         uint32 // of the calling thread; 0: the kernel's own

	mu       sync.Mutex
	done     chan struct{}
	finished chan struct{}
	err      error
}

var _ context.Context = (*call)(nil)

// killCheck is how long a killed process may be kept waiting, once it got any signal.
const killCheck = 20 * time.Millisecond

func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *call) Value(any) any { return nil }

func (c *call) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		c.finished = make(chan struct{})
		go c.watch(c.done, c.finished)
	}
	return c.done
}

// finish ends the watch; called when the request is answered.
func (c *call) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished != nil {
		close(c.finished)
		c.finished = nil
	}
}

func (c *call) watch(done, finished chan struct{}) {
	select {
	case <-finished:
		return
	case <-c.interrupted:
	}
	tick := time.NewTicker(killCheck)
	defer tick.Stop()
	for !killed(c.pid) {
		select {
		case <-finished:
			return
		case <-tick.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = context.Canceled
	close(done)
}

// killed says whether a thread has a SIGKILL pending, or is gone.
func killed(pid uint32) bool {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return true
	}
	const sigkill = 1 << (9 - 1)
	for _, field := range []string{"\nSigPnd:\t", "\nShdPnd:\t"} {
		_, rest, ok := bytes.Cut(status, []byte(field))
		if !ok {
			continue
		}
		hex, _, _ := bytes.Cut(rest, []byte("\n"))
		if set, err := strconv.ParseUint(string(hex), 16, 64); err == nil && set&sigkill != 0 {
			return true
		}
	}
	return false
}

// begin returns the context of a request; its finish must be called.
func begin(cancel <-chan struct{}, h *fuse.InHeader) *call {
	return &call{interrupted: cancel, pid: h.Pid}
}

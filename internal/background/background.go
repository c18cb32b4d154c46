// Package background has work that takes a processor for long stay out of the way of requests that take one for
// microseconds: what a commit computes, beside the volumes that are served meanwhile.
//
// Two schedulers stand between a request and a processor. Go's gives a goroutine that comes back from a system call one of
// GOMAXPROCS places; where all are taken by goroutines that compute it waits for milliseconds, even if a processor is idle.
// So Reserve adds places, and who computes in parallel lets no more than Workers goroutines do so at a time. The kernel's
// shares the processors between threads; so Thread lowers the priority of one that computes. And Go's own watch over threads
// in system calls is one more that takes processors from requests; Reserve has it look less often.
package background

import (
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// reserve is how many places are added. Requests come in bursts, and the garbage collector takes a quarter of all.
	reserve = 6
	// surplus is by how many there are more workers than processors: some wait for the disk.
	surplus = 2
	// nice is how much lower the priority of a worker's thread is than the server's: two thirds of its weight. With 5 and
	// more, writers waited seldom, but then up to 60 ms, for the processor that such a thread had.
	nice = 2
)

// processors is what GOMAXPROCS was before Reserve; 0: it was not called.
var processors atomic.Int64

// Reserve raises GOMAXPROCS, so that workers do not take all of it, and lets timers be late, so that the runtime's watch
// costs less. A server calls it once, before anything else runs.
func Reserve() {
	n := runtime.GOMAXPROCS(0)
	if processors.CompareAndSwap(0, int64(n)) {
		runtime.GOMAXPROCS(n + reserve)
		relaxTimers()
	}
}

// Workers is how many goroutines should compute at the same time.
func Workers() int {
	n := int(processors.Load())
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return n + surplus
}

// Thread gives the calling goroutine a thread of its own, of lower priority than others, which ends with the goroutine.
func Thread() {
	runtime.LockOSThread()
	// An error leaves the priority as it is: slower for others, not wrong.
	if now, err := niceness(); err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, now+nice)
	}
}

// niceness returns the nice value of the calling thread.
func niceness() (int, error) {
	p, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	return 20 - p, err // the raw system call answers with 20 less the value, which is never negative
}

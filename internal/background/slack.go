package background

import (
	"os"
	"strconv"
	"time"
)

// timerSlack is how late a timer of this process may be (PR_SET_TIMERSLACK; the kernel's default is 50 µs).
//
// A thread of Go's runtime looks for places that threads in system calls keep from others, and takes them away. As long as
// it finds any it looks again after 20 µs (golang/go#18236). In a server whose threads are in read(2) and fdatasync(2)
// most of the time it always finds some: it woke 7,000 times a second and took two fifths of the server's CPU time while a
// database ran on a volume. The slack makes that 2,000 times at most. A longer one has goroutines wait longer for a place
// where all are taken.
const timerSlack = 500 * time.Microsecond

// relaxTimers gives the threads of this process their timer slack; threads and processes that they start inherit it. An error
// leaves things as they are: threads other than the calling one take CAP_SYS_NICE.
func relaxTimers() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	ns := []byte(strconv.FormatInt(timerSlack.Nanoseconds(), 10))
	for _, t := range threads {
		// The file is there under each thread's number, though /proc lists processes alone.
		_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", ns, 0)
	}
}

package background

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestThread(t *testing.T) {
	runtime.LockOSThread()
	// A server that was started with a low priority of its own has workers with a still lower one.
	ok(t, unix.Setpriority(unix.PRIO_PROCESS, 0, 3))
	before, err := niceness()
	ok(t, err)
	type thread struct {
		tid, nice int
		err       error
	}
	ch := make(chan thread)
	go func() {
		Thread()
		n, err := niceness()
		ch <- thread{unix.Gettid(), n, err}
	}()
	got := <-ch
	ok(t, got.err)
	if got.tid == unix.Gettid() {
		t.Error("the worker has no thread of its own")
	}
	// It had the priority of the thread it was given, which may be another than the caller's.
	if got.nice != nice && got.nice != before+nice {
		t.Errorf("the worker has nice %d, want %d more than its thread had", got.nice, nice)
	}
	after, err := niceness()
	ok(t, err)
	if after != before {
		t.Errorf("the caller's nice went from %d to %d", before, after)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReserve(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer func() {
		processors.Store(0)
		runtime.GOMAXPROCS(before)
	}()
	want := before + surplus
	for range 2 { // the second call changes nothing
		Reserve()
		if got := runtime.GOMAXPROCS(0); got != before+reserve {
			t.Errorf("GOMAXPROCS is %d, want %d", got, before+reserve)
		}
		if got := Workers(); got != want || got >= before+reserve {
			t.Errorf("%d workers, want %d, fewer than GOMAXPROCS", got, want)
		}
	}
}

func TestTimersMayBeLate(t *testing.T) {
	threads, err := os.ReadDir("/proc/self/task")
	ok(t, err)
	relaxTimers()
	seen := 0
	for _, thread := range threads { // the runtime's watch is one of those that a process begins with
		got, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		ok(t, err)
		if want := strconv.FormatInt(timerSlack.Nanoseconds(), 10); strings.TrimSpace(string(got)) != want {
			t.Errorf("thread %s has a timer slack of %s ns, want %s", thread.Name(), strings.TrimSpace(string(got)), want)
		}
		seen++
	}
	if seen < 2 {
		t.Errorf("%d threads seen, want the main one and the runtime's watch", seen)
	}
}

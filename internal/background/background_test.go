package background

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Getpriority is the raw system call: 20 less the nice value.
func niceOf(t *testing.T) int {
	t.Helper()
	p, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - p
}

func TestThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := niceOf(t)
	type thread struct{ tid, nice int }
	ch := make(chan thread)
	go func() {
		Thread()
		ch <- thread{unix.Gettid(), niceOf(t)}
	}()
	if got := <-ch; got.nice != nice || got.tid == unix.Gettid() {
		t.Errorf("the worker has nice %d, want %d", got.nice, nice)
	}
	if got := niceOf(t); got != before {
		t.Errorf("the caller's nice went from %d to %d", before, got)
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

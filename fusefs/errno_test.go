package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"dm/internal/errs"
)

func TestErrnoOfEveryKind(t *testing.T) {
	want := map[errs.Kind]syscall.Errno{
		errs.Internal: syscall.EIO, errs.Usage: syscall.EINVAL, errs.NotFound: syscall.EIO, errs.Conflict: syscall.EBUSY,
		errs.NotAllowed: syscall.EPERM, errs.Unreachable: syscall.EIO, errs.Damaged: syscall.EIO, errs.NoSpace: syscall.ENOSPC,
		errs.Interrupted: syscall.EINTR,
	}
	for _, k := range errs.Kinds() {
		errno, ok := want[k]
		if !ok {
			t.Errorf("kind %v has no errno", k)
		}
		if got, _ := errnoOf(fmt.Errorf("wrapped: %w", errs.New(k, "x"))); got != errno {
			t.Errorf("%v is %v, want %v", k, got, errno)
		}
	}
	for _, c := range []struct {
		err      error
		errno    syscall.Errno
		expected bool
	}{
		{nil, 0, true},
		{syscall.ENOTEMPTY, syscall.ENOTEMPTY, true},
		{fmt.Errorf("write: %w", syscall.EDQUOT), syscall.EDQUOT, true},
		{context.Canceled, syscall.EINTR, true},
		{errors.New("?"), syscall.EIO, false},
		{errs.New(errs.Damaged, "chunk"), syscall.EIO, false},
	} {
		if errno, expected := errnoOf(c.err); errno != c.errno || expected != c.expected {
			t.Errorf("%v is %v (expected: %v), want %v (%v)", c.err, errno, expected, c.errno, c.expected)
		}
	}
}

// A damaged file that is read in a loop must not fill the log.
func TestFailuresAreLoggedSparingly(t *testing.T) {
	var out bytes.Buffer
	f := failures{log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 10_000 {
		if st := f.status("read", 7, errs.New(errs.Damaged, "chunk is not what it was")); st != 5 {
			t.Fatal(st)
		}
	}
	f.status("stat", 7, syscall.ENOENT)
	if n := strings.Count(out.String(), "\n"); n < 1 || n > 2*(failuresPerSecond+1) {
		t.Errorf("10000 failures make %d lines", n)
	}
	if !strings.Contains(out.String(), "op=read node=7 kind=damaged") {
		t.Error(out.String())
	}
}

package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"dm/internal/errs"
)

// errnoOf returns what a process is told of an error, and whether the error is one that a filesystem gives in its normal
// work. One that is not deserves a line in the log, since all the process sees is "input/output error".
func errnoOf(err error) (errno syscall.Errno, expected bool) {
	if err == nil {
		return 0, true
	}
	if errors.As(err, &errno) {
		return errno, true
	}
	if errors.Is(err, context.Canceled) {
		return syscall.EINTR, true
	}
	switch errs.KindOf(err) {
	case errs.NotFound:
		// Not ENOENT: that a name does not exist is said with syscall.ENOENT. An error of this kind is an object that
		// should be in the store and is not, and a program must not take a lost file for one that never was.
		return syscall.EIO, false
	case errs.Usage:
		return syscall.EINVAL, true
	case errs.Conflict:
		return syscall.EBUSY, true
	case errs.NotAllowed:
		return syscall.EPERM, true
	case errs.NoSpace:
		return syscall.ENOSPC, true
	case errs.Interrupted:
		return syscall.EINTR, true
	case errs.Internal, errs.Unreachable, errs.Damaged:
	}
	return syscall.EIO, false
}

// failures logs unexpected errors, at most some a second: a damaged file that is read in a loop must not fill the disk.
type failures struct {
	log     *slog.Logger
	second  atomic.Int64
	inSec   atomic.Int64
	dropped atomic.Int64
}

const failuresPerSecond = 10

// status maps the error of an operation on a node.
func (f *failures) status(op string, node uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno, expected := errnoOf(err)
	if !expected || errno == syscall.EMFILE || errno == syscall.ENFILE { // not files of the process that sees it
		f.report(op, node, err)
	}
	return fuse.Status(errno)
}

func (f *failures) report(op string, node uint64, err error) {
	now := time.Now().Unix()
	if old := f.second.Load(); old != now && f.second.CompareAndSwap(old, now) {
		f.inSec.Store(0)
		if n := f.dropped.Swap(0); n > 0 {
			f.log.Error("more failed operations on a volume were not logged", "count", n)
		}
	}
	if f.inSec.Add(1) > failuresPerSecond {
		f.dropped.Add(1)
		return
	}
	f.log.Error("operation on a volume failed", "op", op, "node", node, "kind", errs.KindOf(err), "err", err)
}

// errnoError is the inverse: what the kernel answered to a notification.
func errnoError(st fuse.Status) error { return syscall.Errno(st) }

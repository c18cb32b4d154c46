package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"dm/fusefs"
	"dm/internal/errs"
)

// cleanStale takes away what a server that was killed left mounted: its mounts answer every call with an error. It must
// hold the lock, which says that no server is behind them.
func (h *home) cleanStale() error {
	for _, part := range []string{mountDir, lookDir} {
		dirs, err := mountsBelow(h.path(part))
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			// A connection that is not there any more has nothing left to be aborted.
			if err := fusefs.CleanStale(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	records, err := (&binds{file: h.path(mountsFile)}).read()
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := detachDead(string(r.Dir)); err != nil {
			return err
		}
	}
	return nil
}

// maxStacked bounds how many dead mounts can lie on each other at one directory.
const maxStacked = 100

// detachDead takes away the mounts at dir whose server is gone. What else a user has mounted there is not ours to touch.
func detachDead(dir string) error {
	for range maxStacked {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); !errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return errs.New(errs.Conflict, "unmount what an earlier server left at %s: %w", dir, err)
		}
	}
	return errs.New(errs.Conflict, "%s has more than %d dead mounts on each other", dir, maxStacked)
}

// RunChild runs this process as one of the server's helper processes if it was started as such. A program that is used as
// a server calls it first.
func RunChild() (code int, ran bool) {
	if os.Args[0] == bindHelper {
		return runBind(os.Args[1:]), true
	}
	if os.Args[0] == standInHelper {
		return runStandIn(os.Args[1:]), true
	}
	if len(os.Args) < 2 || os.Args[1] != fusefs.FlusherArg {
		return 0, false
	}
	if err := fusefs.RunFlusher(); err != nil {
		fmt.Fprintln(os.Stderr, "dm:", err)
		return 1, true
	}
	return 0, true
}

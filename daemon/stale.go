package daemon

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"dm/fusefs"
	"dm/internal/errs"
)

// cleanStale takes away what a server that was killed left mounted: its mounts answer every call with an error. It must
// hold the lock, which says that no server is behind them.
func (h *home) cleanStale() error {
	dirs, err := mountsBelow(h.path(mountDir))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return errs.New(errs.Conflict, "unmount what an earlier server left at %s: %w", dir, err)
		}
	}
	return nil
}

// RunChild runs this process as one of the server's helper processes if it was started as such. A program that is used as
// a server calls it first.
func RunChild() (code int, ran bool) {
	if os.Args[0] == bindHelper {
		return runBind(os.Args[1:]), true
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

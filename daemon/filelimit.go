package daemon

import (
	"log/slog"
	"syscall"

	"dm/internal/errs"
	"dm/workcopy"
)

const (
	// otherFiles is what the server keeps of the limit on open files for all but working copies: 128 packs that the store has
	// open, its index, connections of clients, of Docker and to remotes, children, files that are written at this moment.
	otherFiles = 320
	// minFiles is the least limit that a server starts with.
	minFiles = otherFiles + workcopy.MinOpenFiles
	// maxCopyFiles bounds what working copies keep open: each file takes some kernel memory, and opening one again costs
	// microseconds.
	maxCopyFiles = 1 << 14
)

// raiseFileLimit lets the server open as many files as the system allows, and returns how many that are.
func raiseFileLimit(log *slog.Logger) uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("read the limit of open files", "err", err)
		return minFiles
	}
	const want = 1 << 20
	raised := syscall.Rlimit{Cur: want, Max: max(limit.Max, want)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
		return want
	}
	raised = syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised); err != nil {
		log.Warn("raise the limit of open files", "err", err)
		return limit.Cur
	}
	return limit.Max
}

// copyFiles returns how much of a limit on open files is for working copies.
func copyFiles(limit uint64) (*workcopy.OpenFiles, error) {
	if limit < minFiles {
		return nil, errs.WithHint(errs.New(errs.NotAllowed, "the server may open %d files, and needs %d at least", limit, minFiles),
			"start it with a higher hard limit on open files, 1024 or better 65536 (ulimit -Hn, LimitNOFILE= of a systemd unit)")
	}
	return workcopy.NewOpenFiles(int(min(limit-otherFiles, maxCopyFiles))), nil
}

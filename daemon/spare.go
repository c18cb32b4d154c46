package daemon

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
)

// spareSize is what a server keeps for its next start, in bytes: mount points, the socket, and a journal for each of some
// working copies. One that is opened without room for its own gets by, as long as there is some left.
const spareSize = 8 << 20

// freeSpare gives back the room that was kept for this start. On a disk that is full otherwise, nobody would get at the files
// in the volumes that could go.
func (h *home) freeSpare() error {
	if err := os.Remove(h.path(spareFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.KindOf(err), "give back what is kept for the start: %w", err)
	}
	return nil
}

// withSpare does what undoes something, for which there must be room: if there is none, what was kept for the next start.
func (s *server) withSpare(undo func() error) error {
	err := undo()
	if errs.KindOf(err) != errs.NoSpace {
		return err
	}
	if err := s.home.freeSpare(); err != nil {
		return err
	}
	err = undo()
	if kept := s.home.keepSpare(); kept != nil {
		s.log.Warn("no room is kept for the next start", "err", kept)
	}
	return err
}

// keepSpare keeps room for the next start: less, or none, if the disk has no more, or if its filesystem cannot set any aside.
func (h *home) keepSpare() error {
	f, err := os.OpenFile(h.path(spareFile), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = unix.ENOSPC
	for n := int64(spareSize); n >= spareSize/64 && errors.Is(err, unix.ENOSPC); n /= 2 {
		err = unix.Fallocate(int(f.Fd()), 0, 0, n)
	}
	return errors.Join(err, f.Close())
}

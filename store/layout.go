package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/errs"
)

// formatVersion is the version of the directory's layout and of the index.
const formatVersion = 1

// formatText is what is in the file format: the version, and a checksum of that, so that a flipped bit is no newer version.
// The first stores of version 1 had none.
func formatText(version int) string {
	line := fmt.Sprintf("dm store %d", version)
	return fmt.Sprintf("%s %08x\n", line, crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli)))
}

const firstFormat = "dm store 1\n"

// lockDir makes this process the only one that has the store open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "open store %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errs.New(errs.KindOf(err), "lock store %s: %w", dir, err)
		}
		b := make([]byte, 32)
		n, _ := f.Read(b)
		holder := strings.TrimSpace(string(b[:n]))
		return nil, errs.WithHint(errs.New(errs.Conflict, "store %s is in use by process %s", dir, holder),
			"stop that server, or use another directory (--home)")
	}
	if err := f.Truncate(0); err == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// checkFormat refuses a store of a newer format, and marks a new one with ours.
func checkFormat(dir string) error {
	path := filepath.Join(dir, "format")
	ours := []byte(formatText(formatVersion))
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return durable.WriteFile(path, ours, 0o600)
	}
	if err != nil {
		return errs.New(errs.KindOf(err), "open store %s: %w", dir, err)
	}
	if string(b) == firstFormat {
		return nil
	}
	var v int
	if n, err := fmt.Sscanf(string(b), "dm store %d", &v); n != 1 || err != nil || v < 1 || string(b) != formatText(v) {
		// The version is in every pack and in the journal, too: a damaged note of it need not keep anyone out.
		return durable.WriteFile(path, ours, 0o600)
	}
	if v > formatVersion {
		return errs.WithHint(errs.New(errs.Usage, "store %s has format %d; this dm knows %d", dir, v, formatVersion),
			"install a newer dm")
	}
	return nil
}

// reserve fails with errs.NoSpace where the disk has less free than Options.MinFree: what is left is for those who already use
// it, and for what gives space back.
func (s *Store) reserve() error {
	if s.opts.MinFree <= 0 {
		return nil
	}
	free, err := freeBytes(s.dir)
	if err != nil {
		return errs.New(errs.KindOf(err), "look up free space of store %s: %w", s.dir, err)
	}
	if free >= s.opts.MinFree {
		return nil
	}
	return errs.WithHint(errs.New(errs.NoSpace,
		"too little space: the disk under store %s has %s free, less than the reserve of %s; nothing more is stored",
		s.dir, humanize.IBytes(uint64(free)), humanize.IBytes(uint64(s.opts.MinFree))),
		"make room: 'dm du' shows what takes it, 'dm prune' and 'dm gc' give it back; volumes stay writable")
}

// roomToMove says whether gc may write n bytes in order to free more. It may go into the reserve, most of which is for that.
func (s *Store) roomToMove(n int64) (bool, error) {
	free, err := freeBytes(s.dir)
	return free-n >= max(s.opts.MinFree/8, leastFree), err
}

// leastFree is what gc leaves free in any case, in bytes: the index needs some to note what was freed.
const leastFree = 4 << 20

// freeBytes returns what unprivileged writers can still use of the disk, in bytes.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

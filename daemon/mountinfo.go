package daemon

import (
	"fmt"
	"path/filepath"

	"github.com/moby/sys/mountinfo"

	"dm/internal/errs"
)

// mountPoint is where something is mounted, and its device, as mountinfo has them.
type mountPoint struct{ dir, dev string }

// readMounts returns what is mounted in this process's mount namespace, in the order in which it was mounted. It asks
// nothing of what is mounted.
func readMounts() ([]mountPoint, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, errs.New(errs.Internal, "read what is mounted: %w", err)
	}
	all := make([]mountPoint, len(infos))
	for i, m := range infos {
		all[i] = mountPoint{m.Mountpoint, fmt.Sprintf("%d:%d", m.Major, m.Minor)}
	}
	return all, nil
}

// mountsBelow returns the mount points in and at dir, the last mounted first: the order in which they can be unmounted.
func mountsBelow(dir string) ([]string, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	// The kernel writes paths without symlinks.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	var below []string
	for i := len(all) - 1; i >= 0; i-- {
		if inside(dir, all[i].dir) {
			below = append(below, all[i].dir)
		}
	}
	return below, nil
}

// isMounted says whether something is mounted at dir, which has no symlinks in it.
func isMounted(dir string) (bool, error) {
	at, err := mountsAt(dir)
	return len(at) > 0, err
}

// mountsAt returns what is mounted at dir, which has no symlinks in it, the topmost last.
func mountsAt(dir string) (at []mountPoint, err error) {
	all, err := readMounts()
	for _, p := range all {
		if p.dir == dir {
			at = append(at, p)
		}
	}
	return at, err
}

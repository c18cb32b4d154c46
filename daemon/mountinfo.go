package daemon

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dm/internal/errs"
)

// mountPoint is where something is mounted, and its device, as mountinfo has them.
type mountPoint struct{ dir, dev string }

// readMounts returns what is mounted in this process's mount namespace, in the order in which it was mounted.
func readMounts() ([]mountPoint, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, errs.New(errs.Internal, "read what is mounted: %w", err)
	}
	defer f.Close()
	var all []mountPoint
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			all = append(all, mountPoint{unescape(fields[4]), fields[2]})
		}
	}
}

// unescape undoes the \ooo by which the kernel writes blanks in paths.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
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

// isMounted says whether something is mounted at dir, which has no symlinks in it. It asks nothing of what is mounted.
func isMounted(dir string) (bool, error) {
	at, err := mountsAt(dir)
	return len(at) > 0, err
}

// mountsAt returns what is mounted at dir, which has no symlinks in it, the topmost last. It asks nothing of what is mounted.
func mountsAt(dir string) (at []mountPoint, err error) {
	all, err := readMounts()
	for _, p := range all {
		if p.dir == dir {
			at = append(at, p)
		}
	}
	return at, err
}

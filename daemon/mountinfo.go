package daemon

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dm/internal/errs"
)

// readMounts returns the mount points of this process's mount namespace, in the order in which they were mounted.
func readMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, errs.New(errs.Internal, "read what is mounted: %w", err)
	}
	defer f.Close()
	var all []string
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			all = append(all, unescape(fields[4]))
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
		if inside(dir, all[i]) {
			below = append(below, all[i])
		}
	}
	return below, nil
}

// isMounted says whether something is mounted at dir, which has no symlinks in it. It asks nothing of what is mounted.
func isMounted(dir string) (bool, error) {
	all, err := readMounts()
	if err != nil {
		return false, err
	}
	return slices.Contains(all, dir), nil
}

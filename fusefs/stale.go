package fusefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountsAt returns the FUSE mounts at a directory, the topmost last. Nothing is asked of the mounts: one whose server is
// dead or hangs would not answer.
func mountsAt(dir string) ([]*mountinfo.Info, error) {
	at, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != dir || m.Major != 0 || !strings.HasPrefix(m.FSType, "fuse"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return at, nil
}

// CleanStale removes the FUSE mounts at dir that a dead server left behind, however many lie on each other. Processes
// that still use one get errors from it. The caller knows that no living server serves dir.
func CleanStale(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("clean %s: %w", dir, err)
	}
	mounts, err := mountsAt(dir)
	if err != nil {
		return err
	}
	conns := map[int]*connection{}
	for _, m := range mounts {
		// Without fusectl the mount goes all the same. Only what waits for a server that hangs in its exit waits on.
		if c, err := openConnection(m.Minor); err == nil {
			defer c.close()
			conns[m.Minor] = c
		}
	}
	if mounts, err = mountsAt(dir); err != nil { // what is still there was there when its connection was opened
		return err
	}
	for range mounts {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount stale %s: %w", dir, err)
		}
	}
	for _, m := range mounts { // a server that hangs in its own exit keeps its connection
		if c := conns[m.Minor]; c != nil {
			if err := c.abort(); err != nil {
				return err
			}
		}
	}
	return nil
}

const fusectl = "/sys/fs/fuse/connections"

// connection is a FUSE connection in fusectl. Its number there is that of the mount's device, which the next mount gets,
// of whatever FUSE filesystem, as soon as it is free. So it is opened while the mount is known to be there.
type connection struct{ f *os.File }

// openConnection opens a connection by its number. fusectl is mounted if it is not.
func openConnection(number int) (*connection, error) {
	if names, err := os.ReadDir(fusectl); err == nil && len(names) == 0 {
		if err := unix.Mount("fusectl", fusectl, "fusectl", 0, ""); err != nil && err != unix.EBUSY {
			return nil, fmt.Errorf("mount fusectl: %w", err)
		}
	}
	f, err := os.OpenFile(fmt.Sprintf("%s/%d/abort", fusectl, number), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open a connection: %w", err)
	}
	return &connection{f}, nil
}

// abort breaks the connection. One that has ended, or was closed here, is none any more: that is no error.
func (c *connection) abort() error {
	if _, err := c.f.WriteString("1"); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("abort a connection: %w", err)
	}
	return nil
}

func (c *connection) close() { c.f.Close() }

// user is a process that uses a mount.
type user struct {
	pid  int
	name string
	how  string
}

func (u user) String() string { return fmt.Sprintf("%s (pid %d, %s)", u.name, u.pid, u.how) }

// maxUsers is how many users of a mount are named.
const maxUsers = 10

// usersOf returns processes that use a mount, in the way that how tells of. It looks at /proc only: following a link there
// could ask the mount.
func usersOf(dir string, minor uint32, how func(pid int, dir string, minor uint32) string) []user {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, p := range procs {
		if pid, err := strconv.Atoi(p.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	sort.Ints(pids) // a service's first process comes before those it has made
	var users []user
	for _, pid := range pids {
		if use := how(pid, dir, minor); use != "" {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			users = append(users, user{pid, strings.TrimSpace(string(name)), use})
		}
		if len(users) == maxUsers {
			break
		}
	}
	return users
}

// usage says how a process uses a mount, or "".
func usage(pid int, dir string, minor uint32) string {
	proc := fmt.Sprintf("/proc/%d", pid)
	for _, link := range []string{"cwd", "root"} {
		if target, err := os.Readlink(proc + "/" + link); err == nil && within(target, dir) {
			return link + " " + target
		}
	}
	return dataUsed(proc, mountsSeen(proc), minor, 0)
}

// anyUsage is dataUsage, and names processes that are merely in a directory of the mount as well. Theirs is another mount
// where what they see was bound elsewhere.
func anyUsage(pid int, _ string, minor uint32) string {
	if own(pid) {
		return ""
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	mounts := mountsSeen(proc)
	if use := dataUsed(proc, mounts, minor, noData); use != "" {
		return use
	}
	return inside(proc, mounts, minor)
}

// dataUsage says how a process uses the data of a mount, or "": files that it has open or mapped. This process and its
// children do not count.
func dataUsage(pid int, _ string, minor uint32) string {
	if own(pid) {
		return ""
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	return dataUsed(proc, mountsSeen(proc), minor, noData)
}

// own says whether a process is this one or a child of it, the flusher; or one that has ended.
func own(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	self := strconv.Itoa(os.Getpid())
	return err != nil || strconv.Itoa(pid) == self || field(status, "\nPPid:") == self
}

// mountsSeen returns what is mounted in a process's mount namespace; nothing if that cannot be told.
func mountsSeen(proc string) []*mountinfo.Info {
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil
	}
	return mounts
}

func isOn(m *mountinfo.Info, minor uint32) bool { return m.Major == 0 && m.Minor == int(minor) }

// inside returns the working directory or the root of a process, with what it is, if it is on a filesystem; else "". Its list
// of mounts tells: to ask the directory itself could ask the mount.
func inside(proc string, mounts []*mountinfo.Info, minor uint32) string {
	for _, link := range []string{"cwd", "root"} {
		target, err := os.Readlink(proc + "/" + link)
		if err != nil {
			continue
		}
		var on *mountinfo.Info
		for _, m := range mounts { // of mounts on each other the last is seen
			if within(target, m.Mountpoint) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
				on = m
			}
		}
		if on != nil && isOn(on, minor) {
			return link + " " + target
		}
	}
	return ""
}

// noData are flags of descriptors by which no data is read or written.
const noData = unix.O_DIRECTORY | unix.O_PATH

// dataUsed says what a process has open on a filesystem, with none of the given flags, or mapped; "" for nothing.
func dataUsed(proc string, mounts []*mountinfo.Info, minor uint32, without uint64) string {
	if open := opened(proc, mounts, minor, without); open != "" {
		return "has open " + open
	}
	return mapped(proc, minor)
}

// opened returns what a process has open on a filesystem, with none of the given flags; "" for nothing.
func opened(proc string, mounts []*mountinfo.Info, minor uint32, without uint64) string {
	ids := map[string]bool{}
	for _, m := range mounts {
		if isOn(m, minor) {
			ids[strconv.Itoa(m.ID)] = true
		}
	}
	if len(ids) == 0 {
		return ""
	}
	fds, _ := os.ReadDir(proc + "/fdinfo")
	for _, fd := range fds {
		info, err := os.ReadFile(proc + "/fdinfo/" + fd.Name())
		if err != nil || !ids[field(info, "mnt_id:")] {
			continue
		}
		if flags, err := strconv.ParseUint(field(info, "flags:"), 8, 64); err == nil && flags&without != 0 {
			continue
		}
		target, _ := os.Readlink(proc + "/fd/" + fd.Name())
		return target
	}
	return ""
}

// mapped says what a process has mapped of a filesystem; "" for nothing.
func mapped(proc string, minor uint32) string {
	maps, err := os.Open(proc + "/maps")
	if err != nil {
		return ""
	}
	defer maps.Close()
	dev := fmt.Sprintf("00:%02x", minor)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) >= 6 && f[3] == dev {
			return "maps " + f[5]
		}
	}
	return ""
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func field(b []byte, name string) string {
	_, rest, _ := bytes.Cut(b, []byte(name))
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(bytes.TrimSpace(value))
}

// Package watchdog cleans up after a program that was killed, as go test does it after its timeout and a terminal on
// interrupt: past every deferred call and t.Cleanup. Processes, mounts and loop devices would outlive it, and be in everybody's way.
//
// It is a process that waits at a pipe for the end of the one that started it. What belongs to that one is told by a
// directory: files below it, mounts in it, and processes that have it in their command line or environment.
package watchdog

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dirEnv marks a watchdog, and names its directory.
const dirEnv = "DM_WATCHDOG"

// Plugins is a directory in a watchdog's directory. Each name in it stands for the socket of a Docker plugin, which is taken
// away as well: one without a server makes every engine of the machine wait.
const Plugins = "plugins"

// Run does a watchdog's work and exits, if this process was started as one. A program that uses Start calls it first thing
// in its main.
func Run() {
	dir := os.Getenv(dirEnv)
	if dir == "" {
		return
	}
	io.Copy(io.Discard, os.Stdin)
	clean(dir)
	os.Exit(0)
}

// Start has everything below dir taken away, with dir, when the returned function is called or this process ends.
func Start(dir string) (end func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{dirEnv + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // not to be killed with this process's group
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start a watchdog: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a watchdog: %w", err)
	}
	return func() {
		in.Close()
		cmd.Wait()
	}, nil
}

// Tests runs fn, which runs a package's tests and returns the exit code, with a directory for everything that they make: its path is
// short, other users can enter it, and t.TempDir is below it.
func Tests(fn func(dir string) int) int {
	dir, err := os.MkdirTemp("/tmp", "dme2e")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	var end func()
	if err == nil {
		end, err = Start(dir)
	}
	if err == nil {
		defer end()
		err = os.Setenv("TMPDIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return fn(dir)
}

// clean takes away a directory with all that belongs to it.
func clean(dir string) {
	for range 50 {
		pids := processesOf(dir)
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, p := range MountsBelow(dir) {
			unix.Unmount(p, unix.MNT_DETACH)
		}
		if len(pids) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, b := range backing {
		if name, err := os.ReadFile(b); err == nil && bytes.HasPrefix(name, []byte(dir+"/")) {
			exec.Command("losetup", "-d", "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(b)))).Run()
		}
	}
	plugins, _ := os.ReadDir(filepath.Join(dir, Plugins))
	for _, p := range plugins {
		os.Remove("/run/docker/plugins/" + p.Name() + ".sock")
	}
	if len(MountsBelow(dir)) == 0 { // else what is mounted would be removed
		os.RemoveAll(dir)
	}
}

// processesOf returns the processes that have a directory of ours in their command line or environment.
func processesOf(dir string) []int {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		var pid int
		fmt.Sscanf(p, "/proc/%d", &pid)
		environ, _ := os.ReadFile(p + "/environ")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if pid != os.Getpid() && (bytes.Contains(environ, []byte(dir+"/")) || bytes.Contains(cmdline, []byte(dir+"/"))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// MountsBelow returns what is mounted below dir, the deepest first.
func MountsBelow(dir string) []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	return points
}

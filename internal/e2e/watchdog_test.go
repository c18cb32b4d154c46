package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runEnv names the directory below which a run of this package's tests keeps everything.
const runEnv = "DM_E2E_RUN"

// watchdogEnv marks the process that cleans up when this one cannot: go test's timeout panics past every t.Cleanup, and a
// mount whose server outlives its test, or does not, is in everybody's way.
const watchdogEnv = "DM_E2E_WATCHDOG"

// startWatchdog starts that process. It acts when the returned end of a pipe closes, be it that this process was killed.
func startWatchdog(dir string) (func(), error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{watchdogEnv + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // not to be killed with this process's group
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		in.Close()
		cmd.Wait()
	}, nil
}

// runWatchdog is the process's work, if this is it.
func runWatchdog() {
	dir := os.Getenv(watchdogEnv)
	if dir == "" {
		return
	}
	io.Copy(io.Discard, os.Stdin)
	clean(dir)
	os.Exit(0)
}

// clean takes away a test's directory, with the processes that speak of it, what is mounted in it, and loop devices over
// its files.
func clean(dir string) {
	for range 50 {
		pids := processesOf(dir)
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, p := range mountsBelow(dir) {
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
	plugins, _ := os.ReadDir(filepath.Join(dir, pluginNotes))
	for _, p := range plugins {
		os.Remove("/run/docker/plugins/" + p.Name() + ".sock")
	}
	os.RemoveAll(dir)
}

// pluginNotes is where a run notes the names of its servers' Docker plugins.
const pluginNotes = "plugins"

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

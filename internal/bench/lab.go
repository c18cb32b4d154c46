package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/e2e/watchdog"
)

// lab is the directory where a part works, and everything that runs in it.
type lab struct {
	*options
	program string // dm
	root    string
	undo    []func() error

	mu       sync.Mutex
	commands []string // each distinct command line, in order, with $T for root, $R for directories of sockets, $ID for commits
}

// usage is what a command cost.
type usage struct {
	wall, cpu time.Duration
	rss       int64 // bytes, the peak of the largest process
}

func (u usage) plus(o usage) usage { return usage{u.wall + o.wall, u.cpu + o.cpu, max(u.rss, o.rss)} }

func newLab(o *options, name string) (*lab, error) {
	program, err := filepath.Abs(o.dm)
	if err != nil {
		return nil, fmt.Errorf("find dm: %w", err)
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("find dm: %w", err)
	}
	l := &lab{options: o, program: program}
	if l.root, err = os.MkdirTemp(o.dir, "dm-bench-"+name+"-"); err != nil {
		return nil, fmt.Errorf("make the working directory: %w", err)
	}
	if !o.keep {
		end, err := watchdog.Start(l.root)
		if err != nil {
			return nil, err
		}
		l.defers(func() error {
			err := l.remove(l.root)
			end()
			return err
		})
	}
	// Database servers run as users of their own.
	return l, os.Chmod(l.root, 0o755)
}

// defers registers what close does, last first.
func (l *lab) defers(fn func() error) { l.undo = append(l.undo, fn) }

func (l *lab) close() error {
	var all []error
	for _, fn := range slices.Backward(l.undo) {
		all = append(all, fn())
	}
	return errors.Join(all...)
}

// remove deletes a tree below root in which nothing is mounted any more.
func (l *lab) remove(dir string) error {
	if at := watchdog.MountsBelow(dir); len(at) > 0 {
		return fmt.Errorf("remove %s: something is still mounted in it: %s", dir, strings.Join(at, ", "))
	}
	return os.RemoveAll(dir)
}

// mkdir makes and returns a directory below root.
func (l *lab) mkdir(elem ...string) (string, error) {
	dir := filepath.Join(append([]string{l.root}, elem...)...)
	return dir, os.MkdirAll(dir, 0o755)
}

// env is the environment of every command: nothing of the caller's configuration, all state below root.
func (l *lab) env() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC", "HOME=" + l.root,
		"RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + l.root + "/restic-cache", "BORG_BASE_DIR=" + l.root + "/borg-base",
		"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=b", "GIT_AUTHOR_EMAIL=b@example.org", "GIT_COMMITTER_NAME=b",
		"GIT_COMMITTER_EMAIL=b@example.org",
	}
}

// note keeps a command line for the report.
func (l *lab) note(name string, args ...string) {
	words := []string{filepath.Base(name)}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " $;&|()'\"*") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	line := strings.ReplaceAll(strings.Join(words, " "), l.root, "$T")
	line = regexp.MustCompile(`\$T/run/[a-z]+`).ReplaceAllString(line, "$$R")
	line = regexp.MustCompile(`(127\.0\.0\.1:|-port )[0-9]+`).ReplaceAllString(line, "${1}$$P")
	line = regexp.MustCompile(`(--sftp-pass )\S+`).ReplaceAllString(line, "${1}bench")
	line = regexp.MustCompile(`\b[0-9a-f]{64}\b`).ReplaceAllString(line, "$$ID")
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.commands, line) {
		l.commands = append(l.commands, line)
	}
}

// run runs a command to its end in dir ("" is root) and returns its cost and output. The command's process group is
// killed when ctx ends.
func (l *lab) run(ctx context.Context, dir, name string, args ...string) (usage, string, error) {
	return l.runAs(ctx, "", dir, name, args...)
}

// quiet is run for its effect, not entered into the report.
func (l *lab) quiet(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := l.command(ctx, "", "", name, args...)
	if err != nil {
		return "", err
	}
	_, out, err := measure(cmd)
	return out, err
}

func (l *lab) runAs(ctx context.Context, as, dir, name string, args ...string) (usage, string, error) {
	l.note(name, args...)
	cmd, err := l.command(ctx, as, dir, name, args...)
	if err != nil {
		return usage{}, "", err
	}
	return measure(cmd)
}

// measure runs a command to its end. No peak of memory is below what the bench itself occupies, some 10 to 20 MB.
func measure(cmd *exec.Cmd) (usage, string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// The kernel counts to a process's peak what it had before exec, and Go starts processes by vfork: until then they
	// have the bench's own memory, and its peak (setmax_mm_hiwater_rss in fs/exec.c).
	debug.FreeOSMemory()
	if err := resetPeak(os.Getpid()); err != nil {
		return usage{}, "", err
	}
	begin := time.Now()
	err := cmd.Run()
	u := usage{wall: time.Since(begin)}
	if err != nil {
		return u, out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, tail(out.String()), tail(errs.String()))
	}
	u.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.rss = r.Maxrss << 10
	}
	return u, out.String(), nil
}

func (l *lab) command(ctx context.Context, as, dir, name string, args ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, l.env()
	if dir == "" {
		cmd.Dir = l.root
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if as != "" {
		uid, gid, err := ids(as)
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return cmd, nil
}

func ids(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("look for user %s: %w", name, err)
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

func tail(s string) string {
	lines := strings.SplitAfter(s, "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

// settle writes back what earlier work left dirty, so that it is not counted to what comes next.
func (l *lab) settle(ctx context.Context, dirs ...string) error {
	for _, dir := range append(dirs, l.root) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f, err := os.Open(dir)
		if err != nil {
			return fmt.Errorf("write back %s: %w", dir, err)
		}
		err = unix.Syncfs(int(f.Fd()))
		f.Close()
		if err != nil {
			return fmt.Errorf("write back %s: %w", dir, err)
		}
	}
	return nil
}

// onDisk returns the bytes that a tree occupies on the host's filesystem.
func onDisk(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a temporary file that has gone
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return n, nil
}

// loadAverage is the machine's load over the last minute.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(data))[0]
}

// say tells the person at the terminal what is going on.
func (l *lab) say(format string, args ...any) {
	fmt.Printf("%s [load %s] %s\n", time.Now().Format("15:04:05"), loadAverage(), fmt.Sprintf(format, args...))
}

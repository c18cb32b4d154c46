package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a dm server with a home of its own. Every command's cost includes what the server spent on it.
type server struct {
	*lab
	home string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// committed is what dm commit --json says.
type committed struct {
	ID       string  `json:"id"`
	Pause    float64 `json:"pause_ms"`
	Duration float64 `json:"duration_ms"`
	Dirty    int64   `json:"dirty_bytes"`
	Read     int64   `json:"read_bytes"`
	Stored   int64   `json:"stored_bytes"`
	Objects  int64   `json:"new_objects"`
}

// serve starts a server; the lab's end stops it.
func (l *lab) serve(ctx context.Context, name string) (*server, error) {
	dir, err := l.mkdir(name)
	if err != nil {
		return nil, err
	}
	s := &server{lab: l, home: filepath.Join(dir, "home"), log: filepath.Join(dir, "log"), done: make(chan struct{})}
	out, err := os.Create(s.log)
	if err != nil {
		return nil, fmt.Errorf("start the dm server: %w", err)
	}
	defer out.Close()
	l.note("dm", "server")
	s.cmd = exec.Command(l.program, "server")
	s.cmd.Env, s.cmd.Dir = s.environment(), "/"
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the dm server: %w", err)
	}
	go func() {
		s.cmd.Wait()
		close(s.done)
	}()
	l.defers(s.close)
	for range 600 {
		if _, _, err := s.dm(ctx, "cluster", "status"); err == nil {
			return s, nil
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("start the dm server: it ended: %s", s.tail())
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("start the dm server: it does not answer: %s", s.tail())
}

func (s *server) environment() []string {
	return append(s.env(), "DM_DOCKER_PLUGIN=off", "DM_HOME="+s.home, "DM_CONFIG="+filepath.Dir(s.home)+"/config.json")
}

func (s *server) tail() string {
	data, _ := os.ReadFile(s.log)
	return tail(string(data))
}

// close stops the server. Stopping it twice does nothing.
func (s *server) close() error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("stop the dm server: it did not end within a minute: %s", s.tail())
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("stop the dm server: it ended with %d: %s", code, s.tail())
	}
	return nil
}

// dm runs a command. Its CPU time and peak memory are those of the client, the server and the server's children.
func (s *server) dm(ctx context.Context, args ...string) (u usage, out string, err error) {
	if s.cmd == nil {
		return usage{}, "", errors.New("the dm server is not running")
	}
	s.note("dm", args...)
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env, cmd.Dir = s.environment(), s.root
	u, err = s.with(func() (u usage, err error) {
		u, out, err = measure(cmd)
		return u, err
	})
	return u, strings.TrimRight(out, "\n"), err
}

// with adds to the cost of fn what the server and its children spend meanwhile.
func (s *server) with(fn func() (usage, error)) (usage, error) {
	pids := s.pids()
	for _, pid := range pids {
		if err := resetPeak(pid); err != nil && pid == s.cmd.Process.Pid {
			return usage{}, err
		}
	}
	before := spent(pids)
	u, err := fn()
	u.cpu += spent(pids) - before
	for _, pid := range pids {
		u.rss += peak(pid)
	}
	return u, err
}

// commit commits a dot.
func (s *server) commit(ctx context.Context, dot string) (committed, usage, error) {
	u, out, err := s.dm(ctx, "commit", "--dot", dot, "-m", "bench", "--json")
	if err != nil {
		return committed{}, u, err
	}
	var c committed
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		return c, u, fmt.Errorf("read what dm commit says: %w", err)
	}
	return c, u, nil
}

// create makes a dot and returns the path of the whole dot; subdots are directories in it.
func (s *server) create(ctx context.Context, dot string, subdots ...string) (string, error) {
	if _, _, err := s.dm(ctx, append([]string{"init", dot}, subdots...)...); err != nil {
		return "", err
	}
	return s.path(ctx, dot+".__root__")
}

func (s *server) path(ctx context.Context, name string) (string, error) {
	_, out, err := s.dm(ctx, "path", "-c", name)
	return out, err
}

func (s *server) pids() []int {
	pids := []int{s.cmd.Process.Pid}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return pids
	}
	for _, name := range stats {
		if f := statFields(name); len(f) > 1 && f[1] == strconv.Itoa(s.cmd.Process.Pid) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// statFields returns the fields of a process's stat file from the state on, the third.
func statFields(name string) []string {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// spent is the CPU time of processes, in steps of 10 ms.
func spent(pids []int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux architecture in use
	var sum time.Duration
	for _, pid := range pids {
		f := statFields(fmt.Sprintf("/proc/%d/stat", pid))
		if len(f) < 13 {
			continue
		}
		for _, v := range f[11:13] { // utime, stime
			n, err := strconv.ParseInt(v, 10, 64)
			if err == nil {
				sum += time.Duration(n) * tick
			}
		}
	}
	return sum
}

// resetPeak sets the peak of a process's resident set to what is resident now.
func resetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("begin to measure memory: %w", err)
	}
	return nil
}

// peak is a process's largest resident set since it was reset.
func peak(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			if err == nil {
				return n << 10
			}
		}
	}
	return 0
}

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/e2e/watchdog"
)

// Cache modes of a server.
const (
	writeback = "writeback"
	through   = "through"
)

// server is a dm server with everything it needs in directories of its own, which the end of the test takes away, with
// what is mounted in them and with every process that belongs to it.
type server struct {
	t       *testing.T
	base    string // a directory that other users can enter
	home    string // DM_HOME
	cache   string
	flags   []string // more of 'dm server'
	program string   // that starts the server; empty: the binary under test
	vars    []string // environment that other servers do not have
	cmd     *exec.Cmd
	ended   chan struct{}
}

// baseDir makes a directory that other users can enter, unlike those of t.TempDir, and whose path is short.
func baseDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newServer starts a server in the given cache mode.
func newServer(t *testing.T, cache string) *server {
	t.Helper()
	base := baseDir(t)
	return newServerAt(t, cache, base, filepath.Join(base, "home"))
}

// newServerAt starts a server with its state directory at home.
func newServerAt(t *testing.T, cache, base, home string, flags ...string) *server {
	t.Helper()
	s := &server{t: t, base: base, home: home, cache: cache, flags: flags}
	t.Cleanup(s.cleanup)
	s.start()
	return s
}

// endWait is how long a server may take to end. It may have to write out what it caches, to a disk that others use as well.
const endWait = 90 * time.Second

func (s *server) cleanup() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(endWait):
			s.cmd.Process.Signal(syscall.SIGQUIT) // prints where it hangs
			<-s.ended
			log, _ := os.ReadFile(s.logFile())
			s.t.Errorf("the server does not end on SIGTERM; its log:\n%s", log)
		}
	}
	if len(s.vars) > 0 {
		// Docker is told that the server is away as long as it has a state directory.
		if out, stderr, code := s.try("cluster", "reset", "-f"); code != 0 {
			s.t.Errorf("dm cluster reset: exit code %d\n%s%s", code, out, stderr)
		}
	}
	if s.t.Failed() {
		s.t.Logf("the server's log ends with:\n%s", s.tail())
	}
	for _, pid := range s.processes(10 * time.Second) {
		s.t.Errorf("process %d is left over: %s", pid, commandLine(pid))
		syscall.Kill(pid, syscall.SIGKILL)
	}
	unmountBelow(s.t, s.home)
}

// start starts the server and waits until it answers.
func (s *server) start() {
	s.t.Helper()
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.ended = make(chan struct{})
	program := s.program
	if program == "" {
		program = os.Getenv(binaryEnv)
	}
	cmd := exec.Command(program, append([]string{"server", "--cache", s.cache}, s.flags...)...)
	cmd.Env = s.env()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	ended := s.ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, stderr, code := s.try("cluster", "status")
		if code == 0 {
			return
		}
		select {
		case <-ended:
			s.t.Fatalf("the server ended: %v\n%s", cmd.ProcessState, s.tail())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the server does not answer: %s\n%s", stderr, s.tail())
		}
	}
}

func (s *server) env() []string {
	env := []string{"DM_DOCKER_PLUGIN=off", "DM_HOME=" + s.home, "DM_CONFIG=" + filepath.Join(s.base, "config.json")}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "DM_") {
			env = append(env, e)
		}
	}
	return append(env, s.vars...)
}

// kill kills the server as the kernel would when memory is short.
func (s *server) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
	s.cmd = nil
}

// stop ends the server cleanly.
func (s *server) stop() {
	s.t.Helper()
	s.dm("cluster", "stop")
	select {
	case <-s.ended:
	case <-time.After(endWait):
		s.t.Fatalf("the server does not end\n%s", s.tail())
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("the server ended with %d\n%s", code, s.tail())
	}
	s.cmd = nil
}

func (s *server) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

func (s *server) logFile() string { return filepath.Join(s.base, "server.log") }

// tail returns the end of the log.
func (s *server) tail() string {
	data, _ := os.ReadFile(s.logFile())
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// command is a dm command line for this server.
func (s *server) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Getenv(binaryEnv), args...)
	cmd.Env = s.env()
	cmd.Dir = "/"
	return cmd
}

// try runs a command and returns its output and exit code; -1 if it had to be killed.
func (s *server) try(args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := s.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// dm runs a command that must succeed and returns its output without the last line break.
func (s *server) dm(args ...string) string {
	s.t.Helper()
	stdout, stderr, code := s.try(args...)
	if code != 0 {
		s.t.Fatalf("dm %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return strings.TrimSuffix(stdout, "\n")
}

// commit commits and returns the id.
func (s *server) commit(message string) string {
	s.t.Helper()
	id := s.dm("commit", "-m", message)
	if len(id) != 64 {
		s.t.Fatalf("dm commit printed %q", id)
	}
	return id
}

// mount shows a dot or commit at a new directory.
func (s *server) mount(what string) (dir string, unmount func()) {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.base, "mnt")
	if err != nil {
		s.t.Fatal(err)
	}
	s.dm("mount", what, dir)
	return dir, func() {
		s.t.Helper()
		s.dm("umount", dir)
		if err := os.Remove(dir); err != nil {
			s.t.Error(err)
		}
	}
}

// fsck verifies everything, which must be well.
func (s *server) fsck() {
	s.t.Helper()
	if out, stderr, code := s.try("fsck"); code != 0 {
		s.t.Fatalf("dm fsck: exit code %d\n%s%s", code, out, stderr)
	}
}

// processes returns what runs with this server's state directory in its environment, after waiting at most so long for
// there to be nothing.
func (s *server) processes(wait time.Duration) []int {
	for deadline := time.Now().Add(wait); ; {
		var pids []int
		environs, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, p := range environs {
			var pid int
			fmt.Sscanf(p, "/proc/%d/environ", &pid)
			data, err := os.ReadFile(p)
			if err == nil && pid != os.Getpid() && bytes.Contains(data, []byte("DM_HOME="+s.home+"\x00")) {
				pids = append(pids, pid)
			}
		}
		if len(pids) == 0 || time.Now().After(deadline) {
			return pids
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func commandLine(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(data), "\x00", " ")
}

// unmountBelow takes away what is mounted below dir; a clean end of the server has left nothing.
func unmountBelow(t *testing.T, dir string) {
	for _, p := range watchdog.MountsBelow(dir) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", p, err)
		}
	}
}

// Package dbs runs real database servers on directories of one's choice, with clients that log what was acknowledged, and
// verifies what is left in a copy of such a directory: the server recovers by itself, its own checker is content, and
// the state is one that the clients' log says existed.
//
// Every client numbers its transactions 1, 2, 3 ... and each leaves the number in several places (two tables and a
// counter; a list, a hash and a counter). A state is thus one number a client, and anything but a whole number of
// transactions is found. The server programs are used directly, as the users that Debian's packages create, with
// data, sockets and logs where they are told.
package dbs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Database is a kind of server, and one of its kind that may be running.
type Database interface {
	// Name is a word for messages and directories.
	Name() string
	// Init makes an empty database with the clients' tables in dir, which exists and is empty, and leaves it stopped.
	Init(dir string) error
	// Start starts the server on dir and waits until it answers, which includes its own recovery.
	Start(dir string) error
	// Stop shuts down cleanly. Stopping what does not run does nothing.
	Stop() error
	// Connect returns the client with a number, for the running server.
	Connect(client int) (Conn, error)
	// Check runs the database's own checker on the running server or its files.
	Check() error
	// Read returns, for the running server, the number of the last transaction of each client below n; an error if they
	// are not all whole.
	Read(n int) ([]int64, error)
}

// Conn is a client's connection.
type Conn interface {
	// Commit does the transaction with number n and returns when the server has acknowledged it.
	Commit(n int64) error
	Close()
}

// All returns one stopped database of each kind.
func All() []Database { return []Database{&MariaDB{}, &Postgres{}, &Redis{}, &SQLite{}} }

// startTimeout bounds how long a server may take to start or stop, recovery included.
const startTimeout = 90 * time.Second

// server is a running server program.
type server struct {
	cmd    *exec.Cmd
	output lockedBuffer
	done   chan struct{} // closed when it has ended
	runDir string        // of sockets and pid files; short, because socket paths are bounded
	user   string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(l.b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

// command is a command that runs as another user, in a process group of its own, with an environment of its own.
func command(as, name string, args ...string) (*exec.Cmd, error) {
	cred, err := credential(as)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/nonexistent", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true}
	return cmd, nil
}

// run runs a command to its end and returns its output, which an error quotes.
func run(as, name string, args ...string) (string, error) {
	cmd, err := command(as, name, args...)
	if err != nil {
		return "", err
	}
	timer := time.AfterFunc(startTimeout, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// own gives a directory and what is in it to a user.
func own(dir, name string) error {
	cred, err := credential(name)
	if err != nil {
		return err
	}
	return filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, int(cred.Uid), int(cred.Gid))
	})
}

func newServer(as string) (*server, error) {
	runDir, err := os.MkdirTemp("", "dmdb")
	if err != nil {
		return nil, err
	}
	return &server{runDir: runDir, user: as}, own(runDir, as)
}

// start runs the program and waits until ready says nil.
func (s *server) start(ready func() error, name string, args ...string) error {
	cmd, err := command(s.user, name, args...)
	if err != nil {
		return err
	}
	s.cmd, s.done = cmd, make(chan struct{})
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		cmd.Wait()
		close(s.done)
	}()
	deadline := time.Now().Add(startTimeout)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("%s ended: %v\n%s", filepath.Base(name), cmd.ProcessState, s.output.tail())
		case <-time.After(30 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.stop(syscall.SIGKILL)
			return fmt.Errorf("%s does not answer: %w\n%s", filepath.Base(name), err, s.output.tail())
		}
	}
}

// stop sends the signal that means a clean end, and kills the process group if that is not enough.
func (s *server) stop(sig syscall.Signal) error {
	if s == nil {
		return nil
	}
	defer os.RemoveAll(s.runDir)
	if s.cmd == nil || s.cmd.Process == nil {
		return nil
	}
	s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
		if s.cmd.ProcessState.ExitCode() != 0 && sig != syscall.SIGKILL {
			return fmt.Errorf("%s ended: %v\n%s", s.cmd.Path, s.cmd.ProcessState, s.output.tail())
		}
		return nil
	case <-time.After(startTimeout):
		syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.done
		return errors.New(s.cmd.Path + " does not stop\n" + s.output.tail())
	}
}

// counts turns lines "client value value value" into one number a client, which all values must be.
func counts(out string, n int) ([]int64, error) {
	state := make([]int64, n)
	for line := range strings.Lines(out) {
		f := strings.FieldsFunc(strings.TrimSpace(line), func(r rune) bool { return r == '|' || r == '\t' || r == ' ' })
		if len(f) < 2 {
			return nil, fmt.Errorf("answer %q", line)
		}
		client, err := strconv.Atoi(f[0])
		if err != nil || client < 0 || client >= n {
			return nil, fmt.Errorf("answer %q is about no client", line)
		}
		for _, v := range f[1:] {
			if v != f[1] {
				return nil, fmt.Errorf("client %d: transactions are not whole: counts and numbers %v", client, f[1:])
			}
		}
		if state[client], err = strconv.ParseInt(f[1], 10, 64); err != nil {
			return nil, fmt.Errorf("answer %q: %w", line, err)
		}
	}
	return state, nil
}

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limited writes a program that runs the binary under test with a limit on open files, which it may not raise.
func limited(t *testing.T, dir string, limit int) string {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprint("dm-", limit))
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d && exec setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource %s \"$@\"\n", limit, os.Getenv(binaryEnv))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// smallContent is what small file i of a dot has.
func smallContent(dot string, i int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%s %d\n", dot, i), 20)
}

func smallPath(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprint(i%16), fmt.Sprint("file", i))
}

func writeSmall(dir, dot string, n int) error {
	for i := range n {
		path := smallPath(dir, i)
		if i < 16 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, smallContent(dot, i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func checkSmall(dir, dot string, n int) error {
	for i := range n {
		got, err := os.ReadFile(smallPath(dir, i))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, smallContent(dot, i)) {
			return fmt.Errorf("file %d of %s is not what was written", i, dot)
		}
	}
	return nil
}

// atOnce runs a function for each dot, at the same time.
func atOnce(t *testing.T, dots []string, fn func(dot string) error) {
	t.Helper()
	var wg sync.WaitGroup
	for _, dot := range dots {
		wg.Go(func() {
			if err := fn(dot); err != nil {
				t.Errorf("%s: %v", dot, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// A server that may open fewer files than the dots in use have works, and answers.
func TestFewOpenFiles(t *testing.T) {
	const (
		limit = 1024
		files = 800 // in each dot
	)
	base := baseDir(t)
	s := &server{t: t, base: base, home: filepath.Join(base, "home"), cache: "auto", program: limited(t, base, limit)}
	t.Cleanup(s.cleanup)
	s.start()
	var dots []string
	paths := map[string]string{}
	for i := range 6 {
		dot := fmt.Sprint("d", i)
		s.dm("init", dot, "sub")
		dots, paths[dot] = append(dots, dot), s.dm("path", dot+".sub")
	}
	run := func(args ...string) error {
		if out, stderr, code := s.try(args...); code != 0 {
			return fmt.Errorf("dm %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, stderr)
		}
		return nil
	}
	atOnce(t, dots, func(dot string) error { return writeSmall(paths[dot], dot, files) })
	atOnce(t, dots, func(dot string) error { return run("commit", "--dot", dot, "-m", "first") })
	atOnce(t, dots, func(dot string) error { return checkSmall(paths[dot], dot, files) })
	for _, dot := range dots[:2] {
		s.dm("checkout", "--dot", dot, "-b", "other")
	}
	atOnce(t, dots[:2], func(dot string) error { return checkSmall(paths[dot], dot, files) })
	open := filesOpenAtOnce(t, paths[dots[5]], files)
	s.dm("commit", "--dot", dots[5], "-m", "with files open")
	open()
	s.fsck()
	if log, err := os.ReadFile(s.logFile()); err != nil || bytes.Contains(log, []byte("too many open files")) {
		t.Errorf("the server ran out of files: %v\n%s", err, s.tail())
	}
}

// filesOpenAtOnce changes many files and keeps them open, removed in part, until the function it returns has been called,
// which sees that all are still what they were.
func filesOpenAtOnce(t *testing.T, dir string, n int) (check func()) {
	t.Helper()
	fds := make([]int, n)
	for i := range fds {
		fd, err := unix.Open(smallPath(dir, i), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Pwrite(fd, fmt.Appendf(nil, "%08d", i), 0)
		}
		if err == nil && i%2 == 0 {
			err = os.Remove(smallPath(dir, i))
		}
		if err != nil {
			t.Fatal(err)
		}
		fds[i] = fd
	}
	return func() {
		t.Helper()
		p := make([]byte, 8)
		for i, fd := range fds {
			if err := unix.Fdatasync(fd); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Pread(fd, p, 0); err != nil || string(p) != fmt.Sprintf("%08d", i) {
				t.Fatalf("open file %d has %q: %v", i, p, err)
			}
			unix.Close(fd)
		}
	}
}

// With a limit that is too low a server does not start, and says what to do.
func TestTooFewOpenFiles(t *testing.T) {
	base := baseDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, limited(t, base, 200), "server")
	cmd.Env = (&server{t: t, base: base, home: filepath.Join(base, "home")}).env()
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "may open 200 files, and needs 448") || !strings.Contains(string(out), "dm: hint: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

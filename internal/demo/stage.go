package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stage is the demo's server, its services and what is known about them.
type stage struct {
	program string // dm
	dir     string // everything of the demo
	env     []string
	running []*exec.Cmd
	noted   map[string]summary // by kind
}

func newStage(dm string) (*stage, error) {
	program, err := filepath.Abs(dm)
	if err != nil {
		return nil, fmt.Errorf("find dm: %w", err)
	}
	dir, err := os.MkdirTemp("", "dm-demo-")
	if err != nil {
		return nil, fmt.Errorf("make the demo's directory: %w", err)
	}
	env := append(os.Environ(), "DM_HOME="+filepath.Join(dir, "home"), "DM_CONFIG="+filepath.Join(dir, "config.json"), "DM_DOT=", "DM_DOCKER_PLUGIN=off")
	return &stage{program: program, dir: dir, env: env, noted: map[string]summary{}}, nil
}

func (s *stage) say(text string) { fmt.Printf("\n# %s\n", text) }

// dm runs a command and prints it with its output.
func (s *stage) dm(ctx context.Context, args ...string) error {
	words := make([]string, len(args))
	for i, a := range args {
		if words[i] = a; strings.ContainsAny(a, " ") {
			words[i] = "'" + a + "'"
		}
	}
	fmt.Printf("$ dm %s\n", strings.Join(words, " "))
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = s.env
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("dm %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// quiet runs a command for its effect when the demo ends.
func (s *stage) quiet(args ...string) error {
	cmd := exec.Command(s.program, args...)
	cmd.Env = s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dm %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// subdot returns the directory of a service's data, as dm shows it.
func (s *stage) subdot(kind string) string {
	return filepath.Join(s.dir, "home", "mnt", "admin", "shop", kind)
}

// startServices starts one process for each kind.
func (s *stage) startServices(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the services: %w", err)
	}
	for _, kind := range kinds() {
		cmd := exec.CommandContext(ctx, self, "-service", kind, s.subdot(kind))
		cmd.Stderr = os.Stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start service %s: %w", kind, err)
		}
		fmt.Printf("started %-8s (pid %d)\n", kind, cmd.Process.Pid)
		s.running = append(s.running, cmd)
	}
	return nil
}

// stopServices stops them as an orchestrator does, by SIGTERM.
func (s *stage) stopServices() error {
	var all []error
	for _, cmd := range s.running {
		all = append(all, cmd.Process.Signal(syscall.SIGTERM))
	}
	for _, cmd := range s.running {
		all = append(all, cmd.Wait())
	}
	s.running = nil
	return errors.Join(all...)
}

// awaitWrites waits until each service has written n more records. Each counts them in a file beside its database.
func (s *stage) awaitWrites(ctx context.Context, n int) error {
	from := map[string]int{}
	for _, kind := range kinds() {
		from[kind] = counted(s.subdot(kind))
	}
	for _, kind := range kinds() {
		for counted(s.subdot(kind)) < from[kind]+n {
			select {
			case <-ctx.Done():
				return fmt.Errorf("service %s does not write: %w", kind, ctx.Err())
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}

// note remembers what each database holds.
func (s *stage) note() error {
	for _, kind := range kinds() {
		sum, err := summarize(kind, s.subdot(kind))
		if err != nil {
			return err
		}
		s.noted[kind] = sum
		fmt.Printf("%-8s %s\n", kind, sum)
	}
	return nil
}

// prove compares each database with what was noted.
func (s *stage) prove() error {
	for _, kind := range kinds() {
		sum, err := summarize(kind, s.subdot(kind))
		if err != nil {
			return err
		}
		if sum != s.noted[kind] {
			return fmt.Errorf("%s holds %s, but %s was committed", kind, sum, s.noted[kind])
		}
		fmt.Printf("%-8s %s   as committed\n", kind, sum)
	}
	return nil
}

// proveRunning opens copies of the databases as the commit before the last one has them.
func (s *stage) proveRunning(ctx context.Context) error {
	look, aside := filepath.Join(s.dir, "look"), filepath.Join(s.dir, "aside")
	if err := os.Mkdir(look, 0o700); err != nil {
		return fmt.Errorf("look at a commit: %w", err)
	}
	if err := s.dm(ctx, "mount", "shop:HEAD^", look); err != nil {
		return err
	}
	if err := os.CopyFS(aside, os.DirFS(look)); err != nil {
		return fmt.Errorf("copy a commit aside: %w", err)
	}
	if err := s.dm(ctx, "umount", look); err != nil {
		return err
	}
	for _, kind := range kinds() {
		sum, err := summarize(kind, filepath.Join(aside, kind))
		if err != nil {
			return err
		}
		// A service counts a record after it was written, so a commit has at least as many as were counted.
		if n := counted(filepath.Join(aside, kind)); sum.records < n || sum.records > n+1 {
			return fmt.Errorf("%s has %d records in the commit, but %d were counted", kind, sum.records, n)
		}
		fmt.Printf("%-8s %s   whole\n", kind, sum)
	}
	return nil
}

// destroy removes one database, empties another and overwrites the third.
func (s *stage) destroy() error {
	k := kinds()
	fmt.Printf("$ rm -r %s/*; truncate -s 0 %s/*; (overwrite %s/*)\n", k[0], k[1], k[2])
	return errors.Join(
		eachFile(s.subdot(k[0]), os.Remove),
		eachFile(s.subdot(k[1]), func(path string) error { return os.Truncate(path, 0) }),
		eachFile(s.subdot(k[2]), func(path string) error { return os.WriteFile(path, []byte("gone"), 0o600) }),
	)
}

func eachFile(dir string, do func(path string) error) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, do(filepath.Join(dir, e.Name())))
	}
	return err
}

// close ends the services and the server and removes everything.
func (s *stage) close() error {
	for _, cmd := range s.running {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // it was killed
	}
	if err := s.quiet("cluster", "reset", "-f"); err != nil {
		return fmt.Errorf("take the demo's server away (%s): %w", s.dir, err)
	}
	// Nothing is mounted any more; should that be wrong, the reset has failed before this.
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the demo's directory: %w", err)
	}
	return nil
}

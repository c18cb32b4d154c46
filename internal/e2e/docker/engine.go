// Package docker starts a Docker engine of Debian's packages for tests, with everything it keeps in a directory of its own,
// and makes images for it without a registry.
//
// The engine shares nothing with one that may run on the machine: its socket, data, containerd and process ids are its own.
// It has no networks, so that it needs no iptables and changes nothing of the host's; containers have a loopback interface.
// It ends by its process id. Everything that it starts has its directory in command line or environment, so that a watchdog
// finds it all when a test is killed.
//
// Images are made of the host: they have directories, a few files of /etc, and links such as /bin. Programs come from the
// host's /usr, which every container binds read-only (Flags).
package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"dm/internal/e2e/watchdog"
)

// How long an engine may take to answer, and to end.
const (
	startWait = 60 * time.Second
	stopWait  = 60 * time.Second
	callWait  = 3 * time.Minute // for one command of the client
)

// Mark is the name of the variable that all processes in containers have, with the engine's directory as its value.
const Mark = "DM_E2E_ENGINE"

// Engine is a running engine.
type Engine struct {
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Start starts an engine that keeps everything in dir, whose path must be short: sockets are in it.
func Start(dir string) (*Engine, error) {
	for _, sub := range []string{"data", "exec"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o711); err != nil {
			return nil, err
		}
	}
	// The machine's own configuration is not for this engine.
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}\n"), 0o600); err != nil {
		return nil, err
	}
	e := &Engine{dir: dir}
	return e, e.start()
}

func (e *Engine) path(name string) string { return filepath.Join(e.dir, name) }

func (e *Engine) start() error {
	log, err := os.OpenFile(e.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("dockerd", "--config-file", e.path("daemon.json"), "--data-root", e.path("data"),
		"--exec-root", e.path("exec"), "--pidfile", e.path("pid"), "--host", e.Host(), "--group", "root",
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--shutdown-timeout", "5")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	ended := make(chan struct{})
	e.cmd, e.ended = cmd, ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	for deadline := time.Now().Add(startWait); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err := e.Run("version"); err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("dockerd ended: %v\n%s", cmd.ProcessState, e.Tail())
		default:
		}
	}
	return errors.Join(fmt.Errorf("dockerd does not answer\n%s", e.Tail()), e.end(syscall.SIGKILL))
}

// Host returns the engine's address, the value of DOCKER_HOST.
func (e *Engine) Host() string { return "unix://" + e.path("sock") }

// Tail returns the end of the engine's log.
func (e *Engine) Tail() string {
	data, _ := os.ReadFile(e.path("log"))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// Retries returns how often the engine has found that a plugin does not answer, and waited to try it again.
func (e *Engine) Retries() int {
	data, _ := os.ReadFile(e.path("log"))
	return len(retry.FindAll(data, -1))
}

var retry = regexp.MustCompile(`plugin.*retrying in `)

// Stop removes all containers and ends the engine. What an engine leaves mounted is taken away.
func (e *Engine) Stop() error {
	var all []error
	if ids, err := e.Run("ps", "-aq"); err == nil && ids != "" {
		_, err := e.Run(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...)
		all = append(all, err)
	}
	return errors.Join(append(all, e.end(syscall.SIGTERM), e.unmount())...)
}

// Restart ends the engine, and with it its containers, and starts it again.
func (e *Engine) Restart() error {
	if err := e.end(syscall.SIGTERM); err != nil {
		return err
	}
	return e.start()
}

// Kill ends the engine as a crash does, and starts it again.
func (e *Engine) Kill() error {
	if err := e.end(syscall.SIGKILL); err != nil {
		return err
	}
	// Its containerd is killed with it. Where nobody reaps that, the next engine would take it for alive.
	if err := os.Remove(e.path("exec/containerd/containerd.pid")); err != nil {
		return err
	}
	return e.start()
}

func (e *Engine) end(sig syscall.Signal) error {
	e.cmd.Process.Signal(sig)
	select {
	case <-e.ended:
		return nil
	case <-time.After(stopWait):
		e.cmd.Process.Kill()
		<-e.ended
		return fmt.Errorf("dockerd did not end within %v\n%s", stopWait, e.Tail())
	}
}

// unmount takes away what is mounted in the engine's directory.
func (e *Engine) unmount() error {
	var all []error
	for _, p := range watchdog.MountsBelow(e.dir) {
		all = append(all, syscall.Unmount(p, syscall.MNT_DETACH))
	}
	return errors.Join(all...)
}

// Env returns the environment of a program that uses this engine.
func (e *Engine) Env() []string {
	env := []string{"DOCKER_HOST=" + e.Host(), "DOCKER_CONFIG=" + e.path("client")}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DOCKER_") && !strings.HasPrefix(v, "COMPOSE_") {
			env = append(env, v)
		}
	}
	return env
}

// Run runs a command of the docker client and returns what it prints, without the last line break.
func (e *Engine) Run(args ...string) (string, error) {
	return e.Exec(nil, client(), args...)
}

// client is Debian's client, which fits the engine, also where another is earlier in the search path.
func client() string {
	const debian = "/usr/bin/docker"
	if _, err := os.Stat(debian); err == nil {
		return debian
	}
	return "docker"
}

// Compose runs docker-compose on a project.
func (e *Engine) Compose(project string, files []string, args ...string) (string, error) {
	all := []string{"--project-name", project}
	for _, f := range files {
		all = append(all, "--file", f)
	}
	return e.Exec(nil, "docker-compose", append(all, args...)...)
}

// Exec runs a program that uses this engine, with the given standard input, and returns what it prints.
func (e *Engine) Exec(stdin []byte, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = e.Env(), "/"
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		err = &CommandError{Command: name + " " + strings.Join(args, " "), Stderr: errs.String(), Err: err}
	}
	return strings.TrimSuffix(out.String(), "\n"), err
}

// CommandError is a program that failed.
type CommandError struct {
	Command string
	Stderr  string
	Err     error
}

func (e *CommandError) Error() string { return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, e.Stderr) }

// Unwrap returns the cause.
func (e *CommandError) Unwrap() error { return e.Err }

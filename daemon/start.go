package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dm/api"
	"dm/dockervol"
	"dm/internal/durable"
	"dm/internal/errs"
)

// How long the command line waits for a server to come up, and to go.
const (
	startWait = 2 * time.Minute
	stopWait  = 2 * time.Minute
	otherWait = 5 * time.Second // for a server that somebody else started
	pollEvery = 10 * time.Millisecond
)

// Start starts a server in the background, as `dm server` in a session of its own, and returns when it answers. It
// returns false if one runs already. A server that dies on the way is an error with what it said last.
func Start(ctx context.Context, cfg Config) (started bool, err error) {
	if err := cfg.check(); err != nil {
		return false, err
	}
	client := api.NewClient(filepath.Join(cfg.Home, api.SocketName))
	defer client.Close()
	_, err = client.Version(ctx)
	if err == nil {
		return false, nil
	}
	if errs.KindOf(err) != errs.Unreachable {
		return false, err
	}
	if err := durable.MkdirAll(cfg.Home, 0o711); err != nil {
		return false, errs.WithHint(errs.New(errs.KindOf(err), "make the state directory: %w", err),
			"choose another with DM_HOME or --home")
	}
	logPath := filepath.Join(cfg.Home, logFile)
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return false, errs.WithHint(errs.New(errs.KindOf(err), "open the server's log: %w", err),
			"choose another state directory with DM_HOME or --home")
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return false, errs.New(errs.Internal, "open the server's log: %w", err)
	}
	child, err := spawn(cfg, log)
	if err != nil {
		return false, err
	}
	started, err = awaitStart(ctx, client, child, func() error { return startError(child, logPath, log, from) })
	if errs.KindOf(err) != errs.Conflict {
		return started, err
	}
	// Another one was started at the same moment and was first; it will do.
	for deadline := time.Now().Add(otherWait); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(pollEvery) {
		if _, verr := client.Version(ctx); verr == nil {
			return false, nil
		}
	}
	return false, err
}

// spawn starts the server's process. Its stderr is the log, so that a panic is in it.
func spawn(cfg Config, log *os.File) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, errs.New(errs.Internal, "find dm's own program: %w", err)
	}
	args := []string{"server", "--home", cfg.Home, "--cache", cfg.Cache, "--log", "file"}
	if cfg.Reserve > 0 {
		args = append(args, "--reserve", strconv.FormatInt(cfg.Reserve, 10))
	}
	if cfg.DockerPlugin != "" {
		args = append(args, "--docker-plugin", cfg.DockerPlugin)
	}
	if cfg.ClientConfig != "" {
		args = append(args, "--config", cfg.ClientConfig)
	}
	child := exec.Command(exe, args...)
	child.Dir = "/" // the server must not keep the caller's directory busy
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return nil, errs.New(errs.Internal, "start the server: %w", err)
	}
	return child, nil
}

// awaitStart waits until the server answers or its process ends. Interrupted, it takes the process back.
func awaitStart(ctx context.Context, client *api.Client, child *exec.Cmd, died func() error) (bool, error) {
	exited := make(chan struct{})
	go func() {
		child.Wait() //nolint:errcheck // its state says it
		close(exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-exited:
			return false, died()
		case <-ctx.Done():
			child.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended just now
			<-exited
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return false, errs.New(errs.Unreachable, "the server did not answer within %v", startWait)
			}
			return false, errs.New(errs.Interrupted, "interrupted, the server was stopped again")
		case <-tick.C:
			if _, err := client.Version(ctx); err == nil {
				return true, nil
			}
		}
	}
}

// startError says why a server that was just started has ended: with the last line that is its error, of the kind its
// exit code tells.
func startError(child *exec.Cmd, logPath string, log *os.File, from int64) error {
	text, err := io.ReadAll(io.NewSectionReader(log, from, 64<<10))
	if err != nil {
		text = nil
	}
	kind, msg, hint := errs.Internal, "", ""
	for _, k := range errs.Kinds() {
		if k.ExitCode() == child.ProcessState.ExitCode() && k.ExitCode() != 1 {
			kind = k
		}
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if h, ok := strings.CutPrefix(line, "dm: hint: "); ok {
			hint = h
		} else if m, ok := strings.CutPrefix(line, "dm: "); ok {
			msg = m
		}
	}
	if msg == "" {
		msg = fmt.Sprintf("the server ended at once (%s)", child.ProcessState)
	}
	if hint == "" {
		hint = "its log is " + logPath
	}
	return errs.WithHint(errs.New(kind, "%s", msg), "%s", hint)
}

// Stop ends the server on the state directory dir and returns when its process is gone; false: none was running. Mounts
// that processes use are an error of kind Conflict that names them, unless force.
func Stop(ctx context.Context, dir string, force bool) (stopped bool, err error) {
	client := api.NewClient(filepath.Join(dir, api.SocketName))
	defer client.Close()
	err = client.Stop(ctx, api.StopRequest{Force: force})
	switch {
	case err == nil:
		return true, awaitEnd(ctx, dir)
	case errs.KindOf(err) != errs.Unreachable:
		return false, err
	}
	// Nobody answers: there is no server, or one that starts, ends or hangs. What a killed one left is cleaned up.
	h, err := openExisting(dir)
	if err != nil || h == nil {
		return false, err
	}
	defer h.close()
	if name := h.pluginName(); name != "" {
		err = dockervol.RemoveDead(ctx, dockervol.PluginDir, name)
	}
	return false, errors.Join(h.cleanStale(), err)
}

// openExisting locks a state directory, or returns nil where there is none.
func openExisting(dir string) (*home, error) {
	if _, err := os.Stat(filepath.Join(dir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return openHome(dir)
}

// awaitEnd waits until nobody holds the lock of the state directory.
func awaitEnd(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	for {
		lock, err := lockHome(dir)
		if err == nil {
			return lock.Close()
		}
		if errs.KindOf(err) != errs.Conflict {
			return err
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unreachable, "the server agreed to stop but has not ended: %w", err)
		case <-time.After(pollEvery):
		}
	}
}

// Destroy stops the server on the state directory dir and deletes everything it keeps there, and nothing else.
func Destroy(ctx context.Context, dir string, force bool) error {
	if _, err := Stop(ctx, dir, force); err != nil {
		return err
	}
	h, err := openExisting(dir)
	if err != nil || h == nil {
		return err
	}
	defer h.close()
	if err := h.cleanStale(); err != nil {
		return err
	}
	if name := h.pluginName(); name != "" {
		if err := dockervol.Retire(ctx, dockervol.PluginDir, name, h.dir); err != nil {
			return err
		}
	}
	// To delete through a mount would delete what is mounted.
	if left, err := mountsBelow(dir); err != nil {
		return err
	} else if len(left) > 0 {
		return errs.WithHint(errs.New(errs.Conflict, "something is still mounted at %s", left[0]), "unmount it first")
	}
	// The identity goes last: as long as it is there, a reset that was interrupted can be run again.
	for _, name := range []string{
		api.SocketName, mountsFile, volumesFile, stoppedFile, pluginFile, mountDir, lookDir, cacheDir, workDir, storeDir, logFile, logFile + ".1", identityFile, lockFile,
	} {
		if err := os.RemoveAll(h.path(name)); err != nil {
			return errs.New(errs.KindOf(err), "delete the server's state: %w", err)
		}
	}
	os.Remove(dir) //nolint:errcheck // it may hold what is not ours, or be a mount point
	return nil
}

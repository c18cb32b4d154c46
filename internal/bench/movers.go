package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// mover brings versions of one directory of files to a server behind a link: dm, rsync, restic or rclone.
type mover interface {
	name() string
	// prepare starts the server and what is needed here, and returns the directory whose content is sent and the link.
	prepare(ctx context.Context, delay time.Duration) (dir string, k *link, err error)
	// send brings the directory's content to the server.
	send(ctx context.Context) (usage, error)
	// arrived returns a directory with what has arrived; empty: it cannot be compared as it is.
	arrived() string
	close() error
}

func movers(l *lab) []mover {
	return []mover{&dmMover{lab: l}, &rsyncMover{far: far{lab: l}}, &resticMover{far: far{lab: l}}, &rcloneMover{far: far{lab: l}}}
}

// far is a server of a mover, in a process of its own, and the link to it.
type far struct {
	*lab
	cmd  *exec.Cmd
	done chan struct{}
	link *link
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// start starts a server that listens on a port of the loopback, and the link to it.
func (f *far) start(ctx context.Context, port string, delay time.Duration, env []string, name string, args ...string) error {
	f.note(name, args...)
	f.cmd = exec.Command(name, args...)
	f.cmd.Env, f.cmd.Dir = append(f.env(), env...), f.root
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := f.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	f.done = make(chan struct{})
	cmd, done := f.cmd, f.done
	go func() {
		cmd.Wait()
		close(done)
	}()
	for range 400 {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			f.link, err = newLink("127.0.0.1:"+port, delay)
			return err
		}
		select {
		case <-done:
			return fmt.Errorf("start %s: it ended: %v", name, cmd.ProcessState)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
	return fmt.Errorf("start %s: it does not listen on %s", name, port)
}

// stop ends the server and the link. Stopping them twice does nothing.
func (f *far) stop() error {
	var err error
	if f.link != nil {
		err = f.link.close()
		f.link = nil
	}
	if f.cmd == nil {
		return err
	}
	syscall.Kill(-f.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-f.done:
	case <-time.After(30 * time.Second):
		syscall.Kill(-f.cmd.Process.Pid, syscall.SIGKILL)
		<-f.done
	}
	f.cmd = nil
	return err
}

// dmMover pushes to a hub.
type dmMover struct {
	*lab
	hub    far
	server *server
	dir    string
}

func (m *dmMover) name() string { return "dm" }

func (m *dmMover) prepare(ctx context.Context, delay time.Duration) (string, *link, error) {
	s, err := m.serve(ctx, "dm")
	if err != nil {
		return "", nil, err
	}
	m.server, m.hub = s, far{lab: m.lab}
	if m.dir, err = s.create(ctx, "stack", "mariadb", "postgres", "redis"); err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	home := []string{"DM_HOME=" + m.root + "/dm/hub"}
	user := exec.CommandContext(ctx, m.program, "hub", "user", "add", "bench")
	user.Env = append(m.env(), home...)
	key, err := user.Output()
	if err != nil {
		return "", nil, fmt.Errorf("add a user to the hub: %w", err)
	}
	if err := m.hub.start(ctx, port, delay, home, m.program, "hub", "serve", "--no-tls", "--listen", "127.0.0.1:"+port); err != nil {
		return "", nil, err
	}
	add := exec.CommandContext(ctx, m.program, "remote", "add", "hub", "http://bench@"+m.hub.link.addr())
	add.Env, add.Stdin = s.environment(), strings.NewReader(string(key))
	if out, err := add.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("add the remote: %w: %s", err, out)
	}
	return m.dir, m.hub.link, nil
}

func (m *dmMover) send(ctx context.Context) (usage, error) {
	u, _, err := m.server.dm(ctx, "push", "hub", "stack")
	return u, err
}

// arrived is compared by cloning, which goes over the link too: so it is left to the tests.
func (m *dmMover) arrived() string { return "" }

func (m *dmMover) close() error {
	if m.server != nil {
		if err := m.server.close(); err != nil {
			return err
		}
	}
	if err := m.hub.stop(); err != nil {
		return err
	}
	return m.remove(m.root + "/dm")
}

// rsyncMover sends to an rsync daemon.
type rsyncMover struct{ far }

func (m *rsyncMover) name() string { return "rsync" }

func (m *rsyncMover) prepare(ctx context.Context, delay time.Duration) (string, *link, error) {
	dir, err := m.mkdir("rsync", "files")
	if err != nil {
		return "", nil, err
	}
	to, err := m.mkdir("rsync", "far")
	if err != nil {
		return "", nil, err
	}
	conf := m.root + "/rsync/conf"
	text := "use chroot = no\n[far]\npath = " + to + "\nread only = no\nuid = root\ngid = root\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	err = m.start(ctx, port, delay, nil, "rsync", "--daemon", "--no-detach", "--config", conf, "--address", "127.0.0.1", "--port", port)
	return dir, m.link, err
}

func (m *rsyncMover) send(ctx context.Context) (usage, error) {
	u, _, err := m.run(ctx, "", "rsync", "-az", "--delete", m.root+"/rsync/files/", "rsync://"+m.link.addr()+"/far/")
	return u, err
}

func (m *rsyncMover) arrived() string { return m.root + "/rsync/far" }

func (m *rsyncMover) close() error {
	if err := m.stop(); err != nil {
		return err
	}
	return m.remove(m.root + "/rsync")
}

// resticMover backs up to a REST server.
type resticMover struct{ far }

func (m *resticMover) name() string { return "restic" }

func (m *resticMover) store() string { return "rest:http://" + m.link.addr() + "/" }

func (m *resticMover) prepare(ctx context.Context, delay time.Duration) (string, *link, error) {
	dir, err := m.mkdir("restic", "files")
	if err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	if err := m.start(ctx, port, delay, nil, "rclone", "serve", "restic", "--addr", "127.0.0.1:"+port, m.root+"/restic/far"); err != nil {
		return "", nil, err
	}
	_, _, err = m.run(ctx, "", "restic", "-q", "-r", m.store(), "init")
	return dir, m.link, err
}

func (m *resticMover) send(ctx context.Context) (usage, error) {
	u, _, err := m.run(ctx, m.root+"/restic/files", "restic", "-q", "-r", m.store(), "backup", ".")
	return u, err
}

func (m *resticMover) arrived() string { return "" }

func (m *resticMover) close() error {
	if err := m.stop(); err != nil {
		return err
	}
	return m.remove(m.root + "/restic")
}

// rcloneMover sends over SFTP.
type rcloneMover struct {
	far
	pass string // as rclone wants it in arguments
}

func (m *rcloneMover) name() string { return "rclone" }

func (m *rcloneMover) prepare(ctx context.Context, delay time.Duration) (string, *link, error) {
	dir, err := m.mkdir("rclone", "files")
	if err != nil {
		return "", nil, err
	}
	to, err := m.mkdir("rclone", "far")
	if err != nil {
		return "", nil, err
	}
	out, err := m.quiet(ctx, "rclone", "obscure", "bench")
	if err != nil {
		return "", nil, err
	}
	m.pass = strings.TrimSpace(out)
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	err = m.start(ctx, port, delay, nil, "rclone", "serve", "sftp", "--addr", "127.0.0.1:"+port, "--user", "bench", "--pass", "bench", to)
	return dir, m.link, err
}

func (m *rcloneMover) send(ctx context.Context) (usage, error) {
	u, _, err := m.run(ctx, "", "rclone", "-q", "sync", "--skip-links", m.root+"/rclone/files", ":sftp:", "--sftp-host", "127.0.0.1",
		"--sftp-port", m.link.port(), "--sftp-user", "bench", "--sftp-pass", m.pass)
	return u, err
}

func (m *rcloneMover) arrived() string { return filepath.Join(m.root, "rclone", "far") }

func (m *rcloneMover) close() error {
	if err := m.stop(); err != nil {
		return err
	}
	return m.remove(m.root + "/rclone")
}

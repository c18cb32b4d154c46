package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dm/dockervol"
	"dm/internal/durable"
	"dm/internal/errs"
)

// PluginOff as the name of the Docker plugin says that there is to be none.
const PluginOff = "off"

// DefaultPlugin is the name of the Docker plugin where none is asked for: `driver: dm`.
const DefaultPlugin = "dm"

// plugin is the server's end of Docker's volume plugin socket.
type plugin struct {
	log    *slog.Logger
	socket *dockervol.Socket // nil: there is none
	called string
	why    string        // there is none because of this; may be empty
	stop   func()        // ends serving
	ended  chan struct{} // closed when serving has ended

	standIn *standIn // nil: not started
}

// name returns the plugin's name, the driver of its volumes; "" if there is none.
func (p *plugin) name() string { return p.called }

// startPlugin claims the plugin's name and answers Docker. Unless it was asked for by name, that there is no Docker here,
// or that another server has the name, is a note and no error.
func (s *server) startPlugin(ctx context.Context) error {
	name, asked := s.cfg.DockerPlugin, s.cfg.DockerPlugin != ""
	switch {
	case name == PluginOff:
		s.plugin.why = "switched off"
	case !asked && !dockerIsHere():
		s.plugin.why = "Docker is not installed"
	case !asked:
		name = DefaultPlugin
	}
	if s.plugin.why != "" {
		name = ""
	}
	if before := s.home.pluginName(); before != "" && before != name {
		if err := dockervol.Retire(ctx, dockervol.PluginDir, before, s.home.dir); err != nil {
			s.log.Warn("the Docker plugin that this server had before stays", "driver", before, "err", err)
		}
	}
	if name == "" {
		return nil
	}
	owner := dockervol.Owner{Home: s.home.dir, PID: os.Getpid()}
	socket, err := dockervol.Claim(ctx, dockervol.PluginDir, name, owner)
	if errs.KindOf(err) == errs.Conflict && !asked {
		s.plugin.why = err.Error()
		s.log.Warn("Docker's volumes are not served", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	s.plugin.socket = socket
	if err := durable.WriteFile(s.home.path(pluginFile), []byte(name+"\n"), 0o600); err != nil {
		return errs.New(errs.KindOf(err), "note the name of the Docker plugin: %w", err)
	}
	if s.plugin.standIn, err = startStandIn(socket, s.home.dir, s.log); err != nil {
		return errs.New(errs.Internal, "start the stand-in of the Docker plugin: %w", err)
	}
	s.plugin.called = name
	s.log.Info("Docker's volumes are served", "driver", name, "socket", socket.Path())
	return nil
}

// servePlugin begins to answer Docker. What Docker asked for and does not wait for ends with life.
func (s *server) servePlugin(life context.Context) {
	s.volumeDriver.life = life
	if s.plugin.socket == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.plugin.stop, s.plugin.ended = cancel, make(chan struct{})
	go func() {
		defer close(s.plugin.ended)
		if err := s.plugin.socket.Serve(ctx, s.volumeDriver, s.log); err != nil {
			s.log.Error("Docker's volumes are not served any more", "err", err)
		}
	}()
}

// close ends the plugin. From now on the stand-in answers. If there is none any more, or no engine that would miss the plugin,
// the socket goes, and with it a stand-in.
func (p *plugin) close() {
	if p.socket == nil {
		return
	}
	if !p.socket.Known() || p.standIn.gone() {
		if err := p.socket.Remove(); err != nil {
			p.log.Warn("the Docker plugin is not taken away", "err", err)
		}
	}
	if p.stop != nil {
		p.stop()
		<-p.ended
	} else {
		p.socket.Close()
	}
	if p.standIn != nil {
		p.standIn.hold.Close() //nolint:errcheck // a pipe
	}
}

// dockerIsHere says whether Docker is installed, running or not, or one somewhere else is pointed to.
func dockerIsHere() bool {
	if os.Getenv("DOCKER_HOST") != "" {
		return true
	}
	if _, err := exec.LookPath("dockerd"); err == nil {
		return true
	}
	_, err := os.Stat("/var/run/docker.sock")
	return err == nil
}

// standInHelper is the name under which this program runs as the stand-in of the plugin: a process that holds the
// listening socket, sleeps as long as the server lives, and then answers Docker with what to do about it. Without it, Docker
// would try to connect for a quarter of a minute and then say nothing that helps.
//
// It ends when a server claims the plugin's name, when its socket is removed, and with `dm cluster reset`.
const standInHelper = "dm-docker-standin"

// standIn is that process as its server sees it.
type standIn struct {
	process *os.Process
	hold    *os.File      // it goes to work when this is closed, be it that the server is killed
	ended   chan struct{} // closed when it has ended
}

// gone says that no stand-in will answer.
func (s *standIn) gone() bool {
	if s == nil {
		return true
	}
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// startStandIn starts it.
func startStandIn(socket *dockervol.Socket, home string, log *slog.Logger) (*standIn, error) {
	listener, err := socket.File()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	wait, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer wait.Close()
	id := socket.FileID()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{standInHelper, home, socket.Path(), strconv.FormatUint(id.Dev, 10), strconv.FormatUint(id.Ino, 10)}
	cmd.Env = []string{"DM_HOME=" + home} // says whose it is
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{listener, wait}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives the server and its terminal
	if err := cmd.Start(); err != nil {
		hold.Close()
		return nil, err
	}
	s := &standIn{process: cmd.Process, hold: hold, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		err := cmd.Wait()
		log.Warn("the stand-in of the Docker plugin has ended: while no server runs, Docker waits for it in vain", "err", err)
	}()
	return s, nil
}

// runStandIn is that process.
func runStandIn(args []string) int {
	if err := standInFor(args); err != nil {
		fmt.Fprintln(os.Stderr, "dm:", err)
		return 1
	}
	return 0
}

func standInFor(args []string) error {
	if len(args) != 4 {
		return errs.New(errs.Usage, "%s needs 4 arguments", standInHelper)
	}
	dev, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	ino, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	listener, wait := os.NewFile(3, "listener"), os.NewFile(4, "wait")
	owner := dockervol.Owner{Home: args[0], PID: os.Getpid(), StandIn: true}
	socket, err := dockervol.Resume(listener, args[1], dockervol.FileID{Dev: dev, Ino: ino}, owner)
	if err != nil {
		return err
	}
	listener.Close()          //nolint:errcheck // the socket has its own
	io.Copy(io.Discard, wait) //nolint:errcheck // any end of it is the server's end
	log := slog.New(slog.DiscardHandler)
	list := &volumeList{file: filepath.Join(args[0], volumesFile)}
	return socket.ServeDown(context.Background(), func() []dockervol.Volume {
		var known []dockervol.Volume
		if list.load() == nil {
			for _, r := range list.records() {
				known = append(known, dockervol.Volume{Name: r.Volume, CreatedAt: r.Created.Format(time.RFC3339)})
			}
		}
		return known
	}, log)
}

// pluginName returns the name of the Docker plugin that a server on h had last, "" if it never had one.
func (h *home) pluginName() string {
	text, err := os.ReadFile(h.path(pluginFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

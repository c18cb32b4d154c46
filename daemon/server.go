package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"dm/api"
	"dm/internal/errs"
)

// server is a running server.
type server struct {
	cfg     Config
	home    *home
	log     *slog.Logger
	started time.Time

	ops  opGate
	stop chan struct{} // closed when a client has stopped the server
}

// newServer cleans up after a predecessor that was killed and opens everything.
func newServer(ctx context.Context, cfg Config, h *home, log *slog.Logger) (*server, error) {
	if err := h.cleanStale(); err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, home: h, log: log, started: time.Now(), stop: make(chan struct{})}
	return s, ctx.Err()
}

// serve answers requests until ctx is done or a client has stopped the server, and ends everything.
func (s *server) serve(ctx context.Context) error {
	l, err := listen(s.home.path(api.SocketName))
	if err != nil {
		return errors.Join(err, s.close(context.WithoutCancel(ctx)))
	}
	// Operations outlive ctx by the grace that shutdown gives them.
	opCtx, cancelOps := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelOps()
	srv := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return opCtx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	s.log.Info("server is ready", "took", time.Since(s.started))
	select {
	case err = <-served:
		s.log.Error("the socket broke", "err", err)
	case <-ctx.Done():
		s.log.Info("server was told to end")
		err = nil
	case <-s.stop:
		err = nil
	}
	s.shutdown(ctx, srv, cancelOps)
	return errors.Join(err, s.close(context.WithoutCancel(ctx)))
}

// shutdown lets running operations end, by themselves or cancelled, and closes the socket.
func (s *server) shutdown(ctx context.Context, srv *http.Server, cancelOps func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	if err := s.ops.close(ctx); err != nil {
		s.log.Warn("operations did not end in time and are cancelled", "grace", stopGrace)
		cancelOps()
	}
	// No new connection can name the socket any more, and those that are open get their last replies.
	os.Remove(s.home.path(api.SocketName)) //nolint:errcheck // the next server replaces it
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancelLast()
	if err := srv.Shutdown(last); err != nil {
		s.log.Warn("connections did not end in time", "err", err)
		srv.Close() //nolint:errcheck // nothing is left to be done about it
	}
}

// close ends everything that newServer opened.
func (s *server) close(context.Context) error { return nil }

// listen makes the socket. It appears under its name only when it has its mode, and replaces what a killed server left:
// the lock on the state directory says that nobody listens there.
func listen(path string) (net.Listener, error) {
	tmp := path + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	short, release, err := api.ShortSocketPath(tmp)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, errs.New(errs.KindOf(err), "make the socket: %w", err)
	}
	return ownerOnly{l}, nil
}

// ownerOnly accepts only connections of the server's own user and of root: the mode of the socket says so too, but a mode
// can be changed by mistake.
type ownerOnly struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l ownerOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return c, nil
		}
		c.Close()
	}
}

// peerUID returns the user of the process at the other end.
func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

// opGate counts running operations and, once closed, lets no more in.
type opGate struct {
	mu      sync.Mutex
	running int
	closed  bool
	idle    chan struct{} // closed when running falls to 0 after closed
}

// enter begins an operation; a server that stops refuses. Whoever entered calls leave.
func (g *opGate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errs.WithHint(errs.New(errs.Unreachable, "the server is stopping"), "start it again with 'dm cluster init'")
	}
	g.running++
	return nil
}

func (g *opGate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// close lets no more operations in and waits until the running ones have left.
func (g *opGate) close(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	if g.running == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for running operations: %w", ctx.Err())
	}
}

// open lets operations in again.
func (g *opGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

// serverStatus is the state of the server as a whole.
func (s *server) serverStatus(context.Context, api.Empty) (api.ServerResult, error) {
	r := api.ServerResult{
		ID: s.home.id.ID, PID: os.Getpid(), Home: api.Path(s.home.dir), Version: ownVersion(), Started: s.started,
	}
	return r, nil
}

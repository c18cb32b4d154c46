package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"dm/api"
	"dm/dot"
	"dm/fusefs"
	"dm/internal/errs"
	"dm/internal/unixsock"
	"dm/store"
	"dm/workcopy"
)

// server is a running server.
type server struct {
	cfg     Config
	home    *home
	log     *slog.Logger
	started time.Time
	reserve int64  // bytes that commits leave free on the disk
	why     string // the cache mode is not what could be best because of this

	store    *store.Store
	dots     *dot.Dots
	files    *workcopy.OpenFiles // of all working copies
	flusher  *fusefs.Flusher
	branches *branches
	links    links
	binds    *binds

	remotes   remotes
	transfers transfers
	faults    *faults

	engine       engine
	closeEngine  func()
	plugin       plugin
	volumes      *volumeList
	volumeDriver *volumeDriver
	stopped      *stoppedList
	swaps        keyed // by namespace/name: checkouts, resets and the like, with the containers that they stop

	hidden sync.Map // by dot.Name, why the dot could not be shown at the start: an error

	// names locks dots by namespace/name: shared by what uses a dot, alone by what changes where it is mounted.
	names keyed
	ops   opGate
	auto  *auto

	stopping sync.Mutex    // held by a client that stops the server
	stop     chan struct{} // closed when one has stopped it
}

// newServer cleans up after a predecessor that was killed, opens everything and mounts the current branch of each dot.
func newServer(ctx context.Context, cfg Config, h *home, log *slog.Logger) (s *server, err error) {
	s = &server{
		cfg: cfg, home: h, log: log, started: time.Now(), stop: make(chan struct{}),
		links: links{h.path(mountDir)}, binds: &binds{file: h.path(mountsFile)}, remotes: remotes{dir: h.path(cacheDir)},
		volumes: &volumeList{file: h.path(volumesFile)},
		stopped: &stoppedList{file: h.path(stoppedFile), all: map[string]stoppedRecord{}}, plugin: plugin{log: log},
	}
	s.volumeDriver = &volumeDriver{s: s, list: s.volumes, log: log, mounts: map[string]*volumeMount{}, clones: clones{all: map[string]*cloneJob{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx)))
		}
	}()
	limit := raiseFileLimit(log)
	log.Info("limit on open files", "files", limit)
	if s.files, err = copyFiles(limit); err != nil {
		return s, err
	}
	if err := errors.Join(h.cleanStale(), s.links.clear(), s.volumeDriver.clear(), s.volumes.load()); err != nil {
		return s, err
	}
	if err := s.stopped.load(); err != nil {
		log.Error("containers that an earlier server had stopped are not known", "err", err)
	}
	if s.reserve, err = cfg.reserve(h.dir); err != nil {
		return s, err
	}
	docker, err := openEngine()
	if err != nil {
		return s, err
	}
	s.engine, s.closeEngine = docker, docker.close
	if s.store, err = store.Open(ctx, h.path(storeDir), store.Options{MinFree: s.reserve}); err != nil {
		return s, err
	}
	if err := s.startMounts(ctx); err != nil {
		return s, err
	}
	s.faults = newFaults(s.store, &s.remotes, s.log)
	s.dots, err = dot.Open(ctx, dot.Config{Store: s.store, Source: s.faults, Dir: h.path(workDir), Detach: s.hide, Files: s.files})
	if err != nil {
		return s, err
	}
	if err := s.mountAll(ctx); err != nil {
		return s, err
	}
	return s, s.startPlugin(ctx)
}

// hide unmounts a working copy, and what was made of it for Docker.
func (s *server) hide(ctx context.Context, copyID string) error {
	if err := s.volumeDriver.hide(copyID); err != nil {
		return err
	}
	return s.branches.hide(ctx, copyID)
}

// startMounts starts what mounting needs, and finds out how this kernel can cache.
func (s *server) startMounts(ctx context.Context) error {
	s.flusher = fusefs.NewFlusher(s.log)
	s.branches = &branches{
		dir: s.home.path(mountDir, branchesDir), log: s.log, flusher: s.flusher, cache: fusefs.Through,
		open: map[string]*fusefs.Mount{},
	}
	if s.cfg.Cache == CacheThrough {
		s.why = "asked for"
		return nil
	}
	err := fusefs.SelfTest(ctx, s.home.path(lookDir), s.flusher)
	switch {
	case err == nil:
		s.branches.cache = fusefs.Writeback
	case s.cfg.Cache == CacheWriteback:
		return errs.WithHint(errs.New(errs.Internal, "this kernel does not keep an exact cut with its page cache: %w", err),
			"start the server with --cache auto or through")
	default:
		s.why = "the kernel did not pass the test for writeback: " + err.Error()
		s.log.Warn("volumes are write-through", "err", err)
	}
	return nil
}

// serve answers requests until ctx is done or a client has stopped the server, and ends everything.
func (s *server) serve(ctx context.Context) error {
	// The lock on the state directory says that nobody listens there.
	l, err := unixsock.Listen(s.home.path(api.SocketName))
	if err != nil {
		return errors.Join(errs.New(errs.KindOf(err), "make the socket: %w", err), s.close(context.WithoutCancel(ctx)))
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
	s.auto = startAuto(opCtx, s)
	stopped := s.stopped.containers() // by an earlier server, as no request is answered yet
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	s.servePlugin(opCtx)
	s.startContainers(opCtx, stopped)
	if err := s.home.keepSpare(); err != nil {
		s.log.Warn("no room is kept for the next start", "err", err)
	}
	s.log.Info("server is ready", "took", time.Since(s.started))
	notify(s.log, stateReady)
	select {
	case err = <-served:
		s.log.Error("the socket broke", "err", err)
	case <-ctx.Done():
		s.log.Info("server was told to end")
		err = nil
	case <-s.stop:
		err = nil
	}
	notify(s.log, stateStopping)
	s.shutdown(ctx, srv, cancelOps)
	s.auto.stop()
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

// unmountGrace is how long a server that must end waits for processes that use its mounts, before it takes them away.
const unmountGrace = 10 * time.Second

// closeGrace bounds the whole end of a server. A mount that hangs in the kernel is left to the next start, which aborts
// it; what the processes behind it wrote is in the journals.
const closeGrace = time.Minute

// close ends everything that newServer opened, as far as it came. Mounts in use are detached after a bounded wait.
func (s *server) close(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.closeAll(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(closeGrace):
		return errs.New(errs.Internal, "not all volumes could be closed within %v", closeGrace)
	}
}

func (s *server) closeAll(ctx context.Context) error {
	var all []error
	s.plugin.close()
	if s.closeEngine != nil {
		defer s.closeEngine()
	}
	if s.branches != nil {
		all = append(all, s.unmountAll(ctx, true))
	}
	if s.dots != nil {
		all = append(all, s.dots.Close(ctx))
	}
	if s.flusher != nil {
		s.flusher.Close()
	}
	all = append(all, s.remotes.close())
	if s.store != nil {
		all = append(all, s.store.Close())
	}
	return errors.Join(all...)
}

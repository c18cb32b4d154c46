// Package daemon is dm's local server: it owns the state directory of one machine, the mounts that show working copies to
// the kernel, and the unix socket on which the command line asks for things.
//
// It joins the other packages and adds what is about one running machine: which branch is mounted where, who may change a
// dot while others use it, how it starts after a crash and how it ends. What a verb means is in package dot; this package
// translates requests of package api into its calls.
//
// The state directory (DM_HOME):
//
//	server.json   format version and id of this server
//	lock          locked by the server that runs; holds its pid
//	dm.sock       the socket, mode 0600: whoever opens it may do what the server may
//	dm.log        the log, and dm.log.1, what it was before; bounded in size
//	store/        objects, index, branches (package store)
//	work/         working copies, one directory each (package workcopy)
//	cache/        what can be read again from remotes: indexes of their packs
//	look/         scratch space of commits mounted read-only; emptied at every start
//	mounts.json   what `dm mount` made, so that a start makes it again
//	volumes.json  Docker's volumes
//	docker-plugin the name of the Docker plugin that this server had last
//	stopped.json  containers that are stopped at the moment, to be started again
//	mnt/          what `dm path` prints: NAMESPACE/DOT is a symlink to a mount in .branches; .volumes has what containers bind
//
// Only mnt/ is for others: the directories on the way to it can be passed by all users, as the services whose data it is
// are usually not root. Everything else is the server's alone.
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"dm/api"
	"dm/dockervol"
	"dm/internal/background"
	"dm/internal/errs"
)

// The ways the kernel can cache volumes.
const (
	CacheAuto      = "auto"      // writeback where a test shows that this kernel can
	CacheWriteback = "writeback" // the page cache takes writes; refuse to start where the kernel cannot
	CacheThrough   = "through"   // every write reaches the server
)

// Config is what a server needs to know.
type Config struct {
	Home  string    // absolute path of the state directory
	Cache string    // CacheAuto, CacheWriteback or CacheThrough
	Log   io.Writer // where the log goes; nil: dm.log in Home
	// Reserve is how many bytes commits leave free on the disk of Home; 0: a hundredth of it, between 64 MiB and 1 GiB.
	Reserve int64
	// DockerPlugin is the name of the Docker volume plugin, or PluginOff. Empty: DefaultPlugin, if Docker is here and no
	// other server has that name.
	DockerPlugin string
	// Remote finds a remote by its name, for volumes that are clones of a dot there. nil: there are none.
	Remote func(name string) (api.Remote, error)
	// ClientConfig is where a server in the background looks for remotes; empty: the default place.
	ClientConfig string
}

func (c Config) check() error {
	switch c.Cache {
	case CacheAuto, CacheWriteback, CacheThrough:
	default:
		return errs.New(errs.Usage, "cache mode %q is not known: use %s, %s or %s", c.Cache, CacheAuto, CacheWriteback, CacheThrough)
	}
	if c.DockerPlugin != "" && c.DockerPlugin != PluginOff {
		if err := dockervol.CheckName(c.DockerPlugin); err != nil {
			return err
		}
	}
	if os.Geteuid() != 0 {
		return errs.WithHint(errs.New(errs.NotAllowed, "the dm server mounts filesystems, which only root may"),
			"start it as root: sudo dm cluster init")
	}
	return nil
}

// stopGrace is how long a server that was told to end waits for running operations before it cancels them.
const stopGrace = 20 * time.Second

// Run runs a server until ctx is done or a client stops it, and then ends it cleanly: running operations finish or are
// cancelled after a bounded time, everything is flushed, unmounted and closed. It returns nil after a clean end.
// A second server on the same state directory is an error of kind Conflict.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	h, err := openHome(cfg.Home)
	if err != nil {
		return err
	}
	defer h.close()
	out := cfg.Log
	if out == nil {
		file, err := openLog(h.path("dm.log"))
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	log := slog.New(slog.NewTextHandler(out, nil))
	if os.Getenv("GOGC") == "" {
		// The heap is mostly caches and buffers, which are bounded: collecting garbage is cheap beside what it would take up.
		debug.SetGCPercent(50)
	}
	background.Reserve()
	log.Info("server starts", "version", api.Version, "revision", api.Revision(), "home", h.dir, "pid", os.Getpid())
	s, err := newServer(ctx, cfg, h, log)
	if err != nil {
		log.Error("server cannot start", "err", err)
		return err
	}
	err = s.serve(ctx)
	if err != nil {
		log.Error("server ended", "err", err)
		return fmt.Errorf("run the server on %s: %w", h.dir, err)
	}
	log.Info("server ended")
	return nil
}

package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

// serverStatus is the state of the server as a whole.
func (s *server) serverStatus(ctx context.Context, _ api.Empty) (api.ServerResult, error) {
	r := api.ServerResult{
		ID: s.home.id.ID, PID: os.Getpid(), Home: api.Path(s.home.dir), Version: ownVersion(), Started: s.started,
		Cache: s.branches.cache.String(), Why: s.why, Mounts: []api.Mount{},
	}
	names, err := s.dots.Names(ctx)
	if err != nil {
		return r, err
	}
	r.Dots = len(names)
	for _, n := range names {
		if s.links.get(n) != "" {
			info, err := s.dots.Info(ctx, n)
			if err != nil {
				return r, err
			}
			n.Branch = info.Branch
			r.Mounts = append(r.Mounts, api.Mount{Dir: api.Path(s.links.path(dot.Name{Namespace: n.Namespace, Dot: n.Dot})), What: n.String()})
		}
	}
	r.Mounts = append(r.Mounts, s.mounts()...)
	if r.Store, err = diskUse(ctx, s.home.path(storeDir)); err != nil {
		return r, err
	}
	if r.Work, err = diskUse(ctx, s.home.path(workDir)); err != nil {
		return r, err
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.home.dir, &st); err != nil {
		return r, errs.New(errs.KindOf(err), "measure the state directory: %w", err)
	}
	r.Free = int64(st.Bavail) * st.Bsize
	return r, nil
}

// diskUse returns the bytes that the files in dir take on disk. Files that go away meanwhile do not count.
func diskUse(ctx context.Context, dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return ctx.Err()
	})
	if err != nil {
		return 0, errs.New(errs.KindOf(err), "measure %s: %w", dir, err)
	}
	return sum, nil
}

// stopServer unmounts everything and tells serve to end. If a mount is in use nothing has happened, unless forced.
func (s *server) stopServer(r *http.Request, w http.ResponseWriter) error {
	stream := api.NewStream(w)
	req, err := decode[api.StopRequest](r)
	if err == nil {
		err = s.prepareStop(r.Context(), req.Force)
	}
	if err != nil {
		stream.Fail(err) //nolint:errcheck // the client is gone then
		return err
	}
	err = stream.Result(api.Empty{})
	close(s.stop)
	return err
}

func (s *server) prepareStop(ctx context.Context, force bool) error {
	wait, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := s.ops.close(wait); err != nil && !force {
		s.ops.open()
		return errs.WithHint(errs.New(errs.Conflict, "operations are still running: %w", err),
			"wait for them, or cancel them with 'dm cluster stop --force'")
	}
	err := s.unmountAll(ctx, force)
	if err == nil {
		return nil
	}
	// Part of it is unmounted: make the server whole again, and let it go on.
	if rerr := s.remount(context.WithoutCancel(ctx)); rerr != nil {
		s.log.Error("mount again what could not be stopped", "err", rerr)
	}
	s.ops.open()
	return err
}

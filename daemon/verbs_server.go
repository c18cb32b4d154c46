package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/store"
)

// serverStatus is the state of the server as a whole.
func (s *server) serverStatus(ctx context.Context, _ api.Empty) (api.ServerResult, error) {
	r := api.ServerResult{
		ID: s.home.id.ID, PID: os.Getpid(), Home: api.Path(s.home.dir), Version: ownVersion(), Started: s.started,
		Cache: s.branches.cache.String(), Why: s.why, Mounts: []api.Mount{}, Hidden: []api.HiddenDot{}, Reserve: s.reserve,
	}
	names, err := s.dots.Names(ctx)
	if err != nil {
		return r, err
	}
	r.Dots = len(names)
	for _, n := range names {
		shown := s.links.get(n) != ""
		if err, ok := s.hidden.Load(n); ok && !shown {
			r.Hidden = append(r.Hidden, api.HiddenDot{Dot: n.DotName(), Why: err.(error).Error()})
		}
		if shown {
			info, err := s.dots.Info(ctx, n)
			if errs.KindOf(err) == errs.NotFound {
				continue // deleted just now
			}
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
	r.Docker = s.dockerStatus(ctx)
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
		err = s.agreeToStop(r.Context(), req.Force)
	}
	if err != nil {
		stream.Fail(err) //nolint:errcheck // the client is gone then
		return err
	}
	return stream.Result(api.Empty{})
}

// agreeToStop gets the server ready to end and begins the end. Of several clients that stop it one does, and the others
// wait for what comes of it.
func (s *server) agreeToStop(ctx context.Context, force bool) error {
	s.stopping.Lock()
	defer s.stopping.Unlock()
	select {
	case <-s.stop:
		return nil
	default:
	}
	if err := s.prepareStop(ctx, force); err != nil {
		return err
	}
	close(s.stop)
	return nil
}

func (s *server) prepareStop(ctx context.Context, force bool) error {
	if !force {
		// A volume that a container has in its own mount namespace cannot be unmounted, and is not to be taken away.
		err := s.unusedOrConflict(ctx, "the server", func(containerUse) bool { return true })
		if err != nil && errs.HintOf(err) != "" {
			return errs.WithHint(err, "%s, or take their volumes away with --force", errs.HintOf(err))
		}
		if err != nil {
			return err
		}
	}
	wait, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := s.ops.close(wait); err != nil && !force {
		s.ops.open()
		return errs.WithHint(errs.New(errs.Conflict, "operations are still running: %w", err),
			"wait for them, or cancel them with 'dm cluster stop --force'")
	}
	err := s.unmountAll(ctx, force)
	if err != nil && force {
		s.log.Error("a volume cannot be taken away; the server ends all the same", "err", err)
		return nil
	}
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

// gc frees what nothing reaches. What a working copy is based on is reached by its branch, and what is mounted is pinned.
func (s *server) gc(ctx context.Context, _ api.Empty, out *api.Stream) (api.GCResult, error) {
	stats, err := s.store.GC(ctx, store.GCOptions{Progress: storeProgress(out)})
	return api.GCResult{
		Objects: int64(stats.Freed), Kept: int64(stats.Kept), Freed: stats.BytesFreed,
		Packs: stats.PacksRemoved + stats.PacksRewritten, NoRoom: stats.NoRoom,
	}, err
}

// storeProgress tells the client how far an operation on the store is.
func storeProgress(out *api.Stream) func(phase string, done, total int64) {
	return func(phase string, done, total int64) {
		out.Progress(api.Progress{Stage: phase, Done: done, Total: total})
	}
}

// fsck verifies the store and says in users' words what damage costs them.
func (s *server) fsck(ctx context.Context, req api.FsckRequest, out *api.Stream) (api.FsckResult, error) {
	var report *store.Report
	var fetched int64
	var err error
	if req.RepairFrom != nil {
		report, fetched, err = s.repairFrom(ctx, req, storeProgress(out))
	} else {
		report, err = s.store.Fsck(ctx, store.FsckOptions{Quick: req.Quick, Repair: req.Repair, Progress: storeProgress(out)})
	}
	if err != nil {
		return api.FsckResult{}, err
	}
	r := api.FsckResult{
		Objects: int64(report.Objects), Reachable: int64(report.Reachable), Bytes: report.Bytes, Packs: report.Packs,
		Truncated: report.Truncated, PutAside: int64(report.PutAside), Recovered: int64(report.Recovered), Fetched: fetched,
		Damaged: []api.Damage{}, Affected: []api.Affected{},
	}
	for _, p := range report.Problems {
		r.Damaged = append(r.Damaged, api.Damage{What: p.What, Pack: p.Pack, Offset: p.Offset, Object: p.ID})
	}
	names, err := s.namesByID(ctx)
	if err != nil {
		return r, err
	}
	for _, a := range report.Affected {
		r.Affected = append(r.Affected, api.Affected{
			Name: refName(a.Ref, names), Commit: a.Commit, Path: api.Path(a.Path), Object: a.Object,
		})
	}
	return r, nil
}

func (s *server) namesByID(ctx context.Context) (map[string]string, error) {
	names, err := s.dots.Names(ctx)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]string, len(names))
	for _, n := range names {
		info, err := s.dots.Info(ctx, n)
		if errs.KindOf(err) == errs.NotFound {
			continue // deleted just now
		}
		if err != nil {
			return nil, err
		}
		byID[info.ID] = n.DotName()
	}
	return byID, nil
}

// refName writes a ref of the store as users write it: dots/ID/heads/BRANCH is dot@branch, dots/ID/tags/TAG is dot:tag.
func refName(ref string, names map[string]string) string {
	parts := strings.Split(ref, "/")
	if len(parts) == 8 && parts[2] == "seen" && names[parts[1]] != "" {
		return names[parts[1]] + ", as seen at " + parts[3]
	}
	if len(parts) != 4 || names[parts[1]] == "" {
		return ref
	}
	if parts[2] == "tags" {
		return names[parts[1]] + ":" + parts[3]
	}
	return names[parts[1]] + "@" + parts[3]
}

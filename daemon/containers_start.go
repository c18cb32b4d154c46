package daemon

import (
	"context"
	"fmt"

	"dm/api"
	"dm/internal/errs"
)

// startContainers sees after the containers of an earlier server: it starts those that were stopped for a checkout that a
// crash cut short, and tells of those that run without their volumes. It runs when Docker is answered already.
func (s *server) startContainers(ctx context.Context, stopped []container) {
	if s.ops.enter() != nil {
		return
	}
	go func() {
		defer s.ops.leave()
		if err := s.startLeftovers(ctx, stopped); err != nil {
			s.log.Error("containers that an earlier server had stopped do not start", "err", err)
		}
		stale, err := s.stale(ctx)
		switch {
		case err != nil:
			s.log.Warn("containers are not known", "err", err)
		case len(stale) > 0:
			s.log.Warn("containers lost their volumes when the earlier server ended: restart them with 'dm cluster init --restart'",
				"containers", describe(stale))
		}
	}()
}

// restartStale restarts the containers that run without their volumes.
func (s *server) restartStale(ctx context.Context, _ api.Empty) (api.RestartResult, error) {
	r := api.RestartResult{Containers: []string{}}
	stale, err := s.stale(ctx)
	if err != nil || len(stale) == 0 {
		return r, err
	}
	w := swap{what: "restart"}
	if err := s.mayStop(ctx, w, stale); err != nil {
		return r, err
	}
	if err := s.stopAll(ctx, w, stale); err != nil {
		return r, s.bringBack(ctx, stale, err)
	}
	if err := s.startAll(context.WithoutCancel(ctx), stale); err != nil {
		return r, errs.WithHint(fmt.Errorf("not all containers came back: %w", err), "see 'docker logs', and start them with 'docker start'")
	}
	for _, c := range stale {
		r.Containers = append(r.Containers, c.Name)
	}
	return r, nil
}

// dockerStatus is how the server stands with Docker.
func (s *server) dockerStatus(ctx context.Context) api.Docker {
	d := api.Docker{Plugin: s.plugin.name(), Why: s.plugin.why, Running: []string{}, Stale: []string{}}
	uses, err := s.running(ctx)
	if err == nil {
		d.Running = containerNames(uses)
		var stale []container
		stale, err = s.staleOf(ctx, uses)
		for _, c := range stale {
			d.Stale = append(d.Stale, c.Name)
		}
	}
	if err != nil {
		d.Error = err.Error()
	}
	return d
}

// volumeToImport returns the directory of a volume of Docker's own, which no running container may be writing to.
func (s *server) volumeToImport(ctx context.Context, name string) (string, error) {
	dir, err := s.engine.volumeDir(ctx, name)
	if errs.KindOf(err) == errs.Unreachable {
		return "", errs.New(errs.NotFound, "there is no directory %s here, and no Docker engine that could have a volume of that name (%w)", name, err)
	}
	if err != nil {
		return "", err
	}
	all, err := s.engine.list(ctx)
	if err != nil {
		return "", err
	}
	var users []container
	for _, c := range all {
		for _, m := range c.Mounts {
			if m.Volume == name && !c.Paused {
				users = append(users, c)
				break
			}
		}
	}
	if len(users) > 0 {
		return "", errs.WithHint(errs.New(errs.Conflict, "the Docker volume %s is in use by %s: what it writes meanwhile would be half there",
			name, describe(users)), "stop or pause what uses it")
	}
	return dir, nil
}

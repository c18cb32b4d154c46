package daemon

import (
	"context"
	"errors"
	"strings"
	"time"

	"dm/api"
	"dm/dot"
	"dm/fusefs"
	"dm/internal/errs"
)

// dotName reads the name of a dot as such: a branch or subdot in it is a mistake.
func dotName(s string) (dot.Name, error) {
	n := dot.Name{Namespace: dot.DefaultNamespace, Dot: s}
	if ns, name, ok := strings.Cut(s, "/"); ok {
		n.Namespace, n.Dot = ns, name
		if err := dot.CheckName("namespace", ns); err != nil {
			return n, err
		}
	}
	return n, dot.CheckName("dot", n.Dot)
}

// branchName reads `[namespace/]dot[@branch]`, what --dot can be.
func branchName(s string) (dot.Name, error) {
	n, err := dot.ParseName(s)
	if err == nil && n.Subdot != "" {
		return n, errs.New(errs.Usage, "'%s' is a subdot: this acts on the whole dot %s", s, n.DotName())
	}
	return n, err
}

// withDot runs fn on a dot. What fn does may run beside everything else: package dot keeps it apart from a rename or a
// deletion, and a long commit does not hold up a checkout.
func (s *server) withDot(name string, fn func(dot.Name) error) error {
	n, err := branchName(name)
	if err != nil {
		return err
	}
	return fn(n)
}

// withDotAlone runs fn, which may change where a dot is mounted.
func (s *server) withDotAlone(ctx context.Context, n dot.Name, fn func() error) error {
	unlock, err := s.names.alone(ctx, key(n))
	if err != nil {
		return err
	}
	defer unlock()
	return fn()
}

// withDotsAlone runs fn with two names held. They are taken in one order, so that two renames cannot wait for each other.
func (s *server) withDotsAlone(ctx context.Context, a, b dot.Name, fn func() error) error {
	if key(a) == key(b) {
		return s.withDotAlone(ctx, a, fn)
	}
	if key(b) < key(a) {
		a, b = b, a
	}
	return s.withDotAlone(ctx, a, func() error { return s.withDotAlone(ctx, b, fn) })
}

func (s *server) initDot(ctx context.Context, req api.InitRequest) (r api.DotResult, err error) {
	n, err := dotName(req.Dot)
	if err != nil {
		return r, err
	}
	opts := dot.CreateOptions{Subdots: req.Subdots}
	switch req.Cache {
	case "":
	case fusefs.Through.String():
		opts.Cache = dot.CacheThrough
	case fusefs.Writeback.String():
		opts.Cache = dot.CacheWriteback
	default:
		return r, errs.New(errs.Usage, "cache mode %q is not known: use %s or %s", req.Cache, fusefs.Writeback, fusefs.Through)
	}
	err = s.withDotAlone(ctx, n, func() error { return s.create(ctx, n, opts) })
	return api.DotResult{Dot: n.DotName()}, err
}

// create makes a dot and mounts it, or leaves nothing behind. The caller holds the dot's name alone.
func (s *server) create(ctx context.Context, n dot.Name, opts dot.CreateOptions) error {
	if _, err := s.dots.Create(ctx, n, opts); err != nil {
		return err
	}
	_, err := s.showCurrent(ctx, n)
	if err == nil {
		return nil
	}
	if derr := s.dots.Delete(context.WithoutCancel(ctx), n); derr != nil {
		s.log.Error("delete a dot that could not be mounted", "dot", n, "err", derr)
	}
	return err
}

func (s *server) find(ctx context.Context, req api.DotRequest) (api.DotResult, error) {
	n, err := dotName(req.Dot)
	if err != nil {
		return api.DotResult{}, err
	}
	_, err = s.dots.Info(ctx, n)
	return api.DotResult{Dot: n.DotName()}, err
}

func (s *server) path(ctx context.Context, req api.PathRequest) (r api.PathResult, err error) {
	n, err := dot.ParseName(req.Name)
	if err != nil {
		return r, err
	}
	unlock, err := s.names.share(ctx, key(n))
	if err != nil {
		return r, err
	}
	defer unlock()
	path, err := s.show(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot, Branch: n.Branch})
	if err != nil {
		return r, err
	}
	if n.Subdot == "" || n.Subdot == dot.RootSubdot {
		return api.PathResult{Path: api.Path(path)}, nil
	}
	if err := s.needSubdot(ctx, n, req.Create, "--create"); err != nil {
		return r, err
	}
	return api.PathResult{Path: api.Path(path + "/" + n.Subdot)}, nil
}

// needSubdot makes the subdot if create, and says how to if it is not there otherwise.
func (s *server) needSubdot(ctx context.Context, n dot.Name, create bool, flag string) error {
	if create {
		_, err := s.dots.EnsureSubdot(ctx, n)
		return err
	}
	ok, err := s.dots.HasSubdot(ctx, n)
	if err == nil && !ok {
		return errs.WithHint(errs.New(errs.NotFound, "dot %s has no subdot %s", n.DotName(), n.Subdot), "create it with %s", flag)
	}
	return err
}

func (s *server) list(ctx context.Context, _ api.Empty) (api.ListResult, error) {
	r := api.ListResult{Server: s.home.id.ID, Dots: []api.Dot{}}
	all, err := s.dots.List(ctx)
	if err != nil {
		return r, err
	}
	uses, err := s.running(ctx)
	if err != nil {
		r.Note = err.Error()
	}
	for _, l := range all {
		row := s.row(l)
		if n, err := dotName(l.Name); err == nil {
			row.Containers = containerNames(filterUses(uses, ofDot(n)))
		}
		r.Dots = append(r.Dots, row)
	}
	return r, nil
}

func (s *server) row(l dot.Listing) api.Dot {
	return api.Dot{
		Name: l.Name, Branch: l.Branch, Server: s.home.id.ID, Containers: []string{}, Size: int64(l.Size),
		Commits: int(l.Commits), Dirty: int64(l.Dirty), Error: l.Error,
	}
}

func (s *server) status(ctx context.Context, req api.DotRequest) (r api.StatusResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		st, err := s.dots.Status(ctx, n)
		if err != nil {
			return err
		}
		r = api.StatusResult{Dot: st.Name, Branch: st.Branch, Head: st.Commit, Subdots: subdots(st.Subdots)}
		r.Total = api.Subdot{
			Name: "total", Size: int64(st.Size), Dirty: int64(st.Dirty), Changed: int64(st.Changed), Local: int64(st.Local),
			Containers: []string{},
		}
		uses, note := s.usesFor(ctx, n)
		r.Note = note
		s.fillContainers(uses, r.Subdots, &r.Total.Containers)
		return nil
	})
	return r, err
}

func subdots(all []dot.SubdotStatus) []api.Subdot {
	list := make([]api.Subdot, len(all))
	for i, sub := range all {
		list[i] = api.Subdot{
			Name: sub.Name, Size: int64(sub.Size), Dirty: int64(sub.Dirty), Changed: int64(sub.Changed),
			Containers: []string{},
		}
	}
	return list
}

func (s *server) showDot(ctx context.Context, req api.DotRequest) (r api.ShowDotResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		n.Branch = ""
		info, err := s.dots.Info(ctx, n)
		if err != nil {
			return err
		}
		st, err := s.dots.Status(ctx, n)
		if err != nil {
			return err
		}
		commits, err := s.dots.Log(ctx, n, "", 0)
		if err != nil {
			return err
		}
		r = api.ShowDotResult{
			Dot: s.row(dot.Listing{
				Name: n.DotName(), Branch: info.Branch, Size: st.Size, Commits: uint64(len(commits)), Dirty: st.Dirty,
			}),
			ID: info.ID, Created: info.Created.UTC().Format(time.RFC3339Nano), Path: api.Path(s.links.path(n)),
			Head: st.Commit, Branches: branchList(info.Branches), Tags: tagList(info.Tags), Subdots: subdots(st.Subdots),
			Upstreams: []api.Upstream{}, Cache: s.branches.cacheOf(info.Cache).String(),
		}
		origin, err := s.dots.Origin(ctx, n)
		if err != nil {
			return err
		}
		if origin != nil {
			r.Lazy = origin.Remote + ":" + origin.Name
		}
		for _, u := range info.Upstreams {
			r.Upstreams = append(r.Upstreams, api.Upstream{Remote: u.Remote, Name: u.Name})
		}
		uses, note := s.usesFor(ctx, n)
		r.Note = note
		s.fillContainers(uses, r.Subdots, &r.Containers)
		r.AutoCommit, err = s.autoOf(ctx, n)
		return err
	})
	return r, err
}

// deleteDot deletes a dot that nobody uses.
func (s *server) deleteDot(ctx context.Context, req api.DotRequest) (api.Empty, error) {
	n, err := dotName(req.Dot)
	if err != nil {
		return api.Empty{}, err
	}
	return api.Empty{}, s.withDotAlone(ctx, n, func() error {
		if err := s.unboundOrConflict(func(m *bound) bool { return m.ofDot(key(n)) }); err != nil {
			return err
		}
		if err := s.unusedOrConflict(ctx, "dot "+n.DotName(), ofDot(n)); err != nil {
			return err
		}
		if err := s.dots.Delete(ctx, n); err != nil {
			s.showAgain(ctx, n)
			return err
		}
		s.faults.changed()
		return errors.Join(s.links.removeDot(n), s.volumes.removeDot(key(n)))
	})
}

// showAgain mounts the current branch of a dot of which something could not be deleted.
func (s *server) showAgain(ctx context.Context, n dot.Name) {
	if _, err := s.showCurrent(context.WithoutCancel(ctx), n); err != nil && errs.KindOf(err) != errs.NotFound {
		s.log.Error("mount again what could not be deleted", "dot", n, "err", err)
	}
}

// unboundOrConflict refuses while users have mounted what is to go.
func (s *server) unboundOrConflict(uses func(*bound) bool) error {
	if used := s.binds.list(uses); len(used) > 0 {
		return errs.WithHint(errs.New(errs.Conflict, "%s is mounted at %s", used[0].what(), used[0].Dir),
			"take it away with 'dm umount %s'", used[0].Dir)
	}
	return nil
}

func (s *server) renameDot(ctx context.Context, req api.RenameDotRequest) (r api.DotResult, err error) {
	from, err := dotName(req.Dot)
	if err != nil {
		return r, err
	}
	to, err := dotName(req.To)
	if err != nil {
		return r, err
	}
	err = s.withDotsAlone(ctx, from, to, func() error {
		// A container that binds a path with the old name in it would not find it when it starts again.
		if err := s.unusedOrConflict(ctx, "dot "+from.DotName(), ofDot(from)); err != nil {
			return err
		}
		if err := s.dots.Rename(ctx, from, to); err != nil {
			return err
		}
		if err := s.links.removeDot(from); err != nil {
			return err
		}
		if err := errors.Join(s.binds.rename(key(from), key(to)), s.volumes.renameDot(key(from), key(to))); err != nil {
			return err
		}
		_, err := s.showCurrent(ctx, to)
		return err
	})
	return api.DotResult{Dot: to.DotName()}, err
}

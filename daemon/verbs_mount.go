package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

// mount shows a dot, subdot or commit at a path, until unmount.
func (s *server) mount(ctx context.Context, req api.MountRequest) (r api.Mount, err error) {
	n, err := dot.ParseName(req.Name)
	if err != nil {
		return r, err
	}
	if err := s.checkTarget(string(req.Dir)); err != nil {
		return r, err
	}
	if req.Create { // nothing is made for a mount that cannot be
		if err := s.checkFree(req.Dir); err != nil {
			return r, err
		}
	}
	if err := s.needDot(ctx, n, req.Create); err != nil {
		return r, err
	}
	unlock, err := s.names.share(ctx, key(n))
	if err != nil {
		return r, err
	}
	defer unlock()
	rec := bindRecord{
		Dir: req.Dir, Name: key(n), Branch: n.Branch, Subdot: n.Subdot, ReadOnly: req.ReadOnly,
	}
	if n.Subdot == dot.RootSubdot {
		rec.Subdot = ""
	}
	switch {
	case req.Revision != "":
		id, _, err := s.dots.Resolve(ctx, n, req.Revision)
		if err != nil {
			return r, err
		}
		// What the revision means today: HEAD of tomorrow is another commit.
		rec.Revision, rec.ReadOnly = id.String(), true
		rec.Asked = req.Revision
	case rec.Subdot != "":
		if err := s.needSubdot(ctx, n, req.Create, "-r"); err != nil {
			return r, err
		}
	}
	if err := s.bind(ctx, rec); err != nil {
		return r, err
	}
	return api.Mount{Dir: rec.Dir, What: rec.what(), ReadOnly: rec.ReadOnly}, nil
}

// checkTarget refuses directories where a mount would be in the server's own way.
func (s *server) checkTarget(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.ContainsRune(dir, 0) {
		return errs.New(errs.Usage, "%q is not an absolute path without '.' and '..'", dir)
	}
	if dir == "/" || dir == s.home.dir || strings.HasPrefix(dir+"/", s.home.dir+"/") {
		return errs.New(errs.Usage, "%s cannot be mounted over: choose a directory outside dm's own", dir)
	}
	if strings.HasPrefix(s.home.dir, dir+"/") { // its socket would be hidden with the rest: nobody could take the mount away
		return errs.New(errs.Usage, "%s cannot be mounted over: dm's state directory %s is in it", dir, s.home.dir)
	}
	return nil
}

// checkFree refuses a directory that is not there, or has a mount already.
func (s *server) checkFree(dir api.Path) error {
	if m := s.binds.at(dir); m != nil {
		return taken(m)
	}
	info, err := os.Stat(string(dir))
	if err != nil {
		return makeDir(errs.New(errs.KindOf(err), "mount at %s: %w", dir, err), dir)
	}
	if !info.IsDir() {
		return errs.New(errs.Usage, "mount at %s: %w", dir, syscall.ENOTDIR)
	}
	return nil
}

// needDot makes the dot if create, and says that it is not there otherwise.
func (s *server) needDot(ctx context.Context, n dot.Name, create bool) error {
	_, err := s.dots.Info(ctx, n)
	if errs.KindOf(err) != errs.NotFound {
		return err
	}
	if !create {
		return errs.WithHint(errs.New(errs.NotFound, "Dot %s does not exist.", n.DotName()), "create it with -r, or with 'dm init'")
	}
	opts := dot.CreateOptions{}
	if n.Subdot != "" && n.Subdot != dot.RootSubdot { // with it or not at all
		opts.Subdots = []string{n.Subdot}
	}
	return s.withDotAlone(ctx, n, func() error { return s.create(ctx, n, opts) })
}

// unmount takes away what mount made.
func (s *server) unmount(ctx context.Context, req api.UnmountRequest) (api.Empty, error) {
	m := s.binds.at(req.Dir)
	if m == nil {
		return api.Empty{}, errs.WithHint(errs.New(errs.NotFound, "%s is not a mount made by 'dm mount'", req.Dir),
			"list them with 'dm mount'")
	}
	n, err := dot.ParseName(m.Name)
	if err != nil {
		return api.Empty{}, err
	}
	return api.Empty{}, s.withDotAlone(ctx, n, func() error {
		if s.binds.at(req.Dir) != m {
			return errs.WithHint(errs.New(errs.Conflict, "%s was changed by another command at the same time", req.Dir), "see 'dm mount', and try again")
		}
		if err := m.unbind(false); err != nil {
			return err
		}
		if err := m.closeLook(ctx, false); err != nil {
			return err
		}
		return s.binds.remove(m)
	})
}

func (s *server) listMounts(context.Context, api.Empty) (api.MountsResult, error) {
	return api.MountsResult{Mounts: s.mounts()}, nil
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/workcopy"
)

// openers is how many working copies a start opens at a time.
const openers = 8

// key is a dot's key in s.names and in mounts.json.
func key(n dot.Name) string { return n.Namespace + "/" + n.Dot }

// mountAll mounts the current branch of each dot and makes again what users had mounted. A dot that is damaged does not
// keep the others from working: it is logged, and whoever uses it is told.
func (s *server) mountAll(ctx context.Context) error {
	names, err := s.dots.Names(ctx)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(openers)
	for _, n := range names {
		group.Go(func() error {
			if _, err := s.showCurrent(ctx, n); err != nil {
				s.log.Error("dot cannot be mounted", "dot", n, "err", err)
				s.hidden.Store(n, err)
			}
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := s.clearLooks(); err != nil {
		return err
	}
	return s.bindAgain(ctx)
}

// bindAgain makes the mounts that mounts.json remembers. It forgets one that cannot be made, but none because the start was
// cut short.
func (s *server) bindAgain(ctx context.Context) error {
	if err := s.binds.load(); err != nil {
		return err
	}
	for _, m := range s.binds.list(func(*bound) bool { return true }) {
		err := s.makeBind(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.log.Error("mount of an earlier server cannot be made again", "mount", m.what(), "dir", m.Dir, "err", errors.Join(err, s.binds.remove(m)))
		}
	}
	return nil
}

// clearLooks empties the scratch space of commits that an earlier server showed.
func (s *server) clearLooks() error {
	left, err := os.ReadDir(s.home.path(lookDir))
	if err != nil {
		return errs.New(errs.KindOf(err), "clear scratch space: %w", err)
	}
	for _, e := range left {
		if err := removeLook(s.home.path(lookDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// showCurrent mounts a dot's current branch if it is not mounted, leads the dot's link there and returns the link's path.
func (s *server) showCurrent(ctx context.Context, n dot.Name) (string, error) {
	n.Branch, n.Subdot = "", ""
	return s.show(ctx, n)
}

// show mounts a branch if it is not mounted, leads the link of n there and returns the link's path.
func (s *server) show(ctx context.Context, n dot.Name) (string, error) {
	id, err := s.ready(ctx, n)
	if err != nil {
		return "", err
	}
	return s.links.path(n), s.links.set(n, id)
}

// ready mounts a branch if it is not mounted, and returns the id of its working copy.
func (s *server) ready(ctx context.Context, n dot.Name) (string, error) {
	wc, err := s.dots.WorkingCopy(ctx, n)
	if err != nil {
		return "", err
	}
	if _, err := s.branches.show(ctx, wc); err != nil {
		return "", fmt.Errorf("mount %s: %w", n, err)
	}
	return wc.ID, nil
}

// bind makes one user's mount and remembers it.
func (s *server) bind(ctx context.Context, r bindRecord) error {
	m := &bound{bindRecord: r}
	if err := s.binds.reserve(m); err != nil {
		return err
	}
	if err := s.makeBind(ctx, m); err != nil {
		return errors.Join(err, s.binds.remove(m))
	}
	return nil
}

// makeBind makes a mount that is remembered.
func (s *server) makeBind(ctx context.Context, m *bound) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, m.closeLook(context.WithoutCancel(ctx), true))
		}
	}()
	source, err := s.bindSource(ctx, m)
	if err != nil {
		return err
	}
	m.at, err = bind(ctx, source, m.Subdot, string(m.Dir), m.ReadOnly, false)
	return makeDir(err, m.Dir)
}

// makeDir says what to do about a directory that is not there.
func makeDir(err error, dir api.Path) error {
	if errs.KindOf(err) == errs.NotFound {
		return errs.WithHint(err, "make the directory first: mkdir %s", dir)
	}
	return err
}

// bindSource returns the directory whose content, or whose subdot, a mount shows.
func (s *server) bindSource(ctx context.Context, m *bound) (string, error) {
	n, err := dot.ParseName(m.Name)
	if err != nil {
		return "", err
	}
	n.Branch = m.Branch
	if m.Revision == "" {
		wc, err := s.dots.WorkingCopy(ctx, n)
		if err != nil {
			return "", err
		}
		return s.branches.show(ctx, wc)
	}
	id, commit, err := s.dots.Resolve(ctx, n, m.Revision)
	if err != nil {
		return "", err
	}
	cfg := workcopy.Config{Source: s.faults, Log: s.log, Files: s.files}
	if m.look, err = openLook(ctx, s.home.path(lookDir), s.store, cfg, id, commit); err != nil {
		return "", err
	}
	return m.look.mountPoint(), nil
}

// rebind leads the mounts of a dot to where it is now, after a checkout or a reset has changed that. All are tried.
func (s *server) rebind(ctx context.Context, n dot.Name) error {
	var all []error
	for _, m := range s.binds.list(func(m *bound) bool { return m.ofDot(key(n)) }) {
		if err := s.rebindOne(ctx, m); err != nil {
			all = append(all, errs.WithHint(fmt.Errorf("mount %s at %s again: %w", m.what(), m.Dir, err),
				"the rest is done; take that mount away with 'dm umount %s'", m.Dir))
		}
	}
	return errors.Join(all...)
}

// rebindOne puts a mount that shows the new state in the place of the old one, or where that has been taken away.
func (s *server) rebindOne(ctx context.Context, m *bound) error {
	source, err := s.bindSource(ctx, m)
	if err != nil {
		return err
	}
	there, err := m.there()
	if err != nil {
		return err
	}
	at, err := bind(ctx, source, m.Subdot, string(m.Dir), m.ReadOnly, there)
	if err == nil {
		m.at = at
	}
	return err
}

// unmountAll takes all mounts away. Without force, what is in use makes it a Conflict that names who uses it.
func (s *server) unmountAll(ctx context.Context, force bool) error {
	if err := s.binds.unbindAll(ctx, force); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, unmountGrace)
	defer cancel()
	var group errgroup.Group
	for _, id := range s.branches.ids() {
		group.Go(func() error {
			err := s.hide(wait, id)
			if err != nil && force {
				s.log.Warn("volume is taken away from who uses it", "err", err)
				// Whoever hangs in an unmount holds the lock that this needs.
				last, cancel := context.WithTimeout(ctx, unmountGrace)
				defer cancel()
				return s.branches.detach(last, id)
			}
			return err
		})
	}
	return group.Wait()
}

// remount undoes an unmountAll that did not come to its end.
func (s *server) remount(ctx context.Context) error {
	var all []error
	for _, m := range s.binds.list(func(*bound) bool { return true }) {
		if err := m.unbind(false); err != nil {
			all = append(all, err) // it is there still
			continue
		}
		all = append(all, m.closeLook(ctx, true), s.makeBind(ctx, m))
	}
	names, err := s.dots.Names(ctx)
	all = append(all, err)
	for _, n := range names {
		_, err := s.showCurrent(ctx, n)
		all = append(all, err)
	}
	return errors.Join(all...)
}

// mounts returns what is mounted for users to see, in order of directory.
func (s *server) mounts() []api.Mount {
	all := s.binds.list(func(*bound) bool { return true })
	list := make([]api.Mount, len(all))
	for i, m := range all {
		list[i] = api.Mount{Dir: m.Dir, What: m.what(), ReadOnly: m.ReadOnly}
	}
	slices.SortFunc(list, func(a, b api.Mount) int { return strings.Compare(string(a.Dir), string(b.Dir)) })
	return list
}

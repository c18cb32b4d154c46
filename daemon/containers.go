package daemon

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

// containerUse is one way in which a container uses a dot: by a volume, or by a directory of the host that dm shows.
type containerUse struct {
	container
	dot    dot.Name // of the dot alone
	branch string   // that it stays on; "": the current one, whichever that is when the container starts
	subdot string   // dot.RootSubdot: all of them
}

// engineWait bounds a question to the engine that an answer to a user waits for.
const engineWait = 5 * time.Second

// running returns the uses of dots by the containers that run or are paused, in order of container. Where no engine answers
// there are none: a container that an engine left running while it restarts is missed, which the log says.
func (s *server) running(ctx context.Context) ([]containerUse, error) {
	ctx, cancel := context.WithTimeout(ctx, engineWait)
	defer cancel()
	all, err := s.engine.list(ctx)
	if errs.KindOf(err) == errs.Unreachable {
		s.log.Debug("containers are not known", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, errs.WithHint(err, "see 'docker ps' and 'dm cluster status'")
	}
	return s.usesOf(ctx, all)
}

// usesOf returns which dots the containers use.
func (s *server) usesOf(ctx context.Context, all []container) ([]containerUse, error) {
	var list []containerUse
	for _, c := range all {
		var own []containerUse
		for _, m := range c.Mounts {
			u, ok, err := s.useOf(ctx, c, m)
			if err != nil {
				return nil, err
			}
			same := func(o containerUse) bool { return o.dot == u.dot && o.branch == u.branch && o.subdot == u.subdot }
			if ok && !slices.ContainsFunc(own, same) {
				own = append(own, u)
			}
		}
		list = append(list, own...)
	}
	return list, nil
}

// useOf says what a container uses by one of its mounts; ok is false if that is nothing of dm.
func (s *server) useOf(ctx context.Context, c container, m containerMount) (u containerUse, ok bool, err error) {
	if m.Volume == "" {
		return s.bindUse(ctx, c, filepath.Clean(m.Source))
	}
	name := s.plugin.name()
	if name == "" || m.Driver != name {
		return u, false, nil
	}
	n, err := s.volumes.meaning(m.Volume)
	if err != nil {
		return u, false, nil // a volume that an earlier server knew: nothing of it is left here
	}
	return useBy(c, n, false), true, nil
}

// useBy is the use of what a name says. A name without a subdot is the default subdot of a volume, and the whole of a path.
func useBy(c container, n dot.Name, path bool) containerUse {
	u := containerUse{container: c, dot: dot.Name{Namespace: n.Namespace, Dot: n.Dot}, branch: n.Branch, subdot: n.Subdot}
	switch {
	case u.subdot == "" && path:
		u.subdot = dot.RootSubdot
	case u.subdot == "":
		u.subdot = dot.DefaultSubdot
	}
	return u
}

// bindUse says what a container uses by a directory of the host: what `dm path` printed, or a directory at or below what
// `dm mount` made. Paths are compared as texts: to follow a link could be to wait for our own mount.
func (s *server) bindUse(ctx context.Context, c container, source string) (u containerUse, ok bool, err error) {
	if shown := s.binds.list(func(m *bound) bool { return inside(string(m.Dir), source) }); len(shown) > 0 {
		// Of mounts in each other it is the innermost.
		m := slices.MaxFunc(shown, func(a, b *bound) int { return len(a.Dir) - len(b.Dir) })
		if m.Revision != "" {
			return u, false, nil
		}
		n, err := dot.ParseName(m.Name)
		if err != nil {
			return u, false, err
		}
		n.Branch, n.Subdot = m.Branch, m.Subdot
		if rest := strings.TrimPrefix(source, string(m.Dir)); n.Subdot == "" && rest != "" {
			n.Subdot, _, _ = strings.Cut(rest[1:], "/")
		}
		return useBy(c, n, true), true, nil
	}
	rest, ok := s.insideMounts(source)
	if !ok {
		return u, false, nil
	}
	first, rest, _ := strings.Cut(rest, "/")
	second, rest, _ := strings.Cut(rest, "/")
	subdot, _, _ := strings.Cut(rest, "/")
	var n dot.Name
	if first == branchesDir {
		if n, ok, err = s.nameOfCopy(ctx, second); err != nil || !ok {
			return u, false, err
		}
	} else {
		name := second
		if first != dot.DefaultNamespace {
			name = first + "/" + second
		}
		if n, err = dot.ParseName(name); err != nil || strings.Contains(second, ".") {
			return u, false, nil // something else in that directory
		}
	}
	n.Subdot = subdot
	return useBy(c, n, true), true, nil
}

// inside says whether path is dir or in it.
func inside(dir, path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// insideMounts returns the part of a path behind mnt/, however the state directory is written.
func (s *server) insideMounts(path string) (rest string, ok bool) {
	for _, home := range []string{s.home.dir, s.cfg.Home} {
		if rest, ok := strings.CutPrefix(path, filepath.Join(home, mountDir)+"/"); ok {
			return rest, true
		}
	}
	return "", false
}

// nameOfCopy says whose working copy it is; its branch is in the name.
func (s *server) nameOfCopy(ctx context.Context, copyID string) (n dot.Name, ok bool, err error) {
	names, err := s.dots.Names(ctx)
	if err != nil {
		return n, false, err
	}
	for _, n := range names {
		info, err := s.dots.Info(ctx, n)
		if errs.KindOf(err) == errs.NotFound {
			continue // deleted just now
		}
		if err != nil {
			return n, false, err
		}
		for _, b := range info.Branches {
			pinned := n
			pinned.Branch = b.Name
			if s.links.get(pinned) == copyID || b.Current && s.links.get(n) == copyID {
				return pinned, true, nil
			}
		}
	}
	return n, false, nil
}

// ofDot returns a filter for the uses of a dot.
func ofDot(n dot.Name) func(containerUse) bool {
	return func(u containerUse) bool { return u.dot.Namespace == n.Namespace && u.dot.Dot == n.Dot }
}

// filterUses returns the uses for which keep is true.
func filterUses(all []containerUse, keep func(containerUse) bool) []containerUse {
	var some []containerUse
	for _, u := range all {
		if keep(u) {
			some = append(some, u)
		}
	}
	return some
}

// containersOf returns the containers of uses, each once, in order of name.
func containersOf(uses []containerUse) []container {
	var list []container
	for _, u := range uses {
		if !slices.ContainsFunc(list, func(c container) bool { return c.ID == u.ID }) {
			list = append(list, u.container)
		}
	}
	slices.SortFunc(list, func(a, b container) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// containerNames returns the names of the containers of uses, each once, in order.
func containerNames(uses []containerUse) []string {
	names := []string{}
	for _, c := range containersOf(uses) {
		names = append(names, c.Name)
	}
	return names
}

// usesSubdot is a filter for the uses of one subdot, be it as a part of the whole.
func usesSubdot(name string) func(containerUse) bool {
	return func(u containerUse) bool { return u.subdot == name || u.subdot == dot.RootSubdot }
}

// onBranch is a filter for the uses of a branch of a dot, by its name or as the current one.
func onBranch(n dot.Name, branch, current string) func(containerUse) bool {
	return func(u containerUse) bool {
		return ofDot(n)(u) && (u.branch == branch || u.branch == "" && branch == current)
	}
}

// fillContainers enters the containers that use a dot into rows about its subdots and its whole.
func (s *server) fillContainers(uses []containerUse, subdots []api.Subdot, total *[]string) {
	for i := range subdots {
		subdots[i].Containers = containerNames(filterUses(uses, usesSubdot(subdots[i].Name)))
	}
	*total = containerNames(uses)
}

// usesFor returns who uses a dot for an answer to a user. That Docker is slow or broken must not keep figures from him: the
// second result says what is wrong then.
func (s *server) usesFor(ctx context.Context, n dot.Name) ([]containerUse, string) {
	all, err := s.running(ctx)
	if err != nil {
		s.log.Warn("containers are not known", "err", err)
		return nil, err.Error()
	}
	return filterUses(all, ofDot(n)), ""
}

// unusedOrConflict refuses while running containers use what is to go.
func (s *server) unusedOrConflict(ctx context.Context, what string, uses func(containerUse) bool) error {
	all, err := s.running(ctx)
	if err != nil {
		return err
	}
	used := containersOf(filterUses(all, uses))
	if len(used) == 0 {
		return nil
	}
	return errs.WithHint(errs.New(errs.Conflict, "%s is in use by %s", what, describe(used)),
		"stop what uses it: docker stop %s", strings.Join(bareNames(used), " "))
}

// describe says which containers are meant: "container /a" or "containers /a, /b".
func describe(list []container) string {
	names := make([]string, len(list))
	for i, c := range list {
		names[i] = c.Name
	}
	if len(names) == 1 {
		return "container " + names[0]
	}
	return "containers " + strings.Join(names, ", ")
}

// bareNames returns the names as Docker's commands take them.
func bareNames(list []container) []string {
	names := make([]string, len(list))
	for i, c := range list {
		names[i] = strings.TrimPrefix(c.Name, "/")
	}
	return names
}

// stale returns the containers that were started before this server was: what they have of dm went with its predecessor.
func (s *server) stale(ctx context.Context) ([]container, error) {
	uses, err := s.running(ctx)
	if err != nil {
		return nil, err
	}
	return s.staleOf(ctx, uses)
}

// staleOf returns those of the containers that use dots.
func (s *server) staleOf(ctx context.Context, uses []containerUse) ([]container, error) {
	ctx, cancel := context.WithTimeout(ctx, engineWait)
	defer cancel()
	var list []container
	for _, c := range containersOf(uses) {
		d, err := s.engine.inspect(ctx, c.ID)
		if errs.KindOf(err) == errs.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		if d.Started.Before(s.started) {
			list = append(list, c)
		}
	}
	return list, nil
}

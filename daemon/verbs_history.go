package daemon

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

func (s *server) commit(ctx context.Context, req api.CommitRequest, out *api.Stream) (r api.CommitResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		c, err := s.commitWith(ctx, n, dot.CommitRequest{
			Message: req.Message, Author: req.Author, Meta: req.Meta, Progress: progress(out, "committing"),
		}, req.NoHooks)
		if err != nil {
			return err
		}
		r = api.CommitResult{
			ID: c.Commit, Branch: c.Branch, Pause: c.PauseMS, Duration: c.DurationMS, Dirty: int64(c.DirtyBytes),
			Read: int64(c.ReadBytes), Stored: int64(c.StoredBytes), Objects: int64(c.NewObjects), Files: int64(c.Files),
		}
		return nil
	})
	return r, err
}

// progress tells the client how far an operation on file content is.
func progress(out *api.Stream, stage string) func(dot.Progress) {
	return func(p dot.Progress) {
		out.Progress(api.Progress{Stage: stage, Done: int64(p.BytesDone), Total: int64(p.BytesTotal), Bytes: true})
	}
}

func (s *server) logOf(ctx context.Context, req api.LogRequest, out *api.Stream) (api.Empty, error) {
	return api.Empty{}, s.withDot(req.Dot, func(n dot.Name) error {
		commits, err := s.dots.Log(ctx, n, req.Revision, req.Limit)
		if err != nil {
			return err
		}
		tags, err := s.tagsByCommit(ctx, n)
		if err != nil {
			return err
		}
		for _, c := range commits {
			if err := out.Item(commitOf(c, tags)); err != nil {
				return err
			}
		}
		return nil
	})
}

func commitOf(c dot.CommitInfo, tags map[string][]string) api.Commit {
	return api.Commit{
		ID: c.ID, Parents: c.Parents, Author: c.Author, Time: c.Time, Message: c.Message, Meta: c.Meta, System: c.System,
		Tags: tags[c.ID],
	}
}

func (s *server) tagsByCommit(ctx context.Context, n dot.Name) (map[string][]string, error) {
	tags, err := s.dots.Tags(ctx, n)
	if err != nil {
		return nil, err
	}
	byCommit := map[string][]string{}
	for _, t := range tags {
		byCommit[t.Commit] = append(byCommit[t.Commit], t.Name)
	}
	return byCommit, nil
}

func (s *server) showCommit(ctx context.Context, req api.RevisionRequest) (r api.ShowResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		c, err := s.dots.Show(ctx, n, req.Revision)
		if err != nil {
			return err
		}
		tags, err := s.tagsByCommit(ctx, n)
		if err != nil {
			return err
		}
		r = api.ShowResult{Commit: commitOf(c.CommitInfo, tags), Subdots: []api.SubdotChanges{}}
		for _, sub := range c.Subdots {
			r.Subdots = append(r.Subdots, api.SubdotChanges{
				Name: sub.Name, Added: int64(sub.Added), Modified: int64(sub.Modified), Removed: int64(sub.Removed),
				Renamed: int64(sub.Renamed), Bytes: int64(sub.Bytes),
			})
		}
		return nil
	})
	return r, err
}

func (s *server) diff(ctx context.Context, req api.DiffRequest, out *api.Stream) (api.Empty, error) {
	return api.Empty{}, s.withDot(req.Dot, func(n dot.Name) error {
		changes, err := s.dots.Diff(ctx, n, req.From, req.To)
		if err != nil {
			return err
		}
		for _, c := range changes {
			change := api.Change{Kind: string(c.Kind), Path: api.Path(c.Path), Old: api.Path(c.OldPath), Bytes: int64(c.Bytes)}
			if err := out.Item(change); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *server) cat(ctx context.Context, req api.CatRequest, out *api.Bytes) error {
	return s.withDot(req.Dot, func(n dot.Name) error {
		return s.dots.Cat(ctx, n, req.Revision, string(req.Path), out)
	})
}

func (s *server) export(ctx context.Context, req api.ExportRequest, out *api.Bytes) error {
	return s.withDot(req.Dot, func(n dot.Name) error {
		r, err := s.dots.Export(ctx, n, req.Revision, req.Subdot, out)
		out.Result(api.ExportResult{Sockets: int64(r.Sockets)})
		return err
	})
}

func (s *server) importDir(ctx context.Context, req api.ImportRequest, out *api.Stream) (r api.ImportResult, err error) {
	n, err := dot.ParseName(req.Name)
	if err != nil {
		return r, err
	}
	dir := string(req.Dir)
	if req.Volume != "" {
		if dir, err = s.volumeToImport(ctx, req.Volume); err != nil {
			return r, err
		}
	}
	if err := s.checkSource(ctx, n, dir); err != nil {
		return r, err
	}
	res, err := s.dots.Import(ctx, n, dir, progress(out, "importing"))
	if err != nil {
		return r, err
	}
	return api.ImportResult{Files: int64(res.Files), Bytes: int64(res.Bytes)}, nil
}

// checkSource refuses to import what the import itself makes larger: the state directory or a directory that it is in, and
// the dot's own files with the subdot among them. Another subdot of the same dot is fine.
func (s *server) checkSource(ctx context.Context, n dot.Name, dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil //nolint:nilerr // the import says what is wrong with it
	}
	wc, err := s.dots.WorkingCopy(ctx, n)
	if err != nil {
		return err
	}
	shown := filepath.Join(s.branches.dir, wc.ID)
	own := strings.HasPrefix(real+"/", s.home.dir+"/") && !strings.HasPrefix(real, s.branches.dir+"/")
	if own || real == "/" || strings.HasPrefix(shown+"/", real+"/") {
		return errs.WithHint(errs.New(errs.Usage, "import %s: what is imported would be in it", dir),
			"name a directory outside dm's own, or what 'dm path' prints for a subdot")
	}
	return nil
}

func (s *server) listBranches(ctx context.Context, req api.DotRequest) (r api.BranchesResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		all, err := s.dots.Branches(ctx, n)
		if err != nil {
			return err
		}
		r.Branches = branchList(all)
		for _, b := range all {
			if b.Current {
				r.Current = b.Name
			}
		}
		return nil
	})
	return r, err
}

func branchList(all []dot.Branch) []api.Branch {
	list := make([]api.Branch, len(all))
	for i, b := range all {
		list[i] = api.Branch{Name: b.Name, Head: b.Commit}
	}
	return list
}

func (s *server) deleteBranch(ctx context.Context, req api.BranchRequest) (api.Empty, error) {
	n, err := branchName(req.Dot)
	if err != nil {
		return api.Empty{}, err
	}
	return api.Empty{}, s.withDotAlone(ctx, n, func() error {
		err := s.unboundOrConflict(func(m *bound) bool { return m.ofDot(key(n)) && m.Branch == req.Branch })
		if err != nil {
			return err
		}
		used := func(u containerUse) bool { return ofDot(n)(u) && u.branch == req.Branch }
		if err := s.unusedOrConflict(ctx, "branch "+req.Branch, used); err != nil {
			return err
		}
		if err := s.dots.DeleteBranch(ctx, n, req.Branch); err != nil {
			// It may have been unmounted before it turned out that it must stay.
			s.showAgain(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot})
			return err
		}
		n.Branch = req.Branch
		return s.links.remove(n)
	})
}

// checkout switches what a dot's path, its mounts and its containers show. If the branch cannot be mounted, the old one stays.
func (s *server) checkout(ctx context.Context, req api.CheckoutRequest) (r api.CheckoutResult, err error) {
	n, err := branchName(req.Dot)
	if err != nil {
		return r, err
	}
	n.Branch = ""
	// Nothing is stopped for what cannot be done.
	if err := s.dots.MayCheckout(ctx, n, req.Branch, req.Create); err != nil {
		return r, err
	}
	r.Branch = req.Branch
	r.Restarted, err = s.swapped(ctx, swap{
		dot: n, what: "checkout", noRestart: req.NoRestart,
		affects: func(ctx context.Context) (func(containerUse) bool, error) {
			info, err := s.dots.Info(ctx, n)
			return func(u containerUse) bool { return info.Branch != req.Branch && ofDot(n)(u) && u.branch == "" }, err
		},
		change: func(ctx context.Context, _ bool) error {
			info, err := s.dots.Info(ctx, n)
			if err != nil {
				return err
			}
			var users []string
			if info.Branch != req.Branch { // before mounts follow: what a process has of one that is gone cannot be told
				users = s.users(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot, Branch: info.Branch})
			}
			if r.Head, err = s.switchBranch(ctx, n, req); err == nil && info.Branch != req.Branch {
				r.From, r.Users = info.Branch, users
			}
			return err
		},
	})
	return r, err
}

// switchBranch is the checkout itself; the caller holds the dot's name alone. It returns where the branch is. The branch has
// its working copy, and is mounted, before the dot is on it: a disk without room for these leaves all as it was.
func (s *server) switchBranch(ctx context.Context, n dot.Name, req api.CheckoutRequest) (head string, err error) {
	before, err := s.dots.Info(ctx, n)
	if err != nil {
		return "", err
	}
	if req.Create {
		if err := s.dots.CreateBranch(ctx, n, req.Branch); err != nil {
			return "", err
		}
	}
	// From here on it happens wholly, whether or not the client waits.
	ctx = context.WithoutCancel(ctx)
	_, err = s.ready(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot, Branch: req.Branch})
	if err == nil {
		err = s.dots.Checkout(ctx, n, req.Branch)
	}
	if err != nil {
		return "", s.checkoutBack(ctx, n, "", req, err)
	}
	if _, err := s.showCurrent(ctx, n); err != nil {
		return "", s.checkoutBack(ctx, n, before.Branch, req, err)
	}
	if head, err = s.head(ctx, n); err != nil {
		return "", err
	}
	return head, s.rebind(ctx, n)
}

// checkoutBack undoes a checkout that failed with cause. back is the branch that the dot is to be on again; "": it still is.
func (s *server) checkoutBack(ctx context.Context, n dot.Name, back string, req api.CheckoutRequest, cause error) error {
	if back != "" {
		if err := s.withSpare(func() error { return s.dots.Checkout(ctx, n, back) }); err != nil {
			s.log.Error("undo a checkout", "dot", n, "err", err)
			return fmt.Errorf("%w (and the dot stays on branch %s: %w)", cause, req.Branch, err)
		}
	}
	if req.Create {
		if err := s.withSpare(func() error { return s.dots.DeleteBranch(ctx, n, req.Branch) }); err != nil {
			s.log.Error("undo a checkout", "dot", n, "err", err)
			return fmt.Errorf("%w (and the new branch %s stays: %w)", cause, req.Branch, err)
		}
	}
	return cause
}

// head returns the commit a dot's current branch is at, "" if there is none.
func (s *server) head(ctx context.Context, n dot.Name) (string, error) {
	all, err := s.dots.Branches(ctx, n)
	for _, b := range all {
		if b.Current {
			return b.Commit, err
		}
	}
	return "", err
}

// reset takes a branch back to a commit, below its containers. Whether there is something to lose is asked before they are
// stopped: what a service writes as it ends is nothing that its user did.
func (s *server) reset(ctx context.Context, req api.ResetRequest) (r api.ResetResult, err error) {
	n, err := branchName(req.Dot)
	if err != nil {
		return r, err
	}
	if err := s.dots.MayReset(ctx, n, req.Revision, req.Hard); err != nil {
		return r, err
	}
	r.Restarted, err = s.swapped(ctx, swap{
		dot: dot.Name{Namespace: n.Namespace, Dot: n.Dot}, what: "reset", noRestart: req.NoRestart,
		affects: func(ctx context.Context) (func(containerUse) bool, error) { return s.branchUses(ctx, n) },
		change: func(ctx context.Context, stopped bool) error {
			r.Users = s.users(ctx, n) // before containers run again, which have nothing open from before
			res, err := s.dots.Reset(ctx, n, req.Revision, req.Hard || stopped)
			if err != nil {
				return err
			}
			r.Head, r.Dropped = res.To, int64(res.Discarded)
			return s.rebind(context.WithoutCancel(ctx), n)
		},
	})
	return r, err
}

// branchUses returns a filter for the uses of the branch that n means, the current one where it names none.
func (s *server) branchUses(ctx context.Context, n dot.Name) (func(containerUse) bool, error) {
	info, err := s.dots.Info(ctx, n)
	if err != nil {
		return nil, err
	}
	branch := n.Branch
	if branch == "" {
		branch = info.Branch
	}
	return onBranch(n, branch, info.Branch), nil
}

// restore brings committed paths back, below the containers that use their subdots.
func (s *server) restore(ctx context.Context, req api.RestoreRequest) (r api.RestoreResult, err error) {
	n, err := branchName(req.Dot)
	if err != nil {
		return r, err
	}
	paths := make([]string, len(req.Paths))
	for i, p := range req.Paths {
		paths[i] = string(p)
	}
	// Nothing is stopped, and no path restored, for what cannot be done.
	if err := s.dots.MayRestore(ctx, n, req.Revision, paths); err != nil {
		return r, err
	}
	r.Restarted, err = s.swapped(ctx, swap{
		dot: dot.Name{Namespace: n.Namespace, Dot: n.Dot}, what: "restore", noRestart: req.NoRestart,
		affects: func(ctx context.Context) (func(containerUse) bool, error) {
			uses, err := s.branchUses(ctx, n)
			return func(u containerUse) bool { return uses(u) && usesPaths(u, req.Paths) }, err
		},
		change: func(ctx context.Context, _ bool) error {
			for _, p := range paths {
				if err := s.dots.Restore(ctx, n, req.Revision, p); err != nil {
					return err
				}
			}
			return s.rebind(context.WithoutCancel(ctx), n)
		},
	})
	return r, err
}

// usesPaths says whether a container sees one of the paths, which begin with a subdot.
func usesPaths(u containerUse, paths []api.Path) bool {
	for _, p := range paths {
		subdot, _, _ := strings.Cut(strings.Trim(path.Clean("/"+string(p)), "/"), "/")
		if subdot == "" || usesSubdot(subdot)(u) {
			return true
		}
	}
	return false
}

func (s *server) listTags(ctx context.Context, req api.DotRequest) (r api.TagsResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		all, err := s.dots.Tags(ctx, n)
		r.Tags = tagList(all)
		return err
	})
	return r, err
}

func tagList(all []dot.Tag) []api.Tag {
	list := make([]api.Tag, len(all))
	for i, t := range all {
		list[i] = api.Tag{Name: t.Name, Commit: t.Commit}
	}
	return list
}

func (s *server) tag(ctx context.Context, req api.TagRequest) (r api.Tag, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		t, err := s.dots.CreateTag(ctx, n, req.Name, req.Revision)
		if err != nil {
			return err
		}
		r = api.Tag{Name: t.Name, Commit: t.Commit}
		return nil
	})
	return r, err
}

func (s *server) deleteTag(ctx context.Context, req api.TagRequest) (api.Empty, error) {
	return api.Empty{}, s.withDot(req.Dot, func(n dot.Name) error {
		return s.dots.DeleteTag(ctx, n, req.Name)
	})
}

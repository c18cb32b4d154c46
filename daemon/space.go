package daemon

import (
	"context"
	"syscall"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/store"
)

// Bounds of the reserve that a server chooses by itself, in bytes.
const (
	leastReserve = 64 << 20
	mostReserve  = 1 << 30
)

// reserve returns how many bytes stay free on the disk of the store: commits are refused before a full disk breaks them, and
// working copies can still be written to and cleaned up. It is what was asked for, or a hundredth of the disk within bounds.
func (c Config) reserve(dir string) (int64, error) {
	if c.Reserve > 0 {
		return c.Reserve, nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, errs.New(errs.KindOf(err), "measure the disk of the state directory: %w", err)
	}
	return min(max(int64(st.Blocks)*st.Bsize/100, leastReserve), mostReserve), nil
}

func keepRule(k api.KeepRule) dot.KeepRule { return dot.KeepRule(k) }

func (s *server) prune(ctx context.Context, req api.PruneRequest, out *api.Stream) (r api.PruneResult, err error) {
	err = s.withDot(req.Dot, func(n dot.Name) error {
		res, err := s.dots.Prune(ctx, n, dot.PruneRequest{Keep: keepRule(req.Keep), All: req.All, DryRun: req.DryRun})
		if err != nil {
			return err
		}
		r = api.PruneResult{
			Branches: res.Branches, Pruned: prunedList(res.Pruned), Kept: prunedList(res.Kept), Freed: res.Bytes, DryRun: req.DryRun,
		}
		if req.DryRun || len(res.Pruned) == 0 {
			return nil
		}
		stats, err := s.store.GC(ctx, store.GCOptions{Progress: storeProgress(out)})
		r.Freed, r.NoRoom = stats.BytesFreed, stats.NoRoom
		return err
	})
	return r, err
}

func prunedList(all []dot.PrunedCommit) []api.PrunedCommit {
	list := make([]api.PrunedCommit, len(all))
	for i, c := range all {
		list[i] = api.PrunedCommit{ID: c.ID, Time: c.Time, Message: c.Message, Why: c.Why}
	}
	return list
}

func (s *server) usage(ctx context.Context, req api.UsageRequest) (r api.UsageResult, err error) {
	only := ""
	if req.Dot != "" {
		n, err := dotName(req.Dot)
		if err != nil {
			return r, err
		}
		if _, err := s.dots.Info(ctx, n); err != nil {
			return r, err
		}
		only = n.DotName()
	}
	r.Dots = []api.DotUsage{}
	all, err := s.dots.Usage(ctx)
	for _, u := range all {
		if only == "" || u.Name == only {
			r.Dots = append(r.Dots, dotUsage(u))
		}
	}
	return r, err
}

func dotUsage(u dot.Usage) api.DotUsage {
	d := api.DotUsage{
		Name: u.Name, Space: space(u.Space), Pruned: u.Pruned, Local: int64(u.Local), Branches: []api.BranchUsage{},
		Tagged: commitUsages(u.Tagged),
	}
	for _, b := range u.Branches {
		d.Branches = append(d.Branches, api.BranchUsage{Name: b.Name, Space: space(b.Space), Commits: commitUsages(b.Commits)})
	}
	return d
}

func commitUsages(all []dot.CommitUsage) []api.CommitUsage {
	list := make([]api.CommitUsage, len(all))
	for i, c := range all {
		list[i] = api.CommitUsage{ID: c.ID, Time: c.Time, Message: c.Message, Space: space(c.Space)}
	}
	return list
}

func space(s dot.Space) api.Space {
	return api.Space{Logical: int64(s.Logical), Stored: s.Stored, Alone: s.Alone, Shared: s.Stored - s.Alone}
}

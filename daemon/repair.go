package daemon

import (
	"context"
	"slices"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store"
)

// repairRounds bounds how often a repair looks again: what is missing below an object shows only when that is there, and trees
// are not deeper than this.
const repairRounds = 64

// repairFrom checks the store and puts what is damaged aside, then fetches that, and what is missing, from where the dots have
// their counterparts. It returns the last report and how many objects were fetched.
func (s *server) repairFrom(ctx context.Context, req api.FsckRequest, progress func(string, int64, int64)) (*store.Report, int64, error) {
	report, err := s.store.Fsck(ctx, store.FsckOptions{Quick: req.Quick, Repair: true, Progress: progress})
	if err != nil {
		return report, 0, err
	}
	aside, recovered := report.PutAside, report.Recovered
	fetched := int64(0)
	tried := map[object.ID]bool{}
	for round := 0; round < repairRounds && !report.OK(); round++ {
		var wants []remote.Want
		for _, p := range report.Problems {
			if kind := kindNamed(p.Kind); kind.Valid() && !tried[p.Object] {
				tried[p.Object] = true
				wants = append(wants, remote.Want{Kind: kind, ID: p.Object})
			}
		}
		if len(wants) == 0 {
			break
		}
		progress("fetch", fetched, 0)
		n, err := s.fetchFrom(ctx, *req.RepairFrom, wants)
		if fetched += n; err != nil {
			return report, fetched, err
		}
		if report, err = s.store.Fsck(ctx, store.FsckOptions{Quick: true, Progress: progress}); err != nil {
			return report, fetched, err
		}
	}
	report.PutAside, report.Recovered = aside, recovered
	return report, fetched, nil
}

func kindNamed(name string) object.Kind {
	for k := object.KindChunk; k.Valid(); k++ {
		if k.String() == name {
			return k
		}
	}
	return 0
}

// fetchFrom fetches objects from the counterparts of all dots at a remote, as far as those have them.
func (s *server) fetchFrom(ctx context.Context, rem api.Remote, wants []remote.Want) (fetched int64, err error) {
	r, done, err := s.remotes.get(rem)
	if err != nil {
		return 0, err
	}
	defer done()
	names, err := s.dots.Names(ctx)
	if err != nil {
		return 0, err
	}
	asked := map[string]bool{}
	for _, n := range names {
		u, _, err := s.counterpart(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot}, rem, "")
		if err != nil {
			return fetched, err
		}
		if asked[u.Name] || len(wants) == 0 {
			continue
		}
		asked[u.Name] = true
		d, err := r.Dot(u.Name)
		if err != nil {
			return fetched, err
		}
		there, rest, err := divide(ctx, d, wants)
		if errs.KindOf(err) == errs.NotFound || errs.KindOf(err) == errs.NotAllowed {
			continue // the dot has no counterpart there
		}
		if err != nil {
			return fetched, err
		}
		if len(there) > 0 {
			st, err := remote.FetchObjects(ctx, s.local(), d, there)
			if fetched += st.Objects; err != nil {
				return fetched, err
			}
		}
		wants = rest
	}
	return fetched, nil
}

// divide says which objects a remote has, commits last, as they are to be stored.
func divide(ctx context.Context, d remote.Dot, wants []remote.Want) (there, rest []remote.Want, err error) {
	slices.SortStableFunc(wants, func(a, b remote.Want) int { return int(a.Kind) - int(b.Kind) })
	for part := range slices.Chunk(wants, remote.MaxBatch) {
		ids := make([]object.ID, len(part))
		for i, w := range part {
			ids[i] = w.ID
		}
		missing, err := d.Missing(ctx, ids)
		if err != nil {
			return nil, nil, err
		}
		gone := make(map[object.ID]bool, len(missing))
		for _, id := range missing {
			gone[id] = true
		}
		for _, w := range part {
			if gone[w.ID] {
				rest = append(rest, w)
			} else {
				there = append(there, w)
			}
		}
	}
	return there, rest, nil
}

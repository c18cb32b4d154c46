package dot

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"dm/object"
	"dm/store"
)

// Space is what something holds. Stored counts each object once, as it is in the packs: compressed, or as a delta.
type Space struct {
	Logical uint64 `json:"logical"` // bytes of files, by their sizes; of several commits the sum
	Stored  int64  `json:"stored"`  // bytes in the store of all that it needs
	Alone   int64  `json:"alone"`   // of these, what nothing else of its kind needs: freed without it
}

// CommitUsage is the space of one commit, compared with all other commits.
type CommitUsage struct {
	CommitInfo
	Space
}

// BranchUsage is the space of a branch with all its commits, compared with all other branches.
type BranchUsage struct {
	Name string `json:"name"`
	Space
	Commits []CommitUsage `json:"commits"` // the newest first; pruned ones have no content and are left out
}

// Usage is the space of a dot, compared with all other dots.
type Usage struct {
	Name string `json:"name"`
	Space
	Pruned   int           `json:"pruned"` // commits
	Local    uint64        `json:"local"`  // bytes of the working copies on disk, outside of the store
	Branches []BranchUsage `json:"branches"`
	// Tagged are commits that only tags lead to.
	Tagged []CommitUsage `json:"tagged"`
}

// Usage measures the space of all dots.
func (d *Dots) Usage(ctx context.Context) ([]Usage, error) {
	names, err := d.Names(ctx)
	if err != nil {
		return nil, err
	}
	m := &measure{d: d, logical: map[object.ID]CommitInfo{}}
	list := make([]Usage, 0, len(names))
	for _, n := range names {
		u, err := m.dot(ctx, n)
		if isNotFound(err) {
			continue // deleted just now
		}
		if err != nil {
			return nil, err
		}
		list = append(list, *u)
	}
	return list, m.fill(ctx, list)
}

// measure is one run of Usage.
type measure struct {
	d       *Dots
	logical map[object.ID]CommitInfo // every commit met
}

// dot lists a dot's branches and commits, without figures of the store.
func (m *measure) dot(ctx context.Context, n Name) (*Usage, error) {
	u := &Usage{Name: n.DotName(), Branches: []BranchUsage{}, Tagged: []CommitUsage{}}
	var branches []branchState
	var tags []object.ID
	err := m.d.store.View(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		for _, id := range tx.Refs(tagPrefix(r.ID)) {
			tags = append(tags, id)
		}
		branches, err = branchesOf(tx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	met := map[object.ID]bool{}
	for _, b := range branches {
		bu := BranchUsage{Name: b.name}
		if bu.Commits, err = m.commits(ctx, []object.ID{b.tip}, met, false); err != nil {
			return nil, err
		}
		for _, c := range bu.Commits {
			bu.Logical += c.Logical
		}
		u.Branches = append(u.Branches, bu)
		if b.rec.Ready {
			local, err := m.local(ctx, n, b.name)
			if err != nil {
				return nil, err
			}
			u.Local += local
		}
	}
	if u.Tagged, err = m.commits(ctx, tags, met, true); err != nil {
		return nil, err
	}
	for id := range met {
		u.Logical += m.logical[id].Size
	}
	u.Pruned, err = m.pruned(ctx, met)
	return u, err
}

// local returns what a branch's working copy takes.
func (m *measure) local(ctx context.Context, n Name, branch string) (uint64, error) {
	n.Branch = branch
	use, err := m.d.view(ctx, n)
	if isNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer use.done()
	return use.Copy.LocalBytes(ctx)
}

// commits returns the commits that lead to tips, and notes them as met. With new it leaves out those met before.
func (m *measure) commits(ctx context.Context, tips []object.ID, met map[object.ID]bool, new bool) ([]CommitUsage, error) {
	list := []CommitUsage{}
	err := m.d.ancestors(ctx, tips, func(id object.ID, c *object.Commit) error {
		info, ok := m.logical[id]
		if !ok {
			var err error
			if info, err = m.d.info(ctx, id, c); err != nil {
				return err
			}
			m.logical[id] = info
		}
		if !new || !met[id] {
			list = append(list, CommitUsage{CommitInfo: info, Space: Space{Logical: info.Size}})
		}
		met[id] = true
		return nil
	})
	slices.SortStableFunc(list, func(x, y CommitUsage) int { return cmp.Or(y.Time.Compare(x.Time), cmp.Compare(x.ID, y.ID)) })
	return list, err
}

// pruned counts the commits that lead to those of a history and are none of it.
func (m *measure) pruned(ctx context.Context, history map[object.ID]bool) (n int, err error) {
	err = m.d.records(ctx, slices.Collect(maps.Keys(history)), func(id object.ID, _ *object.Commit) error {
		if !history[id] {
			n++
		}
		return nil
	})
	return n, err
}

// fill adds the figures of the store.
func (m *measure) fill(ctx context.Context, dots []Usage) error {
	var commits []object.ID
	for id := range m.logical {
		commits = append(commits, id)
	}
	g, err := m.d.newGraph(ctx, commits)
	if err != nil {
		return err
	}
	// Three times who holds what: by dot, by branch, by commit.
	var dotSets, branchSets, commitSets [][]object.ID
	place := map[object.ID]int{}
	ids := func(list []CommitUsage) (set []object.ID) {
		for _, c := range list {
			id, _ := object.ParseID(c.ID) // written by String
			set = append(set, id)
			if _, ok := place[id]; !ok {
				place[id] = len(commitSets)
				commitSets = append(commitSets, []object.ID{id})
			}
		}
		return set
	}
	for _, u := range dots {
		tagged := ids(u.Tagged)
		whole := slices.Clone(tagged)
		for _, b := range u.Branches {
			set := ids(b.Commits)
			branchSets = append(branchSets, set)
			whole = append(whole, set...)
		}
		// What only tags lead to counts as one more branch.
		branchSets = append(branchSets, tagged)
		dotSets = append(dotSets, whole)
	}
	byDot, byBranch, byCommit := g.hold(dotSets), g.hold(branchSets), g.hold(commitSets)
	aloneDot, aloneBranch, aloneCommit := byDot.alone(), byBranch.alone(), byCommit.alone()
	put := func(list []CommitUsage) {
		for i := range list {
			id, _ := object.ParseID(list[i].ID)
			list[i].Stored, list[i].Alone = byCommit.total[place[id]], aloneCommit[place[id]]
		}
	}
	n := 0
	for i := range dots {
		u := &dots[i]
		u.Stored, u.Alone = byDot.total[i], aloneDot[i]
		put(u.Tagged)
		for k := range u.Branches {
			b := &u.Branches[k]
			b.Stored, b.Alone = byBranch.total[n], aloneBranch[n]
			put(b.Commits)
			n++
		}
		n++
	}
	return nil
}

// onlyIn returns the stored bytes of what commits need and nothing that refs lead to does.
func (d *Dots) onlyIn(ctx context.Context, commits []object.ID, refs map[string]object.ID) (int64, error) {
	gone := make(map[object.ID]bool, len(commits))
	for _, id := range commits {
		gone[id] = true
	}
	var kept []object.ID
	err := d.ancestors(ctx, slices.Collect(maps.Values(refs)), func(id object.ID, _ *object.Commit) error {
		if !gone[id] {
			kept = append(kept, id)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	g, err := d.newGraph(ctx, append(slices.Clone(commits), kept...))
	if err != nil {
		return 0, err
	}
	h := g.hold([][]object.ID{commits, kept})
	for _, id := range commits { // their records stay
		if i, ok := g.ids[id]; ok {
			h.count[i] = 0
		}
	}
	return h.alone()[0], nil
}

package dot

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// PruneRequest says how the commits of a branch are thinned out.
type PruneRequest struct {
	Keep   KeepRule
	All    bool // all branches of the dot, each by the rule
	DryRun bool // only say what would be done
	// OnlyAuto leaves alone what users have committed: the rule is about automatic commits.
	OnlyAuto bool
}

// PruneResult says what a prune did. Space comes back with the next gc.
type PruneResult struct {
	Branches []string       `json:"branches"`
	Pruned   []PrunedCommit `json:"pruned"` // the newest first
	Kept     []PrunedCommit `json:"kept"`
	// Bytes in the store of what only pruned commits need; of a dry run only, as gc says what it freed.
	Bytes int64 `json:"bytes"`
}

// PrunedCommit is a commit that a prune looked at.
type PrunedCommit struct {
	CommitInfo
	Why []string `json:"why,omitempty"` // it stays: parts of the rule, "tip", "tag NAME", "branch NAME" or "by hand"
}

// Prune gives up the content of those commits of a branch that the rule does not keep. Their records stay, so that no id and
// no parent of any commit changes and a branch that was pushed before is still the same; they are left out of the history
// that users see, and to a store that is asked for them they are missing. What a tag or another branch has is kept, the
// tips of branches always. The dry run's figures are those of a run at that moment.
func (d *Dots) Prune(ctx context.Context, n Name, req PruneRequest) (*PruneResult, error) {
	if err := req.Keep.Check(); err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		res, err := d.pruneOnce(ctx, n, req)
		if errors.Is(err, errRefsMoved) && try < pruneTries {
			continue
		}
		return res, err
	}
}

// pruneTries is how often a prune begins again because branches or tags have moved while it looked at them.
const pruneTries = 5

var errRefsMoved = errs.WithHint(errs.New(errs.Conflict, "branches or tags have moved while their commits were looked at"), "try again")

func (d *Dots) pruneOnce(ctx context.Context, n Name, req PruneRequest) (*PruneResult, error) {
	p, unlock, err := d.plan(ctx, n, req)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if req.DryRun && len(p.drop) > 0 {
		p.res.Bytes, err = d.onlyIn(ctx, p.drop, p.refs)
	}
	if err != nil || req.DryRun || len(p.drop) == 0 {
		return p.res, err
	}
	return p.res, d.store.Update(func(tx *store.Tx) error {
		if err := d.checkRefs(ctx, tx, p); err != nil {
			return err
		}
		if err := tx.Prune(p.drop...); err != nil {
			return err
		}
		for i, b := range p.branches {
			rec := b.rec
			if ok, err := getJSON(tx, b.key(), &rec); err != nil || !ok {
				return errors.Join(err, ctx.Err())
			}
			rec.Count, rec.CountOf = p.counts[i], hexOrEmpty(b.tip)
			if err := setJSON(tx, b.key(), &rec); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkRefs says whether refs are still where the plan saw them. A branch that is no part of it may have gone on.
func (d *Dots) checkRefs(ctx context.Context, tx *store.Tx, p *prunePlan) error {
	own := map[string]bool{}
	for _, b := range p.branches {
		own[b.ref()] = true
	}
	for ref, now := range tx.Refs("") {
		was, ok := p.refs[ref]
		if now == was {
			continue
		}
		for n := 0; ok && !own[ref] && now != was; n++ {
			c, err := d.commit(ctx, now)
			if err != nil {
				return err
			}
			if n == maxForward || len(c.Parents) != 1 {
				break
			}
			now = c.Parents[0]
		}
		if now != was || !ok {
			return errRefsMoved
		}
	}
	return nil
}

// maxForward is how many commits another branch may have got while a prune looked at it.
const maxForward = 100

// prunePlan is what a prune is about to do, by the refs that it saw.
type prunePlan struct {
	res      *PruneResult
	refs     map[string]object.ID
	branches []branchState
	counts   []uint64 // of the commits that each branch keeps
	drop     []object.ID
}

// plan decides what goes. Until unlock is called no commit is made on the branches concerned.
func (d *Dots) plan(ctx context.Context, n Name, req PruneRequest) (_ *prunePlan, unlock func(), err error) {
	b, err := d.branch(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	p := &prunePlan{res: &PruneResult{Branches: []string{}, Pruned: []PrunedCommit{}, Kept: []PrunedCommit{}}}
	err = d.store.View(func(tx *store.Tx) (err error) {
		p.branches = []branchState{*b}
		if req.All {
			p.branches, err = branchesOf(tx, &b.dot)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if unlock, err = d.holdBases(ctx, p.branches); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	err = d.store.View(func(tx *store.Tx) error {
		p.refs = maps.Collect(tx.Refs(""))
		for i := range p.branches {
			p.branches[i].tip = p.refs[p.branches[i].ref()]
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return p, unlock, d.choose(ctx, p, req)
}

// holdBases takes the bases of the branches' working copies, always in the same order.
func (d *Dots) holdBases(ctx context.Context, branches []branchState) (unlock func(), err error) {
	var held []*slot
	unlock = func() {
		for _, s := range held {
			s.base.Release(baseWhole)
		}
	}
	for _, b := range branches { // in order of names
		s := d.slot(b.rec.Copy)
		if err := s.base.Acquire(ctx, baseWhole); err != nil {
			unlock()
			return nil, err
		}
		held = append(held, s)
	}
	return unlock, nil
}

// choose fills in what goes and what stays.
func (d *Dots) choose(ctx context.Context, p *prunePlan, req PruneRequest) error {
	why := map[object.ID][]string{}
	own := map[string]bool{}
	var histories [][]dated
	for _, b := range p.branches {
		p.res.Branches = append(p.res.Branches, b.name)
		own[b.ref()] = true
		commits, err := d.dates(ctx, b.tip)
		if err != nil {
			return err
		}
		histories = append(histories, commits)
		if req.OnlyAuto {
			commits = slices.DeleteFunc(slices.Clone(commits), func(c dated) bool {
				if !c.auto {
					why[c.id] = append(why[c.id], "by hand")
				}
				return !c.auto
			})
		}
		for id, parts := range req.Keep.keeps(commits) {
			why[id] = append(why[id], parts...)
		}
	}
	if err := d.others(ctx, p, own, why); err != nil {
		return err
	}
	seen := map[object.ID]bool{}
	for _, commits := range histories {
		count := uint64(0)
		for _, c := range commits {
			if _, ok := why[c.id]; ok {
				count++
			}
			if !seen[c.id] {
				seen[c.id] = true
				if err := d.judge(ctx, p, c.id, why[c.id]); err != nil {
					return err
				}
			}
		}
		p.counts = append(p.counts, count)
	}
	return nil
}

// judge notes what becomes of a commit: it stays if there is a reason to.
func (d *Dots) judge(ctx context.Context, p *prunePlan, id object.ID, why []string) error {
	commit, err := d.commit(ctx, id)
	if err != nil {
		return err
	}
	info, err := d.info(ctx, id, commit)
	if err != nil {
		return err
	}
	if len(why) > 0 {
		p.res.Kept = append(p.res.Kept, PrunedCommit{info, slices.Compact(why)})
		return nil
	}
	p.drop = append(p.drop, id)
	p.res.Pruned = append(p.res.Pruned, PrunedCommit{CommitInfo: info})
	return nil
}

// others notes what is not the rule's business: commits with a name of their own, and what other branches have.
func (d *Dots) others(ctx context.Context, p *prunePlan, own map[string]bool, why map[object.ID][]string) error {
	for _, ref := range slices.Sorted(maps.Keys(p.refs)) {
		tip := p.refs[ref]
		parts := strings.SplitN(ref, "/", 4)
		branch := len(parts) == 4 && parts[0] == "dots" && parts[2] == "heads"
		switch {
		case own[ref]:
			why[tip] = append(why[tip], "tip")
			continue
		case !branch:
			label := ref
			if len(parts) == 4 && parts[2] == "tags" {
				label = "tag " + parts[3]
			}
			if len(parts) == 4 && parts[2] == "seen" {
				remote, _, _ := strings.Cut(parts[3], "/")
				label = "seen at " + remote
			}
			why[tip] = append(why[tip], label)
			continue
		}
		all, err := d.dates(ctx, tip)
		if err != nil {
			return err
		}
		for _, c := range all {
			why[c.id] = append(why[c.id], "branch "+parts[3])
		}
	}
	return nil
}

// dates returns the commits that lead to one and were not pruned, the newest first.
func (d *Dots) dates(ctx context.Context, tip object.ID) (list []dated, err error) {
	err = d.ancestors(ctx, []object.ID{tip}, func(id object.ID, c *object.Commit) error {
		_, auto := c.System[systemAuto]
		list = append(list, dated{id, c.Time, auto})
		return nil
	})
	slices.SortStableFunc(list, func(x, y dated) int { return y.at.Compare(x.at) })
	return list, err
}

func (d *Dots) isPruned(id object.ID) (pruned bool, err error) {
	err = d.store.View(func(tx *store.Tx) error {
		pruned = tx.Pruned(id)
		return nil
	})
	return pruned, err
}

func wasPruned(id object.ID) error {
	return errs.WithHint(errs.New(errs.NotFound, "commit %s was pruned: its content is not kept here any more", id.Short()),
		"'dm log' lists what there is; a remote that has the commit may still give it back with 'dm pull' or 'dm clone'")
}

// parents returns a commit's parents as the history shows them: in place of one that was pruned stand those before it.
func (d *Dots) parents(ctx context.Context, c *object.Commit) (list []object.ID, err error) {
	todo := slices.Clone(c.Parents)
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		pruned, err := d.isPruned(id)
		if err != nil {
			return nil, err
		}
		if !pruned {
			if !slices.Contains(list, id) {
				list = append(list, id)
			}
			continue
		}
		p, err := d.commit(ctx, id)
		if err != nil {
			return nil, err
		}
		todo = append(slices.Clone(p.Parents), todo...)
	}
	return list, ctx.Err()
}

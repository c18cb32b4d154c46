package daemon

import (
	"context"
	"maps"
	"slices"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// pull fetches a branch, or all that are there, with the tags that stand for commits of its history, and moves the dot's own
// branches forward to it.
func (s *server) pull(ctx context.Context, req api.PullRequest, out *api.Stream) (r api.TransferResult, err error) {
	w, done, err := s.between(ctx, req.Dot, req.Branch, req.Remote, req.Name)
	if err != nil {
		return r, err
	}
	defer done()
	p := &pulling{way: w, req: req}
	if err := p.begin(ctx, out); err != nil {
		return r, err
	}
	defer p.t.end()
	if err := p.run(ctx); err != nil {
		return r, err
	}
	return p.t.res, p.remember(ctx)
}

// pulling is one pull.
type pulling struct {
	way
	req  api.PullRequest
	lazy bool // what is not here of the dot is fetched when it is read

	branches []string // to be pulled
	tips     *dot.Tips
	refs     map[string]object.ID
}

func (p *pulling) begin(ctx context.Context, out *api.Stream) (err error) {
	if p.n.Branch == "" {
		info, err := p.s.dots.Info(ctx, p.n)
		if err != nil {
			return err
		}
		p.n.Branch = info.Branch
	}
	if p.tips, err = p.s.dots.Tips(ctx, p.n); err != nil {
		return err
	}
	if p.refs, err = p.there.Refs(ctx); err != nil {
		return err
	}
	heads := branchNames(p.refs)
	if len(heads) == 0 {
		return noDotThere(p.u)
	}
	p.branches = []string{p.n.Branch}
	if p.req.All {
		p.branches = slices.Sorted(maps.Keys(heads))
	} else if heads[p.n.Branch].IsZero() {
		return noBranchThere(p.n.Branch, p.u, heads)
	}
	if err := p.origin(ctx); err != nil {
		return err
	}
	from := p.u.Remote + ":" + p.u.Name
	p.t = p.s.transfers.begin(out, api.Transfer{Verb: "pull", Dot: p.n.DotName(), Remote: from}, "pulling")
	p.t.parts = len(p.branches)
	return p.t.did(api.Travel{From: from, To: p.n.Namespace + "/" + p.n.Dot})
}

func noDotThere(u dot.Upstream) error {
	return errs.WithHint(errs.New(errs.NotFound, "Dot %s does not exist at %s, or is not for you to see.", u.Name, u.Remote),
		"see what is there with 'dm remote show %s'", u.Remote)
}

func noBranchThere(branch string, u dot.Upstream, heads map[string]object.ID) error {
	return errs.WithHint(errs.New(errs.NotFound, "%s has no branch %s at %s", u.Name, branch, u.Remote),
		"its branches are: %s", joined(slices.Sorted(maps.Keys(heads))))
}

// joined lists names for people, not more than they want to read.
func joined(names []string) string {
	const most = 10
	s := ""
	for i, name := range names {
		if i == most {
			return s + " ..."
		}
		if i > 0 {
			s += ", "
		}
		s += name
	}
	return s
}

func (p *pulling) run(ctx context.Context) error {
	var pulled []object.ID
	for _, b := range p.branches {
		if err := p.branch(ctx, b); err != nil {
			return err
		}
		pulled = append(pulled, p.refs[remote.Heads+b])
	}
	main := p.branches[0]
	if slices.Contains(p.branches, p.n.Branch) {
		main = p.n.Branch
	}
	head := p.refs[remote.Heads+main]
	p.t.res.Branch, p.t.res.Head = main, head.String()
	tags := tagNames(p.refs)
	if !p.req.All {
		var err error
		if tags, err = p.s.tagsWithin(ctx, pulled, tags); err != nil {
			return err
		}
	}
	if err := p.tags(ctx, tags); err != nil {
		return err
	}
	if p.lazy && p.req.Complete {
		if err := p.complete(ctx); err != nil {
			return err
		}
		p.lazy = false
	}
	if p.t.res.Lazy = p.lazy; p.t.res.Objects > 0 && !p.lazy {
		p.s.measure(ctx, head, &p.t.res)()
	}
	return nil
}

// fetch brings commits, with all they need or, to a lazy dot, their records.
func (p *pulling) fetch(ctx context.Context, tips []object.ID) (release func(), err error) {
	var st remote.Stats
	o := remote.FetchOptions{Progress: p.t.progress}
	if p.lazy {
		st, release, err = p.s.fetchRecords(ctx, p.there, tips, o)
	} else {
		var haves []object.ID
		if haves, err = p.s.whole(p.tips.All()); err != nil {
			return nil, err
		}
		st, release, err = remote.Fetch(ctx, p.s.local(), p.there, tips, haves, o)
	}
	p.t.add(st)
	return release, err
}

// origin finds out whether the dot is lazy. If it came from where it is pulled from now, that is where it reads from: the
// key or the address may be new.
func (p *pulling) origin(ctx context.Context) error {
	o, err := p.s.dots.Origin(ctx, p.n)
	if err != nil || o == nil {
		return err
	}
	p.lazy = true
	now := originOf(p.u, p.req.Remote)
	if o.Remote != now.Remote || *o == now {
		return nil
	}
	defer p.s.faults.changed()
	return p.s.dots.SetOrigin(ctx, p.n, now)
}

// branch pulls one branch.
func (p *pulling) branch(ctx context.Context, branch string) error {
	ref := remote.Heads + branch
	n := dot.Name{Namespace: p.n.Namespace, Dot: p.n.Dot, Branch: branch}
	here, there := p.tips.Heads[branch], p.refs[ref]
	p.t.on(refWords(ref))
	if err := p.mayMove(ctx, n, here, there); err != nil {
		return err
	}
	release, err := p.fetch(ctx, []object.ID{there})
	if err != nil {
		return err
	}
	defer release()
	if err := p.s.dots.NoteSeen(ctx, p.n, p.u, map[string]object.ID{ref: there}); err != nil {
		return err
	}
	relation, err := remote.Relate(ctx, p.s.store, here, there)
	if err != nil {
		return err
	}
	item := api.Travel{Ref: refWords(ref), Did: api.DidNothing, Old: hexOrEmpty(here), New: there.String()}
	switch relation {
	case remote.Same:
		return p.t.did(item)
	case remote.Ahead:
		item.Did = api.DidAhead
		return p.t.did(item)
	case remote.Diverged:
		if !p.req.Stash {
			return remote.ErrDiverged(branch, here, there)
		}
		if err := p.stash(ctx, n, here); err != nil {
			return err
		}
	}
	if item.Did = api.DidMove; here.IsZero() {
		item.Did = api.DidMake
	}
	restarted, err := p.s.moveForward(ctx, n, here, there, p.req.Restart)
	p.t.res.Restarted = append(p.t.res.Restarted, restarted...)
	if err != nil {
		return err
	}
	return p.t.did(item)
}

// mayMove refuses, before anything travels, what could not be moved afterwards. What has not been fetched yet can only move
// the branch, or have diverged from it.
func (p *pulling) mayMove(ctx context.Context, n dot.Name, here, there object.ID) error {
	known, err := p.s.dots.HasRecord(ctx, there)
	if err != nil || known {
		return err
	}
	return p.s.mayMove(ctx, n, p.req.Restart)
}

// stash keeps what has diverged here as another branch.
func (p *pulling) stash(ctx context.Context, n dot.Name, here object.ID) error {
	name := remote.StashName(n.Branch, here)
	if p.tips.Heads[name] != here {
		if err := p.s.dots.AddBranch(ctx, n, name, here); err != nil {
			return err
		}
	}
	return p.t.did(api.Travel{Ref: "branch " + n.Branch, Did: api.DidStash, New: here.String(), Detail: "branch " + name})
}

// tags takes tags in. One that stands for another commit here stays as it is.
func (p *pulling) tags(ctx context.Context, tags map[string]object.ID) error {
	wanted := map[string]object.ID{}
	var tips []object.ID
	for tag, id := range tags {
		if p.tips.Tags[tag] != id {
			wanted[tag] = id
			tips = append(tips, id)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	release, err := p.fetch(ctx, tips)
	if err != nil {
		return err
	}
	defer release()
	made, clash, err := p.s.dots.TakeTags(ctx, p.n, wanted)
	if err != nil {
		return err
	}
	for _, tag := range made {
		if err := p.t.did(api.Travel{Ref: "tag " + tag, Did: api.DidMake, New: wanted[tag].String()}); err != nil {
			return err
		}
	}
	for _, tag := range clash {
		err := p.t.did(api.Travel{
			Ref: "tag " + tag, Did: api.DidClash, Old: hexOrEmpty(p.tips.Tags[tag]), New: wanted[tag].String(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mayMove refuses to move a branch whose working copy is dirty, or in use by others than containers that can be restarted.
func (s *server) mayMove(ctx context.Context, n dot.Name, restart bool) error {
	err := s.dots.CheckClean(ctx, n)
	if errs.KindOf(err) == errs.NotFound {
		return nil // the branch is not there: it will be made
	}
	if err != nil || restart {
		return err // who else uses it is asked when the containers are stopped
	}
	uses, err := s.branchUses(ctx, n)
	if err != nil {
		return err
	}
	if err := s.unusedOrConflict(ctx, "branch "+n.Branch+" of "+n.DotName(), uses); err != nil {
		return errs.WithHint(err, "have dm stop them and start them again with --restart")
	}
	return s.unused(ctx, n)
}

// unused refuses while processes of this host have files of a branch's working copy open.
func (s *server) unused(ctx context.Context, n dot.Name) error {
	wc, err := s.dots.WorkingCopy(ctx, n)
	if err != nil {
		return err
	}
	return s.branches.unused(wc.ID, n)
}

// users names the processes of this host that use a branch's working copy, at most ten, as far as /proc
// tells in time: it is for people to know, and not worth to fail or wait for.
func (s *server) users(ctx context.Context, n dot.Name) []string {
	wc, err := s.dots.WorkingCopy(ctx, n)
	if err != nil {
		return nil
	}
	found := make(chan []string, 1)
	go func() { found <- s.branches.users(wc.ID) }()
	select {
	case users := <-found:
		return users
	case <-time.After(lookWait):
		return nil
	}
}

// moveForward moves a branch to a commit that has arrived, or makes it there. The working copy and its mounts follow, and
// its containers if they may be restarted; their names are returned.
func (s *server) moveForward(ctx context.Context, n dot.Name, from, to object.ID, restart bool) (restarted []string, err error) {
	if from.IsZero() {
		_, err := s.dots.WorkingCopy(ctx, n)
		if errs.KindOf(err) == errs.NotFound {
			return nil, s.dots.AddBranch(ctx, n, n.Branch, to)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := s.mayMove(ctx, n, restart); err != nil {
		return nil, err
	}
	return s.swapped(ctx, swap{
		dot: dot.Name{Namespace: n.Namespace, Dot: n.Dot}, what: "pull", noRestart: !restart,
		affects: func(ctx context.Context) (func(containerUse) bool, error) { return s.branchUses(ctx, n) },
		change: func(ctx context.Context, stopped bool) error {
			if err := s.unused(ctx, n); err != nil {
				return err
			}
			if err := s.dots.Forward(ctx, n, from, to, stopped); err != nil {
				return err
			}
			return s.rebind(context.WithoutCancel(ctx), n)
		},
	})
}

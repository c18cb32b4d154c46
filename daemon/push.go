package daemon

import (
	"context"
	"maps"
	"slices"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// push sends a branch, or all of them, with the tags that stand for commits of its history.
func (s *server) push(ctx context.Context, req api.PushRequest, out *api.Stream) (r api.TransferResult, err error) {
	w, done, err := s.between(ctx, req.Dot, req.Branch, req.Remote, req.Name)
	if err != nil {
		return r, err
	}
	defer done()
	p := &pushing{way: w, req: req}
	if err := p.begin(ctx, out); err != nil {
		return r, err
	}
	defer p.t.end()
	if err := p.run(ctx); err != nil {
		return r, err
	}
	if err := p.remember(ctx); err != nil {
		return r, err
	}
	if t, ok := p.rem.(interface{ Tidy(context.Context) error }); ok && p.t.res.Packs > 0 {
		// What was pushed is there; to tidy up is a favor to the next one.
		if err := t.Tidy(ctx); err != nil {
			s.log.Warn("tidy up after a push", "remote", p.u.Remote, "err", err)
		}
	}
	return p.t.res, nil
}

// pushing is one push.
type pushing struct {
	way
	req   api.PushRequest
	local remote.Local
	lazy  bool

	branches []string // to be pushed
	tips     *dot.Tips
	refs     map[string]object.ID // as the remote had them at first
	seen     map[string]object.ID // as they were when this machine last looked
}

// begin finds out what is to be done, and tells it.
func (p *pushing) begin(ctx context.Context, out *api.Stream) (err error) {
	info, err := p.s.dots.Info(ctx, dot.Name{Namespace: p.n.Namespace, Dot: p.n.Dot})
	if err != nil {
		return err
	}
	if p.n.Branch == "" {
		p.n.Branch = info.Branch
	}
	if p.tips, err = p.s.dots.Tips(ctx, p.n); err != nil {
		return err
	}
	if p.seen, err = p.s.dots.Seen(ctx, p.n, p.u); err != nil {
		return err
	}
	p.branches = []string{p.n.Branch}
	if p.req.All {
		p.branches = slices.Sorted(maps.Keys(p.tips.Heads))
	}
	for _, b := range p.branches {
		if p.tips.Heads[b].IsZero() {
			if !slices.ContainsFunc(info.Branches, func(have dot.Branch) bool { return have.Name == b }) {
				return errs.WithHint(errs.New(errs.NotFound, "Branch does not exist: %s", b), "list the branches with 'dm branch'")
			}
			return errs.WithHint(errs.New(errs.NotFound, "nothing has been committed on branch %s yet", b),
				"make a commit with 'dm commit -m MESSAGE', then push it")
		}
	}
	if len(p.branches) == 0 {
		return errs.WithHint(errs.New(errs.NotFound, "nothing has been committed in %s yet", p.n.DotName()),
			"make a commit with 'dm commit -m MESSAGE', then push it")
	}
	if p.refs, err = p.there.Refs(ctx); err != nil {
		return err
	}
	if p.local = p.s.local(); info.Lazy {
		p.lazy = true
		p.local = lazyLocal{p.local, p.s.faults, func(id object.ID) (bool, error) { return p.s.dots.HasRecord(ctx, id) }}
	}
	to := p.u.Remote + ":" + p.u.Name
	p.t = p.s.transfers.begin(out, api.Transfer{Verb: "push", Dot: p.n.DotName(), Remote: to}, "pushing")
	p.t.parts = len(p.branches)
	return p.t.did(api.Travel{From: p.n.Namespace + "/" + p.n.Dot, To: to})
}

func (p *pushing) run(ctx context.Context) error {
	main := p.branches[0]
	if slices.Contains(p.branches, p.n.Branch) {
		main = p.n.Branch
	}
	p.t.res.Branch, p.t.res.Head = main, p.tips.Heads[main].String()
	finish := func() {}
	if p.refs[remote.Heads+main] != p.tips.Heads[main] && !p.lazy {
		finish = p.s.measure(ctx, p.tips.Heads[main], &p.t.res)
	}
	defer finish()
	for _, b := range p.branches {
		if err := p.ref(ctx, remote.Heads+b, p.tips.Heads[b]); err != nil {
			return err
		}
	}
	return p.tags(ctx)
}

// ref pushes one branch or tag.
func (p *pushing) ref(ctx context.Context, ref string, tip object.ID) error {
	p.t.on(refWords(ref))
	item := api.Travel{Ref: refWords(ref), Did: api.DidNothing, Old: hexOrEmpty(p.refs[ref]), New: tip.String()}
	if p.refs[ref] != tip {
		res, err := remote.PushRef(ctx, p.local, p.there, remote.Push{
			Ref: ref, Tip: tip, Force: p.req.Force, LastSeen: p.seen[ref], Stash: p.req.Stash,
			Send: remote.SendOptions{Progress: p.t.progress},
		})
		p.t.add(res.Stats)
		if err != nil {
			return err
		}
		item.Old, item.New = hexOrEmpty(res.Old), hexOrEmpty(res.New)
		switch {
		case res.Old == res.New:
		case res.Old.IsZero():
			item.Did = api.DidMake
		default:
			item.Did = api.DidMove
		}
		if res.Stashed != "" {
			err := p.t.did(api.Travel{Ref: refWords(ref), Did: api.DidStash, New: item.Old, Detail: refWords(res.Stashed)})
			if err != nil {
				return err
			}
		}
	}
	if err := p.s.dots.NoteSeen(ctx, p.n, p.u, map[string]object.ID{ref: tip}); err != nil {
		return err
	}
	return p.t.did(item)
}

// tags pushes tags: those of what was pushed, or all. One that stands for another commit there stays, unless forced.
func (p *pushing) tags(ctx context.Context) error {
	tags := p.tips.Tags
	if !p.req.All {
		var tips []object.ID
		for _, b := range p.branches {
			tips = append(tips, p.tips.Heads[b])
		}
		var err error
		if tags, err = p.s.tagsWithin(ctx, tips, tags); err != nil {
			return err
		}
	}
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		ref := remote.Tags + tag
		at, there := p.refs[ref]
		switch {
		case at == tags[tag]:
			continue
		case there && !p.req.Force:
			err := p.t.did(api.Travel{Ref: refWords(ref), Did: api.DidClash, Old: at.String(), New: tags[tag].String()})
			if err != nil {
				return err
			}
			continue
		}
		if err := p.ref(ctx, ref, tags[tag]); err != nil {
			return err
		}
	}
	return nil
}

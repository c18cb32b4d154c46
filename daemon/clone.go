package daemon

import (
	"context"
	"maps"
	"slices"
	"strings"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// clone makes a dot of one at a remote, with one branch or all of them, and tags.
func (s *server) clone(ctx context.Context, req api.CloneRequest, out *api.Stream) (r api.TransferResult, err error) {
	if err := dot.CheckName("remote", req.Remote.Name); err != nil {
		return r, err
	}
	u := dot.Upstream{Remote: req.Remote.Name, Name: remoteName(req.Name, req.Remote)}
	if err := remote.CheckDot(u.Name); err != nil {
		return r, err
	}
	n, err := cloneName(req.Local, u)
	if err != nil {
		return r, err
	}
	if _, err := s.dots.Info(ctx, n); errs.KindOf(err) != errs.NotFound {
		if err == nil {
			err = errs.WithHint(errs.New(errs.Conflict, "Error: %s exists already", n.DotName()),
				"choose another name with --local-name, or bring it up to date with 'dm pull'")
		}
		return r, err
	}
	_, there, done, err := s.remotes.dot(req.Remote, u.Name)
	if err != nil {
		return r, err
	}
	defer done()
	c := &cloning{way: way{s: s, n: n, u: u, there: there}, req: req}
	if err := c.begin(ctx, out); err != nil {
		return r, err
	}
	defer c.t.end()
	err = c.run(ctx)
	return c.t.res, err
}

// cloneName is the name of a clone: the one asked for, or the dot's own in the user's namespace.
func cloneName(asked string, u dot.Upstream) (dot.Name, error) {
	if asked == "" {
		asked = u.Name[strings.IndexByte(u.Name, '/')+1:]
	}
	return dot.ParseDotName(asked)
}

// cloning is one clone.
type cloning struct {
	way
	req api.CloneRequest

	arrival dot.Arrival
	tips    []object.ID
}

// begin finds out what there is.
func (c *cloning) begin(ctx context.Context, out *api.Stream) error {
	refs, err := c.there.Refs(ctx)
	if err != nil {
		return err
	}
	heads := branchNames(refs)
	if len(heads) == 0 {
		return noDotThere(c.u)
	}
	current := c.req.Branch
	switch {
	case current != "" && heads[current].IsZero():
		return noBranchThere(current, c.u, heads)
	case current != "":
		heads = map[string]object.ID{current: heads[current]}
	case !heads[dot.DefaultBranch].IsZero():
		current = dot.DefaultBranch
	default:
		current = slices.Sorted(maps.Keys(heads))[0]
	}
	c.tips = slices.Collect(maps.Values(heads))
	c.arrival = dot.Arrival{Heads: heads, Tags: tagNames(refs), Branch: current, From: c.u, Seen: map[string]object.ID{}, Cache: dot.CacheMode(c.req.Cache)}
	for b, id := range heads {
		c.arrival.Seen[remote.Heads+b] = id
	}
	from := c.u.Remote + ":" + c.u.Name
	c.t = c.s.transfers.begin(out, api.Transfer{Verb: "clone", Dot: c.n.DotName(), Remote: from}, "cloning")
	c.t.parts = 1
	c.t.res.Branch, c.t.res.Head = current, heads[current].String()
	return c.t.did(api.Travel{From: from, To: c.n.Namespace + "/" + c.n.Dot})
}

// fetch brings the commits, with all they need or, lazily, their records.
func (c *cloning) fetch(ctx context.Context, tips []object.ID) (release func(), err error) {
	var st remote.Stats
	o := remote.FetchOptions{Progress: c.t.progress}
	if c.req.Lazy {
		origin := originOf(c.u, c.req.Remote)
		c.arrival.Lazy, c.t.res.Lazy = &origin, true
		st, release, err = c.s.fetchRecords(ctx, c.there, tips, o)
	} else {
		st, release, err = remote.Fetch(ctx, c.s.local(), c.there, tips, nil, o)
	}
	c.t.add(st)
	return release, err
}

func (c *cloning) run(ctx context.Context) error {
	c.t.on("")
	tips := c.tips
	if c.req.Branch == "" {
		tips = slices.AppendSeq(slices.Clone(tips), maps.Values(c.arrival.Tags))
	}
	release, err := c.fetch(ctx, tips)
	if err != nil {
		return err
	}
	defer release()
	if c.req.Branch != "" {
		// Of one branch come the tags of its history.
		if c.arrival.Tags, err = c.s.tagsWithin(ctx, c.tips, c.arrival.Tags); err != nil {
			return err
		}
	}
	if head := c.arrival.Heads[c.arrival.Branch]; !c.req.Lazy {
		c.s.measure(ctx, head, &c.t.res)()
	}
	// From here on it happens wholly, whether or not the client waits.
	ctx = context.WithoutCancel(ctx)
	err = c.s.withDotAlone(ctx, c.n, func() error {
		if _, err := c.s.dots.CreateAt(ctx, c.n, c.arrival); err != nil {
			return err
		}
		c.s.faults.changed()
		_, err := c.s.showCurrent(ctx, c.n)
		return err
	})
	if err != nil {
		return err
	}
	for _, b := range slices.Sorted(maps.Keys(c.arrival.Heads)) {
		if err := c.t.did(api.Travel{Ref: "branch " + b, Did: api.DidMake, New: c.arrival.Heads[b].String()}); err != nil {
			return err
		}
	}
	for _, tag := range slices.Sorted(maps.Keys(c.arrival.Tags)) {
		if err := c.t.did(api.Travel{Ref: "tag " + tag, Did: api.DidMake, New: c.arrival.Tags[tag].String()}); err != nil {
			return err
		}
	}
	return nil
}

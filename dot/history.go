package dot

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// minPrefix is the least number of digits by which a commit may be named.
const minPrefix = 4

func isNotFound(err error) bool { return errs.KindOf(err) == errs.NotFound }

// Resolve finds the commit that a revision means: HEAD, a branch, a tag, a full id or a unique prefix of at least 4
// digits, each with any number of ^ and ~N behind. An empty rev is HEAD, the tip of n's branch.
func (d *Dots) Resolve(ctx context.Context, n Name, rev string) (object.ID, *object.Commit, error) {
	b, err := d.branch(ctx, n)
	if err != nil {
		return object.ID{}, nil, err
	}
	return d.resolve(ctx, b, rev)
}

func (d *Dots) resolve(ctx context.Context, b *branchState, rev string) (object.ID, *object.Commit, error) {
	base, up, err := splitRevision(rev)
	if err != nil {
		return object.ID{}, nil, err
	}
	id, err := d.resolveBase(ctx, b, base)
	if err != nil {
		return object.ID{}, nil, err
	}
	if pruned, err := d.isPruned(id); err != nil {
		return object.ID{}, nil, err
	} else if pruned {
		return object.ID{}, nil, wasPruned(id)
	}
	c, err := d.commit(ctx, id)
	for step := uint64(0); err == nil && step < up; step++ {
		var before []object.ID
		if before, err = d.parents(ctx, c); err != nil {
			break
		}
		if len(before) == 0 {
			return object.ID{}, nil, errs.New(errs.NotFound, "revision '%s': before '%s' there are only %d commits", rev, base, step)
		}
		id = before[0]
		c, err = d.commit(ctx, id)
	}
	if err != nil {
		return object.ID{}, nil, err
	}
	return id, c, nil
}

// splitRevision separates a revision's name from the number of generations to go up.
func splitRevision(rev string) (base string, up uint64, err error) {
	i := strings.IndexAny(rev, "^~")
	if i < 0 {
		return orHead(rev), 0, nil
	}
	base, rest := orHead(rev[:i]), rev[i:]
	for rest != "" {
		if rest[0] == '^' {
			up, rest = up+1, rest[1:]
			continue
		}
		digits := 1
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		n := uint64(1)
		if digits > 1 {
			if n, err = strconv.ParseUint(rest[1:digits], 10, 32); err != nil {
				return "", 0, badRevision(rev)
			}
		}
		if rest[0] != '~' {
			return "", 0, badRevision(rev)
		}
		up, rest = up+n, rest[digits:]
	}
	return base, up, nil
}

func orHead(base string) string {
	if base == "" {
		return "HEAD"
	}
	return base
}

func badRevision(rev string) error {
	return errs.WithHint(errs.New(errs.Usage, "invalid revision '%s'", rev),
		"a revision is HEAD, a branch, a tag or a commit id, with ^ or ~N behind")
}

// resolveBase finds a revision without ^ and ~.
func (d *Dots) resolveBase(ctx context.Context, b *branchState, base string) (id object.ID, err error) {
	if base == "HEAD" {
		if b.tip.IsZero() {
			return id, errs.WithHint(errs.New(errs.NotFound, "nothing has been committed on branch %s yet", b.name),
				"make a commit with 'dm commit -m MESSAGE'")
		}
		return b.tip, nil
	}
	if CheckName("revision", base) != nil {
		return id, badRevision(base)
	}
	var tips []object.ID
	found, unborn := false, false
	err = d.store.View(func(tx *store.Tx) error {
		_, unborn = tx.Meta(branchKey(b.dot.ID, base))
		if id, found = tx.Ref(headRef(b.dot.ID, base)); found {
			return nil
		}
		if id, found = tx.Ref(tagRef(b.dot.ID, base)); found {
			return nil
		}
		for _, tip := range tx.Refs("dots/" + b.dot.ID + "/") {
			tips = append(tips, tip)
		}
		return nil
	})
	switch {
	case err != nil || found:
		return id, err
	case unborn:
		return id, errs.New(errs.NotFound, "nothing has been committed on branch %s yet", base)
	}
	if full, err := object.ParseID(strings.ToLower(base)); err == nil {
		if _, err := readCommit(ctx, d.store, full); isNotFound(err) {
			return id, noRevision(b, base)
		} else if err != nil {
			return id, err
		}
		return full, nil
	}
	return d.resolvePrefix(ctx, b, tips, base)
}

// maxHits bounds how many commits with the same prefix are looked at.
const maxHits = 64

// resolvePrefix finds the one commit whose id begins with prefix. Where several do, those of the dot's own history count.
func (d *Dots) resolvePrefix(ctx context.Context, b *branchState, tips []object.ID, prefix string) (object.ID, error) {
	prefix = strings.ToLower(prefix)
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return object.ID{}, noRevision(b, prefix)
	}
	hits, err := d.store.Find(ctx, object.KindCommit, prefix, maxHits)
	if err != nil {
		return object.ID{}, err
	}
	if len(hits) > 1 {
		var own []object.ID
		err := d.ancestors(ctx, tips, func(id object.ID, _ *object.Commit) error {
			if strings.HasPrefix(id.String(), prefix) {
				own = append(own, id)
			}
			return nil
		})
		if err != nil {
			return object.ID{}, err
		}
		if len(own) > 0 {
			hits = own
		}
	}
	switch len(hits) {
	case 0:
		return object.ID{}, noRevision(b, prefix)
	case 1:
		return hits[0], nil
	}
	return object.ID{}, ambiguous(prefix, hits)
}

func ambiguous(prefix string, hits []object.ID) error {
	slices.SortFunc(hits, func(x, y object.ID) int { return slices.Compare(x[:], y[:]) })
	names := make([]string, 0, len(hits))
	for _, id := range hits[:min(len(hits), 8)] {
		names = append(names, id.String()[:min(max(16, len(prefix)+4), 2*object.IDSize)])
	}
	return errs.WithHint(errs.New(errs.Usage, "revision '%s' is ambiguous: it could be %s", prefix, strings.Join(names, ", ")),
		"write more digits of the one you mean")
}

func noRevision(b *branchState, rev string) error {
	return errs.WithHint(errs.New(errs.NotFound, "revision '%s' is no branch, tag or commit of %s", rev, b.dot.name()),
		"see 'dm log', 'dm branch' and 'dm tag' for what there is")
}

// ancestors calls fn once for each commit that can be reached from tips and was not pruned, the tips included, each before its parents
// unless it was reached by another way. It stops at fn's first error.
func (d *Dots) ancestors(ctx context.Context, tips []object.ID, fn func(id object.ID, c *object.Commit) error) error {
	return d.walk(ctx, tips, d.parents, fn)
}

// records is ancestors with the pruned commits.
func (d *Dots) records(ctx context.Context, tips []object.ID, fn func(id object.ID, c *object.Commit) error) error {
	parents := func(_ context.Context, c *object.Commit) ([]object.ID, error) { return c.Parents, nil }
	return d.walk(ctx, tips, parents, fn)
}

func (d *Dots) walk(ctx context.Context, tips []object.ID, parents func(context.Context, *object.Commit) ([]object.ID, error),
	fn func(id object.ID, c *object.Commit) error,
) error {
	seen := map[object.ID]bool{}
	stack := slices.Clone(tips)
	for len(stack) > 0 {
		id := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if id.IsZero() || seen[id] {
			continue
		}
		seen[id] = true
		c, err := d.commit(ctx, id)
		if err != nil {
			return err
		}
		if err := fn(id, c); err != nil {
			return err
		}
		before, err := parents(ctx, c)
		if err != nil {
			return err
		}
		stack = append(stack, before...)
	}
	return ctx.Err()
}

// countTo counts the commits that lead to one, itself included.
func (d *Dots) countTo(ctx context.Context, id object.ID) (n uint64, err error) {
	err = d.ancestors(ctx, []object.ID{id}, func(object.ID, *object.Commit) error {
		n++
		return nil
	})
	return n, err
}

// countOf returns the number of a branch's commits, from its record where that is up to date.
func (d *Dots) countOf(ctx context.Context, b *branchState) (uint64, error) {
	if b.rec.counts(b.tip) {
		return b.rec.Count, nil
	}
	return d.countTo(ctx, b.tip)
}

// Log returns the commits that lead to rev, the oldest first; max above 0: only the newest max of them.
// A branch without a commit has an empty log.
func (d *Dots) Log(ctx context.Context, n Name, rev string, max int) ([]CommitInfo, error) {
	b, err := d.branch(ctx, n)
	if err != nil {
		return nil, err
	}
	if b.tip.IsZero() && (rev == "" || rev == "HEAD") {
		return []CommitInfo{}, nil
	}
	id, _, err := d.resolve(ctx, b, rev)
	if err != nil {
		return nil, err
	}
	list, err := d.history(ctx, id, max)
	if err != nil {
		return nil, err
	}
	slices.Reverse(list)
	return list, nil
}

// history returns up to max commits (0: all) that lead to one, each before its parents. Where it is a chain, it reads no
// more than it returns.
func (d *Dots) history(ctx context.Context, tip object.ID, max int) ([]CommitInfo, error) {
	list := []CommitInfo{}
	for id := tip; !id.IsZero() && (max <= 0 || len(list) < max); {
		c, err := d.commit(ctx, id)
		if err != nil {
			return nil, err
		}
		before, err := d.parents(ctx, c)
		if err != nil {
			return nil, err
		}
		if len(before) > 1 {
			rest, err := d.merged(ctx, id)
			if err != nil {
				return nil, err
			}
			if list = append(list, rest...); max > 0 && len(list) > max {
				list = list[:max]
			}
			return list, nil
		}
		info, err := d.info(ctx, id, c)
		if err != nil {
			return nil, err
		}
		list = append(list, info)
		id = object.ID{}
		if len(before) > 0 {
			id = before[0]
		}
	}
	return list, ctx.Err()
}

// merged lists a history with merges: the reverse of a depth-first walk's order of leaving, which has each commit before
// its parents.
func (d *Dots) merged(ctx context.Context, tip object.ID) (list []CommitInfo, err error) {
	type visit struct {
		id   object.ID
		c    *object.Commit
		up   []object.ID // its parents
		next int         // the one to look at
	}
	seen := map[object.ID]bool{tip: true}
	stack := []visit{{id: tip}}
	for len(stack) > 0 {
		v := &stack[len(stack)-1]
		if v.c == nil {
			if v.c, err = d.commit(ctx, v.id); err != nil {
				return nil, err
			}
			if v.up, err = d.parents(ctx, v.c); err != nil {
				return nil, err
			}
		}
		if v.next < len(v.up) {
			p := v.up[v.next]
			if v.next++; !seen[p] {
				seen[p] = true
				stack = append(stack, visit{id: p})
			}
			continue
		}
		info, err := d.info(ctx, v.id, v.c)
		if err != nil {
			return nil, err
		}
		list = append(list, info)
		stack = stack[:len(stack)-1]
	}
	slices.Reverse(list)
	return list, nil
}

func (d *Dots) info(ctx context.Context, id object.ID, c *object.Commit) (CommitInfo, error) {
	size, err := stateOf(d.src, c).size(ctx)
	info := CommitInfo{
		ID: id.String(), Parents: []string{}, Author: c.Author, Time: c.Time, Message: c.Message,
		Meta: c.Meta, System: c.System, Size: size,
	}
	for _, p := range c.Parents {
		info.Parents = append(info.Parents, p.String())
	}
	return info, err
}

// Show returns a commit with what it changed.
func (d *Dots) Show(ctx context.Context, n Name, rev string) (*CommitDetail, error) {
	id, c, err := d.Resolve(ctx, n, rev)
	if err != nil {
		return nil, err
	}
	detail := &CommitDetail{}
	if detail.CommitInfo, err = d.info(ctx, id, c); err != nil {
		return nil, err
	}
	before := emptyState(d.src)
	parents, err := d.parents(ctx, c)
	if err != nil {
		return nil, err
	}
	if len(parents) > 0 {
		parent, err := d.commit(ctx, parents[0])
		if err != nil {
			return nil, err
		}
		before = stateOf(d.src, parent)
	}
	detail.Changes, err = diffStates(ctx, before, stateOf(d.src, c))
	if detail.Changes == nil {
		detail.Changes = []Change{}
	}
	detail.Subdots = bySubdot(detail.Changes)
	return detail, err
}

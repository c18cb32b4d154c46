package remote

import (
	"context"
	"fmt"

	"dm/internal/errs"
	"dm/object"
)

// commitBatch is after how many commits found the remote is asked which of them are missing.
const commitBatch = 1024

// commit reads a commit of the local store.
func (s *sender) commit(ctx context.Context, id object.ID) (*object.Commit, error) {
	if c, ok := s.commits[id]; ok {
		return c, nil
	}
	return readCommit(ctx, s.local, id)
}

func readCommit(ctx context.Context, src object.Source, id object.ID) (*object.Commit, error) {
	b, err := src.Get(ctx, object.KindCommit, id)
	if err != nil {
		return nil, err
	}
	c, err := object.DecodeCommit(b)
	if err != nil {
		return nil, fmt.Errorf("read commit %s: %w", id.Short(), err)
	}
	return c, nil
}

// missingCommits returns the commits that the remote lacks, parents before children. Histories that end at commits that
// the remote is known to have need no question.
func (s *sender) missingCommits(ctx context.Context, tips, haves []object.ID) ([]object.ID, error) {
	has := map[object.ID]bool{}
	for _, id := range haves {
		has[id] = true
	}
	missing := map[object.ID]bool{}
	seen := map[object.ID]bool{}
	frontier := tips
	for len(frontier) > 0 {
		found, certain, err := s.walkHistory(ctx, frontier, has, seen)
		if err != nil {
			return nil, err
		}
		lacks := found
		if !certain {
			if lacks, err = s.ask(ctx, found); err != nil {
				return nil, err
			}
		}
		frontier = nil
		for _, id := range lacks {
			missing[id] = true
			for _, p := range s.commits[id].Parents {
				if !seen[p] && !has[p] {
					frontier = append(frontier, p)
				}
			}
		}
	}
	return s.parentsFirst(tips, missing), nil
}

// walkHistory goes from commits to their ancestors, as far as the next question. certain says that it came to an end, and
// everywhere at a commit that the remote has.
func (s *sender) walkHistory(ctx context.Context, from []object.ID, has, seen map[object.ID]bool) (found []object.ID, certain bool, err error) {
	certain = len(has) > 0
	queue := append([]object.ID(nil), from...)
	for len(queue) > 0 && len(found) < commitBatch {
		id := queue[0]
		queue = queue[1:]
		if has[id] || seen[id] {
			continue
		}
		seen[id] = true
		c, err := s.commit(ctx, id)
		if err != nil {
			return nil, false, err
		}
		s.commits[id] = c
		found = append(found, id)
		queue = append(queue, c.Parents...)
		certain = certain && len(c.Parents) > 0
	}
	return found, certain && len(queue) == 0, nil
}

// parentsFirst orders commits so that parents come before their children.
func (s *sender) parentsFirst(tips []object.ID, in map[object.ID]bool) []object.ID {
	return parentsFirst(tips, func(id object.ID) ([]object.ID, bool) {
		if !in[id] {
			return nil, false
		}
		return s.commits[id].Parents, true
	})
}

// parentsFirst returns the commits that can be reached from tips, parents before children. parents says which commits
// count and what their parents are.
func parentsFirst(tips []object.ID, parents func(object.ID) ([]object.ID, bool)) []object.ID {
	type step struct {
		id   object.ID
		done bool
	}
	var order []object.ID
	seen := map[object.ID]bool{}
	var stack []step
	for i := len(tips) - 1; i >= 0; i-- {
		stack = append(stack, step{id: tips[i]})
	}
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if top.done {
			order = append(order, top.id)
			continue
		}
		list, ok := parents(top.id)
		if !ok || seen[top.id] {
			continue
		}
		seen[top.id] = true
		stack = append(stack, step{top.id, true})
		for i := len(list) - 1; i >= 0; i-- {
			stack = append(stack, step{id: list[i]})
		}
	}
	return order
}

// Relation says how two commits stand to each other.
type Relation uint8

// The relations of a commit a to a commit b.
const (
	Diverged Relation = iota // neither is an ancestor of the other
	Same
	Ahead  // b is an ancestor of a
	Behind // a is an ancestor of b
)

// Relate says how a stands to b. It needs the history of both in src, as far as it goes: where b is not there at all, only
// Same, Ahead and Diverged can be told apart. A zero id is an ancestor of all.
func Relate(ctx context.Context, src object.Source, a, b object.ID) (Relation, error) {
	if a == b {
		return Same, nil
	}
	ahead, err := isAncestor(ctx, src, b, a)
	if err != nil || ahead {
		return Ahead, err
	}
	behind, err := isAncestor(ctx, src, a, b)
	if err != nil {
		return Diverged, err
	}
	if behind {
		return Behind, nil
	}
	return Diverged, nil
}

// isAncestor says whether old is among the ancestors of id.
func isAncestor(ctx context.Context, src object.Source, old, id object.ID) (bool, error) {
	if old.IsZero() {
		return true, nil
	}
	seen := map[object.ID]bool{}
	queue := []object.ID{id}
	for len(queue) > 0 {
		id := queue[0]
		queue = queue[1:]
		if id == old {
			return true, nil
		}
		if id.IsZero() || seen[id] {
			continue
		}
		seen[id] = true
		c, err := readCommit(ctx, src, id)
		if errs.KindOf(err) == errs.NotFound {
			continue
		}
		if err != nil {
			return false, err
		}
		queue = append(queue, c.Parents...)
	}
	return false, nil
}

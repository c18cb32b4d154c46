package dot

import (
	"context"
	"errors"
	"math"

	"dm/internal/errs"
	"dm/object"
)

// graph is what a set of commits is made of, each object once, with numbers in place of ids: to ask many times what can be
// reached from where. It takes about 100 bytes of memory per object.
type graph struct {
	ids    map[object.ID]int32
	kinds  []object.Kind
	all    []object.ID
	stored []int32 // bytes in packs
	first  []int32 // of an object's parts in parts; those of the next object end them
	parts  []int32

	seen  []int32 // by the walk of that number
	walks int32
}

// newGraph returns the graph of the content of commits. What a gc or a prune takes away meanwhile is left out.
func (d *Dots) newGraph(ctx context.Context, commits []object.ID) (*graph, error) {
	g := &graph{ids: map[object.ID]int32{}}
	for _, id := range commits {
		if _, err := g.number(object.KindCommit, id); err != nil {
			return nil, err
		}
	}
	for i := 0; i < len(g.all); i++ {
		g.first = append(g.first, int32(len(g.parts)))
		if err := d.addParts(ctx, g, i); err != nil {
			return nil, err
		}
	}
	g.first = append(g.first, int32(len(g.parts)))
	g.seen = make([]int32, len(g.all))
	return g, nil
}

func (g *graph) number(kind object.Kind, id object.ID) (int32, error) {
	if n, ok := g.ids[id]; ok {
		return n, nil
	}
	if len(g.all) == math.MaxInt32 {
		return 0, errs.New(errs.Usage, "the dots have more than %d objects, too many to be measured", math.MaxInt32)
	}
	n := int32(len(g.all))
	g.ids[id] = n
	g.all, g.kinds = append(g.all, id), append(g.kinds, kind)
	return n, nil
}

// addParts adds what object i needs. Its parents are no part of a commit.
func (d *Dots) addParts(ctx context.Context, g *graph, i int) error {
	kind, id := g.kinds[i], g.all[i]
	size, err := d.store.StoredSize(id)
	if err == nil && kind != object.KindChunk {
		var plain []byte
		if plain, err = d.store.Get(ctx, kind, id); err == nil {
			rerr := object.References(kind, plain, func(r object.Reference) {
				if r.Kind == object.KindCommit {
					return
				}
				n, nerr := g.number(r.Kind, r.ID)
				g.parts = append(g.parts, n)
				err = errors.Join(err, nerr)
			})
			err = errors.Join(err, rerr)
		}
	}
	if isNotFound(err) {
		err = nil
	}
	g.stored = append(g.stored, int32(size))
	return errors.Join(err, ctx.Err())
}

// walk calls fn once for each object that commits are made of.
func (g *graph) walk(commits []object.ID, fn func(i int32)) {
	g.walks++
	var todo []int32
	meet := func(i int32) {
		if g.seen[i] != g.walks {
			g.seen[i] = g.walks
			fn(i)
			todo = append(todo, i)
		}
	}
	for _, id := range commits {
		if i, ok := g.ids[id]; ok {
			meet(i)
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range g.parts[g.first[i]:g.first[i+1]] {
			meet(p)
		}
	}
}

// holders counts for each object how many sets of commits hold it.
type holders struct {
	g     *graph
	count []int32
	by    []int32 // the last set that does
	total []int64 // stored bytes, by set
}

// hold returns who holds what of several sets of commits.
func (g *graph) hold(sets [][]object.ID) *holders {
	h := &holders{g, make([]int32, len(g.all)), make([]int32, len(g.all)), make([]int64, len(sets))}
	for n, commits := range sets {
		g.walk(commits, func(i int32) {
			h.count[i]++
			h.by[i] = int32(n)
			h.total[n] += int64(g.stored[i])
		})
	}
	return h
}

// alone returns the stored bytes that each set alone holds: what would be freed without it.
func (h *holders) alone() []int64 {
	list := make([]int64, len(h.total))
	for i, n := range h.count {
		if n == 1 {
			list[h.by[i]] += int64(h.g.stored[i])
		}
	}
	return list
}

package object

import (
	"container/list"
	"context"
	"sync"
)

// TreeCache is a source that keeps the trees which were decoded last: looking up one name after the other in a large
// directory decodes its nodes once and not for each name. It is safe for concurrent use.
type TreeCache struct {
	Source
	limit int

	mu     sync.Mutex
	weight int
	trees  map[ID]*list.Element // of cachedTree
	recent list.List            // the last used first
}

type cachedTree struct {
	id     ID
	tree   *Tree // never changed
	weight int
}

// NewTreeCache puts a cache of about limit bytes before a source.
func NewTreeCache(src Source, limit int) *TreeCache {
	return &TreeCache{Source: src, limit: limit, trees: map[ID]*list.Element{}}
}

// itemWeight is about what a decoded item takes besides what its encoding has, in bytes.
const itemWeight = 256

func (c *TreeCache) tree(ctx context.Context, id ID) (*Tree, error) {
	c.mu.Lock()
	if e := c.trees[id]; e != nil {
		c.recent.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*cachedTree).tree, nil
	}
	c.mu.Unlock()
	b, err := c.Get(ctx, KindTree, id)
	if err != nil {
		return nil, err
	}
	t, err := DecodeTree(b)
	if err != nil {
		return nil, err
	}
	c.keep(&cachedTree{id, t, len(b) + itemWeight*(len(t.Entries)+len(t.Branches))})
	return t, nil
}

func (c *TreeCache) keep(t *cachedTree) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.trees[t.id] != nil { // another was faster
		return
	}
	c.trees[t.id] = c.recent.PushFront(t)
	c.weight += t.weight
	for c.weight > c.limit && c.recent.Len() > 1 {
		old := c.recent.Remove(c.recent.Back()).(*cachedTree)
		delete(c.trees, old.id)
		c.weight -= old.weight
	}
}

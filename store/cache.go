package store

import (
	"container/list"
	"sync"

	"dm/object"
)

// cache keeps decoded objects in memory, least recently used ones going first. The bytes in it are never changed.
type cache struct {
	mu    sync.Mutex
	limit int64 // bytes
	size  int64
	items map[object.ID]*list.Element
	order *list.List // front: used last
}

type cached struct {
	id    object.ID
	kind  object.Kind
	plain []byte
}

// overhead is about what an item takes beside its bytes.
const overhead = 200

func newCache(limit int64) *cache {
	return &cache{limit: limit, items: map[object.ID]*list.Element{}, order: list.New()}
}

func (c *cache) get(kind object.Kind, id object.ID) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[id]
	if !ok || e.Value.(*cached).kind != kind {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).plain, true
}

func (c *cache) add(kind object.Kind, id object.ID, plain []byte) {
	size := int64(len(plain)) + overhead
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.items[id]; ok || size > c.limit {
		return
	}
	c.items[id] = c.order.PushFront(&cached{id, kind, plain})
	for c.size += size; c.size > c.limit; {
		e := c.order.Back()
		old := c.order.Remove(e).(*cached)
		delete(c.items, old.id)
		c.size -= int64(len(old.plain)) + overhead
	}
}

// drop forgets objects that are no longer in the store, or all of them where ids is nil.
func (c *cache) drop(ids map[object.ID]struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, e := range c.items {
		if _, ok := ids[id]; ok || ids == nil {
			c.size -= int64(len(e.Value.(*cached).plain)) + overhead
			c.order.Remove(e)
			delete(c.items, id)
		}
	}
}

package object

// maxNode and maxNodeBytes bound a node where content gives no reason to cut.
const (
	maxNode      = 1024
	maxNodeBytes = 256 << 10
)

// shape tells builder and cursor how one kind of levelled structure is cut and stored. Items of level 0 are the payload
// (spans of chunks, directory entries); an item of level n stands for a stored node that holds items of level n-1.
type shape[T any] struct {
	// closes says whether a node ends after this item. It depends on the item alone: that makes the cuts the same
	// whatever stood before, so that an edit's effect ends at the next natural cut.
	closes func(level int, it T) bool
	// weight is about what an item takes in its node, in bytes.
	weight func(it T) int
	// seal stores a node of items of the given level and returns the item of the next level that stands for it.
	seal func(level int, items []T) (T, error)
	// open is the inverse of seal: the items, of level-1, behind an item of the given level, which is above 0.
	open func(level int, it T) ([]T, error)
}

// builder makes a levelled structure from the front.
type builder[T any] struct {
	shape[T]
	levels []pending[T]
}

type pending[T any] struct {
	items  []T
	weight int
	closed bool // the node ends here; it is sealed when another item comes, or never, if it turns out to be the root
}

func (b *builder[T]) add(level int, it T) error {
	for len(b.levels) <= level {
		b.levels = append(b.levels, pending[T]{})
	}
	w := b.weight(it)
	if p := &b.levels[level]; p.closed || len(p.items) >= maxNode || len(p.items) > 0 && p.weight+w > maxNodeBytes {
		if err := b.sealLevel(level); err != nil {
			return err
		}
	}
	p := &b.levels[level]
	p.items = append(p.items, it)
	p.weight += w
	p.closed = b.closes(level, it)
	return nil
}

func (b *builder[T]) sealLevel(level int) error {
	it, err := b.seal(level, b.levels[level].items)
	if err != nil {
		return err
	}
	b.levels[level] = pending[T]{items: b.levels[level].items[:0]}
	return b.add(level+1, it)
}

// aligned says whether an old item of the given level can be added as it is and give the same structure as adding
// everything below it one by one.
func (b *builder[T]) aligned(level int) bool {
	for i := 0; i < level && i < len(b.levels); i++ {
		if len(b.levels[i].items) > 0 && !b.levels[i].closed {
			return false
		}
	}
	return true
}

// flushBelow seals the closed nodes below level, so that an item of that level comes behind them.
func (b *builder[T]) flushBelow(level int) error {
	for i := 0; i < level && i < len(b.levels); i++ {
		if len(b.levels[i].items) > 0 {
			if err := b.sealLevel(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish seals what is open and returns the root item with its level, which is at least min. Nothing added: level -1.
func (b *builder[T]) finish(min int) (root T, level int, err error) {
	top := -1
	for i := range b.levels {
		if len(b.levels[i].items) > 0 {
			top = i
		}
	}
	if top < 0 {
		return root, -1, nil
	}
	for i := 0; ; i++ {
		n := len(b.levels[i].items)
		if i >= top && n == 1 && i >= min {
			return b.levels[i].items[0], i, nil
		}
		if n > 0 {
			if err := b.sealLevel(i); err != nil {
				return root, 0, err
			}
			for j := top + 1; j < len(b.levels); j++ { // sealing may have sealed closed nodes above, too
				if len(b.levels[j].items) > 0 {
					top = j
				}
			}
		}
	}
}

// cursor walks a levelled structure from the front, opening only the nodes it must.
type cursor[T any] struct {
	shape[T]
	frames []frame[T]
	passed func(level int, it T) // told of each item left behind; may be nil
}

type frame[T any] struct {
	items []T
	level int
	tail  bool // the last items of the whole structure: its node may end without a cut
}

type verdict uint8

const (
	take  verdict = iota // all of the item
	split                // a part of it: look inside; for an item of level 0, stop before it
)

func newCursor[T any](s shape[T], root T, level int) cursor[T] {
	return cursor[T]{shape: s, frames: []frame[T]{{[]T{root}, level, true}}}
}

// peek returns the item the cursor stands before.
func (c *cursor[T]) peek() (it T, level int, ok bool) {
	for len(c.frames) > 0 {
		f := &c.frames[len(c.frames)-1]
		if len(f.items) > 0 {
			return f.items[0], f.level, true
		}
		c.frames = c.frames[:len(c.frames)-1]
	}
	return it, 0, false
}

// openEnded says whether the item the cursor stands before is the last of its level: another item could go into it.
func (c *cursor[T]) openEnded() bool {
	f := &c.frames[len(c.frames)-1]
	return f.tail && len(f.items) == 1
}

func (c *cursor[T]) step() {
	f := &c.frames[len(c.frames)-1]
	if c.passed != nil {
		c.passed(f.level, f.items[0])
	}
	f.items = f.items[1:]
}

func (c *cursor[T]) descend() error {
	f := &c.frames[len(c.frames)-1]
	items, err := c.open(f.level, f.items[0])
	if err != nil {
		return err
	}
	below := frame[T]{items, f.level - 1, f.tail && len(f.items) == 1}
	f.items = f.items[1:]
	c.frames = append(c.frames, below)
	return nil
}

// advance moves on while want says take, handing what it passes to b (nil: it is dropped). Whole subtrees go over
// unread wherever b stands at a cut and they end with one. It stops before the first item of level 0 that is not to be taken.
func (c *cursor[T]) advance(b *builder[T], want func(level int, it T) verdict) error {
	for {
		it, level, ok := c.peek()
		if !ok {
			return nil
		}
		switch v := want(level, it); {
		case v == split && level == 0:
			return nil
		case v == split, b != nil && level > 0 && (c.openEnded() || !b.aligned(level)):
			if err := c.descend(); err != nil {
				return err
			}
			continue
		}
		if b != nil {
			if err := b.flushBelow(level); err != nil {
				return err
			}
			if err := b.add(level, it); err != nil {
				return err
			}
		}
		c.step()
	}
}

package dot

import (
	"bytes"
	"context"

	"dm/object"
)

// side walks one directory's tree from the front, node by node, opening a node only when asked to.
type side struct {
	ctx   context.Context
	src   object.Source
	stack [][]place
	last  string // the name passed last: whatever is still to come is above it
}

// place is an entry (level 0), or a node of the given level with the entries below it.
type place struct {
	level uint8
	id    object.ID
	name  string // of the entry, or the last one in the node
	entry *object.Entry
}

func newSide(ctx context.Context, src object.Source, tree object.ID) (*side, error) {
	s := &side{ctx: ctx, src: src}
	if tree.IsZero() {
		return s, nil
	}
	return s, s.push(tree)
}

func (s *side) push(id object.ID) error {
	b, err := s.src.Get(s.ctx, object.KindTree, id)
	if err != nil {
		return err
	}
	t, err := object.DecodeTree(b)
	if err != nil {
		return err
	}
	items := make([]place, 0, len(t.Entries)+len(t.Branches))
	for i := range t.Entries {
		items = append(items, place{name: t.Entries[i].Name, entry: &t.Entries[i]})
	}
	for _, br := range t.Branches {
		items = append(items, place{level: t.Level - 1, id: br.ID, name: br.Last})
	}
	s.stack = append(s.stack, items)
	return nil
}

// head returns what comes next; nil: nothing.
func (s *side) head() *place {
	for n := len(s.stack); n > 0; n-- {
		if top := s.stack[n-1]; len(top) > 0 {
			return &top[0]
		}
		s.stack = s.stack[:n-1]
	}
	return nil
}

// next passes the head.
func (s *side) next() {
	top := &s.stack[len(s.stack)-1]
	s.last = (*top)[0].name
	*top = (*top)[1:]
}

// open replaces the head, a node, by what is in it.
func (s *side) open() error {
	top := &s.stack[len(s.stack)-1]
	id := (*top)[0].id
	*top = (*top)[1:]
	return s.push(id)
}

// diffDir calls fn for each name of a directory that differs between two of its trees, in order of names; nil stands for
// a name that is not there. Nodes that both trees share are not read, so the cost is that of the difference.
func diffDir(ctx context.Context, src object.Source, from, to object.ID, fn func(old, new *object.Entry) error) error {
	if from == to {
		return nil
	}
	a, err := newSide(ctx, src, from)
	if err != nil {
		return err
	}
	b, err := newSide(ctx, src, to)
	if err != nil {
		return err
	}
	for {
		x, y := a.head(), b.head()
		if x == nil && y == nil {
			return nil
		}
		if err := diffHeads(a, b, x, y, fn); err != nil {
			return err
		}
	}
}

// diffHeads makes one step: it passes what is decided, or opens a node where nothing can be decided.
func diffHeads(a, b *side, x, y *place, fn func(old, new *object.Entry) error) error {
	switch {
	case x != nil && x.level > 0 && y != nil && y.level > 0:
		switch {
		case x.id == y.id:
			a.next()
			b.next()
			return nil
		case x.level > y.level:
			return a.open()
		case x.level < y.level:
			return b.open()
		}
		if err := a.open(); err != nil {
			return err
		}
		return b.open()
	case x != nil && x.level > 0:
		// All names in x are above a.last, so an entry of b up to there is decided without looking into x.
		if y == nil || y.name > a.last {
			return a.open()
		}
	case y != nil && y.level > 0:
		if x == nil || x.name > b.last {
			return b.open()
		}
	}
	switch {
	case y == nil || x != nil && x.level == 0 && (y.level > 0 || x.name < y.name):
		a.next()
		return fn(x.entry, nil)
	case x == nil || x.level > 0 || y.name < x.name:
		b.next()
		return fn(nil, y.entry)
	}
	a.next()
	b.next()
	if sameEntry(x.entry, y.entry) {
		return nil
	}
	return fn(x.entry, y.entry)
}

// sameEntry says whether two entries are the same in everything.
func sameEntry(a, b *object.Entry) bool {
	return a.Name == b.Name && a.Ino == b.Ino && a.Linked == b.Linked && a.Nlink == b.Nlink && a.Tree == b.Tree &&
		sameAttributes(a, b) && sameTime(a, b) && sameContent(a, b)
}

// sameAttributes compares what chmod, chown and setfattr change.
func sameAttributes(a, b *object.Entry) bool {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || len(a.Xattrs) != len(b.Xattrs) {
		return false
	}
	for i := range a.Xattrs {
		if a.Xattrs[i].Name != b.Xattrs[i].Name || !bytes.Equal(a.Xattrs[i].Value, b.Xattrs[i].Value) {
			return false
		}
	}
	return true
}

func sameTime(a, b *object.Entry) bool { return a.Sec == b.Sec && a.Nsec == b.Nsec }

// sameContent compares what is behind anything but a directory.
func sameContent(a, b *object.Entry) bool {
	return a.Content == b.Content && a.Target == b.Target && a.Rdev == b.Rdev
}

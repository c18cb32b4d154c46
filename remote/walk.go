package remote

import (
	"dm/internal/errs"
	"dm/object"
)

// place is an object at its place in a commit.
type place struct {
	Want
	off uint64 // of a chunk or list: where its content begins in the file, in bytes
}

// node is an object below a commit, with what stood in its place in an older commit.
type node struct {
	place
	announced
	old []place
}

// announced is what is said of an object where it is named.
type announced struct {
	totals  object.Totals // of a chunk or list only its Bytes
	level   uint8         // of a list
	nothing bool          // a commit names its table of links and says no more
}

// kindOf returns the kind of object at the given height of a file's content.
func kindOf(level uint8) object.Kind {
	if level == 0 {
		return object.KindChunk
	}
	return object.KindList
}

// ofSize announces a chunk or list of a file's content.
func ofSize(bytes uint64, level uint8) announced {
	return announced{totals: object.Totals{Bytes: bytes}, level: level}
}

// commitNodes returns the trees of a commit that none of the old ones has in the same place.
func commitNodes(c *object.Commit, old []*object.Commit) []node {
	var list []node
	add := func(id object.ID, said announced, of func(*object.Commit) object.ID) {
		if id.IsZero() {
			return
		}
		n := node{place: place{Want: Want{object.KindTree, id}}, announced: said}
		for _, o := range old {
			switch was := of(o); was {
			case id:
				return
			case object.ID{}:
			default:
				n.old = append(n.old, place{Want: Want{object.KindTree, was}})
			}
		}
		list = append(list, n)
	}
	add(c.Root.Tree, announced{totals: c.Root.Totals}, func(o *object.Commit) object.ID { return o.Root.Tree })
	add(c.Links, announced{nothing: true}, func(o *object.Commit) object.ID { return o.Links })
	return list
}

// expand returns what a node's object needs and what stood in its place did not, each with what stood in its place. read
// returns old objects; those it has not (nil) are passed over. The object must be what the node announces: Damaged.
func expand(n *node, plain []byte, read func(Want) []byte) ([]node, error) {
	switch n.Kind {
	case object.KindList:
		l, err := object.DecodeList(plain)
		if err != nil {
			return nil, err
		}
		if l.Level != n.level || l.Size() != n.totals.Bytes {
			return nil, errs.New(errs.Damaged, "list %s has level %d and %d bytes, where level %d and %d bytes are announced",
				n.ID.Short(), l.Level, l.Size(), n.level, n.totals.Bytes)
		}
		return expandList(n, l, read), nil
	case object.KindTree:
		t, err := object.DecodeTree(plain)
		if err != nil {
			return nil, err
		}
		if !n.nothing && t.Totals() != n.totals {
			return nil, errs.New(errs.Damaged, "tree %s has other totals than are announced", n.ID.Short())
		}
		if t.Level > 1 {
			return expandBranches(n, t, read), nil
		}
		return expandEntries(n, t, read), nil
	}
	return nil, nil
}

// stretch is an old object that stood in [from, to) of a file.
type stretch struct {
	place
	to uint64
}

func expandList(n *node, l *object.List, read func(Want) []byte) []node {
	var olds []stretch
	for _, o := range n.old {
		olds = append(olds, oldSpans(o, l.Level, read)...)
	}
	gone := make(map[object.ID]bool, len(olds))
	for _, o := range olds {
		gone[o.ID] = true
	}
	var list []node
	off, i := n.off, 0
	for _, s := range l.Spans {
		from := off
		off += s.Size
		if s.ID.IsZero() || gone[s.ID] {
			continue
		}
		child := node{place: place{Want{kindOf(l.Level - 1), s.ID}, from}, announced: ofSize(s.Size, l.Level-1)}
		for i < len(olds) && olds[i].to <= from {
			i++
		}
		for k := i; k < len(olds) && olds[k].off < off && len(child.old) < maxOld; k++ {
			child.old = append(child.old, olds[k].place)
		}
		list = append(list, child)
	}
	return list
}

// maxOld bounds the old objects that one new one is compared with.
const maxOld = 8

// oldSpans returns what an old object holds that a list of the given level may hold, too.
func oldSpans(o place, level uint8, read func(Want) []byte) []stretch {
	if o.Kind != object.KindList {
		return []stretch{{o, ^uint64(0)}}
	}
	b := read(o.Want)
	if b == nil {
		return nil
	}
	l, err := object.DecodeList(b)
	if err != nil {
		return nil
	}
	if l.Level < level {
		return []stretch{{o, o.off + l.Size()}}
	}
	spans := make([]stretch, 0, len(l.Spans))
	off := o.off
	for _, s := range l.Spans {
		if !s.ID.IsZero() {
			spans = append(spans, stretch{place{Want{kindOf(l.Level - 1), s.ID}, off}, off + s.Size})
		}
		off += s.Size
	}
	return spans
}

// oldTrees reads the old trees of a node.
func oldTrees(n *node, read func(Want) []byte) (trees []*object.Tree, at []place) {
	for _, o := range n.old {
		if b := read(o.Want); b != nil && o.Kind == object.KindTree {
			if t, err := object.DecodeTree(b); err == nil {
				trees, at = append(trees, t), append(at, o)
			}
		}
	}
	return trees, at
}

func expandBranches(n *node, t *object.Tree, read func(Want) []byte) []node {
	type oldBranch struct {
		place
		last string // "" for one that may hold any name
	}
	var olds []oldBranch
	gone := map[object.ID]bool{}
	trees, at := oldTrees(n, read)
	for i, o := range trees {
		if o.Level < t.Level {
			olds = append(olds, oldBranch{at[i], ""})
			gone[at[i].ID] = true
		}
		for _, br := range o.Branches {
			olds = append(olds, oldBranch{place{Want: Want{object.KindTree, br.ID}}, br.Last})
			gone[br.ID] = true
		}
	}
	var list []node
	first := ""
	k := 0
	for _, br := range t.Branches {
		before := first
		first = br.Last
		if gone[br.ID] {
			continue
		}
		child := node{place: place{Want: Want{object.KindTree, br.ID}}, announced: announced{totals: br.Totals}}
		for k < len(olds) && olds[k].last != "" && olds[k].last <= before {
			k++
		}
		for j := k; j < len(olds) && len(child.old) < maxOld; j++ {
			child.old = append(child.old, olds[j].place)
			if olds[j].last > br.Last {
				break
			}
		}
		list = append(list, child)
	}
	return list
}

func expandEntries(n *node, t *object.Tree, read func(Want) []byte) []node {
	olds := map[string]*object.Entry{}
	gone := map[object.ID]bool{}
	trees, _ := oldTrees(n, read)
	for _, o := range trees {
		for i := range o.Entries {
			e := &o.Entries[i]
			olds[e.Name] = e
			gone[e.Tree], gone[e.Content.Root] = true, true
		}
	}
	var list []node
	for i := range t.Entries {
		e := &t.Entries[i]
		old := olds[e.Name]
		if id := e.Tree; !id.IsZero() && !gone[id] {
			child := node{place: place{Want: Want{object.KindTree, id}}, announced: announced{totals: e.Totals}}
			if old != nil && !old.Tree.IsZero() {
				child.old = []place{{Want: Want{object.KindTree, old.Tree}}}
			}
			list = append(list, child)
		}
		if c := e.Content; !c.Root.IsZero() && !gone[c.Root] {
			child := node{place: place{Want: Want{kindOf(c.Depth), c.Root}}, announced: ofSize(c.Size, c.Depth)}
			if old != nil && !old.Content.Root.IsZero() {
				child.old = []place{{Want: Want{kindOf(old.Content.Depth), old.Content.Root}}}
			}
			list = append(list, child)
		}
	}
	return list
}

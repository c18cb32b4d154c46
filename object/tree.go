package object

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"sort"

	"dm/internal/errs"
)

// Branch is an item of a tree above level 1: another tree, with the last name in it.
type Branch struct {
	Last   string
	ID     ID
	Totals Totals
}

// Tree is a node of a directory. Level 1 holds entries, level n branches to trees of level n-1. Names ascend, bytewise.
type Tree struct {
	Level    uint8
	Entries  []Entry  // level 1
	Branches []Branch // above
}

// Totals sums up the node.
func (t *Tree) Totals() (sum Totals) {
	for i := range t.Entries {
		sum.add(t.Entries[i].Sums())
	}
	for i := range t.Branches {
		sum.add(t.Branches[i].Totals)
	}
	return sum
}

// Encode returns the canonical bytes.
func (t *Tree) Encode() []byte {
	b := []byte{formatVersion, t.Level}
	if t.Level == 1 {
		b = binary.AppendUvarint(b, uint64(len(t.Entries)))
		for i := range t.Entries {
			b = t.Entries[i].append(b)
		}
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(t.Branches)))
	for _, br := range t.Branches {
		b = appendBytes(b, br.Last)
		b = append(b, br.ID[:]...)
		b = appendTotals(b, br.Totals)
	}
	return b
}

// DecodeTree reads what Encode wrote and refuses everything else: names out of order or twice, bad names, unknown types.
func DecodeTree(b []byte) (*Tree, error) {
	r := &reader{kind: KindTree, b: b}
	r.version()
	t := &Tree{Level: r.byte()}
	if t.Level < 1 || t.Level > maxDepth {
		r.fail("bad level")
	}
	n := r.count(4)
	if n == 0 || n > maxNode {
		r.fail("bad number of entries")
	}
	last := ""
	var sum Totals
	for range n {
		name := ""
		if t.Level == 1 {
			t.Entries = append(t.Entries, r.entry(false))
			e := &t.Entries[len(t.Entries)-1]
			name = e.Name
			sum.add(e.Sums())
		} else {
			br := Branch{Last: string(r.bytes(MaxName)), ID: r.id(), Totals: r.totals()}
			t.Branches = append(t.Branches, br)
			name = br.Last
			sum.add(br.Totals)
		}
		if sum.Subdirs > maxTotal || sum.Files > maxTotal || sum.Bytes > maxTotal {
			r.fail("totals overflow")
		}
		if name <= last {
			r.fail("names out of order")
		}
		if r.err != nil {
			break
		}
		last = name
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return t, nil
}

// maxTotal leaves room for adding up: no sum of a node's items wraps around.
const maxTotal = 1 << 52

// treeItem is an Entry at level 0 and a Branch above.
type treeItem struct {
	Branch
	entry *Entry
	above string // every name behind it is above this one: the last of the item before it
}

func treeShape(ctx context.Context, src Source, sink Sink) shape[treeItem] {
	return shape[treeItem]{
		// A node of level n ends behind a name whose hash has 7(n+1) zero bits: 128 items on average, and what ends a
		// node ends all nodes below it.
		closes: func(level int, it treeItem) bool {
			return nameHash(it.Last)&(1<<min(63, 7*(level+1))-1) == 0
		},
		weight: func(it treeItem) int {
			w := len(it.Last) + 2*IDSize
			if it.entry != nil {
				w += len(it.entry.Target)
				for _, x := range it.entry.Xattrs {
					w += len(x.Name) + len(x.Value) + 8
				}
			}
			return w
		},
		seal: func(level int, items []treeItem) (treeItem, error) {
			t := &Tree{Level: uint8(level + 1)}
			for _, it := range items {
				if level == 0 {
					t.Entries = append(t.Entries, *it.entry)
				} else {
					t.Branches = append(t.Branches, it.Branch)
				}
			}
			id, err := sink.Put(ctx, KindTree, t.Encode())
			return treeItem{Branch: Branch{items[len(items)-1].Last, id, t.Totals()}}, err
		},
		open: func(level int, it treeItem) ([]treeItem, error) {
			t, err := openBranch(ctx, src, level, &it.Branch, it.above)
			if err != nil {
				return nil, err
			}
			return treeItems(t, it.above), nil
		},
	}
}

// treeItems returns the items of a tree all of whose names are to be above the given one.
func treeItems(t *Tree, above string) []treeItem {
	items := make([]treeItem, 0, len(t.Entries)+len(t.Branches))
	for i := range t.Entries {
		items = append(items, treeItem{Branch: Branch{Last: t.Entries[i].Name}, entry: &t.Entries[i]})
	}
	for _, br := range t.Branches {
		items = append(items, treeItem{Branch: br, above: above})
		above = br.Last
	}
	return items
}

func openTree(ctx context.Context, src Source, id ID) (*Tree, error) {
	if c, ok := src.(*TreeCache); ok {
		return c.tree(ctx, id)
	}
	b, err := src.Get(ctx, KindTree, id)
	if err != nil {
		return nil, err
	}
	return DecodeTree(b)
}

// openBranch opens the tree behind a branch of the given level and compares it with what the branch says; above is the
// last name before it.
func openBranch(ctx context.Context, src Source, level int, br *Branch, above string) (*Tree, error) {
	t, err := openTree(ctx, src, br.ID)
	if err != nil {
		return nil, err
	}
	if int(t.Level) != level || t.first() <= above || t.last() != br.Last || t.Totals() != br.Totals {
		return nil, errs.New(errs.Damaged, "tree %s is not what the tree above it says", br.ID.Short())
	}
	return t, nil
}

// first is the first name or, above level 1, the last name behind the first branch.
func (t *Tree) first() string {
	if t.Level == 1 {
		return t.Entries[0].Name
	}
	return t.Branches[0].Last
}

func (t *Tree) last() string {
	if t.Level == 1 {
		return t.Entries[len(t.Entries)-1].Name
	}
	return t.Branches[len(t.Branches)-1].Last
}

// nameHash is FNV-1a with a last mixing step (of MurmurHash3), because FNV's low bits alone are poor on short names.
func nameHash(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	v := h.Sum64()
	v ^= v >> 33
	v *= 0xff51afd7ed558ccd
	v ^= v >> 33
	return v
}

// treeCursor starts at the front of a tree; the zero ID is the empty directory.
func treeCursor(ctx context.Context, s shape[treeItem], src Source, root ID) (cursor[treeItem], error) {
	c := cursor[treeItem]{shape: s}
	if root.IsZero() {
		return c, nil
	}
	t, err := openTree(ctx, src, root)
	if err != nil {
		return c, err
	}
	c.frames = []frame[treeItem]{{treeItems(t, ""), int(t.Level) - 1, true}}
	return c, nil
}

// LookupTree finds one name in a directory. ok is false where it is not there.
func LookupTree(ctx context.Context, src Source, root ID, name string) (e Entry, ok bool, err error) {
	if root.IsZero() {
		return e, false, nil
	}
	t, err := openTree(ctx, src, root)
	for above := ""; err == nil && t.Level > 1; {
		i := sort.Search(len(t.Branches), func(i int) bool { return t.Branches[i].Last >= name })
		if i == len(t.Branches) {
			return e, false, nil
		}
		if i > 0 {
			above = t.Branches[i-1].Last
		}
		t, err = openBranch(ctx, src, int(t.Level)-1, &t.Branches[i], above)
	}
	if err != nil {
		return e, false, err
	}
	i := sort.Search(len(t.Entries), func(i int) bool { return t.Entries[i].Name >= name })
	if i == len(t.Entries) || t.Entries[i].Name != name {
		return e, false, nil
	}
	return t.Entries[i], true, nil
}

// WalkTree calls fn for each entry of one directory in order of names, starting with the first name not below from.
// It stops at fn's first error. fn must not change the entry.
func WalkTree(ctx context.Context, src Source, root ID, from string, fn func(e *Entry) error) error {
	c, err := treeCursor(ctx, treeShape(ctx, src, nil), src, root)
	if err != nil {
		return err
	}
	for {
		err := c.advance(nil, func(_ int, it treeItem) verdict {
			if it.Last < from {
				return take
			}
			return split
		})
		if err != nil {
			return err
		}
		it, _, ok := c.peek()
		if !ok {
			return nil
		}
		if err := fn(it.entry); err != nil {
			return err
		}
		c.step()
	}
}

// Edit is a change of one name in a directory: a new entry, or nil for a name that goes.
type Edit struct {
	Name  string
	Entry *Entry
}

// EditTree applies edits, sorted by name, to a directory and stores the nodes that become new. It returns the new tree,
// zero where the directory is empty, and its totals. Nodes without an edit in them are neither read nor written.
func EditTree(ctx context.Context, src Source, sink Sink, base ID, edits []Edit) (ID, Totals, error) {
	s := treeShape(ctx, src, sink)
	b := builder[treeItem]{shape: s}
	c, err := treeCursor(ctx, s, src, base)
	if err != nil {
		return ID{}, Totals{}, err
	}
	for _, ed := range edits {
		err := c.advance(&b, func(_ int, it treeItem) verdict {
			if it.Last < ed.Name {
				return take
			}
			return split
		})
		if err != nil {
			return ID{}, Totals{}, err
		}
		if it, _, ok := c.peek(); ok && it.Last == ed.Name {
			c.step()
		}
		if ed.Entry == nil {
			continue
		}
		if err := ed.Entry.Check(); err != nil {
			return ID{}, Totals{}, err
		}
		if err := b.add(0, treeItem{Branch: Branch{Last: ed.Name}, entry: ed.Entry}); err != nil {
			return ID{}, Totals{}, err
		}
	}
	if err := c.advance(&b, func(int, treeItem) verdict { return take }); err != nil {
		return ID{}, Totals{}, err
	}
	root, level, err := b.finish(1)
	if err != nil || level < 0 {
		return ID{}, Totals{}, err
	}
	return root.ID, root.Totals, nil
}

// TreeTotals returns the totals of a directory; the zero ID is the empty one.
func TreeTotals(ctx context.Context, src Source, root ID) (Totals, error) {
	if root.IsZero() {
		return Totals{}, nil
	}
	t, err := openTree(ctx, src, root)
	if err != nil {
		return Totals{}, err
	}
	return t.Totals(), nil
}

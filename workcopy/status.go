package workcopy

import (
	"context"
	"sort"

	"golang.org/x/sys/unix"

	"dm/object"
)

// Figures are sums over a part of a working copy.
type Figures struct {
	Size uint64 // bytes of all regular files
	// Dirty is the bytes of the blocks written since the commit. A changed inode without such blocks counts as one block, and
	// a restored file as the chunks that differ from those the commit has at its path, all of them where it has none.
	Dirty   uint64
	Changed uint64 // files and other non-directories made, changed or removed since the commit
	Files   uint64 // everything that is not a directory
}

func (f *Figures) add(o Figures) {
	f.Size += o.Size
	f.Dirty += o.Dirty
	f.Changed += o.Changed
	f.Files += o.Files
}

// Status is what is in a working copy and how much of it changed.
type Status struct {
	Figures
	Subdots map[string]Figures // by name; what lies in the top directory itself is only in the sum
}

// selfChanged says whether a node itself differs from the commit, not only something below it. The caller holds mu.
func (n *node) selfChanged() bool {
	if n.base == nil || !n.asCommitted(n.base) || n.linked && n.base.Nlink != n.nlink {
		return true
	}
	return n.file != nil && (n.size != n.base.Content.Size || n.file.changedBlocks() > 0 ||
		n.file.zeroed != nil && !n.file.zeroed.IsEmpty())
}

// changedBlocks counts the blocks written since the commit, those that a running commit is still to take included.
func (f *content) changedBlocks() uint64 {
	if f.dirty == nil {
		return 0
	}
	return f.dirty.GetCardinality()
}

// dirtyBlocks counts the blocks of a node that are not committed yet. While a commit is being made its blocks count.
func (n *node) dirtyBlocks() uint64 {
	if n.file == nil {
		return 0
	}
	if len(n.versions) == 0 {
		return n.file.changedBlocks()
	}
	all := cloneSet(n.file.dirty)
	for _, v := range n.versions {
		if v.file.dirty != nil {
			all.Or(v.file.dirty)
		}
	}
	return all.GetCardinality()
}

// subdot returns the name of the top-level directory a node is in, or "".
func (n *node) subdot(root *node) string {
	name := ""
	for n != root {
		if len(n.places) == 0 {
			return ""
		}
		name, n = n.places[0].name, n.places[0].dir
	}
	return name
}

// Status sums up. It costs what has changed, not what is there.
func (c *Copy) Status(ctx context.Context) (Status, error) {
	late, st, err := c.sumUp(ctx)
	if err != nil {
		return st, err
	}
	for _, g := range late.gone { // names that are no more: were they committed?
		e, ok, err := object.LookupTree(ctx, c.cfg.Source, g.tree, g.name)
		if err != nil {
			return st, err
		}
		if ok {
			st.count(g.subdot, Figures{Changed: e.Sums().Files})
		}
	}
	for i := range late.stamped {
		other, err := late.stamped[i].otherNames(ctx, c.cfg.Source)
		if err != nil {
			return st, err
		}
		if other {
			st.count(late.stamped[i].subdot, Figures{Dirty: BlockSize})
		}
	}
	for i := range late.replaced {
		f, err := late.paths.count(&late.replaced[i])
		if err != nil {
			return st, err
		}
		st.count(late.replaced[i].subdot, f)
	}
	return st, nil
}

func (st *Status) count(subdot string, f Figures) {
	st.add(f)
	if sub, ok := st.Subdots[subdot]; ok {
		sub.add(f)
		st.Subdots[subdot] = sub
	}
}

// later is what can be counted only when trees have been read, without the mutex.
type later struct {
	paths    *paths
	gone     []goneName
	stamped  []stampedDir
	replaced []replacement
}

type goneName struct {
	tree         object.ID
	name, subdot string
}

// stampedDir is a directory whose time changed and nothing else of it: names came or went, or came back.
type stampedDir struct {
	tree   object.ID
	names  map[string]uint64 // to inode numbers, 0 for what is gone
	subdot string
}

// otherNames says whether one of the names means something else than in the commit.
func (d *stampedDir) otherNames(ctx context.Context, src object.Source) (bool, error) {
	for name, ino := range d.names {
		e, ok, err := object.LookupTree(ctx, src, d.tree, name)
		if err != nil || ok != (ino != 0) || ok && e.Ino != ino {
			return err == nil, err
		}
	}
	return false, nil
}

// stamped describes a directory for otherNames. What was made since the commit, other than by a restore, is new without
// a look at the tree; what was restored counts by itself. The caller holds mu.
func (c *Copy) stamped(n *node) (d stampedDir, other bool) {
	d = stampedDir{tree: n.dir.tree, names: map[string]uint64{}, subdot: n.subdot(c.root)}
	for name, child := range n.changed() {
		switch {
		case child == nil:
			d.names[name] = 0
		case child.base == nil && child.dir == nil:
			return d, true
		case child.base != nil && !c.foreign(child):
			d.names[name] = child.ino
		}
	}
	return d, false
}

func (c *Copy) sumUp(ctx context.Context) (late *later, st Status, err error) {
	names, err := c.list(ctx, c.root)
	if err != nil {
		return nil, st, err
	}
	st.Subdots = map[string]Figures{}
	for _, e := range names.names {
		if e.Type != object.ModeDir {
			continue
		}
		// Totals of a subdot are in memory or in its entry; a look-up brings it into memory.
		id, _, err := c.Lookup(ctx, RootID, e.Name)
		if err != nil {
			continue
		}
		c.mu.RLock()
		if n := c.nodes[id]; n != nil && n.dir != nil {
			st.Subdots[e.Name] = Figures{Size: n.dir.bytes, Files: n.dir.files}
		}
		c.mu.RUnlock()
		c.Forget(id, 1)
	}
	c.mu.RLock()
	table := c.linkTable()
	c.mu.RUnlock()
	links, err := object.TreeTotals(ctx, c.cfg.Source, table)
	if err != nil {
		return nil, st, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	late = &later{paths: c.paths(ctx)}
	st.Size, st.Files = c.root.dir.bytes+links.Bytes, c.root.dir.files
	visit := func(n *node) {
		if n.linked && n.file != nil { // the table's totals are those of the commit
			if n.base != nil && n.base.Nlink > 0 {
				st.Size -= n.base.Content.Size
			}
			if n.nlink > 0 {
				st.Size += n.size
			}
		}
		c.visitDirty(n, &st, late)
	}
	for n := range c.dirty {
		visit(n)
	}
	seen := map[*node]bool{}
	for _, s := range c.snaps {
		for n := range s.dirty {
			if n.epoch != c.epoch && !seen[n] {
				seen[n] = true
				visit(n)
			}
		}
	}
	return late, st, nil
}

// visitDirty counts one changed node, or notes what is to be looked up to count it.
func (c *Copy) visitDirty(n *node, st *Status, late *later) {
	if n.nlink == 0 {
		return
	}
	subdot := n.subdot(c.root)
	if n.dir != nil {
		for name, child := range n.changed() {
			if child == nil && !n.dir.tree.IsZero() {
				late.gone = append(late.gone, goneName{n.dir.tree, name, subdot})
			}
		}
	}
	var f Figures
	switch {
	case c.foreign(n) || n.base == nil && n.dir != nil && n != c.root:
		late.replaced = append(late.replaced, c.replacement(n))
	case n.dir != nil && n.base != nil && n.sameAttributes(n.base):
		if n.asCommitted(n.base) {
			break
		}
		d, other := c.stamped(n)
		if other {
			f.Dirty = BlockSize
		} else {
			late.stamped = append(late.stamped, d)
		}
	case n.dirtyBlocks() > 0:
		f = Figures{Dirty: n.dirtyBlocks() * BlockSize, Changed: 1}
	case n.selfChanged():
		f.Dirty = BlockSize
		if n.dir == nil {
			f.Changed = 1
		}
	}
	st.count(subdot, f)
}

// LocalBytes returns what the backing files take on the host's filesystem, in bytes. It visits each of them.
func (c *Copy) LocalBytes(context.Context) (total uint64, err error) {
	err = c.eachBacking(func(_ uint64, _ bool, path string) error {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil { // it may have been removed meanwhile
			total += uint64(st.Blocks) * 512
		}
		return nil
	})
	return total, err
}

// Change is a path that differs from the commit.
type Change struct {
	Path    string
	OldPath string // of a rename
	Kind    byte   // '+' new, 'M' changed, '-' gone, 'R' renamed
	Dir     bool
	Bytes   uint64 // new or gone: the size; else: what was written, in whole blocks
}

// Changes calls fn for every path that differs from the commit the working copy is based on, sorted by path. It reads
// only what changed. Directories are listed when they themselves are new, gone or have other attributes.
func (c *Copy) Changes(ctx context.Context, fn func(Change) error) error {
	c.mu.RLock()
	links := c.linkTable()
	c.mu.RUnlock()
	w := &changeWalk{c: c, ctx: ctx, links: links, gone: map[uint64][]int{}, born: map[uint64]int{}}
	if err := w.dir("", c.root, -1); err != nil {
		return err
	}
	list, err := w.renamed()
	if err != nil {
		return err
	}
	for _, ch := range list {
		if err := fn(ch); err != nil {
			return err
		}
	}
	return nil
}

type changeWalk struct {
	c     *Copy
	ctx   context.Context
	links object.ID
	list  []walked
	gone  map[uint64][]int // inode number to indices in list
	born  map[uint64]int
}

// walked is a change, and where in the walk it was found; -1 stands for nowhere.
type walked struct {
	Change
	ino  uint64
	now  likeness     // of what is new
	old  object.Entry // of what is gone
	born int          // index of the nearest directory around it that is new at its path
	gone int          // index of the directory that is gone, below which this is gone too
}

type namedNode struct {
	name string
	n    *node
	ino  uint64
	now  likeness // as it was under the mutex
	same bool
}

// dir compares the changed names of a directory with its tree. born is the index of the nearest new directory, or -1.
func (w *changeWalk) dir(path string, n *node, born int) error {
	c := w.c
	c.mu.RLock()
	tree := n.dir.tree
	names := make([]namedNode, 0, len(n.changed()))
	for name, child := range n.changed() {
		nn := namedNode{name: name, n: child}
		if child != nil {
			nn.ino, nn.now = child.ino, child.likeness()
			nn.same = child.sameToSee()
		}
		names = append(names, nn)
	}
	c.mu.RUnlock()
	sort.Slice(names, func(i, j int) bool { return names[i].name < names[j].name })
	for i := range names {
		nn := &names[i]
		old, had, err := object.LookupTree(w.ctx, c.cfg.Source, tree, nn.name)
		if err != nil {
			return err
		}
		if err := w.name(path+nn.name, nn, old, had, born); err != nil {
			return err
		}
	}
	return nil
}

// sameToSee says whether a list of changes leaves a node out. A directory's time says only that names in it changed, and
// these are listed. The caller holds mu.
func (n *node) sameToSee() bool {
	if n.isDir() {
		return n.base != nil && n.sameAttributes(n.base)
	}
	return !n.selfChanged() && n.dirtyBlocks() == 0
}

func (w *changeWalk) name(path string, nn *namedNode, old object.Entry, had bool, born int) error {
	child := nn.n
	if had && (child == nil || child.ino != old.Ino) {
		if err := w.removed(path, old, born, -1); err != nil {
			return err
		}
	}
	switch {
	case child == nil:
		return nil
	case had && child.ino == old.Ino:
		if !nn.same {
			ch := Change{Path: path, Kind: 'M', Dir: nn.now.isDir(), Bytes: nn.now.written}
			w.list = append(w.list, walked{Change: ch, ino: old.Ino, born: born, gone: -1})
		}
		if nn.now.isDir() {
			return w.dir(path+"/", child, born)
		}
		return nil
	}
	i := len(w.list)
	w.born[nn.ino] = i
	ch := Change{Path: path, Kind: '+', Dir: nn.now.isDir(), Bytes: nn.now.bytesOf()}
	w.list = append(w.list, walked{Change: ch, ino: nn.ino, now: nn.now, born: born, gone: -1})
	if !nn.now.isDir() {
		return nil
	}
	return w.dir(path+"/", child, i)
}

func (in *inode) bytesOf() uint64 {
	if in.isRegular() {
		return in.size
	}
	return 0
}

// removed lists a committed entry that is gone, with everything below it.
func (w *changeWalk) removed(path string, e object.Entry, born, gone int) error {
	full, err := w.c.linkEntry(w.ctx, w.links, e)
	if err != nil {
		return err
	}
	i := len(w.list)
	w.gone[e.Ino] = append(w.gone[e.Ino], i)
	ch := Change{Path: path, Kind: '-', Dir: e.IsDir(), Bytes: full.Content.Size}
	w.list = append(w.list, walked{Change: ch, ino: e.Ino, old: full, born: born, gone: gone})
	if !e.IsDir() {
		return nil
	}
	return object.WalkTree(w.ctx, w.c.cfg.Source, e.Tree, "", func(child *object.Entry) error {
		return w.removed(path+"/"+child.Name, *child, born, i)
	})
}

// renamed joins what is gone here and new there, by inode number, then what took the place of something else, and sorts by
// path.
func (w *changeWalk) renamed() ([]Change, error) {
	drop := map[int]bool{}
	for i := range w.list {
		// What is gone below a directory that moved has moved with it, or was found gone when its new place was walked.
		for j := w.list[i].gone; j >= 0 && !drop[i]; j = w.list[j].gone {
			_, moved := w.movedTo(j)
			drop[i] = moved
		}
	}
	from := map[int]int{} // what is new, to what is gone
	for ino, i := range w.born {
		for _, j := range w.gone[ino] {
			if _, taken := from[i]; !taken && !drop[j] && w.list[i].Dir == w.list[j].Dir {
				from[i] = j
			}
		}
	}
	for i, j := range from {
		w.list[i].Kind, w.list[i].Bytes = 'R', w.list[i].now.written
		w.list[i].OldPath = w.committedPath(j, from)
		drop[j] = true
		if w.list[i].OldPath == w.list[i].Path { // its directory was made anew around it
			w.list[i].Kind, w.list[i].OldPath = 'M', ""
			drop[i] = w.list[i].now.same(&w.list[j].old)
		}
	}
	if err := w.replaced(from, drop); err != nil {
		return nil, err
	}
	out := make([]Change, 0, len(w.list))
	for i, ch := range w.list {
		if drop[i] {
			continue
		}
		if ch.Kind == '-' {
			ch.Path = w.committedPath(i, from)
		}
		out = append(out, ch.Change)
	}
	sort.SliceStable(out, func(i, j int) bool { // what is gone from a path comes before what is there now
		a, b := &out[i], &out[j]
		return a.Path < b.Path || a.Path == b.Path && a.Kind == '-' && b.Kind != '-'
	})
	return out, nil
}

// replaced joins what is gone from a path and what is new there: it is modified, or nothing that anybody sees.
func (w *changeWalk) replaced(from map[int]int, drop map[int]bool) error {
	at := map[string]int{}
	for i := range w.list {
		if _, moved := from[i]; w.list[i].Kind == '+' && !moved {
			at[w.list[i].Path] = i
		}
	}
	for j := range w.list {
		old := &w.list[j]
		if old.Kind != '-' || drop[j] || w.committedPath(j, from) != old.Path {
			continue
		}
		i, ok := at[old.Path]
		if !ok || w.list[i].Dir != old.Dir {
			continue
		}
		drop[j] = true
		now := &w.list[i]
		if now.now.same(&old.old) {
			drop[i] = true
			continue
		}
		bytes, err := now.now.changed(w.ctx, w.c.cfg.Source, old.old.Content)
		if err != nil {
			return err
		}
		now.Kind, now.Bytes = 'M', bytes
	}
	return nil
}

// movedTo returns what is new and has the inode of the directory that is gone at index j.
func (w *changeWalk) movedTo(j int) (int, bool) {
	i, ok := w.born[w.list[j].ino]
	return i, ok && w.list[i].Dir && w.list[j].Dir
}

// committedPath is the path that what is gone at index j has in the commit: it was found where its directory is now.
func (w *changeWalk) committedPath(j int, from map[int]int) string {
	p := w.list[j].Path
	in := w.list[j].born
	if in < 0 {
		return p
	}
	k, ok := from[in]
	if !ok {
		return p
	}
	return w.committedPath(k, from) + p[len(w.list[in].Path):]
}

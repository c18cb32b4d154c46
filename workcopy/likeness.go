package workcopy

import (
	"context"
	"path"

	"dm/object"
)

// A node that took the place of a committed one, because somebody restored it, or replaced a directory by a copy of it, has
// another inode number, and what it was made from is not what the commit has at its path. What changed for a user is
// then a matter of paths: attributes are compared, and content by the ids of its lists; no byte of a file is read.

// likeness is what can be compared of a node without reading its content.
type likeness struct {
	inode
	content object.Content // the committed content that was there before anybody wrote
	written uint64         // bytes, in whole blocks
	intact  bool           // a file is nothing but content
}

// likeness describes a node. The caller holds mu.
func (n *node) likeness() likeness {
	l := likeness{inode: n.inode, intact: true}
	if n.file == nil {
		return l
	}
	l.content, l.written = n.file.committed, n.dirtyBlocks()*BlockSize
	l.intact = l.written == 0 && n.size == l.content.Size && (n.file.zeroed == nil || n.file.zeroed.IsEmpty())
	for _, v := range n.versions {
		l.intact = l.intact && (v.file.zeroed == nil || v.file.zeroed.IsEmpty())
	}
	return l
}

// same says whether the node is to be seen as e. The time of a directory says only that names in it changed, and how many
// names a file has says nothing about the one that is looked at.
func (l *likeness) same(e *object.Entry) bool {
	if l.isDir() {
		return l.sameAttributes(e)
	}
	return l.asCommitted(e) && l.intact && l.content == e.Content
}

// changed returns how many bytes of a file differ from a committed content. Where neither is known to share anything with
// the other that is the whole file; what was written counts in whole blocks.
func (l *likeness) changed(ctx context.Context, src object.Source, old object.Content) (uint64, error) {
	if !l.isRegular() {
		return 0, nil
	}
	if l.content.Size == 0 {
		return l.size, nil
	}
	n, err := object.ChangedBytes(ctx, src, old, l.content)
	return min(n+l.written, max(l.size, old.Size)), err
}

// foreign says whether a node was made by a restore since the commit. The caller holds mu.
func (c *Copy) foreign(n *node) bool {
	return n.base != nil && (c.commit == nil || n.base.Ino >= c.commit.NextIno)
}

// replacement is a node that is judged by what the commit has at its paths.
type replacement struct {
	likeness
	n      *node
	paths  []string
	subdot string
}

// replacement describes a changed node. The caller holds mu.
func (c *Copy) replacement(n *node) replacement {
	return replacement{likeness: n.likeness(), n: n, paths: n.paths(), subdot: n.subdot(c.root)}
}

// paths returns the ways to a node from the root. The caller holds mu.
func (n *node) paths() (list []string) {
	for _, p := range n.places {
		way := p.name
		for d := p.dir; len(d.places) > 0; d = d.places[0].dir {
			way = d.places[0].name + "/" + way
		}
		list = append(list, way)
	}
	return list
}

// paths looks things up in the commit by path, each directory once.
type paths struct {
	c           *Copy
	ctx         context.Context
	root, links object.ID
	dirs        map[string]object.ID
}

// paths begins to look up. The caller holds mu.
func (c *Copy) paths(ctx context.Context) *paths {
	p := &paths{c: c, ctx: ctx, links: c.linkTable(), dirs: map[string]object.ID{}}
	if c.commit != nil {
		p.root = c.commit.Root.Tree
	}
	return p
}

// entry returns what the commit has at a path, but for what has been moved away from there: that is at its new path now.
func (p *paths) entry(way string) (e object.Entry, ok bool, err error) {
	dir, name := path.Split(way)
	tree, err := p.dir(path.Clean(dir))
	if err != nil {
		return e, false, err
	}
	e, ok, err = object.LookupTree(p.ctx, p.c.cfg.Source, tree, name)
	if err != nil || !ok || p.moved(&e, way) {
		return object.Entry{}, false, err
	}
	e, err = p.c.linkEntry(p.ctx, p.links, e)
	return e, true, err
}

func (p *paths) dir(way string) (tree object.ID, err error) {
	if way == "." {
		return p.root, nil
	}
	tree, ok := p.dirs[way]
	if ok {
		return tree, nil
	}
	e, _, err := p.entry(way)
	if err == nil {
		p.dirs[way] = e.Tree // zero for what is not there, or no directory
	}
	return e.Tree, err
}

func (p *paths) moved(e *object.Entry, way string) bool {
	if e.Linked { // it is where its other names are
		return false
	}
	p.c.mu.RLock()
	defer p.c.mu.RUnlock()
	n := p.c.inodes[e.Ino]
	if n == nil || n.nlink == 0 {
		return false
	}
	for _, at := range n.paths() {
		if at == way {
			return false
		}
	}
	return true
}

// count returns what a replacement adds to the figures of its subdot.
func (p *paths) count(r *replacement) (f Figures, err error) {
	for _, way := range r.paths {
		old, ok, err := p.entry(way)
		switch {
		case err != nil:
			return f, err
		case ok && old.IsDir() != r.isDir() && old.IsDir():
			f.Changed += old.Totals.Files
			ok = false
		case ok && r.isDir() && old.IsDir():
			lost, any, err := p.lost(r.n, old.Tree)
			if err != nil {
				return f, err
			}
			f.Changed += lost
			if any {
				f.Dirty = BlockSize
			}
		}
		if ok && r.same(&old) {
			continue
		}
		if !r.isDir() {
			f.Changed++
		}
		bytes, err := r.changed(p.ctx, p.c.cfg.Source, old.Content)
		f.Dirty = max(f.Dirty, bytes, BlockSize)
		return f, err // of a file with several names one is enough
	}
	return f, nil
}

// lost counts the files of a committed directory whose names are not in the one that took its place.
func (p *paths) lost(n *node, tree object.ID) (files uint64, any bool, err error) {
	err = object.WalkTree(p.ctx, p.c.cfg.Source, tree, "", func(e *object.Entry) error {
		p.c.mu.RLock()
		child, known := n.find(e.Name)
		p.c.mu.RUnlock()
		if known && child == nil {
			files, any = files+e.Sums().Files, true
		}
		return nil
	})
	return files, any, err
}

// Restored counts the files that a restore since the base has put where that has none or another content, and the bytes that
// differ. Files and bytes that are among Files and their Dirty are left out.
func (s *Snapshot) Restored(ctx context.Context) (files, bytes uint64, err error) {
	s.c.mu.RLock()
	p := s.c.paths(ctx)
	s.c.mu.RUnlock()
	for _, n := range s.restored {
		v := s.versions[n]
		l := likeness{inode: v.inode, content: n.file.committed, intact: true}
		l.size = l.content.Size
		old, ok, err := p.entry(s.path(v))
		if err != nil {
			return 0, 0, err
		}
		if ok && old.Content == l.content {
			continue
		}
		changed, err := l.changed(ctx, s.c.cfg.Source, old.Content)
		if err != nil {
			return 0, 0, err
		}
		bytes += changed
		if !v.file.changed(l.content.Size) {
			files++
		}
	}
	return files, bytes, nil
}

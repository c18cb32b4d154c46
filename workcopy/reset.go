package workcopy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"dm/internal/errs"
	"dm/object"
)

// Reset makes the working copy show a commit; uncommitted changes are gone. move moves the branch: it is called after the
// intention is durable, so that a crash leaves both at the old commit or, after the next Open, both at the new.
//
// What a process has open stays readable, like a removed file. The top directory and the subdots keep their nodes, so
// that what is mounted on them shows the commit; everything below appears as new inodes, because a kernel with a
// writeback cache never takes the size of an inode from us again.
func (c *Copy) Reset(ctx context.Context, id object.ID, commit *object.Commit, move func() error) error {
	if err := c.alone(ctx); err != nil {
		return err
	}
	defer c.commits.unlock()
	if err := c.begin(true); err != nil {
		return err
	}
	c.journal.id(recordReset, id)
	if err := c.end(nil); err != nil {
		return err
	}
	c.mu.RLock()
	lsn := c.journal.lsn()
	c.mu.RUnlock()
	if err := c.journal.sync(lsn, lsn); err != nil {
		return err
	}
	kept, top, err := c.keptDirs(ctx, commit)
	if err != nil {
		return err
	}
	// What a reset that was cut short has left there must not be taken for bytes of this one.
	if err := os.RemoveAll(filepath.Join(c.path, "data", fmt.Sprint(c.gen+1))); err != nil {
		return err
	}
	if err := move(); err != nil {
		return err
	}
	stale, k, err := c.switchTo(id, commit, kept, top)
	if err != nil {
		return err
	}
	if err := c.compact(); err != nil {
		return err
	}
	if k != nil {
		for _, d := range stale {
			if err := k.Invalidate(d.dir, d.names); err != nil {
				return fmt.Errorf("invalidate names: %w", err)
			}
		}
	}
	return nil
}

// switchTo begins the new generation, in memory and in the journal.
func (c *Copy) switchTo(id object.ID, commit *object.Commit, kept map[string]keptDir, top []string) ([]staleNames, Kernel, error) {
	if err := c.begin(true); err != nil {
		return nil, nil, err
	}
	stale := c.replaceAll(id, commit, kept, top)
	c.journal.id(recordSwitch, id) // records behind it speak of the new generation
	k := c.kernel
	return stale, k, c.end(nil)
}

// replayReset finishes a reset whose branch had moved when the server ended.
func (c *Copy) replayReset(ctx context.Context, id object.ID) error {
	commit, err := readCommit(ctx, c.cfg.Source, id)
	if err != nil {
		return err
	}
	c.replaceAll(id, commit, nil, nil)
	return nil
}

// keptDir is a subdot of the commit that a reset goes to.
type keptDir struct {
	entry *object.Entry
	names []string
}

// keptDirs reads the commit's subdots and, for each directory that keeps its node, the names in it: the kernel may
// remember that they do not exist.
func (c *Copy) keptDirs(ctx context.Context, commit *object.Commit) (kept map[string]keptDir, top []string, err error) {
	kept = map[string]keptDir{}
	if commit == nil {
		return kept, nil, nil
	}
	err = object.WalkTree(ctx, c.cfg.Source, commit.Root.Tree, "", func(e *object.Entry) error {
		if !e.IsDir() {
			top = append(top, e.Name)
			return nil
		}
		entry := *e
		d := keptDir{entry: &entry}
		err := object.WalkTree(ctx, c.cfg.Source, e.Tree, "", func(child *object.Entry) error {
			d.names = append(d.names, child.Name)
			return nil
		})
		kept[e.Name] = d
		return err
	})
	return kept, top, err
}

// staleNames are names of a directory that the kernel may remember wrongly.
type staleNames struct {
	dir   NodeID
	names []string
}

// replaceAll starts a new generation that shows commit. The caller holds mu.
func (c *Copy) replaceAll(id object.ID, commit *object.Commit, kept map[string]keptDir, top []string) []staleNames {
	old := c.root
	oldDirs := map[string]*node{}
	for name := range kept {
		if n, known := old.find(name); known && n != nil && n.isDir() {
			oldDirs[name] = n
		} else {
			top = append(top, name)
		}
	}
	stale := []staleNames{{RootID, knownNames(old, oldDirs, top)}}
	for name, n := range oldDirs {
		stale = append(stale, staleNames{n.id, knownNames(n, nil, kept[name].names)})
	}

	refs := old.refs
	nodes := c.nodes
	c.gen++
	c.nodes, c.inodes = map[NodeID]*node{}, map[uint64]*node{}
	c.dirty = map[*node]struct{}{}
	c.epoch++
	c.promotions = map[*node]struct{}{}
	for _, d := range c.dead { // they go with their generation
		d.file.forget()
	}
	c.dead = nil
	c.setBase(id, commit)
	c.root.refs = refs
	for _, n := range nodes {
		c.orphan(n)
	}
	for name, n := range oldDirs {
		c.keepDir(n, kept[name].entry)
	}
	if commit == nil {
		c.mark(c.root)
	}
	return stale
}

// knownNames returns the names of a directory that the kernel may know, and those it may know not to exist, but for
// directories that keep their nodes.
func knownNames(n *node, except map[string]*node, also []string) (names []string) {
	seen := map[string]bool{}
	add := func(name string) {
		if _, kept := except[name]; !kept && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	for _, m := range []map[string]*node{n.dir.loaded, n.changed()} {
		for name := range m {
			add(name)
		}
	}
	for _, name := range also {
		add(name)
	}
	return names
}

// orphan makes a node of an earlier generation what a removed file is: of use to those who have it open.
func (c *Copy) orphan(n *node) {
	n.nlink, n.places, n.epoch, n.logged, n.versions, n.stray = 0, nil, 0, false, nil, true
	if n.dir != nil {
		n.dir = &directory{changes: n.dir.changes + 1}
	}
	if n.refs > 0 && n.id != RootID {
		c.nodes[n.id] = n
	} else if n.file != nil {
		n.file.forget()
	}
}

// keepDir puts an orphaned directory back to work for a committed entry.
func (c *Copy) keepDir(n *node, e *object.Entry) {
	fresh := c.fromEntry(e)
	fresh.id, fresh.refs = n.id, n.refs
	fresh.dir.changes = n.dir.changes + 1
	*n = *fresh
	c.add(n)
	n.addPlace(c.root, e.Name)
	c.root.dir.load(e.Name, n)
}

// dropGenerations removes the backing files of earlier generations that nobody has open any more.
func (c *Copy) dropGenerations() error {
	c.mu.RLock()
	now, inUse := c.gen, map[uint32]bool{}
	for id, n := range c.nodes {
		if n.file != nil {
			inUse[uint32(id>>GenerationShift)] = true
		}
	}
	c.mu.RUnlock()
	dirs, err := os.ReadDir(filepath.Join(c.path, "data"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		g, err := strconv.ParseUint(d.Name(), 10, 32)
		if err != nil || uint32(g) >= now || inUse[uint32(g)] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(c.path, "data", d.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Graft replaces what is at path by a committed entry with everything below it; a nil entry removes it. Parents must
// exist. links is the link table of the commit the entry is from. The bytes stay in the store until they are read.
//
// What is to come is made first, in no directory, and takes the place of the old at once where that is no directory. A
// directory is emptied before: killed meanwhile, it has lost some of its names, and Graft is to be called again.
func (c *Copy) Graft(ctx context.Context, path string, e *object.Entry, links object.ID) error {
	if err := c.alone(ctx); err != nil {
		return err
	}
	defer c.commits.unlock()
	parent, name, err := c.walkTo(ctx, path)
	if err != nil {
		return err
	}
	defer c.Forget(parent, 1)
	if e == nil {
		err = c.removeAll(ctx, parent, name)
	} else {
		err = c.graftOver(ctx, parent, name, e, links)
	}
	if err != nil {
		return err
	}
	c.mu.RLock()
	k := c.kernel
	c.mu.RUnlock()
	if k != nil {
		return k.Invalidate(parent, []string{name})
	}
	return nil
}

func (c *Copy) graftOver(ctx context.Context, parent NodeID, name string, e *object.Entry, links object.ID) (err error) {
	g := &grafter{c: c, links: links, linked: map[uint64]*node{}}
	defer func() {
		if err != nil {
			g.giveUp()
		}
	}()
	n, err := g.build(ctx, e)
	if err != nil {
		return err
	}
	r := &ref{id: parent, name: name}
	if err := c.resolve(ctx, true, true, r); err != nil {
		return err
	}
	if r.child != nil && r.child.isDir() {
		c.end(nil)
		if err := c.removeAll(ctx, parent, name); err != nil {
			return err
		}
		if err := c.resolve(ctx, true, true, r); err != nil {
			return err
		}
	}
	old := r.child
	if old != nil && old.isDir() {
		return c.end(errs.New(errs.Conflict, "%s was made anew meanwhile", name))
	}
	if old != nil {
		c.unbind(r.dir, name, old)
	}
	c.bind(r.dir, name, n)
	g.made = nil // in place
	if old != nil {
		c.loseLink(old)
	}
	c.stampDir(r.dir)
	return c.end(nil, r.dir, n)
}

// walkTo resolves the directory of a path and counts a reference on it.
func (c *Copy) walkTo(ctx context.Context, path string) (dir NodeID, name string, err error) {
	parts := strings.Split(path, "/")
	dir, _, err = c.Lookup(ctx, RootID, ".")
	for _, p := range parts[:len(parts)-1] {
		if err != nil {
			break
		}
		var next NodeID
		next, _, err = c.Lookup(ctx, dir, p)
		c.Forget(dir, 1)
		dir = next
	}
	name = parts[len(parts)-1]
	if err == nil && !object.ValidName(name) {
		c.Forget(dir, 1)
		err = errs.New(errs.Usage, "%q is not a path inside a dot", path)
	}
	if err == syscall.ENOENT || err == syscall.ENOTDIR {
		err = errs.New(errs.NotFound, "the directory of %s does not exist: %w", path, err)
	}
	return dir, name, err
}

// removeAll removes a name and everything below it.
func (c *Copy) removeAll(ctx context.Context, dir NodeID, name string) error {
	id, a, err := c.Lookup(ctx, dir, name)
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Forget(id, 1)
	if a.Mode&object.ModeType != object.ModeDir {
		return c.Unlink(ctx, dir, name)
	}
	for {
		var names []string
		if err := c.ReadDir(ctx, id, 0, func(e DirEntry) bool {
			names = append(names, e.Name)
			return true
		}); err != nil {
			return err
		}
		for _, child := range names {
			if err := c.removeAll(ctx, id, child); err != nil {
				return err
			}
		}
		if err := c.Rmdir(ctx, dir, name); err != syscall.ENOTEMPTY {
			return err
		}
	}
}

// grafter builds nodes for a committed subtree, with inode numbers of their own: those in the entries may be in use.
type grafter struct {
	c      *Copy
	links  object.ID
	linked map[uint64]*node // by the inode number in the commit
	made   []*node
}

// giveUp forgets what was built: it is in no directory. The next Open does the same with what a killed server has left.
func (g *grafter) giveUp() {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	for _, n := range g.made {
		n.nlink, n.places = 0, nil
		g.c.discard(n)
	}
}

func (g *grafter) build(ctx context.Context, e *object.Entry) (*node, error) {
	c := g.c
	if e.Linked {
		if n := g.linked[e.Ino]; n != nil {
			return n, nil
		}
		full, ok, err := object.LookupTree(ctx, c.cfg.Source, g.links, object.LinkName(e.Ino))
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errs.New(errs.Damaged, "hard link %s has no entry in its commit's link table", e.Name)
		}
		full.Name = e.Name
		e = &full
	}
	n, err := g.make(e)
	if err != nil || !e.IsDir() {
		return n, err
	}
	err = object.WalkTree(ctx, c.cfg.Source, e.Tree, "", func(child *object.Entry) error {
		m, err := g.build(ctx, child)
		if err != nil {
			return err
		}
		if err := c.begin(false); err != nil {
			return err
		}
		if child.Linked && len(m.places) > 0 {
			m.nlink++
			c.journal.inode(m)
		}
		c.bind(n, child.Name, m)
		n.mtime = Time{e.Sec, e.Nsec}
		c.journal.inode(n)
		return c.end(nil, n, m)
	})
	return n, err
}

// make makes one node like a committed entry; a directory is empty at first.
func (g *grafter) make(e *object.Entry) (*node, error) {
	c := g.c
	if err := c.begin(false); err != nil {
		return nil, err
	}
	own := *e
	own.Ino, own.Nlink = c.nextIno, 0
	c.nextIno++
	if own.IsDir() {
		own.Tree, own.Totals = object.ID{}, object.Totals{}
	}
	n := c.fromEntry(&own)
	if e.Nlink > 0 {
		n.linked = true
		g.linked[e.Ino] = n
	}
	if n.file != nil {
		n.file.unknown = false
		n.file.partial, n.file.part = n.size > 0, n.size > 0
	}
	c.add(n)
	g.made = append(g.made, n)
	n.logged = true
	c.journal.base(&own)
	c.mark(n)
	c.journal.inode(n)
	if n.file != nil && n.file.partial {
		c.journal.blocks(n, blocksPartial, 0, 0)
	}
	return n, c.end(nil, n)
}

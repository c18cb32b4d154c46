package workcopy

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"dm/object"
)

// Root builds the trees that the commit needs anew, along the paths of what changed, and stores them. Every file of Files
// must have its content set. It returns the commit's root, link table and next inode number.
func (s *Snapshot) Root(ctx context.Context, sink object.Sink) (root object.Entry, links object.ID, nextIno uint64, err error) {
	s.entries = make(map[*node]*object.Entry, len(s.nodes))
	c := s.c
	if s.versions[c.root] == nil { // no name and nothing with a single name changed
		root = s.commit.Root
	} else {
		e, err := s.entry(ctx, sink, c.root, "")
		if err != nil {
			return root, links, 0, err
		}
		root = *e
	}
	links, err = s.links(ctx, sink)
	return root, links, s.nextIno, err
}

// entry describes a frozen node and, below a directory, builds what changed.
func (s *Snapshot) entry(ctx context.Context, sink object.Sink, n *node, name string) (*object.Entry, error) {
	e := s.versions[n].toEntry(name, n.ino)
	switch {
	case n.isRegular():
		e.Content = s.content(n)
	case n.isDir():
		edits, err := s.edits(ctx, sink, n)
		if err != nil {
			return nil, err
		}
		e.Tree, e.Totals, err = object.EditTree(ctx, s.c.cfg.Source, sink, n.dir.tree, edits)
		if err != nil {
			return nil, err
		}
	}
	s.entries[n] = &e
	return &e, nil
}

// content returns what the file was chunked to, or what it was before if it did not have to be.
func (s *Snapshot) content(n *node) object.Content {
	if c := s.versions[n].file.content; c != nil {
		return *c
	}
	return n.file.committed
}

// edits lists the changed names of a directory with their new entries.
func (s *Snapshot) edits(ctx context.Context, sink object.Sink, n *node) ([]object.Edit, error) {
	touched := s.versions[n].touched
	edits := make([]object.Edit, 0, len(touched))
	for name, child := range touched {
		v := s.versions[child]
		switch {
		case child == nil:
			edits = append(edits, object.Edit{Name: name})
		case v == nil:
			return nil, fmt.Errorf("inode %d is in a changed directory and was not frozen", child.ino)
		case v.linked:
			e := object.Entry{Name: name, Ino: child.ino, Mode: v.mode & object.ModeType, Linked: true}
			edits = append(edits, object.Edit{Name: name, Entry: &e})
		default:
			e, err := s.entry(ctx, sink, child, name)
			if err != nil {
				return nil, err
			}
			edits = append(edits, object.Edit{Name: name, Entry: e})
		}
	}
	sort.Slice(edits, func(i, j int) bool { return edits[i].Name < edits[j].Name })
	return edits, nil
}

// links builds the table of hard-linked inodes.
func (s *Snapshot) links(ctx context.Context, sink object.Sink) (object.ID, error) {
	var table object.ID
	if s.commit != nil {
		table = s.commit.Links
	}
	var edits []object.Edit
	for n, v := range s.versions {
		if !v.linked {
			continue
		}
		name := object.LinkName(n.ino)
		if v.nlink == 0 {
			edits = append(edits, object.Edit{Name: name})
			continue
		}
		e := v.toEntry(name, n.ino)
		e.Nlink = v.nlink
		if n.isRegular() {
			e.Content = s.content(n)
		}
		s.entries[n] = &e
		edits = append(edits, object.Edit{Name: name, Entry: &e})
	}
	if len(edits) == 0 {
		return table, nil
	}
	sort.Slice(edits, func(i, j int) bool { return edits[i].Name < edits[j].Name })
	table, _, err := object.EditTree(ctx, s.c.cfg.Source, sink, table, edits)
	return table, err
}

// Done says that the branch is at the commit named to Prepare: what was frozen is clean unless it changed since.
func (s *Snapshot) Done(context.Context) error {
	defer s.c.commits.unlock()
	defer s.close()
	if err := s.finish(s.next); err != nil {
		return err
	}
	return s.c.compact()
}

func readCommit(ctx context.Context, src object.Source, id object.ID) (*object.Commit, error) {
	b, err := src.Get(ctx, object.KindCommit, id)
	if err != nil {
		return nil, err
	}
	return object.DecodeCommit(b)
}

// finish makes the prepared commit the base. The commit's link table counts at once: until all nodes are settled, those
// it speaks of are still in memory. A node that is changed before its turn is settled first, as it is when the journal is
// replayed.
func (s *Snapshot) finish(commit *object.Commit) error {
	c := s.c
	err := c.begin(true)
	if err != nil { // the branch has moved: memory follows, and nothing that the journal could misunderstand comes after
		c.mu.Lock()
		c.readonly = true
		c.id, c.commit, s.done = s.prepared, commit, true
		c.mu.Unlock()
	} else {
		c.id, c.commit, s.done = s.prepared, commit, true
		c.journal.id(recordDone, s.prepared)
		err = c.end(nil)
	}
	s.each(func(n *node) { c.settleNode(s, n) })
	s.leave()
	return err
}

// settling returns the commit that took place and whose nodes are being settled; nil: none. The caller holds mu.
func (c *Copy) settling() *Snapshot {
	if len(c.snaps) > 0 && c.snaps[0].done {
		return c.snaps[0]
	}
	return nil
}

// settleNode gives a node its new committed state. The caller holds mu.
func (c *Copy) settleNode(s *Snapshot, n *node) {
	fr := n.at(s)
	if fr == nil {
		return
	}
	n.dropVersion(fr)
	if fr.file != nil {
		fr.file.end()
	}
	if n.epoch == s.epoch {
		n.epoch = 0
	}
	e := s.entries[n]
	if e == nil { // it had no name any more at the cut
		return
	}
	n.base = e
	if n.file != nil {
		n.file.rebase(e.Content, n.size)
	}
	if n.dir == nil {
		return
	}
	n.dir.tree = e.Tree
	later := n.changed()
	for name, child := range fr.touched {
		if _, changed := later[name]; !changed && child != nil {
			n.dir.load(name, child)
		}
	}
}

// leave takes the snapshot off those that are being made.
func (s *Snapshot) leave() {
	c := s.c
	c.mu.Lock()
	c.snaps = slices.DeleteFunc(slices.Clone(c.snaps), func(o *Snapshot) bool { return o == s })
	c.mu.Unlock()
	s.each(c.unref)
}

// Abort gives the snapshot up: everything is dirty as before. It may be called after Done, and does nothing then.
func (s *Snapshot) Abort() {
	if s.ended {
		return
	}
	defer s.c.commits.unlock()
	s.giveUp(recordAbort)
}

// giveUp notes in the journal that the snapshot ends, the oldest or the latest, and ends it.
func (s *Snapshot) giveUp(record byte) {
	c := s.c
	if err := c.begin(true); err == nil {
		c.journal.mark(record)
		if err := c.end(nil); err != nil {
			c.log.Error("note an aborted commit in the journal", "err", err)
		}
	}
	s.thaw()
	s.close()
}

// thaw makes everything that was frozen dirty again, or a part of the commit that comes next.
func (s *Snapshot) thaw() {
	s.each(func(n *node) { s.c.thaw(s, n) })
	s.leave()
}

// thaw adds what was changed before the cut to what was changed since. The caller holds mu.
func (c *Copy) thaw(s *Snapshot, n *node) {
	c.freeze(n) // not kept yet, for this commit or the next
	fr := n.at(s)
	if fr == nil {
		return
	}
	if i := slices.Index(c.snaps, s) + 1; i < len(c.snaps) {
		c.passOn(n, fr, c.snaps[i])
		return
	}
	n.dropVersion(fr)
	if n.nlink > 0 || n.refs > 0 || n.inTable() {
		n.epoch = c.epoch
		c.dirty[n] = struct{}{}
	}
	if n.dir != nil {
		for name, child := range fr.touched {
			if _, later := n.dir.touched[name]; !later {
				n.dir.touch(name, child)
			}
		}
	}
	if n.file != nil {
		n.file.add(fr.file.marks, blocksUpTo(n.size))
		fr.file.end()
	}
}

// passOn makes a version of a commit that is given up a part of the next one's. The caller holds mu.
func (c *Copy) passOn(n *node, v *frozen, next *Snapshot) {
	w := n.at(next)
	if w == nil { // not changed between the two cuts
		if n.epoch == v.snap.epoch {
			n.epoch = next.epoch
		}
		v.snap = next
		if v.file != nil {
			v.file.content = nil
			v.file.released.Store(false)
		}
		if _, have := next.dirty[n]; !have {
			next.dirty[n] = struct{}{}
			if next.listed {
				next.nodes = append(next.nodes, n)
			}
		}
		return
	}
	n.dropVersion(v)
	for name, child := range v.touched {
		if _, later := w.touched[name]; !later {
			if w.touched == nil {
				w.touched = map[string]*node{}
			}
			w.touched[name] = child
		}
	}
	if w.file != nil {
		w.file.inherit(v.file)
	}
}

// close lets go of what a snapshot holds besides its nodes.
func (s *Snapshot) close() {
	s.ended = true
	s.undo.leave()
}

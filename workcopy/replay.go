package workcopy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"dm/internal/errs"
	"dm/object"
)

// replayer applies journal frames to a working copy that is being opened.
type replayer struct {
	c        *Copy
	ctx      context.Context
	prepared object.ID // of the oldest open cut
	reset    object.ID
	gone     []uint64
	before   int64 // where the journal file before this one ended
}

// errGap says that the end of a journal file is lost and the next one was written behind it.
var errGap = errors.New("gap in the journal")

func (r *replayer) node(ino uint64) *node { return r.c.inodes[ino] }

func (r *replayer) dir(ino uint64) (*node, error) {
	n := r.node(ino)
	if n == nil || n.dir == nil {
		return nil, fmt.Errorf("%w: inode %d is no directory", errRecord, ino)
	}
	return n, nil
}

// frame applies the records of one operation.
func (r *replayer) frame(body []byte) error {
	r.c.journal.begin() // what the steps record goes nowhere
	f := &fields{b: body}
	for len(f.b) > 0 && f.err == nil {
		kind := f.byte()
		if err := r.record(kind, f); err != nil {
			return err
		}
	}
	return f.err
}

func (r *replayer) record(kind byte, f *fields) error {
	switch kind {
	case recordInode:
		return r.inode(f)
	case recordBase:
		return r.base(f)
	case recordBind, recordName:
		return r.bind(f, kind == recordName)
	case recordBlocks:
		return r.blocks(f)
	case recordTotals:
		return r.totals(f)
	case recordGone:
		r.gone = append(r.gone, f.uint())
	case recordComplete:
		if n := r.node(f.uint()); n != nil && n.file != nil {
			n.file.whole()
			n.file.part, n.file.unknown = false, false
			n.file.look()
		}
	case recordCut:
		return r.cut()
	case recordAbort:
		if len(r.c.snaps) > 0 {
			r.abort(r.c.snaps[0])
		}
	case recordWithdraw:
		if n := len(r.c.snaps); n > 0 {
			r.abort(r.c.snaps[n-1])
		}
	case recordPrepare:
		r.prepared = f.id()
	case recordDone:
		r.prepared = f.id()
		if len(r.c.snaps) > 0 {
			return r.done()
		}
	case recordReset:
		r.reset = f.id()
	case recordSwitch:
		r.reset, r.gone = object.ID{}, nil
		return r.c.replayReset(r.ctx, f.id())
	case recordAfter:
		if end := f.uint(); end > uint64(r.before) {
			return errGap
		}
	case recordNextIno:
		r.c.nextIno = max(r.c.nextIno, f.uint())
	default:
		return fmt.Errorf("%w: kind %d", errRecord, kind)
	}
	return nil
}

func (r *replayer) inode(f *fields) error {
	c := r.c
	ino, in := f.inode()
	if f.err != nil {
		return f.err
	}
	n := r.node(ino)
	if ino == 0 || in.size > maxSize || ino == 1 && in.mode&object.ModeType != object.ModeDir ||
		n != nil && (n.mode^in.mode)&object.ModeType != 0 {
		return fmt.Errorf("%w: inode %d of mode %o", errRecord, ino, in.mode)
	}
	if n == nil {
		n = &node{id: c.nodeID(ino), ino: ino, logged: true, inode: in}
		switch {
		case n.isDir():
			n.dir = &directory{}
		case n.isRegular():
			n.file = &content{}
			n.file.init(c, n.id)
			n.file.look()
		}
		c.add(n)
		c.nextIno = max(c.nextIno, ino+1)
	}
	c.mark(n)
	if in.linked && !n.linked {
		c.setLinked(n)
	}
	if n.isRegular() && in.size != n.size {
		r.resize(n, in.size)
	}
	n.inode = in
	return nil
}

// resize follows a size and forgets the blocks behind it.
func (r *replayer) resize(n *node, size uint64) {
	if size < n.size {
		n.file.dropBlocks(blocksUpTo(size))
	}
	r.c.resize(n, size)
}

func (r *replayer) base(f *fields) error {
	e, _, err := object.DecodeEntry([]byte(f.str()))
	if err != nil {
		return err
	}
	n := r.node(e.Ino)
	if n == nil {
		n = r.c.fromEntry(&e)
		r.c.add(n)
	}
	if (n.mode^e.Mode)&object.ModeType != 0 {
		return fmt.Errorf("%w: inode %d of mode %o came from one of mode %o", errRecord, n.ino, n.mode, e.Mode)
	}
	n.base, n.logged = &e, true
	return nil
}

func (r *replayer) bind(f *fields, changed bool) error {
	c := r.c
	dirIno, name, ino := f.uint(), f.str(), f.uint()
	if f.err != nil {
		return f.err
	}
	dir, err := r.dir(dirIno)
	if err != nil {
		return err
	}
	var child *node
	if ino != 0 {
		if child = r.node(ino); child == nil {
			return fmt.Errorf("%w: name of unknown inode %d", errRecord, ino)
		}
	}
	old, known := dir.find(name)
	if known && old == child {
		if changed {
			c.mark(dir)
			dir.dir.touch(name, child)
		}
		return nil
	}
	if !changed {
		if child != nil && !(known && old != nil) {
			child.addPlace(dir, name)
			dir.dir.load(name, child)
		}
		return nil
	}
	if old != nil {
		c.unbind(dir, name, old)
	}
	c.bind(dir, name, child)
	return nil
}

func (r *replayer) blocks(f *fields) error {
	ino, flags, size, limit, mtime, first, count := f.uint(), f.byte(), f.uint(), f.uint(), f.time(), f.uint(), f.uint()
	if f.err != nil {
		return f.err
	}
	n := r.node(ino)
	if n == nil || n.file == nil || size > maxSize || max(first, count) > maxSize/BlockSize || first+count > maxSize/BlockSize {
		return fmt.Errorf("%w: blocks of inode %d", errRecord, ino)
	}
	file := n.file
	if flags&blocksPartial != 0 && (file.unknown || !file.partial) {
		if !file.look() {
			file.partial, file.part = true, true
			_, err := os.Lstat(file.path + partSuffix)
			file.exists = err == nil
		}
	}
	file.limit = min(limit, file.committed.Size)
	if flags&(blocksDirty|blocksZero) != 0 {
		r.c.mark(n)
	}
	if size != n.size {
		r.resize(n, size)
	}
	n.mtime = mtime
	switch {
	case count == 0:
	case flags&blocksDirty != 0:
		file.markDirty(first, first+count)
	case flags&blocksZero != 0:
		file.markZero(first, first+count)
	case file.partial:
		addRange(&file.local, first, first+count)
	}
	return nil
}

func (r *replayer) totals(f *fields) error {
	n, err := r.dir(f.uint())
	subdirs, files, bytes := f.uint(), f.uint(), f.uint()
	if err == nil && f.err == nil {
		n.dir.subdirs, n.dir.files, n.dir.bytes = uint32(subdirs), files, bytes
	}
	return err
}

func (r *replayer) cut() error {
	if len(r.c.snaps) == maxCuts {
		return fmt.Errorf("%w: more than %d cuts", errRecord, maxCuts)
	}
	r.c.startEpoch().keep()
	return nil
}

func (r *replayer) abort(s *Snapshot) {
	if s == r.c.snaps[0] {
		r.prepared = object.ID{}
	}
	s.thaw()
}

// done applies a commit that took place: its trees say what the frozen nodes are now.
func (r *replayer) done() error {
	s := r.c.snaps[0]
	s.collect()
	commit, err := readCommit(r.ctx, r.c.cfg.Source, r.prepared)
	if err != nil {
		return err
	}
	s.prepared = r.prepared
	s.entries = map[*node]*object.Entry{}
	for _, n := range s.nodes {
		if v := s.versions[n]; v == nil || v.nlink == 0 || !s.attached(n) {
			continue
		}
		e, err := s.committed(r.ctx, commit, n)
		if err != nil {
			return err
		}
		s.entries[n] = e
	}
	err = s.finish(commit)
	r.prepared = object.ID{}
	return err
}

// attached says whether a node was in the tree at the cut, or in the link table: a graft that failed leaves nodes which are
// in neither.
func (s *Snapshot) attached(n *node) bool {
	for n != s.c.root {
		fr := s.versions[n]
		if fr == nil || fr.linked || len(fr.places) == 0 {
			return fr != nil && fr.linked
		}
		n = fr.places[0].dir
	}
	return true
}

// committed finds the entry of a frozen node in a commit.
func (s *Snapshot) committed(ctx context.Context, commit *object.Commit, n *node) (*object.Entry, error) {
	e, tree := commit.Root, commit.Root.Tree
	path := strings.Split(s.path(s.versions[n]), "/")
	if n == s.c.root {
		return &e, nil
	}
	if s.versions[n].linked {
		tree, path = commit.Links, []string{object.LinkName(n.ino)}
	}
	for _, name := range path {
		next, ok, err := object.LookupTree(ctx, s.c.cfg.Source, tree, name)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errs.New(errs.Damaged, "commit has no %q", strings.Join(path, "/"))
		}
		e, tree = next, next.Tree
	}
	return &e, nil
}

// end decides what the journal left open.
func (r *replayer) end(branch object.ID) error {
	c := r.c
	if len(c.snaps) > 0 && !r.prepared.IsZero() && r.prepared == branch {
		if err := r.done(); err != nil {
			return err
		}
	}
	for len(c.snaps) > 0 {
		r.abort(c.snaps[0])
	}
	for _, ino := range r.gone {
		n := r.node(ino)
		if n != nil && n.nlink > 0 {
			continue
		}
		if n != nil {
			c.drop(n)
			if !n.inTable() {
				delete(c.dirty, n)
			}
		}
		b := &backing{}
		b.init(c, c.nodeID(ino))
		if b.look() {
			c.dead = append(c.dead, corpse{ino: ino, file: b})
		}
	}
	r.dropDetached()
	if !r.reset.IsZero() && r.reset == branch && c.id != branch {
		return c.replayReset(r.ctx, branch)
	}
	return nil
}

// dropDetached forgets what has no way to the top: files without a name that were open when the server ended, and what a
// graft had made and not yet put in place. A hard-linked file of the commit may have names that nobody has looked at.
func (r *replayer) dropDetached() {
	c := r.c
	attached := map[*node]bool{c.root: true}
	var find func(n *node) bool
	find = func(n *node) bool {
		is, known := attached[n]
		if !known {
			is = n.nlink > 0 && n.inTable()
			for _, p := range n.places {
				is = is || n.nlink > 0 && find(p.dir)
			}
			attached[n] = is
		}
		return is
	}
	for _, n := range c.nodes {
		if !find(n) {
			c.discard(n)
		}
	}
}

// discard forgets a node that nobody knows and that is in no tree. The caller holds mu, or replays.
func (c *Copy) discard(n *node) {
	c.drop(n)
	if !n.inTable() {
		delete(c.dirty, n)
	}
	if n.file != nil {
		c.dead = append(c.dead, corpse{ino: n.ino, file: &n.file.backing, lsn: c.journal.lsn()})
	}
}

package workcopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/RoaringBitmap/roaring/v2"
	"golang.org/x/sys/unix"

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

// recover brings backing files in line with the journal after the server or the machine was stopped without warning.
func (c *Copy) recover(ctx context.Context, h head) error {
	if h.Clean {
		return nil
	}
	now := era(c.path)
	power := h.Era != now || now == ""
	if err := c.checkParts(power); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if n.file == nil || n.stray {
			continue
		}
		c.look(n)
		if power && !n.file.partial {
			continue // the file may be ahead of the journal, too
		}
		if err := n.file.carryOut(n.size); err != nil {
			return err
		}
	}
	if power {
		return c.recoverPowerLoss(ctx)
	}
	return nil
}

// carryOut does what was noted of a truncation or a hole and perhaps not done.
func (f *content) carryOut(size uint64) (err error) {
	if have, ok := f.fileSize(); ok && have > size {
		if err := f.setSize(int64(size), false); err != nil {
			return err
		}
	}
	ranges(f.zeroed, func(first, count uint64) {
		if err == nil {
			err = f.punch(first*BlockSize, (first+count)*BlockSize)
		}
	})
	return err
}

func (b *backing) fileSize() (uint64, bool) {
	info, err := os.Lstat(b.name())
	if err != nil {
		return 0, false
	}
	return uint64(info.Size()), true
}

// eachBacking visits the backing files of the present generation.
func (c *Copy) eachBacking(fn func(ino uint64, part bool, path string) error) error {
	root := filepath.Join(c.path, "data", fmt.Sprint(c.gen))
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, part := strings.CutSuffix(d.Name(), partSuffix)
		ino, perr := strconv.ParseUint(name, 10, 64)
		if perr != nil {
			return nil
		}
		return fn(ino, part, path)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// checkParts looks at the partial files. One of which the journal knows nothing is removed. Of the others a block counts as
// local only if the host's filesystem has bytes for it, or if it is a hole: the journal is written before the bytes, so the
// last write may be noted and not carried out, and after a power cut any that was not synced.
//
// After a power cut blocks that count as committed are taken from the commit: what was overwritten and committed, and not
// synced, may be older here.
func (c *Copy) checkParts(power bool) error {
	found := map[uint64]bool{}
	err := c.eachBacking(func(ino uint64, part bool, path string) error {
		if !part {
			return nil
		}
		found[ino] = true
		if n := c.inodes[ino]; n != nil && n.file != nil && n.file.partial {
			have, err := extents(path)
			if err != nil {
				return err
			}
			n.file.trust(have)
			if power {
				return n.file.dropClean(have)
			}
			return nil
		}
		return os.Remove(path)
	})
	if err != nil {
		return err
	}
	for ino, n := range c.inodes { // the name of a file that was made last may be lost
		if f := n.file; f != nil && f.partial && !found[ino] {
			f.exists = false
			f.trust(roaring.New())
		}
	}
	return nil
}

// recoverPowerLoss finds out what the machine's crash left of files and journal, which were synced independently.
//
// A complete file is compared with the commit, chunk by chunk: what differs is dirty.
func (c *Copy) recoverPowerLoss(ctx context.Context) error {
	c.log.Warn("the machine stopped without warning: comparing local files with the last commit", "copy", c.path)
	suspects := map[uint64]bool{}
	err := c.eachBacking(func(ino uint64, part bool, path string) error {
		if !part {
			suspects[ino] = true
			c.nextIno = max(c.nextIno, ino+1) // the journal may have lost it
		}
		return nil
	})
	if err != nil || len(suspects) == 0 {
		return err
	}
	for ino := range suspects {
		if n := c.inodes[ino]; n != nil && n.file != nil && (n.epoch == c.epoch || n.base == nil) {
			delete(suspects, ino)
			if err := c.compare(ctx, n); err != nil {
				return err
			}
		}
	}
	if c.commit != nil {
		if err := c.compareTree(ctx, c.root, suspects); err != nil {
			return err
		}
	}
	for ino := range suspects { // in no tree: the journal lost the inode with its name
		if err := os.Remove(c.dataPath(c.gen, ino)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// extents returns the blocks of a file for which the host's filesystem has bytes.
func extents(path string) (*roaring.Bitmap, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	have := roaring.New()
	for off := int64(0); ; {
		start, err := unix.Seek(int(file.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find the data of %s: %w", path, err)
		}
		end, err := unix.Seek(int(file.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find the data of %s: %w", path, err)
		}
		// The host's blocks may be smaller: of one that was a hole it has only what was written.
		have.AddRange(blockOf(uint64(start)), blocksUpTo(uint64(end)))
		off = end
	}
	return have, nil
}

// trust takes as local, and as changed, only blocks of which the host has bytes, and holes.
func (f *content) trust(have *roaring.Bitmap) {
	lost := cloneSet(f.dirty)
	lost.AndNot(have)
	if f.hole != nil {
		have.Or(f.hole)
		ranges(roaring.And(lost, f.hole), func(first, count uint64) { f.markZero(first, first+count) })
	}
	for _, set := range []*roaring.Bitmap{f.local, f.dirty} {
		if set != nil {
			set.And(have)
		}
	}
}

// dropClean gives up the blocks that are there and count as committed.
func (f *content) dropClean(have *roaring.Bitmap) (err error) {
	changed := roaring.Or(cloneSet(f.dirty), cloneSet(f.zeroed))
	if f.local != nil {
		f.local.And(changed)
	}
	ranges(roaring.AndNot(have, changed), func(first, count uint64) {
		if err == nil { // where the commit has a hole nothing is written over them
			err = f.punch(first*BlockSize, (first+count)*BlockSize)
		}
	})
	return err
}

// compareTree compares those files below a directory that are as committed, as far as the journal knows, and have a
// complete backing file. It takes them off suspects.
func (c *Copy) compareTree(ctx context.Context, dir *node, suspects map[uint64]bool) error {
	var found []*object.Entry
	err := object.WalkTree(ctx, c.cfg.Source, dir.dir.tree, "", func(e *object.Entry) error {
		if e.IsDir() || suspects[e.Ino] {
			entry := *e
			found = append(found, &entry)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range found {
		if _, changed := dir.find(e.Name); changed {
			continue // below, if it is a directory
		}
		full, err := c.linkEntry(ctx, c.linkTable(), *e)
		if err != nil {
			return err
		}
		if _, err := c.loadEntry(dir, &full); err != nil {
			return err
		}
	}
	for _, names := range []map[string]*node{dir.dir.loaded, dir.changed()} {
		for _, child := range names {
			switch {
			case child == nil:
			case child.isDir():
				err = c.compareTree(ctx, child, suspects)
			case suspects[child.ino]:
				delete(suspects, child.ino)
				err = c.compare(ctx, child)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// compare marks as dirty what a complete backing file holds otherwise than the commit. Its size and time are the host's.
func (c *Copy) compare(ctx context.Context, n *node) error {
	info, err := os.Lstat(n.file.path)
	if err != nil {
		return nil // removed since it was listed, or never written
	}
	n.file.look()
	size := uint64(info.Size())
	if size != n.size {
		c.mark(n)
		if size < n.size {
			n.file.dropBlocks(blocksUpTo(size))
		}
		c.resize(n, size)
	}
	if t := info.ModTime(); t.Unix() > n.mtime.Sec && n.epoch == c.epoch {
		n.mtime = Time{t.Unix(), uint32(t.Nanosecond())}
	}
	if old := n.file.committed.Size; size > old {
		c.mark(n)
		n.file.markDirty(blockOf(old), blocksUpTo(size))
	}
	return object.WalkSpans(ctx, c.cfg.Source, n.file.committed, 0, func(off uint64, s object.Span) error {
		if off >= size {
			return nil
		}
		same, err := n.file.holds(off, s)
		if err != nil {
			return err
		}
		if same { // as committed again, whatever the journal says
			n.file.unmark(blocksUpTo(off), blockOf(min(off+s.Size, size)))
			return nil
		}
		c.mark(n)
		n.file.markDirty(blockOf(off), blocksUpTo(min(off+s.Size, size)))
		return nil
	})
}

// holds says whether the backing file has the bytes of a committed span.
func (b *backing) holds(off uint64, s object.Span) (bool, error) {
	if s.ID.IsZero() {
		return b.zero(off, s.Size)
	}
	if s.Size > object.MaxSize {
		return false, errs.New(errs.Damaged, "chunk %s has a size of %d", s.ID.Short(), s.Size)
	}
	p := make([]byte, s.Size)
	if err := b.readAt(p, int64(off)); err != nil {
		return false, err
	}
	return object.Sum(object.KindChunk, p) == s.ID, nil
}

func (b *backing) zero(off, size uint64) (bool, error) {
	p := make([]byte, min(size, 1<<20))
	for size > 0 {
		q := p[:min(size, uint64(len(p)))]
		if err := b.readAt(q, int64(off)); err != nil {
			return false, err
		}
		for _, v := range q {
			if v != 0 {
				return false, nil
			}
		}
		off, size = off+uint64(len(q)), size-uint64(len(q))
	}
	return true, nil
}

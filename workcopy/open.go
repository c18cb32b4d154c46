package workcopy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/RoaringBitmap/roaring/v2"
	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
)

// Create makes a working copy in dir, which must not exist or be empty, that shows commit; a nil commit, with a zero id,
// makes an empty one. Nothing of the commit is read.
func Create(ctx context.Context, dir string, cfg Config, id object.ID, commit *object.Commit) (*Copy, error) {
	for _, d := range []string{"", "journal", "data"} {
		if err := durable.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "head")); err == nil {
		return nil, errs.New(errs.Conflict, "%s holds a working copy already", dir)
	}
	c := newCopy(dir, cfg)
	c.nextIno = uint64(RootID) + 1
	c.setBase(id, commit)
	if err := c.holdOwn(); err != nil {
		return nil, err
	}
	if err := c.start(1, nil); err != nil {
		c.letGoOwn()
		return nil, err
	}
	return c, nil
}

func newCopy(dir string, cfg Config) *Copy {
	c := &Copy{
		path: dir, cfg: cfg, log: cfg.Log, readonly: cfg.ReadOnly, epoch: 1, flight: &sync.WaitGroup{},
		nodes: map[NodeID]*node{}, inodes: map[uint64]*node{}, dirty: map[*node]struct{}{}, promotions: map[*node]struct{}{},
		aheads: make(chan struct{}, maxReadAheads), wake: make(chan struct{}, 1), cutting: newTurn(), commits: newTurn(),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.files = cfg.Files; c.files == nil {
		c.files = NewOpenFiles(ownFiles)
	}
	return c
}

// setBase puts the root of a commit, or an empty one, in place.
func (c *Copy) setBase(id object.ID, commit *object.Commit) {
	c.id, c.commit = id, commit
	if commit != nil {
		root := commit.Root
		c.root = c.fromEntry(&root)
		c.nextIno = max(c.nextIno, commit.NextIno)
	} else {
		now := c.now()
		c.root = &node{id: RootID, ino: uint64(RootID), dir: &directory{}}
		c.root.inode = inode{mode: object.ModeDir | 0o755, nlink: 2, atime: now, mtime: now, ctime: now}
	}
	c.add(c.root)
}

// start begins to journal in a new file, notes it in head, and runs the background work. was is the head that was found; nil:
// the copy is new.
func (c *Copy) start(seq uint64, was *head) error {
	j, err := createJournal(c.path, seq, 0)
	if err != nil {
		return err
	}
	if was == nil {
		err = j.reserve(false)
	} else {
		err = j.reserveSome()
	}
	if err != nil {
		return errors.Join(err, j.giveUp())
	}
	c.journal = j
	err = c.startJournal(was == nil)
	begun := j.end
	if err == nil {
		err = c.dump()
	}
	if err != nil {
		if err = c.withoutDump(was, begun, err); err != nil {
			return err
		}
	}
	c.life, c.stop = context.WithCancel(context.Background())
	c.tasks.Add(1)
	go c.background(c.life)
	return nil
}

// startJournal writes the first frame of the file that start has made.
func (c *Copy) startJournal(fresh bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		n.logged = false
	}
	j := c.journal
	j.begin()
	j.nextIno(c.nextIno)
	if fresh && c.commit == nil {
		c.root.logged = true
		c.mark(c.root)
		j.inode(c.root)
	}
	_, err := j.commit()
	return err
}

// withoutDump decides what becomes of a start whose dump failed with cause.
func (c *Copy) withoutDump(was *head, begun int64, cause error) error {
	j := c.journal
	// Head may have its new content, though writing it or what came after it failed: then the dump is all there is.
	if h, err := readHead(c.path); err == nil && h.Journal == j.seq || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(cause, err, j.f.Close())
	}
	err := cause
	if was != nil && errs.KindOf(cause) == errs.NoSpace {
		c.log.Warn("no room to open a working copy in order", "copy", c.path, "err", cause)
		err = c.goOn(*was, begun)
	}
	if err != nil {
		return errors.Join(err, j.giveUp())
	}
	return nil
}

// goOn opens a working copy for whose dump the disk has no room: who wants to make room has to get at the files. The journal
// files that head names count on, and behind them the new one up to begun, without the dump. What recovery found out after a
// crash stands in no journal then, so that it has to be done again next time unless there is room for a dump before.
func (c *Copy) goOn(h head, begun int64) error {
	j := c.journal
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		n.logged = false
	}
	if err := j.f.Truncate(begun); err != nil {
		return err
	}
	j.end, j.reserved = begun, begun
	c.owed = !h.Clean
	if h.Clean { // from now on it is not
		h.Clean, h.Era = false, era(c.path)
		if err := c.writeHead(h); err != nil {
			return err
		}
	}
	if err := j.reserveSome(); err != nil {
		c.log.Warn("no room for the journal of a working copy", "copy", c.path, "err", err) // each change says so, too
	}
	return j.sync(j.lsn(), j.lsn())
}

// era tells one life of the page cache over the backing files from another: the kernel's boot, and the mount of the
// filesystem they are on. What was written and not synced in another era may be lost.
func era(dir string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return strings.TrimSpace(string(boot))
	}
	return fmt.Sprintf("%s/%d", strings.TrimSpace(string(boot)), st.Mnt_id)
}

func (c *Copy) head() head {
	h := head{
		Version: headVersion, Generation: c.gen, Journal: c.journal.seq, Era: era(c.path), NextIno: c.nextIno,
	}
	if !c.id.IsZero() {
		h.Base = c.id.String()
	}
	return h
}

// compact writes the overlay to a new journal file and lets go of the old ones. Operations go on meanwhile: the dump
// stands between their records, each node as it is at that moment. While a commit is being made there is more to know than
// a dump says, and it is left for later.
func (c *Copy) compact() error {
	c.dumping.Lock()
	defer c.dumping.Unlock()
	c.mu.RLock()
	open := len(c.snaps) > 0
	c.mu.RUnlock()
	if open {
		return nil
	}
	// Before mu, so that nobody who holds mu waits for a sync that is running.
	c.journal.syncMu.Lock()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		c.journal.syncMu.Unlock()
		return nil
	}
	err := c.journal.next()
	c.journal.syncMu.Unlock()
	if err == nil {
		for _, n := range c.nodes {
			n.logged = false
		}
		c.journal.begin()
		c.journal.nextIno(c.nextIno)
		_, err = c.journal.commit()
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.dump()
}

// dump writes all nodes that are not as committed and makes the present journal file the only one that counts.
func (c *Copy) dump() error {
	c.mu.Lock()
	list := make([]*node, 0, len(c.dirty))
	for n := range c.dirty {
		list = append(list, n)
	}
	for _, n := range c.nodes {
		if n.epoch != c.epoch && !n.stray && n.file != nil && n.file.pinned() {
			list = append(list, n)
		}
	}
	c.mu.Unlock()
	for i := 0; i < len(list); i += slice {
		if err := c.dumpSlice(list[i:min(i+slice, len(list))]); err != nil {
			return err
		}
	}
	if err := c.dumpRest(); err != nil {
		return err
	}
	c.mu.RLock()
	h, lsn := c.head(), c.journal.lsn()
	c.mu.RUnlock()
	if err := c.journal.sync(lsn, lsn); err != nil {
		return err
	}
	if err := c.writeHead(h); err != nil {
		return err
	}
	c.journal.alone()
	c.mu.Lock()
	c.dumped, c.owed = c.journal.end, false
	c.mu.Unlock()
	return removeJournals(c.path, h.Journal)
}

func (c *Copy) dumpSlice(list []*node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range list {
		if c.closed {
			return nil
		}
		if n.nlink == 0 && !n.inTable() {
			continue
		}
		if err := c.journal.reserve(true); err != nil {
			return err
		}
		c.journal.begin()
		if err := c.dumpNode(n); err != nil {
			return err
		}
		if _, err := c.journal.commit(); err != nil {
			return err
		}
	}
	return nil
}

// dumpRest writes what needs all nodes to be there: the sums of directories and the backing files that are to go. The
// directories are those that are changed by now: what was moved while the dump ran, before its own turn came, counts for
// less or more in the journal so far than it has below it.
func (c *Copy) dumpRest() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.journal.reserve(true); err != nil {
		return err
	}
	c.journal.begin()
	for n := range c.dirty {
		if n.dir != nil && n.nlink > 0 {
			c.journal.totals(n)
			if err := c.journal.split(); err != nil {
				return err
			}
		}
	}
	for _, d := range c.dead {
		c.journal.gone(d.ino)
		if err := c.journal.split(); err != nil {
			return err
		}
	}
	_, err := c.journal.commit()
	return err
}

// dumpNode writes all there is to know about a node and its names.
func (c *Copy) dumpNode(n *node) error {
	j := c.journal
	for _, p := range n.places {
		c.dumpPath(p.dir)
	}
	if n.base != nil && n != c.root {
		j.base(n.base)
	}
	if n.epoch == c.epoch {
		j.inode(n)
	}
	n.logged = true
	for _, p := range n.places {
		_, touched := p.dir.dir.touched[p.name]
		j.bind(p.dir, p.name, n, touched)
	}
	var err error
	if n.dir != nil {
		for name, child := range n.dir.touched {
			if child == nil && err == nil {
				j.bind(n, name, nil, true)
				err = j.split()
			}
		}
	}
	if err == nil && n.file != nil {
		err = c.dumpBlocks(n)
	}
	return err
}

// dumpBlocks writes what is known of a file's bytes.
func (c *Copy) dumpBlocks(n *node) (err error) {
	f, j := n.file, c.journal
	switch {
	case f.partial:
		j.blocks(n, blocksPartial, 0, 0)
	case !f.unknown:
		j.complete(n)
	}
	runs := func(set *roaring.Bitmap, flags byte) {
		ranges(set, func(first, count uint64) {
			if err == nil {
				j.blocks(n, flags, first, count)
				err = j.split()
			}
		})
	}
	runs(f.local, blocksLocal|blocksPartial)
	if f.partial && f.dirty != nil && f.hole != nil { // written to a hole
		runs(roaring.And(f.dirty, f.hole), f.flags(blocksZero))
	}
	runs(f.zeroed, f.flags(blocksZero))
	runs(f.dirty, f.flags(blocksDirty))
	return err
}

// dumpPath makes the directories above a node known, each in the place it has now.
func (c *Copy) dumpPath(n *node) {
	if n.logged || n == c.root {
		return
	}
	for _, p := range n.places {
		c.dumpPath(p.dir)
	}
	if n.base != nil {
		c.journal.base(n.base)
	} else {
		c.journal.inode(n)
	}
	n.logged = true
	for _, p := range n.places {
		_, touched := p.dir.dir.touched[p.name]
		c.journal.bind(p.dir, p.name, n, touched)
	}
}

// How often the background work runs. syncEvery is what a crash of the machine may cost of what nobody synced, as with
// the commit interval of ext4.
const (
	syncEvery    = 5 * time.Second
	hurryWait    = 20 * time.Millisecond // so that many removals share one sync
	compactAbove = 64 << 20
)

// background syncs the journal, removes what died, and finishes partial files, until it is stopped.
func (c *Copy) background(ctx context.Context) {
	defer c.tasks.Done()
	every := c.cfg.tick
	if every == 0 {
		every = syncEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.wake:
			time.Sleep(hurryWait)
		}
		if err := c.settleDown(); err != nil {
			c.log.Error("background work on a working copy", "copy", c.path, "err", err)
		}
		c.mu.RLock()
		large := c.journal.end > max(compactAbove, 2*c.dumped)
		c.mu.RUnlock()
		if large && c.commits.try() {
			if err := c.compact(); err != nil {
				c.log.Error("compact journal", "copy", c.path, "err", err)
			}
			c.commits.unlock()
		}
	}
}

func (c *Copy) settleDown() error {
	c.mu.RLock()
	lsn := c.journal.lsn()
	c.mu.RUnlock()
	return errors.Join(c.journal.sync(lsn, lsn), c.reap(), c.promote(), c.dropGenerations())
}

// giveBack frees at once what removed files still hold; it fails if that is nothing.
func (c *Copy) giveBack() error {
	c.mu.RLock()
	lsn, none := c.journal.lsn(), len(c.dead) == 0
	c.mu.RUnlock()
	if none {
		return syscall.ENOSPC
	}
	if err := c.journal.sync(lsn, lsn); err != nil {
		return err
	}
	return c.reap()
}

// reap removes backing files of nodes whose removal is durable: before that, a power cut would bring the name back
// without the bytes.
func (c *Copy) reap() error {
	c.mu.Lock()
	synced := c.journal.synced.Load()
	var now []corpse
	kept := c.dead[:0]
	for _, d := range c.dead {
		if d.lsn != unsettled && d.lsn <= synced {
			now = append(now, d)
		} else {
			kept = append(kept, d)
		}
	}
	c.dead = kept
	c.mu.Unlock()
	var err error
	for _, d := range now {
		err = errors.Join(err, d.file.remove())
	}
	return err
}

// syncFS makes everything on the filesystem of the backing files durable.
func (c *Copy) syncFS() error {
	d, err := os.Open(c.path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync filesystem: %w", err)
	}
	return nil
}

// Close ends the work on a working copy: everything becomes durable, and the next Open needs no recovery. The mount must
// be gone.
func (c *Copy) Close(context.Context) error {
	if err := c.alone(context.Background()); err != nil {
		return err
	}
	defer c.commits.unlock()
	c.mu.Lock()
	c.stop()
	c.mu.Unlock()
	c.tasks.Wait()
	err := c.settleDown()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	if err == nil {
		err = c.syncFS()
	}
	if err == nil {
		err = c.closeHead()
		if errs.KindOf(err) == errs.NoSpace { // nothing is lost: the next Open looks at the files
			c.log.Warn("no room to note that a working copy was closed in order", "copy", c.path, "err", err)
			err = nil
		}
	}
	c.closeFiles()
	defer c.letGoOwn()
	return errors.Join(err, c.journal.f.Close())
}

// closeHead notes that all is synced. The journal files that head names begin at the base and in the generation that stand
// beside them: where a commit ended while another was open, or a dump failed, they have not been replaced since.
func (c *Copy) closeHead() error {
	h, err := readHead(c.path)
	if err != nil || c.owed {
		return err
	}
	h.Clean, h.Era, h.NextIno = true, era(c.path), c.nextIno
	return c.writeHead(h)
}

func readHead(dir string) (h head, err error) {
	data, err := os.ReadFile(filepath.Join(dir, "head"))
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(data, &h); err != nil {
		return h, errs.New(errs.Damaged, "read %s: %w", filepath.Join(dir, "head"), err)
	}
	if h.Version > headVersion {
		return h, errs.WithHint(errs.New(errs.Damaged, "%s has version %d, newer than this dm", filepath.Join(dir, "head"),
			h.Version), "install a newer dm")
	}
	return h, nil
}

// Open opens the working copy in dir. branch is the commit its branch is at: it decides whether a commit or reset that a
// crash cut short took place.
func Open(ctx context.Context, dir string, cfg Config, branch object.ID) (_ *Copy, err error) {
	h, err := readHead(dir)
	if err != nil {
		return nil, err
	}
	c := newCopy(dir, cfg)
	if err := c.holdOwn(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.closeFiles()
			c.letGoOwn()
		}
	}()
	c.gen, c.nextIno = h.Generation, max(h.NextIno, uint64(RootID)+1)
	var id object.ID
	var commit *object.Commit
	if h.Base != "" {
		if id, err = object.ParseID(h.Base); err != nil {
			return nil, errs.New(errs.Damaged, "read %s: %w", filepath.Join(dir, "head"), err)
		}
		if commit, err = readCommit(ctx, cfg.Source, id); err != nil {
			return nil, err
		}
	}
	c.setBase(id, commit)
	last, err := c.replay(ctx, h, branch)
	if err != nil {
		return nil, fmt.Errorf("replay journal of %s: %w", dir, err)
	}
	if err := c.recover(ctx, h); err != nil {
		return nil, fmt.Errorf("recover %s: %w", dir, err)
	}
	if err := c.start(last+1, &h); err != nil {
		return nil, err
	}
	return c, nil
}

// journals lists the journal files from first on.
func journals(dir string, first uint64) ([]uint64, error) {
	names, err := os.ReadDir(filepath.Join(dir, "journal"))
	if err != nil {
		return nil, err
	}
	found := map[uint64]bool{}
	for _, n := range names {
		if v, err := strconv.ParseUint(n.Name(), 10, 64); err == nil {
			found[v] = true
		}
	}
	var list []uint64
	for seq := first; found[seq]; seq++ {
		list = append(list, seq)
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Damaged, "journal %d is missing", first)
	}
	return list, nil
}

// replay applies the journal and returns the number of the last file.
func (c *Copy) replay(ctx context.Context, h head, branch object.ID) (last uint64, err error) {
	list, err := journals(c.path, h.Journal)
	if err != nil {
		return 0, err
	}
	// Replaying goes through the same steps as the operations did; a journal that writes to nowhere takes their records.
	c.journal = &journal{}
	r := &replayer{c: c, ctx: ctx, before: math.MaxInt64}
	for i, seq := range list {
		end, err := readJournal(journalPath(c.path, seq), r.frame)
		if errors.Is(err, errGap) {
			// The machine lost the end of the file before: what came after it never counted. What comes now does.
			if err := c.removeLost(list[i:]); err != nil {
				return 0, err
			}
			break
		}
		if err != nil {
			return 0, err
		}
		last, r.before = seq, end
		if err := seal(journalPath(c.path, seq), end); err != nil {
			return 0, err
		}
	}
	return last, r.end(branch)
}

// removeLost removes journal files that do not count, durably one after the other, the last first: one that were left behind
// the others would count when a new file has come before it.
func (c *Copy) removeLost(list []uint64) error {
	for _, seq := range slices.Backward(list) {
		if err := durable.Remove(journalPath(c.path, seq)); err != nil {
			return err
		}
	}
	return nil
}

// seal makes a journal file durable up to its end, for what comes now is written behind it, and gives back the room that was
// set aside there.
func seal(path string, end int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(end); err != nil {
		return err
	}
	return f.Sync()
}

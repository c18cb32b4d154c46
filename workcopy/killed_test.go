package workcopy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/object"
)

// Stories of killed servers: each once led to a working copy that could not be opened, or to lost writes.

// TestKilledAfterDone: the records behind the end of a commit speak of inodes that the commit made clean.
func TestKilledAfterDone(t *testing.T) {
	r := newRig(t)
	id := r.file("a")
	r.write(id, 0, "one")
	s := r.prepared()
	r.ok(s.finish(s.next)) // the end of the commit without its compaction
	r.write(id, 0, "two")
	r.kill()
	r.wantFile("a", "two")
	r.committedAsLive()
}

// TestKilledAfterCommitOfRemovedFile: the same for a file that is open and has no name.
func TestKilledAfterCommitOfRemovedFile(t *testing.T) {
	for _, abort := range []bool{false, true} {
		r := newRig(t)
		id, other := r.file("f"), r.file("g")
		r.write(id, 0, "one")
		r.ok(r.c.Unlink(r.ctx, RootID, "f"))
		if abort {
			s, err := r.c.Freeze(r.ctx)
			r.ok(err)
			s.Abort()
		} else {
			r.commit()
		}
		r.write(id, 0, "two")
		r.write(other, 0, "two")
		r.kill()
		r.wantFile("g", "two")
		r.committedAsLive()
	}
}

// TestDumpOfRemovedFile: a compaction leaves out files without a name; what is written to them later must not count.
func TestDumpOfRemovedFile(t *testing.T) {
	r := newRig(t)
	id := r.file("f")
	r.ok(r.c.Unlink(r.ctx, RootID, "f"))
	r.ok(r.c.compact())
	r.write(id, 0, "x")
	r.reopen()
	r.committedAsLive()
}

// TestHardLinkByOtherName: a hard-linked file was changed through one name, which went; the other had not been looked at.
func TestHardLinkByOtherName(t *testing.T) {
	for _, restart := range []bool{false, true} {
		r := newRig(t)
		id := r.file("a")
		r.write(id, 0, "old")
		_, err := r.c.Link(r.ctx, id, RootID, "b")
		r.ok(err)
		r.c.Forget(id, 2)
		r.commit()
		r.reopen()
		id = r.look("a")
		r.write(id, 0, "new and longer")
		r.ok(r.c.Unlink(r.ctx, RootID, "a"))
		r.c.Forget(id, 1)
		if restart {
			r.reopen()
		}
		r.ok(r.c.settleDown())
		r.wantFile("b", "new and longer")
		a, err := r.c.GetAttr(r.ctx, r.look("b"))
		r.ok(err)
		if a.Nlink != 1 {
			t.Errorf("%d names", a.Nlink)
		}
		r.committedAsLive()
		r.kill()
		r.wantFile("b", "new and longer")
	}
}

// TestOldGenerationIsNotHeard: what processes do with files of before a reset has nothing to do with those that took their
// inode numbers.
func TestOldGenerationIsNotHeard(t *testing.T) {
	r := newRig(t)
	id := r.file("a")
	r.write(id, 0, "committed")
	_, err := r.c.Link(r.ctx, id, RootID, "b")
	r.ok(err)
	r.commit()
	r.reset()
	r.write(r.look("a"), 0, "NEW")
	r.write(id, 0, "somebody has the old one open")
	mode := uint32(0o600)
	_, err = r.c.SetAttr(r.ctx, id, AttrChange{Mode: &mode})
	r.ok(err)
	r.kill()
	r.wantFile("a", "NEWmitted")
	r.committedAsLive()
	r.kill()
	r.wantFile("b", "NEWmitted")
}

// TestOldGenerationEnds: the end of an old generation's file must not take the new one's bytes along.
func TestOldGenerationEnds(t *testing.T) {
	r := newRig(t)
	id := r.file("a")
	r.write(id, 0, "committed")
	r.commit()
	r.reset()
	r.wantFile("a", "committed")
	r.ok(r.c.settleDown())
	now := r.look("a")
	r.c.Forget(now, 2)
	r.c.Forget(id, 9)
	r.ok(r.c.compact())
	r.kill()
	r.write(r.look("a"), 0, "NEW")
	r.ok(r.c.settleDown())
	r.reopen()
	r.wantFile("a", "NEWmitted")
}

// TestKilledBetweenSwitchAndHead: after a reset began its generation in the journal, and before head names it, what is
// written belongs to the new generation, also where the reset is to the commit that was there before.
func TestKilledBetweenSwitchAndHead(t *testing.T) {
	for _, end := range []func(*rig){(*rig).kill, (*rig).reopen} { // a clean end finds the same where the dump failed
		r := newRig(t)
		id := r.file("a")
		r.write(id, 0, "committed")
		r.commit()
		r.write(id, 0, "dirty")
		commit, err := readCommit(r.ctx, r.b.store, r.b.id)
		r.ok(err)
		_, _, err = r.c.switchTo(r.b.id, commit, nil, nil)
		r.ok(err)
		now := r.look("a")
		r.write(now, 9, " and more")
		r.fsync(now, false)
		end(r)
		r.wantFile("a", "committed and more")
		r.committedAsLive()
	}
}

// TestKilledBeforePunch: a hole that was noted and not made is made when the working copy is opened, or the commit would
// have zeros where the file has bytes.
func TestKilledBeforePunch(t *testing.T) {
	for _, known := range []bool{true, false} {
		r := newRig(t)
		id := r.file("a")
		r.write(id, 0, strings.Repeat("c", 20000))
		r.commit()
		if !known {
			r.c.Forget(id, 1)
			r.reopen()
			id = r.look("a")
		}
		w, err := r.c.beginWrite(r.ctx, id, 4096, 8192, false, true)
		r.ok(err)
		w.done() // killed before the bytes were punched
		r.kill()
		r.wantFile("a", strings.Repeat("c", 4096)+strings.Repeat("\x00", 4096)+strings.Repeat("c", 20000-8192))
		r.committedAsLive()
	}
}

// TestKilledBeforeTruncation: the same for a size that was noted, of a complete file and of one that is not.
func TestKilledBeforeTruncation(t *testing.T) {
	for _, partial := range []bool{false, true} {
		r := newRig(t)
		id := r.file("a")
		r.write(id, 0, strings.Repeat("c", 20000))
		r.commit()
		if partial {
			r.reset()
			id = r.look("a")
			if _, err := r.c.Read(r.ctx, id, make([]byte, 10), 0); err != nil {
				t.Fatal(err)
			}
		}
		f, err := r.c.fileOf(id)
		r.ok(err)
		f.io.Lock()
		w, _, err := r.c.tryTruncate(id, 0, false)
		r.ok(err)
		w.done()
		r.kill()
		r.wantFile("a", "")
		r.truncate(r.look("a"), 20000)
		r.wantFile("a", strings.Repeat("\x00", 20000))
		r.committedAsLive()
	}
}

// TestLargeDump: what a dump says of one inode is in many frames where it is much: a frame that is too long would be
// taken for the end of the journal.
func TestLargeDump(t *testing.T) {
	r := newRig(t)
	f := r.file("f")
	r.truncate(f, 64<<30)
	const runs = 3 << 20 // some 13 bytes each: half of the longest frame, and many times the usual one
	r.c.mu.Lock()
	n := r.c.nodes[f]
	for i := range uint32(runs) {
		n.file.markDirty(uint64(2*i), uint64(2*i+1))
	}
	r.c.mu.Unlock()
	r.write(r.file("after"), 0, "x")
	r.ok(r.c.compact())
	err := eachFrame(journalPath(r.dir, r.c.journal.seq), func(size int64) {
		if size > reserveLast {
			t.Errorf("a frame of %d bytes", size)
		}
	})
	r.ok(err)
	r.kill()
	r.wantFile("after", "x")
	if got := r.c.inodes[uint64(f)].file.dirty.GetCardinality(); got != runs {
		t.Errorf("%d dirty blocks, want %d", got, runs)
	}
}

func eachFrame(path string, fn func(size int64)) error {
	_, err := readJournal(path, func(body []byte) error {
		fn(int64(len(body)))
		return nil
	})
	return err
}

// TestLargeDirectoryDump: the same for the removed names of a large committed directory.
func TestLargeDirectoryDump(t *testing.T) {
	r := newRig(t)
	const n = 3000
	name := func(i int) string { return fmt.Sprintf("%0200d", i) }
	d := r.mkdir(RootID, "d")
	for i := range n {
		id, _, err := r.c.Make(r.ctx, d, name(i), NewInode{Mode: object.ModeRegular | 0o600})
		r.ok(err)
		r.c.Forget(id, 1)
	}
	r.commit()
	for i := range n {
		r.ok(r.c.Unlink(r.ctx, d, name(i)))
	}
	r.write(r.file("after"), 0, "x")
	r.ok(r.c.compact())
	r.ok(eachFrame(journalPath(r.dir, r.c.journal.seq), func(size int64) {
		if size > reserveLast {
			t.Errorf("a frame of %d bytes", size)
		}
	}))
	r.kill()
	r.wantFile("after", "x")
	r.committedAsLive()
}

// TestFrameThatCannotBeRead: a frame above the limit is refused rather than written: it and all behind it would not count.
func TestFrameThatCannotBeRead(t *testing.T) {
	r := newRig(t)
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.journal.begin()
	r.c.journal.buf = append(r.c.journal.buf, make([]byte, maxFrame+1)...)
	before := r.c.journal.end
	if _, err := r.c.journal.commit(); err == nil || r.c.journal.end != before {
		t.Errorf("a frame of %d bytes was written: %v", maxFrame+1, err)
	}
}

// failing is a store whose reads fail for some objects.
type failing struct {
	*memory
	fail map[object.ID]bool
}

var errFailing = errors.New("the store fails")

func (s *failing) Get(ctx context.Context, k object.Kind, id object.ID) ([]byte, error) {
	if s.fail[id] {
		return nil, errFailing
	}
	return s.memory.Get(ctx, k, id)
}

// TestGraftThatFails: a graft whose source cannot be read to its end leaves everything as it was, for the next commits and
// restarts, too.
func TestGraftThatFails(t *testing.T) {
	for _, killed := range []bool{false, true} {
		r := newRig(t)
		store := &failing{r.b.store, map[object.ID]bool{}}
		r.c.cfg.Source = store
		r.write(r.file("kept"), 0, "kept")
		d := r.mkdir(RootID, "d")
		sub := r.mkdir(d, "sub")
		for _, name := range []string{"a", "b"} {
			_, _, err := r.c.Make(r.ctx, sub, name, NewInode{Mode: object.ModeRegular | 0o600})
			r.ok(err)
		}
		last := r.mkdir(d, "z")
		_, _, err := r.c.Make(r.ctx, last, "c", NewInode{Mode: object.ModeRegular | 0o600})
		r.ok(err)
		commit, err := readCommit(r.ctx, r.b.store, r.commit())
		r.ok(err)
		e, _, err := object.LookupTree(r.ctx, r.b.store, commit.Root.Tree, "d")
		r.ok(err)
		z, _, err := object.LookupTree(r.ctx, r.b.store, e.Tree, "z")
		r.ok(err)
		before, err := read(r.ctx, r.c)
		r.ok(err)

		store.fail[z.Tree] = true
		if err := r.c.Graft(r.ctx, "d", &e, commit.Links); !errors.Is(err, errFailing) {
			t.Fatalf("graft from a store that fails: %v", err)
		}
		store.fail = nil
		if killed {
			r.kill()
		}
		after, err := read(r.ctx, r.c)
		r.ok(err)
		if d := before.diff(after); d != "" {
			t.Errorf("before, after\n%s", d)
		}
		if n := len(r.c.dirty); n != 0 {
			t.Errorf("%d inodes have changed", n)
		}
		r.write(r.look("kept"), 0, "KEPT")
		s := r.prepared()
		kill(r.c) // the next start has to find what was committed
		_ = s
		r.open()
		r.wantFile("kept", "KEPT")
		r.committedAsLive()
	}
}

// TestKilledGraft: killed in the middle of a graft and of the commit after it, the half-made nodes count nowhere.
func TestKilledGraft(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(RootID, "d")
	f, _, err := r.c.Make(r.ctx, d, "a", NewInode{Mode: object.ModeRegular | 0o600})
	r.ok(err)
	r.write(f, 0, "bytes")
	_, err = r.c.Link(r.ctx, f, d, "b")
	r.ok(err)
	commit, err := readCommit(r.ctx, r.b.store, r.commit())
	r.ok(err)
	e, _, err := object.LookupTree(r.ctx, r.b.store, commit.Root.Tree, "d")
	r.ok(err)
	g := &grafter{c: r.c, links: commit.Links, linked: map[uint64]*node{}}
	if _, err := g.build(r.ctx, &e); err != nil { // and not put in place
		t.Fatal(err)
	}
	r.write(f, 0, "BYTES")
	r.kill()
	if n := len(r.c.inodes); n > 4 {
		t.Errorf("%d inodes are known, there are 3", n)
	}
	r.committedAsLive()
	r.kill()
	r.committedAsLive()
	table, err := object.TreeTotals(r.ctx, r.b.store, r.c.commit.Links)
	r.ok(err)
	if table.Files != 1 {
		t.Errorf("%d files in the link table, want 1", table.Files)
	}
}

// TestFailedGrowth: a write that did not reach its file takes its growth back, unless the file is longer by now.
func TestFailedGrowth(t *testing.T) {
	r := newRig(t)
	id := r.file("f")
	r.write(id, 0, "bytes")
	grow := func(end uint64) *writing {
		w, err := r.c.beginWrite(r.ctx, id, end-10, end, false, false)
		r.ok(err)
		return w
	}
	size := func() uint64 {
		a, err := r.c.GetAttr(r.ctx, id)
		r.ok(err)
		return a.Size
	}
	first := grow(10_000)
	second := grow(20_000)
	r.c.writeFailed(first, unix.EIO)
	first.done()
	r.ok(second.n.file.writeAt([][]byte{[]byte("0123456789")}, 19_990))
	second.done()
	if size() != 20_000 {
		t.Errorf("size %d after a failed write below the end", size())
	}
	third := grow(30_000)
	r.c.writeFailed(third, unix.EIO)
	third.done()
	if size() != 20_000 {
		t.Errorf("size %d after a failed write at the end", size())
	}
	r.kill()
	r.wantFile("f", "bytes"+strings.Repeat("\x00", 19_985)+"0123456789")
	r.committedAsLive()
}

// TestHugeHole: what is known of blocks costs the number of runs, not of blocks: a sparse file of the largest size is
// committed, dumped and restarted in no time.
func TestHugeHole(t *testing.T) {
	r := newRig(t)
	id := r.file("f")
	r.truncate(id, maxSize)
	r.write(id, maxSize-1, "x")
	s, err := r.c.Freeze(r.ctx)
	r.ok(err)
	f := s.Files()[0]
	if start, end := f.NextData(0); start != maxSize-BlockSize || end != maxSize {
		t.Errorf("data from %d to %d", start, end)
	}
	if list := f.Dirty(); len(list) != 1 || list[0] != (Range{0, maxSize}) {
		t.Errorf("dirty: %v", list)
	}
	s.Abort()
	r.ok(r.c.compact())
	r.kill()
	if at, err := r.c.Seek(r.ctx, r.look("f"), 0, Data); err != nil || at != maxSize-BlockSize {
		t.Errorf("data at %d, %v", at, err)
	}
}

// TestPromotionIsTriedAgain: a file that has become complete keeps waiting for its name when the sync before it fails.
func TestPromotionIsTriedAgain(t *testing.T) {
	r := newRig(t)
	id := r.partly("f", strings.Repeat("x", 3*BlockSize))
	f, err := r.c.fileOf(id)
	r.ok(err)
	r.ok(r.c.fill(r.ctx, id, 0, 3*BlockSize))
	f.path = filepath.Join(r.dir, "nowhere", "f") // renaming and syncing the directory fail
	if err := r.c.promote(); err == nil {
		t.Fatal("promoted to a directory that is not there")
	}
	f.init(r.c, id)
	r.ok(r.c.promote())
	if _, err := os.Stat(f.path); err != nil || f.partial {
		t.Errorf("not complete under its name: %v", err)
	}
}

// TestKilledWithHoleAtTheEnd: a file that is partly in the store was cut short, became zero at its end and was committed
// so. Killed then, that block is in the commit alone, which ends inside of it: it must come from there, and be found.
func TestKilledWithHoleAtTheEnd(t *testing.T) {
	r := newRig(t)
	id := r.partly("f", strings.Repeat("c", 20000))
	zeros := strings.Repeat("c", 4096) + strings.Repeat("\x00", 904)
	r.truncate(id, 5000)
	r.truncate(id, 9000)
	r.zero(id, 4096, 4096)
	r.truncate(id, 5000)
	r.kill()
	r.wantFile("f", zeros)
	r.commit()
	r.kill()
	r.wantFile("f", zeros)
	id = r.look("f")
	done := make(chan error, 1)
	go func() {
		_, err := r.c.Write(r.ctx, id, [][]byte{[]byte("w")}, 4500, false, false)
		done <- err
	}()
	select {
	case err := <-done:
		r.ok(err)
	case <-time.After(20 * time.Second):
		t.Fatal("a write of a block that should come from the commit does not end")
	}
	r.wantFile("f", strings.Repeat("c", 4096)+strings.Repeat("\x00", 404)+"w"+strings.Repeat("\x00", 499))
	r.committedAsLive()
}

package workcopy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dm/internal/powercut"
	"dm/object"
)

// The must rules of docs/format/workcopy.md, each with the crash that would show it broken.

// rigOnDisk is a working copy on a disk whose power can be cut.
func rigOnDisk(t *testing.T) (*rig, *powercut.Disk) {
	t.Helper()
	d := powercut.NewDisk(t, 256<<20)
	r := newRigIn(t, filepath.Join(d.Dir, "copy"))
	t.Cleanup(func() { // before the disk goes
		if r.c != nil {
			kill(r.c)
			r.c = nil
		}
	})
	return r, d
}

// crash cuts the power and starts again.
func (r *rig) crash(d *powercut.Disk) {
	r.t.Helper()
	kill(r.c)
	r.c = nil
	d.Cut()
	d.Restart()
	r.open()
}

// TestMarkBeforeBytes: where the bytes of a write do not get into the file, its blocks are marked all the same, also for
// the next start.
func TestMarkBeforeBytes(t *testing.T) {
	r := newRig(t)
	id := r.file("f")
	r.write(id, 0, strings.Repeat("c", 20000))
	r.commit()
	f, err := r.c.fileOf(id)
	r.ok(err)
	r.ok(f.discard())
	away := filepath.Dir(f.path)
	r.ok(os.Rename(away, away+".away"))
	r.ok(os.WriteFile(away, nil, 0o600)) // no backing file can be made
	if _, err := r.c.Write(r.ctx, id, [][]byte{make([]byte, 10)}, 5000, false, false); err == nil {
		t.Fatal("written into a directory that is a file")
	}
	r.ok(os.Remove(away))
	r.ok(os.Rename(away+".away", away))
	r.kill()
	r.look("f")
	if n := r.c.inodes[uint64(id)]; n == nil || n.file.dirty == nil || !n.file.dirty.Contains(1) {
		t.Error("a block may hold other bytes than the commit and is not dirty")
	}
}

// TestBytesBeforeName: power is cut when the final name of a file that has become complete is durable and nothing else was
// synced since.
func TestBytesBeforeName(t *testing.T) {
	r, d := rigOnDisk(t)
	want := strings.Repeat("committed bytes ", 20000)
	id := r.partly("f", want)
	f, err := r.c.fileOf(id)
	r.ok(err)
	r.ok(r.c.fill(r.ctx, id, 0, uint64(len(want))))
	r.ok(r.c.promote())
	if f.partial {
		t.Fatal("not promoted")
	}
	d.CommitNames()
	r.crash(d)
	r.wantFile("f", want)
	r.committedAsLive()
}

// TestRecordBeforeRemove: power is cut when a file has been removed and the record of it is lost: it is there again, and so
// are its bytes.
func TestRecordBeforeRemove(t *testing.T) {
	r, d := rigOnDisk(t)
	want := strings.Repeat("synced bytes ", 10000)
	id := r.file("f")
	r.write(id, 0, want)
	r.fsync(id, false)
	r.ok(r.c.Unlink(r.ctx, RootID, "f"))
	r.c.Forget(id, 1)
	r.ok(r.c.reap())
	d.CommitNames()
	r.crash(d)
	if _, _, err := r.c.Lookup(r.ctx, RootID, "f"); err == nil {
		r.wantFile("f", want)
	}
	// Once the removal is durable the bytes do go.
	id = r.file("g")
	r.write(id, 0, want)
	path := r.c.dataPath(r.c.gen, uint64(id))
	r.ok(r.c.Unlink(r.ctx, RootID, "g"))
	r.c.Forget(id, 1)
	r.ok(r.c.settleDown())
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file of a removed inode is still there: %v", err)
	}
}

// TestDumpBeforeHead: power is cut as soon as head names a new journal file.
func TestDumpBeforeHead(t *testing.T) {
	r, d := rigOnDisk(t)
	for _, name := range []string{"a", "b", "c"} {
		id := r.file(name)
		r.write(id, 0, "bytes of "+name)
		r.fsync(id, false)
	}
	r.ok(r.c.compact())
	r.crash(d)
	for _, name := range []string{"a", "b", "c"} {
		r.wantFile(name, "bytes of "+name)
	}
}

// TestHeadBeforeRemove: the server ends when head could not be written: the journal that the old one names is there.
func TestHeadBeforeRemove(t *testing.T) {
	r := newRig(t)
	id := r.file("f")
	r.write(id, 0, "before")
	head := filepath.Join(r.dir, "head")
	r.ok(os.Rename(head, head+".away"))
	r.ok(os.Mkdir(head, 0o700))
	if err := r.c.compact(); err == nil {
		t.Fatal("head was written over a directory")
	}
	r.write(id, 0, "behind")
	r.ok(os.Remove(head))
	r.ok(os.Rename(head+".away", head))
	r.kill()
	r.wantFile("f", "behind")
	// The next dump counts, and takes the old files away.
	r.ok(r.c.compact())
	names, err := os.ReadDir(filepath.Join(r.dir, "journal"))
	r.ok(err)
	if len(names) != 1 {
		t.Errorf("%d journal files after a dump", len(names))
	}
}

// TestPrepareBeforeBranch: power is cut as soon as the branch has moved to a commit: the working copy is at it, and what
// was frozen is clean.
func TestPrepareBeforeBranch(t *testing.T) {
	r, d := rigOnDisk(t)
	id := r.file("f")
	r.write(id, 0, "committed")
	r.fsync(id, false)
	r.prepared()
	r.crash(d)
	if r.c.Head() != r.b.id {
		t.Errorf("based on %s, the branch is at %s", r.c.Head().Short(), r.b.id.Short())
	}
	r.wantFile("f", "committed")
	st, err := r.c.Status(r.ctx)
	r.ok(err)
	if st.Dirty != 0 {
		t.Errorf("%d bytes are dirty", st.Dirty)
	}
}

// TestResetBeforeBranch: power is cut as soon as a reset has moved the branch: the working copy follows.
func TestResetBeforeBranch(t *testing.T) {
	r, d := rigOnDisk(t)
	id := r.file("f")
	r.write(id, 0, "first")
	first := r.commit()
	r.write(id, 0, "second")
	r.commit()
	r.write(id, 0, "uncommitted")
	commit, err := readCommit(r.ctx, r.b.store, first)
	r.ok(err)
	if err := r.c.Reset(r.ctx, first, commit, func() error {
		r.b.id = first
		d.Cut()
		return nil
	}); err == nil {
		t.Fatal("a reset without power went well")
	}
	kill(r.c)
	r.c = nil
	d.Restart()
	r.open()
	if r.c.Head() != first {
		t.Errorf("based on %s, the branch is at %s", r.c.Head().Short(), first.Short())
	}
	r.wantFile("f", "first")
	r.committedAsLive()
}

// Stories of power cuts that spare what the story does not name.

// TestPowerKeepsSizes: the size that fsync made durable is the host's, also where a file was made longer before it had a
// byte, and where it is clean and ends in a hole.
func TestPowerKeepsSizes(t *testing.T) {
	r := newRig(t)
	clean := r.file("clean")
	r.write(clean, 0, "x")
	r.truncate(clean, 1<<20)
	r.commit()
	r.reset()
	id := r.file("grown")
	r.truncate(id, 1<<20)
	r.write(id, 0, "x")
	r.fsync(id, false)
	clean = r.look("clean")
	_, err := r.c.fileOf(clean)
	r.ok(err)
	r.ok(r.c.fill(r.ctx, clean, 0, 1<<20))
	r.ok(r.c.settleDown())
	r.power(0)
	for _, name := range []string{"grown", "clean"} {
		r.wantFile(name, "x"+strings.Repeat("\x00", 1<<20-1))
	}
}

// TestPowerLosesMarks: a block was zero, durably; then bytes were written and synced without their mark. They are no hole.
func TestPowerLosesMarks(t *testing.T) {
	for _, committed := range []bool{false, true} {
		r := newRig(t)
		id := r.file("a")
		if committed { // the block is, in the end, as committed again
			r.write(id, 0, strings.Repeat("c", 20000))
			r.commit()
		}
		r.truncate(id, 20000)
		r.zero(id, 4096, 4096)
		r.fsync(id, false)
		keep := r.c.journal.end
		r.write(id, 4096, strings.Repeat("c", 4096))
		r.fsync(id, true)
		r.power(keep)
		if got := r.cat("a")[4096:8192]; got != strings.Repeat("c", 4096) {
			t.Errorf("synced bytes are %s", brief(got))
		}
		r.committedAsLive()
	}
}

func (r *rig) zero(id NodeID, off, length int64) {
	r.t.Helper()
	const punchHole, keepSize = 2, 1
	r.ok(r.c.Fallocate(r.ctx, id, punchHole|keepSize, off, length))
}

// TestPowerLosesInodes: the journal lost inodes whose backing files are there: their numbers are not given out again.
func TestPowerLosesInodes(t *testing.T) {
	r := newRig(t)
	r.commit()
	r.ok(r.c.journal.sync(r.c.journal.lsn(), r.c.journal.lsn()))
	keep := r.c.journal.end
	r.write(r.file("lost"), 0, "lost bytes")
	r.power(keep)
	r.write(r.file("new"), 0, "n")
	r.wantFile("new", "n")
	r.committedAsLive()
}

// TestPowerLosesPartialFile: the name of a file that was being filled is lost: its bytes come from the store again.
func TestPowerLosesPartialFile(t *testing.T) {
	r := newRig(t)
	want := strings.Repeat("c", 200_000)
	id := r.partly("a", want)
	f, err := r.c.fileOf(id)
	r.ok(err)
	r.ok(r.c.fill(r.ctx, id, 0, 10))
	r.write(id, 50_000, "not synced")
	r.ok(os.Remove(f.path + partSuffix))
	r.power(0)
	if got := r.cat("a"); got != want {
		t.Errorf("%s, want what was committed", brief(got))
	}
}

// TestPowerTearsJournal: the end of a journal file is lost and the file that follows it is not: that one does not count,
// because it speaks of what the end had made.
func TestPowerTearsJournal(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir(RootID, "d")
	r.ok(r.c.journal.sync(r.c.journal.lsn(), r.c.journal.lsn()))
	keep, seq := r.c.journal.end, r.c.journal.seq
	sub := r.mkdir(dir, "lost")
	r.c.mu.Lock()
	r.ok(r.c.journal.next())
	for _, n := range r.c.nodes {
		n.logged = false
	}
	r.c.mu.Unlock()
	r.mkdir(sub, "in it")
	kill(r.c)
	r.ok(os.Truncate(journalPath(r.dir, seq), keep))
	r.open()
	got, err := read(r.ctx, r.c)
	r.ok(err)
	if len(got) != 1 || got["d"] == "" {
		t.Errorf("there is %v", got)
	}
	if _, _, err := r.c.Lookup(r.ctx, r.look("d"), "lost"); err != syscall.ENOENT {
		t.Errorf("looked up what was lost: %v", err)
	}
	r.committedAsLive()
}

// TestLostJournalsGoFromTheEnd: of journal files that do not count none is left behind a gap, where it would follow the file
// that is made next.
func TestLostJournalsGoFromTheEnd(t *testing.T) {
	r := newRig(t)
	first := r.c.journal.seq
	r.ok(r.c.Close(r.ctx))
	r.c = nil
	next, err := createJournal(r.dir, first+1, 0)
	r.ok(err)
	next.begin()
	next.buf = append(next.buf, recordAfter)
	next.uint(1 << 40)
	_, err = next.commit()
	r.ok(errors.Join(err, next.f.Close()))
	r.ok(os.MkdirAll(filepath.Join(journalPath(r.dir, first+2), "in the way"), 0o700))
	if c, err := Open(r.ctx, r.dir, Config{Source: r.b.store}, r.b.id); err == nil {
		r.c = c
		t.Fatal("opened though a file could not be removed")
	}
	if _, err := os.Stat(journalPath(r.dir, first+1)); err != nil {
		t.Errorf("a file went before the one behind it: %v", err)
	}
	r.ok(os.RemoveAll(journalPath(r.dir, first+2)))
	r.open()
	if list, err := journals(r.dir, r.c.journal.seq); err != nil || len(list) != 1 {
		t.Errorf("journal files %d, %v", list, err)
	}
}

// TestHostileNumbers: a commit from elsewhere whose entries have the number of another inode, or one that has not been
// given out, is damage, and nothing else happens.
func TestHostileNumbers(t *testing.T) {
	const next = 100
	entry := func(name string, ino uint64, mode uint32) *object.Entry {
		return &object.Entry{Name: name, Ino: ino, Mode: mode}
	}
	const file, dir = object.ModeRegular | 0o644, object.ModeDir | 0o755
	for what, pair := range map[string][2]*object.Entry{
		"two files":     {entry("a", 7, file), entry("b", 7, file)},
		"two dirs":      {entry("a", 7, dir), entry("b", 7, dir)},
		"file and dir":  {entry("a", 7, file), entry("b", 7, dir)},
		"not given out": {entry("a", 7, file), entry("b", next, file)},
	} {
		r := newRig(t)
		edits := []object.Edit{{Name: "a", Entry: pair[0]}, {Name: "b", Entry: pair[1]}}
		tree, sums, err := object.EditTree(r.ctx, r.b.store, r.b.store, object.ID{}, edits)
		r.ok(err)
		commit := &object.Commit{Root: *entry("", 1, dir), NextIno: next}
		commit.Root.Tree, commit.Root.Totals = tree, sums
		r.b.id, _ = r.b.store.Put(r.ctx, object.KindCommit, commit.Encode())
		if err := r.c.Reset(r.ctx, r.b.id, commit, func() error { return nil }); err != nil {
			continue // refused at once
		}
		r.look("a")
		if _, _, err := r.c.Lookup(r.ctx, RootID, "b"); err == nil {
			t.Errorf("%s: both can be looked up", what)
		}
		r.file("x") // goes on
	}
}

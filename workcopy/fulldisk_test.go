package workcopy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a filesystem of that many bytes in memory.
func smallDisk(t *testing.T, bytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all room of a disk with a file at path.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestOpenOnFullDisk: where there is no room for the dump that an opening begins with, the working copy is opened all the
// same, and what recovery finds out meanwhile is found out again.
func TestOpenOnFullDisk(t *testing.T) {
	closed := func(r *rig) { r.ok(r.c.Close(r.ctx)) }
	killed := func(r *rig) { kill(r.c) }
	for _, c := range []struct {
		name          string
		first, second func(*rig)
		power         bool // what was written last is not in the journal
	}{
		{"closed", closed, closed, false},
		{"killed", killed, killed, false},
		{"closed and killed", closed, killed, false},
		{"killed and closed", killed, closed, false},
		{"power cut and closed", killed, closed, true},
		{"power cut and killed", killed, killed, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			const files = 12000 // a dump of some MB
			disk := smallDisk(t, 32<<20)
			filler := filepath.Join(disk, "filler")
			r := newRigIn(t, filepath.Join(disk, "copy"))
			id := r.file("f")
			r.write(id, 0, "old")
			r.commit()
			for i := range files {
				r.file(fmt.Sprintf("%0150d", i))
			}
			seq, known := r.c.journal.seq, r.c.journal.end
			r.write(id, 0, "new")
			c.first(r)
			if c.power {
				f, err := os.OpenFile(journalPath(r.dir, seq), os.O_WRONLY, 0)
				r.ok(err)
				r.ok(f.Truncate(known))
				r.ok(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, known, reserveStep)) // the cut leaves what was set aside
				r.ok(f.Close())
				r.otherEra()
			}
			for range 2 {
				fill(t, filler)
				r.open()
				if h, err := readHead(r.dir); err != nil || h.Journal == r.c.journal.seq || h.Clean {
					t.Fatalf("there was room for a dump: %+v, %v", h, err)
				}
				r.wantFile("f", "new")
				c.second(r)
			}
			fill(t, filler)
			r.open()
			gone := fmt.Sprintf("%0150d", 7)
			r.ok(r.c.Unlink(r.ctx, RootID, gone))
			c.second(r)
			r.ok(os.Remove(filler))
			r.open()
			r.wantFile("f", "new")
			if _, _, err := r.c.Lookup(r.ctx, RootID, gone); err != syscall.ENOENT {
				t.Errorf("a file that was removed: %v", err)
			}
			r.look(fmt.Sprintf("%0150d", files-1))
			if list, err := journals(r.dir, 1); err == nil {
				t.Errorf("journal files %d remain", list)
			}
			r.committedAsLive()
			r.reopen()
			r.wantFile("f", "new")
		})
	}
}

// TestJournalNotMade: an opening that cannot even make its journal leaves none behind.
func TestJournalNotMade(t *testing.T) {
	disk := smallDisk(t, 4<<20)
	filler := filepath.Join(disk, "filler")
	r := newRigIn(t, filepath.Join(disk, "copy"))
	r.write(r.file("f"), 0, "new")
	seq := r.c.journal.seq
	r.ok(r.c.Close(r.ctx))
	r.c = nil
	fill(t, filler)
	if err := seal(journalPath(r.dir, seq), journalEnd(t, journalPath(r.dir, seq))); err != nil {
		t.Fatal(err)
	}
	fill(t, filler)
	for range 3 {
		if c, err := Open(r.ctx, r.dir, Config{Source: r.b.store}, r.b.id); !errors.Is(err, syscall.ENOSPC) {
			r.c = c
			t.Fatalf("opened without any room: %v", err)
		}
	}
	if list, err := journals(r.dir, seq); err != nil || len(list) != 1 {
		t.Fatalf("journal files %d, %v, want %d alone", list, err, seq)
	}
	r.ok(os.Remove(filler))
	r.open()
	r.wantFile("f", "new")
}

// TestDumpCounts: where head names the new journal file and what came after that failed, the file stays with its dump.
func TestDumpCounts(t *testing.T) {
	r := newRig(t)
	r.write(r.file("f"), 0, "new")
	r.reopen()
	h, err := readHead(r.dir)
	r.ok(err)
	c, end := r.c, r.c.journal.end
	if err := c.withoutDump(&h, int64(len(journalMagic)), syscall.ENOSPC); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("went on without a dump that counts: %v", err)
	}
	if got := journalEnd(t, journalPath(r.dir, h.Journal)); got != end {
		t.Errorf("the dump ends at %d, not at %d", got, end)
	}
	kill(c)
	r.open()
	r.wantFile("f", "new")
}

func journalEnd(t *testing.T, path string) int64 {
	t.Helper()
	end, err := readJournal(path, func([]byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return end
}

package workcopy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dm/internal/powercut"
	"dm/object"
)

// TestFsyncSurvivesPowerCut: the bytes, size and name of a file as of its last fsync are there after a power cut; what was
// written later is there or not, byte range by byte range, and never something else. What differs from the commit is dirty.
func TestFsyncSurvivesPowerCut(t *testing.T) {
	for round := range rounds(t, 12) {
		t.Run(fmt.Sprint(round), func(t *testing.T) { powerRound(t, uint64(round)) })
	}
}

// synced is a file of the power test: bytes[i] is one of the values byte i may have.
type synced struct {
	name   string
	id     NodeID
	data   []byte                // as of the last fsync, extended
	later  map[int]map[byte]bool // what may be there instead
	min    int                   // the size as of the last fsync
	synced bool                  // its name is
}

func powerRound(t *testing.T, seed uint64) {
	ctx := context.Background()
	d := powercut.NewDisk(t, 256<<20)
	store := newMemory()
	dir := filepath.Join(d.Dir, "copy")
	cfg := Config{Source: store}
	c, err := Create(ctx, dir, cfg, object.ID{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &branch{store: store}
	rnd := rand.New(rand.NewPCG(seed, 99))
	files := map[string]*synced{}
	for cut := range 3 {
		playUntilCut(t, ctx, c, b, rnd, files, cut)
		kill(c)
		d.Cut()
		d.Restart()
		if c, err = Open(ctx, dir, cfg, b.id); err != nil {
			t.Fatalf("open after power cut %d: %v", cut, err)
		}
		for name, f := range files {
			f.check(t, ctx, c)
			if !f.synced {
				delete(files, name)
			}
		}
		// What is there now must be what a commit of it says: nothing that differs may count as clean.
		before, err := read(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		id, err := b.commit(ctx, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		after, err := committed(ctx, store, id)
		if err != nil {
			t.Fatal(err)
		}
		if diff := before.diff(after); diff != "" {
			t.Fatalf("after power cut %d, in the volume, in a commit of it:\n%s", cut, diff)
		}
	}
	if err := c.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func playUntilCut(t *testing.T, ctx context.Context, c *Copy, b *branch, rnd *rand.Rand, files map[string]*synced, cut int) {
	for i := range 60 {
		name := fmt.Sprintf("f%d", rnd.IntN(8))
		f := files[name]
		if f == nil {
			id, _, err := c.Make(ctx, RootID, name, NewInode{Mode: object.ModeRegular | 0o600})
			if err != nil {
				if id, _, err = c.Lookup(ctx, RootID, name); err != nil {
					t.Fatal(err)
				}
				size := uint64(0)
				if _, err := c.SetAttr(ctx, id, AttrChange{Size: &size}); err != nil {
					t.Fatal(err)
				}
			}
			f = &synced{name: name, id: id, later: map[int]map[byte]bool{}}
			files[name] = f
		} else if _, ok := c.nodes[f.id]; !ok {
			id, _, err := c.Lookup(ctx, RootID, name)
			if err != nil {
				t.Fatal(err)
			}
			f.id = id
		}
		switch rnd.IntN(14) {
		case 0, 1, 2:
			if rnd.IntN(2) == 0 { // as the kernel does before it asks for a sync
				now := c.now()
				if _, err := c.SetAttr(ctx, f.id, AttrChange{Mtime: &now, Ctime: &now}); err != nil {
					t.Fatal(err)
				}
			}
			f.fsync(t, ctx, c, rnd.IntN(2) == 0)
		case 3:
			if _, err := b.commit(ctx, c, nil); err != nil {
				t.Fatal(err)
			}
		case 4:
			if err := c.settleDown(); err != nil {
				t.Fatal(err)
			}
		case 5:
			resetAll(t, ctx, c, b, files)
		case 6, 7:
			f.truncate(t, ctx, c, uint64(rnd.IntN(60_000)))
		case 8:
			f.punch(t, ctx, c, rnd.IntN(60_000), 1+rnd.IntN(20_000))
		default:
			f.write(t, ctx, c, rnd, byte(1+cut*60+i))
		}
	}
}

// TestDataSyncLeavesTimesOut: the kernel hands over the time of writing before nearly each fdatasync, which need not wait for it
// to be durable, but for all that was noted of the bytes before.
func TestDataSyncLeavesTimesOut(t *testing.T) {
	r := newRig(t)
	id := r.partly("f", strings.Repeat("committed bytes ", 20000))
	touch := func() {
		now := r.c.now()
		_, err := r.c.SetAttr(r.ctx, id, AttrChange{Mtime: &now, Ctime: &now})
		r.ok(err)
	}
	r.write(id, 5000, "new")
	marked := r.c.journal.lsn()
	touch()
	r.ok(r.c.Fsync(r.ctx, id, true))
	if got := r.c.journal.synced.Load(); got < marked {
		t.Fatalf("the block is marked up to %d, the journal synced up to %d", marked, got)
	}
	synced := r.c.journal.synced.Load()
	touch()
	r.ok(r.c.Fsync(r.ctx, id, true))
	if got := r.c.journal.synced.Load(); got != synced {
		t.Fatalf("fdatasync synced the journal from %d to %d for a time", synced, got)
	}
	r.ok(r.c.Fsync(r.ctx, id, false))
	if got, want := r.c.journal.synced.Load(), r.c.journal.lsn(); got != want {
		t.Fatalf("fsync synced the journal up to %d of %d", got, want)
	}
}

func (f *synced) write(t *testing.T, ctx context.Context, c *Copy, rnd *rand.Rand, v byte) {
	off, n := rnd.IntN(60_000), 1+rnd.IntN(9000)
	p := make([]byte, n)
	for i := range p {
		p[i] = v
	}
	if _, err := c.Write(ctx, f.id, [][]byte{p}, int64(off), false, false); err != nil {
		t.Fatal(err)
	}
	for len(f.data) < off+n {
		f.data = append(f.data, 0)
	}
	f.mayBe(off, off+n, v)
}

// resetAll commits and goes back to that: all bytes are in the store, durably, and none are local.
func resetAll(t *testing.T, ctx context.Context, c *Copy, b *branch, files map[string]*synced) {
	id, err := b.commit(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	commit, err := readCommit(ctx, b.store, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(ctx, id, commit, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	for name, f := range files {
		if f.id, _, err = c.Lookup(ctx, RootID, name); err != nil {
			t.Fatal(err)
		}
		f.take(t, ctx, c)
	}
}

func (f *synced) truncate(t *testing.T, ctx context.Context, c *Copy, size uint64) {
	if _, err := c.SetAttr(ctx, f.id, AttrChange{Size: &size}); err != nil {
		t.Fatal(err)
	}
	f.min = min(f.min, int(size))
	f.mayBe(int(size), len(f.data), 0)
}

func (f *synced) punch(t *testing.T, ctx context.Context, c *Copy, off, n int) {
	if err := c.Fallocate(ctx, f.id, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
		t.Fatal(err)
	}
	f.mayBe(off, min(off+n, len(f.data)), 0)
}

func (f *synced) mayBe(from, to int, v byte) {
	for i := from; i < to; i++ {
		if f.later[i] == nil {
			f.later[i] = map[byte]bool{}
		}
		f.later[i][v] = true
	}
}

func (f *synced) fsync(t *testing.T, ctx context.Context, c *Copy, dataOnly bool) {
	if err := c.Fsync(ctx, f.id, dataOnly); err != nil {
		t.Fatal(err)
	}
	f.take(t, ctx, c)
}

// take reads the file as it is: it is durable.
func (f *synced) take(t *testing.T, ctx context.Context, c *Copy) {
	a, err := c.GetAttr(ctx, f.id)
	if err != nil {
		t.Fatal(err)
	}
	f.data = make([]byte, a.Size)
	if _, err := c.Read(ctx, f.id, f.data, 0); err != nil {
		t.Fatal(err)
	}
	f.later, f.min, f.synced = map[int]map[byte]bool{}, len(f.data), true
}

func (f *synced) check(t *testing.T, ctx context.Context, c *Copy) {
	t.Helper()
	id, a, err := c.Lookup(ctx, RootID, f.name)
	if err != nil {
		if f.synced {
			t.Fatalf("%s was synced and is gone: %v", f.name, err)
		}
		return
	}
	f.id = id
	if int(a.Size) < f.min {
		t.Fatalf("%s was synced with %d bytes and has %d", f.name, f.min, a.Size)
	}
	got := make([]byte, a.Size)
	if _, err := c.Read(ctx, id, got, 0); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if i < len(f.data) && v == f.data[i] || f.later[i][v] || i >= f.min && v == 0 {
			continue
		}
		t.Fatalf("%s, byte %d of %d (synced: %d) is %d, which it never was", f.name, i, len(got), f.min, v)
	}
	f.data, f.later, f.min = got, map[int]map[byte]bool{}, len(got)
}

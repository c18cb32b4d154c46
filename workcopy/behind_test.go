package workcopy

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dm/object"
)

// behind is what writers do behind the back of a commit that reads the file "f".
type behind struct {
	*rig
	id        NodeID
	writeback bool
}

func (b *behind) put(off int64, s string) {
	b.t.Helper()
	_, err := b.c.Write(b.ctx, b.id, [][]byte{[]byte(s)}, off, b.writeback, false)
	b.ok(err)
}

func (b *behind) fallocate(mode uint32, off, length int64) {
	b.t.Helper()
	b.ok(b.c.Fallocate(b.ctx, b.id, mode, off, length))
}

const behindSize = 20*BlockSize + 100

var behindDeeds = map[string]func(b *behind){
	"rewrite":       func(b *behind) { b.put(0, strings.Repeat("w", behindSize)) },
	"rewrite twice": func(b *behind) { b.put(0, strings.Repeat("w", 50_000)); b.put(0, strings.Repeat("v", behindSize)) },
	"patch":         func(b *behind) { b.put(3*BlockSize+17, strings.Repeat("w", 9*BlockSize)) },
	"append":        func(b *behind) { b.put(behindSize+5000, "w") },
	"empty":         func(b *behind) { b.truncate(b.id, 0) },
	"shorten":       func(b *behind) { b.truncate(b.id, 5*BlockSize+9) },
	"lengthen":      func(b *behind) { b.truncate(b.id, 40*BlockSize) },
	"shorten and lengthen": func(b *behind) {
		b.truncate(b.id, 2*BlockSize)
		b.truncate(b.id, behindSize)
	},
	"empty and fill": func(b *behind) {
		b.truncate(b.id, 0)
		b.put(0, strings.Repeat("w", behindSize))
		b.truncate(b.id, 0)
		b.put(BlockSize, strings.Repeat("v", 5*BlockSize))
	},
	"punch":      func(b *behind) { b.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, behindSize-200) },
	"zero range": func(b *behind) { b.fallocate(unix.FALLOC_FL_ZERO_RANGE, 4*BlockSize, 30*BlockSize) },
	"unlink": func(b *behind) {
		b.ok(b.c.Unlink(b.ctx, RootID, "f"))
		b.c.Forget(b.id, 100)
		b.ok(b.c.settleDown())
	},
	"unlink and write": func(b *behind) {
		b.ok(b.c.Unlink(b.ctx, RootID, "f"))
		b.put(0, strings.Repeat("w", behindSize))
	},
	"rename over": func(b *behind) {
		by := b.file("by")
		b.write(by, 0, "another")
		b.ok(b.c.Rename(b.ctx, RootID, "by", RootID, "f", 0))
		b.c.Forget(b.id, 100)
		b.ok(b.c.settleDown())
	},
	"rename away": func(b *behind) {
		b.ok(b.c.Rename(b.ctx, RootID, "f", RootID, "g", 0))
		b.put(0, strings.Repeat("w", behindSize))
	},
	"read and complete": func(b *behind) {
		b.ok(b.c.fill(b.ctx, b.id, 0, behindSize))
		b.ok(b.c.settleDown())
	},
	"read, complete and write": func(b *behind) {
		b.ok(b.c.fill(b.ctx, b.id, 0, behindSize))
		b.ok(b.c.settleDown())
		b.put(0, strings.Repeat("w", behindSize))
	},
}

// TestWritersBehindACommit does each deed at each moment of a commit's reading: the commit holds exactly what was there
// at its cut, and the working copy what was done since, also after the server was killed.
func TestWritersBehindACommit(t *testing.T) {
	for name, deed := range behindDeeds {
		for _, partial := range []bool{false, true} {
			for _, writeback := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/partial=%v/writeback=%v", name, partial, writeback), func(t *testing.T) {
					t.Parallel()
					moments := 0
					for at := 0; at <= moments; at++ {
						moments = commitWith(t, deed, partial, writeback, at)
					}
					if moments < 10 {
						t.Errorf("only %d moments", moments)
					}
				})
			}
		}
	}
}

// commitWith makes a commit, with the deed done at one of its moments, and returns how many there were before the last.
func commitWith(t *testing.T, deed func(b *behind), partial, writeback bool, at int) int {
	t.Helper()
	b := &behind{newRigIn(t, filepath.Join(fastDir(t), "copy")), 0, writeback}
	b.id = b.file("f")
	b.put(0, strings.Repeat("0123456789abcdef", 14*BlockSize/16))
	b.commit()
	if partial {
		b.reset()
		b.id = b.look("f")
	}
	b.put(2*BlockSize, strings.Repeat("dirty", 1000))
	b.put(9*BlockSize+33, strings.Repeat("DIRTY", 1000))
	b.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5*BlockSize, 2*BlockSize)
	b.put(behindSize-50, strings.Repeat("end!", 12)+"\n\n")
	frozen, err := read(b.ctx, b.c)
	b.ok(err)
	want := b.cat("f")
	if len(want) != behindSize {
		t.Fatalf("%d bytes, want %d", len(want), behindSize)
	}

	s, err := b.c.Freeze(b.ctx)
	b.ok(err)
	defer s.Abort()
	f := s.Files()[0]
	moment := 0
	step := func() {
		if moment == at {
			moment++ // before the deed, which may read
			deed(b)
			return
		}
		moment++
	}
	b.c.cfg.pause = step
	got := make([]byte, behindSize)
	for off := 0; off < len(got); off += 7000 {
		_, err := f.ReadAt(got[off:min(off+7000, len(got))], int64(off))
		b.ok(err)
	}
	step()
	b.c.cfg.pause = nil
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("moment %d: byte %d of the frozen file is %q, want %q", at, i, got[i], want[i])
		}
	}
	b.finish(s, f, got)
	inCommit, err := committed(b.ctx, b.b.store, b.b.id)
	b.ok(err)
	if d := frozen.diff(inCommit); d != "" {
		t.Fatalf("moment %d: at the cut, in the commit\n%s", at, d)
	}
	live, err := read(b.ctx, b.c)
	b.ok(err)
	b.kill()
	after, err := read(b.ctx, b.c)
	b.ok(err)
	if d := live.diff(after); d != "" {
		t.Fatalf("moment %d: before the server was killed, after\n%s", at, d)
	}
	b.committedAsLive()
	b.ok(b.c.Close(b.ctx))
	b.c = nil
	return moment - 1
}

// finish makes a commit in which the file has the bytes given.
func (b *behind) finish(s *Snapshot, f *File, data []byte) {
	b.t.Helper()
	content, err := putContent(b.ctx, b.b.store, data)
	b.ok(err)
	f.SetContent(content)
	commit := &object.Commit{Parents: []object.ID{b.b.id}}
	commit.Root, commit.Links, commit.NextIno, err = s.Root(b.ctx, b.b.store)
	b.ok(err)
	b.b.id, err = b.b.store.Put(b.ctx, object.KindCommit, commit.Encode())
	b.ok(err)
	b.ok(s.Prepare(b.ctx, b.b.id, commit))
	b.ok(s.Done(b.ctx))
}

package workcopy

import (
	"fmt"
	"strings"
	"testing"
)

// Crashes around files that are partly in the store: a block for which the host has no bytes comes from the commit, and so
// it must be sure that it is the commit that has them.

// marked does all of a write but for its bytes.
func (r *rig) marked(id NodeID, off, end uint64) {
	r.t.Helper()
	w, err := r.c.beginWrite(r.ctx, id, off, end, false, false)
	r.ok(err)
	w.done()
}

// TestPowerLosesCommitted: what made a partial file longer was committed and not synced: after a power cut it comes from
// that commit.
func TestPowerLosesCommitted(t *testing.T) {
	for _, size := range []int{5 * BlockSize, 5*BlockSize + 777} {
		r, d := rigOnDisk(t)
		id := r.partly("f", strings.Repeat("c", size))
		r.write(id, int64(size), strings.Repeat("a", 3*BlockSize))
		r.commit()
		r.crash(d)
		r.wantFile("f", strings.Repeat("c", size)+strings.Repeat("a", 3*BlockSize))
		r.committedAsLive()
	}
}

// TestPowerLosesOverwritten: synced blocks of a partial file were overwritten, or became a hole, and that was committed and
// not synced: after a power cut they are as committed.
func TestPowerLosesOverwritten(t *testing.T) {
	r, d := rigOnDisk(t)
	block := func(s string) string { return strings.Repeat(s, BlockSize) }
	id := r.partly("f", block("c")+block("c")+block("c")+block("c"))
	r.write(id, BlockSize, block("o")+block("o"))
	r.fsync(id, false)
	r.write(id, BlockSize, block("n"))
	r.zero(id, 2*BlockSize, BlockSize)
	r.commit()
	r.crash(d)
	r.wantFile("f", block("c")+block("n")+block("\x00")+block("c"))
	r.committedAsLive()
}

// TestPowerLosesHalfABlock: of a block that was a hole a host with smaller blocks has only what was written and synced.
func TestPowerLosesHalfABlock(t *testing.T) {
	r, d := rigOnDisk(t) // its blocks have 1 KiB
	id := r.partly("f", "c")
	r.write(id, 3*BlockSize-100, "synced")
	r.fsync(id, true)
	r.crash(d)
	r.wantFile("f", "c"+strings.Repeat("\x00", 3*BlockSize-101)+"synced")
	r.committedAsLive()
}

// TestKilledBehindShortening: a partial file was cut short and is written behind its new end, where the commit has other
// bytes: where the write does not arrive there are zeros, for the next commit, too.
func TestKilledBehindShortening(t *testing.T) {
	for _, local := range []string{"", "local"} { // without a backing file, and with one
		r := newRig(t)
		id := r.partly("f", strings.Repeat("c", 20000))
		r.write(id, 0, local)
		want := local + strings.Repeat("c", BlockSize-len(local))
		r.truncate(id, BlockSize)
		r.marked(id, 12000, 12010)
		r.kill()
		r.wantFile("f", want+strings.Repeat("\x00", 12010-BlockSize))
		r.committedAsLive()
	}
}

// TestKilledOverHole: a hole was made in a partial file and is written to: where the write does not arrive it is a hole, and
// not what the commit had there.
func TestKilledOverHole(t *testing.T) {
	for _, how := range []string{"", "cut", "dump", "commit"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			id := r.partly("f", strings.Repeat("c", 20000))
			hole := strings.Repeat("\x00", BlockSize)
			r.zero(id, BlockSize, BlockSize)
			switch how {
			case "cut":
				_, err := r.c.Freeze(r.ctx)
				r.ok(err)
			case "commit":
				r.commit()
				hole = "one" + hole[3:]
				r.write(id, BlockSize, "one")
				r.commit()
				r.kill() // as if the power had failed: the block is in the commit alone
				id = r.look("f")
			}
			r.marked(id, BlockSize+100, BlockSize+110)
			if how == "dump" {
				r.ok(r.c.compact())
			}
			r.kill()
			r.wantFile("f", strings.Repeat("c", BlockSize)+hole+strings.Repeat("c", 20000-2*BlockSize))
			r.committedAsLive()
		})
	}
}

// TestRecordBeforeDestruction: power is cut when synced bytes of a partial file were taken away, and the record of it is lost: they
// are there, or what took them away is.
func TestRecordBeforeDestruction(t *testing.T) {
	const size = 5 * BlockSize
	synced := strings.Repeat("s", size)
	for name, deed := range map[string]struct {
		do   func(r *rig, id NodeID)
		want string
	}{
		"empty":   {func(r *rig, id NodeID) { r.truncate(id, 0) }, ""},
		"shorten": {func(r *rig, id NodeID) { r.truncate(id, 2*BlockSize+5) }, synced[:2*BlockSize+5]},
		"punch": {
			func(r *rig, id NodeID) { r.zero(id, BlockSize, BlockSize) },
			synced[:BlockSize] + strings.Repeat("\x00", BlockSize) + synced[2*BlockSize:],
		},
		"empty behind a cut": {func(r *rig, id NodeID) {
			s, err := r.c.Freeze(r.ctx)
			r.ok(err)
			r.truncate(id, 0)
			for _, f := range s.Files() { // as the end of the process does
				f.f.end()
			}
		}, ""},
	} {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/done=%v", name, done), func(t *testing.T) {
				r, d := rigOnDisk(t)
				id := r.partly("f", strings.Repeat("c", size)+"end")
				r.write(id, 0, synced)
				r.truncate(id, size)
				r.fsync(id, false)
				deed.do(r, id)
				if done {
					d.CommitNames()
				}
				r.crash(d)
				if got := r.cat("f"); got != synced && got != deed.want {
					t.Errorf("%d bytes, neither what was synced nor what came then: %s", len(got), brief(strings.Trim(got, "s")))
				}
				r.committedAsLive()
			})
		}
	}
}

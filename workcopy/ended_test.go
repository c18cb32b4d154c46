package workcopy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"dm/object"
)

// Stories of what others do while a commit ends: its record is written, and not all of its nodes are settled yet.

// ending ends a commit without its compaction; deed is done in the visit of its nodes, before the part with this number.
func (r *rig) ending(s *Snapshot, at int, deed func()) {
	r.t.Helper()
	moment := 0
	r.c.cfg.pause = func() {
		if moment == at {
			moment++ // before the deed, which may pause
			deed()
			return
		}
		moment++
	}
	r.ok(s.finish(s.next))
	s.close()
	r.c.commits.unlock()
	r.c.cfg.pause = nil
	if moment <= at {
		r.t.Fatalf("only %d moments", moment)
	}
}

// TestPowerLosesChangedAtTheEnd: what made a partial file longer was committed and not synced, and the file was changed again
// while the commit ended: after a power cut the rest of it comes from that commit.
func TestPowerLosesChangedAtTheEnd(t *testing.T) {
	for name, deed := range map[string]func(r *rig, id NodeID){
		"write": func(r *rig, id NodeID) { r.write(id, 0, "w") },
		"fill":  func(r *rig, id NodeID) { r.ok(r.c.fill(r.ctx, id, 0, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			r, d := rigOnDisk(t)
			const size = 5*BlockSize + 777
			id := r.partly("f", strings.Repeat("c", size))
			r.write(id, size, strings.Repeat("a", 3*BlockSize))
			r.ending(r.prepared(), 0, func() { deed(r, id) })
			r.ok(r.c.journal.sync(r.c.journal.lsn(), r.c.journal.lsn()))
			r.crash(d)
			want := strings.Repeat("c", size) + strings.Repeat("a", 3*BlockSize)
			if got := r.cat("f"); len(got) != len(want) || got[1:] != want[1:] {
				t.Errorf("%d bytes, of %d, and %s in the place of what was appended", len(got), len(want), brief(got[size:]))
			}
			r.committedAsLive()
		})
	}
}

// TestLinkChangedAtTheEnd: a hard-linked file is found by another name and changed while the commit of its content ends: to
// the next starts, too, it is as committed then.
func TestLinkChangedAtTheEnd(t *testing.T) {
	r := newRig(t)
	id := r.partly("a", strings.Repeat("c", 5*BlockSize))
	_, err := r.c.Link(r.ctx, id, RootID, "b")
	r.ok(err)
	r.commit()
	r.reset()
	id = r.look("a")
	want := strings.Repeat("n", 4*BlockSize) + strings.Repeat("c", BlockSize)
	r.write(id, 0, want[:4*BlockSize])
	r.ending(r.prepared(), 0, func() {
		mode := uint32(0o600)
		_, err := r.c.SetAttr(r.ctx, r.look("b"), AttrChange{Mode: &mode})
		r.ok(err)
	})
	r.kill()
	r.power(0)
	r.wantFile("b", want)
	r.committedAsLive()
}

// TestForgottenAtTheEnd: the kernel lets go of files while the commit that has them ends: they are found again.
func TestForgottenAtTheEnd(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir(RootID, "d")
	const files = 3 * slice
	var ids []NodeID
	for i := range files {
		id, _, err := r.c.Make(r.ctx, dir, fmt.Sprint(i), NewInode{Mode: object.ModeRegular | 0o600})
		r.ok(err)
		ids = append(ids, id)
	}
	s := r.prepared()
	// The directory is settled last.
	at := slices.Index(s.nodes, r.c.nodes[dir])
	last := len(s.nodes) - 1
	s.nodes[at], s.nodes[last] = s.nodes[last], s.nodes[at]
	r.ending(s, 2, func() {
		other := r.file("in no commit")
		r.ok(r.c.Unlink(r.ctx, RootID, "in no commit"))
		r.c.Forget(other, 1)
		for _, id := range ids {
			r.c.Forget(id, 1)
		}
	})
	for i := range files {
		id, _, err := r.c.Lookup(r.ctx, dir, fmt.Sprint(i))
		r.ok(err)
		if _, err := r.c.GetAttr(r.ctx, id); err != nil {
			t.Fatalf("file %d was looked up and is unknown: %v", i, err)
		}
		r.c.Forget(id, 1)
	}
	if n := len(r.c.nodes); n != 2 {
		t.Errorf("%d nodes are in memory that nobody needs", n-2)
	}
}

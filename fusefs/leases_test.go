package fusefs

import (
	"slices"
	"testing"
	"time"

	"dm/workcopy"
)

// written has the kernel ask for attributes, and then before its first write.
func (l *leases) written(id workcopy.NodeID) {
	l.take(id, 1)
	l.writes(id)
}

func TestLeases(t *testing.T) {
	l := newLeases(true)
	l.max.Store(2)
	if !l.take(10, 1) || l.isHot(10) {
		t.Error("a file that is merely looked at costs a lease, or its attributes may not be held")
	}
	l.written(10)
	l.written(11)
	if !l.take(10, 0) || !l.isHot(10) || !l.isHot(11) {
		t.Fatal("no lease for a file that is written")
	}
	if l.takeForWrite(12); !l.isHot(12) {
		t.Error("a file that is written without a lease is not flushed")
	}
	if l.take(12, 1) {
		t.Error("more leases than allowed")
	}
	if hot := l.hot(); len(hot) != 3 {
		t.Errorf("hot: %v", hot)
	}
	l.writes(13) // not a file that the kernel has
	if l.isHot(13) {
		t.Error("a directory has a lease")
	}
	ids := l.recall()
	slices.Sort(ids)
	if !slices.Equal(ids, []workcopy.NodeID{10, 11}) {
		t.Errorf("called back: %v", ids)
	}
	if !l.isHot(10) || len(l.recall()) != 0 {
		t.Error("a file called back stays hot and has no lease")
	}
	l.written(14)
	l.written(15)
	l.written(16) // the kernel holds its attributes already: it is one too many, and counts
	if !l.isHot(16) || len(l.recall()) != 3 || len(l.full) != 1 {
		t.Error("a file that is written is not known because there are many")
	}
	l.forget(10, 2)
	if l.isHot(10) || l.known(10) {
		t.Error("a forgotten file is kept")
	}
}

// A file that may be written to by somebody who has asked already gets a lease with each answer.
func TestWarmFilesAreLeased(t *testing.T) {
	l := newLeases(true)
	l.written(10)
	l.recall()
	if !l.take(10, 0) || len(l.recall()) != 1 {
		t.Error("attributes of a warm file may be held without a lease")
	}
	l.cool(10, time.Now().Add(time.Second))
	if !l.take(10, 0) || len(l.recall()) != 0 {
		t.Error("a file that nobody writes to any more has a lease")
	}
}

func TestIdleLeasesAreCalledBack(t *testing.T) {
	l := newLeases(true)
	l.written(10)
	l.written(11)
	between := time.Now()
	l.wrote(11)
	if ids := l.recallOf(10, between); !slices.Equal(ids, []workcopy.NodeID{10}) {
		t.Errorf("called back: %v", ids)
	}
	if ids := l.recallOf(10, between); len(ids) != 0 {
		t.Errorf("called back, though it was heard of: %v", ids)
	}
}

// The kernel's FORGET can be handled after a LOOKUP that came later.
func TestForgetLeavesNewReferences(t *testing.T) {
	l := newLeases(true)
	l.take(10, 1)
	l.take(10, 1)
	l.writes(10)
	l.forget(10, 1)
	if !l.known(10) || !l.isHot(10) {
		t.Error("one FORGET took two references")
	}
}

// From Recall until a request has come through the gate there are no leases; one that came through an earlier gate does
// not end that.
func TestLeasesInTheDark(t *testing.T) {
	l := newLeases(true)
	l.darken()
	first := l.dark.Load()
	if l.takeForWrite(10) {
		t.Error("a lease was given during a cut")
	}
	l.lighten(first)
	if !l.takeForWrite(10) {
		t.Error("no lease after the cut")
	}
	l.darken()
	l.lighten(first)
	l.lighten(0)
	if l.takeForWrite(11) {
		t.Error("a request of the first cut ended the second's dark")
	}
}

func TestFilesCool(t *testing.T) {
	l := newLeases(true)
	l.written(10)
	l.recall()
	l.ref(11, 1)
	l.wrote(11) // without a lease: mapped
	now := time.Now()
	if ids := l.cooling(now); len(ids) != 0 {
		t.Errorf("cool at once: %v", ids)
	}
	if ids := l.cooling(now.Add(coolTime)); !slices.Equal(ids, []workcopy.NodeID{10}) {
		t.Errorf("cool: %v", ids)
	}
	if ids := l.cooling(now.Add(mapTime)); len(ids) != 2 {
		t.Errorf("cool after long: %v", ids)
	}
	start := time.Now()
	l.wrote(10) // while it was being flushed
	l.cool(10, start)
	if !l.isHot(10) {
		t.Error("a file that was written meanwhile was retired")
	}
	l.cool(10, time.Now().Add(time.Second))
	if l.isHot(10) {
		t.Error("a cool file was not retired")
	}
}

func TestTimesAreOwedOnce(t *testing.T) {
	l := newLeases(true)
	l.take(10, 1)
	if l.paid(10) {
		t.Error("times are owed for a file that was not written")
	}
	l.wrote(10)
	if !l.paid(10) || l.paid(10) {
		t.Error("times are owed once after a write")
	}
}

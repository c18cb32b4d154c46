package fusefs

import (
	"slices"
	"testing"
	"time"

	"dm/workcopy"
)

func TestLeases(t *testing.T) {
	l := newLeases(true)
	l.max.Store(2)
	if !l.take(10, 1) || !l.take(11, 1) || !l.take(10, 0) {
		t.Fatal("no lease while there is room")
	}
	if l.take(12, 1) {
		t.Error("more leases than allowed")
	}
	if l.isHot(12) {
		t.Error("a file that was only looked at may be dirty")
	}
	if l.takeForWrite(12); !l.isHot(12) {
		t.Error("a file that is written without a lease is not flushed")
	}
	if hot := l.hot(); len(hot) != 3 {
		t.Errorf("hot: %v", hot)
	}
	ids := l.recall(10)
	slices.Sort(ids)
	if !slices.Equal(ids, []workcopy.NodeID{10, 11}) {
		t.Errorf("called back: %v", ids)
	}
	if !l.isHot(10) || len(l.recall(10)) != 0 {
		t.Error("a file called back stays hot and has no lease")
	}
	l.forget(10, 1)
	if l.isHot(10) || l.known(10) {
		t.Error("a forgotten file is kept")
	}
}

// The kernel's FORGET can be handled after a LOOKUP that came later.
func TestForgetLeavesNewReferences(t *testing.T) {
	l := newLeases(true)
	l.take(10, 1)
	l.take(10, 1)
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
	if l.take(10, 1) {
		t.Error("a lease was given during a cut")
	}
	l.lighten(first)
	if !l.take(10, 0) {
		t.Error("no lease after the cut")
	}
	l.darken()
	l.lighten(first)
	l.lighten(0)
	if l.take(11, 1) {
		t.Error("a request of the first cut ended the second's dark")
	}
}

func TestFilesCool(t *testing.T) {
	l := newLeases(true)
	l.take(10, 1)
	l.recall(1)
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

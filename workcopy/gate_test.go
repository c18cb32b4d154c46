package workcopy

import (
	"context"
	"strings"
	"testing"
	"time"
)

// gateShut is a kernel that has nothing to write out and says when the gate is closed.
type gateShut struct{ closed chan struct{} }

func (gateShut) Flush(context.Context) error           { return nil }
func (gateShut) Recall(context.Context) error          { return nil }
func (g gateShut) FlushRecent(context.Context) error   { close(g.closed); return nil }
func (gateShut) Invalidate(_ NodeID, _ []string) error { return nil }

// freezeAnd freezes and does something meanwhile, as soon as the gate is closed.
func (r *rig) freezeAnd(do func()) *Snapshot {
	r.t.Helper()
	k := gateShut{make(chan struct{})}
	defer r.c.Attach(k)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-k.closed
		do()
	}()
	s, err := r.c.Freeze(r.ctx)
	r.ok(err)
	<-done
	return s
}

// A write(2) that the kernel hands over in two parts is in a cut as a whole, though the gate closed between them. The wait for
// the second part ends when there is none, and costs nothing where the first part cannot be one.
func TestWriteInTwoParts(t *testing.T) {
	page := int(pageSize)
	first, second := strings.Repeat("a", page-100), strings.Repeat("b", 50)
	for _, c := range []struct {
		name  string
		ready func(r *rig, f NodeID)
		do    func(r *rig, f NodeID)
		size  int  // in the cut
		waits bool // until the time is over
	}{
		{"second part", func(r *rig, f NodeID) { r.write(f, 100, first) }, func(r *rig, f NodeID) { r.write(f, int64(page), second) }, page + 50, false},
		{"none comes", func(r *rig, f NodeID) { r.write(f, 100, first) }, func(*rig, NodeID) {}, page, true},
		{"another write", func(r *rig, f NodeID) { r.write(f, 100, first) }, func(r *rig, f NodeID) { r.write(f, int64(2*page), second) }, page, false},
		{"a sync", func(r *rig, f NodeID) { r.write(f, 100, first) }, func(r *rig, f NodeID) { r.fsync(f, true) }, page, false},
		{"synced before", func(r *rig, f NodeID) { r.write(f, 100, first); r.fsync(f, true) }, func(r *rig, f NodeID) { r.write(f, int64(page), second) }, page, false},
		{"whole pages", func(r *rig, f NodeID) { r.write(f, 0, second+first+second) }, func(r *rig, f NodeID) { r.write(f, int64(page), second) }, page, false},
		{"inside of a page", func(r *rig, f NodeID) { r.write(f, 100, second) }, func(r *rig, f NodeID) { r.write(f, 150, second) }, 150, false},
		{"long ago", func(r *rig, f NodeID) { r.write(f, 100, first); time.Sleep(halfWait) }, func(*rig, NodeID) {}, page, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var size uint64
			var pause time.Duration
			for range 20 { // on a loaded machine anything may take longer than the second part is waited for
				r := newRig(t)
				f := r.file("f")
				began := time.Now()
				c.ready(r, f)
				s := r.freezeAnd(func() { c.do(r, f) })
				if took := time.Since(began); c.waits && took < halfWait {
					t.Fatalf("the cut was made %v after the first part", took)
				}
				size, pause = s.Files()[0].Size(), s.Pause()
				s.Abort()
				if size == uint64(c.size) && (c.waits || pause < halfWait*9/10) {
					return
				}
			}
			t.Errorf("the cut held %d bytes, want %d; the pause was %v, it is to last %v: %v", size, c.size, pause, halfWait, c.waits)
		})
	}
}
